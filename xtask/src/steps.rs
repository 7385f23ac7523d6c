//! A list of steps, each announced, timed and summed up at the end. The first failure ends the list.

use std::{
    io::Write as _,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

/// Runs steps and remembers what each took.
pub struct Steps {
    started: Instant,
    done: Vec<(String, Duration)>,
}

impl Steps {
    /// Starts the clock.
    pub fn new() -> Self {
        Self { started: Instant::now(), done: Vec::new() }
    }

    /// Runs one step; its error says which step failed.
    pub fn step<T>(&mut self, name: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        println!("── {name}");
        // The commands below write to the same terminal: what was printed must come first.
        std::io::stdout().flush()?;
        let began = Instant::now();
        let result = work().with_context(|| format!("step `{name}` failed"))?;
        self.done.push((name.to_owned(), began.elapsed()));
        Ok(result)
    }

    /// Prints what each step took, and the total.
    pub fn finish(self) {
        println!("── done");
        for (name, took) in &self.done {
            println!("   {:>7.1} s  {name}", took.as_secs_f64());
        }
        println!("   {:>7.1} s  in total", self.started.elapsed().as_secs_f64());
    }
}

/// Runs a command with this terminal; an error where it fails.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let line = display(command);
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` ended with {status}");
    }
    Ok(())
}

/// Runs a command and returns what it printed; an error with its last words where it fails.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let line = display(command);
    let output = command.output().with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn display(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

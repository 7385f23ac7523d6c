//! The test programs that cargo builds, run side by side: many of them wait for servers, and one that hangs must not hold the others.

use std::{
    collections::VecDeque,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::{cargo, steps};

/// A program that has not ended by then hangs. The longest take three minutes on two cores.
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// One program.
struct Program {
    name: String,
    command: Command,
}

/// How one ended.
struct Ended {
    /// None where it did not by itself.
    status: Option<ExitStatus>,
    took: Duration,
    printed: String,
}

/// Runs all tests of the workspace, as many programs at a time as there are cores; an error that names those that failed, after all of them.
pub fn run(root: &Path, environment: &[(&'static str, PathBuf)]) -> anyhow::Result<()> {
    let mut programs = built(root)?;
    for program in &mut programs {
        program.command.envs(environment.iter().map(|(name, path)| (name, path)));
    }
    let (programs, failed) = (Mutex::new(programs), Mutex::new(Vec::new()));
    let output = tempfile::tempdir()?;
    let lane = |number: usize| -> anyhow::Result<()> {
        let file = output.path().join(number.to_string());
        while let Some(Program { name, mut command }) = next(&programs) {
            let ended = ended(&mut command, &file).with_context(|| format!("cannot run `{name}`"))?;
            let good = ended.status.is_some_and(|status| status.success());
            // Under the lock, so that what two programs printed does not mix.
            let mut failed = failed.lock().map_err(|_| poisoned())?;
            println!("{}", ended.shown(&name));
            if !good {
                failed.push(name);
            }
        }
        Ok(())
    };
    let lanes = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..lanes).map(|number| scope.spawn(move || lane(number))).collect();
        lanes.into_iter().try_for_each(|lane| lane.join().map_err(|_| poisoned())?)
    })?;
    let failed = failed.into_inner().map_err(|_| poisoned())?;
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

fn poisoned() -> anyhow::Error {
    anyhow::anyhow!("a thread that runs tests panicked")
}

fn next(programs: &Mutex<VecDeque<Program>>) -> Option<Program> {
    programs.lock().ok()?.pop_front()
}

/// The programs, each in the folder of its package, where cargo would start it.
fn built(root: &Path) -> anyhow::Result<VecDeque<Program>> {
    let mut build = cargo(root);
    build.args(["test", "--workspace", "--no-run", "--quiet", "--message-format=json-render-diagnostics"]);
    let messages = steps::output(&mut build)?;
    let programs = messages.lines().filter_map(|line| program(&serde_json::from_str(line).ok()?));
    let programs: VecDeque<_> = programs.collect();
    ensure!(!programs.is_empty(), "cargo built no tests");
    Ok(programs)
}

fn program(message: &Value) -> Option<Program> {
    let (executable, target) = (message["executable"].as_str()?, &message["target"]);
    let manifest = Path::new(message["manifest_path"].as_str()?);
    let (folder, name) = (manifest.parent()?, target["name"].as_str()?);
    let package = folder.file_name()?.to_string_lossy();
    let is_test = message["profile"]["test"].as_bool()?;
    let mut command = Command::new(executable);
    command.current_dir(folder).env("CARGO_MANIFEST_DIR", folder);
    is_test.then(|| Program { name: format!("{package}: {name}"), command })
}

/// Runs one with its output in a file: what it starts and leaves behind could hold a pipe open.
fn ended(command: &mut Command, file: &Path) -> anyhow::Result<Ended> {
    let output = File::create(file)?;
    let began = Instant::now();
    let mut child = command.stdout(output.try_clone()?).stderr(output).spawn()?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if began.elapsed() > LONGEST {
            child.kill()?;
            child.wait()?;
            break None;
        }
        thread::sleep(Duration::from_millis(20));
    };
    let printed = String::from_utf8_lossy(&std::fs::read(file)?).into_owned();
    Ok(Ended { status, took: began.elapsed(), printed })
}

impl Ended {
    /// A line of one that passed, all that one printed which did not.
    fn shown(&self, name: &str) -> String {
        let seconds = self.took.as_secs_f64();
        let results = self.printed.lines().filter_map(|line| line.strip_prefix("test result: "));
        let counted = results.flat_map(|line| line.split(['.', ';']));
        let passed: usize = counted.filter_map(|part| part.trim().strip_suffix(" passed")?.parse::<usize>().ok()).sum();
        match self.status {
            Some(status) if status.success() => format!("   {seconds:>7.1} s  {name}: {passed} passed"),
            Some(status) => format!("{}\n   {seconds:>7.1} s  {name}: {status}", self.printed),
            None => format!("{}\n   {seconds:>7.1} s  {name}: hangs, and was ended", self.printed),
        }
    }
}

//! The one entry for upkeep: `cargo xtask test`, `lint`, `setup`, `bench`, `fuzz`.
//!
//! Says which checks there are and in which order; what a check looks at is in the modules.

mod bench;
mod fuzz;
mod go;
mod layers;
mod parts;
mod programs;
mod python;
mod rules;
mod steps;
mod test;
mod tools;

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Upkeep of the workspace", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the tests need, then run every check: format, layers, rules, lints, all tests
    Test(test::TestArgs),
    /// The checks that need no build of the tests: format, layers, rules, lints
    Lint,
    /// Install what tests and benchmarks need and the machine lacks
    Setup,
    /// Run a benchmark, e.g. `cargo xtask bench serve --json`
    Bench {
        /// Name of the benchmark and its options
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Fuzz a parser for a while (needs cargo-fuzz)
    Fuzz(fuzz::FuzzArgs),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Test(args) => test::run(&args),
        Task::Lint => test::lint(),
        Task::Setup => test::setup(),
        Task::Bench { args } => bench::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
    }
}

/// Cargo, at the root of the workspace.
fn cargo(root: &Path) -> std::process::Command {
    let mut command = std::process::Command::new("cargo");
    command.current_dir(root);
    command
}

/// The root of the workspace.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

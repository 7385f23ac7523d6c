//! The order of the checks, cheapest first.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::{cargo, layers, parts, programs, python, root, rules, steps, steps::Steps, tools};

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub struct TestArgs {
    /// Skip format, layers, rules and lints
    #[arg(long)]
    no_lint: bool,
    /// Fail where a server of others that tests talk to is missing, instead of skipping these tests
    #[arg(long)]
    all_parts: bool,
    /// Passed on to `cargo test`, e.g. `-p edgeward-graph`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    cargo: Vec<String>,
}

/// What builds the binary alone.
const BINARY: &[&str] = &["build", "--bin", "edgeward"];

/// Every check and every test.
pub fn run(args: &TestArgs) -> anyhow::Result<()> {
    let root = root();
    let mut steps = Steps::new();
    if !args.no_lint {
        lint_steps(&mut steps, &root)?;
    }
    // With all tests at once where all are wanted: their features of shared dependencies are others than the binary's own, which
    // built apart would build a part of them, and of this workspace, twice.
    let build = if args.cargo.is_empty() { &["test", "--workspace", "--no-run", "--quiet"][..] } else { BINARY };
    let pythons = setup_steps(&mut steps, &root, build)?;
    steps.step("tests", || run_tests(&root, &pythons, args))?;
    steps.finish();
    Ok(())
}

/// Format, layers, rules and lints.
pub fn lint() -> anyhow::Result<()> {
    let mut steps = Steps::new();
    lint_steps(&mut steps, &root())?;
    steps.finish();
    Ok(())
}

/// What tests and benchmarks need and the machine lacks.
pub fn setup() -> anyhow::Result<()> {
    let mut steps = Steps::new();
    setup_steps(&mut steps, &root(), BINARY)?;
    steps.finish();
    Ok(())
}

/// `build`: arguments of cargo that build the binary.
fn setup_steps(steps: &mut Steps, root: &Path, build: &[&str]) -> anyhow::Result<python::Pythons> {
    steps.step("programs", tools::ensure)?;
    steps.step("programs in Go", || tools::ensure_go(root))?;
    let pythons = steps.step("python environments", || python::ensure(root))?;
    steps.step("build", || steps::run(cargo(root).args(build)))?;
    steps.step("engines", || install_engines(root))?;
    Ok(pythons)
}

fn lint_steps(steps: &mut Steps, root: &Path) -> anyhow::Result<()> {
    steps.step("format", || steps::run(cargo(root).args(["fmt", "--all", "--check"])))?;
    steps.step("layers", || layers::check(root))?;
    steps.step("rules", || rules::check(root))?;
    steps.step("lints", || {
        let mut clippy = cargo(root);
        clippy.args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings", "-W", "clippy::too_many_lines"]);
        steps::run(&mut clippy)
    })
}

fn install_engines(root: &Path) -> anyhow::Result<()> {
    // Beside this program, which cargo built into the same target folder.
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let target = own.ancestors().nth(2).context("this program is in no target folder")?;
    steps::run(Command::new(target.join("debug/edgeward")).args(["engine", "install"]).current_dir(root))
}

fn run_tests(root: &Path, pythons: &python::Pythons, args: &TestArgs) -> anyhow::Result<()> {
    let mut environment = parts::ensure(root, args.all_parts)?;
    environment.push(("EDGEWARD_TEST_PYTHON", pythons.main.clone()));
    environment.push(("EDGEWARD_TEST_PYTHON_KSERVE", pythons.kserve.clone()));
    environment.push(("EDGEWARD_ALL_ENGINES", "1".into()));
    environment.extend(args.all_parts.then(|| ("EDGEWARD_ALL_PARTS", "1".into())));
    environment.extend(data(root).map(|folder| ("EDGEWARD_DATA", folder)));
    if args.cargo.is_empty() {
        return programs::run(root, &environment);
    }
    steps::run(cargo(root).arg("test").args(&args.cargo).envs(environment))
}

/// Folder of real data: what `EDGEWARD_DATA` says, else the one that lies beside the workspace.
pub fn data(root: &Path) -> Option<PathBuf> {
    let named = std::env::var_os("EDGEWARD_DATA").map(PathBuf::from);
    named.or_else(|| root.join("../shared/data").canonicalize().ok()).filter(|folder| folder.is_dir())
}

//! Runs a fuzz target of a crate for a while.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::bail;

use crate::{root, steps, tools};

/// Which target, for how long.
#[derive(clap::Args)]
pub struct FuzzArgs {
    /// Crate whose target runs, e.g. `graph`; all where none
    room: Option<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// Runs every target of the crates asked for.
pub fn run(args: &FuzzArgs) -> anyhow::Result<()> {
    if !tools::on_path("cargo-fuzz") {
        bail!("`cargo-fuzz` is missing: `cargo install --locked cargo-fuzz`");
    }
    let mut ran = 0;
    for (room, folder) in rooms(&root())? {
        if args.room.as_ref().is_some_and(|wanted| *wanted != room) {
            continue;
        }
        for target in targets(&folder)? {
            println!("── {room}: {target}");
            fuzz(&folder, &target, args.seconds)?;
            ran += 1;
        }
    }
    match (ran, &args.room) {
        (0, Some(room)) => bail!("no fuzz target in `crates/{room}/fuzz`"),
        (0, None) => bail!("no crate has a folder `fuzz`"),
        _ => Ok(()),
    }
}

fn fuzz(folder: &Path, target: &str, seconds: u32) -> anyhow::Result<()> {
    let mut command = Command::new("cargo");
    // cargo-fuzz needs `-Z` options of rustc; this lets the stable toolchain take them, for this command alone.
    command.env("RUSTC_BOOTSTRAP", "1").current_dir(folder).args(["fuzz", "run", "--fuzz-dir", "."]);
    command.arg(target);
    let seeds = folder.join("seeds").join(target);
    if seeds.is_dir() {
        let corpus = folder.join("corpus").join(target);
        fs::create_dir_all(&corpus)?;
        command.arg(corpus).arg(seeds);
    }
    steps::run(command.args(["--", &format!("-max_total_time={seconds}")]))
}

fn rooms(root: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root.join("crates"))? {
        let entry = entry?;
        let folder = entry.path().join("fuzz");
        if folder.join("Cargo.toml").is_file() {
            found.push((entry.file_name().to_string_lossy().into_owned(), folder));
        }
    }
    found.sort();
    Ok(found)
}

fn targets(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder.join("fuzz_targets"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && let Some(stem) = path.file_stem()
        {
            found.push(stem.to_string_lossy().into_owned());
        }
    }
    found.sort();
    Ok(found)
}

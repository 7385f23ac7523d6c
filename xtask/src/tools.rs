//! Programs that benchmarks and some tests call, from the distribution's packages.

use std::process::Command;

use anyhow::bail;

use crate::steps;

/// (program, Debian package, what it is for)
const TOOLS: &[(&str, &str, &str)] = &[
    ("wrk", "wrk", "HTTP load"),
    ("h2load", "nghttp2-client", "HTTP/2 and gRPC load"),
    ("curl", "curl", "client tests"),
];

/// Installs the missing programs where that needs no password; else says which they are.
pub fn ensure() -> anyhow::Result<()> {
    let missing: Vec<_> = TOOLS.iter().filter(|(program, ..)| !on_path(program)).collect();
    for (program, package, purpose) in &missing {
        println!("   `{program}` ({purpose}) is missing: Debian's package `{package}`");
    }
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|(_, package, _)| *package).collect();
    if let Err(error) = apt_install(&packages) {
        println!("   {error}; what needs them is skipped");
    }
    Ok(())
}

/// Installs Debian packages where this process may.
pub fn apt_install(packages: &[&str]) -> anyhow::Result<()> {
    let names = packages.join(" ");
    if !on_path("apt-get") || !is_root()? {
        bail!("install `{names}` with the system's package manager");
    }
    steps::output(Command::new("apt-get").args(["update", "-qq"]))?;
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["install", "-y", "-qq", "--no-install-recommends"]);
    steps::output(command.args(packages)).map(drop)
}

/// True where a program of this name is found.
pub fn on_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

fn is_root() -> anyhow::Result<bool> {
    Ok(steps::output(Command::new("id").arg("-u"))?.trim() == "0")
}

//! Programs that benchmarks and some tests call, from the distribution's packages.

use std::{fs, path::Path, process::Command};

use anyhow::bail;

use crate::steps;

/// (program, Debian package, what it is for)
const TOOLS: &[(&str, &str, &str)] = &[
    ("wrk", "wrk", "HTTP load"),
    ("h2load", "nghttp2-client", "HTTP/2 and gRPC load"),
    ("curl", "curl", "client tests"),
    ("softhsm2-util", "softhsm2", "keys in a token"),
    ("pkcs11-tool", "opensc", "keys in a token"),
];

/// (program, Go package with its version, what it is for)
const GO_TOOLS: &[(&str, &str, &str)] = &[
    ("h2spec", "github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible", "HTTP/2 conformance"),
    ("grpcurl", "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4", "gRPC by reflection"),
    ("fsck", "github.com/transparency-dev/tessera/cmd/fsck@v1.0.4", "audit logs"),
    ("litewitness", "filippo.io/torchwood/cmd/litewitness@v0.9.0", "witnesses of audit logs"),
    ("fake-gcs-server", "github.com/fsouza/fake-gcs-server@v1.56.1", "releases in Google Cloud Storage"),
];

/// Builds programs that come as Go source into `target/test-env/bin`, each once per version.
pub fn ensure_go(root: &Path) -> anyhow::Result<()> {
    let folder = root.join("target/test-env/bin");
    for (program, package, purpose) in GO_TOOLS {
        let stamp = folder.join(format!("{program}.made-from"));
        if folder.join(program).exists() && fs::read_to_string(&stamp).is_ok_and(|made| made == *package) {
            continue;
        }
        if !on_path("go") {
            println!("   `{program}` ({purpose}) is missing and needs Go; what needs it is skipped");
            continue;
        }
        fs::create_dir_all(&folder)?;
        if let Err(error) = steps::output(Command::new("go").env("GOBIN", &folder).args(["install", package])) {
            println!("   {error}; what needs `{program}` is skipped");
            continue;
        }
        fs::write(stamp, package)?;
    }
    Ok(())
}

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

//! Servers that are built from Go modules whose own `go.mod` cannot be installed from: ours pin every module, in `xtask/parts/NAME`.
//!
//! A build takes minutes, so that it is kept in the user's cache folder, by version. To raise a version: a `go.mod` with the `module` and
//! `go` lines alone, the server's own `go.sum` beside it, and `go get -tool PACKAGE@VERSION`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::{steps, tools};

/// A server in Go.
pub struct GoPart {
    /// Folder beneath `xtask/parts`.
    pub name: &'static str,
    pub version: &'static str,
    /// What the linker is told beside to leave debug information out.
    pub ldflags: &'static str,
    /// (program, package)
    pub programs: &'static [(&'static str, &'static str)],
}

/// OpenBao: keys and certificates by the API of HashiCorp Vault.
pub const OPENBAO: GoPart = GoPart {
    name: "openbao",
    version: "2.4.0",
    ldflags: "-X github.com/openbao/openbao/version.fullVersion=2.4.0",
    programs: &[("bao", "github.com/openbao/openbao")],
};

/// SPIRE: identities of workloads.
pub const SPIRE: GoPart = GoPart {
    name: "spire",
    version: "1.13.3",
    ldflags: "",
    programs: &[
        ("spire-server", "github.com/spiffe/spire/cmd/spire-server"),
        ("spire-agent", "github.com/spiffe/spire/cmd/spire-agent"),
    ],
};

impl GoPart {
    /// The folder with its programs, which are built where they are not there yet.
    pub fn ensure(&self, root: &Path) -> anyhow::Result<PathBuf> {
        let folder = cache(root).join(format!("{}-{}", self.name, self.version));
        if self.programs.iter().all(|(program, _)| folder.join(program).is_file()) {
            return Ok(folder);
        }
        anyhow::ensure!(tools::on_path("go"), "`{}` needs Go to be built", self.name);
        println!("   building `{}` {} from source, once: this takes minutes", self.name, self.version);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
        for (program, package) in self.programs {
            // A build that is broken off leaves no program behind.
            let unfinished = folder.join(format!("{program}.unfinished"));
            let mut go = Command::new("go");
            go.current_dir(root.join("xtask/parts").join(self.name)).args(["build", "-trimpath", "-buildvcs=false"]);
            go.arg(format!("-ldflags=-s -w {}", self.ldflags)).arg("-o").arg(&unfinished).arg(package);
            steps::output(&mut go)?;
            fs::rename(&unfinished, folder.join(program))?;
        }
        Ok(folder)
    }
}

/// The user's cache folder, or one of this checkout where there is none.
fn cache(root: &Path) -> PathBuf {
    let home = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cache")));
    home.map_or_else(|| root.join("target/test-env/parts"), |home| home.join("edgeward/parts"))
}

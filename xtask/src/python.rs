//! The Python environments that the tests run against, under `target/test-env`.
//!
//! Each is keyed by the hash of what it was made from, so that a second run finds it as it is.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use crate::{steps, tools};

const UV: &str = "uv==0.13.8";
const MIN_VERSION: (u32, u32) = (3, 11);

/// Interpreters of the two environments.
pub struct Pythons {
    /// Everything but KServe.
    pub main: PathBuf,
    /// KServe's clients.
    pub kserve: PathBuf,
}

/// Makes the environments, or finds them made.
pub fn ensure(root: &Path) -> anyhow::Result<Pythons> {
    let home = root.join("target/test-env");
    let xtask = root.join("xtask");
    let main = Environment {
        folder: home.join("venv"),
        requirements: xtask.join("test-requirements.txt"),
        overrides: Some(xtask.join("test-overrides.txt")),
        after: cuda_build().then(|| xtask.join("torch_cpu.py")),
    };
    let kserve = Environment {
        folder: home.join("venv-kserve"),
        requirements: xtask.join("test-requirements-kserve.txt"),
        overrides: None,
        after: None,
    };
    Ok(Pythons { main: main.ensure(&home)?, kserve: kserve.ensure(&home)? })
}

/// The environment of what compression is measured against.
pub fn ensure_compressors(root: &Path) -> anyhow::Result<PathBuf> {
    let home = root.join("target/bench-env");
    let xtask = root.join("xtask");
    fs::create_dir_all(&home)?;
    Environment {
        folder: home.join("compress"),
        requirements: xtask.join("bench-requirements-compress.txt"),
        overrides: Some(xtask.join("test-overrides.txt")),
        after: cuda_build().then(|| xtask.join("torch_cpu.py")),
    }
    .ensure(&home)
}

/// An environment with pinned packages, `NAME==VERSION`, one a line, in the folder of the first's name.
pub fn ensure_package(home: &Path, requirement: &str) -> anyhow::Result<PathBuf> {
    let folder = home.join(requirement.split("==").next().unwrap_or(requirement));
    fs::create_dir_all(home)?;
    let requirements = folder.with_extension("txt");
    fs::write(&requirements, format!("{requirement}\n"))?;
    Environment { folder, requirements, overrides: None, after: None }.ensure(home)
}

/// Further pinned packages for an environment that there is, without what they depend on, in a folder for `PYTHONPATH`.
pub fn ensure_beside(python: &Path, folder: &Path, requirements: &str) -> anyhow::Result<PathBuf> {
    let stamp = folder.join("made-from");
    if fs::read_to_string(&stamp).is_ok_and(|made| made == requirements) {
        return Ok(folder.to_owned());
    }
    let uv = ensure_uv(&crate::root().join("target/test-env"), python)?;
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    let mut command = Command::new(uv);
    command.args(["pip", "install", "--quiet", "--native-tls", "--no-deps", "--python"]).arg(python);
    steps::output(command.arg("--target").arg(folder).args(requirements.lines()))?;
    fs::write(stamp, requirements)?;
    Ok(folder.to_owned())
}

/// True where the index has only the CUDA build of torch.
fn cuda_build() -> bool {
    cfg!(all(target_os = "linux", target_arch = "x86_64"))
}

struct Environment {
    folder: PathBuf,
    requirements: PathBuf,
    overrides: Option<PathBuf>,
    /// A script that the environment's own Python runs once after the installation.
    after: Option<PathBuf>,
}

impl Environment {
    fn ensure(&self, home: &Path) -> anyhow::Result<PathBuf> {
        let python = self.folder.join("bin/python");
        let stamp = self.folder.join("made-from");
        let key = self.key()?;
        if python.exists() && fs::read_to_string(&stamp).is_ok_and(|made| made == key) {
            eprintln!("   {} is up to date", self.folder.display());
            return Ok(python);
        }
        let base = find_python()?;
        let uv = ensure_uv(home, &base)?;
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder)?;
        }
        steps::run(Command::new(&uv).args(["venv", "--quiet", "--python"]).arg(&base).arg(&self.folder))?;
        self.install(&uv, &python)?;
        if let Some(script) = &self.after {
            steps::run(Command::new(&python).arg(script))?;
        }
        fs::write(stamp, key)?;
        Ok(python)
    }

    fn install(&self, uv: &Path, python: &Path) -> anyhow::Result<()> {
        let mut command = Command::new(uv);
        // Certificates of the system, so that a company's own index works.
        command.args(["pip", "install", "--quiet", "--native-tls", "--python"]).arg(python);
        if let Some(overrides) = &self.overrides {
            command.arg("--override").arg(overrides);
        }
        steps::run(command.arg("-r").arg(&self.requirements))
            .with_context(|| format!("cannot install `{}`; is a package index reachable?", self.requirements.display()))
    }

    fn key(&self) -> anyhow::Result<String> {
        let mut hasher = DefaultHasher::new();
        for file in [Some(&self.requirements), self.overrides.as_ref(), self.after.as_ref()].into_iter().flatten() {
            fs::read(file)?.hash(&mut hasher);
        }
        Ok(format!("{:016x}", hasher.finish()))
    }
}

fn ensure_uv(home: &Path, python: &Path) -> anyhow::Result<PathBuf> {
    let folder = home.join("tool");
    let uv = folder.join("bin/uv");
    let current = steps::output(Command::new(&uv).arg("--version"));
    if current.is_ok_and(|version| version.split_whitespace().nth(1) == UV.split("==").nth(1)) {
        return Ok(uv);
    }
    let make = || steps::run(Command::new(python).args(["-m", "venv", "--clear"]).arg(&folder));
    if make().is_err() {
        // Debian keeps `venv` out of its Python package.
        tools::apt_install(&["python3-venv"])?;
        make()?;
    }
    steps::run(Command::new(folder.join("bin/python")).args(["-m", "pip", "install", "--quiet", UV]))?;
    Ok(uv)
}

fn find_python() -> anyhow::Result<PathBuf> {
    let script = "import sys; print(sys.executable, *sys.version_info[:2], sep='\\n')";
    for name in ["python3", "python3.14", "python3.13", "python3.12", "python3.11"] {
        let Ok(text) = steps::output(Command::new(name).args(["-c", script])) else { continue };
        let mut lines = text.lines();
        let path = lines.next().map(PathBuf::from);
        let version = (lines.next().and_then(|n| n.parse().ok()), lines.next().and_then(|n| n.parse().ok()));
        if let (Some(path), (Some(major), Some(minor))) = (path, version)
            && (major, minor) >= MIN_VERSION
        {
            return Ok(path);
        }
    }
    bail!("no Python {}.{} or newer found; install `python3`", MIN_VERSION.0, MIN_VERSION.1)
}

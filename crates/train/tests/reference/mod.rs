//! Python as the reference: a script beside the test, JSON in and out.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

/// Runs `script` of this folder with the modules that it needs; none, said aloud, where Python or one of them is missing.
pub fn python(script: &str, modules: &[&str], arguments: &[&Path], input: &Value) -> Option<Value> {
    let Some(python) = std::env::var_os("EDGEWARD_TEST_PYTHON") else {
        println!("skipped: EDGEWARD_TEST_PYTHON is not set (`cargo xtask test` sets it)");
        return None;
    };
    let imports = modules.iter().map(|module| format!("import {module};")).collect::<String>();
    let there = Command::new(&python).args(["-c", &imports]).stderr(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        println!("skipped: the Python of EDGEWARD_TEST_PYTHON lacks one of {modules:?}");
        return None;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(script);
    let mut child =
        Command::new(python).arg(script).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "the script failed");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

/// A file of the data that stays outside the project; none, said aloud, where the folder is missing.
pub fn data(file: &str) -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("EDGEWARD_DATA") else {
        println!("skipped: EDGEWARD_DATA is not set");
        return None;
    };
    let path = Path::new(&folder).join(file);
    path.is_file().then_some(path).or_else(|| {
        println!("skipped: there is no {file}");
        None
    })
}

//! The binary, as typed: words between blanks, in a folder.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    ffi::OsString,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

/// The Python that has the packages of other implementations.
pub fn python() -> Option<OsString> {
    std::env::var_os("EDGEWARD_TEST_PYTHON")
}

/// Every file of a result is valid, and ONNX Runtime and OpenVINO open it, as the ONNX package and both libraries say.
pub fn others_open(folder: &Path) {
    let Some(python) = python() else { return println!("skipped: EDGEWARD_TEST_PYTHON is not set") };
    let script = "
import glob, importlib.util, sys, onnx, onnxruntime
for path in sorted(glob.glob(sys.argv[1] + '/*.onnx')):
    onnx.checker.check_model(path, full_check=True)
    onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    if importlib.util.find_spec('openvino'):
        import openvino
        openvino.Core().compile_model(path, 'CPU')
    print(path)
";
    let output = Command::new(python).args(["-c", script]).arg(folder).output().unwrap();
    assert!(output.status.success() && text(&output).contains("model.onnx"), "{}", text(&output));
}

pub fn edgeward(folder: &Path, words: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_edgeward")).args(words.split(' ')).current_dir(folder).output().unwrap()
}

/// Both streams, one after the other.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a command that must succeed, and reads its JSON.
pub fn json(folder: &Path, words: &str) -> Value {
    let output = edgeward(folder, &format!("{words} --json"));
    assert!(output.status.success(), "{words}: {}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

//! The binary, as typed: words between blanks, in a folder.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

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

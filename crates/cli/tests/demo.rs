//! `edgeward demo` while it serves and when it is told to end.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

/// The demo with `folder` for its temporary files.
fn demo(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgeward"));
    command.current_dir(folder).args(arguments).stdin(Stdio::null()).env("TMPDIR", folder);
    command
}

/// Folders of the demo. ONNX Runtime leaves a file of its own beside them.
fn left(folder: &Path) -> usize {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with("edgeward")).count()
}

/// The demo's folder.
fn made_folder(folder: &Path) -> std::path::PathBuf {
    let mut entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.find(|path| path.file_name().unwrap().to_string_lossy().starts_with("edgeward")).unwrap()
}

#[test]
fn the_demo_says_where_it_serves_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    for (signal, json) in [("-TERM", true), ("-INT", false)] {
        let arguments: &[&str] = &["demo", "--offline", "--requests", "5", "--json"][..if json { 5 } else { 4 }];
        let mut command = demo(folder.path(), arguments);
        let mut demo = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let address = if json {
            let mut report = serde_json::Deserializer::from_reader(demo.stdout.as_mut().unwrap()).into_iter::<Value>();
            report.next().unwrap().unwrap()["serving"]["http"].as_str().unwrap().to_owned()
        } else {
            // Read where it lies: the demo says more when it ends, and must find somebody there.
            let mut lines = BufReader::new(demo.stderr.as_mut().unwrap()).lines().map(Result::unwrap);
            let invitation = lines.find(|line| line.contains("is served with")).unwrap();
            invitation.split("https://").nth(1).unwrap().split(' ').next().unwrap().to_owned()
        };
        let trust = made_folder(folder.path()).join("trust");
        let curl = |caller: &[&str]| {
            let mut command = Command::new("curl");
            let url = format!("https://{address}/v2/models/digits");
            let output = command.current_dir(&trust).args(["-sS", "--cacert", "roots.pem", &url]).args(caller).output();
            String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
        };
        let body = curl(&["--cert", "admin.pem", "--key", "admin.key"]);
        assert!(body.contains("\"name\":\"digits\""), "{body}");
        assert_eq!(curl(&[]), r#"{"error":"not authenticated"}"#);
        let made = || left(folder.path());
        assert_eq!(made(), 1);
        assert!(Command::new("kill").args([signal, &demo.id().to_string()]).status().unwrap().success());
        assert!(demo.wait().unwrap().success());
        assert_eq!(made(), 0, "{signal}");
    }
}

#[test]
fn a_demo_that_is_interrupted_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = demo(folder.path(), &["demo", "--offline", "--requests", "1000000"]);
    let mut demo = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let made = || {
        fs::read_dir(folder.path()).unwrap().flatten().find(|e| e.path().join("models/digits/1/model.onnx").exists())
    };
    while made().is_none() {
        assert!(demo.try_wait().unwrap().is_none());
        std::thread::yield_now();
    }
    assert!(Command::new("kill").args(["-TERM", &demo.id().to_string()]).status().unwrap().success());
    let ended = demo.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("interrupted"));
    assert_eq!(left(folder.path()), 0);
}

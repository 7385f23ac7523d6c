//! `--ready-file`: there once every model serves, whole, and gone with the server.

mod support;

use std::{
    fs,
    process::{Command, Stdio},
};

use edgeward_graph::DataType;
use serde_json::Value;
use support::Server;

#[test]
fn it_is_there_while_every_model_serves_and_not_before_or_after() {
    let files = tempfile::tempdir().unwrap();
    let (models, ready, log) = (files.path().join("models"), files.path().join("ready.json"), files.path().join("log"));
    fs::create_dir(&models).unwrap();
    support::identity(DataType::Float32).write(models.join("good.onnx")).unwrap();
    fs::write(models.join("bad.onnx"), "no model").unwrap();
    fs::write(&ready, "what an earlier server left").unwrap();
    let server =
        Server::start_logging(&[&models], &["--engine", "rten", "--ready-file", ready.to_str().unwrap()], &log);
    let told = "not ready: the ready file is written once every model";
    support::until(told, || fs::read_to_string(&log).unwrap().contains(told));
    assert_eq!(server.ask("GET", "/v2/health/ready", "", b"").0, 503);
    assert!(!ready.exists(), "{}", fs::read_to_string(&ready).unwrap());
    support::identity(DataType::Float32).write(models.join("bad.onnx")).unwrap();
    assert_eq!(server.ask("POST", "/v2/repository/models/bad/load", "", b"").0, 200);
    support::until("the ready file", || ready.exists());
    let addresses: Value = serde_json::from_slice(&fs::read(&ready).unwrap()).unwrap();
    assert_eq!((&addresses["http"], &addresses["grpc"]), (&server.http.clone().into(), &server.grpc.clone().into()));
    assert!(server.terminate().success());
    assert!(!ready.exists());
    let left: Vec<_> = fs::read_dir(files.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn one_that_cannot_be_written_is_said_before_any_model_loads() {
    let files = tempfile::tempdir().unwrap();
    let model = files.path().join("m.onnx");
    support::identity(DataType::Float32).write(&model).unwrap();
    for wrong in [files.path().join("no/such/folder/ready"), files.path().to_owned(), model.join("ready")] {
        let output = Command::new(env!("CARGO_BIN_EXE_edgeward"))
            .args(["serve", "--insecure"])
            .args(support::FREE_PORTS)
            .args(["--log-format", "json", "--ready-file"])
            .args([&wrong, &model])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.contains(&format!("cannot write `{}`: ", wrong.display())) && !said.contains("model loaded"),
            "{said}"
        );
    }
}

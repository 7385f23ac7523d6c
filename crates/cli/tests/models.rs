//! Real models, the published sizes, and models fresh from a framework: each command on each of them.
//!
//! What a model is asked for is in `tests/models/answers.py`; what it must be like is in `docs/models.md`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};
use support::Server;

#[path = "support/document.rs"]
mod document;
mod support;

/// Outputs of a framework and of an engine may differ by this, relative to the larger of 1 and the value.
const TOLERANCE: f64 = 1e-4;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn data() -> Option<PathBuf> {
    let folder = std::env::var_os("EDGEWARD_DATA").map_or_else(|| root().join("../shared/data"), PathBuf::from);
    folder.join("onnx").is_dir().then_some(folder)
}

fn python() -> Option<PathBuf> {
    std::env::var_os("EDGEWARD_TEST_PYTHON").map(PathBuf::from)
}

fn done(output: Output, what: &str) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{what}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn edgeward(folder: &Path, arguments: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgeward"));
    command.current_dir(folder).args(arguments).arg("--json").stdin(Stdio::null());
    for name in ["EDGEWARD_ENGINE", "EDGEWARD_THREADS", "EDGEWARD_CONFIG"] {
        command.env_remove(name);
    }
    serde_json::from_str(&done(command.output().unwrap(), &format!("{arguments:?}"))).unwrap()
}

/// `inspect`, `bench`, `tune` and `serve` with one request: each works on the model.
fn every_command(model: &Path, shapes: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = model.to_str().unwrap();
    let shapes: Vec<&str> = shapes.iter().flat_map(|&shape| ["--shape", shape]).collect();

    let inspected = edgeward(folder.path(), &["inspect", path]);
    assert!(inspected["nodes"].as_u64().unwrap() > 0 && inspected["parameters"].as_u64().unwrap() > 0, "{inspected}");
    let runs = |verdict: &Value| verdict["runs"] == true;
    assert!(inspected["engines"].as_array().unwrap().iter().any(runs), "{inspected}");

    let bench = edgeward(folder.path(), &[&["bench", path, "--seconds", "0.01"], shapes.as_slice()].concat());
    assert!(bench["p50_ms"].as_f64().unwrap() > 0.0 && bench["runs"].as_u64().unwrap() >= 3, "{bench}");

    let arguments = ["tune", path, "--threads-max", "1", "--slice-seconds", "0.001", "-o", "tune.json"];
    let tuned = edgeward(folder.path(), &[&arguments, shapes.as_slice()].concat());
    // Left out are the engines that cannot load the model, and no engine or setting for what it answers.
    let verdicts = inspected["engines"].as_array().unwrap().iter();
    let unable: Vec<&str> = verdicts.filter(|v| !runs(v)).map(|v| v["name"].as_str().unwrap()).collect();
    let excluded = tuned["excluded"].as_object().unwrap();
    assert!(excluded.keys().eq(&unable), "{path}: {unable:?} cannot load it, left out are {excluded:?}");
    for goal in ["latency", "throughput"] {
        assert!(tuned["measured"].as_array().unwrap().contains(&tuned[goal]), "{goal} was not measured: {tuned}");
    }
    serve_once(model, &bench);
}

/// One request of zeros in the shapes that `bench` has run.
fn serve_once(model: &Path, bench: &Value) {
    let server = Server::start(&[model], &[]);
    let at = format!("/v2/models/{}", model.file_stem().unwrap().to_str().unwrap());
    let (status, text) = server.ask("GET", &at, "", b"");
    assert_eq!(status, 200, "{text}");
    let metadata: Value = serde_json::from_str(&text).unwrap();
    let datatype = |name: &Value| {
        let inputs = metadata["inputs"].as_array().unwrap();
        inputs.iter().find(|input| input["name"] == *name).unwrap()["datatype"].clone()
    };
    let zeros = |input: &Value| {
        let shape = &input["shape"];
        let count: u64 = shape.as_array().unwrap().iter().map(|dim| dim.as_u64().unwrap()).product();
        // Silero's only integer is the sampling rate, of which it knows one.
        let value = if input["name"] == "sr" { 16000 } else { 0 };
        let data = vec![value; usize::try_from(count).unwrap()];
        json!({ "name": input["name"], "shape": shape, "datatype": datatype(&input["name"]), "data": data })
    };
    let inputs: Vec<Value> = bench["inputs"].as_array().unwrap().iter().map(zeros).collect();
    let body = json!({ "inputs": inputs }).to_string();
    let (status, text) = server.ask("POST", &format!("{at}/infer"), "", body.as_bytes());
    assert_eq!(status, 200, "{text}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    let outputs = answer["outputs"].as_array().unwrap();
    assert_eq!(outputs.len(), metadata["outputs"].as_array().unwrap().len());
    assert!(outputs.iter().all(|output| !output["data"].as_array().unwrap().is_empty()), "{at}: an empty output");
}

#[test]
fn every_command_on_every_real_model() {
    let Some(data) = data() else { return println!("skipped: no data folder (EDGEWARD_DATA)") };
    let mut models: Vec<PathBuf> = fs::read_dir(data.join("onnx")).unwrap().map(|e| e.unwrap().path()).collect();
    models.retain(|path| path.extension().is_some_and(|extension| extension == "onnx"));
    assert!(models.len() >= 6, "{models:?}");
    for model in models {
        let silero = model.to_str().unwrap().contains("silero");
        every_command(&model, if silero { &["input=1,576"] } else { &[] });
    }
}

/// Makes a model of `tests/models/make.py`, once; none where no Python was set up.
fn made(name: &str) -> Option<PathBuf> {
    let Some(python) = python() else {
        println!("skipped: EDGEWARD_TEST_PYTHON is not set (`cargo xtask test` sets it)");
        return None;
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("models");
    let script = root().join("tests/models/make.py");
    let output = Command::new(python).arg(script).arg(&folder).arg(name).output().unwrap();
    done(output, name);
    Some(folder.join(format!("{name}.onnx")))
}

#[test]
fn every_command_on_resnet50() {
    let Some(model) = made("resnet50") else { return };
    let inspected = edgeward(Path::new("."), &["inspect", model.to_str().unwrap(), "--no-engines"]);
    // The figure that is published for it.
    assert!((4.0e9..4.2e9).contains(&inspected["multiply_adds"].as_f64().unwrap()), "{inspected}");
    every_command(&model, &["image=1,3,224,224"]);
}

#[test]
fn every_command_on_a_bert_of_base_size() {
    let Some(model) = made("bert_base") else { return };
    every_command(&model, &["input_ids=1,32", "attention_mask=1,32", "token_type_ids=1,32"]);
}

/// Asks a model over HTTP for what it was trained for.
fn answers(model: &str, task: &str) {
    let Some(data) = data() else { return println!("skipped: no data folder (EDGEWARD_DATA)") };
    let Some(python) = python() else { return println!("skipped: EDGEWARD_TEST_PYTHON is not set") };
    let server = Server::start(&[&data.join("onnx").join(model)], &[]);
    let script = root().join("tests/models/answers.py");
    let output = Command::new(python).arg(script).arg(&server.http).arg(&data).arg(task).output().unwrap();
    assert!(done(output, task).ends_with("ok\n"));
}

#[test]
fn digits_are_told_as_often_as_stated() {
    answers("mnist_rten.onnx", "mnist");
}

#[test]
fn speech_is_heard_with_the_state_kept_by_the_caller() {
    answers("silero_vad_16k_op15.onnx", "silero");
}

#[test]
fn ultraface_finds_the_face() {
    answers("ultraface_rfb_320.onnx", "ultraface");
}

#[test]
fn yunet_finds_the_face() {
    answers("yunet_face_120x160.onnx", "yunet");
}

#[test]
fn a_person_is_found_where_there_is_one() {
    answers("person_detector_yolox.onnx", "person");
}

/// Outputs by name, flat, of an answer of `infer` or of the server.
fn outputs(answer: &Value) -> Vec<(String, Vec<f64>)> {
    let numbers = |data: &Value| data.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    let entry = |output: &Value| (output["name"].as_str().unwrap().to_owned(), numbers(&output["data"]));
    answer["outputs"].as_array().unwrap().iter().map(entry).collect()
}

fn assert_agree(what: &str, got: &[(String, Vec<f64>)], expected: &Value) {
    let expected = expected.as_object().unwrap();
    assert_eq!(got.len(), expected.len(), "{what}");
    for (name, values) in got {
        let wanted: Vec<f64> = expected[name].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert_eq!(values.len(), wanted.len(), "{what}: {name}");
        for (a, b) in values.iter().zip(&wanted) {
            assert!((a - b).abs() <= TOLERANCE * b.abs().max(1.0), "{what}: {name}: {a}, the framework says {b}");
        }
    }
}

/// `expected.npz` as JSON, flat.
const EXPECTED: &str = "import json, numpy; \
    print(json.dumps({k: v.ravel().tolist() for k, v in numpy.load('expected.npz').items()}))";

/// Runs a section of `docs/models.md`: its Python, then its commands, and compares with what the framework said.
fn way_in(title: &str) {
    let Some(python) = python() else { return println!("skipped: EDGEWARD_TEST_PYTHON is not set") };
    let document = fs::read_to_string(root().join("docs/models.md")).unwrap();
    let section = document::section(&document, title);
    let folder = tempfile::tempdir().unwrap();
    for block in document::blocks(section).iter().filter(|block| block.language == "python") {
        fs::write(folder.path().join("way.py"), &block.text).unwrap();
        let output = Command::new(&python).arg("way.py").current_dir(folder.path()).output().unwrap();
        done(output, title);
    }
    let output = Command::new(&python).args(["-c", EXPECTED]).current_dir(folder.path()).output().unwrap();
    let expected: Value = serde_json::from_str(&done(output, "expected.npz")).unwrap();
    let mut server = None;
    let (mut inferred, mut asked) = (0, 0);
    for line in document::commands(section) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["edgeward", "serve", model, "--insecure"] => {
                server = Some(Server::start(&[&folder.path().join(model)], &[]));
            }
            ["edgeward", "infer", ..] => {
                assert_agree(&line, &outputs(&edgeward(folder.path(), &words[1..])), &expected);
                inferred += 1;
            }
            ["edgeward", ..] => drop(edgeward(folder.path(), &words[1..])),
            ["curl", ..] => {
                let line = line.replace("localhost:8000", &server.as_ref().unwrap().http);
                let output = Command::new("sh").args(["-c", &line]).current_dir(folder.path()).output().unwrap();
                let answer = serde_json::from_str(&done(output, &line)).unwrap();
                assert_agree(&line, &outputs(&answer), &expected);
                asked += 1;
            }
            _ => panic!("`{line}` in docs/models.md: the test does not know how to run it"),
        }
    }
    assert_eq!((inferred, asked), (1, 1), "{title} shows one `infer` and one `curl`");
}

#[test]
fn the_way_in_from_pytorch_is_as_documented() {
    way_in("PyTorch");
}

#[test]
fn the_way_in_from_scikit_learn_is_as_documented() {
    way_in("scikit-learn");
}

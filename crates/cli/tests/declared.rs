//! What repositories and `config.pbtxt` say of a model that is not so, through the binary: each is refused at load, with the mend.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path};

use edgeward_graph::{
    DataType, Model,
    proto::{GraphProto, NodeProto, ValueInfoProto, tensor_shape_proto::dimension::Value, type_proto},
};
use serde_json::{Value as Json, json};
use support::{Server, identity, model, port};

mod support;

fn put(folder: &Path, name: &str, model: &Model) {
    let version = folder.join(name).join("1");
    fs::create_dir_all(&version).unwrap();
    model.write(version.join("model.onnx")).unwrap();
}

/// `SUM = A + B`, each of shape `[n, 16]`.
fn sum() -> Model {
    let float = |name: &str| port(name, DataType::Float32);
    let node = NodeProto {
        op_type: Some("Add".to_owned()),
        input: vec!["A".to_owned(), "B".to_owned()],
        output: vec!["SUM".to_owned()],
        ..NodeProto::default()
    };
    let (input, output) = (vec![float("A"), float("B")], vec![float("SUM")]);
    model(GraphProto { name: Some("sum".to_owned()), node: vec![node], input, output, ..GraphProto::default() })
}

/// [`identity`] of the shape `[2, 16]`, without an open dimension.
fn fixed() -> Model {
    let mut model = identity(DataType::Float32);
    let graph = model.graph_mut();
    let close = |value: &mut ValueInfoProto| {
        let Some(type_proto::Value::TensorType(tensor)) = &mut value.r#type.as_mut().unwrap().value else { return };
        tensor.shape.as_mut().unwrap().dim[0].value = Some(Value::DimValue(2));
    };
    graph.input.iter_mut().chain(&mut graph.output).for_each(close);
    model
}

const REFUSED: &[(&str, &str, &[&str])] = &[
    (
        "ident",
        "input { name: \"INPUT0\" data_type: TYPE_INT32 dims: [ -1, 16 ] }",
        &["`INPUT0`", "TYPE_INT32", "float32", "write `data_type: TYPE_FP32`"],
    ),
    (
        "ident",
        "output { name: \"OUTPUT0\" data_type: TYPE_STRING dims: [ -1, 16 ] }",
        &["`OUTPUT0`", "TYPE_STRING", "float32"],
    ),
    (
        "ident",
        "input { name: \"INPUT0\" data_type: TYPE_FP32 dims: [ 16 ] }",
        &["`INPUT0`", "[16]", "[-1, 16]", "`max_batch_size` to 1"],
    ),
    (
        "ident",
        "input { name: \"INPUT0\" data_type: TYPE_FP32 dims: [ -1, 8 ] }",
        &["`INPUT0`", "[-1, 8]", "[-1, 16]", "write `dims: [-1, 16]`"],
    ),
    (
        "ident",
        "max_batch_size: 4 input { name: \"INPUT0\" data_type: TYPE_FP32 dims: [ -1, 16 ] }",
        &["`INPUT0`", "[-1, 16]", "write `dims: [16]`"],
    ),
    (
        "ident",
        "max_batch_size: 4 output { name: \"OUTPUT0\" data_type: TYPE_FP32 dims: [ 17 ] }",
        &["`OUTPUT0`", "[17]", "[-1, 16]"],
    ),
    ("ident", "input { name: \"INPUT1\" data_type: TYPE_FP32 dims: [ -1, 16 ] }", &["`INPUT0` is missing"]),
    ("ident", "output { name: \"OUTPUT1\" data_type: TYPE_FP32 dims: [ -1, 16 ] }", &["output `OUTPUT1`", "`OUTPUT0`"]),
    ("ident", "input [ { name: \"INPUT0\" }, { name: \"INPUT0\" } ]", &["`INPUT0` twice"]),
    ("ident", "input [ { name: \"INPUT0\" }, { name: \"X\" } ]", &["input `X`", "`INPUT0`"]),
    (
        "sum",
        "input { name: \"A\" data_type: TYPE_FP32 dims: [ -1, 16 ] }",
        &["1 of the model's 2 inputs", "`B` is missing"],
    ),
    ("fixed", "max_batch_size: 2", &["`max_batch_size: 2`", "`INPUT0`", "[2, 16]", "set `max_batch_size` to 0"]),
    (
        "fixed",
        "input { name: \"INPUT0\" data_type: TYPE_FP32 dims: [ 16 ] }",
        &["[16]", "[2, 16]", "write `dims: [2, 16]`"],
    ),
];

const ACCEPTED: &[(&str, &str)] = &[
    ("ident", "input { name: \"INPUT0\" data_type: TYPE_FP32 dims: [ -1, 16 ] }"),
    ("ident", "input { name: \"INPUT0\" data_type: TYPE_FP32 dims: [ 4, -1 ] }"),
    ("ident", "input { name: \"INPUT0\" }"),
    (
        "ident",
        "max_batch_size: 4 input { name: \"INPUT0\" data_type: TYPE_FP32 dims: [ 16 ] } output { name: \"OUTPUT0\" data_type: TYPE_FP32 dims: [ -1 ] }",
    ),
    ("sum", "max_batch_size: 4 input [ { name: \"B\" dims: [ 16 ] }, { name: \"A\" data_type: TYPE_FP32 } ]"),
    ("fixed", "input { name: \"INPUT0\" data_type: TYPE_FP32 dims: [ 2, 16 ] }"),
];

#[test]
fn a_configuration_that_contradicts_the_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "ident", &identity(DataType::Float32));
    put(folder.path(), "sum", &sum());
    put(folder.path(), "fixed", &fixed());
    let server = Server::start(&[folder.path()], &["--engine", "rten", "--explicit"]);
    let load = |name: &str, config: &str| {
        fs::write(folder.path().join(name).join("config.pbtxt"), config).unwrap();
        server.ask("POST", &format!("/v2/repository/models/{name}/load"), "", b"{}")
    };
    let mut wrong = Vec::new();
    for (name, config, parts) in REFUSED {
        let (status, answer) = load(name, config);
        if status != 400 || parts.iter().any(|part| !answer.contains(part)) {
            wrong.push(format!("{config}\n    {status} {answer}"));
        }
    }
    for (name, config) in ACCEPTED {
        let (status, answer) = load(name, config);
        if status != 200 {
            wrong.push(format!("{config}\n    {status} {answer}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn load(server: &Server, name: &str) -> (u16, String) {
    server.ask("POST", &format!("/v2/repository/models/{name}/load"), "", b"{}")
}

#[test]
fn a_name_in_two_repositories_is_refused_with_both_places() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    put(first.path(), "twice", &identity(DataType::Float32));
    put(second.path(), "twice", &identity(DataType::Float16));
    put(second.path(), "once", &identity(DataType::Float16));
    fs::create_dir(first.path().join("both")).unwrap();
    identity(DataType::Float32).write(first.path().join("both.onnx")).unwrap();
    let again = first.path().join("../").join(first.path().file_name().unwrap());
    let server = Server::start(&[first.path(), second.path(), &again], &["--engine", "rten", "--explicit"]);
    let (status, answer) = load(&server, "twice");
    let place = |folder: &Path, name: &str| folder.join(name).display().to_string();
    let places = [place(first.path(), "twice"), place(second.path(), "twice")];
    assert!(status == 400 && places.iter().all(|place| answer.contains(place)), "{status} {answer}");
    let (status, answer) = load(&server, "both");
    let places = [place(first.path(), "both"), place(first.path(), "both.onnx")];
    assert!(status == 400 && places.iter().all(|place| answer.contains(place)), "{status} {answer}");
    assert_eq!(load(&server, "once").0, 200);
    fs::remove_dir_all(second.path().join("twice")).unwrap();
    assert_eq!(load(&server, "twice").0, 200);
}

#[test]
fn what_lies_in_the_place_of_a_version_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let ident = identity(DataType::Float32);
    for (place, file) in [("letter/v1", "model.onnx"), ("other/1", "net.onnx"), ("beside", "model.onnx")] {
        fs::create_dir_all(folder.path().join(place)).unwrap();
        ident.write(folder.path().join(place).join(file)).unwrap();
    }
    fs::create_dir_all(folder.path().join("empty/1")).unwrap();
    for name in ["named", "some"] {
        put(folder.path(), name, &ident);
        let versions = if name == "some" { "1, 9" } else { "9" };
        let policy = format!("version_policy {{ specific {{ versions: [ {versions} ] }} }}");
        fs::write(folder.path().join(name).join("config.pbtxt"), policy).unwrap();
    }
    put(folder.path(), "syntax", &ident);
    fs::write(folder.path().join("syntax/config.pbtxt"), "name: \"syntax\"\n\nmax_batch_size = 4\n").unwrap();
    let server = Server::start(&[folder.path()], &["--engine", "rten", "--explicit"]);
    for (name, parts) in [
        ("letter", ["`v1` is no version", "letter/1/model.onnx"]),
        ("other", ["`1` holds `net.onnx`", "default_model_filename"]),
        ("beside", ["`model.onnx` lies beside the versions", "beside/1/model.onnx"]),
        ("empty", ["no version of it holds `model.onnx`", "empty/1/model.onnx"]),
        ("named", ["versions [9]", "there are [1]"]),
        ("syntax", ["config.pbtxt: line 3", "syntax"]),
    ] {
        let (status, answer) = load(&server, name);
        assert!(status == 400 && parts.iter().all(|part| answer.contains(part)), "{name}: {status} {answer}");
    }
    assert_eq!(load(&server, "some").0, 200, "what is there of the versions serves, as Triton has it");
}

#[test]
fn texts_may_hold_any_bytes() {
    if std::env::var_os("EDGEWARD_ALL_ENGINES").is_none() {
        return println!("skipped: no ONNX Runtime (EDGEWARD_ALL_ENGINES)");
    }
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "text", &identity(DataType::String));
    let server = Server::start(&[folder.path()], &["--engine", "onnxruntime"]);
    let mut texts = vec!["plain"; 16];
    (texts[0], texts[1], texts[2], texts[3]) = ("a\0b", "\0", "", "ü\0\0");
    let input = json!({ "name": "INPUT0", "shape": [1, 16], "datatype": "BYTES", "data": texts });
    let body = json!({ "inputs": [input] }).to_string();
    let (status, answer) = server.ask("POST", "/v2/models/text/infer", "", body.as_bytes());
    let answer: Json = serde_json::from_str(&answer).unwrap();
    assert_eq!((status, &answer["outputs"][0]["data"]), (200, &json!(texts)), "{answer}");
}

#[test]
fn an_ensemble_says_that_it_is_one() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "ident", &identity(DataType::Float32));
    fs::create_dir(folder.path().join("group")).unwrap();
    let config = "platform: \"ensemble\" input { name: \"X\" data_type: TYPE_FP32 dims: [ -1, 16 ] }
        output { name: \"Y\" data_type: TYPE_FP32 dims: [ -1, 16 ] }
        ensemble_scheduling { step { model_name: \"ident\" model_version: -1
            input_map { key: \"INPUT0\" value: \"X\" } output_map { key: \"OUTPUT0\" value: \"Y\" } } }";
    fs::write(folder.path().join("group/config.pbtxt"), config).unwrap();
    let server = Server::start(&[folder.path()], &["--engine", "rten"]);
    for (name, platform) in [("group", "ensemble"), ("ident", "onnxruntime_onnx")] {
        let (status, answer) = server.ask("GET", &format!("/v2/models/{name}"), "", b"");
        assert!(status == 200 && answer.contains(&format!("\"platform\":\"{platform}\"")), "{answer}");
    }
}

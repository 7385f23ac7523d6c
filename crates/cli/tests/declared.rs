//! What `config.pbtxt` says of a model that is not so, through the binary: each is refused at load, with what to write instead.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path};

use edgeward_graph::{
    DataType, Model,
    proto::{GraphProto, NodeProto, ValueInfoProto, tensor_shape_proto::dimension::Value, type_proto},
};
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

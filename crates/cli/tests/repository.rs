//! The life of models in a repository, through the binary: ensembles, loads with files, watching, reloads under load.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
};

use edgeward_graph::{
    DataType, Model, Tensor,
    proto::{GraphProto, NodeProto, ValueInfoProto},
    tensor_proto,
};
use edgeward_serve::proto::{
    ModelInferRequest, grpc_inference_service_client::GrpcInferenceServiceClient, model_infer_request::InferInputTensor,
};
use serde_json::{Value, json};
use support::{Server, identity, model, port};

mod support;

fn graph(op: &str, ports: [Vec<ValueInfoProto>; 2], constant: Option<f32>) -> Model {
    let [input, output] = ports;
    let names = |ports: &[ValueInfoProto]| ports.iter().filter_map(|p| p.name.clone()).collect::<Vec<_>>();
    let by = constant.map(|value| tensor_proto("by", &Tensor::from_vec([1], vec![value]).unwrap()));
    let mut inputs = names(&input);
    inputs.extend(by.iter().map(|_| "by".to_owned()));
    let node =
        NodeProto { op_type: Some(op.to_owned()), input: inputs, output: names(&output), ..NodeProto::default() };
    let name = Some(op.to_lowercase());
    model(GraphProto {
        name,
        node: vec![node],
        initializer: by.into_iter().collect(),
        input,
        output,
        ..GraphProto::default()
    })
}

fn float(name: &str) -> ValueInfoProto {
    port(name, DataType::Float32)
}

/// `OUTPUT0 = INPUT0 × by`
fn times(by: f32) -> Model {
    graph("Mul", [vec![float("INPUT0")], vec![float("OUTPUT0")]], Some(by))
}

/// `SUM = A + B`
fn sum() -> Model {
    graph("Add", [vec![float("A"), float("B")], vec![float("SUM")]], None)
}

fn put(folder: &Path, name: &str, version: u64, model: &Model) {
    let version = folder.join(name).join(version.to_string());
    fs::create_dir_all(&version).unwrap();
    model.write(version.join("model.onnx")).unwrap();
}

fn configure(folder: &Path, name: &str, config: &str) {
    fs::create_dir_all(folder.join(name)).unwrap();
    fs::write(folder.join(name).join("config.pbtxt"), config).unwrap();
}

/// Models that multiply by two and by three, and one that adds.
fn arithmetic() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "double", 1, &times(2.0));
    put(folder.path(), "triple", 1, &times(3.0));
    put(folder.path(), "sum", 1, &sum());
    folder
}

fn tensor(field: &str, name: &str) -> String {
    format!("{field} {{ name: \"{name}\" data_type: TYPE_FP32 dims: [ -1, 16 ] }}\n")
}

/// A step with its maps, written `model|input=tensor,…|output=tensor,…`.
fn step(text: &str) -> String {
    let [model, inputs, outputs] = text.split('|').collect::<Vec<_>>().try_into().unwrap();
    let maps = |field: &str, pairs: &str| -> String {
        let pairs = pairs.split(',').filter_map(|pair| pair.split_once('='));
        pairs.map(|(k, v)| format!(" {field} {{ key: \"{k}\" value: \"{v}\" }}")).collect()
    };
    let (inputs, outputs) = (maps("input_map", inputs), maps("output_map", outputs));
    format!("step {{ model_name: \"{model}\" model_version: -1{inputs}{outputs} }}\n")
}

fn ensemble(inputs: &[&str], outputs: &[&str], steps: &[&str]) -> String {
    let ports: String =
        inputs.iter().map(|i| tensor("input", i)).chain(outputs.iter().map(|o| tensor("output", o))).collect();
    let steps: String = steps.iter().map(|s| step(s)).collect();
    format!("platform: \"ensemble\"\n{ports}ensemble_scheduling {{\n{steps}}}\n")
}

/// `FIVE = 2 X + 3 X` by two branches, and `SIX = 3 (2 X)`.
fn branches() -> String {
    ensemble(
        &["X"],
        &["FIVE", "SIX"],
        &[
            "sum|A=two,B=three|SUM=FIVE",
            "triple|INPUT0=two|OUTPUT0=SIX",
            "double|INPUT0=X|OUTPUT0=two",
            "triple|INPUT0=X|OUTPUT0=three",
        ],
    )
}

fn serve(folder: &Path, arguments: &[&str]) -> Server {
    Server::start(&[folder], &[&["--engine", "rten", "--threads", "1"], arguments].concat())
}

fn infer(server: &Server, model: &str, input: &str, value: f32, outputs: &[&str]) -> (u16, Value) {
    let outputs: Vec<Value> = outputs.iter().map(|name| json!({ "name": name })).collect();
    let input = json!({ "name": input, "shape": [1, 16], "datatype": "FP32", "data": vec![value; 16] });
    let body = json!({ "inputs": [input], "outputs": outputs }).to_string();
    let (status, body) = server.ask("POST", &format!("/v2/models/{model}/infer"), "", body.as_bytes());
    (status, serde_json::from_str(&body).unwrap())
}

/// The first number of an output.
fn output(answer: &Value, name: &str) -> f64 {
    let outputs = answer["outputs"].as_array().unwrap_or_else(|| panic!("{answer}"));
    outputs.iter().find(|o| o["name"] == name).unwrap()["data"][0].as_f64().unwrap()
}

/// What `times` multiplies by, asked of the newest version.
fn factor(server: &Server, model: &str) -> f64 {
    output(&infer(server, model, "INPUT0", 1.0, &[]).1, "OUTPUT0")
}

fn change(server: &Server, model: &str, verb: &str, body: &Value) -> (u16, String) {
    server.ask("POST", &format!("/v2/repository/models/{model}/{verb}"), "", body.to_string().as_bytes())
}

fn ready(server: &Server) -> bool {
    server.ask("GET", "/v2/health/ready", "", b"").0 == 200
}

/// `name version state reason` of each line of the index about this model.
fn index(server: &Server, model: &str) -> Vec<String> {
    let (status, body) = server.ask("POST", "/v2/repository/index", "", b"");
    assert_eq!(status, 200, "{body}");
    let lines: Vec<Value> = serde_json::from_str(&body).unwrap();
    let text = |line: &Value, key: &str| line[key].as_str().unwrap().to_owned();
    let own = lines.iter().filter(|line| line["name"] == model);
    own.map(|l| format!("{} {} {}", text(l, "version"), text(l, "state"), text(l, "reason"))).collect()
}

fn runs(server: &Server, model: &str) -> u64 {
    let (status, body) = server.ask("GET", &format!("/v2/models/{model}/stats"), "", b"");
    assert_eq!(status, 200, "{body}");
    let stats: Value = serde_json::from_str(&body).unwrap();
    let count = &stats["model_stats"][0]["execution_count"];
    count.as_u64().or_else(|| count.as_str()?.parse().ok()).unwrap_or(0)
}

#[test]
fn an_ensemble_runs_what_the_wanted_outputs_need() {
    let models = arithmetic();
    configure(models.path(), "branches", &branches());
    configure(
        models.path(),
        "outer",
        &ensemble(&["IN"], &["TEN"], &["branches|X=IN|FIVE=five", "double|INPUT0=five|OUTPUT0=TEN"]),
    );
    let server = serve(models.path(), &[]);
    let (status, answer) = infer(&server, "branches", "X", 7.0, &[]);
    assert_eq!((status, output(&answer, "FIVE"), output(&answer, "SIX")), (200, 35.0, 42.0), "{answer}");
    assert_eq!(
        (runs(&server, "double"), runs(&server, "triple"), runs(&server, "sum"), runs(&server, "branches")),
        (1, 2, 1, 1)
    );
    let (status, answer) = infer(&server, "branches", "X", 1.0, &["SIX"]);
    assert_eq!((status, output(&answer, "SIX"), answer["outputs"].as_array().unwrap().len()), (200, 6.0, 1));
    assert_eq!(
        (runs(&server, "double"), runs(&server, "triple"), runs(&server, "sum")),
        (2, 3, 1),
        "`sum` was not needed"
    );
    assert_eq!(output(&infer(&server, "outer", "IN", 2.0, &[]).1, "TEN"), 20.0);
    for (input, outputs, part) in [("Y", vec![], "`Y`"), ("X", vec!["SEVEN"], "`SEVEN`")] {
        let (status, answer) = infer(&server, "branches", input, 1.0, &outputs);
        assert!(status == 400 && answer.to_string().contains(part), "{answer}");
    }
}

#[test]
fn an_ensemble_is_as_ready_as_its_models() {
    let models = arithmetic();
    configure(models.path(), "branches", &branches());
    configure(models.path(), "outer", &ensemble(&["IN"], &["FIVE"], &["branches|X=IN|FIVE=FIVE"]));
    let server = serve(models.path(), &["--explicit", "--load-model", "outer"]);
    assert!(ready(&server), "its models were loaded with it");
    assert_eq!(change(&server, "triple", "unload", &json!({})).0, 200);
    let (status, answer) = infer(&server, "outer", "IN", 1.0, &[]);
    assert!(status == 503 && answer.to_string().contains("step `triple`"), "{answer}");
    assert_eq!(server.ask("GET", "/v2/models/outer/ready", "", b"").0, 503);
    assert!(!ready(&server));
    assert!(
        index(&server, "outer")[0].contains("1 UNAVAILABLE it needs model `branches`"),
        "{:?}",
        index(&server, "outer")
    );
    assert_eq!(index(&server, "triple"), ["1 UNAVAILABLE unloaded"]);
    // One that takes other tensors makes the ensemble unavailable too, and says why.
    put(models.path(), "triple", 1, &identity(DataType::Float16));
    assert_eq!(change(&server, "triple", "load", &json!({})).0, 200);
    let lines = index(&server, "branches");
    assert!(!ready(&server) && lines[0].contains("step `triple`"), "{lines:?}");
    let (status, answer) = infer(&server, "outer", "IN", 1.0, &[]);
    assert!(status == 503 && answer.to_string().contains("is not ready: step `triple`"), "{status} {answer}");
    // And one that gives others, where no further step would notice.
    let flags = graph("Greater", [vec![float("INPUT0")], vec![port("OUTPUT0", DataType::Bool)]], Some(0.0));
    put(models.path(), "triple", 1, &flags);
    assert_eq!(change(&server, "triple", "load", &json!({})).0, 200);
    let (status, answer) = infer(&server, "branches", "X", 1.0, &["SIX"]);
    assert!(status == 503 && answer.to_string().contains("is not ready"), "{status} {answer}");
    put(models.path(), "triple", 1, &times(3.0));
    assert_eq!(change(&server, "triple", "load", &json!({})).0, 200);
    assert!(ready(&server));
    assert_eq!(output(&infer(&server, "outer", "IN", 1.0, &[]).1, "FIVE"), 5.0);
    let (status, body) = change(&server, "outer", "unload", &json!({ "parameters": { "unload_dependents": true } }));
    assert_eq!(status, 200, "{body}");
    for name in ["outer", "branches", "double", "triple", "sum"] {
        assert_eq!(index(&server, name), ["1 UNAVAILABLE unloaded"]);
        assert_eq!(server.ask("GET", &format!("/v2/models/{name}"), "", b"").0, 404);
    }
}

#[test]
fn a_graph_that_cannot_run_is_refused_by_step() {
    let models = arithmetic();
    put(models.path(), "half", 1, &identity(DataType::Float16));
    let server = serve(models.path(), &["--explicit"]);
    let one = |steps: &[&str]| ensemble(&["X"], &["Y"], steps);
    for (config, parts) in [
        (one(&["none|INPUT0=X|OUTPUT0=Y"]), ["step `none`", "no model `none`"]),
        (one(&["double|INPUT0=X,B=X|OUTPUT0=Y"]), ["step `double`", "no input `B`"]),
        (one(&["sum|A=X|SUM=Y"]), ["step `sum`", "input `B`"]),
        (one(&["double|INPUT0=X|OUT=Y"]), ["step `double`", "no output `OUT`"]),
        (one(&["double|INPUT0=Z|OUTPUT0=Y"]), ["step `double`", "`Z`"]),
        (one(&["double|INPUT0=b|OUTPUT0=Y", "triple|INPUT0=Y|OUTPUT0=b"]), ["step `double`", "cycle"]),
        (one(&["double|INPUT0=X|OUTPUT0=Y", "triple|INPUT0=X|OUTPUT0=Y"]), ["step `triple`", "`Y` is made twice"]),
        (one(&["double|INPUT0=X|OUTPUT0=a"]), ["output `Y`", "no step"]),
        (one(&["half|INPUT0=X|OUTPUT0=Y"]), ["step `half`", "expected"]),
        (one(&["bad|X=X|Y=Y"]), ["cycle", "`bad` → `bad`"]),
        (one(&["double|INPUT0=X|OUTPUT0=Y"]).replace("[ -1, 16 ]", "[ -1, 15 ]"), ["step `double`", "15"]),
        (
            one(&["double|INPUT0=X|OUTPUT0=Y"]).replace("model_version: -1", "model_version: 7"),
            ["step `double`", "version 7"],
        ),
        (one(&[]), ["ensemble", "`step`"]),
    ] {
        configure(models.path(), "bad", &config);
        let (status, body) = change(&server, "bad", "load", &json!({}));
        assert!(status == 400 && parts.iter().all(|part| body.contains(part)), "{status} {body}\n{config}");
    }
    // A cycle that closes when one of two is loaded again.
    configure(models.path(), "bad", &one(&["double|INPUT0=X|OUTPUT0=Y"]));
    configure(models.path(), "above", &one(&["bad|X=X|Y=Y"]));
    assert_eq!(change(&server, "above", "load", &json!({})).0, 200);
    configure(models.path(), "bad", &one(&["above|X=X|Y=Y"]));
    let (status, body) = change(&server, "bad", "load", &json!({}));
    assert!(status == 400 && body.contains("`bad` → `above` → `bad`"), "{body}");
    assert_eq!(output(&infer(&server, "above", "X", 1.0, &[]).1, "Y"), 2.0, "what was loaded serves on");
}

#[test]
fn files_given_with_a_load_serve_until_a_plain_load() {
    let models = arithmetic();
    let server = serve(models.path(), &[]);
    let bytes = fs::read(models.path().join("triple/1/model.onnx")).unwrap();
    let content = base64(&bytes);
    let given = |key: &str| json!({ "parameters": { "config": "{}", key: content } });
    for (body, part) in [
        (json!({ "parameters": { "file:1/model.onnx": content } }), "`config`"),
        (given("file:1/../../model.onnx"), "expected `file:VERSION/NAME`"),
        (given("file:/etc/model.onnx"), "expected `file:VERSION/NAME`"),
        (given("file:0/model.onnx"), "expected `file:VERSION/NAME`"),
        (given("file:1/other.onnx"), "model.onnx"),
        (given("weights"), "`weights`"),
        (json!({ "parameters": { "config": "{\"no_such\": 1}" } }), "no_such"),
        (json!({ "parameters": { "config": "{}", "file:1/model.onnx": "###" } }), "base64"),
        (json!({ "parameters": { "config": "{}", "file:1/model.onnx": base64(b"damaged") } }), "double"),
    ] {
        let (status, text) = change(&server, "double", "load", &body);
        assert!(status == 400 && text.contains(part), "{status} {text}");
        assert_eq!(factor(&server, "double"), 2.0, "the old one serves on");
    }
    assert_eq!(change(&server, "double", "load", &given("file:5/model.onnx")).0, 200);
    assert_eq!(factor(&server, "double"), 3.0);
    assert_eq!(index(&server, "double"), ["5 READY ", "1 UNAVAILABLE unloaded"]);
    assert_eq!(
        change(&server, "brought", "load", &given("file:1/model.onnx")).0,
        200,
        "the repository need not have it"
    );
    assert_eq!(factor(&server, "brought"), 3.0);
    assert_eq!(change(&server, "double", "load", &json!({})).0, 200);
    assert_eq!(factor(&server, "double"), 2.0);
    let limited = json!({ "parameters": { "config": { "max_batch_size": 1 } } });
    assert_eq!(change(&server, "double", "load", &limited).0, 200);
    let config = server.ask("GET", "/v2/models/double/config", "", b"").1;
    assert_eq!(serde_json::from_str::<Value>(&config).unwrap()["max_batch_size"], 1, "{config}");
}

#[test]
fn files_given_with_a_load_are_bounded() {
    let (models, files) = (arithmetic(), tempfile::tempdir().unwrap());
    let settings = files.path().join("edgeward.toml");
    fs::write(&settings, "[serve]\nload_bytes_max = 1000\n").unwrap();
    let server = serve(models.path(), &["--config", settings.to_str().unwrap()]);
    let half = base64(&[0; 501]);
    let body = json!({ "parameters": { "config": "{}", "file:1/model.onnx": half, "file:1/weights": half } });
    let (status, text) = change(&server, "double", "load", &body);
    assert!(status == 400 && text.contains("1002 bytes") && text.contains("`load_bytes_max`"), "{status} {text}");
    let refused =
        load_over_grpc(&server, "double", &[("config", b"{}"), ("file:1/model.onnx", &[0; 1001])]).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert!(refused.message().contains("1001 bytes"), "{refused}");
    let bytes = fs::read(models.path().join("triple/1/model.onnx")).unwrap();
    load_over_grpc(&server, "double", &[("config", b"{}"), ("file:7/model.onnx", &bytes)]).unwrap();
    assert_eq!((factor(&server, "double"), index(&server, "double")[0].as_str()), (3.0, "7 READY "));
}

/// A load over gRPC with these parameters; `config` is text, files are bytes.
fn load_over_grpc(server: &Server, model: &str, parameters: &[(&str, &[u8])]) -> Result<(), tonic::Status> {
    use edgeward_serve::proto::{
        ModelRepositoryParameter, RepositoryModelLoadRequest, model_repository_parameter::ParameterChoice,
    };
    let one = |&(name, value): &(&str, &[u8])| {
        let choice = match name {
            "config" => ParameterChoice::StringParam(String::from_utf8(value.to_vec()).unwrap()),
            _ => ParameterChoice::BytesParam(value.to_vec().into()),
        };
        (name.to_owned(), ModelRepositoryParameter { parameter_choice: Some(choice) })
    };
    let request = RepositoryModelLoadRequest {
        model_name: model.to_owned(),
        parameters: parameters.iter().map(one).collect(),
        ..RepositoryModelLoadRequest::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = GrpcInferenceServiceClient::connect(format!("http://{}", server.grpc)).await.unwrap();
        client.repository_model_load(request).await.map(drop)
    })
}

#[test]
fn an_overridden_load_over_grpc_is_refused_as_over_rest() {
    let models = arithmetic();
    let server = serve(models.path(), &[]);
    let table: [(&str, &[(&str, &[u8])], &str); 6] = [
        ("double", &[("file:1/model.onnx", b"x")], "`config`"),
        ("double", &[("config", b"{}"), ("file:1/../../model.onnx", b"x")], "expected `file:VERSION/NAME`"),
        ("double", &[("config", b"{}"), ("file:1/a\0b", b"x")], "expected `file:VERSION/NAME`"),
        ("double", &[("config", b"{}"), ("weights", b"x")], "`weights`"),
        ("double", &[("config", b"{\"no_such\": 1}")], "no_such"),
        ("double", &[("config", b"{}"), ("file:1/model.onnx", b"damaged")], "double"),
    ];
    for (model, parameters, part) in table {
        let refused = load_over_grpc(&server, model, parameters).unwrap_err();
        assert!(refused.code() == tonic::Code::InvalidArgument && refused.message().contains(part), "{refused}");
        assert_eq!(factor(&server, "double"), 2.0, "the old one serves on");
    }
    for name in ["..", ".", "", "a/b", "a\\b", "a\0b", "../double", &"x".repeat(1 << 20)] {
        let refused = load_over_grpc(&server, name, &[]).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::NotFound, "{refused}");
    }
    load_over_grpc(&server, "double", &[("config", b"{\"max_batch_size\": 1}")]).unwrap();
    let config = server.ask("GET", "/v2/models/double/config", "", b"").1;
    assert_eq!(serde_json::from_str::<Value>(&config).unwrap()["max_batch_size"], 1, "{config}");
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        let letters = (0..=chunk.len()).map(|i| LETTERS[(bits >> (18 - 6 * i) & 63) as usize] as char);
        text.extend(letters);
        text.extend(std::iter::repeat_n('=', 3 - chunk.len()));
    }
    text
}

/// Waits until the index says this about a model.
fn await_index(server: &Server, model: &str, lines: &[&str]) {
    support::until(&format!("{lines:?} of `{model}`"), || {
        let found = index(server, model);
        found.len() == lines.len() && found.iter().zip(lines).all(|(found, line)| found.starts_with(line))
    });
}

#[test]
fn watched_files_are_followed() {
    let models = arithmetic();
    let folder = models.path();
    configure(folder, "double", "version_policy { latest { num_versions: 2 } }");
    let server = serve(folder, &["--watch"]);
    // What does not change keeps what it has counted.
    assert_eq!((factor(&server, "double"), runs(&server, "double")), (2.0, 1));
    put(folder, "double", 3, &times(4.0));
    await_index(&server, "double", &["1 READY", "3 READY"]);
    assert_eq!((factor(&server, "double"), runs(&server, "double")), (4.0, 1), "version 1 was not loaded again");
    // A bad version leaves the others serving and says why.
    fs::create_dir(folder.join("double/4")).unwrap();
    fs::write(folder.join("double/4/model.onnx"), "damaged").unwrap();
    await_index(&server, "double", &["1 READY the last load failed", "3 READY the last load failed"]);
    assert!(index(&server, "double")[0].contains("version 4"), "{:?}", index(&server, "double"));
    assert!(ready(&server));
    assert_eq!(factor(&server, "double"), 4.0);
    put(folder, "double", 4, &times(5.0));
    await_index(&server, "double", &["3 READY ", "4 READY ", "1 UNAVAILABLE unloaded"]);
    fs::remove_dir_all(folder.join("double/4")).unwrap();
    await_index(&server, "double", &["1 READY", "3 READY", "4 UNAVAILABLE unloaded"]);
    // A model comes with the ensemble that waits for it, and goes.
    configure(folder, "late", &ensemble(&["X"], &["Y"], &["later|INPUT0=X|OUTPUT0=Y"]));
    await_index(&server, "late", &[" UNAVAILABLE"]);
    times(7.0).write(folder.join("later.onnx")).unwrap();
    await_index(&server, "late", &["1 READY"]);
    assert_eq!(output(&infer(&server, "late", "X", 1.0, &[]).1, "Y"), 7.0);
    fs::remove_file(folder.join("later.onnx")).unwrap();
    await_index(&server, "later", &["1 UNAVAILABLE unloaded"]);
    assert!(!ready(&server), "the ensemble lacks it");
    fs::remove_dir_all(folder.join("late")).unwrap();
    await_index(&server, "late", &["1 UNAVAILABLE unloaded"]);
    assert!(ready(&server));
    configure(folder, "double", "version_policy { specific { versions: [ 1 ] } }");
    await_index(&server, "double", &["1 READY", "3 UNAVAILABLE", "4 UNAVAILABLE"]);
    assert_eq!(factor(&server, "double"), 2.0);
}

/// `times`, with its factor in a file that no convention names.
fn put_external(folder: &Path, name: &str, by: f32) {
    use edgeward_graph::proto::{StringStringEntryProto, tensor_proto::DataLocation};
    let mut model = times(by);
    let tensor = &mut model.graph_mut().initializer[0];
    tensor.raw_data = None;
    tensor.float_data.clear();
    tensor.data_location = Some(DataLocation::External as i32);
    let entry =
        |key: &str, value: &str| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value.to_owned()) };
    tensor.external_data = vec![entry("location", "weights/by.bin"), entry("offset", "0"), entry("length", "4")];
    fs::create_dir_all(folder.join("weights")).unwrap();
    put_weight(folder, by);
    model.write(folder.join(name)).unwrap();
}

fn put_weight(folder: &Path, by: f32) {
    fs::write(folder.join("weights/staged"), by.to_le_bytes()).unwrap();
    fs::rename(folder.join("weights/staged"), folder.join("weights/by.bin")).unwrap();
}

#[test]
fn the_data_that_a_plain_file_names_is_followed() {
    let models = tempfile::tempdir().unwrap();
    put_external(models.path(), "scaled.onnx", 2.0);
    let server = serve(models.path(), &["--watch"]);
    assert_eq!(factor(&server, "scaled"), 2.0);
    put_weight(models.path(), 9.0);
    support::until("the new factor", || factor(&server, "scaled") == 9.0);
    assert_eq!(index(&server, "scaled"), ["1 READY "]);
}

/// Asks over one connection until told to stop; the count of answers.
fn ask_http(address: &str, stop: &AtomicBool, refused: u16) -> u64 {
    let body = json!({ "inputs": [{ "name": "INPUT0", "shape": [1, 16], "datatype": "FP32", "data": vec![1.0; 16] }] });
    let (body, mut count) = (body.to_string(), 0);
    let head =
        format!("POST /v2/models/double/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
    let mut stream = BufReader::new(TcpStream::connect(address).unwrap());
    while !stop.load(Relaxed) {
        stream.get_mut().write_all(format!("{head}{body}").as_bytes()).unwrap();
        let (mut status, mut length) = (0, 0);
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            if let Some(code) = line.strip_prefix("HTTP/1.1 ") {
                status = code[..3].parse().unwrap();
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).unwrap();
        let answer = String::from_utf8(answer).unwrap();
        if status == refused || status == 503 && refused != 0 {
            return count;
        }
        assert!(status == 200 && (answer.contains("2.0") || answer.contains("3.0")), "{status} {answer}");
        count += 1;
    }
    count
}

/// The same over gRPC.
fn ask_grpc(address: &str, stop: &AtomicBool) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = GrpcInferenceServiceClient::connect(format!("http://{address}")).await.unwrap();
        let row: Vec<u8> = [1f32; 16].iter().flat_map(|v| v.to_le_bytes()).collect();
        let input = InferInputTensor {
            name: "INPUT0".to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![1, 16],
            ..InferInputTensor::default()
        };
        let request = ModelInferRequest {
            model_name: "double".to_owned(),
            inputs: vec![input],
            raw_input_contents: vec![row.into()],
            ..ModelInferRequest::default()
        };
        let mut count = 0;
        while !stop.load(Relaxed) {
            let answer = client.model_infer(request.clone()).await.unwrap().into_inner();
            let first = f32::from_le_bytes(answer.raw_output_contents[0][..4].try_into().unwrap());
            assert!(first == 2.0 || first == 3.0, "{first}");
            count += 1;
        }
        count
    })
}

/// Ends the callers, also where the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn no_request_fails_while_versions_change() {
    let models = arithmetic();
    let server = serve(models.path(), &[]);
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let _stop = Stop(&stop);
        for _ in 0..3 {
            scope.spawn(|| answered.fetch_add(ask_http(&server.http, &stop, 0), Relaxed));
            scope.spawn(|| answered.fetch_add(ask_grpc(&server.grpc, &stop), Relaxed));
        }
        let file = models.path().join("double/1/model.onnx");
        for round in 0..50 {
            let (good, by) = (round % 2 == 0, 2.0 + (round / 2 % 2) as f32);
            // Written beside and renamed, as a careful hand does it: what is loaded already may still be read.
            let staged = models.path().join("double/staged");
            if good {
                times(by).write(&staged).unwrap()
            } else {
                fs::write(&staged, "damaged").unwrap()
            }
            fs::rename(&staged, &file).unwrap();
            let (status, body) = change(&server, "double", "load", &json!({}));
            assert_eq!(status, if good { 200 } else { 400 }, "{body}");
            assert!(ready(&server), "a bad version is no outage");
        }
    });
    assert!(answered.load(Relaxed) > 50, "{answered:?}");
    let (stop, before) = (AtomicBool::new(false), runs(&server, "double"));
    thread::scope(|scope| {
        let callers: Vec<_> = (0..4).map(|_| scope.spawn(|| ask_http(&server.http, &stop, 404))).collect();
        support::until("20 runs", || runs(&server, "double") >= before + 20);
        assert_eq!(change(&server, "double", "unload", &json!({})).0, 200);
        // Each ends at its first refusal, 503 or 404; before it all were answered.
        assert!(callers.into_iter().map(|caller| caller.join().unwrap()).sum::<u64>() >= 20);
    });
    assert_eq!(infer(&server, "double", "INPUT0", 1.0, &[]).0, 404);
}

#[test]
fn what_tune_measured_is_taken_per_model_and_the_configuration_wins() {
    let models = arithmetic();
    let path = models.path().join("double/1/model.onnx");
    let sha256 = {
        use sha2::Digest as _;
        sha2::Sha256::digest(fs::read(&path).unwrap()).iter().map(|b| format!("{b:02x}")).collect::<String>()
    };
    let best = json!({ "engine": "rten", "threads": 1, "batch": 1, "instances": 1 });
    let tuned = json!({ "model_sha256": sha256, "latency": best, "throughput": best });
    for model in ["double", "triple"] {
        // For `triple` it was measured on another file.
        let file = models.path().join(model).join("1/model.tune.json");
        fs::write(file, tuned.to_string()).unwrap();
    }
    let taken = |arguments: &[&str]| {
        let (log, ready) = (models.path().join("log"), models.path().join("ready"));
        let mut child = Command::new(env!("CARGO_BIN_EXE_edgeward"))
            .args(["serve", "--insecure"])
            .args(support::FREE_PORTS)
            .args(["--log-format", "json", "--ready-file"])
            .args([&ready, models.path()])
            .args(arguments)
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        while !ready.exists() {
            assert!(child.try_wait().unwrap().is_none(), "{}", fs::read_to_string(&log).unwrap());
            thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        fs::remove_file(&ready).unwrap();
        let log = fs::read_to_string(&log).unwrap();
        let told = log.lines().filter(|line| line.contains("as `tune` measured"));
        told.map(|line| line.contains("double")).collect::<Vec<_>>()
    };
    assert_eq!(taken(&[]), [true], "for `double` alone");
    assert_eq!(taken(&["--threads", "2"]), [] as [bool; 0], "flags win");
    configure(models.path(), "double", "backend: \"rten\"");
    assert_eq!(taken(&[]), [] as [bool; 0], "the configuration wins");
}

#[test]
fn ten_thousand_models_are_found_and_few_are_loaded() {
    let models = tempfile::tempdir().unwrap();
    for number in 0..10_000 {
        fs::create_dir(models.path().join(format!("m{number}"))).unwrap();
    }
    put(models.path(), "m77", 1, &times(2.0));
    let server = serve(models.path(), &["--explicit", "--load-model", "m77"]);
    assert_eq!(factor(&server, "m77"), 2.0);
    let (status, body) = server.ask("POST", "/v2/repository/index", "", b"");
    assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap().as_array().unwrap().len()), (200, 10_000));
}

//! How `serve` treats its engines: whose libraries, how tuned, ended when nobody waits, and judged when they fail.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use edgeward_graph::{
    DataType, Model, Tensor,
    proto::{GraphProto, NodeProto},
    tensor_proto,
};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};
use support::Server;

mod support;

fn edgeward(arguments: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_edgeward")).args(arguments).output().unwrap()
}

/// The installed library of an engine; none, said aloud, where there is none.
fn library(engine: &str) -> Option<PathBuf> {
    let output = edgeward(&["engine", "path", engine]);
    if !output.status.success() {
        assert!(std::env::var_os("EDGEWARD_ALL_ENGINES").is_none(), "{engine} is not installed");
        println!("skipped: {engine} is not installed");
        return None;
    }
    Some(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim()))
}

fn json_of(server: &Server, path: &str) -> Value {
    let (status, body) = server.ask("GET", path, "", b"");
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

fn infer(server: &Server, model: &str, inputs: &Value) -> (u16, String) {
    let body = json!({ "inputs": inputs }).to_string();
    server.ask("POST", &format!("/v2/models/{model}/infer"), "content-type: application/json\r\n", body.as_bytes())
}

fn ready(server: &Server) -> bool {
    server.ask("GET", "/v2/health/ready", "", b"").0 == 200
}

/// The file's library is the one that is opened, and a wrong one is said as such; neither is found by itself here.
#[test]
fn the_libraries_of_the_file_are_served_with() {
    let Some(library) = library("onnxruntime") else { return };
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m.onnx");
    support::identity(DataType::String).write(&model).unwrap();
    let config = folder.path().join("edgeward.toml");
    let no_cache = folder.path().join("none");
    for (path, state) in [(library.as_path(), "READY"), (Path::new("/none/lib.so"), "UNAVAILABLE")] {
        fs::write(&config, format!("[engine]\nonnxruntime_lib = {:?}\n", path.display().to_string())).unwrap();
        let arguments = ["--config", config.to_str().unwrap()];
        let server = Server::start_with(&[&model], &arguments, |command| {
            command.env("XDG_CACHE_HOME", &no_cache).env("HOME", &no_cache);
            command.env_remove("EDGEWARD_ONNXRUNTIME_LIB").env_remove("EDGEWARD_OPENVINO_LIB");
        });
        let (_, index) = server.ask("POST", "/v2/repository/index", "", b"{}");
        let index: Value = serde_json::from_str(&index).unwrap();
        // Only ONNX Runtime knows strings.
        assert_eq!(index[0]["state"], state, "{index}");
        assert!(state == "READY" || index[0]["reason"].as_str().unwrap().contains("/none/lib.so"), "{index}");
    }
}

#[test]
fn a_goal_takes_what_was_tuned_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m.onnx");
    support::identity(DataType::Float32).write(&model).unwrap();
    let file = model.to_str().unwrap();
    let tuned = edgeward(&["tune", file, "--engine", "rten", "--slice-seconds", "0.001", "--json"]);
    assert!(tuned.status.success(), "{}", String::from_utf8_lossy(&tuned.stderr));
    // What is best differs from machine to machine; what it is taken for does not.
    let mut result: Value = serde_json::from_slice(&tuned.stdout).unwrap();
    result["latency"]["batch"] = json!(1);
    result["throughput"]["batch"] = json!(8);
    result["throughput"]["instances"] = json!(3);
    fs::write(folder.path().join("m.tune.json"), result.to_string()).unwrap();
    let four = json!([{ "name": "INPUT0", "shape": [4, 16], "datatype": "FP32", "data": vec![0.5; 64] }]);
    for (arguments, batch, instances) in [
        (vec![], 0, None),
        (vec!["--goal", "latency"], 0, None),
        (vec!["--goal", "throughput"], 8, Some(3)),
        (vec!["--goal", "throughput", "--engine", "rten"], 0, None),
    ] {
        let server = Server::start(&[&model], &arguments);
        let config = json_of(&server, "/v2/models/m/config");
        assert_eq!(config["max_batch_size"].as_i64().unwrap_or(0), batch, "{arguments:?} {config}");
        assert_eq!(config["instance_group"][0]["count"].as_i64(), instances, "{arguments:?} {config}");
        let (status, body) = infer(&server, "m", &four);
        assert_eq!(status, 200, "{body}");
    }
    // A configuration of the model's own stays as it is.
    let repository = folder.path().join("repository");
    fs::create_dir_all(repository.join("m/1")).unwrap();
    fs::copy(&model, repository.join("m/1/model.onnx")).unwrap();
    fs::copy(folder.path().join("m.tune.json"), repository.join("m/1/model.tune.json")).unwrap();
    fs::write(repository.join("m/config.pbtxt"), "max_batch_size: 4 instance_group { count: 1 }").unwrap();
    let server = Server::start(&[&repository], &["--goal", "throughput"]);
    let config = json_of(&server, "/v2/models/m/config");
    assert_eq!((&config["max_batch_size"], &config["instance_group"][0]["count"]), (&json!(4), &json!(1)), "{config}");
}

/// A run of minutes, whose caller goes away, ends: the process could not end before it.
#[test]
fn who_disconnects_ends_the_run() {
    if library("onnxruntime").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m.onnx");
    support::slow_chain(2048, 500).write(&model).unwrap();
    let server = Server::start(&[&model], &["--engine", "onnxruntime", "--grace-seconds", "0"]);
    let inputs = json!([{ "name": "INPUT0", "shape": [1, 16], "datatype": "FP32", "data": vec![0.5; 16] }]);
    let body = json!({ "inputs": inputs }).to_string();
    let headers = "content-type: application/json\r\n";
    let waiting = support::send(&server.http, "POST", "/v2/models/m/infer", headers, body.as_bytes());
    let pending = |count: u32| {
        let wanted = format!("nv_inference_pending_request_count{{model=\"m\",version=\"1\"}} {count}");
        support::until(&wanted, || support::ask(&server.metrics, "GET", "/metrics", "", b"").2.contains(&wanted));
    };
    pending(1);
    drop(waiting);
    pending(0);
    assert!(server.terminate().success());
}

/// `y = Gather(x, i)`, of which an index out of range is the caller's fault, and only the engine sees it.
#[test]
fn bad_data_makes_no_model_unready() {
    let folder = tempfile::tempdir().unwrap();
    let gather = NodeProto {
        op_type: Some("Gather".to_owned()),
        input: vec!["x".to_owned(), "i".to_owned()],
        output: vec!["y".to_owned()],
        ..NodeProto::default()
    };
    let graph = GraphProto {
        name: Some("gather".to_owned()),
        node: vec![gather],
        input: vec![support::port("x", DataType::Float32), support::port("i", DataType::Int32)],
        output: vec![edgeward_graph::proto::ValueInfoProto {
            r#type: support::shapeless(DataType::Float32),
            ..support::port("y", DataType::Float32)
        }],
        ..GraphProto::default()
    };
    let model = folder.path().join("m.onnx");
    support::model(graph).write(&model).unwrap();
    for engine in ["rten", "onnxruntime"] {
        if engine != "rten" && library(engine).is_none() {
            continue;
        }
        let server = Server::start(&[&model], &["--engine", engine]);
        let inputs = |index: i32| {
            let x = json!({ "name": "x", "shape": [1, 16], "datatype": "FP32", "data": vec![0.5; 16] });
            json!([x, { "name": "i", "shape": [1, 16], "datatype": "INT32", "data": vec![index; 16] }])
        };
        for _ in 0..20 {
            let (status, body) = infer(&server, "m", &inputs(9));
            // ONNX Runtime says whose fault it is.
            assert_eq!(status, if engine == "rten" { 500 } else { 400 }, "{engine}: {body}");
            assert!(ready(&server), "{engine}");
        }
        assert_eq!(infer(&server, "m", &inputs(0)).0, 200, "{engine}");
    }
}

/// A model that makes its input this many times as large in a run, and answers with an input of its own size.
fn expanding(length: i64) -> Model {
    let node = |op: &str, inputs: &[&str], output: &str| NodeProto {
        op_type: Some(op.to_owned()),
        input: inputs.iter().map(|&i| i.to_owned()).collect(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    };
    let shape = Tensor::from_vec([3], vec![length, 1, 16]).unwrap();
    support::model(GraphProto {
        name: Some("large".to_owned()),
        node: vec![
            node("Expand", &["INPUT0", "shape"], "large"),
            node("ReduceMax", &["large"], "number"),
            node("Add", &["INPUT0", "number"], "OUTPUT0"),
        ],
        initializer: vec![tensor_proto("shape", &shape)],
        input: vec![support::port("INPUT0", DataType::Float32)],
        output: vec![support::port("OUTPUT0", DataType::Float32)],
        ..GraphProto::default()
    })
}

/// Four terabytes in one run: the system would give addresses for them, and end the server once they are used.
#[test]
fn a_run_that_needs_more_than_the_machine_has_is_refused() {
    if library("onnxruntime").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m.onnx");
    expanding(1 << 36).write(&model).unwrap();
    let server = Server::start(&[&model], &["--engine", "onnxruntime"]);
    // Should it be granted after all, nobody else pays.
    fs::write(format!("/proc/{}/oom_score_adj", server.child.id()), "1000").unwrap();
    let inputs = json!([{ "name": "INPUT0", "shape": [1, 16], "datatype": "FP32", "data": vec![0.5; 16] }]);
    let (status, body) = infer(&server, "m", &inputs);
    assert_eq!(status, 500, "{body}");
    assert_eq!(server.ask("GET", "/v2/health/live", "", b"").0, 200);
}

/// A gigabyte in one run: an engine that gets no memory fails, whoever asks, and works again once it gets some.
#[test]
fn readiness_goes_with_the_engine_and_comes_back_by_itself() {
    if library("onnxruntime").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m.onnx");
    expanding(1 << 24).write(&model).unwrap();
    let server = Server::start(&[&model], &["--engine", "onnxruntime"]);
    let inputs = json!([{ "name": "INPUT0", "shape": [1, 16], "datatype": "FP32", "data": vec![0.5; 16] }]);
    assert!(ready(&server));

    // Before the first run: afterwards the allocator keeps the addresses.
    let pid = Pid::from_child(&server.child);
    let status = fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let size: u64 = size.split_whitespace().next().unwrap().parse().unwrap();
    // Room for threads and small things, not for the gigabyte.
    let limit = (size << 10) + (600 << 20);
    let before = prlimit(Some(pid), Resource::As, Rlimit { current: Some(limit), maximum: None }).unwrap();
    let (status, body) = infer(&server, "m", &inputs);
    assert_eq!(status, 500, "{body}");
    support::until("the end of readiness", || !ready(&server));
    let (status, _) = server.ask("GET", "/v2/models/m/ready", "", b"");
    assert_ne!(status, 200);
    prlimit(Some(pid), Resource::As, before).unwrap();
    // No request has to come along.
    support::until("readiness", || ready(&server));
    assert_eq!(infer(&server, "m", &inputs).0, 200);
}

#[test]
fn callers_are_told_the_reason_and_nothing_of_the_engines_source() {
    use edgeward_graph::proto::{GraphProto, NodeProto, ValueInfoProto};
    if std::env::var_os("EDGEWARD_ALL_ENGINES").is_none() {
        return println!("skipped: EDGEWARD_ALL_ENGINES is not set");
    }
    let any = |name: &str, dtype| ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: support::shapeless(dtype),
        ..ValueInfoProto::default()
    };
    let node = NodeProto {
        op_type: Some("ConstantOfShape".to_owned()),
        name: Some("fill".to_owned()),
        input: vec!["SIZES".to_owned()],
        output: vec!["OUTPUT0".to_owned()],
        ..NodeProto::default()
    };
    let graph = GraphProto {
        name: Some("fill".to_owned()),
        node: vec![node],
        input: vec![any("SIZES", DataType::Int64)],
        output: vec![any("OUTPUT0", DataType::Float32)],
        ..GraphProto::default()
    };
    let files = tempfile::tempdir().unwrap();
    let (model, log) = (files.path().join("m.onnx"), files.path().join("log"));
    support::model(graph).write(&model).unwrap();
    let server = support::Server::start_logging(&[&model], &["--engine", "onnxruntime"], &log);
    let body = br#"{"inputs":[{"name":"SIZES","shape":[1],"datatype":"INT64","data":[-1]}]}"#;
    let (status, text) = server.ask("POST", "/v2/models/m/infer", "", body);
    assert!(!text.contains("onnxruntime/") && !text.contains(".cc") && !text.contains(".h:"), "{status} {text}");
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.contains("a run fails") && log.contains("tensor.cc:"), "the log has it all: {log}");
    assert!(status == 400 && text.contains("node `fill` (ConstantOfShape): "), "{status} {text}");
    assert_eq!(server.ask("GET", "/v2/health/ready", "", b"").0, 200);
}

//! The commands that need no server: exit codes, the shape of `--json`, wrong files, a tune that is interrupted.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead as _, Read as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use edgeward_graph::{
    DataType, Model,
    proto::{
        GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto, TypeProto, ValueInfoProto,
        tensor_shape_proto::{Dimension, dimension},
        type_proto,
    },
};
use serde_json::Value;

fn port(name: &str) -> ValueInfoProto {
    let dims = [dimension::Value::DimParam("n".to_owned()), dimension::Value::DimValue(4)];
    let dim = dims.map(|value| Dimension { value: Some(value), ..Dimension::default() }).to_vec();
    let elem_type = Some(DataType::Float32.to_onnx());
    let tensor = type_proto::Tensor { elem_type, shape: Some(TensorShapeProto { dim }) };
    let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() });
    ValueInfoProto { name: Some(name.to_owned()), r#type, ..ValueInfoProto::default() }
}

/// Writes `y = operator(x)` with `x` of shape `[n, 4]`.
fn write_model(folder: &Path, operator: &str) -> PathBuf {
    let node = NodeProto {
        name: Some("the node".to_owned()),
        op_type: Some(operator.to_owned()),
        input: vec!["x".to_owned()],
        output: vec!["y".to_owned()],
        ..NodeProto::default()
    };
    let graph = GraphProto {
        name: Some("graph".to_owned()),
        node: vec![node],
        input: vec![port("x")],
        output: vec![port("y")],
        ..GraphProto::default()
    };
    let opset_import = vec![OperatorSetIdProto { version: Some(17), ..OperatorSetIdProto::default() }];
    let model = ModelProto { ir_version: Some(8), opset_import, graph: Some(graph), ..ModelProto::default() };
    let path = folder.join("model.onnx");
    Model::from_proto(model).write(&path).unwrap();
    path
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgeward"));
    command.current_dir(folder).args(arguments).stdin(Stdio::null());
    for name in ["EDGEWARD_ENGINE", "EDGEWARD_THREADS", "EDGEWARD_CONFIG"] {
        command.env_remove(name);
    }
    command
}

fn edgeward(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

fn json(folder: &Path, arguments: &[&str]) -> Value {
    let output = edgeward(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn wrong_input_exits_with_2_and_says_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), "Relu");
    fs::write(folder.path().join("text.onnx"), "this is no model, whatever its name says").unwrap();
    fs::write(folder.path().join("bad.toml"), "[serve]\nhtp = 1\n").unwrap();
    let model = fs::read(folder.path().join("model.onnx")).unwrap();
    fs::write(folder.path().join("cut.onnx"), &model[..model.len() - 5]).unwrap();
    fs::write(folder.path().join("many.toml"), "[engine]\nthreads = 1000000\n").unwrap();
    fs::write(folder.path().join("ragged.json"), r#"{"x": [[1, 2], [3]]}"#).unwrap();
    fs::write(folder.path().join("other.json"), r#"{"z": [[1, 2, 3, 4]]}"#).unwrap();
    let table: &[(&[&str], &str)] = &[
        (&[], "Usage"),
        (&["fly"], "fly"),
        (&["inspect", "none.onnx"], "`none.onnx` does not exist"),
        (&["inspect", "."], "is no file"),
        (&["inspect", "text.onnx"], "text.onnx"),
        (&["bench", "text.onnx"], "text.onnx"),
        (&["infer", "text.onnx"], "text.onnx"),
        (&["tune", "text.onnx"], "text.onnx"),
        (&["inspect", "cut.onnx"], "the file is cut off"),
        (&["bench", "cut.onnx"], "cut.onnx"),
        (&["infer", "cut.onnx"], "cut.onnx"),
        (&["tune", "cut.onnx"], "cut.onnx"),
        (&["bench", "model.onnx", "--threads", "0"], "--threads"),
        (&["bench", "model.onnx", "--threads", "1000000"], "expected 1 to 1024"),
        (&["infer", "model.onnx", "--threads", "many"], "`many` is no number of threads"),
        (&["serve", "model.onnx", "--insecure", "--threads", "1000000"], "expected 1 to 1024"),
        (&["bench", "model.onnx", "--config", "many.toml"], "expected 1 to 1024"),
        (&["bench", "model.onnx", "--batch", "1000000000"], "--batch"),
        (&["bench", "model.onnx", "--batch", "0"], "--batch"),
        (&["bench", "model.onnx", "--seconds", "0"], "--seconds"),
        (&["bench", "model.onnx", "--shape", "x"], "`x` is no shape"),
        (&["bench", "model.onnx", "--shape", "q=1,4"], "no input `q`"),
        (&["bench", "model.onnx", "--shape", "x=1,5"], "has the shape [n, 4], 4 is fixed; `--shape` gives [1, 5]"),
        (
            &["infer", "model.onnx", "--engine", "steam"],
            "no engine `steam`; there are `onnxruntime`, `openvino`, `rten`",
        ),
        (&["bench", "model.onnx", "--engine", "steam"], "no engine `steam`"),
        (&["bench", "model.onnx", "--shape", "x=99999999999,4"], "too large"),
        (&["infer", "model.onnx", "--input", "none.json"], "none.json"),
        (&["infer", "model.onnx", "--input", "ragged.json"], "differ in length"),
        (&["infer", "model.onnx", "--input", "other.json"], "no input `z`"),
        (&["infer", "model.onnx", "--input", "model.onnx"], ".npz"),
        (&["tune", "model.onnx", "--target-latency-ms", "0"], "above 0"),
        (&["tune", "model.onnx", "--engine", "steam"], "no engine `steam`"),
        (&["tune", "model.onnx", "--threads-max", "0"], "--threads-max"),
        (&["tune", "model.onnx", "-o", "none/tune.json"], "`none/tune.json` is in a folder that does not exist"),
        (&["tune", "model.onnx", "-o", "."], "`.` is a folder"),
        (&["engine", "install", "steam"], "`steam` cannot be installed"),
        (&["engine", "path", "rten"], "`rten` has no library"),
        (&["serve"], "nothing to serve"),
        (&["serve", "model.onnx"], "`--insecure`"),
        (&["serve", "model.onnx", "--insecure", "--http", "0.0.0.0:0"], "loopback"),
        (&["serve", "none.onnx", "--insecure"], "`none.onnx` does not exist"),
        (&["serve", "model.onnx", "--insecure", "--engine", "steam"], "no engine `steam`"),
        (&["inspect", "model.onnx", "--config", "bad.toml"], "htp"),
        (&["inspect", "model.onnx", "--config", "none.toml"], "none.toml"),
    ];
    let mut failures = Vec::new();
    for (arguments, part) in table {
        let output = edgeward(folder.path(), arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        if output.status.code() != Some(2) || !text.contains(part) {
            failures.push(format!("{arguments:?}: {:?}, expected 2 and `{part}` in: {text}", output.status.code()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn work_that_fails_exits_with_1() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), "NoSuchOperator");
    for arguments in
        [["bench", "model.onnx", "--json"], ["infer", "model.onnx", "--json"], ["tune", "model.onnx", "--json"]]
    {
        let output = edgeward(folder.path(), &arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(answer["error"].as_str().unwrap().contains("NoSuchOperator"), "{answer}");
    }
}

#[test]
fn inspect_says_what_a_model_is_and_who_runs_it() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), "Relu");
    let report = json(folder.path(), &["inspect", "model.onnx", "--json"]);
    assert_eq!(report["opset"], 17);
    assert_eq!(report["nodes"], 1);
    assert_eq!(report["operators"][0]["name"], "Relu");
    assert_eq!(report["inputs"][0]["name"], "x");
    assert_eq!(report["inputs"][0]["datatype"], "float32");
    assert_eq!(report["inputs"][0]["shape"], serde_json::json!(["n", 4]));
    let engines = report["engines"].as_array().unwrap();
    let rten = engines.iter().find(|engine| engine["name"] == "rten").unwrap();
    assert_eq!(rten["runs"], true);

    write_model(folder.path(), "NoSuchOperator");
    let report = json(folder.path(), &["inspect", "model.onnx", "--json"]);
    for engine in report["engines"].as_array().unwrap() {
        assert_eq!(engine["runs"], false, "{engine}");
        assert!(!engine["reason"].as_str().unwrap().is_empty());
    }
}

#[test]
fn infer_prints_outputs_of_given_inputs() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), "Relu");
    fs::write(folder.path().join("in.json"), r#"{"x": [[-1, 0.5, 0.1, -0.0]]}"#).unwrap();
    let arguments = ["infer", "model.onnx", "--engine", "rten", "--input", "in.json", "--json"];
    let report = json(folder.path(), &arguments);
    assert_eq!(report["engine"], "rten");
    assert_eq!(report["outputs"][0]["name"], "y");
    assert_eq!(report["outputs"][0]["shape"], serde_json::json!([1, 4]));
    assert_eq!(report["outputs"][0]["data"], serde_json::json!([0.0, 0.5, 0.1, 0.0]));
}

#[test]
fn bench_reports_every_figure() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), "Relu");
    let arguments =
        ["bench", "model.onnx", "--engine", "rten", "--batch", "3", "--seconds", "0.01", "--profile", "--json"];
    let report = json(folder.path(), &arguments);
    assert_eq!(report["inputs"][0]["shape"], serde_json::json!([3, 4]));
    for key in ["load_ms", "first_run_ms", "p50_ms", "p90_ms", "p99_ms", "per_second", "peak_memory_bytes", "runs"] {
        assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {report}");
    }
    // The built-in engine records no operators: the key is there and says so.
    assert_eq!(report.as_object().unwrap().get("profile"), Some(&Value::Null));
}

#[test]
fn flags_win_over_environment_over_file() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), "Relu");
    fs::write(folder.path().join("edgeward.toml"), "[engine]\nname = \"rten\"\nthreads = 1\n").unwrap();
    let base = ["bench", "model.onnx", "--seconds", "0.01", "--json"];
    let threads = |environment: Option<&str>, flag: &[&str]| {
        let mut run = command(folder.path(), &base);
        run.args(flag).envs(environment.map(|value| ("EDGEWARD_THREADS", value)));
        let report: Value = serde_json::from_slice(&run.output().unwrap().stdout).unwrap();
        assert_eq!(report["engine"], "rten");
        report["threads"].as_u64()
    };
    assert_eq!(threads(None, &[]), Some(1));
    assert_eq!(threads(Some("2"), &[]), Some(2));
    assert_eq!(threads(Some("2"), &["--threads", "3"]), Some(3));
}

#[test]
fn engines_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let engines = json(folder.path(), &["engine", "list", "--json"]);
    let rten = engines.as_array().unwrap().iter().find(|engine| engine["name"] == "rten").unwrap();
    assert_eq!(rten["available"], true);
}

/// `onnxruntime` and `openvino` alike: the file wins over what is installed, the environment over the file.
#[test]
fn the_environment_wins_over_the_file_for_libraries() {
    let folder = tempfile::tempdir().unwrap();
    let listed = |environment: Option<(&str, &str)>| {
        let output = command(folder.path(), &["engine", "list", "--json"]).envs(environment).output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).unwrap().as_array().unwrap().clone()
    };
    let installed: Vec<Value> = listed(None).into_iter().filter(|e| e["library"].is_string()).collect();
    for engine in installed {
        let (name, library) = (engine["name"].as_str().unwrap(), engine["library"].as_str().unwrap());
        fs::write(folder.path().join("edgeward.toml"), format!("[engine]\n{name}_lib = \"none.so\"\n")).unwrap();
        let of = |engines: Vec<Value>| engines.into_iter().find(|engine| engine["name"] == name).unwrap();
        let from_file = of(listed(None));
        assert_eq!(from_file["available"], false, "{from_file}");
        assert!(from_file["reason"].as_str().unwrap().contains("none.so"), "{from_file}");
        let variable = format!("EDGEWARD_{}_LIB", name.to_uppercase());
        let from_environment = of(listed(Some((&variable, library))));
        assert_eq!(from_environment["available"], true, "{from_environment}");
    }
}

/// A tune that has just measured its first slice, or gone on from one.
fn tune_until_something_is_kept(folder: &Path, arguments: &[&str]) -> std::process::Child {
    let mut child = command(folder, arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let slices = || {
        let state: Value = serde_json::from_slice(&fs::read(folder.join("model.tune.json.state")).ok()?).ok()?;
        state["slices"].as_object().map(serde_json::Map::len)
    };
    let before = slices().unwrap_or(0);
    while slices().unwrap_or(0) <= before {
        assert!(child.try_wait().unwrap().is_none(), "the tune ended before it kept anything");
        std::thread::yield_now();
    }
    child
}

/// Starts `serve model.onnx` and reads which engine its log says has loaded it.
fn engine_that_serves(folder: &Path) -> String {
    served(folder).0
}

/// The engine, and the warnings before the model was loaded.
fn served(folder: &Path) -> (String, Vec<String>) {
    let any = "127.0.0.1:0";
    let arguments = ["serve", "model.onnx", "--insecure", "--http", any, "--grpc", any, "--metrics", any];
    let mut server = command(folder, &arguments)
        .args(["--log-format", "json"])
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(server.stderr.take().unwrap()).lines();
    let logged = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let (mut engine, mut warnings) = (String::new(), Vec::new());
    for line in logged {
        match line["engine"].as_str() {
            Some(name) if line["message"] == "model loaded" => {
                name.clone_into(&mut engine);
                break;
            }
            _ if line["level"] == "WARN" => warnings.push(line.to_string()),
            _ => {}
        }
    }
    server.kill().unwrap();
    server.wait().unwrap();
    (engine, warnings)
}

#[test]
fn an_interrupted_tune_goes_on_and_serve_takes_its_result() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), "Relu");
    let arguments =
        ["tune", "model.onnx", "--engine", "rten", "--threads-max", "1", "--slice-seconds", "0.05", "--json"];
    let (result, state) = (folder.path().join("model.tune.json"), folder.path().join("model.tune.json.state"));
    let mut killed = tune_until_something_is_kept(folder.path(), &arguments);
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(!result.exists());

    let mut interrupted = tune_until_something_is_kept(folder.path(), &arguments);
    let pid = rustix::process::Pid::from_child(&interrupted);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let status = interrupted.wait().unwrap();
    let mut text = String::new();
    interrupted.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("interrupted") && text.contains("model.tune.json.state"), "{text}");
    assert!(!result.exists());

    let report = json(folder.path(), &arguments);
    assert!(report["resumed_slices"].as_u64().unwrap() > 0, "{report}");
    assert!(!state.exists());
    let written: Value = serde_json::from_slice(&fs::read(&result).unwrap()).unwrap();
    assert_eq!(written, report);
    for goal in ["latency", "throughput"] {
        assert_eq!(written[goal]["engine"], "rten");
        assert_eq!(written[goal]["threads"], 1);
    }

    assert_eq!(engine_that_serves(folder.path()), "rten", "`serve` does not take what was tuned");

    fs::write(&result, "{\"latency\": 3}").unwrap();
    let (engine, warnings) = served(folder.path());
    assert!(!engine.is_empty(), "a damaged result keeps no model from serving");
    assert!(warnings.iter().any(|line| line.contains("edgeward tune")), "{warnings:?}");
}

/// Every engine that is there, every batch, and no more cores than allowed; the best are among what was measured.
#[test]
fn a_tune_reports_all_that_it_measured() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), "Relu");
    let arguments = ["tune", "model.onnx", "--threads-max", "2", "--slice-seconds", "0.001", "--json", "-o", "to.json"];
    let report = json(folder.path(), &arguments);
    let written: Value = serde_json::from_slice(&fs::read(folder.path().join("to.json")).unwrap()).unwrap();
    assert_eq!(written, report);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "only the model and the result stay");

    let measured = report["measured"].as_array().unwrap();
    let cores = std::thread::available_parallelism().unwrap().get().min(2);
    for one in measured {
        let figures = ["p50_ms", "p99_ms", "per_second", "batch", "threads", "instances"];
        assert!(figures.iter().all(|key| one[key].as_f64().is_some_and(|value| value > 0.0)), "{one}");
        assert!(one["threads"].as_u64().unwrap() * one["instances"].as_u64().unwrap() <= cores as u64, "{one}");
    }
    for goal in ["latency", "throughput"] {
        assert!(measured.contains(&report[goal]), "{goal}: {report}");
    }
    let engines = json(folder.path(), &["engine", "list", "--json"]);
    let there = engines.as_array().unwrap().iter().filter(|engine| engine["available"] == true);
    for engine in there.map(|engine| &engine["name"]) {
        let batches = measured.iter().filter(|one| one["engine"] == *engine && one["threads"] == 1);
        let batches: std::collections::BTreeSet<_> = batches.map(|one| one["batch"].as_u64().unwrap()).collect();
        assert_eq!(batches, [1, 2, 4, 8, 16, 32].into(), "{engine}: {report}");
    }
    let keys = ["model_sha256", "target_latency_ms", "target_met", "tolerance", "excluded", "resumed_slices"];
    assert!(keys.iter().all(|key| report.as_object().unwrap().contains_key(*key)), "{report}");
}

/// A model that draws its answers agrees with nothing, itself included: no setting of it can be recommended.
#[test]
fn settings_whose_answers_differ_are_left_out_by_name() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), "RandomUniformLike");
    let arguments = ["tune", "model.onnx", "--threads-max", "1", "--slice-seconds", "0.001", "--json"];
    let output = edgeward(folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let error = answer["error"].as_str().unwrap();
    assert!(error.contains("1 threads, batch 1, 1 at once: it disagrees with"), "{error}");
    assert!(!folder.path().join("model.tune.json").exists());
}

#[test]
fn a_target_that_nothing_meets_is_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), "Relu");
    let arguments = ["tune", "model.onnx", "--engine", "rten", "--threads-max", "1", "--slice-seconds", "0.001"];
    let output = command(folder.path(), &arguments).args(["--target-latency-ms", "0.0000001"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let written: Value = serde_json::from_slice(&fs::read(folder.path().join("model.tune.json")).unwrap()).unwrap();
    assert_eq!(written["target_met"], false);
}

#[test]
fn bench_profiles_operators_where_the_engine_records_them() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), "Relu");
    let engines = json(folder.path(), &["engine", "list", "--json"]);
    let listed = engines.as_array().unwrap().iter().find(|engine| engine["name"] == "onnxruntime").unwrap();
    if listed["available"] != true {
        assert!(std::env::var_os("EDGEWARD_ALL_ENGINES").is_none(), "onnxruntime is not there: {listed}");
        println!("skipped: onnxruntime is not installed");
        return;
    }
    let arguments = ["bench", "model.onnx", "--engine", "onnxruntime", "--seconds", "0.01", "--profile", "--json"];
    let report = json(folder.path(), &arguments);
    assert_eq!(report["profile"]["nodes"][0]["op_type"], "Relu");
}

/// Runs the demo with an empty cache folder and an environment of its own.
fn demo_without_engines(folder: &Path, environment: &[(&str, &str)]) -> String {
    let mut demo = command(folder, &["demo", "--exit", "--requests", "5"]);
    demo.env("XDG_CACHE_HOME", folder).env_remove("EDGEWARD_ONNXRUNTIME_LIB").envs(environment.iter().copied());
    let output = demo.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{text}");
    assert!(text.contains("going on without it") && text.contains("edgeward engine install"), "{text}");
    assert!(text.contains("rten: 5 of 5 requests answered"), "{text}");
    text
}

#[test]
fn the_demo_goes_on_without_pip() {
    let folder = tempfile::tempdir().unwrap();
    let text = demo_without_engines(folder.path(), &[("PATH", folder.path().to_str().unwrap())]);
    assert!(text.contains("pip is needed"), "{text}");
}

#[test]
fn the_demo_goes_on_without_a_network() {
    if Command::new("python3").args(["-m", "pip", "--version"]).output().is_ok_and(|o| !o.status.success()) {
        return println!("skipped: `python3` has no pip");
    }
    let folder = tempfile::tempdir().unwrap();
    // Bound and let go: nothing listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let index = format!("http://127.0.0.1:{port}/simple");
    let environment = [("PIP_INDEX_URL", index.as_str()), ("PIP_EXTRA_INDEX_URL", ""), ("PIP_NO_CACHE_DIR", "1")];
    let text = demo_without_engines(folder.path(), &environment);
    assert!(text.contains("not fetched"), "{text}");
}

#[test]
fn the_demo_measures_every_engine_that_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let report = json(folder.path(), &["demo", "--exit", "--offline", "--requests", "5", "--json"]);
    let engines = json(folder.path(), &["engine", "list", "--json"]);
    let there = engines.as_array().unwrap().iter().filter(|engine| engine["available"] == true);
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), there.count(), "{report}");
    for row in rows {
        let figures = ["load_ms", "bare_p50_ms", "served_p50_ms", "served_p99_ms", "served_per_s"];
        assert!(figures.iter().all(|key| row[key].as_f64().is_some_and(|value| value > 0.0)), "{row}");
    }
    let learnt = |key: &str| report["training"][key].as_f64().unwrap();
    assert!(learnt("accuracy_before") < 0.5 && learnt("accuracy_after") > 0.9, "{report}");
    let (smaller, chosen) = (&report["compression"], &report["compression"]["chosen"]);
    assert!(smaller["accuracy_before"].as_f64().unwrap() > 0.9, "{report}");
    // A busy machine may find every variant slower.
    if chosen.is_object() {
        let bytes = |side: &Value| side["bytes"].as_u64().unwrap();
        assert!(bytes(&chosen["after"]) < bytes(&smaller["before"]), "{report}");
        assert!(chosen["accuracy_after"].as_f64().unwrap() > 0.85, "{report}");
    }
}

#[test]
fn a_model_that_breaks_the_rules_is_refused_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_model(folder.path(), "Relu");
    let mut model = Model::read(&path, &edgeward_graph::Limits::default()).unwrap();
    let mut twice = model.graph().node[0].clone();
    (twice.name, twice.input) = (Some("the other".to_owned()), vec!["nothing".to_owned()]);
    model.graph_mut().node.push(twice);
    model.write(&path).unwrap();
    let output = edgeward(folder.path(), &["inspect", "model.onnx", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one document");
    let problems = report["problems"].to_string();
    assert!(problems.contains("`the other`") && problems.contains("`nothing`"), "{report}");
    assert!(report["engines"].as_array().unwrap().iter().all(|engine| engine["runs"] == false), "{report}");
    let output = edgeward(folder.path(), &["infer", "model.onnx", "--engine", "rten"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && stderr.contains("`the other`"), "{stderr}");
    let output = edgeward(folder.path(), &["inspect", "model.onnx"]);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        stdout.contains("problem: ") && stderr.contains("breaks the rules of ONNX in 2 places"),
        "{stdout}{stderr}"
    );
}

#[test]
fn names_of_a_file_do_not_steer_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_model(folder.path(), "Relu");
    let mut model = Model::read(&path, &edgeward_graph::Limits::default()).unwrap();
    let hostile = format!("x\u{1b}]0;owned\u{7}\r\u{9b}2J\u{202e}{}", "long".repeat(200));
    model.graph_mut().input[0].name = Some(hostile.clone());
    model.graph_mut().node[0].input = vec![hostile];
    model.proto_mut().producer_name = Some("\u{1b}[31mred".to_owned());
    model.write(&path).unwrap();
    for arguments in [
        &["inspect"][..],
        &["inspect", "--json"],
        &["infer"],
        &["infer", "--shape", "q=1"],
        &["bench", "--seconds", "0.01"],
    ] {
        let arguments = [&arguments[..1], &["model.onnx"], &arguments[1..]].concat();
        let output = edgeward(folder.path(), &arguments);
        for text in [output.stdout, output.stderr] {
            let text = String::from_utf8(text).unwrap();
            let steers = |c: &char| c.is_control() && *c != '\n' || *c == '\u{202e}';
            assert_eq!(text.chars().find(steers), None, "{arguments:?}: {text:?}");
        }
    }
    for (columns, most) in [("60", 60), ("", 100)] {
        let output = command(folder.path(), &["inspect", "model.onnx"]).env("COLUMNS", columns).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let table: Vec<&str> = text
            .lines()
            .skip_while(|line| !line.starts_with('─'))
            .take_while(|line| !line.contains(" nodes, "))
            .collect();
        assert!(table.len() > 5 && table.iter().all(|line| line.chars().count() <= most), "{columns}: {text}");
    }
}

#[test]
fn standard_output_that_is_full_or_gone_is_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), "Relu");
    let all: [&[&str]; 8] = [
        &["infer", "model.onnx", "--json"],
        &["infer", "model.onnx"],
        &["inspect", "model.onnx"],
        &["inspect", "model.onnx", "--json"],
        &["bench", "model.onnx", "--seconds", "0.01"],
        &["engine", "list"],
        &["engine", "path", "rten", "--json"],
        &["inspect", "none.onnx", "--json"],
    ];
    for arguments in all {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = command(folder.path(), arguments).stdout(full).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let expected = if arguments.contains(&"none.onnx") || arguments.contains(&"path") { 2 } else { 1 };
        assert_eq!(output.status.code(), Some(expected), "{arguments:?}: {stderr}");
        assert!(stderr.contains("error: ") && !stderr.contains("panicked"), "{arguments:?}: {stderr}");
        // Both at once: nobody is left to tell.
        let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let status = command(folder.path(), arguments).stdout(full()).stderr(full()).status().unwrap();
        assert_eq!(status.code(), Some(expected), "{arguments:?}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command(folder.path(), arguments).stdout(writer).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let expected = if expected == 2 { 2 } else { 0 };
        assert!(output.status.code() == Some(expected) && !stderr.contains("panicked"), "{arguments:?}: {stderr}");
    }
}

#[test]
fn tune_and_demo_run_on_what_the_file_says() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), "Relu");
    let tune = ["tune", "model.onnx", "--engine", "rten", "--threads-max", "1", "--slice-seconds", "0.001"];
    let demo = ["demo", "--offline", "--exit", "--requests", "2"];
    for (file, arguments, expected, part) in [
        ("providers = [\"Abacus\"]", &tune[..], 1, "unknown provider `Abacus`"),
        ("providers = [\"CPU\"]\n[engine.provider_options.CPU]\nbeads = 3", &tune, 1, "`beads`"),
        ("providers = [\"CPU\"]", &tune, 0, ""),
        ("providers = [\"CPU\"]\n[engine.provider_options.CPU]\nbeads = 3", &demo, 1, "`beads`"),
        ("providers = [\"CPU\", \"Abacus\"]", &demo, 0, ""),
    ] {
        fs::write(folder.path().join("edgeward.toml"), format!("[engine]\n{file}\n")).unwrap();
        let mut command = command(folder.path(), arguments);
        // The built-in engine alone: each has its own words for this.
        let output =
            command.env("EDGEWARD_ONNXRUNTIME_LIB", "none").env("EDGEWARD_OPENVINO_LIB", "none").output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(expected) && stderr.contains(part), "{file}: {stderr}");
    }
    let output = edgeward(folder.path(), &[&tune[..], &["--provider", "Abacus"]].concat());
    assert!(String::from_utf8_lossy(&output.stderr).contains("unknown provider `Abacus`"));
}

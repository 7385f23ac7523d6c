//! What the server tells of single requests: access lines, traces in a file, spans at a collector, its own log.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::mpsc::{Receiver, Sender, channel},
};

use edgeward_serve::proto::{
    ModelInferRequest, ServerLiveRequest, grpc_inference_service_client::GrpcInferenceServiceClient,
    model_infer_request::InferInputTensor,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value,
    trace::v1::Span,
};
use serde_json::{Value, json};
use support::{PATIENCE, Server, awaited, repository};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

mod support;

const INFER: &str = "/v2/models/ident/infer";
const GOOD: &[u8] = br#"{"id":"a\"1","inputs":[{"name":"INPUT0","shape":[1,16],"datatype":"FP32","data":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]}]}"#;

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn trace_file(path: &Path, entries: usize) -> Vec<Value> {
    awaited("the trace", || {
        let found: Vec<Value> = serde_json::from_str(&fs::read_to_string(path).ok()?).ok()?;
        (found.len() >= entries).then_some(found)
    })
}

#[test]
fn the_access_log_has_a_line_for_each_request() {
    let (models, files) = (repository(), tempfile::tempdir().unwrap());
    let log = files.path().join("access.jsonl");
    let server = Server::start(&[models.path()], &["--access-log", log.to_str().unwrap()]);
    assert_eq!(server.ask("POST", INFER, "", GOOD).0, 200);
    assert_eq!(server.ask("POST", "/v2/models/nobody/infer", "", GOOD).0, 404);
    assert_eq!(server.ask("GET", "/v2/health/live?x=1", "", b"").0, 200);
    let found = awaited("three lines", || Some(lines(&log)).filter(|all| all.len() >= 3));
    let [good, missing, live] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(
        (&good["status"], &good["model"], &good["version"], &good["id"], &good["path"]),
        (&json!(200), &json!("ident"), &json!(1), &json!("a\"1"), &json!(INFER))
    );
    assert_eq!(good["bytes_in"], json!(GOOD.len()));
    for number in ["bytes_out", "queue_us", "compute_us", "total_us"] {
        assert!(good[number].is_u64(), "{number}: {good}");
    }
    assert!(good["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert_eq!(
        (&missing["status"], &missing["model"], &missing["queue_us"]),
        (&json!(404), &json!("nobody"), &Value::Null)
    );
    assert_eq!(
        (&live["method"], &live["path"], &live["model"]),
        (&json!("GET"), &json!("/v2/health/live"), &Value::Null)
    );
    // A program that turns logs over moves the file away and sends SIGHUP: new lines go to a new file.
    let moved = files.path().join("access.old");
    fs::rename(&log, &moved).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_child(&server.child), rustix::process::Signal::HUP)
        .unwrap();
    awaited("the new file", || log.exists().then_some(()));
    assert_eq!(server.ask("GET", "/v2", "", b"").0, 200);
    let (_, _, metrics) = support::ask(&server.metrics, "GET", "/metrics", "", b"");
    assert!(metrics.contains("edgeward_telemetry_dropped_total{sink=\"access_log\"} 0"), "{metrics}");
    // What was accepted is written before the process ends.
    assert!(server.terminate().success());
    assert_eq!((lines(&log).len(), lines(&moved).len()), (1, 3));
}

#[test]
fn an_access_line_in_text_cannot_be_forged() {
    let (models, files) = (repository(), tempfile::tempdir().unwrap());
    let log = files.path().join("access.log");
    let arguments = ["--access-log", log.to_str().unwrap(), "--access-log-format", "text"];
    let server = Server::start(&[models.path()], &arguments);
    let body = String::from_utf8_lossy(GOOD).replace(r#"a\"1"#, r"x\n2026 forged");
    assert_eq!(server.ask("POST", INFER, "", body.as_bytes()).0, 200);
    assert!(server.terminate().success());
    let text = fs::read_to_string(log).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains(&format!(" POST {INFER} 200 model=\"ident\" id=\"x\\n2026 forged\" ")), "{text}");
}

/// A call of tonic's own client, with rows of sixteen zeros.
fn zeros(model: &str, id: &str) -> ModelInferRequest {
    let input = InferInputTensor {
        name: "INPUT0".to_owned(),
        datatype: "FP32".to_owned(),
        shape: vec![1, 16],
        ..InferInputTensor::default()
    };
    ModelInferRequest {
        model_name: model.to_owned(),
        id: id.to_owned(),
        inputs: vec![input],
        raw_input_contents: vec![vec![0; 64].into()],
        ..ModelInferRequest::default()
    }
}

#[tokio::test]
async fn calls_over_grpc_have_their_access_lines() {
    let (models, files) = (repository(), tempfile::tempdir().unwrap());
    let log = files.path().join("access.jsonl");
    let server = Server::start(&[models.path()], &["--access-log", log.to_str().unwrap()]);
    let mut client = GrpcInferenceServiceClient::connect(format!("http://{}", server.grpc)).await.unwrap();
    client.model_infer(zeros("ident", "one")).await.unwrap();
    assert!(client.model_infer(zeros("nobody", "two")).await.is_err());
    client.server_live(ServerLiveRequest {}).await.unwrap();
    let requests = tokio_stream::iter(vec![zeros("ident", "three"), zeros("nobody", "four")]);
    let answers = client.model_stream_infer(requests).await.unwrap().into_inner();
    assert_eq!(tokio_stream::StreamExt::collect::<Vec<_>>(answers).await.len(), 2);
    // Who says over REST that it speaks gRPC gets no line as if it did.
    assert_eq!(server.ask("POST", "/v2/models/nobody/infer", "content-type: application/grpc\r\n", GOOD).0, 404);
    let found = awaited("six lines", || Some(lines(&log)).filter(|all| all.len() >= 6));
    let line = |id: &str| found.iter().find(|line| line["id"] == id).unwrap_or_else(|| panic!("{id}: {found:?}"));
    let infer = "/inference.GRPCInferenceService/ModelInfer";
    let stream = "/inference.GRPCInferenceService/ModelStreamInfer";
    for (id, path, status, model) in [
        ("one", infer, 0, "ident"),
        ("two", infer, 5, "nobody"),
        ("three", stream, 0, "ident"),
        ("four", stream, 5, "nobody"),
    ] {
        let line = line(id);
        assert_eq!(
            (&line["path"], &line["grpc_status"], &line["model"]),
            (&json!(path), &json!(status), &json!(model))
        );
        assert!(line["peer"].as_str().unwrap().starts_with("127.0.0.1:") && line["status"].is_null(), "{line}");
        let answered = status == 0;
        assert_eq!((line["queue_us"].is_u64(), line["version"] == 1), (answered, answered), "{line}");
        assert!(!answered || line["bytes_in"].as_u64() > Some(64) && line["bytes_out"].as_u64() > Some(64), "{line}");
    }
    let live = found.iter().find(|line| line["path"].as_str().unwrap().ends_with("/ServerLive")).unwrap();
    assert_eq!(live["grpc_status"], 0);
    let rest = found.iter().find(|line| line["path"] == "/v2/models/nobody/infer").unwrap();
    assert_eq!((&rest["status"], &rest["grpc_status"]), (&json!(404), &Value::Null));
}

#[test]
fn an_access_log_on_standard_output_has_its_lines() {
    let (models, files) = (repository(), tempfile::tempdir().unwrap());
    let ready = files.path().join("ready.json");
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_edgeward"))
        .args(["serve", "--insecure"])
        .args(support::FREE_PORTS)
        .args(["--access-log", "-", "--engine", "rten", "--ready-file"])
        .args([&ready, models.path()])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    awaited("the ready file", || ready.exists().then_some(()));
    let addresses: Value = serde_json::from_slice(&fs::read(&ready).unwrap()).unwrap();
    let address = addresses["http"].as_str().unwrap();
    for id in 0..100 {
        let body = String::from_utf8_lossy(GOOD).replace(r#"a\"1"#, &id.to_string());
        assert_eq!(support::ask(address, "POST", INFER, "", body.as_bytes()).0, 200);
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(child.stdout.as_mut().unwrap(), &mut text).unwrap();
    assert!(child.wait().unwrap().success());
    let ids: Vec<Value> = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].clone()).collect();
    assert_eq!(ids, (0..100).map(|id| json!(id.to_string())).collect::<Vec<_>>());
}

#[test]
fn an_access_log_that_cannot_be_opened_is_said_at_the_start() {
    let models = repository();
    let log = models.path().join("no/such/folder/log");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_edgeward"))
        .arg("serve")
        .arg(models.path())
        .arg("--insecure")
        .args(support::FREE_PORTS)
        .arg("--access-log")
        .arg(&log)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no/such/folder"));
}

#[test]
fn traces_are_turned_on_and_off_and_counted() {
    let (models, files) = (repository(), tempfile::tempdir().unwrap());
    let file = files.path().join("trace.json");
    let server = Server::start(&[models.path()], &["--trace-file", file.to_str().unwrap()]);
    let set = |path: &str, body: Value| {
        let (status, text) = server.ask("POST", path, "", body.to_string().as_bytes());
        assert_eq!(status, 200, "{text}");
        serde_json::from_str::<Value>(&text).unwrap()
    };
    server.ask("POST", INFER, "", GOOD);
    let shown = set(
        "/v2/models/ident/trace/setting",
        json!({ "trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": "1", "trace_count": 2 }),
    );
    assert_eq!(
        shown,
        json!({ "trace_file": file.to_str().unwrap(), "trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": "1",
            "trace_count": "2", "log_frequency": "0", "trace_mode": "triton" })
    );
    for _ in 0..3 {
        assert_eq!(server.ask("POST", INFER, "", GOOD).0, 200);
    }
    let (_, all) = server.ask("GET", "/v2/trace/setting", "", b"");
    assert!(all.contains(r#""trace_level":["OFF"]"#), "{all}");
    // Two traces of four records each: head, timestamps, one input, one output.
    let found = trace_file(&file, 8);
    assert_eq!(found.len(), 8);
    assert_eq!(found[0], json!({ "id": 1, "model_name": "ident", "model_version": 1, "request_id": "a\"1" }));
    let moments = found[1]["timestamps"].as_array().unwrap();
    let names: Vec<&str> = moments.iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "REQUEST_START",
            "QUEUE_START",
            "COMPUTE_START",
            "COMPUTE_INPUT_END",
            "COMPUTE_OUTPUT_START",
            "COMPUTE_END",
            "REQUEST_END"
        ]
    );
    let times: Vec<u64> = moments.iter().map(|m| m["ns"].as_u64().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!(found[2]["activity"], "TENSOR_QUEUE_INPUT");
    assert_eq!((&found[2]["tensor"]["shape"], &found[2]["tensor"]["dtype"]), (&json!("1,16"), &json!("FP32")));
    assert_eq!(found[3]["activity"], "TENSOR_BACKEND_OUTPUT");
    assert_eq!(
        set("/v2/models/ident/trace/setting", json!({ "trace_count": null, "trace_level": null }))["trace_level"],
        json!(["OFF"])
    );
    for (body, part) in [
        (json!({ "trace_rate": "0" }), "trace_rate"),
        (json!({ "trace_file": "/f" }), "network"),
        (json!([1]), "object"),
    ] {
        let (status, text) = server.ask("POST", "/v2/trace/setting", "", body.to_string().as_bytes());
        assert!(status == 400 && text.contains(part), "{text}");
    }
    assert_eq!(server.ask("GET", "/v2/models/nobody/trace/setting", "", b"").0, 404);
}

#[test]
fn a_log_frequency_cuts_the_trace_file() {
    let (models, files) = (repository(), tempfile::tempdir().unwrap());
    let file = files.path().join("trace.json");
    let server = Server::start(
        &[models.path()],
        &["--trace-file", file.to_str().unwrap(), "--trace-level", "TIMESTAMPS", "--trace-rate", "1"],
    );
    assert_eq!(server.ask("POST", "/v2/trace/setting", "", br#"{"log_frequency":"2"}"#).0, 200);
    for _ in 0..5 {
        assert_eq!(server.ask("POST", INFER, "", GOOD).0, 200);
    }
    assert!(server.terminate().success());
    let entries = |path: &Path| serde_json::from_slice::<Vec<Value>>(&fs::read(path).unwrap()).unwrap().len();
    assert_eq!(entries(&files.path().join("trace.json.0")), 4);
    assert_eq!(entries(&files.path().join("trace.json.1")), 4);
    assert_eq!(entries(&file), 2);
}

/// A collector: the official service, which hands on what it is sent.
struct Collector(Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send(request.into_inner()).map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn collector() -> (SocketAddr, Receiver<ExportTraceServiceRequest>) {
    let (send, receive) = channel();
    let (told, address) = channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            told.send(listener.local_addr().unwrap()).unwrap();
            let service = TraceServiceServer::new(Collector(send));
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
    });
    (address.recv().unwrap(), receive)
}

fn spans(receive: &Receiver<ExportTraceServiceRequest>, count: usize) -> Vec<Span> {
    let mut found = Vec::new();
    while found.len() < count {
        let request = receive.recv_timeout(PATIENCE).unwrap();
        let scopes = request.resource_spans.into_iter().flat_map(|r| r.scope_spans);
        found.extend(scopes.flat_map(|s| s.spans));
    }
    found
}

fn attribute(span: &Span, key: &str) -> Option<any_value::Value> {
    span.attributes.iter().find(|a| a.key == key)?.value.as_ref()?.value.clone()
}

#[test]
fn a_collector_gets_a_span_per_request_with_its_parts() {
    let models = repository();
    let (address, receive) = collector();
    let endpoint = format!("http://{address}");
    let server = Server::start(&[models.path()], &["--otlp-endpoint", &endpoint, "--trace-rate", "1000000"]);
    let traceparent =
        |flag: &str| format!("traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flag}\r\n");
    // The first of a million is traced by the rate, an unsampled caller's never, a sampled caller's always.
    assert_eq!(server.ask("POST", INFER, &traceparent("00"), GOOD).0, 200);
    assert_eq!(server.ask("POST", INFER, &traceparent("01"), GOOD).0, 200);
    assert_eq!(server.ask("POST", "/v2/models/nobody/infer", &traceparent("01"), GOOD).0, 404);
    let found = spans(&receive, 4);
    assert_eq!(found.len(), 4);
    let one = |name: &str| found.iter().find(|s| s.name == name).unwrap();
    let request = one("infer ident");
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(hex(&request.trace_id), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(hex(&request.parent_span_id), "b7ad6b7169203331");
    assert_eq!(attribute(request, "model.version"), Some(any_value::Value::IntValue(1)));
    assert_eq!(attribute(request, "request.id"), Some(any_value::Value::StringValue("a\"1".to_owned())));
    assert_eq!(attribute(request, "request.batch_size"), Some(any_value::Value::IntValue(1)));
    let (queue, compute) = (one("queue"), one("compute"));
    for part in [queue, compute] {
        assert_eq!((&part.trace_id, &part.parent_span_id), (&request.trace_id, &request.span_id));
        assert!(part.start_time_unix_nano >= request.start_time_unix_nano);
        assert!(part.end_time_unix_nano <= request.end_time_unix_nano);
    }
    assert_eq!(queue.end_time_unix_nano, compute.start_time_unix_nano);
    let failed = one("infer nobody").status.clone().unwrap();
    assert!(failed.code == 2 && failed.message.contains("nobody"), "{failed:?}");
    assert!(server.terminate().success());
}

#[tokio::test]
async fn a_caller_over_grpc_is_the_parent_of_its_span() {
    let models = repository();
    let (address, receive) = collector();
    let endpoint = format!("http://{address}");
    let server = Server::start(&[models.path()], &["--otlp-endpoint", &endpoint, "--trace-rate", "1000000"]);
    let mut client = GrpcInferenceServiceClient::connect(format!("http://{}", server.grpc)).await.unwrap();
    let traced = |parent: &str, id: &str| {
        let mut request = Request::new(zeros("ident", id));
        request.metadata_mut().insert("traceparent", parent.parse().unwrap());
        request
    };
    // By the rate alone the first would be traced; a damaged parent is none.
    client.model_infer(traced("00-nonsense", "rate")).await.unwrap();
    client.model_infer(traced("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", "unsampled")).await.unwrap();
    client.model_infer(traced("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "unary")).await.unwrap();
    let mut stream = Request::new(tokio_stream::iter(vec![zeros("ident", "first"), zeros("ident", "second")]));
    let parent = "00-1af7651916cd43dd8448eb211c80319c-c7ad6b7169203331-01".parse().unwrap();
    stream.metadata_mut().insert("traceparent", parent);
    let answers = client.model_stream_infer(stream).await.unwrap().into_inner();
    assert_eq!(tokio_stream::StreamExt::collect::<Vec<_>>(answers).await.len(), 2);
    let found = spans(&receive, 12);
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let requests = found.iter().filter(|span| span.name == "infer ident").map(|span| {
        let Some(any_value::Value::StringValue(id)) = attribute(span, "request.id") else { panic!("{span:?}") };
        (id, (hex(&span.trace_id), hex(&span.parent_span_id)))
    });
    let requests: std::collections::BTreeMap<_, _> = requests.collect();
    let parent = |trace: &str, span: &str| (trace.to_owned(), span.to_owned());
    assert_eq!(requests.len(), 4, "{requests:?}");
    assert_eq!(requests["unary"], parent("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"));
    for id in ["first", "second"] {
        assert_eq!(requests[id], parent("1af7651916cd43dd8448eb211c80319c", "c7ad6b7169203331"));
    }
    assert_eq!(requests["rate"].1, "");
}

#[test]
fn a_collector_that_is_not_there_hurts_no_request() {
    let models = repository();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = format!("http://{nobody}");
    let server = Server::start(&[models.path()], &["--otlp-endpoint", &endpoint, "--trace-rate", "1"]);
    for _ in 0..200 {
        assert_eq!(server.ask("POST", INFER, "", GOOD).0, 200);
    }
    assert!(server.terminate().success());
}

#[test]
fn log_settings_act_on_the_log() {
    let (models, files) = (repository(), tempfile::tempdir().unwrap());
    let log = files.path().join("log");
    let server = Server::start_logging(&[models.path()], &[], &log);
    let reloads = |body: &str| {
        let (status, text) = server.ask("POST", "/v2/logging", "", body.as_bytes());
        assert_eq!(status, 200, "{text}");
        let before = lines(&log).len();
        assert_eq!(server.ask("POST", "/v2/repository/models/ident/load", "", b"").0, 200);
        lines(&log).into_iter().skip(before).filter(|l| l["message"] == "model loaded").count()
    };
    assert_eq!(reloads("{}"), 1);
    assert_eq!(reloads(r#"{"log_info":false}"#), 0);
    assert_eq!(reloads(r#"{"log_info":true,"log_verbose_level":1}"#), 1);
    let (_, shown) = server.ask("GET", "/v2/logging", "", b"");
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(
        shown,
        json!({ "log_file": "", "log_info": true, "log_warning": true, "log_error": true, "log_verbose_level": 1, "log_format": "ISO8601" })
    );
    for (body, part) in [
        (r#"{"log_file":"/f"}"#, "must not choose"),
        (r#"{"log_info":1}"#, "true or false"),
        (r#"{"log_verbose_level":-1}"#, "at least 0"),
        (r#"{"log_format":"default"}"#, "ISO8601"),
        (r#"{"log_pace":1}"#, "log_pace"),
    ] {
        let (status, text) = server.ask("POST", "/v2/logging", "", body.as_bytes());
        assert!(status == 400 && text.contains(part), "{text}");
    }
}

/// The number after `name` in the metrics.
fn metric(server: &Server, name: &str) -> Option<u64> {
    let (_, _, text) = support::ask(&server.metrics, "GET", "/metrics", "", b"");
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

fn file_bytes_max(server: &Server, current: Option<u64>) {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    prlimit(Some(Pid::from_child(&server.child)), Resource::Fsize, Rlimit { current, maximum: None }).unwrap();
}

#[test]
fn a_file_that_is_full_costs_counted_lines_and_traces_and_nothing_else() {
    let (models, files) = (repository(), tempfile::tempdir().unwrap());
    for format in ["json", "text"] {
        let (log, trace) = (files.path().join(format), files.path().join(format!("{format}.trace")));
        let arguments = ["--access-log", log.to_str().unwrap(), "--access-log-format", format, "--trace-file"];
        let traced = [trace.to_str().unwrap(), "--trace-level", "TIMESTAMPS", "--trace-rate", "1"];
        let server = Server::start(&[models.path()], &[arguments.as_slice(), &traced].concat());
        let ask = |count: u64| (0..count).for_each(|_| assert_eq!(server.ask("POST", INFER, "", GOOD).0, 200));
        let lost = |sink: &str| metric(&server, &format!("edgeward_telemetry_dropped_total{{sink=\"{sink}\"}}"));
        ask(20);
        trace_file(&trace, 40);
        // Neither limit is where a line or a record ends.
        file_bytes_max(&server, Some(8_001));
        ask(100);
        awaited("losses of both", || {
            Some(()).filter(|()| ["access_log", "trace_file"].iter().all(|s| lost(s) > Some(0)))
        });
        let whole = trace_file(&trace, 40).len();
        assert!(whole < 240, "the array is whole, and ends where the file was full");
        file_bytes_max(&server, None);
        ask(30);
        awaited("all lines and traces, or their loss", || {
            let lines = fs::read_to_string(&log).unwrap().lines().count() as u64;
            let traces = trace_file(&trace, 40).len() as u64 / 2;
            (lines + lost("access_log")? == 150 && traces + lost("trace_file")? == 150).then_some(())
        });
        for line in fs::read_to_string(&log).unwrap().lines() {
            let whole = match format {
                "json" => serde_json::from_str::<Value>(line).is_ok_and(|line| line["total_us"].is_u64()),
                _ => line.starts_with("20") && line.matches(" total_us=").count() == 1,
            };
            assert!(whole, "{line}");
        }
        assert!(server.terminate().success());
    }
}

//! Batches, priorities, deadlines, the response cache and warm-up, through the binary.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, io::Read as _, path::Path, thread};

use edgeward_graph::{DataType, Model};
use serde_json::Value;
use support::{Server, ask, identity, send, slow};

mod support;

/// A repository of one model `m` with this configuration.
fn repository(model: &Model, config: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("m/1")).unwrap();
    model.write(folder.path().join("m/1/model.onnx")).unwrap();
    fs::write(folder.path().join("m/config.pbtxt"), config).unwrap();
    folder
}

fn serve(folder: &Path) -> Server {
    Server::start(&[folder], &["--engine", "rten", "--threads", "1", "--cache-bytes", "1000000"])
}

const INFER: &str = "/v2/models/m/infer";

/// A request of `size` rows that hold `value`, with these parameters.
fn request(size: usize, value: usize, parameters: &str) -> Vec<u8> {
    let row = vec![value.to_string(); 16 * size].join(",");
    format!(
        r#"{{"parameters":{{{parameters}}},"inputs":[{{"name":"INPUT0","shape":[{size},16],"datatype":"FP32","data":[{row}]}}]}}"#
    )
    .into_bytes()
}

/// The first number and the count of numbers of an answer.
fn answer(body: &str) -> (usize, usize) {
    let body: Value = serde_json::from_str(body).unwrap();
    let data = body["outputs"][0]["data"].as_array().unwrap();
    (data[0].as_f64().unwrap() as usize, data.len())
}

fn statistics(server: &Server) -> Value {
    let (status, body) = server.ask("GET", "/v2/models/m/stats", "", b"");
    assert_eq!(status, 200, "{body}");
    serde_json::from_str::<Value>(&body).unwrap()["model_stats"][0].clone()
}

fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}

/// Waits until the number of requests that the server holds is one that `wanted` takes.
fn await_pending(server: &Server, wanted: impl Fn(u64) -> bool) {
    let name = "nv_inference_pending_request_count{model=\"m\",version=\"1\"} ";
    let pending = || {
        let (_, _, text) = ask(&server.metrics, "GET", "/metrics", "", b"");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.parse().ok());
        line.unwrap_or(u64::MAX)
    };
    support::until("the number of requests that wait", || wanted(pending()));
}

#[test]
fn batches_never_exceed_the_maximum_and_every_caller_gets_its_own_rows() {
    let config =
        "max_batch_size: 4 dynamic_batching { max_queue_delay_microseconds: 1000 } instance_group { count: 1 }";
    let models = repository(&slow(900), config);
    let server = serve(models.path());
    thread::scope(|scope| {
        for caller in 1..=24usize {
            let address = &server.http;
            scope.spawn(move || {
                let size = caller % 3 + 1;
                let (status, _, body) = ask(address, "POST", INFER, "", &request(size, caller, ""));
                assert_eq!((status, answer(&body)), (200, (caller, 16 * size)), "{body}");
            });
        }
    });
    let stats = statistics(&server);
    let sizes: Vec<u64> = stats["batch_stats"].as_array().unwrap().iter().map(|b| number(&b["batch_size"])).collect();
    assert!(sizes.iter().all(|size| (1..=4).contains(size)), "{stats}");
    assert_eq!(number(&stats["inference_count"]), (1..=24).map(|c| c % 3 + 1).sum::<u64>());
    assert!(number(&stats["execution_count"]) < 24, "requests were joined: {stats}");
    let (status, body) = server.ask("POST", INFER, "", &request(5, 1, ""));
    assert!(status == 400 && body.contains("at most 4"), "{body}");
}

#[test]
fn a_high_priority_overtakes_and_late_requests_are_refused() {
    let config = "max_batch_size: 1 instance_group { count: 1 } dynamic_batching { priority_levels: 2 default_priority_level: 2 \
        default_queue_policy { allow_timeout_override: true max_queue_size: 3 } }";
    let models = repository(&slow(2500), config);
    let server = serve(models.path());
    let post = |parameters: &str| send(&server.http, "POST", INFER, "", &request(1, 7, parameters));
    assert_eq!(server.ask("POST", INFER, "", &request(1, 1, "")).0, 200);
    let first = post("");
    await_pending(&server, |n| n >= 1);
    let mut low: Vec<_> = (0..10).map(|_| post("")).collect();
    low.push(first);
    let (status, body) = server.ask("POST", INFER, "", &request(1, 7, r#""priority":9"#));
    assert!(status == 400 && body.contains("levels 1 to 2"), "{body}");
    let (status, body) = server.ask("POST", INFER, "", &request(1, 7, r#""priority":1,"timeout":1"#));
    assert!((status == 429 && body.contains("busy")) || status == 504, "{status} {body}");
    let (status, body) = server.ask("POST", INFER, "", &request(1, 7, r#""priority":1"#));
    assert_eq!(status, 200, "{body}");
    let left =
        low.iter().filter(|stream| stream.set_nonblocking(true).is_ok() && stream.peek(&mut [0]).is_err()).count();
    assert!(left > 0, "all others were answered before the high priority was");
    let mut full = 0;
    for stream in &mut low {
        let mut text = String::new();
        stream.set_nonblocking(false).unwrap();
        stream.read_to_string(&mut text).unwrap();
        if text.starts_with("HTTP/1.1 429") {
            assert!(text.to_lowercase().contains("retry-after: ") && text.contains("3 requests"), "{text}");
            full += 1;
        } else {
            assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        }
    }
    assert!(full > 0, "three may wait, ten came");
}

#[test]
fn who_disconnects_leaves_the_queue() {
    let models = repository(&slow(1800), "max_batch_size: 1 instance_group { count: 1 } dynamic_batching { }");
    let server = serve(models.path());
    let first = send(&server.http, "POST", INFER, "", &request(1, 1, ""));
    await_pending(&server, |n| n >= 1);
    let waiting: Vec<_> = (0..200).map(|_| send(&server.http, "POST", INFER, "", &request(1, 2, ""))).collect();
    await_pending(&server, |n| n > 100);
    drop(waiting);
    await_pending(&server, |n| n == 0);
    drop(first);
    let runs = number(&statistics(&server)["execution_count"]);
    assert!(runs < 100, "{runs} runs, of which one had a caller");
}

#[test]
fn the_cache_answers_again_and_forgets_at_a_reload() {
    let models = repository(&identity(DataType::Float32), "response_cache { enable: true }");
    let server = serve(models.path());
    for _ in 0..3 {
        let (status, body) = server.ask("POST", INFER, "", &request(2, 5, ""));
        assert_eq!((status, answer(&body)), (200, (5, 32)), "{body}");
    }
    assert_eq!(server.ask("POST", INFER, "", &request(2, 6, "")).0, 200);
    let stats = statistics(&server);
    let count = |name: &str| number(&stats["inference_stats"][name]["count"]);
    assert_eq!(
        (number(&stats["execution_count"]), count("cache_hit"), count("cache_miss"), count("success")),
        (2, 2, 2, 4)
    );
    assert_eq!(server.ask("POST", "/v2/repository/models/m/load", "", b"").0, 200);
    assert_eq!(server.ask("POST", INFER, "", &request(2, 5, "")).0, 200);
    assert_eq!(number(&statistics(&server)["execution_count"]), 1, "the reloaded model ran");
}

#[test]
fn warm_up_runs_first_and_its_failure_names_the_sample() {
    let sample = |key: &str, dims: &str, data: &str| {
        format!(
            "max_batch_size: 8 model_warmup [ {{ name: \"s\" batch_size: 2 count: 3 \
             inputs {{ key: \"{key}\" value {{ data_type: TYPE_FP32 dims: [ {dims} ] {data} }} }} }} ]"
        )
    };
    let model = identity(DataType::Float32);
    let models = repository(&model, &sample("INPUT0", "16", "input_data_file: \"rows\""));
    fs::create_dir(models.path().join("m/warmup")).unwrap();
    fs::write(models.path().join("m/warmup/rows"), [0u8; 128]).unwrap();
    let server = serve(models.path());
    for (config, part) in [
        (sample("INPUT0", "16", "input_data_file: \"../config.pbtxt\""), "../config.pbtxt"),
        (sample("INPUT0", "17", "zero_data: true"), "17"),
        (sample("X", "16", "random_data: true"), "`X`"),
        (sample("INPUT0", "-1", "zero_data: true"), "-1"),
        (sample("INPUT0", "16", ""), "zero_data"),
    ] {
        fs::write(models.path().join("m/config.pbtxt"), &config).unwrap();
        let (status, body) = server.ask("POST", "/v2/repository/models/m/load", "", b"");
        assert!(status == 400 && body.contains("warm-up `s`") && body.contains(part), "{part}: {status} {body}");
        assert_eq!(server.ask("POST", INFER, "", &request(1, 1, "")).0, 200, "the old version serves on");
    }
    for data in ["zero_data: true", "random_data: true"] {
        fs::write(models.path().join("m/config.pbtxt"), sample("INPUT0", "16", data)).unwrap();
        let (status, body) = server.ask("POST", "/v2/repository/models/m/load", "", b"");
        assert_eq!(status, 200, "{body}");
    }
}

#[test]
fn a_batch_whose_callers_are_all_gone_ends() {
    if std::env::var_os("EDGEWARD_ALL_ENGINES").is_none() {
        return println!("skipped: EDGEWARD_ALL_ENGINES is not set, and rten ends no run early");
    }
    // A run takes minutes.
    let models = repository(
        &support::slow_chain(900, 6000),
        "backend: \"onnxruntime\" max_batch_size: 8 dynamic_batching {} instance_group { count: 1 }",
    );
    let log = models.path().with_extension("log");
    let server = Server::start_logging_details(&[models.path()], &["--threads", "1"], &log);
    let call = |size| send(&server.http, "POST", INFER, "", &request(size, 1, ""));
    let logged = |text: &str| fs::read_to_string(&log).unwrap().contains(text);
    let first = call(1);
    support::until("the first run", || logged(r#""requests":1"#));
    let (second, third) = (call(1), call(1));
    await_pending(&server, |pending| pending == 3);
    // The first run ends, the batch of the two others begins, and nobody is left who waits for it.
    drop(first);
    support::until("the batch of two", || logged(r#""requests":2"#));
    drop(second);
    await_pending(&server, |pending| pending == 1);
    assert!(!logged("all its callers have gone"), "one still waits");
    drop(third);
    support::until("the early end of a batch", || logged("a batch ends early: all its callers have gone"));
    fs::remove_file(log).unwrap();
}

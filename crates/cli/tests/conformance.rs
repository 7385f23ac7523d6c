//! The listeners against programs that judge them: h2spec, grpcurl, an OpenAPI validator, and the curl lines of the docs.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;
use support::{Server, repository};

mod support;

/// Section and case of h2spec that fail, with the reason. This list may only shrink.
const H2SPEC_FAILS: &[(&str, &str, &str)] = &[(
    "http2/3.5",
    "Sends invalid connection preface",
    "the port speaks HTTP/1.1 as well: what is no HTTP/2 preface is answered as HTTP/1.1, by a 400, and closed",
)];

/// Repetitions that tell a failure from a race.
const RUNS_MAX: usize = 8;

/// Section and name of each case that failed.
fn failures(xml: &str) -> BTreeSet<(String, String)> {
    let (mut cases, mut failed) = (0, BTreeSet::new());
    for case in xml.split("<testcase").skip(1) {
        cases += 1;
        let attribute = |name: &str| case.split(&format!("{name}=\"")).nth(1).and_then(|v| v.split('"').next());
        let inner = case.split("</testcase>").next().unwrap_or_default();
        if inner.contains("<failure") || inner.contains("<error") {
            failed.insert((attribute("package").unwrap().to_owned(), attribute("classname").unwrap().to_owned()));
        }
    }
    assert!(cases > 140, "{cases} cases: {xml}");
    failed
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A program of the test environment.
fn tool(name: &str) -> Option<Command> {
    let path = root().join("target/test-env/bin").join(name);
    if !path.exists() {
        println!("skipped: no `{name}` (`cargo xtask test` builds it where Go is)");
        return None;
    }
    Some(Command::new(path))
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn h2spec_finds_only_what_is_listed() {
    let Some(mut h2spec) = tool("h2spec") else { return };
    let (models, files) = (repository(), tempfile::tempdir().unwrap());
    let server = Server::start(&[models.path()], &["--engine", "rten"]);
    let (host, port) = server.http.split_once(':').unwrap();
    let report = files.path().join("report.xml");
    let mut run = || {
        let arguments = ["generic", "hpack", "http2", "-h", host, "-p", port, "-o", "5", "-P", "/v2", "-j"];
        let output = h2spec.args(arguments).arg(&report).output().unwrap();
        let xml = std::fs::read_to_string(&report).unwrap_or_else(|e| panic!("{e}: {}", text(&output)));
        failures(&xml)
    };
    // Some cases send a frame that is wrong while their stream is open, and an answer that is quicker closes it
    // before. What is wrong with the server fails every time.
    let mut failed = run();
    for _ in 0..RUNS_MAX {
        if failed.len() <= H2SPEC_FAILS.len() {
            break;
        }
        let again = run();
        failed.retain(|case| again.contains(case));
    }
    let shown: Vec<String> = failed.iter().map(|(section, name)| format!("{section}: {name}")).collect();
    let known: BTreeSet<(String, String)> =
        H2SPEC_FAILS.iter().map(|(section, name, _)| ((*section).to_owned(), (*name).to_owned())).collect();
    assert!(failed == known, "expected {known:?}, found {shown:#?}");
    assert_eq!(server.ask("GET", "/v2/health/live", "", b"").0, 200, "it serves on");
}

#[test]
fn grpcurl_finds_its_way_by_reflection() {
    let models = repository();
    let server = Server::start(&[models.path()], &["--engine", "rten"]);
    let call = |arguments: &[&str]| {
        let mut grpcurl = tool("grpcurl")?;
        let (options, names) =
            arguments.split_at(arguments.len().saturating_sub(if arguments[0] == "-d" { 1 } else { arguments.len() }));
        let output = grpcurl.arg("-plaintext").args(options).arg(&server.grpc).args(names).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        Some(text(&output))
    };
    let Some(services) = call(&["list"]) else { return };
    for service in ["inference.GRPCInferenceService", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"] {
        assert!(services.lines().any(|line| line == service), "{services}");
    }
    let described = call(&["describe", "inference.GRPCInferenceService.ModelInfer"]).unwrap();
    assert!(described.contains(".inference.ModelInferRequest"), "{described}");
    let json = |arguments: &[&str]| serde_json::from_str::<Value>(&call(arguments).unwrap()).unwrap();
    assert_eq!(json(&["grpc.health.v1.Health/Check"])["status"], "SERVING");
    let metadata = json(&["inference.GRPCInferenceService/ServerMetadata"]);
    assert_eq!(metadata["name"], "edgeward");
    for extension in ["trace", "logging", "statistics"] {
        assert!(metadata["extensions"].as_array().unwrap().iter().any(|e| e == extension), "{metadata}");
    }
    let request = r#"{"model_name":"ident","id":"x","inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,16],
        "contents":{"fp32_contents":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]}}]}"#;
    let answer = json(&["-d", request, "inference.GRPCInferenceService/ModelInfer"]);
    assert_eq!((&answer["id"], &answer["outputs"][0]["contents"]["fp32Contents"][15]), (&"x".into(), &15.into()));
}

#[test]
fn the_openapi_document_is_valid_and_every_route_of_it_answers() {
    let models = repository();
    let server = Server::start(&[models.path()], &["--engine", "rten"]);
    let (status, body) = server.ask("GET", "/v2/openapi.json", "", b"");
    assert_eq!(status, 200);
    let document: Value = serde_json::from_str(&body).unwrap();
    let mut routes = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path = path.replace("{model}", "nobody").replace("{version}", "1").replace("{region}", "r");
        for method in methods.as_object().unwrap().keys() {
            routes += 1;
            let (status, body) = server.ask(&method.to_uppercase(), &path, "", b"");
            assert!(status != 405 && !body.contains("no such path"), "{method} {path}: {status} {body}");
        }
        let (status, body) = server.ask("DELETE", &path, "", b"");
        assert!(status == 405 && body.contains("error"), "DELETE {path}: {status} {body}");
    }
    assert!(routes > 20, "{routes} routes");
    let Some(python) = std::env::var_os("EDGEWARD_TEST_PYTHON") else {
        return println!("skipped: EDGEWARD_TEST_PYTHON is not set (`cargo xtask test` sets it)");
    };
    if !Command::new(&python).args(["-c", "import openapi_spec_validator"]).output().unwrap().status.success() {
        return println!("skipped: no openapi-spec-validator (`cargo xtask test` installs it)");
    }
    let file = models.path().join("openapi.json");
    std::fs::write(&file, &body).unwrap();
    let output = Command::new(python).args(["-m", "openapi_spec_validator"]).arg(file).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn the_curl_lines_of_the_docs_work() {
    let models = repository();
    let trace = models.path().with_extension("trace.json");
    let server = Server::start(&[models.path()], &["--engine", "rten", "--trace-file", trace.to_str().unwrap()]);
    let page = std::fs::read_to_string(root().join("docs/serving.md")).unwrap();
    let lines: Vec<&str> = page.lines().filter(|line| line.starts_with("curl ")).collect();
    assert!(lines.len() >= 6, "{lines:?}");
    for line in lines {
        let line = line.replacen("curl ", "curl --fail-with-body -sS ", 1).replace("localhost:8000", &server.http);
        let output = Command::new("sh").args(["-c", &line]).output().unwrap();
        assert!(output.status.success() && !output.stdout.is_empty(), "{line}: {}", text(&output));
    }
    let _ = std::fs::remove_file(trace);
}

//! A server that asks who calls: each way to be recognised and each way to be refused, through the binary, `curl` and Triton's clients.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use support::{Server, repository, trust::Trust};

mod support;

const INFER: &str = "/v2/models/ident/infer";

/// A request to `ident` with one row.
fn row(values: [f32; 16]) -> String {
    json!({ "inputs": [{ "name": "INPUT0", "shape": [1, 16], "datatype": "FP32", "data": values }] }).to_string()
}

fn some_row() -> String {
    row(std::array::from_fn(|n| n as f32))
}

fn url(server: &Server, path: &str) -> String {
    format!("https://{}{path}", server.http)
}

/// A policy that lets `NAME` use `ident` on these terms.
fn permit(name: &str, terms: &str) -> String {
    format!(
        "@id(\"{name}\")\n{terms}\npermit (principal == Workload::\"spiffe://edgeward.local/{name}\", \
         action in [Action::\"use\", Action::\"inspect\"], resource in Model::\"ident\") when {{ principal.strength >= 2 }};\n"
    )
}

/// Waits until `state` holds.
fn until(what: &str, mut state: impl FnMut() -> bool) {
    for _ in 0..400 {
        if state() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(25));
    }
    panic!("{what} did not come about");
}

#[test]
fn who_is_not_recognised_learns_nothing() {
    let (models, trust) = (repository(), Trust::init(&["ident"]));
    let server = trust.serve(&[models.path()]);
    let mut answers = Vec::new();
    for path in
        ["/", "/v2", "/v2/health/live", "/v2/models/ident", "/v2/models/nothing", "/nowhere", "/v2/trust/policies"]
    {
        let answer = trust.curl("", &url(&server, path), &[]);
        answers.push((answer.status, answer.body));
    }
    let metrics = trust.curl("", &format!("https://{}/metrics", server.metrics), &[]);
    answers.push((metrics.status, metrics.body));
    answers.dedup();
    assert_eq!(answers, [(401, r#"{"error":"not authenticated"}"#.to_owned())]);

    // A caller who is verified but may nothing cannot tell what exists either.
    trust.issue("guest");
    let mut answers: Vec<_> =
        ["/v2/models/ident", "/v2/models/nothing", "/v2/models/ident/versions/7", "/nowhere", "/v2/trust/audit"]
            .map(|path| trust.curl("guest", &url(&server, path), &[]))
            .map(|answer| (answer.status, answer.body))
            .to_vec();
    answers.dedup();
    assert_eq!(answers, [(403, r#"{"error":"denied"}"#.to_owned())]);
    assert_eq!(trust.curl("guest", &url(&server, "/v2/health/ready"), &[]).status, 200);

    // Plain HTTP finds nobody.
    let plain = Command::new("curl").args(["-sS", &format!("http://{}/v2/health/live", server.http)]).output().unwrap();
    assert!(!plain.status.success() && plain.stdout.is_empty());
    server.terminate();
    let records = trust.audit();
    let denied = records.iter().filter(|record| record["decision"] == "deny").count();
    assert_eq!(denied, 8 + 5, "{records:#?}");
}

#[test]
fn only_tls_1_3_is_spoken() {
    let (models, trust) = (repository(), Trust::init(&[]));
    let server = trust.serve(&[models.path()]);
    let roots = trust.folder().join("roots.pem");
    for (address, protocol) in [(&server.http, "h2"), (&server.grpc, "h2"), (&server.metrics, "http/1.1")] {
        let handshake = |version: &str| {
            let mut command = Command::new("openssl");
            command.args([
                "s_client",
                "-connect",
                address,
                version,
                "-alpn",
                protocol,
                "-verify_return_error",
                "-CAfile",
            ]);
            let output = command.arg(&roots).stdin(Stdio::null()).output().unwrap();
            (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let (done, text) = handshake("-tls1_3");
        assert!(
            done && text.contains("Verify return code: 0") && text.contains(&format!("ALPN protocol: {protocol}")),
            "{text}"
        );
        assert!(!handshake("-tls1_2").0, "TLS 1.2 on {address}");
    }
}

#[test]
fn certificates_of_others_and_ended_ones_are_refused() {
    let (models, trust, other) = (repository(), Trust::init(&["ident"]), Trust::init(&["ident"]));
    let server = trust.serve(&[models.path()]);
    // The same name, of another authority with the same trust domain.
    for end in ["pem", "key"] {
        fs::copy(other.folder().join(format!("admin.{end}")), trust.folder().join(format!("foreign.{end}"))).unwrap();
    }
    let answer = trust.curl("foreign", &url(&server, "/v2/models/ident"), &[]);
    assert_eq!((answer.status, answer.body.as_str()), (401, r#"{"error":"not authenticated"}"#));
    // A certificate that ends while the connection is there: each call looks anew.
    let (folder, out) = (trust.folder(), trust.folder().join("short"));
    let arguments =
        ["trust", "issue", folder.to_str().unwrap(), "short", "--lifetime", "2s", "--out", out.to_str().unwrap()];
    support::trust::edgeward(&arguments);
    assert_eq!(trust.curl("short", &url(&server, "/v2/health/live"), &[]).status, 200);
    until("the end of the certificate", || trust.curl("short", &url(&server, "/v2/health/live"), &[]).status == 401);
}

#[test]
fn tritons_clients_come_in_with_a_certificate_and_are_cut_when_it_is_revoked() {
    let Some(python) = std::env::var_os("EDGEWARD_TEST_PYTHON") else {
        println!("skipped: EDGEWARD_TEST_PYTHON names no interpreter with tritonclient (`cargo xtask test` sets it)");
        return;
    };
    let (models, trust) = (repository(), Trust::init(&["ident"]));
    trust.issue("ward");
    trust.policy("ward.cedar", &permit("ward", ""));
    let server = trust.serve(&[models.path()]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/clients/trusted.py");
    let mut client = Command::new(python)
        .arg(script)
        .args([&server.http, &server.grpc])
        .arg(trust.folder())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The script holds a stream open and says so; then its certificate is revoked.
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(client.stdout.take().unwrap()));
    let open = lines.next().unwrap().unwrap();
    assert_eq!(open, "stream is open");
    let folder = trust.folder();
    support::trust::edgeward(&["trust", "revoke", folder.to_str().unwrap(), "ward", "--reason", "lost"]);
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert!(client.wait().unwrap().success(), "{rest:?}");
    assert_eq!(rest, ["cut: denied"]);
    assert_eq!(trust.curl("ward", &url(&server, "/v2/health/live"), &[]).status, 403);
    server.terminate();
    let records = trust.audit();
    let cut = records.iter().find(|record| record["action"] == "cut").unwrap();
    assert_eq!((&cut["principal"], &cut["reason"]), (&json!("spiffe://edgeward.local/ward"), &json!("revoked")));
}

#[test]
fn terms_of_a_policy_hold() {
    let (models, trust) = (repository(), Trust::init(&["ident"]));
    for (name, terms) in [
        ("rounded", "@round(\"1\")"),
        ("top", "@output(\"top_k=2\")"),
        ("labels", "@output(\"top_k=1,labels\")"),
        ("budget", "@query_budget(\"2/day\")"),
        ("small", "@request_bytes(\"100\")"),
        ("batch", "@query_budget(\"2/day\")"),
    ] {
        trust.issue(name);
        trust.policy(&format!("{name}.cedar"), &permit(name, terms));
    }
    let server = trust.serve(&[models.path()]);
    let mut values = [0.0; 16];
    (values[3], values[7], values[9]) = (0.333, 0.911, 0.1);
    let body = row(values);
    let ask = |who: &str| trust.curl(who, &url(&server, INFER), &["-d", &body]);
    let output = |who: &str| ask(who).json()["outputs"][0].clone();
    assert_eq!(output("admin")["data"][7].as_f64().unwrap() as f32, 0.911);
    assert_eq!(output("rounded")["data"][7].as_f64().unwrap() as f32, 0.9);
    let top = output("top");
    assert_eq!((&top["datatype"], &top["data"]), (&json!("BYTES"), &json!(["0.911000:7", "0.333000:3"])));
    assert_eq!(output("labels")["data"], json!(["7"]));
    assert_eq!([ask("budget").status, ask("budget").status], [200, 200]);
    let spent = ask("budget");
    assert_eq!(spent.status, 429, "{}", spent.body);
    assert!(spent.head.to_lowercase().contains("retry-after: "), "{}", spent.head);
    assert_eq!(ask("small").status, 429);
    // Rows of one request are queries too.
    let rows = json!({ "inputs": [{ "name": "INPUT0", "shape": [3, 16], "datatype": "FP32", "data": vec![0.5; 48] }] });
    let batch = trust.curl("batch", &url(&server, INFER), &["-d", &rows.to_string()]);
    assert_eq!(batch.status, 429, "{}", batch.body);
    assert_eq!(ask("batch").status, 200, "a batch that is refused counts as one");
    let metrics = trust.curl("admin", &format!("https://{}/metrics", server.metrics), &[]).body;
    server.terminate();
    let records = trust.audit();
    let of = |who: &str| {
        let principal = json!(format!("spiffe://edgeward.local/{who}"));
        let records = records.iter().filter(|record| record["principal"] == principal);
        records.map(|record| (record["decision"].clone(), record["context"]["limit"].clone())).collect::<Vec<_>>()
    };
    let (allowed, spent) = ((json!("allow"), Value::Null), (json!("deny"), json!("QueryBudget(Day)")));
    assert_eq!(of("budget"), [allowed.clone(), allowed.clone(), spent.clone()]);
    assert_eq!(of("batch"), [spent, allowed]);
    // What was counted is what was written: the call for the metrics is counted when it is answered.
    let count = |decision: &str| {
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix(&format!("edgeward_trust_decisions_total{{decision=\"{decision}\"}} ")));
        line.unwrap().parse::<usize>().unwrap()
    };
    let written = records.iter().filter(|record| record["decision"] == "allow").count();
    assert_eq!((count("allowed"), count("limited")), (written - 1, 3));
}

#[test]
fn changed_policies_are_in_force_at_once_and_broken_ones_are_not() {
    let (models, trust) = (repository(), Trust::init(&["ident"]));
    trust.issue("ward");
    let server = trust.serve(&[models.path()]);
    let status = |path: &str| trust.curl("ward", &url(&server, path), &[]).status;
    assert_eq!(status("/v2/models/ident"), 403);
    trust.policy("ward.cedar", &permit("ward", ""));
    until("the new policy", || status("/v2/models/ident") == 200);
    trust.policy("ward.cedar", "permit (principal, action");
    let log = || fs::read_to_string(trust.log()).unwrap();
    until("the word of the broken policy", || log().contains("those before stay in force"));
    assert_eq!(status("/v2/models/ident"), 200);
    // By the API: a wrong set is refused with its place, a right one holds at once.
    let post = |set: Value| trust.curl("admin", &url(&server, "/v2/trust/policies"), &["-d", &set.to_string()]);
    let refused =
        post(json!({ "policies": { "a.cedar": "permit (principal, action == Action::\"nothing\", resource);" } }));
    assert_eq!(refused.status, 400);
    assert!(refused.body.contains("a.cedar:1"), "{}", refused.body);
    let admin = "permit (principal == Workload::\"spiffe://edgeward.local/admin\", action, resource);";
    assert_eq!(post(json!({ "policies": { "a.cedar": admin } })).status, 200);
    assert_eq!(status("/v2/models/ident"), 403);
}

/// A key for proofs of possession (RFC 9449).
struct Prover {
    key: EcdsaKeyPair,
    jwk: Value,
}

impl Prover {
    fn new() -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let point = key.public_key().as_ref();
        let (x, y) = (BASE64URL.encode(&point[1..33]), BASE64URL.encode(&point[33..]));
        let jwk = json!({ "kty": "EC", "crv": "P-256", "x": x, "y": y });
        Self { key, jwk }
    }

    fn proof(&self, method: &str, url: &str, token: Option<&str>, id: &str) -> String {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let head = json!({ "typ": "dpop+jwt", "alg": "ES256", "jwk": self.jwk });
        let mut claims = json!({ "htm": method, "htu": url, "iat": now, "jti": id });
        if let Some(token) = token {
            claims["ath"] = json!(BASE64URL.encode(Sha256::digest(token)));
        }
        let text = format!("{}.{}", BASE64URL.encode(head.to_string()), BASE64URL.encode(claims.to_string()));
        let signature = self.key.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
        format!("{text}.{}", BASE64URL.encode(signature))
    }
}

/// The form of an exchange of the connection's certificate.
fn exchange(trust: &Trust, who: &str) -> [String; 6] {
    let pem = fs::read(trust.folder().join(format!("{who}.pem"))).unwrap();
    let output =
        Command::new("openssl").args(["x509", "-outform", "DER"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = output.unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), &pem).unwrap();
    let thumbprint = BASE64URL.encode(Sha256::digest(child.wait_with_output().unwrap().stdout));
    [
        "--data-urlencode".to_owned(),
        "grant_type=urn:ietf:params:oauth:grant-type:token-exchange".to_owned(),
        "--data-urlencode".to_owned(),
        "subject_token_type=urn:edgeward:params:token-type:client-certificate".to_owned(),
        "--data-urlencode".to_owned(),
        format!("subject_token={thumbprint}"),
    ]
}

#[test]
fn a_session_is_of_use_to_the_key_that_it_is_bound_to() {
    let (models, trust) = (repository(), Trust::init(&["ident"]));
    trust.issue("thief");
    let server = trust.serve(&[models.path()]);
    let token_url = url(&server, "/v2/trust/token");
    let form = exchange(&trust, "admin");
    let form: Vec<&str> = form.iter().map(String::as_str).collect();
    let opened = trust.curl("admin", &token_url, &form);
    assert_eq!(opened.status, 200, "{}", opened.body);
    assert!(opened.head.to_lowercase().contains("cache-control: no-store"));
    let opened = opened.json();
    assert_eq!(opened["token_type"], "Bearer");
    let token = opened["access_token"].as_str().unwrap().to_owned();
    let bearer = format!("authorization: Bearer {token}");
    let ask = |who: &str, headers: &[&str]| {
        let arguments: Vec<&str> = headers.iter().flat_map(|header| ["-H", header]).collect();
        trust.curl(who, &url(&server, "/v2/models/ident"), &arguments).status
    };
    assert_eq!(ask("admin", &[&bearer]), 200);
    // Stolen: by somebody with a certificate of their own, by somebody with none, and with a proof of another key.
    assert_eq!(ask("thief", &[&bearer]), 401);
    assert_eq!(ask("", &[&bearer]), 401);
    let thief = Prover::new();
    let resource = url(&server, "/v2/models/ident");
    let dpop = |token: &str| format!("authorization: DPoP {token}");
    let proof = |prover: &Prover, method: &str, url: &str, token: Option<&str>, id: &str| {
        format!("dpop: {}", prover.proof(method, url, token, id))
    };
    assert_eq!(ask("", &[&dpop(&token), &proof(&thief, "GET", &resource, Some(&token), "1")]), 401);

    // The same with a key that the client proves with each request, over connections without a certificate.
    let prover = Prover::new();
    let opening = proof(&prover, "POST", &token_url, None, "2");
    let opened = trust.curl("admin", &token_url, &[&["-H", &opening][..], &form].concat());
    assert_eq!((opened.status, &opened.json()["token_type"]), (200, &json!("DPoP")));
    let token = opened.json()["access_token"].as_str().unwrap().to_owned();
    let used = proof(&prover, "GET", &resource, Some(&token), "3");
    assert_eq!(ask("", &[&dpop(&token), &used]), 200);
    assert_eq!(ask("", &[&dpop(&token), &used]), 401, "a proof counts once");
    assert_eq!(ask("", &[&dpop(&token), &proof(&thief, "GET", &resource, Some(&token), "4")]), 401);
    let elsewhere = proof(&prover, "GET", "https://other.example/v2/models/ident", Some(&token), "5");
    assert_eq!(ask("", &[&dpop(&token), &elsewhere]), 401);
    assert_eq!(ask("", &[&format!("authorization: Bearer {token}")]), 401, "a token without its proof");
    // A proof for another server, whose name the caller puts into `Host`.
    let lured = proof(&prover, "GET", "https://other.example/v2/models/ident", Some(&token), "6");
    assert_eq!(ask("", &[&dpop(&token), &lured, "host: other.example"]), 401);

    let revoke = |what: Value| trust.curl("admin", &url(&server, "/v2/trust/revocations"), &["-d", &what.to_string()]);
    assert_eq!(revoke(json!({ "everything": true })).status, 400);
    assert_eq!(revoke(json!({ "principal": "spiffe://edgeward.local/nobody" })).status, 200);
    let answer = revoke(json!({ "principal": "spiffe://edgeward.local/admin" }));
    // The revocation cuts whoever makes it, too.
    assert!([200, 403].contains(&answer.status), "{}", answer.body);
    assert_eq!(ask("admin", &[]), 403);
    server.terminate();
    let records = trust.audit();
    assert!(records.iter().any(|record| record["action"] == "exchange" && record["decision"] == "allow"));
    let text = serde_json::to_string(&records).unwrap();
    assert!(!text.contains(&token) && !text.contains("eyJ"), "a token stands in the log");
}

#[test]
fn the_log_tells_of_each_call_by_digest() {
    let (models, trust) = (repository(), Trust::init(&["ident"]));
    let server = trust.serve(&[models.path()]);
    let body = some_row();
    assert_eq!(trust.curl("admin", &url(&server, INFER), &["-d", &body]).status, 200);
    assert_eq!(trust.curl("admin", &url(&server, "/v2/repository/models/ident/unload"), &["-X", "POST"]).status, 200);
    server.terminate();
    let records = trust.audit();
    let digest: String = Sha256::digest(body.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    let infer = &records[0];
    assert_eq!(infer["digests"]["request"], json!(digest));
    assert_eq!(infer["resource"], "ModelVersion::ident/1");
    assert_eq!(infer["policies"], json!(["admin"]));
    assert_eq!((&records[1]["kind"], &records[1]["action"]), (&json!("admin"), &json!("unload")));
    // What another policy would have said of the same calls.
    trust.policy("no.cedar", "forbid (principal, action == Action::\"unload\", resource);");
    let (policies, log) = (trust.folder().join("policies"), trust.folder().join("audit"));
    let arguments =
        ["trust", "policy", "simulate", policies.to_str().unwrap(), "--against", log.to_str().unwrap(), "--json"];
    let simulated: Value = serde_json::from_slice(&support::trust::edgeward(&arguments).stdout).unwrap();
    assert_eq!((&simulated["requests"], &simulated["newly_denied"]), (&json!(2), &json!(1)));
    assert_eq!(simulated["changes"][0]["request"]["action"], "unload");
}

/// Over gRPC as over REST's binary form: the digest is that of the tensors' bytes, however a message holds them.
#[test]
fn typed_and_raw_tensors_of_grpc_have_the_same_digest() {
    use edgeward_serve::proto::{InferTensorContents, ModelInferRequest, model_infer_request::InferInputTensor};
    let (models, trust) = (repository(), Trust::init(&["ident"]));
    let server = trust.serve(&[models.path()]);
    let values: Vec<f32> = (0..16).map(|n| n as f32).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let input = |contents| InferInputTensor {
        name: "INPUT0".to_owned(),
        datatype: "FP32".to_owned(),
        shape: vec![1, 16],
        contents,
        ..InferInputTensor::default()
    };
    let typed = InferTensorContents { fp32_contents: values, ..InferTensorContents::default() };
    for (inputs, raw) in [(vec![input(Some(typed))], vec![]), (vec![input(None)], vec![bytes.clone().into()])] {
        let request = ModelInferRequest {
            model_name: "ident".to_owned(),
            inputs,
            raw_input_contents: raw,
            ..ModelInferRequest::default()
        };
        let message = prost::Message::encode_to_vec(&request);
        let file = trust.files.path().join("message");
        fs::write(&file, [&[0], (message.len() as u32).to_be_bytes().as_slice(), &message].concat()).unwrap();
        let body = format!("@{}", file.display());
        let headers = ["--http2", "-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary", &body];
        let address = format!("https://{}/inference.GRPCInferenceService/ModelInfer", server.grpc);
        let answer = trust.curl("admin", &address, &headers);
        assert!(answer.status == 200 && answer.body.contains("OUTPUT0"), "{}{}", answer.head, answer.body);
    }
    server.terminate();
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let digests: Vec<Value> = trust.audit().iter().map(|record| record["digests"]["request"].clone()).collect();
    assert_eq!(digests, [json!(digest), json!(digest)]);
}

/// The newest segment of the log's journal.
fn segment(trust: &Trust) -> PathBuf {
    let entries = fs::read_dir(trust.folder().join("audit/journal")).unwrap();
    entries.map(|entry| entry.unwrap().path()).max().unwrap()
}

#[test]
fn a_log_that_takes_no_record_has_calls_refused_until_it_does() {
    let (models, trust) = (repository(), Trust::init(&["ident"]));
    let server = Server::start_trusted_with(
        &[models.path()],
        &trust.folder(),
        &["--engine", "rten"],
        &trust.log(),
        support::full_disks,
    );
    let infer = || trust.curl("admin", &url(&server, INFER), &["-d", &some_row()]).status;
    let revoke = |who: &str| {
        let what = json!({ "principal": format!("spiffe://edgeward.local/{who}") }).to_string();
        trust.curl("admin", &url(&server, "/v2/trust/revocations"), &["-d", &what]).status
    };
    for _ in 0..8 {
        assert_eq!(infer(), 200);
    }
    let log = || fs::read_to_string(trust.log()).unwrap();
    let length = fs::metadata(segment(&trust)).unwrap().len();
    assert!(length > 4 * log().len() as u64, "the server's own log must have room: {length} {}", log().len());
    server.files_grow_to(Some(length));
    // The record that meets the full disk was queued by a call that did not wait; all others are waited for.
    let answers: Vec<u16> = (0..20).map(|_| infer()).collect();
    let unrecorded = answers.iter().filter(|&&status| status == 200).count();
    assert!(unrecorded <= 1 && answers[1..].iter().all(|&status| status == 503), "{answers:?}");
    assert_eq!([revoke("ward"), trust.curl("", &url(&server, "/v2"), &[]).status], [503, 503]);
    until("word of the failure", || log().contains("the audit log fails"));
    server.files_grow_to(None);
    assert_eq!(infer(), 200);
    until("word of its end", || log().contains("the audit log takes records again"));
    assert_eq!(log().matches("\"message\":\"the audit log").count(), 2, "{}", log());
    let status = trust.curl("admin", &url(&server, "/v2/trust/audit"), &[]).json();
    assert_eq!((&status["refused"], &status["failure"]), (&json!(22), &Value::Null));
    server.terminate();
    let records = trust.audit();
    let of = |action: &str| records.iter().filter(|record| record["action"] == action).collect::<Vec<_>>();
    assert_eq!((of("infer").len(), of("log.refuse")[0]["reason"].as_str()), (9, Some("22 records found no place")));
    assert!(!trust.folder().join("revoked-callers.json").exists(), "an act without a record was carried out");
}

#[test]
fn a_flood_of_strangers_has_few_records_and_is_counted() {
    let (models, trust) = (repository(), Trust::init(&["ident"]));
    let server = trust.serve(&[models.path()]);
    // One connection, as many requests as it takes.
    let pages = format!("{}/[1-3000]", url(&server, "/v2/aaa"));
    let mut command = Command::new("curl");
    command.args(["-s", "-o", "/dev/null", "-w", "%{http_code}\\n", "--cacert"]).arg(trust.folder().join("roots.pem"));
    let output = command.arg(pages).output().unwrap();
    let answers = String::from_utf8(output.stdout).unwrap();
    assert_eq!((answers.lines().count(), answers.lines().filter(|line| *line != "401").count()), (3000, 0));
    let told = || fs::read_to_string(trust.log()).unwrap();
    until("word of the flood", || told().contains("too many for a line and a record each"));
    assert_eq!(trust.curl("admin", &url(&server, "/v2"), &[]).status, 200);
    server.terminate();
    let records = trust.audit();
    let strangers = records.iter().filter(|record| record["principal"] == "anonymous");
    let (summaries, own): (Vec<_>, Vec<_>) = strangers.partition(|record| record["action"] == "calls");
    let more =
        |record: &&Value| record["reason"].as_str().unwrap().split(' ').next().unwrap().parse::<usize>().unwrap();
    assert!((1..1500).contains(&own.len()) && !summaries.is_empty(), "{} {summaries:?}", own.len());
    assert_eq!(own.len() + summaries.iter().map(more).sum::<usize>(), 3000);
    let lines = told().matches("not authenticated").count();
    assert!(lines <= own.len(), "{lines}");
}

#[test]
fn a_request_is_as_large_as_what_comes_of_it() {
    let (models, trust) = (repository(), Trust::init(&["ident"]));
    trust.issue("small");
    trust.policy("small.cedar", &permit("small", "@request_bytes(\"400\")"));
    trust.issue("short");
    trust.policy("short.cedar", &permit("short", "").replace(" };", " && context.request_bytes <= 400 };"));
    let server = trust.serve(&[models.path()]);
    let large = format!("{}{}", some_row(), " ".repeat(2000));
    let (plain, zipped) = (trust.files.path().join("plain"), trust.files.path().join("zipped"));
    fs::write(&plain, &large).unwrap();
    fs::write(&zipped, support::gzip(large.clone().into_bytes())).unwrap();
    let (plain, zipped) = (format!("@{}", plain.display()), format!("@{}", zipped.display()));
    let ways: [&[&str]; 4] = [
        &["--data-binary", &plain],
        &["--data-binary", &plain, "-H", "transfer-encoding: chunked", "--http1.1"],
        &["--data-binary", &plain, "-H", "content-length:", "--http2"],
        &["--data-binary", &zipped, "-H", "content-encoding: gzip"],
    ];
    for way in ways {
        let ask = |who: &str| trust.curl(who, &url(&server, INFER), way).status;
        assert_eq!((ask("small"), ask("short"), ask("admin")), (429, 403, 200), "{way:?}");
    }
    let little = ["-d", &some_row(), "-H", "transfer-encoding: chunked", "--http1.1"];
    assert_eq!(["small", "short"].map(|who| trust.curl(who, &url(&server, INFER), &little).status), [200, 200]);
    server.terminate();
    let sizes: Vec<u64> = trust
        .audit()
        .iter()
        .filter(|record| record["principal"] == "spiffe://edgeward.local/admin")
        .map(|record| serde_json::from_str::<Value>(record["context"]["observed"].as_str().unwrap()).unwrap())
        .map(|observed| observed["request_bytes"].as_u64().unwrap())
        .collect();
    assert_eq!(sizes, [large.len() as u64; 4]);
}

#[test]
fn deep_policies_by_the_api_are_refused() {
    let (models, trust) = (repository(), Trust::init(&["ident"]));
    let server = trust.serve(&[models.path()]);
    let deep = format!("permit (principal, action, resource) when {{ {}true{} }};", "(".repeat(1000), ")".repeat(1000));
    let set = json!({ "policies": { "a.cedar": deep } }).to_string();
    let answer = trust.curl("admin", &url(&server, "/v2/trust/policies"), &["-d", &set]);
    assert!(answer.status == 400 && answer.body.contains("a.cedar:1: brackets"), "{}", answer.body);
    assert_eq!(trust.curl("admin", &url(&server, "/v2/models/ident"), &[]).status, 200);
}

/// What a browser writes by itself gives a page of another address away.
#[test]
fn pages_of_other_addresses_are_refused() {
    let (models, trust) = (repository(), Trust::init(&["ident"]));
    let server = trust.serve(&[models.path()]);
    let what = json!({ "principal": "spiffe://edgeward.local/ward" }).to_string();
    let own = format!("origin: https://{}", server.http);
    let table: [(&[&str], u16); 8] = [
        (&["origin: https://evil.example"], 403),
        (&["origin: https://evil.example", "host: evil.example"], 403),
        (&["origin: null"], 403),
        (&["origin: http://localhost"], 403),
        (&["sec-fetch-site: cross-site"], 403),
        (&["sec-fetch-site: same-site"], 403),
        (&[&own, "sec-fetch-site: same-origin"], 200),
        (&[], 200),
    ];
    for (headers, expected) in table {
        let headers: Vec<&str> = headers.iter().flat_map(|header| ["-H", header]).collect();
        let arguments = [&headers[..], &["-d", &what]].concat();
        let answer = trust.curl("admin", &url(&server, "/v2/trust/revocations"), &arguments);
        assert_eq!(answer.status, expected, "{headers:?}: {}", answer.body);
    }
    // A link from elsewhere leads here all the same.
    let linked = trust.curl("admin", &url(&server, "/v2"), &["-H", "sec-fetch-site: cross-site"]);
    assert_eq!(linked.status, 200);
}

#[test]
fn revocations_are_meant_as_they_are_written() {
    let (models, trust) = (repository(), Trust::init(&["ident"]));
    ["ward", "gone", "mobile"].into_iter().for_each(|name| trust.issue(name));
    let server = trust.serve(&[models.path()]);
    let call = |method: &str, what: Value| {
        let answer =
            trust.curl("admin", &url(&server, "/v2/trust/revocations"), &["-X", method, "-d", &what.to_string()]);
        answer.status
    };
    let status = |name: &str| trust.curl(name, &url(&server, "/v2/health/live"), &[]).status;
    let serial = |name: &str| {
        let pem = trust.folder().join(format!("{name}.pem"));
        let output = Command::new("openssl").args(["x509", "-noout", "-serial", "-in"]).arg(pem).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().strip_prefix("serial=").unwrap().to_owned()
    };
    for wrong in [
        json!({ "principal": "ward" }),
        json!({ "principal": "spiffe://edgeward.local/ward/" }),
        json!({ "serial": "x" }),
    ] {
        assert_eq!(call("POST", wrong.clone()), 400, "{wrong}");
    }
    // As OpenSSL prints it: in capitals.
    assert_eq!((call("POST", json!({ "serial": serial("ward") })), status("ward")), (200, 403));
    assert_eq!((call("DELETE", json!({ "serial": serial("ward") })), status("ward")), (200, 200));
    // What the authority has revoked no call lifts.
    let folder = trust.folder();
    support::trust::edgeward(&["trust", "revoke", folder.to_str().unwrap(), "gone", "--reason", "lost"]);
    until("the authority's revocation", || status("gone") == 403);
    assert_eq!((call("DELETE", json!({ "serial": serial("gone") })), status("gone")), (409, 403));

    // A session by proof is over with the certificate's key that it was opened with.
    let token_url = url(&server, "/v2/trust/token");
    let (prover, form) = (Prover::new(), exchange(&trust, "mobile"));
    let form: Vec<&str> = form.iter().map(String::as_str).collect();
    let opening = format!("dpop: {}", prover.proof("POST", &token_url, None, "1"));
    let opened = trust.curl("mobile", &token_url, &[&["-H", &opening][..], &form].concat()).json();
    let token = opened["access_token"].as_str().unwrap();
    let resource = url(&server, "/v2/health/live");
    let by_session = |id: &str| {
        let proof = format!("dpop: {}", prover.proof("GET", &resource, Some(token), id));
        trust.curl("", &resource, &["-H", &format!("authorization: DPoP {token}"), "-H", &proof]).status
    };
    assert_eq!(by_session("2"), 200);
    let thumbprint = form[5].strip_prefix("subject_token=").unwrap();
    assert_eq!(call("POST", json!({ "key": thumbprint })), 200);
    assert_eq!((status("mobile"), by_session("3")), (403, 403));
    server.terminate();
    // The log says what was done to whom.
    let records = trust.audit();
    let told = |what: &str| -> Vec<String> {
        let texts = records.iter().filter_map(|record| record["context"][what].as_str());
        texts.map(str::to_owned).collect()
    };
    let ward = serial("ward").to_lowercase();
    assert_eq!(told("revoked"), [format!("serial {ward} for ever"), format!("key {thumbprint} for ever")]);
    assert_eq!(told("lifted"), [format!("serial {ward}")]);
    assert!(told("call").contains(&"DELETE /v2/trust/revocations".to_owned()), "{:?}", told("call"));
}

/// What could not be read once, or is gone, forgives nobody.
#[test]
fn files_of_revocations_are_tried_until_they_are_read() {
    let (models, trust) = (repository(), Trust::init(&["ident"]));
    ["ward", "gone"].into_iter().for_each(|name| trust.issue(name));
    let folder = trust.folder();
    let config = trust.files.path().join("edgeward.toml");
    let path = |name: &str| folder.join(name).display().to_string();
    fs::write(&config, format!("[trust]\ncertificate = {:?}\nkey = {:?}\n", path("server.pem"), path("server.key")))
        .unwrap();
    let arguments = ["--engine", "rten", "--config", config.to_str().unwrap()];
    let server = Server::start_trusted(&[models.path()], &folder, &arguments, &trust.log());
    let status = |name: &str| trust.curl(name, &url(&server, "/v2/health/live"), &[]).status;
    let told = |text: &str| fs::read_to_string(trust.log()).unwrap().contains(text);
    support::trust::edgeward(&["trust", "revoke", folder.to_str().unwrap(), "ward", "--reason", "lost"]);
    until("the revocation", || status("ward") == 403);
    let file = folder.join("revocations.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    until("word of the missing file", || told("revocations cannot be read; those before stay in force"));
    assert_eq!(status("ward"), 403);
    support::trust::edgeward(&["trust", "revoke", folder.to_str().unwrap(), "gone", "--reason", "lost"]);
    until("the next revocation", || status("gone") == 403);
    // An administrator's revocations are written again.
    let what = json!({ "principal": "spiffe://edgeward.local/other" }).to_string();
    assert_eq!(trust.curl("admin", &url(&server, "/v2/trust/revocations"), &["-d", &what]).status, 200);
    let kept = folder.join("revoked-callers.json");
    until("the server's look at what it wrote", || kept.exists());
    std::thread::sleep(std::time::Duration::from_millis(1500));
    fs::remove_file(&kept).unwrap();
    until("the file's return", || fs::read_to_string(&kept).is_ok_and(|text| text.contains("other")));
    until("word of it", || told("was gone; it is written again"));
    server.terminate();
    // Without them there is no server.
    for broken in [Some("{"), None] {
        match broken {
            Some(text) => fs::write(&file, text).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgeward"));
        command.arg("serve").arg(models.path()).arg("--trust").arg(&folder).args(arguments);
        let output = command.args(support::FREE_PORTS).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains("revocations.json"), "{error}");
    }
    fs::write(&file, text).unwrap();
}

#[test]
fn policies_by_a_call_stay_until_the_folder_says_something_else() {
    let (models, trust) = (repository(), Trust::init(&["ident"]));
    trust.issue("ward");
    trust.policy("ward.cedar", &permit("ward", ""));
    let server = trust.serve(&[models.path()]);
    let status = || trust.curl("ward", &url(&server, "/v2/models/ident"), &[]).status;
    let told = |text: &str| fs::read_to_string(trust.log()).unwrap().matches(text).count();
    assert_eq!(status(), 200);
    let admin = "permit (principal == Workload::\"spiffe://edgeward.local/admin\", action, resource);";
    let set = json!({ "policies": { "a.cedar": admin } }).to_string();
    assert_eq!(trust.curl("admin", &url(&server, "/v2/trust/policies"), &["-d", &set]).status, 200);
    assert!(told("by a call: a change of the folder or") == 1 && status() == 403);
    // Neither a hidden file nor the same text again is another folder; a revocation that has taken effect is a later look at all files.
    fs::write(trust.folder().join("policies/.anything"), "").unwrap();
    trust.policy("ward.cedar", &permit("ward", ""));
    trust.issue("gone");
    support::trust::edgeward(&["trust", "revoke", trust.folder().to_str().unwrap(), "gone", "--reason", "lost"]);
    until("a later look", || trust.curl("gone", &url(&server, "/v2/health/live"), &[]).status == 403);
    std::thread::sleep(std::time::Duration::from_millis(1200));
    assert_eq!(status(), 403);
    trust.policy("ward.cedar", &permit("ward", "@round(\"1\")"));
    until("the folder's policies", || status() == 200);
    server.terminate();
    let records = trust.audit();
    let digests = records.iter().filter(|record| record["context"]["policies"].is_string()).count();
    assert_eq!(digests, 1);
}

#[test]
fn policies_of_a_call_outlive_a_restart() {
    let (models, trust) = (repository(), Trust::init(&["ident"]));
    trust.issue("ward");
    trust.policy("ward.cedar", &permit("ward", ""));
    let status = |server: &Server| trust.curl("ward", &url(server, "/v2/models/ident"), &[]).status;
    let told = |text: &str| fs::read_to_string(trust.log()).unwrap().matches(text).count();
    let admin = "permit (principal == Workload::\"spiffe://edgeward.local/admin\", action, resource);";
    let listed = fs::read_to_string(trust.folder().join("policies/entities.toml")).unwrap();
    let set = json!({ "policies": { "a.cedar": admin }, "entities": { "entities.toml": listed } }).to_string();
    let call = |server: &Server, arguments: &[&str]| {
        let answer = trust.curl("admin", &url(server, "/v2/trust/policies"), arguments);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()["digest"].clone()
    };
    let file = trust.folder().join("policies-by-call.json");
    let server = trust.serve(&[models.path()]);
    let (folders, calls) = (call(&server, &[]), call(&server, &["-d", &set]));
    // Killed: what was answered is on the disk.
    drop(server);
    let server = trust.serve(&[models.path()]);
    assert_eq!((status(&server), call(&server, &[])), (403, calls.clone()));
    assert_eq!(told("policies of a call are in force"), 1);
    let kept = fs::read(&file).unwrap();
    for back in [&["-X", "DELETE"][..], &["-X", "POST"]] {
        assert_eq!((call(&server, back), status(&server), file.exists()), (folders.clone(), 200, false));
        // Another server with this folder was called.
        fs::write(&file, &kept).unwrap();
        until("the policies of another server's call", || call(&server, &[]) == calls);
    }
    server.terminate();
    // The folder changes while there is no server: it is newer.
    trust.policy("ward.cedar", &permit("ward", "@round(\"1\")"));
    let server = trust.serve(&[models.path()]);
    assert_eq!((status(&server), told("was changed after a call"), file.exists()), (200, 1, false));
    server.terminate();
    let instead_of = edgeward_trust::policy::Sources::read(&trust.folder().join("policies")).unwrap().digest();
    let wrong = json!({ "instead_of": instead_of, "policies": { "a.cedar": "permit (principal" } }).to_string();
    for text in ["{", &wrong] {
        fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgeward"));
        let output = command.arg("serve").arg(models.path()).arg("--trust").arg(trust.folder()).output().unwrap();
        let shown = String::from_utf8_lossy(&output.stderr);
        let mends = shown.contains("policies-by-call.json") && shown.contains("to have the folder's policies in force");
        assert!(output.status.code() == Some(2) && mends, "{shown}");
    }
}

#[test]
fn a_restart_gives_no_new_budget() {
    let (models, trust) = (repository(), Trust::init(&["ident"]));
    let terms = [("ward", "@query_budget(\"5/day\")"), ("tired", "@compute_per_day(\"1us\")")];
    for (name, terms) in terms {
        trust.issue(name);
        trust.policy(&format!("{name}.cedar"), &permit(name, terms));
    }
    let ask = |server: &Server, who: &str| trust.curl(who, &url(server, INFER), &["-d", &some_row()]).status;
    let file = trust.folder().join("used.json");
    let kept = || fs::read_to_string(&file).unwrap_or_default();
    let server = trust.serve(&[models.path()]);
    assert_eq!([(); 3].map(|()| ask(&server, "ward")), [200; 3]);
    until("what was used in the file", || kept().contains(",3]"));
    // Killed, and later ended as it should be, within the second in which it is written.
    drop(server);
    let server = trust.serve(&[models.path()]);
    assert_eq!([(); 3].map(|()| ask(&server, "ward")), [200, 200, 429]);
    assert_eq!(ask(&server, "tired"), 200);
    server.terminate();
    let server = trust.serve(&[models.path()]);
    assert_eq!((ask(&server, "ward"), ask(&server, "tired"), ask(&server, "admin")), (429, 429, 200));
    server.terminate();
    assert!(!kept().contains("edgeward.local/admin"), "{}", kept());
    fs::write(&file, "[{").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgeward"));
    let output = command.arg("serve").arg(models.path()).arg("--trust").arg(trust.folder()).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stderr);
    let mends = shown.contains("used.json") && shown.contains("delete it and all budgets begin anew");
    assert!(output.status.code() == Some(2) && mends, "{shown}");
}

/// Each request is permitted; what many of them are together is not.
#[test]
fn whose_requests_look_like_an_attack_is_denied() {
    let (models, trust) = (repository(), Trust::init(&["ident"]));
    let config = trust.files.path().join("edgeward.toml");
    fs::write(&config, "[trust.detectors]\nprobing = true\n").unwrap();
    for name in ["ward", "prober", "fuzzer"] {
        trust.issue(name);
        trust
            .policy(&format!("{name}.cedar"), &permit(name, "").replace(" };", " && context.score_detectors >= 50 };"));
    }
    let arguments = ["--engine", "rten", "--config", config.to_str().unwrap()];
    let server = Server::start_trusted(&[models.path()], &trust.folder(), &arguments, &trust.log());
    let ask = |who: &str, body: &str| trust.curl(who, &url(&server, INFER), &["-d", body]).status;
    let near = |n: usize| row(std::array::from_fn(|at| at as f32 + if at == n % 16 { 0.01 * n as f32 } else { 0.0 }));
    let other = |n: usize| row(std::array::from_fn(|at| ((n * 37 + at * 53) * (n + 3) % 101) as f32));
    let first_denied = |who: &str, body: &dyn Fn(usize) -> String| (1..60).find(|n| ask(who, &body(*n)) == 403);
    let (probed, fuzzed) = (first_denied("prober", &near), first_denied("fuzzer", &|_| "{".to_owned()));
    assert!(probed.is_some_and(|n| n > 20) && fuzzed.is_some_and(|n| n > 15), "{probed:?} {fuzzed:?}");
    assert_eq!((1..50).find(|n| ask("ward", &other(*n)) != 200), None);
    server.terminate();
    let records = trust.audit();
    let suspicion = |who: &str, detector: &str| {
        let denied = |record: &&Value| {
            record["principal"] == format!("spiffe://edgeward.local/{who}") && record["decision"] == "deny"
        };
        let observed = records.iter().find(denied).unwrap()["context"]["observed"].as_str().unwrap();
        serde_json::from_str::<Value>(observed).unwrap()["suspicions"][detector].as_u64()
    };
    assert!(suspicion("prober", "probing").is_some_and(|percent| percent > 50));
    assert!(suspicion("fuzzer", "malformed").is_some_and(|percent| percent > 50));
}

#[test]
fn a_restart_forgives_nobody() {
    let (models, trust) = (repository(), Trust::init(&[]));
    ["lost", "late", "back"].into_iter().for_each(|name| trust.issue(name));
    let server = trust.serve(&[models.path()]);
    let call = |server: &Server, method: &str, what: Value| {
        let answer =
            trust.curl("admin", &url(server, "/v2/trust/revocations"), &["-X", method, "-d", &what.to_string()]);
        (answer.status, answer.json())
    };
    let id = |name: &str| format!("spiffe://edgeward.local/{name}");
    let status = |server: &Server, name: &str| trust.curl(name, &url(server, "/v2/health/live"), &[]).status;
    for (name, seconds) in [("lost", None), ("late", Some(1)), ("back", None)] {
        assert_eq!(status(&server, name), 200);
        assert_eq!(call(&server, "POST", json!({ "principal": id(name), "seconds": seconds })).0, 200);
    }
    assert_eq!(call(&server, "POST", json!({ "session": "s" })).0, 200);
    assert_eq!(call(&server, "DELETE", json!({ "principal": id("back") })), (200, json!({ "lifted": true })));
    assert_eq!(call(&server, "DELETE", json!({ "principal": id("back") })), (200, json!({ "lifted": false })));
    server.terminate();

    let server = trust.serve(&[models.path()]);
    assert_eq!([status(&server, "lost"), status(&server, "back")], [403, 200]);
    until("the end of a revocation", || status(&server, "late") == 200);
    // A revocation that is lifted beside the server: by another one, or by hand.
    let file = trust.folder().join("revoked-callers.json");
    let text = fs::read_to_string(&file).unwrap();
    let entries: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(entries.contains(&json!({ "principal": id("lost") })) && !text.contains("back"), "{text}");
    fs::write(&file, "[]").unwrap();
    until("the pardon", || status(&server, "lost") == 200);
    fs::write(&file, text).unwrap();
    until("the revocation", || status(&server, "lost") == 403);
    server.terminate();
    // A file that cannot be read forgives nobody either.
    fs::write(&file, "[").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgeward"));
    let output = command.arg("serve").arg(models.path()).arg("--trust").arg(trust.folder()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && text.contains("revoked-callers.json"), "{text}");
}

/// A failure that is met with every look at the files, twice a second.
#[test]
fn a_certificate_that_cannot_be_renewed_is_told_of_once() {
    let (models, trust) = (repository(), Trust::init(&[]));
    let folder = trust.folder();
    let config = trust.files.path().join("edgeward.toml");
    let path = |name: &str| folder.join(name).display().to_string();
    fs::write(&config, format!("[trust]\ncertificate = {:?}\nkey = {:?}\n", path("server.pem"), path("server.key")))
        .unwrap();
    let arguments = ["--engine", "rten", "--config", config.to_str().unwrap()];
    let server = Server::start_trusted(&[models.path()], &folder, &arguments, &trust.log());
    let told = || fs::read_to_string(trust.log()).unwrap().matches("the server's certificate is not renewed").count();
    fs::remove_file(folder.join("server.pem")).unwrap();
    until("word of the certificate that is gone", || told() == 1);
    // Revocations are followed with the same looks: each that has taken effect is a look that said nothing more.
    for name in ["a", "b", "c"] {
        trust.issue(name);
        support::trust::edgeward(&["trust", "revoke", folder.to_str().unwrap(), name, "--reason", "lost"]);
        until("the revocation", || trust.curl(name, &url(&server, "/v2/health/live"), &[]).status == 403);
    }
    assert_eq!(told(), 1);
    fs::write(folder.join("server.pem"), "no certificate").unwrap();
    until("word of the certificate that is none", || told() == 2);
}

#[test]
fn wrong_starts_say_what_to_mend() {
    let (models, trust) = (repository(), Trust::init(&[]));
    let start = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgeward"));
        let output = command.arg("serve").arg(models.path()).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = start(&[]);
    assert_eq!(code, Some(2));
    assert!(text.contains("edgeward trust init DIR") && text.contains("--insecure"), "{text}");
    let (code, text) = start(&["--trust", "nowhere"]);
    assert_eq!(code, Some(2));
    assert!(text.contains("nowhere") && text.contains("trust init"), "{text}");
    let folder: PathBuf = trust.folder();
    let (code, text) = start(&["--trust", folder.to_str().unwrap(), "--insecure"]);
    assert_eq!(code, Some(2), "{text}");
    fs::write(folder.join("policies/first.cedar"), "permit (principal,").unwrap();
    let (code, text) = start(&["--trust", folder.to_str().unwrap()]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("first.cedar:1"), "{text}");
}

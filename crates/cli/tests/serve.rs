//! `edgeward serve` as its users meet it: the binary, real sockets, clients that others wrote.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use support::{FREE_PORTS, Server, repository};

mod support;

fn edgeward(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_edgeward")).args(arguments).output().unwrap()
}

fn data() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let folder = std::env::var_os("EDGEWARD_DATA").map(PathBuf::from).unwrap_or(beside);
    folder.is_dir().then_some(folder)
}

/// Runs a client script; skipped where no Python was set up for it.
fn client(python: &str, script: &str, arguments: &[&str]) {
    let Some(python) = std::env::var_os(python) else {
        return println!("skipped: {python} is not set (`cargo xtask test` sets it)");
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/clients").join(script);
    let output = Command::new(python).arg(script).args(arguments).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("ok"), "{text}");
}

#[test]
fn tritonclient_passes_untouched() {
    let (models, files) = (repository(), tempfile::tempdir().unwrap());
    let trace = files.path().join("trace.json");
    let server = Server::start(&[models.path()], &["--trace-file", trace.to_str().unwrap()]);
    client("EDGEWARD_TEST_PYTHON", "triton.py", &[&server.http, &server.grpc]);
}

#[test]
fn every_method_of_tritonclient_is_answered_or_refused_by_name() {
    let (models, files) = (repository(), tempfile::tempdir().unwrap());
    let trace = files.path().join("trace.json");
    let server = Server::start(&[models.path()], &["--trace-file", trace.to_str().unwrap()]);
    client("EDGEWARD_TEST_PYTHON", "triton_methods.py", &[&server.http, &server.grpc]);
}

#[test]
fn kserve_client_passes_untouched() {
    let models = repository();
    let server = Server::start(&[models.path()], &[]);
    client("EDGEWARD_TEST_PYTHON_KSERVE", "kserve_client.py", &[&server.http, &server.grpc]);
}

#[test]
fn yolox_finds_what_the_photo_shows() {
    let Some(data) = data() else { return println!("skipped: no data folder (EDGEWARD_DATA)") };
    let server = Server::start(&[&data.join("onnx/yolox_nano_416.onnx")], &[]);
    client("EDGEWARD_TEST_PYTHON", "yolox.py", &[&server.http, data.join("photos/dog.jpg").to_str().unwrap()]);
}

#[test]
fn plain_listeners_need_a_word() {
    let models = repository();
    let folder = models.path().to_str().unwrap();
    let refused = edgeward(&["serve", folder]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--insecure"));
    let outside = edgeward(&["serve", folder, "--insecure", "--http", "0.0.0.0:0"]);
    assert_eq!(outside.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&outside.stderr).contains("loopback"));
    let missing = edgeward(&[&["serve", "no/such/folder", "--insecure"], FREE_PORTS.as_slice()].concat());
    assert_eq!(missing.status.code(), Some(2), "{missing:?}");
    assert!(String::from_utf8_lossy(&missing.stderr).contains("no/such/folder"));
}

#[test]
fn a_file_that_is_no_onnx_file_is_told_where_to_go() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["x.tflite", "model.pt", "model"] {
        let path = folder.path().join(name);
        fs::write(&path, "TFL3").unwrap();
        let refused = edgeward(&[&["serve", path.to_str().unwrap(), "--insecure"], FREE_PORTS.as_slice()].concat());
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains(name) && said.contains(".onnx") && said.contains("docs/models.md"), "{said}");
    }
}

#[test]
fn bounds_that_no_listener_can_have_are_refused() {
    let (models, files) = (repository(), tempfile::tempdir().unwrap());
    for (setting, part) in [
        ("head_bytes_max = 1", "8192"),
        ("head_lines_max = 0", "head_lines_max"),
        ("load_bytes_max = -1", "load_bytes_max"),
    ] {
        let config = files.path().join("edgeward.toml");
        fs::write(&config, format!("[serve]\n{setting}\n")).unwrap();
        let arguments = ["serve", models.path().to_str().unwrap(), "--insecure", "--config", config.to_str().unwrap()];
        let refused = edgeward(&[arguments.as_slice(), FREE_PORTS.as_slice()].concat());
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(2) && said.contains(part), "{said}");
    }
}

#[test]
fn malformed_requests_are_named_and_harmless() {
    let models = repository();
    let server = Server::start(&[models.path()], &["--engine", "rten"]);
    let deep = format!(
        r#"{{"inputs":[{{"name":"INPUT0","shape":[1,16],"datatype":"FP32","data":{}1{}}}]}}"#,
        "[".repeat(100),
        "]".repeat(100)
    );
    let very_deep = format!("{{\"inputs\":{}{}}}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    let deep_data = format!(
        r#"{{"inputs":[{{"name":"INPUT0","shape":[1,16],"datatype":"BYTES","data":{}1{}}}]}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let one = r#"{"name":"INPUT0","shape":[1,1],"datatype":"FP32","data":[1]}"#;
    let many = format!(r#"{{"inputs":[{}]}}"#, vec![one; 100_000].join(","));
    let bomb = support::gzip(vec![b' '; 100 << 20]);
    let good = std::str::from_utf8(GOOD).unwrap();
    let asked = vec![r#"{"name":"OUTPUT0"}"#; 100_000].join(",");
    let answers = good.replacen('{', &format!(r#"{{"outputs":[{asked}],"#), 1);
    let huge_name = good.replace("INPUT0", &"n".repeat(1 << 20));
    let dims = good.replace("[1,16]", &format!("[{}16]", "1,".repeat(100_000)));
    let table: [(&str, &str, &[u8], &str); 51] = [
        ("an answer of any size", "", answers.as_bytes(), "`OUTPUT0` is asked for twice"),
        ("a name of a megabyte", "", huge_name.as_bytes(), "nnn…"),
        ("100,000 dimensions", "", dims.as_bytes(), "INPUT0"),
        ("a list", "", b"[[]]", "JSON"),
        ("a request by position", "", br#"["id",null,[]]"#, "begins with `[`"),
        ("time below 0", "", br#"{"inputs":[{"name":"INPUT0","shape":[0],"datatype":"FP32","data":[]}],"parameters":{"timeout":-1}}"#, "`timeout` is `-1`"),
        ("half a level", "", br#"{"inputs":[{"name":"INPUT0","shape":[0],"datatype":"FP32","data":[]}],"parameters":{"priority":1.5}}"#, "`priority` is `1.5`"),
        ("classes", "", br#"{"inputs":[{"name":"INPUT0","shape":[0],"datatype":"FP32","data":[]}],"outputs":[{"name":"OUTPUT0","parameters":{"classification":"x"}}]}"#, "output `OUTPUT0`: parameter `classification`"),
        ("size below 0", "inference-header-content-length: 98\r\n",
            br#"{"inputs":[{"name":"INPUT0","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":-1}}]}   "#, "`binary_data_size` is `-1`"),
        ("a string", "", b"\"a\"", "expected an object with `inputs`"),
        ("inputs that are none", "", br#"{"inputs":[1]}"#, "expected an input"),
        ("a key twice", "", br#"{"inputs":[],"inputs":[]}"#, "duplicate field `inputs`"),
        ("2^63", "", br#"{"inputs":[{"name":"INPUT0","shape":[9223372036854775808,16],"datatype":"FP32","data":[]}]}"#, "JSON"),
        ("2^63-1", "", br#"{"inputs":[{"name":"INPUT0","shape":[9223372036854775807,2],"datatype":"FP32","data":[]}]}"#, "INPUT0"),
        ("nothing times much", "", br#"{"inputs":[{"name":"INPUT0","shape":[0,4611686018427387904],"datatype":"FP32","data":[]}]}"#, "INPUT0"),
        ("Infinity", "", br#"{"inputs":[{"name":"INPUT0","shape":[1,1],"datatype":"FP32","data":[-Infinity]}]}"#, "JSON"),
        ("1e400", "", br#"{"inputs":[{"name":"INPUT0","shape":[1,1],"datatype":"FP64","data":[1e400]}]}"#, "1e400"),
        ("half a surrogate", "", br#"{"id":"\ud800","inputs":[]}"#, "JSON"),
        ("a mark before it", "", b"\xef\xbb\xbf{}", "JSON"),
        ("two requests", "", b"{\"inputs\":[]}{\"inputs\":[]}", "trailing"),
        ("size of binary data beyond 64 bits", "inference-header-content-length: 106\r\n",
            br#"{"inputs":[{"name":"INPUT0","shape":[1,16],"datatype":"FP32","parameters":{"binary_data_size":1e30}}]}    "#, "binary_data_size"),
        ("header length beyond 64 bits", "inference-header-content-length: 18446744073709551616\r\n", b"{}", "number"),
        ("header length below 0", "inference-header-content-length: -1\r\n", b"{}", "number"),
        ("very deep", "", very_deep.as_bytes(), "JSON"),
        ("deep strings", "", deep_data.as_bytes(), "INPUT0"),
        ("100,000 inputs", "", many.as_bytes(), "INPUT0"),
        ("gzip bomb", "content-encoding: gzip\r\n", &bomb, "grows beyond"),
        ("encoding", "content-encoding: br\r\n", b"{}", "br"),
        ("twice", "", br#"{"inputs":[{"name":"INPUT0","shape":[1,2],"datatype":"FP32","data":[1,2]},{"name":"INPUT0","shape":[1,2],"datatype":"FP32","data":[1,2]}]}"#, "twice"),
        ("ragged", "", br#"{"inputs":[{"name":"INPUT0","shape":[3],"datatype":"FP32","data":[[1,2],[3]]}]}"#, "ragged"),
        ("mixed", "", br#"{"inputs":[{"name":"INPUT0","shape":[3],"datatype":"FP32","data":[[1,2],3]}]}"#, "ragged"),
        ("other nesting", "", br#"{"inputs":[{"name":"INPUT0","shape":[2,3],"datatype":"FP32","data":[[1,2],[3,4],[5,6]]}]}"#, "[3, 2]"),
        ("NaN", "", br#"{"inputs":[{"name":"INPUT0","shape":[1,1],"datatype":"FP32","data":[NaN]}]}"#, "JSON"),
        ("too large", "", br#"{"inputs":[{"name":"INPUT0","shape":[1,1],"datatype":"FP32","data":[1e39]}]}"#, "1e39"),
        ("null", "", br#"{"inputs":[{"name":"INPUT0","shape":[1,1],"datatype":"FP32","data":[null]}]}"#, "null"),
        ("size beyond 64 bits", "", br#"{"inputs":[{"name":"INPUT0","shape":[99999999999999999999],"datatype":"FP32","data":[]}]}"#, "JSON"),
        ("string length", "inference-header-content-length: 100\r\n",
            br#"{"inputs":[{"name":"INPUT0","shape":[1,16],"datatype":"BYTES","parameters":{"binary_data_size":6}}]}\x09\0\0\0ab"#, "string 0"),
        ("header length text", "inference-header-content-length: many\r\n", b"{}", "number"),
        ("truncated", "", br#"{"inputs":[{"name":"INPUT0""#, "JSON"),
        ("empty", "", b"", "JSON"),
        ("no inputs", "", b"{}", "inputs"),
        ("not utf-8", "", b"{\"id\":\"\xff\"}", "JSON"),
        ("negative size", "", br#"{"inputs":[{"name":"INPUT0","shape":[-1,16],"datatype":"FP32","data":[]}]}"#, "negative"),
        ("overflow", "", br#"{"inputs":[{"name":"INPUT0","shape":[4294967296,4294967296],"datatype":"FP32","data":[]}]}"#, "INPUT0"),
        ("datatype", "", br#"{"inputs":[{"name":"INPUT0","shape":[1,16],"datatype":"FP31","data":[1]}]}"#, "FP31"),
        ("element", "", br#"{"inputs":[{"name":"INPUT0","shape":[1,2],"datatype":"FP32","data":[1,"a"]}]}"#, "element 1"),
        ("count", "", br#"{"inputs":[{"name":"INPUT0","shape":[1,16],"datatype":"FP32","data":[1]}]}"#, "16"),
        ("depth", "", deep.as_bytes(), "nests"),
        ("header length", "inference-header-content-length: 99999\r\n", b"{}", "99999"),
        ("binary size", "inference-header-content-length: 100\r\n",
            br#"{"inputs":[{"name":"INPUT0","shape":[1,16],"datatype":"FP32","parameters":{"binary_data_size":64}}]}abc"#, "binary_data_size"),
        ("gzip", "content-encoding: gzip\r\n", b"\x1f\x8bnonsense", "damaged"),
    ];
    for (case, headers, body, part) in table {
        let (status, text) = server.ask("POST", "/v2/models/ident/infer", headers, body);
        assert_eq!(status, 400, "{case}: {text}");
        assert!(text.contains(part), "{case}: {text}");
    }
    let (status, text) = server.ask("POST", "/v2/models/ident/infer", "", GOOD);
    assert_eq!(status, 200, "a good request after all the bad ones: {text}");
}

#[test]
fn odd_names_lead_nowhere() {
    let models = repository();
    let server = Server::start(&[models.path()], &["--engine", "rten"]);
    for path in
        ["/v2/models/..%2f..%2fetc/infer", "/v2/models/nobody/infer", "/v2/models/ident/versions/x/infer", "/v3"]
    {
        let body = br#"{"inputs":[{"name":"a","shape":[1],"datatype":"FP32","data":[1]}]}"#;
        assert_eq!(server.ask("POST", path, "", body).0, 404, "{path}");
    }
    let long = "x".repeat(60_000);
    for name in ["..", "%2e%2e", "..%2f..%2fetc", "a%2fb", "a%00b", "a%0ab", ".", "%20", "a\\b", long.as_str()] {
        let (status, text) = server.ask("POST", &format!("/v2/repository/models/{name}/load"), "", b"");
        assert!(status == 404 && text.starts_with("{\"error\":") && text.len() < 3000, "{name}: {text}");
    }
    let (status, text) = server.ask("POST", "/v2/repository/models/%ff/load", "", b"");
    assert!(status == 400 && text.starts_with("{\"error\":\"Invalid URL"), "{text}");
    let (status, text) = server.ask("POST", "/v2/models/ident/infer", "content-length: 1099511627776\r\n", b"");
    assert_eq!(status, 400, "two lengths: {text}");
}

/// A request that [`identity`] answers.
const GOOD: &[u8] =
    br#"{"inputs":[{"name":"INPUT0","shape":[1,16],"datatype":"FP32","data":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]}]}"#;

#[test]
fn ready_tells_of_a_model_that_does_not_load() {
    let models = repository();
    fs::create_dir_all(models.path().join("broken/1")).unwrap();
    fs::write(models.path().join("broken/1/model.onnx"), "no model").unwrap();
    let server = Server::start(&[models.path()], &[]);
    let (status, body) = server.ask("GET", "/v2/health/ready", "", b"");
    assert_eq!((status, body.as_str()), (503, r#"{"ready":false}"#));
    assert_ne!(server.ask("GET", "/v2/models/broken/ready", "", b"").0, 200);
    assert_eq!(server.ask("POST", "/v2/models/ident/infer", "", GOOD).0, 200, "the others serve all the same");
}

#[test]
fn a_second_signal_ends_a_drain_that_waits() {
    let models = repository();
    let mut server = Server::start(&[models.path()], &["--grace-seconds", "600"]);
    // A request of which half has arrived: accepted, and never complete.
    let mut stuck = TcpStream::connect(&server.http).unwrap();
    stuck
        .write_all(b"POST /v2/models/ident/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        .unwrap();
    let (status, _) = server.ask("GET", "/v2/health/live", "", b"");
    assert_eq!(status, 200);
    let signal = |server: &Server| {
        let id = server.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    };
    signal(&server);
    // The first signal has been taken once the listener is closed.
    support::until("the end of the listener", || TcpStream::connect(&server.http).is_err());
    assert!(server.child.try_wait().unwrap().is_none(), "the server did not wait for the request");
    signal(&server);
    assert_eq!(server.child.wait().unwrap().code(), Some(1));
}

#[test]
fn sigterm_answers_what_was_accepted() {
    let models = repository();
    let server = Server::start(&[models.path()], &["--grace-seconds", "20"]);
    let address = server.http.clone();
    let stop = Instant::now() + Duration::from_millis(300);
    let body = r#"{"inputs":[{"name":"INPUT0","shape":[1,16],"datatype":"FP32","data":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]}]}"#;
    let request = format!(
        "POST /v2/models/ident/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (address, request) = (address.clone(), request.clone());
            std::thread::spawn(move || {
                let (mut answered, mut stream) = (0, TcpStream::connect(address).unwrap());
                loop {
                    if stream.write_all(request.as_bytes()).is_err() {
                        return answered;
                    }
                    let mut buffer = [0u8; 4096];
                    match stream.read(&mut buffer) {
                        // The connection was closed between two requests: nothing of this one was accepted.
                        Ok(0) | Err(_) => return answered,
                        Ok(n) => assert!(
                            buffer[..n].starts_with(b"HTTP/1.1 200"),
                            "{}",
                            String::from_utf8_lossy(&buffer[..n])
                        ),
                    }
                    answered += 1;
                }
            })
        })
        .collect();
    while Instant::now() < stop {
        std::thread::yield_now();
    }
    assert!(server.terminate().success());
    let answered: u32 = clients.into_iter().map(|c| c.join().unwrap()).sum();
    assert!(answered > 0);
}

#[test]
fn classes_have_their_labels() {
    let models = repository();
    let config = |file: &str| {
        let text = format!(
            "max_batch_size: 8 output [ {{ name: \"OUTPUT0\" data_type: TYPE_FP32 dims: [ 16 ] label_filename: \"{file}\" }} ]"
        );
        fs::write(models.path().join("ident/config.pbtxt"), text).unwrap();
    };
    config("labels.txt");
    fs::write(models.path().join("ident/labels.txt"), "zero\none\n".to_owned() + &"-\n".repeat(13)).unwrap();
    let server = Server::start(&[models.path()], &["--engine", "rten"]);
    let ask = |row: &str| {
        let body = format!(
            r#"{{"inputs":[{{"name":"INPUT0","shape":[1,16],"datatype":"FP32","data":[{row}]}}],"outputs":[{{"name":"OUTPUT0","parameters":{{"classification":2}}}}]}}"#
        );
        server.ask("POST", "/v2/models/ident/infer", "", body.as_bytes())
    };
    let (status, text) = ask("5,9,0,0,0,0,0,0,0,0,0,0,0,0,0,0");
    assert!(status == 200 && text.contains(r#"["9.000000:1:one","5.000000:0:zero"]"#), "{text}");
    // The last class has no label.
    let (status, text) = ask("5,0,0,0,0,0,0,0,0,0,0,0,0,0,0,9");
    assert!(status == 200 && text.contains(r#"["9.000000:15","5.000000:0:zero"]"#), "{text}");
    fs::write(models.path().join("secret"), "x").unwrap();
    for wrong in ["../secret", "missing.txt", "1"] {
        config(wrong);
        let (status, text) = server.ask("POST", "/v2/repository/models/ident/load", "", b"");
        assert!(status == 400 && text.contains("OUTPUT0") && text.contains(wrong), "{text}");
    }
}

#[test]
fn strings_that_json_cannot_hold_are_refused_and_go_as_bytes() {
    let models = repository();
    let server = Server::start(&[models.path()], &["--engine", "rten"]);
    let one = |string: &[u8]| [&u32::try_from(string.len()).unwrap().to_le_bytes(), string].concat();
    let tensor: Vec<u8> = (0..16).flat_map(|i| one(if i == 5 { b"\xff\xfez" } else { "\u{e9}".as_bytes() })).collect();
    let ask = |binary: bool| {
        let json = format!(
            r#"{{"inputs":[{{"name":"INPUT0","shape":[1,16],"datatype":"BYTES","parameters":{{"binary_data_size":{}}}}}],"parameters":{{"binary_data_output":{binary}}}}}"#,
            tensor.len()
        );
        let header = format!("inference-header-content-length: {}\r\n", json.len());
        server.ask("POST", "/v2/models/ident_str/infer", &header, &[json.as_bytes(), &tensor].concat())
    };
    let (status, text) = ask(false);
    let named = text.contains("output `OUTPUT0`: element 5 is not UTF-8") && text.contains("ask for binary data");
    assert!(status == 400 && named, "{status} {text}");
    let (status, text) = ask(true);
    assert!(status == 200 && text.contains(&format!("\"binary_data_size\":{}", tensor.len())), "{status} {text}");
}

#[test]
fn an_address_in_use_is_said_once() {
    let models = repository();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = edgeward(&["serve", models.path().to_str().unwrap(), "--insecure", "--http", &address]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.matches("Address already in use").count(), 1, "{text}");
}

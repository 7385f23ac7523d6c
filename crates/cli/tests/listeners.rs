//! What a peer cannot do to the others: the binary, real sockets, slow and hostile clients beside a good one.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use edgeward_graph::{
    Model,
    proto::{
        GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto, TypeProto, ValueInfoProto,
        tensor_shape_proto::{Dimension, dimension},
        type_proto,
    },
};

const BODY: &str = r#"{"inputs":[{"name":"x","shape":[4],"datatype":"FP32","data":[1,2,3,4]}]}"#;
/// Only an end to a test that hangs; nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(120);

/// A model that returns its four floats.
fn identity(path: &Path) {
    let port = |name: &str| {
        let dim = vec![Dimension { value: Some(dimension::Value::DimValue(4)), ..Dimension::default() }];
        let tensor = type_proto::Tensor { elem_type: Some(1), shape: Some(TensorShapeProto { dim }) };
        let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() });
        ValueInfoProto { name: Some(name.to_owned()), r#type, ..ValueInfoProto::default() }
    };
    let node = NodeProto {
        op_type: Some("Identity".to_owned()),
        input: vec!["x".to_owned()],
        output: vec!["y".to_owned()],
        ..NodeProto::default()
    };
    let graph = GraphProto {
        name: Some("identity".to_owned()),
        node: vec![node],
        input: vec![port("x")],
        output: vec![port("y")],
        ..GraphProto::default()
    };
    let opset_import = vec![OperatorSetIdProto { version: Some(17), ..OperatorSetIdProto::default() }];
    let proto = ModelProto { ir_version: Some(8), opset_import, graph: Some(graph), ..ModelProto::default() };
    Model::from_proto(proto).write(path).unwrap();
}

/// A running server with the model `m`, ended when dropped.
struct Server {
    child: Child,
    http: String,
    grpc: String,
    _files: tempfile::TempDir,
}

impl Server {
    fn start(settings: &str) -> Self {
        let files = tempfile::tempdir().unwrap();
        let at = |name: &str| files.path().join(name);
        identity(&at("m.onnx"));
        fs::write(at("edgeward.toml"), settings).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_edgeward"))
            .arg("serve")
            .arg(at("m.onnx"))
            .args(["--insecure", "--engine", "rten", "--grace-seconds", "600"])
            .args(["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--metrics", "127.0.0.1:0"])
            .arg("--config")
            .arg(at("edgeward.toml"))
            .arg("--ready-file")
            .arg(at("ready.json"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while !at("ready.json").exists() {
            assert!(child.try_wait().unwrap().is_none(), "the server ended before it was ready");
            std::thread::yield_now();
        }
        let text: serde_json::Value = serde_json::from_slice(&fs::read(at("ready.json")).unwrap()).unwrap();
        let address = |key: &str| text[key].as_str().unwrap().to_owned();
        let (http, grpc) = (address("http"), address("grpc"));
        Self { child, http, grpc, _files: files }
    }

    fn connect(&self) -> TcpStream {
        connect(&self.http)
    }

    fn terminate(&mut self) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn request() -> Vec<u8> {
    let length = BODY.len();
    format!("POST /v2/models/m/infer HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{BODY}").into_bytes()
}

/// Status and head of the next answer, whose body is read too.
fn answer(stream: &mut TcpStream) -> Option<(u16, String)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            Ok(_) => return None,
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return None,
            Err(e) => panic!("no answer came: {e}"),
        }
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?.parse().ok()?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some((status, head))
}

fn ask(stream: &mut TcpStream) -> Option<(u16, String)> {
    stream.write_all(&request()).ok()?;
    answer(stream)
}

fn serves(server: &Server) {
    assert_eq!(ask(&mut server.connect()).map(|a| a.0), Some(200), "a good client is served");
}

/// True once the server has closed, whatever it sent before.
fn closed(stream: &mut TcpStream) -> bool {
    let mut sink = [0; 4096];
    loop {
        match stream.read(&mut sink) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) => return e.kind() == ErrorKind::ConnectionReset,
        }
    }
}

#[test]
fn a_client_that_does_not_finish_is_cut() {
    let server = Server::start("");
    let (mut head, mut body) = (server.connect(), server.connect());
    head.write_all(b"POST /v2/models/m/infer HTTP/1.1\r\nhost: a\r\nx-slow: ").unwrap();
    body.write_all(b"POST /v2/models/m/infer HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{").unwrap();
    let mut idle = server.connect();
    assert_eq!(ask(&mut idle).map(|a| a.0), Some(200));
    // A byte now and then does not extend a head's time.
    let mut trickle = head.try_clone().unwrap();
    std::thread::spawn(move || {
        while trickle.write_all(b"a").is_ok() {
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    assert!(closed(&mut head), "a head that never ends");
    assert_eq!(answer(&mut body).map(|a| a.0), Some(400), "a body that never ends");
    assert!(closed(&mut body));
    assert_eq!(ask(&mut idle).map(|a| a.0), Some(200), "a connection that waits for its next request is kept");
}

#[test]
fn heads_are_bounded() {
    let server = Server::start("");
    let mut many = server.connect();
    let lines: String = (0..200).map(|i| format!("x-{i}: a\r\n")).collect();
    many.write_all(format!("GET /v2 HTTP/1.1\r\nhost: a\r\n{lines}\r\n").as_bytes()).unwrap();
    assert_eq!(answer(&mut many).map(|a| a.0), Some(431));
    let mut long = server.connect();
    let _ = long.write_all(format!("GET /v2 HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "a".repeat(1 << 20)).as_bytes());
    assert_ne!(answer(&mut long).map(|a| a.0), Some(200));
    serves(&server);
}

#[test]
fn one_connection_too_many_is_told_so() {
    let server = Server::start("[serve]\nconnections_max = 3\n");
    let mut open: Vec<_> = (0..3).map(|_| server.connect()).collect();
    for stream in &mut open {
        assert_eq!(ask(stream).map(|a| a.0), Some(200));
    }
    let (status, head) = answer(&mut server.connect()).unwrap();
    assert_eq!(status, 503);
    assert!(head.contains("retry-after"), "{head}");
    assert_eq!(ask(&mut open[0]).map(|a| a.0), Some(200), "those that are open go on");
    drop(open.pop());
    // The server sees the end when it sees it; until then it refuses.
    while ask(&mut server.connect()).is_none_or(|a| a.0 != 200) {
        std::thread::yield_now();
    }
}

#[test]
fn thousands_of_idle_connections_hurt_nobody() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let count = limit.maximum.map_or(10_000, |most| usize::try_from(most).unwrap().saturating_sub(600).min(10_000));
    let server = Server::start("");
    let mut idle: Vec<_> = (0..count).map(|_| server.connect()).collect();
    serves(&server);
    for stream in &mut idle {
        assert_eq!(ask(stream).map(|a| a.0), Some(200));
    }
}

#[test]
fn sigterm_closes_what_is_idle_and_answers_what_has_arrived() {
    let mut server = Server::start("");
    let (mut fresh, mut idle) = (server.connect(), server.connect());
    assert_eq!(ask(&mut idle).map(|a| a.0), Some(200));
    let mut open: Vec<_> = (0..50).map(|_| server.connect()).collect();
    for stream in &mut open {
        assert_eq!(ask(stream).map(|a| a.0), Some(200));
    }
    // In the sockets before the signal is sent, so accepted, whatever the server knows of them by then.
    for stream in &mut open {
        stream.write_all(&request()).unwrap();
    }
    server.terminate();
    for stream in &mut open {
        let (status, head) = answer(stream).expect("a request that was sent before the signal is answered");
        assert_eq!(status, 200, "{head}");
        assert!(closed(stream));
    }
    assert!(closed(&mut idle) && closed(&mut fresh));
    assert!(server.child.wait().unwrap().success(), "it ends by itself, long before the grace time of ten minutes");
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM_AND_HEADERS: u8 = 5;

fn http2(address: &str) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(SETTINGS, 0, 0, &[])].concat()).unwrap();
    stream
}

/// `GET /v2` in HPACK's static table, the path as a literal.
const GET: &[u8] = &[0x82, 0x86, 0x04, 3, b'/', b'v', b'2', 0x41, 1, b'a'];

#[test]
fn floods_over_http2_are_cut_and_hurt_nobody() {
    let server = Server::start("");
    for address in [&server.http, &server.grpc] {
        // Rapid reset: CVE-2023-44487.
        let mut reset = http2(address);
        let streams = (0..20_000u32).map(|i| i * 2 + 1);
        let flood = streams.flat_map(|id| {
            [frame(HEADERS, END_STREAM_AND_HEADERS, id, GET), frame(RST_STREAM, 0, id, &8u32.to_be_bytes())].concat()
        });
        let _ = reset.write_all(&flood.collect::<Vec<_>>());
        // A head without an end: CVE-2024-27316.
        let mut endless = http2(address);
        let mut flood = frame(HEADERS, 0, 1, GET);
        let line = [&[0x00, 1, b'x', 127, 0x81, 0x7f], vec![b'a'; 16_000].as_slice()].concat();
        (0..200).for_each(|_| flood.extend(frame(CONTINUATION, 0, 1, &line)));
        let _ = endless.write_all(&flood);
        assert!(closed(&mut reset), "rapid reset at {address}");
        assert!(closed(&mut endless), "a head without an end at {address}");
    }
    serves(&server);
}

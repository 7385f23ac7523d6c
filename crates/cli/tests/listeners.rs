//! What a peer cannot do to the others: the binary, real sockets, slow and hostile clients beside a good one.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use edgeward_graph::DataType;
use support::{PATIENCE, Server};

const BODY: &str =
    r#"{"inputs":[{"name":"INPUT0","shape":[1,16],"datatype":"FP32","data":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]}]}"#;

/// A server with the model `m`, `settings` as its `edgeward.toml`, and a grace time that no test waits for.
fn start(settings: &str) -> Server {
    let files = tempfile::tempdir().unwrap();
    let (model, config) = (files.path().join("m.onnx"), files.path().join("edgeward.toml"));
    support::identity(DataType::Float32).write(&model).unwrap();
    fs::write(&config, settings).unwrap();
    let config = config.to_str().unwrap();
    Server::start(&[&model], &["--engine", "rten", "--grace-seconds", "600", "--config", config])
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn request() -> Vec<u8> {
    let length = BODY.len();
    format!("POST /v2/models/m/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{BODY}")
        .into_bytes()
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
    assert_eq!(ask(&mut connect(&server.http)).map(|a| a.0), Some(200), "a good client is served");
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
    let server = start("");
    let (mut head, mut body) = (connect(&server.http), connect(&server.http));
    head.write_all(b"POST /v2/models/m/infer HTTP/1.1\r\nhost: localhost\r\nx-slow: ").unwrap();
    body.write_all(b"POST /v2/models/m/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{").unwrap();
    let mut idle = connect(&server.http);
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
    let server = start("");
    let mut many = connect(&server.http);
    let lines: String = (0..200).map(|i| format!("x-{i}: a\r\n")).collect();
    many.write_all(format!("GET /v2 HTTP/1.1\r\nhost: localhost\r\n{lines}\r\n").as_bytes()).unwrap();
    assert_eq!(answer(&mut many).map(|a| a.0), Some(431));
    let mut long = connect(&server.http);
    let _ =
        long.write_all(format!("GET /v2 HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "a".repeat(1 << 20)).as_bytes());
    assert_eq!(answer(&mut long).map(|a| a.0), Some(431));
    serves(&server);
    let get = |server: &Server, line: usize| {
        let mut stream = connect(&server.http);
        let _ = stream
            .write_all(format!("GET /v2 HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "a".repeat(line)).as_bytes());
        answer(&mut stream).map(|a| a.0)
    };
    assert_eq!((get(&server, 60_000), get(&server, 70_000)), (Some(200), Some(431)));
    let tight = start("[serve]\nhead_bytes_max = 8192\nhead_lines_max = 5\n");
    assert_eq!((get(&tight, 7_000), get(&tight, 9_000)), (Some(200), Some(431)));
    let mut six = connect(&tight.http);
    six.write_all(b"GET /v2 HTTP/1.1\r\nhost: localhost\r\na: 1\r\nb: 2\r\nc: 3\r\nd: 4\r\ne: 5\r\n\r\n").unwrap();
    assert_eq!(answer(&mut six).map(|a| a.0), Some(431));
    // A length that no body may have is refused before it comes.
    let mut long = connect(&server.http);
    long.write_all(b"POST /v2/models/m/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1099511627776\r\n\r\n")
        .unwrap();
    assert_eq!(answer(&mut long).map(|a| a.0), Some(413));
    // A body is read in as many parts as it takes.
    let mut body = connect(&tight.http);
    let padding = " ".repeat(5 << 20);
    let head = format!(
        "POST /v2/models/m/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
        padding.len() + BODY.len()
    );
    body.write_all(format!("{head}{padding}{BODY}").as_bytes()).unwrap();
    assert_eq!(answer(&mut body).map(|a| a.0), Some(200));
}

#[test]
fn one_connection_too_many_is_told_so() {
    let server = start("[serve]\nconnections_max = 3\n");
    let mut open: Vec<_> = (0..3).map(|_| connect(&server.http)).collect();
    for stream in &mut open {
        assert_eq!(ask(stream).map(|a| a.0), Some(200));
    }
    let (status, head) = answer(&mut connect(&server.http)).unwrap();
    assert_eq!(status, 503);
    assert!(head.contains("retry-after"), "{head}");
    assert_eq!(ask(&mut open[0]).map(|a| a.0), Some(200), "those that are open go on");
    drop(open.pop());
    // The server sees the end when it sees it; until then it refuses.
    support::until("a free place", || ask(&mut connect(&server.http)).is_some_and(|a| a.0 == 200));
}

/// The lowest number that the next file of a process may have.
fn lowest_free_file(server: &Server) -> u64 {
    let open = fs::read_dir(format!("/proc/{}/fd", server.child.id())).unwrap();
    let open: Vec<u64> = open.map(|file| file.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    (0..).find(|number| !open.contains(number)).unwrap()
}

#[test]
fn where_no_file_is_free_those_that_are_open_go_on_and_the_others_come_later() {
    let files = tempfile::tempdir().unwrap();
    let (model, log) = (files.path().join("m.onnx"), files.path().join("log"));
    support::identity(DataType::Float32).write(&model).unwrap();
    let server = Server::start_logging(&[&model], &["--engine", "rten", "--log-format", "json"], &log);
    let mut open: Vec<_> = (0..20).map(|_| connect(&server.http)).collect();
    for stream in &mut open {
        assert_eq!(ask(stream).map(|a| a.0), Some(200));
    }
    let id = rustix::process::Pid::from_child(&server.child);
    let limit = |current: Option<u64>| {
        use rustix::process::{Resource, Rlimit, prlimit};
        let before = prlimit(Some(id), Resource::Nofile, Rlimit { current, maximum: None });
        before.or_else(|_| {
            let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
            prlimit(Some(id), Resource::Nofile, Rlimit { current, maximum })
        })
    };
    limit(Some(lowest_free_file(&server) + 5)).unwrap();
    let mut waiting: Vec<_> = (0..40).map(|_| connect(&server.http)).collect();
    for stream in &mut waiting {
        stream.write_all(&request()).unwrap();
    }
    let told = "cannot accept a connection";
    support::until(told, || fs::read_to_string(&log).unwrap().contains(told));
    for stream in &mut open {
        assert_eq!(ask(stream).map(|a| a.0), Some(200), "a connection that is open goes on");
    }
    // Files come free as peers leave, and each that waited is answered.
    drop(open);
    for stream in &mut waiting {
        assert_eq!(answer(stream).map(|a| a.0), Some(200), "one that waited is answered");
        stream.shutdown(std::net::Shutdown::Both).unwrap();
    }
    serves(&server);
}

#[test]
fn thousands_of_idle_connections_hurt_nobody() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let count = limit.maximum.map_or(10_000, |most| usize::try_from(most).unwrap().saturating_sub(600).min(10_000));
    let server = start("");
    let mut idle: Vec<_> = (0..count).map(|_| connect(&server.http)).collect();
    serves(&server);
    for stream in &mut idle {
        assert_eq!(ask(stream).map(|a| a.0), Some(200));
    }
}

#[test]
fn sigterm_closes_what_is_idle_and_answers_what_has_arrived() {
    let mut server = start("");
    let (mut fresh, mut idle) = (connect(&server.http), connect(&server.http));
    assert_eq!(ask(&mut idle).map(|a| a.0), Some(200));
    let mut open: Vec<_> = (0..50).map(|_| connect(&server.http)).collect();
    for stream in &mut open {
        assert_eq!(ask(stream).map(|a| a.0), Some(200));
    }
    // In the sockets before the signal is sent, so accepted, whatever the server knows of them by then.
    for stream in &mut open {
        stream.write_all(&request()).unwrap();
    }
    let id = rustix::process::Pid::from_child(&server.child);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
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
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM_AND_HEADERS: u8 = 5;

fn http2(address: &str) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(SETTINGS, 0, 0, &[])].concat()).unwrap();
    stream
}

/// `GET /v2` in HPACK's static table, the path as a literal.
const GET: &[u8] =
    &[0x82, 0x86, 0x04, 3, b'/', b'v', b'2', 0x41, 9, b'l', b'o', b'c', b'a', b'l', b'h', b'o', b's', b't'];

#[test]
fn floods_over_http2_are_cut_and_hurt_nobody() {
    let server = start("");
    serves(&server);
    let before = server.memory_kb("VmHWM");
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
        // Frames that ask for an answer, whose sender reads none.
        for flood in
            [frame(SETTINGS, 0, 0, &[]), frame(PING, 0, 0, &[0; 8]), frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes())]
        {
            let mut peer = http2(address);
            peer.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
            let flood = flood.repeat(10_000);
            // Until the server reads no more, or has read it all.
            let _ = (0..100).try_for_each(|_| peer.write_all(&flood));
        }
        assert!(closed(&mut reset), "rapid reset at {address}");
        assert!(closed(&mut endless), "a head without an end at {address}");
    }
    let grown = server.memory_kb("VmHWM") - before;
    assert!(grown < 100 * 1024, "{grown} kB");
    serves(&server);
}

/// An answer to a head without a body: its status.
fn status(address: &str, head: &str) -> u16 {
    let mut stream = connect(address);
    stream.write_all(format!("{head}\r\n\r\n").as_bytes()).unwrap();
    answer(&mut stream).unwrap().0
}

#[test]
fn a_page_in_a_browser_of_this_machine_is_refused() {
    let files = tempfile::tempdir().unwrap();
    let (model, log, lines) = (files.path().join("m.onnx"), files.path().join("log"), files.path().join("access"));
    support::identity(DataType::Float32).write(&model).unwrap();
    let server = Server::start_logging(&[&model], &["--engine", "rten", "--access-log", lines.to_str().unwrap()], &log);
    let own = server.http.clone();
    let unload = "POST /v2/repository/models/m/unload HTTP/1.1\r\ncontent-length: 0";
    let live = "GET /v2/health/live HTTP/1.1";
    let table = [
        // A name of the page's own that points to this machine; a form or a script of a page.
        (unload, "host: evil.example".to_owned(), 403),
        (unload, format!("host: {own}\r\norigin: http://evil.example"), 403),
        (unload, format!("host: {own}\r\norigin: null"), 403),
        (unload, format!("host: {own}\r\norigin: http://{own}.evil.example"), 403),
        (unload, format!("host: {own}\r\norigin: http://{own}\r\norigin: http://evil.example"), 403),
        (unload, "host: localhost\r\norigin: http://localhost:3000".to_owned(), 403),
        (
            "POST http://evil.example/v2/repository/models/m/unload HTTP/1.1\r\ncontent-length: 0",
            format!("host: {own}"),
            403,
        ),
        (live, String::new(), 400),
        (live, format!("host: {own}\r\nhost: evil.example"), 400),
        (live, "host: ".to_owned(), 403),
        // Whatever the name of this machine.
        (live, format!("host: {own}\r\norigin: http://{own}"), 200),
        (live, "host: localhost".to_owned(), 200),
        (live, "host: Models.LocalHost:80".to_owned(), 200),
        (live, "host: [::1]:8000".to_owned(), 200),
        ("GET /v2/health/live HTTP/1.0", String::new(), 200),
    ];
    let found: Vec<_> = table
        .iter()
        .map(|(line, rest, _)| {
            let head = if rest.is_empty() { (*line).to_owned() } else { format!("{line}\r\n{rest}") };
            status(&server.http, &head)
        })
        .collect();
    let expected: Vec<_> = table.iter().map(|(.., status)| *status).collect();
    assert_eq!(found, expected, "{table:#?}");
    serves(&server);
    assert_eq!(status(&server.metrics, "GET /metrics HTTP/1.1\r\nhost: evil.example"), 403);
    assert_eq!(status(&server.grpc, "POST / HTTP/1.1\r\nhost: evil.example\r\ncontent-length: 0"), 403);
    assert_eq!(status(&server.grpc, "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0"), 415);
    assert!(fs::read_to_string(&log).unwrap().contains("evil.example"), "the log says why");
    assert!(server.terminate().success());
    let lines = fs::read_to_string(&lines).unwrap();
    let logged = |status: u16| lines.matches(&format!("\"status\":{status},")).count();
    assert_eq!((logged(400), logged(403), logged(415)), (2, 10, 1), "{lines}");
}

#[tokio::test]
async fn calls_over_grpc_by_a_foreign_name_are_refused() {
    use edgeward_serve::proto::{ServerLiveRequest, grpc_inference_service_client::GrpcInferenceServiceClient};
    let server = start("");
    let at: http::Uri = format!("http://{}", server.grpc).parse().unwrap();
    for (origin, expected) in
        [("http://localhost:1", None), ("http://evil.example", Some(tonic::Code::PermissionDenied))]
    {
        let endpoint = tonic::transport::Endpoint::from(at.clone()).origin(origin.parse().unwrap());
        let mut client = GrpcInferenceServiceClient::new(endpoint.connect().await.unwrap());
        let answer = client.server_live(ServerLiveRequest {}).await;
        assert_eq!(answer.as_ref().err().map(tonic::Status::code), expected, "{answer:?}");
    }
}

/// A server with the model `m` whose log has details, with the file that it goes to.
fn start_with_details(settings: &str) -> (Server, tempfile::TempDir) {
    let files = tempfile::tempdir().unwrap();
    let (model, config) = (files.path().join("m.onnx"), files.path().join("edgeward.toml"));
    support::identity(DataType::Float32).write(&model).unwrap();
    fs::write(&config, settings).unwrap();
    let arguments = ["--engine", "rten", "--grace-seconds", "600", "--config", config.to_str().unwrap()];
    let server = Server::start_logging_details(&[&model], &arguments, &files.path().join("log"));
    (server, files)
}

/// Waits until the server has cut so many connections since it started.
fn await_cut(files: &tempfile::TempDir, count: usize) {
    let log = || fs::read_to_string(files.path().join("log")).unwrap();
    support::until("the cut", || log().matches("its peer takes no answers").count() >= count);
}

/// Asks for an answer of 64 MiB, of which no byte is read.
fn ask_for_much(address: &str) -> TcpStream {
    let rows = 1 << 20;
    let json = format!(
        r#"{{"inputs":[{{"name":"INPUT0","shape":[{rows},16],"datatype":"FP32","parameters":{{"binary_data_size":{}}}}}],"parameters":{{"binary_data_output":true}}}}"#,
        rows * 64
    );
    let mut stream = connect(address);
    let (length, whole) = (json.len(), json.len() + rows * 64);
    let head = format!(
        "POST /v2/models/m/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: {whole}\r\ninference-header-content-length: {length}\r\n\r\n{json}"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&vec![0; rows * 64]).unwrap();
    stream
}

/// Asks over HTTP/2 for an answer, and opens no window for it.
fn ask_without_a_window(address: &str) -> TcpStream {
    const INITIAL_WINDOW_SIZE: &[u8] = &[0, 4, 0, 0, 0, 0];
    let mut stream = connect(address);
    let begin = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(SETTINGS, 0, 0, INITIAL_WINDOW_SIZE)].concat();
    stream.write_all(&[begin, frame(HEADERS, END_STREAM_AND_HEADERS, 1, GET)].concat()).unwrap();
    stream
}

#[test]
fn a_peer_that_takes_no_answers_is_cut() {
    let (server, files) = start_with_details("[serve]\nunread_seconds_max = 1\n");
    let mut stuck = ask_for_much(&server.http);
    await_cut(&files, 1);
    let mut some = Vec::new();
    let end = stuck.read_to_end(&mut some);
    assert!(end.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset) || some.len() < 64 << 20, "{}", some.len());
    let mut shut = ask_without_a_window(&server.http);
    await_cut(&files, 2);
    assert!(closed(&mut shut));
    // A window that opens in time is used.
    let mut late = ask_without_a_window(&server.http);
    let mut head = [0; 9];
    while head[3] != HEADERS {
        late.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        late.read_exact(&mut vec![0; length]).unwrap();
    }
    late.write_all(&frame(WINDOW_UPDATE, 0, 1, &(1u32 << 20).to_be_bytes())).unwrap();
    let mut found = Vec::new();
    while !String::from_utf8_lossy(&found).contains("extensions") {
        let mut part = [0; 4096];
        let length = late.read(&mut part).unwrap();
        assert!(length > 0, "closed without the answer");
        found.extend_from_slice(&part[..length]);
    }
    serves(&server);
}

#[test]
fn peers_that_take_no_answers_do_not_hold_a_server_that_stops() {
    let (mut server, files) = start_with_details("[serve]\nunread_seconds_max = 500\n");
    let _stuck = (ask_for_much(&server.http), ask_without_a_window(&server.http), ask_without_a_window(&server.grpc));
    serves(&server);
    let answered = "request_success{model=\"m\",version=\"1\"} 2\n";
    support::until(answered, || support::ask(&server.metrics, "GET", "/metrics", "", b"").2.contains(answered));
    let id = rustix::process::Pid::from_child(&server.child);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    assert!(server.child.wait().unwrap().success(), "long before the grace time of ten minutes");
    await_cut(&files, 3);
}

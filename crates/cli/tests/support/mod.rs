//! What tests of `edgeward serve` share: models made in code, and the binary with a plain client.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

pub mod trust;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use edgeward_graph::{
    DataType, Model, Tensor,
    proto::{
        GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto, TypeProto, ValueInfoProto,
        tensor_shape_proto::{Dimension, dimension},
        type_proto,
    },
    tensor_proto,
};
use edgeward_serve::proto::{ModelInferRequest, model_infer_request::InferInputTensor};

/// Whichever ports are free: other tests run at the same time.
pub const FREE_PORTS: [&str; 6] = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--metrics", "127.0.0.1:0"];

pub fn port(name: &str, dtype: DataType) -> ValueInfoProto {
    let dims = [dimension::Value::DimParam("n".to_owned()), dimension::Value::DimValue(16)];
    let dim = dims.map(|value| Dimension { value: Some(value), ..Dimension::default() }).to_vec();
    let tensor = type_proto::Tensor { elem_type: Some(dtype.to_onnx()), shape: Some(TensorShapeProto { dim }) };
    let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() });
    ValueInfoProto { name: Some(name.to_owned()), r#type, ..ValueInfoProto::default() }
}

/// A tensor of unknown rank.
pub fn shapeless(dtype: DataType) -> Option<TypeProto> {
    let tensor = type_proto::Tensor { elem_type: Some(dtype.to_onnx()), shape: None };
    Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() })
}

/// A gRPC request of rows of sixteen zeros.
pub fn zeros(model: &str, rows: usize) -> ModelInferRequest {
    let input = InferInputTensor {
        name: "INPUT0".to_owned(),
        datatype: "FP32".to_owned(),
        shape: vec![rows as i64, 16],
        ..InferInputTensor::default()
    };
    ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![input],
        raw_input_contents: vec![vec![0; rows * 64].into()],
        ..ModelInferRequest::default()
    }
}

/// A model that returns its input of shape `[n, 16]`.
pub fn identity(dtype: DataType) -> Model {
    let node = NodeProto {
        op_type: Some("Identity".to_owned()),
        input: vec!["INPUT0".to_owned()],
        output: vec!["OUTPUT0".to_owned()],
        ..NodeProto::default()
    };
    let graph = GraphProto {
        name: Some("identity".to_owned()),
        node: vec![node],
        input: vec![port("INPUT0", dtype)],
        output: vec![port("OUTPUT0", dtype)],
        ..GraphProto::default()
    };
    model(graph)
}

/// Returns its input of shape `[n, 16]` after a multiplication of square matrices: 900 take tens of milliseconds.
pub fn slow(side: usize) -> Model {
    slow_chain(side, 1)
}

/// As [`slow`], with so many multiplications in a row.
pub fn slow_chain(side: usize, steps: usize) -> Model {
    let node = |op: &str, inputs: &[&str], output: &str| NodeProto {
        op_type: Some(op.to_owned()),
        input: inputs.iter().map(|&i| i.to_owned()).collect(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    };
    let matrix = Tensor::from_vec([side, side], vec![1e-3f32; side * side]).unwrap();
    let zero = Tensor::from_vec([1], vec![0f32]).unwrap();
    let mut nodes = vec![node("ReduceMax", &["INPUT0"], "most"), node("Mul", &["matrix", "most"], "product0")];
    for step in 0..steps {
        nodes.push(node("MatMul", &[&format!("product{step}"), "matrix"], &format!("product{}", step + 1)));
    }
    nodes.extend([
        node("ReduceMax", &[&format!("product{steps}")], "number"),
        node("Mul", &["number", "zero"], "nothing"),
        node("Add", &["INPUT0", "nothing"], "OUTPUT0"),
    ]);
    let graph = GraphProto {
        name: Some("slow".to_owned()),
        node: nodes,
        initializer: vec![tensor_proto("matrix", &matrix), tensor_proto("zero", &zero)],
        input: vec![port("INPUT0", DataType::Float32)],
        output: vec![port("OUTPUT0", DataType::Float32)],
        ..GraphProto::default()
    };
    model(graph)
}

/// A model of opset 17.
pub fn model(graph: GraphProto) -> Model {
    let opset = OperatorSetIdProto { version: Some(17), ..OperatorSetIdProto::default() };
    let opset_import = vec![opset];
    Model::from_proto(ModelProto { ir_version: Some(8), opset_import, graph: Some(graph), ..ModelProto::default() })
}

pub fn repository() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, dtype) in [
        ("ident", DataType::Float32),
        ("ident_str", DataType::String),
        ("ident_f16", DataType::Float16),
        ("ident_bool", DataType::Bool),
    ] {
        let version = folder.path().join(name).join("1");
        fs::create_dir_all(&version).unwrap();
        identity(dtype).write(version.join("model.onnx")).unwrap();
    }
    folder
}

/// After this a test gives up: what it waits for does not come.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Looks again until there is something, which others bring about.
pub fn awaited<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "{what} does not come");
        // Only to leave the processor to those who bring it about.
        thread::sleep(Duration::from_millis(2));
    }
}

/// Looks again until something is so, which others bring about.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    awaited(what, || holds().then_some(()));
}

/// A running server, ended when dropped.
pub struct Server {
    pub child: Child,
    pub http: String,
    pub grpc: String,
    pub metrics: String,
}

impl Server {
    pub fn start(models: &[&Path], arguments: &[&str]) -> Self {
        Self::spawn(models, arguments, Stdio::null(), |_| {})
    }

    /// A server in an environment of its own.
    pub fn start_with(models: &[&Path], arguments: &[&str], environment: impl FnOnce(&mut Command)) -> Self {
        Self::spawn(models, arguments, Stdio::null(), environment)
    }

    /// A server whose log goes to a file.
    pub fn start_logging(models: &[&Path], arguments: &[&str], log: &Path) -> Self {
        Self::spawn(models, arguments, fs::File::create(log).unwrap().into(), |_| {})
    }

    /// A server whose log, details included, goes to a file.
    pub fn start_logging_details(models: &[&Path], arguments: &[&str], log: &Path) -> Self {
        Self::spawn(models, arguments, fs::File::create(log).unwrap().into(), |command| {
            command.env("EDGEWARD_LOG", "edgeward_serve=trace");
        })
    }

    /// A server that asks who calls, by a folder of `trust init`.
    pub fn start_trusted(models: &[&Path], trust: &Path, arguments: &[&str], log: &Path) -> Self {
        let log = fs::File::create(log).unwrap().into();
        Self::spawn_as(&["--trust", trust.to_str().unwrap()], models, arguments, log, |_| {})
    }

    /// The same in an environment of its own.
    pub fn start_trusted_with(
        models: &[&Path],
        trust: &Path,
        arguments: &[&str],
        log: &Path,
        environment: impl FnOnce(&mut Command),
    ) -> Self {
        let log = fs::File::create(log).unwrap().into();
        Self::spawn_as(&["--trust", trust.to_str().unwrap()], models, arguments, log, environment)
    }

    fn spawn(models: &[&Path], arguments: &[&str], log: Stdio, environment: impl FnOnce(&mut Command)) -> Self {
        Self::spawn_as(&["--insecure"], models, arguments, log, environment)
    }

    fn spawn_as(
        how: &[&str],
        models: &[&Path],
        arguments: &[&str],
        log: Stdio,
        environment: impl FnOnce(&mut Command),
    ) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgeward"));
        environment(&mut command);
        let mut child = command
            .arg("serve")
            .args(models)
            .args(how)
            .args(FREE_PORTS)
            .arg("--json")
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        // Printed once the models have loaded, well or not.
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the server ended before it listened");
        let text: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address = |key: &str| text[key].as_str().unwrap().to_owned();
        Self { child, http: address("http"), grpc: address("grpc"), metrics: address("metrics") }
    }

    /// Bounds how large files may grow, as if the disk was full; none lifts that. The server must have been started with [`full_disks`].
    pub fn files_grow_to(&self, bytes: Option<u64>) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let resource = rustix::process::Resource::Fsize;
        let old = rustix::process::prlimit(Some(pid), resource, rustix::process::getrlimit(resource)).unwrap();
        let new = rustix::process::Rlimit { current: bytes, ..old };
        rustix::process::prlimit(Some(pid), resource, new).unwrap();
    }

    /// A line of the system's account of the process, in kB: `VmHWM` is the most memory so far, `VmPeak` the most asked for.
    pub fn memory_kb(&self, line: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let found = status.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':'));
        found.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// One request over a connection of its own: status and body.
    pub fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String) {
        let (status, _, body) = ask(&self.http, method, path, headers, body);
        (status, body)
    }

    pub fn terminate(mut self) -> std::process::ExitStatus {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::TERM)
            .unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// For a server whose files will not grow beyond a bound: the signal of that would end it.
pub fn full_disks(command: &mut Command) {
    *command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_edgeward")]);
}

/// One request over a connection of its own: status, head and body.
pub fn ask(address: &str, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String, String) {
    let mut stream = send(address, method, path, headers, body);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (status, head.to_owned(), body.to_owned())
}

/// Bytes as `gzip` compresses them.
pub fn gzip(bytes: Vec<u8>) -> Vec<u8> {
    let mut child = Command::new("gzip").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let writer = thread::spawn(move || input.write_all(&bytes));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    output.stdout
}

/// Sends a request and leaves its answer to be read.
pub fn send(address: &str, method: &str, path: &str, headers: &str, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    // A server that refuses early may close before it has read all.
    let _ = stream.write_all(body);
    stream
}

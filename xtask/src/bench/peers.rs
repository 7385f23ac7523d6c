//! The servers that are measured: Edgeward itself and those of others, each a process on loopback.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use crate::{
    bench::client::{Connection, Target},
    python, steps,
};

const START_LIMIT: Duration = Duration::from_secs(60);

/// A running server, ended when dropped.
pub struct Running {
    child: Child,
    /// Address of its REST listener.
    pub http: SocketAddr,
    /// Address of its gRPC listener.
    pub grpc: SocketAddr,
}

impl Running {
    /// Starts `command`, which listens on the two addresses, and waits until it is ready.
    pub fn start(command: &mut Command, http: SocketAddr, grpc: SocketAddr) -> anyhow::Result<Self> {
        let server = Self::spawn(command, http, grpc)?;
        server.wait_ready(command, &http.into())?;
        Ok(server)
    }

    /// The same of a server that asks who calls.
    pub fn start_verified(
        command: &mut Command,
        http: SocketAddr,
        grpc: SocketAddr,
        client: &Arc<rustls::ClientConfig>,
    ) -> anyhow::Result<Self> {
        let server = Self::spawn(command, http, grpc)?;
        server.wait_ready(command, &Target { address: http, tls: Some(client.clone()) })?;
        Ok(server)
    }

    /// Starts `command` and does not wait.
    pub fn spawn(command: &mut Command, http: SocketAddr, grpc: SocketAddr) -> anyhow::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
        Ok(Self { child, http, grpc })
    }

    fn wait_ready(&self, command: &Command, target: &Target) -> anyhow::Result<()> {
        let began = Instant::now();
        let request = b"GET /v2/health/ready HTTP/1.1\r\nhost: localhost\r\n\r\n";
        loop {
            let status = Connection::open(target.clone()).and_then(|mut c| Ok(c.ask(request)?.status));
            if status.as_ref().is_ok_and(|&code| code == 200) {
                return Ok(());
            }
            if began.elapsed() > START_LIMIT {
                bail!("{:?} was not ready within {} s", command.get_program(), START_LIMIT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> anyhow::Result<f64> {
        self.memory_bytes("VmRSS:")
    }

    /// The most resident memory that it had so far, in bytes.
    pub fn peak_bytes(&self) -> anyhow::Result<f64> {
        self.memory_bytes("VmHWM:")
    }

    fn memory_bytes(&self, figure: &str) -> anyhow::Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = text.lines().find_map(|line| line.strip_prefix(figure)).with_context(|| format!("no {figure}"))?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024.0)
    }

    /// Time that its threads have computed so far.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // User and system time are the 14th and 15th field; the second may hold blanks and ends with a bracket.
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |field: usize| fields.get(field).and_then(|ticks| ticks.parse::<f64>().ok());
        let ticks = ticks(11).zip(ticks(12)).map(|(user, system)| user + system).context("no times")?;
        Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        Ok(rustix::process::kill_process(pid, rustix::process::Signal::TERM)?)
    }

    /// Waits for the end.
    pub fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        Ok(self.child.wait()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A loopback address that nobody listens on now, below the ports that the system gives to clients: who knocks at a port of
/// those until somebody listens may be given that very port, be connected to itself, and keep the server out.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    for _ in 0..PORTS.len() {
        let offset = NEXT.fetch_add(1, Relaxed) % PORTS.len() as u16;
        let address = SocketAddr::from(([127, 0, 0, 1], PORTS.start + offset));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no port of {} to {} is free", PORTS.start, PORTS.end)
}

const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// The release build of `edgeward`, and what it runs.
pub struct Edgeward {
    /// The binary.
    pub binary: PathBuf,
    /// Folder of the models that the scripts made.
    pub models: PathBuf,
    /// Folder for repositories and request bodies, emptied before each run.
    pub work: PathBuf,
    /// Python with the pinned packages of the tests.
    pub python: PathBuf,
    /// True where ONNX Runtime is installed.
    pub onnxruntime: bool,
}

impl Edgeward {
    /// Builds the binary and makes these models.
    pub fn prepare(names: &[&str]) -> anyhow::Result<Self> {
        let root = crate::root();
        steps::run(Command::new("cargo").current_dir(&root).args([
            "build",
            "--release",
            "--quiet",
            "--bin",
            "edgeward",
        ]))?;
        let binary = root.join("target/release/edgeward");
        let models = root.join("target/models");
        let python = python::ensure(&root)?.main;
        if !names.is_empty() {
            let mut make = Command::new(&python);
            make.arg(root.join("tests/models/make.py")).arg(&models).args(names);
            // The quantiser warns that it could be given a simpler graph.
            steps::run(make.stdout(Stdio::null()).stderr(Stdio::null()))?;
        }
        let work = root.join("target/bench-work");
        if work.exists() {
            fs::remove_dir_all(&work)?;
        }
        fs::create_dir_all(&work)?;
        let installed =
            steps::run(Command::new(&binary).args(["engine", "install", "onnxruntime"]).stdout(Stdio::null()));
        Ok(Self { binary, models, work, python, onnxruntime: installed.is_ok() })
    }

    /// The engine that is expected to be the fastest here.
    pub fn fast_engine(&self) -> &'static str {
        if self.onnxruntime { "onnxruntime" } else { "rten" }
    }

    /// Path of a made model.
    pub fn model(&self, name: &str) -> PathBuf {
        self.models.join(format!("{name}.onnx"))
    }

    /// A fresh repository that holds one model, with a configuration where given.
    pub fn repository(&self, name: &str, config: Option<&str>) -> anyhow::Result<PathBuf> {
        let folder = tempfile::Builder::new().prefix(name).tempdir_in(&self.work)?.keep();
        let version = folder.join(name).join("1");
        fs::create_dir_all(&version)?;
        let file = version.join("model.onnx");
        // Files of 100 MB: a hard link where the file system allows it would be refused as hostile, so a copy.
        fs::copy(self.model(name), file)?;
        if let Some(config) = config {
            fs::write(folder.join(name).join("config.pbtxt"), config)?;
        }
        Ok(folder)
    }

    /// `edgeward serve` on a folder, not yet started.
    pub fn command(&self, models: &Path, arguments: &[&str]) -> anyhow::Result<(Command, SocketAddr, SocketAddr)> {
        self.command_as(&["--insecure"], models, arguments)
    }

    /// `edgeward serve` that asks who calls, or does not.
    pub fn command_as(
        &self,
        how: &[&str],
        models: &Path,
        arguments: &[&str],
    ) -> anyhow::Result<(Command, SocketAddr, SocketAddr)> {
        let (http, grpc) = (free_address()?, free_address()?);
        let mut command = Command::new(&self.binary);
        command.current_dir(&self.work).arg("serve").arg(models).args(how).args(["--metrics", "127.0.0.1:0"]);
        command.args(["--http", &http.to_string(), "--grpc", &grpc.to_string()]).args(arguments);
        Ok((command, http, grpc))
    }

    /// `edgeward serve` on a folder, ready.
    pub fn serve(&self, models: &Path, arguments: &[&str]) -> anyhow::Result<Running> {
        let (mut command, http, grpc) = self.command(models, arguments)?;
        Running::start(&mut command, http, grpc)
    }

    /// `edgeward bench` on a model: median in milliseconds and items per second.
    pub fn bare(&self, model: &str, arguments: &[&str], seconds: f64) -> anyhow::Result<(f64, f64)> {
        let mut command = Command::new(&self.binary);
        command.current_dir(&self.work).arg("bench").arg(self.model(model)).arg("--json");
        command.args(["--seconds", &seconds.to_string()]).args(arguments);
        let report: serde_json::Value = serde_json::from_str(&steps::output(&mut command)?)?;
        let number = |key: &str| report[key].as_f64().with_context(|| format!("`edgeward bench` reports no `{key}`"));
        Ok((number("p50_ms")?, number("per_second")?))
    }
}

/// A server of others that runs the identity model.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Triton with the C backend of `bench/triton-identity`.
    Triton,
    /// MLServer in one process.
    MlServer,
    /// KServe's Python server with one worker.
    KServe,
}

impl Peer {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Triton, Self::MlServer, Self::KServe];

    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Triton => "Triton",
            Self::MlServer => "MLServer",
            Self::KServe => "KServe",
        }
    }

    /// Its package, pinned.
    pub fn requirement(self) -> &'static str {
        match self {
            Self::Triton => "nvidia-pytriton==0.7.0",
            Self::MlServer => "mlserver==1.7.1",
            Self::KServe => "kserve==0.21.0",
        }
    }

    /// Installs and starts it; the model is called `identity`.
    pub fn start(self, work: &Path) -> anyhow::Result<Running> {
        let root = crate::root();
        let python = python::ensure_package(&root.join("target/bench-env"), self.requirement())?;
        let (http, grpc) = (free_address()?, free_address()?);
        let mut command = match self {
            Self::Triton => triton(&root, work, &python, http, grpc)?,
            Self::MlServer => mlserver(&root, work, &python, http, grpc)?,
            Self::KServe => {
                let mut command = Command::new(python);
                command.arg(root.join("bench/kserve_identity.py"));
                command.args([http.port().to_string(), grpc.port().to_string()]);
                command
            }
        };
        command.current_dir(work).env("PYTHONDONTWRITEBYTECODE", "1");
        Running::start(&mut command, http, grpc).with_context(|| format!("{} does not start", self.name()))
    }
}

fn triton(root: &Path, work: &Path, python: &Path, http: SocketAddr, grpc: SocketAddr) -> anyhow::Result<Command> {
    let purelib = "import sysconfig; print(sysconfig.get_path('purelib'))";
    let site = PathBuf::from(steps::output(Command::new(python).args(["-c", purelib]))?.trim());
    let (backends, models) = (work.join("triton/backends"), work.join("triton/models"));
    fs::create_dir_all(backends.join("identity"))?;
    fs::create_dir_all(models.join("identity/1"))?;
    let source = root.join("bench/triton-identity");
    let library = backends.join("identity/libtriton_identity.so");
    let mut compile = Command::new("cc");
    steps::run(compile.args(["-O2", "-shared", "-fPIC", "-o"]).arg(library).arg(source.join("identity.c")))?;
    fs::copy(source.join("config.pbtxt"), models.join("identity/config.pbtxt"))?;
    let mut command = Command::new(site.join("pytriton/tritonserver/bin/tritonserver"));
    command.env("LD_LIBRARY_PATH", site.join("nvidia_pytriton.libs"));
    let option = |name: &str, value: &dyn std::fmt::Display| format!("--{name}={value}");
    command.args([
        option("model-repository", &models.display()),
        option("backend-directory", &backends.display()),
        option("http-address", &http.ip()),
        option("http-port", &http.port()),
        option("grpc-address", &grpc.ip()),
        option("grpc-port", &grpc.port()),
        option("allow-metrics", &false),
        option("exit-timeout-secs", &3),
    ]);
    Ok(command)
}

fn mlserver(root: &Path, work: &Path, python: &Path, http: SocketAddr, grpc: SocketAddr) -> anyhow::Result<Command> {
    let folder = work.join("mlserver");
    fs::create_dir_all(&folder)?;
    fs::copy(root.join("bench/mlserver/identity.py"), folder.join("identity.py"))?;
    let model = serde_json::json!({ "name": "identity", "implementation": "identity.Identity" });
    let settings = serde_json::json!({
        "host": http.ip(), "http_port": http.port(), "grpc_port": grpc.port(), "metrics_port": free_address()?.port(),
        // One process, since every side has one; and no line of log per request.
        "parallel_workers": 0, "debug": false,
        "logging_settings": { "version": 1, "disable_existing_loggers": true, "root": { "level": "WARNING" } },
    });
    fs::write(folder.join("model-settings.json"), model.to_string())?;
    fs::write(folder.join("settings.json"), settings.to_string())?;
    let mut command = Command::new(python.with_file_name("mlserver"));
    command.arg("start").arg(folder);
    Ok(command)
}

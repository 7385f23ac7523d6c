//! The backend node tests that the `onnx` package carries, through each engine.
//!
//! What an engine does not pass is listed in `node_tests/unsupported-ENGINE.txt` with the reason's class. The list may
//! only shrink: a failure that is not listed fails this test, and so does a listed one that passes now. After a change
//! that is meant, `EDGEWARD_BLESS=1` writes the lists anew. A process of its own runs the cases, since a library that
//! aborts or hangs must cost one case only.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead as _, BufReader},
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use bytes::Bytes;
use edgeward_engine::{
    Engine, EngineError, ErrorKind, NAMES, Registry, RegistryConfig, RunOptions, SessionOptions, Source,
};
use edgeward_graph::{DataType, Tensor};
use serde::Deserialize;

const WORKER: &str = "EDGEWARD_NODE_TESTS_WORKER";
const FIRST: &str = "EDGEWARD_NODE_TESTS_FIRST";
/// Precedes what the worker tells, apart from what test harness and libraries print.
const MARK: &str = "@@";
/// A case takes milliseconds; this is a hang even on a busy machine.
const CASE_LIMIT: Duration = Duration::from_secs(60);

#[test]
fn every_engine_passes_what_is_not_listed() {
    let Some(folder) = dumped() else { return };
    let cases = read_index(&folder).cases;
    let complaints: Vec<_> = NAMES.iter().flat_map(|engine| check(engine, &cases)).collect();
    assert!(complaints.is_empty(), "{}\nEDGEWARD_BLESS=1 writes the lists anew", complaints.join("\n"));
}

#[derive(Deserialize)]
struct Index {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    rtol: f64,
    atol: f64,
    /// Why the case cannot be put to an engine: it has inputs or outputs that are no dense tensors.
    skip: Option<String>,
    #[serde(default)]
    model: Place,
    #[serde(default)]
    sets: Vec<Set>,
}

#[derive(Deserialize)]
struct Set {
    inputs: Vec<Value>,
    outputs: Vec<Value>,
}

#[derive(Deserialize)]
struct Value {
    name: String,
    dtype: i32,
    shape: Vec<usize>,
    at: Option<Place>,
    strings: Option<Vec<String>>,
}

/// Offset and length in the file of bytes.
#[derive(Deserialize, Default, Clone, Copy)]
struct Place(usize, usize);

impl Place {
    fn range(self) -> Range<usize> {
        self.0..self.0 + self.1
    }
}

impl Value {
    fn tensor(&self, blob: &Bytes) -> Tensor {
        let dtype = DataType::from_onnx(self.dtype).unwrap();
        match &self.strings {
            Some(strings) => {
                Tensor::from_strings(self.shape.clone(), strings.iter().map(|s| s.clone().into()).collect()).unwrap()
            }
            None => Tensor::from_raw(dtype, self.shape.clone(), blob.slice(self.at.unwrap().range())).unwrap(),
        }
    }
}

/// What differs from the engine's list.
fn check(engine: &str, cases: &[Case]) -> Vec<String> {
    if let Err(error) = Registry::new(RegistryConfig::default()).get(engine) {
        assert!(env::var_os("EDGEWARD_ALL_ENGINES").is_none(), "{error}");
        println!("skipped: {error}");
        return Vec::new();
    }
    let results = run_cases(engine, cases);
    let tensors = cases.iter().filter(|case| case.skip.is_none()).count();
    println!(
        "{engine}: {} of {tensors} cases pass; {} have inputs or outputs that are no tensors",
        tensors - results.len(),
        cases.len() - tensors
    );
    compare_with_list(engine, &results)
}

/// Where the cases are, made by the `onnx` package once for each of its versions; none without Python.
fn dumped() -> Option<PathBuf> {
    let Some(python) = env::var_os("EDGEWARD_TEST_PYTHON") else {
        println!("skipped: EDGEWARD_TEST_PYTHON is not set");
        return None;
    };
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let version = Command::new(&python).args(["-c", "import onnx; print(onnx.__version__)"]).output().unwrap();
    assert!(version.status.success(), "{}", String::from_utf8_lossy(&version.stderr));
    let version = String::from_utf8(version.stdout).unwrap();
    let folder = here.join("../../target/node-tests").join(version.trim());
    if !folder.join("index.json").exists() {
        // Each writes its own folder and the first one to be ready gives it its name: two test runs may be here at once.
        let made = tempfile::tempdir_in(here.join("../../target")).unwrap();
        let script = here.join("tests/node_tests/dump.py");
        let dump = Command::new(&python).arg(script).arg(made.path()).stderr(Stdio::null()).status().unwrap();
        assert!(dump.success(), "dump.py ended with {dump}");
        fs::create_dir_all(folder.parent().unwrap()).unwrap();
        if fs::rename(made.path(), &folder).is_err() {
            assert!(folder.join("index.json").exists(), "cannot write `{}`", folder.display());
        }
    }
    Some(folder)
}

fn read_index(folder: &Path) -> Index {
    serde_json::from_slice(&fs::read(folder.join("index.json")).unwrap()).unwrap()
}

/// The cases that do not pass, with class and reason.
fn run_cases(engine: &str, cases: &[Case]) -> BTreeMap<String, (String, String)> {
    let mut failures = BTreeMap::new();
    let mut next = 0;
    while next < cases.len() {
        let worker = Worker::start(engine, next);
        let ended = loop {
            match worker.lines.recv_timeout(CASE_LIMIT) {
                Ok(line) => {
                    let mut words = line.splitn(3, ' ');
                    next = words.next().unwrap().parse::<usize>().unwrap() + 1;
                    let (class, reason) = (words.next().unwrap(), words.next().unwrap_or(""));
                    if class != "ok" {
                        failures.insert(cases[next - 1].name.clone(), (class.to_owned(), reason.to_owned()));
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => break "hang",
                Err(mpsc::RecvTimeoutError::Disconnected) => break "crash",
            }
        };
        worker.end();
        if next < cases.len() {
            failures.insert(cases[next].name.clone(), (ended.to_owned(), String::new()));
            next += 1;
        }
    }
    failures
}

struct Worker {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Worker {
    fn start(engine: &str, first: usize) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "worker", "--ignored", "--nocapture"])
            .env(WORKER, engine)
            .env(FIRST, first.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::sync_channel(64);
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let Some(told) = line.strip_prefix(MARK) else { continue };
                if sender.send(told.to_owned()).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    fn end(mut self) {
        drop(self.child.kill());
        self.child.wait().unwrap();
    }
}

/// Runs the cases from [`FIRST`] on and prints a line for each: number, class, reason.
#[test]
#[ignore = "the other test starts it in a process of its own"]
fn worker() {
    let Ok(engine) = env::var(WORKER) else { return };
    let folder = dumped().unwrap();
    let blob = Bytes::from(fs::read(folder.join("data.bin")).unwrap());
    let engine = Registry::new(RegistryConfig::default()).get(&engine).unwrap();
    let first = env::var(FIRST).unwrap().parse().unwrap();
    println!();
    for (i, case) in read_index(&folder).cases.iter().enumerate().skip(first) {
        let (class, reason) = match case.skip {
            Some(_) => ("ok", String::new()),
            None => run_case(engine.as_ref(), case, &blob).err().unwrap_or(("ok", String::new())),
        };
        println!("{MARK}{i} {class} {}", reason.replace('\n', " "));
    }
}

type Failure = (&'static str, String);

fn run_case(engine: &dyn Engine, case: &Case, blob: &Bytes) -> Result<(), Failure> {
    let source = Source::Bytes(blob.slice(case.model.range()));
    let options = SessionOptions { threads: std::num::NonZeroUsize::new(1), ..SessionOptions::default() };
    let session = engine.load(&source, &options).map_err(|e| refusal(&e))?;
    for set in &case.sets {
        let tensors: Vec<_> = set.inputs.iter().map(|v| (v.name.as_str(), v.tensor(blob))).collect();
        let inputs: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let outputs = session.run(&inputs, RunOptions::default()).map_err(|e| refusal(&e))?;
        if outputs.len() != set.outputs.len() {
            return Err(("wrong", format!("{} outputs, expected {}", outputs.len(), set.outputs.len())));
        }
        for (wanted, got) in set.outputs.iter().zip(&outputs) {
            similar(&wanted.tensor(blob), got, case).map_err(|e| ("wrong", format!("`{}`: {e}", wanted.name)))?;
        }
    }
    Ok(())
}

fn refusal(error: &EngineError) -> Failure {
    let class = match error.kind() {
        ErrorKind::Unsupported => "unsupported",
        ErrorKind::InvalidModel => "invalid-model",
        ErrorKind::InvalidInput => "invalid-input",
        _ => "failed",
    };
    (class, error.message().to_owned())
}

/// As the package's own runner compares: type and shape equal, numbers within `atol + rtol × |wanted|`.
fn similar(wanted: &Tensor, got: &Tensor, case: &Case) -> Result<(), String> {
    if (wanted.dtype(), wanted.shape()) != (got.dtype(), got.shape()) {
        let header = |t: &Tensor| format!("{} {:?}", t.dtype(), t.shape());
        return Err(format!("{}, expected {}", header(got), header(wanted)));
    }
    let (Some(wanted_numbers), Some(got_numbers)) = (numbers(wanted), numbers(got)) else {
        return if wanted == got { Ok(()) } else { Err("other values".to_owned()) };
    };
    for (w, g) in wanted_numbers.into_iter().zip(got_numbers) {
        let same = w == g || (w.is_nan() && g.is_nan());
        if !same && ((w - g).abs() > case.atol + case.rtol * w.abs() || w.is_nan() || g.is_nan()) {
            return Err(format!("{g}, expected {w}"));
        }
    }
    Ok(())
}

/// The elements as numbers; none for types that have no Rust form, which are compared byte by byte.
fn numbers(tensor: &Tensor) -> Option<Vec<f64>> {
    macro_rules! convert {
        ($($dtype:ident: $rust:ty => $to:expr),* $(,)?) => {
            match tensor.dtype() {
                $(DataType::$dtype => tensor.values::<$rust>().unwrap().iter().copied().map($to).collect(),)*
                _ => return None,
            }
        };
    }
    Some(convert! {
        Float32: f32 => f64::from, Float64: f64 => |v| v, Float16: half::f16 => f64::from,
        BFloat16: half::bf16 => f64::from, Int8: i8 => f64::from, Int16: i16 => f64::from, Int32: i32 => f64::from,
        Int64: i64 => |v| v as f64, UInt8: u8 => f64::from, UInt16: u16 => f64::from, UInt32: u32 => f64::from,
        UInt64: u64 => |v| v as f64,
    })
}

fn compare_with_list(engine: &str, results: &BTreeMap<String, (String, String)>) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/node_tests/unsupported-{engine}.txt"));
    let now: BTreeMap<_, _> = results.iter().map(|(name, (class, _))| (name.as_str(), class.as_str())).collect();
    if env::var_os("EDGEWARD_BLESS").is_some() {
        let text: String = now.iter().map(|(name, class)| format!("{name} {class}\n")).collect();
        fs::write(&path, text).unwrap();
        return Vec::new();
    }
    let text = fs::read_to_string(&path).unwrap_or_default();
    let kept: BTreeMap<_, _> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    let mut complaints = Vec::new();
    for (name, (class, reason)) in results {
        match kept.get(name.as_str()) {
            Some(listed) if listed == class => {}
            Some(listed) => complaints.push(format!("{engine}: {name} was listed as {listed}, now {class}: {reason}")),
            None => complaints.push(format!("{engine}: {name} is not listed, now {class}: {reason}")),
        }
    }
    for name in kept.keys().filter(|name| !now.contains_key(*name)) {
        complaints.push(format!("{engine}: {name} is listed and passes now: take it off `{}`", path.display()));
    }
    complaints
}

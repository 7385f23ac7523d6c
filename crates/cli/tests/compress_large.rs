//! `edgeward compress` as it goes about models beyond 2 GB, on one that a test can make: `--large` says from where on a model is large.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use binary::{edgeward, json, others_open, python, text};
use serde_json::Value;

#[path = "support/binary.rs"]
mod binary;

/// A GPT-like graph of 34 MB in `big/`; none without Python.
fn folder() -> Option<tempfile::TempDir> {
    let Some(python) = python() else {
        println!("skipped: EDGEWARD_TEST_PYTHON is not set");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bench/big_model.py");
    let made = Command::new(python).arg(script).arg(folder.path().join("big")).args(["2", "512", "4000"]).output();
    let made = made.unwrap();
    assert!(made.status.success(), "{}", text(&made));
    Some(folder)
}

const WORDS: &str = "compress big/model.onnx --data big/prompts.npz --large 1000000 --for size --max-drop 0.1 -o out";

fn bytes(folder: &Path, files: &[String]) -> u64 {
    files.iter().map(|file| fs::metadata(folder.join(file)).unwrap().len()).sum()
}

/// What the ONNX package's own runtime says of each file, held against the original: the least cosine of a prompt.
const COSINES: &str = "
import json, numpy, onnxruntime, sys
ids = numpy.load('big/prompts.npz')['ids']
def said(path):
    return onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider']).run(None, {'ids': ids})[0]
def unit(rows):
    return rows / numpy.linalg.norm(rows, axis=1, keepdims=True)
before = unit(said('big/model.onnx'))
print(json.dumps({path: float((before * unit(said(path))).sum(1).min()) for path in sys.argv[1:]}))
";

#[test]
fn weights_go_into_files_of_their_own() {
    let Some(folder) = folder() else { return };
    let path = folder.path();
    let output = edgeward(path, &format!("{WORDS} --json"));
    assert!(output.status.success(), "{}", text(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let variants = report["variants"].as_array().unwrap();
    let named = |name: &str| variants.iter().find(|v| v["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!((&report["timing"], &report["data"]["calibrated"]), (&"one_by_one".into(), &0.into()));
    let original = ["big/model.onnx", "big/model.onnx.data"].map(str::to_owned);
    assert_eq!(report["original"]["figures"]["bytes"], bytes(path, &original));
    assert!(report["memory"]["bytes_max"].as_u64() >= report["memory"]["quantising_bytes_max"].as_u64());
    // Half-size floats, and what is observed, are told rather than forgotten.
    for name in ["fp16", "bf16", "int4-gptq", "int8"] {
        assert!(named(name)["refused"].as_str().unwrap().contains("not tried on a model of this size"), "{name}");
    }
    let written: Vec<&Value> = variants.iter().filter(|variant| variant["file"].is_string()).collect();
    let files: Vec<String> = written.iter().map(|v| format!("out/{}", v["file"].as_str().unwrap())).collect();
    for (variant, file) in written.iter().zip(&files) {
        let both = bytes(path, &[file.clone(), format!("{file}.data")]);
        assert_eq!(variant["figures"]["bytes"], both, "{file}");
    }
    // The chosen graph is there twice, its data once.
    let chosen = named(report["chosen"].as_str().unwrap())["file"].as_str().unwrap();
    assert_eq!(fs::read(path.join("out/model.onnx")).unwrap(), fs::read(path.join("out").join(chosen)).unwrap());
    assert!(!path.join("out/model.onnx.data").exists() && !path.join("out.partial").exists());
    others_open(&path.join("out"));
    let run = Command::new(python().unwrap()).args(["-c", COSINES]).args(&files).current_dir(path).output().unwrap();
    let cosines: Value = serde_json::from_slice(&run.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&run)));
    for (variant, file) in written.iter().zip(&files) {
        let (own, theirs) = (variant["agreement"]["cosine_least"].as_f64().unwrap(), cosines[file].as_f64().unwrap());
        assert!((own - theirs).abs() < 0.01 && theirs > 0.9, "{file}: {own} {theirs}");
    }
    // A release takes the data along.
    let packed = json(path, "release pack out --out release");
    let all = packed["manifest"]["files"].as_object().unwrap();
    let size: u64 = all.values().map(|file| file["size"].as_u64().unwrap()).sum();
    assert!(size > written.iter().map(|v| v["figures"]["bytes"].as_u64().unwrap()).sum::<u64>());
}

#[test]
fn a_full_disk_leaves_nothing_half() {
    let Some(folder) = folder() else { return };
    let path = folder.path();
    // What a full disk is to a writer: files may have 1 MB (ulimit counts in 512 or 1024 bytes).
    let limited = format!("ulimit -f 1000; exec {} {WORDS}", env!("CARGO_BIN_EXE_edgeward"));
    let output = Command::new("sh").args(["-c", &limited]).current_dir(path).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let said = text(&output);
    assert!(said.contains("cannot write") && said.contains("int8-dynamic.onnx.data"), "{said}");
    assert!(!path.join("out").exists());
    let left = fs::read_dir(path.join("out.partial")).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<String> = left.map(|name| name.to_string_lossy().into_owned()).collect();
    assert!(left.iter().all(|name| !name.contains("int8-dynamic")), "{left:?}");
    assert!(edgeward(path, WORDS).status.success());
}

#[test]
fn an_interrupted_run_goes_on() {
    let Some(folder) = folder() else { return };
    let path = folder.path();
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgeward"));
    let command = command.args(WORDS.split(' ')).current_dir(path).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let partial = path.join("out.partial");
    while !partial.join("int8-dynamic.json").is_file() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it made anything");
        std::thread::sleep(Duration::from_millis(2));
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", text(&ended));
    assert!(text(&ended).contains("goes on from there") && !path.join("out").exists(), "{}", text(&ended));
    // What a process leaves that was killed.
    fs::write(partial.join(".int4-weights.onnx.data.1"), "half").unwrap();
    let again = edgeward(path, WORDS);
    assert!(again.status.success(), "{}", text(&again));
    assert!(text(&again).contains("`int8-dynamic` is taken from the run"), "{}", text(&again));
    assert!(!partial.exists() && path.join("out/model.onnx").is_file());
    let hidden = fs::read_dir(path.join("out")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(hidden.into_iter().all(|name| !name.as_encoded_bytes().starts_with(b".")));
}

#[test]
fn what_needs_the_model_several_times_is_refused() {
    let Some(folder) = folder() else { return };
    for (words, named) in [
        ("--student-layers 1", "`--student-layers`"),
        ("--qat 1", "`--qat`"),
        ("--prune 0.5", "`--prune`"),
        ("--prune-blocks 1", "`--prune-blocks`"),
    ] {
        let output = edgeward(folder.path(), &format!("{WORDS} {words}"));
        assert_eq!(output.status.code(), Some(2), "{words}: {}", text(&output));
        assert!(text(&output).contains(named) && text(&output).contains("too large"), "{}", text(&output));
        assert!(!folder.path().join("out").exists() && !folder.path().join("out.partial").exists(), "{words}");
    }
    fs::remove_file(folder.path().join("big/model.onnx.data")).unwrap();
    let output = edgeward(folder.path(), WORDS);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("model.onnx.data"), "{}", text(&output));
}

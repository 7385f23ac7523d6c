//! `edgeward compress` with candidates that learn: students and integers that were trained for, through the binary.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use binary::{edgeward, json, others_open, text};
use serde_json::{Value, json};

#[path = "support/binary.rs"]
mod binary;

/// Texts of two kinds, told apart by the words they prefer.
fn texts(path: &Path, count: usize) {
    let mut lines = "text,kind\n".to_owned();
    for i in 0..count {
        let word = |k: usize| format!("w{}", (i * 7919 + k * 104_729 + i * k * 31) % 40 + 20 * (i % 2));
        let words: Vec<String> = (0..10).map(word).collect();
        lines += &format!("{},kind{}\n", words.join(" "), i % 2);
    }
    fs::write(path, lines).unwrap();
}

/// A folder with `texts.csv` and `net.onnx`, a transformer that was trained for a moment.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    texts(&path.join("texts.csv"), 240);
    json(path, "train new transformer --input 12 --classes 2 --width 32 --depth 4 --vocabulary 90 -o start.onnx");
    json(
        path,
        "train start.onnx --data texts.csv --text text --target kind -o net.onnx --epochs 2 --batch 20 --portable",
    );
    folder
}

/// The report, whatever came of it: a busy machine may find each variant slower.
fn report(folder: &Path, words: &str) -> (Value, BTreeMap<String, Value>) {
    let output = edgeward(folder, &format!("{words} --json"));
    assert!(matches!(output.status.code(), Some(0 | 1)), "{words}: {}", text(&output));
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{words}: {e}: {}", text(&output)));
    let variants = report["variants"].as_array().unwrap();
    let named =
        variants.iter().map(|variant| (variant["name"].as_str().unwrap().to_owned(), variant.clone())).collect();
    (report, named)
}

/// An engine ran it, and what it says was judged.
fn judged(variant: &Value) -> f64 {
    assert!(variant["figures"].is_object(), "{variant}");
    variant["metric"].as_f64().unwrap()
}

#[test]
fn a_student_and_trained_integers_are_judged_like_all_others() {
    let folder = folder();
    let path = folder.path();
    // A quarter of them with the wrong kind, so that they are judged unlike those that are learnt from.
    texts(&path.join("held.csv"), 60);
    let held = fs::read_to_string(path.join("held.csv")).unwrap();
    let wrong = |(at, line): (usize, &str)| if at % 4 == 1 { line.replace("kind0", "kind1") } else { line.to_owned() };
    fs::write(path.join("held.csv"), held.lines().enumerate().map(wrong).collect::<Vec<_>>().join("\n")).unwrap();
    let words = "compress net.onnx --data texts.csv --val held.csv --text text --target kind --student-layers 1 \
                 --epochs 2 --qat 1 --quick --for size --max-drop 0.5 -o out";
    let (report, variants) = report(path, words);
    assert_eq!(report["data"]["examples"], 60);
    let evaluated = |words: &str| {
        let told = json(path, &format!("evaluate {words} --text text --target kind"));
        told["accuracy"].as_f64().unwrap()
    };
    let original = judged(&report["original"]);
    for words in ["--data held.csv", "--data texts.csv --val held.csv"] {
        assert!((evaluated(&format!("net.onnx {words}")) - original).abs() < 1e-6, "{words}: {original}");
    }
    for name in ["int8-qat", "int8-inputs-qat", "student", "student-int8", "student-int8-qat"] {
        let variant = variants.get(name).unwrap_or_else(|| panic!("`{name}` is not among {:?}", variants.keys()));
        judged(variant);
    }
    let student = &variants["student"];
    let bytes = |variant: &Value| variant["figures"]["bytes"].as_u64().unwrap();
    assert!(bytes(student) * 2 < bytes(&report["original"]), "{student}");
    assert!(bytes(&variants["student-int8"]) < bytes(student));
    let recipe = student["recipe"].as_str().unwrap();
    assert!(recipe.contains("1 of 4 layers") && recipe.contains("1 attention maps"), "{recipe}");
    assert!(judged(student) >= original - 0.15, "{student}");
    // The file is what was judged, by the command that judges any model, and by other implementations.
    assert!(report["chosen"].is_string(), "{report}");
    let chosen = judged(&variants[report["chosen"].as_str().unwrap()]);
    let evaluated = evaluated("out/model.onnx --data held.csv");
    assert!((evaluated - chosen).abs() < 0.06, "{evaluated} {chosen}");
    others_open(&path.join("out"));
}

/// Two bands of points without labels, as a model's inputs.
fn points(path: &Path, count: usize) {
    let number =
        |i: usize, k: usize| ((i * 7919 + k * 104_729) % 1000) as f64 / 1000.0 + 0.3 * (i % 2 * (k % 3)) as f64;
    let rows: Vec<Vec<f64>> = (0..count).map(|i| (0..8).map(|k| number(i, k)).collect()).collect();
    fs::write(path, json!({ "input": rows }).to_string()).unwrap();
}

#[test]
fn a_given_student_learns_from_inputs_without_labels() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    json(path, "train new mlp --input 8 --classes 3 --width 64 -o net.onnx --seed 1");
    json(path, "train new mlp --input 8 --classes 3 --width 16 -o small.onnx --seed 2");
    let input = json(path, "inspect net.onnx")["inputs"][0]["name"].as_str().unwrap().to_owned();
    points(&path.join("points.json"), 200);
    let renamed = fs::read_to_string(path.join("points.json")).unwrap().replace("input", &input);
    fs::write(path.join("points.json"), renamed).unwrap();
    let base = "compress net.onnx --data points.json --student small.onnx --quick --max-drop 0.5 -o out";
    let trained = report(path, &format!("{base} --epochs 40 --rate 0.01"));
    assert_eq!(trained.0["data"]["kind"], "given");
    let untrained = report(path, &format!("{base} --epochs 1 --rate 0.0000001"));
    let cosine = |(_, variants): &(Value, BTreeMap<String, Value>)| judged(&variants["student"]);
    assert!(cosine(&trained) > 0.9, "{}", cosine(&trained));
    assert!(cosine(&trained) > cosine(&untrained) + 0.1, "{} {}", cosine(&trained), cosine(&untrained));
}

#[test]
fn an_interrupted_run_goes_on() {
    let folder = folder();
    let path = folder.path();
    let words = "compress net.onnx --data texts.csv --text text --target kind --student-layers 1 --epochs 1 --qat 1 \
                 --prune 0.3 --quick --for size --max-drop 0.5 -o out --json";
    let mut child = Command::new(env!("CARGO_BIN_EXE_edgeward"));
    let child = child.args(words.split_whitespace()).current_dir(path).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = child.spawn().unwrap();
    let partial = path.join("out.partial");
    while !partial.join("pruned-30.json").is_file() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it pruned anything");
        std::thread::sleep(Duration::from_millis(5));
    }
    // Nobody else writes the same result meanwhile.
    let other = edgeward(path, "compress net.onnx --quick -o out");
    assert_eq!(other.status.code(), Some(2));
    assert!(text(&other).contains("another compression works in"), "{}", text(&other));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", text(&ended));
    assert!(text(&ended).contains("goes on from there") && !path.join("out").exists(), "{}", text(&ended));
    // The same again takes what was trained, and leaves nothing but its result.
    let mut again = Command::new(env!("CARGO_BIN_EXE_edgeward"));
    let again = again.args(words.split_whitespace()).current_dir(path).output().unwrap();
    for group in ["int8-qat", "pruned-30"] {
        assert!(text(&again).contains(&format!("`{group}` is taken from the run")), "{}", text(&again));
    }
    let report: Value = serde_json::from_slice(&again.stdout).unwrap();
    // Where something learns, a tenth of data without parts of its own judges and is not learnt from.
    assert_eq!(report["data"]["examples"], 24);
    let names: Vec<&str> =
        report["variants"].as_array().unwrap().iter().map(|variant| variant["name"].as_str().unwrap()).collect();
    for name in ["int8-qat", "int8-inputs-qat", "pruned-30", "pruned-30-int8", "student", "student-int8-qat"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(!partial.exists());
    // Another command begins anew.
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join("command.json"), "another").unwrap();
    fs::write(partial.join("int8-qat.json"), "[]").unwrap();
    let anew =
        edgeward(path, "compress net.onnx --data texts.csv --text text --target kind --qat 1 --quick -o out --json");
    assert!(!text(&anew).contains("is taken from") && text(&anew).contains("int8-inputs-qat"), "{}", text(&anew));
}

#[test]
fn what_cannot_be_learnt_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    json(path, "train new mlp --input 8 --classes 3 --width 16 -o net.onnx");
    json(path, "train new mlp --input 9 --classes 3 --width 16 -o wide.onnx");
    let input = json(path, "inspect net.onnx")["inputs"][0]["name"].as_str().unwrap().to_owned();
    fs::write(path.join("points.json"), json!({ input: vec![vec![0.5; 8]; 40] }).to_string()).unwrap();
    let with_data = "--data points.json --quick --engine rten";
    for (words, expected) in [
        ("--student-layers 1 --quick".to_owned(), "nothing can be learnt from made-up inputs"),
        ("--qat 1 --quick".to_owned(), "nothing can be learnt from made-up inputs"),
        (format!("--student gone.onnx {with_data}"), "does not exist"),
        (format!("--student net.onnx --student-layers 1 {with_data}"), "cannot be used with"),
        (format!("--student-layers 7 {with_data}"), "layers"),
        (format!("--student wide.onnx {with_data}"), "the data must fit both"),
        (format!("--student net.onnx --temperature 0 {with_data}"), "temperature `0`"),
        (format!("--student net.onnx --alpha 2 {with_data}"), "expected 0 to 1"),
        (format!("--student net.onnx --rate 0 {with_data}"), "expected a number above 0"),
        ("--val points.json --quick".to_owned(), "`--val` goes with labelled data, not with made-up inputs"),
        (format!("--val-fraction 0.5 {with_data}"), "`--val-fraction` goes with labelled data"),
        (format!("--match a=b {with_data}"), "`--student FILE`"),
        (format!("--student net.onnx --match a {with_data}"), "expected `STUDENT=MODEL`"),
        (format!("--student net.onnx --match a=b {with_data}"), "`a` of the student"),
        (format!("--student net.onnx --epochs 0 {with_data}"), "--epochs"),
    ] {
        let output = edgeward(path, &format!("compress net.onnx -o out {words}"));
        assert_eq!(output.status.code(), Some(2), "{words}: {}", text(&output));
        assert!(text(&output).contains(expected), "{words}: {}", text(&output));
        assert!(!path.join("out").exists(), "{words}");
    }
    // A training that leads nowhere takes nothing else with it.
    let words = format!("--qat 1 --qat-rate 1e30 {with_data} --json");
    let output = edgeward(path, &format!("compress net.onnx -o out {words}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("no `int8-qat`: "), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["variants"].as_array().unwrap().iter().any(|variant| variant["name"] == "int8"), "{said}");
}

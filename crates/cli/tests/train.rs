//! `edgeward train` and `edgeward evaluate`, through the binary.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use binary::{edgeward, json, text};
use serde_json::Value;

#[path = "support/binary.rs"]
mod binary;

/// Two bands of points, three numbers each and a class by name; the second number tells the class, most of the time.
fn rows(path: &Path, count: usize) {
    let mut lines = "width,height,depth,kind\n".to_owned();
    for i in 0..count {
        let noise = ((i * 7919) % 1000) as f64 / 1000.0;
        let class = i % 2;
        let height = class as f64 * 2.0 - 1.0 + (noise - 0.5) * 1.2;
        lines += &format!("{:.3},{height:.3},{:.3},{}\n", noise, (i % 13) as f64 / 13.0, ["low", "high"][class]);
    }
    fs::write(path, lines).unwrap();
}

/// A folder with `rows.csv` and `mlp.onnx`.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    rows(&folder.path().join("rows.csv"), 400);
    let made = json(folder.path(), "train new mlp --input 3 --classes 2 --width 16 -o mlp.onnx");
    assert_eq!(made["parameters"], 3 * 16 + 16 + 16 * 16 + 16 + 16 * 2 + 2);
    folder
}

const ENGINE: &str = "--engine rten --threads 1";

fn bytes(folder: &Path, name: &str) -> Vec<u8> {
    fs::read(folder.join(name)).unwrap()
}

#[test]
fn a_model_learns_and_is_judged() {
    let folder = folder();
    let path = folder.path();
    let before = json(path, "evaluate mlp.onnx --data rows.csv");
    let report =
        json(path, &format!("train mlp.onnx --data rows.csv -o out.onnx --epochs 8 --batch 20 --rate 0.01 {ENGINE}"));
    assert_eq!(
        (&report["end"], &report["engine"], &report["output"]),
        (&"finished".into(), &"rten".into(), &"out.onnx".into())
    );
    let epochs = report["epochs"].as_array().unwrap();
    assert_eq!(epochs.len(), 8);
    let loss = |epoch: &Value| epoch["loss"].as_f64().unwrap();
    assert!(loss(&epochs[7]) < 0.5 * loss(&epochs[0]), "{report}");
    let cost = |key: &str| report[key].as_f64().unwrap_or_default();
    assert!(cost("step_p50_ms") > 0.0 && cost("step_p90_ms") >= cost("step_p50_ms"), "{report}");
    assert!(
        cost("examples_per_second") > 0.0 && (!cfg!(target_os = "linux") || cost("peak_memory_bytes") > 1e6),
        "{report}"
    );
    // A tenth of 400 rows, 20 of each class.
    assert_eq!(epochs[7]["validation"]["examples"], 40);
    let after = json(path, "evaluate out.onnx --data rows.csv");
    assert!(after["accuracy"].as_f64().unwrap() >= 0.95, "{after}");
    assert!(before["accuracy"].as_f64().unwrap() < 0.95, "{before}");
    let one = json(path, "evaluate out.onnx --data rows.csv --metric auc");
    assert_eq!(one.as_object().unwrap().len(), 1);
    assert_eq!(one["auc"], after["auc"]);
    let shown = text(&edgeward(path, "evaluate out.onnx --data rows.csv"));
    for word in ["400 examples", "accuracy", "as high", "as low"] {
        assert!(shown.contains(word), "{shown}");
    }
    assert!(!path.join("out.checkpoint").exists());
}

#[test]
fn the_same_seed_writes_the_same_file() {
    let folder = folder();
    let path = folder.path();
    let run = |output: &str, seed: u32| {
        let words = format!("train mlp.onnx --data rows.csv -o {output} --epochs 2 --seed {seed} {ENGINE}");
        json(path, &words);
        bytes(path, output)
    };
    let first = run("a.onnx", 3);
    assert_eq!(first, run("b.onnx", 3));
    assert_ne!(first, run("c.onnx", 4));
}

/// What was interrupted by Ctrl-C and went on ends with the bytes of a run that was not.
#[test]
fn an_interrupted_run_goes_on_to_the_same_end() {
    let folder = folder();
    let path = folder.path();
    let words = |output: &str| {
        format!(
            "train mlp.onnx --data rows.csv -o {output} --epochs 400 --batch 20 --metric loss --optimiser adam {ENGINE}"
        )
    };
    json(path, &words("whole.onnx"));
    let child = Command::new(env!("CARGO_BIN_EXE_edgeward"))
        .args(words("parts.onnx").split(' '))
        .current_dir(path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first checkpoint stands at the end of the first epoch.
    while !path.join("parts.checkpoint").exists() {
        std::thread::yield_now();
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("--resume"), "{}", text(&output));
    assert!(!path.join("parts.onnx").exists());
    // Another run's checkpoint is refused by what differs.
    let other = edgeward(path, &format!("{} --seed 5 --resume", words("parts.onnx")));
    assert_eq!(other.status.code(), Some(2));
    assert!(text(&other).contains("seed `0`") && text(&other).contains("`5`"), "{}", text(&other));
    let report = json(path, &format!("{} --resume", words("parts.onnx")));
    assert_eq!(report["epochs"].as_array().unwrap().len(), 400);
    assert_eq!(bytes(path, "whole.onnx"), bytes(path, "parts.onnx"));
}

#[test]
fn the_file_says_what_flags_leave_open() {
    let folder = folder();
    let path = folder.path();
    let config = "[train]\nepochs = 3\nbatch = 50\noptimiser = \"sgd\"\nschedule = \"one-cycle\"\nwarmup = 2\n\
                  [train.data]\npath = \"rows.csv\"\nval_fraction = 0.25\n[engine]\nname = \"rten\"\n";
    fs::write(path.join("edgeward.toml"), config).unwrap();
    let report = json(path, "train mlp.onnx -o out.onnx --epochs 2");
    let epochs = report["epochs"].as_array().unwrap();
    assert_eq!((epochs.len(), &epochs[0]["steps"]), (2, &6.into()));
    assert_eq!(epochs[1]["validation"]["examples"], 100);
    fs::write(path.join("edgeward.toml"), "[train]\nepoch = 3\n").unwrap();
    let output = edgeward(path, "train mlp.onnx -o out.onnx");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("epoch"), "{}", text(&output));
}

#[test]
fn it_ends_early_and_keeps_the_best() {
    let folder = folder();
    let path = folder.path();
    // So large a rate that later epochs are worse, or no better.
    let words = format!(
        "train mlp.onnx --data rows.csv -o out.onnx --epochs 60 --rate 0.2 --schedule constant --metric accuracy --patience 3 {ENGINE}"
    );
    let report = json(path, &words);
    assert_eq!(report["end"], "patience", "{report}");
    let epochs = report["epochs"].as_array().unwrap();
    let best = report["best_epoch"].as_u64().unwrap() as usize;
    assert_eq!(epochs.len(), best + 3);
    let accuracy = |epoch: &Value| epoch["validation"]["accuracy"].as_f64().unwrap();
    assert!(epochs.iter().all(|epoch| accuracy(epoch) <= accuracy(&epochs[best - 1])));
    assert_eq!(report["best"].as_f64().unwrap(), accuracy(&epochs[best - 1]));
}

#[test]
fn tensorboard_has_loss_throughput_and_cost() {
    let folder = folder();
    let path = folder.path();
    let words = format!(
        "train mlp.onnx --data rows.csv -o out.onnx --epochs 2 --tensorboard runs --price-usd-per-hour 3.6 {ENGINE}"
    );
    json(path, &words);
    let files: Vec<_> = fs::read_dir(path.join("runs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    let Some(python) = std::env::var_os("EDGEWARD_TEST_PYTHON") else {
        return println!("skipped: EDGEWARD_TEST_PYTHON is not set");
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../train/tests/figures/events.py");
    let output = Command::new(python).arg(script).arg(&files[0]).output().unwrap();
    if !output.status.success() && text(&output).contains("No module named") {
        return println!("skipped: there is no tensorboard");
    }
    let read: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
    for (tag, count) in [
        ("train/loss", 10),
        ("train/rate", 10),
        ("train/examples_per_second", 10),
        ("train/usd_per_step", 10),
        ("val/accuracy", 2),
        ("val/loss", 2),
    ] {
        assert_eq!(read[tag].as_array().map_or(0, Vec::len), count, "{tag}: {read}");
    }
    let cost = read["train/usd_per_step"][3][1].as_f64().unwrap();
    let per_second = read["train/examples_per_second"][3][1].as_f64().unwrap();
    // 3.6 USD an hour are a thousandth of one a second.
    assert!((cost - 64.0 / per_second / 1000.0).abs() < 1e-3 * cost, "{cost} {per_second}");
}

/// Text, with a tokenizer of its own that stays beside the model.
#[test]
fn texts_are_learnt() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let (good, bad) = (["fine", "lovely", "bright", "warm"], ["dull", "poor", "cold", "grey"]);
    let line = |i: usize| {
        let words = if i % 2 == 1 { good } else { bad };
        format!("the film is {} and {}\t{}\n", words[i % 4], words[(i / 4) % 4], i % 2)
    };
    fs::write(path.join("texts.tsv"), (0..200).map(line).collect::<String>()).unwrap();
    json(path, "train new transformer --input 12 --classes 2 --width 16 --depth 1 --vocabulary 120 -o t.onnx");
    let words = format!(
        "train t.onnx --data texts.tsv -o out.onnx --epochs 6 --batch 20 --rate 0.01 --token-drop 0.1 {ENGINE}"
    );
    let output = edgeward(path, &format!("{words} --json"));
    if text(&output).contains("Gather") || text(&output).contains("no rule") {
        return println!("skipped: the gradients of a transformer are not there yet");
    }
    assert!(output.status.success(), "{}", text(&output));
    assert!(path.join("out.tokenizer.json").exists());
    let found = json(path, "evaluate out.onnx --data texts.tsv");
    assert!(found["accuracy"].as_f64().unwrap() > 0.95, "{found}");
    let missing = edgeward(path, "evaluate t.onnx --data texts.tsv");
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing).contains("--tokenizer"), "{}", text(&missing));
}

#[test]
fn wrong_input_says_what_is_wrong() {
    let folder = folder();
    let path = folder.path();
    fs::write(path.join("bad.csv"), "width,height,depth,kind\n1,2,3,low\n1,x,3,high\n2,2,2,low\n").unwrap();
    fs::write(path.join("five.csv"), "a,b,c,kind\n1,2,3,0\n1,2,3,4\n").unwrap();
    fs::write(path.join("wide.csv"), "a,b,kind\n1,2,0\n1,2,1\n").unwrap();
    fs::write(path.join("no.checkpoint"), "nothing").unwrap();
    let table = [
        ("train mlp.onnx --data none.csv -o o.onnx", "`none.csv`"),
        ("train mlp.onnx --data bad.csv -o o.onnx", "`bad.csv` line 3"),
        ("train mlp.onnx --data five.csv --val-fraction 0 -o o.onnx", "class `4`"),
        ("train mlp.onnx --data wide.csv --val-fraction 0 -o o.onnx", "[2]"),
        ("train mlp.onnx -o o.onnx", "--data"),
        ("train mlp.onnx --data rows.csv -o none/o.onnx", "`none/o.onnx`"),
        ("train mlp.onnx --data rows.csv -o o.onnx --rate 0", "`--rate 0`"),
        ("train mlp.onnx --data rows.csv -o o.onnx --batch 0", "`--batch 0`"),
        ("train mlp.onnx --data rows.csv -o o.onnx --metric auk", "`auk`"),
        ("train mlp.onnx --data rows.csv -o o.onnx --freeze none.*", "`none.*`"),
        ("train mlp.onnx --data rows.csv -o o.onnx --mean 0.5", "--std"),
        ("train mlp.onnx --data rows.csv -o o.onnx --noise 1", "--clip-each"),
        ("train mlp.onnx --data rows.csv -o o.onnx --class-weights a,b", "`--class-weights a,b`"),
        ("train mlp.onnx --data rows.csv -o o.onnx --resume", "o.checkpoint"),
        ("train mlp.onnx --data rows.csv -o o.onnx --resume --checkpoint no.checkpoint", "no checkpoint"),
        ("train none.onnx --data rows.csv -o o.onnx", "`none.onnx`"),
        ("train rows.csv --data rows.csv -o o.onnx", "rows.csv"),
        ("train new resnet --input 28,28 --classes 2", "`28,28`"),
        ("train new mlp --input 3 --classes 0", "classes `0`"),
        ("evaluate mlp.onnx --data rows.csv --split test", "part"),
        ("evaluate mlp.onnx --data rows.csv --metric mse", "`mse`"),
    ];
    for (words, expected) in table {
        let output = edgeward(path, words);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(2), "{words}: {said}");
        assert!(said.contains(expected) && said.contains("error"), "{words}: {said}");
    }
    // A loss that is no number ends the run, which is no fault of the input.
    let output =
        edgeward(path, &format!("train mlp.onnx --data rows.csv -o o.onnx --optimiser sgd --rate 1e30 {ENGINE}"));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("smaller rate"), "{}", text(&output));
    assert!(!path.join("o.onnx").exists());
}

//! `cargo xtask bench compress`: what `edgeward compress` makes of real models, next to the original and to ONNX Runtime's
//! own quantiser, all on this machine in one run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::{
    bench::{Bar, Benchmark, Effort, Row, median, peers::Edgeward, run_bars},
    python, steps,
};

const BARS: [(&str, Bar); 3] = [("detector", detector), ("models", models), ("calibration", calibration)];

/// Runs the benchmark; an error where a bar does not hold.
pub fn run(args: &[String]) -> anyhow::Result<()> {
    let benchmark = Benchmark {
        name: "cargo xtask bench compress",
        about: "What compression makes of models",
        bars: &BARS,
        models: &[],
    };
    run_bars(&benchmark, args)
}

/// Real models and photos, which lie outside of the project.
fn data() -> anyhow::Result<PathBuf> {
    let folder = crate::test::data(&crate::root()).filter(|folder| folder.join("onnx").is_dir());
    folder.context("`EDGEWARD_DATA` names no folder with real models")
}

/// A script of `bench/` in the tests' environment.
fn script(name: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let python = python::ensure(&crate::root())?.main;
    steps::output(Command::new(python).arg(crate::root().join("bench").join(name)).args(arguments))
}

/// The report of a compression, whether it found something or not.
fn compress(edgeward: &Edgeward, arguments: &[&str]) -> anyhow::Result<Value> {
    let mut command = Command::new(&edgeward.binary);
    let output = command.current_dir(&edgeward.work).arg("compress").args(arguments).arg("--json").output()?;
    let report = serde_json::from_slice::<Value>(&output.stdout).context("`compress` printed no report")?;
    match report["error"].as_str() {
        Some(error) => bail!("{error}"),
        None => Ok(report),
    }
}

fn number(value: &Value, key: &str) -> anyhow::Result<f64> {
    value[key].as_f64().with_context(|| format!("the report has no `{key}`"))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn chosen(report: &Value) -> Option<&Value> {
    let name = report["chosen"].as_str()?;
    report["variants"].as_array()?.iter().find(|variant| variant["name"] == name)
}

/// Median time of a variant on one engine.
fn on<'a>(variant: &'a Value, engine: &str) -> Option<&'a Value> {
    variant["engines"].as_array()?.iter().find(|entry| entry["engine"] == engine)
}

/// Median time of a file on its best engine, and that engine; sides take turns.
fn fastest(edgeward: &Edgeward, files: &[&Path], effort: Effort) -> anyhow::Result<Vec<f64>> {
    let mut best = vec![f64::INFINITY; files.len()];
    for engine in ["onnxruntime", "openvino", "rten"] {
        let mut taken: Vec<Vec<f64>> = files.iter().map(|_| Vec::new()).collect();
        for _ in 0..effort.rounds {
            for (file, times) in files.iter().zip(&mut taken) {
                let mut command = Command::new(&edgeward.binary);
                command.args(["bench", "--json", "--engine", engine, "--seconds", &effort.seconds.to_string()]);
                if let Ok(printed) = steps::output(command.arg(file)) {
                    times.push(number(&serde_json::from_str(&printed)?, "p50_ms")?);
                }
            }
        }
        for (best, times) in best.iter_mut().zip(&mut taken).filter(|(_, times)| !times.is_empty()) {
            *best = best.min(median(times));
        }
    }
    Ok(best)
}

/// YOLOX-Nano on photos: against its original on ONNX Runtime, and against ONNX Runtime's quantiser.
fn detector(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let data = data()?;
    let model = data.join("onnx/yolox_nano_416.onnx");
    let (inputs, ours, theirs) =
        (edgeward.work.join("photos.npz"), edgeward.work.join("detector"), edgeward.work.join("peer.onnx"));
    script("photo_inputs.py", &[&text(&data.join("photos")), "images", "416", &text(&inputs)])?;
    let peer_seconds: f64 =
        script("quantise_onnxruntime.py", &[&text(&model), &text(&inputs), &text(&theirs)])?.trim().parse()?;
    let report =
        compress(edgeward, &[&text(&model), "--data", &text(&inputs), "--max-drop", "0.02", "-o", &text(&ours)])?;
    let Some(variant) = chosen(&report) else { bail!("nothing was good enough: {}", report["variants"]) };
    let file = ours.join("model.onnx");
    let times = fastest(edgeward, &[&model, &file, &theirs], effort)?;
    let [_, own, peer] = times.as_slice() else { bail!("three files were timed, `{}` times came", times.len()) };
    let baseline = on(&report["original"], "onnxruntime").context("ONNX Runtime is not installed")?;
    let (before, after) = (number(baseline, "p50_ms")?, number(&variant["figures"], "p50_ms")?);
    let bytes = |key: &str| number(&variant["figures"], key);
    let whole = number(&report["original"]["figures"], "bytes")?;
    Ok(vec![
        Row::at_least("detector", "YOLOX-Nano: faster than fp32 on ONNX Runtime", before / after, "×", 1.7)
            .against(format!("{} on {}", variant["name"], variant["engine"])),
        Row::at_most("detector", "YOLOX-Nano: time to that of the peer's best", own / peer, "×", 1.0)
            .against("ONNX Runtime's quantiser, its file on its best engine"),
        Row::information("detector", "YOLOX-Nano: cosine with the original", number(variant, "metric")?, ""),
        Row::information(
            "detector",
            "YOLOX-Nano: smaller in transfer",
            100.0 * (1.0 - bytes("transfer_bytes")? / whole),
            "%",
        ),
        Row::information("detector", "YOLOX-Nano: whole search, seconds", number(&report, "seconds")?, "s")
            .against(format!("one file of the peer's: {peer_seconds:.1} s")),
    ])
}

/// Each real model becomes a better one or is refused.
fn models(edgeward: &Edgeward, _: Effort) -> anyhow::Result<Vec<Row>> {
    let mut files: Vec<PathBuf> = fs::read_dir(data()?.join("onnx"))?.filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|ending| ending == "onnx"));
    files.sort();
    let mut rows = Vec::new();
    for file in files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let (path, folder) = (text(&file), text(&edgeward.work.join(&name)));
        let mut arguments = vec![path.as_str(), "--quick", "-o", &folder];
        if name.starts_with("silero") {
            arguments.extend(["--shape", "input=1,512", "--shape", "state=2,1,128"]);
        }
        let report = compress(edgeward, &arguments)?;
        let before = number(&report["original"]["figures"], "p50_ms")?;
        rows.push(match chosen(&report) {
            Some(variant) => {
                let after = number(&variant["figures"], "p50_ms")?;
                Row::at_least("models", format!("{name}: times as fast"), before / after, "×", 1.0)
                    .against(format!("{} on {}, made-up inputs", variant["name"], variant["engine"]))
            }
            None => Row::information("models", format!("{name}: refused"), 0.0, ""),
        });
    }
    Ok(rows)
}

/// Memory of observing ranges: many examples against few.
fn calibration(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let data = data()?;
    let model = text(&data.join("onnx/mnist_rten.onnx"));
    let images = text(&data.join("mnist/t10k-images-idx3-ubyte.gz"));
    let labels = text(&data.join("mnist/t10k-labels-idx1-ubyte.gz"));
    let many = 10_000 / effort.divisor;
    let peak = |examples: usize| -> anyhow::Result<f64> {
        let folder = text(&edgeward.work.join(format!("calibration{examples}")));
        let count = examples.to_string();
        let mut command = Command::new("/usr/bin/env");
        command.args(["python3", "-c", "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"]);
        command.arg(&edgeward.binary).args(["compress", &model, "--data", &images, "--labels", &labels]);
        command.args(["--mean", "0.1307", "--std", "0.3081", "--quick", "--calibration", &count, "-o", &folder]);
        Ok(steps::output(&mut command)?.trim().parse::<f64>()? / 1024.0)
    };
    let (few, all) = (peak(64)?, peak(many)?);
    let what = format!("most memory, {many} examples to 64");
    Ok(vec![
        Row::at_most("calibration", what, all / few, "×", 1.05)
            .against(format!("{all:.0} and {few:.0} MB of the whole process")),
    ])
}

//! `cargo xtask bench compress`: what `edgeward compress` makes of real models, next to the original and to the quantisers and the
//! pruner that people use, all on this machine in one run; the paper's figures stand beside.

mod big;
mod calibration;
mod peers;
mod quantised;
mod report;
mod trained;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use self::report::Compressed;
use crate::{
    bench::{Bar, Benchmark, Effort, Row, peers::Edgeward, run_bars},
    steps,
};

const BARS: [(&str, Bar); 7] = [
    ("resnet50", quantised::resnet50),
    ("detector", quantised::detector),
    ("resnet", trained::resnet),
    ("text", trained::text_models),
    ("calibration", calibration::run),
    ("models", models),
    ("big", big::run),
];

/// Runs the benchmark; an error where a bar does not hold.
pub fn run(args: &[String]) -> anyhow::Result<()> {
    let benchmark = Benchmark {
        name: "cargo xtask bench compress",
        about: "What compression makes of models",
        bars: &BARS,
        long: &["big"],
        models: &["resnet50"],
    };
    run_bars(&benchmark, args)
}

/// Real models and photos, which lie outside of the project.
fn data() -> anyhow::Result<PathBuf> {
    let folder = crate::test::data(&crate::root()).filter(|folder| folder.join("onnx").is_dir());
    folder.context("`EDGEWARD_DATA` names no folder with real models")
}

/// A script of `bench/` by the Python of the peers.
fn script(name: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let root = crate::root();
    let mut command = Command::new(crate::python::ensure_compressors(&root)?);
    steps::output(command.arg(root.join("bench").join(name)).args(arguments))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Each real model becomes a better one or is refused.
fn models(edgeward: &Edgeward, _: Effort) -> anyhow::Result<Vec<Row>> {
    let mut files: Vec<PathBuf> = fs::read_dir(data()?.join("onnx"))?.filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|ending| ending == "onnx"));
    files.sort();
    let row = |file: &PathBuf| -> anyhow::Result<Row> {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let (path, folder) = (text(file), text(&edgeward.work.join(&name)));
        let mut arguments = vec![path.as_str(), "--quick", "-o", &folder];
        if name.starts_with("silero") {
            arguments.extend(["--shape", "input=1,512", "--shape", "state=2,1,128"]);
        }
        let report = Compressed::run(edgeward, &arguments)?;
        let Some(variant) = report.chosen() else {
            return Ok(Row::information("models", format!("{name}: refused"), 0.0, ""));
        };
        let speed = report.best_before_ms()? / variant.p50_ms()?;
        Ok(Row::at_least("models", format!("{name}: times as fast"), speed, "×", 1.0)
            .against(format!("{}, made-up inputs", variant.shown())))
    };
    let rows = files.iter().map(|file| row(file).unwrap_or_else(|error| Row::skipped("models", text(file), error)));
    Ok(rows.collect())
}

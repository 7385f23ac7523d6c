//! What training reaches on real data with the models that `edgeward train new` writes, and in what time.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, ensure};

use super::sides::THREADS;
use crate::{
    bench::{Effort, Row, figure, peers::Edgeward},
    steps,
};

/// A model, data, and what it must reach there.
struct Task {
    what: &'static str,
    /// Arguments of `train new`.
    start: &'static str,
    /// Files of the data, as arguments.
    data: &'static [(&'static str, &'static str)],
    /// Further arguments of `train`.
    how: &'static str,
    metric: &'static str,
    min: f64,
    /// The most minutes that it may take; none where time is told only.
    minutes_max: Option<f64>,
}

const TASKS: [Task; 2] = [
    Task {
        what: "ResNet-20 on PneumoniaMNIST",
        start: "resnet --input 1,28,28 --classes 2",
        data: &[("--data", "pneumoniamnist/pneumoniamnist_train_val.npz")],
        how: "--epochs 8 --crop 2",
        metric: "auc",
        min: 0.97,
        minutes_max: Some(5.0),
    },
    Task {
        what: "transformer on SST-2's sentences",
        start: "transformer --input 64 --classes 2 --dropout 0.3",
        data: &[("--data", "sst2/sentence_train.tsv"), ("--val", "sst2/sentence_dev.tsv")],
        how: "--epochs 12 --token-drop 0.1 --rate 0.002 --ema 0.99 --weight-decay 0.05",
        metric: "accuracy",
        min: 0.8,
        minutes_max: None,
    },
];

/// Both tasks; effort does not shorten them, since they would reach less.
pub fn run(edgeward: &Edgeward, _: Effort) -> anyhow::Result<Vec<Row>> {
    let folder = crate::test::data(&crate::root()).context("`EDGEWARD_DATA` names no folder with the data")?;
    let mut rows = Vec::new();
    for task in &TASKS {
        match task.run(edgeward, &folder) {
            Ok(found) => rows.extend(found),
            Err(error) => rows.push(Row::skipped("result", task.what, error)),
        }
    }
    Ok(rows)
}

impl Task {
    fn run(&self, edgeward: &Edgeward, data: &Path) -> anyhow::Result<Vec<Row>> {
        let file = |name: &str| -> PathBuf { edgeward.work.join(name) };
        let call = || {
            let mut command = Command::new(&edgeward.binary);
            command.current_dir(&edgeward.work).arg("train");
            command
        };
        let start = self.start.split(' ');
        steps::output(call().arg("new").args(start).arg("-o").arg(file("start.onnx")))?;
        let mut train = call();
        train.arg(file("start.onnx")).arg("-o").arg(file("trained.onnx")).args(["--json", "--threads", THREADS]);
        train.args(["--metric", self.metric, "--engine", edgeward.fast_engine()]).args(self.how.split(' '));
        for (flag, name) in self.data {
            let path = data.join(name);
            ensure!(path.is_file(), "`{}` is missing", path.display());
            train.arg(flag).arg(path);
        }
        let began = Instant::now();
        let report: serde_json::Value = serde_json::from_str(&steps::output(&mut train)?)?;
        let minutes = began.elapsed().as_secs_f64() / 60.0;
        let best = report["best"].as_f64().context("no `best` is reported")?;
        let epochs = report["epochs"].as_array().map_or(0, Vec::len);
        let engine = edgeward.fast_engine();
        let reached = Row::at_least("result", format!("{}: {}", self.what, self.metric), best, "", self.min)
            .against(format!("the best of {epochs} epochs, on its validation part, {engine}"));
        let what = format!("{}: time of the whole command", self.what);
        let time = match self.minutes_max {
            Some(most) => Row::at_most("result", what, minutes, "min", most),
            None => Row::information("result", what, minutes, "min"),
        };
        let step = report["step_p50_ms"].as_f64().unwrap_or(f64::NAN);
        Ok(vec![reached, time.against(format!("{THREADS} threads, a step {} ms", figure(step)))])
    }
}

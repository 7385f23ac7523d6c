//! Models that `edgeward train new` writes, trained on real data by `edgeward train`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use crate::{bench::peers::Edgeward, steps};

/// Threads of every side.
pub const THREADS: &str = "2";

/// A model and what it learns.
pub struct Starter {
    /// As the table has it.
    pub what: &'static str,
    /// Arguments of `train new`.
    pub start: &'static str,
    /// Files of the data, as arguments.
    pub data: &'static [(&'static str, &'static str)],
    /// Further arguments of `train`.
    pub how: &'static str,
    /// What epochs are judged by.
    pub metric: &'static str,
}

/// X-rays of 28 × 28.
pub const PNEUMONIA: &[(&str, &str)] = &[("--data", "pneumoniamnist/pneumoniamnist_train_val.npz")];
/// Sentences and their phrases with their sentiment, judged on whole sentences.
pub const SENTENCES: &[(&str, &str)] = &[("--data", "sst2/glue_train.tsv.gz"), ("--val", "sst2/sentence_dev.tsv")];

/// Small enough to be trained in minutes.
pub const TRANSFORMER: Starter = Starter {
    what: "transformer on SST-2's sentences",
    start: "transformer --input 64 --classes 2 --dropout 0.3",
    data: SENTENCES,
    how: "--epochs 2 --token-drop 0.25 --rate 0.001 --ema 0.998 --smoothing 0.1 --weight-decay 0.05",
    metric: "accuracy",
};

impl Starter {
    /// Arguments that name the data.
    pub fn data(&self) -> anyhow::Result<Vec<String>> {
        let folder = crate::test::data(&crate::root()).context("`EDGEWARD_DATA` names no folder with the data")?;
        let mut arguments = Vec::new();
        for (flag, name) in self.data {
            let path = folder.join(name);
            ensure!(path.is_file(), "`{}` is missing", path.display());
            arguments.extend([(*flag).to_owned(), path.display().to_string()]);
        }
        Ok(arguments)
    }

    /// Trains it; the file is `NAME.onnx` in the folder for work. Returns the file and what `train` reports.
    pub fn train(&self, edgeward: &Edgeward, name: &str) -> anyhow::Result<(PathBuf, serde_json::Value)> {
        let data = self.data()?;
        let (start, trained) =
            (edgeward.work.join(format!("{name}-start.onnx")), edgeward.work.join(format!("{name}.onnx")));
        self.begin(edgeward, &start)?;
        let mut train = call(edgeward);
        train.arg(start).arg("-o").arg(&trained).args(["--json", "--threads", THREADS]);
        train.args(["--metric", self.metric, "--engine", edgeward.fast_engine()]).args(self.how.split(' ')).args(data);
        let report = serde_json::from_str(&steps::output(&mut train)?)?;
        Ok((trained, report))
    }

    /// Writes the model before training.
    pub fn begin(&self, edgeward: &Edgeward, file: &Path) -> anyhow::Result<()> {
        steps::output(call(edgeward).arg("new").args(self.start.split(' ')).arg("-o").arg(file)).map(drop)
    }
}

fn call(edgeward: &Edgeward) -> Command {
    let mut command = Command::new(&edgeward.binary);
    command.current_dir(&edgeward.work).arg("train");
    command
}

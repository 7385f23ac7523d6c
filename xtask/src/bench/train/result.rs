//! What training reaches on real data with the models that `edgeward train new` writes, and in what time.

use std::time::Instant;

use anyhow::Context as _;

use crate::bench::{
    Effort, Row, figure,
    peers::Edgeward,
    starter::{PNEUMONIA, Starter, THREADS, TRANSFORMER},
};

/// A model, data, and what it must reach there.
struct Task {
    starter: Starter,
    min: f64,
    /// The most minutes that it may take; none where time is told only.
    minutes_max: Option<f64>,
}

const TASKS: [Task; 2] = [
    Task {
        starter: Starter {
            what: "ResNet-20 on PneumoniaMNIST",
            start: "resnet --input 1,28,28 --classes 2",
            data: PNEUMONIA,
            how: "--epochs 8 --crop 2",
            metric: "auc",
        },
        min: 0.97,
        minutes_max: Some(5.0),
    },
    Task { starter: TRANSFORMER, min: 0.8, minutes_max: None },
];

/// Both tasks; effort does not shorten them, since they would reach less.
pub fn run(edgeward: &Edgeward, _: Effort) -> anyhow::Result<Vec<Row>> {
    let rows = TASKS.iter().flat_map(|task| {
        task.run(edgeward).unwrap_or_else(|error| vec![Row::skipped("result", task.starter.what, error)])
    });
    Ok(rows.collect())
}

impl Task {
    fn run(&self, edgeward: &Edgeward) -> anyhow::Result<Vec<Row>> {
        let (starter, engine) = (&self.starter, edgeward.fast_engine());
        let began = Instant::now();
        let (_, report) = starter.train(edgeward, "result")?;
        let minutes = began.elapsed().as_secs_f64() / 60.0;
        let best = report["best"].as_f64().context("no `best` is reported")?;
        let epochs = report["epochs"].as_array().map_or(0, Vec::len);
        let reached = Row::at_least("result", format!("{}: {}", starter.what, starter.metric), best, "", self.min)
            .against(format!("the best of {epochs} epochs, on its validation part, {engine}"));
        let what = format!("{}: time from start to end", starter.what);
        let time = match self.minutes_max {
            Some(most) => Row::at_most("result", what, minutes, "min", most),
            None => Row::information("result", what, minutes, "min"),
        };
        let step = report["step_p50_ms"].as_f64().unwrap_or(f64::NAN);
        Ok(vec![reached, time.against(format!("{THREADS} threads, a step {} ms", figure(step)))])
    }
}

//! Training to the end, as callers do it, without a word.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use edgeward_engine::{Engine, SessionOptions};
use edgeward_graph::Model;
use edgeward_train::{
    AdamSpec, LossSpec, OptimiserSpec, StepSpec, build,
    data::{Dataset, Fit, Loader, Plan, Sampling, Wanted},
    metrics::Metric,
    schedule::{Schedule, Shape},
    trainer::{EpochReport, Go, Run, Settings, Stepped, Task, Watch, train},
};

use super::load;

struct Silent;

impl Watch for Silent {
    fn stepped(&mut self, _: &Stepped) -> Go {
        Go::On
    }

    fn epoch(&mut self, _: &EpochReport) -> Go {
        Go::On
    }
}

pub fn adam(loss: LossSpec) -> StepSpec {
    StepSpec::new(loss, OptimiserSpec::AdamW(AdamSpec::default()))
}

/// How long and how fast, in batches of how many.
pub struct Pace {
    pub batch: usize,
    pub epochs: u64,
    pub rate: f64,
}

pub fn learn(engine: &dyn Engine, forward: &Model, spec: &StepSpec, data: Arc<dyn Dataset>, pace: &Pace) -> Model {
    let Pace { batch, epochs, rate } = *pace;
    let step = build(forward, spec).unwrap();
    let session = load(engine, &step.graph).unwrap();
    let wanted = Wanted { inputs: step.data.clone(), targets: step.targets.clone(), ..Wanted::default() };
    let fit = Fit::new(data, wanted).unwrap();
    let data = Loader::to_learn(fit, Plan { batch, sampling: Sampling::Shuffled, seed: 4 });
    let steps = epochs * data.batch_count() as u64;
    let settings = Settings {
        epochs,
        schedule: Schedule { shape: Shape::Cosine, rate, warmup_steps: 0, steps },
        seed: 0,
        accumulate: 1,
        task: Task::Classes,
        metric: Metric::Loss,
        patience: None,
        checkpoint: None,
        checkpoint_batches: None,
        noise_deviation: None,
    };
    let options = SessionOptions::default();
    let run = Run { forward, step: &step, session: session.as_ref(), engine, options, data, judge: None, settings };
    train(&run, None, &mut Silent).unwrap().model
}

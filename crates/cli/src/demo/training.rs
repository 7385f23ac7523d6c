//! The demo's model learns: the same loop that `edgeward train` runs, on digits that the demo draws.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use anyhow::{Context as _, ensure};
use edgeward_engine::{Registry, SessionOptions, Source};
use edgeward_graph::Model;
use edgeward_train::{
    AdamSpec, Loss, LossSpec, OptimiserSpec, Step, StepSpec, build,
    data::{Columns, Fit, Loader, Plan, Role, Sampling, Wanted},
    metrics::Metric,
    schedule::{Schedule, Shape},
    trainer::{EpochReport, Go, Run, Settings, Stepped, Task, Watch, evaluate, train},
};

use super::digits;

/// Digits to learn from, and others to judge by.
const LEARNT: usize = 2000;
pub const JUDGED: usize = 500;
/// What those that judge are drawn from.
pub const SEED_JUDGED: u64 = 2;
const EPOCHS: u64 = 3;
const BATCH: usize = 50;

/// What learning came to.
#[derive(serde::Serialize)]
pub struct Report {
    pub engine: &'static str,
    pub seconds: f64,
    pub examples: usize,
    pub judged: usize,
    pub accuracy_before: f64,
    pub accuracy_after: f64,
}

/// Ends the run where the demo is told to end.
struct Until<'a>(&'a AtomicBool);

impl Watch for Until<'_> {
    fn stepped(&mut self, _: &Stepped) -> Go {
        if self.0.load(Relaxed) { Go::Stop } else { Go::On }
    }

    fn epoch(&mut self, _: &EpochReport) -> Go {
        Go::On
    }
}

/// Trains on the first engine that can; a single thread, so that every machine is told the same.
pub fn learn(forward: &Model, registry: &Registry, stop: &AtomicBool) -> anyhow::Result<(Model, Report)> {
    let began = Instant::now();
    let step = build(
        forward,
        &StepSpec::new(LossSpec::from(Loss::cross_entropy()), OptimiserSpec::AdamW(AdamSpec::default())),
    )?;
    let options = SessionOptions { threads: NonZeroUsize::new(1), ..SessionOptions::default() };
    let loaded = registry.load(None, &Source::Bytes(step.graph.to_bytes()?.into()), &options)?;
    let engine = loaded.engine.as_ref();
    let untrained = engine.load(&Source::Bytes(forward.to_bytes()?.into()), &options)?;
    let judge = Loader::to_judge(fit(&step, JUDGED, SEED_JUDGED)?, plan(Sampling::Sequential));
    let before = evaluate(untrained.as_ref(), &judge, Task::Classes)?.get(Metric::Accuracy);
    let data = Loader::to_learn(fit(&step, LEARNT, 1)?, plan(Sampling::Shuffled));
    let settings = settings(&data);
    let session = loaded.session.as_ref();
    let run = Run { forward, step: &step, session, engine, options, data, judge: Some(judge), settings };
    let trained = train(&run, None, &mut Until(stop))?;
    ensure!(!stop.load(Relaxed), "interrupted");
    let report = Report {
        engine: engine.name(),
        seconds: began.elapsed().as_secs_f64(),
        examples: LEARNT,
        judged: JUDGED,
        accuracy_before: before.context("nothing was judged")?,
        accuracy_after: trained.progress.best.context("nothing was judged")?,
    };
    Ok((trained.model, report))
}

fn fit(step: &Step, count: usize, seed: u64) -> anyhow::Result<Fit> {
    let (pictures, shown) = digits::drawn(count, seed)?;
    let columns = vec![("image".to_owned(), Role::Input, pictures), ("digit".to_owned(), Role::Target, shown)];
    let wanted = Wanted {
        inputs: step.data.clone(),
        targets: step.targets.clone(),
        classes: Some(digits::CLASSES),
        ..Wanted::default()
    };
    Ok(Fit::new(Arc::new(Columns::new(columns)?), wanted)?)
}

fn plan(sampling: Sampling) -> Plan {
    Plan { batch: BATCH, sampling, seed: 0 }
}

fn settings(data: &Loader) -> Settings {
    let steps = EPOCHS * data.batch_count() as u64;
    Settings {
        epochs: EPOCHS,
        schedule: Schedule { shape: Shape::OneCycle, rate: 0.004, warmup_steps: 0, steps },
        seed: 0,
        accumulate: 1,
        task: Task::Classes,
        metric: Metric::Accuracy,
        patience: None,
        checkpoint: None,
        checkpoint_batches: None,
        noise_deviation: None,
    }
}

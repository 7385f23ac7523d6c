//! The loop: batches through a training step, judged after every epoch, resumable to the bit.
//!
//! Order, variation, dropout and rate are functions of seed and position, so the state is what the engine hands back and
//! a few counters. What a terminal or a file sees of a run is left to a [`Watch`].

mod checkpoint;
mod draw;
mod judge;
mod progress;

use std::{
    num::NonZeroUsize,
    path::PathBuf,
    time::{Duration, Instant},
};

use edgeward_engine::{Engine, RunOptions, Session, SessionOptions, Source};
use edgeward_graph::{DataType, Model, Tensor};

use crate::{
    Role, Step, TrainError,
    data::{Batch, Loader},
    finished,
    metrics::Metric,
    schedule::Schedule,
};

pub use checkpoint::Checkpoint;
pub use judge::{Judged, Task, evaluate};
pub use progress::{EpochReport, Progress};

/// Name of the target that says what each example counts.
pub const EXAMPLE_WEIGHT: &str = "example_weight";

/// How a run goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Times through the data.
    pub epochs: u64,
    /// The learning rate.
    pub schedule: Schedule,
    /// Seed of dropouts.
    pub seed: u64,
    /// Batches whose gradients are averaged for one update, as the step was built.
    pub accumulate: u64,
    /// What the outputs are judged as.
    pub task: Task,
    /// What says which epoch was the best.
    pub metric: Metric,
    /// The run ends after so many epochs without a better one.
    pub patience: Option<u64>,
    /// File of checkpoints, written after every epoch and when the run is stopped.
    pub checkpoint: Option<PathBuf>,
    /// Batches between two checkpoints within an epoch.
    pub checkpoint_batches: Option<u64>,
    /// For privacy: standard deviation of the noise on the sum of clipped gradients.
    pub noise_deviation: Option<f32>,
}

/// What a run is made of.
pub struct Run<'a> {
    /// The model that is trained.
    pub forward: &'a Model,
    /// Its training step.
    pub step: &'a Step,
    /// The step's graph, ready to run.
    pub session: &'a dyn Session,
    /// What runs the model where it is judged; the engine of the session.
    pub engine: &'a dyn Engine,
    /// Threads and providers.
    pub options: SessionOptions,
    /// What it learns from.
    pub data: Loader,
    /// What it is judged by; the last epoch counts as the best where there is nothing.
    pub judge: Option<Loader>,
    /// How it goes.
    pub settings: Settings,
}

/// What a step did.
#[derive(Clone, Copy, Debug)]
pub struct Stepped {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Batch of the epoch, from 0.
    pub batch: u64,
    /// Batches of an epoch.
    pub batches: u64,
    /// Batches since the beginning of the run.
    pub step: u64,
    /// Examples in the batch.
    pub examples: usize,
    /// Loss of the batch; not a number where a private batch was empty.
    pub loss: f64,
    /// Learning rate.
    pub rate: f64,
    /// Time of the step, with waiting for the data.
    pub took: Duration,
    /// Time of the step alone, from a batch that is there to the next state.
    pub ran: Duration,
}

/// Whether a run goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Go {
    /// Go on.
    On,
    /// Write a checkpoint, where one is asked for, and end.
    Stop,
}

/// Looks on while a run goes.
pub trait Watch {
    /// After every batch.
    fn stepped(&mut self, step: &Stepped) -> Go;

    /// After every epoch.
    fn epoch(&mut self, report: &EpochReport) -> Go;
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// All epochs are done.
    Finished,
    /// No epoch was better for as long as the patience lasts.
    Patience,
    /// The watch said so.
    Stopped,
}

/// What a run leaves.
pub struct Trained {
    /// The model of the best epoch, or of the last step where no epoch was judged.
    pub model: Model,
    /// Why it ended.
    pub end: End,
    /// Where it ended, with the report of every epoch.
    pub progress: Progress,
}

/// Trains from the beginning, or from a checkpoint. Errors: data that cannot be read, an engine that fails, a loss that is
/// no number, a checkpoint of another run or one that cannot be written.
pub fn train(run: &Run<'_>, resume: Option<Checkpoint>, watch: &mut dyn Watch) -> Result<Trained, TrainError> {
    let mut looped = Loop::new(run, resume)?;
    let end = looped.epochs(watch)?;
    let state = looped.best.as_ref().unwrap_or(&looped.state);
    let model = finished(run.forward, run.step, state)?;
    Ok(Trained { model, end, progress: looped.progress })
}

struct Loop<'a> {
    run: &'a Run<'a>,
    /// Loss first, then the state.
    outputs: Vec<&'a str>,
    state: Vec<Tensor>,
    /// The state of the best epoch.
    best: Option<Vec<Tensor>>,
    progress: Progress,
}

impl<'a> Loop<'a> {
    fn new(run: &'a Run<'a>, resume: Option<Checkpoint>) -> Result<Self, TrainError> {
        let outputs = std::iter::once(run.step.loss.as_str());
        let outputs = outputs.chain(run.step.state.iter().map(|state| state.output.as_str())).collect();
        let initial = || run.step.state.iter().map(|state| state.initial.clone()).collect();
        let (state, best, progress) = match resume {
            None => (initial(), None, Progress::default()),
            Some(checkpoint) => checkpoint.of_run(run)?,
        };
        Ok(Self { run, outputs, state, best, progress })
    }

    fn epochs(&mut self, watch: &mut dyn Watch) -> Result<End, TrainError> {
        while self.progress.epoch < self.run.settings.epochs {
            if self.out_of_patience() {
                return Ok(End::Patience);
            }
            if self.epoch(watch)? == Go::Stop {
                self.save()?;
                return Ok(End::Stopped);
            }
        }
        Ok(End::Finished)
    }

    fn out_of_patience(&self) -> bool {
        self.run.settings.patience.is_some_and(|most| self.progress.epochs_since_best >= most)
    }

    /// One epoch, or what is left of it.
    fn epoch(&mut self, watch: &mut dyn Watch) -> Result<Go, TrainError> {
        let (epoch, first) = (self.progress.epoch, self.progress.batch);
        let batches = self.run.data.batch_count() as u64;
        let mut began = Instant::now();
        for batch in self.run.data.epoch(epoch, usize::try_from(first).unwrap_or(usize::MAX))? {
            let batch = batch?;
            let rate = self.rate();
            let given = Instant::now();
            let loss = self.step(&batch, rate)?;
            let (took, ran) = (began.elapsed(), given.elapsed());
            began = Instant::now();
            let (at, step) = (self.progress.batch, self.progress.step);
            self.progress.add(loss, batch.rows.len(), took);
            let examples = batch.rows.len();
            let go = watch.stepped(&Stepped { epoch, batch: at, batches, step, examples, loss, rate, took, ran });
            if go == Go::Stop {
                return Ok(Go::Stop);
            }
            if self.run.settings.checkpoint_batches.is_some_and(|every| self.progress.step.is_multiple_of(every.max(1)))
            {
                self.save()?;
            }
        }
        let judged = self.judge()?;
        let better = self.keep_best(judged.as_ref());
        let report = self.progress.end_epoch(judged, better, self.rate());
        self.save()?;
        Ok(watch.epoch(&report))
    }

    /// Updates so far.
    fn updates(&self) -> u64 {
        self.progress.step / self.run.settings.accumulate.max(1)
    }

    fn rate(&self) -> f64 {
        self.run.settings.schedule.rate(self.updates())
    }

    /// One batch: its loss; the state becomes the next.
    fn step(&mut self, batch: &Batch, rate: f64) -> Result<f64, TrainError> {
        let step = self.run.step;
        let scalar = |value: f64| match step.scalars.dtype {
            DataType::Float64 => Tensor::from_vec([0usize; 0], vec![value]),
            _ => Tensor::from_vec([0usize; 0], vec![value as f32]),
        };
        let mut own: Vec<(&str, Tensor)> = vec![(&step.scalars.rate, scalar(rate).map_err(draw::shape)?)];
        if let Some(name) = &step.scalars.step {
            own.push((name, scalar((self.updates() + 1) as f64).map_err(draw::shape)?));
        }
        if let Some(name) = &step.scalars.apply {
            let last = (self.progress.step + 1).is_multiple_of(self.run.settings.accumulate.max(1));
            own.push((name, Tensor::from_bools([0usize; 0], vec![last]).map_err(draw::shape)?));
        }
        let filled = draw::filled(batch, self.run.data.fit())?;
        let batch = filled.as_ref().unwrap_or(batch);
        if step.targets.iter().any(|port| port.name == EXAMPLE_WEIGHT) {
            own.push((EXAMPLE_WEIGHT, draw::weights(batch.rows.len(), filled.is_some(), step.scalars.dtype)?));
        }
        for (index, mask) in step.masks.iter().enumerate() {
            let place = (self.run.settings.seed, self.progress.step, index as u64);
            own.push((&mask.input, draw::mask(mask, batch, &step.data, place)?));
        }
        let (deviation, threads) = (self.run.settings.noise_deviation.unwrap_or(0.0), self.run.options.threads);
        let noise = draw::noise(&step.noise, deviation, threads.unwrap_or(NonZeroUsize::MIN))?;
        own.extend(step.noise.iter().map(|port| port.name.as_str()).zip(noise));
        let given = batch.inputs.iter().chain(&batch.targets).map(|(name, tensor)| (name.as_str(), tensor));
        let state = step.state.iter().zip(&self.state).map(|(state, tensor)| (state.input.as_str(), tensor));
        let inputs: Vec<(&str, &Tensor)> =
            given.chain(own.iter().map(|(name, tensor)| (*name, tensor))).chain(state).collect();
        let options = RunOptions { outputs: Some(&self.outputs), cancel: None };
        let mut outputs = self.run.session.run(&inputs, options)?.into_iter();
        let loss = outputs.next().as_ref().and_then(crate::data::to_f64).and_then(|values| values.first().copied());
        let loss = loss.ok_or_else(|| TrainError::run("the engine gave no loss"))?;
        if !loss.is_finite() && filled.is_none() {
            let text =
                format!("the loss became `{loss}` in batch {} of epoch {}", self.progress.batch, self.progress.epoch);
            return Err(TrainError::run(format!("{text}; try a smaller rate, or clip the gradients")));
        }
        self.state = outputs.collect();
        Ok(if filled.is_some() { f64::NAN } else { loss })
    }

    /// The model as it is now, judged.
    fn judge(&self) -> Result<Option<Judged>, TrainError> {
        let Some(data) = &self.run.judge else { return Ok(None) };
        let model = finished(self.run.forward, self.run.step, &self.state)?;
        let session = self.run.engine.load(&Source::Bytes(model.to_bytes()?.into()), &self.run.options)?;
        evaluate(session.as_ref(), data, self.run.settings.task).map(Some)
    }

    /// True where this epoch is the best so far.
    fn keep_best(&mut self, judged: Option<&Judged>) -> bool {
        let metric = self.run.settings.metric;
        let Some(value) = judged.and_then(|judged| judged.get(metric)) else {
            self.best = None;
            return false;
        };
        let better = self
            .progress
            .best
            .is_none_or(|best| metric.improves(value, best) || (value == best && self.loses_less(judged)));
        if better {
            self.progress.best = Some(value);
            self.progress.best_epoch = Some(self.progress.epoch);
            self.best = Some(self.state.clone());
        }
        better
    }

    /// True where an epoch as good as the best has less loss: a metric that counts examples ties often.
    fn loses_less(&self, judged: Option<&Judged>) -> bool {
        let epoch = self.progress.best_epoch.and_then(|epoch| self.progress.epochs.get(usize::try_from(epoch).ok()?));
        let kept = epoch.and_then(|report| report.validation.as_ref()?.get(Metric::Loss));
        judged.and_then(|judged| judged.get(Metric::Loss)).zip(kept).is_some_and(|(now, then)| now < then)
    }

    fn save(&self) -> Result<(), TrainError> {
        match &self.run.settings.checkpoint {
            Some(path) => checkpoint::save(path, self.run, &self.state, self.best.as_deref(), &self.progress),
            None => Ok(()),
        }
    }
}

/// True for what a finished model needs of a state.
fn is_kept(role: &Role) -> bool {
    matches!(role, Role::Weight { .. } | Role::RunningStatistic { .. } | Role::Average { .. })
}

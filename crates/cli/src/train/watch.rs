//! What is seen of a run: a bar on a terminal, a line for each epoch, scalars for TensorBoard.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use edgeward_train::{
    data::Loader,
    events::EventWriter,
    metrics::Metric,
    trainer::{EpochReport, Go, Stepped, Watch},
};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::options::TrainOptions;
use crate::{
    Context,
    failure::{Failure, OrInput as _},
    interrupt, measure, print,
};

/// Batches between two times that the event file is handed to the system.
const FLUSHED_EVERY: u64 = 50;

/// Times of single steps beyond this many are not kept, so that a long run needs little memory.
const STEPS_MAX: usize = 1 << 20;

/// What the steps of a run cost; those before it was resumed are not its own.
#[derive(Serialize)]
pub struct Cost {
    /// Median time of a step, waiting for the data left out; none where there was no step.
    step_p50_ms: Option<f64>,
    /// 90th percentile.
    step_p90_ms: Option<f64>,
    /// Examples learnt per second, with waiting for the data and without judging.
    examples_per_second: f64,
    /// The most memory of this process that was resident at once; none where the system does not tell.
    peak_memory_bytes: Option<u64>,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |ms: Option<f64>| ms.map_or_else(|| "no time".to_owned(), print::ms);
        write!(f, "a step took {} (p50) and {} (p90)", time(self.step_p50_ms), time(self.step_p90_ms))?;
        write!(f, ", {} examples/s", print::rate(self.examples_per_second))?;
        self.peak_memory_bytes.map_or(Ok(()), |bytes| write!(f, ", {} of memory at most", print::bytes(bytes)))
    }
}

/// Looks on for a user.
pub struct Terminal {
    bar: ProgressBar,
    /// Times of the steps alone.
    ran: Vec<Duration>,
    /// Examples, and the time that they took.
    learnt: (u64, Duration),
    batches: u64,
    events: Option<EventWriter>,
    price_usd_per_hour: Option<f64>,
    /// JSON is one document, at the end.
    json: bool,
    /// The first thing that could not be written.
    failure: Option<Failure>,
}

impl Terminal {
    /// Makes the event file. Errors: it cannot be.
    pub fn new(options: &TrainOptions, data: &Loader, epochs: u64, context: &Context) -> Result<Self, Failure> {
        let create = |folder: &std::path::PathBuf| {
            let made = EventWriter::create(folder, SystemTime::now());
            made.with_context(|| format!("cannot write event files to `{}`", folder.display())).or_input()
        };
        let events = options.tensorboard.as_ref().map(create).transpose()?;
        let batches = data.batch_count() as u64;
        let bar = ProgressBar::new(batches.saturating_mul(epochs));
        if let Ok(style) = ProgressStyle::with_template("{bar:30.cyan/dim} {percent:>3} %, {eta} left, {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(500));
        let price_usd_per_hour = options.price_usd_per_hour;
        let (ran, learnt) = (Vec::new(), (0, Duration::ZERO));
        Ok(Self { bar, ran, learnt, batches, events, price_usd_per_hour, json: context.json, failure: None })
    }

    /// What the steps have cost so far.
    pub fn cost(&self) -> Cost {
        let mut ran = self.ran.clone();
        ran.sort_unstable();
        let at = |share| (!ran.is_empty()).then(|| measure::percentile(&ran, share).as_secs_f64() * 1e3);
        let (examples, took) = self.learnt;
        Cost {
            step_p50_ms: at(0.5),
            step_p90_ms: at(0.9),
            examples_per_second: if took.is_zero() { 0.0 } else { examples as f64 / took.as_secs_f64() },
            peak_memory_bytes: measure::peak_resident(),
        }
    }

    /// Takes the bar away and says what could not be written.
    pub fn finish(mut self) -> Result<(), Failure> {
        self.bar.finish_and_clear();
        let flushed = self.events.as_mut().map_or(Ok(()), EventWriter::flush);
        self.keep(flushed.context("cannot write the event file").map_err(Failure::from));
        self.failure.map_or(Ok(()), Err)
    }

    fn keep(&mut self, result: Result<(), Failure>) -> Go {
        if let Err(failure) = result {
            self.failure.get_or_insert(failure);
        }
        if self.failure.is_some() || interrupt::came() { Go::Stop } else { Go::On }
    }

    fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<(), Failure> {
        let Some(events) = &mut self.events else { return Ok(()) };
        let written = events.scalars(SystemTime::now(), step, scalars);
        let flushed = if step.is_multiple_of(FLUSHED_EVERY) { events.flush() } else { Ok(()) };
        Ok(written.and(flushed).context("cannot write the event file")?)
    }
}

impl Watch for Terminal {
    fn stepped(&mut self, step: &Stepped) -> Go {
        let seconds = step.took.as_secs_f64();
        let per_second = step.examples as f64 / seconds.max(f64::MIN_POSITIVE);
        if self.ran.len() < STEPS_MAX {
            self.ran.push(step.ran);
        }
        self.learnt = (self.learnt.0 + step.examples as u64, self.learnt.1 + step.took);
        if self.bar.position() <= step.step {
            self.bar.set_position(step.step + 1);
            // The steps before a resumed run were not this one's.
            if self.bar.position() > 1 && step.batch == 0 {
                self.bar.reset_eta();
            }
        }
        let rate = print::rate(per_second);
        self.bar.set_message(format!("epoch {}, loss {:.4}, {rate} examples/s", step.epoch + 1, step.loss));
        let mut scalars =
            vec![("train/loss", step.loss), ("train/rate", step.rate), ("train/examples_per_second", per_second)];
        scalars.extend(self.price_usd_per_hour.map(|price| ("train/usd_per_step", price / 3600.0 * seconds)));
        let written = self.scalars(step.step, &scalars);
        self.keep(written)
    }

    fn epoch(&mut self, report: &EpochReport) -> Go {
        let figures = report.validation.as_ref().map(|judged| judged.all()).unwrap_or_default();
        let named: Vec<(String, f64)> =
            figures.iter().map(|(metric, value)| (format!("val/{metric}"), *value)).collect();
        let mut scalars: Vec<(&str, f64)> = named.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        scalars.push(("train/epoch_loss", report.loss));
        let usd = self.price_usd_per_hour.map(|price| price / 3600.0 * report.seconds);
        scalars.extend(usd.map(|usd| ("train/usd_per_epoch", usd)));
        let written = self.scalars(report.steps, &scalars);
        let told = if self.json { Ok(()) } else { self.tell(report, &figures, usd) };
        self.keep(written.and(told))
    }
}

impl Terminal {
    fn tell(&self, report: &EpochReport, figures: &[(Metric, f64)], usd: Option<f64>) -> Result<(), Failure> {
        let mut text = format!("epoch {}: loss {:.4}", report.epoch, report.loss);
        for (metric, value) in figures {
            text += &format!(", {} {value:.4}", if *metric == Metric::Loss { "val loss" } else { metric.name() });
        }
        let per_step = report.seconds * 1e3 / self.batches.max(1) as f64;
        text += &format!(", {} examples/s, {} a step", print::rate(report.examples_per_second), print::ms(per_step));
        if let Some(usd) = usd {
            text += &format!(", {usd:.6} USD");
        }
        if report.best {
            text += " *";
        }
        self.bar.suspend(|| print::line(&text))
    }
}

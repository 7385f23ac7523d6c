//! What is seen of a run: a bar on a terminal, a line for each epoch, scalars for TensorBoard.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use edgeward_train::{
    data::Loader,
    events::EventWriter,
    metrics::Metric,
    trainer::{EpochReport, Go, Stepped, Watch},
};
use indicatif::{ProgressBar, ProgressStyle};

use super::options::TrainOptions;
use crate::{
    Context,
    failure::{Failure, OrInput as _},
    interrupt, print,
};

/// Batches between two times that the event file is handed to the system.
const FLUSHED_EVERY: u64 = 50;

/// Looks on for a user.
pub struct Terminal {
    bar: ProgressBar,
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
        Ok(Self { bar, batches, events, price_usd_per_hour, json: context.json, failure: None })
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

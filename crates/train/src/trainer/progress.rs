//! Where a run is, and what it reports of each epoch.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Judged;

/// Where a run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The epoch under way, from 0.
    pub epoch: u64,
    /// The next batch of it, from 0.
    pub batch: u64,
    /// Batches since the beginning.
    pub step: u64,
    /// The best value of the metric.
    #[serde(with = "exact_or_none")]
    pub best: Option<f64>,
    /// The epoch that had it.
    pub best_epoch: Option<u64>,
    /// Epochs since.
    pub epochs_since_best: u64,
    /// Sum of losses of the epoch under way, each times its examples.
    #[serde(with = "exact")]
    loss_sum: f64,
    /// Examples of the epoch under way whose losses are in the sum.
    examples: u64,
    /// Seconds of the epoch under way.
    seconds: f64,
    /// Every epoch that has ended.
    pub epochs: Vec<EpochReport>,
}

/// What became of an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochReport {
    /// Epoch, from 1.
    pub epoch: u64,
    /// Batches since the beginning.
    pub steps: u64,
    /// Mean loss of its examples while they were learnt.
    pub loss: f64,
    /// Learning rate at its end.
    pub rate: f64,
    /// Time of its steps, judging left out.
    pub seconds: f64,
    /// Examples learnt per second.
    pub examples_per_second: f64,
    /// What the data for validation says; none where there is none.
    pub validation: Option<Judged>,
    /// True where it is the best so far.
    pub best: bool,
}

impl Progress {
    pub(super) fn add(&mut self, loss: f64, examples: usize, took: Duration) {
        self.batch += 1;
        self.step += 1;
        self.seconds += took.as_secs_f64();
        if loss.is_finite() {
            self.loss_sum += loss * examples as f64;
            self.examples += examples as u64;
        }
    }

    pub(super) fn end_epoch(&mut self, validation: Option<Judged>, best: bool, rate: f64) -> EpochReport {
        self.epochs_since_best = if best { 0 } else { self.epochs_since_best + u64::from(validation.is_some()) };
        let examples = self.examples as f64;
        let report = EpochReport {
            epoch: self.epoch + 1,
            steps: self.step,
            loss: self.loss_sum / examples.max(1.0),
            rate,
            seconds: self.seconds,
            examples_per_second: examples / self.seconds.max(f64::MIN_POSITIVE),
            validation,
            best,
        };
        self.epoch += 1;
        (self.batch, self.loss_sum, self.examples, self.seconds) = (0, 0.0, 0, 0.0);
        self.epochs.push(report.clone());
        report
    }
}

/// A number by its bits: text would come back rounded.
mod exact {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(value.to_bits())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        u64::deserialize(from).map(f64::from_bits)
    }
}

mod exact_or_none {
    use serde::{Deserialize, Deserializer, Serialize as _, Serializer};

    #[expect(clippy::ref_option, reason = "serde gives it so")]
    pub(super) fn serialize<S: Serializer>(value: &Option<f64>, to: S) -> Result<S::Ok, S::Error> {
        value.map(f64::to_bits).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(f64::from_bits))
    }
}

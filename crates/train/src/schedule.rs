//! The learning rate of every step: a pure function of its number.

use std::f64::consts::PI;

/// How the rate changes over a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// The same throughout.
    #[default]
    Constant,
    /// Half a cosine from the rate to 0 (Loshchilov & Hutter 2017, equation 5, without restarts).
    Cosine,
    /// Up from a 25th of the rate over the first three tenths, then down to a 250,000th, both along a cosine (Smith &
    /// Topin 2018, as PyTorch's `OneCycleLR` has it by default, momentum left alone).
    OneCycle,
    /// A straight line from the rate to 0.
    Linear,
}

/// A schedule over a known number of steps.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Schedule {
    /// How the rate changes.
    pub shape: Shape,
    /// The highest rate.
    pub rate: f64,
    /// Steps over which the rate first rises in a straight line from near 0, in addition to what the shape does.
    pub warmup_steps: u64,
    /// Steps of the whole run, those of the warm-up included.
    pub steps: u64,
}

impl Schedule {
    /// The rate of a step, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.rate * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let (step, steps) = (step - self.warmup_steps, self.steps.saturating_sub(self.warmup_steps));
        let along = (step as f64 / steps.max(1) as f64).min(1.0);
        match self.shape {
            Shape::Constant => self.rate,
            Shape::Cosine => self.rate * (1.0 + (PI * along).cos()) / 2.0,
            Shape::Linear => self.rate * (1.0 - along),
            Shape::OneCycle => self.one_cycle(step, steps),
        }
    }

    fn one_cycle(&self, step: u64, steps: u64) -> f64 {
        let first = self.rate / 25.0;
        let last = first / 1e4;
        let end = steps.saturating_sub(1) as f64;
        let top = 0.3 * steps as f64 - 1.0;
        let between = |from: f64, to: f64, along: f64| to + (from - to) / 2.0 * (1.0 + (PI * along).cos());
        let step = (step as f64).min(end);
        if step <= top {
            between(first, self.rate, step / top.max(f64::MIN_POSITIVE))
        } else {
            between(self.rate, last, (step - top) / (end - top).max(f64::MIN_POSITIVE))
        }
    }
}

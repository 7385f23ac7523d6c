//! Whether more examples would still move the ranges.

use crate::{
    calibrate::{Ranges, Statistics},
    histogram::Method,
};

/// Examples before the first look.
const FIRST: usize = 4;
/// How much wider ranges are on the average, as a part, where they have settled.
const WIDER_MAX: f64 = 0.02;

/// Ranges at the last look. Looks are at 4, 8, 16, … examples.
#[derive(Debug, Default)]
pub struct Settling {
    before: Vec<Ranges>,
    looked: usize,
}

impl Settling {
    /// True where twice as many examples moved ranges, of all that occurred and of all but the tails, by no more than 2 % on the average.
    pub fn settled(&mut self, statistics: &Statistics, examples: usize) -> bool {
        if examples < FIRST.max(2 * self.looked) {
            return false;
        }
        self.looked = examples;
        let now: Vec<Ranges> =
            [Method::MinMax, Method::Percentile].into_iter().map(|method| statistics.ranges(method)).collect();
        let before = std::mem::replace(&mut self.before, now);
        let mut pairs = before.iter().zip(&self.before);
        before.len() == self.before.len() && pairs.all(|(before, now)| moved(before, now) <= WIDER_MAX)
    }
}

/// The mean of how much the width of each range changed.
fn moved(before: &Ranges, now: &Ranges) -> f64 {
    let parts = now.iter().map(|(name, now)| {
        let (width, was) = (now.width(), before.get(name).map_or(0.0, |before| before.width()));
        if width > 0.0 { (width - was).abs() / width } else { 0.0 }
    });
    parts.sum::<f64>() / now.len().max(1) as f64
}

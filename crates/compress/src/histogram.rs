//! How often a value takes which size, in memory that does not grow with the number of samples, and the ranges that
//! follow from it.
//!
//! Bins are as wide as a power of two and begin at multiples of it, so a range that grows merges neighbours without
//! splitting any. What comes out is the same in whatever order samples came.

use crate::range::Range;

/// Bins at most: 8 bytes each.
const BINS_MAX: i64 = 4096;
/// Narrowings that are tried for [`Method::Mse`] and [`Method::Entropy`].
const STEPS: usize = 64;
/// The narrowest range that is tried, as a part of the whole.
const NARROWEST: f64 = 0.2;
/// Steps of a quantised value.
const LEVELS: usize = 256;

/// How a range follows from what was observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// All that occurred.
    MinMax,
    /// All but one in 10,000.
    Percentile,
    /// The least mean squared error (Choukroun et al. 2019, section 3).
    Mse,
    /// The least Kullback–Leibler divergence (Migacz 2017, "8-bit Inference with TensorRT").
    Entropy,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::MinMax, Self::Percentile, Self::Mse, Self::Entropy];

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::MinMax => "min-max",
            Self::Percentile => "percentile",
            Self::Mse => "mse",
            Self::Entropy => "entropy",
        }
    }
}

/// Numbers that are looked at at once.
const LANES: usize = 16;

/// Share of samples that [`Method::Percentile`] leaves out on each side.
const TAIL: f64 = 0.5e-4;

/// Counts by size.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// Width of a bin is 2 to this power.
    power: i32,
    /// Number of the first bin: it begins at `first · width`.
    first: i64,
    counts: Vec<u64>,
    low: f32,
    high: f32,
    total: u64,
    not_finite: u64,
}

impl Histogram {
    /// Takes samples in. Those that are no numbers are counted alone.
    pub fn add(&mut self, values: &[f32]) {
        let Some((low, high)) = ends(values) else {
            let finite: Vec<f32> = values.iter().copied().filter(|value| value.is_finite()).collect();
            self.not_finite += (values.len() - finite.len()) as u64;
            return self.add(&finite);
        };
        self.make_room(low, high);
        self.count(values);
        self.total += values.len() as u64;
    }

    /// Counts what there is room for. Most of the time of calibration is spent here: places are told some at a time, which
    /// processors do in wide registers, and zeros, half of what a Relu makes, are counted in turns in several places, since a count
    /// cannot grow again before it has been written.
    fn count(&mut self, values: &[f32]) {
        let (inverse, first) = (2f64.powi(-self.power) as f32, self.first as i32);
        if !inverse.is_normal() {
            return self.count_one_by_one(values);
        }
        let spare = self.counts.len();
        self.counts.resize(spare + LANES, 0);
        let mut places = [0i32; LANES];
        for chunk in values.chunks(LANES) {
            for (lane, (place, &value)) in places.iter_mut().zip(chunk).enumerate() {
                // By a power of two, so exact but for what is all but 0: rounded down.
                let scaled = value * inverse;
                let whole = scaled as i32;
                let below = value < 0.0 && (whole as f32 != scaled || whole == 0);
                let bin = whole - i32::from(below) - first;
                *place = if value == 0.0 { (spare + lane) as i32 } else { bin };
            }
            for &place in places.iter().take(chunk.len()) {
                if let Some(count) = self.counts.get_mut(place as usize) {
                    *count += 1;
                }
            }
        }
        let zeros: u64 = self.counts.drain(spare..).sum();
        if let Some(count) = usize::try_from(-self.first).ok().and_then(|bin| self.counts.get_mut(bin)) {
            *count += zeros;
        }
    }

    /// The same for bins so narrow that their number is none of binary32.
    fn count_one_by_one(&mut self, values: &[f32]) {
        let inverse = 2f64.powi(-self.power);
        for &value in values {
            let bin = (f64::from(value) * inverse).floor() as i64 - self.first;
            if let Some(count) = usize::try_from(bin).ok().and_then(|bin| self.counts.get_mut(bin)) {
                *count += 1;
            }
        }
    }

    /// Numbers that were taken in.
    pub fn samples(&self) -> u64 {
        self.total
    }

    /// True where a range can be told: some numbers, and nothing infinite.
    pub fn is_usable(&self) -> bool {
        self.total > 0 && self.not_finite == 0
    }

    /// Bytes that the counts take.
    pub fn bytes(&self) -> usize {
        self.counts.len() * size_of::<u64>()
    }

    fn make_room(&mut self, low: f32, high: f32) {
        self.low = self.low.min(low);
        self.high = self.high.max(high);
        if self.counts.is_empty() {
            self.power = least_power(self.low, self.high);
        }
        let before = self.power;
        // In binary64 until it fits: a first batch of zeros begins with bins that are far too narrow to be counted.
        let ends = |power: i32| {
            let width = 2f64.powi(power);
            ((f64::from(self.low) / width).floor(), (f64::from(self.high) / width).floor())
        };
        let mut power = self.power;
        while ends(power).1 - ends(power).0 >= BINS_MAX as f64 {
            power += 1;
        }
        let (first, last) = (ends(power).0 as i64, ends(power).1 as i64);
        let mut counts = vec![0u64; usize::try_from(last - first + 1).unwrap_or(1)];
        for (at, count) in self.counts.iter().enumerate() {
            let bin = ((self.first + at as i64) >> (power - before).min(63)) - first;
            if let Some(sum) = usize::try_from(bin).ok().and_then(|bin| counts.get_mut(bin)) {
                *sum += count;
            }
        }
        (self.power, self.first, self.counts) = (power, first, counts);
    }

    /// The range by `method`; none where nothing usable was observed.
    pub fn range(&self, method: Method) -> Option<Range> {
        if !self.is_usable() {
            return None;
        }
        let whole = Range::new(self.low, self.high);
        Some(match method {
            Method::MinMax => whole,
            Method::Percentile => self.percentile(whole),
            Method::Mse => self.narrowed(whole, |range| self.squared_error(range)),
            Method::Entropy => self.narrowed(whole, |range| self.divergence(range)),
        })
    }

    fn edges(&self, bin: usize) -> (f64, f64) {
        let width = 2f64.powi(self.power);
        let low = (self.first + bin as i64) as f64 * width;
        (low, low + width)
    }

    fn percentile(&self, whole: Range) -> Range {
        let allowed = (self.total as f64 * TAIL) as u64;
        let low = beyond(self.counts.iter().enumerate(), allowed).map_or(whole.low, |bin| self.edges(bin).0 as f32);
        let high =
            beyond(self.counts.iter().enumerate().rev(), allowed).map_or(whole.high, |bin| self.edges(bin).1 as f32);
        Range::new(low.max(whole.low), high.min(whole.high))
    }

    fn narrowed(&self, whole: Range, cost: impl Fn(Range) -> f64) -> Range {
        let step = (1.0 - NARROWEST) / STEPS as f64;
        let candidates = (0..=STEPS).map(|at| {
            let part = (1.0 - step * at as f64) as f32;
            Range { low: whole.low * part, high: whole.high * part }
        });
        let best = candidates.map(|range| (range, cost(range))).min_by(|a, b| a.1.total_cmp(&b.1));
        best.map_or(whole, |(range, _)| range)
    }

    /// Sum of squared errors of samples taken as lying in their bin's middle: a twelfth of a squared step within the
    /// range, the squared distance beyond.
    fn squared_error(&self, range: Range) -> f64 {
        let steps = range.steps();
        let within = f64::from(steps.scale).powi(2) / 12.0;
        let (low, high) = (f64::from(range.low), f64::from(range.high));
        let error = |(bin, &count): (usize, &u64)| {
            let (from, to) = self.edges(bin);
            let middle = f64::midpoint(from, to);
            let beyond = (low - middle).max(middle - high).max(0.0);
            count as f64 * if beyond > 0.0 { beyond * beyond } else { within }
        };
        self.counts.iter().enumerate().map(error).sum()
    }

    /// Divergence of the quantised distribution from the observed one with its tails at the ends of the range.
    fn divergence(&self, range: Range) -> f64 {
        let width = 2f64.powi(self.power);
        let bin = |value: f32| (f64::from(value) / width).floor() as i64 - self.first;
        let from = usize::try_from(bin(range.low)).unwrap_or(0);
        let to = usize::try_from(bin(range.high)).unwrap_or(0).min(self.counts.len().saturating_sub(1));
        let Some(inside) = self.counts.get(from..=to).filter(|inside| inside.len() >= 2) else { return f64::INFINITY };
        let mut reference: Vec<f64> = inside.iter().map(|&count| count as f64).collect();
        let sum = |counts: Option<&[u64]>| counts.unwrap_or_default().iter().sum::<u64>() as f64;
        if let Some(first) = reference.first_mut() {
            *first += sum(self.counts.get(..from));
        }
        if let Some(last) = reference.last_mut() {
            *last += sum(self.counts.get(to + 1..));
        }
        let quantised = spread(inside);
        let (p_sum, q_sum): (f64, f64) = (reference.iter().sum(), quantised.iter().sum());
        if p_sum <= 0.0 || q_sum <= 0.0 {
            return f64::INFINITY;
        }
        let term = |(p, q): (&f64, &f64)| {
            let (p, q) = (p / p_sum, (q / q_sum).max(1e-12));
            if p > 0.0 { p * (p / q).ln() } else { 0.0 }
        };
        reference.iter().zip(&quantised).map(term).sum()
    }
}

/// The least and the greatest number, and 0; none where one is none or infinite.
fn ends(values: &[f32]) -> Option<(f32, f32)> {
    let (mut low, mut high, mut sums) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
    for chunk in values.chunks(LANES) {
        let lanes = low.iter_mut().zip(&mut high).zip(&mut sums);
        for (((low, high), sum), &value) in lanes.zip(chunk) {
            *low = if value < *low { value } else { *low };
            *high = if value > *high { value } else { *high };
            // 0, or no number from the first that is none or infinite on.
            *sum += value * 0.0;
        }
    }
    let finite = sums.iter().all(|sum| *sum == 0.0);
    finite.then(|| (low.into_iter().fold(0.0, f32::min), high.into_iter().fold(0.0, f32::max)))
}

/// The first bin with which more than `allowed` samples were passed.
fn beyond<'a>(mut bins: impl Iterator<Item = (usize, &'a u64)>, allowed: u64) -> Option<usize> {
    let mut seen = 0;
    let found = bins.find(|(_, count)| {
        seen += **count;
        seen > allowed
    });
    found.map(|(bin, _)| bin)
}

/// The counts as 256 levels have them: each level's count over those of its bins that are not empty.
fn spread(inside: &[u64]) -> Vec<f64> {
    let bins = inside.len();
    let mut quantised = vec![0.0; bins];
    for level in 0..LEVELS.min(bins) {
        let (from, to) = (level * bins / LEVELS.min(bins), (level + 1) * bins / LEVELS.min(bins));
        let Some(group) = inside.get(from..to) else { continue };
        let filled = group.iter().filter(|&&count| count > 0).count().max(1) as f64;
        let mean = group.iter().sum::<u64>() as f64 / filled;
        for (at, &count) in group.iter().enumerate() {
            if let Some(value) = quantised.get_mut(from + at).filter(|_| count > 0) {
                *value = mean;
            }
        }
    }
    quantised
}

/// The least power of two whose bins could hold the range.
fn least_power(low: f32, high: f32) -> i32 {
    let most = f64::from(low.abs().max(high.abs()));
    if most == 0.0 {
        // Any width holds 0; a narrow one loses nothing later.
        return f32::MIN_EXP;
    }
    (most / (BINS_MAX / 2) as f64).log2().floor() as i32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(batches: &[&[f32]]) -> Histogram {
        let mut histogram = Histogram::default();
        batches.iter().for_each(|batch| histogram.add(batch));
        histogram
    }

    #[test]
    fn an_outlier_counts_by_the_method() {
        let mut values: Vec<f32> = (0..100_000).map(|i| ((i * 7919) % 100_003) as f32 / 100_003.0).collect();
        values.push(50.0);
        let histogram = of(&[&values]);
        assert_eq!(histogram.range(Method::MinMax).unwrap().high, 50.0);
        // Where the error of 100,000 evenly spread numbers, h² / (12 · 255²) each, grows as fast as (50 − h)² falls: at 44.3.
        let high = histogram.range(Method::Mse).unwrap().high;
        assert!((43.7..45.0).contains(&high), "{high}");
        assert!(histogram.range(Method::Percentile).unwrap().high < 1.1);
    }

    #[test]
    fn what_is_not_finite_makes_no_range() {
        assert!(of(&[&[1.0, f32::NAN]]).range(Method::MinMax).is_none());
        assert!(of(&[&[]]).range(Method::MinMax).is_none());
        assert_eq!(of(&[&[0.0; 8]]).range(Method::Entropy).unwrap(), Range::new(0.0, 0.0));
    }

    #[test]
    fn memory_is_bounded() {
        let mut histogram = Histogram::default();
        for power in -120..=120 {
            histogram.add(&[2f32.powi(power), -2f32.powi(power)]);
            assert!(histogram.bytes() <= 8 * (BINS_MAX as usize + 1), "{power}: {}", histogram.bytes());
        }
        assert_eq!(histogram.counts.iter().sum::<u64>(), 2 * 241);
    }

    #[test]
    fn each_number_is_counted_where_it_lies() {
        for scale in [1.0, 1e-30, 1e-38, 1e-44, 1e30] {
            let values: Vec<f32> = (-500..1500).map(|i| if i % 3 == 0 { 0.0 } else { i as f32 * scale }).collect();
            let histogram = of(&[&values, &[-f32::MIN_POSITIVE * scale.min(1.0)]]);
            let mut expected = vec![0u64; histogram.counts.len()];
            for &value in &values {
                let bin = (f64::from(value) / 2f64.powi(histogram.power)).floor() as i64 - histogram.first;
                expected[bin as usize] += 1;
            }
            expected[(-1 - histogram.first) as usize] += u64::from(scale >= 1e-6);
            expected[-histogram.first as usize] += u64::from(scale < 1e-6);
            assert_eq!(histogram.counts, expected, "{scale}");
        }
    }

    proptest! {
        #[test]
        fn the_order_of_samples_does_not_count(
            a in prop::collection::vec(-1e3f32..1e3, 1..50), b in prop::collection::vec(-1f32..1.0, 1..50)
        ) {
            let (there, back) = (of(&[&a, &b]), of(&[&b, &a]));
            prop_assert_eq!(there.counts.iter().sum::<u64>(), (a.len() + b.len()) as u64);
            for method in Method::ALL {
                prop_assert_eq!(there.range(method), back.range(method));
            }
        }

        #[test]
        fn no_method_widens(values in prop::collection::vec(-1e3f32..1e3, 1..200)) {
            let histogram = of(&[&values]);
            let whole = histogram.range(Method::MinMax).unwrap();
            for method in Method::ALL {
                let range = histogram.range(method).unwrap();
                prop_assert!(range.low >= whole.low && range.high <= whole.high, "{method:?} {range:?} {whole:?}");
            }
        }
    }
}

//! How sure a figure is: 95 % intervals.

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha12Rng};

/// An interval that holds the true figure in 95 of 100 repetitions.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The normal distribution's 97.5th percentile.
const Z: f64 = 1.959_963_984_540_054;

/// Of a share, `right` of `all` (Wilson 1927); all of 0 to 1 where there is nothing.
pub fn wilson(right: usize, all: usize) -> Interval {
    if all == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let (n, share) = (all as f64, right as f64 / all as f64);
    let centre = (share + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let half = Z / (1.0 + Z * Z / n) * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    Interval { low: (centre - half).max(0.0), high: (centre + half).min(1.0) }
}

/// Of any figure of examples, by drawing as many with replacement `times` over (Efron 1979, percentile method). None
/// where no draw has a figure.
pub fn bootstrap(
    examples: usize,
    times: usize,
    seed: u64,
    mut figure: impl FnMut(&[usize]) -> Option<f64>,
) -> Option<Interval> {
    if examples == 0 {
        return None;
    }
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    let mut rows = vec![0; examples];
    let mut figures = Vec::with_capacity(times);
    for _ in 0..times {
        rows.iter_mut().for_each(|row| *row = rng.random_range(0..examples));
        figures.extend(figure(&rows));
    }
    figures.sort_by(f64::total_cmp);
    let at = |share: f64| figures.get((share * figures.len().saturating_sub(1) as f64).round() as usize).copied();
    Some(Interval { low: at(0.025)?, high: at(0.975)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_as_published() {
        // Newcombe 1998, table I: 81 of 263, and 0 of 20.
        let close = |a: f64, b: f64| (a - b).abs() < 5e-5;
        let interval = wilson(81, 263);
        assert!(close(interval.low, 0.2553) && close(interval.high, 0.3662), "{interval:?}");
        let interval = wilson(0, 20);
        assert!(close(interval.low, 0.0) && close(interval.high, 0.1611), "{interval:?}");
    }

    #[test]
    fn a_mean_lies_within() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 10)).collect();
        let mean = |rows: &[usize]| Some(rows.iter().map(|&row| values[row]).sum::<f64>() / rows.len() as f64);
        let interval = bootstrap(values.len(), 500, 7, mean).unwrap();
        // Standard error of the mean: 2.872 / 20.
        assert!(interval.low < 4.5 && 4.5 < interval.high && (interval.high - interval.low - 0.563).abs() < 0.1);
        assert_eq!(bootstrap(0, 10, 7, |_| Some(1.0)), None);
        assert_eq!(bootstrap(5, 10, 7, |_| None), None);
    }
}

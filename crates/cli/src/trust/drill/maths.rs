//! The attacks' mathematics, without any I/O: the area under a ROC curve, structural similarity, coarse images.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// Every drill draws from this seed: what it found can be found again.
pub const SEED: u64 = 0x5eed;

/// A source of numbers.
pub fn rng() -> StdRng {
    StdRng::seed_from_u64(SEED)
}

/// Standard normal, by Box and Muller.
pub fn normal(rng: &mut StdRng) -> f32 {
    let (a, b): (f32, f32) = (rng.random(), rng.random());
    (-2.0 * (1.0 - a).max(f32::MIN_POSITIVE).ln()).sqrt() * (std::f32::consts::TAU * b).cos()
}

/// Inputs seen coarsely: blocks of an image, or of a vector, are one number each.
#[derive(Clone, Debug, PartialEq)]
pub struct Coarse {
    /// The block of each element of a row.
    block: Vec<usize>,
    /// Elements of each block.
    sizes: Vec<f32>,
    /// Height and width in blocks of one plane; 1 × n for vectors.
    pub plane: (usize, usize),
}

impl Coarse {
    /// At most `most` blocks for rows of this shape; its first dimension is the row's.
    pub fn of(shape: &[usize], most: usize) -> Self {
        let inner = shape.get(1..).unwrap_or_default();
        let width: usize = inner.iter().product();
        let (planes, height, columns) = match *inner {
            [height, columns] => (1, height, columns),
            [planes, height, columns] if height > 4 && columns > 4 => (planes, height, columns),
            _ => (1, 1, width),
        };
        let mut side = 1;
        let blocks = |side: usize| {
            if height > 1 { planes * height.div_ceil(side) * columns.div_ceil(side) } else { columns.div_ceil(side) }
        };
        while blocks(side) > most.max(planes) && side < columns.max(height) {
            side += 1;
        }
        let plane = (if height > 1 { height.div_ceil(side) } else { 1 }, columns.div_ceil(side));
        let place = |at: usize| {
            let (of_plane, at) = (at / (height * columns).max(1), at % (height * columns).max(1));
            let (row, column) = (at / columns.max(1), at % columns.max(1));
            of_plane * plane.0 * plane.1 + if height > 1 { row / side } else { 0 } * plane.1 + column / side
        };
        let block: Vec<usize> = (0..width).map(place).collect();
        let mut sizes = vec![0.0; planes * plane.0 * plane.1];
        block.iter().for_each(|&block| sizes[block] += 1.0);
        Self { block, sizes, plane }
    }

    /// Blocks.
    pub fn len(&self) -> usize {
        self.sizes.len()
    }

    /// The mean of each block.
    pub fn down(&self, row: &[f32]) -> Vec<f32> {
        let mut means = vec![0.0; self.len()];
        self.block.iter().zip(row).for_each(|(&block, value)| means[block] += value);
        means.iter_mut().zip(&self.sizes).for_each(|(mean, size)| *mean /= size.max(1.0));
        means
    }

    /// A row whose blocks are even.
    pub fn up(&self, means: &[f32]) -> Vec<f32> {
        self.block.iter().map(|&block| means.get(block).copied().unwrap_or_default()).collect()
    }

    /// Adds to every element of a block, within bounds.
    pub fn add(&self, row: &mut [f32], block: usize, step: f32, (least, most): (f32, f32)) {
        for (value, _) in row.iter_mut().zip(&self.block).filter(|(_, of)| **of == block) {
            *value = (*value + step).clamp(least, most);
        }
    }
}

/// Scores as probabilities: as they are where they are ones, else by softmax.
pub fn probabilities(scores: &[(usize, f64)], classes: usize) -> Vec<f64> {
    let mut all = vec![0.0; classes];
    let sum: f64 = scores.iter().map(|(_, score)| score).sum();
    let probable = scores.iter().all(|(_, score)| (-1e-6..=1.000_001).contains(score)) && sum <= 1.05;
    let whole = scores.len() == classes;
    if probable && (!whole || sum > 0.95) {
        // What was not said is spread evenly.
        let rest = (1.0 - sum).max(0.0) / classes.saturating_sub(scores.len()).max(1) as f64;
        all.iter_mut().for_each(|share| *share = rest);
        scores.iter().for_each(|&(class, score)| set(&mut all, class, score.max(0.0)));
        return all;
    }
    let most = scores.iter().map(|(_, score)| *score).fold(f64::NEG_INFINITY, f64::max);
    scores.iter().for_each(|&(class, score)| set(&mut all, class, (score - most).exp()));
    let total: f64 = all.iter().sum();
    all.iter_mut().for_each(|share| *share /= total.max(f64::MIN_POSITIVE));
    all
}

fn set(all: &mut [f64], class: usize, value: f64) {
    if let Some(place) = all.get_mut(class) {
        *place = value;
    }
}

/// Area under the ROC curve: the chance that a positive scores above a negative, ties counting half (Hanley and McNeil 1982), and its
/// standard error (their equation 1).
pub fn auc(positives: &[f64], negatives: &[f64]) -> (f64, f64) {
    let (p, n) = (positives.len() as f64, negatives.len() as f64);
    let wins: f64 = positives
        .iter()
        .map(|a| {
            negatives
                .iter()
                .map(|b| {
                    if a > b {
                        1.0
                    } else if a == b {
                        0.5
                    } else {
                        0.0
                    }
                })
                .sum::<f64>()
        })
        .sum();
    let area = wins / (p * n).max(1.0);
    let (q1, q2) = (area / (2.0 - area), 2.0 * area * area / (1.0 + area));
    let variance =
        (area * (1.0 - area) + (p - 1.0) * (q1 - area * area) + (n - 1.0) * (q2 - area * area)) / (p * n).max(1.0);
    (area, variance.max(0.0).sqrt())
}

/// Points of the ROC curve: false positives to true positives.
pub fn roc(positives: &[f64], negatives: &[f64]) -> Vec<(f64, f64)> {
    let mut bounds: Vec<f64> = positives.iter().chain(negatives).copied().collect();
    bounds.sort_by(|a, b| b.total_cmp(a));
    bounds.dedup();
    let share =
        |of: &[f64], bound: f64| of.iter().filter(|score| **score >= bound).count() as f64 / of.len().max(1) as f64;
    let step = bounds.len().div_ceil(100).max(1);
    let points = bounds.iter().step_by(step).map(|&bound| (share(negatives, bound), share(positives, bound)));
    std::iter::once((0.0, 0.0)).chain(points).chain([(1.0, 1.0)]).collect()
}

/// Structural similarity of two images of one plane each (Wang et al. 2004, equation 13), over windows of at most 8 × 8, for values that
/// span `range`.
pub fn ssim(a: &[f32], b: &[f32], (height, width): (usize, usize), range: f32) -> f64 {
    let (side_y, side_x) = (height.min(8), if height > 1 { width.min(8) } else { width });
    let (c1, c2) = ((0.01 * f64::from(range)).powi(2), (0.03 * f64::from(range)).powi(2));
    let mut windows = Vec::new();
    for y in 0..=height.saturating_sub(side_y) {
        for x in 0..=width.saturating_sub(side_x) {
            let places = (y..y + side_y).flat_map(|y| (x..x + side_x).map(move |x| y * width + x));
            let pairs: Vec<(f64, f64)> =
                places.filter_map(|at| Some((f64::from(*a.get(at)?), f64::from(*b.get(at)?)))).collect();
            windows.push(window(&pairs, c1, c2));
        }
    }
    windows.iter().sum::<f64>() / windows.len().max(1) as f64
}

fn window(pairs: &[(f64, f64)], c1: f64, c2: f64) -> f64 {
    let count = pairs.len().max(1) as f64;
    let mean = |of: &dyn Fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>() / count;
    let (a, b) = (mean(&|pair| pair.0), mean(&|pair| pair.1));
    let (va, vb) = (mean(&|pair| (pair.0 - a).powi(2)), mean(&|pair| (pair.1 - b).powi(2)));
    let covariance = mean(&|pair| (pair.0 - a) * (pair.1 - b));
    (2.0 * a * b + c1) * (2.0 * covariance + c2) / ((a * a + b * b + c1) * (va + vb + c2))
}

/// The value below which a share of them lies; none of none.
pub fn percentile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = ((sorted.len() as f64 * share).ceil() as usize).saturating_sub(1);
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied()
}

/// The class that comes most often, and its share.
pub fn majority(labels: &[usize]) -> (usize, f64) {
    let count = |class: usize| labels.iter().filter(|label| **label == class).count();
    let most = labels.iter().copied().max_by_key(|&class| count(class)).unwrap_or(0);
    (most, count(most) as f64 / labels.len().max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_those_of_the_definition() {
        assert_eq!(auc(&[0.9, 0.8], &[0.1, 0.2]).0, 1.0);
        assert_eq!(auc(&[0.5, 0.5], &[0.5]).0, 0.5);
        assert_eq!(auc(&[0.1], &[0.9]).0, 0.0);
        // scikit-learn 1.7: roc_auc_score([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) is 0.75.
        assert_eq!(auc(&[0.35, 0.8], &[0.1, 0.4]).0, 0.75);
        // Hanley and McNeil 1982: 51 abnormal and 58 normal at an area of 0.893 have a standard error near 0.032.
        let q = |area: f64, p: f64, n: f64| {
            let (q1, q2) = (area / (2.0 - area), 2.0 * area * area / (1.0 + area));
            ((area * (1.0 - area) + (p - 1.0) * (q1 - area * area) + (n - 1.0) * (q2 - area * area)) / (p * n)).sqrt()
        };
        assert!((q(0.893, 51.0, 58.0) - 0.032).abs() < 0.001);
        let curve = roc(&[0.35, 0.8], &[0.1, 0.4]);
        assert_eq!(curve, [(0.0, 0.0), (0.0, 0.5), (0.5, 0.5), (0.5, 1.0), (1.0, 1.0), (1.0, 1.0)]);
    }

    #[test]
    fn an_image_is_like_itself_and_unlike_its_negative() {
        let image: Vec<f32> = (0..256).map(|at| ((at / 16 + at % 16) % 7) as f32 / 6.0).collect();
        let negative: Vec<f32> = image.iter().map(|value| 1.0 - value).collect();
        assert!((ssim(&image, &image, (16, 16), 1.0) - 1.0).abs() < 1e-9);
        assert!(ssim(&image, &negative, (16, 16), 1.0) < 0.0);
        let grey = vec![0.5; 256];
        assert!(ssim(&image, &grey, (16, 16), 1.0) < 0.1);
        assert!((ssim(&image[..16], &image[..16], (1, 16), 1.0) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn scores_become_probabilities() {
        assert_eq!(probabilities(&[(0, 0.25), (1, 0.75)], 2), [0.25, 0.75]);
        let soft = probabilities(&[(0, 2.0), (1, 2.0)], 2);
        assert_eq!(soft, [0.5, 0.5]);
        let partly = probabilities(&[(2, 0.7)], 4);
        assert!((partly[2] - 0.7).abs() < 1e-9 && (partly[0] - 0.1).abs() < 1e-9);
        // Logarithms of probabilities are no probabilities.
        let logs = probabilities(&[(0, -0.1), (1, -2.4)], 2);
        assert!(logs[0] > 0.9, "{logs:?}");
        assert_eq!(probabilities(&[(9, 1.0)], 2).len(), 2);
    }

    #[test]
    fn coarse_images_come_back_even() {
        let coarse = Coarse::of(&[1, 1, 28, 28], 256);
        assert_eq!((coarse.plane, coarse.len()), ((14, 14), 196));
        let row: Vec<f32> = (0..784).map(|at| (at / 28) as f32).collect();
        let means = coarse.down(&row);
        assert_eq!((means[0], means[14]), (0.5, 2.5));
        assert_eq!(coarse.down(&coarse.up(&means)), means);
        let vector = Coarse::of(&[1, 16], 256);
        assert_eq!((vector.plane, vector.down(&row[..16]).len()), ((1, 16), 16));
        let colours = Coarse::of(&[1, 3, 224, 224], 256);
        assert!(colours.len() <= 256 && colours.len() > 100, "{}", colours.len());
        let mut changed = vec![0.0; 16];
        vector.add(&mut changed, 3, 2.0, (0.0, 1.0));
        assert_eq!(changed.iter().sum::<f32>(), 1.0);
        assert_eq!(Coarse::of(&[], 8).len(), 1);
    }

    #[test]
    fn percentiles_and_majorities() {
        assert_eq!(percentile(&[], 0.5), None);
        assert_eq!((percentile(&[3.0, 1.0, 2.0], 0.5), percentile(&[1.0, 2.0], 0.99)), (Some(2.0), Some(2.0)));
        assert_eq!(majority(&[1, 2, 2]), (2, 2.0 / 3.0));
        assert_eq!(majority(&[]), (0, 0.0));
    }
}

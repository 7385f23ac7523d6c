//! Weights as signed integers, symmetric around 0, with a scale for each output channel.
//!
//! `q = round(w / s)`, `s = max|w| / q_max` (Krishnamoorthi 2018, "Quantizing deep convolutional networks", section 2.3).

use edgeward_graph::Tensor;

use crate::CompressError;

/// How many bits of a byte weights use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightBits {
    /// All eight: −127 to 127.
    Eight,
    /// Seven: −63 to 63. Processors without VNNI add two products in 16 bits, which saturate with eight.
    Seven,
    /// Four: −7 to 7, in bytes all the same. Speed is that of eight; half of it is left in transfer.
    Four,
}

impl WeightBits {
    /// What this processor multiplies without saturating.
    pub fn of_this_machine() -> Self {
        #[cfg(target_arch = "x86_64")]
        if !(std::is_x86_feature_detected!("avx512vnni") || std::is_x86_feature_detected!("avxvnni")) {
            return Self::Seven;
        }
        Self::Eight
    }

    /// The largest integer.
    pub fn most(self) -> f32 {
        match self {
            Self::Eight => 127.0,
            Self::Seven => 63.0,
            Self::Four => 7.0,
        }
    }
}

/// Weights and the scale of each channel.
#[derive(Clone, Debug)]
pub struct Integers {
    /// In the order of the floats.
    pub values: Vec<i8>,
    /// One for each channel.
    pub scales: Vec<f32>,
    shape: Vec<usize>,
    axis: usize,
}

impl Integers {
    /// Quantises `values` of `shape` along `axis`. `scale_min` is the least scale of each channel, for biases that must
    /// fit as well; it may be empty.
    pub fn of(shape: &[usize], values: &[f32], axis: usize, bits: WeightBits, scale_min: &[f32]) -> Self {
        let channels = shape.get(axis).copied().unwrap_or(1).max(1);
        let inner = shape.iter().skip(axis + 1).product::<usize>().max(1);
        let mut most = vec![0f32; channels];
        for (at, run) in values.chunks(inner).enumerate() {
            if let Some(most) = most.get_mut(at % channels) {
                *most = run.iter().fold(*most, |most, value| most.max(value.abs()));
            }
        }
        let scale = |(channel, most): (usize, &f32)| {
            let least = scale_min.get(channel).copied().unwrap_or(0.0);
            let scale = (most / bits.most()).max(least);
            // A channel of zeros, or of numbers too small to divide by.
            if scale >= f32::MIN_POSITIVE { scale } else { 1.0 }
        };
        let scales = most.iter().enumerate().map(scale).collect();
        Self::in_steps(shape, values, axis, bits, scales)
    }

    /// Quantises along `axis` in given steps, one for each channel and none of them 0.
    pub fn in_steps(shape: &[usize], values: &[f32], axis: usize, bits: WeightBits, scales: Vec<f32>) -> Self {
        let inner = shape.iter().skip(axis + 1).product::<usize>().max(1);
        let mut integers = Vec::with_capacity(values.len());
        for (run, scale) in values.chunks(inner).zip(scales.iter().cycle()) {
            let integer = |value: &f32| nearest((value / scale).clamp(-bits.most(), bits.most())) as i8;
            integers.extend(run.iter().map(integer));
        }
        Self { values: integers, scales, shape: shape.to_vec(), axis }
    }

    /// What the integers stand for.
    pub fn floats(&self) -> Vec<f32> {
        let inner = self.shape.iter().skip(self.axis + 1).product::<usize>().max(1);
        let runs = self.values.chunks(inner).zip(self.scales.iter().cycle());
        runs.flat_map(|(run, scale)| run.iter().map(move |&value| f32::from(value) * scale)).collect()
    }

    /// The integers as a tensor.
    pub fn tensor(&self) -> Result<Tensor, CompressError> {
        Ok(Tensor::from_vec(self.shape.clone(), self.values.clone())?)
    }

    /// The scales as a tensor of one dimension.
    pub fn scale_tensor(&self) -> Result<Tensor, CompressError> {
        Ok(Tensor::from_vec([self.scales.len()], self.scales.clone())?)
    }
}

/// A number of less than 2²² rounded to the nearest, ties to even, without the call that it is on processors of the oldest kind:
/// beside 1.5 · 2²³ there is no room for a fraction.
fn nearest(value: f32) -> f32 {
    const NO_FRACTION: f32 = 12_582_912.0;
    (value + NO_FRACTION) - NO_FRACTION
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_channel_has_its_scale() {
        let values = [1.0, -2.0, 0.5, 100.0, 0.0, -50.0];
        let rows = Integers::of(&[2, 3], &values, 0, WeightBits::Eight, &[]);
        assert_eq!(rows.values, [64, -127, 32, 127, 0, -64]);
        let columns = Integers::of(&[2, 3], &values, 1, WeightBits::Seven, &[]);
        assert_eq!(columns.values, [1, -63, 1, 63, 0, -63]);
        for (is, was) in rows.floats().iter().zip(values) {
            assert!((is - was).abs() <= 100.0 / 127.0 / 2.0, "{is} {was}");
        }
    }

    #[test]
    fn halves_go_to_the_even_neighbour() {
        for quarters in -600..=600 {
            let value = quarters as f32 / 4.0;
            assert_eq!(nearest(value), value.round_ties_even());
            assert_eq!(nearest(value * 0.999), (value * 0.999).round_ties_even());
        }
    }

    #[test]
    fn zeros_and_tiny_weights_stay() {
        let zeros = Integers::of(&[2, 2], &[0.0, 0.0, 1e-45, 0.0], 0, WeightBits::Eight, &[]);
        assert_eq!(zeros.values, [0; 4]);
        assert!(zeros.scales.iter().all(|scale| *scale == 1.0));
        let least = Integers::of(&[1, 1], &[1.0], 0, WeightBits::Eight, &[0.5]);
        assert_eq!((least.values[0], least.scales[0]), (2, 0.5));
    }
}

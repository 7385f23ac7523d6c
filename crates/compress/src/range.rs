//! Which real numbers the 256 steps of an activation stand for.

use edgeward_graph::Tensor;

use crate::CompressError;

/// The least and the greatest number that a value is expected to take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// Not above 0.
    pub low: f32,
    /// Not below 0.
    pub high: f32,
}

/// Whether activations are bytes from 0 or around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activations {
    /// 0 to 255: what x86 multiplies fastest.
    U8,
    /// −128 to 127: what Arm multiplies fastest.
    S8,
}

impl Activations {
    /// What this processor multiplies fastest.
    pub fn of_this_machine() -> Self {
        if cfg!(target_arch = "aarch64") { Self::S8 } else { Self::U8 }
    }
}

/// Scale and zero point: `x ≈ scale · (q − zero_point)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Steps {
    /// Width of one step.
    pub scale: f32,
    /// The integer of 0, counted from the lowest.
    pub zero: u8,
}

impl Range {
    /// Widened to hold 0, which padding needs to be exact.
    pub fn new(low: f32, high: f32) -> Self {
        Self { low: low.min(0.0), high: high.max(0.0) }
    }

    /// From the least to the greatest.
    pub(crate) fn width(self) -> f64 {
        f64::from(self.high) - f64::from(self.low)
    }

    /// 255 steps over the range, with 0 on one of them.
    pub fn steps(self) -> Steps {
        let scale = (self.width() / 255.0) as f32;
        if !scale.is_finite() || scale < f32::MIN_POSITIVE {
            return Steps { scale: 1.0, zero: 0 };
        }
        let zero = (-f64::from(self.low) / f64::from(scale)).round().clamp(0.0, 255.0) as u8;
        Steps { scale, zero }
    }
}

impl Steps {
    /// The zero point as a tensor of the activations' type.
    pub(crate) fn zero_tensor(self, activations: Activations) -> Result<Tensor, CompressError> {
        Ok(match activations {
            Activations::U8 => Tensor::from_vec([], vec![self.zero])?,
            Activations::S8 => Tensor::from_vec([], vec![(i16::from(self.zero) - 128) as i8])?,
        })
    }

    /// What a number becomes, counted from the lowest.
    pub fn quantise(self, value: f32) -> u8 {
        ((value / self.scale).round_ties_even() + f32::from(self.zero)).clamp(0.0, 255.0) as u8
    }

    /// What an integer stands for.
    pub fn value(self, integer: u8) -> f32 {
        (f32::from(integer) - f32::from(self.zero)) * self.scale
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_to_tell_apart_has_steps_as_well() {
        assert_eq!(Range::new(0.0, 0.0).steps(), Steps { scale: 1.0, zero: 0 });
        assert!(Range::new(f32::MIN, f32::MAX).steps().scale.is_finite());
    }

    proptest! {
        #[test]
        fn zero_is_exact_and_others_are_within_half_a_step(
            low in -1e6f32..1e6, width in 1e-3f32..1e6, part in 0f32..=1.0
        ) {
            let range = Range::new(low, low + width);
            let steps = range.steps();
            prop_assert_eq!(steps.value(steps.quantise(0.0)), 0.0);
            let value = range.low + part * (range.high - range.low);
            let error = (steps.value(steps.quantise(value)) - value).abs();
            // The zero point is rounded, which moves both ends by up to half a step.
            prop_assert!(error <= steps.scale * 1.01, "{error} {steps:?}");
        }
    }
}

//! How far a variant's results are from the original's: direction, first choice, and noise layer by layer.

use std::collections::BTreeMap;

use edgeward_graph::{DataType, Tensor};
use half::f16;

use crate::{
    CompressError,
    observe::{self, Batches, Load},
};

/// Results held against each other, example by example.
#[derive(Clone, Debug, Default)]
pub struct Compared {
    /// Cosine of the angle between both, the least of all outputs of an example; 1 is the same direction.
    pub cosines: Vec<f64>,
    /// Whether the greatest number of the first output stands at the same place, where that output is `[rows, classes]`.
    pub same_choice: Vec<bool>,
}

/// What a comparison came to.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Agreement {
    /// Examples.
    pub examples: usize,
    /// Mean cosine.
    pub cosine: f64,
    /// The least cosine.
    pub cosine_least: f64,
    /// Part of the examples with the same first choice; none where outputs are no scores.
    pub top1: Option<f64>,
}

impl Compared {
    /// Takes in the outputs of one run of `rows` examples.
    pub fn add(&mut self, original: &[Tensor], variant: &[Tensor], rows: usize) {
        let rows = rows.max(1);
        let mut least = vec![1f64; rows];
        for (at, (original, variant)) in original.iter().zip(variant).enumerate() {
            let (Some(a), Some(b)) = (floats(original), floats(variant)) else { continue };
            let fits = a.len() == b.len() && !a.is_empty() && original.shape().first() == Some(&rows);
            // An output that is not by example, or of a size that the results decide, counts as a whole.
            let width = if fits { a.len() / rows } else { a.len().max(1) };
            if a.len() != b.len() {
                least.fill(0.0);
                continue;
            }
            let pairs = a.chunks(width).zip(b.chunks(width));
            let cosines: Vec<f64> = pairs.map(|(a, b)| cosine(a, b)).collect();
            for (row, least) in least.iter_mut().enumerate() {
                *least = least.min(cosines.get(row).or(cosines.first()).copied().unwrap_or(1.0));
            }
            if at == 0 && fits && original.shape().len() == 2 && width >= 2 {
                self.same_choice.extend(a.chunks(width).zip(b.chunks(width)).map(|(a, b)| choice(a) == choice(b)));
            }
        }
        self.cosines.extend(least);
    }

    /// The means.
    pub fn agreement(&self) -> Agreement {
        let examples = self.cosines.len();
        let cosine = self.cosines.iter().sum::<f64>() / examples.max(1) as f64;
        let cosine_least = self.cosines.iter().copied().fold(1.0, f64::min);
        let same = self.same_choice.iter().filter(|same| **same).count();
        let top1 = (!self.same_choice.is_empty()).then(|| same as f64 / self.same_choice.len() as f64);
        Agreement { examples, cosine, cosine_least, top1 }
    }
}

/// As numbers; none where the elements are no floats.
pub(crate) fn floats(tensor: &Tensor) -> Option<Vec<f64>> {
    Some(match tensor.dtype() {
        DataType::Float32 => tensor.values::<f32>().ok()?.iter().map(|&v| f64::from(v)).collect(),
        DataType::Float64 => tensor.values::<f64>().ok()?.to_vec(),
        DataType::Float16 => tensor.values::<f16>().ok()?.iter().map(|&v| f64::from(v)).collect(),
        _ => return None,
    })
}

/// 0 where one is no number; 1 for two that are nothing.
fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (aa, bb) = (dot(a, a), dot(b, b));
    if aa == 0.0 && bb == 0.0 {
        return 1.0;
    }
    let cosine = dot(a, b) / (aa * bb).sqrt();
    if cosine.is_finite() { cosine } else { 0.0 }
}

fn choice(row: &[f64]) -> usize {
    let better = |best: (usize, f64), (at, &value): (usize, &f64)| if value > best.1 { (at, value) } else { best };
    row.iter().enumerate().fold((0, f64::NEG_INFINITY), better).0
}

/// Signal-to-noise ratio of each layer's result in decibels, `10 · log10(Σx² / Σ(x − x̂)²)`, errors of the layers before
/// included. Infinite where both are equal.
pub fn noise(
    load: Load<'_>,
    float: &edgeward_graph::Model,
    quantised: &edgeward_graph::Model,
    results: &BTreeMap<String, (String, String)>,
    batches: Batches<'_>,
) -> Result<BTreeMap<String, f64>, CompressError> {
    let before: Vec<String> = results.values().map(|(before, _)| before.clone()).collect();
    let after: Vec<String> = results.values().map(|(_, after)| after.clone()).collect();
    let sessions = (load(&observe::with_outputs(float, &before))?, load(&observe::with_outputs(quantised, &after))?);
    let wanted: (Vec<&str>, Vec<&str>) =
        (before.iter().map(String::as_str).collect(), after.iter().map(String::as_str).collect());
    let mut sums = vec![(0f64, 0f64); results.len()];
    for batch in batches {
        let batch = batch?;
        let original = observe::run(sessions.0.as_ref(), &batch, &wanted.0)?;
        let variant = observe::run(sessions.1.as_ref(), &batch, &wanted.1)?;
        for (sum, (original, variant)) in sums.iter_mut().zip(original.iter().zip(&variant)) {
            let (Ok(a), Ok(b)) = (original.values::<f32>(), variant.values::<f32>()) else { continue };
            for (a, b) in a.iter().zip(b.iter()) {
                sum.0 += f64::from(*a).powi(2);
                sum.1 += (f64::from(*a) - f64::from(*b)).powi(2);
            }
        }
    }
    let ratio =
        |(signal, noise): &(f64, f64)| if *noise == 0.0 { f64::INFINITY } else { 10.0 * (signal / noise).log10() };
    Ok(results.keys().cloned().zip(sums.iter().map(ratio)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_example_has_its_own_angle() {
        let tensor = |values: &[f32]| Tensor::from_vec([2, 2], values.to_vec()).unwrap();
        let mut compared = Compared::default();
        compared.add(&[tensor(&[1.0, 0.0, 0.0, 2.0])], &[tensor(&[2.0, 0.0, 3.0, 3.0])], 2);
        assert_eq!(compared.same_choice, [true, false]);
        assert!((compared.cosines[0] - 1.0).abs() < 1e-12 && (compared.cosines[1] - 0.5f64.sqrt()).abs() < 1e-12);
        let agreement = compared.agreement();
        assert_eq!((agreement.examples, agreement.top1), (2, Some(0.5)));
    }

    #[test]
    fn what_is_no_number_or_of_another_size_does_not_agree() {
        let check = |a: &[f32], b: &[f32]| {
            let mut compared = Compared::default();
            let tensor = |values: &[f32]| Tensor::from_vec([1, values.len()], values.to_vec()).unwrap();
            compared.add(&[tensor(a)], &[tensor(b)], 1);
            compared.cosines[0]
        };
        assert_eq!(check(&[1.0, 2.0], &[f32::NAN, 2.0]), 0.0);
        assert_eq!(check(&[1.0, 2.0], &[1.0]), 0.0);
        assert_eq!(check(&[0.0, 0.0], &[0.0, 0.0]), 1.0);
    }
}

//! How far a variant's results are from the original's: direction, first choice, and noise layer by layer.

use std::collections::BTreeMap;

use edgeward_graph::{DataType, Tensor};
use half::{bf16, f16};

use crate::{
    CompressError,
    observe::{self, Batches, Load},
};

/// Results held against each other, example by example.
#[derive(Clone, Debug, Default)]
pub struct Compared {
    /// How alike both are, the least of all outputs of an example but those in `single`.
    least: Vec<f64>,
    /// Outputs of one number for each example, whose angle would say no more than their sign: the example, what the original says, and the variant.
    single: BTreeMap<usize, Vec<(usize, f64, f64)>>,
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
        let examples = self.least.len();
        for (at, (original, variant)) in original.iter().zip(variant).enumerate() {
            let (Some(a), Some(b)) = (numbers(original), numbers(variant)) else {
                let alike = same_elements(original, variant, rows);
                least.iter_mut().zip(alike).for_each(|(least, alike)| *least = least.min(alike));
                continue;
            };
            let fits = a.len() == b.len() && !a.is_empty() && original.shape().first() == Some(&rows);
            // An output that is not by example, or of a size that the results decide, counts as a whole.
            let width = if fits { a.len() / rows } else { a.len().max(1) };
            if a.len() != b.len() {
                least.fill(0.0);
                continue;
            }
            if fits && width == 1 {
                let pairs = a.iter().zip(&b).enumerate().map(|(row, (a, b))| (examples + row, *a, *b));
                self.single.entry(at).or_default().extend(pairs);
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
        self.least.extend(least);
    }

    /// How alike both are, the least of all outputs of each example. Floats and bytes: the cosine of the angle between both, 1 is the same direction. Of an
    /// output of one number for each example 1 − |a − b| / √(Σ a² / n) over all n examples, at least 0. Whole numbers, texts and truths: the part
    /// that is the same.
    pub fn cosines(&self) -> Vec<f64> {
        let mut cosines = self.least.clone();
        for pairs in self.single.values() {
            let finite = || pairs.iter().filter(|(_, a, _)| a.is_finite());
            let size = (finite().map(|(_, a, _)| a * a).sum::<f64>() / finite().count().max(1) as f64).sqrt();
            for (example, a, b) in pairs {
                let apart = (a - b).abs();
                let alike = if same(*a, *b) {
                    1.0
                } else if apart < size {
                    1.0 - apart / size
                } else {
                    0.0
                };
                if let Some(least) = cosines.get_mut(*example) {
                    *least = least.min(alike);
                }
            }
        }
        cosines
    }

    /// The means.
    pub fn agreement(&self) -> Agreement {
        let cosines = self.cosines();
        let examples = cosines.len();
        let cosine = cosines.iter().sum::<f64>() / examples.max(1) as f64;
        let cosine_least = cosines.iter().copied().fold(1.0, f64::min);
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

/// As numbers: floats, and bytes, which pictures may be of.
fn numbers(tensor: &Tensor) -> Option<Vec<f64>> {
    Some(match tensor.dtype() {
        DataType::BFloat16 => tensor.values::<bf16>().ok()?.iter().map(|&v| f64::from(v)).collect(),
        DataType::UInt8 => tensor.values::<u8>().ok()?.iter().map(|&v| f64::from(v)).collect(),
        DataType::Int8 => tensor.values::<i8>().ok()?.iter().map(|&v| f64::from(v)).collect(),
        _ => return floats(tensor),
    })
}

/// The part of each example's elements that are the same in both, for what is no number whose size says something.
fn same_elements(original: &Tensor, variant: &Tensor, rows: usize) -> Vec<f64> {
    let (a, b) = (elements(original), elements(variant));
    if a.len() != b.len() || original.dtype() != variant.dtype() {
        return vec![0.0; rows];
    }
    let by_row = original.shape().first() == Some(&rows);
    let width = if by_row { a.len() / rows } else { a.len() }.max(1);
    let pairs = a.chunks(width).zip(b.chunks(width));
    let part =
        |(a, b): (&[&[u8]], &[&[u8]])| a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / a.len().max(1) as f64;
    let parts: Vec<f64> = pairs.map(part).collect();
    (0..rows).map(|row| parts.get(row).or(parts.first()).copied().unwrap_or(1.0)).collect()
}

/// Each element's bytes.
fn elements(tensor: &Tensor) -> Vec<&[u8]> {
    match (tensor.strings(), tensor.raw()) {
        (Some(texts), _) => texts.iter().map(AsRef::as_ref).collect(),
        (None, Some(raw)) => raw.chunks((raw.len() / tensor.len().max(1)).max(1)).collect(),
        (None, None) => Vec::new(),
    }
}

/// The same number, or the same that is none.
fn same(a: f64, b: f64) -> bool {
    a == b || (a.is_nan() && b.is_nan())
}

/// Places where both are the same infinity, or no number, do not count; 0 where one alone is no number, or nothing counts. 1 for two of zeros.
fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let counts: Vec<(f64, f64)> =
        a.iter().zip(b).filter(|(a, b)| a.is_finite() || !same(**a, **b)).map(|(a, b)| (*a, *b)).collect();
    if counts.is_empty() && !a.is_empty() {
        return 0.0;
    }
    let (a, b): (Vec<f64>, Vec<f64>) = counts.into_iter().unzip();
    let (a, b) = (a.as_slice(), b.as_slice());
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
        assert!((compared.cosines()[0] - 1.0).abs() < 1e-12 && (compared.cosines()[1] - 0.5f64.sqrt()).abs() < 1e-12);
        let agreement = compared.agreement();
        assert_eq!((agreement.examples, agreement.top1), (2, Some(0.5)));
    }

    #[test]
    fn what_is_no_number_or_of_another_size_does_not_agree() {
        let check = |a: &[f32], b: &[f32]| {
            let mut compared = Compared::default();
            let tensor = |values: &[f32]| Tensor::from_vec([1, values.len()], values.to_vec()).unwrap();
            compared.add(&[tensor(a)], &[tensor(b)], 1);
            compared.cosines()[0]
        };
        assert_eq!(check(&[1.0, 2.0], &[f32::NAN, 2.0]), 0.0);
        assert_eq!(check(&[1.0, 2.0], &[1.0]), 0.0);
        assert_eq!(check(&[0.0, 0.0], &[0.0, 0.0]), 1.0);
    }

    fn alike(a: Tensor, b: Tensor) -> Vec<f64> {
        let (mut compared, rows) = (Compared::default(), a.shape()[0]);
        compared.add(&[a], &[b], rows);
        compared.cosines()
    }

    #[test]
    fn whole_numbers_are_the_same_or_not() {
        let tensor = |values: &[i64]| Tensor::from_vec([2, 2], values.to_vec()).unwrap();
        assert_eq!(alike(tensor(&[1, 2, 3, 4]), tensor(&[1, 5, 3, 4])), [0.5, 1.0]);
        let texts = |values: &[&'static str]| {
            let values: Vec<_> = values.iter().map(|text| text.as_bytes().into()).collect();
            Tensor::from_strings([values.len()], values).unwrap()
        };
        assert_eq!(alike(texts(&["cat", "dog"]), texts(&["cat", "cow"])), [1.0, 0.0]);
        let bytes = |values: &[u8]| Tensor::from_vec([1, 2], values.to_vec()).unwrap();
        assert!((alike(bytes(&[255, 0]), bytes(&[255, 255]))[0] - 0.5f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn one_number_for_each_example_is_compared_by_its_size() {
        let tensor = |values: &[f32]| Tensor::from_vec([2, 1], values.to_vec()).unwrap();
        assert_eq!(alike(tensor(&[1.0, 7.0]), tensor(&[2.0, 7.0])), [0.8, 1.0]);
        assert_eq!(alike(tensor(&[0.0, 0.0]), tensor(&[0.0, 1.0])), [1.0, 0.0]);
        assert_eq!(alike(tensor(&[1.0, f32::NAN]), tensor(&[-1.0, f32::NAN])), [0.0, 1.0]);
    }

    #[test]
    fn places_that_are_masked_in_both_do_not_count() {
        let tensor = |values: &[f32]| Tensor::from_vec([1, values.len()], values.to_vec()).unwrap();
        let none = f32::NEG_INFINITY;
        assert_eq!(alike(tensor(&[3.0, none, 4.0]), tensor(&[4.0, none, 3.0])), [0.96]);
        assert_eq!(alike(tensor(&[3.0, none]), tensor(&[3.0, -none])), [0.0]);
        assert_eq!(alike(tensor(&[none, none]), tensor(&[none, none])), [0.0]);
    }
}

//! What is done to outputs before they leave: noise, rounding, and the largest scores alone, against extraction and inversion.

use std::sync::LazyLock;

use bytes::Bytes;
use edgeward_graph::{DataType, Tensor};
use edgeward_trust::policy::{Noise, Obligations};
use half::{bf16, f16};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rand_distr::{Distribution, StandardNormal};
use sha2::{Digest as _, Sha256};

use crate::core::{InferRequest, InferResponse, ServeError, ServeErrorKind, classify};

/// Noise of this process: nobody can compute it, and it is the same for the same answer.
static SECRET: LazyLock<[u8; 32]> = LazyLock::new(rand::random);

/// What a caller asked to be classified, which happens after noise and rounding: the count of classes for each output.
pub(super) type Classes = Vec<(String, usize)>;

/// Takes the classification out of a request whose answer is changed, and bounds it.
pub(super) fn prepare(terms: &Obligations, request: &mut InferRequest) -> Classes {
    if *terms == Obligations::default() {
        return Classes::new();
    }
    let most = terms.output.map_or(usize::MAX, |output| output.top_k as usize);
    let asked = request.outputs.iter_mut().filter(|output| output.classification > 0);
    asked.map(|output| (output.name.clone(), std::mem::take(&mut output.classification).min(most))).collect()
}

/// Changes the outputs of an answer as the terms of its grant say.
pub(super) fn harden(
    terms: &Obligations,
    principal: &str,
    classes: &Classes,
    response: &mut InferResponse,
) -> Result<(), ServeError> {
    if *terms == Obligations::default() {
        return Ok(());
    }
    let model = response.model_name.clone();
    for (name, tensor) in &mut response.outputs {
        if let Some(changed) = numbers(tensor, terms, principal, &model, name) {
            *tensor = changed;
        }
        let asked = classes.iter().find(|(output, _)| **output == **name).map(|(_, count)| *count);
        let floats = is_float(tensor.dtype());
        let count = asked.or_else(|| terms.output.filter(|_| floats).map(|output| output.top_k as usize));
        if let Some(count) = count {
            *tensor = classify(tensor, count)?;
            if terms.output.is_some_and(|output| output.labels_only) {
                *tensor = without_scores(tensor)?;
            }
        }
    }
    Ok(())
}

fn is_float(dtype: DataType) -> bool {
    matches!(dtype, DataType::Float16 | DataType::BFloat16 | DataType::Float32 | DataType::Float64)
}

/// The tensor with noise and rounded; none where it holds no floats or nothing is to be done.
fn numbers(tensor: &Tensor, terms: &Obligations, principal: &str, model: &str, output: &str) -> Option<Tensor> {
    if terms.round.is_none() && terms.noise.is_none() {
        return None;
    }
    let mut noise = terms.noise.map(|noise| RowNoise::new(noise, tensor, [principal, model, output]));
    let mut change = |value: f64| rounded(value + noise.as_mut().map_or(0.0, RowNoise::next), terms.round);
    let shape = tensor.shape().to_vec();
    match tensor.dtype() {
        DataType::Float32 => {
            let values = tensor.values::<f32>().ok()?;
            let changed: Vec<f32> = values.iter().map(|&v| change(f64::from(v)) as f32).collect();
            Tensor::from_vec(shape, changed).ok()
        }
        DataType::Float64 => {
            let values = tensor.values::<f64>().ok()?;
            let changed: Vec<f64> = values.iter().map(|&v| change(v)).collect();
            Tensor::from_vec(shape, changed).ok()
        }
        DataType::Float16 => {
            let values = tensor.values::<f16>().ok()?;
            let changed: Vec<f16> = values.iter().map(|&v| f16::from_f64(change(v.to_f64()))).collect();
            Tensor::from_vec(shape, changed).ok()
        }
        DataType::BFloat16 => {
            let values = tensor.values::<bf16>().ok()?;
            let changed: Vec<bf16> = values.iter().map(|&v| bf16::from_f64(change(v.to_f64()))).collect();
            Tensor::from_vec(shape, changed).ok()
        }
        _ => None,
    }
}

/// Noise for the elements of a tensor in order. That of a row is a function of the row's answer: neither asking again nor asking for the
/// same row many times in one request averages it out.
struct RowNoise<'a> {
    noise: Noise,
    rows: std::slice::ChunksExact<'a, u8>,
    /// Elements of each.
    width: usize,
    /// Those that are left of the row at hand.
    left: usize,
    rng: StdRng,
    /// Of who asks what.
    seed: Sha256,
}

impl<'a> RowNoise<'a> {
    fn new(noise: Noise, tensor: &'a Tensor, names: [&str; 3]) -> Self {
        let mut seed = Sha256::new();
        seed.update(&SECRET[..]);
        for name in names {
            seed.update(name.as_bytes());
            seed.update(b"\0");
        }
        // The first dimension counts the rows; an element of a list is one.
        let rows = tensor.shape().first().copied().unwrap_or(1).max(1);
        let raw = tensor.raw().map_or(&[][..], |raw| raw);
        let elements = tensor.shape().iter().product::<usize>();
        let row_bytes = (raw.len() / rows).max(1);
        let rng = StdRng::from_seed(seed.clone().finalize().into());
        Self { noise, rows: raw.chunks_exact(row_bytes), width: (elements / rows).max(1), left: 0, rng, seed }
    }

    fn next(&mut self) -> f64 {
        if self.left == 0 {
            self.left = self.width;
            let mut seed = self.seed.clone();
            seed.update(self.rows.next().unwrap_or_default());
            self.rng = StdRng::from_seed(seed.finalize().into());
        }
        self.left -= 1;
        sample(self.noise, &mut self.rng)
    }
}

fn rounded(value: f64, places: Option<u8>) -> f64 {
    let Some(places) = places else { return value };
    let scale = 10f64.powi(places.into());
    let scaled = (value * scale).round() / scale;
    // A value beyond what has so many places keeps those that it has.
    if scaled.is_finite() { scaled } else { value }
}

fn sample(noise: Noise, rng: &mut StdRng) -> f64 {
    match noise {
        Noise::Gaussian { sigma } => sigma * <StandardNormal as Distribution<f64>>::sample(&StandardNormal, rng),
        Noise::Laplace { scale } => {
            // Inverse of the distribution function.
            let u: f64 = rng.random::<f64>() - 0.5;
            -scale * u.signum() * (1.0 - 2.0 * u.abs()).max(f64::MIN_POSITIVE).ln()
        }
    }
}

/// `value:index` without the value.
fn without_scores(tensor: &Tensor) -> Result<Tensor, ServeError> {
    let index =
        |text: &Bytes| text.iter().position(|&byte| byte == b':').map_or(Bytes::new(), |at| text.slice(at + 1..));
    let texts = tensor.strings().unwrap_or_default().iter().map(index).collect();
    Tensor::from_strings(tensor.shape().to_vec(), texts)
        .map_err(|error| ServeError::new(ServeErrorKind::Internal, error.to_string()))
}

#[cfg(test)]
mod tests {
    use edgeward_trust::policy::Output;

    use super::*;

    fn answer(values: &[f32]) -> InferResponse {
        let tensor = Tensor::from_vec(vec![1, values.len()], values.to_vec()).unwrap();
        InferResponse {
            model_name: "m".into(),
            model_version: 1,
            id: String::new(),
            outputs: vec![("y".into(), tensor)],
            parameters: Vec::new(),
            times: crate::core::RequestTimes::default(),
        }
    }

    fn hardened(terms: &Obligations, values: &[f32]) -> Tensor {
        let mut response = answer(values);
        harden(terms, "anna", &Classes::new(), &mut response).unwrap();
        response.outputs.remove(0).1
    }

    #[test]
    fn scores_are_rounded() {
        let terms = Obligations { round: Some(2), ..Obligations::default() };
        let rounded = hardened(&terms, &[0.123_456, -7.005_1, 1e30, f32::NAN]);
        let rounded = rounded.values::<f32>().unwrap();
        assert_eq!(rounded[..3], [0.12, -7.01, 1e30]);
        assert!(rounded[3].is_nan());
    }

    #[test]
    fn noise_has_its_spread_and_is_the_same_again() {
        let values = vec![0.5; 20_000];
        for (noise, deviation) in
            [(Noise::Laplace { scale: 0.1 }, 0.1 * 2f64.sqrt()), (Noise::Gaussian { sigma: 0.2 }, 0.2)]
        {
            let terms = Obligations { noise: Some(noise), ..Obligations::default() };
            let (first, second) = (hardened(&terms, &values), hardened(&terms, &values));
            assert_eq!(first.raw(), second.raw(), "asking again would average it out");
            let noisy = first.values::<f32>().unwrap();
            let mean = noisy.iter().map(|&v| f64::from(v)).sum::<f64>() / noisy.len() as f64;
            let variance = noisy.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / noisy.len() as f64;
            assert!((mean - 0.5).abs() < 0.01, "{mean}");
            assert!((variance.sqrt() / deviation - 1.0).abs() < 0.05, "{}", variance.sqrt());
        }
    }

    #[test]
    fn a_row_has_the_same_noise_alone_and_among_others() {
        let terms = Obligations { noise: Some(Noise::Laplace { scale: 0.5 }), ..Obligations::default() };
        let ask = |rows: &[[f32; 3]]| {
            let mut response = answer(&[]);
            response.outputs[0].1 = Tensor::from_vec(vec![rows.len(), 3], rows.concat()).unwrap();
            harden(&terms, "anna", &Classes::new(), &mut response).unwrap();
            response.outputs.remove(0).1.values::<f32>().unwrap().to_vec()
        };
        let row = [0.25, 0.25, 0.5];
        let alone = ask(&[row]);
        assert!(alone != row && alone[0] != alone[1], "{alone:?}");
        let many = ask(&[row; 512]);
        assert!(many.chunks(3).all(|noisy| noisy == alone), "the mean of many would be the answer");
        let mixed = ask(&[[0.1, 0.2, 0.7], row, [0.1, 0.2, 0.7]]);
        assert_eq!((&mixed[3..6], &mixed[..3]), (&alone[..], &mixed[6..]));
    }

    #[test]
    fn the_largest_scores_alone_are_answered() {
        let output = |labels_only| Some(Output { top_k: 2, labels_only });
        let terms = |labels_only| Obligations { output: output(labels_only), ..Obligations::default() };
        let texts = |tensor: &Tensor| -> Vec<String> {
            tensor.strings().unwrap().iter().map(|text| String::from_utf8(text.to_vec()).unwrap()).collect()
        };
        let scores = [0.1, 0.7, 0.05, 0.15];
        assert_eq!(texts(&hardened(&terms(false), &scores)), ["0.700000:1", "0.150000:3"]);
        assert_eq!(texts(&hardened(&terms(true), &scores)), ["1", "3"]);
    }
}

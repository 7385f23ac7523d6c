//! Examples varied while a model learns: every change is a function of seed, epoch and row.

use edgeward_graph::{Tensor, TensorError};
use rand::{RngExt as _, rngs::ChaCha12Rng};

use super::order::generator;

const PURPOSE_PICTURE: u64 = 2;
const PURPOSE_TOKENS: u64 = 3;

/// What is varied; nothing by default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Augment {
    /// Half of the pictures are mirrored left to right.
    pub flip: bool,
    /// Pictures are padded with zeros by so many pixels and cut back at a place drawn (He et al. 2016, section 4.2).
    pub crop_padding: usize,
    /// Brightness, contrast and, with three channels, saturation change by a factor drawn from `1 - colour` to
    /// `1 + colour`, as torchvision's `ColorJitter` does in this order.
    pub colour: f32,
    /// The part of the tokens that becomes unknown (word dropout, Iyyer et al. 2015).
    pub token_drop: f32,
    /// Number of the unknown token.
    pub unknown_token: i64,
    /// Smallest number that may be dropped; below are the tokens that frame a text.
    pub first_token: i64,
}

/// Size of a picture.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) channels: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
}

impl Augment {
    /// Varies pictures `[rows, channels, height, width]` of values from 0 to 1.
    pub(crate) fn pictures(&self, values: &mut [f32], size: Size, rows: &[usize], seed: u64, epoch: u64) {
        let count = size.channels * size.height * size.width;
        if count == 0 || !(self.flip || self.crop_padding > 0 || self.colour > 0.0) {
            return;
        }
        for (picture, &row) in values.chunks_exact_mut(count).zip(rows) {
            let mut rng = generator(seed, PURPOSE_PICTURE, epoch, row as u64);
            if self.flip && rng.random_bool(0.5) {
                picture.chunks_exact_mut(size.width).for_each(<[f32]>::reverse);
            }
            if self.crop_padding > 0 {
                let most = 2 * self.crop_padding;
                let (down, right) = (rng.random_range(0..=most), rng.random_range(0..=most));
                let pad = self.crop_padding as isize;
                shift(picture, size, down as isize - pad, right as isize - pad);
            }
            if self.colour > 0.0 {
                self.jitter(picture, size, &mut rng);
            }
        }
    }

    fn jitter(&self, picture: &mut [f32], size: Size, rng: &mut ChaCha12Rng) {
        let least = (1.0 - self.colour).max(0.0);
        let [brightness, contrast, saturation] = [0; 3].map(|_| rng.random_range(least..=1.0 + self.colour));
        picture.iter_mut().for_each(|value| *value = (*value * brightness).clamp(0.0, 1.0));
        let grey = greys(picture, size);
        let mean = grey.iter().sum::<f32>() / grey.len().max(1) as f32;
        picture.iter_mut().for_each(|value| *value = (mean + (*value - mean) * contrast).clamp(0.0, 1.0));
        if size.channels == 3 {
            let grey = greys(picture, size);
            for plane in picture.chunks_exact_mut(grey.len().max(1)) {
                let pairs = plane.iter_mut().zip(&grey);
                pairs.for_each(|(value, grey)| *value = (grey + (*value - grey) * saturation).clamp(0.0, 1.0));
            }
        }
    }

    /// Makes tokens unknown in texts `[rows, length]`, int64.
    pub(crate) fn tokens(&self, ids: Tensor, rows: &[usize], seed: u64, epoch: u64) -> Result<Tensor, TensorError> {
        if self.token_drop <= 0.0 || rows.is_empty() {
            return Ok(ids);
        }
        let shape = ids.shape().to_vec();
        let mut values = ids.values::<i64>()?.into_owned();
        let length = values.len() / rows.len();
        let rate = f64::from(self.token_drop).clamp(0.0, 1.0);
        for (text, &row) in values.chunks_exact_mut(length.max(1)).zip(rows) {
            let mut rng = generator(seed, PURPOSE_TOKENS, epoch, row as u64);
            for id in text.iter_mut().filter(|id| **id >= self.first_token) {
                if rng.random_bool(rate) {
                    *id = self.unknown_token;
                }
            }
        }
        Tensor::from_vec(shape, values)
    }
}

/// One grey value for each pixel: the only channel, or luma.
fn greys(picture: &[f32], size: Size) -> Vec<f32> {
    let plane = size.height * size.width;
    let weights: &[f32] = if size.channels == 3 { &[0.299, 0.587, 0.114] } else { &[1.0] };
    let mut grey = vec![0.0; plane];
    for (values, weight) in picture.chunks_exact(plane.max(1)).zip(weights) {
        grey.iter_mut().zip(values).for_each(|(grey, value)| *grey += weight * value);
    }
    grey
}

/// The picture as seen from a place `down` and `right` of its own; what lies outside is 0.
fn shift(picture: &mut [f32], size: Size, down: isize, right: isize) {
    let plane = size.height * size.width;
    for values in picture.chunks_exact_mut(plane.max(1)) {
        let old = values.to_vec();
        let at = |y: usize, x: usize| {
            let (y, x) = (y.checked_add_signed(down)?, x.checked_add_signed(right)?);
            (y < size.height && x < size.width).then(|| old.get(y * size.width + x).copied()).flatten()
        };
        for (index, value) in values.iter_mut().enumerate() {
            *value = at(index / size.width, index % size.width).unwrap_or(0.0);
        }
    }
}

//! Convolutions with one group for each channel: no sums over channels, so lanes do all.

use super::{
    geometry::{Part, Plan, Tap, Window},
    lanes::{Block, add, fma, load, store, zero},
    run::{Run, zeros},
};

/// A depthwise convolution of laid-out images.
pub(super) struct Convolution<'a> {
    pub plan: &'a Plan,
    /// [block][tap]
    pub weights: &'a [Block],
    pub taps: usize,
    pub blocks: usize,
}

impl Convolution<'_> {
    /// Fills `out` of planes of `output_plane`, from images [image][block][pixel] of a size.
    #[target_feature(enable = "avx512f")]
    pub(super) fn run(
        &self,
        run: &Run<'_>,
        (images, size): (&[Block], [usize; 2]),
        bias: Option<&[Block]>,
        (out, output_plane): (&mut [Block], usize),
    ) -> Result<(), String> {
        let plane = size[0] * size[1];
        run.chunks(out, output_plane, |index, out| {
            let block = index % self.blocks;
            let given = &images[index * plane..(index + 1) * plane];
            let mut laid = Vec::new();
            let given = if self.plan.direct {
                given
            } else {
                laid.reserve_exact(self.plan.plane);
                self.plan.lay(given, size[1], &mut laid);
                &laid
            };
            let weights = &self.weights[block * self.taps..(block + 1) * self.taps];
            let bias = bias.and_then(|b| b.get(block)).copied().unwrap_or_default();
            for part in &self.plan.parts {
                self.part(part, given, weights, &bias, out);
            }
        })
    }

    #[target_feature(enable = "avx512f")]
    fn part(&self, part: &Part, image: &[Block], weights: &[Block], bias: &Block, out: &mut [Block]) {
        let [rows, columns] = part.count;
        let step = part.step[1];
        for row in 0..rows {
            let (line, to) = (row * self.plan.pitch, part.first + row * part.step[0]);
            let mut column = 0;
            while column < columns {
                let (image, out) = (&image[line + column..], &mut out[to + column * step..]);
                column += match columns - column {
                    8.. => tile::<8>(&part.taps, image, weights, bias, (out, step)),
                    4.. => tile::<4>(&part.taps, image, weights, bias, (out, step)),
                    2.. => tile::<2>(&part.taps, image, weights, bias, (out, step)),
                    _ => tile::<1>(&part.taps, image, weights, bias, (out, step)),
                };
            }
        }
    }
}

/// `C` pixels side by side, so that their sums do not wait for each other; returns `C`.
#[inline]
#[target_feature(enable = "avx512f")]
fn tile<const C: usize>(
    taps: &[Tap],
    image: &[Block],
    weights: &[Block],
    bias: &Block,
    (out, step): (&mut [Block], usize),
) -> usize {
    let mut sums = [load(bias); C];
    for tap in taps {
        let weight = load(&weights[tap.kernel]);
        let pixels = &image[tap.offset..tap.offset + C];
        for (sum, pixel) in sums.iter_mut().zip(pixels) {
            *sum = fma(load(pixel), weight, *sum);
        }
    }
    for (c, sum) in sums.iter().enumerate() {
        store(&mut out[c * step], *sum);
    }
    C
}

/// The gradient of depthwise weights, [block][tap], of images and output gradients of sizes.
#[target_feature(enable = "avx512f")]
pub(super) fn weight_gradient(
    run: &Run<'_>,
    window: &Window,
    (x, size): (&[Block], [usize; 2]),
    (dy, output): (&[Block], [usize; 2]),
    blocks: usize,
) -> Result<Vec<Block>, String> {
    let (plane, output_plane) = (size[0] * size[1], output[0] * output[1]);
    let mut sums = zeros(blocks * window.kernel_size())?;
    run.chunks(&mut sums, window.kernel_size(), |block, sums| {
        let planes = x.chunks_exact(plane).zip(dy.chunks_exact(output_plane)).skip(block).step_by(blocks);
        for (x, dy) in planes {
            image_gradient(window, (x, size), (dy, output), sums);
        }
    })?;
    Ok(sums)
}

/// Adds one plane's share to the sums of all taps.
#[target_feature(enable = "avx512f")]
fn image_gradient(
    window: &Window,
    (x, size): (&[Block], [usize; 2]),
    (dy, output): (&[Block], [usize; 2]),
    sums: &mut [Block],
) {
    let [rows, columns] = window.0;
    for (tap, sum) in sums.iter_mut().enumerate() {
        let (kh, kw) = (tap / columns.kernel, tap % columns.kernel);
        let (top, bottom) = rows.inside(kh, size[0], output[0]);
        let (left, right) = columns.inside(kw, size[1], output[1]);
        if left == right {
            continue;
        }
        let mut lanes = [load(sum), zero(), zero(), zero()];
        for row in top..bottom {
            let from = rows.pixel(kh, row) * size[1] + columns.pixel(kw, left);
            let dy = &dy[row * output[1] + left..row * output[1] + right];
            let mut pixels = x[from..].iter().step_by(columns.stride);
            let (groups, rest) = dy.as_chunks::<4>();
            for group in groups {
                for (lane, dy) in lanes.iter_mut().zip(group) {
                    *lane = pixels.next().map_or(*lane, |x| fma(load(x), load(dy), *lane));
                }
            }
            for (dy, x) in rest.iter().zip(pixels) {
                lanes[0] = fma(load(x), load(dy), lanes[0]);
            }
        }
        store(sum, add(add(lanes[0], lanes[1]), add(lanes[2], lanes[3])));
    }
}

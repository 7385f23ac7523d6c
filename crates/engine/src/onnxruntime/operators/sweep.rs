//! The walk of a dense convolution over laid-out images: sums of 16 outputs' channels for up to 14 pixels and two blocks of outputs
//! stay in registers through all inputs and taps, and are written once.
//!
//! Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008, for why; Georganas et al., "Anatomy of
//! High-Performance Deep Learning Convolutions on SIMD Architectures", 2018, for how.

use super::{
    geometry::{Part, Plan, Tap},
    lanes::{Block, Lanes, fma, load, splat, store, zero},
    run::Run,
};

/// A dense convolution of laid-out images. `I` channels lie together: 16, or 1 in plain images.
pub(super) struct Convolution<'a, const I: usize> {
    pub plan: &'a Plan,
    /// [image][block of inputs][pixel]
    pub images: &'a [[f32; I]],
    pub image_blocks: usize,
    /// Pixels of a plane of an image, and of one row.
    pub image_plane: usize,
    pub image_width: usize,
    /// As [`super::weights::Plain::pack`] makes them.
    pub weights: &'a [Block],
    pub taps: usize,
    /// For each block of outputs; none for zeros.
    pub bias: Option<&'a [Block]>,
    pub outputs: usize,
    pub output_plane: usize,
}

/// Laid-out images that a task has at once: half of the second cache.
const LAID_OUT_BYTES: usize = 1 << 19;
/// Tasks that keep a few threads busy to the end.
const TASKS_MIN: usize = 8;

impl<const I: usize> Convolution<'_, I>
where
    [f32; I]: Default,
{
    /// Planes of the output for each task: those of some images, or a share of one image's.
    fn planes_per_task(&self, images: usize) -> usize {
        let laid = (self.image_blocks * self.plan.plane * I * size_of::<f32>()).max(1);
        let group = (LAID_OUT_BYTES / laid).min(images / TASKS_MIN).max(1);
        if images >= TASKS_MIN / 2 {
            return group * self.outputs;
        }
        let shares = TASKS_MIN / images.max(1);
        let share = (1..=self.outputs).find(|d| self.outputs.is_multiple_of(*d) && self.outputs / d <= shares);
        share.unwrap_or(self.outputs)
    }

    /// Fills `out`, [image][block of outputs][pixel].
    #[target_feature(enable = "avx512f")]
    pub(super) fn run(&self, run: &Run<'_>, images: usize, out: &mut [Block]) -> Result<(), String> {
        let planes = self.planes_per_task(images);
        run.chunks(out, planes * self.output_plane, |task, out| self.task(task * planes, out))
    }

    /// The planes of the output from `first` on.
    #[target_feature(enable = "avx512f")]
    fn task(&self, first: usize, out: &mut [Block]) {
        let planes = out.len() / self.output_plane.max(1);
        let (first_image, first_output) = (first / self.outputs, first % self.outputs);
        let outputs = planes.min(self.outputs);
        let images = planes / outputs.max(1);
        let from = first_image * self.image_blocks * self.image_plane;
        let given = &self.images[from..from + images * self.image_blocks * self.image_plane];
        let mut laid = Vec::new();
        let given = if self.plan.direct {
            given
        } else {
            laid.reserve_exact(images * self.image_blocks * self.plan.plane);
            given.chunks_exact(self.image_plane).for_each(|p| self.plan.lay(p, self.image_width, &mut laid));
            &laid
        };
        let image_size = self.image_blocks * self.plan.plane;
        for output in (0..outputs).step_by(2) {
            let pair = 2.min(outputs - output);
            for image in 0..images {
                let to = (image * outputs + output) * self.output_plane;
                let out = &mut out[to..to + pair * self.output_plane];
                let image = &given[image * image_size..(image + 1) * image_size];
                self.pair(image, first_output + output, out);
            }
        }
    }

    /// One or two planes of outputs of one image.
    #[target_feature(enable = "avx512f")]
    fn pair(&self, image: &[[f32; I]], output: usize, out: &mut [Block]) {
        let each = self.image_blocks * self.taps;
        let of = |output: usize| &self.weights[output * each * I..(output + 1) * each * I].as_chunks::<I>().0[..each];
        let second = if out.len() > self.output_plane { output + 1 } else { output };
        let bias = |output: usize| self.bias.and_then(|b| b.get(output)).copied().unwrap_or_default();
        for part in &self.plan.parts {
            let sweep = Sweep {
                image,
                plane: self.plan.plane,
                pitch: self.plan.pitch,
                taps: &part.taps,
                kernel: self.taps,
                weights: [of(output), of(second)],
                bias: [bias(output), bias(second)],
                out_plane: self.output_plane,
                step: part.step,
            };
            sweep.part(part, out);
        }
    }
}

/// What all tiles of one part have in common.
struct Sweep<'a, const I: usize> {
    image: &'a [[f32; I]],
    plane: usize,
    pitch: usize,
    taps: &'a [Tap],
    kernel: usize,
    weights: [&'a [[Block; I]]; 2],
    bias: [Block; 2],
    out_plane: usize,
    step: [usize; 2],
}

/// Pixels of a tile at most: with two blocks of outputs, 28 sums, two weights and one pixel fill the 32 registers.
const TILE: usize = 14;

impl<const I: usize> Sweep<'_, I> {
    #[target_feature(enable = "avx512f")]
    fn part(&self, part: &Part, out: &mut [Block]) {
        let [rows, columns] = part.count;
        // Narrow images fill a tile with several rows.
        let together = if columns <= TILE / 4 {
            4
        } else if columns <= TILE / 2 {
            2
        } else {
            1
        };
        let mut row = 0;
        while row < rows {
            let high = if rows - row >= together { together } else { 1 };
            let (mut column, mut tiles) = (0, columns.div_ceil(TILE));
            while column < columns {
                let wide = (columns - column).div_ceil(tiles);
                let to = part.first + row * part.step[0] + column * part.step[1];
                self.tile([high, wide], row * self.pitch + column, to, out);
                column += wide;
                tiles = (tiles - 1).max(1);
            }
            row += high;
        }
    }

    #[target_feature(enable = "avx512f")]
    fn tile(&self, size: [usize; 2], at: usize, to: usize, out: &mut [Block]) {
        macro_rules! sizes {
            ($($rows:literal: $($columns:literal)*;)*) => {
                match (out.len() > self.out_plane, size) {
                    $($((false, [$rows, $columns]) => self.sum::<1, $rows, $columns>(at, to, out),)*)*
                    $($((true, [$rows, $columns]) => self.sum::<2, $rows, $columns>(at, to, out),)*)*
                    _ => unreachable!("tiles have at most {TILE} pixels"),
                }
            };
        }
        sizes! { 1: 1 2 3 4 5 6 7 8 9 10 11 12 13 14; 2: 4 5 6 7; 4: 1 2 3; }
    }

    /// A tile of `R` rows and `C` columns for `O` blocks of outputs, from line `at` to the output's place `to`.
    #[target_feature(enable = "avx512f")]
    fn sum<const O: usize, const R: usize, const C: usize>(&self, at: usize, to: usize, out: &mut [Block]) {
        let mut sums = [[[zero(); C]; R]; O];
        for (sums, bias) in sums.iter_mut().zip(&self.bias) {
            *sums = [[load(bias); C]; R];
        }
        for (block, plane) in self.image.chunks_exact(self.plane).enumerate() {
            for tap in self.taps {
                let mut rows = [const { &[[0.0; I]; C] }; R];
                for (r, row) in rows.iter_mut().enumerate() {
                    let start = at + tap.offset + r * self.pitch;
                    *row = plane[start..start + C].as_chunks::<C>().0.first().unwrap_or(*row);
                }
                let mut weights = [const { &[[0.0; 16]; I] }; O];
                for (o, weights) in weights.iter_mut().enumerate() {
                    *weights = &self.weights[o][block * self.kernel + tap.kernel];
                }
                multiply(&rows, &weights, &mut sums);
            }
        }
        for (o, sums) in sums.iter().enumerate() {
            for (r, sums) in sums.iter().enumerate() {
                for (c, sum) in sums.iter().enumerate() {
                    store(&mut out[o * self.out_plane + to + r * self.step[0] + c * self.step[1]], *sum);
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn multiply<const I: usize, const O: usize, const R: usize, const C: usize>(
    rows: &[&[[f32; I]; C]; R],
    weights: &[&[Block; I]; O],
    sums: &mut [[[Lanes; C]; R]; O],
) {
    for i in 0..I {
        let mut lanes = [zero(); O];
        for o in 0..O {
            lanes[o] = load(&weights[o][i]);
        }
        for r in 0..R {
            for c in 0..C {
                let pixel = splat(rows[r][c][i]);
                for o in 0..O {
                    sums[o][r][c] = fma(pixel, lanes[o], sums[o][r][c]);
                }
            }
        }
    }
}

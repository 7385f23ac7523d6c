//! `BatchNorm` and `BatchNormGradient` in training, with what stands around them in networks: a sum and an activation after.
//!
//! Ioffe and Szegedy, "Batch Normalization", 2015. Means and deviations are gathered in float64 over short sums in float32 around the
//! first image's mean, and merged as Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
//! Variances", 1979, do: a mean much larger than the deviation costs no digits.

use super::{
    Kernel, Port, Spec,
    bridge::Attributes,
    lanes::{Block, Lanes, add, between, clamp, fma, load, splat, store, sub, zero},
    run::{Run, View},
    weights::channel_blocks,
};

pub(super) const SPECS: &[Spec] = &[
    Spec {
        name: c"BatchNorm",
        inputs: &[Port::Floats, Port::Floats, Port::Floats, Port::Optional],
        outputs: &[Port::Floats, Port::Optional, Port::Optional],
        make: |attributes| Ok(Box::new(BatchNorm(Settings::of(attributes)?))),
    },
    Spec {
        name: c"BatchNormGradient",
        inputs: &[Port::Floats, Port::Floats, Port::Floats, Port::Floats, Port::Floats, Port::Optional],
        outputs: &[Port::Floats, Port::Optional, Port::Optional, Port::Optional],
        make: |attributes| Ok(Box::new(Gradient(Settings::of(attributes)?))),
    },
];

struct Settings {
    epsilon: f64,
    low: f32,
    high: f32,
}

impl Settings {
    fn of(attributes: &Attributes<'_>) -> Result<Self, String> {
        let epsilon = f64::from(attributes.float(c"epsilon")?);
        let low = attributes.float_or(c"low", f32::NEG_INFINITY)?;
        Ok(Self { epsilon, low, high: attributes.float_or(c"high", f32::INFINITY)? })
    }

    fn inverse_deviation(&self, variance: f64) -> f64 {
        1.0 / (variance + self.epsilon).sqrt()
    }
}

/// Pixels whose sums are float32.
const SHORT: usize = 64;
/// Parts of all planes, at least, so that threads have enough to do.
const PARTS_MIN: usize = 8;
/// Blocks that a task passes over at least.
const TASK_BLOCKS: usize = 2048;

/// Images of planes of blocks.
#[derive(Clone, Copy)]
struct Images<'a> {
    data: &'a [Block],
    images: usize,
    blocks: usize,
    plane: usize,
}

impl<'a> Images<'a> {
    fn of(view: &View<'a, f32>, what: &str, channels: usize) -> Result<(Self, [usize; 4]), String> {
        let (dims, data) = view.channels(what, channels)?;
        Ok((Self { data, images: dims[0], blocks: dims[1], plane: dims[2] * dims[3] }, dims))
    }

    fn plane(&self, image: usize, block: usize) -> &'a [Block] {
        let from = (image * self.blocks + block) * self.plane;
        &self.data[from..from + self.plane]
    }

    /// Parts of the images, by shape alone.
    fn parts(&self) -> usize {
        PARTS_MIN.div_ceil(self.blocks.max(1)).min(self.images).max(1)
    }

    /// The images of a part.
    fn part(&self, part: usize) -> std::ops::Range<usize> {
        let parts = self.parts();
        self.images * part / parts..self.images * (part + 1) / parts
    }
}

/// Two sums for each lane.
type Sums = [[f64; 16]; 2];

/// Sums over a plane of both that `each` gives for a pixel.
#[inline]
#[target_feature(enable = "avx512f")]
fn sums(count: usize, sums: &mut Sums, each: impl Fn(usize) -> [Lanes; 2]) {
    let mut at = 0;
    while at < count {
        let end = (at + SHORT).min(count);
        let mut lanes = [[zero(); 2]; 2];
        while at < end {
            let here = &mut lanes[at % 2];
            let values = each(at);
            *here = [add(here[0], values[0]), add(here[1], values[1])];
            at += 1;
        }
        for (which, sums) in sums.iter_mut().enumerate() {
            let mut block = [0.0; 16];
            store(&mut block, add(lanes[0][which], lanes[1][which]));
            sums.iter_mut().zip(block).for_each(|(sum, value)| *sum += f64::from(value));
        }
    }
}

/// How many, their mean, and the sum of squared distances from it, for each lane.
#[derive(Clone, Copy, Default)]
struct Moments {
    count: f64,
    mean: [f64; 16],
    squares: [f64; 16],
}

impl Moments {
    #[target_feature(enable = "avx512f")]
    fn of(x: &Images<'_>, block: usize, images: std::ops::Range<usize>) -> Self {
        if images.is_empty() || x.plane == 0 {
            return Self::default();
        }
        let plane = x.plane(images.start, block);
        let mut first = Sums::default();
        sums(x.plane, &mut first, |at| [load(&plane[at]), zero()]);
        let around = first[0].map(|sum| (sum / x.plane as f64) as f32);
        let shift = load(&around);
        let mut total = Sums::default();
        let count = (images.len() * x.plane) as f64;
        for image in images {
            let plane = x.plane(image, block);
            sums(x.plane, &mut total, |at| {
                let distance = sub(load(&plane[at]), shift);
                [distance, fma(distance, distance, zero())]
            });
        }
        let mut moments = Self { count, ..Self::default() };
        for lane in 0..16 {
            let [sum, squares] = [total[0][lane], total[1][lane]];
            moments.mean[lane] = f64::from(around[lane]) + sum / count;
            moments.squares[lane] = (squares - sum * sum / count).max(0.0);
        }
        moments
    }

    fn merge(&mut self, other: &Self) {
        let count = self.count + other.count;
        if count == 0.0 {
            return;
        }
        for lane in 0..16 {
            let apart = other.mean[lane] - self.mean[lane];
            self.mean[lane] += apart * other.count / count;
            self.squares[lane] += other.squares[lane] + apart * apart * self.count * other.count / count;
        }
        self.count = count;
    }
}

/// A result for each part, merged for each block in the order of the parts.
fn gathered<T: Copy + Default + Send>(
    run: &Run<'_>,
    x: &Images<'_>,
    part: impl Fn(usize, std::ops::Range<usize>) -> T + Sync,
    merge: impl Fn(&mut T, &T),
) -> Result<Vec<T>, String> {
    let parts = x.parts();
    let mut all = vec![T::default(); x.blocks * parts];
    run.chunks(&mut all, 1, |index, out| out.fill(part(index / parts, x.part(index % parts))))?;
    let merged = all.chunks(parts).map(|parts| {
        let mut total = T::default();
        parts.iter().for_each(|p| merge(&mut total, p));
        total
    });
    Ok(merged.collect())
}

/// Writes a channel vector of lanes, where anybody wants it.
fn channels(run: &Run<'_>, index: usize, channels: usize, value: impl Fn(usize, usize) -> f64) -> Result<(), String> {
    if let Some(out) = run.output_if_wanted(index, &[channels])? {
        out.iter_mut().enumerate().for_each(|(c, out)| *out = value(c / 16, c % 16) as f32);
    }
    Ok(())
}

struct BatchNorm(Settings);

impl Kernel for BatchNorm {
    #[target_feature(enable = "avx512f")]
    unsafe fn run(&self, run: &Run<'_>) -> Result<(), String> {
        let scale = run.input(1, "scale")?;
        let [count] = scale.dims("scale")?;
        let bias = channel_blocks(run.input(2, "bias")?.expect("bias", &[count])?);
        let view = run.input(0, "x")?;
        let (x, dims) = Images::of(&view, "x", count)?;
        let addend = run.optional(3)?.map(|a| a.expect("addend", view.shape())).transpose()?;
        let addend = addend.map(|a| a.as_chunks::<16>().0);
        let moments = gathered(run, &x, |block, images| Moments::of(&x, block, images), Moments::merge)?;
        channels(run, 1, count, |block, lane| moments[block].mean[lane])?;
        channels(run, 2, count, |block, lane| moments[block].squares[lane] / moments[block].count)?;
        let scale = channel_blocks(scale.data);
        let affine: Vec<[Block; 3]> =
            moments.iter().zip(scale.iter().zip(&bias)).map(|(m, s)| self.affine(m, s)).collect();
        let y = run.blocked(0, dims)?;
        let task = (TASK_BLOCKS / x.plane.max(1)).max(1);
        run.chunks(y, task * x.plane, |index, y| {
            for (at, y) in y.chunks_mut(x.plane).enumerate() {
                let plane = index * task + at;
                let [image, block] = [plane / x.blocks, plane % x.blocks];
                let addend = addend.map(|a| &a[plane * x.plane..(plane + 1) * x.plane]);
                self.apply(x.plane(image, block), addend, &affine[block], y);
            }
        })
    }
}

impl BatchNorm {
    /// Mean, factor and summand of each lane. What the mean lost when it was rounded is made up for by the summand.
    fn affine(&self, moments: &Moments, (scale, bias): (&Block, &Block)) -> [Block; 3] {
        let mut affine = [[0.0; 16]; 3];
        for lane in 0..16 {
            let mean = moments.mean[lane] as f32;
            let inverse = self.0.inverse_deviation(moments.squares[lane] / moments.count);
            let factor = if scale[lane] == 0.0 { 0.0 } else { f64::from(scale[lane]) * inverse };
            let summand = f64::from(bias[lane]) + (f64::from(mean) - moments.mean[lane]) * factor;
            affine[0][lane] = mean;
            affine[1][lane] = factor as f32;
            affine[2][lane] = summand as f32;
        }
        affine
    }

    #[target_feature(enable = "avx512f")]
    fn apply(&self, x: &[Block], addend: Option<&[Block]>, affine: &[Block; 3], y: &mut [Block]) {
        let [mean, factor, summand] = affine.each_ref().map(|b| load(b));
        let (low, high) = (splat(self.0.low), splat(self.0.high));
        let normal = |x: &Block| fma(sub(load(x), mean), factor, summand);
        match addend {
            None => y.iter_mut().zip(x).for_each(|(y, x)| store(y, clamp(normal(x), low, high))),
            Some(addend) => y
                .iter_mut()
                .zip(x.iter().zip(addend))
                .for_each(|(y, (x, a))| store(y, clamp(add(normal(x), load(a)), low, high))),
        }
    }
}

struct Gradient(Settings);

impl Kernel for Gradient {
    #[target_feature(enable = "avx512f")]
    unsafe fn run(&self, run: &Run<'_>) -> Result<(), String> {
        let scale = run.input(2, "scale")?;
        let [count] = scale.dims("scale")?;
        let vector = |index, what| Ok::<_, String>(channel_blocks(run.input(index, what)?.expect(what, &[count])?));
        let (means, variances) = (vector(3, "mean")?, vector(4, "variance")?);
        let view = run.input(1, "x")?;
        let (x, dims) = Images::of(&view, "x", count)?;
        let g = Images { data: run.input(0, "g")?.expect("g", view.shape())?.as_chunks().0, ..x };
        let y = run.optional(5)?.map(|y| y.expect("y", view.shape())).transpose()?;
        let y = y.map(|y| Images { data: y.as_chunks().0, ..x });
        let totals = gathered(
            run,
            &x,
            |block, images| self.totals((&g, &x, y.as_ref()), block, images, &means[block]),
            |total: &mut Sums, part| total.iter_mut().flatten().zip(part.iter().flatten()).for_each(|(t, p)| *t += p),
        )?;
        let inverse = |block: usize, lane: usize| self.0.inverse_deviation(f64::from(variances[block][lane]));
        channels(run, 1, count, |block, lane| totals[block][1][lane] * inverse(block, lane))?;
        channels(run, 2, count, |block, lane| totals[block][0][lane])?;
        let scale = channel_blocks(scale.data);
        let pixels = (x.images * x.plane) as f64;
        let affine: Vec<[Block; 4]> = (0..x.blocks)
            .map(|block| {
                let mut affine = [means[block], [0.0; 16], [0.0; 16], [0.0; 16]];
                for lane in (0..16).filter(|lane| block * 16 + lane < count) {
                    let (inverse, [sum, product]) = (inverse(block, lane), totals[block].map(|t| t[lane]));
                    let factor = f64::from(scale[block][lane]) * inverse;
                    affine[1][lane] = factor as f32;
                    affine[2][lane] = (-factor * inverse * inverse * product / pixels) as f32;
                    affine[3][lane] = (-factor * sum / pixels) as f32;
                }
                affine
            })
            .collect();
        let dx = run.blocked(0, dims)?;
        let [n, c, h, w] = dims;
        let masked = run.output_if_wanted(3, &[n, c, h, w, 16])?.map(|m| m.as_chunks_mut().0);
        let task = (TASK_BLOCKS / x.plane.max(1)).max(1);
        run.chunk_pairs(dx, masked, task * x.plane, |index, dx, mut masked| {
            for (at, dx) in dx.chunks_mut(x.plane).enumerate() {
                let plane = index * task + at;
                let [image, block] = [plane / x.blocks, plane % x.blocks];
                let masked = masked.as_deref_mut().map(|m| &mut m[at * x.plane..(at + 1) * x.plane]);
                let y = y.map(|y| y.plane(image, block));
                self.apply((g.plane(image, block), x.plane(image, block), y), &affine[block], dx, masked);
            }
        })
    }
}

impl Gradient {
    /// Sums of g and of g · (x - mean), g masked by y.
    #[target_feature(enable = "avx512f")]
    fn totals(
        &self,
        (g, x, y): (&Images<'_>, &Images<'_>, Option<&Images<'_>>),
        block: usize,
        images: std::ops::Range<usize>,
        mean: &Block,
    ) -> Sums {
        let mut total = Sums::default();
        let (mean, low, high) = (load(mean), splat(self.0.low), splat(self.0.high));
        for image in images {
            let (g, x) = (g.plane(image, block), x.plane(image, block));
            match y.map(|y| y.plane(image, block)) {
                None => sums(x.len(), &mut total, |at| {
                    let g = load(&g[at]);
                    [g, fma(g, sub(load(&x[at]), mean), zero())]
                }),
                Some(y) => sums(x.len(), &mut total, |at| {
                    let g = between(load(&g[at]), load(&y[at]), low, high);
                    [g, fma(g, sub(load(&x[at]), mean), zero())]
                }),
            }
        }
        total
    }

    #[target_feature(enable = "avx512f")]
    fn apply(
        &self,
        (g, x, y): (&[Block], &[Block], Option<&[Block]>),
        affine: &[Block; 4],
        dx: &mut [Block],
        mut masked: Option<&mut [Block]>,
    ) {
        let [mean, of_g, of_x, summand] = affine.each_ref().map(|b| load(b));
        let (low, high) = (splat(self.0.low), splat(self.0.high));
        for (at, (dx, (g, x))) in dx.iter_mut().zip(g.iter().zip(x)).enumerate() {
            let mut g = load(g);
            if let Some(y) = y {
                g = between(g, load(&y[at]), low, high);
            }
            if let Some(masked) = masked.as_deref_mut() {
                store(&mut masked[at], g);
            }
            store(dx, fma(g, of_g, fma(sub(load(x), mean), of_x, summand)));
        }
    }
}

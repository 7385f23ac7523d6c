//! Gradients of what transformers are made of: `LayerNormGradient`, `SoftmaxGradient`, `GeluGradient` and `GatherGradient`.

use super::{
    Kernel, Port, Spec,
    lanes::{add, clamp, erf, exp, fma, load_some, mul, splat, store_some, sub, total, zero},
    run::{Run, View},
};

pub(super) const SPECS: &[Spec] = &[
    Spec {
        name: c"LayerNormGradient",
        inputs: &[Port::Floats; 3],
        outputs: &[Port::Floats, Port::Optional, Port::Optional],
        make: |attributes| Ok(Box::new(LayerNorm { epsilon: f64::from(attributes.float(c"epsilon")?) })),
    },
    Spec {
        name: c"SoftmaxGradient",
        inputs: &[Port::Floats; 2],
        outputs: &[Port::Floats],
        make: |_| Ok(Box::new(Softmax)),
    },
    Spec { name: c"GeluGradient", inputs: &[Port::Floats; 2], outputs: &[Port::Floats], make: |_| Ok(Box::new(Gelu)) },
    Spec {
        name: c"GatherGradient",
        inputs: &[Port::Floats, Port::Indices],
        outputs: &[Port::Floats],
        make: |attributes| Ok(Box::new(Gather { rows: attributes.size(c"rows")? })),
    },
];

/// Numbers of one task, about.
const TASK: usize = 1 << 14;
/// Parts of the rows whose sums are merged at the end: by shape alone, so that sums do not depend on the threads.
const PARTS: usize = 16;

/// The length of the last axis. Errors where there is none.
fn last(view: &View<'_, f32>, what: &str) -> Result<usize, String> {
    view.shape().last().copied().ok_or_else(|| format!("`{what}` must have an axis"))
}

struct LayerNorm {
    epsilon: f64,
}

impl Kernel for LayerNorm {
    #[target_feature(enable = "avx512f")]
    unsafe fn run(&self, run: &Run<'_>) -> Result<(), String> {
        let (g, x) = (run.input(0, "g")?, run.input(1, "x")?);
        let width = last(&x, "x")?;
        let (g, scale) = (g.expect("g", x.shape())?, run.input(2, "scale")?.expect("scale", &[width])?);
        let dx = run.output(0, x.shape())?;
        let rows = x.data.len() / width.max(1);
        let task = rows.div_ceil(PARTS).max(1);
        let parts = rows.div_ceil(task);
        let mut sums = vec![0.0; parts * 2 * width];
        let each = |part: usize, dx: &mut [f32], sums: &mut [f32]| {
            let (dscale, dbias) = sums.split_at_mut(width);
            let start = part * task * width;
            let given = g[start..].chunks_exact(width).zip(x.data[start..].chunks_exact(width));
            for (dx, (g, x)) in dx.chunks_exact_mut(width).zip(given) {
                self.row((g, x, scale), dx, (dscale, dbias));
            }
        };
        run.chunks_of((dx, task * width), (&mut sums, 2 * width), each)?;
        for (index, offset) in [(1, 0), (2, width)] {
            if let Some(out) = run.output_if_wanted(index, &[width])? {
                for (at, out) in out.iter_mut().enumerate() {
                    let parts = sums.iter().skip(offset + at).step_by(2 * width);
                    *out = parts.copied().map(f64::from).sum::<f64>() as f32;
                }
            }
        }
        Ok(())
    }
}

impl LayerNorm {
    /// `dx = (gs - mean(gs) - x̂ · mean(gs · x̂)) / σ` with `gs = g · scale` (Ba, Kiros and Hinton 2016); adds to the sums.
    #[target_feature(enable = "avx512f")]
    fn row(&self, (g, x, scale): (&[f32], &[f32], &[f32]), dx: &mut [f32], (dscale, dbias): (&mut [f32], &mut [f32])) {
        let count = x.len() as f64;
        let mut sum = zero();
        for x in x.chunks(16) {
            sum = add(sum, load_some(x, 0.0));
        }
        let mean = (total(sum) / count) as f32;
        let (mut squares, mut rest) = (zero(), zero());
        for x in x.chunks(16) {
            // Spare lanes are no distance from the mean.
            let distance = sub(load_some(x, mean), splat(mean));
            squares = fma(distance, distance, squares);
            rest = add(rest, distance);
        }
        // What the mean lost when it was rounded.
        let shift = total(rest) / count;
        let inverse = 1.0 / (total(squares) / count - shift * shift + self.epsilon).sqrt();
        let (scale_lanes, offset) = (splat(inverse as f32), splat((-shift * inverse) as f32));
        let (mut all, mut along) = (zero(), zero());
        for ((g, x), scale) in g.chunks(16).zip(x.chunks(16)).zip(scale.chunks(16)) {
            let normal = fma(sub(load_some(x, mean), splat(mean)), scale_lanes, offset);
            let scaled = mul(load_some(g, 0.0), load_some(scale, 0.0));
            all = add(all, scaled);
            along = fma(scaled, normal, along);
        }
        let (all, along) = (splat((-total(all) / count) as f32), splat((-total(along) / count) as f32));
        let given = g.chunks(16).zip(x.chunks(16).zip(scale.chunks(16)));
        let sums = dscale.chunks_mut(16).zip(dbias.chunks_mut(16));
        for (dx, ((g, (x, scale)), (dscale, dbias))) in dx.chunks_mut(16).zip(given.zip(sums)) {
            let normal = fma(sub(load_some(x, mean), splat(mean)), scale_lanes, offset);
            let g = load_some(g, 0.0);
            store_some(dx, mul(fma(g, load_some(scale, 0.0), fma(normal, along, all)), scale_lanes));
            store_some(dscale, fma(g, normal, load_some(dscale, 0.0)));
            store_some(dbias, add(g, load_some(dbias, 0.0)));
        }
    }
}

struct Softmax;

impl Kernel for Softmax {
    #[target_feature(enable = "avx512f")]
    unsafe fn run(&self, run: &Run<'_>) -> Result<(), String> {
        let (g, y) = (run.input(0, "g")?, run.input(1, "y")?);
        let width = last(&y, "y")?.max(1);
        let g = g.expect("g", y.shape())?;
        let task = (TASK / width).max(1) * width;
        run.chunks(run.output(0, y.shape())?, task, |index, dx| {
            let given = g[index * task..].chunks_exact(width).zip(y.data[index * task..].chunks_exact(width));
            for (dx, (g, y)) in dx.chunks_exact_mut(width).zip(given) {
                softmax_row(g, y, dx);
            }
        })
    }
}

/// `y · (g - Σ g · y)`
#[target_feature(enable = "avx512f")]
fn softmax_row(g: &[f32], y: &[f32], dx: &mut [f32]) {
    let mut sum = zero();
    for (g, y) in g.chunks(16).zip(y.chunks(16)) {
        sum = fma(load_some(g, 0.0), load_some(y, 0.0), sum);
    }
    let sum = splat(total(sum) as f32);
    for (dx, (g, y)) in dx.chunks_mut(16).zip(g.chunks(16).zip(y.chunks(16))) {
        store_some(dx, mul(load_some(y, 0.0), sub(load_some(g, 0.0), sum)));
    }
}

struct Gelu;

impl Kernel for Gelu {
    #[target_feature(enable = "avx512f")]
    unsafe fn run(&self, run: &Run<'_>) -> Result<(), String> {
        let view = run.input(1, "x")?;
        let (x, g) = (view.data, run.input(0, "g")?.expect("g", view.shape())?);
        run.chunks(run.output(0, view.shape())?, TASK, |index, dx| {
            let range = index * TASK..index * TASK + dx.len();
            gelu(&g[range.clone()], &x[range], dx);
        })
    }
}

/// `g · (Φ(x) + x · φ(x))` (Hendrycks and Gimpel 2016)
#[target_feature(enable = "avx512f")]
fn gelu(g: &[f32], x: &[f32], dx: &mut [f32]) {
    let half = splat(0.5);
    for (dx, (g, x)) in dx.chunks_mut(16).zip(g.chunks(16).zip(x.chunks(16))) {
        // Beyond these bounds nothing changes; an infinite x would be multiplied by 0.
        let x = clamp(load_some(x, 0.0), splat(-20.0), splat(20.0));
        let below = fma(erf(mul(x, splat(std::f32::consts::FRAC_1_SQRT_2))), half, half);
        let density = mul(exp(mul(mul(x, x), splat(-0.5))), splat(0.398_942_3));
        store_some(dx, mul(load_some(g, 0.0), fma(x, density, below)));
    }
}

struct Gather {
    rows: usize,
}

impl Kernel for Gather {
    #[target_feature(enable = "avx512f")]
    unsafe fn run(&self, run: &Run<'_>) -> Result<(), String> {
        let (g, indices) = (run.input(0, "g")?, run.indices(1, "indices")?);
        let Some(inner) = g.shape().strip_prefix(indices.shape()) else {
            return Err(format!("`g` has the shape {:?}, `indices` {:?}", g.shape(), indices.shape()));
        };
        let width: usize = inner.iter().product();
        let row = |&index: &i64| {
            let from_end = i64::try_from(self.rows).ok().filter(|_| index < 0).unwrap_or(0);
            let row = usize::try_from(index + from_end).ok().filter(|&r| r < self.rows);
            row.ok_or_else(|| format!("`indices` holds {index}, there are {} `rows`", self.rows))
        };
        let rows = indices.data.iter().map(row).collect::<Result<Vec<_>, _>>()?;
        // Each task has some rows to itself, and adds to them in the order of the indices.
        let some = self.rows.div_ceil(2 * PARTS);
        run.chunks(run.output(0, &[self.rows, width])?, some * width, |index, out| {
            out.fill(0.0);
            let own = index * some..index * some + out.len() / width;
            for (row, g) in rows.iter().zip(g.data.chunks_exact(width)).filter(|(row, _)| own.contains(row)) {
                let out = &mut out[(row - own.start) * width..][..width];
                out.iter_mut().zip(g).for_each(|(out, g)| *out += g);
            }
        })
    }
}

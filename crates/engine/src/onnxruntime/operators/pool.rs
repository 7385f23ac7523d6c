//! `MaxPool`, `GlobalAveragePool` and their gradients.

use super::{
    Kernel, Port, Spec,
    bridge::Attributes,
    geometry::{Axis, Window},
    lanes::{Block, Lanes, add, add_where, equal, load, max, store, zero},
    run::Run,
};

pub(super) const SPECS: &[Spec] = &[
    Spec {
        name: c"MaxPool",
        inputs: &[Port::Floats],
        outputs: &[Port::Floats],
        make: |attributes| Ok(Box::new(MaxPool(window(attributes)?))),
    },
    Spec {
        name: c"MaxPoolGradient",
        inputs: &[Port::Floats; 3],
        outputs: &[Port::Floats],
        make: |attributes| Ok(Box::new(MaxPoolGradient(window(attributes)?))),
    },
    Spec {
        name: c"GlobalAveragePool",
        inputs: &[Port::Floats],
        outputs: &[Port::Floats],
        make: |attributes| Ok(Box::new(Average { channels: attributes.size(c"channels")? })),
    },
    Spec {
        name: c"GlobalAveragePoolGradient",
        inputs: &[Port::Floats],
        outputs: &[Port::Floats],
        make: |attributes| Ok(Box::new(AverageGradient { size: attributes.ints(c"size", 1, None)? })),
    },
];

fn window(attributes: &Attributes<'_>) -> Result<Window, String> {
    let window = Window::of(attributes)?.with_kernel(attributes.ints(c"kernel_shape", 1, None)?);
    if window.0.iter().any(|axis| axis.before.max(axis.after) >= axis.kernel) {
        return Err("`pads` must be smaller than `kernel_shape`".to_owned());
    }
    Ok(window)
}

/// Blocks that a task passes over at least.
const TASK_BLOCKS: usize = 2048;

struct MaxPool(Window);

impl Kernel for MaxPool {
    #[target_feature(enable = "avx512f")]
    unsafe fn run(&self, run: &Run<'_>) -> Result<(), String> {
        let ([n, c, h, w], x) = run.input(0, "x")?.blocked("x")?;
        let (size, output) = ([h, w], self.0.output([h, w])?);
        let y = run.blocked(0, [n, c, output[0], output[1]])?;
        run.chunks(y, output[0] * output[1], |plane, y| {
            maxima(&self.0, (&x[plane * h * w..(plane + 1) * h * w], size), (y, output));
        })
    }
}

#[target_feature(enable = "avx512f")]
fn maxima(window: &Window, (x, size): (&[Block], [usize; 2]), (y, output): (&mut [Block], [usize; 2])) {
    let [rows, columns] = &window.0;
    y.fill([f32::MIN; 16]);
    for kh in 0..rows.kernel {
        let (top, bottom) = rows.inside(kh, size[0], output[0]);
        for row in top..bottom {
            let line = &x[rows.pixel(kh, row) * size[1]..][..size[1]];
            for kw in 0..columns.kernel {
                let (left, right) = columns.inside(kw, size[1], output[1]);
                for column in left..right {
                    let to = &mut y[row * output[1] + column];
                    store(to, max(load(to), load(&line[columns.pixel(kw, column)])));
                }
            }
        }
    }
}

struct MaxPoolGradient(Window);

impl Kernel for MaxPoolGradient {
    #[target_feature(enable = "avx512f")]
    unsafe fn run(&self, run: &Run<'_>) -> Result<(), String> {
        let (dims, x) = run.input(1, "x")?.blocked("x")?;
        let [n, c, h, w] = dims;
        let [oh, ow] = self.0.output([h, w])?;
        let of =
            |index, what| Ok::<_, String>(run.input(index, what)?.expect(what, &[n, c, oh, ow, 16])?.as_chunks().0);
        let [rows, columns] = [(0, h, oh), (1, w, ow)].map(|(i, size, out)| Span::of(&self.0.0[i], size, out));
        let (g, y): (&[Block], &[Block]) = (of(0, "g")?, of(2, "y")?);
        run.chunks(run.blocked(0, dims)?, h * w, |plane, dx| {
            let (from, to) = (plane * h * w..(plane + 1) * h * w, plane * oh * ow..(plane + 1) * oh * ow);
            dx.fill([0.0; 16]);
            for (at, (y, g)) in y[to.clone()].iter().zip(&g[to]).enumerate() {
                first_maximum(&x[from.clone()], (y, g), (rows[at / ow], columns[at % ow], w), dx);
            }
        })
    }
}

/// The pixels of a window along one axis.
#[derive(Clone, Copy)]
struct Span {
    first: usize,
    step: usize,
    count: usize,
}

impl Span {
    /// Of each output.
    fn of(axis: &Axis, size: usize, output: usize) -> Vec<Self> {
        let span = |at: usize| {
            let taps = |tap: &usize| {
                (at * axis.stride + tap * axis.dilation).checked_sub(axis.before).is_some_and(|p| p < size)
            };
            let first = (0..axis.kernel).find(taps).unwrap_or(axis.kernel);
            let count = (first..axis.kernel).take_while(taps).count();
            let first = (at * axis.stride + first * axis.dilation).saturating_sub(axis.before);
            Self { first, step: axis.dilation, count }
        };
        (0..output).map(span).collect()
    }
}

/// Adds the gradient to the first pixel, for each lane, that has the maximum.
#[target_feature(enable = "avx512f")]
fn first_maximum(x: &[Block], (y, g): (&Block, &Block), (rows, columns, width): (Span, Span, usize), dx: &mut [Block]) {
    let (y, g, mut open) = (load(y), load(g), u16::MAX);
    for row in 0..rows.count {
        let start = (rows.first + row * rows.step) * width + columns.first;
        for place in (start..).step_by(columns.step).take(columns.count) {
            let hit = equal(load(&x[place]), y) & open;
            let to = &mut dx[place];
            store(to, add_where(hit, load(to), g));
            open &= !hit;
        }
    }
}

struct Average {
    channels: usize,
}

impl Kernel for Average {
    #[target_feature(enable = "avx512f")]
    unsafe fn run(&self, run: &Run<'_>) -> Result<(), String> {
        let ([n, blocks, h, w], x) = run.input(0, "x")?.channels("x", self.channels)?;
        let plane = h * w;
        if plane == 0 {
            return Err("`x` has no pixels".to_owned());
        }
        let images = (TASK_BLOCKS / (blocks * plane)).max(1);
        run.chunks(run.output(0, &[n, self.channels, 1, 1])?, images * self.channels, |task, out| {
            for (at, out) in out.chunks_mut(self.channels).enumerate() {
                for (block, out) in out.chunks_mut(16).enumerate() {
                    let from = ((task * images + at) * blocks + block) * plane;
                    let mean = mean(&x[from..from + plane]);
                    out.copy_from_slice(&mean[..out.len()]);
                }
            }
        })
    }
}

#[target_feature(enable = "avx512f")]
fn mean(plane: &[Block]) -> Block {
    let mut total = [0.0f64; 16];
    for short in plane.chunks(64) {
        let mut block = [0.0; 16];
        store(&mut block, short.iter().fold(zero(), |sum: Lanes, x| add(sum, load(x))));
        total.iter_mut().zip(block).for_each(|(t, b)| *t += f64::from(b));
    }
    total.map(|t| (t / plane.len() as f64) as f32)
}

struct AverageGradient {
    size: [usize; 2],
}

impl Kernel for AverageGradient {
    #[target_feature(enable = "avx512f")]
    unsafe fn run(&self, run: &Run<'_>) -> Result<(), String> {
        let view = run.input(0, "g")?;
        let [n, c, 1, 1] = view.dims("g")? else {
            return Err(format!("`g` has the shape {:?}, expected [N, C, 1, 1]", view.shape()));
        };
        let ([h, w], blocks) = (self.size, c.div_ceil(16));
        let plane = h * w;
        let share = 1.0 / plane as f32;
        run.chunks(run.blocked(0, [n, blocks, h, w])?, blocks * plane, |image, out| {
            let channels = &view.data[image * c..(image + 1) * c];
            for (channels, out) in channels.chunks(16).zip(out.chunks_mut(plane)) {
                let mut block = [0.0; 16];
                block.iter_mut().zip(channels).for_each(|(b, g)| *b = g * share);
                out.fill(block);
            }
        })
    }
}

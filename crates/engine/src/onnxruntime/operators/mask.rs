//! `ReluGradient`: what passes where an activation was within its bounds.

use super::{
    Kernel, Port, Spec,
    bridge::Attributes,
    lanes::{between, load, splat, store},
    run::Run,
};

pub(super) const SPECS: &[Spec] = &[Spec {
    name: c"ReluGradient",
    inputs: &[Port::Floats, Port::Floats],
    outputs: &[Port::Floats],
    make: ReluGradient::make,
}];

struct ReluGradient {
    low: f32,
    high: f32,
}

/// Numbers of one task.
const TASK: usize = 1 << 15;

impl ReluGradient {
    fn make(attributes: &Attributes<'_>) -> Result<Box<dyn Kernel>, String> {
        Ok(Box::new(Self { low: attributes.float(c"low")?, high: attributes.float_or(c"high", f32::INFINITY)? }))
    }
}

impl Kernel for ReluGradient {
    #[target_feature(enable = "avx512f")]
    unsafe fn run(&self, run: &Run<'_>) -> Result<(), String> {
        let view = run.input(0, "g")?;
        let (g, y) = (view.data, run.input(1, "y")?.expect("y", view.shape())?);
        run.chunks(run.output(0, view.shape())?, TASK, |index, out| {
            let range = index * TASK..index * TASK + out.len();
            pass(&g[range.clone()], &y[range], [self.low, self.high], out);
        })
    }
}

#[target_feature(enable = "avx512f")]
fn pass(g: &[f32], y: &[f32], [low, high]: [f32; 2], out: &mut [f32]) {
    let bounds = [splat(low), splat(high)];
    let ((g, g_rest), (y, y_rest), (out, out_rest)) = (g.as_chunks(), y.as_chunks(), out.as_chunks_mut());
    for (out, (g, y)) in out.iter_mut().zip(g.iter().zip(y)) {
        store(out, between(load(g), load(y), bounds[0], bounds[1]));
    }
    for (out, (g, y)) in out_rest.iter_mut().zip(g_rest.iter().zip(y_rest)) {
        *out = if low < *y && *y < high { *g } else { 0.0 };
    }
}

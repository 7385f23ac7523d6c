//! `Sgd` and `Adam`: one pass over a weight, its gradient and its moments.

use super::{
    Kernel, Port, Spec,
    bridge::Attributes,
    run::{Run, View},
};

pub(super) const SPECS: &[Spec] = &[
    Spec { name: c"Sgd", inputs: &[Port::Floats; 4], outputs: &[Port::Floats; 2], make: Sgd::make },
    Spec { name: c"Adam", inputs: &[Port::Floats; 7], outputs: &[Port::Floats; 3], make: Adam::make },
];

/// Numbers of one task.
const TASK: usize = 1 << 14;

/// `v = momentum · v + g + decay · w`, then `w -= rate · v`, or with Nesterov `rate · (g + momentum · v)`.
struct Sgd {
    momentum: f32,
    decay: f32,
    /// Of the gradient and the new velocity in a step.
    shares: [f32; 2],
}

impl Sgd {
    fn make(attributes: &Attributes<'_>) -> Result<Box<dyn Kernel>, String> {
        let momentum = attributes.float(c"momentum")?;
        let ahead = attributes.flag(c"nesterov")?;
        let shares = if ahead { [1.0, momentum] } else { [0.0, 1.0] };
        Ok(Box::new(Self { momentum, shares, decay: attributes.float_or(c"weight_decay", 0.0)? }))
    }

    #[target_feature(enable = "avx512f")]
    fn step(&self, [w, g, v]: [&[f32]; 3], rate: f32, [w_next, v_next]: [&mut [f32]; 2]) {
        let next = w_next.iter_mut().zip(v_next);
        for ((w_next, v_next), (w, (g, v))) in next.zip(w.iter().zip(g.iter().zip(v))) {
            let gradient = g + self.decay * w;
            let velocity = self.momentum * v + gradient;
            *v_next = velocity;
            *w_next = w - rate * (self.shares[0] * gradient + self.shares[1] * velocity);
        }
    }
}

/// The inputs of one shape, in order.
fn alike<'a, const COUNT: usize>(
    run: &'a Run<'_>,
    names: [&str; COUNT],
) -> Result<(View<'a, f32>, [&'a [f32]; COUNT]), String> {
    let first = run.input(0, names.first().unwrap_or(&"w"))?;
    let mut data = [first.data; COUNT];
    for (index, (data, name)) in data.iter_mut().zip(names).enumerate() {
        *data = run.input(index, name)?.expect(name, first.shape())?;
    }
    Ok((first, data))
}

impl Kernel for Sgd {
    #[target_feature(enable = "avx512f")]
    unsafe fn run(&self, run: &Run<'_>) -> Result<(), String> {
        let (w, inputs) = alike(run, ["w", "g", "velocity"])?;
        let rate = run.input(3, "rate")?.scalar("rate")?;
        let outputs = [run.output(0, w.shape())?, run.output(1, w.shape())?];
        run.chunk_sets(outputs, TASK, |index, outputs| {
            let start = index * TASK;
            let range = start..start + outputs[0].len();
            self.step(inputs.map(|data| &data[range.clone()]), rate, outputs);
        })
    }
}

/// Kingma and Ba 2015; with `decoupled` Loshchilov and Hutter 2019.
struct Adam {
    /// How much of a mean and of a square is kept, and how much is new.
    betas: [[f32; 2]; 2],
    epsilon: f32,
    /// Of the weight in the gradient, and in the step.
    decay: [f32; 2],
}

impl Adam {
    fn make(attributes: &Attributes<'_>) -> Result<Box<dyn Kernel>, String> {
        let shares = |beta: f32| [beta, (1.0 - f64::from(beta)) as f32];
        let decay = attributes.float_or(c"weight_decay", 0.0)?;
        let decoupled = attributes.flag(c"decoupled")?;
        Ok(Box::new(Self {
            betas: [shares(attributes.float(c"beta1")?), shares(attributes.float(c"beta2")?)],
            epsilon: attributes.float(c"epsilon")?,
            decay: if decoupled { [0.0, decay] } else { [decay, 0.0] },
        }))
    }

    /// `rates` are the learning rate, and what corrects the mean and the root of the squares.
    #[target_feature(enable = "avx512f")]
    fn step(&self, [w, g, m, s]: [&[f32]; 4], rates: [f32; 3], [w_next, m_next, s_next]: [&mut [f32]; 3]) {
        let ([rate, inverse_mean, inverse_root], [keep, square_keep]) = (rates, self.betas);
        let next = w_next.iter_mut().zip(m_next.iter_mut().zip(s_next));
        for ((w_next, (m_next, s_next)), (w, (g, (m, s)))) in next.zip(w.iter().zip(g.iter().zip(m.iter().zip(s)))) {
            let gradient = g + self.decay[0] * w;
            let mean = keep[0] * m + keep[1] * gradient;
            let square = square_keep[0] * s + square_keep[1] * (gradient * gradient);
            *m_next = mean;
            *s_next = square;
            let direction = mean / (square.sqrt() * inverse_root + self.epsilon) * inverse_mean;
            *w_next = w - rate * (direction + self.decay[1] * w);
        }
    }
}

impl Kernel for Adam {
    #[target_feature(enable = "avx512f")]
    unsafe fn run(&self, run: &Run<'_>) -> Result<(), String> {
        let (w, inputs) = alike(run, ["w", "g", "mean", "square"])?;
        let scalar = |index, what| run.input(index, what)?.scalar(what);
        let rates = [scalar(4, "rate")?, scalar(5, "inverse_mean")?, scalar(6, "inverse_square_root")?];
        let outputs = [run.output(0, w.shape())?, run.output(1, w.shape())?, run.output(2, w.shape())?];
        run.chunk_sets(outputs, TASK, |index, outputs| {
            let start = index * TASK;
            let range = start..start + outputs[0].len();
            self.step(inputs.map(|data| &data[range.clone()]), rates, outputs);
        })
    }
}

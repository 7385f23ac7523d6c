//! Optimisers as nodes: from a weight, its gradient and its moments to the next ones.

use edgeward_graph::{DataType, proto::AttributeProto};

use crate::{
    AdamSpec, OptimiserSpec,
    emit::{Axes, Emit},
};

/// Scalars that all updates share.
pub(crate) struct Shared {
    pub dtype: DataType,
    /// The learning rate.
    pub rate: String,
    /// The number of this update, 1 for the first, where the optimiser asks for it.
    pub step: Option<String>,
}

/// A weight before an update.
pub(crate) struct Before<'a> {
    pub weight: &'a str,
    pub gradient: &'a str,
    /// As many as [`moments`] names.
    pub moments: &'a [String],
}

/// A weight after an update.
pub(crate) struct After {
    pub weight: String,
    pub moments: Vec<String>,
}

/// What an optimiser remembers of each weight, beginning at 0.
pub(crate) fn moments(spec: &OptimiserSpec) -> &'static [&'static str] {
    match spec {
        OptimiserSpec::Sgd { momentum, .. } if *momentum == 0.0 => &[],
        OptimiserSpec::Sgd { .. } => &["momentum"],
        OptimiserSpec::Adam(_) | OptimiserSpec::AdamW(_) | OptimiserSpec::Lamb(_) => &["mean", "square"],
    }
}

/// Emits the update of one weight, and tells it as one operation.
pub(crate) fn update(emit: &mut Emit, spec: &OptimiserSpec, shared: &Shared, before: &Before<'_>) -> After {
    let after = spelt_out(emit, spec, shared, before);
    let mut inputs = vec![before.weight, before.gradient];
    inputs.extend(before.moments.iter().map(String::as_str));
    inputs.push(&shared.rate);
    // Emitted before: these are their names.
    let corrections = corrections(emit, spec, shared);
    inputs.extend(corrections.iter().map(String::as_str));
    let mut outputs = vec![after.weight.as_str()];
    outputs.extend(after.moments.iter().map(String::as_str));
    let (kind, settings) = told(spec);
    let attributes = settings.into_iter().map(|(name, value)| AttributeProto::of_float(name, value)).collect();
    emit.composite(kind, &inputs, &outputs, attributes);
    after
}

/// Name and settings of an update as one operation.
fn told(spec: &OptimiserSpec) -> (&'static str, Vec<(&'static str, f32)>) {
    let adam = |adam: &AdamSpec| {
        let (mean, square) = (("beta1", adam.beta1), ("beta2", adam.beta2));
        vec![mean, square, ("epsilon", adam.epsilon), ("weight_decay", adam.weight_decay)]
    };
    match spec {
        OptimiserSpec::Sgd { momentum, nesterov, weight_decay } => {
            let nesterov = if *nesterov { 1.0 } else { 0.0 };
            ("SgdUpdate", vec![("momentum", *momentum), ("nesterov", nesterov), ("weight_decay", *weight_decay)])
        }
        OptimiserSpec::Adam(settings) => ("AdamUpdate", adam(settings)),
        OptimiserSpec::AdamW(settings) => ("AdamWUpdate", adam(settings)),
        OptimiserSpec::Lamb(settings) => ("LambUpdate", adam(settings)),
    }
}

fn spelt_out(emit: &mut Emit, spec: &OptimiserSpec, shared: &Shared, before: &Before<'_>) -> After {
    match spec {
        OptimiserSpec::Sgd { momentum, nesterov, weight_decay } => {
            let gradient = decayed(emit, shared, before, *weight_decay);
            let Some(velocity) = before.moments.first() else {
                return After { weight: stepped(emit, shared, before.weight, &gradient), moments: Vec::new() };
            };
            let kept = emit.scale(velocity, shared.dtype, (*momentum).into());
            let velocity = emit.op("Add", &[&kept, &gradient]);
            let direction = if *nesterov {
                let ahead = emit.scale(&velocity, shared.dtype, (*momentum).into());
                emit.op("Add", &[&gradient, &ahead])
            } else {
                velocity.clone()
            };
            After { weight: stepped(emit, shared, before.weight, &direction), moments: vec![velocity] }
        }
        OptimiserSpec::Adam(adam) => {
            let gradient = decayed(emit, shared, before, adam.weight_decay);
            let (direction, moments) = adam_direction(emit, adam, shared, &gradient, before.moments);
            After { weight: stepped(emit, shared, before.weight, &direction), moments }
        }
        OptimiserSpec::AdamW(adam) => {
            let (direction, moments) = adam_direction(emit, adam, shared, before.gradient, before.moments);
            let direction = plus_decay(emit, shared, before.weight, &direction, adam.weight_decay);
            After { weight: stepped(emit, shared, before.weight, &direction), moments }
        }
        OptimiserSpec::Lamb(adam) => {
            let (direction, moments) = adam_direction(emit, adam, shared, before.gradient, before.moments);
            let direction = plus_decay(emit, shared, before.weight, &direction, adam.weight_decay);
            let ratio = trust_ratio(emit, shared, before.weight, &direction);
            let direction = emit.op("Mul", &[&direction, &ratio]);
            After { weight: stepped(emit, shared, before.weight, &direction), moments }
        }
    }
}

/// weight - rate · direction
fn stepped(emit: &mut Emit, shared: &Shared, weight: &str, direction: &str) -> String {
    let step = emit.op("Mul", &[direction, &shared.rate]);
    emit.op("Sub", &[weight, &step])
}

fn plus_decay(emit: &mut Emit, shared: &Shared, weight: &str, direction: &str, decay: f32) -> String {
    if decay == 0.0 {
        return direction.to_owned();
    }
    let pull = emit.scale(weight, shared.dtype, decay.into());
    emit.op("Add", &[direction, &pull])
}

fn decayed(emit: &mut Emit, shared: &Shared, before: &Before<'_>, decay: f32) -> String {
    plus_decay(emit, shared, before.weight, before.gradient, decay)
}

/// `(m / (1 - β₁ᵗ)) / (sqrt(v / (1 - β₂ᵗ)) + ε)` and the new m and v.
fn adam_direction(
    emit: &mut Emit,
    adam: &AdamSpec,
    shared: &Shared,
    gradient: &str,
    moments: &[String],
) -> (String, Vec<String>) {
    let dtype = shared.dtype;
    let (beta1, beta2) = (f64::from(adam.beta1), f64::from(adam.beta2));
    let mean = averaged(emit, dtype, moments.first(), gradient, beta1);
    let square = emit.op("Mul", &[gradient, gradient]);
    let squares = averaged(emit, dtype, moments.get(1), &square, beta2);
    let [inverse_mean, inverse_root] = adam_corrections(emit, adam, shared);
    let root = emit.op("Sqrt", &[&squares]);
    let root = emit.op("Mul", &[&root, &inverse_root]);
    let epsilon = emit.scalar(dtype, adam.epsilon.into());
    let below = emit.op("Add", &[&root, &epsilon]);
    let quotient = emit.op("Div", &[&mean, &below]);
    let direction = emit.op("Mul", &[&quotient, &inverse_mean]);
    (direction, vec![mean, squares])
}

/// What corrects an update's moments.
fn corrections(emit: &mut Emit, spec: &OptimiserSpec, shared: &Shared) -> Vec<String> {
    match spec {
        OptimiserSpec::Sgd { .. } => Vec::new(),
        OptimiserSpec::Adam(adam) | OptimiserSpec::AdamW(adam) | OptimiserSpec::Lamb(adam) => {
            adam_corrections(emit, adam, shared).into()
        }
    }
}

/// As scalars: 1 / (1 - β₁ᵗ), and the root of 1 / (1 - β₂ᵗ).
fn adam_corrections(emit: &mut Emit, adam: &AdamSpec, shared: &Shared) -> [String; 2] {
    let inverse_mean = inverse_correction(emit, shared, adam.beta1.into());
    let inverse_square = inverse_correction(emit, shared, adam.beta2.into());
    [inverse_mean, emit.op("Sqrt", &[&inverse_square])]
}

/// `β old + (1 - β) new`
pub(crate) fn averaged(emit: &mut Emit, dtype: DataType, old: Option<&String>, new: &str, beta: f64) -> String {
    let part = emit.scale(new, dtype, 1.0 - beta);
    let Some(old) = old else { return part };
    let kept = emit.scale(old, dtype, beta);
    emit.op("Add", &[&kept, &part])
}

/// `1 / (1 - βᵗ)`. With `x = t ln β`, `1 - eˣ = -2 h / (1 - h)`, `h = tanh(x / 2)`: in float32 the power itself would lose
/// five digits of the difference in the first steps.
fn inverse_correction(emit: &mut Emit, shared: &Shared, beta: f64) -> String {
    let dtype = shared.dtype;
    let Some(step) = shared.step.as_deref().filter(|_| beta > 0.0) else { return emit.scalar(dtype, 1.0) };
    let half = emit.scale(step, dtype, beta.ln() / 2.0);
    let h = emit.op("Tanh", &[&half]);
    let one = emit.scalar(dtype, 1.0);
    let above = emit.op("Sub", &[&h, &one]);
    let below = emit.scale(&h, dtype, 2.0);
    emit.op("Div", &[&above, &below])
}

/// `‖w‖ / ‖direction‖`, 1 where either is 0.
fn trust_ratio(emit: &mut Emit, shared: &Shared, weight: &str, direction: &str) -> String {
    let zero = emit.scalar(shared.dtype, 0.0);
    let one = emit.scalar(shared.dtype, 1.0);
    let norms = [weight, direction].map(|x| emit.reduce("ReduceL2", x, &[], Axes::Drop));
    let ratio = emit.op("Div", &[&norms[0], &norms[1]]);
    let positive = [0, 1].map(|i: usize| emit.op("Greater", &[&norms[i], &zero]));
    let both = emit.op("And", &[&positive[0], &positive[1]]);
    emit.op("Where", &[&both, &ratio, &one])
}

/// True for optimisers that correct their moments by the number of the step.
pub(crate) fn counts_steps(spec: &OptimiserSpec) -> bool {
    !matches!(spec, OptimiserSpec::Sgd { .. })
}

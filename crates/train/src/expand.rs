//! Puts training's meaning in the place of what exporters write for inference: statistics of the batch, masks of dropouts.
//!
//! Operators whose gradients are those of their parts are taken apart here as well.

use std::collections::{HashMap, HashSet};

use edgeward_graph::{Dimension, proto::NodeProto};

use crate::{
    TrainError,
    emit::{Axes, Emit},
    gradient::place,
    known::Known,
    rules::channel_count,
};

/// What the expanded nodes ask for and bring beside the forward graph.
#[derive(Default)]
pub(crate) struct Expanded {
    /// Normalisations whose statistics are those of the batch: from the output to what was normalised.
    pub of_batch: HashMap<String, String>,
    /// Running statistics: from the name of the old one to that of the next.
    pub statistics: HashMap<String, String>,
    /// Dropouts: inputs that hold 1 for what is kept, else 0.
    pub masks: Vec<Mask>,
}

/// An input that says which elements a dropout keeps.
#[derive(Clone, Debug)]
pub struct Mask {
    /// Name of the input; float of the dropout's type, 1 for what is kept, else 0.
    pub input: String,
    /// Its shape; symbols are those of the data inputs.
    pub shape: Vec<Dimension>,
    /// Element type.
    pub dtype: edgeward_graph::DataType,
    /// The share of ones.
    pub keep: f32,
}

/// Copies `nodes` to `emit`, those expanded that training sees otherwise. `trained` are weights.
pub(crate) fn expand(
    emit: &mut Emit,
    nodes: &[NodeProto],
    known: &Known,
    trained: &HashSet<String>,
) -> Result<Expanded, TrainError> {
    let mut expanded = Expanded::default();
    for (index, node) in nodes.iter().enumerate() {
        let fail = |reason| TrainError::Unsupported { place: place(node, index), reason };
        emit.stem = format!("forward/{}", if node.name().is_empty() { node.op_type() } else { node.name() });
        let trains = |at: usize| node.input.get(at).is_some_and(|name| trained.contains(name));
        match node.op_type() {
            "BatchNormalization" if trains(1) || trains(2) => {
                batch_normalization(emit, node, known, &mut expanded).map_err(fail)?;
            }
            "LSTM" | "GRU" | "RNN" if node.is_standard() => {
                crate::recurrent::unroll(emit, node, known).map_err(fail)?
            }
            "Dropout" => dropout(emit, node, known, &mut expanded).map_err(fail)?,
            _ => emit.nodes.push(node.clone()),
        }
    }
    Ok(expanded)
}

/// Mean and variance of the batch go where the running ones went; those follow by the node's momentum, the variance
/// unbiased, as PyTorch keeps it.
fn batch_normalization(
    emit: &mut Emit,
    node: &NodeProto,
    known: &Known,
    expanded: &mut Expanded,
) -> Result<(), String> {
    let [x, scale, bias, mean, variance] = node.input.as_slice() else {
        return Err(format!("has {} inputs, expected 5", node.input.len()));
    };
    let (rank, dtype) = (known.rank(x)?, known.dtype(x).unwrap_or(edgeward_graph::DataType::Float32));
    let own_mean = channel_mean(emit, x, rank);
    let beside = emit.unsqueeze(&own_mean, &(1..rank as i64 - 1).collect::<Vec<_>>());
    let middle = emit.op("Sub", &[x, &beside]);
    let square = emit.op("Mul", &[&middle, &middle]);
    let own_variance = channel_mean(emit, &square, rank);
    // What remains has a mean of 0: taken from x itself, a mean much larger than the deviation would cost digits.
    let zeros = emit.zeros_like(scale, dtype);
    let mut own = node.clone();
    own.input = vec![middle, scale.clone(), bias.clone(), zeros, own_variance.clone()];
    own.output.truncate(1);
    own.attribute.retain(|a| a.name() == "epsilon");
    if let Some(y) = own.output.first() {
        expanded.of_batch.insert(y.clone(), x.clone());
        let epsilon = own.attribute.clone();
        emit.composite("BatchNormalizationTraining", &[x, scale, bias], &[y, &own_mean, &own_variance], epsilon);
    }
    emit.nodes.push(own);
    let kept = f64::from(node.attr_float("momentum").unwrap_or(0.9));
    let count = channel_count(emit, known, x);
    let one = emit.scalar(dtype, 1.0);
    let less = emit.op("Sub", &[&count, &one]);
    // Of one element no variance is known; the biased one, 0, stands for it.
    let less = emit.op("Max", &[&less, &one]);
    let unbias = emit.op("Div", &[&count, &less]);
    let unbiased = emit.op("Mul", &[&own_variance, &unbias]);
    for (old, new) in [(mean, own_mean), (variance, unbiased)] {
        let next = crate::optimise::averaged(emit, dtype, Some(old), &new, kept);
        expanded.statistics.insert(old.clone(), next);
    }
    Ok(())
}

/// The mean of each channel: over space first, which adds fewer numbers to each other than all at once.
fn channel_mean(emit: &mut Emit, x: &str, rank: usize) -> String {
    let space: Vec<i64> = (2..rank as i64).collect();
    let inner = if space.is_empty() { x.to_owned() } else { emit.reduce("ReduceMean", x, &space, Axes::Drop) };
    emit.reduce("ReduceMean", &inner, &[0], Axes::Drop)
}

/// `x · mask / keep`.
fn dropout(emit: &mut Emit, node: &NodeProto, known: &Known, expanded: &mut Expanded) -> Result<(), String> {
    let (Some(x), Some(y)) = (node.input.first(), node.output.first()) else {
        return Err("has no input or no output".to_owned());
    };
    if node.output.get(1).is_some_and(|name| !name.is_empty()) {
        return Err("tells its mask, which training does not offer; remove its second output".to_owned());
    }
    let ratio = match node.input.get(1).filter(|name| !name.is_empty()) {
        Some(name) => known.floats(name).and_then(|v| v.first().copied()).ok_or("its ratio is no constant")?,
        None => 0.5,
    };
    let identity = |input: &str| NodeProto {
        op_type: Some("Identity".to_owned()),
        name: node.name.clone(),
        input: vec![input.to_owned()],
        output: vec![y.clone()],
        ..NodeProto::default()
    };
    if ratio <= 0.0 {
        emit.nodes.push(identity(x));
        return Ok(());
    }
    if ratio >= 1.0 {
        return Err(format!("drops a share of {ratio}, expected less than 1"));
    }
    let kind = known.of_value(x);
    let (Some(dtype), Some(shape)) = (kind.dtype, kind.shape) else {
        return Err("drops from a value whose shape is not known before a run".to_owned());
    };
    if shape.contains(&Dimension::Unknown) {
        return Err("drops from a value one of whose sizes has no name".to_owned());
    }
    let input = emit.name(&format!("mask/{}", if node.name().is_empty() { y } else { node.name() }));
    let kept = emit.op("Mul", &[x, &input]);
    let scaled = emit.scale(&kept, dtype, 1.0 / (1.0 - ratio));
    emit.nodes.push(identity(&scaled));
    expanded.masks.push(Mask { input, shape, dtype, keep: (1.0 - ratio) as f32 });
    Ok(())
}

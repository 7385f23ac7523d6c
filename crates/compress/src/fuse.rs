//! What is done once and for all before quantising: batch normalisation goes into the weights before it, factors of a
//! Gemm into its constants, and nodes that do nothing go away.

use std::collections::HashSet;

use edgeward_graph::{Links, Tensor, proto::NodeProto};

use crate::{CompressError, edit::Edit};

/// Epsilon of a BatchNormalization that names none (ONNX operator specification).
const EPSILON: f32 = 1e-5;

/// Folds every BatchNormalization into the Conv or Gemm before it, where nothing else reads between; says how many.
pub(crate) fn batch_norms(edit: &mut Edit) -> Result<usize, CompressError> {
    let mut gone = HashSet::new();
    for index in 0..edit.model.graph().node.len() {
        if let Some(fold) = fold_of(edit, index) {
            apply(edit, &fold)?;
            gone.insert(index);
        }
    }
    let mut index = 0;
    edit.model.graph_mut().node.retain(|_| {
        index += 1;
        !gone.contains(&(index - 1))
    });
    Ok(gone.len())
}

/// A normalisation that can go: `factor · (x − mean) + shift` by channel.
struct Fold {
    before: usize,
    output: String,
    factor: Vec<f64>,
    mean: Vec<f64>,
    shift: Vec<f64>,
}

fn fold_of(edit: &Edit, index: usize) -> Option<Fold> {
    let graph = edit.model.graph();
    let node = graph.node.get(index).filter(|node| node.is_standard() && node.op_type() == "BatchNormalization")?;
    let [input, parameters @ ..] = node.input.as_slice() else { return None };
    let [output] = node.output.as_slice() else { return None };
    let links = Links::of(graph);
    let before = links.producer(input)?;
    let read_elsewhere = links.consumers(input).len() != 1 || graph.output.iter().any(|o| o.name() == input);
    if read_elsewhere || !takes(graph.node.get(before)?, edit) {
        return None;
    }
    let values: Vec<Vec<f64>> = parameters.iter().map(|name| wide(edit, name)).collect::<Option<_>>()?;
    let [scale, shift, mean, variance] = values.as_slice() else { return None };
    let epsilon = f64::from(node.attr_float("epsilon").unwrap_or(EPSILON));
    let factor: Vec<f64> = scale.iter().zip(variance).map(|(scale, var)| scale / (var + epsilon).sqrt()).collect();
    let finite = factor.iter().chain(mean).chain(shift).all(|value| value.is_finite());
    let added = graph.node.get(before)?;
    let by_channel = bias_name(added).is_none() || bias_by_channel(edit, added, factor.len()).is_some();
    (finite && by_channel).then(|| Fold {
        before,
        output: output.clone(),
        factor,
        mean: mean.clone(),
        shift: shift.clone(),
    })
}

/// Conv, and Gemm whose columns are the channels, with constant weights.
fn takes(node: &NodeProto, edit: &Edit) -> bool {
    let constant = |slot: usize| node.input.get(slot).is_none_or(|name| name.is_empty() || edit.is_constant(name));
    let kind = match node.op_type() {
        "Conv" => true,
        "Gemm" => plain(node),
        _ => false,
    };
    node.is_standard() && kind && node.input.len() >= 2 && constant(1) && constant(2)
}

/// A Gemm without factors.
fn plain(node: &NodeProto) -> bool {
    node.attr_float("alpha").unwrap_or(1.0) == 1.0 && node.attr_float("beta").unwrap_or(1.0) == 1.0
}

fn wide(edit: &Edit, name: &str) -> Option<Vec<f64>> {
    Some(edit.floats(name)?.1.into_iter().map(f64::from).collect())
}

fn apply(edit: &mut Edit, fold: &Fold) -> Result<(), CompressError> {
    let Some(node) = edit.node(fold.before).cloned() else { return Ok(()) };
    let refuse =
        || CompressError::unsupported(format!("node `{}`", node.name()), "its weights do not fit its channels");
    let weight = node.input.get(1).and_then(|name| edit.floats(name));
    let (shape, mut values) = weight.ok_or_else(refuse)?;
    let axis = channel_axis(&node);
    let channels = shape.get(axis).copied().filter(|&channels| channels == fold.factor.len()).ok_or_else(refuse)?;
    let inner: usize = shape.iter().skip(axis + 1).product::<usize>().max(1);
    for (at, value) in values.iter_mut().enumerate() {
        let factor = fold.factor.get(at / inner % channels.max(1)).copied().unwrap_or(1.0);
        *value = (f64::from(*value) * factor) as f32;
    }
    let before = bias_by_channel(edit, &node, channels).unwrap_or_else(|| vec![0.0; channels]);
    let constants = before.iter().zip(fold.factor.iter().zip(&fold.mean).zip(&fold.shift));
    let bias: Vec<f32> = constants
        .map(|(before, ((factor, mean), shift))| ((f64::from(*before) - mean) * factor + shift) as f32)
        .collect();
    let weight = edit.constant(&format!("{}.folded", node.input[1]), &Tensor::from_vec(shape, values)?);
    let bias = edit.constant(&format!("{weight}.bias"), &Tensor::from_vec([channels], bias)?);
    edit.set_input(fold.before, 1, &weight);
    edit.set_input(fold.before, 2, &bias);
    if let Some(output) = edit.model.graph_mut().node.get_mut(fold.before).and_then(|node| node.output.first_mut()) {
        output.clone_from(&fold.output);
    }
    Ok(())
}

/// Name of what a Conv or Gemm adds, where it adds something.
pub(crate) fn bias_name(node: &NodeProto) -> Option<&String> {
    node.input.get(2).filter(|name| !name.is_empty())
}

/// A layer's bias by channel; none where it has none that can be read so, as where a Gemm adds other numbers to each row.
pub(crate) fn bias_by_channel(edit: &Edit, node: &NodeProto, channels: usize) -> Option<Vec<f32>> {
    let (shape, values) = edit.floats(bias_name(node)?)?;
    match values.as_slice() {
        [one] => Some(vec![*one; channels]),
        _ => (values.len() == channels && shape.last() == Some(&channels)).then_some(values),
    }
}

/// Dimension of a layer's weights that its outputs are along.
pub(crate) fn channel_axis(node: &NodeProto) -> usize {
    match node.op_type() {
        "Gemm" if node.attr_int("transB").unwrap_or(0) == 0 => 1,
        "MatMul" => 1,
        _ => 0,
    }
}

/// Gemm's factors go into its constants, so that its quantised form needs none.
pub(crate) fn gemm_factors(edit: &mut Edit) -> Result<(), CompressError> {
    for index in 0..edit.model.graph().node.len() {
        let Some(node) = edit.node(index).filter(|node| node.op_type() == "Gemm" && node.is_standard()).cloned() else {
            continue;
        };
        if plain(&node) || !takes_factors(&node, edit) {
            continue;
        }
        for (slot, attribute) in [(1, "alpha"), (2, "beta")] {
            let factor = node.attr_float(attribute).unwrap_or(1.0);
            let Some((shape, values)) = node.input.get(slot).and_then(|name| edit.floats(name)) else { continue };
            let values = values.into_iter().map(|value| value * factor).collect::<Vec<f32>>();
            let scaled = edit.constant(&format!("{}.scaled", node.input[slot]), &Tensor::from_vec(shape, values)?);
            edit.set_input(index, slot, &scaled);
        }
        if let Some(node) = edit.model.graph_mut().node.get_mut(index) {
            node.attribute.retain(|attribute| !matches!(attribute.name(), "alpha" | "beta"));
        }
    }
    Ok(())
}

fn takes_factors(node: &NodeProto, edit: &Edit) -> bool {
    node.input.iter().skip(1).all(|name| edit.floats(name).is_some())
}

/// Constant nodes become initialisers.
pub(crate) fn constants(edit: &mut Edit) {
    let outputs: HashSet<String> = edit.model.graph().output.iter().map(|output| output.name().to_owned()).collect();
    let graph = edit.model.graph_mut();
    let mut lifted = Vec::new();
    graph.node.retain(|node| {
        let (Some(name), Some(value)) = (node.output.first(), node.attr("value").and_then(|a| a.t.clone())) else {
            return true;
        };
        if !node.is_standard() || node.op_type() != "Constant" || outputs.contains(name) {
            return true;
        }
        lifted.push(edgeward_graph::proto::TensorProto { name: Some(name.clone()), ..value });
        false
    });
    graph.initializer.extend(lifted);
}

/// Constant nodes become initialisers; what only hands on its input goes away, where names allow.
pub(crate) fn idle(edit: &mut Edit) -> Result<(), CompressError> {
    constants(edit);
    let graph = edit.model.graph_mut();
    let mut index = 0;
    while let Some(node) = graph.node.get(index) {
        let drops = node.op_type() == "Dropout" && node.output.len() == 1;
        let idle = node.is_standard() && (node.op_type() == "Identity" || drops);
        // What cannot be removed, as between an input and an output, stays.
        if !(idle && graph.remove_node(index).is_ok()) {
            index += 1;
        }
    }
    Ok(())
}

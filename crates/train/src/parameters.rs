//! Which of a graph's constants are weights.
//!
//! ONNX does not tell weights from other constants. A float initialiser is a weight where it stands in a weight's place of
//! an operator (a convolution's kernel, a scale, an embedding), or where it has at least one dimension and is multiplied or
//! added. Bounds, exponents, divisors, masks of minus infinity, what is taken from or divides the data: these are not.

use std::collections::{BTreeMap, HashMap, HashSet};

use edgeward_graph::{DataType, Model, proto::NodeProto};

use crate::{Pattern, StepSpec, TrainError, gradient::is_float};

/// Weights and running statistics of a model, by the names of their initialisers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// What training changes, in the model's order.
    pub weights: Vec<String>,
    /// Means and variances that normalisations keep, in the model's order.
    pub statistics: Vec<String>,
}

/// Finds the weights that `spec` trains. Errors: a pattern that fits no weight, and a model without any.
pub(crate) fn select(model: &Model, spec: &StepSpec) -> Result<Parameters, TrainError> {
    let all = parameters(model)?;
    for pattern in spec.trained.iter().chain(&spec.frozen) {
        if !all.weights.iter().any(|name| pattern.fits(name)) {
            let names = all.weights.iter().take(8).map(String::as_str).collect::<Vec<_>>().join("`, `");
            let text = pattern.text();
            return Err(TrainError::invalid(format!("pattern `{text}` fits no weight; there are `{names}`")));
        }
    }
    let any = |patterns: &[Pattern], name: &str| patterns.iter().any(|p| p.fits(name));
    let kept = |name: &String| (spec.trained.is_empty() || any(&spec.trained, name)) && !any(&spec.frozen, name);
    let weights: Vec<String> = all.weights.into_iter().filter(kept).collect();
    if weights.is_empty() {
        return Err(TrainError::invalid("no weight is left to train; the model has none, or all are frozen"));
    }
    Ok(Parameters { weights, statistics: all.statistics })
}

/// The weights and running statistics of a model.
pub fn parameters(model: &Model) -> Result<Parameters, TrainError> {
    let graph = model.graph();
    let inputs: HashSet<String> = model.inputs().into_iter().map(|port| port.name).collect();
    let mut roles: HashMap<&str, Role> = HashMap::new();
    // Names that stand for an initialiser under another shape.
    let mut alias: BTreeMap<&str, &str> = graph.initializer.iter().map(|t| (t.name(), t.name())).collect();
    let mut raw: HashSet<&str> = inputs.iter().map(String::as_str).collect();
    for node in &graph.node {
        if let (true, Some(source), Some(output)) =
            (is_view(node), node.input.first().and_then(|name| alias.get(name.as_str()).copied()), node.output.first())
        {
            alias.insert(output, source);
            continue;
        }
        for (index, name) in node.input.iter().enumerate() {
            let Some(&source) = alias.get(name.as_str()) else { continue };
            let role = role(node, index, &raw);
            let known = roles.entry(source).or_insert(role);
            *known = (*known).max(role);
        }
        // Data that no weight has met yet: what is taken from it is no weight, but a normalisation of the input.
        if !node.input.iter().any(|name| alias.contains_key(name.as_str()) && !is_normalising(node))
            && node.input.iter().any(|name| raw.contains(name.as_str()))
        {
            raw.extend(node.output.iter().map(String::as_str));
        }
    }
    for name in of_groups(model)? {
        roles.insert(name, Role::Constant);
    }
    let mut found = Parameters::default();
    for tensor in &graph.initializer {
        let dtype = DataType::from_onnx(tensor.data_type());
        if !dtype.is_some_and(is_float) || inputs.contains(tensor.name()) {
            continue;
        }
        match roles.get(tensor.name()) {
            Some(Role::Statistic) => found.statistics.push(tensor.name().to_owned()),
            Some(Role::Weight) => found.weights.push(tensor.name().to_owned()),
            Some(Role::Term) if !tensor.dims.is_empty() && !is_mask(model, tensor)? => {
                found.weights.push(tensor.name().to_owned());
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Ones and zeros of the InstanceNormalization within what exporters make of a normalisation by groups: a Reshape, this
/// one, another Reshape, and only then the scale and the offset.
fn of_groups(model: &Model) -> Result<Vec<&str>, TrainError> {
    let graph = model.graph();
    let made_by_reshape = |name: &String| {
        let mut makers = graph.node.iter().filter(|node| node.output.contains(name));
        makers.any(|node| node.op_type() == "Reshape")
    };
    let mut found = Vec::new();
    for node in graph.node.iter().filter(|node| node.op_type() == "InstanceNormalization") {
        let [x, scale, offset] = node.input.as_slice() else { continue };
        if made_by_reshape(x) && is_all(model, scale, 1.0)? && is_all(model, offset, 0.0)? {
            found.extend([scale.as_str(), offset.as_str()]);
        }
    }
    Ok(found)
}

fn is_all(model: &Model, name: &str, value: f64) -> Result<bool, TrainError> {
    let Some(message) = model.graph().initializer.iter().find(|t| t.name() == name) else { return Ok(false) };
    let tensor = model.tensor(message)?;
    Ok(match tensor.dtype() {
        DataType::Float32 => tensor.values::<f32>().is_ok_and(|v| v.iter().all(|&v| f64::from(v) == value)),
        DataType::Float64 => tensor.values::<f64>().is_ok_and(|v| v.iter().all(|&v| v == value)),
        _ => false,
    })
}

/// What a use says of a constant; the greatest of its uses counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Constant,
    Statistic,
    /// Added or multiplied: a weight where it has dimensions.
    Term,
    Weight,
}

fn is_view(node: &NodeProto) -> bool {
    node.is_standard()
        && matches!(
            node.op_type(),
            "Cast"
                | "CastLike"
                | "DequantizeLinear"
                | "Expand"
                | "Flatten"
                | "Identity"
                | "QuantizeLinear"
                | "Reshape"
                | "Slice"
                | "Squeeze"
                | "Transpose"
                | "Unsqueeze"
        )
}

/// Operators by which exported models bring data to a scale.
fn is_normalising(node: &NodeProto) -> bool {
    matches!(node.op_type(), "Sub" | "Div")
}

fn role(node: &NodeProto, index: usize, raw: &HashSet<&str>) -> Role {
    if !node.is_standard() {
        return Role::Constant;
    }
    let of_data = || node.input.iter().any(|name| raw.contains(name.as_str()));
    match (node.op_type(), index) {
        ("BatchNormalization", 3 | 4) => Role::Statistic,
        ("Conv" | "ConvTranspose" | "Gemm", 1 | 2) | ("Gemm", 0) => Role::Weight,
        ("BatchNormalization" | "InstanceNormalization" | "LayerNormalization" | "GroupNormalization", 1 | 2)
        | ("RMSNormalization" | "PRelu", 1) => Role::Weight,
        ("LSTM" | "GRU" | "RNN", 1..=3) => Role::Weight,
        ("LSTM", 7) | ("MatMul" | "Einsum", _) | ("Gather", 0) => Role::Weight,
        ("Sub", 1) if of_data() => Role::Constant,
        ("Div", 0) | ("Add" | "Sub" | "Mul" | "Sum" | "Concat", _) => Role::Term,
        _ => Role::Constant,
    }
}

/// True for what is added to attention scores: zeros beside numbers so low that a softmax makes 0 of them.
fn is_mask(model: &Model, tensor: &edgeward_graph::proto::TensorProto) -> Result<bool, TrainError> {
    let values = model.tensor(tensor)?;
    let Ok(values) = values.values::<f32>() else { return Ok(false) };
    Ok(values.iter().any(|v| *v <= -1e4 || v.is_nan()))
}

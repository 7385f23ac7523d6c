//! Readies a forward graph: everything in one file, of an operator set that the rules write, its weights as inputs.

use std::collections::HashMap;

use edgeward_graph::{
    DataType, FoldLimits, Model, Tensor, check, fold_constants,
    proto::{
        AttributeProto, NodeProto, TensorShapeProto, TypeProto, ValueInfoProto,
        tensor_shape_proto::{self, dimension},
        type_proto,
    },
    tensor_proto,
};

use crate::{TrainError, gradient::place, known::Known, parameters::Parameters};

/// The operator set that emitted nodes need at least: LayerNormalization came with it.
const OPSET: i64 = 17;

/// From this one on an operator set can be brought to [`OPSET`] node by node.
const OLDEST: i64 = 11;

/// Constants are folded into small tensors only: shapes and factors, not masks of the size of an activation.
pub(crate) const FOLDED: FoldLimits = FoldLimits { value_bytes: 64 << 10, total_bytes: 64 << 20 };

/// A copy of `forward` that can be taken apart.
pub(crate) fn readied(forward: &Model) -> Result<Model, TrainError> {
    if let Err(mut errors) = check(forward)
        && !errors.is_empty()
    {
        return Err(errors.swap_remove(0).into());
    }
    let mut model = forward.clone();
    model.inline_external()?;
    if let Some(function) = model.proto().functions.first() {
        let reason = "is a function of the model; inline it first (`onnx.inliner`)".to_owned();
        return Err(TrainError::Unsupported { place: format!("function `{}`", function.name()), reason });
    }
    upgrade(&mut model)?;
    let proto = model.proto_mut();
    proto.ir_version = Some(proto.ir_version().max(8));
    proto.training_info.clear();
    let graph = model.graph_mut();
    graph.value_info.clear();
    graph.quantization_annotation.clear();
    // Old exporters list weights as inputs too, as defaults that a caller may replace; here they are weights.
    let initialised: Vec<String> = graph.initializer.iter().map(|t| t.name().to_owned()).collect();
    graph.input.retain(|input| !initialised.iter().any(|name| name == input.name()));
    Ok(model)
}

/// Takes the weights and statistics out of the constants and makes inputs of them; returns their values.
pub(crate) fn release(model: &mut Model, parameters: &Parameters) -> Result<HashMap<String, Tensor>, TrainError> {
    let mut values = HashMap::new();
    for name in parameters.weights.iter().chain(&parameters.statistics) {
        let Some(at) = model.graph().initializer.iter().position(|t| t.name() == name) else { continue };
        let message = model.graph_mut().initializer.remove(at);
        let tensor = model.tensor(&message)?;
        let shape: Vec<Size> = tensor.shape().iter().map(|&s| Size::Fixed(s)).collect();
        model.graph_mut().input.push(declared(name, tensor.dtype(), &shape));
        values.insert(name.clone(), tensor);
    }
    fold_constants(model, &FOLDED);
    Ok(values)
}

/// A size as a declaration has it.
#[derive(Clone, Debug)]
pub(crate) enum Size {
    Fixed(usize),
    Symbol(String),
    Open,
}

impl From<&edgeward_graph::Dimension> for Size {
    fn from(dim: &edgeward_graph::Dimension) -> Self {
        match dim {
            edgeward_graph::Dimension::Fixed(size) => Self::Fixed(*size),
            edgeward_graph::Dimension::Symbol(name) => Self::Symbol(name.clone()),
            edgeward_graph::Dimension::Unknown => Self::Open,
        }
    }
}

/// The declaration of an input or output.
pub(crate) fn declared(name: &str, dtype: DataType, shape: &[Size]) -> ValueInfoProto {
    let dim = |size: &Size| tensor_shape_proto::Dimension {
        value: match size {
            Size::Fixed(size) => Some(dimension::Value::DimValue(*size as i64)),
            Size::Symbol(name) => Some(dimension::Value::DimParam(name.clone())),
            Size::Open => None,
        },
        denotation: None,
    };
    let shape = Some(TensorShapeProto { dim: shape.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: Some(dtype.to_onnx()), shape };
    let kind = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: None };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(kind), ..ValueInfoProto::default() }
}

/// Brings older operator sets to the one that emitted nodes are of.
fn upgrade(model: &mut Model) -> Result<(), TrainError> {
    let opset = model.opset();
    if opset >= OPSET {
        return Ok(());
    }
    if opset < OLDEST {
        let reason =
            format!("operator set {opset}, training takes {OLDEST} and newer; `onnx.version_converter` changes it");
        return Err(TrainError::Unsupported { place: "model".to_owned(), reason });
    }
    let known = Known::of(model)?;
    let graph = model.graph_mut();
    let mut lists = Vec::new();
    for (index, node) in graph.node.iter_mut().enumerate().filter(|(_, node)| node.is_standard()) {
        upgrade_node(node, opset, &known, &mut lists)
            .map_err(|reason| TrainError::Unsupported { place: place(node, index), reason })?;
    }
    for (stem, list) in lists {
        let Ok(tensor) = Tensor::from_vec([list.len()], list) else { continue };
        graph.initializer.push(tensor_proto(&stem, &tensor));
    }
    for import in &mut model.proto_mut().opset_import {
        if matches!(import.domain(), "" | "ai.onnx") {
            import.version = Some(OPSET);
        }
    }
    Ok(())
}

/// What version 13 changed: axes and parts became inputs, softmaxes work along one axis.
fn upgrade_node(
    node: &mut NodeProto,
    opset: i64,
    known: &Known,
    lists: &mut Vec<(String, Vec<i64>)>,
) -> Result<(), String> {
    if opset >= 13 {
        return Ok(());
    }
    let moved = match node.op_type() {
        "Squeeze" | "Unsqueeze" | "ReduceSum" => "axes",
        "Split" => "split",
        "Softmax" | "LogSoftmax" | "Hardmax" => {
            let rank = known.rank(node.input.first().map_or("", String::as_str))?;
            let axis = crate::shape::axis(node.attr_int("axis").unwrap_or(1), rank)?;
            if axis + 1 != rank {
                return Err("works on several axes at once, as before version 13; convert the model".to_owned());
            }
            node.attribute.retain(|a| a.name() != "axis");
            node.attribute.push(AttributeProto::of_int("axis", -1));
            return Ok(());
        }
        "Dropout" if opset < 12 => {
            node.attribute.clear();
            return Ok(());
        }
        _ => return Ok(()),
    };
    let Some(list) = node.attr_ints(moved).map(<[i64]>::to_vec) else { return Ok(()) };
    node.attribute.retain(|a| a.name() != moved);
    let name = format!("{}/{moved}", node.output.first().map_or("", String::as_str));
    node.input.truncate(1);
    node.input.push(name.clone());
    lists.push((name, list));
    Ok(())
}

//! Weights as binary16 in the file, made binary32 when an engine loads it: half the size, the same speed.

use edgeward_graph::{
    DataType, Model, Tensor,
    proto::{AttributeProto, NodeProto},
    tensor_proto,
};
use half::f16;

use crate::{CompressError, Prepared, edit::node};

/// Smaller tensors gain nothing.
const ELEMENTS_MIN: usize = 64;

/// Stores constants of binary32 as binary16, but for those with numbers that it cannot hold.
pub fn halve(prepared: &Prepared) -> Result<Model, CompressError> {
    let mut model = prepared.model.clone();
    let given: Vec<String> = model.graph().input.iter().map(|input| input.name().to_owned()).collect();
    let mut casts: Vec<NodeProto> = Vec::new();
    let mut kept = Vec::new();
    for tensor in std::mem::take(&mut model.graph_mut().initializer) {
        let name = tensor.name().to_owned();
        let halved = if given.contains(&name) { None } else { halved(&model, &tensor) };
        let Some(halved) = halved else {
            kept.push(tensor);
            continue;
        };
        let stored = format!("{name}.half");
        kept.push(tensor_proto(&stored, &halved));
        let to = AttributeProto::of_int("to", DataType::Float32.to_onnx().into());
        casts.push(node("Cast", format!("{stored}.cast"), &[&stored], &[&name], vec![to]));
    }
    let graph = model.graph_mut();
    graph.initializer = kept;
    casts.append(&mut graph.node);
    graph.node = casts;
    Ok(model)
}

fn halved(model: &Model, tensor: &edgeward_graph::proto::TensorProto) -> Option<Tensor> {
    if tensor.data_type() != DataType::Float32.to_onnx() {
        return None;
    }
    let tensor = model.tensor(tensor).ok().filter(|tensor| tensor.len() >= ELEMENTS_MIN)?;
    let values: Vec<f16> = tensor.values::<f32>().ok()?.iter().map(|&value| f16::from_f32(value)).collect();
    let holds = values.iter().all(|value| value.is_finite());
    holds.then(|| Tensor::from_vec(tensor.shape().to_vec(), values).ok()).flatten()
}

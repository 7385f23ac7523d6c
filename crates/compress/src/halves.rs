//! Weights as binary16 or bfloat16 in the file, made binary32 when an engine loads it: half the size, the same speed.

use edgeward_graph::{
    DataType, Model, Tensor,
    proto::{AttributeProto, NodeProto},
    tensor_proto,
};
use half::{bf16, f16};

use crate::{
    CompressError, Prepared,
    edit::{Edit, node},
};

/// Smaller tensors gain nothing.
const ELEMENTS_MIN: usize = 64;

/// Numbers of 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Half {
    /// 11 bits of precision, up to 65,504.
    Binary16,
    /// 8 bits of precision, the range of binary32.
    BFloat16,
}

/// Stores constants of binary32 as `half`, but for those with numbers that it cannot hold.
pub fn halve(prepared: &Prepared, half: Half) -> Result<Model, CompressError> {
    let mut edit = Edit::new(prepared.model.clone());
    let given: Vec<String> = edit.model.graph().input.iter().map(|input| input.name().to_owned()).collect();
    let mut casts: Vec<NodeProto> = Vec::new();
    let mut kept = Vec::new();
    for tensor in std::mem::take(&mut edit.model.graph_mut().initializer) {
        let name = tensor.name().to_owned();
        let halved = if given.contains(&name) { None } else { halved(&edit.model, &tensor, half) };
        let Some(halved) = halved else {
            kept.push(tensor);
            continue;
        };
        let stored = edit.fresh(&format!("{name}.half"));
        kept.push(tensor_proto(&stored, &halved));
        let to = AttributeProto::of_int("to", DataType::Float32.to_onnx().into());
        casts.push(node("Cast", format!("{stored}.cast"), &[&stored], &[&name], vec![to]));
    }
    let mut model = edit.model;
    let graph = model.graph_mut();
    graph.initializer = kept;
    casts.append(&mut graph.node);
    graph.node = casts;
    Ok(model)
}

fn halved(model: &Model, tensor: &edgeward_graph::proto::TensorProto, half: Half) -> Option<Tensor> {
    if tensor.data_type() != DataType::Float32.to_onnx() {
        return None;
    }
    let tensor = model.tensor(tensor).ok().filter(|tensor| tensor.len() >= ELEMENTS_MIN)?;
    let floats = tensor.values::<f32>().ok()?;
    let shape = tensor.shape().to_vec();
    match half {
        Half::Binary16 => {
            let values: Vec<f16> = floats.iter().map(|&value| f16::from_f32(value)).collect();
            values.iter().all(|value| value.is_finite()).then(|| Tensor::from_vec(shape, values).ok()).flatten()
        }
        Half::BFloat16 => {
            let values: Vec<bf16> = floats.iter().map(|&value| bf16::from_f32(value)).collect();
            values.iter().all(|value| value.is_finite()).then(|| Tensor::from_vec(shape, values).ok()).flatten()
        }
    }
}

//! Runs a model with more of its values as outputs, and hands them on batch by batch.

use edgeward_engine::{RunOptions, Session};
use edgeward_graph::{
    DataType, Model, Tensor,
    proto::{TypeProto, ValueInfoProto, type_proto},
};

use crate::CompressError;

/// Named inputs of one run.
pub type Inputs = Vec<(String, Tensor)>;

/// Batches, one run each.
pub type Batches<'a> = &'a mut dyn Iterator<Item = Result<Inputs, CompressError>>;

/// Prepares a model for runs.
pub type Load<'a> = &'a dyn Fn(&Model) -> Result<Box<dyn Session>, CompressError>;

/// `model` with `values`, which must be of binary32, among its outputs.
pub fn with_outputs(model: &Model, values: &[String]) -> Model {
    let mut model = model.clone();
    let graph = model.graph_mut();
    for value in values {
        if graph.output.iter().any(|output| output.name() == value) {
            continue;
        }
        let tensor = type_proto::Tensor { elem_type: Some(DataType::Float32.to_onnx()), shape: None };
        let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() });
        graph.output.push(ValueInfoProto { name: Some(value.clone()), r#type, ..ValueInfoProto::default() });
    }
    model
}

/// As [`Session::run`] takes them.
pub fn borrowed(inputs: &Inputs) -> Vec<(&str, &Tensor)> {
    inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()
}

/// The wanted values of one run, in the order asked for.
pub fn run(session: &dyn Session, inputs: &Inputs, wanted: &[&str]) -> Result<Vec<Tensor>, CompressError> {
    Ok(session.run(&borrowed(inputs), RunOptions { outputs: Some(wanted), cancel: None })?)
}

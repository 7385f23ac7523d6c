//! The decoders of both protocols by themselves, for fuzzing. No part of the interface.

use std::sync::Arc;

use bytes::Bytes;
use edgeward_graph::Tensor;
use prost::Message as _;

use crate::{
    core::{InferResponse, ModelRef, RequestTimes, ServeError, ServeErrorKind},
    grpc, json, proto,
};

/// Tensors by name.
pub type Named = Vec<(String, Tensor)>;

fn model() -> ModelRef {
    ModelRef { name: Arc::from("m"), version: None }
}

fn answer(tensors: &Named) -> InferResponse {
    let outputs = tensors.iter().map(|(name, tensor)| (Arc::from(name.as_str()), tensor.clone()));
    InferResponse {
        model_name: Arc::from("m"),
        model_version: 1,
        id: String::new(),
        outputs: outputs.collect(),
        parameters: Vec::new(),
        times: RequestTimes::default(),
    }
}

/// The inputs of a request's body, whose JSON has `header` bytes; all where none.
pub fn rest_request(body: Bytes, header: Option<usize>) -> Result<Named, ServeError> {
    json::decode(&body, header, model()).map(|decoded| decoded.request.inputs)
}

/// These tensors as outputs: JSON where it has a form for them, else binary.
pub fn rest_answer(tensors: &Named) -> Result<(Vec<u8>, Vec<Bytes>), ServeError> {
    let binary = |i: usize| tensors.get(i).is_some_and(|(_, tensor)| json::list(tensor).is_none());
    json::encode(&answer(tensors), binary)
}

/// The inputs of a message.
pub fn grpc_request(message: &[u8]) -> Result<Named, ServeError> {
    let message = proto::ModelInferRequest::decode(message);
    let message = message.map_err(|e| ServeError::new(ServeErrorKind::InvalidArgument, e.to_string()))?;
    grpc::request(message, model()).map(|request| request.inputs)
}

/// These tensors as an answer's message.
pub fn grpc_answer(tensors: &Named, raw: bool) -> Result<Vec<u8>, ServeError> {
    grpc::response(answer(tensors), raw).map(|message| message.encode_to_vec())
}

//! Serves ONNX models over the Open Inference Protocol v2: REST and gRPC, batching, a model repository.
//!
//! Two halves that meet in [`core`]: the wire (`http`, `grpc`) turns bytes into [`core::InferRequest`]s and answers
//! back into bytes; the core (repository, scheduler, ensembles, statistics) decides when and where each one runs.

pub mod core;

/// The messages and services of the protocol, as generated.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated from the proto files")]
pub mod proto {
    tonic::include_proto!("inference");

    /// Encoded descriptors of both files, for reflection and text format.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

//! Serves ONNX models over the Open Inference Protocol v2: REST and gRPC over one core.
//!
//! Two halves that meet in [`core`]: the wire (`http`, `grpc`) turns bytes into [`core::InferRequest`]s and answers
//! back into bytes; the core (repository, versions, statistics) decides when and where each one runs.

mod ahead;
mod connection;
pub mod core;
#[doc(hidden)]
pub mod decode;
mod failing;
mod gate;
mod grpc;
mod http;
mod inflate;
mod json;
mod leaving;
mod limits;
mod listen;
mod local;
mod logging;
mod openapi;
mod page;
mod ready;
mod reflect;
mod rest;
mod run;
mod telemetry;
mod tls;
mod types;

pub use gate::{Followed, TrustConfig};
pub use limits::Limits;
pub use logging::{LogControl, LogLevels};
pub use run::{Addresses, Listening, RunConfig, RunError, run};
pub use telemetry::{
    AccessFormat, AccessLogConfig, AccessTarget, TelemetryConfig, TelemetryError, TraceConfig, TraceLevels,
};
pub use types::{config_type, from_wire_type, wire_type};

/// What the server calls itself.
pub const SERVER_NAME: &str = "edgeward";

/// Extensions of the protocol that the server speaks.
pub const EXTENSIONS: &[&str] = &[
    "classification",
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
];

/// The messages and services of the protocol, as generated.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated from the proto files"
)]
pub mod proto {
    tonic::include_proto!("inference");

    /// Encoded descriptors of both files, for reflection and text format.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

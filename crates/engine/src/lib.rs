//! Runs ONNX graphs: one trait, several engines behind it.
//!
//! `rten` is built in and always there; ONNX Runtime and OpenVINO are opened at run time when their libraries are
//! installed. Which
//! engine, how many threads and which batch size serve a model is for callers to decide.

mod cancel;
mod check;
mod error;
mod estimate;
pub mod install;
mod machine;
mod onnxruntime;
mod openvino;
mod registry;
mod rten;
mod session;
mod source;

pub use cancel::Cancel;
pub use check::shape_text;
pub use error::{EngineError, ErrorKind};
pub use onnxruntime::OnnxRuntime;
pub use openvino::OpenVino;
pub use registry::{Loaded, NAMES, Registry, RegistryConfig};
pub use rten::Rten;
pub use session::{
    Dim, Engine, EngineInfo, NodeTime, Outputs, Profile, Provider, RunOptions, Session, SessionOptions, Source,
    TensorInfo,
};

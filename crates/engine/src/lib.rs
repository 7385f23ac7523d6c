//! Runs ONNX graphs: one trait, three engines behind it.
//!
//! `rten` is built in and always there; ONNX Runtime and OpenVINO are opened at run time when their libraries are
//! installed. Which engine, how many threads and which batch size serve a model is for callers to decide.

mod error;
mod session;

pub use error::{EngineError, ErrorKind};
pub use session::{
    Dim, Engine, EngineInfo, NodeTime, Outputs, Profile, RunOptions, Session, SessionOptions, Source, TensorInfo,
};

//! ONNX models as values: read, check, infer shapes, rewrite, write.
//!
//! Every other room works on what this crate reads. It trusts no file, runs no graph and does no network I/O.

mod append;
pub mod beneath;
mod check;
mod codec;
mod composite;
mod cost;
mod dtype;
mod error;
mod eval;
mod external;
mod fold;
mod footprint;
mod infer;
mod limits;
mod model;
mod node;
mod rewrite;
mod stats;
mod tensor;
pub mod walk;
mod wire;

pub use append::ExternalWriter;
pub use check::{IR_VERSIONS, OPSETS, check};
pub use codec::tensor_proto;
pub use cost::{Cost, cost};
pub use dtype::DataType;
pub use error::{ErrorKind, GraphError};
pub use external::ExternalRef;
pub use fold::{FoldLimits, Folded, fold_constants};
pub use footprint::{Footprint, OpenSize, footprint, open_sizes, quickly_told};
pub use infer::{Given, GivenValues, Inferred, ValueType, annotate, infer, infer_run};
pub use limits::Limits;
pub use model::{Dimension, Model, Port};
pub use rewrite::{Links, uses};
pub use stats::{Stats, stats};
pub use tensor::{Element, Tensor, TensorError, element_count};

/// The messages of `onnx.proto`, as generated.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated from onnx.proto"
)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}

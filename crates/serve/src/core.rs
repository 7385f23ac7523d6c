//! What a request is once it has left the wire, and the server that answers it.
//!
//! This half knows no HTTP and no protobuf requests: it takes and returns tensors.

mod batcher;
mod cache;
mod catalogue;
mod config;
mod declared;
mod ensemble;
mod error;
mod execute;
mod health;
mod history;
mod labels;
mod load;
mod model;
mod overrides;
mod queue;
mod release;
mod repository;
mod request;
mod server;
mod snapshot;
mod stats;
mod told;
mod warmup;
mod watch;

pub(crate) use execute::classify;

pub use error::{ServeError, ServeErrorKind};
pub use model::Version;
pub use release::{ReleaseConfig, ReleaseGoal, ReleasePlace, Signers};
pub use request::{InferRequest, InferResponse, ModelRef, Parameter, Parameters, RequestTimes, RequestedOutput};
pub use server::{IndexEntry, LoadOverrides, ModelControl, Server, ServerConfig, Tuned, Tuning};

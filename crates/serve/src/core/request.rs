//! Requests and responses, as tensors.

use std::{collections::HashSet, sync::Arc, time::Duration};

use edgeward_graph::Tensor;

use crate::core::{ServeError, ServeErrorKind};

/// A model and, where the caller insists, one of its versions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelRef {
    /// Name in the repository.
    pub name: Arc<str>,
    /// Version; by the model's version policy the newest ready one where none.
    pub version: Option<u64>,
}

/// A request or response parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Parameter {
    /// JSON boolean.
    Bool(bool),
    /// JSON integer.
    Int(i64),
    /// JSON number that is no integer.
    Double(f64),
    /// JSON string.
    String(String),
}

/// Parameters in the order given.
pub type Parameters = Vec<(String, Parameter)>;

/// One output that the caller asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedOutput {
    /// Name in the model.
    pub name: String,
    /// When above 0, the answer is that many `value:index[:label]` strings per row instead of the tensor.
    pub classification: usize,
}

/// An inference request.
#[derive(Clone, Debug)]
pub struct InferRequest {
    /// Which model.
    pub model: ModelRef,
    /// Caller's identifier, returned as it came.
    pub id: String,
    /// Input tensors by name.
    pub inputs: Vec<(String, Tensor)>,
    /// Outputs wanted; all where empty.
    pub outputs: Vec<RequestedOutput>,
    /// 0 = the model's default level, 1 = highest.
    pub priority: u32,
    /// Longest stay in the queue; the model's default where none.
    pub timeout: Option<Duration>,
    /// All other request parameters, unknown ones included (custom parameters may not start with `triton_`).
    pub parameters: Parameters,
    /// Whether the calling task has other work meanwhile, so that a run must not hold its thread.
    pub beside: bool,
}

/// Parameters with this prefix are the protocol's own, not the caller's.
const RESERVED: &str = "triton_";
/// Those of them that a request may carry.
const RESERVED_KNOWN: &[&str] = &["triton_enable_empty_final_response"];
/// What tells of the sequence that a request belongs to.
const SEQUENCE: [&str; 3] = ["sequence_id", "sequence_start", "sequence_end"];

impl InferRequest {
    /// An error where a parameter has a name that callers may not give, or an output is asked for twice: an answer
    /// could grow to any size by a short request.
    pub(crate) fn check(&self) -> Result<(), ServeError> {
        let mut seen = HashSet::new();
        if let Some(twice) = self.outputs.iter().find(|output| !seen.insert(output.name.as_str())) {
            let text = format!("output `{}` is asked for twice", twice.name);
            return Err(ServeError::new(ServeErrorKind::InvalidArgument, text));
        }
        let reserved = |name: &str| name.starts_with(RESERVED) && !RESERVED_KNOWN.contains(&name);
        match self.parameters.iter().find(|(name, _)| reserved(name)) {
            None => Ok(()),
            Some((name, _)) => {
                let text =
                    format!("parameter `{name}`: names that begin with `{RESERVED}` are reserved; choose another");
                Err(ServeError::new(ServeErrorKind::InvalidArgument, text))
            }
        }
    }

    /// What the answer repeats of the request's parameters: the sequence that it belongs to.
    pub(crate) fn repeated(&self) -> Parameters {
        let of = |name: &str| self.parameters.iter().find(|(own, _)| own == name).cloned();
        SEQUENCE.into_iter().filter_map(of).collect()
    }
}

/// Where the time of an answered request went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestTimes {
    /// Wait for an instance.
    pub queue: Duration,
    /// Joining the requests of a batch.
    pub input: Duration,
    /// The engine's run.
    pub infer: Duration,
    /// Taking the batch apart.
    pub output: Duration,
}

/// The answer to a request.
#[derive(Clone, Debug)]
pub struct InferResponse {
    /// Model name.
    pub model_name: Arc<str>,
    /// Version that answered.
    pub model_version: u64,
    /// The request's identifier.
    pub id: String,
    /// Output tensors by name; classification outputs are string tensors.
    pub outputs: Vec<(Arc<str>, Tensor)>,
    /// Response parameters.
    pub parameters: Parameters,
    /// All zero where the answer came from the cache.
    pub times: RequestTimes,
}

//! What is wrong with a model file, and where.

use std::{io, path::PathBuf};

use crate::TensorError;

/// The stable class of a [`GraphError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file cannot be read or written.
    Io,
    /// The bytes are not an ONNX model.
    Malformed,
    /// The model breaks a rule of the ONNX specification.
    Invalid,
    /// External data points where it may not.
    External,
    /// The model is larger than the limits allow.
    Limit,
    /// The model needs what this crate does not support.
    Unsupported,
}

/// A defect of a model; the text names the file, node or tensor concerned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// The file cannot be read or written.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried: `open`, `read`, `write`.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The bytes are not an ONNX model.
    #[error("not an ONNX model: {0}")]
    Malformed(String),
    /// A rule of the specification is broken at `place`.
    #[error("{place}: {reason}")]
    Invalid {
        /// The node or tensor, e.g. "node `conv1` (Conv)".
        place: String,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// External data of a tensor is refused.
    #[error("external data `{location}` of tensor `{tensor}`: {reason}")]
    External {
        /// The tensor.
        tensor: String,
        /// The location as the file gives it.
        location: String,
        /// Why it is refused.
        reason: String,
    },
    /// A limit is exceeded.
    #[error("{what} is {actual}, the limit is {limit}")]
    Limit {
        /// What is limited.
        what: String,
        /// The model's value.
        actual: u64,
        /// The allowed value.
        limit: u64,
    },
    /// Something that this crate does not support.
    #[error("{place}: {reason}")]
    Unsupported {
        /// The node or tensor.
        place: String,
        /// What is not supported.
        reason: String,
    },
}

impl GraphError {
    /// The stable class.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } => ErrorKind::Io,
            Self::Malformed(_) => ErrorKind::Malformed,
            Self::Invalid { .. } => ErrorKind::Invalid,
            Self::External { .. } => ErrorKind::External,
            Self::Limit { .. } => ErrorKind::Limit,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
        }
    }

    pub(crate) fn invalid(place: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { place: place.into(), reason: reason.into() }
    }

    pub(crate) fn tensor(name: &str, error: TensorError) -> Self {
        Self::invalid(format!("tensor `{name}`"), error.to_string())
    }
}

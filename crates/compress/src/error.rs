//! Why a model cannot be compressed as asked.

use edgeward_engine::EngineError;
use edgeward_graph::{GraphError, TensorError};

/// The stable class of a [`CompressError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The model's file or graph is defective.
    Graph,
    /// The model has what no rewrite here can take.
    Unsupported,
    /// The data is defective or does not fit.
    Data,
    /// The engine refuses or fails.
    Engine,
}

/// A defect of the model, of the data, or of an engine; the text names the node or tensor concerned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompressError {
    /// The model's graph is defective.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A tensor is not what its declaration says.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A rewrite cannot take `place`.
    #[error("{place}: {reason}")]
    Unsupported {
        /// The node, tensor or operator set.
        place: String,
        /// What is not supported, and what would be.
        reason: String,
    },
    /// The data is defective or does not fit.
    #[error("{0}")]
    Data(String),
    /// The engine refuses or fails.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl CompressError {
    /// The stable class.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Graph(_) | Self::Tensor(_) => ErrorKind::Graph,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Data(_) => ErrorKind::Data,
            Self::Engine(_) => ErrorKind::Engine,
        }
    }

    pub(crate) fn unsupported(place: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsupported { place: place.into(), reason: reason.into() }
    }
}

//! Why a model cannot be trained as asked.

use edgeward_engine::EngineError;
use edgeward_graph::GraphError;

use crate::{data::DataError, metrics::MetricError};

/// The stable class of a [`TrainError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The model's file or graph is defective.
    Graph,
    /// A gradient must pass an operator that has no rule, or one whose rule lacks what this node asks for.
    Unsupported,
    /// What was asked for does not fit the model.
    Invalid,
    /// The data is defective or does not fit.
    Data,
    /// The engine refuses or fails.
    Engine,
    /// The run cannot go on: its loss, its outputs or its files.
    Run,
}

/// A defect of the model or of what was asked; the text names the node, tensor or setting concerned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The model's graph is defective.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// No gradient passes `place`.
    #[error("{place}: {reason}")]
    Unsupported {
        /// The node or tensor, e.g. "node `pool` (LpPool)".
        place: String,
        /// What is not supported, and what would be.
        reason: String,
    },
    /// A setting does not fit the model.
    #[error("{0}")]
    Invalid(String),
    /// The data is defective or does not fit.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The engine refuses or fails.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Outputs are no scores or quantities.
    #[error(transparent)]
    Metric(#[from] MetricError),
    /// The run cannot go on.
    #[error("{0}")]
    Run(String),
}

impl TrainError {
    /// The stable class.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Graph(_) => ErrorKind::Graph,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Invalid(_) => ErrorKind::Invalid,
            Self::Data(_) => ErrorKind::Data,
            Self::Engine(_) => ErrorKind::Engine,
            Self::Metric(_) | Self::Run(_) => ErrorKind::Run,
        }
    }

    pub(crate) fn run(reason: impl Into<String>) -> Self {
        Self::Run(reason.into())
    }

    pub(crate) fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid(reason.into())
    }
}

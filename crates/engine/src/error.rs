//! What can go wrong between a graph and its outputs.

/// The stable class of an [`EngineError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The engine's library is missing or is not the one expected.
    Unavailable,
    /// The engine lacks an operator, a type or an option that the model needs.
    Unsupported,
    /// The file is not a model that can be loaded.
    InvalidModel,
    /// The inputs do not fit the model.
    InvalidInput,
    /// The request was cancelled before or while it ran.
    Cancelled,
    /// The engine failed while running.
    Failed,
}

/// An engine's refusal or failure; the text names the node, tensor or library concerned.
#[derive(Debug, thiserror::Error)]
#[error("{engine}: {message}")]
pub struct EngineError {
    engine: &'static str,
    kind: ErrorKind,
    message: String,
}

impl EngineError {
    /// An error of `engine`.
    pub fn new(engine: &'static str, kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { engine, kind, message: message.into() }
    }

    /// The engine concerned.
    pub fn engine(&self) -> &'static str {
        self.engine
    }

    /// The stable class.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The text without the engine's name.
    pub fn message(&self) -> &str {
        &self.message
    }
}

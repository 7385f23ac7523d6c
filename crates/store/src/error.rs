//! What can go wrong between a model file and a release that is loaded.

use std::{io, path::Path};

use edgeward_graph::GraphError;
use edgeward_trust::TrustError;

/// The stable class of a [`StoreError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file, name or argument is malformed.
    Invalid,
    /// There is no such release or file.
    NotFound,
    /// Something else is there already.
    Exists,
    /// No signature that is trusted here covers the release.
    Unverified,
    /// The content is not what was listed, signed or sealed.
    Tampered,
    /// The release is older than one that was seen already.
    Downgrade,
    /// A disk, an object store or a key service did not do its part.
    Unavailable,
}

/// A refusal or failure; the text names the file or release concerned.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct StoreError {
    kind: ErrorKind,
    message: String,
}

impl StoreError {
    /// An error of a class.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The stable class.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The same error, said of `place`.
    pub(crate) fn at(self, place: impl std::fmt::Display) -> Self {
        Self { kind: self.kind, message: format!("{place}: {}", self.message) }
    }
}

impl From<TrustError> for StoreError {
    fn from(error: TrustError) -> Self {
        use edgeward_trust::ErrorKind as Trust;
        let kind = match error.kind() {
            Trust::Invalid => ErrorKind::Invalid,
            Trust::NotFound => ErrorKind::NotFound,
            Trust::Tampered => ErrorKind::Tampered,
            Trust::Unverified | Trust::Expired | Trust::Denied => ErrorKind::Unverified,
            _ => ErrorKind::Unavailable,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<GraphError> for StoreError {
    fn from(error: GraphError) -> Self {
        Self::new(ErrorKind::Invalid, error.to_string())
    }
}

pub(crate) fn invalid(text: impl Into<String>) -> StoreError {
    StoreError::new(ErrorKind::Invalid, text)
}

pub(crate) fn tampered(text: impl Into<String>) -> StoreError {
    StoreError::new(ErrorKind::Tampered, text)
}

pub(crate) fn unverified(text: impl Into<String>) -> StoreError {
    StoreError::new(ErrorKind::Unverified, text)
}

/// The system's complaint about a file.
pub(crate) fn io_error(path: &Path, error: &io::Error) -> StoreError {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::AlreadyExists => ErrorKind::Exists,
        io::ErrorKind::Other => ErrorKind::Invalid,
        _ => ErrorKind::Unavailable,
    };
    StoreError::new(kind, format!("`{}`: {error}", path.display()))
}

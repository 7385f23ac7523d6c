//! What can go wrong between a credential and a decision.

/// The stable class of a [`TrustError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file, a setting or an argument is malformed.
    Invalid,
    /// A credential does not prove what it claims: forged, for somebody else, or not bound to this client.
    Unverified,
    /// A credential, key or certificate is outside its time of validity.
    Expired,
    /// The policy, a quota or a revocation says no.
    Denied,
    /// What was asked for does not exist.
    NotFound,
    /// An outside part (an issuer, a key service, a disk) did not answer.
    Unavailable,
    /// A record, signature or sealed content was changed after it was made.
    Tampered,
}

/// A refusal or failure; the text is for the operator's log, never for a remote caller.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct TrustError {
    kind: ErrorKind,
    message: String,
}

impl TrustError {
    /// An error of a class.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The stable class.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

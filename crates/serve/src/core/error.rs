//! Why a request was not answered with tensors.

use std::time::Duration;

/// Bytes of a text that a caller gets.
const SHOWN_BYTES_MAX: usize = 2048;

/// The stable class of a [`ServeError`]; the wire maps it to an HTTP status and a gRPC code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServeErrorKind {
    /// 400, INVALID_ARGUMENT.
    InvalidArgument,
    /// 404, NOT_FOUND: no such model or version.
    NotFound,
    /// 503, UNAVAILABLE: the model is loading, unloading or failed; the server drains.
    Unavailable,
    /// 429, RESOURCE_EXHAUSTED: the queue is full.
    Overloaded,
    /// 504, DEADLINE_EXCEEDED: the request's time ran out in the queue.
    DeadlineExceeded,
    /// 499, CANCELLED: the caller went away.
    Cancelled,
    /// 501, UNIMPLEMENTED.
    Unsupported,
    /// 500, INTERNAL.
    Internal,
}

/// An error as the caller may see it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ServeError {
    /// Class.
    pub kind: ServeErrorKind,
    /// Text: names the model and the input concerned.
    pub message: String,
    /// When to try again, for overload.
    pub retry_after: Option<Duration>,
}

impl ServeError {
    /// An error of `kind`.
    pub fn new(kind: ServeErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after: None }
    }

    /// The text as a caller gets it: what the caller sent and it repeats may be of any length, and the peers of gRPC take a
    /// text in the head of an answer.
    pub(crate) fn shown(mut self) -> String {
        if self.message.len() > SHOWN_BYTES_MAX {
            self.message.truncate(self.message.floor_char_boundary(SHOWN_BYTES_MAX));
            self.message.push('…');
        }
        self.message
    }

    /// The queue of a model holds as many requests as it may.
    pub(super) fn queue_full(model: &str, max: usize, wait: Duration) -> Self {
        Self::overloaded(format!("the queue of model `{model}` is full ({max} requests wait)"), wait)
    }

    /// An error where a request that would wait for `wait` allows no such time.
    pub(super) fn if_too_long(model: &str, wait: Duration, limit: Option<Duration>) -> Result<(), Self> {
        match limit.filter(|&limit| wait > limit) {
            None => Ok(()),
            Some(limit) => {
                let text = format!("model `{model}` is busy for another {wait:?}, the request allows {limit:?}");
                Err(Self::overloaded(text, wait - limit))
            }
        }
    }

    fn overloaded(message: String, retry_after: Duration) -> Self {
        Self { kind: ServeErrorKind::Overloaded, message, retry_after: Some(retry_after) }
    }
}

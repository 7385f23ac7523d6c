//! In place of operators of our own, where the processor is of a family that has none.

use ort_sys::OrtSessionOptions;

use super::Runtime;
use crate::EngineError;

/// The domain `edgeward`, without operators.
pub(super) struct Domain;

/// A session is told of no domain.
pub(super) struct Adding;

impl Domain {
    pub(super) fn none() -> Self {
        Self
    }

    pub(super) fn register(_: &Runtime) -> Result<Self, EngineError> {
        Ok(Self)
    }

    pub(super) fn add(&self, _: &Runtime, _: *mut OrtSessionOptions) -> Result<Adding, EngineError> {
        Ok(Adding)
    }
}

/// True where the operators of the domain `edgeward` can be used.
pub(super) fn available() -> bool {
    false
}

/// The domain's name, as models have it.
pub(super) fn domain() -> &'static str {
    "edgeward"
}

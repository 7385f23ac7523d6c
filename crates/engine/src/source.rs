//! Reads what an engine is about to load, so that no library sees a file which was not checked.

use edgeward_graph::{ErrorKind as GraphKind, GraphError, Limits, Model};

use crate::{EngineError, ErrorKind, Source};

/// Reads the graph of `source`; external data stays unopened.
pub(crate) fn read(engine: &'static str, source: &Source, limits: &Limits) -> Result<Model, EngineError> {
    let model = match source {
        Source::File(path) => Model::read(path, limits),
        Source::Bytes(bytes) => Model::from_bytes(bytes.clone(), limits),
    };
    model.map_err(|e| refuse(engine, &e))
}

/// As [`read`], and opens and checks all external data.
pub(crate) fn checked(engine: &'static str, source: &Source, limits: &Limits) -> Result<Model, EngineError> {
    let model = read(engine, source, limits)?;
    model.check_external().map_err(|e| refuse(engine, &e))?;
    Ok(model)
}

fn refuse(engine: &'static str, error: &GraphError) -> EngineError {
    let kind = match error.kind() {
        GraphKind::Unsupported | GraphKind::Limit => ErrorKind::Unsupported,
        _ => ErrorKind::InvalidModel,
    };
    EngineError::new(engine, kind, error.to_string())
}

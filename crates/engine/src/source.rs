//! Reads what an engine is about to load, so that no library sees a file which was not checked.

use edgeward_graph::{ErrorKind as GraphKind, GraphError, Limits, Model};

use crate::{EngineError, ErrorKind, Source};

/// Defects that an error lists; a broken file breaks in many places.
const LISTED_MAX: usize = 3;

/// Reads the graph of `source`, which must keep the rules of the specification: what an engine makes of one that does not is its own
/// guess. External data stays unopened.
pub(crate) fn read(engine: &'static str, source: &Source, limits: &Limits) -> Result<Model, EngineError> {
    let model = match source {
        Source::File(path) => Model::read(path, limits),
        Source::Bytes(bytes) => Model::from_bytes(bytes.clone(), limits),
    };
    let model = model.map_err(|e| refuse(engine, &e))?;
    // Of a version that the rules are not written for, an engine may know more.
    let broken = edgeward_graph::check(&model).err().unwrap_or_default();
    let broken: Vec<String> =
        broken.iter().filter(|e| e.kind() != GraphKind::Unsupported).map(GraphError::to_string).collect();
    if broken.is_empty() {
        return Ok(model);
    }
    let more = broken.len().saturating_sub(LISTED_MAX);
    let more = if more > 0 { format!("; and {more} more, which `edgeward inspect` shows") } else { String::new() };
    let listed = broken.get(..LISTED_MAX.min(broken.len())).unwrap_or_default().join("; ");
    let text = format!("the model breaks the rules of ONNX: {listed}{more}");
    Err(EngineError::new(engine, ErrorKind::InvalidModel, text))
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

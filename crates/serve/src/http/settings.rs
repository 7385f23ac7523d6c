//! Trace and log settings over REST.

use axum::{
    Json,
    extract::{Path, State},
};
use bytes::Bytes;
use serde_json::{Map, Value};

use super::{Answer, Refusal, Target, object};
use crate::{
    core::{ServeError, ServeErrorKind},
    telemetry::{App, Update},
};

pub(super) async fn trace(State(app): State<App>) -> Json<Value> {
    Json(shown(&app, None))
}

pub(super) async fn trace_of(State(app): State<App>, Path(target): Path<Target>) -> Answer<Json<Value>> {
    let model = target.model()?;
    app.server.version(&model)?;
    Ok(Json(shown(&app, Some(&model.name))))
}

pub(super) async fn set_trace(State(app): State<App>, body: Bytes) -> Answer<Json<Value>> {
    app.telemetry.traces.update(None, &updates(&body)?)?;
    Ok(Json(shown(&app, None)))
}

pub(super) async fn set_trace_of(
    State(app): State<App>,
    Path(target): Path<Target>,
    body: Bytes,
) -> Answer<Json<Value>> {
    let model = target.model()?;
    app.server.version(&model)?;
    app.telemetry.traces.update(Some(&model.name), &updates(&body)?)?;
    Ok(Json(shown(&app, Some(&model.name))))
}

pub(super) async fn log(State(app): State<App>) -> Json<Value> {
    Json(app.telemetry.log.get().into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

pub(super) async fn set_log(State(app): State<App>, body: Bytes) -> Answer<Json<Value>> {
    app.telemetry.log.update(&object(&body)?)?;
    Ok(log(State(app)).await)
}

/// All settings as strings, the levels as a list.
fn shown(app: &App, model: Option<&str>) -> Value {
    let one = |(name, mut values): (&str, Vec<String>)| {
        let value = match name {
            "trace_level" => values.into(),
            _ => values.pop().unwrap_or_default().into(),
        };
        (name.to_owned(), value)
    };
    Value::Object(app.telemetry.traces.get(model).into_iter().map(one).collect())
}

fn updates(body: &Bytes) -> Answer<Vec<Update>> {
    let object: Map<String, Value> = object(body)?;
    let one = |(name, value): (String, Value)| {
        let values = texts(&value).ok_or_else(|| {
            let text = format!("trace setting `{name}` is `{value}`, expected a string, a list of strings or null");
            Refusal(ServeError::new(ServeErrorKind::InvalidArgument, text))
        })?;
        Ok(Update { name, values })
    };
    object.into_iter().map(one).collect()
}

/// What a setting's value says; nothing for null, which clears it.
fn texts(value: &Value) -> Option<Option<Vec<String>>> {
    let one = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    match value {
        Value::Null => Some(None),
        Value::Array(items) => Some(Some(items.iter().map(one).collect::<Option<_>>()?)),
        other => Some(Some(vec![one(other)?])),
    }
}

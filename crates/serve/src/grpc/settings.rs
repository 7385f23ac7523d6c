//! Trace and log settings over gRPC.

use serde_json::{Map, Value};
use tonic::Status;

use super::{model, status};
use crate::{
    proto::{
        LogSettingsRequest, LogSettingsResponse, TraceSettingRequest, TraceSettingResponse, log_settings_request,
        log_settings_response, trace_setting_response,
    },
    telemetry::{App, Update},
};

pub(super) fn trace(app: &App, request: TraceSettingRequest) -> Result<TraceSettingResponse, Status> {
    let name = (!request.model_name.is_empty()).then_some(request.model_name.as_str());
    if let Some(name) = name {
        app.server.version(&model(name, "")?).map_err(status)?;
    }
    let update = |(name, value): (String, crate::proto::trace_setting_request::SettingValue)| {
        // A setting without a value is cleared.
        Update { name, values: (!value.value.is_empty()).then_some(value.value) }
    };
    let updates: Vec<Update> = request.settings.into_iter().map(update).collect();
    // Over gRPC the same call reads and writes.
    if !updates.is_empty() {
        app.telemetry.traces.update(name, &updates).map_err(status)?;
    }
    let shown = |(name, value): (&str, Vec<String>)| (name.to_owned(), trace_setting_response::SettingValue { value });
    Ok(TraceSettingResponse { settings: app.telemetry.traces.get(name).into_iter().map(shown).collect() })
}

pub(super) fn log(app: &App, request: LogSettingsRequest) -> Result<LogSettingsResponse, Status> {
    use log_settings_request::setting_value::ParameterChoice as Asked;
    use log_settings_response::{SettingValue, setting_value::ParameterChoice as Shown};
    let mut updates = Map::new();
    for (name, value) in request.settings {
        let value = match value.parameter_choice {
            Some(Asked::BoolParam(value)) => Value::from(value),
            Some(Asked::Uint32Param(value)) => Value::from(value),
            Some(Asked::StringParam(value)) => Value::from(value),
            None => Value::Null,
        };
        updates.insert(name, value);
    }
    app.telemetry.log.update(&updates).map_err(status)?;
    let shown = |(name, value): (&str, Value)| {
        let choice = match value {
            Value::Bool(value) => Shown::BoolParam(value),
            Value::String(value) => Shown::StringParam(value),
            other => Shown::Uint32Param(other.as_u64().and_then(|v| u32::try_from(v).ok()).unwrap_or_default()),
        };
        (name.to_owned(), SettingValue { parameter_choice: Some(choice) })
    };
    Ok(LogSettingsResponse { settings: app.telemetry.log.get().into_iter().map(shown).collect() })
}

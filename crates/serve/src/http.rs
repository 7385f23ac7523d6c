//! The REST half of the Open Inference Protocol. One table makes both the router and the OpenAPI document.

mod body;
mod infer;
mod settings;
pub(crate) mod shared_memory;

pub(crate) use infer::infer_at;

use std::net::SocketAddr;

use axum::{
    Json, Router,
    extract::{ConnectInfo, DefaultBodyLimit, Path, Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{Next, from_fn_with_state, map_response},
    response::{Html, IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use hyper::body::Body as _;
use serde_json::{Value, json};

use crate::{
    core::{LoadOverrides, ModelRef, ServeError, ServeErrorKind, Server},
    openapi::{self, Operation},
    page,
    proto::{self},
    telemetry::App,
};

/// What a body may be.
pub(crate) const BODY_BYTES_MAX: usize = 1 << 30;

/// An error as a caller sees it.
pub(crate) struct Refusal(ServeError);

impl From<ServeError> for Refusal {
    fn from(error: ServeError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self.0.kind {
            ServeErrorKind::InvalidArgument => StatusCode::BAD_REQUEST,
            ServeErrorKind::NotFound => StatusCode::NOT_FOUND,
            ServeErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ServeErrorKind::Overloaded => StatusCode::TOO_MANY_REQUESTS,
            ServeErrorKind::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            ServeErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
            ServeErrorKind::Cancelled | ServeErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let waits = matches!(self.0.kind, ServeErrorKind::Overloaded | ServeErrorKind::Unavailable);
        let seconds = self.0.retry_after.map_or(1, |d| d.as_secs().max(1));
        let mut response = (status, Json(json!({ "error": self.0.shown() }))).into_response();
        if waits {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

type Answer<T> = Result<T, Refusal>;

/// A refusal before the router.
pub(crate) fn refusal(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "error": text }))).into_response()
}

/// A path, what the document says of it, and who answers.
struct Route {
    operation: Operation,
    answer: MethodRouter<App>,
}

fn read(path: &'static str, summary: &'static str, schema: &'static str, answer: MethodRouter<App>) -> Route {
    Route { operation: Operation { method: "get", path, summary, takes: None, gives: schema }, answer }
}

fn act(
    path: &'static str,
    summary: &'static str,
    (takes, gives): (&'static str, &'static str),
    answer: MethodRouter<App>,
) -> Route {
    Route { operation: Operation { method: "post", path, summary, takes: Some(takes), gives }, answer }
}

/// Every route, in the order of the document.
fn routes() -> Vec<Route> {
    let mut routes = vec![
        read("/", "A short page for people", "Page", get(home)),
        read("/v2", "Name, version and extensions of the server", "ServerMetadata", get(server_metadata)),
        read("/v2/openapi.json", "This document", "Document", get(document)),
        read("/v2/health/live", "Whether the server runs", "Live", get(|| async { Json(json!({ "live": true })) })),
        read("/v2/health/ready", "Whether every model that should serve can answer", "Ready", get(ready)),
        read("/v2/models/stats", "Statistics of all models", "Statistics", get(all_statistics)),
        read("/v2/trace/setting", "What is traced of all models", "TraceSettings", get(settings::trace)),
        act("/v2/trace/setting", "Change it", ("TraceUpdate", "TraceSettings"), post(settings::set_trace)),
        read("/v2/models/{model}/trace/setting", "What is traced of a model", "TraceSettings", get(settings::trace_of)),
        act(
            "/v2/models/{model}/trace/setting",
            "Change it; null follows the settings of all models",
            ("TraceUpdate", "TraceSettings"),
            post(settings::set_trace_of),
        ),
        read("/v2/logging", "What the server logs", "LogSettings", get(settings::log)),
        act("/v2/logging", "Change it", ("LogUpdate", "LogSettings"), post(settings::set_log)),
        act(
            "/v2/repository/index",
            "Every model of the repositories with its versions",
            ("IndexRequest", "Index"),
            post(index),
        ),
        act("/v2/repository/models/{model}/load", "Load or reload a model", ("Load", "Empty"), post(load)),
        act("/v2/repository/models/{model}/unload", "Unload a model", ("Unload", "Empty"), post(unload)),
    ];
    let (newest, numbered) = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}");
    for (metadata_path, ready_path, infer_path, config_path, stats_path) in [
        (
            newest,
            "/v2/models/{model}/ready",
            "/v2/models/{model}/infer",
            "/v2/models/{model}/config",
            "/v2/models/{model}/stats",
        ),
        (
            numbered,
            "/v2/models/{model}/versions/{version}/ready",
            "/v2/models/{model}/versions/{version}/infer",
            "/v2/models/{model}/versions/{version}/config",
            "/v2/models/{model}/versions/{version}/stats",
        ),
    ] {
        routes.extend([
            read(metadata_path, "Inputs, outputs and versions", "ModelMetadata", get(metadata)),
            read(ready_path, "Whether the model can answer", "ModelReady", get(model_ready)),
            act(infer_path, "Run the model", ("InferRequest", "InferResponse"), post(infer::infer)),
            read(config_path, "The completed configuration", "ModelConfig", get(config)),
            read(stats_path, "Statistics", "Statistics", get(statistics)),
        ]);
    }
    routes.extend(shared_memory::routes());
    routes
}

/// Every route of the protocol.
pub(crate) fn router(app: App) -> Router {
    let mut router = Router::new();
    for Route { operation, answer } in routes() {
        router = router.route(operation.path, answer);
    }
    let router = router
        .fallback(|| async {
            Refusal(ServeError::new(ServeErrorKind::NotFound, "no such path; see `GET /v2/openapi.json`"))
        })
        .method_not_allowed_fallback(|| async {
            let text = "this path does not take this method; see `GET /v2/openapi.json`";
            (StatusCode::METHOD_NOT_ALLOWED, Json(json!({ "error": text })))
        })
        .layer(map_response(as_json))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX));
    let router = match app.gate.clone() {
        Some(gate) => router.merge(crate::gate::routes(gate)),
        None => router,
    };
    let logged = app.telemetry.access.is_some();
    let router = if logged { router.layer(from_fn_with_state((app.clone(), Protocol::Rest), access)) } else { router };
    router.with_state(app)
}

/// What the router itself refuses, such as a path that is no UTF-8, has the form of all other refusals.
async fn as_json(response: Response) -> Response {
    let plain = |kind: &HeaderValue| kind.as_bytes().starts_with(b"text/plain");
    if response.status().is_success() || !response.headers().get(header::CONTENT_TYPE).is_some_and(plain) {
        return response;
    }
    let status = response.status();
    let text = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap_or_default();
    (status, Json(json!({ "error": String::from_utf8_lossy(&text) }))).into_response()
}

/// The OpenAPI document of the table above.
pub(crate) fn operations_document() -> Value {
    openapi::document(routes().iter().map(|route| &route.operation))
}

async fn document() -> Json<Value> {
    Json(operations_document())
}

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Rest,
    Grpc,
}

/// Writes the access line of a call, over HTTP and gRPC alike.
pub(crate) async fn access(
    State((app, protocol)): State<(App, Protocol)>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(log) = &app.telemetry.access else { return next.run(request).await };
    let path = request.uri().path();
    let grpc = protocol == Protocol::Grpc;
    if grpc && path.ends_with("/ModelStreamInfer") {
        // Each request of a stream has a line of its own.
        return next.run(request).await;
    }
    let extensions = request.extensions();
    let peer = extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
    let line = log.begin(peer, (request.method().as_str(), path), grpc);
    let bytes_in = request.body().size_hint().exact();
    request.extensions_mut().insert(line.slot());
    let response = next.run(request).await;
    let status = if grpc {
        // Without the header the call went well: the status comes after the body.
        let status = response.headers().get("grpc-status").and_then(|v| v.to_str().ok()?.parse().ok());
        status.unwrap_or(0)
    } else {
        response.status().as_u16()
    };
    line.answered(status, bytes_in, response.body().size_hint().exact());
    response
}

/// A model and perhaps a version, from the path.
#[derive(serde::Deserialize)]
struct Target {
    model: String,
    version: Option<String>,
}

impl Target {
    fn model(self) -> Answer<ModelRef> {
        Ok(ModelRef {
            name: self.model.into(),
            version: self.version.as_deref().map(version_of).transpose()?.flatten(),
        })
    }
}

/// A version's number; none for the empty string.
pub(crate) fn version_of(text: &str) -> Result<Option<u64>, ServeError> {
    if text.is_empty() {
        return Ok(None);
    }
    let number = text.parse().map(Some);
    number.map_err(|_| ServeError::new(ServeErrorKind::NotFound, format!("no version `{text}`, expected a number")))
}

async fn home(State(server): State<Server>) -> Html<String> {
    Html(page::home(&server))
}

async fn server_metadata() -> Json<Value> {
    Json(json!({ "name": crate::SERVER_NAME, "version": env!("CARGO_PKG_VERSION"), "extensions": crate::EXTENSIONS }))
}

async fn ready(State(server): State<Server>) -> Response {
    readiness(server.ready())
}

fn readiness(ready: bool) -> Response {
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": ready }))).into_response()
}

async fn model_ready(State(server): State<Server>, Path(target): Path<Target>) -> Answer<Response> {
    let name = target.model.clone();
    let ready = server.model_ready(&target.model()?)?;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(json!({ "name": name, "ready": ready }))).into_response())
}

async fn metadata(State(server): State<Server>, Path(target): Path<Target>) -> Answer<Json<Value>> {
    let found = server.model_metadata(&target.model()?)?;
    let tensors = |list: &[proto::model_metadata_response::TensorMetadata]| -> Vec<Value> {
        list.iter().map(|t| json!({ "name": t.name, "datatype": t.datatype, "shape": t.shape })).collect()
    };
    Ok(Json(json!({
        "name": found.name,
        "versions": found.versions,
        "platform": found.platform,
        "inputs": tensors(&found.inputs),
        "outputs": tensors(&found.outputs),
    })))
}

async fn config(State(server): State<Server>, Path(target): Path<Target>) -> Answer<Json<Value>> {
    let config = server.model_config(&target.model()?)?;
    Ok(Json(crate::reflect::to_json("inference.ModelConfig", &config)?))
}

async fn all_statistics(State(server): State<Server>) -> Answer<Json<Value>> {
    statistics_json(server.statistics("", None)?)
}

async fn statistics(State(server): State<Server>, Path(target): Path<Target>) -> Answer<Json<Value>> {
    let model = target.model()?;
    statistics_json(server.statistics(&model.name, model.version)?)
}

fn statistics_json(model_stats: Vec<proto::ModelStatistics>) -> Answer<Json<Value>> {
    let response = proto::ModelStatisticsResponse { model_stats };
    Ok(Json(crate::reflect::to_json("inference.ModelStatisticsResponse", &response)?))
}

async fn index(State(server): State<Server>, body: Bytes) -> Answer<Json<Value>> {
    let ready_only = object(&body)?.get("ready").and_then(Value::as_bool).unwrap_or(false);
    let entries = server.index(ready_only).into_iter();
    let entries =
        entries.map(|e| json!({ "name": e.name, "version": e.version, "state": e.state, "reason": e.reason }));
    Ok(Json(entries.collect()))
}

/// A body that may be empty, else a JSON object.
fn object(body: &Bytes) -> Answer<serde_json::Map<String, Value>> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(serde_json::Map::new());
    }
    serde_json::from_slice(body).map_err(|e| {
        Refusal(ServeError::new(ServeErrorKind::InvalidArgument, format!("the body is not a JSON object: {e}")))
    })
}

async fn load(State(app): State<App>, Path(target): Path<Target>, body: Bytes) -> Answer<Json<Value>> {
    let body = object(&body)?;
    let mut overrides = LoadOverrides::default();
    for (key, value) in body.get("parameters").and_then(Value::as_object).into_iter().flatten() {
        let refuse =
            || ServeError::new(ServeErrorKind::InvalidArgument, format!("parameter `{key}` is not known for a load"));
        match (key.as_str(), value) {
            ("config", Value::String(text)) => overrides.config_json = Some(text.clone()),
            ("config", object @ Value::Object(_)) => overrides.config_json = Some(object.to_string()),
            (file, Value::String(text)) if file.starts_with("file:") => {
                let content = BASE64_STANDARD.decode(text).map_err(|e| {
                    ServeError::new(ServeErrorKind::InvalidArgument, format!("parameter `{file}` is not base64: {e}"))
                })?;
                overrides.files.push((file.to_owned(), content.into()));
            }
            _ => return Err(refuse().into()),
        }
    }
    overrides.within(app.limits.load_bytes_max)?;
    app.server.load(&target.model, overrides).await?;
    Ok(Json(json!({})))
}

async fn unload(State(server): State<Server>, Path(target): Path<Target>, body: Bytes) -> Answer<Json<Value>> {
    let body = object(&body)?;
    let dependents = body.get("parameters").and_then(|p| p.get("unload_dependents")).and_then(Value::as_bool);
    server.unload(&target.model, dependents.unwrap_or(false)).await?;
    Ok(Json(json!({})))
}

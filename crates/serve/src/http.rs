//! The REST half of the Open Inference Protocol.

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};

use crate::{
    core::{LoadOverrides, ModelRef, ServeError, ServeErrorKind, Server},
    json as codec, page,
    proto::{self},
};

const JSON_LENGTH: &str = "inference-header-content-length";
/// What a compressed body may grow to.
const INFLATED_BYTES_MAX: u64 = 1 << 30;
/// What a body may be.
const BODY_BYTES_MAX: usize = 1 << 30;

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
        let mut response = (status, Json(json!({ "error": self.0.message }))).into_response();
        if matches!(self.0.kind, ServeErrorKind::Overloaded | ServeErrorKind::Unavailable) {
            let seconds = self.0.retry_after.map_or(1, |d| d.as_secs().max(1));
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

type Answer<T> = Result<T, Refusal>;

/// Every route of the protocol.
pub(crate) fn router(server: Server) -> Router {
    Router::new()
        .route("/", get(home))
        .route("/v2", get(server_metadata))
        .route("/v2/health/live", get(|| async { Json(json!({ "live": true })) }))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models/stats", get(all_statistics))
        .route("/v2/models/{model}", get(metadata))
        .route("/v2/models/{model}/ready", get(model_ready))
        .route("/v2/models/{model}/infer", post(infer))
        .route("/v2/models/{model}/config", get(config))
        .route("/v2/models/{model}/stats", get(statistics))
        .route("/v2/models/{model}/versions/{version}", get(metadata))
        .route("/v2/models/{model}/versions/{version}/ready", get(model_ready))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer))
        .route("/v2/models/{model}/versions/{version}/config", get(config))
        .route("/v2/models/{model}/versions/{version}/stats", get(statistics))
        .route("/v2/repository/index", post(index))
        .route("/v2/repository/models/{model}/load", post(load))
        .route("/v2/repository/models/{model}/unload", post(unload))
        .fallback(|| async { Refusal(ServeError::new(ServeErrorKind::NotFound, "no such path; see `GET /v2`")) })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(server)
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

async fn load(State(server): State<Server>, Path(target): Path<Target>, body: Bytes) -> Answer<Json<Value>> {
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
    server.load(&target.model, overrides).await?;
    Ok(Json(json!({})))
}

async fn unload(State(server): State<Server>, Path(target): Path<Target>, body: Bytes) -> Answer<Json<Value>> {
    let body = object(&body)?;
    let dependents = body.get("parameters").and_then(|p| p.get("unload_dependents")).and_then(Value::as_bool);
    server.unload(&target.model, dependents.unwrap_or(false)).await?;
    Ok(Json(json!({})))
}

async fn infer(
    State(server): State<Server>,
    Path(target): Path<Target>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<Response> {
    let body = inflate(&headers, body)?;
    let decoded = codec::decode(&body, json_length(&headers)?, target.model()?)?;
    let (binary_default, binary) = (decoded.binary_default, decoded.binary);
    let response = server.infer(decoded.request).await?;
    let raw_only = |i: usize| {
        use edgeward_graph::DataType::{BFloat16, Float16};
        response.outputs.get(i).is_some_and(|(_, t)| matches!(t.dtype(), Float16 | BFloat16))
    };
    let wants = |i: usize| binary.get(i).copied().flatten().unwrap_or(binary_default) || raw_only(i);
    let (json, tail) = codec::encode(&response, wants)?;
    Ok(answer(&headers, json, &tail))
}

/// An inference without the router's part.
pub(crate) async fn infer_at(
    server: Server,
    model: String,
    version: Option<String>,
    request: axum::extract::Request,
) -> Answer<Response> {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, BODY_BYTES_MAX)
        .await
        .map_err(|e| ServeError::new(ServeErrorKind::InvalidArgument, format!("the body did not come whole: {e}")))?;
    infer(State(server), Path(Target { model, version }), head.headers, body).await
}

fn json_length(headers: &HeaderMap) -> Answer<Option<usize>> {
    let Some(value) = headers.get(JSON_LENGTH) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|v| v.trim().parse().ok());
    let text = "Inference-Header-Content-Length is not a number of bytes";
    number.map(Some).ok_or_else(|| ServeError::new(ServeErrorKind::InvalidArgument, text).into())
}

/// Undoes the request's compression, within bounds.
fn inflate(headers: &HeaderMap, body: Bytes) -> Answer<Bytes> {
    use std::io::Read as _;
    let refuse = |text: String| Refusal(ServeError::new(ServeErrorKind::InvalidArgument, text));
    let Some(encoding) = headers.get(header::CONTENT_ENCODING) else { return Ok(body) };
    let mut out = Vec::new();
    let read = match encoding.as_bytes() {
        b"identity" | b"" => return Ok(body),
        b"gzip" => flate2::read::GzDecoder::new(&*body).take(INFLATED_BYTES_MAX + 1).read_to_end(&mut out),
        b"deflate" => flate2::read::ZlibDecoder::new(&*body).take(INFLATED_BYTES_MAX + 1).read_to_end(&mut out),
        _ => return Err(refuse(format!("content encoding {encoding:?} is not supported, expected gzip or deflate"))),
    };
    read.map_err(|e| refuse(format!("the compressed body is damaged: {e}")))?;
    if out.len() as u64 > INFLATED_BYTES_MAX {
        return Err(refuse(format!("the body grows beyond {INFLATED_BYTES_MAX} bytes")));
    }
    Ok(out.into())
}

/// Puts the parts together and compresses them where the caller accepts it and there is much.
fn answer(headers: &HeaderMap, json: Vec<u8>, tail: &[Bytes]) -> Response {
    let length = json.len();
    let body = if tail.is_empty() {
        Bytes::from(json)
    } else {
        let mut whole = BytesMut::with_capacity(length + tail.iter().map(Bytes::len).sum::<usize>());
        whole.extend_from_slice(&json);
        tail.iter().for_each(|part| whole.extend_from_slice(part));
        whole.freeze()
    };
    let (encoding, body) = deflate(headers, body);
    let mut response = Response::new(Body::from(body));
    let kind = if tail.is_empty() { "application/json" } else { "application/octet-stream" };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if !tail.is_empty() {
        response.headers_mut().insert(JSON_LENGTH, HeaderValue::from(length));
    }
    if let Some(encoding) = encoding {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
    }
    response
}

fn deflate(headers: &HeaderMap, body: Bytes) -> (Option<&'static str>, Bytes) {
    use std::io::Write as _;
    let accepted = headers.get(header::ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).unwrap_or("");
    let level = flate2::Compression::fast();
    let accepts = |name: &str| accepted.split(',').any(|part| part.split(';').next().is_some_and(|n| n.trim() == name));
    let (name, compressed) = if accepts("gzip") {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
        ("gzip", encoder.write_all(&body).and_then(|()| encoder.finish()))
    } else if accepts("deflate") {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
        ("deflate", encoder.write_all(&body).and_then(|()| encoder.finish()))
    } else {
        return (None, body);
    };
    compressed.map_or((None, body), |bytes| (Some(name), Bytes::from(bytes)))
}

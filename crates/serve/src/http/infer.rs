//! `POST …/infer`: the body into a request, the answer into a body.

use std::sync::Arc;

use axum::{
    Json,
    body::{Body, HttpBody as _},
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use bytes::{Bytes, BytesMut};
use serde_json::json;

use super::{
    Answer, BODY_BYTES_MAX, Refusal, Target,
    body::{Expected, Unread, read},
};
use crate::{
    core::{ServeError, ServeErrorKind},
    gate::{Face, Grant},
    inflate::{Form, inflate},
    json as codec,
    telemetry::{App, Call, Slot},
};

const JSON_LENGTH: &str = "inference-header-content-length";

pub(super) async fn infer(State(app): State<App>, Path(target): Path<Target>, request: Request) -> Answer<Response> {
    let (parts, body) = request.into_parts();
    let headers = &parts.headers;
    let (length, json_length) = (body.size_hint().exact(), json_length(headers)?);
    let grant = parts.extensions.get::<Arc<Grant>>();
    let bytes_max = grant.and_then(|grant| usize::try_from(grant.bytes_max()?).ok()).unwrap_or(BODY_BYTES_MAX);
    let expected = Expected { length, aligned: json_length.unwrap_or(0), bytes_max: bytes_max.min(BODY_BYTES_MAX) };
    let body = match read(body, &expected).await {
        Ok(body) => inflated(headers, body)?,
        Err(error) => return Ok(unread(&error, grant)),
    };
    if let Some(grant) = grant {
        if let Err(refused) = grant.measured(body.len() as u64) {
            return Ok(<Body as Face>::refuse(refused));
        }
        grant.body(std::iter::once(&*body));
    }
    let decoded = codec::decode(&body, json_length, target.model()?)?;
    let (binary_default, binary) = (decoded.binary_default, decoded.binary);
    let parent = headers.get("traceparent").and_then(|v| v.to_str().ok());
    let response = app
        .infer(
            decoded.request,
            Call { parent, slot: parts.extensions.get::<Slot>(), grant: grant.map(|grant| &**grant) },
        )
        .await?;
    let raw_only = |i: usize| {
        use edgeward_graph::DataType::{BFloat16, Float16};
        response.outputs.get(i).is_some_and(|(_, t)| matches!(t.dtype(), Float16 | BFloat16))
    };
    let wants = |i: usize| binary.get(i).copied().flatten().unwrap_or(binary_default) || raw_only(i);
    let (json, tail) = codec::encode(&response, wants)?;
    Ok(answer(headers, json, &tail))
}

/// An inference without the router's part.
pub(crate) async fn infer_at(app: App, model: String, version: Option<String>, request: Request) -> Response {
    infer(State(app), Path(Target { model, version }), request).await.into_response()
}

fn unread(error: &Unread, grant: Option<&Arc<Grant>>) -> Response {
    if let (Unread::Long(most), Some(grant)) = (error, grant)
        && let Err(refused) = grant.measured(*most as u64 + 1)
    {
        return <Body as Face>::refuse(refused);
    }
    let status = match error {
        Unread::Long(_) => StatusCode::PAYLOAD_TOO_LARGE,
        Unread::Broken(_) => StatusCode::BAD_REQUEST,
    };
    (status, Json(json!({ "error": error.to_string() }))).into_response()
}

fn json_length(headers: &HeaderMap) -> Answer<Option<usize>> {
    let Some(value) = headers.get(JSON_LENGTH) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|v| v.trim().parse().ok());
    let text = "Inference-Header-Content-Length is not a number of bytes";
    number.map(Some).ok_or_else(|| ServeError::new(ServeErrorKind::InvalidArgument, text).into())
}

/// Undoes the request's compression.
fn inflated(headers: &HeaderMap, body: Bytes) -> Answer<Bytes> {
    let refuse = |text: String| Refusal(ServeError::new(ServeErrorKind::InvalidArgument, text));
    let Some(encoding) = headers.get(header::CONTENT_ENCODING) else { return Ok(body) };
    let form = match encoding.as_bytes() {
        b"identity" | b"" => return Ok(body),
        b"gzip" | b"x-gzip" => Form::Gzip,
        b"deflate" => Form::Deflate,
        _ => return Err(refuse(format!("content encoding {encoding:?} is not supported, expected gzip or deflate"))),
    };
    inflate(form, &body, usize::MAX).map(Bytes::from).map_err(|e| refuse(e.to_string()))
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

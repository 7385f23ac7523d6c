//! The shared memory extensions, which this server does not speak: no region is registered, and none can be.
//!
//! Clients ask for the list and unregister all when they begin and end, so those two are answered.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use serde_json::{Value, json};

use super::{Route, act, read};

/// What a client is told that would register a region.
pub(crate) const REFUSAL: &str = "shared memory is not supported; send tensors in the request";

/// Of each kind: the list, a region of it, and the three changes.
const PATHS: [[&str; 5]; 2] = [
    [
        "/v2/systemsharedmemory/status",
        "/v2/systemsharedmemory/region/{region}/status",
        "/v2/systemsharedmemory/unregister",
        "/v2/systemsharedmemory/region/{region}/unregister",
        "/v2/systemsharedmemory/region/{region}/register",
    ],
    [
        "/v2/cudasharedmemory/status",
        "/v2/cudasharedmemory/region/{region}/status",
        "/v2/cudasharedmemory/unregister",
        "/v2/cudasharedmemory/region/{region}/unregister",
        "/v2/cudasharedmemory/region/{region}/register",
    ],
];

pub(super) fn routes() -> impl Iterator<Item = Route> {
    PATHS.into_iter().flat_map(|[all, one, end_all, end_one, begin]| {
        [
            read(all, "Regions of shared memory: none", "Regions", get(none)),
            read(one, "A region of shared memory: none", "Regions", get(none)),
            act(end_all, "Nothing to do: no region is registered", ("Empty", "Empty"), post(done)),
            act(end_one, "Nothing to do: no region is registered", ("Empty", "Empty"), post(done)),
            act(begin, "Refused with 501: shared memory is not supported", ("Region", "Empty"), post(refuse)),
        ]
    })
}

async fn none() -> Json<Value> {
    Json(json!([]))
}

async fn done() -> Json<Value> {
    Json(json!({}))
}

async fn refuse() -> Response {
    (StatusCode::NOT_IMPLEMENTED, Json(json!({ "error": REFUSAL }))).into_response()
}

//! The gate's own routes: sessions for credentials, policies, revocations, and the state of the audit log.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Extension, Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use edgeward_trust::{
    ErrorKind, Thumbprint, TrustError,
    audit::Sha256Digest,
    identity::Connection,
    policy::{KeptSet, SourceFile, Sources, Version},
    revocation::{Change, Kept, Revoked},
    session::{ExchangeRequest, oauth_error},
};
use serde::Deserialize;
use serde_json::json;

use super::{
    Gate, Peer,
    ask::{self, Grant},
    layer::Face,
    record,
    undecided::Held,
};
use crate::telemetry::App;

/// Largest set of policies by the API.
const BODY_BYTES_MAX: usize = 64 << 20;
/// Largest request for a session, and how long it may take to come.
const TOKEN_BYTES_MAX: usize = 64 * 1024;
const TOKEN_IN: Duration = Duration::from_secs(20);

/// The routes of a gate.
pub(crate) fn routes(gate: Arc<Gate>) -> Router<App> {
    Router::new()
        .route("/v2/trust/token", post(token))
        .route("/v2/trust/keys", get(keys))
        .route("/v2/trust/policies", get(policies).post(replace_policies).delete(folders_policies))
        .route("/v2/trust/revocations", post(revoke).delete(lift))
        .route("/v2/trust/audit", get(audit))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(gate)
}

/// True for a path whose handler completes the record of its call by itself, and waits for it before it acts.
pub(super) fn records(path: &str) -> bool {
    path.starts_with("/v2/trust/")
}

/// The record of a call stands in the log once this has returned; else nothing is done.
async fn recorded(grant: &Grant, what: &str, text: String) -> Result<(), Response> {
    grant.tell(what, text);
    grant.recorded().await.map_err(<Body as Face>::refuse)
}

/// What an administrator is told of an error of its own.
fn refuse(error: &TrustError) -> Response {
    let status = match error.kind() {
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(json!({ "error": error.to_string() }))).into_response()
}

/// Exchanges a credential for a session (RFC 8693).
async fn token(State(gate): State<Arc<Gate>>, request: Request) -> Response {
    let now = SystemTime::now();
    let (parts, body) = request.into_parts();
    let Some(peer) = parts.extensions.get::<Arc<Peer>>().cloned() else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    // Nobody knows who sends it: what many send together is bounded.
    let mut held = Held::new(gate.clone(), peer.clone());
    if !held.grow(TOKEN_BYTES_MAX) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let body = tokio::time::timeout(TOKEN_IN, axum::body::to_bytes(body, TOKEN_BYTES_MAX)).await;
    let exchanged = match body {
        Ok(Ok(body)) => exchange(&gate, &parts, &peer, &body, now).await,
        _ => Err(TrustError::new(ErrorKind::Invalid, "the body is larger than 64 KiB, or did not come whole")),
    };
    drop(held);
    let asked = ("exchange", "session".to_owned());
    let (mut record, answer) = match exchanged {
        Ok((answer, principal)) => {
            let mut record =
                record::refused(Some(&principal), asked, peer.address, "a session was opened".to_owned(), now);
            record.decision = edgeward_trust::audit::Verdict::Allow;
            let token = Sha256Digest::of(answer.access_token.as_bytes());
            record.digests.insert("token".to_owned(), token);
            (record, Ok(answer))
        }
        Err(error) => (record::refused(None, asked, peer.address, error.to_string(), now), Err(error)),
    };
    record.kind = edgeward_trust::audit::Kind::Session;
    let has_record = answer.is_ok() || gate.strangers.has_record(peer.address.ip(), now);
    if let (Err(error), true) = (&answer, has_record) {
        tracing::info!(peer = %peer.address, %error, "no session");
    }
    if has_record && gate.write(&record).await.is_err() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let mut response = match answer {
        Ok(answer) => Json(answer).into_response(),
        Err(error) => {
            let unavailable = error.kind() == ErrorKind::Unavailable;
            let status = if unavailable { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::BAD_REQUEST };
            (status, Json(json!({ "error": oauth_error(&error) }))).into_response()
        }
    };
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(nonce) = gate.exchange.dpop.nonce(now).and_then(|nonce| HeaderValue::try_from(nonce).ok()) {
        response.headers_mut().insert("dpop-nonce", nonce);
    }
    response
}

async fn exchange(
    gate: &Gate,
    parts: &http::request::Parts,
    peer: &Peer,
    body: &[u8],
    now: SystemTime,
) -> Result<(edgeward_trust::session::ExchangeResponse, edgeward_trust::Principal), TrustError> {
    let form = ExchangeRequest::parse(body)?;
    let (url, proof) = (gate.url(parts), ask::proof(parts)?);
    let connection = Connection { certificates: &peer.certificates, method: parts.method.as_str(), url: &url };
    gate.exchange.run(&form, proof, connection, now).await
}

/// The keys that sign sessions, for servers that share them.
async fn keys(State(gate): State<Arc<Gate>>) -> Response {
    Json(gate.exchange.sessions.jwks()).into_response()
}

async fn policies(State(gate): State<Arc<Gate>>) -> Response {
    let rules = gate.policies.current();
    let (policies, scopes, entities) = rules.counts();
    let version = rules.version();
    Json(json!({
        "version": version.number,
        "digest": version.digest,
        "policies": policies,
        "scopes": scopes,
        "entities": entities,
        "warnings": rules.warnings(),
    }))
    .into_response()
}

/// A set of policies as the API takes it: files by name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Set {
    policies: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    entities: std::collections::BTreeMap<String, String>,
}

/// Puts another set in force, and keeps it: that of the body, or without one what is in the folder now.
async fn replace_policies(
    State(gate): State<Arc<Gate>>,
    Extension(grant): Extension<Arc<Grant>>,
    body: Bytes,
) -> Response {
    if body.iter().all(u8::is_ascii_whitespace) {
        return folders_policies(State(gate), Extension(grant)).await;
    }
    let read = {
        let gate = gate.clone();
        move || Ok(KeptSet { sources: sources(&body)?, instead_of: Sources::read(&gate.policy_folder)?.digest() })
    };
    let set = match blocking(read).await {
        Ok(set) => set,
        Err(error) => return refuse(&error),
    };
    if let Err(refused) = recorded(&grant, "policies", set.sources.digest()).await {
        return refused;
    }
    let replace = {
        let gate = gate.clone();
        move || Ok((gate.policies.replace(&set.sources)?, gate.kept_policies.keep(&set)))
    };
    let (version, kept) = match blocking(replace).await {
        Ok(replaced) => replaced,
        Err(error) => return refuse(&error),
    };
    gate.registry.push(Change::Policy);
    tracing::warn!(%version, "other policies are in force, by a call: a change of the folder or `DELETE /v2/trust/policies` puts the folder's in force again");
    match kept {
        Ok(()) => in_force(&version),
        Err(error) => {
            tracing::error!(%error, "policies are in force and not kept");
            refuse(&TrustError::new(error.kind(), format!("in force until this server ends, and not kept: {error}")))
        }
    }
}

/// Puts the folder's policies in force, and keeps no others.
async fn folders_policies(State(gate): State<Arc<Gate>>, Extension(grant): Extension<Arc<Grant>>) -> Response {
    let read = {
        let gate = gate.clone();
        move || Sources::read(&gate.policy_folder)
    };
    let sources = match blocking(read).await {
        Ok(sources) => sources,
        Err(error) => return refuse(&error),
    };
    if let Err(refused) = recorded(&grant, "policies", sources.digest()).await {
        return refused;
    }
    let replace = {
        let gate = gate.clone();
        move || {
            let version = gate.policies.replace(&sources)?;
            gate.kept_policies.forget()?;
            Ok(version)
        }
    };
    match blocking(replace).await {
        Ok(version) => {
            gate.registry.push(Change::Policy);
            tracing::info!(%version, "the folder's policies are in force");
            in_force(&version)
        }
        Err(error) => refuse(&error),
    }
}

fn in_force(version: &Version) -> Response {
    Json(json!({ "version": version.number, "digest": version.digest })).into_response()
}

fn sources(body: &[u8]) -> Result<Sources, TrustError> {
    let set: Set = serde_json::from_slice(body).map_err(|error| {
        TrustError::new(ErrorKind::Invalid, format!("the body: {error}; expected {{\"policies\":{{\"NAME.cedar\":\"…\"}},\"entities\":{{\"entities.toml\":\"…\"}}}}"))
    })?;
    if set.policies.is_empty() {
        return Err(TrustError::new(ErrorKind::Invalid, "the set has no policies; everything would be denied"));
    }
    let files = |files: std::collections::BTreeMap<String, String>| {
        files.into_iter().map(|(name, text)| SourceFile { name, text }).collect()
    };
    Ok(Sources { policies: files(set.policies), entities: files(set.entities) })
}

/// What to revoke: one of the four.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct What {
    principal: Option<String>,
    session: Option<String>,
    /// Thumbprint as tokens spell it: base64url of SHA-256.
    key: Option<String>,
    serial: Option<String>,
    /// For so many seconds; for ever where none.
    seconds: Option<u64>,
}

impl What {
    fn read(body: &[u8]) -> Result<(Revoked, Option<Duration>), TrustError> {
        let wrong = |text: String| TrustError::new(ErrorKind::Invalid, text);
        let expected = "expected one of `principal`, `session`, `key`, `serial`, and perhaps `seconds`";
        let what: Self =
            serde_json::from_slice(body).map_err(|error| wrong(format!("the body: {error}; {expected}")))?;
        let key = what.key.map(|key| {
            let read = Thumbprint::from_base64url(&key);
            read.map(Revoked::Key).ok_or_else(|| wrong(format!("key `{key}`; expected SHA-256 in base64url")))
        });
        let mut all = [
            what.principal.map(|id| Revoked::principal(&id)),
            what.session.map(Revoked::Session).map(Ok),
            key,
            what.serial.map(|number| Revoked::serial(&number)),
        ]
        .into_iter()
        .flatten();
        match (all.next(), all.next()) {
            (Some(revoked), None) => Ok((revoked?, what.seconds.map(Duration::from_secs))),
            _ => Err(wrong(expected.to_owned())),
        }
    }
}

/// Revokes, and cuts what is open; then the revocation is kept.
async fn revoke(State(gate): State<Arc<Gate>>, Extension(grant): Extension<Arc<Grant>>, body: Bytes) -> Response {
    let now = SystemTime::now();
    let (what, time) = match What::read(&body) {
        Ok(read) => read,
        Err(error) => return refuse(&error),
    };
    let how_long = time.map_or_else(|| "for ever".to_owned(), |time| format!("for {} s", time.as_secs()));
    if let Err(refused) = recorded(&grant, "revoked", format!("{} {how_long}", written(&what))).await {
        return refused;
    }
    let until = time.and_then(|time| now.checked_add(time));
    let cut = match gate.registry.revoke(what.clone(), until, now) {
        Ok(cut) => cut,
        Err(error) => return refuse(&error),
    };
    tracing::info!(%what, "revoked");
    match keep(&gate, move |kept| kept.add(what, until, now)).await {
        Ok(_) => Json(json!({ "cut": cut })).into_response(),
        Err(error) => {
            tracing::error!(%error, "a revocation is in force and not kept");
            refuse(&TrustError::new(error.kind(), format!("in force until this server ends, and not kept: {error}")))
        }
    }
}

/// Forgets a revocation where it is kept, so that nobody follows it any more, and then here.
async fn lift(State(gate): State<Arc<Gate>>, Extension(grant): Extension<Arc<Grant>>, body: Bytes) -> Response {
    let now = SystemTime::now();
    let what = match What::read(&body) {
        Ok((what, _)) => what,
        Err(error) => return refuse(&error),
    };
    if gate.revoked_by_authority(&what) {
        let text = format!("{what} was revoked by the authority, whose word stays; issue another certificate");
        return (StatusCode::CONFLICT, Json(json!({ "error": text }))).into_response();
    }
    if let Err(refused) = recorded(&grant, "lifted", written(&what)).await {
        return refused;
    }
    let lifted = what.clone();
    match keep(&gate, move |kept| kept.lift(&lifted, now)).await {
        Ok(kept) => {
            let lifted = gate.registry.revocations().lift(&what);
            tracing::info!(%what, "a revocation is lifted");
            Json(json!({ "lifted": kept || lifted })).into_response()
        }
        Err(error) => refuse(&error),
    }
}

/// Changes what is kept.
async fn keep(
    gate: &Gate,
    change: impl FnOnce(&Kept) -> Result<bool, TrustError> + Send + 'static,
) -> Result<bool, TrustError> {
    let Some(kept) = gate.kept.clone() else { return Ok(false) };
    blocking(move || change(&kept)).await
}

/// Works away from the threads that answer.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TrustError> + Send + 'static,
) -> Result<T, TrustError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(TrustError::new(ErrorKind::Unavailable, error.to_string())))
}

/// What is revoked, as it is called for.
fn written(what: &Revoked) -> String {
    match what {
        Revoked::Principal(id) => format!("principal {id}"),
        Revoked::Session(id) => format!("session {id}"),
        Revoked::Key(key) => format!("key {}", key.to_base64url()),
        Revoked::Serial(serial) => format!("serial {serial}"),
    }
}

async fn audit(State(gate): State<Arc<Gate>>) -> Response {
    Json(gate.audit.status()).into_response()
}

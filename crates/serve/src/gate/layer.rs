//! The gate around a listener's service.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use edgeward_trust::{
    Action, ErrorKind, Principal, TrustError,
    revocation::{Cut, Live, Stream},
};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tonic::{Code, Status};
use tower::Service;

use super::{
    Gate, Peer, admin,
    ask::{Asked, Caller, Grant, Refused},
    record,
    route::{self, Route},
};
use crate::{
    core::Server,
    http::BODY_BYTES_MAX,
    telemetry::{App, Line},
};

/// Bodies longer than this are handed on in parts, between which a call can be cut.
const PART_BYTES: usize = 256 * 1024;

/// What is read of a request that is refused, and how long that may take.
const DRAINED_BYTES: u64 = 64 * 1024;
const DRAINED_IN: Duration = Duration::from_secs(1);

type Answer<B> = Pin<Box<dyn Future<Output = Result<Response<B>, Infallible>> + Send>>;

/// A service that asks the gate before each call; none asks nobody.
#[derive(Clone)]
pub(crate) struct Gated<S> {
    app: App,
    service: S,
}

impl<S> Gated<S> {
    pub(crate) fn new(app: App, service: S) -> Self {
        Self { app, service }
    }
}

/// How a protocol says no.
pub(crate) trait Face: HttpBody<Data = Bytes> + Send + Sized + 'static {
    /// Whether it is gRPC.
    const GRPC: bool;
    /// The status as an access line shows it.
    fn status(answer: &Response<Self>) -> u16;
    /// What a path asks for.
    fn route<B>(request: &Request<B>, server: &Server) -> Route;
    /// The whole answer to a call that is refused.
    fn refuse(refused: Refused) -> Response<Self>;
    /// A body that can be cut.
    fn watched(body: Watched<Self>) -> Self;
    /// How a body ends that was cut: with these trailers, or broken off.
    fn cut() -> Option<http::HeaderMap>;
    /// True for an answer that says no by itself.
    fn is_refusal(answer: &Response<Self>) -> bool;
}

impl<S, B> Service<Request<Incoming>> for Gated<S>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future = Answer<B>>
        + Clone
        + Send
        + 'static,
    B: Face,
{
    type Response = Response<B>;
    type Error = Infallible;
    type Future = Answer<B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Incoming>) -> Answer<B> {
        let Some(gate) = self.app.gate.clone() else { return self.service.call(request) };
        let (app, mut service) = (self.app.clone(), self.service.clone());
        Box::pin(async move {
            // A call that comes through has its line from within.
            let line = app.telemetry.access.as_ref().map(|log| {
                let peer = request.extensions().get::<Arc<Peer>>().map(|peer| peer.address);
                log.begin(peer, (request.method().as_str(), request.uri().path()), B::GRPC)
            });
            Ok(match gate.pass(request, &app.server, |request| service.call(request)).await {
                Ok(response) => {
                    line.into_iter().for_each(Line::leave);
                    response
                }
                Err(refused) => {
                    let response = B::refuse(refused);
                    if let Some(line) = line {
                        line.answered(B::status(&response), None, response.body().size_hint().exact());
                    }
                    response
                }
            })
        })
    }
}

impl Gate {
    async fn pass<B: Face>(
        self: &Arc<Self>,
        request: Request<Incoming>,
        server: &Server,
        call: impl FnOnce(Request<Incoming>) -> Answer<B>,
    ) -> Result<Response<B>, Refused> {
        let now = SystemTime::now();
        let peer = request.extensions().get::<Arc<Peer>>().cloned().ok_or(Refused::Unavailable)?;
        let route = B::route(&request, server);
        if let Err(error) = self.ask_page(&request) {
            let (parts, body) = request.into_parts();
            drain(body).await;
            return Err(self.unrecognised(&route, parts.uri.path(), &peer, &error, now).await);
        }
        if route == Route::Exchange {
            // Who exchanges a credential is recognised by it.
            return Ok(call(request).await.unwrap_or_else(|never| match never {}));
        }
        let (mut parts, body) = request.into_parts();
        let recognised = self.recognise(&parts, &peer, now).await;
        let caller = match recognised {
            Ok(caller) => Arc::new(caller),
            Err(error) => {
                drain(body).await;
                return Err(self.unrecognised(&route, parts.uri.path(), &peer, &error, now).await);
            }
        };
        let streams = route == Route::Within { streams: true };
        let grant = match route {
            Route::Asks(action, resource) => {
                // Who reads an inference counts what comes; no other call is so large that its length cannot be said.
                let counted = matches!(action, Action::Infer);
                let bytes = body.size_hint().exact().unwrap_or(if counted { 0 } else { BODY_BYTES_MAX as u64 });
                match caller.ask(action, resource, bytes).await {
                    Ok(grant) => Some(grant),
                    Err(refused) => {
                        drain(body).await;
                        return Err(refused);
                    }
                }
            }
            Route::Within { .. } => None,
            Route::Exchange | Route::Unknown => {
                drain(body).await;
                return Err(self.unknown(&caller, parts.uri.path(), now).await);
            }
        };
        parts.extensions.insert(caller.clone());
        if let Some(grant) = &grant {
            parts.extensions.insert(grant.clone());
            if grant.is_act() {
                grant.tell("call", format!("{} {}", parts.method, parts.uri.path()));
                if !admin::records(parts.uri.path()) {
                    grant.recorded().await?;
                }
            }
        }
        let mut live = self.enter(&caller, now)?;
        let answer = tokio::select! {
            biased;
            cut = live.cut() => return Err(self.was_cut(caller.principal(), &cut)),
            answer = call(Request::from_parts(parts, body)) => answer.unwrap_or_else(|never| match never {}),
        };
        match &grant {
            Some(grant) => grant.recorded().await?,
            None if streams || caller.decided() || B::is_refusal(&answer) => {}
            None => {
                tracing::error!("an answer without a decision is withheld");
                return Err(Refused::Unavailable);
            }
        }
        let short = answer.body().size_hint().exact().is_some_and(|length| length <= PART_BYTES as u64);
        if short {
            return Ok(answer);
        }
        let (gate, principal) = (self.clone(), caller.principal().clone());
        let cut = Box::pin(async move {
            let cut = live.cut().await;
            gate.was_cut(&principal, &cut);
        });
        Ok(answer.map(|body| B::watched(Watched { body: Some(body), part: Bytes::new(), cut, _grant: grant })))
    }

    fn enter(&self, caller: &Caller, now: SystemTime) -> Result<Stream<Arc<Asked>>, Refused> {
        let principal = caller.principal().clone();
        let live = Live { valid_until: principal.expires_at, principal, context: caller.asked().clone() };
        self.registry.enter(live, now).map_err(|error| {
            tracing::info!(%error, "a call is refused");
            Refused::Denied
        })
    }

    /// A page of another address may not call with the certificate that a browser holds: the browser writes `Origin` by itself (Fetch
    /// Standard, "Origin header"), and `Sec-Fetch-Site` where it leaves that out.
    fn ask_page<B>(&self, request: &Request<B>) -> Result<(), TrustError> {
        let foreign = |what: &str, value: &HeaderValue| {
            let value = String::from_utf8_lossy(value.as_bytes()).escape_debug().to_string();
            Err(TrustError::new(ErrorKind::Denied, format!("a page of another address called: `{what}: {value}`")))
        };
        for origin in request.headers().get_all(header::ORIGIN) {
            let own = origin.to_str().ok().and_then(|origin| origin.strip_prefix("https://"));
            if !own.is_some_and(|authority| self.is_own(authority)) {
                return foreign("Origin", origin);
            }
        }
        let reads = matches!(*request.method(), http::Method::GET | http::Method::HEAD);
        let site = request.headers().get("sec-fetch-site").filter(|_| !reads);
        match site {
            Some(site) if site != "same-origin" && site != "none" => foreign("Sec-Fetch-Site", site),
            _ => Ok(()),
        }
    }

    /// Nobody was recognised.
    async fn unrecognised(
        &self,
        route: &Route,
        path: &str,
        peer: &Peer,
        error: &TrustError,
        now: SystemTime,
    ) -> Refused {
        self.counters.unauthenticated.fetch_add(1, Relaxed);
        let refused = match error.kind() {
            ErrorKind::Unavailable => Refused::Unavailable,
            ErrorKind::Denied => Refused::Denied,
            _ => Refused::Unauthenticated,
        };
        if !self.strangers.has_record(peer.address.ip(), now) {
            return refused;
        }
        tracing::info!(peer = %peer.address, path, %error, "not authenticated");
        let asked = match route {
            Route::Asks(action, resource) => (action.name(), resource.to_string()),
            _ => ("call", path.to_owned()),
        };
        let record = record::refused(None, asked, peer.address, error.to_string(), now);
        self.write(&record).await.map_or_else(|refused| refused, |()| refused)
    }

    /// There is no such call.
    async fn unknown(&self, caller: &Caller, path: &str, now: SystemTime) -> Refused {
        self.counters.denied.fetch_add(1, Relaxed);
        let principal = caller.principal();
        tracing::info!(principal = principal.id, path, "denied: there is no such call");
        let (asked, reason) = (("call", path.to_owned()), "there is no such call".to_owned());
        let record = record::refused(Some(principal), asked, caller.peer().address, reason, now);
        self.write(&record).await.map_or_else(|refused| refused, |()| Refused::Denied)
    }

    /// A call was permitted and is no more.
    fn was_cut(&self, principal: &Principal, cut: &Cut) -> Refused {
        self.counters.cut.fetch_add(1, Relaxed);
        tracing::info!(principal = principal.id, ?cut, "a call is cut");
        let record = record::cut(principal, cut, SystemTime::now());
        if let Err(error) = self.audit.note(&record) {
            tracing::error!(%error, "the record of a cut has no place");
        }
        Refused::Denied
    }
}

/// Reads what is short of a request that is refused: a client that still sends it may take the end of its stream for an error.
async fn drain(body: Incoming) {
    if body.size_hint().upper().is_some_and(|length| length <= DRAINED_BYTES) {
        let _ = tokio::time::timeout(DRAINED_IN, body.collect()).await;
    }
}

/// A body that ends when its call is cut.
pub(crate) struct Watched<B> {
    body: Option<B>,
    /// What is left of a long frame.
    part: Bytes,
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
    _grant: Option<Arc<Grant>>,
}

/// The call was cut while its answer was on its way.
#[derive(Debug, thiserror::Error)]
#[error("the call is not permitted any more")]
pub(crate) struct WasCut;

impl<B: Face + Unpin> HttpBody for Watched<B>
where
    B::Error: Into<axum::BoxError>,
{
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        if this.cut.as_mut().poll(cx).is_ready() {
            // With the body all that still works for it ends.
            (this.body, this.part) = (None, Bytes::new());
            return Poll::Ready(Some(B::cut().map(Frame::trailers).ok_or_else(|| WasCut.into())));
        }
        if this.part.is_empty() {
            match ready!(Pin::new(body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.part = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => return Poll::Ready(None),
            }
        }
        let part = this.part.split_to(this.part.len().min(PART_BYTES));
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn size_hint(&self) -> SizeHint {
        let Some(body) = &self.body else { return SizeHint::default() };
        let (mut hint, left) = (body.size_hint(), self.part.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + left);
        }
        hint.set_lower(hint.lower() + left);
        hint
    }
}

impl Face for axum::body::Body {
    const GRPC: bool = false;

    fn status(answer: &Response<Self>) -> u16 {
        answer.status().as_u16()
    }

    fn route<B>(request: &Request<B>, server: &Server) -> Route {
        route::rest(request.method(), request.uri().path(), server)
    }

    fn refuse(refused: Refused) -> Response<Self> {
        let status = match refused {
            Refused::Unauthenticated => StatusCode::UNAUTHORIZED,
            Refused::Denied => StatusCode::FORBIDDEN,
            Refused::Limited(_) => StatusCode::TOO_MANY_REQUESTS,
            Refused::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        };
        let mut response = Response::new(Self::from(serde_json::json!({ "error": refused.text() }).to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match refused {
            Refused::Unauthenticated => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("DPoP, Bearer"));
            }
            Refused::Limited(Some(after)) => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs_f64().ceil().max(1.0) as u64));
            }
            Refused::Unavailable => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(1));
            }
            Refused::Denied | Refused::Limited(None) => {}
        }
        response
    }

    fn watched(body: Watched<Self>) -> Self {
        Self::new(body)
    }

    fn cut() -> Option<http::HeaderMap> {
        None
    }

    fn is_refusal(answer: &Response<Self>) -> bool {
        answer.status().is_client_error()
    }
}

impl Face for tonic::body::Body {
    const GRPC: bool = true;

    fn status(answer: &Response<Self>) -> u16 {
        Status::from_header_map(answer.headers()).map_or(0, |status| status.code() as u16)
    }

    fn route<B>(request: &Request<B>, _: &Server) -> Route {
        route::grpc(request.uri().path())
    }

    fn refuse(refused: Refused) -> Response<Self> {
        Status::from(refused).into_http()
    }

    fn watched(body: Watched<Self>) -> Self {
        Self::new(body)
    }

    fn cut() -> Option<http::HeaderMap> {
        let mut trailers = http::HeaderMap::new();
        let added = Status::from(Refused::Denied).add_header(&mut trailers);
        added.is_ok().then_some(trailers)
    }

    /// A status in the head: the call came to no message.
    fn is_refusal(answer: &Response<Self>) -> bool {
        answer.status() != StatusCode::OK || answer.headers().get("grpc-status").is_some_and(|status| status != "0")
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let code = match refused {
            Refused::Unauthenticated => Code::Unauthenticated,
            Refused::Denied => Code::PermissionDenied,
            Refused::Limited(_) => Code::ResourceExhausted,
            Refused::Unavailable => Code::Unavailable,
        };
        Self::new(code, refused.text())
    }
}

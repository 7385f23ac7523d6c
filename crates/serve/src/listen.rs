//! A listener: takes connections within bounds, serves each, and at the end answers all that it has accepted.
//!
//! The protocol on a connection is [`hyper`]'s; this room sets its limits, which are those that a peer could otherwise
//! use up: connections, heads, streams, and time (see [`connection`](crate::connection)).

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::extract::ConnectInfo;
use bytes::Bytes;
use http::{Request, Response, Version};
use hyper::{
    body::{Body as HttpBody, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls_pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tower::Service;

use crate::{
    ahead::{Ahead, Filled},
    connection::{Bounded, Link, Socket, tell},
    gate::Peer,
    leaving::Leaving,
    limits::Limits,
    tls::HANDSHAKE_TIME_MAX,
};

/// Open files besides connections: models, logs, the runtime.
const FILES_BESIDE: u64 = 256;
/// Streams of one connection; the requests of one client wait rather than flood.
const STREAMS_MAX: u32 = 1024;
/// Streams that were reset before they were looked at; beyond, the peer floods (CVE-2023-44487).
const RESET_STREAMS_MAX: usize = 50;
/// What may be under way to us on a stream and on a connection: an image's tensor without a pause.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// A silent HTTP/2 peer is asked this often, and has this long to answer.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// First and longest pause after an accept that failed.
const PAUSE: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Most that is read of a body at once over HTTP/1.
const BODY_PART_BYTES: usize = 512 * 1024;

const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
    connection: close\r\ncontent-length: 41\r\n\r\n{\"error\":\"too many connections are open\"}";

/// The connections of all listeners.
#[derive(Clone)]
pub(crate) struct Connections {
    free: Arc<Semaphore>,
    max: usize,
    limits: Limits,
    /// Requests are told whom they come from.
    named: bool,
    /// None for plain listeners.
    tls: Option<TlsAcceptor>,
}

impl Connections {
    /// At most those that `limits` allows, or as many as this process may have open files: its limit is raised as far as that goes.
    pub(crate) fn new(limits: Limits) -> Self {
        let max = limits.connections_max;
        let limit = getrlimit(Resource::Nofile);
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        let files = match setrlimit(Resource::Nofile, raised) {
            Ok(()) => limit.maximum,
            Err(_) => limit.current,
        };
        let files = files.map_or(usize::MAX, |n| usize::try_from(n.saturating_sub(FILES_BESIDE)).unwrap_or(usize::MAX));
        if files < max {
            tracing::info!(connections = files, "fewer connections than configured: the limit of open files is low");
        }
        let max = max.min(files).clamp(1, u32::MAX as usize >> 1);
        Self { free: Arc::new(Semaphore::new(max)), max, limits, named: false, tls: None }
    }

    /// As it is, with each request told its peer's address, as `ConnectInfo`.
    pub(crate) fn naming_peers(self) -> Self {
        Self { named: true, ..self }
    }

    /// As it is, over TLS; requests are told what the handshake has shown, as [`Peer`].
    pub(crate) fn over_tls(self, tls: TlsAcceptor) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// Waits until all are closed.
    pub(crate) async fn closed(&self) {
        let all = u32::try_from(self.max).unwrap_or(u32::MAX);
        // An error means that nobody gives out any more, which is the end as well.
        let _ = self.free.acquire_many(all).await;
    }
}

/// Serves what comes to `listener` until `stopped` says so; returns once it is closed, while connections still end.
pub(crate) async fn serve<S, B>(
    listener: TcpListener,
    service: S,
    connections: Connections,
    mut stopped: watch::Receiver<bool>,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
    B: HttpBody<Data = Bytes, Error: Into<axum::BoxError>> + Send + Unpin + 'static,
{
    let protocol = Arc::new(protocol(&connections.limits));
    let mut pause = PAUSE;
    let one = |stream: TcpStream, peer: SocketAddr, stopped: &watch::Receiver<bool>| {
        let Ok(permit) = connections.free.clone().try_acquire_owned() else {
            return refuse(&stream, connections.tls.is_some());
        };
        // An answer is written at once; waiting for more bytes would only delay it.
        let _ = stream.set_nodelay(true);
        let named = connections.named.then_some(peer);
        let accepted = Accepted { named, permit, limits: connections.limits };
        let (service, protocol, stopped) = (service.clone(), protocol.clone(), stopped.clone());
        let link = Arc::new(Link::new(connections.limits.unread_max));
        let socket = Socket::new(stream, link.clone());
        let Some(tls) = connections.tls.clone() else {
            tokio::spawn(connection(socket, link, accepted, service, protocol, stopped));
            return;
        };
        tokio::spawn(async move {
            let Some((stream, certificates)) = handshake(tls, socket, stopped.clone()).await else { return };
            let peer = Arc::new(Peer::new(peer, certificates));
            let service = Told { peer, service };
            connection(Filled(stream), link, accepted, service, protocol, stopped).await;
        });
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                pause = PAUSE;
                one(stream, peer, &stopped);
            }
            // The peer was quicker to leave.
            Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {}
            // No free file, no memory: others will end and give theirs back.
            Err(error) => {
                tracing::warn!(%error, ?pause, "cannot accept a connection, trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
    // Those whose connection the system had taken already may have sent their request.
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((stream, peer)) = listener.accept() {
        if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
            one(stream, peer, &stopped);
        }
    }
}

fn refuse(stream: &TcpStream, tls: bool) {
    tracing::debug!("a connection is refused: too many are open");
    if !tls {
        tell(stream, FULL);
    }
}

/// The stream over TLS and the client's certificates; none where there is no handshake in time.
async fn handshake(
    tls: TlsAcceptor,
    socket: Socket,
    mut stopped: watch::Receiver<bool>,
) -> Option<(TlsStream<Ahead<Socket>>, Vec<CertificateDer<'static>>)> {
    let accepted = tokio::select! {
        accepted = tokio::time::timeout(HANDSHAKE_TIME_MAX, tls.accept(Ahead::new(socket))) => accepted,
        _ = stopped.wait_for(|stopped| *stopped) => return None,
    };
    match accepted {
        Ok(Ok(stream)) => {
            let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let certificates = certificates.iter().map(|der| der.clone().into_owned()).collect();
            Some((stream, certificates))
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "no TLS handshake");
            None
        }
        Err(_) => {
            tracing::debug!("no TLS handshake in time");
            None
        }
    }
}

/// A service whose requests are told their peer.
#[derive(Clone)]
struct Told<S> {
    peer: Arc<Peer>,
    service: S,
}

impl<S: Service<Request<Incoming>>> Service<Request<Incoming>> for Told<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Incoming>) -> S::Future {
        request.extensions_mut().insert(self.peer.clone());
        self.service.call(request)
    }
}

fn protocol(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut protocol = auto::Builder::new(TokioExecutor::new());
    // Holds what is read of a body at once; heads are bounded where they are read.
    let buffer = limits.head_bytes().max(BODY_PART_BYTES);
    protocol.http1().max_buf_size(buffer).max_headers(limits.head_lines_max).header_read_timeout(None);
    protocol
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(limits.head_bytes_max)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    protocol
}

/// A connection that was let in.
struct Accepted {
    /// Whom requests are to be told.
    named: Option<SocketAddr>,
    /// Given back after all else of the connection is gone: who waits for that may open what it held.
    permit: OwnedSemaphorePermit,
    limits: Limits,
}

async fn connection<T, S, B>(
    stream: T,
    link: Arc<Link>,
    Accepted { named, permit: _permit, limits }: Accepted,
    service: S,
    protocol: Arc<auto::Builder<TokioExecutor>>,
    mut stopped: watch::Receiver<bool>,
) where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: HttpBody<Data = Bytes, Error: Into<axum::BoxError>> + Send + Unpin + 'static,
{
    let requests = link.clone();
    let answer = service_fn(move |mut request: Request<Incoming>| {
        if let Some(peer) = named {
            request.extensions_mut().insert(ConnectInfo(peer));
        }
        let guard = requests.begin();
        let unsent = (request.version() == Version::HTTP_2).then(|| requests.unsent.clone());
        let answer = service.clone().call(request);
        async move {
            let answer = answer.await;
            drop(guard);
            answer.map(|answer| answer.map(|body| Leaving::new(body, unsent)))
        }
    });
    let bounded = Bounded::new(stream, link.clone(), limits.head_bytes());
    let mut serving = pin!(protocol.serve_connection(TokioIo::new(bounded), answer));
    tokio::select! {
        biased;
        // How a peer leaves is its own business.
        _ = serving.as_mut() => return,
        () = link.unread() => return,
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
    // A request that is in the socket by now was accepted: it is read before the connection stops reading.
    link.stop();
    let ended = std::future::poll_fn(|cx| std::task::Poll::Ready(serving.as_mut().poll(cx).is_ready())).await;
    if !ended {
        serving.as_mut().graceful_shutdown();
        tokio::select! {
            biased;
            _ = serving => {}
            () = link.unread() => {}
        }
    }
}

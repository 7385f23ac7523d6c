//! One connection: how long its peer may keep it waiting, and how it ends without losing a request.
//!
//! The bounds cost nothing while a peer is quick: a timer is set only where a read has to wait, and an idle connection
//! keeps the timer it has. HTTP/2 watches its own peers by pings, so that of what comes only HTTP/1 and what precedes either
//! is timed here. Of what goes the socket times all that waits for it, and [`leaving`](crate::leaving) what waits in HTTP/2.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use rustix::net::{RecvFlags, SendFlags, send};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

use crate::leaving::Unsent;

/// From the first byte of a request's head to its last.
const HEAD_TIME_MAX: Duration = Duration::from_secs(10);
/// Without a request; a client's own pool gives up earlier.
const IDLE_TIME_MAX: Duration = Duration::from_secs(600);
/// Without a byte of a body that is under way.
const BODY_TIME_MAX: Duration = Duration::from_secs(20);
const HEAD_TOO_LARGE: &[u8] =
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
/// Without a byte of an answer that the peer takes, once the server stops.
const STOPPING_UNREAD_MAX: Duration = Duration::from_secs(5);
/// How every HTTP/2 connection begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// Writes go straight to a field: for streams around another that change its reads alone.
macro_rules! writes_through {
    ($stream:ident, $field:tt) => {
        impl<S: tokio::io::AsyncWrite + Unpin> tokio::io::AsyncWrite for $stream<S> {
            fn poll_write(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                std::pin::Pin::new(&mut self.$field).poll_write(cx, buf)
            }

            fn poll_flush(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::pin::Pin::new(&mut self.$field).poll_flush(cx)
            }

            fn poll_shutdown(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::pin::Pin::new(&mut self.$field).poll_shutdown(cx)
            }

            fn poll_write_vectored(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                bufs: &[std::io::IoSlice<'_>],
            ) -> std::task::Poll<std::io::Result<usize>> {
                std::pin::Pin::new(&mut self.$field).poll_write_vectored(cx, bufs)
            }

            fn is_write_vectored(&self) -> bool {
                self.$field.is_write_vectored()
            }
        }
    };
}
pub(crate) use writes_through;

/// What a connection's socket and its requests tell each other; all on one task.
#[derive(Debug)]
pub(crate) struct Link {
    /// Requests begun.
    requests: AtomicU64,
    /// Requests not yet answered.
    in_flight: AtomicU64,
    /// Bytes have come that belong to no request yet.
    unclaimed: AtomicBool,
    /// The server stops: what is in the socket now was accepted, what comes later was not.
    stopping: AtomicBool,
    /// How long a peer may take nothing of an answer.
    unread_max: Duration,
    /// It took nothing for longer: what the system still holds for it goes at once.
    cut: AtomicBool,
    /// Answers within HTTP/2.
    pub(crate) unsent: Arc<Unsent>,
}

impl Link {
    /// A connection whose peer takes something of its answers at least this often.
    pub(crate) fn new(unread_max: Duration) -> Self {
        let (zero, no) = (|| AtomicU64::new(0), || AtomicBool::new(false));
        Self {
            requests: zero(),
            in_flight: zero(),
            unclaimed: no(),
            stopping: no(),
            unread_max,
            cut: no(),
            unsent: Arc::default(),
        }
    }

    /// How long a peer may take nothing of an answer from now on.
    fn unread_max(&self) -> Duration {
        let stopping = self.stopping.load(Relaxed);
        if stopping { self.unread_max.min(STOPPING_UNREAD_MAX) } else { self.unread_max }
    }

    /// Returns once the peer has not taken an answer in time over HTTP/2.
    pub(crate) async fn unread(&self) {
        self.unsent.lies_for(self.unread_max()).await;
        self.cut();
    }

    fn cut(&self) {
        tracing::debug!("a connection is cut: its peer takes no answers");
        self.cut.store(true, Relaxed);
    }

    /// A request's head is complete; until the guard is dropped it is in flight.
    pub(crate) fn begin(self: &Arc<Self>) -> InFlight {
        self.requests.fetch_add(1, Relaxed);
        self.in_flight.fetch_add(1, Relaxed);
        self.unclaimed.store(false, Relaxed);
        InFlight(self.clone())
    }

    /// From now on reads look into the socket itself.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Relaxed);
    }
}

/// A request in flight.
pub(crate) struct InFlight(Arc<Link>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
        // Bytes that came meanwhile were its body.
        self.0.unclaimed.store(false, Relaxed);
    }
}

/// What a connection's timer waits for, with the number of requests when it was set.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waits {
    Nothing,
    Request(u64),
    Head(u64),
}

/// A TCP socket that is read past the readiness that the runtime knows of once the server stops: it may lag behind.
/// Times what waits for it to be written.
pub(crate) struct Socket {
    stream: TcpStream,
    link: Arc<Link>,
    /// Since when nothing could be written.
    blocked: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

/// A stream, plain or over TLS, whose peer may not keep it waiting for ever.
pub(crate) struct Bounded<S> {
    stream: S,
    link: Arc<Link>,
    timer: Pin<Box<Sleep>>,
    waits: Waits,
    /// Bytes of HTTP/2's preface seen so far; none once it is HTTP/1.
    preface: Option<usize>,
    head: Head,
}

/// How much has come of a request's head, over HTTP/1. The protocol's buffer is larger than a head may be, since bodies are
/// read through it as well: read in small parts, each would cost a turn of the scheduler.
struct Head {
    bytes_max: usize,
    /// Bytes since the last request, and its number.
    bytes: usize,
    request: u64,
}

impl Socket {
    /// A socket whose requests and end are told by `link`.
    pub(crate) fn new(stream: TcpStream, link: Arc<Link>) -> Self {
        Self { stream, link, blocked: None, timer: None }
    }

    /// What a write came to; of one that waits, whether the peer has had its time.
    fn written(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.blocked = None;
            return written;
        }
        let until = *self.blocked.get_or_insert_with(Instant::now) + self.link.unread_max();
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(Duration::ZERO)));
        if timer.deadline() != until {
            timer.as_mut().reset(until);
        }
        ready!(timer.as_mut().poll(cx));
        // The system tells of room once there is much of it. A slow peer has taken something where there is any.
        if let Ok(length @ 1..) = send(&self.stream, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            self.blocked = None;
            return Poll::Ready(Ok(length));
        }
        self.link.cut();
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes no answers")))
    }

    fn read_now(&self, buf: &mut ReadBuf<'_>) -> io::Result<usize> {
        let (_, length) = rustix::net::recv(&self.stream, buf.initialize_unfilled(), RecvFlags::DONTWAIT)?;
        buf.advance(length);
        Ok(length)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.link.cut.load(Relaxed) {
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.link.stopping.load(Relaxed) && self.read_now(buf).is_ok_and(|length| length > 0) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(cx, buf, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or([].as_slice(), |buf| buf);
        self.written(cx, first, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Bounded<S> {
    /// A stream whose heads have at most `head_bytes_max`.
    pub(crate) fn new(stream: S, link: Arc<Link>, head_bytes_max: usize) -> Self {
        let head = Head { bytes_max: head_bytes_max, bytes: 0, request: 0 };
        Self { stream, link, timer: Box::pin(sleep(IDLE_TIME_MAX)), waits: Waits::Nothing, preface: Some(0), head }
    }

    /// Bytes that may come before a request's head must be complete; none while there is no such bound.
    fn head_room(&mut self) -> Option<usize> {
        let (request, in_flight) = (self.link.requests.load(Relaxed), self.link.in_flight.load(Relaxed) > 0);
        if in_flight || request != self.head.request {
            (self.head.bytes, self.head.request) = (0, request);
        }
        let unbounded = in_flight || self.is_http2();
        (!unbounded).then(|| self.head.bytes_max.saturating_sub(self.head.bytes))
    }

    /// Reads, no more than `room`.
    fn read_within(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>, room: usize) -> Poll<io::Result<()>> {
        if buf.remaining() <= room {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(room));
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut part))?;
        let length = part.filled().len();
        buf.advance(length);
        Poll::Ready(Ok(()))
    }

    fn is_http2(&self) -> bool {
        self.preface == Some(PREFACE.len())
    }

    fn look_for_preface(&mut self, bytes: &[u8]) {
        let Some(seen) = self.preface.filter(|&seen| seen < PREFACE.len()) else { return };
        let expected = PREFACE.get(seen..).unwrap_or_default();
        let length = bytes.len().min(expected.len());
        self.preface = (bytes.get(..length) == expected.get(..length)).then_some(seen + length);
    }

    /// Pending, or an error where the peer has had its time.
    fn waiting(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_http2() || self.link.in_flight.load(Relaxed) > 0 {
            return Poll::Pending;
        }
        let requests = self.link.requests.load(Relaxed);
        let head = self.link.unclaimed.load(Relaxed);
        let elapsed = self.waits != Waits::Nothing && self.timer.is_elapsed();
        let goes_on = match self.waits {
            Waits::Nothing => false,
            Waits::Head(since) => head && since == requests,
            // Requests that came since it was set only set it anew once it has run out.
            Waits::Request(since) => !head && (since == requests || !elapsed),
        };
        if !goes_on {
            let (waits, limit) = match head {
                true => (Waits::Head(requests), HEAD_TIME_MAX),
                false => (Waits::Request(requests), IDLE_TIME_MAX),
            };
            self.waits = waits;
            self.timer.as_mut().reset(Instant::now() + limit);
        } else if !elapsed {
            return Poll::Pending;
        }
        ready!(self.timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer sent no whole request in time")))
    }

    /// Writes a whole answer past the protocol, where that goes without waiting.
    fn tell(&mut self, cx: &mut Context<'_>, answer: &[u8]) {
        let stream = &mut self.stream;
        if Pin::new(&mut *stream).poll_write(cx, answer).is_ready() {
            let _ = Pin::new(stream).poll_flush(cx);
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let read = match this.head_room() {
            None => Pin::new(&mut this.stream).poll_read(cx, buf),
            Some(0) => {
                this.tell(cx, HEAD_TOO_LARGE);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a request's head is too large")));
            }
            Some(room) => this.read_within(cx, buf, room),
        };
        if read.is_pending() {
            return this.waiting(cx);
        }
        let new = buf.filled().get(before..).unwrap_or_default();
        if !new.is_empty() {
            this.head.bytes += new.len();
            this.link.unclaimed.store(true, Relaxed);
            this.look_for_preface(new);
        }
        read
    }
}

writes_through!(Bounded, stream);

/// Writes a whole answer past the protocol to a peer that is not served any more, where that goes without waiting.
pub(crate) fn tell(stream: &TcpStream, answer: &[u8]) {
    let _ = send(stream, answer, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
}

/// The peer stopped in the middle of a body.
#[derive(Debug, thiserror::Error)]
#[error("no byte of the body came for {BODY_TIME_MAX:?}")]
pub(crate) struct Paused;

/// A request's body that must go on arriving.
pub(crate) struct Arriving {
    body: Incoming,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Arriving {
    /// The body of a request, bounded.
    pub(crate) fn body(body: Incoming) -> Body {
        Body::new(Self { body, timer: None })
    }
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(frame) = frame {
            self.timer = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(BODY_TIME_MAX)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(Paused.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

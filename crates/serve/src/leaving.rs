//! Answers on their way out over HTTP/2: what a peer does not take is known, by how long it lies.
//!
//! Over HTTP/1 what is not taken stays in front of the socket, which is timed there. Over HTTP/2 the peer says for each
//! stream how much it takes, so that an answer may lie in the protocol while the socket waits for nothing.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// So many times as long an answer may lie while the peer takes others of its connection.
const BESIDE_OTHERS: u32 = 10;

/// The parts of answers that a connection has not sent yet.
#[derive(Debug, Default)]
pub(crate) struct Unsent {
    parts: Mutex<Parts>,
    begun: Notify,
}

#[derive(Debug, Default)]
struct Parts {
    /// When the peer last took something of each.
    taken: HashMap<u64, Instant>,
    next: u64,
    /// When it last took something of any.
    took: Option<Instant>,
    /// Somebody looks at them when the oldest has had its time, so that further ones need not tell.
    watched: bool,
}

impl Unsent {
    fn begin(self: &Arc<Self>) -> Part {
        let mut parts = self.parts.lock();
        let id = parts.next;
        parts.next += 1;
        parts.taken.insert(id, Instant::now());
        if !std::mem::replace(&mut parts.watched, true) {
            self.begun.notify_one();
        }
        Part { id, of: self.clone() }
    }

    /// When the peer has had its time, as things stand; none while nothing waits for it, and the next part to come tells.
    fn until(&self, limit: Duration) -> Option<Instant> {
        let mut parts = self.parts.lock();
        let oldest = parts.taken.values().min().copied();
        parts.watched = oldest.is_some();
        let oldest = oldest?;
        // Those of a slow peer wait for each other.
        let any = parts.took.map_or(oldest, |took| took.max(oldest));
        Some((any + limit).min(oldest + limit * BESIDE_OTHERS))
    }

    /// Returns once the peer has taken nothing for `limit`, or nothing of some part for much longer.
    pub(crate) async fn lies_for(&self, limit: Duration) {
        loop {
            match self.until(limit) {
                None => self.begun.notified().await,
                Some(until) if until <= Instant::now() => return,
                Some(until) => sleep_until(until).await,
            }
        }
    }
}

/// A part of an answer until it is sent.
struct Part {
    id: u64,
    of: Arc<Unsent>,
}

impl Drop for Part {
    fn drop(&mut self) {
        self.of.parts.lock().taken.remove(&self.id);
    }
}

/// The body of an answer.
pub(crate) struct Leaving<B> {
    body: B,
    unsent: Option<Arc<Unsent>>,
}

impl<B> Leaving<B> {
    /// A body whose parts are known to `unsent` until they are sent.
    pub(crate) fn new(body: B, unsent: Option<Arc<Unsent>>) -> Self {
        Self { body, unsent }
    }
}

/// Bytes of an answer.
pub(crate) struct Data {
    bytes: Bytes,
    part: Option<Part>,
}

impl Buf for Data {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        let Some(part) = &self.part else { return };
        let (mut parts, now) = (part.of.parts.lock(), Instant::now());
        parts.took = Some(now);
        if let Some(taken) = parts.taken.get_mut(&part.id) {
            *taken = now;
        }
    }

    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        self.bytes.copy_to_bytes(length)
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Leaving<B> {
    type Data = Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Data>, B::Error>>> {
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else { return Poll::Ready(None) };
        let data = |bytes| Data { bytes, part: self.unsent.as_ref().map(Unsent::begin) };
        Poll::Ready(Some(frame.map(|frame| frame.map_data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

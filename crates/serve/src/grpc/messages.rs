//! The messages of a call on their way to the decoder, which trusts what they announce.
//!
//! The decoder takes memory for the length that a message's five bytes of head announce, and lets a compressed one grow
//! as far as any message may. So a large message is held back until it has come whole, and a compressed one is
//! undone here, within the bounds that REST has too.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::{Buf as _, Bytes, BytesMut};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tonic::Status;

use super::{MESSAGE_BYTES_MAX, Stopped};
use crate::{
    connection::{Arriving, Paused},
    inflate::{Form, inflate},
};

/// A message of fewer bytes goes on as it comes.
const HELD_FROM_BYTES: usize = 1 << 20;
/// A flag, and a length of four bytes (gRPC over HTTP/2, "Length-Prefixed-Message").
const HEAD_BYTES: usize = 5;

/// A request's body.
pub(super) struct Messages {
    body: Body,
    /// How messages with the flag are compressed; none leaves them to the decoder.
    form: Option<Form>,
    /// Come and not looked at yet.
    next: Bytes,
    /// To be handed on.
    out: VecDeque<Bytes>,
    state: State,
    /// Of a stream: resolves when the server stops, once.
    stop: Option<Stop>,
}

type Stop = Pin<Box<dyn Future<Output = ()> + Send>>;

enum State {
    /// What has come of a head.
    Head(BytesMut),
    /// So many bytes go on as they come.
    Passing(usize),
    /// So many bytes are missing of a message that goes on whole.
    Holding { head: [u8; HEAD_BYTES], missing: usize, held: Vec<Bytes> },
}

impl Messages {
    /// The body of a call. That of a unary one must go on arriving; a stream may rest until `stopped` says so.
    pub(super) fn body(request: http::Request<Incoming>, stopped: &Stopped) -> http::Request<Body> {
        let path = request.uri().path();
        let streams = path.ends_with("/ModelStreamInfer") || path.ends_with("/ServerReflectionInfo");
        let form = request.headers().get("grpc-encoding").is_some_and(|v| v == "gzip").then_some(Form::Gzip);
        request.map(|body| {
            let body = if streams { Body::new(body) } else { Arriving::body(body) };
            let state = State::Head(BytesMut::new());
            let stop = streams.then(|| -> Stop { Box::pin(stopped.clone().comes()) });
            Body::new(Self { body, form, next: Bytes::new(), out: VecDeque::new(), state, stop })
        })
    }

    /// Looks at what has come.
    fn advance(&mut self) -> Result<(), Status> {
        match &mut self.state {
            State::Head(head) => {
                let bytes = self.next.split_to(self.next.len().min(HEAD_BYTES - head.len()));
                head.extend_from_slice(&bytes);
                if let Some(&head) = head.first_chunk::<HEAD_BYTES>() {
                    self.begin(head);
                }
            }
            State::Passing(left) => {
                let bytes = self.next.split_to(self.next.len().min(*left));
                *left -= bytes.len();
                if *left == 0 {
                    self.state = State::Head(BytesMut::new());
                }
                self.out.push_back(bytes);
            }
            State::Holding { head, missing, held } => {
                let bytes = self.next.split_to(self.next.len().min(*missing));
                *missing -= bytes.len();
                held.push(bytes);
                if *missing == 0 {
                    let (head, held) = (*head, std::mem::take(held));
                    self.state = State::Head(BytesMut::new());
                    self.end(head, held)?;
                }
            }
        }
        Ok(())
    }

    /// A message's head is there.
    fn begin(&mut self, head: [u8; HEAD_BYTES]) {
        let [flag, length @ ..] = head;
        let length = u32::from_be_bytes(length) as usize;
        let compressed = flag == 1 && self.form.is_some();
        // What is too long the decoder refuses by its head.
        if (length >= HELD_FROM_BYTES || compressed) && length <= MESSAGE_BYTES_MAX && length > 0 {
            self.state = State::Holding { head, missing: length, held: Vec::new() };
            return;
        }
        self.out.push_back(Bytes::copy_from_slice(&head));
        self.state = if length == 0 { State::Head(BytesMut::new()) } else { State::Passing(length) };
    }

    /// A message that was held has come whole.
    fn end(&mut self, head: [u8; HEAD_BYTES], held: Vec<Bytes>) -> Result<(), Status> {
        let form = self.form.filter(|_| head.first() == Some(&1));
        let Some(form) = form else {
            self.out.push_back(Bytes::copy_from_slice(&head));
            self.out.extend(held);
            return Ok(());
        };
        let whole = match held.as_slice() {
            [one] => one.clone(),
            parts => parts.concat().into(),
        };
        let message = inflate(form, &whole).map_err(|e| match e {
            crate::inflate::InflateError::Damaged(_) => Status::internal(e.to_string()),
            crate::inflate::InflateError::Large(..) => Status::resource_exhausted(e.to_string()),
        })?;
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
        self.out.push_back([&[0], length.as_slice()].concat().into());
        self.out.push_back(message.into());
        Ok(())
    }

    /// The body ended within a message: the decoder says so once it sees what has come.
    fn cut(&mut self) {
        match std::mem::replace(&mut self.state, State::Passing(0)) {
            State::Head(head) => self.out.push_back(head.freeze()),
            State::Passing(_) => {}
            // The length announced is left out: nothing is made ready for it.
            State::Holding { .. } => self.out.push_back(Bytes::from_static(&[0])),
        }
        self.out.retain(|bytes| bytes.has_remaining());
    }
}

impl HttpBody for Messages {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            if let Some(bytes) = this.out.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if !this.next.is_empty() {
                match this.advance() {
                    Ok(()) => continue,
                    Err(status) => return Poll::Ready(Some(Err(status))),
                }
            }
            let frame = Pin::new(&mut this.body).poll_frame(cx);
            if frame.is_pending() && this.stop.as_mut().is_some_and(|stop| stop.as_mut().poll(cx).is_ready()) {
                this.stop = None;
                // What came before is answered before the status goes out.
                return Poll::Ready(Some(Err(Status::unavailable("the server stops; call another, or again later"))));
            }
            match ready!(frame) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => this.next = bytes,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(unread(error)))),
                None => {
                    this.cut();
                    if this.out.is_empty() {
                        return Poll::Ready(None);
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let nothing =
            matches!(&self.state, State::Head(head) if head.is_empty()) || matches!(self.state, State::Passing(0));
        nothing && self.out.is_empty() && self.next.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.form.is_some() { SizeHint::default() } else { self.body.size_hint() }
    }
}

/// A body that cannot be read to its end.
fn unread(error: axum::Error) -> Status {
    let error = error.into_inner();
    match error.downcast::<Paused>() {
        Ok(paused) => Status::deadline_exceeded(paused.to_string()),
        Err(error) => Status::from_error(error),
    }
}

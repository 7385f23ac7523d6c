//! The messages of a call on their way to the decoder, which trusts what they announce.
//!
//! The decoder takes memory for the length that a message's five bytes of head announce, and lets a compressed one grow
//! as far as any message may. So a large message is held back until it has come whole, and a compressed one is
//! undone here, within the bounds that REST has too.
//!
//! Who may not have what a message asks for is told so before much of it has come: of a message that is not short its caller is
//! decided once its first bytes name the model, and no more is read until then.

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

use super::{
    MESSAGE_BYTES_MAX, Stopped,
    asking::Asking,
    naming::{Beginning, WITHIN_BYTES, beginning},
    pieces::Pieces,
};
use crate::{
    connection::{Arriving, Paused},
    inflate::{Form, inflate},
    telemetry::App,
};

/// A message of fewer bytes goes on as it comes, once it is decided.
const HELD_FROM_BYTES: usize = 1 << 20;
/// Messages of calls that carry no tensors and no files; those of logging's settings are the longest.
const SHORT_BYTES_MAX: usize = 64 * 1024;
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
    /// Bytes that a message may have.
    bytes_max: usize,
    /// Decides about messages; none where nobody is asked.
    asking: Option<Asking>,
}

type Stop = Pin<Box<dyn Future<Output = ()> + Send>>;

enum State {
    /// What has come of a head.
    Head(BytesMut),
    /// So many bytes go on as they come.
    Passing(usize),
    /// A message that goes on whole, or once it is decided.
    Holding(Holding),
}

/// What has come of a message, without its head.
struct Holding {
    head: [u8; HEAD_BYTES],
    missing: usize,
    held: Pieces,
    /// It is looked for the model's name once so many bytes are there; none once it is decided.
    look_at: Option<usize>,
}

impl Messages {
    /// The body of a call. That of a unary one must go on arriving; a stream may rest until `stopped` says so.
    pub(super) fn body(request: http::Request<Incoming>, app: &App, stopped: &Stopped) -> http::Request<Body> {
        let path = request.uri().path();
        let streams = path.ends_with("/ModelStreamInfer") || path.ends_with("/ServerReflectionInfo");
        let form = request.headers().get("grpc-encoding").is_some_and(|v| v == "gzip").then_some(Form::Gzip);
        let bytes_max = if Asking::is_long(path) { MESSAGE_BYTES_MAX } else { SHORT_BYTES_MAX };
        let asking = Asking::of(&request, app, streams);
        request.map(|body| {
            let body = if streams { Body::new(body) } else { Arriving::body(body) };
            let state = State::Head(BytesMut::new());
            let stop = streams.then(|| -> Stop { Box::pin(stopped.clone().comes()) });
            let (next, out) = (Bytes::new(), VecDeque::new());
            Body::new(Self { body, form, next, out, state, stop, bytes_max, asking })
        })
    }

    /// Looks at what has come.
    fn advance(&mut self) -> Result<(), Status> {
        match &mut self.state {
            State::Head(head) => {
                let bytes = self.next.split_to(self.next.len().min(HEAD_BYTES - head.len()));
                head.extend_from_slice(&bytes);
                if let Some(&head) = head.first_chunk::<HEAD_BYTES>() {
                    self.begin(head)?;
                }
            }
            State::Passing(left) => {
                let bytes = self.next.split_to(self.next.len().min(*left));
                *left -= bytes.len();
                let ended = *left == 0;
                self.asking.iter_mut().for_each(|asking| asking.came(bytes.len(), ended));
                if ended {
                    self.state = State::Head(BytesMut::new());
                }
                self.out.push_back(bytes);
            }
            State::Holding(holding) => {
                let bytes = self.next.split_to(self.next.len().min(holding.missing));
                holding.missing -= bytes.len();
                let ended = holding.missing == 0;
                self.asking.iter_mut().for_each(|asking| asking.came(bytes.len(), ended));
                holding.held.push(bytes);
                self.look()?;
            }
        }
        Ok(())
    }

    /// A message's head is there.
    fn begin(&mut self, head: [u8; HEAD_BYTES]) -> Result<(), Status> {
        let [flag, length @ ..] = head;
        let length = u32::from_be_bytes(length) as usize;
        let compressed = flag == 1 && self.form.is_some();
        self.asking.iter_mut().for_each(Asking::begins);
        if length > self.bytes_max && self.bytes_max < MESSAGE_BYTES_MAX {
            return Err(too_long(length));
        }
        let asks = self.asking.as_ref().is_some_and(Asking::names_a_model) && (length > WITHIN_BYTES || compressed);
        // What is too long the decoder refuses by its head.
        if (length >= HELD_FROM_BYTES || compressed || asks) && length <= MESSAGE_BYTES_MAX && length > 0 {
            let (held, look_at) = (Pieces::default(), asks.then_some(1));
            self.state = State::Holding(Holding { head, missing: length, held, look_at });
            return Ok(());
        }
        self.out.push_back(Bytes::copy_from_slice(&head));
        self.state = if length == 0 { State::Head(BytesMut::new()) } else { State::Passing(length) };
        Ok(())
    }

    /// Looks for the model's name where more of a message has come, and has its caller decided; hands on what is there to be.
    fn look(&mut self) -> Result<(), Status> {
        let State::Holding(holding) = &mut self.state else { return Ok(()) };
        let (came, whole) = (holding.held.len(), holding.missing == 0);
        match holding.look_at {
            // Twice as much as before, or small pieces would have the beginning read again and again.
            Some(look_at) if came >= look_at || whole => {
                let form = self.form.filter(|_| holding.is_compressed());
                match beginning(form, &holding.held.first(WITHIN_BYTES)) {
                    Beginning::Texts(texts) => {
                        self.asking
                            .iter_mut()
                            .try_for_each(|asking| asking.ask(texts.clone(), came + holding.missing))?;
                    }
                    // As short as those of which nobody is decided before they are decoded.
                    Beginning::Short => holding.look_at = None,
                    Beginning::More if came < WITHIN_BYTES && !whole => holding.look_at = Some(2 * came),
                    Beginning::More | Beginning::Damaged => return Err(nameless()),
                }
            }
            _ => {}
        }
        self.hand_on()
    }

    /// A message that is held goes on where it is decided and need not come whole, or has.
    fn hand_on(&mut self) -> Result<(), Status> {
        match &mut self.state {
            State::Holding(holding) if holding.look_at.is_none() => {
                if holding.missing > 0 && holding.goes_on_whole() {
                    return Ok(());
                }
                let (head, missing) = (holding.head, holding.missing);
                let (compressed, held) = (holding.is_compressed(), std::mem::take(&mut holding.held));
                self.state = if missing == 0 { State::Head(BytesMut::new()) } else { State::Passing(missing) };
                match self.form.filter(|_| compressed) {
                    Some(form) => self.undo(form, held),
                    None => {
                        self.out.push_back(Bytes::copy_from_slice(&head));
                        self.out.extend(held.into_parts());
                        Ok(())
                    }
                }
            }
            _ => Ok(()),
        }
    }

    /// A compressed message has come whole.
    fn undo(&mut self, form: Form, held: Pieces) -> Result<(), Status> {
        let message = inflate(form, &held.first(usize::MAX), self.bytes_max).map_err(|e| match e {
            crate::inflate::InflateError::Damaged(_) => Status::internal(e.to_string()),
            crate::inflate::InflateError::Large(..) => Status::resource_exhausted(e.to_string()),
        })?;
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
        self.out.push_back([&[0], length.as_slice()].concat().into());
        self.out.push_back(message.into());
        Ok(())
    }

    /// Waits for a decision; none where there is none to wait for.
    fn poll_decision(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        let Some(asking) = self.asking.as_mut().filter(|asking| asking.waits()) else { return Poll::Ready(Ok(())) };
        ready!(asking.poll(cx))?;
        if let State::Holding(holding) = &mut self.state {
            holding.look_at = None;
        }
        Poll::Ready(self.hand_on())
    }

    /// The body ended within a message: the decoder says so once it sees what has come.
    fn cut(&mut self) {
        match std::mem::replace(&mut self.state, State::Passing(0)) {
            State::Head(head) => self.out.push_back(head.freeze()),
            State::Passing(_) => {}
            // The length announced is left out: nothing is made ready for it.
            State::Holding(_) => self.out.push_back(Bytes::from_static(&[0])),
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
            if let Err(status) = ready!(this.poll_decision(cx)) {
                return Poll::Ready(Some(Err(status)));
            }
            if !this.out.is_empty() {
                continue;
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
            if frame.is_pending()
                && let Some(Err(status)) = this.asking.as_mut().map(Asking::keeps_waiting)
            {
                return Poll::Ready(Some(Err(status)));
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

impl Holding {
    fn is_compressed(&self) -> bool {
        self.head.first() == Some(&1)
    }

    /// True for what the decoder is to have whole.
    fn goes_on_whole(&self) -> bool {
        self.is_compressed() || self.held.len() + self.missing >= HELD_FROM_BYTES
    }
}

fn too_long(length: usize) -> Status {
    let text = format!("a message of {length} bytes; those of this call have at most {SHORT_BYTES_MAX}");
    Status::resource_exhausted(text)
}

fn nameless() -> Status {
    let text = format!(
        "no `model_name` can be read in the first {WITHIN_BYTES} bytes of a long or compressed message; encode its fields in the order of their numbers"
    );
    Status::invalid_argument(text)
}

/// A body that cannot be read to its end.
fn unread(error: axum::Error) -> Status {
    let error = error.into_inner();
    match error.downcast::<Paused>() {
        Ok(paused) => Status::deadline_exceeded(paused.to_string()),
        Err(error) => Status::from_error(error),
    }
}

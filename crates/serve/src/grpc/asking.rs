//! Asks the gate about a message before it has come whole, and counts what is held until then.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use edgeward_trust::{Action, Resource, ResourceKind};
use tonic::Status;

use super::{model, named};
use crate::{
    core::Server,
    gate::{Caller, Held, Refused, model_version},
    telemetry::App,
};

/// What long messages are for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Infer(Action),
    Load,
}

/// The caller of a call, and its answer to what a message asks for.
pub(super) struct Asking {
    caller: Arc<Caller>,
    server: Server,
    /// None for calls whose messages are short.
    call: Option<Call>,
    streams: bool,
    decision: Option<Decision>,
    /// Bytes that are there of what is not decided.
    undecided: usize,
    /// Counts them once the caller keeps the server waiting.
    held: Option<Held>,
    /// The message that is coming is decided.
    decided: bool,
}

type Decision = Pin<Box<dyn Future<Output = Result<(), Refused>> + Send>>;

impl Call {
    fn of(path: &str) -> Option<Self> {
        match path.strip_prefix("/inference.GRPCInferenceService/")? {
            "ModelInfer" => Some(Self::Infer(Action::Infer)),
            "ModelStreamInfer" => Some(Self::Infer(Action::Stream)),
            "RepositoryModelLoad" => Some(Self::Load),
            _ => None,
        }
    }
}

impl Asking {
    /// True where messages of a call may be as long as any.
    pub(super) fn is_long(path: &str) -> bool {
        Call::of(path).is_some()
    }

    /// Of a call whose caller was recognised.
    pub(super) fn of<B>(request: &http::Request<B>, app: &App, streams: bool) -> Option<Self> {
        let caller = request.extensions().get::<Arc<Caller>>()?.clone();
        let (server, call) = (app.server.clone(), Call::of(request.uri().path()));
        Some(Self { caller, server, call, streams, decision: None, undecided: 0, held: None, decided: false })
    }

    /// True where the caller can be decided by the beginning of a message.
    pub(super) fn names_a_model(&self) -> bool {
        self.call.is_some()
    }

    /// Another message begins.
    pub(super) fn begins(&mut self) {
        self.decided = false;
    }

    /// So many bytes came of a message, which perhaps ended.
    pub(super) fn came(&mut self, bytes: usize, ended: bool) {
        if !self.decided {
            self.undecided += bytes;
        }
        // Whoever handles a stream's message decides it now; that of a unary call waits for the end of the body.
        if ended && self.streams {
            self.settle();
        }
    }

    /// The caller keeps the server waiting: an error where too much is held meanwhile.
    pub(super) fn keeps_waiting(&mut self) -> Result<(), Status> {
        if self.undecided == 0 {
            return Ok(());
        }
        let held = self.held.get_or_insert_with(|| self.caller.holds());
        if held.grow(self.undecided) { Ok(()) } else { Err(Refused::Unavailable.into()) }
    }

    /// Asks about a message of so many bytes whose first two fields are `texts`.
    pub(super) fn ask(&mut self, [first, second]: [String; 2], bytes: usize) -> Result<(), Status> {
        let (action, resource) = match self.call {
            Some(Call::Infer(action)) => {
                let model = model(&first, &second)?;
                (action, model_version(&self.server, &model.name, model.version))
            }
            Some(Call::Load) => (Action::Load, Resource::new(ResourceKind::Model, named(&second, &first))),
            None => return Ok(()),
        };
        let caller = self.caller.clone();
        self.decision = Some(Box::pin(async move { caller.ask_ahead(action, resource, bytes as u64).await }));
        Ok(())
    }

    /// Nothing of what is there is undecided any more.
    fn settle(&mut self) {
        (self.undecided, self.held) = (0, None);
    }

    pub(super) fn waits(&self) -> bool {
        self.decision.is_some()
    }

    /// Resolves once the message is decided.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        let Some(decision) = &mut self.decision else { return Poll::Ready(Ok(())) };
        let decided = std::task::ready!(decision.as_mut().poll(cx));
        self.decision = None;
        self.decided = true;
        self.settle();
        Poll::Ready(decided.map_err(Status::from))
    }
}

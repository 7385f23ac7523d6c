//! `ModelStreamInfer`: requests of one stream run side by side, answers leave in their order.

use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::extract::ConnectInfo;
use edgeward_trust::Action;
use futures_util::StreamExt as _;
use tokio::task::JoinHandle;
use tokio_stream::Stream;
use tonic::{Request, Status, Streaming};

use super::{answer, convert::wire, parent};
use crate::{
    core::Parameter,
    proto,
    telemetry::{App, Call},
};

/// Requests of one stream that run at the same time.
const AHEAD_MAX: usize = 16;
const PATH: &str = "/inference.GRPCInferenceService/ModelStreamInfer";
/// Asks that the answer says whether it is the last. Each request has one answer here, so it always is.
const WANTS_FINAL: &str = "triton_enable_empty_final_response";
const FINAL: &str = "triton_final_response";

pub(super) type InferStream = Pin<Box<dyn Stream<Item = Result<proto::ModelStreamInferResponse, Status>> + Send>>;

/// The answers. Dropping the stream, as happens when the caller goes away, ends the requests that still run.
pub(super) fn run(app: App, request: Request<Streaming<proto::ModelInferRequest>>) -> InferStream {
    let extensions = Arc::new(request.extensions().clone());
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
    let parent = parent(request.metadata()).map(str::to_owned);
    let answers = request.into_inner().map(move |request| {
        let (app, parent, extensions) = (app.clone(), parent.clone(), extensions.clone());
        // What cannot be decoded ends the stream, with its own status.
        let run = request.map(|request| {
            Running(tokio::spawn(
                async move { stream_answer(&app, request, &extensions, peer, parent.as_deref()).await },
            ))
        });
        async move { run?.await }
    });
    Box::pin(answers.buffered(AHEAD_MAX))
}

/// A request on a task of its own, which ends with whoever waits for it.
struct Running(JoinHandle<proto::ModelStreamInferResponse>);

impl Future for Running {
    type Output = Result<proto::ModelStreamInferResponse, Status>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map_err(|e| Status::internal(e.to_string()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn stream_answer(
    app: &App,
    request: proto::ModelInferRequest,
    extensions: &http::Extensions,
    peer: Option<SocketAddr>,
    parent: Option<&str>,
) -> proto::ModelStreamInferResponse {
    let (id, model_name) = (request.id.clone(), request.model_name.clone());
    let wants_final = request.parameters.get(WANTS_FINAL).and_then(|p| p.parameter_choice.as_ref());
    let wants_final = matches!(wants_final, Some(proto::infer_parameter::ParameterChoice::BoolParam(true)));
    let line = app.telemetry.access.as_ref().map(|log| log.begin(peer, ("POST", PATH), true));
    let slot = line.as_ref().map(|line| line.slot());
    let result =
        answer(app, request, (Action::Stream, extensions), Call { parent, slot: slot.as_ref(), grant: None }, None)
            .await;
    let (status, error_message, mut response) = match result {
        Ok(response) => (0, String::new(), response),
        Err(e) => {
            let response = proto::ModelInferResponse { id, model_name, ..proto::ModelInferResponse::default() };
            (e.code() as u16, e.message().to_owned(), response)
        }
    };
    if let Some(line) = line {
        line.answered(status, None, None);
    }
    if wants_final {
        response.parameters.insert(FINAL.to_owned(), wire(Parameter::Bool(true)));
    }
    proto::ModelStreamInferResponse { error_message, infer_response: Some(response) }
}

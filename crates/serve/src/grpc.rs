//! The gRPC half of the Open Inference Protocol, with the standard health and reflection services.

mod asking;
mod convert;
mod messages;
mod naming;
mod pieces;
mod settings;
mod stream;

pub(crate) use convert::{request, response};

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::middleware::from_fn_with_state;
use bytes::Bytes;
use edgeward_trust::{Action, Resource, ResourceKind};
use futures_util::{StreamExt as _, future, stream::once};
use hyper::body::Incoming;
use prost::Message as _;
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::{
    Code, Request, Response, Status, Streaming, body::Body, codec::CompressionEncoding, metadata::MetadataMap,
    service::Routes,
};
use tower::Service;

use crate::{
    core::{LoadOverrides, ModelRef, ServeError, ServeErrorKind},
    gate::{Grant, allow, model_version},
    http::{self, Protocol, version_of},
    json,
    proto::{
        self,
        grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer},
    },
    telemetry::{App, Call, Slot},
};

/// Largest message either way; protobuf itself ends at 2 GiB.
const MESSAGE_BYTES_MAX: usize = i32::MAX as usize;
const SERVICE: &str = "inference.GRPCInferenceService";

/// Every service of the gRPC listener, each call within the time that its caller gives it.
#[derive(Clone)]
pub(crate) struct Services {
    /// None where every call must pass the router's layers.
    inference: Option<GrpcInferenceServiceServer<Inference>>,
    router: axum::Router,
    app: App,
    stopped: Stopped,
}

/// Tells of the end of the server.
#[derive(Clone)]
pub(crate) struct Stopped(pub(crate) watch::Receiver<bool>);

impl Stopped {
    async fn comes(mut self) {
        // An error means that nobody can say so any more, which is the end as well.
        let _ = self.0.wait_for(|stopped| *stopped).await;
    }
}

impl Services {
    /// The services of `app`, whose streams end once they are `stopped`. With an access log the router, which writes it, sees every
    /// call.
    pub(crate) fn new(app: App, stopped: Stopped) -> Self {
        let inference = GrpcInferenceServiceServer::new(Inference(app.clone()))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
            .accept_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Gzip);
        let routes = reflection(Routes::new(inference.clone()).add_service(health(app.clone(), stopped.clone())));
        let router = routes.prepare().into_axum_router();
        if app.telemetry.access.is_some() {
            let router = router.layer(from_fn_with_state((app.clone(), Protocol::Grpc), http::access));
            return Self { inference: None, router, app, stopped };
        }
        Self { inference: Some(inference), router, app, stopped }
    }

    /// The answer to a call that goes no further, with its access line.
    fn refused(&self, request: &::http::Request<Incoming>) -> Option<::http::Response<Body>> {
        let grpc = is_grpc(request.headers());
        if let Some(foreign) = self.app.foreign(request) {
            self.app.telemetry.refused(request, foreign.status());
            return Some(match grpc {
                true => Status::permission_denied(foreign.to_string()).into_http(),
                false => plain(foreign.status(), format!("{foreign}\n")),
            });
        }
        if grpc {
            return None;
        }
        let answer = not_grpc();
        self.app.telemetry.refused(request, answer.status());
        Some(answer)
    }
}

fn reflection(routes: Routes) -> Routes {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    match (builder().build_v1(), builder().build_v1alpha()) {
        (Ok(v1), Ok(alpha)) => routes.add_service(v1).add_service(alpha),
        (Err(e), _) | (_, Err(e)) => {
            tracing::error!(error = %e, "reflection is off: the descriptors are damaged");
            routes
        }
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<::http::Response<Body>, Infallible>> + Send>>;

impl Service<::http::Request<Incoming>> for Services {
    type Response = ::http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: ::http::Request<Incoming>) -> Answer {
        if let Some(refused) = self.refused(&request) {
            return Box::pin(async { Ok(refused) });
        }
        let limit = time_limit(request.headers());
        let request = messages::Messages::body(request, &self.app, &self.stopped);
        let inference = self.inference.as_mut();
        let inference = inference.filter(|_| request.uri().path().starts_with("/inference.GRPCInferenceService/"));
        let answer: Answer = match inference {
            Some(inference) => inference.call(request),
            None => {
                let answer = self.router.call(request);
                Box::pin(async move { answer.await.map(|answer| answer.map(Body::new)) })
            }
        };
        let Some(limit) = limit else { return answer };
        Box::pin(async move {
            let late = |_| Ok(Status::deadline_exceeded("the time that the caller gave is over").into_http());
            tokio::time::timeout(limit, answer).await.unwrap_or_else(late)
        })
    }
}

/// True where the message is one of protobuf over gRPC; forms such as `application/grpc+json` are others.
fn is_grpc(headers: &::http::HeaderMap) -> bool {
    let kind = headers.get(::http::header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split_once(';').map_or(kind, |(kind, _)| kind).trim_end();
    kind.eq_ignore_ascii_case("application/grpc") || kind.eq_ignore_ascii_case("application/grpc+proto")
}

/// 415, as gRPC over HTTP/2 asks for ("Requests", Content-Type).
fn not_grpc() -> ::http::Response<Body> {
    let text = "this address speaks gRPC, expected content type `application/grpc`; REST has an address of its own\n";
    plain(::http::StatusCode::UNSUPPORTED_MEDIA_TYPE, text.to_owned())
}

fn plain(status: ::http::StatusCode, text: String) -> ::http::Response<Body> {
    let mut answer = ::http::Response::new(Body::new(http_body_util::Full::from(text)));
    *answer.status_mut() = status;
    let kind = ::http::HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(::http::header::CONTENT_TYPE, kind);
    answer
}

/// `grpc-timeout`: at most eight digits and a unit (gRPC over HTTP/2, "Timeout"). One that is damaged bounds nothing.
fn time_limit(headers: &::http::HeaderMap) -> Option<Duration> {
    duration(headers.get("grpc-timeout")?.to_str().ok()?)
}

fn duration(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

fn health(app: App, stopped: Stopped) -> tonic_health::pb::health_server::HealthServer<Health> {
    tonic_health::pb::health_server::HealthServer::new(Health { app, stopped })
}

/// The standard health service, asking the core each time; service names are empty or models.
#[derive(Clone)]
struct Health {
    app: App,
    stopped: Stopped,
}

impl Health {
    async fn ask<T>(&self, request: &Request<T>, service: &str) -> Result<(), Status> {
        match service {
            "" | SERVICE => ask_server(&self.app, request, Action::Get, ResourceKind::Endpoint, "ready").await,
            name => ask(&self.app, request, Action::Ready, name, "").await,
        }
    }
}

type HealthStream = Pin<Box<dyn Stream<Item = Result<tonic_health::pb::HealthCheckResponse, Status>> + Send>>;

impl Health {
    fn status(&self, service: &str) -> Result<tonic_health::pb::HealthCheckResponse, Status> {
        use tonic_health::pb::health_check_response::ServingStatus;
        let ready = match service {
            "" | SERVICE => self.app.server.ready(),
            name => self.app.server.model_ready(&model(name, "")?).map_err(status)?,
        };
        let serving = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        Ok(tonic_health::pb::HealthCheckResponse { status: serving as i32 })
    }
}

#[tonic::async_trait]
impl tonic_health::pb::health_server::Health for Health {
    type WatchStream = HealthStream;

    async fn check(
        &self,
        request: Request<tonic_health::pb::HealthCheckRequest>,
    ) -> Result<Response<tonic_health::pb::HealthCheckResponse>, Status> {
        self.ask(&request, &request.get_ref().service).await?;
        self.status(&request.get_ref().service).map(Response::new)
    }

    async fn watch(
        &self,
        request: Request<tonic_health::pb::HealthCheckRequest>,
    ) -> Result<Response<HealthStream>, Status> {
        self.ask(&request, &request.get_ref().service).await?;
        let (this, service) = (self.clone(), request.into_inner().service);
        let stops = once(self.stopped.clone().comes());
        let ticks = tokio_stream::wrappers::IntervalStream::new(tokio::time::interval(Duration::from_secs(1)));
        let mut last = None;
        // At the end of the server it is looked at once more.
        let looks = ticks.map(|_| ()).take_until(self.stopped.clone().comes()).chain(stops);
        let changes = looks.filter_map(move |()| {
            let now = this.status(&service).unwrap_or(tonic_health::pb::HealthCheckResponse {
                status: tonic_health::pb::health_check_response::ServingStatus::ServiceUnknown as i32,
            });
            future::ready((last.replace(now.status) != Some(now.status)).then_some(Ok(now)))
        });
        Ok(Response::new(Box::pin(changes)))
    }
}

/// A refusal as gRPC states it.
fn status(error: ServeError) -> Status {
    let code = match error.kind {
        ServeErrorKind::InvalidArgument => Code::InvalidArgument,
        ServeErrorKind::NotFound => Code::NotFound,
        ServeErrorKind::Unavailable => Code::Unavailable,
        ServeErrorKind::Overloaded => Code::ResourceExhausted,
        ServeErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        ServeErrorKind::Cancelled => Code::Cancelled,
        ServeErrorKind::Unsupported => Code::Unimplemented,
        ServeErrorKind::Internal => Code::Internal,
    };
    Status::new(code, error.shown())
}

fn model(name: &str, version: &str) -> Result<ModelRef, Status> {
    Ok(ModelRef { name: name.into(), version: version_of(version).map_err(status)? })
}

/// The model of a load or an unload. KServe's messages have its name where Triton's have the repository's.
fn named<'a>(model: &'a str, repository: &'a str) -> &'a str {
    if model.is_empty() { repository } else { model }
}

fn unknown(parameter: &str, of: &str) -> Status {
    let text = format!("parameter `{parameter}` is not known for {of}");
    status(ServeError::new(ServeErrorKind::InvalidArgument, text))
}

fn no_shared_memory<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented(http::shared_memory::REFUSAL))
}

struct Inference(App);

/// Asks for a call about one model, and waits until that is written down.
async fn ask<T>(app: &App, request: &Request<T>, action: Action, name: &str, version: &str) -> Result<(), Status> {
    let model = model(name, version)?;
    let resource = || match action {
        Action::Load | Action::Unload | Action::Configure => Resource::new(ResourceKind::Model, &*model.name),
        _ => model_version(&app.server, &model.name, model.version),
    };
    settle(allow(app, request.extensions(), action, resource, 0).await?).await
}

/// Asks for a call about the server.
async fn ask_server<T>(
    app: &App,
    request: &Request<T>,
    action: Action,
    kind: ResourceKind,
    name: &str,
) -> Result<(), Status> {
    settle(allow(app, request.extensions(), action, || Resource::new(kind, name), 0).await?).await
}

async fn settle(grant: Option<Arc<Grant>>) -> Result<(), Status> {
    match grant {
        Some(grant) => Ok(grant.recorded().await?),
        None => Ok(()),
    }
}

async fn answer(
    app: &App,
    request: proto::ModelInferRequest,
    (action, extensions): (Action, &::http::Extensions),
    call: Call<'_>,
    deadline: Option<Duration>,
) -> Result<proto::ModelInferResponse, Status> {
    let slot = call.slot;
    let model = model(&request.model_name, &request.model_version)?;
    let bytes_in = if app.gate.is_some() || slot.is_some() { request.encoded_len() } else { 0 };
    let grant =
        allow(app, extensions, action, || model_version(&app.server, &model.name, model.version), bytes_in).await?;
    let raw = convert::is_raw(&request);
    if let Some(grant) = grant.as_ref().filter(|_| raw) {
        grant.body(request.raw_input_contents.iter().map(|bytes| &**bytes));
    }
    let call = Call { grant: grant.as_deref(), ..call };
    let mut request = convert::request(request, model).map_err(status)?;
    if let Some(grant) = grant.as_ref().filter(|_| !raw) {
        // As the raw contents would be: the same tensors have the same digest.
        let inputs: Vec<Bytes> = request.inputs.iter().map(|(_, tensor)| json::to_binary(tensor)).collect();
        grant.body(inputs.iter().map(|bytes| &**bytes));
    }
    request.timeout = request.timeout.into_iter().chain(deadline).min();
    let response = app.infer(request, call).await.map_err(status)?;
    let response = convert::response(response, raw).map_err(status)?;
    if let Some(grant) = &grant {
        grant.recorded().await?;
    }
    if let Some(slot) = slot {
        slot.sized(bytes_in, response.encoded_len());
    }
    Ok(response)
}

/// How long a request may wait in the queue: a tenth of the caller's time is kept back, so that the queue says why there
/// is no answer before the call ends.
fn deadline(metadata: &MetadataMap) -> Option<Duration> {
    let whole = duration(metadata.get("grpc-timeout")?.to_str().ok()?)?;
    Some(whole - whole / 10)
}

/// The caller's span.
fn parent(metadata: &MetadataMap) -> Option<&str> {
    metadata.get("traceparent")?.to_str().ok()
}

#[tonic::async_trait]
impl GrpcInferenceService for Inference {
    async fn server_live(
        &self,
        _: Request<proto::ServerLiveRequest>,
    ) -> Result<Response<proto::ServerLiveResponse>, Status> {
        Ok(Response::new(proto::ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<proto::ServerReadyRequest>,
    ) -> Result<Response<proto::ServerReadyResponse>, Status> {
        Ok(Response::new(proto::ServerReadyResponse { ready: self.0.server.ready() }))
    }

    async fn model_ready(
        &self,
        request: Request<proto::ModelReadyRequest>,
    ) -> Result<Response<proto::ModelReadyResponse>, Status> {
        let (name, version) = (&request.get_ref().name, &request.get_ref().version);
        ask(&self.0, &request, Action::Ready, name, version).await?;
        let request = request.get_ref();
        // Clients of this call expect false, not an error, for a model that is not there.
        let ready = self.0.server.model_ready(&model(&request.name, &request.version)?).unwrap_or(false);
        Ok(Response::new(proto::ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<proto::ServerMetadataRequest>,
    ) -> Result<Response<proto::ServerMetadataResponse>, Status> {
        Ok(Response::new(proto::ServerMetadataResponse {
            name: crate::SERVER_NAME.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: crate::EXTENSIONS.iter().map(|e| (*e).to_owned()).collect(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<proto::ModelMetadataRequest>,
    ) -> Result<Response<proto::ModelMetadataResponse>, Status> {
        let (name, version) = (&request.get_ref().name, &request.get_ref().version);
        ask(&self.0, &request, Action::Metadata, name, version).await?;
        let request = request.get_ref();
        self.0.server.model_metadata(&model(&request.name, &request.version)?).map(Response::new).map_err(status)
    }

    async fn model_infer(
        &self,
        request: Request<proto::ModelInferRequest>,
    ) -> Result<Response<proto::ModelInferResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let call = Call { parent: parent(&metadata), slot: extensions.get::<Slot>(), grant: None };
        answer(&self.0, message, (Action::Infer, &extensions), call, deadline(&metadata)).await.map(Response::new)
    }

    type ModelStreamInferStream = stream::InferStream;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<proto::ModelInferRequest>>,
    ) -> Result<Response<stream::InferStream>, Status> {
        Ok(Response::new(stream::run(self.0.clone(), request)))
    }

    async fn model_config(
        &self,
        request: Request<proto::ModelConfigRequest>,
    ) -> Result<Response<proto::ModelConfigResponse>, Status> {
        let (name, version) = (&request.get_ref().name, &request.get_ref().version);
        ask(&self.0, &request, Action::Config, name, version).await?;
        let request = request.get_ref();
        let config = self.0.server.model_config(&model(&request.name, &request.version)?).map_err(status)?;
        Ok(Response::new(proto::ModelConfigResponse { config: Some(config) }))
    }

    async fn model_statistics(
        &self,
        request: Request<proto::ModelStatisticsRequest>,
    ) -> Result<Response<proto::ModelStatisticsResponse>, Status> {
        let (name, version) = (&request.get_ref().name, &request.get_ref().version);
        match name.as_str() {
            "" => ask_server(&self.0, &request, Action::Get, ResourceKind::Endpoint, "statistics").await?,
            name => ask(&self.0, &request, Action::Statistics, name, version).await?,
        }
        let request = request.get_ref();
        let version = version_of(&request.version).map_err(status)?;
        let model_stats = self.0.server.statistics(&request.name, version).map_err(status)?;
        Ok(Response::new(proto::ModelStatisticsResponse { model_stats }))
    }

    async fn repository_index(
        &self,
        request: Request<proto::RepositoryIndexRequest>,
    ) -> Result<Response<proto::RepositoryIndexResponse>, Status> {
        use proto::repository_index_response::ModelIndex;
        let entries = self.0.server.index(request.get_ref().ready).into_iter().map(|e| ModelIndex {
            name: e.name,
            version: e.version,
            state: e.state.to_owned(),
            reason: e.reason,
        });
        Ok(Response::new(proto::RepositoryIndexResponse { models: entries.collect() }))
    }

    async fn repository_model_load(
        &self,
        request: Request<proto::RepositoryModelLoadRequest>,
    ) -> Result<Response<proto::RepositoryModelLoadResponse>, Status> {
        use proto::model_repository_parameter::ParameterChoice as Choice;
        let name = named(&request.get_ref().model_name, &request.get_ref().repository_name);
        ask(&self.0, &request, Action::Load, name, "").await?;
        let request = request.into_inner();
        let mut overrides = LoadOverrides::default();
        for (key, value) in request.parameters {
            match value.parameter_choice {
                Some(Choice::StringParam(text)) if key == "config" => overrides.config_json = Some(text),
                Some(Choice::BytesParam(bytes)) if key.starts_with("file:") => overrides.files.push((key, bytes)),
                _ => return Err(unknown(&key, "a load")),
            }
        }
        overrides.within(self.0.limits.load_bytes_max).map_err(status)?;
        let name = named(&request.model_name, &request.repository_name);
        self.0.server.load(name, overrides).await.map_err(status)?;
        Ok(Response::new(proto::RepositoryModelLoadResponse { model_name: name.to_owned(), is_loaded: true }))
    }

    async fn repository_model_unload(
        &self,
        request: Request<proto::RepositoryModelUnloadRequest>,
    ) -> Result<Response<proto::RepositoryModelUnloadResponse>, Status> {
        use proto::model_repository_parameter::ParameterChoice as Choice;
        let name = named(&request.get_ref().model_name, &request.get_ref().repository_name);
        ask(&self.0, &request, Action::Unload, name, "").await?;
        let request = request.into_inner();
        let mut dependents = false;
        for (key, value) in request.parameters {
            match value.parameter_choice {
                Some(Choice::BoolParam(value)) if key == "unload_dependents" => dependents = value,
                _ => return Err(unknown(&key, "an unload")),
            }
        }
        let name = named(&request.model_name, &request.repository_name);
        self.0.server.unload(name, dependents).await.map_err(status)?;
        Ok(Response::new(proto::RepositoryModelUnloadResponse { model_name: name.to_owned(), is_unloaded: true }))
    }

    async fn system_shared_memory_status(
        &self,
        _: Request<proto::SystemSharedMemoryStatusRequest>,
    ) -> Result<Response<proto::SystemSharedMemoryStatusResponse>, Status> {
        Ok(Response::new(proto::SystemSharedMemoryStatusResponse::default()))
    }

    async fn system_shared_memory_register(
        &self,
        _: Request<proto::SystemSharedMemoryRegisterRequest>,
    ) -> Result<Response<proto::SystemSharedMemoryRegisterResponse>, Status> {
        no_shared_memory()
    }

    async fn system_shared_memory_unregister(
        &self,
        _: Request<proto::SystemSharedMemoryUnregisterRequest>,
    ) -> Result<Response<proto::SystemSharedMemoryUnregisterResponse>, Status> {
        // None is registered, so none is left.
        Ok(Response::new(proto::SystemSharedMemoryUnregisterResponse::default()))
    }

    async fn cuda_shared_memory_status(
        &self,
        _: Request<proto::CudaSharedMemoryStatusRequest>,
    ) -> Result<Response<proto::CudaSharedMemoryStatusResponse>, Status> {
        Ok(Response::new(proto::CudaSharedMemoryStatusResponse::default()))
    }

    async fn cuda_shared_memory_register(
        &self,
        _: Request<proto::CudaSharedMemoryRegisterRequest>,
    ) -> Result<Response<proto::CudaSharedMemoryRegisterResponse>, Status> {
        no_shared_memory()
    }

    async fn cuda_shared_memory_unregister(
        &self,
        _: Request<proto::CudaSharedMemoryUnregisterRequest>,
    ) -> Result<Response<proto::CudaSharedMemoryUnregisterResponse>, Status> {
        // None is registered, so none is left.
        Ok(Response::new(proto::CudaSharedMemoryUnregisterResponse::default()))
    }

    async fn trace_setting(
        &self,
        request: Request<proto::TraceSettingRequest>,
    ) -> Result<Response<proto::TraceSettingResponse>, Status> {
        match request.get_ref().model_name.as_str() {
            "" => ask_server(&self.0, &request, Action::Call, ResourceKind::AdminCall, "trace").await?,
            name => ask(&self.0, &request, Action::Configure, name, "").await?,
        }
        settings::trace(&self.0, request.into_inner()).map(Response::new)
    }

    async fn log_settings(
        &self,
        request: Request<proto::LogSettingsRequest>,
    ) -> Result<Response<proto::LogSettingsResponse>, Status> {
        settings::log(&self.0, request.into_inner()).map(Response::new)
    }
}

//! What a call asks for, by its path. What stands in no table here is denied.

use std::borrow::Cow;

use edgeward_trust::{Action, Resource, ResourceKind};
use http::Method;
use percent_encoding::percent_decode_str;

use crate::core::{ModelRef, Server};

/// What a path says of its call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// All: this is to be decided before the call.
    Asks(Action, Resource),
    /// The message names a model: who handles it asks. A stream does so for each of its messages.
    Within {
        /// Whether messages go on coming.
        streams: bool,
    },
    /// It is a credential that is exchanged: nobody is known yet.
    Exchange,
    /// No such call.
    Unknown,
}

/// The call of a REST path.
pub(super) fn rest(method: &Method, path: &str, server: &Server) -> Route {
    let Some(segments) = segments(path) else { return Route::Unknown };
    let segments: Vec<&str> = segments.iter().map(|segment| &**segment).collect();
    let get = method == Method::GET || method == Method::HEAD;
    let post = method == Method::POST;
    let changes = post || method == Method::DELETE;
    match segments.as_slice() {
        [""] | [] if get => endpoint("page"),
        ["metrics"] if get => endpoint("metrics"),
        ["v2"] if get => endpoint("server"),
        ["v2", "openapi.json"] if get => endpoint("openapi"),
        ["v2", "health", "live"] if get => endpoint("live"),
        ["v2", "health", "ready"] if get => endpoint("ready"),
        ["v2", "models", "stats"] if get => endpoint("statistics"),
        ["v2", "trace", "setting"] if get || post => admin("trace"),
        ["v2", "logging"] if get || post => admin("log"),
        ["v2", "repository", "index"] if post => endpoint("index"),
        ["v2", "repository", "models", model, "load"] if post => on_model(Action::Load, model),
        ["v2", "repository", "models", model, "unload"] if post => on_model(Action::Unload, model),
        ["v2", "trust", "token"] if post => Route::Exchange,
        ["v2", "trust", "keys"] if get => endpoint("keys"),
        ["v2", "trust", "policies"] if get || changes => admin("policy"),
        ["v2", "trust", "revocations"] if changes => admin("revoke"),
        ["v2", "trust", "audit"] if get => admin("audit"),
        ["v2", "models", model, "trace", "setting"] if get || post => on_model(Action::Configure, model),
        ["v2", "systemsharedmemory" | "cudasharedmemory", ..] => endpoint("shared_memory"),
        ["v2", "models", model] if get => versioned(Action::Metadata, model, None, server),
        ["v2", "models", model, verb] => match verb_action(verb, method) {
            Some(action) => versioned(action, model, None, server),
            None => Route::Unknown,
        },
        ["v2", "models", model, "versions", version] if get => {
            versioned(Action::Metadata, model, Some(version), server)
        }
        ["v2", "models", model, "versions", version, verb] => match verb_action(verb, method) {
            Some(action) => versioned(action, model, Some(version), server),
            None => Route::Unknown,
        },
        _ => Route::Unknown,
    }
}

/// The call of a gRPC path.
pub(super) fn grpc(path: &str) -> Route {
    if path.starts_with("/grpc.reflection.") {
        return endpoint("reflection");
    }
    if let Some(call) = path.strip_prefix("/grpc.health.v1.Health/") {
        return if matches!(call, "Check" | "Watch") { Route::Within { streams: false } } else { Route::Unknown };
    }
    let Some(call) = path.strip_prefix("/inference.GRPCInferenceService/") else { return Route::Unknown };
    match call {
        "ServerLive" => endpoint("live"),
        "ServerReady" => endpoint("ready"),
        "ServerMetadata" => endpoint("server"),
        "RepositoryIndex" => endpoint("index"),
        "LogSettings" => admin("log"),
        "ModelReady"
        | "ModelMetadata"
        | "ModelInfer"
        | "ModelConfig"
        | "ModelStatistics"
        | "RepositoryModelLoad"
        | "RepositoryModelUnload"
        | "TraceSetting" => Route::Within { streams: false },
        "ModelStreamInfer" => Route::Within { streams: true },
        _ if call.starts_with("SystemSharedMemory") || call.starts_with("CudaSharedMemory") => {
            endpoint("shared_memory")
        }
        _ => Route::Unknown,
    }
}

/// The parts of a path as the router tells them apart, decoded; none where one is no text.
fn segments(path: &str) -> Option<Vec<Cow<'_, str>>> {
    let path = path.strip_prefix('/')?;
    path.split('/').map(|segment| percent_decode_str(segment).decode_utf8().ok()).collect()
}

fn verb_action(verb: &str, method: &Method) -> Option<Action> {
    match verb {
        "infer" if method == Method::POST => Some(Action::Infer),
        "ready" if method != Method::POST => Some(Action::Ready),
        "config" if method != Method::POST => Some(Action::Config),
        "stats" if method != Method::POST => Some(Action::Statistics),
        _ => None,
    }
}

fn endpoint(name: &str) -> Route {
    Route::Asks(Action::Get, Resource::new(ResourceKind::Endpoint, name))
}

fn admin(name: &str) -> Route {
    Route::Asks(Action::Call, Resource::new(ResourceKind::AdminCall, name))
}

fn on_model(action: Action, model: &str) -> Route {
    Route::Asks(action, Resource::new(ResourceKind::Model, model))
}

fn versioned(action: Action, model: &str, version: Option<&str>, server: &Server) -> Route {
    match version.map(str::parse).transpose() {
        Ok(version) => Route::Asks(action, model_version(server, model, version)),
        Err(_) => Route::Unknown,
    }
}

/// The version that is meant: the one that would answer where none is named.
pub(crate) fn model_version(server: &Server, model: &str, version: Option<u64>) -> Resource {
    let version =
        version.or_else(|| server.version(&ModelRef { name: model.into(), version: None }).ok()?.number.into());
    match version {
        Some(version) => Resource::version(model, version),
        None => Resource::new(ResourceKind::Model, model),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn server() -> Server {
        Server::start(crate::core::ServerConfig::default()).await.unwrap()
    }

    /// A route of the router that no table here knows could not be called by anybody.
    #[tokio::test]
    async fn every_route_says_what_it_asks_for() {
        let server = server().await;
        let document = crate::http::operations_document();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for method in methods.as_object().unwrap().keys() {
                let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
                let path = path.replace("{model}", "m").replace("{version}", "7").replace("{region}", "r");
                let route = rest(&method, &path, &server);
                assert_ne!(route, Route::Unknown, "{method} {path}");
            }
        }
        let descriptors =
            <prost_types::FileDescriptorSet as prost::Message>::decode(crate::proto::DESCRIPTORS).unwrap();
        let mut calls = 0;
        for service in descriptors.file.iter().flat_map(|file| &file.service) {
            for method in &service.method {
                let path = format!("/inference.{}/{}", service.name(), method.name());
                assert_ne!(grpc(&path), Route::Unknown, "{path}");
                calls += 1;
            }
        }
        assert_eq!(calls, 20);
    }

    #[tokio::test]
    async fn what_is_in_no_table_is_unknown() {
        let server = server().await;
        for (method, path) in [
            (Method::POST, "/v2"),
            (Method::GET, "/v2/models/m/infer"),
            (Method::DELETE, "/v2/models/m"),
            (Method::GET, "/v2/models/m/versions/x"),
            (Method::GET, "/v2/models/%ff"),
            (Method::GET, "//v2"),
            (Method::GET, "/v2/models/a/b/c"),
            (Method::GET, "/v2/trust/token"),
            (Method::PUT, "/v2/trust/policies"),
        ] {
            assert_eq!(rest(&method, path, &server), Route::Unknown, "{method} {path}");
        }
        for path in [
            "/",
            "/inference.GRPCInferenceService/Nothing",
            "/grpc.health.v1.Health/Nothing",
            "/other.Service/ServerLive",
        ] {
            assert_eq!(grpc(path), Route::Unknown, "{path}");
        }
        let asks = |path: &str| rest(&Method::GET, path, &server);
        // A name is what the router makes of it.
        assert_eq!(asks("/v2/models/a%2Fb"), Route::Asks(Action::Metadata, Resource::new(ResourceKind::Model, "a/b")));
        assert_eq!(asks("/v2/models/m/versions/3"), Route::Asks(Action::Metadata, Resource::version("m", 3)));
    }
}

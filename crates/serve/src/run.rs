//! Binds the listeners, says so, serves until told to stop, and drains.

use std::{future::Future, net::SocketAddr, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use axum::{Router, routing::get};
use edgeward_trust::TrustError;
use tokio::{net::TcpListener, sync::watch};

use crate::{
    core::{ServeError, Server, ServerConfig},
    gate::{Gate, Gated, TrustConfig},
    grpc, http,
    limits::Limits,
    listen::{self, Connections},
    ready::ReadyFile,
    rest::Rest,
    telemetry::{App, Telemetry, TelemetryConfig, TelemetryError},
};

/// Where to listen and what to serve.
pub struct RunConfig {
    /// REST; none for no listener. Port 0 takes a free one.
    pub http: Option<SocketAddr>,
    /// gRPC.
    pub grpc: Option<SocketAddr>,
    /// Prometheus metrics.
    pub metrics: Option<SocketAddr>,
    /// Written whole once every model that should serve does: the bound addresses as JSON. Removed at the start and at the end.
    pub ready_file: Option<PathBuf>,
    /// Models and engines.
    pub server: ServerConfig,
    /// Longest drain after the stop signal.
    pub grace: Duration,
    /// Access log, traces and log settings.
    pub telemetry: TelemetryConfig,
    /// What a peer may use.
    pub limits: Limits,
    /// Who may call; plain listeners on loopback, where nobody is asked, without.
    pub trust: Option<TrustConfig>,
}

/// Why a server did not start or did not end well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A plain listener may be on loopback only.
    #[error("cannot listen on {0} without TLS: plain listeners are for loopback addresses only")]
    NotLoopback(SocketAddr),
    /// An address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Address asked for.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The repositories cannot be read.
    #[error(transparent)]
    Models(#[from] ServeError),
    /// The access log or the traces have no place to go.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// The server has no certificate to answer with.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The ready file cannot be written.
    #[error("cannot write `{}`: {source}", path.display())]
    ReadyFile {
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Requests were still running when the grace time was over.
    #[error("requests were still running after the grace time of {0:?}")]
    NotDrained(Duration),
}

/// Bound addresses, as the ready file shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Addresses {
    /// REST.
    pub http: Option<SocketAddr>,
    /// gRPC.
    pub grpc: Option<SocketAddr>,
    /// Metrics.
    pub metrics: Option<SocketAddr>,
}

/// A server whose listeners are open.
pub struct Listening {
    addresses: Addresses,
    server: Server,
    telemetry: Arc<Telemetry>,
    http: Option<TcpListener>,
    grpc: Option<TcpListener>,
    metrics: Option<TcpListener>,
    ready_file: Option<ReadyFile>,
    grace: Duration,
    connections: Connections,
    limits: Limits,
    gate: Option<Arc<Gate>>,
}

/// Serves until `shutdown` resolves, then drains. An error where it did not start or not drain in time.
pub async fn run(config: RunConfig, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    Listening::open(config).await?.serve_until(shutdown).await
}

impl Listening {
    /// Loads the models and binds every listener.
    pub async fn open(config: RunConfig) -> Result<Self, RunError> {
        let ready_file = config.ready_file.map(ReadyFile::claim).transpose()?;
        let (http, grpc, metrics) = {
            let plain = config.trust.is_none();
            (bind(config.http, plain).await?, bind(config.grpc, plain).await?, bind(config.metrics, plain).await?)
        };
        let address = |l: &Option<TcpListener>| l.as_ref().and_then(|l| l.local_addr().ok());
        let addresses = Addresses { http: address(&http), grpc: address(&grpc), metrics: address(&metrics) };
        let telemetry = Telemetry::start(config.telemetry)?;
        let server = Server::start(config.server).await?;
        let (grace, limits) = (config.grace, config.limits);
        let connections = Connections::new(config.limits);
        let connections = if telemetry.access.is_some() { connections.naming_peers() } else { connections };
        let gate = config.trust.map(Gate::open).transpose()?;
        let connections = match &gate {
            Some(gate) => connections.over_tls(gate.acceptor()?),
            None => connections,
        };
        Ok(Self { addresses, server, telemetry, http, grpc, metrics, ready_file, grace, connections, limits, gate })
    }

    /// The bound addresses.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The serving core.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Serves until `shutdown` resolves; every request accepted by then is answered within the grace time.
    pub async fn serve_until(self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        let (stop, stopped) = watch::channel(false);
        let mut listeners = tokio::task::JoinSet::new();
        let app = App {
            server: self.server.clone(),
            telemetry: self.telemetry.clone(),
            limits: self.limits,
            gate: self.gate.clone(),
        };
        let (server, telemetry, gate) = (self.server.clone(), self.telemetry.clone(), self.gate.clone());
        let metrics_text = move || async move {
            let trust = gate.map(|gate| gate.metrics_text()).unwrap_or_default();
            server.metrics_text() + &telemetry.metrics_text() + &trust
        };
        let metrics = Router::new().route("/metrics", get(metrics_text));
        let rest = Rest::new(app.clone(), http::router(app.clone()));
        for (listener, service) in [(self.http, rest), (self.metrics, Rest::plain(app.clone(), metrics))] {
            let Some(listener) = listener else { continue };
            let service = Gated::new(app.clone(), service);
            listeners.spawn(listen::serve(listener, service, self.connections.clone(), stopped.clone()));
        }
        if let Some(listener) = self.grpc {
            let services = grpc::Services::new(app.clone(), grpc::Stopped(stopped.clone()));
            let services = Gated::new(app, services);
            listeners.spawn(listen::serve(listener, services, self.connections.clone(), stopped));
        }
        let told = until(shutdown, self.ready_file, &self.server, &self.addresses).await;
        self.server.begin_drain();
        // Listeners close; open connections finish what they have begun.
        let _ = stop.send(true);
        let ended = async {
            while listeners.join_next().await.is_some() {}
            self.connections.closed().await;
        };
        let ended = tokio::time::timeout(self.grace, ended).await;
        let drained = self.server.drain(Duration::ZERO).await;
        let telemetry = self.telemetry;
        // The sinks' own threads are waited for: not on a thread that serves.
        let _ = tokio::task::spawn_blocking(move || telemetry.end()).await;
        // Idle connections that stayed open to the end of the grace time are no lost requests.
        if ended.is_err() && !drained { Err(RunError::NotDrained(self.grace)) } else { told }
    }
}

/// Waits for `shutdown`, or that the ready file cannot be written. It is there from when the server is ready until then.
async fn until(
    shutdown: impl Future<Output = ()>,
    mut file: Option<ReadyFile>,
    server: &Server,
    addresses: &Addresses,
) -> Result<(), RunError> {
    let mut shutdown = pin!(shutdown);
    if let Some(file) = &mut file {
        tokio::select! {
            biased;
            () = shutdown.as_mut() => return Ok(()),
            written = file.write_when_ready(server, addresses) => written?,
        }
    }
    shutdown.await;
    Ok(())
}

async fn bind(address: Option<SocketAddr>, plain: bool) -> Result<Option<TcpListener>, RunError> {
    let Some(address) = address else { return Ok(None) };
    if plain && !address.ip().is_loopback() {
        return Err(RunError::NotLoopback(address));
    }
    TcpListener::bind(address).await.map(Some).map_err(|source| RunError::Bind { address, source })
}

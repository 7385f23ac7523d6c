//! `edgeward serve`: models over the Open Inference Protocol until a signal ends it.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use edgeward_serve::{RunConfig, core::ModelControl, core::ServerConfig};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    Context,
    engines::EngineArgs,
    failure::{Failure, OrInput as _, Outcome},
};

/// Options of `edgeward serve`.
#[derive(clap::Args)]
pub struct ServeArgs {
    /// Triton repositories, folders of `.onnx` files, or files
    #[arg(value_name = "PATH")]
    models: Vec<PathBuf>,
    /// Address of the REST listener; port 0 takes a free one [default: 127.0.0.1:8000]
    #[arg(long, env = "EDGEWARD_HTTP", value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Address of the gRPC listener [default: 127.0.0.1:8001]
    #[arg(long, env = "EDGEWARD_GRPC", value_name = "ADDR")]
    grpc: Option<SocketAddr>,
    /// Address of Prometheus metrics [default: 127.0.0.1:8002]
    #[arg(long, env = "EDGEWARD_METRICS", value_name = "ADDR")]
    metrics: Option<SocketAddr>,
    /// File that is written whole, once ready, with the bound addresses
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Serve without TLS and without identities, on loopback addresses only
    #[arg(long)]
    insecure: bool,
    /// Load no model at start but those of --load-model; others by the repository API
    #[arg(long)]
    explicit: bool,
    /// A model to load at start with --explicit; may be repeated
    #[arg(long, value_name = "NAME", requires = "explicit")]
    load_model: Vec<String>,
    /// Longest wait for requests in flight after SIGTERM [default: 30]
    #[arg(long, env = "EDGEWARD_GRACE_SECONDS", value_name = "S")]
    grace_seconds: Option<u64>,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Runs the command.
pub fn run(args: ServeArgs, context: &Context) -> Outcome {
    let settings = &context.settings.serve;
    let models = if args.models.is_empty() { settings.models.clone().unwrap_or_default() } else { args.models };
    if models.is_empty() {
        return Err(Failure::input("nothing to serve: name a model file, a folder of models or a Triton repository"));
    }
    if !args.insecure {
        return Err(Failure::input(
            "a plain listener needs `--insecure`: requests would be neither encrypted nor verified; \
             it serves loopback addresses only",
        ));
    }
    let or = |flag: Option<SocketAddr>, file: Option<SocketAddr>, port: u16| {
        Some(flag.or(file).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], port))))
    };
    let engine = args.engine.or(&context.settings.engine);
    let control = if args.explicit { ModelControl::Explicit(args.load_model) } else { ModelControl::Fixed };
    let config = RunConfig {
        http: or(args.http, settings.http, 8000),
        grpc: or(args.grpc, settings.grpc, 8001),
        metrics: or(args.metrics, settings.metrics, 8002),
        ready_file: args.ready_file,
        server: ServerConfig { repositories: models, engine: engine.engine, threads: engine.threads, control },
        grace: Duration::from_secs(args.grace_seconds.or(settings.grace_seconds).unwrap_or(30)),
    };
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::INFO).init();
    tracing::warn!("--insecure: requests are neither encrypted nor verified; loopback only");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listening = edgeward_serve::Listening::open(config).await.or_input()?;
        let at = listening.addresses();
        let text = |a: Option<SocketAddr>| a.map_or_else(|| "off".to_owned(), |a| a.to_string());
        tracing::info!(http = text(at.http), grpc = text(at.grpc), metrics = text(at.metrics), "listening");
        let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stop = async {
            tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
            tracing::info!("draining");
        };
        listening.serve_until(stop).await?;
        Ok(())
    })
}

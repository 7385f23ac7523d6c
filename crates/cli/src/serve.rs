//! `edgeward serve`: models over the Open Inference Protocol until a signal ends it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    num::{NonZeroU64, NonZeroUsize},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::anyhow;
use edgeward_serve::{
    Limits, Listening, RunConfig, RunError,
    core::{ModelControl, ReleaseConfig, ReleaseGoal, ServeErrorKind, ServerConfig, Tuned, Tuning},
};
use edgeward_trust::policy::Policies;
use tokio::sync::Notify;

use crate::{
    Context,
    engines::{self, EngineArgs},
    failure::{Failure, Outcome},
    gate,
    log::{self, LogFormat},
    memory, print,
    release::opening::{OpeningArgs, Stores, is_place},
    settings::ServeSettings,
    signals::Signals,
    telemetry::TelemetryArgs,
    trust::authority::Unlocking,
    tune::result::{self, Goal},
};

const HTTP_PORT: u16 = 8000;
const GRPC_PORT: u16 = 8001;
const METRICS_PORT: u16 = 8002;
const GRACE_SECONDS: u64 = 30;
const WATCH_SECONDS: u64 = 15;
/// What remembers the newest releases, in the trust folder.
const FLOOR: &str = "floor.json";

const NEEDS_TRUST: &str = "a listener needs a certificate, and callers need policies: `edgeward trust init DIR` makes both, \
    `--trust DIR` takes them. For callers on this machine alone, `--insecure` serves without TLS and without asking who \
    calls, on loopback addresses only";

/// Options of `edgeward serve`.
#[derive(clap::Args)]
pub struct ServeArgs {
    /// Triton repositories, folders of `.onnx` files or of releases, files, or releases; also a place that releases were pushed to, as
    /// `s3://BUCKET/PREFIX`
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
    /// File that is written whole, with the bound addresses, once every model that should serve does
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Folder that `edgeward trust init` made: TLS, callers' identities, policies and the audit log
    #[arg(long, env = "EDGEWARD_TRUST", value_name = "DIR", conflicts_with = "insecure")]
    trust: Option<PathBuf>,
    #[command(flatten)]
    unlock: Unlocking,
    /// Serve without TLS and without identities, on loopback addresses only
    #[arg(long)]
    insecure: bool,
    /// Load no model at start but those of --load-model; others by the repository API
    #[arg(long)]
    explicit: bool,
    /// A model to load at start with --explicit; may be repeated
    #[arg(long, value_name = "NAME", requires = "explicit")]
    load_model: Vec<String>,
    /// Follow the files: load what is new or changed, unload what is gone
    #[arg(long, env = "EDGEWARD_WATCH")]
    watch: bool,
    /// With --watch, look at the files at least this often, told of changes or not [default: 15]
    #[arg(long, env = "EDGEWARD_WATCH_SECONDS", value_name = "S")]
    watch_seconds: Option<NonZeroU64>,
    /// Longest wait for requests in flight after SIGTERM [default: 30]
    #[arg(long, env = "EDGEWARD_GRACE_SECONDS", value_name = "S")]
    grace_seconds: Option<u64>,
    /// Memory for answers of models whose configuration asks for a response cache, in bytes [default: 0]
    #[arg(long, env = "EDGEWARD_CACHE_BYTES", value_name = "N")]
    cache_bytes: Option<u64>,
    #[command(flatten)]
    engine: EngineArgs,
    /// What results of `edgeward tune` are taken for [default: latency]
    #[arg(long, env = "EDGEWARD_GOAL", value_name = "GOAL")]
    goal: Option<Goal>,
    /// Form of log lines [default: text on a terminal, else json]
    #[arg(long, env = "EDGEWARD_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    #[command(flatten)]
    telemetry: TelemetryArgs,
    #[command(flatten)]
    releases: OpeningArgs,
    /// File that remembers the newest release of each name; an older one is refused [default: `floor.json` in the trust folder]
    #[arg(long, env = "EDGEWARD_RELEASE_FLOOR", value_name = "FILE")]
    floor: Option<PathBuf>,
    /// Folder for releases from object storage, sealed where they are [default: `edgeward/releases` in the user's cache folder]
    #[arg(long, env = "EDGEWARD_RELEASE_CACHE", value_name = "FOLDER")]
    release_cache: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: ServeArgs, context: &Context) -> Outcome {
    let log = log::init(args.log_format);
    let mut config = config(&args, context)?;
    config.telemetry.log = Some(log);
    let folder = args.trust.clone().or_else(|| context.settings.trust.folder.clone()).filter(|_| !args.insecure);
    let mut listed = None;
    if let Some(folder) = &folder {
        let settings = &context.settings.trust;
        let trust = gate::config(folder, settings, &args.unlock)?;
        listed = Some((trust.policies.clone(), trust.followed.policies.clone()));
        config.trust = Some(trust);
    } else if args.insecure {
        tracing::warn!("INSECURE: no TLS, and any program on this machine may call, load and unload every model");
    } else {
        return Err(Failure::input(NEEDS_TRUST));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(config, listed, context))
}

fn config(args: &ServeArgs, context: &Context) -> Result<RunConfig, Failure> {
    let settings = &context.settings.serve;
    let address = |flag: Option<SocketAddr>, file: Option<SocketAddr>, port| {
        flag.or(file).unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    };
    let http = address(args.http, settings.http, HTTP_PORT);
    let grpc = address(args.grpc, settings.grpc, GRPC_PORT);
    let metrics = address(args.metrics, settings.metrics, METRICS_PORT);
    if let Some(open) = [http, grpc, metrics].iter().find(|address| args.insecure && !address.ip().is_loopback()) {
        return Err(Failure::input(format!("`--insecure` is for loopback addresses only, `{open}` is none")));
    }
    Ok(RunConfig {
        http: Some(http),
        grpc: Some(grpc),
        metrics: Some(metrics),
        ready_file: args.ready_file.clone(),
        server: server(args, context)?,
        telemetry: args.telemetry.config(&settings.telemetry)?,
        grace: Duration::from_secs(args.grace_seconds.or(settings.grace_seconds).unwrap_or(GRACE_SECONDS)),
        limits: limits(settings)?,
        trust: None,
    })
}

/// What the file says of the bounds of the listeners.
fn limits(settings: &ServeSettings) -> Result<Limits, Failure> {
    let default = Limits::default();
    let head_bytes_max = settings.head_bytes_max.unwrap_or(default.head_bytes_max);
    let allowed = Limits::HEAD_BYTES_LEAST..=Limits::HEAD_BYTES_MOST;
    if !allowed.contains(&head_bytes_max) {
        let (least, most) = (allowed.start(), allowed.end());
        let text = format!("`head_bytes_max = {head_bytes_max}` in `[serve]`, expected {least} to {most}");
        return Err(Failure::input(text));
    }
    Ok(Limits {
        connections_max: settings.connections_max.map_or(default.connections_max, NonZeroUsize::get),
        head_bytes_max,
        head_lines_max: settings.head_lines_max.map_or(default.head_lines_max, NonZeroUsize::get),
        load_bytes_max: settings.load_bytes_max.unwrap_or(default.load_bytes_max),
        unread_max: settings.unread_seconds_max.map_or(default.unread_max, |s| Duration::from_secs(s.get())),
    })
}

fn server(args: &ServeArgs, context: &Context) -> Result<ServerConfig, Failure> {
    let from_file = || context.settings.serve.models.clone().unwrap_or_default();
    let models = if args.models.is_empty() { from_file() } else { args.models.clone() };
    let (places, repositories): (Vec<PathBuf>, Vec<PathBuf>) = models.into_iter().partition(|path| is_place(path));
    if repositories.is_empty() && places.is_empty() {
        return Err(Failure::input("nothing to serve: name a model file, a folder of models or a Triton repository"));
    }
    if let Some(missing) = repositories.iter().find(|path| !path.exists()) {
        let missing = missing.display();
        return Err(Failure::input(format!("`{missing}` does not exist; expected a model file or a folder of models")));
    }
    let engine = args.engine.or(&context.settings.engine)?;
    if let Some(unknown) = engine.engine.as_deref().filter(|name| !edgeward_engine::NAMES.contains(name)) {
        let known = edgeward_engine::NAMES.join("`, `");
        return Err(Failure::input(format!("no engine `{unknown}`; there are `{known}`")));
    }
    let control = if args.explicit { ModelControl::Explicit(args.load_model.clone()) } else { ModelControl::Fixed };
    let cache_bytes = args.cache_bytes.or(context.settings.serve.cache_bytes).unwrap_or(0);
    let settings = &context.settings.serve;
    let seconds = args.watch_seconds.or(settings.watch_seconds).map_or(WATCH_SECONDS, NonZeroU64::get);
    let watches = args.watch || settings.watch.unwrap_or(false);
    let goal = args.goal.or(settings.goal).unwrap_or_default();
    Ok(ServerConfig {
        repositories,
        releases: releases(args, context, &places, goal)?,
        engines: engines::registry_config(&context.settings.engine),
        engine: engine.engine,
        threads: engine.threads,
        providers: engine.providers,
        tuning: Tuning::new(move |model| tuned(model, goal)),
        watch: watches.then(|| Duration::from_secs(seconds)),
        cache_bytes,
        control,
    })
}

/// How releases are opened.
fn releases(args: &ServeArgs, context: &Context, places: &[PathBuf], goal: Goal) -> Result<ReleaseConfig, Failure> {
    let settings = &context.settings.release;
    let trust = args.trust.as_ref().or(context.settings.trust.folder.as_ref()).filter(|_| !args.insecure);
    let floor =
        args.floor.clone().or_else(|| settings.floor.clone()).or_else(|| trust.map(|folder| folder.join(FLOOR)));
    let cache = args.release_cache.clone().or_else(|| settings.cache.clone());
    let goal = match goal {
        Goal::Latency => ReleaseGoal::Latency,
        Goal::Throughput => ReleaseGoal::Throughput,
    };
    args.releases.resolve(settings).config(Stores { floor, places, cache }, goal)
}

/// What `tune` found for a model's file. A result that cannot be read must not keep the model from serving.
fn tuned(model: &Path, goal: Goal) -> Option<Tuned> {
    let best = match result::beside(model, goal) {
        Ok(found) => found?,
        Err(Failure::Input(error) | Failure::Work(error)) => {
            tracing::warn!(model = %model.display(), %error, "a result of `tune` is not used");
            return None;
        }
    };
    // Latency was measured one request at a time; what that says of many at once is nothing.
    let many = |n: NonZeroUsize| (goal == Goal::Throughput).then_some(n);
    let (instances, batch) = (many(best.instances), many(best.batch));
    Some(Tuned { engine: best.engine, threads: best.threads, instances, batch })
}

async fn serve(config: RunConfig, listed: Option<(Arc<Policies>, PathBuf)>, context: &Context) -> Outcome {
    memory::give_back_in_idle_times();
    // Taken before the models load: a signal during a long start must not be lost.
    let mut signals = Signals::new()?;
    let listening = tokio::select! {
        opened = Listening::open(config) => opened.map_err(not_started)?,
        () = signals.next() => return Ok(()),
    };
    announce(&listening, context)?;
    if let Some((policies, folder)) = listed {
        let index = listening.server().index(true);
        gate::warn_of_unlisted(&policies, &folder, index.iter().map(|model| (&*model.name, &*model.version)));
    }
    let draining = Notify::new();
    let ended = listening.serve_until(draining.notified());
    let signalled = async {
        signals.next().await;
        tracing::info!("stopping: not ready any more, answering what was accepted; a second signal ends at once");
        draining.notify_one();
        signals.next().await;
    };
    tokio::select! {
        ended = ended => ended?,
        () = signalled => return Err(Failure::Work(anyhow!("a second signal ended the server before all was answered"))),
    }
    tracing::info!("stopped");
    Ok(())
}

fn not_started(error: RunError) -> Failure {
    match error {
        // A place that does not answer is no mistake of who named it.
        RunError::Models(ref unread) if unread.kind == ServeErrorKind::Unavailable => Failure::Work(error.into()),
        // Folders and files of models are named on the command line.
        RunError::NotLoopback(_) | RunError::Models(_) | RunError::Telemetry(_) | RunError::ReadyFile { .. } => {
            Failure::Input(error.into())
        }
        _ => Failure::Work(error.into()),
    }
}

fn announce(listening: &Listening, context: &Context) -> Outcome {
    for model in listening.server().index(false) {
        let (name, version) = (model.name, model.version);
        match model.state {
            // The core has said that it loaded; empty is what was not asked for.
            "READY" | "" => {}
            state => tracing::warn!(model = name, version, state, reason = model.reason, "does not serve"),
        }
    }
    let at = listening.addresses();
    let shown = |address: Option<SocketAddr>| address.map_or_else(|| "off".to_owned(), |address| address.to_string());
    tracing::info!(http = shown(at.http), grpc = shown(at.grpc), metrics = shown(at.metrics), "listening");
    if context.json { print::json(&at) } else { Ok(()) }
}

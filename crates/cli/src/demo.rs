//! `edgeward demo`: the whole way on this machine in a minute: a model learns, is served and asked, and what that costs is told.

mod digits;
pub mod model;
mod smaller;
mod training;

use std::{
    fs::{read, read_to_string},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, ensure};
use edgeward_engine::{
    NAMES, Provider, Registry, RegistryConfig, RunOptions, Session, SessionOptions, Source, install,
};
use edgeward_graph::Tensor;
use edgeward_serve::{
    Addresses, Limits, Listening, RunConfig, TelemetryConfig,
    core::{ModelControl, ServerConfig},
};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use crate::{
    Context,
    engines::{self, ProviderArgs},
    failure::{Failure, Outcome},
    gate::{self, TrustSettings},
    print::{self, note},
    signals::Signals,
    trust::{self, authority::Unlocking},
    wire::{Dialer, Listener, Shown},
};

/// Options of `edgeward demo`.
#[derive(clap::Args)]
pub struct DemoArgs {
    /// Requests to send per engine
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    requests: u32,
    /// End after the table instead of serving until Ctrl-C
    #[arg(long)]
    exit: bool,
    /// Fetch no engine, use what is there
    #[arg(long)]
    offline: bool,
}

/// Folders within the demo's.
const MODELS: &str = "models";
const TRUST: &str = "trust";

/// Who asks the demo's servers.
struct Caller {
    dialer: Dialer,
    shown: Shown,
}

#[derive(serde::Serialize)]
struct Row {
    engine: &'static str,
    load_ms: f64,
    bare_p50_ms: f64,
    served_p50_ms: f64,
    served_p99_ms: f64,
    served_per_s: f64,
}

/// Runs the command.
pub fn run(args: &DemoArgs, context: &Context) -> Outcome {
    if !context.json {
        let requests = args.requests;
        note!(
            "A classifier learns digits and is made smaller, each engine of this machine serves it, and each is asked {requests} times.\n"
        );
    }
    if !args.offline {
        fetch_engines(context.json)?;
    }
    let folder = tempfile::Builder::new().prefix("edgeward-demo-").tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let shown = runtime.block_on(show_all(args, context, folder.path()));
    // A measurement that was interrupted still runs.
    runtime.shutdown_background();
    let path = folder.path().display().to_string();
    folder.close().with_context(|| format!("cannot remove `{path}`"))?;
    shown
}

fn fetch_engines(quiet: bool) -> Outcome {
    for known in install::list() {
        let result = install::install(known.name, &mut |step| {
            if !quiet {
                note!("{}: {step}", known.name);
            }
        });
        match result {
            _ if quiet => {}
            Ok(_) => note!("{}: version {} is there", known.name, known.version),
            Err(e) => {
                note!("{}: not fetched: {}", known.name, e.message());
                note!("{0}: going on without it; `edgeward engine install {0}` tries again", known.name);
            }
        }
    }
    Ok(())
}

/// The table, then the server until a signal comes. A signal that comes earlier ends the demo there.
async fn show_all(args: &DemoArgs, context: &Context, folder: &Path) -> Outcome {
    let mut signals = Signals::new()?;
    let (root, requests, quiet) = (folder.to_owned(), args.requests, context.json);
    let quietly = Context { json: true, settings: context.settings.clone() };
    trust::authority::make_quietly(&folder.join(TRUST), "edgeward.demo", &["digits".to_owned()])?;
    let settings = &context.settings.engine;
    let providers = ProviderArgs::default().or(settings)?;
    let engines = Engines { libraries: engines::registry_config(settings), providers };
    let (own, stop) = (engines.clone(), Arc::new(AtomicBool::new(false)));
    let stopped = stop.clone();
    let mut measuring = tokio::task::spawn_blocking(move || {
        let learnt = learn(&root, quiet, &own, &stopped)?;
        let smaller = smaller::compress(&model_file(&root), &root, &quietly)?;
        if !quiet {
            smaller.tell();
        }
        Ok::<_, anyhow::Error>((learnt, smaller, measure(&root, requests, quiet, &own, &stopped)?))
    });
    let (learnt, smaller, rows) = tokio::select! {
        measured = &mut measuring => measured??,
        () = signals.next() => {
            // Libraries of engines end badly under a run: it is waited for.
            stop.store(true, Relaxed);
            let _ = measuring.await;
            return Err(Failure::Work(anyhow!("interrupted before all was measured")));
        }
    };
    if !context.json {
        show(&rows)?;
    }
    if args.exit {
        let report = serde_json::json!({ "training": learnt, "compression": smaller, "rows": rows });
        return if context.json { print::json(&report) } else { Ok(()) };
    }
    let best = rows.iter().min_by(|a, b| a.served_p50_ms.total_cmp(&b.served_p50_ms)).map_or("rten", |r| r.engine);
    let listening = Listening::open(server(folder, best, &engines)?).await?;
    if context.json {
        let serving = listening.addresses();
        print::json(
            &serde_json::json!({ "training": learnt, "compression": smaller, "rows": rows, "engine": best, "serving": serving }),
        )?;
    }
    invite(best, &listening.addresses(), &folder.join(TRUST));
    Ok(listening.serve_until(async { signals.next().await }).await?)
}

/// The engines as the file configures them.
#[derive(Clone)]
struct Engines {
    libraries: RegistryConfig,
    providers: Vec<Provider>,
}

impl Engines {
    /// Of what the file wants engines to run on, what this one has.
    fn providers(&self, engine: &str) -> Vec<Provider> {
        if self.providers.is_empty() {
            return Vec::new();
        }
        let registry = Registry::new(self.libraries.clone());
        let offered = registry.get(engine).map(|engine| engine.info().providers).unwrap_or_default();
        let has = |wanted: &&Provider| {
            let short = |name: &str| name.strip_suffix("ExecutionProvider") == Some(wanted.name.as_str());
            let device = |name: &str| name.split('.').next() == Some(wanted.name.as_str());
            offered.iter().any(|name| *name == wanted.name || short(name) || device(name))
        };
        self.providers.iter().filter(has).cloned().collect()
    }
}

/// File of the model within the demo's folder.
fn model_file(folder: &Path) -> PathBuf {
    folder.join(MODELS).join("digits/1/model.onnx")
}

/// Trains the model and puts it where it is served from.
fn learn(folder: &Path, quiet: bool, engines: &Engines, stop: &AtomicBool) -> anyhow::Result<training::Report> {
    let registry = Registry::new(engines.libraries.clone());
    let (model, report) = training::learn(&model::digits(), &registry, stop)?;
    let path = model_file(folder);
    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    model.write(&path)?;
    if !quiet {
        let training::Report { engine, seconds, examples, judged, accuracy_before, accuracy_after } = &report;
        note!("{examples} drawn digits learnt in {seconds:.1} s on {engine}: of {judged} others");
        note!("{:.1} % were told right before, {:.1} % are now\n", accuracy_before * 100.0, accuracy_after * 100.0);
    }
    Ok(report)
}

/// What each engine of this machine costs, alone and served.
fn measure(
    folder: &Path,
    requests: u32,
    quiet: bool,
    engines: &Engines,
    stop: &AtomicBool,
) -> anyhow::Result<Vec<Row>> {
    let path = model_file(folder);
    let image = model::image()?;
    let caller = administrator(&folder.join(TRUST))?;
    let runtime = tokio::runtime::Handle::current();
    let registry = Registry::new(engines.libraries.clone());
    let mut rows = Vec::new();
    for name in NAMES.into_iter().filter(|n| registry.get(n).is_ok()) {
        let listening = {
            let config = server(folder, name, engines).map_err(|failure| anyhow!("{}", failure.message()))?;
            runtime.block_on(Listening::open(config))?
        };
        let one = NonZeroUsize::new(1);
        let options = SessionOptions { threads: one, profile: false, providers: engines.providers(name), lower: false };
        let began = Instant::now();
        let session = registry.get(name)?.load(&Source::File(path.clone()), &options)?;
        let load = began.elapsed();
        let bare = bare(session.as_ref(), &image, requests, stop)?;
        let served = runtime.block_on(serve_and_ask(listening, &caller, &image, requests, name, quiet, stop))?;
        rows.push(row(name, load, &bare, &served));
    }
    Ok(rows)
}

/// What to try while the server is there.
fn invite(engine: &str, at: &Addresses, trust: &Path) {
    let Some(http) = at.http else { return };
    let trust = trust.display();
    note!(
        "\n`digits` is served with {engine} at https://{http} until Ctrl-C, to verified callers only. Paste into another terminal:\n"
    );
    note!("  cd {trust}");
    note!("  CALLER='--cacert roots.pem --cert admin.pem --key admin.key'");
    note!("  curl -s $CALLER https://{http}/v2/models/digits");
    note!("  curl -s $CALLER https://{http}/v2/models/digits/infer -d '{}'", model::curl_body());
    if let Some(metrics) = at.metrics {
        note!("  curl -s $CALLER https://{metrics}/metrics");
    }
    note!("\nWithout the certificate there is no answer, and both are in the log:\n");
    note!("  curl -s --cacert roots.pem https://{http}/v2/models/digits     # {{\"error\":\"not authenticated\"}}");
    note!("  edgeward trust audit query audit\n");
    note!(
        "A model of your own: `edgeward trust init trust --model NAME`, `edgeward serve NAME.onnx --trust trust`; how one comes in: docs/models.md."
    );
}

fn server(folder: &Path, engine: &str, engines: &Engines) -> Result<RunConfig, Failure> {
    let any = Some(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
    let trust = gate::config(&folder.join(TRUST), &TrustSettings::default(), &Unlocking::default())?;
    Ok(RunConfig {
        http: any,
        grpc: any,
        metrics: any,
        ready_file: None,
        server: ServerConfig {
            repositories: vec![folder.join(MODELS)],
            engines: engines.libraries.clone(),
            engine: Some(engine.to_owned()),
            threads: NonZeroUsize::new(1),
            providers: engines.providers(engine),
            control: ModelControl::Fixed,
            ..ServerConfig::default()
        },
        grace: Duration::from_secs(5),
        telemetry: TelemetryConfig::default(),
        limits: Limits::default(),
        trust: Some(trust),
    })
}

/// The times of runs without a server.
fn bare(session: &dyn Session, image: &Tensor, runs: u32, stop: &AtomicBool) -> anyhow::Result<Vec<Duration>> {
    let mut times = Vec::new();
    for _ in 0..runs {
        ensure!(!stop.load(Relaxed), "interrupted");
        let began = Instant::now();
        std::hint::black_box(session.run(&[("image", image)], RunOptions::default())?);
        times.push(began.elapsed());
    }
    times.sort();
    Ok(times)
}

async fn serve_and_ask(
    listening: Listening,
    caller: &Caller,
    image: &Tensor,
    requests: u32,
    engine: &str,
    quiet: bool,
    stop: &AtomicBool,
) -> anyhow::Result<Vec<Duration>> {
    let address = listening.addresses().http.context("the server has no HTTP listener")?;
    let (end, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(listening.serve_until(async {
        // A dropped sender is the end as well.
        let _ = stopped.await;
    }));
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(requests.into()) };
    let style = ProgressStyle::with_template("{prefix:>12} {bar:40} {pos}/{len} requests, {eta} left")?;
    bar.set_style(style);
    bar.set_prefix(engine.to_owned());
    let times = ask(address, caller, &model::request(image), requests, &bar, stop).await;
    bar.finish();
    if bar.is_hidden() && !quiet {
        note!("{engine}: {} of {requests} requests answered", times.as_ref().map_or(0, Vec::len));
    }
    drop(end);
    serving.await??;
    times
}

/// How the administrator of a folder comes to its server.
fn administrator(trust: &Path) -> anyhow::Result<Caller> {
    let made = || -> Result<Caller, Failure> {
        let shown =
            Shown::from_pem(&read_to_string(trust.join("admin.pem"))?, &read_to_string(trust.join("admin.key"))?)?;
        Ok(Caller { dialer: Dialer::new(&read(trust.join("roots.pem"))?)?, shown })
    };
    made().map_err(|failure| anyhow!("{}", failure.message()))
}

/// Sends the same request again and again over one connection and times each answer.
async fn ask(
    address: std::net::SocketAddr,
    caller: &Caller,
    request: &[u8],
    requests: u32,
    bar: &ProgressBar,
    stop: &AtomicBool,
) -> anyhow::Result<Vec<Duration>> {
    let listener = Listener { tls: true, host: address.ip().to_string(), port: address.port() };
    let stream = caller.dialer.stream(&listener, Some(&caller.shown), b"http/1.1").await?;
    let mut stream = BufReader::new(stream);
    let mut times = Vec::new();
    let mut body = Vec::new();
    for _ in 0..requests {
        ensure!(!stop.load(Relaxed), "interrupted");
        let began = Instant::now();
        stream.write_all(request).await?;
        stream.flush().await?;
        let mut length = 0;
        let mut status = String::new();
        stream.read_line(&mut status).await?;
        loop {
            let mut line = String::new();
            ensure!(stream.read_line(&mut line).await? > 0, "the server closed the connection");
            let line = line.trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        body.resize(length, 0);
        stream.read_exact(&mut body).await?;
        ensure!(status.contains(" 200 "), "{}: {}", status.trim(), String::from_utf8_lossy(&body));
        times.push(began.elapsed());
        bar.inc(1);
    }
    times.sort();
    Ok(times)
}

fn row(engine: &'static str, load: Duration, bare: &[Duration], served: &[Duration]) -> Row {
    let at = |times: &[Duration], percent: usize| {
        let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
        times.get(index).copied().unwrap_or_default().as_secs_f64() * 1e3
    };
    let total: f64 = served.iter().map(Duration::as_secs_f64).sum();
    Row {
        engine,
        load_ms: load.as_secs_f64() * 1e3,
        bare_p50_ms: at(bare, 50),
        served_p50_ms: at(served, 50),
        served_p99_ms: at(served, 99),
        served_per_s: served.len() as f64 / total.max(f64::EPSILON),
    }
}

fn show(rows: &[Row]) -> Outcome {
    let cells = rows.iter().map(|r| {
        vec![
            r.engine.to_owned(),
            print::ms(r.load_ms),
            print::ms(r.bare_p50_ms),
            print::ms(r.served_p50_ms),
            print::ms(r.served_p99_ms),
            print::rate(r.served_per_s),
        ]
    });
    let header = ["engine", "load", "alone p50", "served p50", "served p99", "requests/s"];
    print::table(&header, cells.collect(), 1)?;
    print::line(
        "alone: the engine's run without a server; served: from request to answer, JSON over one connection. Each request comes over TLS with a\n\
         client certificate, is decided by policy and stands in the audit log.",
    )?;
    print::line("One image of 28 x 28 per request, 1 thread, client and server on this machine.")?;
    if cfg!(debug_assertions) {
        print::line("This is a debug build; `cargo run --release -- demo` serves several times faster.")?;
    }
    Ok(())
}

//! What the server tells of single requests: an access line, a trace in a file, a span for a collector.
//!
//! All of it happens beside the request: a request that is not sampled pays for one atomic load, one that is hands
//! its record to a bounded queue. A sink that cannot keep up loses records, counts them, and delays nobody.

mod access;
mod otlp;
mod settings;
mod sink;
mod trace_file;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Instant, SystemTime},
};

use axum::{
    extract::ConnectInfo,
    http::{Request, StatusCode},
};
use edgeward_graph::Tensor;

pub use access::{AccessFormat, AccessLogConfig, AccessTarget};
pub(crate) use access::{AccessLog, Line};
pub use settings::TraceLevels;
pub(crate) use settings::Update;

use crate::{
    core::{InferRequest, InferResponse, RequestTimes, ServeError, ServeErrorKind, Server},
    gate::{Gate, Grant},
    limits::Limits,
    local::{self, Foreign},
    logging::{LogControl, LogSettings},
};
use otlp::Otlp;
use settings::{Settings, TraceSettings};
use trace_file::TraceFile;

/// What is told, and where to.
#[derive(Clone, Debug, Default)]
pub struct TelemetryConfig {
    /// One line per request; none where off.
    pub access_log: Option<AccessLogConfig>,
    /// Sampled requests.
    pub trace: TraceConfig,
    /// Who changes the log's levels; the log settings extension is refused where none.
    pub log: Option<Arc<dyn LogControl>>,
}

/// Where traces go, and what holds of them until a client changes it.
#[derive(Clone, Debug)]
pub struct TraceConfig {
    /// File of traces as Triton writes them.
    pub file: Option<PathBuf>,
    /// Collector that takes OTLP over gRPC, e.g. `http://127.0.0.1:4317`.
    pub otlp_endpoint: Option<String>,
    /// What a trace holds.
    pub levels: TraceLevels,
    /// One request in so many is traced, at least 1. A caller's own sampled `traceparent` always is.
    pub rate: u64,
}

impl Default for TraceConfig {
    fn default() -> Self {
        Self { file: None, otlp_endpoint: None, levels: TraceLevels::default(), rate: settings::RATE_DEFAULT }
    }
}

/// Why telemetry does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// The access log cannot be opened.
    #[error("cannot open access log `{}`: {source}", path.display())]
    AccessLog {
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The trace file cannot be opened.
    #[error("cannot open trace file `{}`: {source}", path.display())]
    TraceFile {
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The collector's address is wrong.
    #[error(
        "cannot send traces to `{endpoint}`: {reason}; expected a collector's gRPC address such as `http://127.0.0.1:4317`"
    )]
    Otlp {
        /// What was given.
        endpoint: String,
        /// The exporter's reason.
        reason: String,
    },
}

/// The sinks of one server.
pub(crate) struct Telemetry {
    pub(crate) access: Option<AccessLog>,
    pub(crate) traces: TraceSettings,
    pub(crate) log: LogSettings,
    file: Option<TraceFile>,
    otlp: Option<Otlp>,
}

/// What the handlers of both protocols share.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) server: Server,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) limits: Limits,
    /// Decides every call; none where nobody is asked.
    pub(crate) gate: Option<Arc<Gate>>,
}

impl axum::extract::FromRef<App> for Server {
    fn from_ref(app: &App) -> Self {
        app.server.clone()
    }
}

/// What the wire knows of a call besides the request.
#[derive(Default)]
pub(crate) struct Call<'a> {
    /// W3C `traceparent` of the caller.
    pub(crate) parent: Option<&'a str>,
    /// Where the access line is filled in.
    pub(crate) slot: Option<&'a Slot>,
    /// On what terms it was permitted.
    pub(crate) grant: Option<&'a Grant>,
}

impl App {
    /// Why a request is not for this server where it has no TLS. The log has it too.
    pub(crate) fn foreign<B>(&self, request: &Request<B>) -> Option<Foreign> {
        let foreign = self.gate.is_none().then(|| local::check(request).err()).flatten();
        foreign.inspect(Foreign::log)
    }

    /// Answers a request and tells of it.
    pub(crate) async fn infer(&self, mut request: InferRequest, call: Call<'_>) -> Result<InferResponse, ServeError> {
        let sampled = self.telemetry.sample(&request, call.parent);
        let note = call.slot.map(|slot| (slot, request.model.name.clone(), request.id.clone()));
        let repeated = request.repeated();
        let prepared = call.grant.map_or(Ok(()), |grant| grant.prepare(&mut request, &self.server));
        let mut result = match request.check().and(prepared) {
            Ok(()) => self.server.infer(request).await,
            Err(error) => Err(error),
        };
        if let (Some(grant), Err(error)) = (call.grant, &result)
            && error.kind == ServeErrorKind::InvalidArgument
        {
            grant.unfit();
        }
        if let Ok(response) = &mut result {
            response.parameters.extend(repeated);
            if let Some(Err(error)) = call.grant.map(|grant| grant.answered(response)) {
                result = Err(error);
            }
        }
        if let Some(sampled) = sampled {
            sampled.finish(&self.telemetry, &result);
        }
        if let Some((slot, model, id)) = note {
            let answered = result.as_ref().ok();
            let version = answered.map(|response| response.model_version);
            let times = answered.map(|response| response.times).unwrap_or_default();
            slot.fill(Note { model, version, id, times });
        }
        result
    }
}

/// A request as its access line shows it.
#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) model: Arc<str>,
    pub(crate) version: Option<u64>,
    pub(crate) id: String,
    pub(crate) times: RequestTimes,
}

/// Carries a [`Note`] from the handler to the access line around it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slot(Arc<(OnceLock<Note>, OnceLock<(u64, u64)>)>);

impl Slot {
    fn fill(&self, note: Note) {
        // Each call is answered once.
        let _ = self.0.0.set(note);
    }

    pub(crate) fn note(&self) -> Option<&Note> {
        self.0.0.get()
    }

    /// Bytes of a message and of its answer, where the transport does not say.
    pub(crate) fn sized(&self, bytes_in: usize, bytes_out: usize) {
        let _ = self.0.1.set((bytes_in as u64, bytes_out as u64));
    }

    fn bytes(&self) -> Option<(u64, u64)> {
        self.0.1.get().copied()
    }
}

/// A request whose trace is wanted.
struct Sampled {
    model: Arc<str>,
    id: String,
    batch: Option<usize>,
    parent: Option<opentelemetry::trace::SpanContext>,
    levels: TraceLevels,
    inputs: Vec<(String, Tensor)>,
    began: Instant,
    at: SystemTime,
}

/// A traced request that has been answered.
pub(crate) struct Trace<'a> {
    model: &'a str,
    id: &'a str,
    batch: Option<usize>,
    parent: Option<opentelemetry::trace::SpanContext>,
    levels: TraceLevels,
    inputs: &'a [(String, Tensor)],
    at: SystemTime,
    took: std::time::Duration,
    result: &'a Result<InferResponse, ServeError>,
}

impl Telemetry {
    /// Opens what `config` names. Must run inside a Tokio runtime.
    pub(crate) fn start(config: TelemetryConfig) -> Result<Arc<Self>, TelemetryError> {
        let TelemetryConfig { access_log, trace, log } = config;
        let file = trace.file.clone().map(TraceFile::open).transpose()?;
        let otlp = trace.otlp_endpoint.as_deref().map(Otlp::start).transpose()?;
        let settings = Settings { levels: trace.levels, rate: trace.rate.max(1), ..Settings::default() };
        let mode = if otlp.is_some() { "opentelemetry" } else { "triton" };
        let path = trace.file.map(|path| path.display().to_string()).unwrap_or_default();
        let sink = file.is_some() || otlp.is_some();
        Ok(Arc::new(Self {
            access: access_log.map(AccessLog::open).transpose()?,
            traces: TraceSettings::new(settings, mode, path, sink),
            log: LogSettings::new(log),
            file,
            otlp,
        }))
    }

    fn sample(&self, request: &InferRequest, parent: Option<&str>) -> Option<Sampled> {
        if !self.traces.active() {
            return None;
        }
        let parent = parent.and_then(otlp::parent);
        let levels = self.traces.sample(&request.model.name, parent.as_ref().map(|p| p.is_sampled()))?;
        Some(Sampled {
            model: request.model.name.clone(),
            id: request.id.clone(),
            batch: request.inputs.first().and_then(|(_, tensor)| tensor.shape().first().copied()),
            parent,
            levels,
            // Tensors share their bytes: this copies names and shapes.
            inputs: if levels.tensors { request.inputs.clone() } else { Vec::new() },
            began: Instant::now(),
            at: SystemTime::now(),
        })
    }

    /// Writes the access line of a call that was refused before it came to any handler. `status` is HTTP's.
    pub(crate) fn refused<B>(&self, request: &Request<B>, status: StatusCode) {
        let Some(log) = &self.access else { return };
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
        let line = log.begin(peer, (request.method().as_str(), request.uri().path()), false);
        line.answered(status.as_u16(), None, None);
    }

    /// The last records reach their places.
    pub(crate) fn end(&self) {
        if let Some(access) = &self.access {
            access.end();
        }
        if let Some(file) = &self.file {
            file.end();
        }
        if let Some(otlp) = &self.otlp {
            otlp.end();
        }
    }

    /// Records that were lost, as Prometheus text.
    pub(crate) fn metrics_text(&self) -> String {
        let sinks = [
            ("access_log", self.access.as_ref().map(AccessLog::dropped)),
            ("trace_file", self.file.as_ref().map(TraceFile::dropped)),
        ];
        let name = "edgeward_telemetry_dropped_total";
        let mut text =
            format!("# HELP {name} Records that a full queue or a failed write lost\n# TYPE {name} counter\n");
        for (sink, dropped) in sinks {
            if let Some(dropped) = dropped {
                text.push_str(&format!("{name}{{sink=\"{sink}\"}} {dropped}\n"));
            }
        }
        text
    }
}

impl Sampled {
    fn finish(self, telemetry: &Telemetry, result: &Result<InferResponse, ServeError>) {
        let trace = Trace {
            model: &self.model,
            id: &self.id,
            batch: self.batch,
            parent: self.parent,
            levels: self.levels,
            inputs: &self.inputs,
            at: self.at,
            took: self.began.elapsed(),
            result,
        };
        if let Some(file) = &telemetry.file {
            file.record(&trace, telemetry.traces.log_frequency());
        }
        if let Some(otlp) = &telemetry.otlp {
            otlp.record(&trace);
        }
    }
}

impl Trace<'_> {
    fn times(&self) -> RequestTimes {
        self.result.as_ref().map(|response| response.times).unwrap_or_default()
    }

    /// What happened when, in order.
    fn moments(&self) -> Vec<(&'static str, SystemTime)> {
        let mut moments = vec![("REQUEST_START", self.at)];
        if self.result.is_ok() {
            let (mut at, times) = (self.at, self.times());
            moments.push(("QUEUE_START", at));
            for (name, took) in [
                ("COMPUTE_START", times.queue),
                ("COMPUTE_INPUT_END", times.input),
                ("COMPUTE_OUTPUT_START", times.infer),
                ("COMPUTE_END", times.output),
            ] {
                at += took;
                moments.push((name, at));
            }
        }
        moments.push(("REQUEST_END", self.at + self.took));
        moments
    }
}

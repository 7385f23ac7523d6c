//! Options of `edgeward serve` about access log and traces.

use std::path::{Path, PathBuf};

use edgeward_serve::{AccessFormat, AccessLogConfig, AccessTarget, TelemetryConfig, TraceConfig, TraceLevels};

use crate::{
    failure::Failure,
    settings::{AccessLogFormat, TelemetrySettings},
};

/// What is told of single requests, and where to.
#[derive(clap::Args)]
pub struct TelemetryArgs {
    /// File that gets one line per request, `-` for standard output; SIGHUP opens it anew
    #[arg(long, env = "EDGEWARD_ACCESS_LOG", value_name = "FILE")]
    access_log: Option<PathBuf>,
    /// Form of its lines [default: json]
    #[arg(long, env = "EDGEWARD_ACCESS_LOG_FORMAT", value_name = "FORMAT")]
    access_log_format: Option<AccessLogFormat>,
    /// File of traces as Triton writes them; the trace settings extension turns them on and off
    #[arg(long, env = "EDGEWARD_TRACE_FILE", value_name = "FILE")]
    trace_file: Option<PathBuf>,
    /// What traces hold: OFF, TIMESTAMPS, TENSORS [default: TIMESTAMPS with --otlp-endpoint, else OFF]
    #[arg(long, env = "EDGEWARD_TRACE_LEVEL", value_name = "LEVELS", value_delimiter = ',')]
    trace_level: Vec<String>,
    /// One request in N is traced; a caller's own sampled `traceparent` always is [default: 1000]
    #[arg(long, env = "EDGEWARD_TRACE_RATE", value_name = "N")]
    trace_rate: Option<u64>,
    /// Collector that takes spans by OTLP over gRPC, e.g. http://127.0.0.1:4317
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,
}

impl TelemetryArgs {
    /// Flags and environment, then the file.
    pub fn config(&self, file: &TelemetrySettings) -> Result<TelemetryConfig, Failure> {
        let format = match self.access_log_format.or(file.access_log_format) {
            Some(AccessLogFormat::Text) => AccessFormat::Text,
            Some(AccessLogFormat::Json) | None => AccessFormat::Json,
        };
        let target = |path: PathBuf| {
            if path == Path::new("-") { AccessTarget::Stdout } else { AccessTarget::File(path) }
        };
        let access_log = self.access_log.clone().or_else(|| file.access_log.clone());
        let access_log = access_log.map(|path| AccessLogConfig { target: target(path), format });
        let rate = self.trace_rate.or(file.trace_rate).unwrap_or(TraceConfig::default().rate);
        if rate == 0 {
            return Err(Failure::input(
                "`--trace-rate` is `0`, expected 1 or more; `--trace-level OFF` traces nothing",
            ));
        }
        let trace = TraceConfig {
            file: self.trace_file.clone().or_else(|| file.trace_file.clone()),
            otlp_endpoint: self
                .otlp_endpoint
                .clone()
                .or_else(|| file.otlp_endpoint.clone())
                .filter(|url| !url.is_empty()),
            levels: TraceLevels::default(),
            rate,
        };
        let levels = self.levels(file, &trace)?;
        Ok(TelemetryConfig { access_log, trace: TraceConfig { levels, ..trace }, log: None })
    }

    fn levels(&self, file: &TelemetrySettings, trace: &TraceConfig) -> Result<TraceLevels, Failure> {
        let words = if self.trace_level.is_empty() { file.trace_level.as_deref() } else { Some(&*self.trace_level) };
        let Some(words) = words else {
            return Ok(TraceLevels { timestamps: trace.otlp_endpoint.is_some(), tensors: false });
        };
        let levels = TraceLevels::parse(words.iter().map(String::as_str)).map_err(Failure::input)?;
        if levels != TraceLevels::default() && trace.file.is_none() && trace.otlp_endpoint.is_none() {
            return Err(Failure::input(
                "`--trace-level` needs a place to write to: `--trace-file` or `--otlp-endpoint`",
            ));
        }
        Ok(levels)
    }
}

//! `edgeward.toml`: what flags and environment leave open.
//!
//! Flags win over `EDGEWARD_…`, which wins over the file; the first two are clap's, this is the last.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    num::{NonZeroU64, NonZeroUsize},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::Deserialize;

use crate::{
    engines::MAX_THREADS,
    failure::{Failure, OrInput as _},
    tune::result::Goal,
};

/// Name of the file that is read from the working folder where `--config` names none.
pub const DEFAULT_FILE: &str = "edgeward.toml";
const MAX_BYTES: u64 = 1 << 20;

/// The file. An unknown key is an error, so that a misspelt one is not silently without effect.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `[engine]`
    pub engine: EngineSettings,
    /// `[serve]`
    pub serve: ServeSettings,
    /// `[train]`
    pub train: crate::train::options::TrainOptions,
    /// `[trust]`
    pub trust: crate::gate::TrustSettings,
    /// `[release]`
    pub release: crate::release::opening::ReleaseSettings,
}

/// `[engine]`: how models run.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSettings {
    /// Engine to try first.
    pub name: Option<String>,
    /// Threads within one run.
    pub threads: Option<NonZeroUsize>,
    /// Shared library of ONNX Runtime in place of the installed one.
    pub onnxruntime_lib: Option<PathBuf>,
    /// OpenVINO's `libopenvino_c` in place of the installed one.
    pub openvino_lib: Option<PathBuf>,
    /// Execution providers or devices in order of preference, for `bench`, `infer` and `serve`.
    pub providers: Option<Vec<String>>,
    /// `[engine.provider_options.NAME]`: what each is told, by the library's own keys.
    pub provider_options: BTreeMap<String, BTreeMap<String, OptionValue>>,
}

/// A value of a provider's option; libraries take texts, and people write numbers.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum OptionValue {
    /// Text.
    Text(String),
    /// `true` or `false`.
    Bool(bool),
    /// Whole number.
    Int(i64),
    /// Number.
    Float(f64),
}

impl std::fmt::Display for OptionValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(value) => value.fmt(f),
            Self::Bool(value) => value.fmt(f),
            Self::Int(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
        }
    }
}

/// `[serve]`: the server.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct ServeSettings {
    /// Repositories, folders and files of models.
    pub models: Option<Vec<PathBuf>>,
    /// Address of HTTP.
    pub http: Option<SocketAddr>,
    /// Address of gRPC.
    pub grpc: Option<SocketAddr>,
    /// Address of `/metrics`.
    pub metrics: Option<SocketAddr>,
    /// Longest wait for requests in flight at the end.
    pub grace_seconds: Option<u64>,
    /// Connections that may be open at the same time, over all listeners.
    pub connections_max: Option<NonZeroUsize>,
    /// Bytes of a request's head.
    pub head_bytes_max: Option<u32>,
    /// Lines of a request's head.
    pub head_lines_max: Option<NonZeroUsize>,
    /// Bytes of all files together that a load brings along.
    pub load_bytes_max: Option<usize>,
    /// How long a peer may take nothing of an answer.
    pub unread_seconds_max: Option<NonZeroU64>,
    /// Follow the files of the models.
    pub watch: Option<bool>,
    /// Longest time between two looks at them.
    pub watch_seconds: Option<NonZeroU64>,
    /// What results of `edgeward tune` are taken for.
    pub goal: Option<Goal>,
    /// Memory for the response cache; 0 for none.
    pub cache_bytes: Option<u64>,
    /// `[serve.telemetry]`
    pub telemetry: TelemetrySettings,
}

/// `[serve.telemetry]`: what is told of single requests.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetrySettings {
    /// File of the access log; `-` for standard output.
    pub access_log: Option<PathBuf>,
    /// `json` or `text`.
    pub access_log_format: Option<AccessLogFormat>,
    /// File of traces.
    pub trace_file: Option<PathBuf>,
    /// `OFF`, `TIMESTAMPS`, `TENSORS`.
    pub trace_level: Option<Vec<String>>,
    /// One request in so many is traced.
    pub trace_rate: Option<u64>,
    /// Collector of traces.
    pub otlp_endpoint: Option<String>,
}

/// Form of an access line.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum AccessLogFormat {
    /// One JSON object
    Json,
    /// Fields between blanks
    Text,
}

/// Reads the file that `--config` names, else `edgeward.toml` where the working folder has one.
pub fn load(named: Option<&Path>) -> Result<Settings, Failure> {
    let default = Path::new(DEFAULT_FILE);
    match named {
        Some(path) => read(path),
        None if default.is_file() => read(default),
        None => Ok(Settings::default()),
    }
}

fn read(path: &Path) -> Result<Settings, Failure> {
    let shown = path.display();
    let size =
        std::fs::metadata(path).with_context(|| format!("cannot read configuration `{shown}`")).or_input()?.len();
    if size > MAX_BYTES {
        return Err(Failure::input(format!("configuration `{shown}` has {size} bytes, at most {MAX_BYTES} are read")));
    }
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read configuration `{shown}`")).or_input()?;
    let settings: Settings =
        toml::from_str(&text).with_context(|| format!("configuration `{shown}` is wrong")).or_input()?;
    match settings.engine.threads {
        Some(threads) if threads.get() > MAX_THREADS => Err(Failure::input(format!(
            "configuration `{shown}` is wrong: `threads = {threads}` in `[engine]`, expected 1 to {MAX_THREADS}"
        ))),
        _ => Ok(settings),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read() {
        let settings: Settings = toml::from_str(
            "[engine]\nname = \"rten\"\nthreads = 2\n[serve]\nmodels = [\"m\"]\nhttp = \"127.0.0.1:0\"\n",
        )
        .unwrap();
        assert_eq!(settings.engine.name.as_deref(), Some("rten"));
        assert_eq!(settings.engine.threads, NonZeroUsize::new(2));
        assert_eq!(settings.serve.http, Some("127.0.0.1:0".parse().unwrap()));
        assert_eq!(settings.serve.grpc, None);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for text in ["[serve]\nhtp = \"127.0.0.1:0\"", "[engine]\nthreads = 0", "[serve]\nhttp = \"here\"", "[oven]\n"]
        {
            assert!(toml::from_str::<Settings>(text).is_err(), "{text}");
        }
    }
}

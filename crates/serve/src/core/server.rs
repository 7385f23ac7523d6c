//! The façade that the wire calls: models by name, and what can be asked of them.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    core::{InferRequest, InferResponse, ModelRef, ServeError},
    proto,
};

/// How a server finds and runs its models.
#[derive(Clone, Debug, Default)]
pub struct ServerConfig {
    /// Triton repositories or folders of plain `.onnx` files; a single `.onnx` file is a repository of one model.
    pub repositories: Vec<PathBuf>,
    /// Engine to try first; the default order where none.
    pub engine: Option<String>,
    /// Threads within one run.
    pub threads: Option<std::num::NonZeroUsize>,
    /// Which models are loaded at start and who may change that.
    pub control: ModelControl,
    /// Bytes of the response cache; 0 = none.
    pub cache_bytes: usize,
}

/// As Triton's `--model-control-mode`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ModelControl {
    /// Load all at start, and again when files change.
    #[default]
    Watch,
    /// Load all at start; changes of files are ignored.
    Fixed,
    /// Load the named models at start; others by the repository API.
    Explicit(Vec<String>),
}

/// One line of the repository index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Model name.
    pub name: String,
    /// Version; empty for a model of which no version was ever loaded.
    pub version: String,
    /// `READY`, `LOADING`, `UNLOADING`, `UNAVAILABLE` or empty.
    pub state: &'static str,
    /// Why it is not ready.
    pub reason: String,
}

/// What a load call may bring along, as in Triton's repository extension.
#[derive(Clone, Debug, Default)]
pub struct LoadOverrides {
    /// `config` parameter: model configuration as JSON, in place of the file.
    pub config_json: Option<String>,
    /// `file:<version>/<name>` parameters: content in place of the files.
    pub files: Vec<(String, Bytes)>,
}

/// The serving core. Cheap to clone; all clones are one server.
#[derive(Clone)]
pub struct Server {
    _inner: Arc<()>,
}

impl Server {
    /// Scans the repositories and loads what the control mode asks for; returns when every first load has ended,
    /// well or not. Must run inside a Tokio runtime.
    pub async fn start(_config: ServerConfig) -> Result<Self, ServeError> {
        Ok(Self { _inner: Arc::new(()) })
    }

    /// Answers a request. Dropping the future takes the request out of its queue.
    pub async fn infer(&self, _request: InferRequest) -> Result<InferResponse, ServeError> {
        unimplemented!()
    }

    /// True when every model that should serve can answer, and no drain has begun.
    pub fn ready(&self) -> bool {
        unimplemented!()
    }

    /// True when this model can answer. Error: no such model.
    pub fn model_ready(&self, _model: &ModelRef) -> Result<bool, ServeError> {
        unimplemented!()
    }

    /// Inputs and outputs with versions and platform (`onnxruntime_onnx` for compatibility is reported as `platform`).
    pub fn model_metadata(&self, _model: &ModelRef) -> Result<proto::ModelMetadataResponse, ServeError> {
        unimplemented!()
    }

    /// The completed configuration.
    pub fn model_config(&self, _model: &ModelRef) -> Result<proto::ModelConfig, ServeError> {
        unimplemented!()
    }

    /// Statistics of one model, or of all where `name` is empty; of one version, or all where none.
    pub fn statistics(&self, _name: &str, _version: Option<u64>) -> Result<Vec<proto::ModelStatistics>, ServeError> {
        unimplemented!()
    }

    /// Every model of the repositories with its versions.
    pub fn index(&self, _ready_only: bool) -> Vec<IndexEntry> {
        unimplemented!()
    }

    /// Loads or reloads a model; returns when it serves. The old version serves until then, and on if this fails.
    pub async fn load(&self, _name: &str, _overrides: LoadOverrides) -> Result<(), ServeError> {
        unimplemented!()
    }

    /// Unloads a model: new requests are refused, accepted ones answered, then its memory is given back.
    pub async fn unload(&self, _name: &str, _unload_dependents: bool) -> Result<(), ServeError> {
        unimplemented!()
    }

    /// From now on not ready; new inference requests are still answered until [`Server::drain`] returns.
    pub fn begin_drain(&self) {
        unimplemented!()
    }

    /// Waits until no request is queued or running, at most `grace`; true when none was left.
    pub async fn drain(&self, _grace: Duration) -> bool {
        unimplemented!()
    }

    /// Metrics in Prometheus text format (`nv_inference_*` counters and true histograms).
    pub fn metrics_text(&self) -> String {
        unimplemented!()
    }
}

//! From the command line's engine options to a registry and a loaded session.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use edgeward_engine::{Engine, ErrorKind, Registry, RegistryConfig, Session, SessionOptions, Source};
use edgeward_graph::{Limits, Model};

use crate::{
    failure::{Failure, OrInput as _},
    settings::EngineSettings,
};

/// Engine options that several commands share.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct EngineArgs {
    /// Engine, as `edgeward engine list` names them; the first that loads the model where none
    #[arg(long, env = "EDGEWARD_ENGINE", value_name = "NAME")]
    pub engine: Option<String>,
    /// Threads within one run; the engine's own choice where none
    #[arg(long, env = "EDGEWARD_THREADS", value_name = "N", value_parser = threads)]
    pub threads: Option<NonZeroUsize>,
}

/// More threads than any machine has cores; engines start each of them, and a mistyped number would start a million.
pub const MAX_THREADS: usize = 1024;

/// A number of threads that an engine can start.
pub fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let parsed = text.parse::<NonZeroUsize>().ok().filter(|threads| threads.get() <= MAX_THREADS);
    parsed.ok_or_else(|| format!("`{text}` is no number of threads; expected 1 to {MAX_THREADS}"))
}

impl EngineArgs {
    /// Fills what the command line left open from the file.
    pub fn or(&self, settings: &EngineSettings) -> Self {
        Self {
            engine: self.engine.clone().or_else(|| settings.name.clone()),
            threads: self.threads.or(settings.threads),
        }
    }
}

/// The engines as the file configures them; no library is opened yet.
pub fn registry(settings: &EngineSettings) -> Registry {
    let mut config = RegistryConfig::default();
    // What the environment says is in `config` already, and wins over the file.
    let take = |found: &mut Option<PathBuf>, variable: &str, file: &Option<PathBuf>| {
        if file.is_some() && std::env::var_os(variable).is_none_or(|value| value.is_empty()) {
            found.clone_from(file);
        }
    };
    take(&mut config.onnxruntime_lib, "EDGEWARD_ONNXRUNTIME_LIB", &settings.onnxruntime_lib);
    take(&mut config.openvino_lib, "EDGEWARD_OPENVINO_LIB", &settings.openvino_lib);
    Registry::new(config)
}

/// A model that an engine has prepared, and how long that took.
pub struct Prepared {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// The model, ready to run.
    pub session: Box<dyn Session>,
    /// Time to load.
    pub load: Duration,
}

/// Reads a model file, for its graph.
pub fn read_model(path: &Path) -> Result<Model, Failure> {
    Model::read(path, &Limits::default()).map_err(|error| in_file(path, error)).or_input()
}

/// Loads with the named engine and no other, or with the first that can where none is named.
pub fn load(
    registry: &Registry,
    model: &Path,
    engine: Option<&str>,
    options: &SessionOptions,
) -> Result<Prepared, Failure> {
    check_file(model)?;
    let source = Source::File(model.to_owned());
    let began = Instant::now();
    let loaded = match engine {
        None => registry.load(None, &source, options).map(|loaded| (loaded.engine, loaded.session)),
        Some(name) => registry.get(name).and_then(|engine| {
            let session = engine.load(&source, options)?;
            Ok((engine, session))
        }),
    };
    let (engine, session) = loaded.map_err(|error| refused(model, error))?;
    Ok(Prepared { engine, session, load: began.elapsed() })
}

/// A file that is no model is the caller's fault; an engine that is missing or fails is not.
fn refused(model: &Path, error: edgeward_engine::EngineError) -> Failure {
    match error.kind() {
        ErrorKind::InvalidModel | ErrorKind::InvalidInput => Failure::Input(in_file(model, error)),
        _ => Failure::Work(in_file(model, error)),
    }
}

/// An error here says so before an engine is asked.
pub fn check_file(model: &Path) -> Result<(), Failure> {
    if model.is_file() {
        return Ok(());
    }
    let why = if model.exists() { "is no file" } else { "does not exist" };
    Err(Failure::input(format!("model `{}` {why}; expected an `.onnx` file", model.display())))
}

fn in_file(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> anyhow::Error {
    anyhow::Error::new(error).context(format!("model `{}`", path.display()))
}

/// Beside `model.onnx`: `model.onnx` → `model.tune.json`.
pub fn beside(model: &Path, extension: &str) -> PathBuf {
    model.with_extension(extension)
}

//! The engines of this machine, opened when first asked for.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use crate::{Engine, EngineError, ErrorKind, Session, SessionOptions, Source, rten::Rten};

/// Where the libraries of the engines are.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// ONNX Runtime's shared library; none where it is not installed.
    pub onnxruntime_lib: Option<PathBuf>,
    /// OpenVINO's `libopenvino_c`; none where it is not installed.
    pub openvino_lib: Option<PathBuf>,
}

impl Default for RegistryConfig {
    /// From `EDGEWARD_ONNXRUNTIME_LIB` and `EDGEWARD_OPENVINO_LIB`, else what `engine install` left in the user's cache folder.
    fn default() -> Self {
        let library = |variable, engine| {
            let given = std::env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from);
            given.or_else(|| crate::install::path(engine))
        };
        Self {
            onnxruntime_lib: library("EDGEWARD_ONNXRUNTIME_LIB", "onnxruntime"),
            openvino_lib: library("EDGEWARD_OPENVINO_LIB", "openvino"),
        }
    }
}

/// A session and the engine that made it.
pub struct Loaded {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// The model, ready to run.
    pub session: Box<dyn Session>,
}

type Opened = OnceLock<Result<Arc<dyn Engine>, String>>;

/// The engines in the order in which they are tried: ONNX Runtime where installed, since it runs the most models, then
/// OpenVINO, then the built-in one. Which is the fastest for a model is for `tune` to measure.
pub struct Registry {
    config: RegistryConfig,
    onnxruntime: Opened,
    openvino: Opened,
    rten: Arc<dyn Engine>,
}

/// Every engine by name, in the order in which they are tried.
pub const NAMES: [&str; 3] = ["onnxruntime", "openvino", "rten"];

impl Registry {
    /// No library is opened yet.
    pub fn new(config: RegistryConfig) -> Self {
        Self { config, onnxruntime: OnceLock::new(), openvino: OnceLock::new(), rten: Arc::new(Rten) }
    }

    /// Every engine by name, in the order in which they are tried.
    pub fn names(&self) -> &'static [&'static str] {
        &NAMES
    }

    /// The engine of that name; opens its library the first time.
    pub fn get(&self, name: &str) -> Result<Arc<dyn Engine>, EngineError> {
        type Open = fn(&Path) -> Result<Arc<dyn Engine>, String>;
        let (known, slot, path, open): (_, _, _, Open) = match name {
            "rten" => return Ok(self.rten.clone()),
            "onnxruntime" => ("onnxruntime", &self.onnxruntime, &self.config.onnxruntime_lib, |path| {
                Ok(Arc::new(crate::OnnxRuntime::open(path)?))
            }),
            "openvino" => ("openvino", &self.openvino, &self.config.openvino_lib, |path| {
                Ok(Arc::new(crate::OpenVino::open(path)?))
            }),
            _ => {
                let text = format!("no such engine, there are `{}`", NAMES.join("`, `"));
                return Err(EngineError::new("engine", ErrorKind::Unavailable, format!("`{name}`: {text}")));
            }
        };
        let opened = slot.get_or_init(|| {
            let Some(path) = path else {
                return Err(format!("is not installed; `edgeward engine install {known}` fetches it"));
            };
            open(path)
        });
        opened.clone().map_err(|reason| EngineError::new(known, ErrorKind::Unavailable, reason))
    }

    /// Every engine that can be opened here, in the order in which they are tried.
    pub fn available(&self) -> Vec<Arc<dyn Engine>> {
        NAMES.iter().filter_map(|name| self.get(name).ok()).collect()
    }

    /// Loads with the preferred engine, else with the first that can. An error lists each engine's reason.
    pub fn load(
        &self,
        preferred: Option<&str>,
        source: &Source,
        options: &SessionOptions,
    ) -> Result<Loaded, EngineError> {
        let mut reasons = Vec::new();
        let mut kind = ErrorKind::Unsupported;
        let order = preferred.into_iter().chain(NAMES.into_iter().filter(|n| Some(*n) != preferred));
        for name in order {
            match self.get(name).and_then(|engine| Ok(Loaded { session: engine.load(source, options)?, engine })) {
                Ok(loaded) => return Ok(loaded),
                // No other engine makes a model of a file that is none.
                Err(e) if e.kind() == ErrorKind::InvalidModel && reasons.is_empty() => return Err(e),
                Err(e) => {
                    if Some(name) == preferred || e.kind() != ErrorKind::Unavailable {
                        tracing::info!(engine = name, reason = e.message(), "engine refuses the model");
                        kind = e.kind();
                    }
                    reasons.push(e.to_string());
                }
            }
        }
        Err(EngineError::new("engine", kind, format!("no engine runs this model: {}", reasons.join("; "))))
    }
}

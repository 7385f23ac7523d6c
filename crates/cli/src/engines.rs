//! From the command line's engine options to a registry and a loaded session.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use edgeward_engine::{Engine, ErrorKind, Provider, Registry, RegistryConfig, Session, SessionOptions, Source};
use edgeward_graph::{Limits, Model};

use crate::{
    failure::{Failure, OrInput as _, Outcome},
    settings::EngineSettings,
};

/// Engine options that several commands share.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct EngineArgs {
    /// Engine: `onnxruntime`, `openvino` or `rten`; the first of these that loads the model where none
    #[arg(long, env = "EDGEWARD_ENGINE", value_name = "NAME")]
    pub engine: Option<String>,
    /// Threads within one run; the engine's own choice where none
    #[arg(long, env = "EDGEWARD_THREADS", value_name = "N", value_parser = threads)]
    pub threads: Option<NonZeroUsize>,
    #[command(flatten)]
    pub providers: ProviderArgs,
}

/// What engines run on.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ProviderArgs {
    /// Execution provider or device, as `edgeward engine list` names them, in order of preference (repeat)
    #[arg(long = "provider", value_name = "NAME")]
    pub providers: Vec<String>,
    /// What a provider is told, e.g. `CUDAExecutionProvider.device_id=1` (repeat)
    #[arg(long = "provider-option", value_name = "NAME.KEY=VALUE")]
    pub provider_options: Vec<ProviderOption>,
}

/// One setting of an execution provider.
#[derive(Clone, Debug, PartialEq)]
pub struct ProviderOption {
    provider: String,
    key: String,
    value: String,
}

impl std::str::FromStr for ProviderOption {
    type Err = String;

    /// The name goes to the first dot, the key to the next `=`; values hold what they like.
    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('=').and_then(|(path, value)| {
            let (provider, key) = path.split_once('.')?;
            let all = !provider.is_empty() && !key.is_empty();
            all.then(|| Self { provider: provider.to_owned(), key: key.to_owned(), value: value.to_owned() })
        });
        parsed.ok_or_else(|| format!("`{text}` is no setting; expected `NAME.KEY=VALUE`"))
    }
}

/// More threads than any machine has cores; engines start each of them, and a mistyped number would start a million.
pub const MAX_THREADS: usize = 1024;

/// A number of threads that an engine can start.
pub fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let parsed = text.parse::<NonZeroUsize>().ok().filter(|threads| threads.get() <= MAX_THREADS);
    parsed.ok_or_else(|| format!("`{text}` is no number of threads; expected 1 to {MAX_THREADS}"))
}

impl EngineArgs {
    /// How models run, by the command line, and where it says nothing by the file.
    pub fn or(&self, settings: &EngineSettings) -> Result<HowToRun, Failure> {
        let engine = self.engine.clone().or_else(|| settings.name.clone());
        engine.iter().try_for_each(|name| known(name))?;
        Ok(HowToRun { engine, threads: self.threads.or(settings.threads), providers: self.providers.or(settings)? })
    }
}

impl ProviderArgs {
    /// The file tells a provider what the command line does not; a setting of one that is not asked for is an error.
    pub fn or(&self, settings: &EngineSettings) -> Result<Vec<Provider>, Failure> {
        let from_file = settings.providers.as_deref().unwrap_or_default();
        let names = if self.providers.is_empty() { from_file } else { &self.providers };
        let given = self.provider_options.iter().map(|option| &option.provider);
        let in_file = settings.provider_options.keys().filter(|_| self.providers.is_empty());
        if let Some(unasked) = given.chain(in_file).find(|name| !names.contains(name)) {
            let text = "has options but is not asked for; name it with `--provider` or in `providers`";
            return Err(Failure::input(format!("provider `{unasked}` {text}")));
        }
        let provider = |name: &String| {
            let mut options: BTreeMap<String, String> = BTreeMap::new();
            for (key, value) in settings.provider_options.get(name).into_iter().flatten() {
                options.insert(key.clone(), value.to_string());
            }
            for option in self.provider_options.iter().filter(|option| option.provider == *name) {
                options.insert(option.key.clone(), option.value.clone());
            }
            Provider { name: name.clone(), options }
        };
        Ok(names.iter().map(provider).collect())
    }
}

/// An error where there is no engine of that name.
pub fn known(name: &str) -> Outcome {
    if edgeward_engine::NAMES.contains(&name) {
        return Ok(());
    }
    let known = edgeward_engine::NAMES.join("`, `");
    Err(Failure::input(format!("no engine `{name}`; there are `{known}`")))
}

/// Engine, threads and providers, settled.
#[derive(Clone, Debug)]
pub struct HowToRun {
    /// Engine; the first that loads the model where none.
    pub engine: Option<String>,
    /// Threads within one run; the engine's own choice where none.
    pub threads: Option<NonZeroUsize>,
    /// Execution providers or devices in order of preference.
    pub providers: Vec<Provider>,
}

impl HowToRun {
    /// As a session takes it.
    pub fn session(&self) -> SessionOptions {
        SessionOptions { threads: self.threads, profile: false, providers: self.providers.clone(), lower: false }
    }
}

/// Where the libraries of the engines are, by the environment and the file.
pub fn registry_config(settings: &EngineSettings) -> RegistryConfig {
    let mut config = RegistryConfig::default();
    // What the environment says is in `config` already, and wins over the file.
    let take = |found: &mut Option<PathBuf>, variable: &str, file: &Option<PathBuf>| {
        if file.is_some() && std::env::var_os(variable).is_none_or(|value| value.is_empty()) {
            found.clone_from(file);
        }
    };
    take(&mut config.onnxruntime_lib, "EDGEWARD_ONNXRUNTIME_LIB", &settings.onnxruntime_lib);
    take(&mut config.openvino_lib, "EDGEWARD_OPENVINO_LIB", &settings.openvino_lib);
    config
}

/// The engines as the file configures them; no library is opened yet.
pub fn registry(settings: &EngineSettings) -> Registry {
    Registry::new(registry_config(settings))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_add_to_what_the_file_tells_a_provider() {
        let file = "providers = [\"A\"]\n[provider_options.A]\nfast = true\nid = 3\nname = \"x\"\n";
        let file: EngineSettings = toml::from_str(file).unwrap();
        let args = |names: &[&str], options: &[&str]| ProviderArgs {
            providers: names.iter().map(|&name| name.to_owned()).collect(),
            provider_options: options.iter().map(|option| option.parse().unwrap()).collect(),
        };
        let settled = |args: ProviderArgs| {
            let found = args.or(&file).map_err(|failure| failure.message())?;
            Ok::<_, String>(
                found.into_iter().map(|p| format!("{} {:?}", p.name, p.options)).collect::<Vec<_>>().join(";"),
            )
        };
        let all = r#"A {"fast": "true", "id": "3", "name": "x"}"#;
        assert_eq!(settled(args(&[], &[])).unwrap(), all);
        assert_eq!(settled(args(&["A"], &["A.id=4"])).unwrap(), all.replace('3', "4"));
        assert_eq!(settled(args(&["B"], &["B.shape=x:1.2=3"])).unwrap(), r#"B {"shape": "x:1.2=3"}"#);
        assert!(settled(args(&[], &["C.k=v"])).unwrap_err().contains("`C`"));
        for wrong in ["", "A", "A.k", "A=v", ".k=v", "A.=v"] {
            assert!(wrong.parse::<ProviderOption>().is_err(), "{wrong}");
        }
    }
}

//! The façade that the wire calls: models by name, and what can be asked of them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use edgeward_engine::{Provider, Registry, RegistryConfig, TensorInfo};
use futures_util::stream::{self, StreamExt as _};
use parking_lot::{Mutex, MutexGuard};
use rpds::HashTrieMapSync;

use crate::{
    core::{
        InferRequest, InferResponse, ModelRef, ReleaseConfig, ServeError, ServeErrorKind,
        cache::Cache,
        catalogue::{Catalogue, Found, Reach},
        config,
        history::{Doing, History, Past},
        load::blocking,
        model::{Version, wire_dims},
        repository, stats, watch,
    },
    proto,
};

/// How a server finds and runs its models.
#[derive(Clone, Debug, Default)]
pub struct ServerConfig {
    /// Triton repositories, folders of plain `.onnx` files or of releases; a single `.onnx` file or release is a repository of one model.
    pub repositories: Vec<PathBuf>,
    /// Releases in the repositories and elsewhere.
    pub releases: ReleaseConfig,
    /// Where the libraries of the engines are.
    pub engines: RegistryConfig,
    /// Engine to try first; the default order where none.
    pub engine: Option<String>,
    /// Threads within one run.
    pub threads: Option<NonZeroUsize>,
    /// Execution providers or devices of every model.
    pub providers: Vec<Provider>,
    /// Finds what was measured to be best for a model, for what neither this nor the model's configuration says.
    pub tuning: Tuning,
    /// Follow the files of the repositories, and look at them at least this often; not at all where none.
    pub watch: Option<Duration>,
    /// Bytes of the response cache; 0 for none.
    pub cache_bytes: u64,
    /// Which models are loaded at start and who may change that.
    pub control: ModelControl,
}

/// How a model runs best.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuned {
    /// Engine.
    pub engine: String,
    /// Threads within one run.
    pub threads: NonZeroUsize,
    /// Runs side by side; as without a result where none.
    pub instances: Option<NonZeroUsize>,
    /// Requests in one run, joined where the model can; no more than one where none.
    pub batch: Option<NonZeroUsize>,
}

/// Looks up how the model in a file runs best; by default it knows of none.
#[derive(Clone, Default)]
pub struct Tuning(Option<Arc<LookUp>>);

type LookUp = dyn Fn(&Path) -> Option<Tuned> + Send + Sync;

impl Tuning {
    /// Asks `look_up` at each load of a file.
    pub fn new(look_up: impl Fn(&Path) -> Option<Tuned> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(look_up)))
    }
}

impl fmt::Debug for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tuning").field(&self.0.is_some()).finish()
    }
}

impl ServerConfig {
    /// What was measured for a model's file.
    pub(super) fn tuned(&self, name: &str, file: &Path) -> Option<Tuned> {
        let tuned = self.tuning.0.as_ref().and_then(|look_up| look_up(file))?;
        tracing::info!(
            model = name,
            engine = tuned.engine,
            threads = tuned.threads,
            instances = tuned.instances,
            batch = tuned.batch,
            "as `tune` measured, unless told otherwise"
        );
        Some(tuned)
    }
}

/// As Triton's `--model-control-mode`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ModelControl {
    /// Load all at start; changes come by the repository API.
    #[default]
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
    inner: Arc<Inner>,
}

impl LoadOverrides {
    /// True where everything comes from the repository.
    pub(super) fn is_empty(&self) -> bool {
        self.config_json.is_none() && self.files.is_empty()
    }
}

pub(super) type Versions = BTreeMap<u64, Arc<Version>>;

struct Inner {
    config: ServerConfig,
    catalogue: Arc<Catalogue>,
    registry: Registry,
    cache: Option<Cache>,
    /// What answers now; replaced whole, so that a reader never waits, by one that shares what has not changed.
    models: ArcSwap<HashTrieMapSync<Arc<str>, Arc<Versions>>>,
    history: History,
    /// One change of a model at a time; those under way.
    changing: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    draining: AtomicBool,
}

/// A server that may have ended.
pub(super) struct WeakServer(Weak<Inner>);

impl WeakServer {
    pub fn upgrade(&self) -> Option<Server> {
        self.0.upgrade().map(|inner| Server { inner })
    }
}

impl Server {
    /// Scans the repositories and loads what the control mode asks for; returns when every first load has ended,
    /// well or not. Must run inside a Tokio runtime.
    pub async fn start(config: ServerConfig) -> Result<Self, ServeError> {
        let (catalogue, repositories) = (Arc::new(Catalogue::new(&config)), config.repositories.clone());
        // Taken before anything is loaded: what changes meanwhile is not missed.
        let (all, watches) = (catalogue.clone(), config.watch.is_some());
        let first = blocking(move || {
            let found = all.look(Reach::Everywhere)?;
            let look = if watches { watch::look(&all, &BTreeMap::new()) } else { BTreeMap::new() };
            Ok((found, look))
        });
        let (found, look) = first.await?;
        let wanted: Vec<String> = match &config.control {
            ModelControl::Explicit(names) => names.clone(),
            ModelControl::Fixed => found.into_iter().collect(),
        };
        let watch = config.watch;
        let server = Self {
            inner: Arc::new(Inner {
                cache: (config.cache_bytes > 0).then(|| Cache::new(config.cache_bytes)),
                catalogue,
                registry: Registry::new(config.engines.clone()),
                config,
                models: ArcSwap::default(),
                history: History::default(),
                changing: Mutex::default(),
                draining: AtomicBool::new(false),
            }),
        };
        let load = async |name: String| {
            if let Err(e) = server.load_found(&name).await {
                tracing::error!(model = name, error = %e, "model does not load");
                // What is not there at all was asked for all the same.
                server.history().note(&name, |past| past.failure = Some(e.message));
            }
        };
        stream::iter(wanted).for_each_concurrent(server.loads_at_once(), load).await;
        if let Some(interval) = watch {
            let weak = WeakServer(Arc::downgrade(&server.inner));
            tokio::spawn(watch::follow(weak, repositories, interval, look));
        }
        Ok(server)
    }

    /// Models that load at the same time without being asked for one by one.
    pub(super) fn loads_at_once(&self) -> usize {
        std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
    }

    /// Answers a request. Dropping the future takes the request out of its queue.
    pub async fn infer(&self, request: InferRequest) -> Result<InferResponse, ServeError> {
        self.version(&request.model)?.infer(request, self).await
    }

    /// The version that a reference means: the newest where it names none.
    pub fn version(&self, model: &ModelRef) -> Result<Arc<Version>, ServeError> {
        let not_found = |text: String| ServeError::new(ServeErrorKind::NotFound, text);
        let models = self.inner.models.load();
        let Some(versions) = models.get(&model.name) else {
            let past = self.past(&model.name);
            let unavailable = match (past.doing, past.failure) {
                (Some(Doing::Loading), _) => format!("model `{}` is being loaded", model.name),
                (Some(Doing::Unloading), _) => format!("model `{}` is being unloaded", model.name),
                (None, Some(reason)) => format!("model `{}` does not load: {reason}", model.name),
                (None, None) => return Err(not_found(format!("no model `{}` is loaded", model.name))),
            };
            return Err(ServeError::new(ServeErrorKind::Unavailable, unavailable));
        };
        let found = match model.version {
            Some(number) => versions.get(&number),
            None => versions.values().next_back(),
        };
        found.cloned().ok_or_else(|| {
            let number = model.version.unwrap_or_default();
            not_found(format!("model `{}` has no version {number} loaded", model.name))
        })
    }

    /// True when every model that should serve can answer, and no drain has begun.
    pub fn ready(&self) -> bool {
        let models = self.inner.models.load();
        let healthy = models.values().flat_map(|v| v.values()).all(|v| self.defect(v).is_none());
        // A failed reload leaves the old version serving.
        let missing = self.failed().iter().any(|name| !models.contains_key(name.as_str()));
        healthy && !missing && !self.inner.draining.load(Relaxed)
    }

    /// True when this model can answer. Error: no such model.
    pub fn model_ready(&self, model: &ModelRef) -> Result<bool, ServeError> {
        Ok(self.defect(&*self.version(model)?).is_none() && !self.inner.draining.load(Relaxed))
    }

    /// Why a version cannot answer: its engine fails, or for an ensemble one of its models is gone or fails, or was
    /// replaced by one that does not fit.
    fn defect(&self, version: &Version) -> Option<String> {
        self.defect_below(version, &mut HashSet::new())
    }

    fn defect_below(&self, version: &Version, seen: &mut HashSet<ModelRef>) -> Option<String> {
        if !version.healthy() {
            return Some("its engine fails".to_owned());
        }
        for member in version.members() {
            if !seen.insert(member.clone()) {
                continue;
            }
            let reason = match self.version(&member) {
                Ok(member) => self.defect_below(&member, seen),
                Err(e) => Some(e.message),
            };
            if let Some(reason) = reason {
                return Some(format!("it needs model `{}`: {reason}", member.name));
            }
        }
        version.fits_members(self).err()
    }

    /// Inputs and outputs with versions and platform.
    pub fn model_metadata(&self, model: &ModelRef) -> Result<proto::ModelMetadataResponse, ServeError> {
        use proto::model_metadata_response::TensorMetadata;
        let version = self.version(model)?;
        let models = self.inner.models.load();
        let tensors = |infos: &[TensorInfo]| {
            let one = |i: &TensorInfo| TensorMetadata {
                name: i.name.clone(),
                datatype: crate::wire_type(i.dtype).to_owned(),
                shape: wire_dims(i),
            };
            infos.iter().map(one).collect()
        };
        Ok(proto::ModelMetadataResponse {
            name: version.name.to_string(),
            versions: models.get(&model.name).map(|v| v.keys().map(u64::to_string).collect()).unwrap_or_default(),
            platform: if version.is_ensemble() { "ensemble" } else { "onnxruntime_onnx" }.to_owned(),
            inputs: tensors(version.inputs()),
            outputs: tensors(version.outputs()),
        })
    }

    /// The completed configuration.
    pub fn model_config(&self, model: &ModelRef) -> Result<proto::ModelConfig, ServeError> {
        Ok(self.version(model)?.config.clone())
    }

    /// Statistics of one model, or of all where `name` is empty; of one version, or all where none.
    pub fn statistics(&self, name: &str, version: Option<u64>) -> Result<Vec<proto::ModelStatistics>, ServeError> {
        if !name.is_empty() {
            self.version(&ModelRef { name: name.into(), version })?;
        }
        let wanted = |v: &Arc<Version>| name.is_empty() || (*v.name == *name && version.is_none_or(|n| n == v.number));
        Ok(self.versions().iter().filter(|v| wanted(v)).map(|v| v.stats().proto(&v.name, v.number)).collect())
    }

    /// Every model of the repositories with its versions, those that were unloaded included.
    pub fn index(&self, ready_only: bool) -> Vec<IndexEntry> {
        let mut entries = Vec::new();
        let mut models: BTreeMap<String, Past> = self.history().all();
        let names = self.catalogue().look(Reach::Here).unwrap_or_default();
        for name in names.into_iter().chain(self.inner.models.load().keys().map(|name| name.to_string())) {
            models.entry(name).or_default();
        }
        for (name, past) in models {
            self.index_of(&name, past, &mut entries);
        }
        entries.retain(|e| !ready_only || e.state == "READY");
        entries
    }

    fn index_of(&self, name: &str, past: Past, entries: &mut Vec<IndexEntry>) {
        let entry = |version: String, state: &'static str, reason: String| IndexEntry {
            name: name.to_owned(),
            version,
            state,
            reason,
        };
        let loaded = self.loaded(name).unwrap_or_default();
        for version in loaded.values() {
            let failed =
                past.failure.as_ref().map(|reason| format!("the last load failed, and this serves on: {reason}"));
            entries.push(match self.defect(version) {
                Some(defect) => entry(version.number.to_string(), "UNAVAILABLE", defect),
                None => entry(version.number.to_string(), "READY", failed.unwrap_or_default()),
            });
        }
        let unloading = past.doing == Some(Doing::Unloading);
        for number in &past.unloaded {
            let state = if unloading && loaded.is_empty() { "UNLOADING" } else { "UNAVAILABLE" };
            entries.push(entry(number.to_string(), state, "unloaded".to_owned()));
        }
        match past.failure {
            _ if past.doing == Some(Doing::Loading) && loaded.is_empty() => {
                entries.push(entry(String::new(), "LOADING", String::new()));
            }
            Some(reason) if loaded.is_empty() => entries.push(entry(String::new(), "UNAVAILABLE", reason)),
            None if loaded.is_empty() && past.unloaded.is_empty() => {
                entries.push(entry(String::new(), "", String::new()));
            }
            _ => {}
        }
    }

    /// From now on not ready; requests are still answered until the listeners close.
    pub fn begin_drain(&self) {
        self.inner.draining.store(true, Relaxed);
    }

    /// Waits until no request is queued or running, at most `grace`; true when none was left.
    pub async fn drain(&self, grace: Duration) -> bool {
        let idle = async {
            while self.versions().iter().any(|v| v.stats().pending.load(Relaxed) > 0) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(grace, idle).await.is_ok()
    }

    /// Metrics in Prometheus text format (`nv_inference_*` counters and true histograms).
    pub fn metrics_text(&self) -> String {
        let versions = self.versions();
        stats::prometheus(versions.iter().map(|v| (&*v.name, v.number, v.stats())))
    }

    /// Every loaded version, by name and number.
    pub fn versions(&self) -> Vec<Arc<Version>> {
        let mut all: Vec<_> = self.inner.models.load().values().flat_map(|v| v.values().cloned()).collect();
        all.sort_by(|a, b| (&a.name, a.number).cmp(&(&b.name, b.number)));
        all
    }

    /// Swaps what answers under a name and returns what did.
    pub(super) fn replace(&self, name: &str, versions: Option<Arc<Versions>>) -> Option<Arc<Versions>> {
        let old = self.loaded(name);
        let gone: Vec<u64> = old.iter().flat_map(|old| old.keys().copied()).collect();
        self.history().note(name, |past| {
            past.unloaded.extend(gone);
            past.unloaded.retain(|number| versions.as_ref().is_none_or(|new| !new.contains_key(number)));
        });
        self.inner.models.rcu(|models| {
            let mut models = HashTrieMapSync::clone(models);
            match &versions {
                Some(versions) => models.insert_mut(name.into(), versions.clone()),
                None => drop(models.remove_mut(name)),
            }
            models
        });
        old
    }

    /// True where the model is an ensemble, by its configuration in the repository.
    pub(super) fn is_ensemble(&self, name: &str) -> bool {
        let Ok(Some(Found::Files(path))) = self.catalogue().find(name) else { return false };
        repository::configuration(name, &path, None).is_ok_and(|config| config::ensembling(&config).is_some())
    }

    pub(super) fn loaded(&self, name: &str) -> Option<Arc<Versions>> {
        self.inner.models.load().get(name).cloned()
    }

    /// Models of which some version came from the repositories, not with a call.
    pub(super) fn loaded_from_files(&self) -> Vec<String> {
        let models = self.inner.models.load();
        let from_files = models.iter().filter(|(_, versions)| versions.values().any(|v| v.origin.is_some()));
        from_files.map(|(name, _)| name.to_string()).collect()
    }

    pub(super) fn is_loaded(&self, name: &str) -> bool {
        self.inner.models.load().contains_key(name)
    }

    pub(super) fn past(&self, name: &str) -> Past {
        self.inner.history.of(name)
    }

    /// Models whose last load failed.
    pub(super) fn failed(&self) -> Vec<String> {
        self.inner.history.failed()
    }

    pub(super) fn control(&self) -> &ModelControl {
        &self.inner.config.control
    }

    pub(super) fn history(&self) -> &History {
        &self.inner.history
    }

    pub(super) fn config(&self) -> &ServerConfig {
        &self.inner.config
    }

    pub(super) fn catalogue(&self) -> &Arc<Catalogue> {
        &self.inner.catalogue
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    pub(super) fn cache(&self) -> Option<&Cache> {
        self.inner.cache.as_ref()
    }

    pub(super) fn locks(&self) -> MutexGuard<'_, HashMap<String, Arc<tokio::sync::Mutex<()>>>> {
        self.inner.changing.lock()
    }
}

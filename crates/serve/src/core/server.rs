//! The façade that the wire calls: models by name, and what can be asked of them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use edgeward_engine::{Registry, RegistryConfig, Session, SessionOptions, Source, TensorInfo};
use parking_lot::Mutex;

use crate::{
    core::{
        InferRequest, InferResponse, ModelRef, ServeError, ServeErrorKind,
        cache::Cache,
        config,
        ensemble::{self, Ensemble},
        model::{Version, wire_dims},
        overrides, repository, stats,
    },
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
    /// Bytes of the response cache; 0 for none.
    pub cache_bytes: u64,
    /// Which models are loaded at start and who may change that.
    pub control: ModelControl,
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

type Versions = BTreeMap<u64, Arc<Version>>;

struct Inner {
    config: ServerConfig,
    registry: Registry,
    cache: Option<Cache>,
    /// What answers now; replaced whole, so that a reader never waits.
    models: ArcSwap<HashMap<Arc<str>, Arc<Versions>>>,
    /// Why a model of the repository does not serve.
    failures: Mutex<BTreeMap<String, String>>,
    /// One load or unload at a time.
    changing: tokio::sync::Mutex<()>,
    draining: AtomicBool,
}

impl Server {
    /// Scans the repositories and loads what the control mode asks for; returns when every first load has ended,
    /// well or not. Must run inside a Tokio runtime.
    pub async fn start(config: ServerConfig) -> Result<Self, ServeError> {
        let found = repository::names(&config.repositories)?;
        let wanted: Vec<String> = match &config.control {
            ModelControl::Explicit(names) => names.clone(),
            ModelControl::Fixed => found.into_keys().collect(),
        };
        let server = Self {
            inner: Arc::new(Inner {
                cache: (config.cache_bytes > 0).then(|| Cache::new(config.cache_bytes)),
                config,
                registry: Registry::new(RegistryConfig::default()),
                models: ArcSwap::default(),
                failures: Mutex::default(),
                changing: tokio::sync::Mutex::default(),
                draining: AtomicBool::new(false),
            }),
        };
        for name in wanted {
            if let Err(e) = server.load(&name, LoadOverrides::default()).await {
                tracing::error!(model = name, error = %e, "model does not load");
            }
        }
        Ok(server)
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
            if let Some(reason) = self.failures().get(&*model.name) {
                let text = format!("model `{}` does not load: {reason}", model.name);
                return Err(ServeError::new(ServeErrorKind::Unavailable, text));
            }
            return Err(not_found(format!("no model `{}` is loaded", model.name)));
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
        let missing = self.failures().keys().any(|name| !models.contains_key(name.as_str()));
        healthy && !missing && !self.inner.draining.load(Relaxed)
    }

    /// True when this model can answer. Error: no such model.
    pub fn model_ready(&self, model: &ModelRef) -> Result<bool, ServeError> {
        Ok(self.defect(&*self.version(model)?).is_none() && !self.inner.draining.load(Relaxed))
    }

    /// Why a version cannot answer: its engine fails, or for an ensemble one of its models is gone or fails.
    fn defect(&self, version: &Version) -> Option<String> {
        if !version.healthy() {
            return Some("its engine fails".to_owned());
        }
        version.members().iter().find_map(|member| {
            let reason = match self.version(member) {
                Ok(member) => self.defect(&member)?,
                Err(e) => e.message,
            };
            Some(format!("it needs model `{}`: {reason}", member.name))
        })
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
            platform: "onnxruntime_onnx".to_owned(),
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

    /// Every model of the repositories with its versions.
    pub fn index(&self, ready_only: bool) -> Vec<IndexEntry> {
        let mut entries: Vec<IndexEntry> = self
            .versions()
            .iter()
            .map(|v| {
                let defect = self.defect(v);
                IndexEntry {
                    name: v.name.to_string(),
                    version: v.number.to_string(),
                    state: if defect.is_none() { "READY" } else { "UNAVAILABLE" },
                    reason: defect.unwrap_or_default(),
                }
            })
            .collect();
        let loaded: HashSet<String> = entries.iter().map(|e| e.name.clone()).collect();
        let failures = self.failures().clone();
        let names = repository::names(&self.inner.config.repositories).unwrap_or_default().into_keys();
        for name in names.filter(|n| !loaded.contains(n)) {
            let reason = failures.get(&name).cloned().unwrap_or_default();
            let state = if reason.is_empty() { "" } else { "UNAVAILABLE" };
            entries.push(IndexEntry { name, version: String::new(), state, reason });
        }
        entries.retain(|e| !ready_only || e.state == "READY");
        entries.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
        entries
    }

    /// Loads or reloads a model; returns when it serves. The old version serves until then, and on if this fails.
    /// An ensemble loads the models that it needs and that are not loaded yet.
    pub async fn load(&self, name: &str, overrides: LoadOverrides) -> Result<(), ServeError> {
        let _one_at_a_time = self.inner.changing.lock().await;
        let (server, owned) = (self.clone(), name.to_owned());
        let loaded = tokio::task::spawn_blocking(move || {
            let found = repository::names(&server.inner.config.repositories)?;
            server.load_one(&owned, &overrides, &found, &mut Vec::new())
        });
        loaded.await.unwrap_or_else(|e| Err(ServeError::new(ServeErrorKind::Internal, e.to_string())))
    }

    /// Loads a model and puts it in place. `above` are the ensembles on whose behalf that is done.
    fn load_one(
        &self,
        name: &str,
        overrides: &LoadOverrides,
        found: &BTreeMap<String, PathBuf>,
        above: &mut Vec<String>,
    ) -> Result<(), ServeError> {
        match self.read_and_load(name, overrides, found, above) {
            Ok(versions) => {
                self.failures().remove(name);
                self.replace(name, Some(Arc::new(versions)));
                Ok(())
            }
            Err(e) => {
                if e.kind != ServeErrorKind::NotFound {
                    self.failures().insert(name.to_owned(), e.message.clone());
                }
                Err(e)
            }
        }
    }

    fn read_and_load(
        &self,
        name: &str,
        overrides: &LoadOverrides,
        found: &BTreeMap<String, PathBuf>,
        above: &mut Vec<String>,
    ) -> Result<Versions, ServeError> {
        let not_found = || ServeError::new(ServeErrorKind::NotFound, format!("no model `{name}` in the repositories"));
        if !repository::is_name(name) {
            return Err(not_found());
        }
        let given = overrides::Files::of(name, overrides)?;
        let path = match &given {
            Some(files) => files.folder(),
            None => found.get(name).ok_or_else(not_found)?,
        };
        let entry = repository::read(name, path, overrides.config_json.as_deref())?;
        let invalid =
            |text: String| ServeError::new(ServeErrorKind::InvalidArgument, format!("model `{name}`: {text}"));
        let named = config::engine(&entry.config).map_err(invalid)?;
        if let Some(ensembling) = config::ensembling(&entry.config) {
            self.load_members(name, ensemble::members(ensembling), found, above)?;
            return self.ensemble(name, &entry, ensembling).map_err(invalid);
        }
        let preferred = named.or(self.inner.config.engine.as_deref());
        let threads = config::threads(&entry.config).map_err(invalid)?.or(self.inner.config.threads);
        let options = SessionOptions { threads, ..SessionOptions::default() };
        let mut versions = Versions::new();
        for (number, file) in entry.versions {
            let loaded = self
                .inner
                .registry
                .load(preferred, &Source::File(file), &options)
                .map_err(|e| invalid(e.to_string()))?;
            tracing::info!(model = name, version = number, engine = loaded.engine.name(), "model loaded");
            let config = completed(name, entry.config.clone(), &*loaded.session).map_err(invalid)?;
            let version = Version::new(name, number, config, loaded, path, self.inner.cache.as_ref());
            versions.insert(number, Arc::new(version.map_err(invalid)?));
        }
        Ok(versions)
    }

    fn load_members(
        &self,
        name: &str,
        members: Vec<String>,
        found: &BTreeMap<String, PathBuf>,
        above: &mut Vec<String>,
    ) -> Result<(), ServeError> {
        above.push(name.to_owned());
        for member in members {
            let refuse = |text: String| ServeError::new(ServeErrorKind::InvalidArgument, text);
            if above.contains(&member) {
                let way = above.join("` → `");
                return Err(refuse(format!("ensembles on a cycle: `{way}` → `{member}`")));
            }
            if !self.inner.models.load().contains_key(member.as_str()) {
                self.load_one(&member, &LoadOverrides::default(), found, above)
                    .map_err(|e| refuse(format!("model `{name}`: step `{member}`: {}", e.message)))?;
            }
        }
        above.pop();
        Ok(())
    }

    fn ensemble(
        &self,
        name: &str,
        entry: &repository::Entry,
        ensembling: &proto::ModelEnsembling,
    ) -> Result<Versions, String> {
        if let Some(output) = entry.config.output.iter().find(|output| !output.label_filename.is_empty()) {
            let text = "`label_filename` is for models of their own; set it in the step that makes the output";
            return Err(format!("output `{}`: {text}", output.name));
        }
        let mut versions = Versions::new();
        for &number in entry.versions.keys() {
            let graph = Ensemble::new(&entry.config, ensembling, self)?;
            let config = proto::ModelConfig { name: name.to_owned(), ..entry.config.clone() };
            let version = Version::ensemble(name, number, config, graph, self.inner.cache.as_ref());
            tracing::info!(model = name, version = number, "ensemble loaded");
            versions.insert(number, Arc::new(version));
        }
        Ok(versions)
    }

    /// Unloads a model: new requests are refused, accepted ones answered, then its memory is given back. With
    /// `dependents` the models that an ensemble runs go with it.
    pub async fn unload(&self, name: &str, dependents: bool) -> Result<(), ServeError> {
        let _one_at_a_time = self.inner.changing.lock().await;
        let mut names = vec![name.to_owned()];
        if dependents && let Some(versions) = self.inner.models.load().get(name) {
            let members: HashSet<String> =
                versions.values().flat_map(|v| v.members()).map(|member| member.name.to_string()).collect();
            names.extend(members);
        }
        for (index, name) in names.iter().enumerate() {
            self.failures().remove(name);
            // Only weak references may stay here: the wait below is for the last strong one to go.
            let old: Option<Vec<_>> = self.replace(name, None).map(|old| old.values().map(Arc::downgrade).collect());
            let Some(old) = old else {
                // A member may have been unloaded before.
                if index > 0 {
                    continue;
                }
                return Err(ServeError::new(ServeErrorKind::NotFound, format!("no model `{name}` is loaded")));
            };
            while old.iter().any(|v| v.strong_count() > 0) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        Ok(())
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

    fn failures(&self) -> parking_lot::MutexGuard<'_, BTreeMap<String, String>> {
        self.inner.failures.lock()
    }

    /// Swaps what answers under a name and returns what did.
    fn replace(&self, name: &str, versions: Option<Arc<Versions>>) -> Option<Arc<Versions>> {
        let old = self.inner.models.load().get(name).cloned();
        self.inner.models.rcu(|models| {
            let mut models = HashMap::clone(models);
            match &versions {
                Some(versions) => models.insert(name.into(), versions.clone()),
                None => models.remove(name),
            };
            models
        });
        old
    }
}

/// Fills what the file leaves open from the model, and checks what it says against it.
fn completed(name: &str, mut config: proto::ModelConfig, session: &dyn Session) -> Result<proto::ModelConfig, String> {
    config.name = name.to_owned();
    let batched = config.max_batch_size > 0;
    let dims = |info: &TensorInfo| wire_dims(info).into_iter().skip(usize::from(batched)).collect::<Vec<_>>();
    for declared in config.input.iter().map(|i| &i.name) {
        if session.inputs().iter().all(|i| i.name != *declared) {
            return Err(format!("config.pbtxt declares input `{declared}`, which the model does not have"));
        }
    }
    for declared in config.output.iter().map(|o| &o.name) {
        if session.outputs().iter().all(|o| o.name != *declared) {
            return Err(format!("config.pbtxt declares output `{declared}`, which the model does not have"));
        }
    }
    if config.input.is_empty() {
        let input = |i: &TensorInfo| proto::ModelInput {
            name: i.name.clone(),
            data_type: crate::config_type(i.dtype) as i32,
            dims: dims(i),
            ..proto::ModelInput::default()
        };
        config.input = session.inputs().iter().map(input).collect();
    }
    if config.output.is_empty() {
        let output = |o: &TensorInfo| proto::ModelOutput {
            name: o.name.clone(),
            data_type: crate::config_type(o.dtype) as i32,
            dims: dims(o),
            ..proto::ModelOutput::default()
        };
        config.output = session.outputs().iter().map(output).collect();
    }
    Ok(config)
}

//! Loading and unloading: first a plan of what a model needs, then each model of it under a lock of its own.

use std::{
    collections::HashSet,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use edgeward_engine::{Dim, Session, SessionOptions, Source, TensorInfo};
use tokio::sync::OwnedMutexGuard;

use crate::{
    core::{
        LoadOverrides, ServeError, ServeErrorKind, Server,
        catalogue::{Found, Offer},
        config,
        declared::completed,
        ensemble::{self, Ensemble},
        history::Doing,
        model::Version,
        overrides, repository,
        server::{Tuned, Versions},
        snapshot::Snapshot,
    },
    proto,
};

/// Ensembles within ensembles.
const DEPTH_MAX: usize = 64;

/// What may go on serving through a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reuse {
    Nothing,
    /// Versions whose files are those that they were loaded from.
    Unchanged,
}

impl Server {
    /// Loads or reloads a model; returns when it serves. The old version serves until then, and on if this fails.
    /// An ensemble loads the models that it needs and that are not loaded yet.
    pub async fn load(&self, name: &str, overrides: LoadOverrides) -> Result<(), ServeError> {
        let (catalogue, owned) = (self.catalogue().clone(), name.to_owned());
        blocking(move || {
            catalogue.refresh(&owned);
            Ok(())
        })
        .await?;
        self.load_with(name, overrides, Reuse::Nothing).await
    }

    /// Loads what a look has just found.
    pub(super) async fn load_found(&self, name: &str) -> Result<(), ServeError> {
        self.load_with(name, LoadOverrides::default(), Reuse::Nothing).await
    }

    /// Loads the versions whose files have changed; the others go on.
    pub(super) async fn reload_changed(&self, name: &str) -> Result<(), ServeError> {
        self.load_with(name, LoadOverrides::default(), Reuse::Unchanged).await
    }

    async fn load_with(&self, name: &str, overrides: LoadOverrides, reuse: Reuse) -> Result<(), ServeError> {
        overrides::check(name, &overrides).map_err(|e| if overrides.is_empty() { not_found(name) } else { e })?;
        let (server, owned) = (self.clone(), name.to_owned());
        let overrides = Arc::new(overrides);
        let given = overrides.clone();
        let plan = blocking(move || server.plan(&owned, &given)).await;
        let plan = plan.inspect_err(|e| self.note_failure(name, e))?;
        for member in plan.iter().filter(|step| *step != name) {
            let _changing = self.changing(member).await;
            if self.is_loaded(member) {
                continue;
            }
            self.replace_with(member, Arc::default(), Reuse::Nothing).await.map_err(|e| {
                let text = format!("model `{name}`: step `{member}`: {}", e.message);
                let error = ServeError::new(ServeErrorKind::InvalidArgument, text);
                self.note_failure(name, &error);
                error
            })?;
        }
        let _changing = self.changing(name).await;
        self.replace_with(name, overrides, reuse).await
    }

    /// The model with those that it needs and that are not loaded, in an order in which each finds its own there.
    fn plan(&self, name: &str, overrides: &LoadOverrides) -> Result<Vec<String>, ServeError> {
        let mut plan = Plan { server: self, order: Vec::new(), seen: HashSet::new(), above: Vec::new() };
        plan.visit(name, Some(overrides))?;
        Ok(plan.order)
    }

    /// Loads one model and puts it in place; the caller holds its lock.
    async fn replace_with(&self, name: &str, overrides: Arc<LoadOverrides>, reuse: Reuse) -> Result<(), ServeError> {
        let _loading = self.history().doing(name, Doing::Loading);
        let (server, owned) = (self.clone(), name.to_owned());
        let versions = blocking(move || server.read_and_load(&owned, &overrides, reuse)).await;
        let versions = versions.inspect_err(|e| self.note_failure(name, e))?;
        self.history().note(name, |past| past.failure = None);
        self.replace(name, Some(Arc::new(versions)));
        Ok(())
    }

    fn note_failure(&self, name: &str, error: &ServeError) {
        if error.kind != ServeErrorKind::NotFound {
            self.history().note(name, |past| {
                past.failure = Some(error.message.clone());
                past.may_pass = error.kind == ServeErrorKind::Unavailable;
            });
        }
    }

    fn read_and_load(&self, name: &str, overrides: &LoadOverrides, reuse: Reuse) -> Result<Versions, ServeError> {
        let given = overrides::Files::of(name, overrides)?;
        let found = match &given {
            Some(files) => Found::Files(files.folder().to_owned()),
            None => self.catalogue().find(name)?.ok_or_else(|| not_found(name))?,
        };
        let path = match found {
            Found::Files(path) => path,
            Found::Release(offer) => return self.release(name, offer, overrides, reuse),
        };
        let snapshot = overrides.is_empty().then(|| Snapshot::of(&path));
        let entry = repository::read(name, &path, overrides.config_json.as_deref())?;
        let invalid =
            |text: String| ServeError::new(ServeErrorKind::InvalidArgument, format!("model `{name}`: {text}"));
        let serving = self.loaded(name).unwrap_or_default();
        let mut versions = Versions::new();
        for (&number, file) in &entry.versions {
            let origin = snapshot.as_ref().map(|snapshot| snapshot.origin(number));
            let unchanged = |v: &&Arc<Version>| reuse == Reuse::Unchanged && origin.is_some() && v.origin == origin;
            let version = match serving.get(&number).filter(unchanged) {
                Some(version) => version.clone(),
                None => {
                    let mut version = self.version_of(name, &path, &entry.config, number, file).map_err(invalid)?;
                    version.origin = origin;
                    Arc::new(version)
                }
            };
            versions.insert(number, version);
        }
        Ok(versions)
    }

    /// The one version that a release is.
    fn release(
        &self,
        name: &str,
        offer: Offer,
        overrides: &LoadOverrides,
        reuse: Reuse,
    ) -> Result<Versions, ServeError> {
        let number = offer.sequence;
        let found = Found::Release(offer.clone());
        let origin = overrides.is_empty().then(|| self.catalogue().snapshot(&found, None).origin(number));
        let serving = self.loaded(name).and_then(|serving| serving.get(&number).cloned());
        let unchanged = |v: &Arc<Version>| reuse == Reuse::Unchanged && origin.is_some() && v.origin == origin;
        let version = match serving.filter(unchanged) {
            Some(version) => version,
            None => {
                let mut version = self.release_version(name, &offer, overrides.config_json.as_deref())?;
                version.origin = origin;
                Arc::new(version)
            }
        };
        Ok(Versions::from([(number, version)]))
    }

    /// Loads one version of a model that lies at `path`.
    fn version_of(
        &self,
        name: &str,
        path: &Path,
        config: &proto::ModelConfig,
        number: u64,
        file: &Path,
    ) -> Result<Version, String> {
        let cache = self.cache();
        if let Some(ensembling) = config::ensembling(config) {
            if let Some(output) = config.output.iter().find(|output| !output.label_filename.is_empty()) {
                let text = "`label_filename` is for models of their own; set it in the step that makes the output";
                return Err(format!("output `{}`: {text}", output.name));
            }
            let graph = Ensemble::new(config, ensembling, self)?;
            let config = proto::ModelConfig { name: name.to_owned(), ..config.clone() };
            tracing::info!(model = name, version = number, "ensemble loaded");
            return Ok(Version::ensemble(name, number, config, graph, cache));
        }
        let (engine, threads) = (config::engine(config)?, config::threads(config)?);
        let own = self.config();
        let (engine, threads) = (own.engine.as_deref().or(engine), own.threads.or(threads));
        // What was measured holds for the engine and the threads together.
        let tuned = if engine.is_none() && threads.is_none() { own.tuned(name, file) } else { None };
        let engine = engine.or(tuned.as_ref().map(|t| t.engine.as_str()));
        let threads = threads.or(tuned.as_ref().map(|t| t.threads));
        let options = SessionOptions { threads, profile: false, providers: own.providers.clone(), lower: false };
        let at = |text: String| format!("version {number}: {text}");
        let loaded = self.registry().load(engine, &Source::File(file.to_owned()), &options);
        let loaded = loaded.map_err(|e| at(e.to_string()))?;
        tracing::info!(model = name, version = number, engine = loaded.engine.name(), "model loaded");
        let mut config = config.clone();
        if let Some(tuned) = &tuned {
            schedule(&mut config, tuned, &*loaded.session);
        }
        let config = completed(name, config, &*loaded.session).map_err(at)?;
        Version::new(name, number, config, loaded, path, cache).map_err(at)
    }

    /// Unloads a model: new requests are refused, accepted ones answered, then its memory is given back. With
    /// `dependents` the models that an ensemble runs go with it.
    pub async fn unload(&self, name: &str, dependents: bool) -> Result<(), ServeError> {
        let members = if dependents { self.members_below(name) } else { Vec::new() };
        self.unload_one(name).await?;
        for member in members {
            match self.unload_one(&member).await {
                // It may have been unloaded before.
                Err(e) if e.kind == ServeErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    async fn unload_one(&self, name: &str) -> Result<(), ServeError> {
        let not_loaded = || ServeError::new(ServeErrorKind::NotFound, format!("no model `{name}` is loaded"));
        let _changing = self.changing(name).await;
        self.history().note(name, |past| past.failure = None);
        if !self.is_loaded(name) {
            return Err(not_loaded());
        }
        let _unloading = self.history().doing(name, Doing::Unloading);
        // Only weak references may stay here: the wait below is for the last strong one to go.
        let old: Vec<_> = self.replace(name, None).iter().flat_map(|old| old.values()).map(Arc::downgrade).collect();
        while old.iter().any(|v| v.strong_count() > 0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Every model that an ensemble runs, those of its ensembles included.
    fn members_below(&self, name: &str) -> Vec<String> {
        let (mut found, mut open) = (Vec::new(), vec![name.to_owned()]);
        while let Some(next) = open.pop() {
            for member in self.members_of(&next) {
                if member != name && !found.contains(&member) {
                    found.push(member.clone());
                    open.push(member);
                }
            }
        }
        found
    }

    /// Models that the loaded versions of a model run.
    fn members_of(&self, name: &str) -> Vec<String> {
        let versions = self.loaded(name).unwrap_or_default();
        versions.values().flat_map(|v| v.members()).map(|member| member.name.to_string()).collect()
    }

    /// Waits until no other change of this model is under way.
    async fn changing(&self, name: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks();
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(name.to_owned()).or_default().clone()
        };
        lock.lock_owned().await
    }
}

/// What has to be loaded, found by following ensembles.
struct Plan<'a> {
    server: &'a Server,
    order: Vec<String>,
    seen: HashSet<String>,
    above: Vec<String>,
}

impl Plan<'_> {
    /// `overrides` are there for the model that is to be loaded, loaded already or not.
    fn visit(&mut self, name: &str, overrides: Option<&LoadOverrides>) -> Result<(), ServeError> {
        let refuse = |text: String| Err(ServeError::new(ServeErrorKind::InvalidArgument, text));
        if self.above.iter().any(|above| above == name) {
            let way = self.above.join("` → `");
            return refuse(format!("ensembles on a cycle: `{way}` → `{name}`"));
        }
        if self.above.len() > DEPTH_MAX {
            return refuse(format!("ensembles lie more than {DEPTH_MAX} deep in one another"));
        }
        if !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let stays = overrides.is_none() && self.server.is_loaded(name);
        let members = if stays { self.server.members_of(name) } else { self.needs(name, overrides)? };
        self.above.push(name.to_owned());
        for member in members {
            self.visit(&member, None).map_err(|e| match e.kind {
                ServeErrorKind::NotFound => {
                    let text = format!("model `{name}`: step `{member}`: {}", e.message);
                    ServeError::new(ServeErrorKind::InvalidArgument, text)
                }
                _ => e,
            })?;
        }
        self.above.pop();
        if !stays {
            self.order.push(name.to_owned());
        }
        Ok(())
    }

    /// The models that a configuration names.
    fn needs(&self, name: &str, overrides: Option<&LoadOverrides>) -> Result<Vec<String>, ServeError> {
        let json = overrides.and_then(|o| o.config_json.as_deref());
        let given = overrides.is_some_and(|o| !o.files.is_empty());
        let catalogue = self.server.catalogue();
        if given {
            catalogue.takes_files(name)?;
        }
        let found = || catalogue.find(name)?.ok_or_else(|| not_found(name));
        let path = match if given { Found::Files(PathBuf::new()) } else { found()? } {
            Found::Files(path) => path,
            Found::Release(_) => return Ok(Vec::new()),
        };
        let config = repository::configuration(name, &path, json)?;
        Ok(config::ensembling(&config).map(ensemble::members).unwrap_or_default())
    }
}

/// Work that waits for disks, keys or networks, on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ServeError> + Send + 'static,
) -> Result<T, ServeError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(ServeError::new(ServeErrorKind::Internal, e.to_string())))
}

fn not_found(name: &str) -> ServeError {
    ServeError::new(ServeErrorKind::NotFound, format!("no model `{name}` in the repositories"))
}

/// Fills what the file leaves open of instances and batching from what was measured, where the model can batch.
fn schedule(config: &mut proto::ModelConfig, tuned: &Tuned, session: &dyn Session) {
    let count = |n: NonZeroUsize| i32::try_from(n.get()).unwrap_or(i32::MAX);
    if let Some(instances) = tuned.instances.filter(|_| config.instance_group.is_empty()) {
        let group = proto::ModelInstanceGroup { count: count(instances), ..proto::ModelInstanceGroup::default() };
        config.instance_group.push(group);
    }
    let open = |info: &TensorInfo| {
        let first = info.shape.as_ref().and_then(|dims| dims.first());
        matches!(first, Some(Dim::Symbol(_) | Dim::Dynamic(())))
    };
    let undecided = config.max_batch_size == 0 && config.scheduling_choice.is_none();
    let can = session.inputs().iter().chain(session.outputs()).all(open) && !session.inputs().is_empty();
    if let Some(batch) = tuned.batch.filter(|batch| batch.get() > 1 && undecided && can) {
        config.max_batch_size = count(batch);
        let batching = proto::ModelDynamicBatching::default();
        config.scheduling_choice = Some(proto::model_config::SchedulingChoice::DynamicBatching(batching));
    }
}

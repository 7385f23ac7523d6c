//! Releases as models: opened by `store`, in memory, and put into an engine.
//!
//! What is signed, sealed or older than what was seen is decided there; here is decided which variant this machine runs.

mod choose;
mod config;
mod place;

use std::{num::NonZeroUsize, path::Path};

use edgeward_engine::{SessionOptions, Source};
use edgeward_store::{ErrorKind, OpenOptions, Opened, StoreError, manifest::Variant, remote::Selection};
use tokio::runtime::Handle;

use self::choose::Machine;
pub use self::{
    config::{ReleaseConfig, ReleaseGoal, Signers},
    place::ReleasePlace,
};
use crate::{
    core::{
        ServeError, ServeErrorKind, Server,
        catalogue::{At, Offer},
        config as model_config,
        declared::completed,
        model::Version,
        repository,
    },
    proto::{ModelConfig, ModelParameter, model_warmup::input::InputDataType},
};

impl Server {
    /// Loads a release as a version of its model. The floor is raised last: a release that does not load here bars no older one.
    pub(super) fn release_version(
        &self,
        name: &str,
        offer: &Offer,
        config_json: Option<&str>,
    ) -> Result<Version, ServeError> {
        let place = self.catalogue().shown(&offer.at);
        let failed = |error: StoreError| {
            let kind = match error.kind() {
                ErrorKind::Unavailable => ServeErrorKind::Unavailable,
                _ => ServeErrorKind::InvalidArgument,
            };
            ServeError::new(kind, format!("model `{name}`: release `{place}`: {error}"))
        };
        let invalid = |text: String| failed(StoreError::new(ErrorKind::Invalid, text));
        let config = scheduling(name, config_json)?;
        let opened = self.open_release(name, offer).map_err(failed)?;
        let manifest = opened.manifest();
        if (manifest.name.as_str(), manifest.sequence) != (name, offer.sequence) {
            let text = format!("it is release {} of `{}` by now; load it again", manifest.sequence, manifest.name);
            return Err(invalid(text));
        }
        let id = manifest.unsealed().id().map_err(failed)?;
        let floor = self.config().releases.floor.as_ref();
        floor.map_or(Ok(()), |floor| floor.check(name, manifest.sequence, id)).map_err(failed)?;
        let version = self.best_variant(&opened, &config).map_err(failed)?;
        match floor {
            Some(floor) => floor.raise(name, manifest.sequence, id).map_err(failed)?,
            None => tracing::warn!(model = name, "no floor file: an older release of this name is taken as well"),
        }
        if let At::Place(place) = offer.at
            && let Some(place) = self.catalogue().place(place)
        {
            place.forget_others(name, opened.folder());
        }
        Ok(version)
    }

    fn open_release(&self, name: &str, offer: &Offer) -> Result<Opened, StoreError> {
        let releases = &self.config().releases;
        let trust = releases.signers.ask()?;
        let options = OpenOptions { trust: &trust, keys: releases.keys.as_deref(), floor: None };
        let (at, place) = match &offer.at {
            At::Folder(folder) => return edgeward_store::open(folder, &options),
            At::Place(at) => (*at, self.catalogue().place(*at)),
        };
        let place = place.ok_or_else(|| StoreError::new(ErrorKind::NotFound, "no such place"))?;
        let _fetching = place.lock(name)?;
        let kept = place.kept_folder(name, offer.sequence);
        if let Some(folder) = kept.filter(|_| !self.catalogue().answers(at)) {
            return edgeward_store::open(&folder, &options);
        }
        let selection = Selection { name: Some(name.to_owned()), sequence: Some(offer.sequence) };
        let runtime = Handle::try_current().map_err(|e| StoreError::new(ErrorKind::Unavailable, e.to_string()))?;
        runtime.block_on(place.remote.open_release(&selection, &place.cache, &options))
    }

    /// Loads the variant that this machine runs best. One that no engine runs is left for the next; one that was changed ends it.
    fn best_variant(&self, opened: &Opened, config: &ModelConfig) -> Result<Version, StoreError> {
        let own = self.config();
        let available = |name: &str| self.registry().get(name).is_ok();
        let invalid = |text: String| StoreError::new(ErrorKind::Invalid, text);
        let engine = own.engine.as_deref().or(model_config::engine(config).map_err(invalid)?);
        let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let machine = Machine { available: &available, engine, cores, goal: own.releases.goal };
        let mut reasons = Vec::new();
        for variant in choose::order(&opened.manifest().variants, &machine) {
            match self.variant(opened, variant, config, &machine)? {
                Ok(version) => return Ok(version),
                Err(reason) => {
                    tracing::info!(variant = variant.name, reason, "this variant does not run here");
                    reasons.push(format!("variant `{}`: {reason}", variant.name));
                }
            }
        }
        Err(invalid(reasons.join("; ")))
    }

    /// One variant; within, why it does not run.
    fn variant(
        &self,
        opened: &Opened,
        variant: &Variant,
        config: &ModelConfig,
        machine: &Machine<'_>,
    ) -> Result<Result<Version, String>, StoreError> {
        let manifest = opened.manifest();
        let (name, number) = (manifest.name.as_str(), manifest.sequence);
        let in_memory = opened.load(&variant.name)?;
        if manifest.is_sealed() && !in_memory.locked {
            tracing::warn!(
                model = name,
                "what was sealed may be swapped to a disk; raise the limit of locked memory (`ulimit -l`)"
            );
        }
        let ready = || {
            let threads = self.config().threads.or(model_config::threads(config)?).or(machine.threads(variant));
            let options =
                SessionOptions { threads, profile: false, providers: self.config().providers.clone(), lower: false };
            let engine = machine.engine.or(variant.engine.as_deref());
            let loaded = self.registry().load(engine, &Source::Bytes(in_memory.model.clone()), &options);
            let loaded = loaded.map_err(|error| error.to_string())?;
            let engine = loaded.engine.name();
            let mut config = completed(name, config.clone(), &*loaded.session)?;
            config.parameters.extend(told(opened, variant));
            // A release brings no files but its graphs: there is no folder to look for labels and samples in.
            let version = Version::new(name, number, config, loaded, Path::new(""), self.cache())?;
            tracing::info!(
                model = name,
                version = number,
                engine,
                variant = variant.name,
                release = %opened.id(),
                signed_by = %opened.signed_by(),
                "release loaded"
            );
            Ok(version)
        };
        Ok(ready())
    }
}

/// What a version's configuration tells of its release.
fn told(opened: &Opened, variant: &Variant) -> Vec<(String, ModelParameter)> {
    let told = [
        ("release_version", opened.manifest().version.clone()),
        ("release_id", opened.id().to_string()),
        ("release_variant", variant.name.clone()),
        ("release_signed_by", opened.signed_by().to_string()),
    ];
    told.map(|(key, string_value)| (key.to_owned(), ModelParameter { string_value })).into()
}

/// The configuration that a load brings along for a release: how it is scheduled, and nothing that would be read from a file or make it
/// another model.
fn scheduling(name: &str, config_json: Option<&str>) -> Result<ModelConfig, ServeError> {
    let Some(json) = config_json else { return Ok(ModelConfig::default()) };
    let config = repository::configuration(name, Path::new(""), Some(json))?;
    let samples = config.model_warmup.iter().flat_map(|sample| sample.inputs.values());
    let from_file = |input: &InputDataType| matches!(input, InputDataType::InputDataFile(_));
    let refused = [
        ("ensemble_scheduling", model_config::ensembling(&config).is_some()),
        ("label_filename", config.output.iter().any(|output| !output.label_filename.is_empty())),
        ("input_data_file", samples.filter_map(|input| input.input_data_type.as_ref()).any(from_file)),
        ("version_policy", config.version_policy.is_some()),
        ("default_model_filename", !config.default_model_filename.is_empty()),
    ];
    match refused.iter().find(|(_, set)| *set) {
        Some((field, _)) => {
            let text = format!("model `{name}`: `{field}` has no effect on a release; leave it out");
            Err(ServeError::new(ServeErrorKind::InvalidArgument, text))
        }
        None => Ok(config),
    }
}

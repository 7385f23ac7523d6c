//! Opens a release to run it: who signed it, whether it is newer than what was seen, and its graphs as bytes that an engine takes.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use bytes::Bytes;
use edgeward_graph::{Limits, Model};
use edgeward_trust::keys::KeyProvider;

use crate::{
    digest::Digest,
    error::{ErrorKind, StoreError, invalid},
    files::Release,
    floor::Floor,
    manifest::{Manifest, Variant, parent},
    memory::{Memory, Secrecy},
    seal::{self, DataKey},
    signing::{self, TrustRoots, VerifiedBy},
};

/// What a release is opened with.
pub struct OpenOptions<'a> {
    /// Whose signatures are taken.
    pub trust: &'a TrustRoots,
    /// Unwraps the data key of a sealed release.
    pub keys: Option<&'a dyn KeyProvider>,
    /// Remembers the newest release of each name; without it an older one is taken as well.
    pub floor: Option<&'a Floor>,
}

/// A release whose signature was verified. Its files are read, and compared with what was signed, when a variant is loaded.
pub struct Opened {
    release: Release,
    signed_by: VerifiedBy,
    data_key: Option<DataKey>,
}

/// A variant in memory.
#[derive(Clone, Debug)]
pub struct LoadedVariant {
    /// How it is best run.
    pub variant: Variant,
    /// An ONNX file with all its data in it.
    pub model: Bytes,
    /// Whether all of it stays out of swap and core dumps; always false where the release is not sealed.
    pub locked: bool,
}

/// Opens a release's folder: signature, key, then the newest sequence that was seen.
///
/// # Errors
/// `Unverified` where it is not signed by anybody trusted or no keys are given for a sealed one; `Tampered` where what is there is not what
/// was signed or the data key was changed; `Downgrade` where it is older than what was seen.
pub fn open(folder: &Path, options: &OpenOptions<'_>) -> Result<Opened, StoreError> {
    let release = Release::open(folder)?;
    let signed_by = signing::verify(&release, options.trust)?;
    release.check_nothing_else()?;
    let manifest = release.manifest();
    let data_key = match (manifest.is_sealed(), options.keys) {
        (false, _) => None,
        (true, Some(keys)) => Some(DataKey::unwrap(&release, keys)?),
        (true, None) => {
            let text = format!("`{}` is sealed; expected the keys that open it", folder.display());
            return Err(StoreError::new(ErrorKind::Unverified, text));
        }
    };
    if let Some(floor) = options.floor {
        floor.raise(&manifest.name, manifest.sequence, manifest.unsealed().id()?)?;
    }
    Ok(Opened { release, signed_by, data_key })
}

impl Opened {
    /// What it is made of, as it was signed.
    pub fn manifest(&self) -> &Manifest {
        self.release.manifest()
    }

    /// Digest of its manifest.
    pub fn id(&self) -> Digest {
        self.release.id()
    }

    /// Where it lies.
    pub fn folder(&self) -> &Path {
        self.release.folder()
    }

    /// Who signed it.
    pub fn signed_by(&self) -> &VerifiedBy {
        &self.signed_by
    }

    /// Reads a variant's files into memory, compares them with what was signed, and puts external data into the graph. What was
    /// sealed is decrypted in memory only.
    ///
    /// # Errors
    /// `NotFound` where there is no such variant, `Tampered` where a file is not what was signed, `Invalid` where it is no ONNX model or
    /// wants data that is not listed; a graph of more than 2 GiB with its data cannot be one ONNX file.
    pub fn load(&self, name: &str) -> Result<LoadedVariant, StoreError> {
        let variant = self.manifest().variants.iter().find(|variant| variant.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.manifest().variants.iter().map(|variant| variant.name.as_str()).collect();
            StoreError::new(ErrorKind::NotFound, format!("no variant `{name}`; there are `{}`", names.join("`, `")))
        })?;
        let graph = self.read(&variant.graph)?;
        let mut locked = graph.is_locked();
        let graph = graph.share();
        let folder = parent(&variant.graph);
        let mut files = HashMap::new();
        for path in &variant.data {
            let data = self.read(path)?;
            locked &= data.is_locked();
            files.insert(path.strip_prefix(folder).unwrap_or(path).to_owned(), data.share());
        }
        let model = Model::from_parts(graph.clone(), files, &Limits::default())?;
        check_locations(&model, variant)?;
        let model = if variant.data.is_empty() { graph } else { self.inline(model, &mut locked)? };
        Ok(LoadedVariant { variant: variant.clone(), model, locked: locked && self.data_key.is_some() })
    }

    fn read(&self, path: &str) -> Result<Memory, StoreError> {
        seal::read(&self.release, path, self.manifest().file(path)?, self.data_key.as_ref())
    }

    /// One ONNX file of a graph and its data, in memory of the same kind.
    fn inline(&self, mut model: Model, locked: &mut bool) -> Result<Bytes, StoreError> {
        model.inline_external()?;
        let secrecy = if self.data_key.is_some() { Secrecy::Secret } else { Secrecy::Plain };
        let mut memory = Memory::new(model.encoded_len()? as u64, secrecy)?;
        model.encode_into(memory.bytes_mut())?;
        *locked &= memory.is_locked();
        Ok(memory.share())
    }
}

/// Whether the graph wants the listed data and nothing else.
fn check_locations(model: &Model, variant: &Variant) -> Result<(), StoreError> {
    let folder = parent(&variant.graph);
    let listed: HashSet<&str> = variant.data.iter().map(|path| path.strip_prefix(folder).unwrap_or(path)).collect();
    match model.external_locations()?.iter().find(|location| !listed.contains(location.as_str())) {
        Some(location) => Err(invalid(format!(
            "variant `{}` wants external data `{}`, which is not listed",
            variant.name,
            location.escape_debug()
        ))),
        None => Ok(()),
    }
}

//! The manifest: what a release is made of. Its digest is the release's id.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
};

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    error::{StoreError, invalid, tampered},
    name::{check_name, check_path},
};

/// The manifest's file within the release.
pub const MANIFEST: &str = "edgeward.json";
/// The signature over the whole release (OpenSSF Model Signing).
pub const SIGNATURE: &str = "model.sig";
/// The signed statement of how the release was made (SLSA provenance).
pub const PROVENANCE: &str = "provenance.sigstore.json";
/// The wrapped data key of a sealed release. It is not signed, so that it can be wrapped anew; it is authenticated by itself.
pub const KEY: &str = "key.json";
/// Files that are about a release, not of it.
pub(crate) const BESIDE: [&str; 4] = [MANIFEST, SIGNATURE, PROVENANCE, KEY];

pub(crate) const FORMAT: &str = "edgeward-release-1";
/// Longest manifest, signature or key file that is read, in bytes.
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;
const VARIANTS_MAX: usize = 64;
const FILES_MAX: usize = 10_000;
const FIGURES_MAX: usize = 64;
const RELEASE_BYTES_MAX: u64 = 1 << 40;
/// JSON numbers are exact up to here (RFC 8785 section 3.2.2.3).
const INTEGER_MAX: u64 = (1 << 53) - 1;

/// What a release is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// `edgeward-release-1`.
    pub format: String,
    /// Of the model: `chest-xray`.
    pub name: String,
    /// For people: `1.4.0`.
    pub version: String,
    /// Grows with every release of the name; an older one is refused where a newer was seen.
    pub sequence: u64,
    /// The graphs, with how they are best run.
    pub variants: Vec<Variant>,
    /// What was measured of them, where there is a report (JSON).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<String>,
    /// Every file, by path.
    pub files: BTreeMap<String, FileEntry>,
}

/// A graph with how it is best run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// `fp32`, `int8-edge`.
    pub name: String,
    /// The ONNX file.
    pub graph: String,
    /// Files of its external data.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<String>,
    /// Engine, where one was chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// Threads within one run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<NonZeroU32>,
    /// Element type of most of its weights, or what its maker calls it.
    pub precision: String,
    /// What was measured, by name with its unit last: `latency_ms_p50`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub figures: BTreeMap<String, f64>,
}

/// Size and digest of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Of the content.
    pub size: u64,
    /// Of the content.
    pub sha256: Digest,
    /// Of the file as it is stored, where the release is sealed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Stored>,
}

/// Size and digest of a file as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stored {
    /// In bytes.
    pub size: u64,
    /// SHA-256.
    pub sha256: Digest,
}

impl FileEntry {
    /// The bytes that lie in the folder: sealed, or plain.
    pub fn stored(&self) -> Stored {
        self.sealed.unwrap_or(Stored { size: self.size, sha256: self.sha256 })
    }
}

impl Manifest {
    /// Reads a manifest and checks every name, number and reference in it.
    ///
    /// # Errors
    /// `Invalid`, by the name of what is wrong; also where it is not written canonically (RFC 8785): one release has one id.
    pub fn parse(bytes: &[u8]) -> Result<Self, StoreError> {
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(invalid(format!(
                "`{MANIFEST}` has {} bytes; expected at most {MANIFEST_BYTES_MAX}",
                bytes.len()
            )));
        }
        let manifest: Self =
            serde_json::from_slice(bytes).map_err(|error| invalid(format!("`{MANIFEST}`: {error}")))?;
        manifest.check().map_err(|error| error.at(format!("`{MANIFEST}`")))?;
        if manifest.to_bytes()? != bytes {
            return Err(invalid(format!("`{MANIFEST}` is not canonical JSON (RFC 8785); was it edited?")));
        }
        Ok(manifest)
    }

    /// The canonical bytes.
    ///
    /// # Errors
    /// `Invalid` where a figure is no number.
    pub fn to_bytes(&self) -> Result<Vec<u8>, StoreError> {
        serde_json_canonicalizer::to_vec(self).map_err(|error| invalid(format!("`{MANIFEST}`: {error}")))
    }

    /// The release's id: the digest of its manifest.
    ///
    /// # Errors
    /// As [`Manifest::to_bytes`].
    pub fn id(&self) -> Result<Digest, StoreError> {
        Ok(Digest::of(&self.to_bytes()?))
    }

    /// Whether its files are sealed.
    pub fn is_sealed(&self) -> bool {
        self.files.values().any(|file| file.sealed.is_some())
    }

    /// The manifest of the same release without its seal.
    pub fn unsealed(&self) -> Self {
        let files = self.files.iter().map(|(path, file)| (path.clone(), FileEntry { sealed: None, ..*file }));
        Self { files: files.collect(), ..self.clone() }
    }

    /// Bytes of all files as they are stored.
    pub fn size(&self) -> u64 {
        self.files.values().map(|file| file.stored().size).fold(0, u64::saturating_add)
    }

    /// The entry of a file.
    ///
    /// # Errors
    /// `Invalid` where it is not listed.
    pub fn file(&self, path: &str) -> Result<&FileEntry, StoreError> {
        self.files.get(path).ok_or_else(|| invalid(format!("`{path}` is not listed among `files`")))
    }

    /// What [`Manifest::parse`] refuses.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        if self.format != FORMAT {
            let shown = self.format.escape_debug();
            return Err(invalid(format!("format `{shown}`; expected `{FORMAT}`")));
        }
        check_name("release", &self.name)?;
        check_text("version", &self.version)?;
        within("sequence", self.sequence, 1, INTEGER_MAX)?;
        within("number of variants", self.variants.len() as u64, 1, VARIANTS_MAX as u64)?;
        within("number of files", self.files.len() as u64, 1, FILES_MAX as u64)?;
        self.check_files()?;
        self.check_variants()
    }

    fn check_files(&self) -> Result<(), StoreError> {
        let (mut folded, sealed) = (BTreeSet::new(), self.is_sealed());
        for (path, file) in &self.files {
            check_path(path)?;
            if BESIDE.iter().any(|name| name.eq_ignore_ascii_case(path)) {
                return Err(invalid(format!("`{path}` is about a release and cannot be listed in it")));
            }
            if !folded.insert(path.to_ascii_lowercase()) {
                return Err(invalid(format!("`{path}` differs from another file in upper and lower case only")));
            }
            within(&format!("size of `{path}`"), file.size.max(file.stored().size), 0, RELEASE_BYTES_MAX)?;
            if file.sealed.is_some() != sealed {
                return Err(tampered(format!("`{path}` is not sealed and others are")));
            }
        }
        within("size of all files", self.size(), 0, RELEASE_BYTES_MAX)
    }

    fn check_variants(&self) -> Result<(), StoreError> {
        let (mut names, mut used) = (BTreeSet::new(), BTreeSet::new());
        for variant in &self.variants {
            check_name("variant", &variant.name)?;
            if !names.insert(&variant.name) {
                return Err(invalid(format!("variant `{}` is there twice", variant.name)));
            }
            check_text("precision", &variant.precision)?;
            variant.engine.as_deref().map_or(Ok(()), |engine| check_name("engine", engine))?;
            within("number of figures", variant.figures.len() as u64, 0, FIGURES_MAX as u64)?;
            variant.figures.keys().try_for_each(|name| check_name("figure", name))?;
            if !variant.graph.ends_with(".onnx") {
                return Err(invalid(format!("graph `{}`; expected a file `….onnx`", variant.graph)));
            }
            let folder = parent(&variant.graph);
            if let Some(outside) = variant.data.iter().find(|path| !path.starts_with(folder)) {
                return Err(invalid(format!("`{outside}` is data of variant `{}` outside its folder", variant.name)));
            }
            used.insert(&variant.graph);
            used.extend(&variant.data);
        }
        used.extend(&self.report);
        used.iter().try_for_each(|path| self.file(path).map(drop))?;
        match self.files.keys().find(|path| !used.contains(path)) {
            Some(path) => Err(invalid(format!("`{path}` is listed and of no variant"))),
            None => Ok(()),
        }
    }
}

/// The folder of a path, with its slash; nothing where it has none.
pub(crate) fn parent(path: &str) -> &str {
    path.rfind('/').and_then(|at| path.get(..=at)).unwrap_or_default()
}

fn check_text(what: &str, text: &str) -> Result<(), StoreError> {
    if (1..=100).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic()) {
        return Ok(());
    }
    Err(invalid(format!(
        "{what} `{}`; expected 1 to 100 printable ASCII characters without spaces",
        text.escape_debug()
    )))
}

fn within(what: &str, value: u64, least: u64, most: u64) -> Result<(), StoreError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(invalid(format!("the {what} is {value}; expected {least} to {most}")))
}

//! A release as an OCI image layout: an artifact whose layers are the release's files, so that registries and their tools carry it.
//!
//! Layers bear their paths as `org.opencontainers.image.title`, as ORAS has it. A layout is hostile until every blob was compared with
//! its digest and size, and every path with the release's manifest.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::Read as _,
    os::fd::OwnedFd,
    path::Path,
};

use edgeward_graph::beneath;
use oci_spec::image::{
    Descriptor, ImageIndex, ImageIndexBuilder, ImageManifest, ImageManifestBuilder, MediaType, OciLayout,
    OciLayoutBuilder, Sha256Digest,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    digest::{Digest, Hashing},
    error::{ErrorKind, StoreError, invalid, io_error, tampered},
    files::{Release, check_stored, copy_checked},
    manifest::{BESIDE, MANIFEST, MANIFEST_BYTES_MAX, Manifest, Stored},
    staged::Staged,
};

/// Type of the artifact.
pub const ARTIFACT_TYPE: &str = "application/vnd.edgeward.release.v1";
const CONFIG_TYPE: &str = "application/vnd.edgeward.release.manifest.v1+json";
const LAYER_TYPE: &str = "application/vnd.edgeward.release.file.v1";
const TITLE: &str = "org.opencontainers.image.title";
const REFERENCE: &str = "org.opencontainers.image.ref.name";
const LAYOUT: &str = "oci-layout";
const INDEX: &str = "index.json";
const VERSION: &str = "1.0.0";

/// Writes a release into a new folder as an OCI image layout; its reference is `NAME:VERSION`.
///
/// # Errors
/// `Exists` where the folder does, `Tampered` where a file is not what is listed.
pub fn export(folder: &Path, layout: &Path) -> Result<Digest, StoreError> {
    let release = Release::open(folder)?;
    release.check_nothing_else()?;
    let staged = Staged::beside(layout)?;
    let manifest = release.manifest();
    let config = write_blob(&staged, CONFIG_TYPE, &manifest.to_bytes()?)?;
    let mut layers = Vec::new();
    for (path, entry) in &manifest.files {
        let stored = entry.stored();
        let name = format!("blobs/sha256/{}", stored.sha256);
        // Equal files are one blob.
        if !staged.folder().join(&name).exists() {
            copy_checked(release.file(path)?, path, stored, staged.create(&name)?)?;
        }
        layers.push(titled(descriptor(LAYER_TYPE, stored)?, path));
    }
    for name in BESIDE.iter().filter(|name| **name != MANIFEST) {
        if let Some(bytes) = release.beside(name)? {
            layers.push(titled(write_blob(&staged, LAYER_TYPE, &bytes)?, name));
        }
    }
    let image = ImageManifestBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageManifest)
        .artifact_type(MediaType::Other(ARTIFACT_TYPE.to_owned()))
        .config(config)
        .layers(layers)
        .build();
    let image = to_json(&image.map_err(|error| invalid(error.to_string()))?)?;
    let mut entry = write_blob(&staged, "application/vnd.oci.image.manifest.v1+json", &image)?;
    entry.set_artifact_type(Some(MediaType::Other(ARTIFACT_TYPE.to_owned())));
    entry.set_annotations(Some(HashMap::from([(REFERENCE.to_owned(), reference(manifest))])));
    let index = ImageIndexBuilder::default().schema_version(2u32).media_type(MediaType::ImageIndex).manifests([entry]);
    staged.write(INDEX, &to_json(&index.build().map_err(|error| invalid(error.to_string()))?)?)?;
    let layout = OciLayoutBuilder::default().image_layout_version(VERSION).build();
    staged.write(LAYOUT, &to_json(&layout.map_err(|error| invalid(error.to_string()))?)?)?;
    staged.keep()?;
    Ok(release.id())
}

/// Reads a release out of an OCI image layout into a new folder.
///
/// # Errors
/// `Tampered`, by the name of the blob or file whose digest, size or place is not what it should be; `Invalid` where the layout is malformed
/// or holds several releases and none is named.
pub fn import(layout: &Path, wanted: Option<&str>, out: &Path) -> Result<Release, StoreError> {
    let root = beneath::folder(layout).map_err(|error| io_error(layout, &error))?;
    let version: OciLayout = parse(LAYOUT, &small(&root, LAYOUT)?)?;
    if version.image_layout_version() != VERSION {
        let shown = version.image_layout_version().escape_debug();
        return Err(invalid(format!("`{LAYOUT}` has version `{shown}`; expected `{VERSION}`")));
    }
    let index: ImageIndex = parse(INDEX, &small(&root, INDEX)?)?;
    let entry = choose(&index, wanted)?;
    let image: ImageManifest = parse("the image manifest", &blob(&root, entry)?)?;
    if image.artifact_type().as_ref().is_none_or(|kind| kind.to_string() != ARTIFACT_TYPE) {
        return Err(invalid(format!("the image is no release: expected artifact type `{ARTIFACT_TYPE}`")));
    }
    let bytes = blob(&root, image.config())?;
    let manifest = Manifest::parse(&bytes)?;
    let layers = layers(&image, &manifest)?;
    let staged = Staged::beside(out)?;
    staged.write(MANIFEST, &bytes)?;
    for (path, stored) in layers {
        let from = open_blob(&root, stored.sha256)?;
        copy_checked(from, &path, stored, staged.create(&path)?)?;
    }
    staged.keep()?;
    Release::open(out)
}

/// The image that is meant: of the reference, or the only one of our type.
fn choose<'i>(index: &'i ImageIndex, wanted: Option<&str>) -> Result<&'i Descriptor, StoreError> {
    let reference = |entry: &Descriptor| entry.annotations().as_ref().and_then(|all| all.get(REFERENCE)).cloned();
    let ours = |entry: &&Descriptor| {
        entry.artifact_type().as_ref().is_none_or(|kind| kind.to_string() == ARTIFACT_TYPE)
            && wanted.is_none_or(|wanted| reference(entry).as_deref() == Some(wanted))
    };
    let mut found = index.manifests().iter().filter(ours);
    match (found.next(), found.next()) {
        (Some(entry), None) => Ok(entry),
        (None, _) => {
            let what = wanted.map_or_else(|| "release".to_owned(), |wanted| format!("release `{wanted}`"));
            Err(StoreError::new(ErrorKind::NotFound, format!("`{INDEX}` has no {what}")))
        }
        (Some(_), Some(_)) => {
            let names: Vec<String> = index.manifests().iter().filter_map(reference).collect();
            let names = names.join("`, `");
            Err(invalid(format!("`{INDEX}` has several releases; name one: `{}`", names.escape_debug())))
        }
    }
}

/// What each path is to be; exactly the manifest's files and what may lie beside them.
fn layers(image: &ImageManifest, manifest: &Manifest) -> Result<BTreeMap<String, Stored>, StoreError> {
    let mut layers = BTreeMap::new();
    for layer in image.layers() {
        let stored = stored(layer)?;
        let title = layer.annotations().as_ref().and_then(|all| all.get(TITLE));
        let path = title.ok_or_else(|| invalid(format!("layer {} has no `{TITLE}`", stored.sha256)))?;
        let shown = path.escape_debug();
        match manifest.files.get(path) {
            Some(entry) => check_stored(path, entry.stored(), stored)?,
            None if path != MANIFEST && BESIDE.contains(&path.as_str()) && stored.size <= MANIFEST_BYTES_MAX => {}
            None => return Err(tampered(format!("layer `{shown}` is not listed in the release's manifest"))),
        }
        if layers.insert(path.clone(), stored).is_some() {
            return Err(tampered(format!("layer `{shown}` is there twice")));
        }
    }
    match manifest.files.keys().find(|path| !layers.contains_key(*path)) {
        Some(path) => Err(tampered(format!("`{path}` is of the release and has no layer"))),
        None => Ok(layers),
    }
}

fn reference(manifest: &Manifest) -> String {
    format!("{}:{}", manifest.name, manifest.version)
}

fn write_blob(staged: &Staged, media_type: &str, bytes: &[u8]) -> Result<Descriptor, StoreError> {
    let stored = Stored { size: bytes.len() as u64, sha256: Digest::of(bytes) };
    let name = format!("blobs/sha256/{}", stored.sha256);
    if !staged.folder().join(&name).exists() {
        staged.write(&name, bytes)?;
    }
    descriptor(media_type, stored)
}

fn descriptor(media_type: &str, stored: Stored) -> Result<Descriptor, StoreError> {
    let digest = stored.sha256.to_string().parse::<Sha256Digest>().map_err(|error| invalid(error.to_string()))?;
    Ok(Descriptor::new(MediaType::from(media_type), stored.size, digest))
}

fn titled(mut descriptor: Descriptor, path: &str) -> Descriptor {
    descriptor.set_annotations(Some(HashMap::from([(TITLE.to_owned(), path.to_owned())])));
    descriptor
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json_canonicalizer::to_vec(value).map_err(|error| invalid(error.to_string()))
}

fn parse<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|error| invalid(format!("{what}: {error}")))
}

fn stored(descriptor: &Descriptor) -> Result<Stored, StoreError> {
    let shown = descriptor.digest().to_string();
    let hex = shown
        .strip_prefix("sha256:")
        .ok_or_else(|| invalid(format!("blob `{}`; expected a digest `sha256:…`", shown.escape_debug())))?;
    Ok(Stored { size: descriptor.size(), sha256: hex.parse().map_err(invalid)? })
}

fn open_blob(root: &OwnedFd, digest: Digest) -> Result<File, StoreError> {
    let name = format!("blobs/sha256/{digest}");
    beneath::open(root, &name).map_err(|error| io_error(Path::new(&name), &error))
}

/// A blob that is read into memory, of the size and digest that its descriptor says.
fn blob(root: &OwnedFd, descriptor: &Descriptor) -> Result<Vec<u8>, StoreError> {
    let stored = stored(descriptor)?;
    let name = format!("blob {}", stored.sha256);
    if stored.size > MANIFEST_BYTES_MAX {
        return Err(invalid(format!("{name} has {} bytes; expected at most {MANIFEST_BYTES_MAX}", stored.size)));
    }
    let mut bytes = Vec::new();
    copy_checked(open_blob(root, stored.sha256)?, &name, stored, &mut bytes)?;
    Ok(bytes)
}

/// A file of the layout that no digest vouches for.
fn small(root: &OwnedFd, name: &str) -> Result<Vec<u8>, StoreError> {
    let failed = |error: std::io::Error| io_error(Path::new(name), &error);
    let file = beneath::open(root, name).map_err(failed)?;
    let mut bytes = Hashing::new(Vec::new());
    std::io::copy(&mut file.take(MANIFEST_BYTES_MAX + 1), &mut bytes).map_err(failed)?;
    match bytes.finish() {
        (bytes, _, size) if size <= MANIFEST_BYTES_MAX => Ok(bytes),
        _ => Err(invalid(format!("`{name}` has more than {MANIFEST_BYTES_MAX} bytes"))),
    }
}

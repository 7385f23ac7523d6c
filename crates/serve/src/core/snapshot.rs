//! What identifies the content of a model's files without reading them.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Files of one model that are looked at; what lies beyond is not watched.
const FILES_MAX: usize = 10_000;
/// Folders within folders that are looked into.
const DEPTH_MAX: usize = 8;

/// One file: equal stamps are taken for equal content.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Stamp {
    path: PathBuf,
    bytes: u64,
    modified: (i64, i64),
    inode: u64,
}

/// The files of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Those that all versions share, such as the configuration.
    shared: Vec<Stamp>,
    versions: BTreeMap<u64, Vec<Stamp>>,
}

/// The files of one version, with those that all share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    shared: Vec<Stamp>,
    own: Vec<Stamp>,
}

impl Snapshot {
    /// Looks at a model's folder, or at a plain file with what belongs to it.
    pub fn of(path: &Path) -> Self {
        let mut snapshot = Self::default();
        if path.is_file() {
            let mut own: Vec<Stamp> = stamp(path).into_iter().collect();
            // Where exporters put the weights, and what `tune` leaves.
            own.extend(
                ["onnx.data", "onnx_data", "data", "tune.json"].iter().filter_map(|e| stamp(&path.with_extension(e))),
            );
            snapshot.versions.insert(1, own);
            return snapshot;
        }
        for entry in fs::read_dir(path).into_iter().flatten().flatten().take(FILES_MAX) {
            let (path, name) = (entry.path(), entry.file_name());
            let number = name.to_str().and_then(|n| n.parse().ok()).filter(|_| path.is_dir());
            let stamps = number.map_or(&mut snapshot.shared, |number| snapshot.versions.entry(number).or_default());
            walk(&path, 0, stamps);
        }
        snapshot.shared.sort_unstable();
        snapshot.versions.values_mut().for_each(|stamps| stamps.sort_unstable());
        snapshot
    }

    /// What a version was, or is to be, loaded from.
    pub fn origin(&self, version: u64) -> Origin {
        Origin { shared: self.shared.clone(), own: self.versions.get(&version).cloned().unwrap_or_default() }
    }

    /// True where some version has a file.
    pub fn has_versions(&self) -> bool {
        self.versions.values().any(|files| !files.is_empty())
    }
}

fn walk(path: &Path, depth: usize, stamps: &mut Vec<Stamp>) {
    if depth > DEPTH_MAX || stamps.len() >= FILES_MAX {
        return;
    }
    if !path.is_dir() {
        stamps.extend(stamp(path));
        return;
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        walk(&entry.path(), depth + 1, stamps);
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let found = fs::metadata(path).ok()?;
    let modified = (found.mtime(), found.mtime_nsec());
    Some(Stamp { path: path.to_owned(), bytes: found.len(), modified, inode: found.ino() })
}

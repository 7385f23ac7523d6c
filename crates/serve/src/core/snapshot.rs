//! What identifies the content of a model's files without reading them.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
};

use edgeward_graph::{Limits, Model};

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
    /// Of a plain file: where its tensors' data lies, beneath its folder.
    external: Vec<String>,
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
        Self::after(path, None)
    }

    /// The same where `before` is what an earlier look found: a file that has not changed is not read again.
    pub fn after(path: &Path, before: Option<&Self>) -> Self {
        if path.is_file() { Self::of_file(path, before) } else { Self::of_folder(path) }
    }

    fn of_file(path: &Path, before: Option<&Self>) -> Self {
        let main = stamp(path);
        let known = before.filter(|before| before.versions.get(&1).is_some_and(|own| own.first() == main.as_ref()));
        let external = known.map_or_else(|| external(path), |before| before.external.clone());
        let folder = path.parent().unwrap_or(Path::new(""));
        let beside = external.iter().map(|location| folder.join(location));
        let beside = beside.chain([path.with_extension("tune.json")]);
        let own = main.into_iter().chain(beside.filter_map(|path| stamp(&path))).collect();
        Self { shared: Vec::new(), versions: BTreeMap::from([(1, own)]), external }
    }

    fn of_folder(path: &Path) -> Self {
        let mut snapshot = Self::default();
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

    /// Looks at a release's folder, all of which is one version.
    pub fn of_release(folder: &Path, sequence: u64) -> Self {
        let mut own = Vec::new();
        walk(folder, 0, &mut own);
        own.sort_unstable();
        Self { versions: BTreeMap::from([(sequence, own)]), ..Self::default() }
    }

    /// A release in a place elsewhere: there it does not change.
    pub fn of_place(address: &str, sequence: u64) -> Self {
        let own = Stamp { path: PathBuf::from(address), bytes: 0, modified: (0, 0), inode: 0 };
        Self { versions: BTreeMap::from([(sequence, vec![own])]), ..Self::default() }
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

/// Files that a model's tensors lie in. Of one that cannot be read, none: its load says why.
fn external(path: &Path) -> Vec<String> {
    let model = Model::read(path, &Limits::default());
    let mut found = model.and_then(|model| model.external_locations()).unwrap_or_default();
    // A path that leaves the folder is refused at load; nothing outside is looked at.
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    found.retain(|location| Path::new(location).components().all(plain));
    found.truncate(FILES_MAX);
    found
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

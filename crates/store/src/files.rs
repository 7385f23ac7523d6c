//! A release as a folder. Nothing in it is believed: files open beneath the folder, without links, and are read within their listed sizes.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use edgeward_graph::beneath;

use crate::{
    digest::{Digest, Hashing},
    error::{ErrorKind, StoreError, io_error, tampered},
    manifest::{BESIDE, MANIFEST, MANIFEST_BYTES_MAX, Manifest, Stored},
    staged::{is_leftover, replace},
};

/// The deepest folder that is looked into.
const DEPTH_MAX: usize = 16;

/// Behind the name of a folder that a pull fills.
pub(crate) const PARTIAL: &str = ".partial";

/// A release's folder with its manifest. The manifest is well-formed; who wrote it is another question.
#[derive(Debug)]
pub struct Release {
    folder: PathBuf,
    root: OwnedFd,
    manifest: Manifest,
    id: Digest,
}

impl Release {
    /// Reads the manifest of a folder.
    ///
    /// # Errors
    /// `NotFound` where there is none, `Invalid` where it is malformed.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let root = beneath::folder(folder).map_err(|error| io_error(folder, &error))?;
        let bytes = read_small(&root, MANIFEST)?.ok_or_else(|| {
            let text = format!("`{}` is no release: it has no `{MANIFEST}`", folder.display());
            StoreError::new(ErrorKind::NotFound, text)
        })?;
        let manifest = Manifest::parse(&bytes)?;
        Ok(Self { folder: folder.to_owned(), root, manifest, id: Digest::of(&bytes) })
    }

    /// What it is made of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Digest of its manifest.
    pub fn id(&self) -> Digest {
        self.id
    }

    /// Where it lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A small file that is about the release; none where there is none.
    ///
    /// # Errors
    /// `Invalid` where it is a link or too large.
    pub fn beside(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        read_small(&self.root, name)
    }

    /// Writes a small file that is about the release, whole or not at all.
    pub(crate) fn write_beside(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        replace(&self.root, name, bytes).map_err(|error| io_error(&self.folder.join(name), &error))
    }

    /// Opens a listed file.
    pub(crate) fn file(&self, path: &str) -> Result<File, StoreError> {
        self.manifest.file(path)?;
        beneath::open(&self.root, path).map_err(|error| io_error(Path::new(path), &error))
    }

    /// Fails with the first file that is missing, changed or not listed.
    ///
    /// # Errors
    /// `Tampered`, by its name.
    pub fn check_files(&self) -> Result<(), StoreError> {
        self.check_nothing_else()?;
        for (path, entry) in &self.manifest.files {
            copy_checked(self.file(path)?, path, entry.stored(), io::sink())?;
        }
        Ok(())
    }

    /// Fails with the first file that is not listed. What a killed command has left of a file about the release is no part of it: nobody
    /// reads it, and the next such command removes it.
    pub(crate) fn check_nothing_else(&self) -> Result<(), StoreError> {
        let found = walk(&self.folder, ENTRIES_MAX)?;
        let listed = |path: &String| {
            self.manifest.files.contains_key(path) || BESIDE.iter().any(|name| path == name || is_leftover(path, name))
        };
        match found.iter().find(|path| !listed(path)) {
            Some(path) => Err(tampered(format!("`{path}` is in the release's folder and not listed in `{MANIFEST}`"))),
            None => Ok(()),
        }
    }
}

/// Files that a folder may have before it is no release.
pub(crate) const ENTRIES_MAX: usize = 20_000;

/// Copies a file of known size and digest; the copy is of no use where this fails.
pub(crate) fn copy_checked(from: File, path: &str, expected: Stored, to: impl io::Write) -> Result<(), StoreError> {
    let mut to = Hashing::new(to);
    // One byte more than listed shows that there is more.
    let mut from = from.take(expected.size.saturating_add(1));
    io::copy(&mut from, &mut to).map_err(|error| io_error(Path::new(path), &error))?;
    let (_, sha256, size) = to.finish();
    check_stored(path, expected, Stored { size, sha256 })
}

/// Whether a file is the one that is listed.
pub(crate) fn check_stored(path: &str, expected: Stored, found: Stored) -> Result<(), StoreError> {
    if found.size != expected.size {
        let more = if found.size > expected.size { "more than " } else { "" };
        let listed = expected.size;
        return Err(tampered(format!("`{path}` has {more}{} bytes; {listed} are listed", found.size.min(listed))));
    }
    if found.sha256 != expected.sha256 {
        return Err(tampered(format!(
            "`{path}` was changed: its SHA-256 is {}, {} is listed",
            found.sha256, expected.sha256
        )));
    }
    Ok(())
}

/// Reads a small file beneath a folder; none where there is none.
fn read_small(root: &OwnedFd, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let file = match beneath::open(root, name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| io_error(Path::new(name), &error))?,
    };
    let mut bytes = Vec::new();
    file.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| io_error(Path::new(name), &error))?;
    if bytes.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(crate::error::invalid(format!("`{name}` has more than {MANIFEST_BYTES_MAX} bytes")));
    }
    Ok(Some(bytes))
}

/// Paths of all files beneath a folder, links included, which are not followed.
pub(crate) fn walk(folder: &Path, files_max: usize) -> Result<BTreeSet<String>, StoreError> {
    let mut found = BTreeSet::new();
    let mut folders = vec![(folder.to_owned(), String::new(), 0)];
    while let Some((folder, prefix, depth)) = folders.pop() {
        let entries = fs::read_dir(&folder).map_err(|error| io_error(&folder, &error))?;
        for entry in entries {
            let entry = entry.map_err(|error| io_error(&folder, &error))?;
            let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type().map_err(|error| io_error(&entry.path(), &error))?;
            if kind.is_dir() && depth < DEPTH_MAX {
                folders.push((entry.path(), format!("{path}/"), depth + 1));
            } else {
                found.insert(path);
            }
            if found.len() + folders.len() > files_max {
                return Err(tampered(format!("the folder has more than {files_max} files; expected a release")));
            }
        }
    }
    Ok(found)
}

/// The releases in a folder, or the folder itself where it is one. What is not whole yet (`.…`, `NAME.partial`) is none.
///
/// # Errors
/// Where the folder cannot be read. A release that cannot be read is an error beside its path.
pub fn list(folder: &Path) -> Result<Vec<(PathBuf, Result<Release, StoreError>)>, StoreError> {
    if folder.join(MANIFEST).exists() {
        return Ok(vec![(folder.to_owned(), Release::open(folder))]);
    }
    let entries = fs::read_dir(folder).map_err(|error| io_error(folder, &error))?;
    let mut paths = entries
        .map(|entry| Ok(entry.map_err(|error| io_error(folder, &error))?.path()))
        .collect::<Result<Vec<_>, StoreError>>()?;
    paths.retain(|path| is_whole(path) && path.join(MANIFEST).exists());
    paths.sort();
    Ok(paths.into_iter().map(|path| (path.clone(), Release::open(&path))).collect())
}

fn is_whole(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    !name.starts_with('.') && !name.ends_with(PARTIAL)
}

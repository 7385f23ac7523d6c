//! A release as a folder. Nothing in it is believed: files open beneath the folder, without links, and are read within their listed sizes.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
};

use edgeward_graph::beneath;

use crate::{
    digest::{Digest, Hashing},
    error::{ErrorKind, StoreError, io_error, tampered},
    manifest::{BESIDE, MANIFEST, MANIFEST_BYTES_MAX, Manifest, Stored},
};

/// The deepest folder that is looked into.
const DEPTH_MAX: usize = 16;

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
        write_whole(&self.folder.join(name), bytes)
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

    /// Fails with the first file that is not listed.
    pub(crate) fn check_nothing_else(&self) -> Result<(), StoreError> {
        let found = walk(&self.folder, MANIFEST_ENTRIES_MAX)?;
        let listed = |path: &String| self.manifest.files.contains_key(path) || BESIDE.contains(&path.as_str());
        match found.iter().find(|path| !listed(path)) {
            Some(path) => Err(tampered(format!("`{path}` is in the release's folder and not listed in `{MANIFEST}`"))),
            None => Ok(()),
        }
    }
}

/// Files that a folder may have before it is no release.
const MANIFEST_ENTRIES_MAX: usize = 20_000;

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

/// Writes a file so that a reader finds the old one or the new one.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || {
        let mut file = tempfile::Builder::new()
            .prefix(".new-")
            .permissions(fs::Permissions::from_mode(0o644))
            .tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(|error: io::Error| io_error(path, &error))
}

/// A folder that takes its place when it is whole; gone where it is not.
pub(crate) struct Staged {
    folder: tempfile::TempDir,
    target: PathBuf,
}

impl Staged {
    /// A new folder beside `target`, which must not exist.
    pub(crate) fn beside(target: &Path) -> Result<Self, StoreError> {
        if target.symlink_metadata().is_ok() {
            let text =
                format!("`{}` exists already; releases are not changed, expected a new folder", target.display());
            return Err(StoreError::new(ErrorKind::Exists, text));
        }
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(|error| io_error(parent, &error))?;
        let made = tempfile::Builder::new()
            .prefix(".release-")
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in(parent);
        let folder = made.map_err(|error| io_error(parent, &error))?;
        Ok(Self { folder, target: target.to_owned() })
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Makes a file, and the folders to it.
    pub(crate) fn create(&self, path: &str) -> Result<File, StoreError> {
        let path = self.folder().join(path);
        let make = || {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            File::create_new(&path)
        };
        make().map_err(|error| io_error(&path, &error))
    }

    /// Writes a small file.
    pub(crate) fn write(&self, path: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.create(path)?.write_all(bytes).map_err(|error| io_error(Path::new(path), &error))
    }

    /// Puts the folder in its place, with all that it holds on the disk.
    pub(crate) fn keep(self) -> Result<(), StoreError> {
        let sync = |path: &Path| File::open(path).and_then(|file| file.sync_all());
        for path in walk(self.folder(), MANIFEST_ENTRIES_MAX)? {
            let path = self.folder().join(path);
            sync(&path).map_err(|error| io_error(&path, &error))?;
        }
        sync(self.folder()).map_err(|error| io_error(self.folder(), &error))?;
        fs::rename(self.folder(), &self.target).map_err(|error| io_error(&self.target, &error))?;
        // It has moved: there is nothing left to remove.
        let _ = self.folder.keep();
        Ok(())
    }
}

/// The releases in a folder, or the folder itself where it is one.
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
    paths.retain(|path| path.join(MANIFEST).exists());
    paths.sort();
    Ok(paths.into_iter().map(|path| (path.clone(), Release::open(&path))).collect())
}

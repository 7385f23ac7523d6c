//! What takes its place when it is whole: small files, and new folders. What commands that were killed have left of it is known by its name
//! and by that nobody holds it, and the next one clears it away.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, renameat, unlinkat};

use crate::{
    error::{ErrorKind, StoreError, io_error},
    files::{ENTRIES_MAX, walk},
};

/// How often a name is made up before it is an error that others take it.
const TRIES_MAX: usize = 16;
/// Letters and digits that make a name its maker's own.
const OWN_CHARS: usize = 6;

/// Before the name of a file that takes the place of NAME: `.new-NAME-XXXXXX`.
const NEW: &str = ".new-";
/// The name of a folder before it is whole: `.release-XXXXXX.unfinished`.
const RELEASE: &str = ".release-";
const UNFINISHED: &str = ".unfinished";

/// Whether a file is what a killed command has left of writing `name`.
pub(crate) fn is_leftover(file: &str, name: &str) -> bool {
    let own = file.strip_prefix(NEW).and_then(|rest| rest.strip_prefix(name)).and_then(|rest| rest.strip_prefix('-'));
    own.is_some_and(is_own)
}

fn is_own(text: &str) -> bool {
    text.len() == OWN_CHARS && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Writes a file so that a reader finds the old one or the new one.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_string_lossy();
        replace(&File::open(folder)?.into(), &name, bytes)
    };
    write().map_err(|error: io::Error| io_error(path, &error))
}

/// The same within a folder that is open.
pub(crate) fn replace(folder: &OwnedFd, name: &str, bytes: &[u8]) -> io::Result<()> {
    clear_files(folder, name)?;
    for _ in 0..TRIES_MAX {
        let own = random_name()?;
        let new = format!("{NEW}{name}-{own}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(folder, &new, flags, Mode::from_raw_mode(0o644))?);
        // Whoever clears up takes what nobody holds; it may have been quicker.
        // Where files cannot be locked none is ever cleared away.
        let _ = file.lock();
        if file.metadata()?.nlink() == 0 {
            continue;
        }
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        let done = written.and_then(|()| Ok(renameat(folder, &new, folder, name)?));
        if done.is_err() {
            // The first failure is the one to tell.
            let _ = unlinkat(folder, &new, AtFlags::empty());
        }
        return done;
    }
    Err(io::Error::other("what is being written is cleared away again and again"))
}

fn random_name() -> io::Result<String> {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz234567";
    let bytes = edgeward_trust::keys::random_bytes::<OWN_CHARS>().map_err(io::Error::other)?;
    let letter = |byte: &u8| LETTERS.get(usize::from(byte & 31)).copied().unwrap_or(b'a');
    Ok(bytes.iter().map(letter).map(char::from).collect())
}

/// Removes what killed commands have left of writing `name`.
fn clear_files(folder: &OwnedFd, name: &str) -> io::Result<()> {
    // The handle may be one that only leads there.
    let readable = openat(folder, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for entry in Dir::new(readable)? {
        let entry = entry?;
        let Some(file) = entry.file_name().to_str().ok().filter(|file| is_leftover(file, name)) else { continue };
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        // One that cannot be opened or is held is not this command's to remove.
        let Ok(held) = openat(folder, file, flags, Mode::empty()).map(File::from) else { continue };
        if held.try_lock().is_ok() {
            let _ = unlinkat(folder, file, AtFlags::empty());
        }
    }
    Ok(())
}

/// A folder that takes its place when it is whole; gone where it is not.
pub(crate) struct Staged {
    folder: tempfile::TempDir,
    /// Says that somebody is at work in it.
    _held: File,
    target: PathBuf,
}

impl Staged {
    /// A new folder beside `target`, which must not exist. What killed commands have left there is removed.
    pub(crate) fn beside(target: &Path) -> Result<Self, StoreError> {
        if target.symlink_metadata().is_ok() {
            let text =
                format!("`{}` exists already; releases are not changed, expected a new folder", target.display());
            return Err(StoreError::new(ErrorKind::Exists, text));
        }
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(|error| io_error(parent, &error))?;
        clear_folders(parent).map_err(|error| io_error(parent, &error))?;
        let (folder, held) = held_folder(parent).map_err(|error| io_error(parent, &error))?;
        Ok(Self { folder, _held: held, target: target.to_owned() })
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
        for path in walk(self.folder(), ENTRIES_MAX)? {
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

/// A new folder that this process holds.
fn held_folder(parent: &Path) -> io::Result<(tempfile::TempDir, File)> {
    for _ in 0..TRIES_MAX {
        let made = tempfile::Builder::new()
            .prefix(RELEASE)
            .suffix(UNFINISHED)
            .rand_bytes(OWN_CHARS)
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in(parent)?;
        // Whoever clears up may have been quicker.
        let Ok(held) = File::open(made.path()) else { continue };
        // Where folders cannot be locked none is ever cleared away.
        let _ = held.lock();
        if is_at(&held, made.path()) {
            return Ok((made, held));
        }
    }
    Err(io::Error::other("a new folder is cleared away again and again"))
}

/// Whether a path leads to what is open.
fn is_at(open: &File, path: &Path) -> bool {
    let (Ok(open), Ok(there)) = (open.metadata(), path.symlink_metadata()) else { return false };
    (open.dev(), open.ino()) == (there.dev(), there.ino())
}

/// Removes folders that killed commands have left.
fn clear_folders(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name();
        let own = name.to_str().and_then(|name| name.strip_prefix(RELEASE)?.strip_suffix(UNFINISHED));
        if !own.is_some_and(is_own) {
            continue;
        }
        let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits() as i32;
        let Ok(held) = File::options().read(true).custom_flags(flags).open(entry.path()) else { continue };
        if held.try_lock().is_ok() {
            // Another's, in a folder that is shared: it stays.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

//! Files that take the place of older ones whole, and files that their owner alone may read.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use crate::{ErrorKind, TrustError};

const PRIVATE_BYTES_MAX: u64 = 16 << 20;

/// Writes a file so that a reader, or a start after a crash, finds the old one or the new one.
pub(crate) fn replace(path: &Path, bytes: &[u8], flush: bool) -> io::Result<()> {
    let new = beside(path);
    put(File::create(&new)?, &new, path, bytes, flush)
}

/// Writes a file that its owner alone may read, whole or not at all.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = beside(path);
    // What was left behind may be open to others.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    put(file, &new, path, bytes, true)
}

/// Writes a file that its owner alone may read, unless there is one. Of several processes that do so at once one writes it, whole.
///
/// # Errors
/// The system's. False is no error: it was there.
pub fn create_private(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut new =
        tempfile::Builder::new().prefix(".new-").permissions(fs::Permissions::from_mode(0o600)).tempfile_in(folder)?;
    new.write_all(bytes)?;
    new.as_file().sync_all()?;
    match new.persist_noclobber(path) {
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        other => other?,
    };
    File::open(folder)?.sync_all()?;
    Ok(true)
}

/// Waits for its turn to change the file. The turn ends when what is returned is dropped, or its process.
pub(crate) fn lock(path: &Path) -> io::Result<File> {
    let beside = path.with_added_extension("lock");
    // Who may not open it cannot hold it up either.
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(beside)?;
    file.lock()?;
    Ok(file)
}

fn beside(path: &Path) -> PathBuf {
    path.with_added_extension("new")
}

/// Fills `file`, which is `new`, and names it `path`.
fn put(mut file: File, new: &Path, path: &Path, bytes: &[u8], flush: bool) -> io::Result<()> {
    file.write_all(bytes)?;
    if flush {
        file.sync_all()?;
    }
    fs::rename(new, path)?;
    if !flush {
        return Ok(());
    }
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// Reads a file that need not be there: none where it is not.
///
/// # Errors
/// The system's; of the kind `FileTooLarge` where it has more than `bytes_max`.
pub(crate) fn read_if_there(path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let length = match fs::metadata(path) {
        Ok(meta) => meta.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > bytes_max {
        let why = format!("{length} bytes; expected at most {bytes_max}");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    fs::read(path).map(Some)
}

/// Reads a file that its owner alone may read.
///
/// # Errors
/// `Invalid` where others may read it or it has more than 16 MiB, `Unavailable` where it cannot be read.
pub fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, TrustError> {
    let unavailable =
        |error: io::Error| TrustError::new(ErrorKind::Unavailable, format!("`{}`: {error}", path.display()));
    let invalid = |why: String| TrustError::new(ErrorKind::Invalid, format!("`{}`: {why}", path.display()));
    let file = File::open(path).map_err(unavailable)?;
    let metadata = file.metadata().map_err(unavailable)?;
    if metadata.mode() & 0o077 != 0 {
        let mode = metadata.mode() & 0o777;
        return Err(invalid(format!(
            "others may read it (mode {mode:o}); expected 600: `chmod 600 {}`",
            path.display()
        )));
    }
    if metadata.len() > PRIVATE_BYTES_MAX {
        return Err(invalid(format!("{} bytes; expected at most {PRIVATE_BYTES_MAX}", metadata.len())));
    }
    let mut bytes = Zeroizing::default();
    file.take(PRIVATE_BYTES_MAX).read_to_end(&mut bytes).map_err(unavailable)?;
    Ok(bytes)
}

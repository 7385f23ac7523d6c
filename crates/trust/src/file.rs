//! Files that take the place of older ones whole.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

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

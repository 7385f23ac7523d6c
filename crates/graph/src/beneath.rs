//! Opens files of a folder that somebody else filled: beneath a directory handle, without following any link, and only regular files
//! with one name. Makes files there by the same rules.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2},
    io::Errno,
};

/// A handle on a folder, for [`open`].
///
/// # Errors
/// The system's, where there is no such folder.
pub fn folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    Ok(openat(CWD, path, flags, Mode::empty())?)
}

/// Opens a regular file with a single name beneath `root`, following no link.
///
/// # Errors
/// Says what is wrong with the file or its location: an absolute path, `..`, a link, a second name, no regular file.
pub fn open(root: &OwnedFd, location: &str) -> io::Result<File> {
    let path = relative(location)?;
    // NONBLOCK: opening a pipe must not wait for its writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let fd = match openat2(root, path, flags, Mode::empty(), resolve) {
        Err(Errno::NOSYS) => open_by_component(root, path, flags, Folders::Refused),
        other => other,
    };
    regular(fd)
}

/// Opens a regular file with a single name beneath `root` to read and write it, following no link. Where it is missing it is made, and the
/// folders to it.
///
/// # Errors
/// Those of [`open`].
pub fn create(root: &OwnedFd, location: &str) -> io::Result<File> {
    let path = relative(location)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    regular(open_by_component(root, path, flags, Folders::Made))
}

fn relative(location: &str) -> io::Result<&Path> {
    let path = Path::new(location);
    if location.contains('\0') || !path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(io::Error::other("must be a relative path without `..`"));
    }
    Ok(path)
}

/// What was opened, where it is a regular file with one name.
fn regular(opened: Result<OwnedFd, Errno>) -> io::Result<File> {
    let refuse = |text: &str| Err(io::Error::other(text));
    let fd = match opened {
        Err(Errno::LOOP) => return refuse("is or passes a symbolic link"),
        Err(Errno::XDEV) => return refuse("leaves the model's folder"),
        other => other?,
    };
    let stat = fstat(&fd)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return refuse("is not a regular file");
    }
    if stat.st_nlink != 1 {
        return refuse(&format!("has {} hard links, expected 1", stat.st_nlink));
    }
    Ok(File::from(fd))
}

/// Folders to a file that are missing.
#[derive(Clone, Copy, PartialEq)]
enum Folders {
    Refused,
    Made,
}

/// Each folder is opened by itself, without following links: to make what is missing, and for kernels before 5.6.
fn open_by_component(root: &OwnedFd, path: &Path, flags: OFlags, missing: Folders) -> Result<OwnedFd, Errno> {
    let names: Vec<_> = path.components().filter(|c| matches!(c, Component::Normal(_))).collect();
    let Some((file, folders)) = names.split_last() else { return Err(Errno::ISDIR) };
    let step = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let mut at: Option<OwnedFd> = None;
    for folder in folders {
        let here = at.as_ref().map_or(root.as_fd(), AsFd::as_fd);
        if missing == Folders::Made {
            match mkdirat(here, folder.as_os_str(), Mode::from_raw_mode(0o755)) {
                Err(Errno::EXIST) => {}
                other => other?,
            }
        }
        at = Some(openat(here, folder.as_os_str(), step, Mode::empty())?);
    }
    let here = at.as_ref().map_or(root.as_fd(), AsFd::as_fd);
    openat(here, file.as_os_str(), flags, Mode::from_raw_mode(0o644))
}

//! Tensor data kept in files beside the model.
//!
//! A model file is hostile until proven otherwise: its locations open beneath the model's folder only, through a
//! directory handle, without following any link, and only regular files with one name. What stands in the file is
//! checked against the file's real size before a byte is used.

use std::{
    collections::HashMap,
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use memmap2::Mmap;
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2},
    io::Errno,
};

use crate::{GraphError, proto::TensorProto};

/// Where a tensor's data lies: file, offset and length in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalRef {
    /// Path relative to the model's folder, as the file gives it.
    pub location: String,
    /// First byte.
    pub offset: u64,
    /// Bytes; to the end of the file where none.
    pub length: Option<u64>,
}

impl ExternalRef {
    /// Reads the `external_data` entries of a tensor.
    pub fn of(tensor: &TensorProto) -> Result<Self, GraphError> {
        let mut found = Self { location: String::new(), offset: 0, length: None };
        for entry in &tensor.external_data {
            let (key, value) = (entry.key.as_deref().unwrap_or(""), entry.value.as_deref().unwrap_or(""));
            match key {
                "location" => found.location = value.to_owned(),
                "offset" => found.offset = number(tensor, key, value)?,
                "length" => found.length = Some(number(tensor, key, value)?),
                // `checksum` is a hint of old writers; releases carry signed digests instead.
                _ => {}
            }
        }
        if found.location.is_empty() {
            return Err(GraphError::invalid(place(tensor), "external data without a `location`"));
        }
        Ok(found)
    }
}

fn place(tensor: &TensorProto) -> String {
    format!("tensor `{}`", tensor.name.as_deref().unwrap_or(""))
}

fn number(tensor: &TensorProto, key: &str, value: &str) -> Result<u64, GraphError> {
    value.parse().map_err(|_| {
        GraphError::invalid(place(tensor), format!("external data `{key}` is `{value}`, expected a number of bytes"))
    })
}

/// The folder that a model's external data may come from, with the files already mapped.
#[derive(Debug)]
pub(crate) struct ExternalFiles {
    folder: PathBuf,
    open: Mutex<Opened>,
}

#[derive(Debug, Default)]
struct Opened {
    root: Option<Arc<OwnedFd>>,
    files: HashMap<String, Bytes>,
}

impl ExternalFiles {
    pub(crate) fn beneath(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), open: Mutex::default() }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The bytes that `tensor` refers to; `expected` is what its shape and type ask for.
    pub(crate) fn read(&self, tensor: &TensorProto, expected: usize) -> Result<Bytes, GraphError> {
        let reference = ExternalRef::of(tensor)?;
        let refuse = |reason: String| GraphError::External {
            tensor: tensor.name.clone().unwrap_or_default(),
            location: reference.location.clone(),
            reason,
        };
        let file = self.file(&reference.location).map_err(&refuse)?;
        let length = reference.length.unwrap_or((file.len() as u64).saturating_sub(reference.offset));
        if length != expected as u64 {
            return Err(refuse(format!("holds {length} bytes, shape and type ask for {expected}")));
        }
        let end = reference.offset.checked_add(length).filter(|&end| end <= file.len() as u64);
        let Some(end) = end else {
            return Err(refuse(format!(
                "offset {} and length {length} reach beyond the file's {} bytes",
                reference.offset,
                file.len()
            )));
        };
        Ok(file.slice(reference.offset as usize..end as usize))
    }

    fn file(&self, location: &str) -> Result<Bytes, String> {
        let mut open = self.open.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(bytes) = open.files.get(location) {
            return Ok(bytes.clone());
        }
        let root = match &open.root {
            Some(root) => root.clone(),
            None => {
                let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
                let folder = if self.folder.as_os_str().is_empty() { Path::new(".") } else { &self.folder };
                let fd = openat(CWD, folder, flags, Mode::empty()).map_err(|e| format!("model folder: {e}"))?;
                open.root.insert(Arc::new(fd)).clone()
            }
        };
        let bytes = map(open_beneath(&root, location)?)?;
        open.files.insert(location.to_owned(), bytes.clone());
        Ok(bytes)
    }
}

/// Opens a regular file with a single name beneath `root`, following no link.
fn open_beneath(root: &OwnedFd, location: &str) -> Result<File, String> {
    let path = Path::new(location);
    if location.contains('\0') || !path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err("must be a relative path without `..`".to_owned());
    }
    // NONBLOCK: opening a pipe must not wait for its writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let fd = match openat2(root, path, flags, Mode::empty(), resolve) {
        Err(Errno::NOSYS) => open_by_component(root, path, flags),
        other => other,
    };
    let fd = fd.map_err(|e| match e {
        Errno::LOOP => "is or passes a symbolic link".to_owned(),
        Errno::XDEV => "leaves the model's folder".to_owned(),
        e => e.to_string(),
    })?;
    let stat = fstat(&fd).map_err(|e| e.to_string())?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err("is not a regular file".to_owned());
    }
    if stat.st_nlink != 1 {
        return Err(format!("has {} hard links, expected 1", stat.st_nlink));
    }
    Ok(File::from(fd))
}

/// For kernels before 5.6: each folder is opened by itself, without following links.
fn open_by_component(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let names: Vec<_> = path.components().filter(|c| matches!(c, Component::Normal(_))).collect();
    let Some((file, folders)) = names.split_last() else { return Err(Errno::ISDIR) };
    let step = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let mut at: Option<OwnedFd> = None;
    for folder in folders {
        let here = at.as_ref().map_or(root.as_fd(), AsFd::as_fd);
        at = Some(openat(here, folder.as_os_str(), step, Mode::empty())?);
    }
    let here = at.as_ref().map_or(root.as_fd(), AsFd::as_fd);
    openat(here, file.as_os_str(), flags, Mode::empty())
}

/// Maps a file; an empty one is no bytes.
pub(crate) fn map(file: File) -> Result<Bytes, String> {
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    if length == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: a mapping of a file that another process truncates raises SIGBUS; model files are immutable by contract,
    // and replaced by renaming, which leaves this mapping on the old content.
    let mapping = unsafe { Mmap::map(&file) }.map_err(|e| e.to_string())?;
    Ok(Bytes::from_owner(mapping))
}

//! Tensor data kept in files beside the model.
//!
//! A model file is hostile until proven otherwise: its locations open [beneath](crate::beneath) the model's folder only. What stands in
//! the file is checked against the file's real size before a byte is used.

use std::{
    collections::HashMap,
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use memmap2::{Mmap, UncheckedAdvice};

use crate::{GraphError, beneath, proto::TensorProto};

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

/// The folder that a model's external data may come from, with the files already mapped; or files in memory.
#[derive(Debug)]
pub(crate) struct ExternalFiles {
    folder: Option<PathBuf>,
    open: Mutex<Opened>,
}

#[derive(Debug, Default)]
struct Opened {
    root: Option<Arc<OwnedFd>>,
    files: HashMap<String, Bytes>,
    /// What of `files` is mapped.
    mappings: Vec<Arc<Mmap>>,
}

impl ExternalFiles {
    pub(crate) fn beneath(folder: impl Into<PathBuf>) -> Self {
        Self { folder: Some(folder.into()), open: Mutex::default() }
    }

    /// Files in memory, by location, and no others.
    pub(crate) fn given(files: HashMap<String, Bytes>) -> Self {
        Self { folder: None, open: Mutex::new(Opened { files, ..Opened::default() }) }
    }

    pub(crate) fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
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
                let folder = self.folder.as_deref().ok_or("is not among the files given with the model")?;
                let fd = beneath::folder(folder).map_err(|e| format!("model folder: {e}"))?;
                open.root.insert(Arc::new(fd)).clone()
            }
        };
        let mapping = mapping(beneath::open(&root, location).map_err(|e| e.to_string())?)?;
        let bytes = mapping.clone().map_or_else(Bytes::new, shared);
        open.mappings.extend(mapping);
        open.files.insert(location.to_owned(), bytes.clone());
        Ok(bytes)
    }

    /// Lets go of the pages of what is mapped.
    pub(crate) fn release(&self) {
        let open = self.open.lock().unwrap_or_else(|e| e.into_inner());
        for mapping in &open.mappings {
            // SAFETY: the mapping is of a file, shared and only read: its pages come back with the file's content.
            // A system that keeps them needs more memory, and that is all.
            let _ = unsafe { mapping.unchecked_advise(UncheckedAdvice::DontNeed) };
        }
    }
}

/// Maps a file; an empty one is no bytes.
pub(crate) fn map(file: File) -> Result<Bytes, String> {
    Ok(mapping(file)?.map_or_else(Bytes::new, shared))
}

/// None for an empty file.
fn mapping(file: File) -> Result<Option<Arc<Mmap>>, String> {
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    if length == 0 {
        return Ok(None);
    }
    // SAFETY: a mapping of a file that another process truncates raises SIGBUS; model files are immutable by contract,
    // and replaced by renaming, which leaves this mapping on the old content.
    Ok(Some(Arc::new(unsafe { Mmap::map(&file) }.map_err(|e| e.to_string())?)))
}

fn shared(mapping: Arc<Mmap>) -> Bytes {
    struct Owner(Arc<Mmap>);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    Bytes::from_owner(Owner(mapping))
}

//! Cuts files where their content says.

use std::{fs::File, path::Path};

use fastcdc::v2020::StreamCDC;
use sha2::{Digest as _, Sha256};

use crate::{
    digest::Digest,
    error::{StoreError, io_error},
    files::check_stored,
    manifest::Stored,
};

/// Sizes of chunks in bytes. All releases must be cut alike to share chunks.
const LEAST: usize = 64 << 10;
const USUAL: usize = 256 << 10;
/// Longest chunk.
pub(super) const MOST: usize = 1 << 20;

/// A piece of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Chunk {
    pub(super) sha256: Digest,
    pub(super) size: u64,
}

/// Cuts a file and tells of each chunk, with the offset where it begins.
pub(super) fn cut(file: File, path: &Path, mut tell: impl FnMut(Chunk, u64)) -> Result<Stored, StoreError> {
    let (mut hasher, mut size) = (Sha256::new(), 0);
    for piece in StreamCDC::new(file, LEAST, USUAL, MOST) {
        let piece = piece.map_err(|error| io_error(path, &error.into()))?;
        hasher.update(&piece.data);
        let chunk = Chunk { sha256: Digest::of(&piece.data), size: piece.data.len() as u64 };
        tell(chunk, size);
        size += chunk.size;
    }
    Ok(Stored { size, sha256: Digest(hasher.finalize().into()) })
}

/// Cuts a file that must be the one that is listed.
pub(super) fn cut_checked(file: File, path: &str, expected: Stored) -> Result<Vec<Chunk>, StoreError> {
    let mut chunks = Vec::new();
    let found = cut(file, Path::new(path), |chunk, _| chunks.push(chunk))?;
    check_stored(path, expected, found)?;
    Ok(chunks)
}

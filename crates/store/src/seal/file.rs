//! One sealed file: magic, salt, and chunks of 1 MiB with a tag of 16 bytes each.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use aws_lc_rs::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::DataKey;
use crate::{
    digest::Digest,
    error::{ErrorKind, StoreError, io_error, tampered},
    files::{Release, check_stored},
    manifest::{FileEntry, Stored},
    memory::{Memory, Secrecy},
};

/// Plain bytes of a chunk.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;
const TAG_BYTES: usize = 16;
const MAGIC: &[u8; 8] = b"EDGSEAL1";
const HEAD_BYTES: usize = MAGIC.len() + 32;

/// Seals and opens one file.
pub(crate) struct FileKey {
    key: LessSafeKey,
    salt: [u8; 32],
}

impl FileKey {
    pub(crate) fn new(key: LessSafeKey, salt: [u8; 32]) -> Self {
        Self { key, salt }
    }

    /// Seals `from`, whose size was listed, into `to`; what was sealed passes through `seen`.
    pub(crate) fn seal(
        &self,
        from: impl Read,
        mut seen: impl Write,
        mut to: impl Write,
        size: u64,
    ) -> Result<(), StoreError> {
        let failed = |error: io::Error| io_error(Path::new("release"), &error);
        // One byte more than listed shows that there is more.
        let mut from = from.take(size.saturating_add(1));
        to.write_all(MAGIC).and_then(|()| to.write_all(&self.salt)).map_err(failed)?;
        let (mut chunk, mut next) = (Zeroizing::new(Vec::new()), Zeroizing::new(Vec::new()));
        fill(&mut from, &mut chunk).map_err(failed)?;
        for index in 0.. {
            fill(&mut from, &mut next).map_err(failed)?;
            seen.write_all(&chunk).map_err(failed)?;
            let nonce = nonce(index, next.is_empty());
            let sealed = self.key.seal_in_place_append_tag(nonce, Aad::empty(), &mut *chunk);
            sealed.map_err(|_| StoreError::new(ErrorKind::Unavailable, "the cryptographic library could not seal"))?;
            to.write_all(&chunk).map_err(failed)?;
            if next.is_empty() {
                return Ok(());
            }
            std::mem::swap(&mut chunk, &mut next);
        }
        Ok(())
    }

    /// Opens one chunk into `plain`, which has its size.
    fn open(&self, index: u64, last: bool, sealed: &[u8], plain: &mut [u8]) -> Option<()> {
        let (sealed, tag) = sealed.split_at_checked(sealed.len().checked_sub(TAG_BYTES)?)?;
        self.key.open_separate_gather(nonce(index, last), Aad::empty(), sealed, tag, plain).ok()
    }
}

/// A counter of 11 bytes, and whether the chunk is the last.
fn nonce(index: u64, last: bool) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    let (counter, end) = bytes.split_at_mut(NONCE_LEN - 1);
    counter.iter_mut().rev().zip(index.to_le_bytes()).for_each(|(to, from)| *to = from);
    end.fill(u8::from(last));
    Nonce::assume_unique_for_key(bytes)
}

/// Reads a whole chunk, or what is left.
fn fill(from: &mut impl Read, chunk: &mut Vec<u8>) -> io::Result<()> {
    chunk.clear();
    from.take(CHUNK_BYTES as u64).read_to_end(chunk).map(drop)
}

/// Reads a listed file into memory, opened where it is sealed. Its digest is that of the bytes that were read: who changes the file
/// meanwhile changes nothing.
pub(crate) fn read(
    release: &Release,
    path: &str,
    entry: &FileEntry,
    data_key: Option<&DataKey>,
) -> Result<Memory, StoreError> {
    let file = release.file(path)?;
    match (entry.sealed, data_key) {
        (None, _) => read_plain(file, path, entry),
        (Some(stored), Some(key)) => read_sealed(file, path, (entry, stored), key),
        (Some(_), None) => {
            let text = format!("`{path}` is sealed; expected the keys that open it");
            Err(StoreError::new(ErrorKind::Unverified, text))
        }
    }
}

fn read_plain(mut file: File, path: &str, entry: &FileEntry) -> Result<Memory, StoreError> {
    check_length(&file, path, entry.size)?;
    let mut memory = Memory::new(entry.size, Secrecy::Plain)?;
    let mut hasher = Sha256::new();
    for chunk in memory.bytes_mut().chunks_mut(CHUNK_BYTES) {
        file.read_exact(chunk).map_err(|error| io_error(Path::new(path), &error))?;
        hasher.update(chunk);
    }
    let sha256 = Digest(hasher.finalize().into());
    check_stored(path, entry.stored(), Stored { size: entry.size, sha256 })?;
    Ok(memory)
}

fn read_sealed(
    mut file: File,
    path: &str,
    (entry, stored): (&FileEntry, Stored),
    data_key: &DataKey,
) -> Result<Memory, StoreError> {
    check_length(&file, path, stored.size)?;
    if stored.size != sealed_size(entry.size) {
        return Err(tampered(format!(
            "`{path}` is listed with {} sealed bytes, which {} do not make",
            stored.size, entry.size
        )));
    }
    let failed = |error: io::Error| io_error(Path::new(path), &error);
    let broken = |what: &str| tampered(format!("`{path}` does not open: {what}"));
    let mut hasher = Sha256::new();
    let mut head = [0; HEAD_BYTES];
    file.read_exact(&mut head).map_err(failed)?;
    hasher.update(head);
    let (magic, salt) = head.split_at(MAGIC.len());
    let salt = salt.try_into().ok().filter(|_| magic == MAGIC).ok_or_else(|| broken("no sealed file"))?;
    let key = data_key.file(path, salt)?;
    let mut memory = Memory::new(entry.size, Secrecy::Secret)?;
    let mut sealed = vec![0; CHUNK_BYTES + TAG_BYTES];
    let chunks = entry.size.div_ceil(CHUNK_BYTES as u64).max(1);
    let mut plain = memory.bytes_mut().chunks_mut(CHUNK_BYTES);
    for index in 0..chunks {
        let plain = plain.next().unwrap_or_default();
        let sealed = sealed.get_mut(..plain.len() + TAG_BYTES).unwrap_or_default();
        file.read_exact(sealed).map_err(failed)?;
        hasher.update(&*sealed);
        key.open(index, index + 1 == chunks, sealed, plain)
            .ok_or_else(|| broken(&format!("chunk {index} was changed, moved, or sealed with another key")))?;
    }
    // The chunks prove that they are what was sealed; the digest, that it is what was signed.
    let sha256 = Digest(hasher.finalize().into());
    check_stored(path, stored, Stored { size: stored.size, sha256 })?;
    Ok(memory)
}

/// Bytes of a sealed file.
pub(crate) fn sealed_size(size: u64) -> u64 {
    let chunks = size.div_ceil(CHUNK_BYTES as u64).max(1);
    size.saturating_add(chunks * TAG_BYTES as u64).saturating_add(HEAD_BYTES as u64)
}

/// Whether a file has its listed length: no memory is taken for one that lies.
fn check_length(file: &File, path: &str, expected: u64) -> Result<(), StoreError> {
    let length = file.metadata().map_err(|error| io_error(Path::new(path), &error))?.len();
    if length == expected {
        return Ok(());
    }
    Err(tampered(format!("`{path}` has {length} bytes; {expected} are listed")))
}

//! Where the chunks of a release's files lie.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::chunk::{self, Chunk};
use crate::{
    digest::Digest,
    error::{StoreError, invalid, tampered},
    manifest::Manifest,
};

/// The index's object.
pub(super) const FILE: &str = "index.json";
pub(super) const BYTES_MAX: u64 = 256 << 20;
const FORMAT: &str = "edgeward-index-1";
/// Bytes of chunks that are joined into one pack.
pub(super) const PACK_BYTES: u64 = 32 << 20;

/// Where the chunks of a release's files lie.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Index {
    format: String,
    /// Of the release.
    pub(super) id: Digest,
    packs: Vec<Digest>,
    chunks: Vec<Entry>,
    /// Chunks of each file in their order, by number.
    pub(super) files: BTreeMap<String, Vec<usize>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    sha256: Digest,
    size: u64,
    /// By number.
    pack: usize,
    offset: u64,
}

/// A place within a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) pack: Digest,
    pub(super) offset: u64,
}

impl Index {
    /// An index of files whose chunks all have a place.
    pub(super) fn of(
        id: Digest,
        files: &BTreeMap<String, Vec<Chunk>>,
        place: impl Fn(&Chunk) -> Option<Place>,
    ) -> Result<Self, StoreError> {
        let mut index =
            Self { format: FORMAT.to_owned(), id, packs: Vec::new(), chunks: Vec::new(), files: BTreeMap::new() };
        let (mut packs, mut known) = (BTreeMap::new(), BTreeMap::new());
        for (path, chunks) in files {
            let mut numbers = Vec::with_capacity(chunks.len());
            for chunk in chunks {
                if let Some(number) = known.get(&chunk.sha256) {
                    numbers.push(*number);
                    continue;
                }
                let place = place(chunk).ok_or_else(|| invalid(format!("chunk {} was not sent", chunk.sha256)))?;
                let pack = *packs.entry(place.pack).or_insert_with(|| {
                    index.packs.push(place.pack);
                    index.packs.len() - 1
                });
                known.insert(chunk.sha256, index.chunks.len());
                numbers.push(index.chunks.len());
                index.chunks.push(Entry { sha256: chunk.sha256, size: chunk.size, pack, offset: place.offset });
            }
            index.files.insert(path.clone(), numbers);
        }
        Ok(index)
    }

    /// Reads an index and checks every number in it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, StoreError> {
        let index: Self = serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
        if index.format != FORMAT {
            return Err(invalid(format!("format `{}`; expected `{FORMAT}`", index.format.escape_debug())));
        }
        let most = chunk::MOST as u64;
        let good = |entry: &Entry| {
            (1..=most).contains(&entry.size) && entry.pack < index.packs.len() && entry.offset <= PACK_BYTES
        };
        if let Some(entry) = index.chunks.iter().find(|entry| !good(entry)) {
            return Err(invalid(format!("chunk {} has no place in a pack", entry.sha256)));
        }
        if index.files.values().flatten().any(|number| *number >= index.chunks.len()) {
            return Err(invalid("a file has a chunk that is not listed"));
        }
        Ok(index)
    }

    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, StoreError> {
        serde_json_canonicalizer::to_vec(self).map_err(|error| invalid(error.to_string()))
    }

    /// Every chunk with its place.
    pub(super) fn places(&self) -> impl Iterator<Item = (Chunk, Place)> + '_ {
        self.chunks.iter().filter_map(|entry| self.resolve(entry))
    }

    fn resolve(&self, entry: &Entry) -> Option<(Chunk, Place)> {
        let place = Place { pack: *self.packs.get(entry.pack)?, offset: entry.offset };
        Some((Chunk { sha256: entry.sha256, size: entry.size }, place))
    }

    /// The chunks of a file in their order, which must make up the size that the manifest lists.
    pub(super) fn file(&self, path: &str, manifest: &Manifest) -> Result<Vec<(Chunk, Place)>, StoreError> {
        let numbers = self.files.get(path).ok_or_else(|| tampered(format!("the index lacks `{path}`")))?;
        let entries = numbers.iter().filter_map(|&number| self.resolve(self.chunks.get(number)?));
        let chunks: Vec<_> = entries.collect();
        let size = chunks.iter().map(|(chunk, _)| chunk.size).fold(0, u64::saturating_add);
        let expected = manifest.file(path)?.stored().size;
        if size != expected {
            return Err(tampered(format!("the index makes `{path}` of {size} bytes; {expected} are listed")));
        }
        Ok(chunks)
    }
}

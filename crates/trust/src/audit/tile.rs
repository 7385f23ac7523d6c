//! The files of a log as C2SP tlog-tiles lays them out: paths of tiles and bundles, and reading them.

use std::{
    cell::RefCell,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    audit::merkle::{Hash, Nodes, fold},
    error::{ErrorKind, TrustError},
};

/// Hashes in a full tile, entries in a full bundle.
pub const WIDTH: u64 = 256;

/// What a file under `tile/` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Hashes of complete subtrees of `256^level` entries.
    Hashes(u8),
    /// Entries, each after its length as two bytes, big-endian.
    Entries,
}

/// Path of a file of `width` of 256 hashes or entries, relative to the log: `tile/0/x001/234.p/17`.
pub fn tile_path(content: Content, index: u64, width: u64) -> PathBuf {
    let folder = match content {
        Content::Hashes(level) => level.to_string(),
        Content::Entries => "entries".to_owned(),
    };
    let mut name = format!("{:03}", index % 1000);
    let mut rest = index / 1000;
    while rest > 0 {
        name = format!("x{:03}/{name}", rest % 1000);
        rest /= 1000;
    }
    let part = if width == WIDTH { String::new() } else { format!(".p/{width}") };
    PathBuf::from(format!("tile/{folder}/{name}{part}"))
}

/// A log's files, read as a tree of `size` entries.
pub struct Tiles<'a> {
    folder: &'a Path,
    size: u64,
    /// The tile of each level that was read last: proofs and walks ask for neighbours.
    last: RefCell<Vec<Option<(u64, Vec<Hash>)>>>,
}

impl<'a> Tiles<'a> {
    /// The log in `folder` as it was with `size` entries.
    pub fn new(folder: &'a Path, size: u64) -> Self {
        Self { folder, size, last: RefCell::default() }
    }

    /// Number of hashes or entries that the `index`-th file of a level has in this tree.
    pub fn width(&self, level: u8, index: u64) -> u64 {
        let count = self.size.checked_shr(u32::from(level) * 8).unwrap_or(0);
        count.saturating_sub(index * WIDTH).min(WIDTH)
    }

    /// The hashes of a tile.
    pub fn hashes(&self, level: u8, index: u64) -> Result<Vec<Hash>, TrustError> {
        let width = self.width(level, index);
        let (bytes, path) = self.read(Content::Hashes(level), index, width)?;
        let hashes: Vec<Hash> = bytes.as_chunks().0.iter().take(width as usize).copied().collect();
        if hashes.len() as u64 != width {
            let text = format!("`{}` has {} bytes; expected {}", path.display(), bytes.len(), width * 32);
            return Err(TrustError::new(ErrorKind::Tampered, text));
        }
        Ok(hashes)
    }

    /// The entries of the `index`-th bundle, and whether the file holds them all.
    pub fn entries(&self, index: u64) -> Result<Bundle, TrustError> {
        let width = self.width(0, index);
        let (bytes, path) = self.read(Content::Entries, index, width)?;
        let mut entries = Vec::with_capacity(width as usize);
        let mut rest = bytes.as_slice();
        while let Some((entry, after)) = take_entry(rest).filter(|_| (entries.len() as u64) < width) {
            entries.push(entry.to_vec());
            rest = after;
        }
        let whole = entries.len() as u64 == width && (rest.is_empty() || width < WIDTH);
        Ok(Bundle { entries, whole, path })
    }

    /// The file of `width`, or the full one that took its place.
    fn read(&self, content: Content, index: u64, width: u64) -> Result<(Vec<u8>, PathBuf), TrustError> {
        let path = tile_path(content, index, width);
        let full = tile_path(content, index, WIDTH);
        let found = match read_bounded(&self.folder.join(&path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && width < WIDTH => {
                read_bounded(&self.folder.join(&full))
            }
            other => other,
        };
        match found {
            Ok(bytes) => Ok((bytes, path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(TrustError::new(ErrorKind::NotFound, format!("`{}` is missing", path.display())))
            }
            Err(error) => Err(TrustError::new(ErrorKind::Unavailable, format!("`{}`: {error}", path.display()))),
        }
    }
}

/// A file of entries as it was found.
pub struct Bundle {
    /// The entries that could be cut out.
    pub entries: Vec<Vec<u8>>,
    /// Whether those are all that should be there, and nothing else is.
    pub whole: bool,
    /// The file, relative to the log.
    pub path: PathBuf,
}

/// Cuts one entry off, which follows its length.
pub fn take_entry(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

/// Reads a file of a log: 256 entries of 65,535 bytes each at most.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    const BYTES_MAX: u64 = WIDTH * (2 + u16::MAX as u64);
    if fs::metadata(path)?.len() > BYTES_MAX {
        return Err(io::Error::other(format!("larger than {BYTES_MAX} bytes")));
    }
    fs::read(path)
}

impl Nodes for Tiles<'_> {
    fn node(&self, level: u8, index: u64) -> Result<Hash, TrustError> {
        let (tile_level, within) = (level / 8, level % 8);
        let begin = index << within;
        let (tile, offset) = (begin / WIDTH, (begin % WIDTH) as usize);
        let mut last = self.last.borrow_mut();
        if last.len() <= usize::from(tile_level) {
            last.resize(usize::from(tile_level) + 1, None);
        }
        let kept = &mut last[usize::from(tile_level)];
        if kept.as_ref().is_none_or(|(index, _)| *index != tile) {
            *kept = Some((tile, self.hashes(tile_level, tile)?));
        }
        let hashes = kept.as_ref().and_then(|(_, hashes)| hashes.get(offset..offset + (1 << within)));
        hashes.and_then(fold).ok_or_else(|| {
            let text = format!("subtree {index} of level {level} is not in a log of {} records", self.size);
            TrustError::new(ErrorKind::NotFound, text)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_specification() {
        for (content, index, width, expected) in [
            (Content::Hashes(0), 0, 256, "tile/0/000"),
            (Content::Hashes(2), 1234067, 256, "tile/2/x001/x234/067"),
            (Content::Entries, 273, 112, "tile/entries/273.p/112"),
            (Content::Entries, 1000, 1, "tile/entries/x001/000.p/1"),
        ] {
            assert_eq!(tile_path(content, index, width).to_str().unwrap(), expected);
        }
    }

    /// The example of the specification: 70,000 entries.
    #[test]
    fn widths_are_those_of_the_specification() {
        let tiles = Tiles::new(Path::new("."), 70_000);
        for (level, index, expected) in
            [(0, 272, 256), (0, 273, 112), (1, 0, 256), (1, 1, 17), (2, 0, 1), (3, 0, 0), (9, 0, 0)]
        {
            assert_eq!(tiles.width(level, index), expected, "{level} {index}");
        }
    }
}

//! The journal: what was accepted and is not yet in tiles, in frames of records with the checkpoint that signs them.
//!
//! One write and one flush make a frame durable, so that an acknowledgement waits for the disk once. A frame is its length as four
//! bytes, the payload and the payload's SHA-256; the payload is the place of the first record (8 bytes), their number (4 bytes), the
//! records as in a bundle, and the signed checkpoint after them. Numbers are big-endian.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use crate::{
    audit::tile::take_entry,
    error::{ErrorKind, TrustError},
};

/// Folder of the segments within the log's.
pub const FOLDER: &str = "journal";

/// Records that were accepted together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frame {
    /// Place of the first.
    pub first: u64,
    /// The records, in order.
    pub entries: Vec<Vec<u8>>,
    /// The checkpoint after them, signed.
    pub note: String,
}

impl Frame {
    /// Number of records in the log after this frame.
    pub fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// The bytes on disk.
    pub fn encode(&self) -> Vec<u8> {
        let size = self.entries.iter().map(|entry| entry.len() + 2).sum::<usize>() + self.note.len() + 64;
        let mut out = Vec::with_capacity(size);
        out.extend([0; 4]);
        out.extend(self.first.to_be_bytes());
        out.extend((self.entries.len() as u32).to_be_bytes());
        for entry in &self.entries {
            out.extend((entry.len() as u16).to_be_bytes());
            out.extend(entry);
        }
        out.extend(self.note.as_bytes());
        let length = (out.len() - 4) as u32;
        out[..4].copy_from_slice(&length.to_be_bytes());
        let digest = Sha256::digest(&out[4..]);
        out.extend(digest);
        out
    }

    /// Reads the frame that `bytes` begin with, and what is left; none where it is torn or damaged.
    pub fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (length, rest) = bytes.split_first_chunk()?;
        let (payload, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        let (digest, rest) = rest.split_at_checked(32)?;
        if Sha256::digest(payload).as_slice() != digest {
            return None;
        }
        let (first, payload) = payload.split_first_chunk()?;
        let (count, mut payload) = payload.split_first_chunk()?;
        let mut entries = Vec::new();
        for _ in 0..u32::from_be_bytes(*count) {
            let (entry, after) = take_entry(payload)?;
            entries.push(entry.to_vec());
            payload = after;
        }
        let first = u64::from_be_bytes(*first);
        first.checked_add(entries.len() as u64)?;
        let note = std::str::from_utf8(payload).ok()?.to_owned();
        Some((Self { first, entries, note }, rest))
    }
}

/// The segment that is written.
pub struct Segment {
    file: File,
    bytes: u64,
}

impl Segment {
    /// A new segment for records from place `first`. Its name is durable once this returns.
    pub fn create(folder: &Path, first: u64) -> io::Result<Self> {
        let folder = folder.join(FOLDER);
        fs::create_dir_all(&folder)?;
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(segment_path(&folder, first))?;
        File::open(&folder)?.sync_all()?;
        Ok(Self { file, bytes: 0 })
    }

    /// Bytes written.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds a frame. After an error the segment is as before, or [`WriteError::Broken`].
    pub fn write(&mut self, frame: &[u8]) -> Result<(), WriteError> {
        let Err(error) = self.file.write_all(frame) else {
            self.bytes += frame.len() as u64;
            return Ok(());
        };
        // What was written of it must not stay in front of the next frame.
        let undone = self.file.set_len(self.bytes);
        match undone.and_then(|()| self.file.seek(io::SeekFrom::Start(self.bytes))) {
            Ok(_) => Err(WriteError::Undone(error)),
            Err(_) => Err(WriteError::Broken(error)),
        }
    }

    /// Waits until what was written is on the disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Why a frame was not written.
pub enum WriteError {
    /// The segment is as it was before.
    Undone(io::Error),
    /// What the segment holds is not known.
    Broken(io::Error),
}

fn segment_path(folder: &Path, first: u64) -> PathBuf {
    folder.join(format!("{first:020}"))
}

/// The segments of a log with the place of their first record, in order.
pub fn segments(folder: &Path) -> Result<Vec<(u64, PathBuf)>, TrustError> {
    let folder = folder.join(FOLDER);
    let unavailable = |error: io::Error| {
        let text = format!("`{}` cannot be read: {error}", folder.display());
        TrustError::new(ErrorKind::Unavailable, text)
    };
    let mut found = Vec::new();
    let listing = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        other => other.map_err(unavailable)?,
    };
    for item in listing {
        let path = item.map_err(unavailable)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).filter(|name| name.len() == 20);
        if let Some(first) = name.and_then(|name| name.parse().ok()) {
            found.push((first, path));
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_written_and_a_torn_or_changed_one_not_at_all() {
        let frame =
            Frame { first: 7, entries: vec![b"a".to_vec(), Vec::new(), vec![9; 65_535]], note: "n\n".to_owned() };
        let bytes = frame.encode();
        assert_eq!(Frame::decode(&bytes), Some((frame.clone(), &[][..])));
        for cut in [0, 1, 4, 40, bytes.len() - 33, bytes.len() - 1] {
            assert_eq!(Frame::decode(&bytes[..cut]), None, "{cut}");
        }
        for at in [0, 5, 13, 20, 70_000, bytes.len() - 1] {
            let mut changed = bytes.clone();
            if let Some(byte) = changed.get_mut(at) {
                *byte ^= 1;
                assert_eq!(Frame::decode(&changed), None, "{at}");
            }
        }
        assert_eq!(Frame::decode(&[0; 100]), None);
        assert_eq!(Frame::decode(&[0xff; 100]), None);
    }
}

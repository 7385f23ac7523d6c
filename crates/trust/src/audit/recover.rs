//! What a log is found to be when it is opened: the published part is checked, the journal replayed, a torn end cut off.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    audit::{
        checkpoint::Checkpoint,
        journal::{self, Frame},
        merkle::{Edge, leaf_hash},
        note::NoteKey,
        publish::{CHECKPOINT, HISTORY},
        tile::Tiles,
    },
    error::{ErrorKind, TrustError},
};

/// Folder of what was cut off the journal, within the log's.
pub const CUT: &str = "cut";

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Records that the checkpoint on disk covers.
    pub published: u64,
    /// Records that only the journal had.
    pub replayed: u64,
    /// Bytes at the journal's end that are no whole frame. They were never acknowledged, and are kept in the folder `cut`.
    pub cut_bytes: u64,
}

/// The state to go on from.
pub struct Found {
    /// What to tell.
    pub recovery: Recovery,
    /// The tree with the journal's records.
    pub edge: Edge,
    /// The frames that are not published yet.
    pub frames: Vec<Frame>,
    /// Segments with bytes after their last whole frame: where those begin, and what they are.
    torn: Vec<(PathBuf, u64, Vec<u8>)>,
}

/// The checkpoint of a log; none where it never published one.
///
/// # Errors
/// `Tampered` where it is missing though there are tiles and the journal does not begin with the first record, `Unverified` where `key` did not sign it.
pub fn read_checkpoint(folder: &Path, key: &NoteKey) -> Result<Option<Checkpoint>, TrustError> {
    let path = folder.join(CHECKPOINT);
    let note = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && never_published(folder)? => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = format!("`{}` is missing though the log has records", path.display());
            return Err(TrustError::new(ErrorKind::Tampered, text));
        }
        Err(error) => return Err(unavailable(&path, &error)),
        Ok(note) => note,
    };
    let checkpoint = Checkpoint::verify(&note, key);
    checkpoint.map(Some).map_err(|error| TrustError::new(error.kind(), format!("`{}`: {error}", path.display())))
}

/// True where a log never published a checkpoint: there are no tiles, or the first publication did not come to its end. The journal then
/// still begins with the first record, and no checkpoint is in the history, which is written after the checkpoint itself.
fn never_published(folder: &Path) -> Result<bool, TrustError> {
    let history = fs::read_to_string(folder.join(HISTORY)).unwrap_or_default();
    let first = journal::segments(folder)?.first().map(|(first, _)| *first);
    Ok(!folder.join("tile").exists() || (first == Some(0) && history.trim().is_empty()))
}

/// Reads the state of the log in `folder` that `key` signed, and cuts a torn end of its journal off.
pub fn recover(folder: &Path, key: &NoteKey) -> Result<Found, TrustError> {
    let (mut edge, checkpoint) = (Edge::default(), read_checkpoint(folder, key)?);
    if let Some(checkpoint) = &checkpoint {
        edge = Edge::read(checkpoint.head.size, &Tiles::new(folder, checkpoint.head.size))?;
        if edge.root() != checkpoint.head.root {
            let text = format!(
                "the tiles of `{}` are not those of its checkpoint at {} records; `edgeward trust audit verify` names the record",
                folder.display(),
                edge.size()
            );
            return Err(TrustError::new(ErrorKind::Tampered, text));
        }
    }
    let found = read_journal(folder, edge, key)?;
    if checkpoint.is_none() && found.edge.size() == 0 && folder.join("tile").exists() {
        let text = format!("`{}` has tiles, and neither a checkpoint nor a record in its journal", folder.display());
        return Err(TrustError::new(ErrorKind::Tampered, text));
    }
    for (path, whole, bytes) in &found.torn {
        keep_cut(folder, found.edge.size(), bytes).map_err(|error| unavailable(&folder.join(CUT), &error))?;
        let cut = fs::OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(*whole));
        cut.map_err(|error| unavailable(path, &error))?;
    }
    Ok(found)
}

/// Reads what the journal has after the published tree `edge`.
pub fn read_journal(folder: &Path, edge: Edge, key: &NoteKey) -> Result<Found, TrustError> {
    let recovery = Recovery { published: edge.size(), ..Recovery::default() };
    let mut found = Found { recovery, edge, frames: Vec::new(), torn: Vec::new() };
    for (_, path) in journal::segments(folder)? {
        found.replay(&path, key)?;
    }
    found.recovery.replayed = found.edge.size() - found.recovery.published;
    Ok(found)
}

impl Found {
    fn replay(&mut self, path: &Path, key: &NoteKey) -> Result<(), TrustError> {
        let bytes = match fs::read(path) {
            // A log that is written to at this moment has published the segment.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|error| unavailable(path, &error))?,
        };
        let mut rest = bytes.as_slice();
        while let Some((frame, after)) = Frame::decode(rest) {
            if frame.first > self.edge.size() {
                let text = format!("records {} to {} are missing in the journal", self.edge.size(), frame.first - 1);
                return Err(TrustError::new(ErrorKind::Tampered, text));
            }
            if frame.end() > self.edge.size() {
                self.add(frame, key)?;
            }
            rest = after;
        }
        if !rest.is_empty() {
            self.recovery.cut_bytes += rest.len() as u64;
            self.torn.push((path.to_owned(), (bytes.len() - rest.len()) as u64, rest.to_vec()));
        }
        Ok(())
    }

    fn add(&mut self, mut frame: Frame, key: &NoteKey) -> Result<(), TrustError> {
        let known = (self.edge.size() - frame.first) as usize;
        frame.entries.drain(..known);
        frame.first = self.edge.size();
        frame.entries.iter().for_each(|entry| self.edge.push(leaf_hash(entry)));
        let signed = Checkpoint::verify(&frame.note, key)?.head;
        if signed.size != self.edge.size() || signed.root != self.edge.root() {
            let text = format!(
                "records {} to {} in the journal are not those that were signed",
                frame.first,
                self.edge.size().saturating_sub(1)
            );
            return Err(TrustError::new(ErrorKind::Tampered, text));
        }
        self.frames.push(frame);
        Ok(())
    }
}

/// Keeps what is cut off as evidence: a torn frame and a damaged one look the same.
fn keep_cut(folder: &Path, size: u64, bytes: &[u8]) -> io::Result<()> {
    let folder = folder.join(CUT);
    fs::create_dir_all(&folder)?;
    let name = |n: u32| -> PathBuf { folder.join(format!("{size:020}-{n}")) };
    let free = (0..u32::MAX).map(name).find(|path| !path.exists());
    free.map_or(Ok(()), |path| fs::write(path, bytes))
}

fn unavailable(path: &Path, error: &io::Error) -> TrustError {
    TrustError::new(ErrorKind::Unavailable, format!("`{}`: {error}", path.display()))
}

//! Makes tiles of what the journal holds, and the checkpoint that covers them.
//!
//! Everything is written and flushed before the checkpoint takes the place of the one before it, so that a checkpoint never speaks of
//! tiles that a crash could undo. Files that could not be written are kept and tried again.

use std::{
    collections::{BTreeSet, VecDeque},
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use crate::{
    audit::{
        journal::{self, Frame},
        merkle::{Hash, fold, leaf_hash},
        tile::{Content, Tiles, WIDTH, tile_path},
    },
    error::TrustError,
    file::replace,
};

/// The checkpoint's file within the log's folder.
pub const CHECKPOINT: &str = "checkpoint";
/// All checkpoints that were published, each as a JSON string in its line; not part of tlog-tiles. They narrow down what was changed.
pub const HISTORY: &str = "checkpoints";
/// From so many files on, flushing the file system costs less than flushing each.
const FLUSH_EACH_MAX: usize = 32;

/// The unfinished tiles of each level, and the files that wait to be written.
pub struct Publisher {
    folder: PathBuf,
    /// Whether files are flushed to the disk.
    flush: bool,
    size: u64,
    published: u64,
    bundle: Vec<u8>,
    levels: Vec<Vec<Hash>>,
    waiting: VecDeque<(PathBuf, Vec<u8>)>,
    unflushed: Vec<PathBuf>,
    folders: BTreeSet<PathBuf>,
    /// Bundles and tiles that are full now: what stood for a part of them can go.
    filled: Vec<PathBuf>,
    note: String,
}

impl Publisher {
    /// Goes on after `size` published entries.
    pub fn open(folder: &Path, size: u64, flush: bool) -> Result<Self, TrustError> {
        let tiles = Tiles::new(folder, size);
        let mut levels = Vec::new();
        for level in 0..8 {
            let count = size >> (8 * level);
            let part = if count.is_multiple_of(WIDTH) { Vec::new() } else { tiles.hashes(level, count / WIDTH)? };
            levels.push(part);
        }
        let entries = if size.is_multiple_of(WIDTH) { Vec::new() } else { tiles.entries(size / WIDTH)?.entries };
        let mut bundle = Vec::new();
        entries.iter().for_each(|entry| put_entry(entry, &mut bundle));
        Ok(Self {
            folder: folder.to_owned(),
            flush,
            size,
            published: size,
            bundle,
            levels,
            waiting: VecDeque::new(),
            unflushed: Vec::new(),
            folders: BTreeSet::new(),
            filled: Vec::new(),
            note: String::new(),
        })
    }

    /// Number of entries that the checkpoint on disk covers.
    pub fn published(&self) -> u64 {
        self.published
    }

    /// Takes the records of a frame; nothing is written yet but what is full.
    pub fn take(&mut self, frame: &Frame) {
        for entry in &frame.entries {
            put_entry(entry, &mut self.bundle);
            self.push(0, leaf_hash(entry));
            self.size += 1;
            if self.size.is_multiple_of(WIDTH) {
                let bundle = std::mem::take(&mut self.bundle);
                self.full(Content::Entries, self.size / WIDTH - 1, bundle);
            }
        }
        self.note.clone_from(&frame.note);
    }

    fn push(&mut self, level: u8, hash: Hash) {
        let Some(tile) = self.levels.get_mut(usize::from(level)) else { return };
        tile.push(hash);
        if tile.len() as u64 == WIDTH {
            let tile = std::mem::take(tile);
            let index = self.size >> (8 * (u32::from(level) + 1));
            self.full(Content::Hashes(level), index, tile.as_flattened().to_vec());
            if let Some(root) = fold(&tile) {
                self.push(level + 1, root);
            }
        }
    }

    fn full(&mut self, content: Content, index: u64, bytes: Vec<u8>) {
        let path = tile_path(content, index, WIDTH);
        self.filled.push(path.with_file_name(format!("{}.p", path.file_name().unwrap_or_default().display())));
        self.waiting.push_back((path, bytes));
    }

    /// Writes full files as they come, without waiting for the disk.
    pub fn write_waiting(&mut self) -> io::Result<()> {
        while let Some((path, bytes)) = self.waiting.front() {
            let whole = self.folder.join(path);
            if let Some(parent) = whole.parent() {
                make_folder(parent, &mut self.folders)?;
            }
            fs::write(&whole, bytes)?;
            self.unflushed.push(whole);
            self.waiting.pop_front();
        }
        Ok(())
    }

    /// Publishes all that was taken: tiles, then the checkpoint; then removes what they replace.
    pub fn publish(&mut self) -> io::Result<()> {
        if self.published == self.size {
            return Ok(());
        }
        for part in self.parts() {
            // A publication that failed has left it there.
            if !self.waiting.iter().any(|(path, _)| *path == part.0) {
                self.waiting.push_back(part);
            }
        }
        self.write_waiting()?;
        self.flush()?;
        self.write_checkpoint()?;
        self.published = self.size;
        for folder in self.filled.drain(..) {
            // A part that stays costs space and nothing else.
            let _ = fs::remove_dir_all(self.folder.join(folder));
        }
        self.drop_segments();
        Ok(())
    }

    /// The unfinished bundle and tiles as files.
    fn parts(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        if !self.bundle.is_empty() {
            files.push((tile_path(Content::Entries, self.size / WIDTH, self.size % WIDTH), self.bundle.clone()));
        }
        for (level, hashes) in (0u8..).zip(&self.levels).filter(|(_, hashes)| !hashes.is_empty()) {
            // What the checkpoint on disk speaks of is never written again: a crash in the middle would leave half of it.
            if self.published >> (8 * level) == self.size >> (8 * level) {
                continue;
            }
            let index = self.size >> (8 * (u32::from(level) + 1));
            files.push((tile_path(Content::Hashes(level), index, hashes.len() as u64), hashes.as_flattened().to_vec()));
        }
        files
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.flush {
            self.unflushed.clear();
            self.folders.clear();
        } else if self.unflushed.len() > FLUSH_EACH_MAX {
            rustix::fs::syncfs(File::open(&self.folder)?)?;
            self.unflushed.clear();
            self.folders.clear();
        }
        // What fails stays in its list and is tried again.
        while let Some(path) = self.unflushed.last() {
            File::open(path)?.sync_all()?;
            self.folders.extend(path.parent().map(Path::to_owned));
            self.unflushed.pop();
        }
        while let Some(folder) = self.folders.pop_last() {
            let synced = File::open(&folder).and_then(|file| file.sync_all());
            if let Err(error) = synced {
                self.folders.insert(folder);
                return Err(error);
            }
        }
        Ok(())
    }

    /// The checkpoint comes first: where the history has one and the checkpoint is missing, somebody took it away.
    fn write_checkpoint(&self) -> io::Result<()> {
        replace(&self.folder.join(CHECKPOINT), self.note.as_bytes(), self.flush)?;
        let mut history = fs::OpenOptions::new().append(true).create(true).open(self.folder.join(HISTORY))?;
        // A line that a crash has torn must not spoil this one; verification skips what is empty.
        history.write_all(format!("\n{}", serde_json::Value::from(self.note.as_str())).as_bytes())?;
        if self.flush {
            history.sync_data()?;
        }
        Ok(())
    }

    /// Removes the segments whose records are all published.
    fn drop_segments(&self) {
        let segments = journal::segments(&self.folder).unwrap_or_default();
        for pair in segments.windows(2) {
            if let [(_, path), (next, _)] = pair
                && *next <= self.published
            {
                // One that stays is skipped by the next start.
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// Makes a folder and its parents, and notes those whose listing has changed.
fn make_folder(folder: &Path, changed: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        make_folder(parent, changed)?;
        changed.insert(parent.to_owned());
    }
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn put_entry(entry: &[u8], out: &mut Vec<u8>) {
    out.extend((entry.len() as u16).to_be_bytes());
    out.extend(entry);
}

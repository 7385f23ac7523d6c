//! Finds records. Reads what is there, published or not, and proves nothing: `verify` and `prove` do.

use std::{path::Path, time::SystemTime};

use crate::{
    audit::{
        checkpoint::Checkpoint,
        journal::{self, Frame},
        publish::CHECKPOINT,
        record::{Entry, Kind, Verdict},
        tile::{Tiles, WIDTH},
    },
    error::{ErrorKind, TrustError},
};

/// What records must be; an open field is met by all.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Who asked; a `*` at the end takes all that begin so.
    pub principal: Option<String>,
    /// What was asked for, likewise.
    pub action: Option<String>,
    /// On what, likewise.
    pub resource: Option<String>,
    /// What was decided.
    pub decision: Option<Verdict>,
    /// What kind of event.
    pub kind: Option<Kind>,
    /// Not before.
    pub since: Option<SystemTime>,
    /// Before.
    pub until: Option<SystemTime>,
    /// The first place to look at.
    pub first: u64,
}

impl Query {
    /// Whether a record is looked for.
    pub fn takes(&self, entry: &Entry) -> bool {
        let record = &entry.record;
        let text = |wanted: &Option<String>, value: &str| match wanted {
            None => true,
            Some(wanted) => match wanted.strip_suffix('*') {
                Some(begin) => value.starts_with(begin),
                None => value == wanted,
            },
        };
        text(&self.principal, &record.principal)
            && text(&self.action, &record.action)
            && text(&self.resource, &record.resource)
            && self.decision.is_none_or(|decision| decision == record.decision)
            && self.kind.is_none_or(|kind| kind == record.kind)
            && self.since.is_none_or(|since| record.time >= since)
            && self.until.is_none_or(|until| record.time < until)
            && entry.seq >= self.first
    }

    /// Hands every record that is looked for to `found`, in order, until it says no.
    ///
    /// # Errors
    /// `NotFound` where there is no log, `Invalid` where a record cannot be read.
    pub fn run(&self, folder: &Path, mut found: impl FnMut(Entry) -> bool) -> Result<(), TrustError> {
        let size = published_size(folder)?;
        let mut see = |bytes: &[u8]| -> Result<bool, TrustError> {
            let entry = Entry::decode(bytes)?;
            Ok(!self.takes(&entry) || found(entry))
        };
        let tiles = Tiles::new(folder, size);
        for index in self.first / WIDTH..size.div_ceil(WIDTH) {
            for entry in tiles.entries(index)?.entries {
                if !see(&entry)? {
                    return Ok(());
                }
            }
        }
        let mut next = size;
        for (_, path) in journal::segments(folder)? {
            // A segment that has gone meanwhile is in tiles; the next question finds it there.
            let bytes = std::fs::read(path).unwrap_or_default();
            let mut rest = bytes.as_slice();
            while let Some((frame, after)) = Frame::decode(rest) {
                rest = after;
                let known = next.saturating_sub(frame.first) as usize;
                for entry in frame.entries.iter().skip(known) {
                    if !see(entry)? {
                        return Ok(());
                    }
                }
                next = next.max(frame.end());
            }
        }
        Ok(())
    }
}

fn published_size(folder: &Path) -> Result<u64, TrustError> {
    let path = folder.join(CHECKPOINT);
    match std::fs::read_to_string(&path) {
        Ok(note) => Ok(Checkpoint::parse(note.split("\n\n").next().unwrap_or_default())?.head.size),
        Err(_) if folder.join(journal::FOLDER).is_dir() => Ok(0),
        Err(error) => Err(TrustError::new(ErrorKind::NotFound, format!("`{}`: {error}", path.display()))),
    }
}

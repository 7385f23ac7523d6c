//! Checks a whole log against what was signed and what witnesses saw, and names what was changed.
//!
//! Entries are compared with the leaf hashes of the tiles, tiles with each other, and the tree at the size of every checkpoint that is
//! known: the published one, those of the history, those that witnesses cosigned. Whoever changes a record must change all of them,
//! and the log's key and the witnesses' are not in the log.

use std::{fs, path::Path};

use serde::Serialize;

use crate::{
    audit::{
        checkpoint::Checkpoint,
        merkle::{Edge, Hash, Head, fold, leaf_hash},
        note::{Note, NoteKey},
        publish::{CHECKPOINT, HISTORY},
        record::Entry,
        recover::{read_checkpoint, read_journal},
        tile::{Bundle, Tiles, WIDTH},
    },
    error::{ErrorKind, TrustError},
};

/// What a log is checked against.
pub struct Verification<'a> {
    /// The log's folder.
    pub folder: &'a Path,
    /// The log's public key, from a place that who can write the log cannot.
    pub key: &'a NoteKey,
    /// Checkpoints that witnesses cosigned, and the witnesses' keys.
    pub witnessed: &'a [(String, NoteKey)],
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Records, with those that only the journal has.
    pub records: u64,
    /// Records of them that the published checkpoint covers.
    pub published: u64,
    /// Checkpoints that the tree was compared with.
    pub checkpoints: u64,
    /// Bytes at the journal's end that are no whole frame: a write in progress, or one that a crash tore.
    pub torn_bytes: u64,
    /// What is wrong, in the order of the records.
    pub findings: Vec<Finding>,
}

/// Something that is not as it was signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was done.
    pub kind: FindingKind,
    /// First record that it concerns.
    pub first: u64,
    /// Last record that it concerns.
    pub last: u64,
    /// In words.
    pub text: String,
}

/// What was done to a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// A record is not the one that was written.
    Changed,
    /// A record was taken out.
    Missing,
    /// A record is in the place of another.
    Moved,
    /// The log ends before it should.
    Truncated,
    /// Hashes are not those of the records.
    Hashes,
    /// A checkpoint is not the log's.
    Checkpoint,
}

/// A head that the tree must have passed, and who says so.
struct Known {
    head: Head,
    source: Source,
}

enum Source {
    Published,
    /// A note of the history, which is only verified where it differs.
    History(String),
    Witness(String, u64),
}

/// Checks a log.
///
/// # Errors
/// Where there is nothing to check: no log, or a checkpoint of a witness that does not verify. What is wrong with the log is a finding.
pub fn verify(given: &Verification<'_>) -> Result<Report, TrustError> {
    let mut walk =
        Walk { key: given.key, edge: Edge::default(), known: Vec::new(), report: Report::default(), agreed: 0 };
    for (note, witness) in given.witnessed {
        walk.add_witnessed(note, witness)?;
    }
    let published = walk.published(given.folder)?;
    walk.add_history(given.folder);
    walk.known.sort_by_key(|known| std::cmp::Reverse(known.head.size));
    walk.tiles(given.folder, published);
    walk.journal(given.folder);
    if walk.edge.size() == 0 && given.folder.join("tile").exists() && walk.report.findings.is_empty() {
        let text = "there are tiles, and neither a checkpoint nor a journal that speaks of records".to_owned();
        walk.find(FindingKind::Checkpoint, 0, u64::MAX, text);
    }
    walk.end();
    walk.report.records = walk.edge.size();
    walk.report.findings.sort_by_key(|finding| (finding.first, finding.last));
    Ok(walk.report)
}

struct Walk<'a> {
    key: &'a NoteKey,
    edge: Edge,
    /// Largest first: the next to pass is last.
    known: Vec<Known>,
    report: Report,
    /// The largest size at which the tree was as signed.
    agreed: u64,
}

impl Walk<'_> {
    fn add_witnessed(&mut self, text: &str, witness: &NoteKey) -> Result<(), TrustError> {
        let note = Note::parse(text)?;
        let time_s = note.verify(witness)?;
        let head = Checkpoint::verify(text, self.key)?.head;
        self.known.push(Known { head, source: Source::Witness(witness.name().to_owned(), time_s) });
        Ok(())
    }

    /// The size of the published tree; as the log says it, where nobody can be believed.
    fn published(&mut self, folder: &Path) -> Result<u64, TrustError> {
        if !folder.join(CHECKPOINT).exists() && !folder.join("tile").exists() && !folder.join("journal").exists() {
            let text = format!("`{}` is no audit log; expected a folder with a `checkpoint`", folder.display());
            return Err(TrustError::new(ErrorKind::NotFound, text));
        }
        let head = match read_checkpoint(folder, self.key) {
            Ok(None) => return Ok(0),
            Ok(Some(checkpoint)) => checkpoint.head,
            Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
            Err(error) => {
                self.find(FindingKind::Checkpoint, 0, u64::MAX, error.to_string());
                let text = fs::read_to_string(folder.join(CHECKPOINT)).unwrap_or_default();
                let claimed = Checkpoint::parse(text.split("\n\n").next().unwrap_or_default());
                return Ok(claimed.map_or_else(|_| count_bundles(folder), |checkpoint| checkpoint.head.size));
            }
        };
        self.known.push(Known { head, source: Source::Published });
        self.report.published = head.size;
        Ok(head.size)
    }

    fn add_history(&mut self, folder: &Path) {
        let history = fs::read_to_string(folder.join(HISTORY)).unwrap_or_default();
        let notes = history.lines().filter_map(|line| serde_json::from_str::<String>(line).ok());
        for note in notes {
            let text = Note::parse(&note).ok().and_then(|parsed| Checkpoint::parse(parsed.text()).ok());
            if let Some(checkpoint) = text {
                self.known.push(Known { head: checkpoint.head, source: Source::History(note) });
            }
        }
    }

    fn tiles(&mut self, folder: &Path, size: u64) {
        let tiles = Tiles::new(folder, size);
        for index in 0..size.div_ceil(WIDTH) {
            let (first, width) = (index * WIDTH, tiles.width(0, index));
            let bundle = tiles.entries(index);
            let hashes = match (tiles.hashes(0, index), &bundle) {
                (Ok(hashes), _) => hashes,
                (Err(error), bundle) => {
                    self.find(FindingKind::Hashes, first, first + width - 1, error.to_string());
                    // The records themselves may still be those that were signed.
                    match bundle {
                        Ok(bundle) if bundle.whole => bundle.entries.iter().map(|entry| leaf_hash(entry)).collect(),
                        _ => return self.cut_off(first, size),
                    }
                }
            };
            match bundle {
                Ok(bundle) => self.bundle(first, &hashes, &bundle),
                Err(_) if (index..size.div_ceil(WIDTH)).all(|later| tiles.entries(later).is_err()) => {
                    return self.cut_off(first, size);
                }
                Err(error) => self.find(FindingKind::Missing, first, first + width - 1, error.to_string()),
            }
            self.upper(&tiles, index, &hashes);
            hashes.into_iter().for_each(|hash| self.push(hash));
        }
    }

    fn cut_off(&mut self, first: u64, size: u64) {
        let text = format!("records {first} to {} are gone: the checkpoint is of {size} records", size - 1);
        self.find(FindingKind::Truncated, first, size - 1, text);
    }

    /// Compares records with their hashes, and says what was done to those that differ.
    fn bundle(&mut self, first: u64, hashes: &[Hash], bundle: &Bundle) {
        let same = |(entry, hash): (&Vec<u8>, &Hash)| leaf_hash(entry) == *hash;
        if bundle.whole && bundle.entries.iter().zip(hashes).all(same) {
            return;
        }
        let places: Vec<Option<u64>> = bundle.entries.iter().map(|entry| Entry::seq_of(entry)).collect();
        let range = first..first + hashes.len() as u64;
        let missing: Vec<u64> = range.clone().filter(|seq| !places.contains(&Some(*seq))).collect();
        let dropped = bundle.entries.len() < hashes.len() || places.iter().flatten().any(|seq| !range.contains(seq));
        for &seq in missing.iter().filter(|_| dropped) {
            self.find(FindingKind::Missing, seq, seq, format!("record {seq} was taken out"));
        }
        let mut before = None;
        for (at, (entry, place)) in (first..).zip(bundle.entries.iter().zip(&places)) {
            let own = place.filter(|seq| range.contains(seq)).unwrap_or(at);
            let original = hashes.get((own - first) as usize).is_some_and(|hash| leaf_hash(entry) == *hash);
            // What moved up from the next bundle, where something was taken out of this one, is looked at there.
            let next = dropped && place.is_some_and(|seq| !range.contains(&seq));
            if !original && !next {
                self.find(FindingKind::Changed, own, own, format!("record {own} is not the one that was written"));
            } else if original && before.is_some_and(|before| before > own) {
                self.find(
                    FindingKind::Moved,
                    own,
                    own,
                    format!("record {own} is not in its place, but in that of {at}"),
                );
            }
            before = before.max(Some(own));
        }
        if !bundle.whole && bundle.entries.len() == hashes.len() {
            let text = format!("`{}` holds more than its records", bundle.path.display());
            self.find(FindingKind::Hashes, first, range.end - 1, text);
        }
    }

    /// Compares a full tile with its hash in the level above, and that level's with the next.
    fn upper(&mut self, tiles: &Tiles<'_>, index: u64, hashes: &[Hash]) {
        let (mut level, mut index, mut hashes) = (0, index, hashes.to_vec());
        while hashes.len() as u64 == WIDTH {
            let above = tiles.hashes(level + 1, index / WIDTH);
            let stored = above.as_ref().ok().and_then(|above| above.get((index % WIDTH) as usize)).copied();
            if stored != fold(&hashes) {
                let span = 1u64 << (8 * (u32::from(level) + 1));
                let (first, last) = (index * span, (index + 1) * span - 1);
                let text = format!("hashes of records {first} to {last} are not those in the level above");
                self.find(FindingKind::Hashes, first, last, text);
            }
            // Only the last of a tile has the whole tile to compare with the next level.
            if index % WIDTH != WIDTH - 1 {
                return;
            }
            (level, index, hashes) = (level + 1, index / WIDTH, above.unwrap_or_default());
        }
    }

    fn push(&mut self, hash: Hash) {
        self.edge.push(hash);
        while let Some(known) = self.known.pop_if(|known| known.head.size <= self.edge.size()) {
            self.pass(&known);
        }
    }

    /// Compares the tree with what it was known to be at this size.
    fn pass(&mut self, known: &Known) {
        if known.head.size != self.edge.size() {
            return;
        }
        self.report.checkpoints += 1;
        if known.head.root == self.edge.root() {
            self.agreed = self.edge.size();
            return;
        }
        let who = match &known.source {
            Source::Published => "the log's checkpoint signs".to_owned(),
            Source::History(note) if Checkpoint::verify(note, self.key).is_err() => {
                let text = format!("the checkpoint of {} records in `{HISTORY}` is not the log's", known.head.size);
                return self.find(FindingKind::Checkpoint, known.head.size, known.head.size, text);
            }
            Source::History(_) => "an earlier checkpoint signs".to_owned(),
            Source::Witness(name, time_s) => format!("witness `{name}` saw at {}", time_text(*time_s)),
        };
        let (first, last) = (self.agreed, known.head.size.saturating_sub(1));
        let text = format!("among records {first} to {last} one is not what {who} for {} records", known.head.size);
        self.find(FindingKind::Changed, first, last, text);
        // One change is told once by the log's own checkpoints; a witness speaks for itself.
        self.known.retain(|later| matches!(later.source, Source::Witness(..)));
    }

    fn journal(&mut self, folder: &Path) {
        let published = self.edge.size();
        let found = match read_journal(folder, self.edge.clone(), self.key) {
            Ok(found) => found,
            // A log that goes on while it is read has moved these records into tiles.
            Err(_)
                if read_checkpoint(folder, self.key)
                    .is_ok_and(|now| now.is_some_and(|now| now.head.size > published)) =>
            {
                return;
            }
            Err(error) => return self.find(FindingKind::Changed, published, published, error.to_string()),
        };
        self.report.torn_bytes = found.recovery.cut_bytes;
        for entry in found.frames.iter().flat_map(|frame| &frame.entries) {
            self.push(leaf_hash(entry));
        }
    }

    /// What was known and was never reached is gone.
    fn end(&mut self) {
        let size = self.edge.size();
        for known in std::mem::take(&mut self.known) {
            if known.head.size == 0 {
                continue;
            }
            let last = known.head.size - 1;
            let text = match &known.source {
                Source::Published => continue,
                Source::History(note) if Checkpoint::verify(note, self.key).is_err() => continue,
                Source::History(_) => format!("records {size} to {last} are gone: the log signed {} records", last + 1),
                Source::Witness(name, time_s) => {
                    let time = time_text(*time_s);
                    format!("records {size} to {last} are gone: witness `{name}` saw {} records at {time}", last + 1)
                }
            };
            self.find(FindingKind::Truncated, size, last, text);
        }
    }

    /// Adds a finding; one that goes on where the last of its kind ended is joined with it.
    fn find(&mut self, kind: FindingKind, first: u64, last: u64, text: String) {
        match self.report.findings.last_mut() {
            Some(before) if before.kind == kind && before.last.checked_add(1) == Some(first) => {
                before.last = last;
                before.text = format!("records {} to {last} are not as they were written: {text}", before.first);
            }
            Some(before) if before.kind == FindingKind::Truncated && kind == before.kind => {
                before.last = before.last.max(last);
            }
            _ => self.report.findings.push(Finding { kind, first, last, text }),
        }
    }
}

/// How many records a log has room for, by its files alone.
fn count_bundles(folder: &Path) -> u64 {
    let full =
        |index: &u64| folder.join(super::tile::tile_path(super::tile::Content::Hashes(0), *index, WIDTH)).exists();
    (0..).take_while(full).count() as u64 * WIDTH
}

fn time_text(time_s: u64) -> String {
    let time = std::time::SystemTime::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(time_s));
    time.map_or_else(|| time_s.to_string(), |time| humantime::format_rfc3339_seconds(time).to_string())
}

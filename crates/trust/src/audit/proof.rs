//! Proofs that are checked without the log: that a record is in it (C2SP tlog-proof), and that it only grew (the body of C2SP tlog-witness).

use std::{fs, path::Path};

use base64::prelude::{BASE64_STANDARD, Engine as _};

use crate::{
    audit::{
        checkpoint::Checkpoint,
        merkle::{Hash, Head, leaf_hash, prove_consistency, prove_inclusion, verify_consistency, verify_inclusion},
        note::{Note, NoteKey},
        publish::CHECKPOINT,
        tile::{Tiles, WIDTH},
    },
    error::{ErrorKind, TrustError},
};

const PROOF_HEADER: &str = "c2sp.org/tlog-proof@v1";
/// A tree of 2^63 entries has no longer proofs.
const HASHES_MAX: usize = 64;

/// A published log, read for proofs.
pub struct Published<'a> {
    folder: &'a Path,
    note: String,
    head: Head,
}

impl<'a> Published<'a> {
    /// The log in `folder` at its checkpoint, which `key` must have signed.
    ///
    /// # Errors
    /// `NotFound` where it has none, `Unverified` where it is another's.
    pub fn open(folder: &'a Path, key: &NoteKey) -> Result<Self, TrustError> {
        let path = folder.join(CHECKPOINT);
        let note = fs::read_to_string(&path)
            .map_err(|error| TrustError::new(ErrorKind::NotFound, format!("`{}`: {error}", path.display())))?;
        let head = Checkpoint::verify(&note, key)?.head;
        Ok(Self { folder, note, head })
    }

    /// The signed checkpoint.
    pub fn note(&self) -> &str {
        &self.note
    }

    /// Size and hash.
    pub fn head(&self) -> Head {
        self.head
    }

    /// The proof that record `seq` is in the log, with the record itself as its extra data.
    ///
    /// # Errors
    /// `NotFound` where the log has no such record, `Tampered` where it cannot be proved.
    pub fn prove(&self, seq: u64) -> Result<String, TrustError> {
        let tiles = Tiles::new(self.folder, self.head.size);
        let hashes = prove_inclusion(seq, self.head.size, &tiles)?;
        let entries = tiles.entries(seq / WIDTH)?.entries;
        let entry = entries.get((seq % WIDTH) as usize);
        let entry =
            entry.filter(|entry| verify_inclusion(leaf_hash(entry), seq, self.head.size, &self.head.root, &hashes));
        let entry = entry.ok_or_else(|| {
            let text =
                format!("record `{seq}` is not the one that was signed; `edgeward trust audit verify` tells more");
            TrustError::new(ErrorKind::Tampered, text)
        })?;
        let lines = hash_lines(&hashes);
        Ok(format!("{PROOF_HEADER}\nextra {}\nindex {seq}\n{lines}\n{}", BASE64_STANDARD.encode(entry), self.note))
    }

    /// The proof that this log only grew since it had `old` records, as witnesses take it.
    ///
    /// # Errors
    /// `NotFound` where the log has fewer.
    pub fn prove_grown(&self, old: u64) -> Result<String, TrustError> {
        let hashes = prove_consistency(old, self.head.size, &Tiles::new(self.folder, self.head.size))?;
        Ok(format!("old {old}\n{}\n{}", hash_lines(&hashes), self.note))
    }
}

/// A record that is proved to be in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proved {
    /// Its place.
    pub seq: u64,
    /// The record as it was written.
    pub entry: Vec<u8>,
    /// The log that it is in.
    pub checkpoint: Checkpoint,
}

/// Checks a proof of [`Published::prove`]; each of `witnesses` must have cosigned its checkpoint.
///
/// # Errors
/// `Invalid` where it is no proof, `Unverified` where it does not prove the record.
pub fn verify_proof(proof: &str, key: &NoteKey, witnesses: &[NoteKey]) -> Result<Proved, TrustError> {
    let rest = proof.strip_prefix(PROOF_HEADER).and_then(|rest| rest.strip_prefix('\n'));
    let rest = rest.ok_or_else(|| invalid(&format!("its first line is not `{PROOF_HEADER}`")))?;
    let extra = rest.strip_prefix("extra ").and_then(|rest| rest.split_once('\n'));
    let (extra, rest) = extra.ok_or_else(|| invalid("it has no record; expected it in a line `extra`"))?;
    let entry = BASE64_STANDARD.decode(extra).map_err(|_| invalid("its record is not base64"))?;
    let (seq, hashes, note) = numbered_hashes(rest, "index ")?;
    let checkpoint = Checkpoint::verify(note, key)?;
    let parsed = Note::parse(note)?;
    for witness in witnesses {
        parsed.verify(witness)?;
    }
    let Head { size, root } = checkpoint.head;
    if !verify_inclusion(leaf_hash(&entry), seq, size, &root, &hashes) {
        let text = format!("the proof does not show the record to be number {seq} of the log's {size}");
        return Err(TrustError::new(ErrorKind::Unverified, text));
    }
    Ok(Proved { seq, entry, checkpoint })
}

/// Checks a proof of [`Published::prove_grown`] against an older checkpoint of the log, and returns the newer.
///
/// # Errors
/// `Invalid` where it is no proof, `Unverified` where the log was rewritten between the two.
pub fn verify_grown(proof: &str, old: &Head, key: &NoteKey) -> Result<Checkpoint, TrustError> {
    let (size, hashes, note) = numbered_hashes(proof, "old ")?;
    let checkpoint = Checkpoint::verify(note, key)?;
    if size != old.size || !verify_consistency(old, &checkpoint.head, &hashes) {
        let text = format!(
            "the log of {} records does not begin with the {} of the older checkpoint",
            checkpoint.head.size, old.size
        );
        return Err(TrustError::new(ErrorKind::Unverified, text));
    }
    Ok(checkpoint)
}

fn hash_lines(hashes: &[Hash]) -> String {
    hashes.iter().map(|hash| BASE64_STANDARD.encode(hash) + "\n").collect()
}

/// Reads `PREFIX NUMBER`, lines of hashes, an empty line, and what follows.
fn numbered_hashes<'a>(text: &'a str, prefix: &str) -> Result<(u64, Vec<Hash>, &'a str), TrustError> {
    let malformed =
        || invalid(&format!("expected a line `{prefix}NUMBER`, hashes in base64, an empty line and a checkpoint"));
    let (number, mut rest) = text.strip_prefix(prefix).and_then(|rest| rest.split_once('\n')).ok_or_else(malformed)?;
    let number = number.parse::<u64>().ok().filter(|n| n.to_string() == number).ok_or_else(malformed)?;
    let mut hashes = Vec::new();
    loop {
        let (line, after) = rest.split_once('\n').ok_or_else(malformed)?;
        rest = after;
        if line.is_empty() {
            return Ok((number, hashes, rest));
        }
        let hash = BASE64_STANDARD.decode(line).ok().and_then(|bytes| bytes.try_into().ok());
        hashes.push(hash.filter(|_| hashes.len() < HASHES_MAX).ok_or_else(malformed)?);
    }
}

fn invalid(why: &str) -> TrustError {
    TrustError::new(ErrorKind::Invalid, format!("not a proof of an audit log: {why}"))
}

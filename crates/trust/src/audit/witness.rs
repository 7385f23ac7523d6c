//! A second party that remembers how far a log was, and signs for it: what was witnessed cannot be taken back unseen.
//!
//! [`Witness`] is that party, for a log whose files it can read. [`submit`] asks a witness of the network by C2SP tlog-witness. Both
//! give the checkpoint with the cosignature, which has to be kept where whoever writes the log cannot write.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::{
    audit::{
        checkpoint::Checkpoint,
        log::ed25519_public,
        merkle::{Head, empty_hash},
        note::{Note, NoteKey, SignatureType},
        proof::{Published, verify_grown},
        record::Sha256Digest,
    },
    error::{ErrorKind, TrustError},
    file::replace,
    keys::KeyProvider,
};

/// The longest answer of a witness that is read.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Cosigns checkpoints of logs that only grew since it saw them last.
pub struct Witness {
    key: NoteKey,
    id: String,
    provider: Arc<dyn KeyProvider>,
    memory: PathBuf,
}

impl Witness {
    /// A witness named `name` with the Ed25519 key `id`, which must sign nothing else; `memory` is the folder where it remembers.
    ///
    /// # Errors
    /// `Invalid` where the key is no Ed25519 key.
    pub fn new(name: &str, provider: Arc<dyn KeyProvider>, id: &str, memory: &Path) -> Result<Self, TrustError> {
        let key = NoteKey::new(name, SignatureType::Witness, ed25519_public(provider.as_ref(), id)?)?;
        Ok(Self { key, id: id.to_owned(), provider, memory: memory.to_owned() })
    }

    /// The public key of its cosignatures.
    pub fn key(&self) -> &NoteKey {
        &self.key
    }

    /// Cosigns the checkpoint of the log in `folder` at `time_s` since 1970, and remembers it.
    ///
    /// # Errors
    /// `Tampered` where the log is shorter than, or does not begin with, what was cosigned last; `Unverified` where `log_key` did not sign it.
    pub fn cosign(&self, folder: &Path, log_key: &NoteKey, time_s: u64) -> Result<String, TrustError> {
        let published = Published::open(folder, log_key)?;
        let seen = self.seen(log_key)?;
        let now = published.head();
        if seen.size > now.size {
            let text = format!("the log has {} records; {} were witnessed before", now.size, seen.size);
            return Err(TrustError::new(ErrorKind::Tampered, text));
        }
        let grown = published.prove_grown(seen.size).and_then(|proof| verify_grown(&proof, &seen, log_key));
        grown.map_err(|error| {
            let text =
                format!("the log is not a continuation of the {} records that were witnessed: {error}", seen.size);
            TrustError::new(ErrorKind::Tampered, text)
        })?;
        let text = Note::parse(published.note())?.text().to_owned();
        let line = self.key.sign(&text, time_s, |message| self.provider.sign(&self.id, message))?;
        let cosigned = format!("{}{line}", published.note());
        self.remember(log_key, &cosigned)?;
        Ok(cosigned)
    }

    fn path(&self, log_key: &NoteKey) -> PathBuf {
        self.memory.join(Sha256Digest::of(log_key.name().as_bytes()).to_string())
    }

    /// What it cosigned last of a log.
    fn seen(&self, log_key: &NoteKey) -> Result<Head, TrustError> {
        let path = self.path(log_key);
        match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Head { size: 0, root: empty_hash() }),
            Err(error) => Err(unavailable(&path, &error)),
            Ok(note) => {
                Note::parse(&note)?.verify(&self.key)?;
                Ok(Checkpoint::verify(&note, log_key)?.head)
            }
        }
    }

    fn remember(&self, log_key: &NoteKey, note: &str) -> Result<(), TrustError> {
        let path = self.path(log_key);
        let written = fs::create_dir_all(&self.memory).and_then(|()| replace(&path, note.as_bytes(), true));
        written.map_err(|error| unavailable(&path, &error))
    }
}

/// Asks the witness at `url` (its submission prefix) to cosign the log in `folder`, and returns the checkpoint with its cosignature.
/// Blocks; must not run on an asynchronous runtime's thread.
///
/// # Errors
/// `Unavailable` where the witness does not answer, `Unverified` where it refuses or did not sign with `witness`.
pub fn submit(folder: &Path, log_key: &NoteKey, url: &str, witness: &NoteKey) -> Result<String, TrustError> {
    let published = Published::open(folder, log_key)?;
    let client = reqwest::blocking::Client::builder()
        .timeout(TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| no_answer(url, &error))?;
    let url = format!("{}/add-checkpoint", url.trim_end_matches('/'));
    let (mut status, mut answer) = post(&client, &url, published.prove_grown(0)?)?;
    if status == reqwest::StatusCode::CONFLICT
        && let Ok(size) = answer.trim_end().parse::<u64>()
    {
        (status, answer) = post(&client, &url, published.prove_grown(size)?)?;
    }
    if status != reqwest::StatusCode::OK {
        let text = format!("witness `{}` refused with {status}: {}", witness.name(), answer.trim_end());
        return Err(TrustError::new(ErrorKind::Unverified, text));
    }
    let cosigned = format!("{}{answer}", published.note());
    Note::parse(&cosigned)?.verify(witness)?;
    Ok(cosigned)
}

fn post(
    client: &reqwest::blocking::Client,
    url: &str,
    body: String,
) -> Result<(reqwest::StatusCode, String), TrustError> {
    let answer = client.post(url).body(body).send().map_err(|error| no_answer(url, &error))?;
    let status = answer.status();
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(answer, ANSWER_BYTES_MAX), &mut text)
        .map_err(|error| TrustError::new(ErrorKind::Unavailable, format!("witness at `{url}`: {error}")))?;
    Ok((status, text))
}

fn no_answer(url: &str, error: &reqwest::Error) -> TrustError {
    TrustError::new(ErrorKind::Unavailable, format!("witness at `{url}` does not answer: {error}"))
}

fn unavailable(path: &Path, error: &io::Error) -> TrustError {
    TrustError::new(ErrorKind::Unavailable, format!("`{}`: {error}", path.display()))
}

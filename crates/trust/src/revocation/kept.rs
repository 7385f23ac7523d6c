//! Revocations of an administrator's calls, kept in a file: an end of the server forgives nobody. Servers that share the file follow it.
//!
//! Sessions are not kept: the key that signs them ends with the server, and they with it.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::Revoked;
use crate::{
    ErrorKind, Thumbprint, TrustError,
    file::{read_if_there, replace},
};

/// The file within an authority's folder.
pub const KEPT: &str = "revoked-callers.json";
/// Most that are kept; the file is written whole with each.
const ENTRIES_MAX: usize = 100_000;
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Others hold the lock for as long as one write takes.
const LOCK_TRIES: usize = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The file.
#[derive(Clone, Debug)]
pub struct Kept {
    path: PathBuf,
}

/// Until when each is in force; for ever where none.
pub type KeptRevocations = HashMap<Revoked, Option<SystemTime>>;

/// A revocation as it is written down.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    principal: Option<String>,
    /// Thumbprint as tokens spell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<String>,
}

impl Kept {
    /// The file at a path, which need not be there yet.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is in force at `now`; nothing where there is no file.
    ///
    /// # Errors
    /// `Invalid` where it cannot be understood, `Unavailable` where it cannot be read.
    pub fn read(&self, now: SystemTime) -> Result<KeptRevocations, TrustError> {
        let text = read_if_there(&self.path, FILE_BYTES_MAX).map_err(|error| self.unread(&error))?;
        let Some(text) = text else { return Ok(HashMap::new()) };
        let entries: Vec<Entry> = serde_json::from_slice(&text).map_err(|error| self.invalid(&error.to_string()))?;
        let mut found = HashMap::new();
        for entry in entries {
            let (what, until) = entry.read().map_err(|why| self.invalid(&why))?;
            if until.is_none_or(|until| until > now) {
                found.insert(what, until);
            }
        }
        Ok(found)
    }

    /// Keeps a revocation; the longer of two of the same holds. True where it was written: sessions are not.
    ///
    /// # Errors
    /// Those of [`Kept::read`]; `Unavailable` where the file cannot be written or is full.
    pub fn add(&self, what: Revoked, until: Option<SystemTime>, now: SystemTime) -> Result<bool, TrustError> {
        if matches!(what, Revoked::Session(_)) {
            return Ok(false);
        }
        self.change(now, |kept| {
            let until = match (kept.get(&what), until) {
                (Some(None), _) | (_, None) => None,
                (Some(Some(old)), Some(new)) => Some(new.max(*old)),
                (None, new) => new,
            };
            kept.insert(what, until) != Some(until)
        })
    }

    /// Forgets a revocation; true where there was one.
    ///
    /// # Errors
    /// Those of [`Kept::add`].
    pub fn lift(&self, what: &Revoked, now: SystemTime) -> Result<bool, TrustError> {
        self.change(now, |kept| kept.remove(what).is_some())
    }

    /// Writes revocations again after the file was taken away; what others have written meanwhile stays.
    ///
    /// # Errors
    /// Those of [`Kept::add`].
    pub fn restore(&self, before: &KeptRevocations, now: SystemTime) -> Result<(), TrustError> {
        self.change(now, |kept| {
            for (what, until) in before {
                kept.entry(what.clone()).or_insert(*until);
            }
            true
        })?;
        Ok(())
    }

    /// Reads, changes and writes while nobody else does.
    fn change(&self, now: SystemTime, change: impl FnOnce(&mut KeptRevocations) -> bool) -> Result<bool, TrustError> {
        let _lock = self.lock()?;
        let mut kept = self.read(now)?;
        if !change(&mut kept) {
            return Ok(false);
        }
        if kept.len() > ENTRIES_MAX {
            let text = format!("it holds {ENTRIES_MAX} revocations, which is the most; lift some, or give them an end");
            return Err(self.unavailable(&io::Error::other(text)));
        }
        let mut entries: Vec<Entry> = kept.iter().filter_map(|(what, until)| Entry::of(what, *until)).collect();
        entries.sort_by(|a, b| (&a.principal, &a.key, &a.serial).cmp(&(&b.principal, &b.key, &b.serial)));
        let text = serde_json::to_vec_pretty(&entries).map_err(|error| self.invalid(&error.to_string()))?;
        replace(&self.path, &text, true).map_err(|error| self.unavailable(&error))?;
        Ok(true)
    }

    fn lock(&self) -> Result<fs::File, TrustError> {
        let file =
            fs::File::create(self.path.with_added_extension("lock")).map_err(|error| self.unavailable(&error))?;
        for _ in 0..LOCK_TRIES {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(fs::TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
                Err(fs::TryLockError::Error(error)) => return Err(self.unavailable(&error)),
            }
        }
        Err(self.unavailable(&io::Error::other("another process changes it")))
    }

    fn unread(&self, error: &io::Error) -> TrustError {
        match error.kind() {
            io::ErrorKind::FileTooLarge => self.invalid(&error.to_string()),
            _ => self.unavailable(error),
        }
    }

    fn invalid(&self, why: &str) -> TrustError {
        TrustError::new(ErrorKind::Invalid, format!("`{}`: {why}", self.path.display()))
    }

    fn unavailable(&self, error: &io::Error) -> TrustError {
        TrustError::new(ErrorKind::Unavailable, format!("`{}`: {error}", self.path.display()))
    }
}

impl Entry {
    /// None of a session.
    fn of(what: &Revoked, until: Option<SystemTime>) -> Option<Self> {
        // The years that RFC 3339 can write; whatever ends later ends never.
        let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
        let until = until.filter(|until| *until <= last);
        // To the next second: shorter than it was meant it must not be.
        let until = until.map(|until| humantime::format_rfc3339_seconds(until + Duration::from_nanos(999_999_999)));
        let until = until.map(|until| until.to_string());
        let (mut principal, mut key, mut serial) = (None, None, None);
        match what {
            Revoked::Principal(id) => principal = Some(id.clone()),
            Revoked::Key(thumbprint) => key = Some(thumbprint.to_base64url()),
            Revoked::Serial(number) => serial = Some(number.clone()),
            Revoked::Session(_) => return None,
        }
        Some(Self { principal, key, serial, until })
    }

    fn read(self) -> Result<(Revoked, Option<SystemTime>), String> {
        let until = self.until.map(|text| {
            humantime::parse_rfc3339(&text)
                .map_err(|_| format!("`until = {text}`; expected a time as `2026-11-25T10:00:00Z`"))
        });
        let key = |text: String| {
            let read = Thumbprint::from_base64url(&text);
            read.map(Revoked::Key).ok_or_else(|| format!("key `{text}`; expected SHA-256 in base64url"))
        };
        let what = match (self.principal, self.key, self.serial) {
            (Some(id), None, None) => Revoked::Principal(id),
            (None, Some(text), None) => key(text)?,
            (None, None, Some(number)) => Revoked::serial(&number).map_err(|error| error.to_string())?,
            _ => return Err("a revocation names not one thing; expected `principal`, `key` or `serial`".to_owned()),
        };
        Ok((what, until.transpose()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_revoked_is_there_again() {
        let folder = tempfile::tempdir().unwrap();
        let (kept, now) = (Kept::at(folder.path().join(KEPT)), SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 31));
        let later = |seconds| Some(now + Duration::from_secs(seconds));
        assert!(kept.read(now).unwrap().is_empty());
        let (ward, lost) = (Revoked::Principal("spiffe://a/ward".to_owned()), Revoked::Key(Thumbprint([7; 32])));
        let serial = Revoked::Serial("0a".to_owned());
        assert!(kept.add(ward.clone(), None, now).unwrap());
        assert!(kept.add(lost.clone(), later(60), now).unwrap());
        assert!(!kept.add(lost.clone(), later(30), now).unwrap(), "the longer holds");
        assert!(kept.add(serial.clone(), later(10), now).unwrap());
        assert!(!kept.add(Revoked::Session("s".to_owned()), None, now).unwrap());
        let again = Kept::at(kept.path());
        let expected = [(ward.clone(), None), (lost, later(60)), (serial, later(10))];
        assert_eq!(again.read(now).unwrap(), expected.into());
        assert_eq!(again.read(now + Duration::from_secs(60)).unwrap(), [(ward.clone(), None)].into());
        assert!(again.lift(&ward, now).unwrap() && !again.lift(&ward, now).unwrap());
        assert_eq!(kept.read(now).unwrap().len(), 2);
    }

    #[test]
    fn a_damaged_file_forgives_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::at(folder.path().join(KEPT));
        for (text, expected) in [
            ("[{}]", "names not one thing"),
            ("[{\"principal\":\"a\",\"serial\":\"1\"}]", "names not one thing"),
            ("[{\"key\":\"abc\"}]", "key `abc`"),
            ("[{\"serial\":\"1\",\"until\":\"soon\"}]", "`until = soon`"),
            ("[{\"who\":\"a\"}]", "unknown field"),
            ("", "EOF"),
        ] {
            fs::write(kept.path(), text).unwrap();
            let now = SystemTime::UNIX_EPOCH;
            let error = kept.read(now).unwrap_err();
            assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains(expected), "{text}: {error}");
            assert!(kept.add(Revoked::Serial("2".to_owned()), None, now).is_err());
            assert_eq!(fs::read_to_string(kept.path()).unwrap(), text);
        }
    }
}

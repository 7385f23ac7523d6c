//! Who and what was revoked.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, Hash, RandomState},
    sync::atomic::{AtomicUsize, Ordering},
    time::SystemTime,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::{ErrorKind, Principal, Thumbprint, TrustError, identity::spiffe::SpiffeId};

const SHARDS: usize = 64;

/// What is revoked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Revoked {
    /// A principal by its ID: all its sessions, credentials and streams.
    Principal(String),
    /// One session by its ID.
    Session(String),
    /// Whatever is bound to a key: a lost device.
    Key(Thumbprint),
    /// A certificate by its serial number in hexadecimal, as its authority publishes it.
    Serial(String),
}

impl Revoked {
    /// A principal by the ID that its credentials make.
    ///
    /// # Errors
    /// `Invalid` for what no credential makes an ID of: it would revoke nobody.
    pub fn principal(id: &str) -> Result<Self, TrustError> {
        let wrong = |why: &str| {
            let text = format!(
                "principal `{}`: {why}; expected an ID as the audit log has it: `spiffe://DOMAIN/PATH`, `ISSUER#SUBJECT`, `arn:…` or `local:NAME`",
                id.escape_debug()
            );
            Err(TrustError::new(ErrorKind::Invalid, text))
        };
        if id.trim() != id || id.is_empty() {
            return wrong("it is empty, or has spaces around it");
        }
        if id.starts_with("spiffe://") {
            return match SpiffeId::parse(id) {
                Ok(_) => Ok(Self::Principal(id.to_owned())),
                Err(error) => wrong(&error.to_string()),
            };
        }
        let whole = |rest: &str| !rest.is_empty();
        let named = id.strip_prefix("arn:").or_else(|| id.strip_prefix("local:")).is_some_and(whole)
            || id.split_once('#').is_some_and(|(issuer, subject)| whole(issuer) && whole(subject));
        if named { Ok(Self::Principal(id.to_owned())) } else { wrong("no caller has such an ID") }
    }

    /// A certificate by its serial number in hexadecimal: of either case, with colons or without, as tools print it.
    ///
    /// # Errors
    /// `Invalid` where it is no number of at most 20 bytes (RFC 5280 section 4.1.2.2).
    pub fn serial(text: &str) -> Result<Self, TrustError> {
        let digits: String = text.chars().filter(|letter| *letter != ':').collect();
        let plain = digits.strip_prefix("0x").unwrap_or(&digits);
        if plain.is_empty() || plain.len() > SERIAL_DIGITS_MAX || !plain.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let text = format!("serial number `{}`; expected hexadecimal of at most 20 bytes", text.escape_debug());
            return Err(TrustError::new(ErrorKind::Invalid, text));
        }
        Ok(Self::Serial(canonical_serial(plain)))
    }
}

/// Twenty bytes, and the zero that DER puts before a first bit.
const SERIAL_DIGITS_MAX: usize = 42;

/// Hexadecimal in small letters of whole bytes, without leading zero bytes.
pub(crate) fn canonical_serial(hex: &str) -> String {
    let number = hex.trim_start_matches('0').to_ascii_lowercase();
    match number.len() {
        0 => "00".to_owned(),
        length if length.is_multiple_of(2) => number,
        _ => format!("0{number}"),
    }
}

/// The revocations in force. Reading takes no lock; writing copies one of 64 parts.
pub struct Revocations {
    shards: Vec<ArcSwap<Entries>>,
    writing: Mutex<()>,
    hasher: RandomState,
    entries: AtomicUsize,
    entries_max: usize,
}

/// Until when each is in force; for ever where none.
type Entries = HashMap<Revoked, Option<SystemTime>>;

impl Revocations {
    /// An empty list for at most `entries_max` revocations.
    pub fn new(entries_max: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| ArcSwap::default()).collect(),
            writing: Mutex::new(()),
            hasher: RandomState::new(),
            entries: AtomicUsize::new(0),
            entries_max,
        }
    }

    /// Revokes until a time (the end of what it is about, after which it is refused anyway), or for ever.
    ///
    /// # Errors
    /// `Unavailable` where the list is full.
    pub fn add(&self, what: Revoked, until: Option<SystemTime>, now: SystemTime) -> Result<(), TrustError> {
        let _one = self.writing.lock();
        let Some(shard) = self.shard(&what) else { return Err(full(self.entries_max)) };
        let mut entries = Entries::clone(&shard.load());
        let before = entries.len();
        entries.retain(|_, until| until.is_none_or(|until| until > now));
        let until = match (entries.get(&what), until) {
            // The longer of two revocations holds.
            (Some(None), _) | (_, None) => None,
            (Some(Some(old)), Some(new)) => Some(new.max(*old)),
            (None, new) => new,
        };
        entries.insert(what, until);
        let total = self.entries.load(Ordering::Relaxed) + entries.len() - before;
        if total > self.entries_max {
            return Err(full(self.entries_max));
        }
        self.entries.store(total, Ordering::Relaxed);
        shard.store(entries.into());
        Ok(())
    }

    /// Lifts a revocation; true where there was one.
    pub fn lift(&self, what: &Revoked) -> bool {
        let _one = self.writing.lock();
        let Some(shard) = self.shard(what) else { return false };
        let mut entries = Entries::clone(&shard.load());
        let found = entries.remove(what).is_some();
        self.entries.fetch_sub(usize::from(found), Ordering::Relaxed);
        shard.store(entries.into());
        found
    }

    /// Refuses a principal that was revoked, or whose session or key was.
    ///
    /// # Errors
    /// `Denied`, naming what was revoked.
    pub fn check(&self, principal: &Principal, now: SystemTime) -> Result<(), TrustError> {
        if self.entries.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        let session = principal.session().map(|id| Revoked::Session(id.to_owned()));
        let keys = principal.keys().map(Revoked::Key);
        let serial = principal.serial().map(|serial| Revoked::Serial(serial.to_owned()));
        for what in [Some(Revoked::Principal(principal.id.clone())), session, serial].into_iter().flatten().chain(keys)
        {
            if self.holds(&what, now) {
                return Err(TrustError::new(ErrorKind::Denied, format!("{what} was revoked")));
            }
        }
        Ok(())
    }

    /// True where it is revoked at that time.
    pub fn holds(&self, what: &Revoked, now: SystemTime) -> bool {
        let until = self.shard(what).and_then(|shard| shard.load().get(what).copied());
        until.is_some_and(|until| until.is_none_or(|until| until > now))
    }

    fn shard(&self, what: &Revoked) -> Option<&ArcSwap<Entries>> {
        let hash = self.hasher.hash_one(what);
        self.shards.get((hash % SHARDS as u64) as usize)
    }
}

fn full(entries_max: usize) -> TrustError {
    TrustError::new(
        ErrorKind::Unavailable,
        format!("list of revocations is full at {entries_max}: lift some, or give them an end"),
    )
}

impl std::fmt::Display for Revoked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Principal(id) => write!(f, "principal `{id}`"),
            Self::Session(id) => write!(f, "session `{id}`"),
            Self::Key(key) => write!(f, "key `{key:?}`"),
            Self::Serial(serial) => write!(f, "certificate `{serial}`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_number_is_the_same_however_it_is_spelt() {
        for text in ["491ad3c6", "491AD3C6", "49:1A:D3:C6", "00491ad3c6", "0x491ad3c6"] {
            assert_eq!(Revoked::serial(text).unwrap(), Revoked::Serial("491ad3c6".to_owned()), "{text}");
        }
        assert_eq!(Revoked::serial("a").unwrap(), Revoked::Serial("0a".to_owned()));
        assert_eq!(Revoked::serial("0").unwrap(), Revoked::Serial("00".to_owned()));
        for text in ["", ":", "serial=49", "49 1a", "4.5", &"f".repeat(43)] {
            assert_eq!(Revoked::serial(text).unwrap_err().kind(), ErrorKind::Invalid, "{text}");
        }
    }

    #[test]
    fn what_is_nobodys_id_is_refused() {
        for id in ["spiffe://a.example/ward/scanner", "https://login.example#anna", "arn:aws:sts::1:assumed-role/r/s"] {
            assert_eq!(Revoked::principal(id).unwrap(), Revoked::Principal(id.to_owned()));
        }
        let wrong =
            ["", "ward/scanner", "spiffe://a.example/ward/", "Spiffe://a.example/w", " local:a", "local:", "#a", "a#"];
        for id in wrong {
            let error = Revoked::principal(id).unwrap_err();
            assert!(
                error.kind() == ErrorKind::Invalid && error.to_string().contains("expected an ID"),
                "{id}: {error}"
            );
        }
    }
}

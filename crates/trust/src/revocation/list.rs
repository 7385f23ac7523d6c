//! Who and what was revoked.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, Hash, RandomState},
    sync::atomic::{AtomicUsize, Ordering},
    time::SystemTime,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::{ErrorKind, Principal, Thumbprint, TrustError};

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
        let key = principal.bound_to.map(Revoked::Key);
        let serial = principal.serial().map(|serial| Revoked::Serial(serial.to_owned()));
        for what in [Some(Revoked::Principal(principal.id.clone())), session, key, serial].into_iter().flatten() {
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

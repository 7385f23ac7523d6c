//! What may be shown once only: proofs and pre-signed requests that were seen.

use std::{
    collections::{HashSet, VecDeque},
    time::SystemTime,
};

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use super::jose::unverified;
use crate::{ErrorKind, TrustError};

const SHARDS: usize = 64;

/// Remembers identifiers until they would be refused for their age anyway. It never forgets early: where it is full, what is new is refused.
///
/// Entries are spread by their owner, so that one client that fills its share does not shut out most others.
pub struct ReplayCache {
    shards: Vec<Mutex<Shard>>,
    shard_entries_max: usize,
}

#[derive(Default)]
struct Shard {
    seen: HashSet<[u8; 32]>,
    order: VecDeque<(SystemTime, [u8; 32])>,
}

impl ReplayCache {
    /// A memory for about `entries_max` identifiers (at 100 bytes each).
    pub fn new(entries_max: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, shard_entries_max: entries_max.div_ceil(SHARDS).max(1) }
    }

    /// Takes an identifier of an owner, which is needed until `until`.
    ///
    /// # Errors
    /// `Unverified` where it was taken before, `Unavailable` where there is no room.
    pub fn take(&self, owner: &[u8], id: &[u8], until: SystemTime, now: SystemTime) -> Result<(), TrustError> {
        let owner: [u8; 32] = Sha256::digest(owner).into();
        let key: [u8; 32] = Sha256::new().chain_update(owner).chain_update(id).finalize().into();
        let shard = self.shards.get(usize::from(owner[0]) % SHARDS);
        let Some(mut shard) = shard.map(Mutex::lock) else {
            return Err(TrustError::new(ErrorKind::Unavailable, "no memory for proofs"));
        };
        shard.forget_before(now);
        if shard.seen.contains(&key) {
            return Err(unverified("proof was used before"));
        }
        if shard.order.len() >= self.shard_entries_max {
            return Err(TrustError::new(ErrorKind::Unavailable, "too many proofs within their time of validity"));
        }
        shard.seen.insert(key);
        shard.order.push_back((until, key));
        Ok(())
    }

    /// How many identifiers are held.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().order.len()).sum()
    }

    /// True where none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Shard {
    /// Entries come nearly in the order of their ends; one that ends later holds those behind it a little longer.
    fn forget_before(&mut self, now: SystemTime) {
        while let Some((until, key)) = self.order.front()
            && *until < now
        {
            self.seen.remove(key);
            self.order.pop_front();
        }
    }
}

//! The streams that are open now, and their cutting.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::list::{Revocations, Revoked};
use crate::{ErrorKind, Principal, TrustError};

const SHARDS: usize = 64;
/// Principals that are looked at one by one; beyond, all are.
const PENDING_MAX: usize = 1024;

/// Bounds of a registry.
#[derive(Clone, Copy, Debug)]
pub struct RegistrySettings {
    /// Open streams in all.
    pub streams_max: usize,
    /// Open streams of one principal.
    pub streams_per_principal_max: usize,
}

impl Default for RegistrySettings {
    fn default() -> Self {
        Self { streams_max: 100_000, streams_per_principal_max: 10_000 }
    }
}

/// A stream as it was permitted. `C` is what the decision was about (action, resource, attestation).
#[derive(Debug)]
pub struct Live<C> {
    /// Who has it.
    pub principal: Arc<Principal>,
    /// When its permission ends by itself: its credential's end, or an attestation's.
    pub valid_until: SystemTime,
    /// What a new decision needs.
    pub context: C,
}

/// Why a stream was cut; for its log, while its caller learns only that it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Its principal, session or key was revoked.
    Revoked,
    /// Its credential or attestation has ended.
    Ended,
    /// The decision was made again, and is no.
    Denied(String),
}

/// Something changed that permissions may depend on.
#[derive(Clone, Debug)]
pub enum Change {
    /// Another policy is in force: every stream is decided again.
    Policy,
    /// A principal's attestation aged, its score or its groups changed: its streams are decided again.
    Principal(String),
}

/// How many streams were looked at, and cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Looked at.
    pub checked: usize,
    /// Cut.
    pub cut: usize,
}

/// Open streams by principal. Each principal is behind the lock of one part in 64, which is held to note a stream, never to decide.
pub struct Registry<C> {
    revocations: Arc<Revocations>,
    shards: Vec<Mutex<Shard<C>>>,
    hasher: RandomState,
    settings: RegistrySettings,
    next: AtomicU64,
    open: AtomicUsize,
    pending: Mutex<Pending>,
    changed: Notify,
}

/// The streams of each principal by number.
type Shard<C> = HashMap<String, HashMap<u64, Entry<C>>>;

struct Entry<C> {
    live: Arc<Live<C>>,
    cut: watch::Sender<Option<Cut>>,
}

impl<C> Clone for Entry<C> {
    fn clone(&self) -> Self {
        Self { live: Arc::clone(&self.live), cut: self.cut.clone() }
    }
}

#[derive(Default)]
struct Pending {
    all: bool,
    principals: HashSet<String>,
}

/// An open stream. Dropping it takes it out of the registry.
pub struct Stream<C> {
    registry: Arc<Registry<C>>,
    principal: String,
    number: u64,
    cut: watch::Receiver<Option<Cut>>,
}

impl<C> Registry<C> {
    /// No stream.
    pub fn new(revocations: Arc<Revocations>, settings: RegistrySettings) -> Self {
        Self {
            revocations,
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            settings,
            next: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            pending: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// What was revoked.
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// Open streams.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Enters a stream that was just permitted.
    ///
    /// # Errors
    /// `Denied` where it was revoked meanwhile or has too many streams, `Expired` where it has ended already.
    pub fn enter(self: &Arc<Self>, live: Live<C>, now: SystemTime) -> Result<Stream<C>, TrustError> {
        if live.valid_until.min(live.principal.expires_at) <= now {
            return Err(TrustError::new(ErrorKind::Expired, format!("`{}` may no longer", live.principal.id)));
        }
        let live = Arc::new(live);
        let stream = self.insert(&live)?;
        // A revocation is in the list before it looks for streams: what is not in the list here will be found.
        self.revocations.check(&live.principal, now)?;
        Ok(stream)
    }

    fn insert(self: &Arc<Self>, live: &Arc<Live<C>>) -> Result<Stream<C>, TrustError> {
        let principal = live.principal.id.clone();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = watch::channel(None);
        let too_many = |max: usize, whose: &str| {
            Err(TrustError::new(ErrorKind::Denied, format!("{whose} has {max} streams open, which is the most")))
        };
        {
            let mut shard = self.shard(&principal).lock();
            if shard.get(&principal).is_some_and(|s| s.len() >= self.settings.streams_per_principal_max) {
                return too_many(self.settings.streams_per_principal_max, &format!("`{principal}`"));
            }
            if self.open.fetch_add(1, Ordering::Relaxed) >= self.settings.streams_max {
                self.open.fetch_sub(1, Ordering::Relaxed);
                return too_many(self.settings.streams_max, "the server");
            }
            let entry = Entry { live: Arc::clone(live), cut: sender };
            shard.entry(principal.clone()).or_default().insert(number, entry);
        }
        Ok(Stream { registry: Arc::clone(self), principal, number, cut: receiver })
    }

    /// Revokes and cuts at once what it affects; returns how many streams.
    ///
    /// # Errors
    /// Those of [`Revocations::add`]. The streams are cut even then.
    pub fn revoke(&self, what: Revoked, until: Option<SystemTime>, now: SystemTime) -> Result<usize, TrustError> {
        let added = self.revocations.add(what.clone(), until, now);
        let cut = |entries: Vec<Entry<C>>| entries.iter().filter(|entry| entry.cut(Cut::Revoked)).count();
        let affected = match &what {
            Revoked::Principal(id) => cut(self.of_principal(id)),
            Revoked::Session(id) => cut(self.matching(|live| live.principal.session() == Some(id))),
            Revoked::Key(key) => cut(self.matching(|live| live.principal.keys().any(|own| own == *key))),
            Revoked::Serial(serial) => cut(self.matching(|live| live.principal.serial() == Some(serial))),
        };
        added.map(|()| affected)
    }

    /// Says that something changed; [`Registry::watch`] decides again at once.
    pub fn push(&self, change: Change) {
        {
            let mut pending = self.pending.lock();
            match change {
                Change::Principal(id) if pending.principals.len() < PENDING_MAX => drop(pending.principals.insert(id)),
                Change::Policy | Change::Principal(_) => pending.all = true,
            }
        }
        self.changed.notify_one();
    }

    /// Decides again for every stream, or those of one principal; cuts what has ended, was revoked, or is denied now. Whoever cannot
    /// decide must return an error: the stream is cut.
    pub fn review(
        &self,
        principal: Option<&str>,
        now: SystemTime,
        decide: &dyn Fn(&Live<C>) -> Result<(), TrustError>,
    ) -> Sweep {
        let mut sweep = Sweep::default();
        match principal {
            Some(id) => self.judge(&self.of_principal(id), now, decide, &mut sweep),
            None => {
                for shard in &self.shards {
                    self.judge(&entries(shard, |_| true), now, decide, &mut sweep);
                }
            }
        }
        sweep
    }

    /// Reviews all streams each `period`, and those that a change affects at once. Runs until it is dropped. Between parts it lets others
    /// run.
    pub async fn watch(
        &self,
        period: Duration,
        clock: impl Fn() -> SystemTime,
        decide: impl Fn(&Live<C>) -> Result<(), TrustError>,
    ) {
        let mut timer = tokio::time::interval(period);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let by_timer = tokio::select! {
                _ = timer.tick() => true,
                () = self.changed.notified() => false,
            };
            let pending = std::mem::take(&mut *self.pending.lock());
            for id in &pending.principals {
                self.review(Some(id), clock(), &decide);
                tokio::task::yield_now().await;
            }
            if by_timer || pending.all {
                for shard in &self.shards {
                    self.judge(&entries(shard, |_| true), clock(), &decide, &mut Sweep::default());
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    fn judge(
        &self,
        entries: &[Entry<C>],
        now: SystemTime,
        decide: &dyn Fn(&Live<C>) -> Result<(), TrustError>,
        sweep: &mut Sweep,
    ) {
        for entry in entries {
            let live = &entry.live;
            let verdict = if live.valid_until.min(live.principal.expires_at) <= now {
                Some(Cut::Ended)
            } else if self.revocations.check(&live.principal, now).is_err() {
                Some(Cut::Revoked)
            } else {
                decide(live).err().map(|error| Cut::Denied(error.to_string()))
            };
            sweep.checked += 1;
            sweep.cut += usize::from(verdict.is_some_and(|cut| entry.cut(cut)));
        }
    }

    fn of_principal(&self, id: &str) -> Vec<Entry<C>> {
        self.shard(id).lock().get(id).map(|streams| streams.values().cloned().collect()).unwrap_or_default()
    }

    fn matching(&self, which: impl Fn(&Live<C>) -> bool) -> Vec<Entry<C>> {
        self.shards.iter().flat_map(|shard| entries(shard, &which)).collect()
    }

    fn shard(&self, principal: &str) -> &Mutex<Shard<C>> {
        let index = self.hasher.hash_one(principal) % SHARDS as u64;
        &self.shards[index as usize]
    }

    fn leave(&self, principal: &str, number: u64) {
        let mut shard = self.shard(principal).lock();
        if let Some(streams) = shard.get_mut(principal) {
            streams.remove(&number);
            if streams.is_empty() {
                shard.remove(principal);
            }
        }
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

fn entries<C>(shard: &Mutex<Shard<C>>, which: impl Fn(&Live<C>) -> bool) -> Vec<Entry<C>> {
    let shard = shard.lock();
    let all = shard.values().flat_map(HashMap::values);
    all.filter(|entry| which(&entry.live)).cloned().collect()
}

impl<C> Entry<C> {
    /// True where it was not cut before; the first reason stays.
    fn cut(&self, why: Cut) -> bool {
        self.cut.send_if_modified(|cut| {
            let first = cut.is_none();
            if first {
                *cut = Some(why);
            }
            first
        })
    }
}

impl<C> Stream<C> {
    /// Waits for the cut. Never returns for a stream that may go on.
    pub async fn cut(&mut self) -> Cut {
        match self.cut.wait_for(Option::is_some).await {
            Ok(cut) => cut.clone().unwrap_or(Cut::Revoked),
            // The sender lives in the registry, which this holds; if it were gone, nobody could cut any more.
            Err(_) => Cut::Revoked,
        }
    }

    /// The cut, where it has come.
    pub fn is_cut(&self) -> Option<Cut> {
        self.cut.borrow().clone()
    }
}

impl<C> Drop for Stream<C> {
    fn drop(&mut self) {
        self.registry.leave(&self.principal, self.number);
    }
}

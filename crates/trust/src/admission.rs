//! Admission: how much a principal may use of a model, by the [`Limits`] of the decision.
//!
//! One account per principal and model. Accounts lie in a sharded cache of bounded size: no lock is shared by all, and a request takes one
//! short lock of its own account. An account that has to make room for others comes back as a new one; one with requests in flight stays.
//! Time is an argument. What is used outlives the process by [`KeptUsage`].

mod account;
mod used;

use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use quick_cache::{Lifecycle, UnitWeighter, sync::Cache};
use serde::Deserialize;

use self::account::Ledger;
pub use self::used::{KeptUsage, USED, Used};
use crate::{
    ErrorKind, TrustError,
    policy::{Limits, Window},
};

/// `[trust.admission]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdmissionSettings {
    /// Accounts that are kept, each of about 250 bytes and the names of its principal and model.
    pub accounts_max: usize,
}

impl Default for AdmissionSettings {
    fn default() -> Self {
        Self { accounts_max: 262_144 }
    }
}

/// The accounts.
pub struct Admission {
    accounts: Cache<Key, Arc<Account>, UnitWeighter, RandomState, KeepInFlight>,
    /// Two independent keys, so that nobody can find two principals that share an account.
    hashes: [RandomState; 2],
}

type Key = (u64, u64);

#[derive(Default)]
struct Account {
    in_flight: AtomicU32,
    ledger: Mutex<Ledger>,
}

#[derive(Clone)]
struct KeepInFlight;

impl Lifecycle<Key, Arc<Account>> for KeepInFlight {
    type RequestState = ();

    /// Whoever looks an account up shares it from then on, under the lock of its shard, so none is dropped between look-up and use.
    fn is_pinned(&self, _: &Key, account: &Arc<Account>) -> bool {
        Arc::strong_count(account) > 1
    }
}

/// What is about to run.
#[derive(Clone, Copy, Debug)]
pub struct Demand<'a> {
    /// The principal's id.
    pub principal: &'a str,
    /// The model (its version as well where limits are meant per version).
    pub model: &'a str,
    /// Size of the request.
    pub request_bytes: u64,
    /// How long it will probably compute, as earlier runs say; zero where nothing is known.
    pub compute: Duration,
}

/// Why a request has to wait or is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The limit that was met.
    pub limit: Limit,
    /// When it is worth to ask again; `None` where the same request will never be admitted, or when is not known.
    pub retry_after: Option<Duration>,
}

/// A limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Size of a request.
    RequestBytes,
    /// Computing of one request.
    ComputePerRequest,
    /// Requests at the same time.
    Concurrent,
    /// Requests per time.
    Rate,
    /// Requests in a window.
    QueryBudget(Window),
    /// Computing in a day.
    ComputePerDay,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.limit {
            Limit::RequestBytes => "the request is larger than its principal may send",
            Limit::ComputePerRequest => "the request would compute longer than one of its principal may",
            Limit::Concurrent => "as many requests of the principal are running as may",
            Limit::Rate => "the principal sends requests faster than it may",
            Limit::QueryBudget(_) => "the principal's query budget for this model is spent",
            Limit::ComputePerDay => "the principal's computing time for today is spent",
        })?;
        self.retry_after.map_or(Ok(()), |after| write!(f, "; retry in {} ms", after.as_millis().max(1)))
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for TrustError {
    fn from(refusal: Refusal) -> Self {
        Self::new(ErrorKind::Denied, refusal.to_string())
    }
}

/// A request that may run. Dropping it ends the request; [`Permit::finish`] charges what it really computed.
#[derive(Debug)]
pub struct Permit {
    account: Arc<Account>,
    reserved: Duration,
    day: u64,
    /// Longest computing that its limits allow: whoever runs the request stops it then.
    pub compute_max: Option<Duration>,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "account with {} in flight", self.in_flight.load(Ordering::Relaxed))
    }
}

impl Admission {
    /// No accounts yet.
    pub fn new(settings: &AdmissionSettings) -> Self {
        let capacity = settings.accounts_max.max(1);
        let accounts = Cache::with(capacity, capacity as u64, UnitWeighter, RandomState::new(), KeepInFlight);
        Self { accounts, hashes: [RandomState::new(), RandomState::new()] }
    }

    /// Admits a request or says which limit it meets. A request that is refused counts nowhere.
    ///
    /// # Errors
    /// The first limit that is met, cheapest first.
    pub fn admit(&self, demand: &Demand<'_>, limits: &Limits, now: SystemTime) -> Result<Permit, Refusal> {
        let never = |limit| Refusal { limit, retry_after: None };
        if limits.request_bytes.is_some_and(|most| demand.request_bytes > most) {
            return Err(never(Limit::RequestBytes));
        }
        if limits.compute_per_request.is_some_and(|most| demand.compute > most) {
            return Err(never(Limit::ComputePerRequest));
        }
        let mut permit = Permit::enter(self.account(demand), limits).ok_or(never(Limit::Concurrent))?;
        let mut ledger = permit.account.ledger.lock();
        let charged = ledger.charge(limits, demand.compute, now)?;
        ledger.name(limits, demand);
        drop(ledger);
        (permit.reserved, permit.day) = charged;
        Ok(permit)
    }

    /// What is used at `now` where limits count it.
    pub fn used(&self, now: SystemTime) -> impl Iterator<Item = Used> {
        self.accounts.iter().filter_map(move |(_, account)| account.ledger.lock().used(now))
    }

    /// Counts what was used before, beside what was counted since.
    pub fn add(&self, used: &Used, now: SystemTime) {
        let demand =
            Demand { principal: &used.principal, model: &used.model, request_bytes: 0, compute: Duration::ZERO };
        self.account(&demand).ledger.lock().add(used, now);
    }

    /// How many accounts are kept.
    pub fn accounts(&self) -> usize {
        self.accounts.len()
    }

    fn account(&self, demand: &Demand<'_>) -> Arc<Account> {
        let [a, b] = &self.hashes;
        let asked = (demand.principal, demand.model);
        let key = (a.hash_one(asked), b.hash_one(asked));
        match self.accounts.get_or_insert_with(&key, || Ok::<_, std::convert::Infallible>(Arc::default())) {
            Ok(account) => account,
            Err(never) => match never {},
        }
    }
}

impl Permit {
    /// One more in flight, where the limit leaves room.
    fn enter(account: Arc<Account>, limits: &Limits) -> Option<Self> {
        let most = limits.concurrent.unwrap_or(u32::MAX);
        let one_more = |running: u32| (running < most).then(|| running.saturating_add(1));
        account.in_flight.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok()?;
        Some(Self { account, reserved: Duration::ZERO, day: 0, compute_max: limits.compute_per_request })
    }

    /// Charges further queries that came in the same request: a batch of 64 rows is 64 queries.
    ///
    /// # Errors
    /// The limit that they meet; then none of them is charged.
    pub fn more(&self, queries: u32, limits: &Limits, now: SystemTime) -> Result<(), Refusal> {
        match queries {
            0 => Ok(()),
            _ => self.account.ledger.lock().charge_more(limits, queries, now),
        }
    }

    /// Ends the request and charges what it computed in place of what was expected. A request that is only dropped keeps the expected charge.
    pub fn finish(self, computed: Duration) {
        self.account.ledger.lock().settle(self.reserved, computed, self.day);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.account.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests;

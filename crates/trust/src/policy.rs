//! The policy: Cedar, checked against Edgeward's schema, indexed by scope, and replaced whole while requests are decided.
//!
//! A decision is a pure function of the loaded version, the request and what was observed. Reading files is [`Sources::read`]'s; enforcing
//! is the server's.

mod context;
mod decision;
mod evaluate;
mod explain;
mod hindsight;
mod index;
mod kept;
mod listing;
mod read;
mod record;
mod rules;
mod schema;
mod sources;
mod subject;
mod terms;
mod who;

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

pub use self::{
    context::Observed,
    decision::{Decision, Effect, PolicyInfo, Reason, Request, Version},
    explain::{Explanation, Nearest, Unmet},
    hindsight::{
        CaseResult, Change, LIMIT, OBSERVED, PRINCIPAL, Simulation, past_requests, recorded_request, run_cases,
        simulate,
    },
    kept::{InForce, KeptPolicies, KeptSet, Origin, POLICIES_KEPT},
    record::{Moment, ObservedRecord, PastRequest, PrincipalRecord, RequestRecord},
    rules::Rules,
    sources::{SourceFile, Sources},
    terms::{Limits, Noise, Obligations, Output, Rate, Terms, Window},
    who::{Allowed, Who},
};
use crate::TrustError;

/// The rules in force.
pub struct Policies {
    current: ArcSwap<Rules>,
    replacing: Mutex<()>,
}

impl Policies {
    /// Loads the first version.
    ///
    /// # Errors
    /// What is wrong with the files, by place.
    pub fn new(sources: &Sources) -> Result<Self, TrustError> {
        Ok(Self { current: ArcSwap::from_pointee(Rules::compile(sources, 1)?), replacing: Mutex::new(()) })
    }

    /// The rules in force now.
    pub fn current(&self) -> Arc<Rules> {
        self.current.load_full()
    }

    /// Puts another version in force, at once and for every request that is decided from now on. The same files again change nothing.
    ///
    /// # Errors
    /// What is wrong with the files, by place; the old version stays.
    pub fn replace(&self, sources: &Sources) -> Result<Arc<Version>, TrustError> {
        let _one_at_a_time = self.replacing.lock();
        let old = self.current();
        if old.version().digest == sources.digest() {
            return Ok(Arc::clone(old.version()));
        }
        let rules = Rules::compile(sources, old.version().number + 1)?;
        let version = Arc::clone(rules.version());
        self.current.store(Arc::new(rules));
        Ok(version)
    }

    /// Decides by the rules in force; see [`Rules::decide`].
    pub fn decide(&self, request: &Request<'_>, observed: &Observed) -> Decision {
        self.current.load().decide(request, observed)
    }
}

#[cfg(test)]
mod tests;

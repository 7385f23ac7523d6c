//! Who may do something: every caller that is listed or that a policy names, and anyone of whom only a group, a tenant or nothing is known.

use std::collections::BTreeSet;

use cedar_policy::EntityUid;
use serde::Serialize;

use super::{
    context::Observed,
    decision::Decision,
    listing::shown,
    record::PrincipalRecord,
    rules::{Rules, Target},
    subject::Subject,
};
use crate::{Action, Resource, Strength, TrustError};

/// One who may, or a kind of callers who all may.
#[derive(Clone, Debug, Serialize)]
pub struct Allowed {
    /// Who.
    pub who: Who,
    /// Why.
    pub decision: Decision,
}

/// Of whom it is said.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "name")]
pub enum Who {
    /// Any verified `User` or `Workload`.
    Anyone(String),
    /// Any `User` or `Workload` of a group or tenant, even if it is in nothing else.
    AnyOf(String),
    /// A listed caller.
    Listed(String),
    /// A caller that is not listed, and that a policy names.
    Named(String),
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Anyone(kind) => write!(f, "any verified {kind}"),
            Self::AnyOf(what) => write!(f, "any {what}"),
            Self::Listed(name) | Self::Named(name) => f.write_str(name),
        }
    }
}

impl Rules {
    /// Everyone who may do an action to a resource, with credentials of some strength and under the observations given.
    ///
    /// # Errors
    /// A resource that is not listed.
    pub fn who_can(
        &self,
        action: Action,
        resource: &Resource,
        strength: Strength,
        observed: &Observed,
    ) -> Result<Vec<Allowed>, TrustError> {
        let Some(target) = self.target(action, resource)? else {
            return Err(super::sources::invalid(format!(
                "`{resource}` is not listed, so nobody may do anything to it"
            )));
        };
        let mut found = Vec::new();
        let mut ask = |who: Who, subject: Result<Subject, TrustError>| {
            if let Some(decision) = self.may(subject?, &target, observed)? {
                found.push(Allowed { who, decision });
            }
            Ok::<_, TrustError>(())
        };
        for kind in ["User", "Workload"] {
            ask(Who::Anyone(kind.to_owned()), Subject::member(kind, None, strength, &self.listing))?;
        }
        for uid in self.listing.iter() {
            match uid.type_name().basename() {
                "Group" | "Tenant" => {
                    for kind in ["User", "Workload"] {
                        let who = Who::AnyOf(format!("{kind} of {}", shown(uid)));
                        ask(who, Subject::member(kind, Some(uid), strength, &self.listing))?;
                    }
                }
                "User" | "Workload" => {
                    // An id of no known form is nobody's.
                    let Some(subject) = self.listed(uid, strength) else { continue };
                    ask(Who::Listed(shown(uid)), subject)?;
                }
                _ => {}
            }
        }
        for uid in self.named() {
            let Some(subject) = self.listed(&uid, strength) else { continue };
            ask(Who::Named(shown(&uid)), subject)?;
        }
        found.sort_by(|a, b| a.who.cmp(&b.who));
        Ok(found)
    }

    /// Callers that policies name and that are not listed.
    fn named(&self) -> BTreeSet<EntityUid> {
        let all = self.policies.policies().flat_map(cedar_policy::Policy::entity_literals);
        all.filter(|uid| matches!(uid.type_name().basename(), "User" | "Workload") && !self.listing.contains(uid))
            .collect()
    }

    fn listed(&self, uid: &EntityUid, strength: Strength) -> Option<Result<Subject, TrustError>> {
        let mut principal = PrincipalRecord::named(uid.id().unescaped()).principal().ok()?;
        principal.strength = strength;
        let subject = Subject::new(&principal, &self.listing);
        // `User` for a SPIFFE id, say: no credential makes that.
        (!subject.as_ref().is_ok_and(|subject| subject.uid != *uid)).then_some(subject)
    }

    fn may(&self, subject: Subject, target: &Target, observed: &Observed) -> Result<Option<Decision>, TrustError> {
        let reach = self.index.reach(&subject.uid, &subject.within);
        let buckets = self.index.candidates(&reach, &target.reach);
        if buckets.is_empty() {
            return Ok(None);
        }
        let decision = self.evaluate(&self.prepare_buckets(subject, target, buckets)?, observed);
        Ok(decision.allowed().then_some(decision))
    }
}

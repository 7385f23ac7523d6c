//! Which policies can apply to a request, by their scopes.
//!
//! Cedar evaluates every policy of a set. A policy whose scope names an entity that the request is neither about nor within is false, so
//! leaving it out changes nothing. Policies with the same scope share a set; a request finds the sets of every combination of what its
//! principal, action and resource are and are in. A part of a scope that names nothing is met by every request.

use std::{collections::HashMap, sync::Arc};

use cedar_policy::{ActionConstraint, EntityTypeName, EntityUid, Policy, PrincipalConstraint, ResourceConstraint};

use super::{context::Keys, evaluate::Compiled, listing::Within, sources::invalid};
use crate::TrustError;

/// What a part of a scope names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Head {
    Any,
    Type(EntityTypeName),
    Entity(EntityUid),
}

/// Policies with one scope.
#[derive(Default)]
pub(super) struct Bucket {
    pub(super) policies: Vec<Arc<Compiled>>,
    pub(super) keys: Keys,
}

/// The policies by their scopes.
#[derive(Default)]
pub(super) struct Index {
    heads: Heads,
    /// By what the scope names as principal, then by action and resource.
    scopes: HashMap<u32, HashMap<(u32, u32), u32>>,
    buckets: Vec<Bucket>,
    /// The head of each listed entity that a scope names.
    by_place: Vec<Option<u32>>,
}

/// A number for each head. Apart by what they are, so that nothing is copied to look one up.
#[derive(Default)]
struct Heads {
    any: Option<u32>,
    types: HashMap<EntityTypeName, u32>,
    entities: HashMap<EntityUid, u32>,
    next: u32,
}

impl Heads {
    fn get(&self, head: &Head) -> Option<u32> {
        match head {
            Head::Any => self.any,
            Head::Type(kind) => self.types.get(kind).copied(),
            Head::Entity(uid) => self.entities.get(uid).copied(),
        }
    }

    fn get_or_insert(&mut self, head: Head) -> u32 {
        let next = self.next;
        let number = match head {
            Head::Any => *self.any.get_or_insert(next),
            Head::Type(kind) => *self.types.entry(kind).or_insert(next),
            Head::Entity(uid) => *self.entities.entry(uid).or_insert(next),
        };
        self.next += u32::from(number == next);
        number
    }
}

/// Heads that a part of a request meets, ascending.
#[derive(Clone)]
pub(super) struct Reach(Vec<u32>);

/// What the parts of a policy's scope name.
struct Scope {
    principal: Head,
    actions: Vec<Head>,
    resource: Head,
}

impl Scope {
    fn of(policy: &Policy) -> Self {
        let principal = match policy.principal_constraint() {
            PrincipalConstraint::Any => Head::Any,
            PrincipalConstraint::Is(kind) => Head::Type(kind),
            PrincipalConstraint::Eq(uid) | PrincipalConstraint::In(uid) | PrincipalConstraint::IsIn(_, uid) => {
                Head::Entity(uid)
            }
        };
        let resource = match policy.resource_constraint() {
            ResourceConstraint::Any => Head::Any,
            ResourceConstraint::Is(kind) => Head::Type(kind),
            ResourceConstraint::Eq(uid) | ResourceConstraint::In(uid) | ResourceConstraint::IsIn(_, uid) => {
                Head::Entity(uid)
            }
        };
        let actions = match policy.action_constraint() {
            ActionConstraint::Any => vec![Head::Any],
            ActionConstraint::Eq(uid) => vec![Head::Entity(uid)],
            // A request may find such a policy twice, which changes nothing. An empty list is met by nothing.
            ActionConstraint::In(list) => list.into_iter().map(Head::Entity).collect(),
        };
        Self { principal, actions, resource }
    }
}

impl Index {
    /// Puts a policy where requests will find it.
    pub(super) fn insert(&mut self, policy: &Policy, compiled: &Arc<Compiled>, keys: Keys) -> Result<(), TrustError> {
        let Scope { principal, actions, resource } = Scope::of(policy);
        let (principal, resource) = (self.heads.get_or_insert(principal), self.heads.get_or_insert(resource));
        for action in actions {
            let action = self.heads.get_or_insert(action);
            let next =
                u32::try_from(self.buckets.len()).map_err(|_| invalid("there are too many policies".to_owned()))?;
            let place = *self.scopes.entry(principal).or_default().entry((action, resource)).or_insert(next);
            if place == next {
                self.buckets.push(Bucket::default());
            }
            let bucket =
                self.buckets.get_mut(place as usize).ok_or_else(|| invalid("the index is broken".to_owned()))?;
            // Policies come one after the other, so one that is here already came last.
            if !bucket.policies.last().is_some_and(|last| Arc::ptr_eq(last, compiled)) {
                bucket.policies.push(Arc::clone(compiled));
            }
            bucket.keys = bucket.keys.and(keys);
        }
        Ok(())
    }

    /// How many parts of a policy's scope are not met.
    pub(super) fn unmet(&self, policy: &Policy, [principal, action, resource]: &[Reach; 3]) -> usize {
        let met =
            |head: &Head, reach: &Reach| self.heads.get(head).is_some_and(|head| reach.0.binary_search(&head).is_ok());
        let scope = Scope::of(policy);
        let parts = [
            met(&scope.principal, principal),
            scope.actions.iter().any(|head| met(head, action)),
            met(&scope.resource, resource),
        ];
        parts.into_iter().filter(|met| !met).count()
    }

    /// Notes which listed entities scopes name, once all policies are in.
    pub(super) fn note_places<'a>(&mut self, listed: impl Iterator<Item = &'a EntityUid>) {
        self.by_place = listed.map(|uid| self.heads.entities.get(uid).copied()).collect();
    }

    /// The heads that an entity meets: any, its type, itself, and all that it is in.
    pub(super) fn reach(&self, uid: &EntityUid, within: &Within) -> Reach {
        let heads = &self.heads;
        let own = [heads.any, heads.types.get(uid.type_name()).copied(), heads.entities.get(uid).copied()];
        let listed = within.listed.iter().map(|&place| self.by_place.get(place as usize).copied().flatten());
        let others = within.others.iter().map(|uid| heads.entities.get(uid).copied());
        let mut found: Vec<u32> = own.into_iter().chain(listed).chain(others).flatten().collect();
        found.sort_unstable();
        found.dedup();
        Reach(found)
    }

    /// The places of the buckets that can apply.
    pub(super) fn candidates(&self, principal: &Reach, [action, resource]: &[Reach; 2]) -> Vec<u32> {
        let mut found = Vec::new();
        for scopes in principal.0.iter().filter_map(|head| self.scopes.get(head)) {
            if scopes.len() <= action.0.len() * resource.0.len() {
                let meets =
                    |(a, r): &(u32, u32)| action.0.binary_search(a).is_ok() && resource.0.binary_search(r).is_ok();
                found.extend(scopes.iter().filter(|(scope, _)| meets(scope)).map(|(_, &place)| place));
            } else {
                let pairs = action.0.iter().flat_map(|&a| resource.0.iter().map(move |&r| (a, r)));
                found.extend(pairs.filter_map(|pair| scopes.get(&pair).copied()));
            }
        }
        found.sort_unstable();
        found
    }

    /// A bucket by its place.
    pub(super) fn bucket(&self, place: u32) -> Option<&Bucket> {
        self.buckets.get(place as usize)
    }

    /// How many different scopes there are.
    pub(super) fn scopes(&self) -> usize {
        self.buckets.len()
    }
}

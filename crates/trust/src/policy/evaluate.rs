//! The policies that can apply, put to Cedar's evaluator one by one.
//!
//! Cedar's public interface closes the hierarchy of a request's entities each time, builds the expression of each policy anew, and answers
//! set by set. Here ancestors are closed when the listing is read and expressions are made when policies are, so its core is called
//! directly: entities are assumed closed, expressions are kept, one evaluator serves all. What a policy means is Cedar's word all the same;
//! `tests/index.rs` holds every decision against its authorizer over everything.

use std::sync::{Arc, LazyLock};

use cedar_policy::{Effect, Entities, EntityUid, Policy, Request};
pub(super) use cedar_policy_core::ast::Value;
use cedar_policy_core::{
    ast::{self, EntityUIDEntry, Expr, Literal, SlotEnv, ValueKind},
    entities::{NoEntitiesSchema, TCComputation},
    evaluator::Evaluator,
    extensions::Extensions,
};

use super::{
    context::{Keys, Observed},
    decision::PolicyInfo,
    sources::invalid,
};
use crate::TrustError;

/// Policies are no templates, so nothing is filled in.
static NO_SLOTS: LazyLock<SlotEnv> = LazyLock::new(SlotEnv::new);

/// Stack that a letter of an operator may take where nothing is optimised, and what each policy has besides: Cedar denies where less is left.
const OPERATOR_BYTES: usize = 20 << 10;
const SPARE_BYTES: usize = 256 << 10;
/// A stack for the deepest policy, where that of a thread (2 MiB in a server) has no such room. What is not touched costs nothing.
const ROOMY_BYTES: usize = 64 << 20;

/// A policy ready to be evaluated.
pub(super) struct Compiled {
    pub(super) info: Arc<PolicyInfo>,
    condition: Expr,
    forbids: bool,
    /// Bytes of stack that its evaluation may need.
    room: usize,
}

/// What applies to a request, and what failed while it was found out.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) permits: Vec<Arc<PolicyInfo>>,
    pub(super) forbids: Vec<Arc<PolicyInfo>>,
    pub(super) errors: Vec<String>,
}

/// An entity as Cedar's core has it.
#[derive(Clone)]
pub(super) struct Made(Arc<ast::Entity>);

/// A question without what was observed.
pub(super) struct Question {
    pub(super) entities: Entities,
    principal: EntityUIDEntry,
    action: EntityUIDEntry,
    resource: EntityUIDEntry,
}

impl Compiled {
    /// A policy with so many letters of operators.
    pub(super) fn new(policy: &Policy, operators: usize, info: &Arc<PolicyInfo>) -> Self {
        let core: &ast::Policy = policy.as_ref();
        let (condition, forbids) = (core.condition(), policy.effect() == Effect::Forbid);
        Self { info: Arc::clone(info), condition, forbids, room: SPARE_BYTES + operators * OPERATOR_BYTES }
    }
}

impl Made {
    /// An entity that is in all of `ancestors`, of which it names each.
    pub(super) fn new(
        uid: EntityUid,
        ancestors: impl Iterator<Item = EntityUid>,
        attributes: impl Iterator<Item = (&'static str, Value)>,
        tags: impl Iterator<Item = (String, String)>,
    ) -> Self {
        let attributes = attributes.map(|(name, value)| (name.into(), value.into()));
        let tags = tags.map(|(name, value)| (name.into(), Value::from(value).into()));
        let ancestors = ancestors.map(Into::into).collect();
        let none = std::collections::HashSet::new();
        Self(Arc::new(ast::Entity::new_with_attr_partial_value(uid.into(), attributes, none, ancestors, tags)))
    }
}

impl Question {
    /// From a principal, an action and a resource.
    pub(super) fn new(principal: Made, action: &Made, resource: &Made) -> Result<Self, TrustError> {
        let entry = |made: &Made| EntityUIDEntry::from(made.0.uid().clone());
        let (asks, does, to) = (entry(&principal), entry(action), entry(resource));
        let entities = cedar_policy_core::entities::Entities::new().add_entities(
            [principal.0, Arc::clone(&action.0), Arc::clone(&resource.0)],
            None::<&NoEntitiesSchema>,
            TCComputation::AssumeAlreadyComputed,
            Extensions::all_available(),
        );
        let entities = entities.map_err(|error| invalid(error.to_string()))?.into();
        Ok(Self { entities, principal: asks, action: does, resource: to })
    }

    /// The question in Cedar's form, with the attributes of the context that are asked for.
    pub(super) fn request(&self, keys: Keys, observed: &Observed) -> Result<Request, String> {
        let context = keys.context(observed)?;
        let context: &ast::Context = context.as_ref();
        let (principal, action, resource) = (self.principal.clone(), self.action.clone(), self.resource.clone());
        Ok(ast::Request::new_unchecked(principal, action, resource, Some(context.clone())).into())
    }

    /// Evaluates policies.
    pub(super) fn evaluate<'a>(&self, request: &Request, policies: impl Iterator<Item = &'a Compiled>) -> Findings {
        let request: &ast::Request = request.as_ref();
        let evaluator = Evaluator::new(request.clone(), self.entities.as_ref(), Extensions::all_available());
        let mut findings = Findings::default();
        for policy in policies {
            let list = if policy.forbids { &mut findings.forbids } else { &mut findings.permits };
            let interpret = || {
                let value = evaluator.interpret(&policy.condition, &NO_SLOTS);
                value.map(|value| value.value).map_err(|error| failed(&policy.info.id, &error.to_string()))
            };
            let applies = stacker::maybe_grow(policy.room, ROOMY_BYTES, interpret);
            match applies {
                Ok(ValueKind::Lit(Literal::Bool(true))) => list.push(Arc::clone(&policy.info)),
                Ok(ValueKind::Lit(Literal::Bool(false))) => {}
                Ok(other) => {
                    findings.errors.push(failed(&policy.info.id, &format!("`{other}` is neither true nor false")))
                }
                Err(error) => findings.errors.push(error),
            }
        }
        findings
    }

    /// The principal, as it was made for this question.
    pub(super) fn principal(&self) -> Option<EntityUid> {
        self.principal.uid().cloned().map(Into::into)
    }

    /// What is asked for.
    pub(super) fn resource(&self) -> Option<EntityUid> {
        self.resource.uid().cloned().map(Into::into)
    }
}

/// Works on a stack that is deep enough for any policy.
pub(super) fn roomy<T>(work: impl FnOnce() -> T) -> T {
    stacker::maybe_grow(ROOMY_BYTES / 2, ROOMY_BYTES, work)
}

/// As Cedar's authorizer says it.
fn failed(id: &str, error: &str) -> String {
    format!("error while evaluating policy `{id}`: {error}")
}

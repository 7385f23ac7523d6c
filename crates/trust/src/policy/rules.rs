//! One checked set of policies with its entities, ready to decide.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{Hash, Hasher},
    str::FromStr as _,
    sync::{Arc, LazyLock},
};

use cedar_policy::{
    Authorizer, Effect as CedarEffect, Entities, Entity, EntityUid, Policy, PolicyId, PolicySet, Response, Schema,
    ValidationMode, Validator,
};
use miette::Diagnostic;
use quick_cache::{Equivalent, sync::Cache};

use super::{
    context::{Keys, Observed},
    decision::{Decision, Effect, PolicyInfo, Reason, Request, Version},
    index::{Index, Reach},
    listing::{Listing, shown, uid_of},
    sources::{SourceFile, Sources, invalid, line_column},
    subject::Subject,
    terms::Terms,
};
use crate::{
    Principal, TrustError,
    resource::{Action, RESOURCE_ID_BYTES_MAX, Resource, ResourceKind},
};

const SCHEMA: &str = include_str!("../../policies/schema.cedarschema");
/// How far policies may follow attributes: `principal.strength` is one step. Requests carry the entities of that one step only.
const LEVEL: u32 = 1;
/// Combinations of principal, action and resource that are remembered; each takes about 2 kB.
const REMEMBERED: usize = 16_384;

/// Policies and entities of one version.
pub struct Rules {
    version: Arc<Version>,
    pub(super) listing: Listing,
    pub(super) index: Index,
    pub(super) infos: HashMap<PolicyId, Arc<PolicyInfo>>,
    pub(super) policies: PolicySet,
    warnings: Vec<String>,
    /// Each with the groups of actions that it is in.
    actions: HashMap<Action, (Entity, Vec<EntityUid>)>,
    remembered: Cache<Asked, Arc<Prepared>>,
    pub(super) authorizer: Authorizer,
}

/// Who asked what, as a key.
#[derive(Clone)]
struct Asked {
    principal: Principal,
    action: Action,
    resource: Resource,
}

/// The same without a copy.
struct AskedRef<'a>(Request<'a>);

/// An action and a resource, with what their scopes may name.
pub(super) struct Target {
    action: Entity,
    resource: Entity,
    pub(super) reach: [Reach; 2],
}

/// What does not change while the same principal asks the same: entities and candidates.
pub(super) struct Prepared {
    pub(super) entities: Entities,
    pub(super) principal: EntityUid,
    pub(super) action: EntityUid,
    pub(super) resource: EntityUid,
    buckets: Vec<u32>,
    keys: Keys,
}

impl Rules {
    /// Checks policies and entities.
    ///
    /// # Errors
    /// The place (`file:line:column`) and the reason of what is wrong.
    pub fn compile(sources: &Sources, number: u64) -> Result<Self, TrustError> {
        let schema = schema()?;
        let listing = Listing::read(&sources.entities, schema)?;
        let version = Arc::new(Version { number, digest: sources.digest() });
        let mut rules = Self {
            version,
            listing,
            index: Index::default(),
            infos: HashMap::new(),
            policies: PolicySet::new(),
            warnings: Vec::new(),
            actions: HashMap::new(),
            remembered: Cache::new(REMEMBERED),
            authorizer: Authorizer::new(),
        };
        rules.read_actions(schema)?;
        for file in &sources.policies {
            rules.read_policies(file)?;
        }
        rules.validate(schema, &sources.policies)?;
        rules.warn_of_unlisted();
        Ok(rules)
    }

    /// Number and digest.
    pub fn version(&self) -> &Arc<Version> {
        &self.version
    }

    /// What is no error but hardly meant: policies that can never apply, letters that look like others, names that are not listed.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// How many policies, different scopes and listed entities there are.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.infos.len(), self.index.scopes(), self.listing.iter().count())
    }

    fn read_actions(&mut self, schema: &Schema) -> Result<(), TrustError> {
        let all = schema.action_entities().map_err(|error| invalid(error.to_string()))?;
        for &action in Action::ALL {
            let uid = uid_of("Action", action.name())?;
            let ancestors: Vec<EntityUid> = all.ancestors(&uid).into_iter().flatten().cloned().collect();
            let entity = Entity::new_no_attrs(uid, ancestors.iter().cloned().collect());
            self.actions.insert(action, (entity, ancestors));
        }
        Ok(())
    }

    fn read_policies(&mut self, file: &SourceFile) -> Result<(), TrustError> {
        let parsed = PolicySet::from_str(&file.text).map_err(|error| {
            // The first of several is enough: the others often follow from it.
            error
                .iter()
                .next()
                .map_or_else(|| invalid(error.to_string()), |first| located(file, first, &first.to_string()))
        })?;
        if let Some(template) = parsed.templates().next() {
            let line = line_of(file, &template.to_cedar(), &mut 0);
            return Err(invalid(format!("{}:{line}: templates (`?principal`) are not used; name a group", file.name)));
        }
        let mut cursor = 0;
        for policy in parsed.policies() {
            let line = line_of(file, &policy.to_cedar().unwrap_or_default(), &mut cursor);
            self.insert(policy, format!("{}:{line}", file.name))?;
        }
        Ok(())
    }

    fn insert(&mut self, policy: &Policy, place: String) -> Result<(), TrustError> {
        let wrong = |message: &str| invalid(format!("{place}: {message}"));
        let annotations: BTreeMap<String, String> =
            policy.annotations().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let terms = Terms::read(annotations.iter().map(|(name, value)| (name.as_str(), value.as_str())))
            .map_err(|message| wrong(&message))?;
        let forbids = policy.effect() == CedarEffect::Forbid;
        if forbids && !terms.is_empty() {
            return Err(wrong("terms of a `forbid` have no effect; put them on the `permit`s that they are for"));
        }
        let id = annotations.get("id").cloned().unwrap_or_else(|| place.clone());
        let key = PolicyId::new(&id);
        if let Some(first) = self.infos.get(&key) {
            return Err(wrong(&format!("id `{id}` is used twice, first at {}", first.place)));
        }
        let policy = policy.new_id(key.clone());
        let json = policy.to_json().map_err(|error| wrong(&error.to_string()))?;
        self.index.insert(&policy, Keys::of(&json))?;
        self.policies.add(policy).map_err(|error| wrong(&error.to_string()))?;
        self.infos.insert(key, Arc::new(PolicyInfo { id, place, forbids, annotations, terms }));
        Ok(())
    }

    /// Checks the policies against the schema.
    fn validate(&mut self, schema: &Schema, files: &[SourceFile]) -> Result<(), TrustError> {
        let result = Validator::new(schema.clone()).validate_with_level(&self.policies, ValidationMode::Strict, LEVEL);
        let place = |id: &PolicyId, error: &dyn Diagnostic| {
            let place = self.infos.get(id).map_or("", |info| info.place.as_str());
            let file = files.iter().find(|file| place.rsplit_once(':').is_some_and(|(name, _)| name == file.name));
            let offset = error.labels().and_then(|mut labels| labels.next()).map(|label| label.offset());
            match (file, offset) {
                (Some(file), Some(offset)) => {
                    let (line, column) = line_column(&file.text, offset);
                    format!("{}:{line}:{column}", file.name)
                }
                _ => place.to_owned(),
            }
        };
        let mut errors: Vec<String> = result
            .validation_errors()
            .map(|error| format!("{}: {error}{}", place(error.policy_id(), error), help(error)))
            .collect();
        errors.sort();
        errors.dedup();
        if !errors.is_empty() {
            return Err(invalid(errors.join("\n")));
        }
        let warnings: Vec<String> = result
            .validation_warnings()
            .map(|warning| format!("{}: {warning}", place(warning.policy_id(), warning)))
            .collect();
        self.warnings.extend(warnings);
        Ok(())
    }

    /// A policy may well name callers and their groups that are not listed, but hardly anything else.
    fn warn_of_unlisted(&mut self) {
        for (id, info) in &self.infos {
            let Some(policy) = self.policies.policy(id) else { continue };
            for uid in policy.entity_literals() {
                let from_credentials = match uid.type_name().basename() {
                    "Action" | "User" | "Workload" => true,
                    "Group" => uid.id().unescaped().contains('#'),
                    _ => false,
                };
                if !from_credentials && !self.listing.contains(&uid) {
                    self.warnings.push(format!("{}: `{}` is listed nowhere", info.place, shown(&uid)));
                }
            }
        }
        self.warnings.sort();
        self.warnings.dedup();
    }

    /// True where a resource is listed, so that policies can be about it.
    pub fn is_listed(&self, resource: &Resource) -> bool {
        self.resource(resource).is_ok_and(|found| found.is_some())
    }

    /// Decides: yes only where a policy permits, none forbids, and nothing went wrong.
    pub fn decide(&self, request: &Request<'_>, observed: &Observed) -> Decision {
        if request.principal.expires_at <= observed.now {
            return Decision::deny(Reason::Expired, &self.version, Vec::new());
        }
        let prepared = match self.prepare(request) {
            Ok(Some(prepared)) => prepared,
            Ok(None) => return Decision::deny(Reason::NotListed, &self.version, Vec::new()),
            Err(error) => return Decision::deny(Reason::Failed, &self.version, vec![error.to_string()]),
        };
        self.evaluate(&prepared, observed)
    }

    /// Evaluates the policies that can apply.
    pub(super) fn evaluate(&self, prepared: &Prepared, observed: &Observed) -> Decision {
        match prepared.request(prepared.keys, observed) {
            Ok(request) => {
                let buckets = prepared.buckets.iter().filter_map(|&place| self.index.bucket(place));
                self.combine(
                    buckets.map(|bucket| self.authorizer.is_authorized(&request, &bucket.policies, &prepared.entities)),
                )
            }
            Err(error) => Decision::deny(Reason::Failed, &self.version, vec![error]),
        }
    }

    /// Decides as [`Rules::decide`] by evaluating every policy over every entity: slow, for comparison.
    pub fn decide_by_all(&self, request: &Request<'_>, observed: &Observed) -> Decision {
        let failed = |error: String| Decision::deny(Reason::Failed, &self.version, vec![error]);
        let prepared = match self.prepare(request) {
            Ok(Some(prepared)) => prepared,
            Ok(None) => return Decision::deny(Reason::NotListed, &self.version, Vec::new()),
            Err(error) => return failed(error.to_string()),
        };
        let asked = [&prepared.principal, &prepared.resource];
        // The listing's own entry of the resource is kept, so that it is compared as well.
        let added = asked.into_iter().filter(|&uid| *uid == prepared.principal || !self.listing.contains(uid));
        let added: Vec<Entity> = added.filter_map(|uid| prepared.entities.get(uid)).cloned().collect();
        let entities = match self.listing.all().clone().upsert_entities(added, None) {
            Ok(entities) => entities,
            Err(error) => return failed(error.to_string()),
        };
        match prepared.request(Keys::ALL, observed) {
            Ok(request) => {
                self.combine([self.authorizer.is_authorized(&request, &self.policies, &entities)].into_iter())
            }
            Err(error) => failed(error),
        }
    }

    /// What was found out before of the same question, or is now. `None` where the resource is not listed.
    pub(super) fn prepare(&self, request: &Request<'_>) -> Result<Option<Arc<Prepared>>, TrustError> {
        if let Some(known) = self.remembered.get(&AskedRef(*request)) {
            return Ok(Some(known));
        }
        let Some(target) = self.target(request.action, request.resource)? else { return Ok(None) };
        let subject = Subject::new(request.principal, &self.listing)?;
        let buckets = self.index.candidates(&self.index.reach(&subject.uid, subject.ancestors.iter()), &target.reach);
        let prepared = Arc::new(self.prepare_buckets(&subject, &target, buckets)?);
        let asked =
            Asked { principal: request.principal.clone(), action: request.action, resource: request.resource.clone() };
        self.remembered.insert(asked, Arc::clone(&prepared));
        Ok(Some(prepared))
    }

    /// What is asked for, whoever asks. `None` where it is not listed.
    pub(super) fn target(&self, action: Action, resource: &Resource) -> Result<Option<Target>, TrustError> {
        let Some((resource, ancestors)) = self.resource(resource)? else { return Ok(None) };
        let Some((action, groups)) = self.actions.get(&action) else {
            return Err(invalid(format!("action `{action}` is not in the schema")));
        };
        let reach =
            [self.index.reach(&action.uid(), groups.iter()), self.index.reach(&resource.uid(), ancestors.iter())];
        Ok(Some(Target { action: action.clone(), resource, reach }))
    }

    /// Brings together who asks, what is asked for, and the policies that can apply.
    pub(super) fn prepare_buckets(
        &self,
        subject: &Subject,
        target: &Target,
        buckets: Vec<u32>,
    ) -> Result<Prepared, TrustError> {
        let keys = buckets.iter().filter_map(|&place| self.index.bucket(place)).map(|bucket| bucket.keys);
        let keys = keys.fold(Keys::default(), Keys::and);
        let (action, resource) = (target.action.uid(), target.resource.uid());
        let entities = [subject.entity(&self.listing)?, target.action.clone(), target.resource.clone()];
        let entities = Entities::from_entities(entities, None).map_err(|error| invalid(error.to_string()))?;
        Ok(Prepared { entities, principal: subject.uid.clone(), action, resource, buckets, keys })
    }

    /// Ids of the policies that are evaluated for a request.
    ///
    /// # Errors
    /// A principal that cannot be decided on.
    pub fn candidates(&self, request: &Request<'_>) -> Result<Vec<&str>, TrustError> {
        let prepared = self.prepare(request)?;
        let buckets =
            prepared.iter().flat_map(|prepared| &prepared.buckets).filter_map(|&place| self.index.bucket(place));
        let policies = buckets.flat_map(|bucket| bucket.policies.policies());
        Ok(policies.filter_map(|policy| self.infos.get(policy.id())).map(|info| info.id.as_str()).collect())
    }

    /// What the scope of a policy may name to be met by a request: as principal, as action, as resource.
    pub(super) fn reach(&self, request: &Request<'_>) -> Option<[Reach; 3]> {
        let [action, resource] = self.target(request.action, request.resource).ok()??.reach;
        let subject = Subject::new(request.principal, &self.listing).ok()?;
        Some([self.index.reach(&subject.uid, subject.ancestors.iter()), action, resource])
    }

    /// A listed resource, or a version of a model whose versions need not be listed, with all that it is in.
    fn resource(&self, resource: &Resource) -> Result<Option<(Entity, Vec<EntityUid>)>, TrustError> {
        if resource.id.len() > RESOURCE_ID_BYTES_MAX {
            return Ok(None);
        }
        let uid = uid_of(resource.kind.name(), &resource.id)?;
        let mut ancestors: Vec<EntityUid> = self.listing.ancestors(&uid).cloned().collect();
        if !self.listing.contains(&uid) {
            let model = (resource.kind == ResourceKind::ModelVersion).then(|| resource.model()).flatten();
            let Some(model) = model.filter(|model| self.listing.any_version(model)) else { return Ok(None) };
            let model = uid_of("Model", model)?;
            ancestors.extend(self.listing.ancestors(&model).cloned());
            ancestors.push(model);
        }
        let text = |value: &String| cedar_policy::RestrictedExpression::new_string(value.clone());
        let tags = self.listing.tags(&uid).iter().map(|(name, value)| (name.clone(), text(value)));
        let entity = Entity::new_with_tags(uid, [], ancestors.iter().cloned(), tags)
            .map_err(|error| invalid(error.to_string()))?;
        Ok(Some((entity, ancestors)))
    }

    /// One decision of the answers over parts of the policies, by Cedar's rule: a forbid wins, else a permit is needed. An error denies.
    fn combine(&self, responses: impl Iterator<Item = Response>) -> Decision {
        let (mut permits, mut forbids, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        for response in responses {
            let denied = response.decision() == cedar_policy::Decision::Deny;
            let reasons = response.diagnostics().reason().filter_map(|id| self.infos.get(id)).map(Arc::clone);
            if denied {
                forbids.extend(reasons)
            } else {
                permits.extend(reasons)
            }
            errors.extend(response.diagnostics().errors().map(ToString::to_string));
        }
        let (reason, mut policies) = match (errors.is_empty(), forbids.is_empty(), permits.is_empty()) {
            (_, false, _) => (Reason::Forbidden, forbids),
            (false, true, _) => (Reason::Failed, Vec::new()),
            (true, true, false) => (Reason::Permitted, permits),
            (true, true, true) => (Reason::NotPermitted, Vec::new()),
        };
        policies.sort_by(|a, b| a.id.cmp(&b.id));
        policies.dedup_by(|a, b| a.id == b.id);
        errors.sort();
        errors.dedup();
        let allowed = reason == Reason::Permitted;
        let terms = match policies.as_slice() {
            [first, rest @ ..] if allowed => {
                rest.iter().fold(first.terms.clone(), |terms, policy| terms.strictest(&policy.terms))
            }
            _ => Terms::default(),
        };
        let effect = if allowed { Effect::Allow } else { Effect::Deny };
        Decision { effect, reason, policies, terms, version: Arc::clone(&self.version), errors }
    }
}

impl Prepared {
    /// The question in Cedar's form.
    pub(super) fn request(&self, keys: Keys, observed: &Observed) -> Result<cedar_policy::Request, String> {
        let (principal, action, resource) = (self.principal.clone(), self.action.clone(), self.resource.clone());
        cedar_policy::Request::new(principal, action, resource, keys.context(observed)?, None)
            .map_err(|error| error.to_string())
    }
}

/// The schema of this program.
fn schema() -> Result<&'static Schema, TrustError> {
    static READ: LazyLock<Result<Schema, String>> = LazyLock::new(|| {
        Schema::from_cedarschema_str(SCHEMA).map(|(schema, _)| schema).map_err(|error| error.to_string())
    });
    READ.as_ref().map_err(|error| invalid(format!("the schema is wrong: {error}")))
}

fn located(file: &SourceFile, error: &dyn Diagnostic, message: &str) -> TrustError {
    let offset = error.labels().and_then(|mut labels| labels.next()).map_or(0, |label| label.offset());
    let (line, column) = line_column(&file.text, offset);
    invalid(format!("{}:{line}:{column}: {message}{}", file.name, help(error)))
}

fn help(error: &dyn Diagnostic) -> String {
    error.help().map_or_else(String::new, |help| format!("; {help}"))
}

/// The line at which a policy's text begins, searched from where the one before ended.
fn line_of(file: &SourceFile, text: &str, cursor: &mut usize) -> usize {
    let rest = file.text.get(*cursor..).unwrap_or_default();
    let start = *cursor + rest.find(text).unwrap_or_default();
    *cursor = start + text.len();
    line_column(&file.text, start).0
}

impl PartialEq for Asked {
    fn eq(&self, other: &Self) -> bool {
        (self.action, &self.resource, &self.principal) == (other.action, &other.resource, &other.principal)
    }
}
impl Eq for Asked {}

impl Hash for Asked {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.principal.id, self.action, &self.resource).hash(state);
    }
}

impl Hash for AskedRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.0.principal.id, self.0.action, self.0.resource).hash(state);
    }
}

impl Equivalent<Asked> for AskedRef<'_> {
    fn equivalent(&self, key: &Asked) -> bool {
        (self.0.action, self.0.resource, self.0.principal) == (key.action, &key.resource, &key.principal)
    }
}

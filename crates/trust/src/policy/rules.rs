//! One checked set of policies with its entities, ready to decide.

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    sync::Arc,
};

use cedar_policy::{Authorizer, Entities, Entity, EntityUid, PolicyId, PolicySet, Response, Schema};
use quick_cache::{Equivalent, sync::Cache};

use super::{
    context::{Keys, Observed},
    decision::{Decision, Effect, PolicyInfo, Reason, Request, Version},
    evaluate::{Compiled, Findings, Made, Question, roomy},
    index::{Index, Reach},
    listing::{Listing, Within, shown},
    read::{self, Read},
    schema::{schema, uid_of},
    sources::{Sources, invalid},
    subject::Subject,
    terms::Terms,
};
use crate::{
    Principal, TrustError,
    resource::{Action, RESOURCE_ID_BYTES_MAX, Resource, ResourceKind},
};

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
    /// Each with what scopes may name to be met by it.
    actions: HashMap<Action, (Made, Reach)>,
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

/// A resource with all that it is in and its labels.
type Found<'a> = (EntityUid, Within, &'a [(String, String)]);

/// An action and a resource, with what their scopes may name.
pub(super) struct Target {
    action: Made,
    resource: Made,
    pub(super) reach: [Reach; 2],
}

/// What does not change while the same principal asks the same: entities and candidates.
pub(super) struct Prepared {
    pub(super) question: Question,
    buckets: Vec<u32>,
    keys: Keys,
}

impl Rules {
    /// Checks policies and entities.
    ///
    /// # Errors
    /// The place (`file:line:column`) and the reason of what is wrong.
    pub fn compile(sources: &Sources, number: u64) -> Result<Self, TrustError> {
        read::deep(|| Self::compile_here(sources, number))?
    }

    fn compile_here(sources: &Sources, number: u64) -> Result<Self, TrustError> {
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
        let policies = read::policies(&sources.policies)?;
        for policy in &policies {
            rules.insert(policy)?;
        }
        rules.index.note_places(rules.listing.iter());
        rules.read_actions(schema)?;
        rules.warnings = read::validate(&policies, schema)?;
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
            let within = Within { listed: Vec::new(), others: ancestors };
            let reach = self.index.reach(&uid, &within);
            let made = Made::new(uid, within.others.into_iter(), std::iter::empty(), std::iter::empty());
            self.actions.insert(action, (made, reach));
        }
        Ok(())
    }

    fn insert(&mut self, read: &Read<'_>) -> Result<(), TrustError> {
        let (key, info) = (read.policy.id(), &read.info);
        let wrong = |message: &str| invalid(format!("{}: {message}", info.place));
        if let Some(first) = self.infos.get(key) {
            return Err(wrong(&format!("id `{}` is used twice, first at {}", info.id, first.place)));
        }
        self.index.insert(&read.policy, &Arc::new(Compiled::new(&read.policy, read.operators, info)), read.keys)?;
        self.policies.add(read.policy.clone()).map_err(|error| wrong(&error.to_string()))?;
        self.infos.insert(key.clone(), Arc::clone(info));
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
        match prepared.question.request(prepared.keys, observed) {
            Ok(request) => self.combine(prepared.question.evaluate(&request, self.candidates_of(prepared))),
            Err(error) => Decision::deny(Reason::Failed, &self.version, vec![error]),
        }
    }

    fn candidates_of(&self, prepared: &Prepared) -> impl Iterator<Item = &Compiled> {
        let buckets = prepared.buckets.iter().filter_map(|&place| self.index.bucket(place));
        buckets.flat_map(|bucket| &bucket.policies).map(|policy| &**policy)
    }

    /// Decides as [`Rules::decide`] by Cedar's authorizer over every policy and every entity: slow, for comparison.
    pub fn decide_by_all(&self, request: &Request<'_>, observed: &Observed) -> Decision {
        let prepared = match self.prepare(request) {
            Ok(Some(prepared)) => prepared,
            Ok(None) => return Decision::deny(Reason::NotListed, &self.version, Vec::new()),
            Err(error) => return Decision::deny(Reason::Failed, &self.version, vec![error.to_string()]),
        };
        let request = prepared.question.request(Keys::ALL, observed);
        match request.and_then(|request| Ok((request, self.all_with(&prepared.question)?))) {
            Ok((request, entities)) => {
                let response = roomy(|| self.authorizer.is_authorized(&request, &self.policies, &entities));
                self.combine(self.findings(&response))
            }
            Err(error) => Decision::deny(Reason::Failed, &self.version, vec![error]),
        }
    }

    /// Everything that is listed, and who asks.
    fn all_with(&self, question: &Question) -> Result<Entities, String> {
        let listed = schema().map_err(|error| error.to_string()).and_then(|schema| self.listing.all(schema))?;
        let principal = question.principal();
        // The listing's own entry of the resource is kept, so that it is compared as well.
        let resource = question.resource().filter(|uid| !self.listing.contains(uid));
        let added = [principal, resource].into_iter().flatten();
        let added: Vec<Entity> = added.filter_map(|uid| question.entities.get(&uid)).cloned().collect();
        listed.clone().upsert_entities(added, None).map_err(|error| error.to_string())
    }

    fn findings(&self, response: &Response) -> Findings {
        let mut findings = Findings::default();
        let reasons = response.diagnostics().reason().filter_map(|id| self.infos.get(id)).map(Arc::clone);
        match response.decision() {
            cedar_policy::Decision::Allow => findings.permits.extend(reasons),
            cedar_policy::Decision::Deny => findings.forbids.extend(reasons),
        }
        findings.errors.extend(response.diagnostics().errors().map(ToString::to_string));
        findings
    }

    /// What was found out before of the same question, or is now. `None` where the resource is not listed.
    pub(super) fn prepare(&self, request: &Request<'_>) -> Result<Option<Arc<Prepared>>, TrustError> {
        if let Some(known) = self.remembered.get(&AskedRef(*request)) {
            return Ok(Some(known));
        }
        let Some(target) = self.target(request.action, request.resource)? else { return Ok(None) };
        let subject = Subject::new(request.principal, &self.listing)?;
        let buckets = self.index.candidates(&self.index.reach(&subject.uid, &subject.within), &target.reach);
        let prepared = Arc::new(self.prepare_buckets(subject, &target, buckets)?);
        let asked =
            Asked { principal: request.principal.clone(), action: request.action, resource: request.resource.clone() };
        self.remembered.insert(asked, Arc::clone(&prepared));
        Ok(Some(prepared))
    }

    /// What is asked for, whoever asks. `None` where it is not listed.
    pub(super) fn target(&self, action: Action, resource: &Resource) -> Result<Option<Target>, TrustError> {
        let Some((uid, within, tags)) = self.resource(resource)? else { return Ok(None) };
        let Some((action, meets)) = self.actions.get(&action) else {
            return Err(invalid(format!("action `{action}` is not in the schema")));
        };
        let reach = [meets.clone(), self.index.reach(&uid, &within)];
        let ancestors = within.uids(&self.listing).cloned();
        let resource = Made::new(uid, ancestors, std::iter::empty(), tags.iter().cloned());
        Ok(Some(Target { action: action.clone(), resource, reach }))
    }

    /// Brings together who asks, what is asked for, and the policies that can apply.
    pub(super) fn prepare_buckets(
        &self,
        subject: Subject,
        target: &Target,
        buckets: Vec<u32>,
    ) -> Result<Prepared, TrustError> {
        let keys = buckets.iter().filter_map(|&place| self.index.bucket(place)).map(|bucket| bucket.keys);
        let keys = keys.fold(Keys::default(), Keys::and);
        let question = Question::new(subject.entity(&self.listing), &target.action, &target.resource)?;
        Ok(Prepared { question, buckets, keys })
    }

    /// Ids of the policies that are evaluated for a request.
    ///
    /// # Errors
    /// A principal that cannot be decided on.
    pub fn candidates(&self, request: &Request<'_>) -> Result<Vec<&str>, TrustError> {
        let Some(prepared) = self.prepare(request)? else { return Ok(Vec::new()) };
        Ok(self.candidates_of(&prepared).map(|policy| policy.info.id.as_str()).collect())
    }

    /// What the scope of a policy may name to be met by a request: as principal, as action, as resource.
    pub(super) fn reach(&self, request: &Request<'_>) -> Option<[Reach; 3]> {
        let [action, resource] = self.target(request.action, request.resource).ok()??.reach;
        let subject = Subject::new(request.principal, &self.listing).ok()?;
        Some([self.index.reach(&subject.uid, &subject.within), action, resource])
    }

    /// A listed resource, or a version of a model whose versions need not be listed, with all that it is in and its labels.
    fn resource(&self, resource: &Resource) -> Result<Option<Found<'_>>, TrustError> {
        if resource.id.len() > RESOURCE_ID_BYTES_MAX {
            return Ok(None);
        }
        let uid = uid_of(resource.kind.name(), &resource.id)?;
        let mut within = Within::default();
        if let Some((_, listed)) = self.listing.get(&uid) {
            within.add_above(listed);
            return Ok(Some((uid, within, listed.tags())));
        }
        let model = (resource.kind == ResourceKind::ModelVersion).then(|| resource.model()).flatten();
        let Some(model) = model.map(|model| uid_of("Model", model)).transpose()? else { return Ok(None) };
        let model = self.listing.get(&model).filter(|(_, listed)| listed.any_version());
        Ok(model.map(|(place, listed)| {
            within.add(place, listed);
            (uid, within, [].as_slice())
        }))
    }

    /// One decision of what applies, by Cedar's rule: a forbid wins, else a permit is needed. An error denies.
    fn combine(&self, findings: Findings) -> Decision {
        let Findings { permits, forbids, mut errors } = findings;
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

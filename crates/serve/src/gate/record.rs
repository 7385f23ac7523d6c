//! What the log is told of a decision, and what is counted.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::SystemTime,
};

use edgeward_trust::{
    Action, Principal, Resource,
    audit::{Kind, LogStatus, Record, Verdict},
    policy::{Decision, OBSERVED, Observed, ObservedRecord, PRINCIPAL, PrincipalRecord},
    revocation::Cut,
};

use super::strangers::LeftOut;

/// Who asked, where nobody was recognised.
const NOBODY: &str = "anonymous";

/// The record of a decision that the policy took.
pub(super) fn decided(
    principal: &Principal,
    (action, resource): (Action, &Resource),
    observed: &Observed,
    decision: &Decision,
) -> Record {
    let mut reason = decision.reason.to_string();
    for error in &decision.errors {
        let _ = write!(reason, "; {error}");
    }
    Record {
        time: observed.now,
        kind: kind(action),
        principal: principal.id.clone(),
        action: action.name().to_owned(),
        resource: resource.to_string(),
        decision: if decision.allowed() { Verdict::Allow } else { Verdict::Deny },
        policies: decision.policies.iter().map(|policy| policy.id.clone()).collect(),
        policy_version: Some(decision.version.to_string()),
        score: Some(f64::from(observed.score.total) / 100.0),
        digests: BTreeMap::new(),
        context: context(principal, observed),
        reason,
    }
}

/// The record of a call that came to no decision: nobody was recognised, or there is no such call.
pub(super) fn refused(
    principal: Option<&Principal>,
    (action, resource): (&str, String),
    peer: std::net::SocketAddr,
    reason: String,
    now: SystemTime,
) -> Record {
    Record {
        time: now,
        kind: Kind::Decision,
        principal: principal.map_or(NOBODY, |principal| &principal.id).to_owned(),
        action: action.to_owned(),
        resource,
        decision: Verdict::Deny,
        policies: Vec::new(),
        policy_version: None,
        score: None,
        digests: BTreeMap::new(),
        context: [("source".to_owned(), peer.ip().to_string())].into(),
        reason,
    }
}

/// The record of refusals of nobody that have none of their own.
pub(super) fn left_out(left_out: &LeftOut, now: SystemTime) -> Record {
    Record {
        time: now,
        kind: Kind::Decision,
        principal: NOBODY.to_owned(),
        action: "calls".to_owned(),
        resource: String::new(),
        decision: Verdict::Deny,
        policies: Vec::new(),
        policy_version: None,
        score: None,
        digests: BTreeMap::new(),
        context: left_out.last.map(|last| ("source".to_owned(), last.to_string())).into_iter().collect(),
        reason: format!(
            "{} more calls of nobody who is recognised were refused; too many to have a record each",
            left_out.count
        ),
    }
}

/// The record of a call that was cut.
pub(super) fn cut(principal: &Principal, cut: &Cut, now: SystemTime) -> Record {
    let reason = match cut {
        Cut::Revoked => "revoked".to_owned(),
        Cut::Ended => "the credential has ended".to_owned(),
        Cut::Denied(reason) => reason.clone(),
    };
    Record {
        time: now,
        kind: Kind::Session,
        principal: principal.id.clone(),
        action: "cut".to_owned(),
        resource: String::new(),
        decision: Verdict::Deny,
        policies: Vec::new(),
        policy_version: None,
        score: None,
        digests: BTreeMap::new(),
        context: BTreeMap::new(),
        reason,
    }
}

/// Calls that change something are acts of an administrator.
fn kind(action: Action) -> Kind {
    match action {
        Action::Load | Action::Unload | Action::Configure | Action::Call => Kind::Admin,
        _ => Kind::Decision,
    }
}

/// What else the decision saw, so that another policy can be tried on it.
fn context(principal: &Principal, observed: &Observed) -> BTreeMap<String, String> {
    let written = |value: Result<String, serde_json::Error>| value.unwrap_or_default();
    let principal = written(serde_json::to_string(&PrincipalRecord::of(principal)));
    let observed = written(serde_json::to_string(&ObservedRecord::of(observed)));
    [(OBSERVED.to_owned(), observed), (PRINCIPAL.to_owned(), principal)].into()
}

/// Decisions since the start.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) allowed: AtomicU64,
    pub(super) denied: AtomicU64,
    pub(super) unauthenticated: AtomicU64,
    pub(super) limited: AtomicU64,
    pub(super) unavailable: AtomicU64,
    pub(super) cut: AtomicU64,
}

impl Counters {
    pub(super) fn text(&self, audit: &LogStatus, open: usize) -> String {
        let name = "edgeward_trust_decisions_total";
        let mut text = format!("# HELP {name} Calls by what was decided\n# TYPE {name} counter\n");
        for (decision, count) in [
            ("allowed", &self.allowed),
            ("denied", &self.denied),
            ("unauthenticated", &self.unauthenticated),
            ("limited", &self.limited),
            ("unavailable", &self.unavailable),
            ("cut", &self.cut),
        ] {
            let _ = writeln!(text, "{name}{{decision=\"{decision}\"}} {}", count.load(Relaxed));
        }
        for (name, help, kind, value) in [
            ("edgeward_trust_calls_open", "Calls under way", "gauge", open as u64),
            ("edgeward_audit_records", "Records of the audit log", "gauge", audit.size),
            (
                "edgeward_audit_refused_total",
                "Records that found no place; once one has found none, calls are refused until the log takes records again",
                "counter",
                audit.refused,
            ),
        ] {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
        text
    }
}

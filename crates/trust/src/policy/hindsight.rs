//! Rules tried out before they are in force: expected decisions, and what past requests would meet now.

use std::{io::BufRead, time::SystemTime};

use serde::{Deserialize, Serialize};

use super::{
    decision::{Decision, Effect, Request},
    record::{PastRequest, RequestRecord},
    rules::Rules,
    sources::{SourceFile, invalid, line_column},
};
use crate::{
    TrustError,
    audit::{Record, Verdict},
};

/// What a record of the audit log calls the caller as the decision saw it, what was observed, and the limit that was met.
pub const PRINCIPAL: &str = "principal";
/// See [`PRINCIPAL`].
pub const OBSERVED: &str = "observed";
/// See [`PRINCIPAL`].
pub const LIMIT: &str = "limit";

/// Longest line of a log.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// `[[case]]` tables of `tests.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cases {
    #[serde(default)]
    case: Vec<toml::Spanned<Case>>,
}

/// One expected decision.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    principal: super::record::PrincipalRecord,
    action: crate::Action,
    resource: crate::Resource,
    #[serde(default)]
    observed: super::record::ObservedRecord,
    expect: Effect,
    /// The policies that must decide, by id; any where absent.
    policies: Option<Vec<String>>,
    /// The terms that must hold and no others, by name of the annotation; any where absent.
    #[serde(default)]
    terms: std::collections::BTreeMap<String, String>,
}

/// How a case went.
#[derive(Clone, Debug, Serialize)]
pub struct CaseResult {
    /// Its name.
    pub name: String,
    /// `FILE:LINE`.
    pub place: String,
    /// Whether the decision is the expected one.
    pub passed: bool,
    /// What is not as expected.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<String>,
    /// What was decided.
    pub decision: Decision,
}

/// Decides every case of a file of expected decisions.
///
/// # Errors
/// A file that cannot be read as such, by place.
pub fn run_cases(rules: &Rules, file: &SourceFile, now: SystemTime) -> Result<Vec<CaseResult>, TrustError> {
    let cases: Cases = toml::from_str(&file.text).map_err(|error| {
        let (line, column) = line_column(&file.text, error.span().map_or(0, |span| span.start));
        invalid(format!("{}:{line}:{column}: {}", file.name, error.message()))
    })?;
    cases
        .case
        .into_iter()
        .map(|case| {
            let place = format!("{}:{}", file.name, line_column(&file.text, case.span().start).0);
            case.into_inner().run(rules, place, now)
        })
        .collect()
}

impl Case {
    fn run(self, rules: &Rules, place: String, now: SystemTime) -> Result<CaseResult, TrustError> {
        let principal =
            self.principal.principal().map_err(|error| TrustError::new(error.kind(), format!("{place}: {error}")))?;
        let request = Request { principal: &principal, action: self.action, resource: &self.resource };
        let decision = rules.decide(&request, &self.observed.observed(now));
        let mut differences = Vec::new();
        if decision.effect != self.expect {
            differences.push(format!("expected `{}`, got `{}`", self.expect, decision.effect));
        }
        let ids: Vec<&str> = decision.policies.iter().map(|policy| policy.id.as_str()).collect();
        if let Some(expected) = self.policies.filter(|expected| {
            let mut expected: Vec<&str> = expected.iter().map(String::as_str).collect();
            expected.sort_unstable();
            expected != ids
        }) {
            let (expected, got) = (expected.join("`, `"), ids.join("`, `"));
            differences.push(format!("expected policies `{expected}` to decide, got `{got}`"));
        }
        let expected =
            super::terms::Terms::read(self.terms.iter().map(|(name, value)| (name.as_str(), value.as_str())))
                .map_err(|message| invalid(format!("{place}: {message}")))?;
        if !self.terms.is_empty() && decision.terms != expected {
            let got = serde_json::to_string(&decision.terms).unwrap_or_default();
            differences.push(format!("expected terms {:?}, got {got}", self.terms));
        }
        Ok(CaseResult { name: self.name, place, passed: differences.is_empty(), differences, decision })
    }
}

/// Past requests of a log in JSON lines; blank lines are passed over.
///
/// # Errors
/// Each line that is no past request, by its number.
pub fn past_requests(reader: impl BufRead) -> impl Iterator<Item = Result<PastRequest, TrustError>> {
    let mut reader = reader;
    let mut line = Vec::new();
    let mut number = 0u64;
    let mut over = false;
    std::iter::from_fn(move || {
        while !over {
            number += 1;
            line.clear();
            let read = std::io::Read::take(&mut reader, LINE_BYTES_MAX + 1).read_until(b'\n', &mut line);
            let wrong = |what: String| Some(Err(invalid(format!("line {number} of the log {what}"))));
            match read {
                Ok(0) => return None,
                Ok(_) if line.len() as u64 > LINE_BYTES_MAX => {
                    over = true;
                    return wrong(format!("has more than {LINE_BYTES_MAX} bytes"));
                }
                Ok(_) if line.trim_ascii().is_empty() => {}
                Ok(_) => {
                    return match serde_json::from_slice(&line) {
                        Ok(past) => Some(Ok(past)),
                        Err(error) => wrong(format!("is no past request: {error}")),
                    };
                }
                Err(error) => {
                    over = true;
                    return wrong(format!("cannot be read: {error}"));
                }
            }
        }
        None
    })
}

/// The past request that a record of the audit log tells of; `None` where nobody was recognised, or nothing was decided by policy.
pub fn recorded_request(record: &Record) -> Option<PastRequest> {
    let principal = serde_json::from_str(record.context.get(PRINCIPAL)?).ok()?;
    let observed = serde_json::from_str(record.context.get(OBSERVED)?).ok()?;
    let (action, resource) = (record.action.parse().ok()?, record.resource.parse().ok()?);
    // The policy had permitted what then met a limit.
    let permitted = record.decision == Verdict::Allow || record.context.contains_key(LIMIT);
    let effect = if permitted { Effect::Allow } else { Effect::Deny };
    Some(PastRequest { request: RequestRecord { principal, action, resource, observed }, effect })
}

/// A past request that would be decided otherwise.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    /// The request.
    pub request: RequestRecord,
    /// What was decided.
    pub was: Effect,
    /// What would be decided.
    pub would_be: Decision,
}

/// What a set of rules would change.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Simulation {
    /// Past requests that were decided again.
    pub requests: u64,
    /// Of these, how many would newly be allowed.
    pub newly_allowed: u64,
    /// How many would newly be denied.
    pub newly_denied: u64,
    /// The first of them, up to the limit that was asked for.
    pub changes: Vec<Change>,
}

/// Decides past requests again. A request without a moment is decided as if it came at `now`.
///
/// # Errors
/// The first past request that cannot be read.
pub fn simulate(
    rules: &Rules,
    past: impl IntoIterator<Item = Result<PastRequest, TrustError>>,
    changes_max: usize,
    now: SystemTime,
) -> Result<Simulation, TrustError> {
    let mut simulation = Simulation::default();
    for past in past {
        let PastRequest { request, effect } = past?;
        let principal = request.principal.principal()?;
        let asked = Request { principal: &principal, action: request.action, resource: &request.resource };
        let would_be = rules.decide(&asked, &request.observed.observed(now));
        simulation.requests += 1;
        match (effect, would_be.effect) {
            (Effect::Deny, Effect::Allow) => simulation.newly_allowed += 1,
            (Effect::Allow, Effect::Deny) => simulation.newly_denied += 1,
            _ => continue,
        }
        if simulation.changes.len() < changes_max {
            simulation.changes.push(Change { request, was: effect, would_be });
        }
    }
    Ok(simulation)
}

//! Requests as they are written down: in files of expected decisions, on the command line, and in the log.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    context::Observed,
    decision::{Effect, Request},
    sources::invalid,
    subject::method,
};
use crate::{
    Action, Method, Principal, Resource, Strength, TrustError,
    detect::Detector,
    score::{Network, Part, Score},
};

/// A request with what was observed of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestRecord {
    /// Who asked.
    pub principal: PrincipalRecord,
    /// The operation.
    pub action: Action,
    /// `KIND::NAME`.
    pub resource: Resource,
    /// What was observed.
    #[serde(default)]
    pub observed: ObservedRecord,
}

/// A principal as a log writes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrincipalRecord {
    /// As [`Principal::id`].
    pub id: String,
    /// `spiffe`, `oidc`, `aws_iam` or `local`; by the form of the id where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// `bearer`, `key_bound` or `attested`; the weakest where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strength: Option<String>,
    /// Tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Groups that the issuer vouches for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Claims.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: BTreeMap<String, String>,
}

/// What was observed, as a log writes it. What is absent is taken to be harmless: score 100, this machine, a session that has just begun.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObservedRecord {
    /// When, as `2026-11-25T10:00:00Z`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Moment>,
    /// Address of the peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// `loopback`, `known`, `private` or `public`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Where the server runs.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub site: String,
    /// Age of the session.
    pub session_age_s: u64,
    /// Age of the attestation, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attested_age_s: Option<u64>,
    /// Size of the request.
    pub request_bytes: u64,
    /// The trust score, 0 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<u8>,
    /// Parts of the score that differ from it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub score_parts: BTreeMap<Part, u8>,
    /// What detectors suspect, in percent; those that suspect nothing are absent.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub suspicions: BTreeMap<Detector, u8>,
}

/// A moment, written as RFC 3339.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(pub SystemTime);

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // The years that RFC 3339 can write.
        let last = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
        serializer.collect_str(&humantime::format_rfc3339(self.0.clamp(UNIX_EPOCH, last)))
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let expected = || format!("`{text}` is no moment; expected one as `2026-11-25T10:00:00Z`");
        humantime::parse_rfc3339(&text).map(Self).map_err(|_| serde::de::Error::custom(expected()))
    }
}

/// A past request and what was decided then: one line of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PastRequest {
    /// The request.
    #[serde(flatten)]
    pub request: RequestRecord,
    /// What was decided.
    pub effect: Effect,
}

impl PrincipalRecord {
    /// A principal of whom only the id is known.
    pub fn named(id: impl Into<String>) -> Self {
        let (method, strength, tenant) = (None, None, None);
        Self { id: id.into(), method, strength, tenant, groups: Vec::new(), claims: BTreeMap::new() }
    }

    /// Writes a principal down. When its credential ends is left out: a decision in hindsight is not about that.
    pub fn of(principal: &Principal) -> Self {
        let strength = match principal.strength {
            Strength::Bearer => "bearer",
            Strength::KeyBound => "key_bound",
            Strength::Attested => "attested",
        };
        Self {
            id: principal.id.clone(),
            method: Some(method(principal.method).to_owned()),
            strength: Some(strength.to_owned()),
            tenant: principal.tenant.clone(),
            groups: principal.groups.clone(),
            claims: principal.claims.clone(),
        }
    }

    /// The principal, with a credential that does not end.
    ///
    /// # Errors
    /// A method or strength that there is not, an id whose method cannot be told.
    pub fn principal(&self) -> Result<Principal, TrustError> {
        let method = match self.method.as_deref() {
            Some("spiffe") => Method::Spiffe,
            Some("oidc") => Method::Oidc,
            Some("aws_iam") => Method::AwsIam,
            Some("local") => Method::Local,
            Some(other) => {
                let expected = "expected `spiffe`, `oidc`, `aws_iam` or `local`";
                return Err(invalid(format!("method `{other}` of a principal is unknown; {expected}")));
            }
            None => method_by_id(&self.id)?,
        };
        let strength = match self.strength.as_deref() {
            None | Some("bearer") => Strength::Bearer,
            Some("key_bound") => Strength::KeyBound,
            Some("attested") => Strength::Attested,
            Some(other) => {
                let expected = "expected `bearer`, `key_bound` or `attested`";
                return Err(invalid(format!("strength `{other}` of a principal is unknown; {expected}")));
            }
        };
        Ok(Principal {
            id: self.id.clone(),
            method,
            strength,
            tenant: self.tenant.clone(),
            groups: self.groups.clone(),
            claims: self.claims.clone(),
            bound_to: None,
            expires_at: never(),
        })
    }
}

/// Later than every moment that a record can name.
fn never() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1 << 40)
}

fn method_by_id(id: &str) -> Result<Method, TrustError> {
    match id {
        id if id.starts_with("spiffe://") => Ok(Method::Spiffe),
        id if id.starts_with("arn:") => Ok(Method::AwsIam),
        id if id.starts_with("local:") => Ok(Method::Local),
        id if id.contains('#') => Ok(Method::Oidc),
        _ => Err(invalid(format!(
            "principal `{id}` is of no known form; expected `spiffe://DOMAIN/PATH`, `ISSUER#SUBJECT`, `arn:…` or `local:NAME`"
        ))),
    }
}

impl ObservedRecord {
    /// Writes down what was observed.
    pub fn of(observed: &Observed) -> Self {
        let total = observed.score.total;
        let parts = observed.score.parts.iter().filter(|part| part.value != total);
        Self {
            at: Some(Moment(observed.now)),
            source: observed.source,
            network: Some(observed.network),
            site: observed.site.clone(),
            session_age_s: observed.session_age.as_secs(),
            attested_age_s: observed.attested_age.map(|age| age.as_secs()),
            request_bytes: observed.request_bytes,
            score: Some(total),
            score_parts: parts.map(|part| (part.part, part.value)).collect(),
            suspicions: observed.score.suspicions.iter().copied().collect(),
        }
    }

    /// What was observed; `now` where no moment is named.
    pub fn observed(&self, now: SystemTime) -> Observed {
        let mut score = Score::flat(self.score.unwrap_or(100));
        for part in &mut score.parts {
            part.value = self.score_parts.get(&part.part).map_or(part.value, |&value| value.min(100));
        }
        score.suspicions = self.suspicions.iter().map(|(&detector, &value)| (detector, value.min(100))).collect();
        Observed {
            now: self.at.map_or(now, |at| at.0),
            source: self.source,
            network: self.network.unwrap_or(Network::Loopback),
            site: self.site.clone(),
            session_age: Duration::from_secs(self.session_age_s),
            attested_age: self.attested_age_s.map(Duration::from_secs),
            request_bytes: self.request_bytes,
            score,
        }
    }
}

impl RequestRecord {
    /// Writes a request down.
    pub fn of(request: &Request<'_>, observed: &Observed) -> Self {
        Self {
            principal: PrincipalRecord::of(request.principal),
            action: request.action,
            resource: request.resource.clone(),
            observed: ObservedRecord::of(observed),
        }
    }
}

//! What was decided, and why.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::Serialize;

use super::terms::Terms;
use crate::{
    Principal,
    resource::{Action, Resource},
};

/// Who wants to do what to what.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Who asks, as verified.
    pub principal: &'a Principal,
    /// The operation.
    pub action: Action,
    /// What it is done to.
    pub resource: &'a Resource,
}

/// Yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// The request may go on.
    Allow,
    /// It may not.
    Deny,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

/// Why it was decided so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A policy permits it and none forbids it.
    Permitted,
    /// A policy forbids it.
    Forbidden,
    /// No policy permits it.
    NotPermitted,
    /// The resource is not listed.
    NotListed,
    /// The credential has ended.
    Expired,
    /// The policies could not be evaluated.
    Failed,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Permitted => "a policy permits it",
            Self::Forbidden => "a policy forbids it",
            Self::NotPermitted => "no policy permits it",
            Self::NotListed => "the resource is not listed",
            Self::Expired => "the credential has ended",
            Self::Failed => "the policies could not be evaluated",
        })
    }
}

/// Yes or no, with all that the log wants to know. Nothing of it but `effect` is for the caller.
#[derive(Clone, Debug, Serialize)]
pub struct Decision {
    /// Yes or no.
    pub effect: Effect,
    /// Why.
    pub reason: Reason,
    /// The policies that brought it about, by their ids.
    pub policies: Vec<Arc<PolicyInfo>>,
    /// On what terms a request is permitted; empty where it is not.
    #[serde(skip_serializing_if = "Terms::is_empty")]
    pub terms: Terms,
    /// Which policies decided.
    pub version: Arc<Version>,
    /// What went wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
}

impl Decision {
    /// A refusal without a policy.
    pub(super) fn deny(reason: Reason, version: &Arc<Version>, errors: Vec<String>) -> Self {
        let (policies, terms) = (Vec::new(), Terms::default());
        Self { effect: Effect::Deny, reason, policies, terms, version: Arc::clone(version), errors }
    }

    /// Whether the request may go on.
    pub fn allowed(&self) -> bool {
        self.effect == Effect::Allow
    }
}

/// A policy as decisions name it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PolicyInfo {
    /// What `@id("…")` says, else `FILE:LINE`.
    pub id: String,
    /// `FILE:LINE`.
    pub place: String,
    /// Whether it forbids.
    pub forbids: bool,
    /// Its annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Its terms.
    #[serde(skip)]
    pub terms: Terms,
}

/// Which policies decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Version {
    /// 1 for the first that this process loaded, then one more for each change.
    pub number: u64,
    /// SHA-256 over the files, in hexadecimal.
    pub digest: String,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.number, self.digest.get(..12).unwrap_or(&self.digest))
    }
}

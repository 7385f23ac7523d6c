//! What an issuer's claims mean: who, of which organisation, in which groups.

use std::{collections::BTreeMap, time::SystemTime};

use serde_json::Value;

use crate::{
    Method, Principal, TrustError,
    identity::{
        binding::Bound,
        jose::{Claims, unverified},
    },
};

const GROUPS_MAX: usize = 1000;
const TEXT_BYTES_MAX: usize = 1024;

/// Where an issuer's claims hold what a principal is made of. Places are JSON pointers (RFC 6901).
#[derive(Clone, Debug)]
pub struct ClaimMapping {
    /// The subject: the first of these that is text.
    pub subject: Vec<String>,
    /// The organisation.
    pub tenant: Option<TenantFrom>,
    /// Groups and roles: texts or lists of texts, all together.
    pub groups: Vec<String>,
    /// Further claims to keep, by their name in the principal.
    pub kept: Vec<(String, String)>,
    /// Claims that must have this value.
    pub required: Vec<(String, Value)>,
    /// `typ` of the header that is taken, lower case, beside none at all.
    pub types: Vec<String>,
}

/// How the organisation is known.
#[derive(Clone, Debug)]
pub enum TenantFrom {
    /// By a claim, which must be there.
    Claim(String),
    /// By a claim; a principal without it has no organisation.
    OptionalClaim(String),
    /// It is always this one.
    Fixed(String),
}

impl Default for ClaimMapping {
    fn default() -> Self {
        Self {
            subject: vec!["/sub".to_owned()],
            tenant: None,
            groups: vec!["/groups".to_owned()],
            kept: ["client_id", "azp", "scope", "email", "jti"]
                .iter()
                .map(|n| ((*n).to_owned(), format!("/{n}")))
                .collect(),
            required: Vec::new(),
            types: vec!["jwt".to_owned(), "at+jwt".to_owned(), "application/at+jwt".to_owned()],
        }
    }
}

/// A principal but for its binding and its end.
pub(super) struct Mapped {
    subject: String,
    tenant: Option<String>,
    groups: Vec<String>,
    claims: BTreeMap<String, String>,
}

impl Mapped {
    pub(super) fn principal(self, issuer: &str, bound: Bound, expires_at: SystemTime) -> Principal {
        Principal {
            id: format!("{issuer}#{}", self.subject),
            method: Method::Oidc,
            strength: bound.strength,
            tenant: self.tenant,
            groups: self.groups,
            claims: self.claims,
            bound_to: bound.to,
            expires_at,
        }
    }
}

impl ClaimMapping {
    /// Proofs, logout and event tokens are signed by the same keys; their `typ` tells them apart (RFC 8725 section 3.11).
    pub(super) fn check_type(&self, typ: Option<&str>) -> Result<(), TrustError> {
        match typ {
            Some(typ) if !self.types.contains(&typ.to_ascii_lowercase()) => Err(unverified(format!(
                "token has `typ` `{}`, expected `{}`",
                typ.escape_debug(),
                self.types.join("`, `")
            ))),
            _ => Ok(()),
        }
    }

    pub(super) fn apply(&self, claims: &Claims) -> Result<Mapped, TrustError> {
        let claims = Value::Object(claims.clone());
        for (place, expected) in &self.required {
            if claims.pointer(place) != Some(expected) {
                return Err(unverified(format!("token has not `{place}` = `{expected}`")));
            }
        }
        let subject = self.subject.iter().find_map(|place| text_at(&claims, place));
        let subject =
            subject.ok_or_else(|| unverified(format!("token has no subject at `{}`", self.subject.join("`, `"))))?;
        Ok(Mapped {
            subject: short(subject)?.to_owned(),
            tenant: self.tenant(&claims)?,
            groups: self.groups(&claims)?,
            claims: self.kept(&claims)?,
        })
    }

    fn tenant(&self, claims: &Value) -> Result<Option<String>, TrustError> {
        let place = match &self.tenant {
            None => return Ok(None),
            Some(TenantFrom::Fixed(name)) => return Ok(Some(name.clone())),
            Some(TenantFrom::Claim(place) | TenantFrom::OptionalClaim(place)) => place,
        };
        match (text_at(claims, place), &self.tenant) {
            (Some(name), _) => Ok(Some(short(name)?.to_owned())),
            (None, Some(TenantFrom::OptionalClaim(_))) => Ok(None),
            (None, _) => Err(unverified(format!("token has no organisation at `{place}`"))),
        }
    }

    fn groups(&self, claims: &Value) -> Result<Vec<String>, TrustError> {
        let mut groups = Vec::new();
        for value in self.groups.iter().filter_map(|place| claims.pointer(place)) {
            let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            for group in list {
                let group = group.as_str().ok_or_else(|| unverified("a group of the token is no text"))?;
                groups.push(short(group)?.to_owned());
            }
        }
        if groups.len() > GROUPS_MAX {
            return Err(unverified(format!("token has {} groups, at most {GROUPS_MAX} are read", groups.len())));
        }
        groups.sort_unstable();
        groups.dedup();
        Ok(groups)
    }

    fn kept(&self, claims: &Value) -> Result<BTreeMap<String, String>, TrustError> {
        let mut kept = BTreeMap::new();
        let email_verified = claims.pointer("/email_verified") == Some(&Value::Bool(true));
        // An address that the issuer has not verified is whatever its owner typed.
        for (name, place) in self.kept.iter().filter(|(name, _)| name != "email" || email_verified) {
            let text = match claims.pointer(place) {
                None | Some(Value::Null) => continue,
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
            };
            kept.insert(name.clone(), short(&text)?.to_owned());
        }
        Ok(kept)
    }
}

fn text_at<'a>(claims: &'a Value, place: &str) -> Option<&'a str> {
    claims.pointer(place).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// Names end in logs and policies: no control characters, no novels.
fn short(text: &str) -> Result<&str, TrustError> {
    if text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(unverified(format!("a claim is longer than {TEXT_BYTES_MAX} bytes or has control characters")));
    }
    Ok(text)
}

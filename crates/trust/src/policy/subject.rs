//! A verified principal as policies see it.

use std::collections::BTreeMap;

use cedar_policy::EntityUid;

use super::{
    evaluate::{Made, Value},
    listing::{Listing, Within},
    schema::uid_of,
    sources::invalid,
};
use crate::{Method, Principal, Strength, TrustError};

/// Most groups of a credential; each may be what a policy is about, so none can be left out.
pub(super) const GROUPS_MAX: usize = 1000;
/// Most claims of a credential.
pub(super) const CLAIMS_MAX: usize = 256;

/// Who a caller is to the policies: what it is in, and what its credential says.
pub(super) struct Subject {
    pub(super) uid: EntityUid,
    pub(super) within: Within,
    tags: Vec<(String, String)>,
    method: &'static str,
    issuer: String,
    strength: Strength,
    claims: BTreeMap<String, String>,
}

impl Subject {
    /// Joins what the credential says with what is listed of the principal.
    ///
    /// Groups of a credential are the issuer's (`Group::"ISSUER#NAME"`): no issuer can name a group of the operator. It is a member of its
    /// tenant only if that is listed and takes the issuer's word.
    pub(super) fn new(principal: &Principal, listing: &Listing) -> Result<Self, TrustError> {
        let (groups, claims) = (principal.groups.len(), principal.claims.len());
        if groups > GROUPS_MAX || claims > CLAIMS_MAX {
            return Err(invalid(format!(
                "`{}` comes with {groups} groups and {claims} claims; at most {GROUPS_MAX} and {CLAIMS_MAX} are decided on",
                principal.id
            )));
        }
        let uid = uid_of(kind(principal), &principal.id)?;
        let issuer = issuer(principal);
        let (mut within, mut tags) = (Within::default(), Vec::new());
        if let Some((_, listed)) = listing.get(&uid) {
            within.add_above(listed);
            tags.extend_from_slice(listed.tags());
        }
        for group in &principal.groups {
            let group = uid_of("Group", &format!("{issuer}#{group}"))?;
            match listing.get(&group) {
                Some((place, listed)) => within.add(place, listed),
                None => within.add_other(group),
            }
        }
        if let Some(tenant) = &principal.tenant {
            let listed = listing.get(&uid_of("Tenant", tenant)?);
            if let Some((place, listed)) = listed.filter(|(_, listed)| listed.takes_word_of(&issuer)) {
                within.add(place, listed);
            }
        }
        let (method, strength, claims) = (method(principal.method), principal.strength, principal.claims.clone());
        Ok(Self { uid, within: within.sorted(), tags, method, issuer, strength, claims })
    }

    /// Somebody of whom nothing is known but one group or tenant, or not even that.
    pub(super) fn member(
        kind: &str,
        of: Option<&EntityUid>,
        strength: Strength,
        listing: &Listing,
    ) -> Result<Self, TrustError> {
        let mut within = Within::default();
        if let Some((place, listed)) = of.and_then(|of| listing.get(of)) {
            within.add(place, listed);
        }
        let issuer = of.and_then(|of| of.id().unescaped().split_once('#')).map_or("", |(issuer, _)| issuer);
        let (method, issuer) = ("", issuer.to_owned());
        let (within, tags, claims) = (within.sorted(), Vec::new(), BTreeMap::new());
        Ok(Self { uid: uid_of(kind, "")?, within, tags, method, issuer, strength, claims })
    }

    /// Its entity.
    pub(super) fn entity(self, listing: &Listing) -> Made {
        let attributes = [
            ("method", Value::from(self.method)),
            ("issuer", Value::from(self.issuer)),
            ("strength", Value::from(strength(self.strength))),
        ];
        let claims = self.claims.into_iter().map(|(name, value)| (format!("claim.{name}"), value));
        // A label of the operator cannot begin with `claim.`, so neither hides the other.
        let tags = claims.chain(self.tags);
        Made::new(self.uid, self.within.uids(listing).cloned(), attributes.into_iter(), tags)
    }
}

/// Persons are `User`s, programs `Workload`s.
fn kind(principal: &Principal) -> &'static str {
    match principal.method {
        Method::Spiffe | Method::AwsIam => "Workload",
        Method::Oidc if subject(principal).starts_with("system:serviceaccount:") => "Workload",
        Method::Oidc | Method::Local => "User",
    }
}

fn subject(principal: &Principal) -> &str {
    principal.id.split_once('#').map_or(principal.id.as_str(), |(_, subject)| subject)
}

/// Who vouches for a principal, as policies name it.
pub(super) fn issuer(principal: &Principal) -> String {
    let id = &principal.id;
    match principal.method {
        // An issuer is a URL without a fragment (OpenID Connect Discovery, 3).
        Method::Oidc => id.split_once('#').map_or(id.as_str(), |(issuer, _)| issuer).to_owned(),
        Method::Spiffe => {
            let domain = id.strip_prefix("spiffe://").and_then(|rest| rest.split('/').next());
            format!("spiffe://{}", domain.unwrap_or_default())
        }
        // arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE
        Method::AwsIam => format!("aws:{}", id.split(':').nth(4).unwrap_or_default()),
        Method::Local => "local".to_owned(),
    }
}

/// The word of a method in policies.
pub(super) fn method(method: Method) -> &'static str {
    match method {
        Method::Spiffe => "spiffe",
        Method::Oidc => "oidc",
        Method::AwsIam => "aws_iam",
        Method::Local => "local",
    }
}

fn strength(strength: Strength) -> i64 {
    match strength {
        Strength::Bearer => 1,
        Strength::KeyBound => 2,
        Strength::Attested => 3,
    }
}

//! A verified principal as policies see it.

use std::collections::BTreeMap;

use cedar_policy::{Entity, EntityUid, RestrictedExpression};

use super::{
    listing::{Listing, shown, uid_of},
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
    /// All that it is in, directly or not.
    pub(super) ancestors: Vec<EntityUid>,
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
        let mut parents = Vec::with_capacity(groups + 1);
        for group in &principal.groups {
            parents.push(uid_of("Group", &format!("{issuer}#{group}"))?);
        }
        if let Some(tenant) = &principal.tenant {
            let tenant = uid_of("Tenant", tenant)?;
            parents.extend(listing.vouches(&issuer, &tenant).then_some(tenant));
        }
        let mut ancestors: Vec<EntityUid> = listing.ancestors(&uid).cloned().collect();
        for parent in parents {
            ancestors.extend(listing.ancestors(&parent).cloned());
            ancestors.push(parent);
        }
        ancestors.sort_unstable();
        ancestors.dedup();
        let (method, strength, claims) = (method(principal.method), principal.strength, principal.claims.clone());
        Ok(Self { uid, ancestors, method, issuer, strength, claims })
    }

    /// Somebody of whom nothing is known but one group or tenant, or not even that.
    pub(super) fn member(
        kind: &str,
        of: Option<&EntityUid>,
        strength: Strength,
        listing: &Listing,
    ) -> Result<Self, TrustError> {
        let ancestors = of.map(|of| listing.ancestors(of).chain([of]).cloned().collect()).unwrap_or_default();
        let issuer = of.and_then(|of| of.id().unescaped().split_once('#')).map_or("", |(issuer, _)| issuer);
        let (method, issuer) = ("", issuer.to_owned());
        Ok(Self { uid: uid_of(kind, "")?, ancestors, method, issuer, strength, claims: BTreeMap::new() })
    }

    /// Its entity, with all that it is in as parents.
    pub(super) fn entity(&self, listing: &Listing) -> Result<Entity, TrustError> {
        let text = |value: &str| RestrictedExpression::new_string(value.to_owned());
        let attributes = [
            ("method".to_owned(), text(self.method)),
            ("issuer".to_owned(), text(&self.issuer)),
            ("strength".to_owned(), RestrictedExpression::new_long(strength(self.strength))),
        ];
        let claims = self.claims.iter().map(|(name, value)| (format!("claim.{name}"), text(value)));
        // A label of the operator cannot begin with `claim.`, so neither hides the other.
        let labels = listing.tags(&self.uid).iter().map(|(name, value)| (name.clone(), text(value)));
        Entity::new_with_tags(self.uid.clone(), attributes, self.ancestors.iter().cloned(), claims.chain(labels))
            .map_err(|error| invalid(format!("`{}` cannot be decided on: {error}", shown(&self.uid))))
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

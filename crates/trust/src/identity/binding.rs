//! Whether the client has the key that its token is bound to: `cnf` by certificate (RFC 8705) or by DPoP (RFC 9449).

use std::time::SystemTime;

use serde_json::Value;

use super::{
    Connection, Credential,
    dpop::{Dpop, Target},
    jose::{Claims, unverified},
};
use crate::{Strength, Thumbprint, TrustError};

/// The member of `cnf` for a certificate.
pub(crate) const CERTIFICATE: &str = "x5t#S256";
/// The member of `cnf` for a key that makes proofs.
pub(crate) const KEY: &str = "jkt";

/// What a token's binding came to.
pub(crate) struct Bound {
    pub strength: Strength,
    pub to: Option<Thumbprint>,
}

/// Checks each way in which `claims` bind their token; a binding that cannot be checked is refused.
///
/// # Errors
/// `Unverified` where the client has not shown the key.
pub(crate) fn confirm(
    claims: &Claims,
    credential: &Credential<'_>,
    connection: &Connection<'_>,
    dpop: &Dpop,
    now: SystemTime,
) -> Result<Bound, TrustError> {
    let Some(cnf) = claims.get("cnf") else { return unbound(credential) };
    let members = cnf.as_object().filter(|members| !members.is_empty());
    let members = members.ok_or_else(|| unverified("`cnf` of token is no object that names a key"))?;
    if let Some(other) = members.keys().find(|name| *name != CERTIFICATE && *name != KEY) {
        return Err(unverified(format!("token is bound by `{other}`; expected `{CERTIFICATE}` or `{KEY}`")));
    }
    let certificate = members.get(CERTIFICATE).map(thumbprint).transpose()?;
    if let Some(certificate) = certificate
        && connection.certificate_thumbprint() != Some(certificate)
    {
        return Err(unverified("token is bound to a certificate that this connection does not have"));
    }
    let key = members.get(KEY).map(thumbprint).transpose()?;
    match (key, credential) {
        (Some(key), _) => prove(key, credential, connection, dpop, now)?,
        (None, Credential::Dpop { .. }) => {
            return Err(unverified("token comes with a proof but is not bound to a key"));
        }
        (None, _) => {}
    }
    Ok(Bound { strength: Strength::KeyBound, to: certificate.or(key) })
}

fn unbound(credential: &Credential<'_>) -> Result<Bound, TrustError> {
    match credential {
        Credential::Dpop { .. } => Err(unverified("token comes with a proof but is not bound to a key")),
        _ => Ok(Bound { strength: Strength::Bearer, to: None }),
    }
}

fn prove(
    key: Thumbprint,
    credential: &Credential<'_>,
    connection: &Connection<'_>,
    dpop: &Dpop,
    now: SystemTime,
) -> Result<(), TrustError> {
    let shown = match credential {
        Credential::Dpop { token, proof } => {
            let target = Target { method: connection.method, url: connection.url, token: Some(token) };
            let proof = dpop.check(proof, &target, now)?;
            if proof.key == key {
                dpop.spend(&proof, now)?;
            }
            Some(proof.key)
        }
        Credential::Subject { shown, .. } => *shown,
        Credential::Bearer(_) | Credential::Certificate => None,
    };
    match shown {
        Some(shown) if shown == key => Ok(()),
        Some(_) => Err(unverified("token is bound to another key than the proof's")),
        None => Err(unverified("token is bound to a key, and comes without a proof (`DPoP`)")),
    }
}

fn thumbprint(value: &Value) -> Result<Thumbprint, TrustError> {
    let thumbprint = value.as_str().and_then(Thumbprint::from_base64url);
    thumbprint.ok_or_else(|| unverified("`cnf` of token: expected a SHA-256 as base64url"))
}

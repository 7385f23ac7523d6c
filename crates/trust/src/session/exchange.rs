//! Any credential for a session: OAuth 2.0 Token Exchange (RFC 8693).

use std::{sync::Arc, time::SystemTime};

use serde::Serialize;

use super::{SessionKey, Sessions};
use crate::{
    ErrorKind, Principal, Thumbprint, TrustError,
    identity::{
        Connection, Credential, Identities,
        dpop::{Dpop, Target},
        jose::{invalid, seconds, unverified},
    },
    revocation::Revocations,
};

const BODY_BYTES_MAX: usize = 64 * 1024;
const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
/// A pre-signed request of AWS.
const AWS: &str = "urn:edgeward:params:token-type:aws-presigned";
/// The client certificate of the connection; the token is its `x5t#S256`.
const CERTIFICATE: &str = "urn:edgeward:params:token-type:client-certificate";

/// A request for a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExchangeRequest {
    subject_token: String,
    certificate: bool,
    audiences: Vec<String>,
}

impl ExchangeRequest {
    /// Reads the form of a request (`application/x-www-form-urlencoded`).
    ///
    /// # Errors
    /// `Invalid`, naming the parameter. One that would have no effect is refused too.
    pub fn parse(body: &[u8]) -> Result<Self, TrustError> {
        if body.len() > BODY_BYTES_MAX {
            return Err(invalid(format!("token exchange of {} bytes: at most {BODY_BYTES_MAX}", body.len())));
        }
        let (mut token, mut kind, mut grant, mut requested) = (None, None, None, None);
        let mut audiences = Vec::new();
        for (name, value) in url::form_urlencoded::parse(body) {
            let slot = match &*name {
                "audience" | "resource" => {
                    audiences.push(value.into_owned());
                    continue;
                }
                "grant_type" => &mut grant,
                "subject_token" => &mut token,
                "subject_token_type" => &mut kind,
                "requested_token_type" => &mut requested,
                other => {
                    return Err(invalid(format!(
                        "parameter `{}` of token exchange has no effect here",
                        other.escape_debug()
                    )));
                }
            };
            if slot.replace(value.into_owned()).is_some() {
                return Err(invalid(format!("parameter `{name}` of token exchange is there twice")));
            }
        }
        if grant.as_deref() != Some(GRANT) {
            return Err(invalid(format!("`grant_type` of token exchange: expected `{GRANT}`")));
        }
        if requested.is_some_and(|kind| kind != ACCESS_TOKEN && kind != JWT) {
            return Err(invalid(format!("`requested_token_type`: expected `{ACCESS_TOKEN}` or none")));
        }
        let certificate = match kind.as_deref() {
            Some(ACCESS_TOKEN | JWT | ID_TOKEN | AWS) => false,
            Some(CERTIFICATE) => true,
            _ => {
                return Err(invalid(format!(
                    "`subject_token_type`: expected one of `{ACCESS_TOKEN}`, `{JWT}`, `{ID_TOKEN}`, `{AWS}`, `{CERTIFICATE}`"
                )));
            }
        };
        let subject_token =
            token.filter(|t| !t.is_empty()).ok_or_else(|| invalid("token exchange has no `subject_token`"))?;
        Ok(Self { subject_token, certificate, audiences })
    }
}

/// The answer to a client, as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct ExchangeResponse {
    /// The session.
    pub access_token: String,
    /// Its kind.
    pub issued_token_type: &'static str,
    /// How it is sent: `DPoP` with a proof, `Bearer` over a connection with the certificate.
    pub token_type: &'static str,
    /// Seconds that it lives.
    pub expires_in: u64,
}

/// Exchanges credentials for sessions.
pub struct Exchange {
    /// Who is believed.
    pub identities: Identities,
    /// Who makes the sessions.
    pub sessions: Arc<Sessions>,
    /// Checks the proofs; the one of the whole server.
    pub dpop: Arc<Dpop>,
    /// Who gets none.
    pub revocations: Arc<Revocations>,
}

impl Exchange {
    /// Verifies the credential and opens a session that is bound to the key that the client has shown: by a proof, else by its certificate.
    ///
    /// # Errors
    /// `Unverified` where the client has shown no key, `Denied` where it was revoked, or those of its provider.
    pub async fn run(
        &self,
        request: &ExchangeRequest,
        proof: Option<&str>,
        connection: Connection<'_>,
        now: SystemTime,
    ) -> Result<(ExchangeResponse, Principal), TrustError> {
        let audience = &self.sessions.settings.audience;
        if let Some(other) = request.audiences.iter().find(|wanted| *wanted != audience) {
            return Err(invalid(format!("audience `{}`: sessions are for `{audience}`", other.escape_debug())));
        }
        let proof = match proof {
            Some(proof) => {
                let target = Target { method: connection.method, url: connection.url, token: None };
                Some(self.dpop.check(proof, &target, now)?)
            }
            None => None,
        };
        let key = match (&proof, connection.certificate_thumbprint()) {
            (Some(proof), _) => SessionKey::Proof(proof.key),
            (None, Some(certificate)) => SessionKey::Certificate(certificate),
            (None, None) => {
                return Err(unverified(
                    "a session is bound to a key: send a proof (`DPoP`), or connect with a client certificate",
                ));
            }
        };
        let shown = proof.as_ref().map(|proof| proof.key);
        let credential = subject(request, &connection, shown)?;
        let principal = self.identities.verify(credential, connection, now).resolve().await?;
        self.revocations.check(&principal, now)?;
        if let Some(proof) = &proof {
            self.dpop.spend(proof, now)?;
        }
        let session = self.sessions.open(&principal, key, now).await?;
        let response = ExchangeResponse {
            access_token: session.token,
            issued_token_type: ACCESS_TOKEN,
            token_type: if proof.is_some() { "DPoP" } else { "Bearer" },
            expires_in: seconds(session.expires_at).saturating_sub(seconds(now)),
        };
        Ok((response, principal))
    }
}

fn subject<'a>(
    request: &'a ExchangeRequest,
    connection: &Connection<'_>,
    shown: Option<Thumbprint>,
) -> Result<Credential<'a>, TrustError> {
    let token = request.subject_token.as_str();
    if !request.certificate {
        return Ok(Credential::Subject { token, shown });
    }
    if connection.certificate_thumbprint() != Thumbprint::from_base64url(token) {
        return Err(unverified("`subject_token` is not the `x5t#S256` of this connection's certificate"));
    }
    Ok(Credential::Certificate)
}

/// The error code of RFC 6749 section 5.2 and RFC 8693 section 2.2.2 for a failed exchange; it says no more than that.
pub fn oauth_error(error: &TrustError) -> &'static str {
    match error.kind() {
        ErrorKind::Unavailable => "temporarily_unavailable",
        _ => "invalid_request",
    }
}

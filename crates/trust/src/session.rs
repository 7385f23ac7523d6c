//! Sessions: short tokens of this server, bound to the client's key.
//!
//! Any credential is exchanged for one (RFC 8693). A session ends with its credential at the latest, and is as strong as that credential was:
//! who exchanges a stolen bearer token has a session, but not one that counts as key-bound.

mod exchange;
mod signer;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL};
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub use self::{
    exchange::{Exchange, ExchangeRequest, ExchangeResponse, oauth_error},
    signer::{LocalSigner, TokenSigner},
};
use crate::{
    Method, Principal, Strength, Thumbprint, TrustError,
    identity::{
        Connection, Credential, IdentityProvider, Verification, binding,
        dpop::Dpop,
        jose::{self, Claims, Jws, PublicKey, TOKEN_BYTES_MAX, invalid, unverified},
    },
    keys::random_bytes,
};

/// Tells a session apart from every other token that the same key may sign (RFC 8725 section 3.11).
const TYPE: &str = "edgeward-session+jwt";

/// How sessions are made.
#[derive(Clone, Debug)]
pub struct SessionSettings {
    /// `iss` of sessions: the name of this installation.
    pub issuer: String,
    /// `aud` of sessions: the service that takes them, which may be several servers.
    pub audience: String,
    /// Longest life.
    pub ttl_max: Duration,
    /// How far the clocks of servers that share the key may differ.
    pub clock_skew: Duration,
    /// Verified tokens that are kept, so that each signature is checked once.
    pub verified_max: usize,
}

impl SessionSettings {
    /// Sessions of 15 minutes.
    pub fn new(issuer: impl Into<String>, audience: impl Into<String>) -> Self {
        let (issuer, audience) = (issuer.into(), audience.into());
        Self {
            issuer,
            audience,
            ttl_max: Duration::from_secs(900),
            clock_skew: Duration::from_secs(5),
            verified_max: 10_000,
        }
    }
}

/// The key that a session is bound to, and how the client shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionKey {
    /// The certificate of the client's connections (RFC 8705).
    Certificate(Thumbprint),
    /// Proofs with each request (RFC 9449).
    Proof(Thumbprint),
}

/// A session that was just made.
#[derive(Clone, Debug)]
pub struct Session {
    /// Its ID, by which it is revoked.
    pub id: String,
    /// What the client sends.
    pub token: String,
    /// When it ends.
    pub expires_at: SystemTime,
}

/// Makes sessions and verifies them.
pub struct Sessions {
    settings: SessionSettings,
    keys: ArcSwap<Keys>,
    dpop: Arc<Dpop>,
    verified: Cache<[u8; 32], Arc<Verified>>,
}

struct Keys {
    signer: Arc<dyn TokenSigner>,
    /// The newest first; older ones until their last session has ended.
    known: Vec<(PublicKey, Value, Option<SystemTime>)>,
}

struct Verified {
    claims: Claims,
    principal: Principal,
}

/// What a session says beside the registered claims.
#[derive(Serialize, Deserialize)]
struct Content {
    sub: String,
    jti: String,
    method: Method,
    strength: Strength,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    attributes: BTreeMap<String, String>,
}

/// The claims of a session: those of its credential, and the key that this was bound to, so that a revoked key ends its sessions, too.
fn attributes(principal: &Principal, key: SessionKey) -> BTreeMap<String, String> {
    let (SessionKey::Certificate(own) | SessionKey::Proof(own)) = key;
    let before = principal.bound_to.filter(|before| *before != own);
    let before = before.map(|before| (Principal::CREDENTIAL_KEY.to_owned(), before.to_base64url()));
    principal.claims.clone().into_iter().chain(before).collect()
}

impl Sessions {
    /// Sessions signed by `signer`.
    ///
    /// # Errors
    /// `Invalid` where names or key cannot be used.
    pub fn new(settings: SessionSettings, signer: Arc<dyn TokenSigner>, dpop: Arc<Dpop>) -> Result<Self, TrustError> {
        if settings.issuer.is_empty() || settings.audience.is_empty() {
            return Err(invalid("sessions need an issuer and an audience"));
        }
        let known = vec![known(&*signer)?];
        let verified = Cache::new(settings.verified_max);
        Ok(Self { settings, keys: ArcSwap::from_pointee(Keys { signer, known }), dpop, verified })
    }

    /// Signs with another key from now on; sessions of the old one live out their time.
    ///
    /// # Errors
    /// `Invalid` where the key cannot be used.
    pub fn rotate(&self, signer: Arc<dyn TokenSigner>, now: SystemTime) -> Result<(), TrustError> {
        let newest = known(&*signer)?;
        let end = now + self.settings.ttl_max + self.settings.clock_skew;
        self.keys.rcu(|keys| {
            let old = keys.known.iter().filter(|(key, _, until)| {
                key.thumbprint() != newest.0.thumbprint() && until.is_none_or(|until| until > now)
            });
            let old = old.map(|(key, jwk, until)| (key.clone(), jwk.clone(), until.or(Some(end))));
            Keys { signer: Arc::clone(&signer), known: std::iter::once(newest.clone()).chain(old).collect() }
        });
        Ok(())
    }

    /// The public keys as a JWK set, for others that take these sessions.
    pub fn jwks(&self) -> Value {
        let keys = self.keys.load();
        json!({ "keys": keys.known.iter().map(|(_, jwk, _)| jwk).collect::<Vec<_>>() })
    }

    /// Makes a session for a principal that was just verified.
    ///
    /// # Errors
    /// `Expired` where its credential has ended, `Invalid` where its claims do not fit into a token, or the signer's.
    pub async fn open(&self, principal: &Principal, key: SessionKey, now: SystemTime) -> Result<Session, TrustError> {
        let expires_at = principal.expires_at.min(now + self.settings.ttl_max);
        if expires_at <= now {
            return Err(jose::expired(format!("credential of `{}` has ended", principal.id)));
        }
        let id = BASE64URL.encode(random_bytes::<16>()?);
        let content = Content {
            sub: principal.id.clone(),
            jti: id.clone(),
            method: principal.method,
            strength: principal.strength,
            tenant: principal.tenant.clone(),
            groups: principal.groups.clone(),
            attributes: attributes(principal, key),
        };
        let token = self.sign(&content, key, now, expires_at).await?;
        if token.len() > TOKEN_BYTES_MAX {
            return Err(invalid(format!(
                "session of `{}` has {} bytes: it has too many groups or claims",
                principal.id,
                token.len()
            )));
        }
        Ok(Session { id, token, expires_at })
    }

    async fn sign(
        &self,
        content: &Content,
        key: SessionKey,
        now: SystemTime,
        expires_at: SystemTime,
    ) -> Result<String, TrustError> {
        let unusable = |e: serde_json::Error| invalid(format!("session: {e}"));
        let signer = Arc::clone(&self.keys.load().signer);
        let header = json!({ "alg": signer.algorithm(), "typ": TYPE, "kid": signer.public_jwk().get("kid") });
        let mut claims = serde_json::to_value(content).map_err(unusable)?;
        let registered = json!({
            "iss": self.settings.issuer,
            "aud": self.settings.audience,
            "iat": jose::seconds(now),
            "exp": jose::seconds(expires_at),
            "cnf": match key {
                SessionKey::Certificate(thumbprint) => json!({ binding::CERTIFICATE: thumbprint.to_base64url() }),
                SessionKey::Proof(thumbprint) => json!({ binding::KEY: thumbprint.to_base64url() }),
            },
        });
        if let (Some(claims), Value::Object(registered)) = (claims.as_object_mut(), registered) {
            claims.extend(registered);
        }
        let message = format!("{}.{}", BASE64URL.encode(header.to_string()), BASE64URL.encode(claims.to_string()));
        let signature = signer.sign(message.as_bytes()).await?;
        Ok(format!("{message}.{}", BASE64URL.encode(signature)))
    }

    fn principal(
        &self,
        credential: &Credential<'_>,
        connection: &Connection<'_>,
        now: SystemTime,
    ) -> Result<Principal, TrustError> {
        let token = match credential {
            Credential::Bearer(token) | Credential::Dpop { token, .. } => token,
            Credential::Subject { .. } => return Err(unverified("a session is not exchanged for another one")),
            Credential::Certificate => return Err(unverified("a client certificate is no session")),
        };
        let verified = self.verified(token, now)?;
        jose::check_times(&verified.claims, now, self.settings.clock_skew)?;
        let bound = binding::confirm(&verified.claims, credential, connection, &self.dpop, now)?;
        let mut principal = verified.principal.clone();
        principal.bound_to = bound.to;
        Ok(principal)
    }

    /// A token whose signature and content are good. What depends on the request and the time is checked each time.
    fn verified(&self, token: &str, now: SystemTime) -> Result<Arc<Verified>, TrustError> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        if let Some(verified) = self.verified.get(&digest) {
            return Ok(verified);
        }
        let jws = Jws::parse(token)?;
        if jws.header.typ.as_deref() != Some(TYPE) {
            return Err(unverified(format!("session has another `typ` than `{TYPE}`")));
        }
        let claims = jws.verify(&self.key(&jws, now)?)?;
        let named = |claim: &str, expected: &str| match jose::text(&claims, claim)? {
            text if text == expected => Ok(()),
            other => {
                Err(unverified(format!("session has `{claim}` `{}`, expected `{expected}`", other.escape_debug())))
            }
        };
        named("iss", &self.settings.issuer)?;
        named("aud", &self.settings.audience)?;
        if !claims.contains_key("cnf") {
            return Err(unverified("session is bound to no key"));
        }
        let expires_at = jose::check_times(&claims, now, self.settings.clock_skew)?;
        let content = Content::deserialize(Value::Object(claims.clone()));
        let content = content.map_err(|e| unverified(format!("session: {e}")))?;
        let verified = Arc::new(Verified { principal: content.principal(&claims, expires_at), claims });
        self.verified.insert(digest, Arc::clone(&verified));
        Ok(verified)
    }

    fn key(&self, jws: &Jws<'_>, now: SystemTime) -> Result<PublicKey, TrustError> {
        let keys = self.keys.load();
        let known = keys.known.iter().find(|(key, _, until)| {
            key.id().is_some() && key.id() == jws.header.kid.as_deref() && until.is_none_or(|until| until > now)
        });
        known.map(|(key, ..)| key.clone()).ok_or_else(|| unverified("session is signed by no key of this server"))
    }
}

impl Content {
    fn principal(self, token: &Claims, expires_at: SystemTime) -> Principal {
        let mut claims = self.attributes;
        claims.remove(Principal::SINCE);
        if let Some(since) = token.get("iat").and_then(Value::as_f64) {
            claims.insert(Principal::SINCE.to_owned(), format!("{since:.0}"));
        }
        claims.insert(Principal::SESSION.to_owned(), self.jti);
        Principal {
            id: self.sub,
            method: self.method,
            strength: self.strength,
            tenant: self.tenant,
            groups: self.groups,
            claims,
            bound_to: None,
            expires_at,
        }
    }
}

fn known(signer: &dyn TokenSigner) -> Result<(PublicKey, Value, Option<SystemTime>), TrustError> {
    let jwk = signer.public_jwk();
    let key = PublicKey::from_jwk(jwk)?;
    if key.id().is_none() || !key.fits(signer.algorithm()) {
        return Err(invalid("key of sessions: expected a `kid`, and a kind that fits its algorithm"));
    }
    Ok((key, jwk.clone(), None))
}

impl IdentityProvider for Sessions {
    fn name(&self) -> &str {
        "session"
    }

    fn claims(&self, credential: &Credential<'_>) -> bool {
        // By its header alone: this is asked with every call, before the memory of verified tokens is.
        let jws = credential.token().and_then(|token| Jws::parse(token).ok());
        jws.is_some_and(|jws| jws.header.typ.as_deref() == Some(TYPE))
    }

    fn verify<'a>(
        &'a self,
        credential: Credential<'a>,
        connection: Connection<'a>,
        now: SystemTime,
    ) -> Verification<'a> {
        self.principal(&credential, &connection, now).into()
    }
}

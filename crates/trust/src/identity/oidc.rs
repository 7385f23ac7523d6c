//! Tokens of OpenID providers: Entra ID, Google, Keycloak, Kubernetes service accounts, or any other with a discovery document.
//!
//! A token is verified with the issuer's keys at hand; the issuer is asked only for a key that is not known yet, or once its keys are old.

mod keys;
mod mapping;
mod presets;

use std::time::{Duration, SystemTime};

use serde_json::Value;

pub use self::{
    keys::{KeySource, KeySourceSettings},
    mapping::{ClaimMapping, TenantFrom},
};
use super::{
    Connection, Credential, IdentityProvider, Verification, binding,
    dpop::Dpop,
    http::Http,
    jose::{self, Algorithm, Claims, Jws, PublicKey, invalid, unverified},
};
use crate::{Principal, TrustError};

/// Clocks may differ by this much at most, whatever is configured.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(300);

/// An issuer, and what its tokens must say.
#[derive(Clone, Debug)]
pub struct OidcSettings {
    /// What to call it in errors.
    pub name: String,
    /// `iss`, letter for letter, and where its discovery document is found.
    pub issuer: String,
    /// Other spellings of `iss` that this issuer uses.
    pub issuer_aliases: Vec<String>,
    /// A token must be for one of these. Never empty.
    pub audiences: Vec<String>,
    /// Signatures that are taken.
    pub algorithms: Vec<Algorithm>,
    /// How far the issuer's clock may differ.
    pub clock_skew: Duration,
    /// Where its keys are, and how often it is asked.
    pub keys: KeySourceSettings,
    /// What its claims mean.
    pub mapping: ClaimMapping,
}

impl OidcSettings {
    /// An issuer with the defaults of OpenID Connect: subject by `sub`, groups by `groups`.
    pub fn new(issuer: impl Into<String>, audience: impl Into<String>) -> Self {
        let issuer = issuer.into();
        Self {
            name: issuer.clone(),
            issuer,
            issuer_aliases: Vec::new(),
            audiences: vec![audience.into()],
            algorithms: Algorithm::ALL.to_vec(),
            clock_skew: Duration::from_secs(30),
            keys: KeySourceSettings::default(),
            mapping: ClaimMapping::default(),
        }
    }

    fn check(&self) -> Result<(), TrustError> {
        let wrong = |what: &str| Err(invalid(format!("issuer `{}`: {what}", self.name)));
        super::http::authority_url(&self.issuer)?;
        if self.audiences.is_empty() || self.audiences.iter().any(String::is_empty) {
            return wrong("expected an audience; without one, a token for any other service would be taken");
        }
        if self.algorithms.is_empty() {
            return wrong("expected at least one algorithm");
        }
        if self.clock_skew > CLOCK_SKEW_MAX {
            return wrong("clock skew: at most `300s`");
        }
        Ok(())
    }
}

/// Verifies the tokens of one issuer.
pub struct Oidc {
    settings: OidcSettings,
    keys: KeySource,
    dpop: std::sync::Arc<Dpop>,
}

impl Oidc {
    /// A verifier that has not asked its issuer for keys yet. `dpop` is the one of the whole server, so that a proof counts once in all.
    ///
    /// # Errors
    /// `Invalid` where the settings cannot be safe.
    pub fn new(settings: OidcSettings, http: Http, dpop: std::sync::Arc<Dpop>) -> Result<Self, TrustError> {
        settings.check()?;
        let keys = KeySource::new(&settings.issuer, settings.keys.clone(), http)?;
        Ok(Self { settings, keys, dpop })
    }

    /// The issuer's keys, e.g. to fetch them before the first caller comes.
    pub fn keys(&self) -> &KeySource {
        &self.keys
    }

    fn is_issuer(&self, issuer: &str) -> bool {
        self.settings.issuer == issuer || self.settings.issuer_aliases.iter().any(|alias| alias == issuer)
    }

    fn parse<'a>(&self, credential: &Credential<'a>) -> Result<Jws<'a>, TrustError> {
        let jws = Jws::parse(credential.token().ok_or_else(|| unverified("a client certificate is no token"))?)?;
        if !self.settings.algorithms.contains(&jws.header.alg) {
            return Err(unverified(format!(
                "algorithm `{:?}` is not allowed for issuer `{}`",
                jws.header.alg, self.settings.name
            )));
        }
        Ok(jws)
    }

    fn principal(
        &self,
        key: &PublicKey,
        jws: &Jws<'_>,
        credential: &Credential<'_>,
        connection: &Connection<'_>,
        now: SystemTime,
    ) -> Result<Principal, TrustError> {
        let claims = jws.verify(key)?;
        let issuer = jose::text(&claims, "iss")?;
        if !self.is_issuer(issuer) {
            return Err(unverified(format!(
                "token is of issuer `{}`, expected `{}`",
                issuer.escape_debug(),
                self.settings.issuer
            )));
        }
        self.check_audience(&claims)?;
        self.settings.mapping.check_type(jws.header.typ.as_deref())?;
        let expires_at = jose::check_times(&claims, now, self.settings.clock_skew)?;
        let mapped = self.settings.mapping.apply(&claims)?;
        let bound = binding::confirm(&claims, credential, connection, &self.dpop, now)?;
        Ok(mapped.principal(&self.settings.issuer, bound, expires_at))
    }

    fn check_audience(&self, claims: &Claims) -> Result<(), TrustError> {
        let ours = |value: &Value| value.as_str().is_some_and(|text| self.settings.audiences.iter().any(|a| a == text));
        let fits = match claims.get("aud") {
            Some(Value::Array(values)) => values.iter().any(ours),
            Some(value) => ours(value),
            None => false,
        };
        if fits {
            return Ok(());
        }
        Err(unverified(format!("token is for another audience, expected `{}`", self.settings.audiences.join("`, `"))))
    }

    async fn ask(
        &self,
        credential: Credential<'_>,
        connection: Connection<'_>,
        now: SystemTime,
    ) -> Result<Principal, TrustError> {
        let jws = self.parse(&credential)?;
        self.keys.refresh(jws.header.kid.as_deref(), now).await?;
        let key = self.keys.at_hand(jws.header.kid.as_deref(), jws.header.alg)?;
        self.principal(&key, &jws, &credential, &connection, now)
    }
}

impl IdentityProvider for Oidc {
    fn name(&self) -> &str {
        &self.settings.name
    }

    fn claims(&self, credential: &Credential<'_>) -> bool {
        let claims = credential.token().and_then(|token| Jws::parse(token).ok()?.unverified_claims().ok());
        claims.is_some_and(|claims| claims.get("iss").and_then(Value::as_str).is_some_and(|iss| self.is_issuer(iss)))
    }

    fn verify<'a>(
        &'a self,
        credential: Credential<'a>,
        connection: Connection<'a>,
        now: SystemTime,
    ) -> Verification<'a> {
        let jws = match self.parse(&credential) {
            Ok(jws) => jws,
            Err(error) => return Err(error).into(),
        };
        let kid = jws.header.kid.as_deref();
        if self.keys.should_ask(kid, now) {
            return Verification::Asks(Box::pin(self.ask(credential, connection, now)));
        }
        let key = self.keys.usable(now).and_then(|()| self.keys.at_hand(kid, jws.header.alg));
        key.and_then(|key| self.principal(&key, &jws, &credential, &connection, now)).into()
    }
}

//! Proof of possession at the application layer: DPoP (RFC 9449).

use std::time::{Duration, SystemTime};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL};
use sha2::{Digest as _, Sha256};
use url::Url;

use super::{
    jose::{self, Jws, PublicKey, TOKEN_BYTES_MAX, expired, unverified},
    replay::ReplayCache,
};
use crate::{ErrorKind, Thumbprint, TrustError};

/// How proofs are checked.
#[derive(Clone, Debug)]
pub struct DpopSettings {
    /// Age at which a proof is refused.
    pub age_max: Duration,
    /// How far a client's clock may be ahead.
    pub clock_skew: Duration,
    /// Proofs that are remembered against replay.
    pub replay_entries_max: usize,
}

impl Default for DpopSettings {
    fn default() -> Self {
        Self { age_max: Duration::from_secs(60), clock_skew: Duration::from_secs(5), replay_entries_max: 1 << 20 }
    }
}

/// Checks proofs, each of which counts once.
pub struct Dpop {
    settings: DpopSettings,
    replay: ReplayCache,
    nonces: Option<Nonces>,
}

/// A proof that fits its request; it counts once [`Dpop::spend`] has taken it.
#[derive(Debug)]
pub struct Proof {
    /// The key that the client has shown.
    pub key: Thumbprint,
    id: String,
    issued_at: SystemTime,
}

/// The request that a proof must be for.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// HTTP method.
    pub method: &'a str,
    /// Whole address as the client sees it; query and fragment do not count (RFC 9449 section 4.2).
    pub url: &'a str,
    /// Access token that comes with the proof, whose digest must then be in it.
    pub token: Option<&'a str>,
}

impl Dpop {
    /// A checker with an empty memory.
    pub fn new(settings: DpopSettings) -> Self {
        let replay = ReplayCache::new(settings.replay_entries_max);
        Self { settings, replay, nonces: None }
    }

    /// Also asks for a nonce of this server in each proof (RFC 9449 section 9): a proof cannot be made ahead of time.
    #[must_use]
    pub fn with_nonces(self, nonces: Nonces) -> Self {
        Self { nonces: Some(nonces), ..self }
    }

    /// The nonce to send as `DPoP-Nonce`, where nonces are asked for.
    pub fn nonce(&self, now: SystemTime) -> Option<String> {
        self.nonces.as_ref().map(|nonces| nonces.at(now))
    }

    /// Checks a proof against its request (RFC 9449 section 4.3), all but its being new.
    ///
    /// # Errors
    /// `Unverified` where it is malformed, forged or for another request, `Expired` where it is too old or from the future.
    pub fn check(&self, proof: &str, target: &Target<'_>, now: SystemTime) -> Result<Proof, TrustError> {
        let jws = Jws::parse(proof)?;
        if jws.header.typ.as_deref() != Some("dpop+jwt") {
            return Err(unverified("proof has another `typ` than `dpop+jwt`"));
        }
        let jwk = jws.header.jwk.as_ref().ok_or_else(|| unverified("proof has no `jwk` in its header"))?;
        let key = PublicKey::from_jwk(jwk).map_err(|e| unverified(format!("proof: {e}")))?;
        let claims = jws.verify(&key)?;
        let id = jose::text(&claims, "jti")?;
        same_request(&claims, target)?;
        let issued_at = jose::time(&claims, "iat")?.ok_or_else(|| unverified("proof has no `iat`"))?;
        let latest = now + self.settings.clock_skew;
        if issued_at > latest || self.last_use(issued_at).is_none_or(|last| last < now) {
            return Err(expired(format!("proof is of {}, which is not now", jose::seconds(issued_at))));
        }
        if let Some(nonces) = &self.nonces {
            nonces.check(jose::text(&claims, "nonce")?, now)?;
        }
        Ok(Proof { key: key.thumbprint(), id: id.to_owned(), issued_at })
    }

    /// Takes a proof, once. To be called when all else about the request is verified, so that only verified callers fill the memory.
    ///
    /// # Errors
    /// `Unverified` where it was used before, `Unavailable` where the memory is full.
    pub fn spend(&self, proof: &Proof, now: SystemTime) -> Result<(), TrustError> {
        let until = self.last_use(proof.issued_at).unwrap_or(now);
        self.replay.take(&proof.key.0, proof.id.as_bytes(), until, now)
    }

    fn last_use(&self, issued_at: SystemTime) -> Option<SystemTime> {
        issued_at.checked_add(self.settings.age_max + self.settings.clock_skew)
    }
}

fn same_request(claims: &jose::Claims, target: &Target<'_>) -> Result<(), TrustError> {
    let method = jose::text(claims, "htm")?;
    if method != target.method {
        return Err(unverified(format!("proof is for `{method}`, the request is `{}`", target.method)));
    }
    let url = jose::text(claims, "htu")?;
    if plain(url).is_none_or(|u| plain(target.url) != Some(u)) {
        return Err(unverified(format!("proof is for `{url}`, the request is to `{}`", target.url)));
    }
    if let Some(token) = target.token {
        let digest = BASE64URL.encode(Sha256::digest(token));
        if jose::text(claims, "ath")? != digest {
            return Err(unverified("proof is for another token (`ath`)"));
        }
    }
    Ok(())
}

/// An address without query and fragment, normalised by scheme (RFC 3986 section 6.2).
fn plain(text: &str) -> Option<Url> {
    let mut url = Url::parse(text).ok().filter(|_| text.len() <= TOKEN_BYTES_MAX)?;
    url.set_query(None);
    url.set_fragment(None);
    Some(url)
}

/// Nonces made of the time and a key: nothing is remembered, and any server with the same key takes them.
pub struct Nonces {
    key: aws_lc_rs::hmac::Key,
    window: Duration,
}

impl Nonces {
    /// Nonces that are good for one to two windows.
    ///
    /// # Errors
    /// `Invalid` for a window under a second.
    pub fn new(key: &[u8; 32], window: Duration) -> Result<Self, TrustError> {
        if window < Duration::from_secs(1) {
            return Err(TrustError::new(ErrorKind::Invalid, "window of nonces: expected at least `1s`"));
        }
        Ok(Self { key: aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key), window })
    }

    fn at(&self, now: SystemTime) -> String {
        self.of(self.index(now))
    }

    fn index(&self, now: SystemTime) -> u64 {
        jose::seconds(now) / self.window.as_secs().max(1)
    }

    fn of(&self, index: u64) -> String {
        BASE64URL.encode(aws_lc_rs::hmac::sign(&self.key, &index.to_be_bytes()))
    }

    fn check(&self, nonce: &str, now: SystemTime) -> Result<(), TrustError> {
        let index = self.index(now);
        let tag = BASE64URL.decode(nonce).unwrap_or_default();
        let fits = |i: u64| aws_lc_rs::hmac::verify(&self.key, &i.to_be_bytes(), &tag).is_ok();
        if fits(index) || index.checked_sub(1).is_some_and(fits) {
            return Ok(());
        }
        Err(unverified("proof has no fresh nonce of this server (`use_dpop_nonce`)"))
    }
}

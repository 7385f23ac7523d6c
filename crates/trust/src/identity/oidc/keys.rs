//! An issuer's keys: found by discovery, kept, renewed.
//!
//! - Keys older than `refresh_after` are renewed with the next token. Where the issuer does not answer, the old ones stay in use until
//!   `stale_max`; after that every token is refused (a key that was withdrawn must not live on behind a broken network).
//! - A token with an unknown `kid` makes one fetch, at most one in `fetch_interval_min`: callers cannot make this server flood its issuer.
//! - One fetch at a time; tokens whose key is known do not wait for it.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use reqwest::Url;
use serde_json::Value;

use crate::{
    ErrorKind, TrustError,
    identity::{
        http::{Http, authority_url, origin, unavailable},
        jose::{Algorithm, PublicKey, invalid, unverified},
    },
};

const DOCUMENT_BYTES_MAX: usize = 256 * 1024;
const KEYS_MAX: usize = 100;

/// Where keys come from and how long they are good.
#[derive(Clone)]
pub struct KeySourceSettings {
    /// Address of the key set; found by the issuer's discovery document where none.
    pub jwks_uri: Option<String>,
    /// File with a token to show to the issuer, read anew at each fetch (Kubernetes asks for one).
    pub bearer_file: Option<std::path::PathBuf>,
    /// Age at which keys are renewed.
    pub refresh_after: Duration,
    /// Age up to which keys are used while the issuer does not answer.
    pub stale_max: Duration,
    /// Shortest time between two fetches.
    pub fetch_interval_min: Duration,
}

impl Default for KeySourceSettings {
    fn default() -> Self {
        Self {
            jwks_uri: None,
            bearer_file: None,
            refresh_after: Duration::from_secs(600),
            stale_max: Duration::from_secs(24 * 3600),
            fetch_interval_min: Duration::from_secs(10),
        }
    }
}

impl fmt::Debug for KeySourceSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySourceSettings").field("jwks_uri", &self.jwks_uri).finish_non_exhaustive()
    }
}

/// The keys of one issuer.
pub struct KeySource {
    issuer: String,
    settings: KeySourceSettings,
    http: Http,
    keys: ArcSwapOption<KeySet>,
    last_attempt: Mutex<Option<SystemTime>>,
    fetching: tokio::sync::Mutex<()>,
}

struct KeySet {
    keys: Vec<PublicKey>,
    fetched_at: SystemTime,
}

impl KeySet {
    fn has(&self, kid: Option<&str>) -> bool {
        kid.is_none_or(|kid| self.keys.iter().any(|key| key.id() == Some(kid)))
    }
}

impl KeySource {
    pub(super) fn new(issuer: &str, settings: KeySourceSettings, http: Http) -> Result<Self, TrustError> {
        if let Some(uri) = &settings.jwks_uri {
            authority_url(uri)?;
        }
        Ok(Self {
            issuer: issuer.to_owned(),
            settings,
            http,
            keys: ArcSwapOption::empty(),
            last_attempt: Mutex::new(None),
            fetching: tokio::sync::Mutex::new(()),
        })
    }

    /// Puts keys in place, as of `now`, e.g. those of a file.
    ///
    /// # Errors
    /// `Invalid` where it is no key set.
    pub fn set(&self, jwks: &[u8], now: SystemTime) -> Result<(), TrustError> {
        let keys = parse(jwks).map_err(|e| invalid(format!("keys of issuer `{}`: {e}", self.issuer)))?;
        self.keys.store(Some(Arc::new(KeySet { keys, fetched_at: now })));
        Ok(())
    }

    /// True where the issuer should be asked before a token with this `kid` is verified, and may be.
    pub(super) fn should_ask(&self, kid: Option<&str>, now: SystemTime) -> bool {
        let fetching = self.fetching.try_lock().is_err();
        match self.keys.load().as_ref().filter(|keys| keys.has(kid)) {
            // Who has the key at hand does not wait for a fetch that another has begun.
            Some(keys) => {
                let aged = now.duration_since(keys.fetched_at).is_ok_and(|age| age >= self.settings.refresh_after);
                aged && !fetching && self.may_fetch(now)
            }
            None => fetching || self.may_fetch(now),
        }
    }

    /// Whether the keys at hand may still be used.
    pub(super) fn usable(&self, now: SystemTime) -> Result<(), TrustError> {
        let keys = self.keys.load();
        let keys =
            keys.as_ref().ok_or_else(|| unavailable(format!("keys of issuer `{}` are not known yet", self.issuer)))?;
        match now.duration_since(keys.fetched_at) {
            Ok(age) if age > self.settings.stale_max => Err(unavailable(format!(
                "keys of issuer `{}` are {} s old and it does not answer",
                self.issuer,
                age.as_secs()
            ))),
            _ => Ok(()),
        }
    }

    /// The key for a token, of those at hand.
    pub(super) fn at_hand(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<PublicKey, TrustError> {
        let keys = self.keys.load();
        let all = keys.as_ref().map(|keys| keys.keys.as_slice()).unwrap_or_default();
        let mut fitting = all.iter().filter(|key| (kid.is_none() || key.id() == kid) && key.fits(algorithm));
        match (fitting.next(), fitting.next(), kid) {
            (Some(key), None, _) => Ok(key.clone()),
            (Some(key), Some(_), Some(_)) => Ok(key.clone()),
            (Some(_), Some(_), None) => {
                Err(unverified("token has no `kid`, and its issuer has several keys for its algorithm"))
            }
            (None, _, kid) => Err(unverified(format!(
                "issuer `{}` has no key `{}` for `{algorithm:?}`",
                self.issuer,
                kid.unwrap_or_default().escape_debug()
            ))),
        }
    }

    /// Asks the issuer, unless another caller just did. Where it does not answer and the keys at hand are still good, they stay.
    ///
    /// # Errors
    /// `Unavailable` where there are no keys to go on with.
    pub async fn refresh(&self, kid: Option<&str>, now: SystemTime) -> Result<(), TrustError> {
        let _one = self.fetching.lock().await;
        if !self.may_fetch(now) {
            return self.usable(now);
        }
        *self.last_attempt.lock() = Some(now);
        match self.fetch().await {
            Ok(keys) => {
                self.keys.store(Some(Arc::new(KeySet { keys, fetched_at: now })));
                Ok(())
            }
            Err(error) => {
                tracing::warn!(issuer = self.issuer, kid, %error, "keys of the issuer were not renewed");
                self.usable(now).map_err(|_| error)
            }
        }
    }

    fn may_fetch(&self, now: SystemTime) -> bool {
        let last = *self.last_attempt.lock();
        last.is_none_or(|last| now.duration_since(last).map_or(true, |since| since >= self.settings.fetch_interval_min))
    }

    async fn fetch(&self) -> Result<Vec<PublicKey>, TrustError> {
        let uri = match &self.settings.jwks_uri {
            Some(uri) => authority_url(uri)?,
            None => self.discover().await?,
        };
        let body = self.document(&uri).await?;
        parse(&body).map_err(|e| unavailable(format!("keys of issuer `{}`: {e}", self.issuer)))
    }

    /// OpenID Connect Discovery 1.0 section 4.
    async fn discover(&self) -> Result<Url, TrustError> {
        #[derive(serde::Deserialize)]
        struct Discovery {
            issuer: String,
            jwks_uri: String,
        }
        let address = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
        let body = self.document(&authority_url(&address)?).await?;
        let wrong = |what: String| unavailable(format!("discovery document of issuer `{}`: {what}", self.issuer));
        let found: Discovery = serde_json::from_slice(&body).map_err(|e| wrong(e.to_string()))?;
        if found.issuer != self.issuer {
            return Err(wrong(format!("it is of issuer `{}`", found.issuer.escape_debug())));
        }
        authority_url(&found.jwks_uri)
    }

    async fn document(&self, url: &Url) -> Result<Vec<u8>, TrustError> {
        let mut headers = vec![("accept", "application/json".to_owned())];
        if let Some(file) = &self.settings.bearer_file {
            let token = tokio::fs::read_to_string(file).await;
            let token = token.map_err(|e| unavailable(format!("token file `{}`: {e}", file.display())))?;
            headers.push(("authorization", format!("Bearer {}", token.trim())));
        }
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (status, body) = self.http.get(url, &headers, DOCUMENT_BYTES_MAX).await?;
        if !status.is_success() {
            return Err(TrustError::new(ErrorKind::Unavailable, format!("`{}` answered {status}", origin(url))));
        }
        Ok(body)
    }
}

/// A key set; keys that cannot verify tokens (for encryption, of unknown kinds) are left out.
fn parse(jwks: &[u8]) -> Result<Vec<PublicKey>, String> {
    #[derive(serde::Deserialize)]
    struct Set {
        keys: Vec<Value>,
    }
    let set: Set = serde_json::from_slice(jwks).map_err(|e| format!("not a key set: {e}"))?;
    if set.keys.len() > KEYS_MAX {
        return Err(format!("{} keys, at most {KEYS_MAX} are read", set.keys.len()));
    }
    let keys: Vec<_> = set.keys.iter().filter_map(|jwk| PublicKey::from_jwk(jwk).ok()).collect();
    if keys.is_empty() {
        return Err("no key in it can verify a token".to_owned());
    }
    Ok(keys)
}

//! Signed tokens, read strictly (RFC 7515, RFC 7517, RFC 7638, RFC 8725).
//!
//! `jsonwebtoken` checks signatures and holds keys; what is checked here is what it leaves open: which algorithms exist at all, which
//! key fits which algorithm, critical headers, sizes, and time as an argument.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL};
use jsonwebtoken::{
    DecodingKey, crypto,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse, ThumbprintHash},
};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use crate::{ErrorKind, Thumbprint, TrustError};

/// Longest token that is looked at.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// Shortest and longest modulus of RSA.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// The claims of a token.
pub type Claims = serde_json::Map<String, Value>;

/// A signature algorithm of a token. Secrets shared with the issuer, and `none`, have no place here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, serde::Serialize)]
pub enum Algorithm {
    /// ECDSA over P-256 with SHA-256.
    #[serde(rename = "ES256")]
    Es256,
    /// ECDSA over P-384 with SHA-384.
    #[serde(rename = "ES384")]
    Es384,
    /// RSA PKCS #1 v1.5 with SHA-256.
    #[serde(rename = "RS256")]
    Rs256,
    /// RSA PKCS #1 v1.5 with SHA-384.
    #[serde(rename = "RS384")]
    Rs384,
    /// RSA PKCS #1 v1.5 with SHA-512.
    #[serde(rename = "RS512")]
    Rs512,
    /// RSA PSS with SHA-256.
    #[serde(rename = "PS256")]
    Ps256,
    /// RSA PSS with SHA-384.
    #[serde(rename = "PS384")]
    Ps384,
    /// RSA PSS with SHA-512.
    #[serde(rename = "PS512")]
    Ps512,
    /// Ed25519 (RFC 8037, RFC 9864).
    #[serde(rename = "EdDSA", alias = "Ed25519")]
    EdDsa,
}

impl Algorithm {
    /// Every algorithm that can be verified.
    pub const ALL: &'static [Self] = &[
        Self::Es256,
        Self::Es384,
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::EdDsa,
    ];

    fn library(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Es256 => jsonwebtoken::Algorithm::ES256,
            Self::Es384 => jsonwebtoken::Algorithm::ES384,
            Self::Rs256 => jsonwebtoken::Algorithm::RS256,
            Self::Rs384 => jsonwebtoken::Algorithm::RS384,
            Self::Rs512 => jsonwebtoken::Algorithm::RS512,
            Self::Ps256 => jsonwebtoken::Algorithm::PS256,
            Self::Ps384 => jsonwebtoken::Algorithm::PS384,
            Self::Ps512 => jsonwebtoken::Algorithm::PS512,
            Self::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        }
    }
}

/// What the first part of a token says.
#[derive(Debug, Deserialize)]
pub(crate) struct Header {
    pub alg: Algorithm,
    pub typ: Option<String>,
    pub kid: Option<String>,
    pub jwk: Option<Value>,
    crit: Option<IgnoredAny>,
}

/// A token cut into its parts; its signature is not verified yet.
pub(crate) struct Jws<'a> {
    pub header: Header,
    message: &'a str,
    payload: &'a str,
    signature: &'a str,
}

impl<'a> Jws<'a> {
    /// Cuts a token in compact form.
    pub fn parse(token: &'a str) -> Result<Self, TrustError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(unverified(format!("token of {} bytes: at most {TOKEN_BYTES_MAX} are read", token.len())));
        }
        let parts = token.rsplit_once('.').and_then(|(message, signature)| {
            let (header, payload) = message.split_once('.')?;
            (!payload.contains('.') && !signature.is_empty()).then_some((message, header, payload, signature))
        });
        let Some((message, header, payload, signature)) = parts else {
            return Err(unverified("token is not of the form `HEADER.CLAIMS.SIGNATURE`"));
        };
        let header: Header = serde_json::from_slice(&decode("header", header)?)
            .map_err(|e| unverified(format!("header of token: {e}; expected an object with an asymmetric `alg`")))?;
        if header.crit.is_some() {
            return Err(unverified("header of token has `crit`: no extension of RFC 7515 is understood"));
        }
        Ok(Self { header, message, payload, signature })
    }

    /// The claims, once `key` has verified the signature.
    pub fn verify(&self, key: &PublicKey) -> Result<Claims, TrustError> {
        let algorithm = self.header.alg;
        if !key.fits(algorithm) {
            return Err(unverified(format!("token is signed with `{algorithm:?}`, which its key is not for")));
        }
        decode("signature", self.signature)?;
        match crypto::verify(self.signature, self.message.as_bytes(), &key.key, algorithm.library()) {
            Ok(true) => self.unverified_claims(),
            Ok(false) => Err(unverified("signature of token does not fit its content")),
            Err(error) => Err(unverified(format!("signature of token: {error}"))),
        }
    }

    /// The claims as they stand, to find out who should verify them. Nothing may be decided by them.
    pub fn unverified_claims(&self) -> Result<Claims, TrustError> {
        serde_json::from_slice(&decode("claims", self.payload)?)
            .map_err(|e| unverified(format!("claims of token: {e}; expected an object")))
    }
}

fn decode(what: &str, text: &str) -> Result<Vec<u8>, TrustError> {
    BASE64URL.decode(text).map_err(|e| unverified(format!("{what} of token is not base64url without padding: {e}")))
}

/// A public key that verifies tokens.
#[derive(Clone)]
pub struct PublicKey {
    id: Option<String>,
    key: DecodingKey,
    algorithms: Vec<Algorithm>,
    thumbprint: Thumbprint,
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicKey").field("id", &self.id).field("thumbprint", &self.thumbprint).finish_non_exhaustive()
    }
}

impl PublicKey {
    /// Reads a public JWK (RFC 7517).
    ///
    /// # Errors
    /// `Invalid` where it is private, shared, of an unknown kind, not for signatures, or its numbers have the wrong length.
    pub fn from_jwk(jwk: &Value) -> Result<Self, TrustError> {
        if let Some(secret) = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"].into_iter().find(|m| jwk.get(m).is_some()) {
            return Err(invalid(format!("key has the private member `{secret}`: only its public half may be given")));
        }
        let stated = jwk.get("alg").map(Algorithm::deserialize).transpose();
        let stated = stated.map_err(|e| invalid(format!("`alg` of key: {e}")))?;
        let mut bare = jwk.clone();
        if let Some(members) = bare.as_object_mut() {
            // The library refuses names that it does not know, though the key may be fine.
            members.remove("alg");
        }
        let jwk = Jwk::deserialize(&bare).map_err(|e| invalid(format!("key: {e}")))?;
        let mut algorithms = algorithms(&jwk)?;
        if let Some(stated) = stated {
            algorithms.retain(|a| *a == stated);
            if algorithms.is_empty() {
                return Err(invalid(format!("key has `alg` `{stated:?}`, which its kind cannot do")));
            }
        }
        for_signatures(&jwk)?;
        let thumbprint = jwk.thumbprint(ThumbprintHash::SHA256).ok().and_then(|text| Thumbprint::from_base64url(&text));
        let thumbprint = thumbprint.ok_or_else(|| invalid("key has no thumbprint (RFC 7638)"))?;
        let key = DecodingKey::from_jwk(&jwk).map_err(|e| invalid(format!("key: {e}")))?;
        Ok(Self { id: jwk.common.key_id, key, algorithms, thumbprint })
    }

    /// The name that the issuer gives it.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// SHA-256 over its canonical form (RFC 7638).
    pub fn thumbprint(&self) -> Thumbprint {
        self.thumbprint
    }

    /// True where it may verify signatures of `algorithm`.
    pub fn fits(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }
}

/// What the kind of a key can do, its numbers being of the right length (so that a thumbprint has one spelling only).
fn algorithms(jwk: &Jwk) -> Result<Vec<Algorithm>, TrustError> {
    let long = |name: &str, text: &str, bytes: std::ops::RangeInclusive<usize>| {
        let length =
            BASE64URL.decode(text).map_err(|e| invalid(format!("`{name}` of key is not base64url: {e}")))?.len();
        if bytes.contains(&length) {
            return Ok(());
        }
        Err(invalid(format!("`{name}` of key has {length} bytes, expected {} to {}", bytes.start(), bytes.end())))
    };
    match &jwk.algorithm {
        AlgorithmParameters::EllipticCurve(ec) => {
            let (bytes, algorithm) = match ec.curve {
                EllipticCurve::P256 => (32, Algorithm::Es256),
                EllipticCurve::P384 => (48, Algorithm::Es384),
                _ => return Err(invalid("curve of key: expected `P-256` or `P-384`")),
            };
            long("x", &ec.x, bytes..=bytes)?;
            long("y", &ec.y, bytes..=bytes)?;
            Ok(vec![algorithm])
        }
        AlgorithmParameters::OctetKeyPair(okp) if okp.curve == EllipticCurve::Ed25519 => {
            long("x", &okp.x, 32..=32)?;
            Ok(vec![Algorithm::EdDsa])
        }
        AlgorithmParameters::RSA(rsa) => {
            use Algorithm::{Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
            long("n", &rsa.n, RSA_BYTES)?;
            long("e", &rsa.e, 1..=8)?;
            Ok(vec![Rs256, Rs384, Rs512, Ps256, Ps384, Ps512])
        }
        _ => Err(invalid("kind of key: expected `EC` (P-256, P-384), `RSA` or `OKP` (Ed25519)")),
    }
}

fn for_signatures(jwk: &Jwk) -> Result<(), TrustError> {
    let other_use = jwk.common.public_key_use.as_ref().is_some_and(|u| *u != PublicKeyUse::Signature);
    let other_operations =
        jwk.common.key_operations.as_ref().is_some_and(|operations| !operations.contains(&KeyOperations::Verify));
    if other_use || other_operations {
        return Err(invalid("key is not for signatures (`use`, `key_ops`)"));
    }
    Ok(())
}

/// When a token is good: `exp` must be there, `nbf` and `iat` may be; `skew` is what the two clocks may differ.
///
/// # Errors
/// `Expired` outside that time, `Unverified` where a time is missing or no number.
pub(crate) fn check_times(claims: &Claims, now: SystemTime, skew: Duration) -> Result<SystemTime, TrustError> {
    let expires_at = time(claims, "exp")?.ok_or_else(|| unverified("token has no `exp`"))?;
    if expires_at.checked_add(skew).is_none_or(|end| end <= now) {
        return Err(expired(format!("token has expired at {}", seconds(expires_at))));
    }
    let latest = now + skew;
    for name in ["nbf", "iat"] {
        if let Some(start) = time(claims, name)?
            && start > latest
        {
            return Err(expired(format!("token is not valid before {} (`{name}`)", seconds(start))));
        }
    }
    Ok(expires_at)
}

/// A NumericDate (RFC 7519 section 2), which may have a fraction.
pub(crate) fn time(claims: &Claims, name: &str) -> Result<Option<SystemTime>, TrustError> {
    /// The last second of the year 9999.
    const LATEST: f64 = 253_402_300_799.0;
    let Some(value) = claims.get(name) else { return Ok(None) };
    let number = value.as_f64().filter(|n| (0.0..=LATEST).contains(n));
    let number = number.ok_or_else(|| unverified(format!("`{name}` of token is no time in seconds since 1970")))?;
    Ok(Some(SystemTime::UNIX_EPOCH + Duration::from_secs_f64(number)))
}

/// Seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A claim that must be text.
pub(crate) fn text<'a>(claims: &'a Claims, name: &str) -> Result<&'a str, TrustError> {
    let text = claims.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    text.ok_or_else(|| unverified(format!("token has no text `{name}`")))
}

pub(crate) fn unverified(message: impl Into<String>) -> TrustError {
    TrustError::new(ErrorKind::Unverified, message)
}

pub(crate) fn expired(message: impl Into<String>) -> TrustError {
    TrustError::new(ErrorKind::Expired, message)
}

pub(crate) fn invalid(message: impl Into<String>) -> TrustError {
    TrustError::new(ErrorKind::Invalid, message)
}

//! Keys that sign sessions.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use crate::{
    ErrorKind, TrustError,
    identity::jose::{Algorithm, PublicKey, invalid},
};

/// A key that signs tokens, here or in a key service.
pub trait TokenSigner: Send + Sync {
    /// What it signs with.
    fn algorithm(&self) -> Algorithm;

    /// Its public half as a JWK with a `kid`.
    fn public_jwk(&self) -> &Value;

    /// The signature in the form of RFC 7515 (for ECDSA the two numbers side by side).
    ///
    /// # Errors
    /// `Unavailable` where its service does not answer.
    fn sign<'a>(&'a self, message: &'a [u8]) -> BoxFuture<'a, Result<Vec<u8>, TrustError>>;
}

/// A key in this process. Sessions are short: a key that is made at start and never leaves serves one server well.
pub struct LocalSigner {
    key: Key,
    jwk: Value,
}

enum Key {
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl LocalSigner {
    /// A new key for `ES256` or `EdDSA`.
    ///
    /// # Errors
    /// `Invalid` for any other algorithm, `Unavailable` where the system has no randomness.
    pub fn generate(algorithm: Algorithm) -> Result<Self, TrustError> {
        let failed = |_| TrustError::new(ErrorKind::Unavailable, "the system has no randomness for a key");
        match algorithm {
            Algorithm::Es256 => {
                let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(failed)?;
                Self::new(Key::P256(key))
            }
            Algorithm::EdDsa => Self::new(Key::Ed25519(Ed25519KeyPair::generate().map_err(failed)?)),
            other => Err(unusable(other)),
        }
    }

    /// A key of a PKCS #8 document, e.g. one that servers behind one address share.
    ///
    /// # Errors
    /// `Invalid` where it is no key for the algorithm.
    pub fn from_pkcs8(algorithm: Algorithm, der: &[u8]) -> Result<Self, TrustError> {
        let rejected = |e: aws_lc_rs::error::KeyRejected| invalid(format!("key of sessions: {e}"));
        match algorithm {
            Algorithm::Es256 => {
                let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der).map_err(rejected)?;
                Self::new(Key::P256(key))
            }
            Algorithm::EdDsa => Self::new(Key::Ed25519(Ed25519KeyPair::from_pkcs8(der).map_err(rejected)?)),
            other => Err(unusable(other)),
        }
    }

    fn new(key: Key) -> Result<Self, TrustError> {
        let mut jwk = match &key {
            Key::P256(key) => {
                let point = key.public_key().as_ref();
                let halves = point.split_first().and_then(|(_, xy)| xy.split_at_checked(32));
                let (x, y) = halves.ok_or_else(|| invalid("key of sessions has no public point"))?;
                json!({ "kty": "EC", "crv": "P-256", "x": BASE64URL.encode(x), "y": BASE64URL.encode(y) })
            }
            Key::Ed25519(key) => json!({ "kty": "OKP", "crv": "Ed25519", "x": BASE64URL.encode(key.public_key()) }),
        };
        let kid = PublicKey::from_jwk(&jwk)?.thumbprint().to_base64url();
        jwk["kid"] = json!(kid);
        jwk["use"] = json!("sig");
        Ok(Self { key, jwk })
    }
}

fn unusable(algorithm: Algorithm) -> TrustError {
    invalid(format!("algorithm `{algorithm:?}` of sessions: expected `ES256` or `EdDSA`"))
}

impl TokenSigner for LocalSigner {
    fn algorithm(&self) -> Algorithm {
        match self.key {
            Key::P256(_) => Algorithm::Es256,
            Key::Ed25519(_) => Algorithm::EdDsa,
        }
    }

    fn public_jwk(&self) -> &Value {
        &self.jwk
    }

    fn sign<'a>(&'a self, message: &'a [u8]) -> BoxFuture<'a, Result<Vec<u8>, TrustError>> {
        let signature = match &self.key {
            Key::P256(key) => key.sign(&SystemRandom::new(), message).map(|s| s.as_ref().to_vec()),
            Key::Ed25519(key) => Ok(key.sign(message).as_ref().to_vec()),
        };
        let signature = signature.map_err(|_| TrustError::new(ErrorKind::Unavailable, "key of sessions did not sign"));
        Box::pin(std::future::ready(signature))
    }
}

//! Keys that sign tokens, well or on purpose badly.

use aws_lc_rs::{
    hmac,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
        RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair,
    },
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL};
use serde_json::{Value, json};

pub enum Key {
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Rsa(Box<RsaKeyPair>),
    Ed(Ed25519KeyPair),
}

impl Key {
    pub fn p256() -> Self {
        Self::P256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    pub fn p384() -> Self {
        Self::P384(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap())
    }

    pub fn rsa() -> Self {
        Self::Rsa(Box::new(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()))
    }

    pub fn ed() -> Self {
        Self::Ed(Ed25519KeyPair::generate().unwrap())
    }

    /// The algorithm that it signs with by itself.
    pub fn alg(&self) -> &'static str {
        match self {
            Self::P256(_) => "ES256",
            Self::P384(_) => "ES384",
            Self::Rsa(_) => "RS256",
            Self::Ed(_) => "EdDSA",
        }
    }

    pub fn public(&self) -> Value {
        let b64 = |bytes: &[u8]| BASE64URL.encode(bytes);
        match self {
            Self::P256(key) | Self::P384(key) => {
                let point = key.public_key().as_ref();
                let (x, y) = point[1..].split_at((point.len() - 1) / 2);
                let crv = if x.len() == 32 { "P-256" } else { "P-384" };
                json!({ "kty": "EC", "crv": crv, "x": b64(x), "y": b64(y) })
            }
            Self::Rsa(key) => {
                let (n, e) = (key.public_key().modulus(), key.public_key().exponent());
                let (n, e) = (n.big_endian_without_leading_zero(), e.big_endian_without_leading_zero());
                json!({ "kty": "RSA", "n": b64(n), "e": b64(e) })
            }
            Self::Ed(key) => json!({ "kty": "OKP", "crv": "Ed25519", "x": b64(key.public_key().as_ref()) }),
        }
    }

    /// Its public half as an issuer lists it.
    pub fn listed(&self, kid: &str) -> Value {
        let mut jwk = self.public();
        jwk["kid"] = json!(kid);
        jwk["use"] = json!("sig");
        jwk["alg"] = json!(self.alg());
        jwk
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::P256(key) | Self::P384(key) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Rsa(key) => rsa(key, &RSA_PKCS1_SHA256, message),
            Self::Ed(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    /// A token signed by this key, whatever its header says.
    pub fn token(&self, header: &Value, claims: &Value) -> String {
        let message = message(header, claims);
        let signature = match (self, header["alg"].as_str()) {
            (Self::Rsa(key), Some("PS256")) => rsa(key, &RSA_PSS_SHA256, message.as_bytes()),
            _ => self.sign(message.as_bytes()),
        };
        format!("{message}.{}", BASE64URL.encode(signature))
    }
}

fn rsa(key: &RsaKeyPair, padding: &'static dyn aws_lc_rs::signature::RsaEncoding, message: &[u8]) -> Vec<u8> {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(padding, &SystemRandom::new(), message, &mut signature).unwrap();
    signature
}

pub fn message(header: &Value, claims: &Value) -> String {
    format!("{}.{}", BASE64URL.encode(header.to_string()), BASE64URL.encode(claims.to_string()))
}

/// A token "signed" with HS256 by a secret that everybody knows.
pub fn hmac_token(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let message = message(header, claims);
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
    format!("{message}.{}", BASE64URL.encode(tag))
}

/// SHA-256 as tokens spell it.
pub fn digest(text: &str) -> String {
    BASE64URL.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes()))
}

//! Keys that stay where they are kept: a provider signs and wraps with them, and never hands them out.
//!
//! A new provider implements [`KeyProvider`] and calls the contract suite of `tests/keys.rs`; `sealed` is the example.

mod kms;
mod pkcs11;
mod sealed;
mod secret;
mod settings;
mod vault;

use std::{fmt, time::SystemTime};

use x509_parser::prelude::{FromDer as _, SubjectPublicKeyInfo};
use zeroize::Zeroizing;

use crate::error::{ErrorKind, TrustError};

pub use crate::file::{create_private, read_private, write_private};
pub use kms::{CredentialSettings, Kms, KmsSettings};
pub use pkcs11::{Pkcs11, Pkcs11Settings};
pub use sealed::{SealedFile, Unlock, random_bytes};
pub use secret::SecretSource;
pub use settings::{KeySettings, TransitSettings};
pub use vault::{LoginSettings, LoginStatus, PkiSettings, Transit, Vault, VaultPki, VaultSettings};

use secret::platform_token;

/// Bytes that are wiped from memory when they are dropped.
pub type Secret = Zeroizing<Vec<u8>>;

/// Longest data key that can be wrapped, in bytes: the least that all providers take.
pub const DATA_KEY_BYTES_MAX: usize = 4096;

/// Keeps keys and works with them.
pub trait KeyProvider: Send + Sync {
    /// What kind of provider this is: `file`, `pkcs11`, `vault`.
    fn name(&self) -> &'static str;

    /// Makes a key.
    ///
    /// # Errors
    /// `Invalid` where the name is taken or no [valid name](check_key_name), or the provider has no such kind.
    fn create(&self, id: &str, kind: KeyKind) -> Result<KeyInfo, TrustError>;

    /// All keys, by name.
    ///
    /// # Errors
    /// `Unavailable` where the provider does not answer.
    fn list(&self) -> Result<Vec<KeyInfo>, TrustError>;

    /// One key.
    ///
    /// # Errors
    /// `NotFound` where there is none.
    fn describe(&self, id: &str) -> Result<KeyInfo, TrustError>;

    /// Makes a new version of a key. What older versions wrapped can still be unwrapped; signatures are the new version's.
    ///
    /// # Errors
    /// `NotFound` where there is none.
    fn rotate(&self, id: &str) -> Result<KeyInfo, TrustError>;

    /// Encrypts a data key so that only [`KeyProvider::unwrap`] with the same `context` gives it back.
    ///
    /// # Errors
    /// `NotFound`, or `Invalid` where the key is none to wrap with or the data key is longer than [`DATA_KEY_BYTES_MAX`].
    fn wrap(&self, id: &str, data_key: &[u8], context: &[u8]) -> Result<Vec<u8>, TrustError>;

    /// Decrypts a data key.
    ///
    /// # Errors
    /// `Tampered` where it was changed, wrapped by another key, or for another `context`.
    fn unwrap(&self, id: &str, wrapped: &[u8], context: &[u8]) -> Result<Secret, TrustError>;

    /// Signs a message: Ed25519 (64 bytes), or ECDSA with SHA-256 (ASN.1 DER).
    ///
    /// # Errors
    /// `NotFound`, or `Invalid` where the key is none to sign with.
    fn sign(&self, id: &str, message: &[u8]) -> Result<Vec<u8>, TrustError>;
}

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyKind {
    /// Wraps data keys: AES-256-GCM.
    Wrapping,
    /// Signs: ECDSA on P-256 with SHA-256.
    P256,
    /// Signs: Ed25519.
    Ed25519,
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wrapping => "a wrapping key",
            Self::P256 => "a P-256 key",
            Self::Ed25519 => "an Ed25519 key",
        })
    }
}

/// What may be told of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// Name.
    pub id: String,
    /// What it is for.
    pub kind: KeyKind,
    /// Versions, oldest first; the last is the one in use.
    pub versions: Vec<KeyVersion>,
}

/// One version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyVersion {
    /// From 1.
    pub number: u32,
    /// When it was made, where the provider says it.
    pub created_at: Option<SystemTime>,
    /// Of keys that sign: 32 bytes of Ed25519, or an uncompressed point of P-256 (65 bytes).
    pub public_key: Option<Vec<u8>>,
}

/// Whether a key may be named so: 1 to 64 of `a-z`, `0-9`, `-`, `_` and `.`, beginning with a letter or digit.
///
/// # Errors
/// `Invalid`, with what was expected.
pub fn check_key_name(id: &str) -> Result<(), TrustError> {
    if is_key_name(id) {
        return Ok(());
    }
    let text = format!("`{id}` cannot name a key; expected 1 to 64 of a-z, 0-9, `-`, `_` and `.`");
    Err(TrustError::new(ErrorKind::Invalid, text))
}

fn is_key_name(id: &str) -> bool {
    let rest = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    let first = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=64).contains(&id.len()) && id.starts_with(first) && id.chars().all(rest)
}

fn check_data_key(data_key: &[u8]) -> Result<(), TrustError> {
    if (1..=DATA_KEY_BYTES_MAX).contains(&data_key.len()) {
        return Ok(());
    }
    let text = format!("a data key of {} bytes; expected 1 to {DATA_KEY_BYTES_MAX}", data_key.len());
    Err(TrustError::new(ErrorKind::Invalid, text))
}

/// What binds a wrapped data key to its key, version and context.
fn aad(id: &str, version: u32, context: &[u8]) -> Vec<u8> {
    let id_bytes = [id.len() as u8];
    [id_bytes.as_slice(), id.as_bytes(), &version.to_be_bytes(), context].concat()
}

fn not_found(id: &str) -> TrustError {
    TrustError::new(ErrorKind::NotFound, format!("no key `{}` with this key provider", id.escape_debug()))
}

fn exists_already(id: &str) -> TrustError {
    let text = format!("key `{id}` exists already; rotate it, or take another name");
    TrustError::new(ErrorKind::Invalid, text)
}

fn wrong_kind(id: &str, kind: KeyKind, wanted: &str) -> TrustError {
    TrustError::new(ErrorKind::Invalid, format!("key `{id}` is {kind}; expected {wanted}"))
}

fn not_unwrapped(id: &str) -> TrustError {
    let text =
        format!("key `{id}` does not unwrap this: it was changed, wrapped by another key, or for another context");
    TrustError::new(ErrorKind::Tampered, text)
}

/// The two numbers of an ECDSA signature on P-256, side by side, in ASN.1 (RFC 3279 section 2.2.3).
fn ecdsa_der(signature: &[u8]) -> Option<Vec<u8>> {
    let (r, s) = signature.split_at_checked(32).filter(|(_, s)| s.len() == 32)?;
    let integer = |number: &[u8]| {
        let digits = &number[number.iter().take_while(|&&byte| byte == 0).count().min(31)..];
        // A first bit would make it negative.
        let sign = if digits[0] & 0x80 == 0 { &[][..] } else { &[0] };
        [&[0x02, (sign.len() + digits.len()) as u8][..], sign, digits].concat()
    };
    let numbers = [integer(r), integer(s)].concat();
    Some([&[0x30, numbers.len() as u8][..], &numbers].concat())
}

/// The key within a SubjectPublicKeyInfo in DER.
fn public_bits(der: &[u8]) -> Option<Vec<u8>> {
    let (rest, info) = SubjectPublicKeyInfo::from_der(der).ok()?;
    rest.is_empty().then(|| info.subject_public_key.data.to_vec())
}

#[cfg(test)]
mod tests {
    use super::ecdsa_der;

    #[test]
    fn signatures_are_in_asn1() {
        let mut signature = [0_u8; 64];
        assert_eq!(ecdsa_der(&signature).unwrap(), [0x30, 6, 2, 1, 0, 2, 1, 0]);
        signature[31] = 0x7f;
        signature[62] = 0x80;
        assert_eq!(ecdsa_der(&signature).unwrap(), [0x30, 8, 2, 1, 0x7f, 2, 3, 0, 0x80, 0]);
        assert_eq!(ecdsa_der(&[0xff; 64]).unwrap().len(), 72);
        assert_eq!((ecdsa_der(&[1; 63]), ecdsa_der(&[1; 65]), ecdsa_der(&[])), (None, None, None));
    }
}

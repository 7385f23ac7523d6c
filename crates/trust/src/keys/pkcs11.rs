//! Keys in a token that speaks PKCS#11: a hardware security module, a smart card, SoftHSM.
//!
//! A key's name is its label (`CKA_LABEL`) and each version is an object of its own, whose `CKA_ID` is the version's number (`01`, `02`), so
//! that the token's own tools can make, see and remove them. Objects named otherwise are left alone. Keys never leave the token: they are
//! made there, sensitive and not extractable. A wrapped data key is `version || IV || ciphertext || tag` of AES-256-GCM.

mod object;
mod sessions;

use std::path::PathBuf;

use aws_lc_rs::digest::{SHA256, digest};
use cryptoki::{
    error::{Error, RvError},
    mechanism::{
        Mechanism,
        aead::GcmParams,
        eddsa::{EddsaParams, EddsaSignatureScheme},
    },
    session::Session,
};
use parking_lot::Mutex;
use serde::Deserialize;

use self::{
    object::{Objects, Version},
    sessions::{Failure, Sessions},
};
use super::{
    KeyInfo, KeyKind, KeyProvider, KeyVersion, Secret, SecretSource, aad, check_data_key, check_key_name, ecdsa_der,
    exists_already, is_key_name, not_found, not_unwrapped, random_bytes, wrong_kind,
};
use crate::{ErrorKind, TrustError};

const IV_BYTES: usize = 12;
const TAG_BITS: u64 = 128;

/// Which token, and how to log in.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pkcs11Settings {
    /// The library that the token's maker gives, e.g. `/usr/lib/softhsm/libsofthsm2.so`. It runs in this process: take it from nobody else.
    pub module: PathBuf,
    /// The token's label.
    pub token: String,
    /// The user's PIN.
    pub pin: SecretSource,
    /// Most sessions at once; work beyond waits. Some tokens have few.
    #[serde(default = "sessions_max")]
    pub sessions_max: usize,
}

fn sessions_max() -> usize {
    8
}

/// Keys in a token.
pub struct Pkcs11 {
    sessions: Sessions,
    /// One change at a time, so that no number is given twice.
    changing: Mutex<()>,
}

impl Pkcs11 {
    /// Loads the library and logs in.
    ///
    /// # Errors
    /// `Invalid` where the library cannot be loaded, `NotFound` where it has no such token, `Unverified` where the PIN is wrong,
    /// `Unavailable` where the token does not answer.
    pub fn open(settings: Pkcs11Settings) -> Result<Self, TrustError> {
        let sessions = Sessions::new(settings)?;
        sessions.with(|_| Ok(()))?;
        Ok(Self { sessions, changing: Mutex::new(()) })
    }

    /// The versions of a key, oldest first, and at least one.
    fn versions(&self, session: &Session, id: &str) -> Result<Objects, Failure> {
        if !is_key_name(id) {
            return Err(not_found(id).into());
        }
        object::find(session, Some(id))?.remove(id).ok_or_else(|| not_found(id).into())
    }

    fn info(&self, session: &Session, id: &str, found: &Objects) -> Result<KeyInfo, Failure> {
        let version = |version: &Version| {
            let public_key = object::public_key(session, id, version)?;
            Ok(KeyVersion { number: version.number, created_at: None, public_key })
        };
        let versions = found.versions.iter().map(version).collect::<Result<_, Failure>>()?;
        Ok(KeyInfo { id: id.to_owned(), kind: found.kind, versions })
    }

    fn make(&self, session: &Session, id: &str, kind: KeyKind, number: u32) -> Result<KeyInfo, Failure> {
        object::make(session, id, kind, number).map_err(|error| match error {
            Error::Pkcs11(
                RvError::MechanismInvalid
                | RvError::DomainParamsInvalid
                | RvError::CurveNotSupported
                | RvError::AttributeValueInvalid
                | RvError::FunctionNotSupported,
                _,
            ) => {
                let text = format!("{} cannot make {kind}: {}", self.sessions, sessions::plain(&error));
                Failure::Done(TrustError::new(ErrorKind::Invalid, text))
            }
            error => Failure::Token(error),
        })?;
        let found = self.versions(session, id)?;
        self.info(session, id, &found)
    }
}

impl KeyProvider for Pkcs11 {
    fn name(&self) -> &'static str {
        "pkcs11"
    }

    fn create(&self, id: &str, kind: KeyKind) -> Result<KeyInfo, TrustError> {
        check_key_name(id)?;
        let _one = self.changing.lock();
        self.sessions.with(|session| {
            if object::find(session, Some(id))?.contains_key(id) {
                return Err(exists_already(id).into());
            }
            self.make(session, id, kind, 1)
        })
    }

    fn list(&self) -> Result<Vec<KeyInfo>, TrustError> {
        self.sessions.with(|session| {
            let keys = object::find(session, None)?;
            keys.iter().map(|(id, found)| self.info(session, id, found)).collect()
        })
    }

    fn describe(&self, id: &str) -> Result<KeyInfo, TrustError> {
        self.sessions.with(|session| {
            let found = self.versions(session, id)?;
            self.info(session, id, &found)
        })
    }

    fn rotate(&self, id: &str) -> Result<KeyInfo, TrustError> {
        let _one = self.changing.lock();
        self.sessions.with(|session| {
            let found = self.versions(session, id)?;
            let number = found.newest().number.checked_add(1);
            let number = number.ok_or_else(|| {
                TrustError::new(ErrorKind::Invalid, format!("key `{id}` has the last version that there can be"))
            })?;
            self.make(session, id, found.kind, number)
        })
    }

    fn wrap(&self, id: &str, data_key: &[u8], context: &[u8]) -> Result<Vec<u8>, TrustError> {
        check_data_key(data_key)?;
        self.sessions.with(|session| {
            let found = self.versions(session, id)?;
            if found.kind != KeyKind::Wrapping {
                return Err(wrong_kind(id, found.kind, "a wrapping key").into());
            }
            let (version, mut iv) = (found.newest(), random_bytes::<IV_BYTES>()?);
            let aad = aad(id, version.number, context);
            let params = GcmParams::new(&mut iv, &aad, TAG_BITS.into())?;
            let sealed = session.encrypt(&Mechanism::AesGcm(params), version.handle, data_key)?;
            Ok([version.number.to_be_bytes().as_slice(), &iv, &sealed].concat())
        })
    }

    fn unwrap(&self, id: &str, wrapped: &[u8], context: &[u8]) -> Result<Secret, TrustError> {
        self.sessions.with(|session| {
            let found = self.versions(session, id)?;
            if found.kind != KeyKind::Wrapping {
                return Err(wrong_kind(id, found.kind, "a wrapping key").into());
            }
            let (number, iv, sealed) = parts(wrapped).ok_or_else(|| not_unwrapped(id))?;
            // Two that rotated a key at once, from two machines, may have made two keys of one number.
            for version in found.versions.iter().filter(|version| version.number == number) {
                let (mut iv, aad) = (iv, aad(id, number, context));
                let params = GcmParams::new(&mut iv, &aad, TAG_BITS.into())?;
                match session.decrypt(&Mechanism::AesGcm(params), version.handle, sealed) {
                    Ok(opened) => return Ok(opened.into()),
                    Err(error) if sessions::is_refusal(&error) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(not_unwrapped(id).into())
        })
    }

    fn sign(&self, id: &str, message: &[u8]) -> Result<Vec<u8>, TrustError> {
        self.sessions.with(|session| {
            let found = self.versions(session, id)?;
            let handle = found.newest().handle;
            match found.kind {
                KeyKind::Wrapping => Err(wrong_kind(id, found.kind, "a key that signs").into()),
                // Few tokens hash themselves; all take a hash.
                KeyKind::P256 => {
                    let hash = digest(&SHA256, message);
                    let signature = session.sign(&Mechanism::Ecdsa, handle, hash.as_ref())?;
                    ecdsa_der(&signature).ok_or_else(|| {
                        let text = format!("{} made a signature of {} bytes", self.sessions, signature.len());
                        TrustError::new(ErrorKind::Unavailable, text).into()
                    })
                }
                KeyKind::Ed25519 => {
                    let scheme = EddsaParams::new(EddsaSignatureScheme::Ed25519);
                    Ok(session.sign(&Mechanism::Eddsa(scheme), handle, message)?)
                }
            }
        })
    }
}

/// Splits `version || IV || ciphertext and tag`.
fn parts(wrapped: &[u8]) -> Option<(u32, [u8; IV_BYTES], &[u8])> {
    let (version, rest) = wrapped.split_first_chunk()?;
    let (iv, sealed) = rest.split_first_chunk()?;
    // Ciphertext of at least one byte and its tag.
    (sealed.len() as u64 > TAG_BITS / 8).then_some((u32::from_be_bytes(*version), *iv, sealed))
}

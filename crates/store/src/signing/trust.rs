//! Whose signatures are taken.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ECDSA_P521_SHA512_ASN1, UnparsedPublicKey, VerificationAlgorithm,
};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer, TrustAnchor, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, SubjectPublicKeyInfo};

use super::{Bundle, Material, chain};
use crate::{
    digest::Digest,
    error::{StoreError, invalid, unverified},
};

/// A public key of P-256, P-384 or P-521.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    /// The SubjectPublicKeyInfo in DER.
    spki: Vec<u8>,
    point: Vec<u8>,
    curve: Curve,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
    P521,
}

/// Before the point of a P-256 key (RFC 5480 section 2).
const P256_HEAD: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

impl PublicKey {
    /// Reads a public key in PEM (`BEGIN PUBLIC KEY`).
    ///
    /// # Errors
    /// `Invalid` where it is none of P-256, P-384 or P-521.
    pub fn from_pem(pem: &[u8]) -> Result<Self, StoreError> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem)
            .map_err(|error| invalid(format!("expected a public key in PEM: {error}")))?;
        Self::from_spki(&der)
    }

    /// A point of P-256, uncompressed (65 bytes).
    pub(super) fn from_point(point: &[u8]) -> Result<Self, StoreError> {
        Self::from_spki(&[P256_HEAD, point].concat())
    }

    pub(super) fn from_spki(der: &[u8]) -> Result<Self, StoreError> {
        let wrong = |why: &str| invalid(format!("the public key {why}; expected one of P-256, P-384 or P-521"));
        let (rest, info) = SubjectPublicKeyInfo::from_der(der).map_err(|_| wrong("cannot be read"))?;
        let curve = info.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        let point = info.subject_public_key.data.to_vec();
        let curve = match curve.map(|oid| oid.to_id_string()).as_deref() {
            Some("1.2.840.10045.3.1.7") => Curve::P256,
            Some("1.3.132.0.34") => Curve::P384,
            Some("1.3.132.0.35") => Curve::P521,
            _ => return Err(wrong("is of another kind")),
        };
        if !rest.is_empty() {
            return Err(wrong("has bytes behind its end"));
        }
        Ok(Self { spki: der.to_vec(), point, curve })
    }

    /// The key in PEM, as `openssl` writes it.
    pub fn to_pem(&self) -> String {
        let encoded = BASE64_STANDARD.encode(&self.spki);
        let lines: Vec<&str> =
            (0..encoded.len()).step_by(64).filter_map(|at| encoded.get(at..encoded.len().min(at + 64))).collect();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
    }

    /// SHA-256 of its PEM in hexadecimal, by which a bundle names it.
    pub fn hint(&self) -> String {
        Digest::of(self.to_pem().as_bytes()).to_string()
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), StoreError> {
        let algorithm: &'static dyn VerificationAlgorithm = match self.curve {
            Curve::P256 => &ECDSA_P256_SHA256_ASN1,
            Curve::P384 => &ECDSA_P384_SHA384_ASN1,
            Curve::P521 => &ECDSA_P521_SHA512_ASN1,
        };
        UnparsedPublicKey::new(algorithm, &self.point)
            .verify(message, signature)
            .map_err(|_| crate::error::tampered("the signature is not this key's over this content"))
    }
}

/// Keys and roots whose signatures are taken. Without any, every release is refused.
#[derive(Clone, Debug, Default)]
pub struct TrustRoots {
    keys: Vec<PublicKey>,
    roots: Vec<TrustAnchor<'static>>,
    identities: Vec<String>,
}

/// Who signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VerifiedBy {
    /// A key, by its hint.
    Key(String),
    /// The holder of a certificate, by the identity that was accepted.
    Identity(String),
}

impl std::fmt::Display for VerifiedBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Key(hint) => write!(f, "key {hint}"),
            Self::Identity(identity) => f.write_str(identity),
        }
    }
}

impl TrustRoots {
    /// Takes signatures of a key.
    #[must_use]
    pub fn with_key(mut self, key: PublicKey) -> Self {
        self.keys.push(key);
        self
    }

    /// Takes signatures of certificates beneath these roots (PEM), if they name one of the identities: a subject alternative name,
    /// `*` at the end takes all that begin so. A root alone says too little: it may certify every device.
    ///
    /// # Errors
    /// `Invalid` where there is no certificate in the PEM or no identity.
    pub fn with_roots(mut self, pem: &[u8], identities: &[String]) -> Result<Self, StoreError> {
        let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        let certificates = certificates.map_err(|error| invalid(format!("the roots: not PEM: {error}")))?;
        if certificates.is_empty() {
            return Err(invalid("the roots: expected at least one certificate in PEM"));
        }
        if identities.iter().all(String::is_empty) {
            return Err(invalid(
                "roots without an identity; expected whose certificate may sign, `spiffe://…/release/*`",
            ));
        }
        for der in &certificates {
            let anchor = webpki::anchor_from_trusted_cert(der).map_err(|error| invalid(format!("a root: {error}")))?;
            self.roots.push(anchor.to_owned());
        }
        self.identities.extend(identities.iter().filter(|identity| !identity.is_empty()).cloned());
        Ok(self)
    }

    /// Verifies a bundle and gives the statement in it.
    pub(super) fn open(&self, bytes: &[u8]) -> Result<(Vec<u8>, VerifiedBy), StoreError> {
        let bundle = Bundle::parse(bytes)?;
        let message = Bundle::to_be_signed(&bundle.payload);
        let by = match &bundle.material {
            Material::Key { hint } => self.by_key(hint, &message, &bundle.signature)?,
            Material::Certificates(certificates) => {
                let leaf = chain::verify(certificates, &self.roots)?;
                leaf.public.verify(&message, &bundle.signature)?;
                self.identity(&leaf.identities)?
            }
        };
        Ok((bundle.payload, by))
    }

    fn by_key(&self, hint: &str, message: &[u8], signature: &[u8]) -> Result<VerifiedBy, StoreError> {
        let hinted: Vec<&PublicKey> = self.keys.iter().filter(|key| hint.is_empty() || key.hint() == hint).collect();
        if hinted.is_empty() {
            let hint = hint.escape_debug();
            return Err(unverified(format!("signed with the key of hint `{hint}`, which is not trusted here")));
        }
        let mut result = Err(unverified("no key is trusted here"));
        for key in hinted {
            result = key.verify(message, signature).map(|()| VerifiedBy::Key(key.hint()));
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn identity(&self, names: &[String]) -> Result<VerifiedBy, StoreError> {
        let taken = |name: &&String| {
            self.identities.iter().any(|wanted| match wanted.strip_suffix('*') {
                Some(begin) => name.starts_with(begin),
                None => *name == wanted,
            })
        };
        match names.iter().find(taken) {
            Some(name) => Ok(VerifiedBy::Identity(name.clone())),
            None => {
                let names = names.join("`, `");
                let shown = names.escape_debug();
                Err(unverified(format!("signed by `{shown}`; expected `{}`", self.identities.join("`, `"))))
            }
        }
    }
}

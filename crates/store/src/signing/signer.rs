//! Makes signatures: with a key of a key provider, or one in a PEM file; known by the key, or by its certificate.

use std::sync::Arc;

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use edgeward_trust::keys::{KeyKind, KeyProvider};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use super::{Bundle, Material, PublicKey, chain};
use crate::error::{ErrorKind, StoreError, invalid};

/// Who signs.
pub struct Signer {
    key: SigningKey,
    public: PublicKey,
    certificates: Vec<Vec<u8>>,
}

/// A P-256 key that signs.
pub enum SigningKey {
    /// A key of a provider, which does not leave it.
    Provider(Arc<dyn KeyProvider>, String),
    /// A key in this process's memory.
    Pair(Box<EcdsaKeyPair>),
}

impl SigningKey {
    /// Reads a private key of P-256 in PEM (PKCS#8, or SEC1 as `openssl ecparam -genkey` writes it).
    ///
    /// # Errors
    /// `Invalid` where it is none.
    pub fn from_pem(pem: &[u8]) -> Result<Self, StoreError> {
        let wrong = "expected a private key of P-256 in PEM";
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| invalid(format!("{wrong}: {error}")))?;
        let pair = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, key.secret_der());
        Ok(Self::Pair(Box::new(pair.map_err(|_| invalid(wrong))?)))
    }

    fn public(&self) -> Result<PublicKey, StoreError> {
        match self {
            Self::Pair(pair) => PublicKey::from_point(pair.public_key().as_ref()),
            Self::Provider(provider, id) => {
                let info = provider.describe(id)?;
                let point = info.versions.last().and_then(|version| version.public_key.clone());
                match (info.kind, point) {
                    (KeyKind::P256, Some(point)) => PublicKey::from_point(&point),
                    (kind, _) => Err(invalid(format!("key `{id}` is {kind}; releases are signed with a P-256 key"))),
                }
            }
        }
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, StoreError> {
        match self {
            Self::Provider(provider, id) => Ok(provider.sign(id, message)?),
            Self::Pair(pair) => {
                let signature = pair.sign(&SystemRandom::new(), message);
                let failed = |_| StoreError::new(ErrorKind::Unavailable, "the cryptographic library could not sign");
                signature.map(|signature| signature.as_ref().to_vec()).map_err(failed)
            }
        }
    }
}

impl Signer {
    /// Known by its key: who verifies must have it.
    ///
    /// # Errors
    /// `Invalid` where the key is none of P-256, `NotFound` where the provider has none of that name.
    pub fn with_key(key: SigningKey) -> Result<Self, StoreError> {
        let public = key.public()?;
        Ok(Self { key, public, certificates: Vec::new() })
    }

    /// Known by a certificate: who verifies must have the root. `chain` is PEM, the signer's certificate first.
    ///
    /// # Errors
    /// `Invalid` where the certificate is another key's, or none that may sign.
    pub fn with_certificate(key: SigningKey, chain: &[u8]) -> Result<Self, StoreError> {
        let public = key.public()?;
        let certificates = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>();
        let certificates = certificates.map_err(|error| invalid(format!("the certificates: not PEM: {error}")))?;
        let first = certificates.first().ok_or_else(|| invalid("the certificates: expected at least one in PEM"))?;
        if chain::Leaf::read(first)?.public != public {
            return Err(invalid("the certificate is another key's than the one to sign with"));
        }
        let certificates = certificates.iter().map(|certificate| certificate.to_vec()).collect();
        Ok(Self { key, public, certificates })
    }

    /// The key that verifies what it signs.
    pub fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// Signs a statement; the bundle's JSON.
    ///
    /// # Errors
    /// `Unavailable` where the key's provider does not answer.
    pub fn sign(&self, statement: &[u8]) -> Result<Vec<u8>, StoreError> {
        let material = if self.certificates.is_empty() {
            Material::Key { hint: self.public.hint() }
        } else {
            Material::Certificates(self.certificates.clone())
        };
        let signature = self.key.sign(&Bundle::to_be_signed(statement))?;
        Bundle { payload: statement.to_vec(), signature, material }.to_bytes()
    }
}

//! The Sigstore bundle and the DSSE envelope in it, as bytes. Fields that are not used are read and passed over, as protobuf's JSON has them.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::{Deserialize, Serialize};

use crate::error::{StoreError, invalid};

/// Longest bundle that is read, in bytes.
pub const BUNDLE_BYTES_MAX: usize = 16 << 20;
/// Media type of the bundle.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// Type of the envelope's payload.
pub(crate) const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const CERTIFICATES_MAX: usize = 8;

/// A statement, its signature, and how the signer is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The statement's bytes, which are what is signed.
    pub payload: Vec<u8>,
    /// ECDSA, as ASN.1 DER.
    pub signature: Vec<u8>,
    /// What the verifier needs beside its own roots.
    pub material: Material,
}

/// How a signer is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Material {
    /// By a key that the verifier has; the hint is the SHA-256 of its PEM, in hexadecimal.
    Key {
        /// Empty where the signer gives none.
        hint: String,
    },
    /// By certificates in DER, the signer's first.
    Certificates(Vec<Vec<u8>>),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    media_type: String,
    verification_material: WireMaterial,
    dsse_envelope: Envelope,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireMaterial {
    #[serde(skip_serializing_if = "Option::is_none")]
    public_key: Option<Hint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x509_certificate_chain: Option<Chain>,
    /// Of Sigstore's own signatures.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<Certificate>,
    #[serde(default)]
    tlog_entries: Vec<serde_json::Value>,
}

#[derive(Serialize, Deserialize)]
struct Hint {
    #[serde(default)]
    hint: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Chain {
    certificates: Vec<Certificate>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Certificate {
    raw_bytes: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Serialize, Deserialize)]
struct Signature {
    sig: String,
    #[serde(default)]
    keyid: String,
}

impl Bundle {
    /// What is signed of a payload (DSSE v1, pre-authentication encoding).
    pub fn to_be_signed(payload: &[u8]) -> Vec<u8> {
        let head = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len());
        [head.as_bytes(), payload].concat()
    }

    /// Reads a bundle; whether its signature is good is another question.
    ///
    /// # Errors
    /// `Invalid`, with what was expected.
    pub fn parse(bytes: &[u8]) -> Result<Self, StoreError> {
        if bytes.len() > BUNDLE_BYTES_MAX {
            return Err(invalid(format!("{} bytes; expected at most {BUNDLE_BYTES_MAX}", bytes.len())));
        }
        let wire: Wire =
            serde_json::from_slice(bytes).map_err(|error| invalid(format!("no Sigstore bundle: {error}")))?;
        expect("media type", &wire.media_type, MEDIA_TYPE)?;
        expect("payload type", &wire.dsse_envelope.payload_type, PAYLOAD_TYPE)?;
        let [signature] = wire.dsse_envelope.signatures.as_slice() else {
            let count = wire.dsse_envelope.signatures.len();
            return Err(invalid(format!("{count} signatures in the envelope; expected one")));
        };
        Ok(Self {
            payload: decode("payload", &wire.dsse_envelope.payload)?,
            signature: decode("signature", &signature.sig)?,
            material: wire.verification_material.read()?,
        })
    }

    /// The bundle's JSON.
    ///
    /// # Errors
    /// None that is known.
    pub fn to_bytes(&self) -> Result<Vec<u8>, StoreError> {
        let mut material = WireMaterial::default();
        match &self.material {
            Material::Key { hint } => material.public_key = Some(Hint { hint: Some(hint.clone()) }),
            Material::Certificates(certificates) => {
                let encoded = certificates.iter().map(|der| Certificate { raw_bytes: BASE64_STANDARD.encode(der) });
                material.x509_certificate_chain = Some(Chain { certificates: encoded.collect() });
            }
        }
        let signature = Signature { sig: BASE64_STANDARD.encode(&self.signature), keyid: String::new() };
        let wire = Wire {
            media_type: MEDIA_TYPE.to_owned(),
            verification_material: material,
            dsse_envelope: Envelope {
                payload: BASE64_STANDARD.encode(&self.payload),
                payload_type: PAYLOAD_TYPE.to_owned(),
                signatures: vec![signature],
            },
        };
        serde_json::to_vec(&wire).map_err(|error| invalid(format!("the bundle: {error}")))
    }
}

impl WireMaterial {
    fn read(self) -> Result<Material, StoreError> {
        match (self.public_key, self.x509_certificate_chain, self.certificate) {
            (Some(key), None, None) => Ok(Material::Key { hint: key.hint.unwrap_or_default() }),
            (None, Some(chain), None) if (1..=CERTIFICATES_MAX).contains(&chain.certificates.len()) => {
                let certificates = chain.certificates.iter();
                let der = certificates.map(|certificate| decode("certificate", &certificate.raw_bytes));
                Ok(Material::Certificates(der.collect::<Result<_, _>>()?))
            }
            (None, Some(chain), None) => {
                Err(invalid(format!("{} certificates; expected 1 to {CERTIFICATES_MAX}", chain.certificates.len())))
            }
            (None, None, Some(_)) => Err(invalid(
                "signed with an identity of the Sigstore service; expected a signature by `key` or `certificate`",
            )),
            _ => Err(invalid("expected either a public key's hint or a chain of certificates")),
        }
    }
}

fn expect(what: &str, found: &str, expected: &str) -> Result<(), StoreError> {
    if found == expected {
        return Ok(());
    }
    Err(invalid(format!("{what} `{}`; expected `{expected}`", found.escape_debug())))
}

fn decode(what: &str, text: &str) -> Result<Vec<u8>, StoreError> {
    BASE64_STANDARD.decode(text).map_err(|error| invalid(format!("the {what} is not base64: {error}")))
}

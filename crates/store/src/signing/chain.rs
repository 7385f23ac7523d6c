//! Certificates of signers.

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate};

use super::PublicKey;
use crate::error::{StoreError, invalid, unverified};

/// What a signer's certificate says.
pub(super) struct Leaf {
    pub(super) public: PublicKey,
    /// Its subject alternative names: URIs, mail addresses and host names.
    pub(super) identities: Vec<String>,
    not_before_s: u64,
}

impl Leaf {
    /// Reads a certificate that may sign; whether its issuer is trusted is another question.
    pub(super) fn read(der: &[u8]) -> Result<Self, StoreError> {
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|error| invalid(format!("the signer's certificate: {error}")))?;
        if !rest.is_empty() {
            return Err(invalid("the signer's certificate has bytes behind its end"));
        }
        let (mut identities, mut signs) = (Vec::new(), false);
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    identities.extend(names.general_names.iter().filter_map(|name| match name {
                        GeneralName::URI(name) | GeneralName::RFC822Name(name) | GeneralName::DNSName(name) => {
                            Some((*name).to_owned())
                        }
                        _ => None,
                    }));
                }
                ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
                    return Err(unverified("the signer's certificate is one of an authority"));
                }
                ParsedExtension::KeyUsage(usage) => signs = usage.digital_signature(),
                _ => {}
            }
        }
        if !signs {
            return Err(unverified("the signer's certificate lacks the key usage `digitalSignature`"));
        }
        let public = PublicKey::from_spki(certificate.public_key().raw)?;
        let not_before_s = u64::try_from(certificate.validity().not_before.timestamp()).unwrap_or(0);
        Ok(Self { public, identities, not_before_s })
    }
}

/// id-kp-codeSigning (RFC 5280 section 4.2.1.12).
const CODE_SIGNING: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 3];

/// Follows a chain to a root as of the begin of the signer's validity, as `model_signing` does: a release outlives the certificate.
pub(super) fn verify(certificates: &[Vec<u8>], roots: &[TrustAnchor<'static>]) -> Result<Leaf, StoreError> {
    let (first, others) = certificates.split_first().ok_or_else(|| unverified("it holds no certificate"))?;
    let leaf = Leaf::read(first)?;
    let refused = |error: &webpki::Error| match error {
        // The second where a root has the same name as the one that signed.
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            unverified("the signer's certificate leads to no trusted root")
        }
        other => unverified(format!("the signer's certificate: {other}")),
    };
    let first = CertificateDer::from(first.as_slice());
    let others: Vec<CertificateDer<'_>> = others.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let certificate = EndEntityCert::try_from(&first).map_err(|error| refused(&error))?;
    let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(leaf.not_before_s));
    let follow =
        |usage| certificate.verify_for_usage(ALL_VERIFICATION_ALGS, roots, &others, time, usage, None, None).map(drop);
    // A workload's certificate signs as well as one for code: the identity decides who may sign releases.
    follow(KeyUsage::required_if_present(CODE_SIGNING))
        .or_else(|_| follow(KeyUsage::client_auth()))
        .map_err(|error| refused(&error))?;
    Ok(leaf)
}

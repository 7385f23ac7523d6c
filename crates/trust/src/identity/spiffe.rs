//! X.509-SVIDs: workloads that show their SPIFFE ID in a certificate over mutual TLS.
//!
//! The handshake proves the key; that the certificate comes from a trust domain, and what it says, is decided here, so that roots change
//! without a new listener. Sources: SPIFFE-ID and X509-SVID of the SPIFFE standards.

mod bundle;
mod id;
mod workload;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate};

pub use self::{
    bundle::TrustBundles,
    id::SpiffeId,
    workload::{ENDPOINT_VARIABLE, WorkloadApi, WorkloadApiSettings, WorkloadKeys},
};
use super::{
    Connection, Credential, IdentityProvider, Verification,
    jose::{expired, unverified},
};
use crate::{Method, Principal, Strength, Thumbprint, TrustError, revocation::canonical_serial};

/// Longest chain, and longest certificate in it.
const CHAIN_MAX: usize = 8;
const CERTIFICATE_BYTES_MAX: usize = 16 * 1024;

/// What it means to come from a trust domain.
#[derive(Clone, Debug)]
pub struct DomainSettings {
    /// The organisation behind the domain; the domain's own name where none.
    pub tenant: Option<String>,
    /// `Attested` where the domain's authority attests workloads before it signs (SPIRE does).
    pub strength: Strength,
    /// `Local` for the domain of this installation's own authority.
    pub method: Method,
}

impl Default for DomainSettings {
    fn default() -> Self {
        Self { tenant: None, strength: Strength::KeyBound, method: Method::Spiffe }
    }
}

/// Verifies client certificates against the bundles of their trust domains.
pub struct Spiffe {
    bundles: TrustBundles,
    domains: BTreeMap<String, DomainSettings>,
}

impl Spiffe {
    /// A verifier; a domain without settings has the default ones.
    pub fn new(bundles: TrustBundles, domains: BTreeMap<String, DomainSettings>) -> Self {
        Self { bundles, domains }
    }

    /// The roots, to replace them.
    pub fn bundles(&self) -> &TrustBundles {
        &self.bundles
    }

    fn principal(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<Principal, TrustError> {
        let (leaf, intermediates) =
            chain.split_first().ok_or_else(|| unverified("connection has no client certificate"))?;
        if chain.len() > CHAIN_MAX || chain.iter().any(|der| der.len() > CERTIFICATE_BYTES_MAX) {
            return Err(unverified(format!(
                "client certificate: at most {CHAIN_MAX} of {CERTIFICATE_BYTES_MAX} bytes are read"
            )));
        }
        let svid = Svid::read(leaf)?;
        verify_chain(leaf, intermediates, &self.bundles.at(svid.id.trust_domain(), now)?, now)?;
        let settings = self.domains.get(svid.id.trust_domain()).cloned().unwrap_or_default();
        Ok(Principal {
            tenant: Some(settings.tenant.unwrap_or_else(|| svid.id.trust_domain().to_owned())),
            claims: BTreeMap::from([
                ("trust_domain".to_owned(), svid.id.trust_domain().to_owned()),
                ("path".to_owned(), svid.id.path().to_owned()),
                (Principal::SERIAL.to_owned(), svid.serial),
                (Principal::SINCE.to_owned(), svid.since.to_string()),
            ]),
            id: svid.id.to_string(),
            method: settings.method,
            strength: settings.strength,
            groups: Vec::new(),
            bound_to: Some(Thumbprint::of_certificate(leaf)),
            expires_at: svid.expires_at,
        })
    }
}

impl IdentityProvider for Spiffe {
    fn name(&self) -> &str {
        "spiffe"
    }

    fn claims(&self, credential: &Credential<'_>) -> bool {
        matches!(credential, Credential::Certificate)
    }

    fn verify<'a>(
        &'a self,
        credential: Credential<'a>,
        connection: Connection<'a>,
        now: SystemTime,
    ) -> Verification<'a> {
        match credential {
            Credential::Certificate => self.principal(connection.certificates, now).into(),
            _ => Err(unverified("a token is no client certificate")).into(),
        }
    }
}

fn verify_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &[rustls_pki_types::TrustAnchor<'static>],
    now: SystemTime,
) -> Result<(), TrustError> {
    let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let time = UnixTime::since_unix_epoch(since_1970);
    let certificate = EndEntityCert::try_from(leaf).map_err(|e| refused(&e))?;
    let usage = KeyUsage::client_auth();
    let path = certificate.verify_for_usage(ALL_VERIFICATION_ALGS, roots, intermediates, time, usage, None, None);
    path.map(|_| ()).map_err(|e| refused(&e))
}

fn refused(error: &webpki::Error) -> TrustError {
    match error {
        webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. } => {
            expired(format!("client certificate is outside its time of validity: {error}"))
        }
        webpki::Error::UnknownIssuer => unverified("client certificate leads to no root of its trust domain"),
        other => unverified(format!("client certificate: {other}")),
    }
}

/// What a leaf certificate says, by the rules of the standard; who signed it is another question.
struct Svid {
    id: SpiffeId,
    serial: String,
    /// Seconds since 1970.
    since: u64,
    expires_at: SystemTime,
}

impl Svid {
    fn read(der: &CertificateDer<'_>) -> Result<Self, TrustError> {
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|e| unverified(format!("client certificate is not DER: {e}")))?;
        if !rest.is_empty() {
            return Err(unverified("client certificate has bytes behind its end"));
        }
        let mut uris = Vec::new();
        let mut signs = false;
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    uris.extend(names.general_names.iter().filter_map(|name| match name {
                        GeneralName::URI(uri) => Some(*uri),
                        _ => None,
                    }));
                }
                ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
                    return Err(unverified("client certificate is one of an authority"));
                }
                ParsedExtension::KeyUsage(usage) => {
                    if usage.key_cert_sign() || usage.crl_sign() {
                        return Err(unverified("client certificate may sign certificates, which an SVID may not"));
                    }
                    signs = usage.digital_signature();
                }
                ParsedExtension::ParseError { error } => {
                    return Err(unverified(format!("extension `{}` of client certificate: {error}", extension.oid)));
                }
                _ => {}
            }
        }
        let &[uri] = uris.as_slice() else {
            return Err(unverified(format!("client certificate has {} URI names, an SVID has one", uris.len())));
        };
        if !signs {
            return Err(unverified("client certificate lacks the key usage `digitalSignature`"));
        }
        let id = SpiffeId::parse(uri)?;
        if id.path().is_empty() {
            return Err(unverified(format!("`{id}` names a trust domain, expected a workload of it")));
        }
        let expires_at = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        Ok(Self {
            id,
            serial: canonical_serial(
                &certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
            ),
            since: u64::try_from(certificate.validity().not_before.timestamp()).unwrap_or(0),
            expires_at: SystemTime::UNIX_EPOCH + Duration::from_secs(expires_at),
        })
    }
}

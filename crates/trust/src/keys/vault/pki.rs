//! A server's certificate from a PKI engine: the key is made here, and only a request to certify it goes out.

use std::{net::IpAddr, time::SystemTime};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    Vault,
    client::{Call, check_mount},
};
use crate::{
    ErrorKind, TrustError,
    tls::{RETRY_AFTER, ServerKeySource, ServerKeys},
};

/// What certificates are asked for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PkiSettings {
    /// Where the engine is mounted.
    #[serde(default = "pki")]
    pub mount: String,
    /// The engine's role, which says what it certifies.
    pub role: String,
    /// Host names of the server; the first is its common name.
    pub dns: Vec<String>,
    /// Addresses of the server.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// The server's SPIFFE id, where it has one.
    pub spiffe_id: Option<String>,
}

fn pki() -> String {
    "pki".to_owned()
}

/// Certificates of a PKI engine, renewed when a third of their time is left.
pub struct VaultPki {
    vault: Vault,
    settings: PkiSettings,
    renew_at: Option<SystemTime>,
}

impl VaultPki {
    /// Certificates of an engine.
    ///
    /// # Errors
    /// `Invalid` where the mount or role is no path, or there is no host name.
    pub fn new(vault: Vault, settings: PkiSettings) -> Result<Self, TrustError> {
        check_mount(&settings.mount)?;
        check_mount(&settings.role)?;
        if settings.dns.is_empty() {
            return Err(TrustError::new(ErrorKind::Invalid, "a server's certificate needs at least one host name"));
        }
        Ok(Self { vault, settings, renew_at: None })
    }

    fn params(&self) -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::new(self.settings.dns.clone())?;
        params.distinguished_name = DistinguishedName::new();
        if let Some(name) = self.settings.dns.first() {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.subject_alt_names.extend(self.settings.addresses.iter().map(|&address| SanType::IpAddress(address)));
        if let Some(id) = &self.settings.spiffe_id {
            params.subject_alt_names.push(SanType::URI(id.as_str().try_into()?));
        }
        Ok(params)
    }

    fn issue(&self) -> Result<ServerKeys, TrustError> {
        let failed =
            |error: rcgen::Error| TrustError::new(ErrorKind::Invalid, format!("a request to certify a key: {error}"));
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        // Roles look at the request's names or at those beside it, as they are set.
        let request =
            self.params().map_err(failed)?.serialize_request(&key).and_then(|request| request.pem()).map_err(failed)?;
        let addresses: Vec<String> = self.settings.addresses.iter().map(ToString::to_string).collect();
        let body = json!({
            "csr": request,
            "common_name": self.settings.dns.first(),
            "alt_names": self.settings.dns.join(","),
            "ip_sans": addresses.join(","),
            "uri_sans": self.settings.spiffe_id.as_deref().unwrap_or_default(),
        });
        let path = format!("{}/sign/{}", self.settings.mount, self.settings.role);
        let client = self.vault.client.clone();
        let said = self.vault.remote.run(async move { client.ask(&Call::post(path, body)).await })?;
        let chain = chain(&said).ok_or_else(|| {
            TrustError::new(ErrorKind::Unavailable, "answer of the PKI engine: no `certificate` in PEM")
        })?;
        ServerKeys::from_pem(chain.as_bytes(), Zeroizing::new(key.serialize_pem()).as_bytes())
    }
}

/// The certificate and those above it but the root, in PEM.
fn chain(said: &Value) -> Option<String> {
    let data = said.get("data")?;
    let leaf = data.get("certificate")?.as_str()?;
    let above = data.get("ca_chain").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let above = above.filter(|pem| !is_root(pem));
    Some(std::iter::once(leaf).chain(above).map(|pem| format!("{}\n", pem.trim_end())).collect())
}

fn is_root(pem: &str) -> bool {
    let parsed = x509_parser::pem::parse_x509_pem(pem.as_bytes());
    parsed.is_ok_and(|(_, pem)| pem.parse_x509().is_ok_and(|certificate| certificate.subject() == certificate.issuer()))
}

impl ServerKeySource for VaultPki {
    fn renew(&mut self, now: SystemTime) -> Result<Option<ServerKeys>, TrustError> {
        if self.renew_at.is_some_and(|at| now < at) {
            return Ok(None);
        }
        // Asked for new keys with every look, a PKI that says no would be asked twice a second.
        self.renew_at = Some(now + RETRY_AFTER);
        let keys = self.issue()?;
        let left = keys.not_after.duration_since(now).unwrap_or_default();
        self.renew_at = Some(now + left * 2 / 3);
        Ok(Some(keys))
    }
}

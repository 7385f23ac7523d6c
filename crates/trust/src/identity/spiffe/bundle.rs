//! Roots of trust domains, replaced as a whole while connections come in.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    path::Path,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use rustls_pki_types::{CertificateDer, TrustAnchor, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::id::is_trust_domain;
use crate::{
    TrustError,
    identity::jose::{invalid, unverified},
};

const BUNDLE_BYTES_MAX: u64 = 1 << 20;

type Roots = BTreeMap<String, Vec<Root>>;

#[derive(Clone)]
struct Root {
    anchor: TrustAnchor<'static>,
    not_after: SystemTime,
}

/// Roots by trust domain. A domain has several while one root takes over from another.
#[derive(Default)]
pub struct TrustBundles {
    roots: ArcSwap<Roots>,
}

impl TrustBundles {
    /// No domain at all: every certificate is refused.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the roots of a domain by those of a bundle: PEM, or SPIFFE's JSON. Where it cannot be read the old ones stay.
    ///
    /// # Errors
    /// `Invalid` where the name is no trust domain or the bundle holds no authority.
    pub fn set(&self, trust_domain: &str, bundle: &[u8]) -> Result<(), TrustError> {
        let wrong = |e: String| invalid(format!("bundle of trust domain `{}`: {e}", trust_domain.escape_debug()));
        self.set_certificates(trust_domain, &certificates(bundle).map_err(wrong)?)
    }

    /// Replaces the roots of a domain by these certificates. Where one cannot be read the old ones stay.
    ///
    /// # Errors
    /// Those of [`TrustBundles::set`].
    pub fn set_certificates(
        &self,
        trust_domain: &str,
        certificates: &[CertificateDer<'static>],
    ) -> Result<(), TrustError> {
        if !is_trust_domain(trust_domain) {
            return Err(invalid(format!(
                "trust domain `{}`: expected `a-z`, `0-9`, `.`, `-`, `_`",
                trust_domain.escape_debug()
            )));
        }
        let wrong = |e: String| invalid(format!("bundle of trust domain `{trust_domain}`: {e}"));
        if certificates.is_empty() {
            return Err(wrong("no certificate in it".to_owned()));
        }
        let read = certificates.iter().map(|der| root(der).map_err(wrong)).collect::<Result<Vec<_>, _>>()?;
        self.roots.rcu(|roots| {
            let mut roots = Roots::clone(roots);
            roots.insert(trust_domain.to_owned(), read.clone());
            roots
        });
        Ok(())
    }

    /// Replaces the roots of a domain by those of a file.
    ///
    /// # Errors
    /// Those of [`TrustBundles::set`], and `Invalid` where the file cannot be read.
    pub fn set_from_file(&self, trust_domain: &str, path: &Path) -> Result<(), TrustError> {
        let mut bundle = Vec::new();
        let read = File::open(path).and_then(|file| file.take(BUNDLE_BYTES_MAX + 1).read_to_end(&mut bundle));
        let read = read.map_err(|e| invalid(format!("bundle `{}`: {e}", path.display())))?;
        if read as u64 > BUNDLE_BYTES_MAX {
            return Err(invalid(format!("bundle `{}`: at most {BUNDLE_BYTES_MAX} bytes are read", path.display())));
        }
        self.set(trust_domain, &bundle)
    }

    /// Forgets a domain: its workloads are refused from now on.
    pub fn remove(&self, trust_domain: &str) {
        self.roots.rcu(|roots| {
            let mut roots = Roots::clone(roots);
            roots.remove(trust_domain);
            roots
        });
    }

    /// The roots of a domain that have not ended.
    pub(super) fn at(&self, trust_domain: &str, now: SystemTime) -> Result<Vec<TrustAnchor<'static>>, TrustError> {
        let roots = self.roots.load();
        let known = roots.get(trust_domain);
        let known = known.ok_or_else(|| unverified(format!("trust domain `{trust_domain}` is not known here")))?;
        Ok(known.iter().filter(|root| root.not_after > now).map(|root| root.anchor.clone()).collect())
    }
}

/// A certificate of an authority. The library that follows chains looks at neither of these in a root.
fn root(der: &CertificateDer<'_>) -> Result<Root, String> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| format!("certificate: {e}"))?;
    if !certificate.is_ca() {
        return Err("a certificate in it is not one of an authority".to_owned());
    }
    let not_after = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    let anchor = webpki::anchor_from_trusted_cert(der).map_err(|e| format!("certificate: {e}"))?.to_owned();
    Ok(Root { anchor, not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(not_after) })
}

fn certificates(bundle: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    if bundle.trim_ascii_start().starts_with(b"{") {
        return json(bundle);
    }
    CertificateDer::pem_slice_iter(bundle).collect::<Result<_, _>>().map_err(|e| format!("not PEM: {e}"))
}

/// The X.509 authorities of a bundle in SPIFFE's format: keys with `use` `x509-svid`, each with one certificate.
fn json(bundle: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    #[derive(serde::Deserialize)]
    struct Bundle {
        keys: Vec<Key>,
    }
    #[derive(serde::Deserialize)]
    struct Key {
        #[serde(rename = "use")]
        usage: Option<String>,
        #[serde(default)]
        x5c: Vec<String>,
    }
    let bundle: Bundle = serde_json::from_slice(bundle).map_err(|e| format!("not a SPIFFE bundle: {e}"))?;
    let authorities = bundle.keys.iter().filter(|key| key.usage.as_deref() == Some("x509-svid"));
    let encoded = authorities.map(|key| match key.x5c.as_slice() {
        [one] => BASE64.decode(one).map(CertificateDer::from).map_err(|e| format!("`x5c`: {e}")),
        other => Err(format!("`x5c` has {} certificates, expected one", other.len())),
    });
    encoded.collect()
}

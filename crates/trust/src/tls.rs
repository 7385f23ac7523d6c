//! What a server answers TLS with, renewed while it runs.
//!
//! A source is asked every so often and answers with new keys where there are any: nobody restarts for a certificate.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::{
    ErrorKind, TrustError,
    authority::{Authority, AuthorityKeys, LeafKey, LeafKind, LeafRequest, Lifetimes},
};

const PEM_BYTES_MAX: u64 = 1 << 20;
/// A source that makes keys, and failed to, is tried again after so long.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(10);

/// A certificate with its key.
pub struct ServerKeys {
    /// The server's own certificate first, in DER.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
    /// End of its validity.
    pub not_after: SystemTime,
    /// Host names and addresses that it is for, as clients write them.
    pub names: Vec<String>,
}

/// Where a server has its certificate from.
pub trait ServerKeySource: Send {
    /// The keys to answer with from now on, where they are other ones than before.
    ///
    /// # Errors
    /// Why there are none; those in use stay.
    fn renew(&mut self, now: SystemTime) -> Result<Option<ServerKeys>, TrustError>;
}

impl ServerKeys {
    /// Reads a chain and a key in PEM.
    ///
    /// # Errors
    /// `Invalid` where either cannot be read.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TrustError> {
        let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| invalid(format!("the server's certificate is not PEM: {error}")))?;
        let key = PrivateKeyDer::from_pem_slice(key);
        let key = key.map_err(|error| invalid(format!("the server's private key is not PEM: {error}")))?;
        Self::from_der(chain, key)
    }

    /// A chain, the server's own certificate first, and its key.
    ///
    /// # Errors
    /// `Invalid` where the certificate cannot be read.
    pub fn from_der(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, TrustError> {
        let leaf = chain.first().ok_or_else(|| invalid("the server's certificate holds none"))?;
        let (not_after, names) = read(leaf)?;
        Ok(Self { chain, key, not_after, names })
    }
}

/// End and names of a certificate.
fn read(der: &CertificateDer<'_>) -> Result<(SystemTime, Vec<String>), TrustError> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|error| invalid(format!("the server's certificate: {error}")))?;
    let end = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
        _ => None,
    });
    Ok((SystemTime::UNIX_EPOCH + Duration::from_secs(end), names.collect()))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// Certificate and key in files, which others renew.
pub struct KeyFiles {
    certificate: PathBuf,
    key: PathBuf,
    read: Option<(Vec<u8>, Vec<u8>)>,
}

impl KeyFiles {
    /// These files, in PEM.
    pub fn new(certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        Self { certificate: certificate.into(), key: key.into(), read: None }
    }
}

impl ServerKeySource for KeyFiles {
    fn renew(&mut self, _: SystemTime) -> Result<Option<ServerKeys>, TrustError> {
        let found = (read_pem(&self.certificate)?, read_pem(&self.key)?);
        if self.read.as_ref() == Some(&found) {
            return Ok(None);
        }
        let keys = ServerKeys::from_pem(&found.0, &found.1)
            .map_err(|error| TrustError::new(error.kind(), format!("`{}`: {error}", self.certificate.display())))?;
        self.read = Some(found);
        Ok(Some(keys))
    }
}

fn read_pem(path: &Path) -> Result<Vec<u8>, TrustError> {
    let failed = |why: String| TrustError::new(ErrorKind::Unavailable, format!("`{}`: {why}", path.display()));
    let length = fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
    if length > PEM_BYTES_MAX {
        return Err(failed(format!("{length} bytes; expected PEM of at most {PEM_BYTES_MAX}")));
    }
    fs::read(path).map_err(|error| failed(error.to_string()))
}

/// The local authority itself: it is maintained, and a new leaf is issued when a third of the last one's time is left. The leaf's key
/// never leaves this process.
pub struct AuthoritySource {
    folder: PathBuf,
    keys: AuthorityKeys,
    lifetimes: Lifetimes,
    /// Name, host names and addresses.
    request: LeafRequest,
    renew_at: Option<SystemTime>,
}

impl AuthoritySource {
    /// A server of the authority in `folder`, for these host names and addresses.
    pub fn new(
        folder: impl Into<PathBuf>,
        keys: AuthorityKeys,
        lifetimes: Lifetimes,
        dns: Vec<String>,
        addresses: Vec<IpAddr>,
    ) -> Self {
        let (name, kind, key) = ("server".to_owned(), LeafKind::Server, LeafKey::Generate);
        let request = LeafRequest { name, kind, dns, addresses, lifetime: None, key };
        Self { folder: folder.into(), keys, lifetimes, request, renew_at: None }
    }
}

impl ServerKeySource for AuthoritySource {
    fn renew(&mut self, now: SystemTime) -> Result<Option<ServerKeys>, TrustError> {
        if self.renew_at.is_some_and(|at| now < at) {
            return Ok(None);
        }
        self.renew_at = Some(now + RETRY_AFTER);
        // Opened for as long as this takes: `edgeward trust issue` wants it too.
        let mut authority = Authority::open(&self.folder, self.keys.clone(), self.lifetimes.clone())?;
        let issued = authority.issue(&self.request, now)?;
        let key = issued.key.ok_or_else(|| invalid("the authority made no key for the server"))?;
        let keys = ServerKeys::from_pem(issued.chain.as_bytes(), key.as_bytes())?;
        let left = keys.not_after.duration_since(now).unwrap_or_default();
        self.renew_at = Some(now + left * 2 / 3);
        Ok(Some(keys))
    }
}

fn invalid(message: impl Into<String>) -> TrustError {
    TrustError::new(ErrorKind::Invalid, message)
}

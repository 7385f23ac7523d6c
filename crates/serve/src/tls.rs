//! TLS 1.3 of every listener: the certificate of the moment, and client certificates whose keys are proven.
//!
//! The handshake proves that a client has its certificate's key, nothing else: whom the certificate names, and whether anyone believes
//! its authority, is decided with each request, so that roots change and certificates are revoked under open connections.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use edgeward_trust::{
    ErrorKind, TrustError,
    tls::{ServerKeySource, ServerKeys},
};
use parking_lot::Mutex;
use rustls::{
    DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature},
    server::{
        ClientHello, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio_rustls::TlsAcceptor;

use crate::failing::Failing;

/// From the first byte of a handshake to its last.
pub(crate) const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// What a client may show: longer chains and certificates are no client's.
const CHAIN_MAX: usize = 8;
const CERTIFICATE_BYTES_MAX: usize = 16 * 1024;

/// The keys of the moment and where the next ones come from.
pub(crate) struct Identity {
    certified: ArcSwap<Certified>,
    source: Mutex<(Box<dyn ServerKeySource>, Failing)>,
    provider: Arc<CryptoProvider>,
}

struct Certified {
    key: Arc<CertifiedKey>,
    names: Vec<String>,
    not_after: SystemTime,
}

impl Identity {
    /// Takes the first keys of a source.
    pub(crate) fn open(mut source: Box<dyn ServerKeySource>, now: SystemTime) -> Result<Self, TrustError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let keys = source.renew(now)?;
        let keys = keys.ok_or_else(|| TrustError::new(ErrorKind::Unavailable, "the server has no certificate"))?;
        let certified = ArcSwap::from_pointee(Certified::new(keys, &provider)?);
        Ok(Self { certified, source: Mutex::new((source, Failing::default())), provider })
    }

    /// Asks the source; connections that come from now on get what it has.
    pub(crate) fn renew(&self, now: SystemTime) {
        let (source, failing) = &mut *self.source.lock();
        let certified = match source.renew(now) {
            Ok(None) => return,
            Ok(Some(keys)) => Certified::new(keys, &self.provider),
            Err(error) => Err(error),
        };
        match certified {
            Ok(certified) => {
                let until = humantime::format_rfc3339_seconds(certified.not_after).to_string();
                tracing::info!(until, "the server's certificate is renewed");
                self.certified.store(Arc::new(certified));
                failing.ended();
            }
            Err(error) if failing.tells(&error.to_string(), now) => {
                let left = self.certified.load().not_after.duration_since(now).unwrap_or_default();
                tracing::error!(%error, left_s = left.as_secs(), "the server's certificate is not renewed");
            }
            Err(_) => {}
        }
    }

    /// True where clients know this server by that host name or address.
    pub(crate) fn is_named(&self, host: &str) -> bool {
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        self.certified.load().names.iter().any(|name| name.eq_ignore_ascii_case(host))
    }

    /// What accepts connections.
    pub(crate) fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, TrustError> {
        let provider = self.provider.clone();
        let clients = Arc::new(AnyKeyHolder(provider.signature_verification_algorithms));
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| TrustError::new(ErrorKind::Unavailable, format!("TLS: {error}")))?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::new(Resolver(self.clone())));
        let mut config = config;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // A resumed session would come without its certificate being looked at anew.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl Certified {
    fn new(keys: ServerKeys, provider: &CryptoProvider) -> Result<Self, TrustError> {
        let wrong = |error: rustls::Error| TrustError::new(ErrorKind::Invalid, format!("the server's key: {error}"));
        let key = provider.key_provider.load_private_key(keys.key).map_err(wrong)?;
        let key = CertifiedKey::new(keys.chain, key);
        key.keys_match().map_err(wrong)?;
        Ok(Self { key: Arc::new(key), names: keys.names, not_after: keys.not_after })
    }
}

struct Resolver(Arc<Identity>);

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resolver")
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.certified.load().key.clone())
    }
}

/// Takes any certificate whose key signs the handshake.
#[derive(Debug)]
struct AnyKeyHolder(WebPkiSupportedAlgorithms);

impl ClientCertVerifier for AnyKeyHolder {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let long = |der: &CertificateDer<'_>| der.len() > CERTIFICATE_BYTES_MAX;
        if intermediates.len() >= CHAIN_MAX || long(end_entity) || intermediates.iter().any(long) {
            return Err(rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding));
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

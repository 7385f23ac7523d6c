//! Who is at the other end of a connection, as far as the handshake goes, and whom its certificate names.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use edgeward_trust::Principal;
use rustls_pki_types::CertificateDer;

use super::undecided::Undecided;

/// A certificate is looked at again after so long: roots may have been taken away.
const VERIFIED_FOR: Duration = Duration::from_secs(10);

/// A connection over TLS.
pub(crate) struct Peer {
    /// Its other end.
    pub(crate) address: SocketAddr,
    /// What it has shown, its own first; its key is proven, nothing else.
    pub(crate) certificates: Vec<CertificateDer<'static>>,
    /// Whom the certificate names, and when that was verified.
    verified: ArcSwapOption<(Arc<Principal>, SystemTime)>,
    /// What is held of its calls that nobody has decided.
    pub(super) undecided: Undecided,
}

impl Peer {
    pub(crate) fn new(address: SocketAddr, certificates: Vec<CertificateDer<'static>>) -> Self {
        Self { address, certificates, verified: ArcSwapOption::empty(), undecided: Undecided::default() }
    }

    /// Whom the certificate names, where that was verified a short time ago and still holds.
    pub(super) fn principal(&self, now: SystemTime) -> Option<Arc<Principal>> {
        let verified = self.verified.load();
        let (principal, at) = verified.as_deref()?;
        let fresh = now.duration_since(*at).is_ok_and(|age| age < VERIFIED_FOR) && principal.expires_at > now;
        fresh.then(|| principal.clone())
    }

    pub(super) fn verified(&self, principal: Arc<Principal>, now: SystemTime) {
        self.verified.store(Some(Arc::new((principal, now))));
    }
}

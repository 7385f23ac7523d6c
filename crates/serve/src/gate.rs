//! The enforcement point: whoever calls is verified, what they ask is decided, and both are written down before they have an answer.
//!
//! One pass: connection → principal → session and revocations → policy → admission → the call → what is done to its outputs. Callers
//! learn yes or no ([`Refused`]); the audit log and the server's log learn why. Without a gate ([`TrustConfig`]) nobody is asked, which is
//! for loopback only.

mod admin;
mod ahead;
mod ask;
mod familiar;
mod follow;
mod harden;
mod layer;
mod peer;
mod record;
mod route;
mod strangers;
mod suspect;
mod undecided;

use std::{collections::HashSet, path::PathBuf, sync::Arc, time::Duration};

use edgeward_trust::{
    admission::{Admission, KeptUsage},
    audit::AuditLog,
    detect::DetectorSettings,
    identity::{Identities, dpop::Dpop, spiffe::Spiffe},
    policy::{KeptPolicies, Policies},
    revocation::{Kept, Registry, RegistrySettings, Revocations, Revoked},
    score::Scorer,
    session::{Exchange, Sessions},
    tls::ServerKeySource,
};
use parking_lot::Mutex;

pub(crate) use self::{
    admin::routes,
    ask::{Caller, Grant, Refused, allow},
    layer::{Face, Gated},
    peer::Peer,
    route::model_version,
    undecided::Held,
};
use self::{
    ask::Asked, familiar::Familiar, record::Counters, strangers::Strangers, suspect::Suspects, undecided::Undecided,
};

/// Whom a server believes, what it permits and where it writes that down.
pub struct TrustConfig {
    /// The server's certificate.
    pub keys: Box<dyn ServerKeySource>,
    /// Who is believed; sessions of this server among them.
    pub identities: Identities,
    /// Makes sessions.
    pub sessions: Arc<Sessions>,
    /// Checks proofs, the same as those of identities and sessions.
    pub dpop: Arc<Dpop>,
    /// Who is believed no more.
    pub revocations: Arc<Revocations>,
    /// Where revocations of an administrator's calls are kept, and followed; without it they end with the process.
    pub kept: Option<Kept>,
    /// The rules.
    pub policies: Arc<Policies>,
    /// Where those of an administrator's calls are kept, and followed.
    pub kept_policies: KeptPolicies,
    /// Scores requests.
    pub scorer: Scorer,
    /// Which attacks are looked for.
    pub detectors: DetectorSettings,
    /// Counts what is used.
    pub admission: Admission,
    /// Where that is kept.
    pub used: KeptUsage,
    /// Every decision.
    pub audit: Arc<AuditLog>,
    /// An answer waits until its record is on the disk.
    pub waits_for_disk: bool,
    /// The digest of a request's body stands in its record up to this size, in bytes; of larger ones their size alone.
    pub digest_bytes_max: u64,
    /// Where this server runs, for policies.
    pub site: String,
    /// Further host names by which clients know this server, beside those of its certificate.
    pub hosts: Vec<String>,
    /// Open streams are decided again this often, and at once when something changes.
    pub review_every: Duration,
    /// Files that are followed.
    pub followed: Followed,
}

/// Files whose changes take effect while the server runs.
pub struct Followed {
    /// Folder of policies.
    pub policies: PathBuf,
    /// `revocations.json` of a local authority.
    pub revocations: Option<PathBuf>,
    /// Roots of trust domains, each with its file.
    pub bundles: Vec<(String, PathBuf)>,
    /// Who verifies by these roots.
    pub spiffe: Option<Arc<Spiffe>>,
}

/// The gate of one server.
pub(crate) struct Gate {
    identities: Identities,
    exchange: Exchange,
    policies: Arc<Policies>,
    kept_policies: KeptPolicies,
    scorer: Scorer,
    admission: Admission,
    used: Mutex<KeptUsage>,
    audit: Arc<AuditLog>,
    waits_for_disk: bool,
    digest_bytes_max: u64,
    site: String,
    hosts: Vec<String>,
    familiar: Familiar,
    suspects: Suspects,
    strangers: Strangers,
    undecided: Undecided,
    registry: Arc<Registry<Arc<Asked>>>,
    identity: Arc<crate::tls::Identity>,
    policy_folder: PathBuf,
    kept: Option<Kept>,
    /// Serial numbers that the authority has revoked.
    authority: Mutex<HashSet<String>>,
    counters: Counters,
}

impl Gate {
    /// Opens the gate: the certificate is taken, followers run as long as the runtime does.
    pub(crate) fn open(config: TrustConfig) -> Result<Arc<Self>, edgeward_trust::TrustError> {
        let now = std::time::SystemTime::now();
        let identity = Arc::new(crate::tls::Identity::open(config.keys, now)?);
        let registry = Arc::new(Registry::new(config.revocations.clone(), RegistrySettings::default()));
        let exchange = Exchange {
            identities: config.identities.clone(),
            sessions: config.sessions,
            dpop: config.dpop,
            revocations: config.revocations,
        };
        let gate = Arc::new(Self {
            identities: config.identities,
            exchange,
            policies: config.policies,
            kept_policies: config.kept_policies,
            scorer: config.scorer,
            admission: config.admission,
            used: Mutex::new(config.used),
            audit: config.audit,
            waits_for_disk: config.waits_for_disk,
            digest_bytes_max: config.digest_bytes_max,
            site: config.site,
            hosts: config.hosts,
            familiar: Familiar::default(),
            suspects: Suspects::new(config.detectors),
            strangers: Strangers::default(),
            undecided: Undecided::default(),
            registry,
            identity,
            policy_folder: config.followed.policies.clone(),
            kept: config.kept,
            authority: Mutex::default(),
            counters: Counters::default(),
        });
        follow::start(&gate, config.followed, config.review_every, now)?;
        Ok(gate)
    }

    /// What listeners accept connections with.
    pub(crate) fn acceptor(&self) -> Result<tokio_rustls::TlsAcceptor, edgeward_trust::TrustError> {
        self.identity.acceptor()
    }

    /// Writes down what was used.
    fn keep_used(&self, now: std::time::SystemTime) -> Result<(), edgeward_trust::TrustError> {
        self.used.lock().keep(&self.admission, now)
    }

    /// True for a certificate that its authority has revoked.
    fn revoked_by_authority(&self, what: &Revoked) -> bool {
        matches!(what, Revoked::Serial(serial) if self.authority.lock().contains(serial))
    }

    /// What it counted, as Prometheus reads it.
    pub(crate) fn metrics_text(&self) -> String {
        self.counters.text(&self.audit.status(), self.registry.open())
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // All calls have ended, and what they computed is counted.
        if let Err(error) = self.keep_used(std::time::SystemTime::now()) {
            tracing::error!(%error, "what was used is not kept");
        }
        if let Some(left_out) = self.strangers.rest() {
            // A log that takes nothing at the end has said so in the lines of its state.
            let _ = self.audit.note(&record::left_out(&left_out, std::time::SystemTime::now()));
        }
    }
}

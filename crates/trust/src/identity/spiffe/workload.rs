//! The SPIFFE Workload API: this process's identity and the roots of trust domains, as the agent beside it gives them (SPIRE does).
//!
//! Both come as streams: a new certificate, a new root or a withdrawal is taken as it comes, and nobody restarts. Where the agent is away
//! for a while, what it gave last holds until it ends by itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::Deserialize;
use spiffe::{WorkloadApiClient, X509Source, X509SourceError, X509Svid, x509_source::SvidPicker};

use super::{Spiffe, SpiffeId};
use crate::{
    ErrorKind, TrustError,
    identity::{http::unavailable, jose::invalid},
    remote::Remote,
    tls::{ServerKeySource, ServerKeys},
};

/// Names the agent's socket where the settings do not.
pub const ENDPOINT_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";
/// Longest wait for a first identity where the settings say none: an agent that has just been told of a workload takes some seconds.
const WAIT_SECONDS: u64 = 30;
/// And for one more answer, which says why there is none.
const REASON_MAX: Duration = Duration::from_secs(2);
/// A withdrawal that is shorter takes no roots along: SPIRE's agent has no identity for a moment while it replaces one of a tainted root.
const GRACE: Duration = Duration::from_secs(5);
const RECONNECT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Where the agent is, and who this is.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct WorkloadApiSettings {
    /// `unix:///run/spire/agent.sock`; the variable `SPIFFE_ENDPOINT_SOCKET` says it where this does not.
    pub endpoint: Option<String>,
    /// The SPIFFE ID to go by, where the agent gives several; else the first.
    pub id: Option<String>,
    /// Longest wait for the first identity, in seconds; 30 where absent.
    pub wait_seconds: Option<u64>,
}

/// An identity and roots that are kept up to date. Clones share the stream.
#[derive(Clone)]
pub struct WorkloadApi {
    source: X509Source,
    remote: Arc<Remote>,
}

/// Goes by one of several identities.
struct ById(String);

impl SvidPicker for ById {
    fn pick_svid(&self, svids: &[Arc<X509Svid>]) -> Option<usize> {
        svids.iter().position(|svid| svid.spiffe_id().to_string() == self.0)
    }
}

impl WorkloadApi {
    /// Asks the agent and waits for a first identity. Blocks this thread.
    ///
    /// # Errors
    /// `Invalid` where a setting is, `Unavailable` where the agent is not there or gives no such identity.
    pub fn connect(settings: &WorkloadApiSettings) -> Result<Self, TrustError> {
        let named = settings.endpoint.clone().or_else(|| std::env::var(ENDPOINT_VARIABLE).ok());
        let endpoint = named.ok_or_else(|| {
            invalid(format!(
                "no Workload API: neither `endpoint` nor the variable `{ENDPOINT_VARIABLE}` names its socket"
            ))
        })?;
        let wait = Duration::from_secs(settings.wait_seconds.unwrap_or(WAIT_SECONDS));
        let mut builder = X509Source::builder().endpoint(&endpoint).initial_sync_timeout(wait);
        builder = builder.reconnect_backoff(RECONNECT.0, RECONNECT.1);
        if let Some(id) = &settings.id {
            builder = builder.picker(ById(SpiffeId::parse(id)?.to_string()));
        }
        let remote = Arc::new(Remote::start("workload-api")?);
        let source = remote.run(async move {
            match builder.build().await {
                Ok(source) => Ok(source),
                Err(error) => Err(explain(&endpoint, error).await),
            }
        })?;
        Ok(Self { source, remote })
    }

    /// Who this process is now.
    ///
    /// # Errors
    /// `Unavailable` where its identity was withdrawn or has ended.
    pub fn id(&self) -> Result<SpiffeId, TrustError> {
        SpiffeId::parse(&self.svid()?.spiffe_id().to_string())
    }

    /// Lets callers be verified by the roots that the agent gives, from now on. A domain that it gives no more is forgotten, and so are
    /// all where it refuses this process for more than some seconds. It has no say about the domains `held`, whose roots come from elsewhere.
    ///
    /// # Errors
    /// `Unavailable` where it gives none now.
    pub fn follow(&self, spiffe: Arc<Spiffe>, held: BTreeSet<String>) -> Result<(), TrustError> {
        let (source, mut updates) = (self.source.clone(), self.source.updated());
        let mut given = BTreeSet::new();
        self.source.x509_context().map_err(|error| not_now(&error))?;
        take_roots(&source, &spiffe, &held, &mut given);
        self.remote.spawn(async move {
            while updates.changed().await.is_ok() {
                if source.state().withdrawal().is_some()
                    && tokio::time::timeout(GRACE, updates.changed()).await.is_ok_and(|ended| ended.is_err())
                {
                    break;
                }
                take_roots(&source, &spiffe, &held, &mut given);
            }
            tracing::error!("the stream of the Workload API ended for good; roots change no more");
        });
        Ok(())
    }

    /// The keys for a server to answer TLS with.
    pub fn server_keys(&self) -> WorkloadKeys {
        WorkloadKeys { api: self.clone(), leaf: None }
    }

    fn svid(&self) -> Result<Arc<X509Svid>, TrustError> {
        self.source.svid().map_err(|error| not_now(&error))
    }
}

/// Replaces the roots of all domains by those that the agent gives.
fn take_roots(source: &X509Source, spiffe: &Spiffe, held: &BTreeSet<String>, given: &mut BTreeSet<String>) {
    let mut roots: BTreeMap<String, Vec<CertificateDer<'static>>> = BTreeMap::new();
    match source.state().context() {
        Ok(context) => {
            for (domain, bundle) in context.bundle_set().iter() {
                let certificates = bundle.authorities().iter().map(|one| one.as_bytes().to_vec().into());
                roots.insert(domain.as_str().to_owned(), certificates.collect());
            }
        }
        Err(error) => tracing::warn!("the Workload API refuses this process, its roots hold no more: {error}"),
    }
    roots.retain(|domain, _| !held.contains(domain));
    for domain in given.iter().filter(|domain| !roots.contains_key(*domain)) {
        spiffe.bundles().remove(domain);
    }
    for (domain, certificates) in &roots {
        // A domain without roots, or with ones that cannot be read, is one that nobody comes from.
        if let Err(error) = spiffe.bundles().set_certificates(domain, certificates) {
            tracing::warn!("roots of the Workload API: {error}");
            spiffe.bundles().remove(domain);
        }
    }
    *given = roots.into_keys().collect();
}

/// Why there is no first identity: the source itself only says that it waited.
async fn explain(endpoint: &str, error: X509SourceError) -> TrustError {
    let place = format!("Workload API at `{}`", endpoint.escape_debug());
    let mend = "is the agent running, and is this workload registered with it?";
    match error {
        X509SourceError::InitialSyncTimeout => {
            let once = async { WorkloadApiClient::connect_to(endpoint).await?.fetch_x509_context().await };
            match tokio::time::timeout(REASON_MAX, once).await {
                Ok(Err(error)) => unavailable(format!("{place}: {error}; {mend}")),
                Ok(Ok(context)) => {
                    let ids = context.svids().iter().map(|svid| format!("`{}`", svid.spiffe_id()));
                    unavailable(format!("{place} gives no such identity, but {}", ids.collect::<Vec<_>>().join(", ")))
                }
                Err(_) => unavailable(format!("{place} does not answer; {mend}")),
            }
        }
        X509SourceError::Source(error @ spiffe::WorkloadApiError::Endpoint(_)) => {
            invalid(format!("{place}: {error}; expected one like `unix:///run/spire/agent.sock`"))
        }
        other => unavailable(format!("{place}: {other}")),
    }
}

fn not_now(error: &X509SourceError) -> TrustError {
    TrustError::new(ErrorKind::Unavailable, format!("the Workload API gives no identity now: {error}"))
}

/// A server's keys from the Workload API.
pub struct WorkloadKeys {
    api: WorkloadApi,
    /// The certificate that was given last.
    leaf: Option<Vec<u8>>,
}

impl ServerKeySource for WorkloadKeys {
    fn renew(&mut self, _: SystemTime) -> Result<Option<ServerKeys>, TrustError> {
        let svid = self.api.svid()?;
        let leaf = svid.leaf().as_bytes();
        if self.leaf.as_deref() == Some(leaf) {
            return Ok(None);
        }
        let chain = svid.cert_chain().iter().map(|one| one.as_bytes().to_vec().into()).collect();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(svid.private_key().as_bytes().to_vec()));
        let keys = ServerKeys::from_der(chain, key)?;
        self.leaf = Some(leaf.to_vec());
        Ok(Some(keys))
    }
}

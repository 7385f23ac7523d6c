//! The local authority: a root, an intermediate and short-lived leaves with SPIFFE ids, in a folder.
//!
//! What has to be renewed when is decided by [`plan()`], which does nothing; [`Authority`] carries it out. The root's keys are with a
//! provider of their own, so that they can be taken offline: they are needed once in weeks, for the next intermediate.

mod certificate;
mod plan;
mod state;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{
    error::{ErrorKind, TrustError},
    file::replace,
    keys::{KeyKind, KeyProvider},
};

pub use certificate::{IssuedLeaf, LeafKey};
pub use plan::{Lifetimes, Step, plan};
pub use state::{Authorities, CaCertificate, LeafKind, LeafRecord, Revocation, State};

/// The state's file within the folder.
pub const STATE: &str = "authority.json";
/// All roots that verify at present.
pub const BUNDLE: &str = "roots.pem";
/// Revocations with their version, for pushing; and signed as X.509 revocation lists.
pub const REVOCATIONS: &str = "revocations.json";
/// One list of each intermediate.
pub const CRL: &str = "crl.pem";

/// Others hold the lock while they issue or revoke; many at once wait for each other.
const LOCK_TRIES: usize = 1500;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Where the private keys are.
#[derive(Clone)]
pub struct AuthorityKeys {
    /// Those of intermediates.
    pub online: Arc<dyn KeyProvider>,
    /// Those of roots; none while they are offline.
    pub root: Option<Arc<dyn KeyProvider>>,
}

/// What a certificate is asked for.
#[derive(Clone, Debug)]
pub struct LeafRequest {
    /// Path of the SPIFFE id: `ward/scanner-3`.
    pub name: String,
    /// What it may do.
    pub kind: LeafKind,
    /// Host names, for servers.
    pub dns: Vec<String>,
    /// Addresses, for servers.
    pub addresses: Vec<std::net::IpAddr>,
    /// Shorter than [`Lifetimes::leaf`], where given.
    pub lifetime: Option<Duration>,
    /// Whose key is certified.
    pub key: LeafKey,
}

/// What was revoked, and how often that changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Revocations {
    /// Grows with every change; a receiver keeps the highest.
    pub version: u64,
    /// By serial number in hexadecimal.
    pub revoked: BTreeMap<String, Revocation>,
}

/// An authority in its folder. One process at a time changes it.
pub struct Authority {
    folder: PathBuf,
    keys: AuthorityKeys,
    lifetimes: Lifetimes,
    state: State,
    _lock: fs::File,
}

impl Authority {
    /// Makes a root and an intermediate for a trust domain.
    ///
    /// # Errors
    /// `Invalid` where the folder has an authority or the trust domain is no name; `Unavailable` where the root's keys are offline.
    pub fn init(
        folder: &Path,
        trust_domain: &str,
        keys: AuthorityKeys,
        lifetimes: Lifetimes,
        now: SystemTime,
    ) -> Result<Self, TrustError> {
        certificate::check_trust_domain(trust_domain)?;
        fs::create_dir_all(folder).map_err(|error| unavailable(folder, &error))?;
        let lock = lock(folder)?;
        if folder.join(STATE).exists() {
            let text = format!("`{}` has an authority already; expected an empty folder", folder.display());
            return Err(TrustError::new(ErrorKind::Invalid, text));
        }
        let state = State { trust_domain: trust_domain.to_owned(), ..State::default() };
        let mut authority = Self { folder: folder.to_owned(), keys, lifetimes, state, _lock: lock };
        authority.maintain(now)?;
        Ok(authority)
    }

    /// Opens the authority of a folder.
    ///
    /// # Errors
    /// `NotFound` where there is none, `Invalid` where its state cannot be read, `Unavailable` where others have it open for half a minute.
    pub fn open(folder: &Path, keys: AuthorityKeys, lifetimes: Lifetimes) -> Result<Self, TrustError> {
        if !folder.join(STATE).exists() {
            // Says what is missing; nothing is made there.
            State::read(folder)?;
        }
        let lock = lock(folder)?;
        // Not before nobody else can change it any more: what is saved next would undo their change.
        let state = State::read(folder)?;
        Ok(Self { folder: folder.to_owned(), keys, lifetimes, state, _lock: lock })
    }

    /// What it has made.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The roots to verify with, in PEM: the old and the new one while they overlap.
    pub fn bundle(&self) -> String {
        self.state.roots.iter().map(|root| root.pem.as_str()).collect()
    }

    /// What was revoked.
    pub fn revocations(&self) -> Revocations {
        Revocations { version: self.state.revocation_version, revoked: self.state.revoked.clone() }
    }

    /// Carries out what [`plan()`] finds due, and returns it. Leaves that are due are their holders' business.
    ///
    /// # Errors
    /// `Unavailable` where the root's keys are needed and offline.
    pub fn maintain(&mut self, now: SystemTime) -> Result<Vec<Step>, TrustError> {
        let mut done = Vec::new();
        // Each step may make the next one due: an intermediate follows a root.
        loop {
            let due = plan(&self.state, &self.lifetimes, now);
            let Some(step) = due.into_iter().find(|step| !matches!(step, Step::RenewLeaf { .. })) else { break };
            self.carry_out(&step, now)?;
            self.save()?;
            done.push(step);
        }
        Ok(done)
    }

    fn carry_out(&mut self, step: &Step, now: SystemTime) -> Result<(), TrustError> {
        match step {
            Step::MakeRoot => {
                let keys = self.root_keys()?;
                let id = next_key(keys.as_ref(), "root")?;
                let root = certificate::root(&self.state.trust_domain, keys, &id, now, self.lifetimes.root)?;
                self.state.roots.push(root);
            }
            Step::MakeIntermediate => {
                let root = plan::signing_root(&self.state, &self.lifetimes, now).cloned();
                let root = root.ok_or_else(|| TrustError::new(ErrorKind::Expired, "no root is valid at present"))?;
                let (root_keys, keys) = (self.root_keys()?, self.keys.online.clone());
                let id = next_key(keys.as_ref(), "intermediate")?;
                let lifetime = self.lifetimes.intermediate;
                let made =
                    certificate::intermediate(&self.state.trust_domain, &root, root_keys, (keys, &id), now, lifetime)?;
                self.state.intermediates.push(made);
            }
            Step::SignRevocations => {
                self.state.crl_signed_at = Some(now);
                self.state.crl_issuer = self.state.intermediates.last().map(|issuer| issuer.serial.clone());
            }
            Step::Drop { serial } => {
                self.state.roots.retain(|root| root.serial != *serial);
                self.state.intermediates.retain(|issuer| issuer.serial != *serial);
                self.state.leaves.retain(|leaf| leaf.serial != *serial);
                if self.state.revoked.remove(serial).is_some() {
                    self.state.revocation_version += 1;
                }
            }
            Step::RenewLeaf { .. } => {}
        }
        Ok(())
    }

    /// Issues a certificate.
    ///
    /// # Errors
    /// `Invalid` where the request cannot be met, `Expired` where there is no valid intermediate.
    pub fn issue(&mut self, request: &LeafRequest, now: SystemTime) -> Result<IssuedLeaf, TrustError> {
        self.maintain(now)?;
        let issuer = self.state.intermediates.iter().rfind(|issuer| issuer.is_valid(now));
        let issuer =
            issuer.ok_or_else(|| TrustError::new(ErrorKind::Expired, "no intermediate is valid at present"))?;
        let lifetime = request.lifetime.unwrap_or(self.lifetimes.leaf).min(self.lifetimes.leaf);
        let keys = self.keys.online.clone();
        let (issued, record) = certificate::leaf(&self.state.trust_domain, issuer, keys, request, now, lifetime)?;
        self.state.leaves.push(record);
        self.save()?;
        Ok(issued)
    }

    /// Revokes the certificates of a serial number or of a name, and returns the new version of the revocations.
    ///
    /// # Errors
    /// `NotFound` where no certificate that is still valid has it.
    pub fn revoke(&mut self, what: &str, reason: &str, now: SystemTime) -> Result<u64, TrustError> {
        let meant = |leaf: &&LeafRecord| (leaf.serial == what || leaf.name == what) && leaf.not_after > now;
        let serials: Vec<String> = self.state.leaves.iter().filter(meant).map(|leaf| leaf.serial.clone()).collect();
        if serials.is_empty() {
            let text = format!("`{what}` is neither the serial number nor the name of a valid certificate");
            return Err(TrustError::new(ErrorKind::NotFound, text));
        }
        for serial in serials {
            self.state.revoked.entry(serial).or_insert_with(|| Revocation { at: now, reason: reason.to_owned() });
        }
        self.state.revocation_version += 1;
        self.carry_out(&Step::SignRevocations, now)?;
        self.save()?;
        Ok(self.state.revocation_version)
    }

    fn root_keys(&self) -> Result<Arc<dyn KeyProvider>, TrustError> {
        self.keys.root.clone().ok_or_else(|| {
            let text = "the root's keys are offline and a new certificate of the authority is due; \
                        open it with the root's keys once (`edgeward trust renew --root-keys FILE`)";
            TrustError::new(ErrorKind::Unavailable, text)
        })
    }

    /// Writes the state, and then what others read of it.
    fn save(&self) -> Result<(), TrustError> {
        let write = |name: &str, text: &str| {
            let path = self.folder.join(name);
            replace(&path, text.as_bytes(), true).map_err(|error| unavailable(&path, &error))
        };
        write(STATE, &self.state.to_json()?)?;
        write(BUNDLE, &self.bundle())?;
        let revocations = serde_json::to_string_pretty(&self.revocations());
        write(REVOCATIONS, &revocations.map_err(|error| TrustError::new(ErrorKind::Invalid, error.to_string()))?)?;
        if let Some(signed_at) = self.state.crl_signed_at {
            write(CRL, &certificate::revocation_lists(&self.state, &self.keys.online, signed_at, self.lifetimes.crl)?)?;
        }
        Ok(())
    }
}

/// Makes the next key of a series: `root-1`, `root-2`.
fn next_key(keys: &dyn KeyProvider, series: &str) -> Result<String, TrustError> {
    let taken: Vec<String> = keys.list()?.into_iter().map(|key| key.id).collect();
    let free = (1..=taken.len() + 1).map(|n| format!("{series}-{n}")).find(|id| !taken.contains(id));
    let id = free.unwrap_or_else(|| series.to_owned());
    keys.create(&id, KeyKind::P256)?;
    Ok(id)
}

fn lock(folder: &Path) -> Result<fs::File, TrustError> {
    let path = folder.join("lock");
    let file = fs::File::create(&path).map_err(|error| unavailable(&path, &error))?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(fs::TryLockError::Error(error)) => return Err(unavailable(&path, &error)),
        }
    }
    Err(unavailable(&path, &io::Error::other("another process changes it")))
}

fn unavailable(path: &Path, error: &io::Error) -> TrustError {
    TrustError::new(ErrorKind::Unavailable, format!("`{}`: {error}", path.display()))
}

//! What changes beside the calls: files of policies, roots and revocations, and the server's certificate.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use edgeward_trust::{
    ErrorKind, TrustError, authority,
    policy::Sources,
    revocation::{Change, KeptRevocations, Revoked},
};

use super::{Followed, Gate};

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Starts what runs beside the calls, until the gate is gone.
pub(super) fn start(gate: &Arc<Gate>, followed: Followed, review_every: Duration, now: SystemTime) {
    let weak = Arc::downgrade(gate);
    tokio::spawn(review(weak.clone(), review_every));
    let (seen, serials, kept) = Default::default();
    let mut follower = Follower { gate: weak, followed, seen, serials, kept };
    // Revocations take effect before the first call. Policies and roots were read for the start; they are read once more here, so that no
    // change between that and the first look is missed: what is the same is found out by its digest and not compiled again.
    follower.look(now);
    tokio::spawn(async move {
        while follower.gate.strong_count() > 0 {
            tokio::time::sleep(LOOK_EVERY).await;
            let looked = tokio::task::spawn_blocking(move || {
                follower.look(SystemTime::now());
                follower
            });
            match looked.await {
                Ok(back) => follower = back,
                Err(error) => return tracing::error!(%error, "files are followed no more"),
            }
        }
    });
}

async fn review(gate: Weak<Gate>, every: Duration) {
    let Some(registry) = gate.upgrade().map(|gate| gate.registry.clone()) else { return };
    let decide = |live: &edgeward_trust::revocation::Live<Arc<super::ask::Asked>>| match gate.upgrade() {
        Some(gate) => gate.review(&live.principal, &live.context),
        None => Err(TrustError::new(ErrorKind::Unavailable, "the gate is closed")),
    };
    registry.watch(every, SystemTime::now, decide).await;
}

struct Follower {
    gate: Weak<Gate>,
    followed: Followed,
    /// When each file was changed last, and its size.
    seen: HashMap<PathBuf, Vec<(SystemTime, u64)>>,
    /// Serial numbers that were revoked already.
    serials: Vec<String>,
    /// What the file of an administrator's revocations held.
    kept: KeptRevocations,
}

impl Follower {
    fn look(&mut self, now: SystemTime) {
        let Some(gate) = self.gate.upgrade() else { return };
        gate.identity.renew(now);
        self.policies(&gate);
        self.roots(&gate);
        self.revocations(&gate, now);
        self.kept(&gate, now);
    }

    /// True where a file, or one of a folder, is another than at the last look.
    fn changed(&mut self, path: &Path) -> bool {
        let stamp = |path: &Path| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.modified().ok()?, meta.len()))
        };
        let mut stamps: Vec<(SystemTime, u64)> = stamp(path).into_iter().collect();
        if let Ok(entries) = std::fs::read_dir(path) {
            stamps.extend(entries.flatten().filter_map(|entry| stamp(&entry.path())));
        }
        let before = self.seen.insert(path.to_owned(), stamps.clone());
        before.is_none_or(|before| before != stamps)
    }

    fn policies(&mut self, gate: &Gate) {
        let Some(folder) = self.followed.policies.clone().filter(|folder| self.changed(folder)) else { return };
        let before = gate.policies.current().version().number;
        match Sources::read(&folder).and_then(|sources| gate.policies.replace(&sources)) {
            Ok(version) if version.number != before => {
                tracing::info!(%version, "other policies are in force");
                gate.registry.push(Change::Policy);
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "the changed policies are wrong; those before stay in force"),
        }
    }

    fn roots(&mut self, gate: &Gate) {
        let Some(spiffe) = self.followed.spiffe.clone() else { return };
        for (domain, path) in self.followed.bundles.clone() {
            if !self.changed(&path) {
                continue;
            }
            match spiffe.bundles().set_from_file(&domain, &path) {
                Ok(()) => gate.registry.push(Change::Policy),
                Err(error) => tracing::error!(%error, "the roots of a trust domain stay as they were"),
            }
        }
    }

    fn revocations(&mut self, gate: &Gate, now: SystemTime) {
        let Some(path) = self.followed.revocations.clone().filter(|path| self.changed(path)) else { return };
        let revoked = match read(&path) {
            Ok(revocations) => revocations.revoked.into_keys().collect::<Vec<_>>(),
            Err(error) => return tracing::error!(%error, "revocations cannot be read; those before stay in force"),
        };
        for serial in revoked.iter().filter(|serial| !self.serials.contains(serial)) {
            match gate.registry.revoke(Revoked::Serial(serial.clone()), None, now) {
                Ok(cut) => tracing::info!(serial, cut, "a certificate is revoked"),
                Err(error) => tracing::error!(%error, serial, "a certificate is not revoked"),
            }
        }
        // A serial that the authority forgot belongs to a certificate that has ended.
        for serial in self.serials.iter().filter(|serial| !revoked.contains(serial)) {
            gate.registry.revocations().lift(&Revoked::Serial(serial.clone()));
        }
        self.serials = revoked;
    }

    /// Revocations of an administrator's calls, to this server before it was started or to another one.
    fn kept(&mut self, gate: &Gate, now: SystemTime) {
        let Some(file) = gate.kept.as_ref().filter(|file| self.changed(file.path())) else { return };
        let kept = match file.read(now) {
            Ok(kept) => kept,
            Err(error) => return tracing::error!(%error, "revocations cannot be read; those before stay in force"),
        };
        for (what, until) in kept.iter().filter(|(what, until)| self.kept.get(what) != Some(until)) {
            if let Err(error) = gate.registry.revoke(what.clone(), *until, now) {
                tracing::error!(%error, %what, "not revoked");
            }
        }
        for what in self.kept.keys().filter(|what| !kept.contains_key(what)) {
            // The authority's own word stays.
            if !matches!(what, Revoked::Serial(serial) if self.serials.contains(serial)) {
                gate.registry.revocations().lift(what);
            }
        }
        self.kept = kept;
    }
}

fn read(path: &Path) -> Result<authority::Revocations, TrustError> {
    let failed = |why: String| TrustError::new(ErrorKind::Invalid, format!("`{}`: {why}", path.display()));
    let length = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
    if length > FILE_BYTES_MAX {
        return Err(failed(format!("{length} bytes; at most {FILE_BYTES_MAX} are read")));
    }
    let text = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))
}

//! What changes beside the calls: files of policies, roots and revocations, and the server's certificate.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsString,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use edgeward_trust::{
    ErrorKind, TrustError, authority,
    policy::{Origin, Version},
    revocation::{Change, KeptRevocations, Revoked},
};

use super::{Followed, Gate, record};
use crate::failing::Failing;

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often it is written down what was used.
const KEEP_EVERY: Duration = Duration::from_secs(1);
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Starts what runs beside the calls, until the gate is gone.
///
/// # Errors
/// Where a file of revocations cannot be read: a server that does not know whom it must refuse answers nobody.
pub(super) fn start(
    gate: &Arc<Gate>,
    followed: Followed,
    review_every: Duration,
    now: SystemTime,
) -> Result<(), TrustError> {
    let weak = Arc::downgrade(gate);
    let (seen, kept, audit_failure, by_call, failing) = Default::default();
    let mut follower = Follower { gate: weak.clone(), followed, seen, kept, audit_failure, by_call, failing };
    // Revocations take effect before the first call. Policies and roots were read for the start; they are read once more here, so that no
    // change between that and the first look is missed: what is the same is found out by its digest and not compiled again.
    follower.revocations(gate, now)?;
    follower.kept(gate, now)?;
    follower.look(now);
    tokio::spawn(review(weak.clone(), review_every));
    tokio::spawn(keep_used(weak));
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
    Ok(())
}

/// Writes down what was used, away from the threads that answer.
async fn keep_used(gate: Weak<Gate>) {
    let mut failing = Failing::default();
    while gate.strong_count() > 0 {
        tokio::time::sleep(KEEP_EVERY).await;
        let kept = tokio::task::spawn_blocking({
            let gate = gate.clone();
            move || gate.upgrade().map_or(Ok(()), |gate| gate.keep_used(SystemTime::now()))
        });
        match kept.await {
            Ok(Ok(())) => failing.ended(),
            Ok(Err(error)) if failing.tells(&error.to_string(), SystemTime::now()) => {
                tracing::error!(%error, "what is used is not kept")
            }
            Ok(Err(_)) => {}
            Err(error) => return tracing::error!(%error, "what is used is kept no more"),
        }
    }
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
    /// How each file was when it was read last.
    seen: HashMap<PathBuf, Vec<Stamp>>,
    /// What the file of an administrator's revocations held.
    kept: KeptRevocations,
    /// What kept the audit log from working at the last look.
    audit_failure: Option<String>,
    /// The policies in force are those of a call.
    by_call: bool,
    /// What of the files could not be read, as it was told last.
    failing: HashMap<PathBuf, Failing>,
}

/// Enough of a file to tell that it is another or may be read differently: a change of its mode or owner changes the last.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    name: OsString,
    length: u64,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        Some(Self {
            name: path.file_name().unwrap_or_default().to_owned(),
            length: meta.len(),
            inode: meta.ino(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }

    /// Of a file, or of each file of a folder that is not hidden: what is hidden has no effect there.
    fn all(path: &Path) -> Vec<Self> {
        let Ok(entries) = std::fs::read_dir(path) else { return Self::of(path).into_iter().collect() };
        let shown = entries.flatten().filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
        let mut stamps: Vec<Self> = shown.filter_map(|entry| Self::of(&entry.path())).collect();
        stamps.sort_by(|a, b| a.name.cmp(&b.name));
        stamps
    }
}

impl Follower {
    fn look(&mut self, now: SystemTime) {
        let Some(gate) = self.gate.upgrade() else { return };
        self.audit(&gate, now);
        let path = self.followed.revocations.clone().unwrap_or_default();
        let read = self.revocations(&gate, now);
        self.told(&path, read, now, "revocations cannot be read; those before stay in force");
        let path = gate.kept.as_ref().map(|kept| kept.path().to_owned()).unwrap_or_default();
        let read = self.kept(&gate, now);
        self.told(&path, read, now, "revocations cannot be read; those before stay in force");
        self.policies(&gate, now);
        self.roots(&gate, now);
        // The authority may be in use by another process: that is waited for.
        gate.identity.renew(now);
    }

    /// Says what failed, when it begins and then more and more seldom.
    fn told(&mut self, path: &Path, result: Result<(), TrustError>, now: SystemTime, what: &str) {
        let failing = self.failing.entry(path.to_owned()).or_default();
        match result {
            Ok(()) => failing.ended(),
            Err(error) if failing.tells(&error.to_string(), now) => tracing::error!(%error, "{what}"),
            Err(_) => {}
        }
    }

    /// Says once what keeps the log from taking records, and once that it takes them again; tells it of refusals without records.
    fn audit(&mut self, gate: &Gate, now: SystemTime) {
        if let Some(left_out) = gate.strangers.to_tell(now) {
            tracing::warn!(
                count = left_out.count,
                "calls of nobody who is recognised: too many for a line and a record each"
            );
            if gate.audit.note(&record::left_out(&left_out, now)).is_err() {
                gate.strangers.untold(left_out);
            }
        }
        let status = gate.audit.status();
        match (&self.audit_failure, &status.failure) {
            (None, Some(why)) => tracing::error!(
                refused = status.refused,
                why,
                "the audit log fails; what cannot be written down is refused"
            ),
            (Some(_), None) => tracing::warn!(refused = status.refused, "the audit log takes records again"),
            _ => {}
        }
        self.audit_failure = status.failure;
    }

    /// How a file or folder is now, where that is not how it was when it was read last. Taken before it is read, and kept by
    /// [`Follower::seen`] once it was: what could not be read is tried again.
    fn changed(&self, path: &Path) -> Option<Vec<Stamp>> {
        let stamps = Stamp::all(path);
        (self.seen.get(path) != Some(&stamps)).then_some(stamps)
    }

    fn seen(&mut self, path: &Path, stamps: Vec<Stamp>) {
        self.seen.insert(path.to_owned(), stamps);
    }

    /// Policies of the folder, or of a call to this server or to another one: whichever are newer.
    fn policies(&mut self, gate: &Gate, now: SystemTime) {
        let (folder, file) = (self.followed.policies.clone(), gate.kept_policies.path().to_owned());
        let (changed, others) = (self.changed(&folder), self.changed(&file));
        if changed.is_none() && others.is_none() {
            return;
        }
        let replaced = gate.kept_policies.in_force(&folder).and_then(|found| {
            changed.into_iter().for_each(|stamps| self.seen(&folder, stamps));
            others.into_iter().for_each(|stamps| self.seen(&file, stamps));
            let before = gate.policies.current().version().number;
            let version = gate.policies.replace(&found.sources)?;
            if version.number != before {
                gate.registry.push(Change::Policy);
            }
            self.tell_of_policies(gate, found.origin, &version, version.number != before)
        });
        self.told(&folder, replaced, now, "the changed policies are wrong; those before stay in force");
    }

    /// Says which policies are in force, where that is news.
    fn tell_of_policies(
        &mut self,
        gate: &Gate,
        origin: Origin,
        version: &Version,
        others: bool,
    ) -> Result<(), TrustError> {
        let before = std::mem::replace(&mut self.by_call, origin == Origin::Call);
        let file = gate.kept_policies.path().display();
        match origin {
            Origin::Call if others || !before => tracing::warn!(
                %version, %file,
                "policies of a call are in force, instead of the folder's; `DELETE /v2/trust/policies` or a change of the folder ends that"
            ),
            Origin::Folder if others => tracing::info!(%version, "other policies are in force"),
            Origin::Folder | Origin::Call => {}
            Origin::ChangedFolder => {
                tracing::warn!(
                    %version, %file,
                    "the folder of policies was changed after a call put others in force: the folder's are in force"
                );
                gate.kept_policies.forget()?;
            }
        }
        Ok(())
    }

    fn roots(&mut self, gate: &Gate, now: SystemTime) {
        let Some(spiffe) = self.followed.spiffe.clone() else { return };
        for (domain, path) in self.followed.bundles.clone() {
            let Some(stamps) = self.changed(&path) else { continue };
            let read = spiffe.bundles().set_from_file(&domain, &path);
            if read.is_ok() {
                self.seen(&path, stamps);
                gate.registry.push(Change::Policy);
            }
            self.told(&path, read, now, "the roots of a trust domain stay as they were");
        }
    }

    fn revocations(&mut self, gate: &Gate, now: SystemTime) -> Result<(), TrustError> {
        let Some(path) = self.followed.revocations.clone() else { return Ok(()) };
        let Some(stamps) = self.changed(&path) else { return Ok(()) };
        let revoked = read(&path)?;
        let mut serials = HashSet::new();
        for serial in revoked.revoked.keys() {
            match Revoked::serial(serial)? {
                Revoked::Serial(serial) => serials.insert(serial),
                _ => false,
            };
        }
        let before = gate.authority.lock().clone();
        for serial in serials.difference(&before) {
            let cut = gate.registry.revoke(Revoked::Serial(serial.clone()), None, now)?;
            tracing::info!(serial, cut, "a certificate is revoked");
            gate.authority.lock().insert(serial.clone());
        }
        // A serial that the authority forgot belongs to a certificate that has ended.
        for serial in before.difference(&serials) {
            gate.authority.lock().remove(serial);
            let what = Revoked::Serial(serial.clone());
            if !self.kept.contains_key(&what) {
                gate.registry.revocations().lift(&what);
            }
        }
        self.seen(&path, stamps);
        Ok(())
    }

    /// Revocations of an administrator's calls, to this server before it was started or to another one.
    fn kept(&mut self, gate: &Gate, now: SystemTime) -> Result<(), TrustError> {
        let Some(file) = gate.kept.as_ref() else { return Ok(()) };
        let Some(stamps) = self.changed(file.path()) else { return Ok(()) };
        if stamps.is_empty() && !self.kept.is_empty() {
            // Without it nobody was forgiven: that takes a call, or a file that says so.
            file.restore(&self.kept, now)?;
            tracing::error!(file = %file.path().display(), "the file of revoked callers was gone; it is written again as it was");
            return Ok(());
        }
        let kept = file.read(now)?;
        for (what, until) in kept.iter().filter(|(what, until)| self.kept.get(what) != Some(until)) {
            gate.registry.revoke(what.clone(), *until, now)?;
        }
        for what in self.kept.keys().filter(|what| !kept.contains_key(what)) {
            // The authority's own word stays.
            if !gate.revoked_by_authority(what) {
                gate.registry.revocations().lift(what);
            }
        }
        self.kept = kept;
        let path = file.path().to_owned();
        self.seen(&path, stamps);
        Ok(())
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

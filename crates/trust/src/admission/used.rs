//! What principals have used, written down now and then: a restart does not forget it. Accounts are read without keeping requests waiting.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Admission;
use crate::{
    ErrorKind, TrustError,
    file::{read_if_there, replace},
};

/// The file within an authority's folder.
pub const USED: &str = "used.json";
/// What is more is not kept: some 400,000 accounts.
const FILE_BYTES_MAX: usize = 64 << 20;
const MEND: &str = "mend it, or delete it and all budgets begin anew";

/// What one principal has used of one model, in windows that have not ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Used {
    /// The principal's id.
    pub principal: String,
    /// The model.
    pub model: String,
    /// Queries in a window, with its number since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second: Option<(u64, u32)>,
    /// See `second`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minute: Option<(u64, u32)>,
    /// See `second`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hour: Option<(u64, u32)>,
    /// See `second`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub day: Option<(u64, u32)>,
    /// Nanoseconds of computing in a day, with its number since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub computed_ns: Option<(u64, u64)>,
    /// When the next request is due by its rate, in nanoseconds since 1970; none where it is due already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_ns: Option<u64>,
}

impl Used {
    /// True where all of it has ended.
    pub(super) fn is_nothing(&self) -> bool {
        let windows = [self.second, self.minute, self.hour, self.day];
        windows.iter().all(Option::is_none) && self.computed_ns.is_none() && self.due_ns.is_none()
    }
}

/// The file, which one server at a time has.
#[derive(Debug)]
pub struct KeptUsage {
    path: PathBuf,
    /// Held as long as the file is this server's.
    lock: Option<fs::File>,
    /// Of what was written last.
    written: Option<[u8; 32]>,
}

impl KeptUsage {
    /// The file at a path, which need not be there.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), lock: None, written: None }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the file over, and adds what it holds to what was counted here. False where another server has it.
    ///
    /// # Errors
    /// `Invalid` where it cannot be understood, which says what to do; `Unavailable` where it cannot be read.
    pub fn take(&mut self, admission: &Admission, now: SystemTime) -> Result<bool, TrustError> {
        if self.lock.is_some() {
            return Ok(true);
        }
        let path = self.path.with_added_extension("lock");
        let lock = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let lock = lock.map_err(|error| self.unavailable(&error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(false),
            Err(fs::TryLockError::Error(error)) => return Err(self.unavailable(&error)),
        }
        self.read()?.iter().for_each(|used| admission.add(used, now));
        self.lock = Some(lock);
        Ok(true)
    }

    /// Writes what is used at `now`, where that is not what was written last; on the disk when this returns.
    ///
    /// # Errors
    /// `Unavailable` where it cannot be written, not all of it has room, or another server has the file; those of [`KeptUsage::take`].
    pub fn keep(&mut self, admission: &Admission, now: SystemTime) -> Result<(), TrustError> {
        if !self.take(admission, now)? {
            let other = "another server has it: what is used of this one is forgotten if it ends before that one";
            return Err(self.unavailable(&io::Error::other(other)));
        }
        let (mut text, mut left_out) = (b"[".to_vec(), 0);
        for used in admission.used(now) {
            let line = serde_json::to_vec(&used).map_err(|error| self.unavailable(&error.into()))?;
            if text.len() + line.len() > FILE_BYTES_MAX {
                left_out += 1;
                continue;
            }
            text.extend_from_slice(if text.len() == 1 { b"\n" } else { b",\n" });
            text.extend_from_slice(&line);
        }
        text.extend_from_slice(b"\n]\n");
        let digest = Sha256::digest(&text).into();
        if self.written != Some(digest) {
            replace(&self.path, &text, true).map_err(|error| self.unavailable(&error))?;
            self.written = Some(digest);
        }
        match left_out {
            0 => Ok(()),
            more => Err(self.unavailable(&io::Error::other(format!("it is full: {more} accounts are not kept")))),
        }
    }

    fn read(&self) -> Result<Vec<Used>, TrustError> {
        let text = read_if_there(&self.path, 2 * FILE_BYTES_MAX as u64).map_err(|error| self.unread(&error))?;
        let Some(text) = text else { return Ok(Vec::new()) };
        serde_json::from_slice(&text).map_err(|error| self.invalid(&error.to_string()))
    }

    fn unread(&self, error: &io::Error) -> TrustError {
        match error.kind() {
            io::ErrorKind::FileTooLarge => self.invalid(&error.to_string()),
            _ => self.unavailable(error),
        }
    }

    fn invalid(&self, why: &str) -> TrustError {
        TrustError::new(ErrorKind::Invalid, format!("used budgets, `{}`: {why}; {MEND}", self.path.display()))
    }

    fn unavailable(&self, error: &io::Error) -> TrustError {
        TrustError::new(ErrorKind::Unavailable, format!("used budgets, `{}`: {error}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::{
        admission::{AdmissionSettings, Demand, Limit, tests::at},
        policy::{Limits, Rate, Window},
    };

    fn limits() -> Limits {
        Limits {
            query_budgets: [(Window::Hour, 10), (Window::Day, 20)].into(),
            compute_per_day: Some(Duration::from_secs(60)),
            rate: Some(Rate { count: 100, per: Window::Day }),
            burst: Some(50),
            ..Limits::default()
        }
    }

    fn demand(principal: &str) -> Demand<'_> {
        Demand { principal, model: "chest", request_bytes: 1, compute: Duration::ZERO }
    }

    fn admission() -> Admission {
        Admission::new(&AdmissionSettings::default())
    }

    fn left(admission: &Admission, principal: &str, now: SystemTime) -> (usize, Limit) {
        let mut count = 0;
        loop {
            match admission.admit(&demand(principal), &limits(), now) {
                Ok(_) => count += 1,
                Err(refusal) => return (count, refusal.limit),
            }
        }
    }

    #[test]
    fn what_is_used_is_used_after_a_restart_as_well() {
        let folder = tempfile::tempdir().unwrap();
        let (path, before) = (folder.path().join(USED), admission());
        let mut kept = KeptUsage::at(&path);
        kept.keep(&before, at(0)).unwrap();
        for _ in 0..7 {
            before.admit(&demand("anna"), &limits(), at(0)).unwrap().finish(Duration::from_secs(1));
        }
        before.admit(&demand("otto"), &limits(), at(0)).unwrap().finish(Duration::from_secs(60));
        // Whom no limit counts needs no account here.
        before.admit(&demand("free"), &Limits::default(), at(0)).unwrap().finish(Duration::from_secs(60));
        kept.keep(&before, at(1)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.lines().count() == 4 && !text.contains("free"), "{text}");
        // Killed: the lock goes with the process.
        drop(kept);
        let again = || {
            let (admission, mut kept) = (admission(), KeptUsage::at(&path));
            assert!(kept.take(&admission, at(2)).unwrap());
            admission
        };
        assert_eq!(left(&again(), "anna", at(2)), (3, Limit::QueryBudget(Window::Hour)));
        assert_eq!(left(&again(), "otto", at(2)), (0, Limit::ComputePerDay));
        let next_hour = at(3_600_000);
        assert_eq!(left(&again(), "anna", next_hour), (10, Limit::QueryBudget(Window::Hour)));
        let tomorrow = at(24 * 3_600_000);
        let later = again();
        assert_eq!(left(&later, "otto", tomorrow).0, 10);
        assert_eq!(admission().used(tomorrow).count(), 0);
        // What has ended is forgotten.
        assert_eq!(again().used(at(48 * 3_600_000)).count(), 0);
    }

    #[test]
    fn the_second_server_waits_for_the_first_and_then_counts_both() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old, new) = (folder.path().join(USED), admission(), admission());
        let (mut first, mut second) = (KeptUsage::at(&path), KeptUsage::at(&path));
        assert!(first.take(&old, at(0)).unwrap() && !second.take(&new, at(0)).unwrap());
        for admission in [&old, &old, &new] {
            drop(admission.admit(&demand("anna"), &limits(), at(0)).unwrap());
        }
        assert!(second.keep(&new, at(1)).unwrap_err().to_string().contains("another server has it"));
        first.keep(&old, at(1)).unwrap();
        drop(first);
        second.keep(&new, at(2)).unwrap();
        assert_eq!(left(&new, "anna", at(2)), (7, Limit::QueryBudget(Window::Hour)));
        assert!(fs::read_to_string(&path).unwrap().contains(",3]"));
    }

    #[test]
    fn a_clock_that_went_ahead_locks_nobody_out() {
        let folder = tempfile::tempdir().unwrap();
        let (path, before) = (folder.path().join(USED), admission());
        let mut kept = KeptUsage::at(&path);
        let ahead = UNIX_EPOCH + Duration::from_secs(1 << 33);
        assert_eq!(left(&before, "anna", ahead).0, 10);
        kept.keep(&before, ahead).unwrap();
        drop(kept);
        let (after, mut kept) = (admission(), KeptUsage::at(&path));
        kept.take(&after, at(0)).unwrap();
        assert_eq!(left(&after, "anna", at(0)), (0, Limit::Rate));
        assert_eq!(left(&after, "anna", at(24 * 3_600_000)).0, 10);
    }

    #[test]
    fn a_damaged_file_says_how_to_mend_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(USED);
        for text in [
            "",
            "{}",
            "[{}]",
            "[{\"principal\":\"a\",\"model\":\"b\",\"day\":[1]}]",
            "[{\"principal\":\"a\",\"model\":\"b\",\"x\":1}]",
        ] {
            fs::write(&path, text).unwrap();
            let error = KeptUsage::at(&path).keep(&admission(), at(0)).unwrap_err();
            let told = error.to_string();
            assert!(error.kind() == ErrorKind::Invalid && told.contains(MEND) && told.contains(USED), "{text}: {told}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}

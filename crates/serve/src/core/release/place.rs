//! Object storage that releases come from, and what is kept of it on this machine.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use edgeward_store::{
    ErrorKind, Release, StoreError,
    remote::{Listed, Remote},
};

/// Object storage that releases were pushed to.
#[derive(Clone, Debug)]
pub struct ReleasePlace {
    /// Its address, for messages.
    pub address: String,
    /// The place.
    pub remote: Remote,
    /// Folder for what was fetched, sealed where it is; of this place alone. What a newer release replaces is removed from it.
    pub cache: PathBuf,
}

impl ReleasePlace {
    /// The releases that were kept of it.
    pub(in crate::core) fn kept(&self) -> Vec<Listed> {
        let kept = edgeward_store::list(&self.cache).unwrap_or_default().into_iter();
        let whole = kept.filter(|(path, _)| path.extension().is_none_or(|extension| extension != "partial"));
        let mut listed: Vec<Listed> = whole
            .filter_map(|(_, release)| {
                let release = release.ok()?;
                let manifest = release.manifest();
                Some(Listed { name: manifest.name.clone(), sequence: manifest.sequence })
            })
            .collect();
        listed.sort_by(|a, b| (&a.name, a.sequence).cmp(&(&b.name, b.sequence)));
        listed
    }

    pub(super) fn kept_folder(&self, name: &str, sequence: u64) -> Option<PathBuf> {
        let mut kept = edgeward_store::list(&self.cache).unwrap_or_default().into_iter();
        let is_it =
            |release: &Release| (release.manifest().name.as_str(), release.manifest().sequence) == (name, sequence);
        kept.find(|(_, release)| release.as_ref().is_ok_and(is_it)).map(|(path, _)| path)
    }

    fn lock_file(&self, name: &str) -> PathBuf {
        self.cache.join(format!(".{name}.lock"))
    }

    /// One at a time fetches a name, in whichever process.
    pub(super) fn lock(&self, name: &str) -> Result<File, StoreError> {
        let path = self.lock_file(name);
        let make = || {
            fs::create_dir_all(&self.cache)?;
            let file = File::create(&path)?;
            file.lock()?;
            Ok(file)
        };
        make().map_err(|error: std::io::Error| {
            StoreError::new(ErrorKind::Unavailable, format!("`{}`: {error}", path.display()))
        })
    }

    /// Removes what was kept of a name but the release in use; not while another process fetches the next.
    pub(super) fn forget_others(&self, name: &str, used: &Path) {
        let lock = File::create(self.lock_file(name)).ok();
        if lock.as_ref().is_none_or(|lock| lock.try_lock().is_err()) {
            return;
        }
        let kept = edgeward_store::list(&self.cache).unwrap_or_default().into_iter();
        let others = kept.filter(|(path, release)| {
            path != used && release.as_ref().is_ok_and(|release| release.manifest().name == name)
        });
        for (path, _) in others {
            if let Err(error) = fs::remove_dir_all(&path) {
                tracing::warn!(folder = %path.display(), %error, "an older release is not removed");
            }
        }
    }
}

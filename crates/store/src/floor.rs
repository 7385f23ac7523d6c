//! The newest release that was seen of each name: an older one is not loaded again.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    error::{ErrorKind, StoreError, invalid, io_error},
    staged::write_whole,
};

const FLOOR_BYTES_MAX: u64 = 16 << 20;

/// A file that remembers. Several processes may use one.
#[derive(Clone, Debug)]
pub struct Floor {
    path: PathBuf,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    releases: BTreeMap<String, Newest>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Newest {
    sequence: u64,
    /// Of the release without its seal.
    id: Digest,
}

/// How a release stands to what was seen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Judged {
    Newer,
    Seen,
}

impl Seen {
    fn judge(&self, name: &str, new: Newest) -> Result<Judged, StoreError> {
        let sequence = new.sequence;
        let refused = match self.releases.get(name) {
            Some(newest) if *newest == new => return Ok(Judged::Seen),
            Some(newest) if newest.sequence > sequence => format!(
                "release {sequence} of `{name}` is older than {}, which was seen already; to go back, pack the old model with a higher number",
                newest.sequence
            ),
            Some(newest) if newest.sequence == sequence => format!(
                "release {sequence} of `{name}` has id {}; another with this number was seen, {}",
                new.id, newest.id
            ),
            _ => return Ok(Judged::Newer),
        };
        Err(StoreError::new(ErrorKind::Downgrade, refused))
    }
}

impl Floor {
    /// The file, which is made when something was seen.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Whether a release may be loaded; it is not taken as seen. `id` is that of the release without its seal.
    ///
    /// # Errors
    /// `Downgrade` where a newer one was seen, or another with the same number; `Invalid` where the file cannot be read: nothing is
    /// loaded then, since it may have been made unreadable for that.
    pub fn check(&self, name: &str, sequence: u64, id: Digest) -> Result<(), StoreError> {
        self.read()?.judge(name, Newest { sequence, id }).map(drop)
    }

    /// Takes a release as seen.
    ///
    /// # Errors
    /// Those of [`Floor::check`], and where the file cannot be written.
    pub fn raise(&self, name: &str, sequence: u64, id: Digest) -> Result<(), StoreError> {
        let new = Newest { sequence, id };
        // What was seen already asks for no lock and no place to write.
        if self.read()?.judge(name, new)? == Judged::Seen {
            return Ok(());
        }
        let _lock = self.lock()?;
        let mut seen = self.read()?;
        if seen.judge(name, new)? == Judged::Seen {
            return Ok(());
        }
        seen.releases.insert(name.to_owned(), new);
        let bytes = serde_json::to_vec_pretty(&seen).map_err(|error| invalid(error.to_string()))?;
        write_whole(&self.path, &bytes)
    }

    fn read(&self) -> Result<Seen, StoreError> {
        let mut bytes = Vec::new();
        match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Seen::default()),
            other => other.and_then(|file| file.take(FLOOR_BYTES_MAX).read_to_end(&mut bytes)),
        }
        .map_err(|error| io_error(&self.path, &error))?;
        serde_json::from_slice(&bytes).map_err(|error| invalid(format!("`{}`: {error}", self.path.display())))
    }

    fn lock(&self) -> Result<File, StoreError> {
        let path: &Path = &self.path.with_added_extension("lock");
        let file = File::create(path).map_err(|error| io_error(path, &error))?;
        file.lock().map_err(|error| io_error(path, &error))?;
        Ok(file)
    }
}

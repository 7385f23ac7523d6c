//! What an interrupted tune has measured so far, kept in a file.
//!
//! A tune is a fixed sequence of slices; one that is run again takes the slices of the file instead of measuring them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::plan::Candidate;
use crate::{failure::Failure, measure::Summary, whole};

/// Measurements of one tune.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// What was tuned and how; a file with another key is not used.
    key: String,
    slices: BTreeMap<String, Summary>,
    #[serde(skip)]
    path: PathBuf,
    #[serde(skip)]
    resumed: usize,
}

impl State {
    /// Takes up the file of the same key, or starts anew. An error where the file cannot be written.
    pub fn open(path: &Path, key: &str) -> anyhow::Result<Self> {
        let read = || serde_json::from_slice::<Self>(&std::fs::read(path).ok()?).ok();
        let state = read().filter(|state| state.key == key).unwrap_or_default();
        let state =
            Self { key: key.to_owned(), path: path.to_owned(), resumed: state.slices.len(), slices: state.slices };
        state.save()?;
        Ok(state)
    }

    /// Where it is kept.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Slices that an earlier run had measured.
    pub fn resumed(&self) -> usize {
        self.resumed
    }

    /// The slice of that place in the sequence: from the file, else by `measure`, and then kept.
    pub fn slice(
        &mut self,
        round: usize,
        turn: usize,
        candidate: &Candidate,
        measure: impl FnOnce() -> Result<Summary, Failure>,
    ) -> Result<Summary, Failure> {
        let Candidate { engine, batch, threads, instances } = candidate;
        let name = format!("{round}/{turn}/{engine}/{batch}/{threads}/{instances}");
        if let Some(known) = self.slices.get(&name) {
            return Ok(known.clone());
        }
        let summary = measure()?;
        self.slices.insert(name, summary.clone());
        self.save()?;
        Ok(summary)
    }

    fn save(&self) -> anyhow::Result<()> {
        whole::write(&self.path, &serde_json::to_vec(self)?)
    }

    /// The tune is done; the file has no further use.
    pub fn remove(self) {
        // Nothing is lost where it stays: its measurements stay valid for the same key.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(per_second: f64) -> Summary {
        Summary { runs: 1, seconds: 1.0, p50_ms: 1.0, p90_ms: 1.0, p99_ms: 1.0, per_second, core_ms: 0.0 }
    }

    #[test]
    fn measured_slices_are_not_measured_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let candidate = Candidate { engine: "rten".to_owned(), batch: 1, threads: 1, instances: 1 };
        let mut first = State::open(&path, "key").unwrap();
        first.slice(0, 0, &candidate, || Ok(summary(5.0))).unwrap();
        let mut second = State::open(&path, "key").unwrap();
        assert_eq!(second.resumed(), 1);
        let again = second.slice(0, 0, &candidate, || panic!("measured again")).unwrap();
        assert_eq!(again, summary(5.0));
        assert_eq!(second.slice(0, 1, &candidate, || Ok(summary(6.0))).unwrap(), summary(6.0));
        assert_eq!(State::open(&path, "another key").unwrap().resumed(), 0);
        second.remove();
        assert!(!path.exists());
    }

    #[test]
    fn a_broken_file_is_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        std::fs::write(&path, "{\"key\":").unwrap();
        assert_eq!(State::open(&path, "key").unwrap().resumed(), 0);
    }
}

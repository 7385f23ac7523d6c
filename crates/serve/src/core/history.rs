//! What became of models that were loaded, or that should have been.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;

/// By model name.
#[derive(Default)]
pub(super) struct History(Mutex<BTreeMap<String, Past>>);

/// One model.
#[derive(Clone, Debug, Default)]
pub(super) struct Past {
    /// Why the last load failed.
    pub failure: Option<String>,
    /// Whether that was something else that did not answer, so that another try may go well.
    pub may_pass: bool,
    /// Versions that served and do no longer.
    pub unloaded: BTreeSet<u64>,
    /// What is being done with it.
    pub doing: Option<Doing>,
}

/// A change that has begun and not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    Loading,
    Unloading,
}

impl History {
    pub fn of(&self, name: &str) -> Past {
        self.0.lock().get(name).cloned().unwrap_or_default()
    }

    pub fn all(&self) -> BTreeMap<String, Past> {
        self.0.lock().clone()
    }

    pub fn failed(&self) -> Vec<String> {
        let pasts = self.0.lock();
        pasts.iter().filter(|(_, past)| past.failure.is_some()).map(|(name, _)| name.clone()).collect()
    }

    /// Models whose last load failed for something that may pass.
    pub fn to_be_tried(&self) -> Vec<String> {
        let pasts = self.0.lock();
        let again = pasts.iter().filter(|(_, past)| past.failure.is_some() && past.may_pass);
        again.map(|(name, _)| name.clone()).collect()
    }

    /// Changes what is known of a model.
    pub fn note(&self, name: &str, change: impl FnOnce(&mut Past)) {
        let mut pasts = self.0.lock();
        let past = pasts.entry(name.to_owned()).or_default();
        change(past);
        if past.failure.is_none() && past.unloaded.is_empty() && past.doing.is_none() {
            pasts.remove(name);
        }
    }

    /// Says that a change is under way until the answer is dropped.
    pub fn doing<'a>(&'a self, name: &'a str, doing: Doing) -> Under<'a> {
        self.note(name, |past| past.doing = Some(doing));
        Under(self, name)
    }
}

/// A change under way.
pub(super) struct Under<'a>(&'a History, &'a str);

impl Drop for Under<'_> {
    fn drop(&mut self) {
        self.0.note(self.1, |past| past.doing = None);
    }
}

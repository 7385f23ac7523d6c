//! Ending a run from outside.
//!
//! A session that starts a run leaves here how to end it, and takes that away afterwards: nobody watches, and a run
//! that is not cancelled pays for two locks that nobody else holds.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use crate::{EngineError, ErrorKind};

/// What ends runs. Once cancelled it stays so; all runs that were given it end, those under way and those to come.
#[derive(Default)]
pub struct Cancel {
    cancelled: AtomicBool,
    running: Mutex<Vec<Arc<dyn Interrupt>>>,
}

/// How the library of an engine is told to end one run.
pub(crate) trait Interrupt: Send + Sync {
    /// Returns at once; the run ends soon after. Called on another thread than the run's, while it runs.
    fn interrupt(&self);
}

impl Cancel {
    /// Ends every run that was given this, as early as its engine can, and those to come before they start.
    pub fn cancel(&self) {
        // Under the lock, so that what a run takes away is not used after it has ended.
        let running = self.running();
        self.cancelled.store(true, SeqCst);
        running.iter().for_each(|run| run.interrupt());
    }

    /// True once cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(SeqCst)
    }

    /// Runs under way that were given this and that their engine can end.
    pub fn under_way(&self) -> usize {
        self.running().len()
    }

    /// Registers a run that is about to start; it is under way until the result is dropped. None where it must not
    /// start.
    pub(crate) fn start(&self, run: Arc<dyn Interrupt>) -> Option<UnderWay<'_>> {
        let mut running = self.running();
        if self.is_cancelled() {
            return None;
        }
        running.push(run.clone());
        Some(UnderWay { cancel: self, run })
    }

    fn running(&self) -> MutexGuard<'_, Vec<Arc<dyn Interrupt>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Cancel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Cancel").field(&self.is_cancelled()).finish()
    }
}

/// A run that can be ended from outside.
pub(crate) struct UnderWay<'a> {
    cancel: &'a Cancel,
    run: Arc<dyn Interrupt>,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.cancel.running().retain(|run| !Arc::ptr_eq(run, &self.run));
    }
}

/// Why a run did not start or gave no answer.
pub(crate) fn cancelled(engine: &'static str) -> EngineError {
    EngineError::new(engine, ErrorKind::Cancelled, "the request was cancelled")
}

/// An error where the request was cancelled, whatever its run came to.
pub(crate) fn check(engine: &'static str, cancel: Option<&Cancel>) -> Result<(), EngineError> {
    if cancel.is_some_and(Cancel::is_cancelled) { Err(cancelled(engine)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Counted(AtomicUsize);

    impl Interrupt for Counted {
        fn interrupt(&self) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn runs_under_way_are_told_and_later_ones_do_not_start() {
        let (cancel, ended, running) = (Cancel::default(), Arc::new(Counted::default()), Arc::new(Counted::default()));
        drop(cancel.start(ended.clone()).expect("nothing is cancelled yet"));
        let also = Arc::new(Counted::default());
        let (first, second) = (cancel.start(running.clone()), cancel.start(also.clone()));
        drop(second);
        cancel.cancel();
        assert!(first.is_some() && cancel.is_cancelled());
        let told = [&ended, &running, &also].map(|run| run.0.load(SeqCst));
        assert_eq!(told, [0, 1, 0], "only the run under way");
        assert!(cancel.start(ended).is_none());
    }
}

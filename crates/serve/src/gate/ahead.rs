//! What was granted for messages of a call before they had come: it waits for their handlers.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use edgeward_trust::{Action, Resource};
use parking_lot::Mutex;

use super::ask::Grant;

/// Grants that wait in one call. A handler takes each; those of messages that say another name further on are taken by nobody.
const WAITING_MAX: usize = 64;

/// What was asked for, in how many bytes, and the grant.
type Granted = (Action, Resource, u64, Arc<Grant>);

#[derive(Default)]
pub(super) struct Ahead {
    /// Most calls have none, and look no further than here.
    waiting: AtomicUsize,
    granted: Mutex<VecDeque<Granted>>,
}

impl Ahead {
    pub(super) fn put(&self, (action, resource, bytes): (Action, Resource, u64), grant: Arc<Grant>) {
        let mut granted = self.granted.lock();
        let oldest = if granted.len() < WAITING_MAX { None } else { granted.pop_front() };
        granted.push_back((action, resource, bytes, grant));
        self.waiting.store(granted.len(), Relaxed);
        drop(granted);
        // Its record is written when it is dropped.
        drop(oldest);
    }

    /// The grant of what is asked for, and for how many bytes it was given.
    pub(super) fn take(&self, action: Action, resource: &Resource) -> Option<(u64, Arc<Grant>)> {
        // The message that it is for was handed on after it was put here.
        if self.waiting.load(Relaxed) == 0 {
            return None;
        }
        let mut granted = self.granted.lock();
        let place = granted.iter().position(|(of, on, ..)| *of == action && on == resource)?;
        let (_, _, bytes, grant) = granted.remove(place)?;
        self.waiting.store(granted.len(), Relaxed);
        Some((bytes, grant))
    }
}

//! A runtime of its own, in a thread of its own, for what asks a server behind a synchronous trait: key providers and sources of keys are
//! called from threads with a runtime as well as from threads without.

use std::{sync::mpsc, thread};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

use crate::{ErrorKind, TrustError};

/// Runs futures elsewhere. The work ends with it.
pub(crate) struct Remote {
    handle: Handle,
    /// The thread ends when this is dropped.
    _running: oneshot::Sender<()>,
}

impl Remote {
    /// Starts the thread.
    ///
    /// # Errors
    /// `Unavailable` where the system gives no thread.
    pub fn start(name: &str) -> Result<Self, TrustError> {
        let failed =
            |error: std::io::Error| TrustError::new(ErrorKind::Unavailable, format!("thread `{name}`: {error}"));
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (handle, (running, ended)) = (runtime.handle().clone(), oneshot::channel::<()>());
        let work = move || drop(runtime.block_on(ended));
        thread::Builder::new().name(name.to_owned()).spawn(work).map_err(failed)?;
        Ok(Self { handle, _running: running })
    }

    /// Waits for a future. Blocks this thread.
    ///
    /// # Errors
    /// Those of the future.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, TrustError>> + Send + 'static,
    ) -> Result<T, TrustError> {
        let (done, result) = mpsc::sync_channel(1);
        self.handle.spawn(async move {
            let _ = done.send(work.await);
        });
        result.recv().unwrap_or_else(|_| Err(TrustError::new(ErrorKind::Unavailable, "the work ended before its time")))
    }

    /// Lets a future run until it ends or this is dropped.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(work);
    }
}

//! Batches made ahead on a thread of their own, at most so many at a time.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

use super::{Batch, DataError, Fit, Plan};

/// Batches that wait for the loop at most.
const AHEAD: usize = 3;

/// Hands out the batches of epochs.
pub struct Loader {
    fit: Arc<Fit>,
    plan: Plan,
    varied: Varied,
}

#[derive(Clone, Copy)]
enum Varied {
    Yes,
    No,
}

impl Loader {
    /// To learn from: examples are varied as the fit says.
    pub fn to_learn(fit: Fit, plan: Plan) -> Self {
        Self { fit: Arc::new(fit), plan, varied: Varied::Yes }
    }

    /// To judge by: examples as they are.
    pub fn to_judge(fit: Fit, plan: Plan) -> Self {
        Self { fit: Arc::new(fit), plan, varied: Varied::No }
    }

    /// The data set as the model wants it.
    pub fn fit(&self) -> &Fit {
        &self.fit
    }

    /// How batches are drawn.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Batches of each epoch.
    pub fn batch_count(&self) -> usize {
        self.plan.batch_count(self.fit.dataset().len())
    }

    /// The batches of an epoch from its `first` on. Equal arguments give equal batches.
    pub fn epoch(&self, epoch: u64, first: usize) -> Result<Batches, DataError> {
        let rows = self.plan.batches(self.fit.dataset().as_ref(), epoch)?;
        let (send, receive) = sync_channel(AHEAD);
        let (fit, seed, varied) = (self.fit.clone(), self.plan.seed, self.varied);
        let work = move || {
            for rows in rows.iter().skip(first) {
                let batch = match varied {
                    Varied::Yes => fit.varied(rows, seed, epoch),
                    Varied::No => fit.batch(rows),
                };
                if !deliver(&send, batch) {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("data".to_owned()).spawn(work);
        let thread =
            thread.map_err(|error| DataError::fit(format!("no thread for the data can be started: {error}")))?;
        Ok(Batches { receive: Some(receive), thread: Some(thread) })
    }
}

/// False where nobody waits any more, or an error was the last word.
fn deliver(send: &SyncSender<Result<Batch, DataError>>, batch: Result<Batch, DataError>) -> bool {
    let goes_on = batch.is_ok();
    send.send(batch).is_ok() && goes_on
}

/// The batches of one epoch, in order. Dropped before its end, it stops the thread behind.
pub struct Batches {
    receive: Option<Receiver<Result<Batch, DataError>>>,
    thread: Option<JoinHandle<()>>,
}

impl Iterator for Batches {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Ok(batch) = self.receive.as_ref()?.recv() {
            return Some(batch);
        }
        self.receive = None;
        // A decoder of others may have panicked; an epoch must not end early and look whole.
        let ended = self.thread.take()?.join();
        ended.err().map(|_| Err(DataError::fit("reading the data failed without a word")))
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.receive = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

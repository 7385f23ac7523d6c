//! A bounded queue to a thread that writes: who puts something in takes no lock and never waits.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crossbeam_queue::ArrayQueue;
use parking_lot::Mutex;

/// Records that may wait for the writer.
const CAPACITY: usize = 16_384;
/// Between two rounds of a busy writer, so that records come in groups and their senders wake nobody.
const GATHER: Duration = Duration::from_millis(2);

/// Records that did not reach their place, and why. They are not tried again: the buffer of a full disk must not grow.
pub(super) struct Lost {
    pub(super) records: u64,
    pub(super) error: io::Error,
}

/// What the thread does with the records.
pub(super) trait Write<T>: Send + 'static {
    /// Takes one record; it may stay in a buffer.
    fn write(&mut self, record: T) -> Result<(), Lost>;
    /// No record waits: what is in the buffer goes out.
    fn flush(&mut self) -> Result<(), Lost>;
    /// Begins anew where the file may have been moved away.
    fn reopen(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Shared<T> {
    queue: ArrayQueue<T>,
    dropped: AtomicU64,
    asleep: AtomicBool,
    reopen: AtomicBool,
    ending: AtomicBool,
}

/// The sender's end. The thread ends with [`Sink::end`].
pub(super) struct Sink<T> {
    shared: Arc<Shared<T>>,
    writer: thread::Thread,
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl<T: Send + 'static> Sink<T> {
    pub(super) fn start(name: &'static str, writer: impl Write<T>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: ArrayQueue::new(CAPACITY),
            dropped: AtomicU64::new(0),
            asleep: AtomicBool::new(false),
            reopen: AtomicBool::new(false),
            ending: AtomicBool::new(false),
        });
        let own = shared.clone();
        let handle = thread::Builder::new().name(name.to_owned()).spawn(move || own.work(name, writer))?;
        Ok(Self { shared, writer: handle.thread().clone(), handle: Mutex::new(Some(handle)) })
    }

    /// Hands a record over, or counts it as lost where the queue is full.
    pub(super) fn put(&self, record: T) {
        if self.shared.queue.push(record).is_err() {
            self.shared.dropped.fetch_add(1, SeqCst);
        }
        if self.shared.asleep.load(SeqCst) {
            self.writer.unpark();
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        self.shared.dropped.load(SeqCst)
    }

    pub(super) fn reopen(&self) {
        self.shared.reopen.store(true, SeqCst);
        self.writer.unpark();
    }

    /// Waits until everything is written.
    pub(super) fn end(&self) {
        self.shared.ending.store(true, SeqCst);
        self.writer.unpark();
        if let Some(handle) = self.handle.lock().take() {
            // A writer that panicked has said so on standard error.
            let _ = handle.join();
        }
    }
}

impl<T> Drop for Sink<T> {
    fn drop(&mut self) {
        self.shared.ending.store(true, SeqCst);
        self.writer.unpark();
    }
}

impl<T> Shared<T> {
    fn work(&self, name: &str, mut writer: impl Write<T>) {
        let mut failing = false;
        loop {
            let ending = self.ending.load(SeqCst);
            let mut result = if self.reopen.swap(false, SeqCst) { writer.reopen() } else { Ok(()) };
            let mut wrote = false;
            while let Some(record) = self.queue.pop() {
                wrote = true;
                result = result.and(self.counted(writer.write(record)));
            }
            if wrote || ending {
                result = result.and(self.counted(writer.flush()));
            }
            // Said once, not per record: a full disk must not fill the log as well.
            match result {
                Err(error) if !failing => {
                    failing = true;
                    tracing::error!(sink = name, %error, "cannot write, records are lost");
                }
                Ok(()) if failing && wrote => {
                    failing = false;
                    tracing::info!(sink = name, lost = self.dropped.load(SeqCst), "writes again");
                }
                _ => {}
            }
            if ending {
                return;
            }
            if wrote {
                thread::sleep(GATHER);
                continue;
            }
            self.asleep.store(true, SeqCst);
            // A record that came between the last look and this line finds nobody asleep: look again.
            if self.queue.is_empty() && !self.ending.load(SeqCst) && !self.reopen.load(SeqCst) {
                thread::park();
            }
            self.asleep.store(false, SeqCst);
        }
    }

    fn counted(&self, written: Result<(), Lost>) -> io::Result<()> {
        written.map_err(|Lost { records, error }| {
            self.dropped.fetch_add(records, SeqCst);
            error
        })
    }
}

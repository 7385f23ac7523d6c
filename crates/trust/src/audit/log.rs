//! The log as a server writes it: callers queue records without waiting, one thread writes them down together.
//!
//! The way of a record: the caller encodes it and puts it into a bounded queue → the writer takes all that waits, gives each its place,
//! signs the tree after them, and writes one frame to the journal → under [`Durability::Strict`] the caller is answered once that frame
//! is on the disk → a second thread makes tiles and a checkpoint of the frames, at most every [`LogOptions::publish_every`].

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, SyncSender, TrySendError},
    },
    task::{Context, Poll},
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::oneshot;

use crate::{
    audit::{
        checkpoint::Checkpoint,
        merkle::Head,
        note::{NoteKey, SignatureType},
        publish::Publisher,
        record::Record,
        recover::{Recovery, recover},
        writer::{Message, Writer},
    },
    error::{ErrorKind, TrustError},
    keys::{KeyKind, KeyProvider},
};

/// When a record is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Each record is on the disk before its caller goes on.
    Strict,
    /// The disk is waited for at least so often; a crash of the machine loses what came after.
    Interval(Duration),
    /// The operating system writes when it likes; a crash of the machine loses that, a crash of this process nothing that was written.
    None,
}

/// How a log is kept.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Where; made where it does not exist.
    pub folder: PathBuf,
    /// When a record is safe.
    pub durability: Durability,
    /// Records that may wait to be written; more are refused.
    pub queue_records_max: usize,
    /// Shortest time between two checkpoints in tiles.
    pub publish_every: Duration,
}

impl LogOptions {
    /// Strict, 65,536 waiting records, a checkpoint every second.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        let durability = Durability::Strict;
        let publish_every = Duration::from_secs(1);
        Self { folder: folder.into(), durability, queue_records_max: 1 << 16, publish_every }
    }
}

/// Signs a log's checkpoints with an Ed25519 key that never leaves its provider.
#[derive(Clone)]
pub struct LogSigner {
    key: NoteKey,
    id: String,
    provider: Arc<dyn KeyProvider>,
}

impl LogSigner {
    /// The key `id` of `provider` for the log named `origin`; an error where it is no Ed25519 key.
    pub fn new(origin: &str, provider: Arc<dyn KeyProvider>, id: &str) -> Result<Self, TrustError> {
        let key = NoteKey::new(origin, SignatureType::Log, ed25519_public(provider.as_ref(), id)?)?;
        Ok(Self { key, id: id.to_owned(), provider })
    }

    /// The public key to verify the log with.
    pub fn key(&self) -> &NoteKey {
        &self.key
    }

    /// The signed checkpoint of a tree.
    pub fn sign(&self, head: Head) -> Result<String, TrustError> {
        let text = Checkpoint { origin: self.key.name().to_owned(), head }.text();
        let line = self.key.sign(&text, 0, |message| self.provider.sign(&self.id, message))?;
        Ok(format!("{text}\n{line}"))
    }
}

/// The public half of an Ed25519 key of a provider.
pub fn ed25519_public(provider: &dyn KeyProvider, id: &str) -> Result<[u8; 32], TrustError> {
    let info = provider.describe(id)?;
    let public = info.versions.last().and_then(|version| version.public_key.as_deref());
    match public.and_then(|key| key.try_into().ok()) {
        Some(public) if info.kind == KeyKind::Ed25519 => Ok(public),
        _ => {
            let text = format!("key `{id}` is {}; expected an Ed25519 key", info.kind);
            Err(TrustError::new(ErrorKind::Invalid, text))
        }
    }
}

/// What the threads tell each other and the world.
#[derive(Default)]
pub(crate) struct Shared {
    /// Records written to the journal.
    pub(crate) size: AtomicU64,
    pub(crate) published: AtomicU64,
    /// Records that found no place, since the start.
    pub(crate) refused: AtomicU64,
    /// Set when the log takes nothing more until it is opened again.
    pub(crate) broken: AtomicBool,
    /// Set while the journal takes no record.
    pub(crate) failing: AtomicBool,
    /// What keeps records from the journal, and what keeps tiles from being made.
    pub(crate) journal_failure: Failure,
    pub(crate) tiles_failure: Failure,
}

/// What does not work, while it does not.
#[derive(Default)]
pub(crate) struct Failure(Mutex<Option<String>>);

impl Failure {
    pub(crate) fn set(&self, failure: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }

    fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How a log is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LogStatus {
    /// Records written.
    pub size: u64,
    /// Records that the published checkpoint covers.
    pub published: u64,
    /// Records that were refused since the start, for want of room in the queue or on the disk.
    pub refused: u64,
    /// What does not work at present.
    pub failure: Option<String>,
}

/// An append-only log. Dropping it writes down all that was accepted.
pub struct AuditLog {
    queue: Option<SyncSender<Message>>,
    threads: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
    recovery: Recovery,
    queue_records_max: usize,
    /// Held as long as the log is: two writers would each sign a tree of their own.
    _lock: File,
}

impl AuditLog {
    /// Opens the log, checks what is there, and goes on after it.
    ///
    /// # Errors
    /// `Unavailable` where another process has it open or the disk fails, `Tampered` and `Unverified` where the log is not what was
    /// signed.
    pub fn open(options: &LogOptions, signer: LogSigner) -> Result<Self, TrustError> {
        let folder = &options.folder;
        let unavailable = |error: std::io::Error| {
            TrustError::new(ErrorKind::Unavailable, format!("audit log `{}`: {error}", folder.display()))
        };
        fs::create_dir_all(folder).map_err(unavailable)?;
        let lock = lock(folder)?;
        let found = recover(folder, signer.key())?;
        let flush = options.durability != Durability::None;
        let mut publisher = Publisher::open(folder, found.recovery.published, flush)?;
        found.frames.iter().for_each(|frame| publisher.take(frame));
        publisher.publish().map_err(unavailable)?;

        let shared = Arc::new(Shared::default());
        shared.size.store(found.edge.size(), Ordering::Relaxed);
        shared.published.store(publisher.published(), Ordering::Relaxed);
        let (queue, messages) = mpsc::sync_channel(options.queue_records_max);
        // Few frames, so that a disk that is too slow for tiles is felt by callers rather than by the memory.
        let (frames, to_publish) = mpsc::sync_channel(16);
        let writer = Writer::open(options, signer, found.edge, shared.clone(), frames).map_err(unavailable)?;
        let threads = vec![
            spawn("audit-publish", {
                let (shared, every) = (shared.clone(), options.publish_every);
                move || super::writer::publish(publisher, &to_publish, &shared, every)
            })?,
            spawn("audit-write", move || writer.run(&messages))?,
        ];
        let queue_records_max = options.queue_records_max;
        let log =
            Self { queue: Some(queue), threads, shared, recovery: found.recovery, queue_records_max, _lock: lock };
        if found.recovery.cut_bytes > 0 {
            let reason = format!("{} bytes without a whole frame were cut off and kept", found.recovery.cut_bytes);
            log.append(&super::writer::own_record("log.recover", reason))?.wait()?;
        }
        Ok(log)
    }

    /// What was found when the log was opened.
    pub fn recovery(&self) -> Recovery {
        self.recovery
    }

    /// Queues a record. What the ticket waits for is [`LogOptions::durability`]; who does not wait may drop it.
    ///
    /// # Errors
    /// `Unavailable` where the queue is full or the log is broken: a caller under strict durability must then refuse the request.
    pub fn append(&self, record: &Record) -> Result<Ticket, TrustError> {
        let body = record.encode()?;
        let (answer, ticket) = oneshot::channel();
        self.send(Message::Append { body, answer: Some(answer) })?;
        Ok(Ticket(ticket))
    }

    /// Queues a record that nobody waits for.
    ///
    /// # Errors
    /// As [`AuditLog::append`].
    pub fn note(&self, record: &Record) -> Result<(), TrustError> {
        self.send(Message::Append { body: record.encode()?, answer: None })
    }

    fn send(&self, message: Message) -> Result<(), TrustError> {
        let why = match &self.queue {
            Some(_) if self.shared.broken.load(Ordering::Relaxed) => "it is broken until it is opened again".to_owned(),
            Some(queue) => match queue.try_send(message) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(_)) => format!("{} records wait already", self.queue_records_max),
                Err(TrySendError::Disconnected(_)) => "its writer has ended".to_owned(),
            },
            None => "it is closed".to_owned(),
        };
        self.shared.refused.fetch_add(1, Ordering::Relaxed);
        Err(TrustError::new(ErrorKind::Unavailable, format!("the audit log takes no record: {why}")))
    }

    /// Waits until all that was queued before is written and published, and returns the log's head.
    ///
    /// # Errors
    /// `Unavailable` where it cannot be written.
    pub fn flush(&self) -> Result<Head, TrustError> {
        let (answer, flushed) = oneshot::channel();
        let queue = self.queue.as_ref().ok_or_else(ended)?;
        queue.send(Message::Flush(answer)).map_err(|_| ended())?;
        flushed.blocking_recv().map_err(|_| ended())?
    }

    /// True while the journal takes no record: the last write failed. Who does not wait for its records otherwise must wait now, and each
    /// that comes is another try.
    pub fn is_failing(&self) -> bool {
        self.shared.failing.load(Ordering::Acquire)
    }

    /// How the log is.
    pub fn status(&self) -> LogStatus {
        let Shared { size, published, refused, journal_failure, tiles_failure, .. } = &*self.shared;
        LogStatus {
            size: size.load(Ordering::Relaxed),
            published: published.load(Ordering::Relaxed),
            refused: refused.load(Ordering::Relaxed),
            failure: journal_failure.get().or_else(|| tiles_failure.get()),
        }
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..).rev() {
            // A thread that panicked has said so on standard error.
            let _ = thread.join();
        }
    }
}

/// A record on its way. Waits in a thread or as a future.
pub struct Ticket(oneshot::Receiver<Result<u64, TrustError>>);

impl Ticket {
    /// Waits for the record's place in the log.
    ///
    /// # Errors
    /// `Unavailable` where it could not be written.
    pub fn wait(self) -> Result<u64, TrustError> {
        self.0.blocking_recv().unwrap_or_else(|_| Err(ended()))
    }
}

impl Ticket {
    /// The record's place, where that is known already.
    ///
    /// # Errors
    /// Those of [`Ticket::wait`].
    pub fn known(&mut self) -> Option<Result<u64, TrustError>> {
        match self.0.try_recv() {
            Ok(result) => Some(result),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(Err(ended())),
        }
    }
}

impl Future for Ticket {
    type Output = Result<u64, TrustError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or_else(|_| Err(ended())))
    }
}

fn ended() -> TrustError {
    TrustError::new(ErrorKind::Unavailable, "the audit log's writer has ended")
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, TrustError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|error| TrustError::new(ErrorKind::Unavailable, format!("no thread for the audit log: {error}")))
}

fn lock(folder: &Path) -> Result<File, TrustError> {
    let path = folder.join("lock");
    let failed = |why: String| TrustError::new(ErrorKind::Unavailable, format!("`{}`: {why}", path.display()));
    let file = File::create(&path).map_err(|error| failed(error.to_string()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(failed("another process writes this log".to_owned())),
        Err(fs::TryLockError::Error(error)) => Err(failed(error.to_string())),
    }
}

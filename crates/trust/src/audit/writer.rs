//! The two threads behind [`AuditLog`](super::AuditLog): one writes the journal, one the tiles.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError, SyncSender},
    },
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::oneshot;

use crate::{
    audit::{
        journal::{Frame, Segment, WriteError},
        log::{Durability, LogOptions, LogSigner, Shared},
        merkle::{Edge, Head, leaf_hash},
        publish::Publisher,
        record::{Kind, Record, Verdict, place},
    },
    error::{ErrorKind, TrustError},
};

/// Records and bytes that are written together at most.
const FRAME_RECORDS_MAX: usize = 8192;
const FRAME_BYTES_MAX: usize = 4 << 20;
/// A segment of the journal ends after so many bytes.
const SEGMENT_BYTES: u64 = 32 << 20;

type Answer = oneshot::Sender<Result<u64, TrustError>>;

/// What callers send to the writer.
pub enum Message {
    /// A record without its place.
    Append { body: Vec<u8>, answer: Option<Answer> },
    /// Publish everything and tell the head.
    Flush(oneshot::Sender<Result<Head, TrustError>>),
}

/// What the writer sends to the publisher.
pub enum Work {
    /// A written frame.
    Frame(Frame),
    /// Publish at once, then tell the head.
    Publish(oneshot::Sender<Result<Head, TrustError>>, Head),
}

/// Writes the journal.
pub struct Writer {
    folder: PathBuf,
    durability: Durability,
    signer: LogSigner,
    edge: Edge,
    shared: Arc<Shared>,
    publisher: SyncSender<Work>,
    segment: Segment,
    /// When something was written that the disk was not waited for.
    unsynced_since: Option<Instant>,
    /// Refused records that the log tells of already.
    refused_told: u64,
}

impl Writer {
    /// A writer that goes on after `edge` in a new segment.
    pub fn open(
        options: &LogOptions,
        signer: LogSigner,
        edge: Edge,
        shared: Arc<Shared>,
        publisher: SyncSender<Work>,
    ) -> io::Result<Self> {
        let segment = Segment::create(&options.folder, edge.size())?;
        let (folder, durability) = (options.folder.clone(), options.durability);
        Ok(Self { folder, durability, signer, edge, shared, publisher, segment, unsynced_since: None, refused_told: 0 })
    }

    /// Runs until nobody can send any more.
    pub fn run(mut self, messages: &Receiver<Message>) {
        let mut batch = Vec::new();
        loop {
            let first = match self.until_sync() {
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(time) => messages.recv_timeout(time),
            };
            match first {
                Ok(message) => self.gather(message, messages, &mut batch),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if !batch.is_empty() {
                self.commit(&mut batch);
            }
            if self.until_sync() == Some(Duration::ZERO) {
                self.sync();
            }
        }
        self.sync();
    }

    /// Time left until the disk has to be waited for.
    fn until_sync(&self) -> Option<Duration> {
        match (self.durability, self.unsynced_since) {
            (Durability::Interval(every), Some(since)) => Some(every.saturating_sub(since.elapsed())),
            _ => None,
        }
    }

    /// Takes what waits, up to a frame's size.
    fn gather(&mut self, first: Message, messages: &Receiver<Message>, batch: &mut Vec<(Vec<u8>, Option<Answer>)>) {
        let (mut next, mut bytes) = (Some(first), 0);
        while let Some(message) = next {
            match message {
                Message::Append { body, answer } => {
                    bytes += body.len();
                    batch.push((body, answer));
                }
                Message::Flush(answer) => {
                    self.commit(batch);
                    let head = Head { size: self.edge.size(), root: self.edge.root() };
                    // Where the publisher has ended, dropping the answer tells so.
                    let _ = self.publisher.send(Work::Publish(answer, head));
                }
            }
            let full = batch.len() >= FRAME_RECORDS_MAX || bytes >= FRAME_BYTES_MAX;
            next = if full { None } else { messages.try_recv().ok() };
        }
    }

    /// Writes the batch as one frame and answers its callers.
    fn commit(&mut self, batch: &mut Vec<(Vec<u8>, Option<Answer>)>) {
        let callers = batch.len() as u64;
        let told = self.tell_refused(batch);
        if batch.is_empty() {
            return;
        }
        let before = self.edge.clone();
        let first = before.size();
        let written = self.write_frame(batch.iter().map(|(body, _)| body.as_slice()));
        match &written {
            Ok(()) => {
                self.refused_told = told.unwrap_or(self.refused_told);
                self.shared.journal_failure.set(None);
                self.shared.failing.store(false, Ordering::Release);
            }
            Err(error) => {
                self.edge = before;
                // What the log tells of itself was no caller's record, and is told again.
                self.shared.refused.fetch_add(callers, Ordering::Relaxed);
                self.shared.journal_failure.set(Some(error.to_string()));
                // Before anybody learns of it: who asks afterwards waits for the word on its own record.
                self.shared.failing.store(true, Ordering::Release);
            }
        }
        self.shared.size.store(self.edge.size(), Ordering::Relaxed);
        for ((_, answer), seq) in batch.drain(..).zip(first..) {
            let result = match &written {
                Ok(()) => Ok(seq),
                Err(error) => Err(TrustError::new(error.kind(), error.to_string())),
            };
            // A caller that does not wait any more has dropped its end.
            if let Some(answer) = answer {
                let _ = answer.send(result);
            }
        }
    }

    fn write_frame<'a>(&mut self, bodies: impl Iterator<Item = &'a [u8]>) -> Result<(), TrustError> {
        if self.shared.broken.load(Ordering::Relaxed) {
            return Err(failed("is broken until it is opened again", None));
        }
        let mut frame = Frame { first: self.edge.size(), ..Frame::default() };
        for (body, seq) in bodies.zip(frame.first..) {
            let mut entry = Vec::with_capacity(body.len() + 16);
            place(seq, body, &mut entry);
            self.edge.push(leaf_hash(&entry));
            frame.entries.push(entry);
        }
        frame.note = self.signer.sign(Head { size: self.edge.size(), root: self.edge.root() })?;
        self.start_segment(frame.first)?;
        self.segment.write(&frame.encode()).map_err(|error| match error {
            WriteError::Undone(error) => failed("cannot be written", Some(&error)),
            WriteError::Broken(error) => {
                self.shared.broken.store(true, Ordering::Relaxed);
                failed("is broken", Some(&error))
            }
        })?;
        self.unsynced_since.get_or_insert_with(Instant::now);
        if self.durability == Durability::Strict && !self.sync() {
            return Err(failed("is broken: its disk did not confirm a write", None));
        }
        // A publisher that has ended leaves the journal, which the next start publishes.
        let _ = self.publisher.send(Work::Frame(frame));
        Ok(())
    }

    fn start_segment(&mut self, first: u64) -> Result<(), TrustError> {
        if self.segment.bytes() < SEGMENT_BYTES {
            return Ok(());
        }
        if !self.sync() {
            return Err(failed("is broken: its disk did not confirm a write", None));
        }
        self.segment =
            Segment::create(&self.folder, first).map_err(|error| failed("cannot begin a segment", Some(&error)))?;
        Ok(())
    }

    /// Waits for the disk. After a failure it is not known what the disk holds, and asking again would wrongly succeed.
    fn sync(&mut self) -> bool {
        if self.unsynced_since.take().is_none() || self.durability == Durability::None {
            return true;
        }
        let result = self.segment.sync();
        if let Err(error) = &result {
            self.shared.broken.store(true, Ordering::Relaxed);
            self.shared.failing.store(true, Ordering::Release);
            self.shared.journal_failure.set(Some(format!("the disk did not confirm a write: {error}")));
        }
        result.is_ok()
    }

    /// Records that found no place leave a record of their number. Returns how many are told of once it is written.
    fn tell_refused(&self, batch: &mut Vec<(Vec<u8>, Option<Answer>)>) -> Option<u64> {
        let refused = self.shared.refused.load(Ordering::Relaxed);
        if refused <= self.refused_told || self.shared.broken.load(Ordering::Relaxed) {
            return None;
        }
        let reason = format!("{} records found no place", refused - self.refused_told);
        batch.push((own_record("log.refuse", reason).encode().ok()?, None));
        Some(refused)
    }
}

/// What the log tells of itself.
pub fn own_record(action: &str, reason: String) -> Record {
    Record {
        time: SystemTime::now(),
        kind: Kind::Log,
        principal: "edgeward:audit".to_owned(),
        action: action.to_owned(),
        resource: "audit".to_owned(),
        decision: Verdict::Error,
        policies: Vec::new(),
        policy_version: None,
        score: None,
        digests: Default::default(),
        context: Default::default(),
        reason,
    }
}

fn failed(what: &str, error: Option<&io::Error>) -> TrustError {
    let why = error.map(|error| format!(": {error}")).unwrap_or_default();
    TrustError::new(ErrorKind::Unavailable, format!("the audit log {what}{why}"))
}

/// Publishes what the writer sends, until it ends.
pub fn publish(mut publisher: Publisher, work: &Receiver<Work>, shared: &Shared, every: Duration) {
    let mut due: Option<Instant> = None;
    loop {
        let next = match due {
            None => work.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => work.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        match next {
            Ok(Work::Frame(frame)) => {
                publisher.take(&frame);
                // What fails here waits and is tried again by `publish`.
                let _ = publisher.write_waiting();
                due.get_or_insert_with(|| Instant::now() + every);
            }
            Ok(Work::Publish(answer, head)) => {
                let result = publish_now(&mut publisher, shared);
                due = result.is_err().then(|| Instant::now() + every);
                // Who does not wait any more has dropped the other end.
                let _ = answer.send(result.map(|()| head));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if due.is_some_and(|at| at <= Instant::now()) {
            due = publish_now(&mut publisher, shared).is_err().then(|| Instant::now() + every);
        }
    }
    // What cannot be published now is in the journal, and published by the next start.
    let _ = publish_now(&mut publisher, shared);
}

fn publish_now(publisher: &mut Publisher, shared: &Shared) -> Result<(), TrustError> {
    let result = publisher.publish().map_err(|error| failed("cannot write tiles", Some(&error)));
    shared.published.store(publisher.published(), Ordering::Relaxed);
    shared.tiles_failure.set(result.as_ref().err().map(TrustError::to_string));
    result
}

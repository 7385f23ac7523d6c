//! The access log: one line per request, as JSON or text, written by a thread of its own.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek as _, SeekFrom, Write as _},
    net::SocketAddr,
    os::fd::AsFd as _,
    path::PathBuf,
    sync::Arc,
    time::{Instant, SystemTime},
};

use super::{
    Slot, TelemetryError,
    sink::{Lost, Sink, Write},
};

/// Where lines go and how they look.
#[derive(Clone, Debug)]
pub struct AccessLogConfig {
    /// Where to.
    pub target: AccessTarget,
    /// Form of a line.
    pub format: AccessFormat,
}

/// Where access lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessTarget {
    /// Standard output.
    Stdout,
    /// Appended to a file, which SIGHUP opens anew.
    File(PathBuf),
}

/// How an access line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessFormat {
    /// One JSON object.
    #[default]
    Json,
    /// `TIME PEER METHOD PATH STATUS key=value…`.
    Text,
}

/// The status of a request whose caller went away before its answer; over gRPC CANCELLED.
const GONE: (u16, u16) = (499, 1);

/// Where lines are handed over.
pub(crate) struct AccessLog {
    sink: Arc<Sink<Record>>,
}

/// One request, while it runs. The line is written when this is dropped, also where the caller went away.
pub(crate) struct Line<'a> {
    log: &'a AccessLog,
    began: Instant,
    record: Option<Record>,
    slot: Slot,
}

struct Record {
    at: SystemTime,
    peer: Option<SocketAddr>,
    method: String,
    path: String,
    status: u16,
    grpc: bool,
    bytes_in: Option<u64>,
    bytes_out: Option<u64>,
    total_us: u64,
    slot: Slot,
}

impl AccessLog {
    pub(crate) fn open(config: AccessLogConfig) -> Result<Self, TelemetryError> {
        let AccessLogConfig { target, format } = config;
        let path = match &target {
            AccessTarget::File(path) => path.clone(),
            AccessTarget::Stdout => PathBuf::from("-"),
        };
        let start = || {
            let out = open(&target)?;
            Sink::start("access-log", Writer { target: target.clone(), format, out, lines: Vec::new(), torn: false })
        };
        let sink = Arc::new(start().map_err(|source| TelemetryError::AccessLog { path, source })?);
        if matches!(target, AccessTarget::File(_)) {
            reopen_on_hangup(&sink);
        }
        Ok(Self { sink })
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.sink.dropped()
    }

    pub(crate) fn end(&self) {
        self.sink.end();
    }

    /// Begins the line of a request: its method and path.
    pub(crate) fn begin(&self, peer: Option<SocketAddr>, (method, path): (&str, &str), grpc: bool) -> Line<'_> {
        let slot = Slot::default();
        let record = Record {
            at: SystemTime::now(),
            peer,
            method: method.to_owned(),
            path: path.to_owned(),
            status: if grpc { GONE.1 } else { GONE.0 },
            grpc,
            bytes_in: None,
            bytes_out: None,
            total_us: 0,
            slot: slot.clone(),
        };
        Line { log: self, began: Instant::now(), record: Some(record), slot }
    }
}

/// Programs that turn logs over move the file and send SIGHUP.
fn reopen_on_hangup(sink: &Arc<Sink<Record>>) {
    use tokio::signal::unix::{SignalKind, signal};
    let sink = Arc::downgrade(sink);
    match signal(SignalKind::hangup()) {
        Ok(mut hangup) => drop(tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                let Some(sink) = sink.upgrade() else { return };
                sink.reopen();
            }
        })),
        Err(error) => tracing::warn!(%error, "SIGHUP does not open the access log anew"),
    }
}

impl Line<'_> {
    /// What the handler fills in.
    pub(crate) fn slot(&self) -> Slot {
        self.slot.clone()
    }

    /// Another line tells of the request.
    pub(crate) fn leave(mut self) {
        self.record = None;
    }

    /// The request was answered. gRPC statuses are as gRPC numbers them.
    pub(crate) fn answered(mut self, status: u16, bytes_in: Option<u64>, bytes_out: Option<u64>) {
        if let Some(record) = &mut self.record {
            (record.status, record.bytes_in, record.bytes_out) = (status, bytes_in, bytes_out);
        }
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.total_us = self.began.elapsed().as_micros() as u64;
            self.log.sink.put(record);
        }
    }
}

/// Standard output is a file as well: one that knows nothing of lines, so that what is written of them is known here.
fn open(target: &AccessTarget) -> io::Result<File> {
    match target {
        AccessTarget::Stdout => io::stdout().as_fd().try_clone_to_owned().map(File::from),
        AccessTarget::File(path) => OpenOptions::new().create(true).append(true).open(path),
    }
}

/// Takes the last bytes away again; an error where that cannot be, as in a pipe.
fn cut_back(file: &mut File, bytes: usize) -> io::Result<()> {
    let end = file.stream_position()?;
    // Where others append too, what lies at the end is theirs.
    let start = end.checked_sub(bytes as u64).filter(|_| file.metadata().is_ok_and(|of| of.len() == end));
    let start = start.ok_or(io::ErrorKind::Unsupported)?;
    file.set_len(start)?;
    file.seek(SeekFrom::Start(start)).map(drop)
}

/// Bytes of lines that are gathered before they are written.
const GATHERED_BYTES_MAX: usize = 64 * 1024;

struct Writer {
    target: AccessTarget,
    format: AccessFormat,
    out: File,
    /// Lines on their way.
    lines: Vec<u8>,
    /// A part of a line is the last that was written.
    torn: bool,
}

impl Write<Record> for Writer {
    fn write(&mut self, record: Record) -> Result<(), Lost> {
        let before = self.lines.len();
        let made = match self.format {
            AccessFormat::Json => record.json(&mut self.lines),
            AccessFormat::Text => record.text(&mut self.lines),
        };
        if let Err(error) = made {
            self.lines.truncate(before);
            return Err(Lost { records: 1, error });
        }
        if self.lines.len() < GATHERED_BYTES_MAX { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<(), Lost> {
        let lines = std::mem::take(&mut self.lines);
        let (written, result) = self.put(&lines);
        let (_, missing) = lines.split_at(written);
        let lost = memchr::memchr_iter(b'\n', missing).count() as u64;
        result.map_err(|error| Lost { records: lost, error })?;
        self.lines = lines;
        self.lines.clear();
        Ok(())
    }

    fn reopen(&mut self) -> io::Result<()> {
        self.out = open(&self.target)?;
        self.torn = false;
        Ok(())
    }
}

impl Writer {
    /// Writes lines, as many as go, and leaves no part of one. Also returns the bytes of those that were written.
    fn put(&mut self, lines: &[u8]) -> (usize, io::Result<()>) {
        if self.torn && !lines.is_empty() {
            if let Err(error) = self.out.write(b"\n") {
                return (0, Err(error));
            }
            self.torn = false;
        }
        let (mut left, mut result) = (lines, Ok(()));
        while !left.is_empty() {
            match self.out.write(left) {
                Ok(0) => result = Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => {
                    left = left.get(length..).unwrap_or_default();
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => result = Err(error),
            }
            break;
        }
        let written = lines.len() - left.len();
        let whole = memchr::memrchr(b'\n', lines.get(..written).unwrap_or_default()).map_or(0, |at| at + 1);
        self.torn = written > whole && cut_back(&mut self.out, written - whole).is_err();
        (whole, result)
    }
}

/// A line's fields, in their order.
#[derive(serde::Serialize)]
struct Fields<'a> {
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<SocketAddr>,
    method: &'a str,
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_out: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compute_us: Option<u64>,
    total_us: u64,
}

impl Record {
    fn fields(&self) -> Fields<'_> {
        let note = self.slot.note();
        let times = note.filter(|n| n.version.is_some()).map(|n| n.times);
        Fields {
            time: humantime::format_rfc3339_micros(self.at).to_string(),
            peer: self.peer,
            method: &self.method,
            path: &self.path,
            status: (!self.grpc).then_some(self.status),
            grpc_status: self.grpc.then_some(self.status),
            model: note.map(|n| &*n.model),
            version: note.and_then(|n| n.version),
            id: note.map(|n| n.id.as_str()).filter(|id| !id.is_empty()),
            bytes_in: self.bytes_in.or(self.slot.bytes().map(|b| b.0)),
            bytes_out: self.bytes_out.or(self.slot.bytes().map(|b| b.1)),
            queue_us: times.map(|t| t.queue.as_micros() as u64),
            compute_us: times.map(|t| t.infer.as_micros() as u64),
            total_us: self.total_us,
        }
    }

    fn json(&self, out: &mut impl io::Write) -> io::Result<()> {
        serde_json::to_writer(&mut *out, &self.fields())?;
        out.write_all(b"\n")
    }

    fn text(&self, out: &mut impl io::Write) -> io::Result<()> {
        let f = self.fields();
        let peer = f.peer.map_or_else(|| "-".to_owned(), |peer| peer.to_string());
        write!(out, "{} {peer} {} {} {}", f.time, f.method, f.path, self.status)?;
        if let Some(model) = f.model {
            write!(out, " model={model:?}")?;
        }
        if let Some(id) = f.id {
            // Quoted and escaped: a caller's text must not begin a line of its own.
            write!(out, " id={id:?}")?;
        }
        let numbers = [
            ("version", f.version),
            ("bytes_in", f.bytes_in),
            ("bytes_out", f.bytes_out),
            ("queue_us", f.queue_us),
            ("compute_us", f.compute_us),
        ];
        for (key, value) in numbers.into_iter().filter_map(|(key, value)| Some((key, value?))) {
            write!(out, " {key}={value}")?;
        }
        writeln!(out, " total_us={}", f.total_us)
    }
}

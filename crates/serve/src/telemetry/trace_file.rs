//! Traces as Triton writes them: a JSON array of records, whole at any time.

use std::{
    fs::File,
    io::{self, Seek as _, SeekFrom, Write as _},
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{SystemTime, UNIX_EPOCH},
};

use edgeward_graph::Tensor;
use serde_json::{Value, json};

use super::{
    TelemetryError, Trace,
    sink::{Lost, Sink, Write},
};

/// Where traces are handed over.
pub(super) struct TraceFile {
    sink: Sink<Record>,
    next_id: AtomicU64,
}

struct Record {
    entries: Vec<Value>,
    frequency: u64,
}

impl TraceFile {
    pub(super) fn open(path: PathBuf) -> Result<Self, TelemetryError> {
        let start = || {
            // Made now, so that a path that cannot be written is known before the first request.
            let file = File::create(&path)?;
            let path = path.clone();
            Sink::start(
                "trace-file",
                Writer { path, file, index: 0, traces: 0, buffer: Vec::new(), buffered: 0, end: 0 },
            )
        };
        let sink = start().map_err(|source| TelemetryError::TraceFile { path: path.clone(), source })?;
        Ok(Self { sink, next_id: AtomicU64::new(1) })
    }

    pub(super) fn record(&self, trace: &Trace<'_>, frequency: u64) {
        let id = self.next_id.fetch_add(1, Relaxed);
        let version = trace.result.as_ref().map_or(-1, |r| i64::try_from(r.model_version).unwrap_or(-1));
        let mut head = json!({ "id": id, "model_name": trace.model, "model_version": version });
        if !trace.id.is_empty() {
            head["request_id"] = trace.id.into();
        }
        let mut entries = vec![head];
        if trace.levels.timestamps {
            let moments = trace.moments().into_iter();
            let moments: Vec<_> = moments.map(|(name, at)| json!({ "name": name, "ns": nanoseconds(at) })).collect();
            entries.push(json!({ "id": id, "timestamps": moments }));
        }
        if trace.levels.tensors {
            let inputs = trace.inputs.iter().map(|(name, tensor)| ("TENSOR_QUEUE_INPUT", &**name, tensor));
            let outputs = trace.result.iter().flat_map(|r| &r.outputs);
            let outputs = outputs.map(|(name, tensor)| ("TENSOR_BACKEND_OUTPUT", &**name, tensor));
            for (activity, name, tensor) in inputs.chain(outputs) {
                entries.push(json!({ "id": id, "activity": activity, "tensor": shown(name, tensor) }));
            }
        }
        self.sink.put(Record { entries, frequency });
    }

    pub(super) fn dropped(&self) -> u64 {
        self.sink.dropped()
    }

    pub(super) fn end(&self) {
        self.sink.end();
    }
}

fn nanoseconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

fn shown(name: &str, tensor: &Tensor) -> Value {
    let shape = tensor.shape().iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let data = crate::json::list(tensor).unwrap_or_default();
    let data = data.trim_start_matches('[').trim_end_matches(']');
    json!({ "name": name, "data": data, "shape": shape, "dtype": crate::wire_type(tensor.dtype()) })
}

struct Writer {
    path: PathBuf,
    file: File,
    /// Of the next numbered file.
    index: u64,
    /// In the present file.
    traces: u64,
    buffer: Vec<u8>,
    /// Traces in the buffer.
    buffered: u64,
    /// Where the array's last record ends in the file.
    end: u64,
}

/// What closes the array; overwritten by the next record.
const CLOSING: &[u8] = b"\n]\n";
/// Bytes of records that are gathered before they are written.
const GATHERED_BYTES_MAX: usize = 1 << 20;

impl Write<Record> for Writer {
    fn write(&mut self, record: Record) -> Result<(), Lost> {
        let before = self.buffer.len();
        for entry in &record.entries {
            let first = self.end == 0 && self.buffer.is_empty();
            self.buffer.extend_from_slice(if first { b"[\n" } else { b",\n" });
            if let Err(error) = serde_json::to_writer(&mut self.buffer, entry) {
                self.buffer.truncate(before);
                return Err(Lost { records: 1, error: error.into() });
            }
        }
        self.buffered += 1;
        if record.frequency > 0 && self.traces + self.buffered >= record.frequency {
            self.flush()?;
            // The traces are in the file; that it is not cut loses none.
            return self.cut().map_err(|error| Lost { records: 0, error });
        }
        if self.buffer.len() < GATHERED_BYTES_MAX { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<(), Lost> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let (mut buffer, records) = (std::mem::take(&mut self.buffer), std::mem::take(&mut self.buffered));
        let end = self.end + buffer.len() as u64;
        buffer.extend_from_slice(CLOSING);
        let written = self.file.seek(SeekFrom::Start(self.end)).and_then(|_| self.file.write_all(&buffer));
        if let Err(error) = written {
            self.close_again();
            return Err(Lost { records, error });
        }
        buffer.clear();
        (self.buffer, self.end, self.traces) = (buffer, end, self.traces + records);
        Ok(())
    }
}

impl Writer {
    /// After a write that failed: the file ends where it did before. It has had these bytes, so that there is room for them.
    fn close_again(&mut self) {
        let closing = if self.end == 0 { b"" } else { CLOSING };
        let closed = self.file.seek(SeekFrom::Start(self.end)).and_then(|_| self.file.write_all(closing));
        if let Err(error) = closed.and_then(|()| self.file.set_len(self.end + closing.len() as u64)) {
            tracing::error!(path = %self.path.display(), %error, "the trace file is not a whole array until it is written again");
        }
    }

    /// As many traces as one file takes: they become `FILE.INDEX`.
    fn cut(&mut self) -> io::Result<()> {
        let mut numbered = self.path.clone().into_os_string();
        numbered.push(format!(".{}", self.index));
        std::fs::rename(&self.path, &numbered)?;
        match File::create(&self.path) {
            Ok(file) => self.file = file,
            Err(error) => {
                // It stays the present one, and is cut later.
                let _ = std::fs::rename(&numbered, &self.path);
                return Err(error);
            }
        }
        (self.index, self.traces, self.end) = (self.index + 1, 0, 0);
        Ok(())
    }
}

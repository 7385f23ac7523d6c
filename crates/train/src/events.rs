//! Event files that TensorBoard opens: records of protobuf messages, each behind a checksum.
//!
//! The form is TensorFlow's (`tsl/lib/io/record_writer.h`, `tensorflow/core/util/event.proto`): length, masked CRC-32C of
//! the length, message, masked CRC-32C of the message. Time is given, not taken.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prost::Message;

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    // Written even where it is 0, which proto3 leaves out of a plain field.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// Writes scalars of one run to a file of its own.
pub struct EventWriter {
    file: BufWriter<File>,
    path: PathBuf,
}

impl EventWriter {
    /// Makes the folder where it is missing, and in it a new file named after `now` and this process.
    pub fn create(folder: &Path, now: SystemTime) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let (seconds, process) = (since_epoch(now).as_secs(), std::process::id());
        let mut number = 0;
        let (file, path) = loop {
            let path = folder.join(format!("events.out.tfevents.{seconds:010}.edgeward.{process}.{number}"));
            match File::create_new(&path) {
                Ok(file) => break (file, path),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < 1000 => number += 1,
                Err(error) => return Err(error),
            }
        };
        let mut this = Self { file: BufWriter::new(file), path };
        this.event(now, 0, What::FileVersion("brain.Event:2".to_owned()))?;
        this.flush()?;
        Ok(this)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes scalars by tag, all of one step.
    pub fn scalars(&mut self, now: SystemTime, step: u64, scalars: &[(&str, f64)]) -> io::Result<()> {
        let value = |&(tag, value): &(&str, f64)| Value { tag: tag.to_owned(), simple_value: Some(value as f32) };
        let summary = Summary { value: scalars.iter().map(value).collect() };
        self.event(now, i64::try_from(step).unwrap_or(i64::MAX), What::Summary(summary))
    }

    /// Hands what was written to the system, so that a TensorBoard that looks on sees it.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    fn event(&mut self, now: SystemTime, step: i64, what: What) -> io::Result<()> {
        let event = Event { wall_time: since_epoch(now).as_secs_f64(), step, what: Some(what) };
        let message = event.encode_to_vec();
        let length = (message.len() as u64).to_le_bytes();
        self.file.write_all(&length)?;
        self.file.write_all(&masked(&length))?;
        self.file.write_all(&message)?;
        self.file.write_all(&masked(&message))
    }
}

fn since_epoch(now: SystemTime) -> Duration {
    now.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A checksum over bytes that hold checksums would be weak, so it is turned and shifted (`tsl/lib/hash/crc32c.h`).
fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

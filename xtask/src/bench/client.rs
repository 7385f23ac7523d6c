//! A small HTTP/1.1 client that keeps its connection, and closed loops over it.
//!
//! Its own cost must stay small beside what it measures: one buffer, no parsing beyond the length of the answer.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustls::pki_types::ServerName;

const TIMEOUT: Duration = Duration::from_secs(60);
const HEAD_BYTES_MAX: usize = 64 * 1024;
const ERRORS_KEPT: usize = 5;

/// Where requests go.
#[derive(Clone)]
pub struct Target {
    /// Its listener.
    pub address: SocketAddr,
    /// How it is spoken to where not in plain words.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self { address, tls: None }
    }
}

/// One connection.
pub struct Connection {
    stream: Stream,
    buffer: Vec<u8>,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<rustls::StreamOwned<rustls::ClientConnection, TcpStream>>),
}

/// Status and body of an answer.
pub struct Answer<'a> {
    /// Status code.
    pub status: u16,
    /// The body.
    pub body: &'a [u8],
}

impl Connection {
    /// Connects.
    pub fn open(target: impl Into<Target>) -> anyhow::Result<Self> {
        let Target { address, tls } = target.into();
        let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let stream = match tls {
            None => Stream::Plain(stream),
            Some(config) => {
                let client = rustls::ClientConnection::new(config, ServerName::from(address.ip()))?;
                Stream::Tls(Box::new(rustls::StreamOwned::new(client, stream)))
            }
        };
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// Sends a whole request.
    pub fn send(&mut self, request: &[u8]) -> anyhow::Result<()> {
        let sent = match &mut self.stream {
            Stream::Plain(stream) => stream.write_all(request),
            Stream::Tls(stream) => stream.write_all(request).and_then(|()| stream.flush()),
        };
        sent.context("the request could not be sent")
    }

    /// Reads one answer.
    pub fn receive(&mut self) -> anyhow::Result<Answer<'_>> {
        self.buffer.clear();
        let (head, status, length) = loop {
            self.read_some()?;
            let head = &self.buffer[..self.buffer.len().min(HEAD_BYTES_MAX)];
            if let Some(end) = find(head, b"\r\n\r\n") {
                let (status, length) = parse_head(&self.buffer[..end])?;
                break (end + 4, status, length);
            }
            if self.buffer.len() >= HEAD_BYTES_MAX {
                bail!("the answer's head has no end");
            }
        };
        while self.buffer.len() < head + length {
            self.read_some()?;
        }
        Ok(Answer { status, body: &self.buffer[head..head + length] })
    }

    /// Sends a request and reads its answer.
    pub fn ask(&mut self, request: &[u8]) -> anyhow::Result<Answer<'_>> {
        self.send(request)?;
        self.receive()
    }

    fn read_some(&mut self) -> anyhow::Result<()> {
        let at = self.buffer.len();
        self.buffer.resize(at + 64 * 1024, 0);
        let read = loop {
            let read = match &mut self.stream {
                Stream::Plain(stream) => stream.read(&mut self.buffer[at..]),
                Stream::Tls(stream) => stream.read(&mut self.buffer[at..]),
            };
            match read {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.buffer.truncate(at + *read.as_ref().unwrap_or(&0));
        match read.context("the answer could not be read")? {
            0 if at == 0 => bail!("the connection was closed before an answer"),
            0 => bail!("the connection was closed within an answer"),
            _ => Ok(()),
        }
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

fn parse_head(head: &[u8]) -> anyhow::Result<(u16, usize)> {
    let head = std::str::from_utf8(head).context("the answer's head is no text")?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok());
    match (status, length) {
        (Some(status), Some(length)) => Ok((status, length)),
        _ => bail!("the answer's head has no status or no length: `{head}`"),
    }
}

/// A POST request, head and body.
pub fn post(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// An inference request over one FP32 tensor as JSON.
pub fn json_request(model: &str, input: &str, shape: &[usize], values: &[f32]) -> Vec<u8> {
    post(&infer_path(model), "content-type: application/json\r\n", json_body(input, shape, values).as_bytes())
}

/// The JSON body alone.
pub fn json_body(input: &str, shape: &[usize], values: &[f32]) -> String {
    let values = values.iter().map(|v| format!("{v:.6}")).collect::<Vec<_>>().join(",");
    format!(r#"{{"inputs":[{{"name":"{input}","shape":{shape:?},"datatype":"FP32","data":[{values}]}}]}}"#)
}

/// An inference request over one FP32 tensor with binary data in and out.
pub fn binary_request(model: &str, input: &str, shape: &[usize], values: &[f32]) -> Vec<u8> {
    let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let length = raw.len();
    let header = format!(
        r#"{{"inputs":[{{"name":"{input}","shape":{shape:?},"datatype":"FP32","parameters":{{"binary_data_size":{length}}}}}],"parameters":{{"binary_data_output":true}}}}"#
    );
    let headers = format!("inference-header-content-length: {}\r\n", header.len());
    post(&infer_path(model), &headers, &[header.as_bytes(), &raw].concat())
}

fn infer_path(model: &str) -> String {
    format!("/v2/models/{model}/infer")
}

/// When a closed loop ends.
#[derive(Clone, Copy)]
pub enum Until {
    /// After this time.
    Elapsed(Duration),
    /// After this many requests over all connections.
    Requests(u64),
}

/// What a closed loop came to.
#[derive(Default)]
pub struct Outcome {
    /// Median time of a request.
    pub p50_ms: f64,
    /// The time that 99 in 100 requests keep.
    pub p99_ms: f64,
    /// Requests answered with 200 per second.
    pub per_second: f64,
    /// Requests answered with 200.
    pub answered: u64,
    /// Requests that failed.
    pub failed: u64,
    /// The first few reasons.
    pub errors: Vec<String>,
}

impl Outcome {
    /// An error where a request failed.
    pub fn whole(self) -> anyhow::Result<Self> {
        match self.failed {
            0 => Ok(self),
            n => bail!("{n} requests failed: {}", self.errors.join("; ")),
        }
    }
}

/// Each connection sends its next request when the last one is answered; one that fails connects anew.
pub fn closed_loop(target: impl Into<Target>, request: &[u8], connections: usize, until: Until) -> Outcome {
    let target = target.into();
    let began = Instant::now();
    let started = AtomicU64::new(0);
    let all = Mutex::new((Vec::<f64>::new(), Vec::<String>::new()));
    let more = || match until {
        Until::Elapsed(limit) => began.elapsed() < limit,
        Until::Requests(count) => started.fetch_add(1, Ordering::Relaxed) < count,
    };
    std::thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(|| {
                let (times, errors) = one_connection(&target, request, &more);
                let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                all.0.extend(times);
                all.1.extend(errors);
            });
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    let (mut times, mut errors) = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (answered, failed) = (times.len() as u64, errors.len() as u64);
    errors.truncate(ERRORS_KEPT);
    let p50_ms = super::median(&mut times);
    let p99_ms = times.get((times.len() * 99 / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default();
    Outcome { p50_ms, p99_ms, per_second: answered as f64 / seconds, answered, failed, errors }
}

fn one_connection(target: &Target, request: &[u8], more: &dyn Fn() -> bool) -> (Vec<f64>, Vec<String>) {
    let (mut times, mut errors) = (Vec::new(), Vec::new());
    let mut connection = None;
    while more() {
        let began = Instant::now();
        match attempt(target, request, &mut connection) {
            Ok(()) => times.push(began.elapsed().as_secs_f64() * 1e3),
            Err(error) => {
                errors.push(format!("{error:#}"));
                connection = None;
            }
        }
    }
    (times, errors)
}

fn attempt(target: &Target, request: &[u8], connection: &mut Option<Connection>) -> anyhow::Result<()> {
    if connection.is_none() {
        *connection = Some(Connection::open(target.clone())?);
    }
    let connection = connection.as_mut().context("no connection")?;
    let answer = connection.ask(request)?;
    if answer.status != 200 {
        bail!("status {}: {}", answer.status, String::from_utf8_lossy(answer.body));
    }
    Ok(())
}

//! Load by programs that others wrote: `wrk` for HTTP, `h2load` for gRPC.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use anyhow::{Context as _, bail};
use serde::Deserialize;

use crate::{bench::median, steps};

/// What a load came to.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Figures {
    /// Median latency.
    pub p50_us: f64,
    /// Requests per second.
    pub per_second: f64,
    /// Requests that failed.
    #[serde(default)]
    failed: u64,
}

/// JSON over HTTP/1.1: `body` is the file to post.
pub fn wrk(url: &str, body: &Path, connections: usize, seconds: u64) -> anyhow::Result<Figures> {
    let script = crate::root().join("bench/infer.lua");
    let mut command = Command::new("wrk");
    command.env("BODY", body).args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s"), "--latency", "-s"]);
    let text = steps::output(command.arg(script).arg(url))?;
    let line = text.lines().find_map(|line| line.strip_prefix("RESULT ")).context("`wrk` printed no result")?;
    let figures: Figures = serde_json::from_str(line)?;
    match figures.failed {
        0 => Ok(figures),
        n => bail!("{n} requests to {url} failed"),
    }
}

/// Unary calls over HTTP/2: `body` is the file with the length-prefixed message.
pub fn h2load(address: SocketAddr, body: &Path, connections: usize, seconds: u64) -> anyhow::Result<Figures> {
    let log = body.with_extension("log");
    // h2load appends.
    drop(fs::remove_file(&log));
    let url = format!("http://{address}/inference.GRPCInferenceService/ModelInfer");
    let mut command = Command::new("h2load");
    command.args(["-t1", "-m1", &format!("-c{connections}"), "-D", &seconds.to_string()]);
    command.arg(format!("--log-file={}", log.display())).arg("-d").arg(body);
    command.args(["-H", "content-type: application/grpc", "-H", "te: trailers", &url]);
    let text = steps::output(&mut command)?;
    let counts = text.lines().find(|line| line.starts_with("requests:")).unwrap_or_default();
    if !counts.contains(" 0 failed, 0 errored, 0 timeout") {
        bail!("calls to {address} failed: {counts}");
    }
    // Columns: start, status, microseconds.
    let log = fs::read_to_string(&log)?;
    let mut times: Vec<f64> = log.lines().filter_map(|line| line.split('\t').nth(2)?.parse().ok()).collect();
    if times.is_empty() {
        bail!("no call to {address} was answered");
    }
    let per_second = times.len() as f64 / seconds as f64;
    Ok(Figures { p50_us: median(&mut times), per_second, failed: 0 })
}

/// The message of a `ModelInfer` call with one FP32 tensor of raw contents, with gRPC's prefix.
pub fn grpc_body(model: &str, input: &str, shape: &[usize], values: &[f32]) -> Vec<u8> {
    let mut dims = Vec::new();
    shape.iter().for_each(|&d| varint(&mut dims, d));
    let mut tensor = Vec::new();
    field(&mut tensor, 1, input.as_bytes());
    field(&mut tensor, 2, b"FP32");
    field(&mut tensor, 3, &dims);
    let mut message = Vec::new();
    field(&mut message, 1, model.as_bytes());
    field(&mut message, 5, &tensor);
    field(&mut message, 7, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
    let mut body = vec![0];
    body.extend((message.len() as u32).to_be_bytes());
    body.extend(message);
    body
}

/// A length-delimited field of a protobuf message.
fn field(to: &mut Vec<u8>, number: u8, value: &[u8]) {
    to.push(number << 3 | 2);
    varint(to, value.len());
    to.extend_from_slice(value);
}

fn varint(to: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

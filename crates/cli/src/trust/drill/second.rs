//! A second server of this program, on copies: which models it has ready.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::Context as _;
use serde_json::Value;

use crate::{failure::Failure, release::opening::Opening};

/// A server that has not loaded its models after so long does not.
const START_TIME_MAX: Duration = Duration::from_secs(60);

/// Ended when dropped.
struct Second(Child);

impl Drop for Second {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The models that a server of this very program has ready when it is given a folder and believes whom the first believes; none where it
/// refuses to start. What it has seen of releases it keeps to itself.
pub fn serves(folder: &Path, opening: &Opening) -> Result<Vec<String>, Failure> {
    let files = tempfile::tempdir()?;
    let free = "127.0.0.1:0";
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("serve").arg(folder).arg("--insecure").args(opening.arguments());
    command
        .args(["--http", free, "--grpc", free, "--metrics", free, "--json", "--floor"])
        .arg(files.path().join("floor"));
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut second = Second(child);
    let output = second.0.stdout.take().context("a server without output")?;
    let (tell, told) = mpsc::channel();
    // It is printed once the models have loaded, well or not. The thread ends with the server.
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(output).read_line(&mut line);
        let _ = tell.send(read.map(|_| line));
    });
    let Ok(Ok(line)) = told.recv_timeout(START_TIME_MAX) else { return Ok(Vec::new()) };
    Ok(index(&line).unwrap_or_default())
}

/// Asks a server without TLS for its models.
fn index(addresses: &str) -> Option<Vec<String>> {
    let addresses: Value = serde_json::from_str(addresses).ok()?;
    let address = addresses.get("http")?.as_str()?;
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(START_TIME_MAX)).ok()?;
    let body = "{\"ready\":true}";
    let head = format!(
        "POST /v2/repository/index HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let models: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
    Some(models.as_array()?.iter().filter_map(|model| Some(model.get("name")?.as_str()?.to_owned())).collect())
}

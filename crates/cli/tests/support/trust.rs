//! A folder of `trust init` and callers with its certificates, for tests of the gate.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use super::Server;

/// A folder of trust, with what was issued from it.
pub struct Trust {
    pub files: tempfile::TempDir,
}

/// Status, head and body of an answer.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// The binary, with what it printed.
pub fn edgeward(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_edgeward")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

impl Trust {
    /// A new authority whose policies can be about these models.
    pub fn init(models: &[&str]) -> Self {
        let files = tempfile::tempdir().unwrap();
        let folder = files.path().join("trust");
        let mut arguments = vec!["trust", "init", folder.to_str().unwrap()];
        models.iter().for_each(|model| arguments.extend(["--model", model]));
        edgeward(&arguments);
        Self { files }
    }

    pub fn folder(&self) -> PathBuf {
        self.files.path().join("trust")
    }

    pub fn log(&self) -> PathBuf {
        self.files.path().join("log")
    }

    /// Issues a certificate to `name`.
    pub fn issue(&self, name: &str) {
        let out = self.folder().join(name);
        edgeward(&["trust", "issue", self.folder().to_str().unwrap(), name, "--out", out.to_str().unwrap()]);
    }

    /// Replaces a file of policies whole.
    pub fn policy(&self, file: &str, text: &str) {
        let folder = self.folder().join("policies");
        fs::write(folder.join(".new"), text).unwrap();
        fs::rename(folder.join(".new"), folder.join(file)).unwrap();
    }

    pub fn serve(&self, models: &[&Path]) -> Server {
        Server::start_trusted(models, &self.folder(), &["--engine", "rten"], &self.log())
    }

    /// `curl` as `who`, nobody where empty.
    pub fn curl(&self, who: &str, url: &str, arguments: &[&str]) -> Answer {
        let folder = self.folder();
        let mut command = Command::new("curl");
        command.args(["-sS", "-i", "--max-time", "20", "--cacert"]).arg(folder.join("roots.pem"));
        if !who.is_empty() {
            command.arg("--cert").arg(folder.join(format!("{who}.pem")));
            command.arg("--key").arg(folder.join(format!("{who}.key")));
        }
        let output = command.arg(url).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!text.is_empty(), "{url}: {}", String::from_utf8_lossy(&output.stderr));
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
        Answer { status, head: head.to_owned(), body: body.to_owned() }
    }

    /// What the audit log holds, after the server has ended.
    pub fn audit(&self) -> Vec<serde_json::Value> {
        let (folder, key) = (self.folder().join("audit"), self.folder().join("audit.vkey"));
        let (folder, key) = (folder.to_str().unwrap(), key.to_str().unwrap());
        edgeward(&["trust", "audit", "verify", folder, "--key", key]);
        let output = edgeward(&["trust", "audit", "query", folder, "--json"]);
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

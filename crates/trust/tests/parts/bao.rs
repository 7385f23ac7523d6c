//! An OpenBao server in memory, on loopback, which ends with the value that holds it.
//!
//! `EDGEWARD_TEST_OPENBAO` names the program `bao`.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use edgeward_trust::keys::{LoginSettings, SecretSource, Vault, VaultSettings};

use super::part::part;

/// A server and a folder for what tests write.
pub struct Bao {
    program: PathBuf,
    pub address: String,
    folder: tempfile::TempDir,
    process: Child,
}

impl Drop for Bao {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits for a state, which others bring about.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let ends = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < ends, "still not: {what}");
        // Only to leave the processor to those who bring it about.
        thread::sleep(Duration::from_millis(5));
    }
}

impl Bao {
    /// Starts one; none where the test is to be skipped.
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// Starts one that speaks TLS.
    pub fn start_tls() -> Option<Self> {
        Self::start_with(&["-dev-tls"])
    }

    fn start_with(more: &[&str]) -> Option<Self> {
        let program = part("EDGEWARD_TEST_OPENBAO", "the program bao of OpenBao")?;
        // It does not tell which port it took: another process may be faster with the one that was free.
        (0..5).find_map(|_| Self::try_start(&program, more)).or_else(|| panic!("OpenBao does not start"))
    }

    fn try_start(program: &Path, more: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        // It takes the next port as well.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let tls = more.contains(&"-dev-tls");
        let mut command = Command::new(program);
        command.args(["server", "-dev", "-dev-root-token-id=root", "-dev-no-store-token"]).args(more);
        if tls {
            command.arg(format!("-dev-tls-cert-dir={}", folder.path().display()));
        }
        command.arg(format!("-dev-listen-address=127.0.0.1:{port}")).env("HOME", folder.path());
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let address = format!("{}://127.0.0.1:{port}", if tls { "https" } else { "http" });
        let mut bao = Self { program: program.to_owned(), address, folder, process };
        let mut ended = false;
        until("OpenBao listens", || {
            ended = bao.process.try_wait().unwrap().is_some();
            ended || (TcpStream::connect(("127.0.0.1", port)).is_ok() && bao.try_run(&["status"]).is_ok())
        });
        (!ended).then_some(bao)
    }

    fn try_run(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(&self.program);
        command.args(arguments).envs([("BAO_ADDR", self.address.as_str()), ("BAO_TOKEN", "root")]);
        command.env("HOME", self.folder.path()).env("BAO_SKIP_VERIFY", "true");
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if output.status.success() { Ok(text) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    /// The server's own command line, as its administrator.
    pub fn run(&self, arguments: &[&str]) -> String {
        self.try_run(arguments).unwrap_or_else(|error| panic!("bao {arguments:?}: {error}"))
    }

    /// A file that its owner alone may read.
    pub fn secret(&self, name: &str, text: &str) -> PathBuf {
        let path = self.file(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A policy in the server's language.
    pub fn policy(&self, name: &str, text: &str) {
        let path = self.secret("policy.hcl", text);
        self.run(&["policy", "write", name, path.to_str().unwrap()]);
    }

    /// A role of AppRole with these options, and how to log in as it.
    pub fn approle(&self, role: &str, options: &[&str]) -> LoginSettings {
        if !self.run(&["auth", "list"]).contains("approle/") {
            self.run(&["auth", "enable", "approle"]);
        }
        let path = format!("auth/approle/role/{role}");
        self.run(&[&["write", path.as_str()], options].concat());
        let role_id = self.run(&["read", "-field=role_id", &format!("{path}/role-id")]);
        let secret = self.run(&["write", "-f", "-field=secret_id", &format!("{path}/secret-id")]);
        let file = self.secret(&format!("{role}.secret"), &format!("{secret}\n"));
        LoginSettings::Approle { mount: "approle".into(), role_id, secret_id: Some(SecretSource::File(file)) }
    }

    pub fn settings(&self, login: LoginSettings) -> VaultSettings {
        VaultSettings { address: self.address.clone(), namespace: None, roots: None, login }
    }

    pub fn connect(&self, login: LoginSettings) -> Vault {
        Vault::connect(&self.settings(login)).unwrap()
    }
}

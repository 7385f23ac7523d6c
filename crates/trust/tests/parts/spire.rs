//! SPIRE: a server, and an agent whose Workload API gives this user identities.
//!
//! `EDGEWARD_TEST_SPIRE` names the folder with `spire-server` and `spire-agent`.

use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::part::part;

const DOMAIN: &str = "test.example";

/// A server and an agent in a folder, which end with the value that holds them.
pub struct Spire {
    pub programs: PathBuf,
    folder: tempfile::TempDir,
    pub processes: Vec<Child>,
}

impl Drop for Spire {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Waits for a state, which others bring about.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let ends = Instant::now() + Duration::from_secs(90);
    while !holds() {
        assert!(Instant::now() < ends, "still not: {what}");
        // Only to leave the processor to those who bring it about.
        thread::sleep(Duration::from_millis(20));
    }
}

impl Spire {
    /// A server, and an agent that it trusts; none where the test is to be skipped.
    pub fn start() -> Option<Self> {
        let programs = part("EDGEWARD_TEST_SPIRE", "a folder with spire-server and spire-agent")?;
        let mut spire = Self { programs, folder: tempfile::tempdir().unwrap(), processes: Vec::new() };
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = spire.folder.path().display().to_string();
        let server = format!(
            "server {{\n bind_address = \"127.0.0.1\"\n bind_port = \"{port}\"\n socket_path = \"{folder}/server.sock\"\n\
             trust_domain = \"{DOMAIN}\"\n data_dir = \"{folder}\"\n ca_ttl = \"24h\"\n\
             experimental {{ cache_reload_interval = \"1s\" }}\n}}\n\
             plugins {{\n DataStore \"sql\" {{ plugin_data {{ database_type = \"sqlite3\" connection_string = \"{folder}/data.sqlite3\" }} }}\n\
             NodeAttestor \"join_token\" {{ plugin_data {{}} }}\n KeyManager \"memory\" {{ plugin_data {{}} }}\n}}\n"
        );
        fs::write(spire.file("server.conf"), server).unwrap();
        spire.spawn("spire-server", &["run", "-config", &format!("{folder}/server.conf")]);
        until("the server is healthy", || spire.try_server(&["healthcheck"]).is_ok());
        fs::write(spire.file("bundle.pem"), spire.server(&["bundle", "show"])).unwrap();
        let agent = format!(
            "agent {{\n data_dir = \"{folder}\"\n server_address = \"127.0.0.1\"\n server_port = \"{port}\"\n\
             socket_path = \"{folder}/agent.sock\"\n trust_bundle_path = \"{folder}/bundle.pem\"\n trust_domain = \"{DOMAIN}\"\n\
             experimental {{ sync_interval = \"1s\" }}\n}}\n\
             plugins {{\n NodeAttestor \"join_token\" {{ plugin_data {{}} }}\n KeyManager \"memory\" {{ plugin_data {{}} }}\n\
             WorkloadAttestor \"unix\" {{ plugin_data {{}} }}\n}}\n"
        );
        fs::write(spire.file("agent.conf"), agent).unwrap();
        spire.start_agent();
        Some(spire)
    }

    pub fn start_agent(&mut self) {
        let token = self.server(&["token", "generate", "-spiffeID", "spiffe://test.example/node"]);
        let token = token.lines().find_map(|line| line.strip_prefix("Token: ")).unwrap().to_owned();
        let config = self.file("agent.conf").display().to_string();
        self.spawn("spire-agent", &["run", "-config", &config, "-joinToken", &token]);
        let socket = self.file("agent.sock").display().to_string();
        let agent = self.programs.join("spire-agent");
        until("the agent is healthy", || {
            let mut check = Command::new(&agent);
            check.args(["healthcheck", "-socketPath", &socket]).output().unwrap().status.success()
        });
    }

    fn spawn(&mut self, program: &str, arguments: &[&str]) {
        let log = fs::File::create(self.file(&format!("{program}.log"))).unwrap();
        let mut command = Command::new(self.programs.join(program));
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.processes.push(command.spawn().unwrap());
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn try_server(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(self.programs.join("spire-server"));
        let output = command.args(arguments).arg("-socketPath").arg(self.file("server.sock")).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stderr) + &text(&output.stdout))
        }
    }

    pub fn server(&self, arguments: &[&str]) -> String {
        self.try_server(arguments).unwrap_or_else(|error| panic!("spire-server {arguments:?}: {error}"))
    }

    /// Registers the user of this process under an ID, and gives the entry's own.
    pub fn register(&self, id: &str, ttl_s: u32) -> String {
        let selector = format!("unix:uid:{}", rustix::process::getuid().as_raw());
        let ttl = ttl_s.to_string();
        let parent = "spiffe://test.example/node";
        let arguments =
            ["entry", "create", "-parentID", parent, "-spiffeID", id, "-selector", &selector, "-x509SVIDTTL", &ttl];
        let said = self.server(&arguments);
        said.lines().find_map(|line| Some(line.strip_prefix("Entry ID")?.split(':').nth(1)?.trim().to_owned())).unwrap()
    }

    /// Where the agent listens.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.file("agent.sock").display())
    }

    /// The ID of the authority that has a state: `active`, `prepared`, `old`.
    pub fn authority(&self, state: &str) -> String {
        let shown = self.server(&["localauthority", "x509", "show", "-output", "json"]);
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        shown[state]["authority_id"].as_str().unwrap_or_else(|| panic!("no {state}: {shown}")).to_owned()
    }
}

//! The Workload API against SPIRE: identities and roots that turn over while they are in use.
//!
//! `EDGEWARD_TEST_SPIRE` names the folder with `spire-server` and `spire-agent`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use edgeward_trust::{
    ErrorKind, Principal, TrustError,
    identity::{
        Connection, Credential, IdentityProvider as _,
        spiffe::{Spiffe, SpiffeId, TrustBundles, WorkloadApi, WorkloadApiSettings},
    },
    tls::{ServerKeySource as _, ServerKeys},
};
use rcgen::{KeyPair, PublicKeyData as _};
use rustls_pki_types::CertificateDer;

use super::{
    part::part,
    spiffe::{Authority, svid},
};

const DOMAIN: &str = "test.example";
const WORKLOAD: &str = "spiffe://test.example/edge";

struct Spire {
    programs: PathBuf,
    folder: tempfile::TempDir,
    processes: Vec<Child>,
}

impl Drop for Spire {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let ends = Instant::now() + Duration::from_secs(90);
    while !holds() {
        assert!(Instant::now() < ends, "still not: {what}");
        // Only to leave the processor to those who bring it about.
        thread::sleep(Duration::from_millis(20));
    }
}

impl Spire {
    /// A server, and an agent that it trusts; none where the test is to be skipped.
    fn start() -> Option<Self> {
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

    fn start_agent(&mut self) {
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

    fn file(&self, name: &str) -> PathBuf {
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

    fn server(&self, arguments: &[&str]) -> String {
        self.try_server(arguments).unwrap_or_else(|error| panic!("spire-server {arguments:?}: {error}"))
    }

    /// Registers the user of this process under an ID, and gives the entry's own.
    fn register(&self, id: &str, ttl_s: u32) -> String {
        let selector = format!("unix:uid:{}", rustix::process::getuid().as_raw());
        let ttl = ttl_s.to_string();
        let parent = "spiffe://test.example/node";
        let arguments =
            ["entry", "create", "-parentID", parent, "-spiffeID", id, "-selector", &selector, "-x509SVIDTTL", &ttl];
        let said = self.server(&arguments);
        said.lines().find_map(|line| Some(line.strip_prefix("Entry ID")?.split(':').nth(1)?.trim().to_owned())).unwrap()
    }

    fn settings(&self) -> WorkloadApiSettings {
        let endpoint = Some(format!("unix://{}", self.file("agent.sock").display()));
        WorkloadApiSettings { endpoint, ..WorkloadApiSettings::default() }
    }

    /// The ID of the authority that has a state: `active`, `prepared`, `old`.
    fn authority(&self, state: &str) -> String {
        let shown = self.server(&["localauthority", "x509", "show", "-output", "json"]);
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        shown[state]["authority_id"].as_str().unwrap_or_else(|| panic!("no {state}: {shown}")).to_owned()
    }
}

/// A verifier whose roots are the agent's.
fn following(api: &WorkloadApi) -> Arc<Spiffe> {
    let spiffe = Arc::new(Spiffe::new(TrustBundles::new(), BTreeMap::new()));
    api.follow(spiffe.clone(), BTreeSet::new()).unwrap();
    spiffe
}

fn verify(spiffe: &Spiffe, keys: &ServerKeys) -> Result<Principal, TrustError> {
    let connection = Connection { certificates: &keys.chain, ..Connection::default() };
    match spiffe.verify(Credential::Certificate, connection, SystemTime::now()) {
        edgeward_trust::identity::Verification::Done(result) => result,
        edgeward_trust::identity::Verification::Asks(_) => panic!("certificates are decided at once"),
    }
}

#[test]
fn an_identity_is_renewed_before_it_ends() {
    let Some(spire) = Spire::start() else { return };
    spire.register(WORKLOAD, 8);
    let api = WorkloadApi::connect(&spire.settings()).unwrap();
    assert_eq!(api.id().unwrap(), SpiffeId::parse(WORKLOAD).unwrap());
    let spiffe = following(&api);
    let mut source = api.server_keys();
    let first = source.renew(SystemTime::now()).unwrap().unwrap();
    let pair = KeyPair::try_from(&first.key).unwrap();
    assert!(first.chain[0].windows(65).any(|part| part == pair.der_bytes()), "another's key");
    assert_eq!(verify(&spiffe, &first).unwrap().id, WORKLOAD);
    assert!(source.renew(SystemTime::now()).unwrap().is_none());
    let mut newer = None;
    until("another certificate came", || {
        newer = source.renew(SystemTime::now()).unwrap();
        newer.is_some()
    });
    let newer = newer.unwrap();
    assert!(
        newer.chain[0] != first.chain[0] && newer.not_after > first.not_after && SystemTime::now() < first.not_after
    );
    verify(&spiffe, &newer).unwrap();
}

#[test]
fn a_root_takes_over_from_another_while_callers_come() {
    let Some(spire) = Spire::start() else { return };
    spire.register(WORKLOAD, 3600);
    let api = WorkloadApi::connect(&spire.settings()).unwrap();
    let spiffe = following(&api);
    let mut source = api.server_keys();
    let by_old = source.renew(SystemTime::now()).unwrap().unwrap();
    let old = spire.authority("active");
    spire.server(&["localauthority", "x509", "prepare"]);
    spire.server(&["localauthority", "x509", "activate", "-authorityID", &spire.authority("prepared")]);
    verify(&spiffe, &by_old).unwrap();
    // Tainted, so that nobody goes by it any more; then gone.
    spire.server(&["localauthority", "x509", "taint", "-authorityID", &old]);
    let mut by_new = None;
    until("a certificate of the new root came", || {
        // For a moment the agent has none; callers do not notice.
        verify(&spiffe, &by_old).unwrap();
        by_new = source.renew(SystemTime::now()).ok().flatten();
        by_new.is_some()
    });
    let by_new = by_new.unwrap();
    verify(&spiffe, &by_new).unwrap();
    spire.server(&["localauthority", "x509", "revoke", "-authorityID", &old]);
    until("the old root is gone", || verify(&spiffe, &by_old).is_err());
    assert_eq!(verify(&spiffe, &by_old).unwrap_err().kind(), ErrorKind::Unverified);
    verify(&spiffe, &by_new).unwrap();
}

#[test]
fn a_withdrawn_identity_takes_its_roots_along_and_comes_back() {
    let Some(mut spire) = Spire::start() else { return };
    let entry = spire.register(WORKLOAD, 3600);
    let api = WorkloadApi::connect(&spire.settings()).unwrap();
    let spiffe = following(&api);
    let mut source = api.server_keys();
    let keys = source.renew(SystemTime::now()).unwrap().unwrap();
    spire.server(&["entry", "delete", "-entryID", &entry]);
    until("the identity is withdrawn", || verify(&spiffe, &keys).is_err());
    for error in [source.renew(SystemTime::now()).err().unwrap(), api.id().unwrap_err()] {
        assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains("withdrawn"), "{error}");
    }
    spire.register(WORKLOAD, 3600);
    until("it is given again", || verify(&spiffe, &keys).is_ok() && api.id().is_ok());

    // An agent that is away takes nothing along; when it is back, so are its streams.
    let mut agent = spire.processes.pop().unwrap();
    agent.kill().unwrap();
    agent.wait().unwrap();
    source.renew(SystemTime::now()).unwrap();
    verify(&spiffe, &keys).unwrap();
    spire.start_agent();
    // It was attested as another node: the entry is for that one.
    until("a certificate of the new agent came", || source.renew(SystemTime::now()).is_ok_and(|keys| keys.is_some()));
}

#[test]
fn one_of_several_identities_and_domains_held_by_others() {
    let Some(spire) = Spire::start() else { return };
    spire.register(WORKLOAD, 3600);
    spire.register("spiffe://test.example/other", 3600);
    // A domain that the server is told of, whose roots it hands on to those it federates with.
    let foreign = Authority::new();
    fs::write(spire.file("foreign.pem"), foreign.pem()).unwrap();
    let path = spire.file("foreign.pem").display().to_string();
    spire.server(&["bundle", "set", "-id", "spiffe://plant.example", "-format", "pem", "-path", &path]);
    let selector = format!("unix:uid:{}", rustix::process::getuid().as_raw());
    let (id, parent) = ("spiffe://test.example/federated", "spiffe://test.example/node");
    let entry = ["entry", "create", "-parentID", parent, "-spiffeID", id, "-selector", &selector];
    spire.server(&[&entry[..], &["-federatesWith", "spiffe://plant.example"]].concat());
    for id in [WORKLOAD, "spiffe://test.example/other", id] {
        let api = WorkloadApi::connect(&WorkloadApiSettings { id: Some(id.into()), ..spire.settings() });
        assert_eq!(api.unwrap().id().unwrap().to_string(), id);
    }
    let settings = |id: &str| WorkloadApiSettings { id: Some(id.into()), wait_seconds: Some(5), ..spire.settings() };
    let none = WorkloadApi::connect(&settings("spiffe://test.example/none")).err().unwrap().to_string();
    assert!(none.contains("no such identity, but") && none.contains(WORKLOAD), "{none}");
    let api = WorkloadApi::connect(&settings(id)).unwrap();
    let caller = foreign.leaf(svid(&["spiffe://plant.example/line-3/camera"]));
    let shown = |spiffe: &Spiffe, leaf: &CertificateDer<'static>| {
        let chain = [leaf.clone()];
        let connection = Connection { certificates: &chain, ..Connection::default() };
        match spiffe.verify(Credential::Certificate, connection, SystemTime::now()) {
            edgeward_trust::identity::Verification::Done(result) => result.map(|principal| principal.id),
            edgeward_trust::identity::Verification::Asks(_) => panic!("certificates are decided at once"),
        }
    };
    assert_eq!(shown(&following(&api), &caller).unwrap(), "spiffe://plant.example/line-3/camera");
    // Where this installation has roots of its own for that domain, the agent cannot put others in their place.
    let own = Authority::new();
    let bundles = TrustBundles::new();
    bundles.set("plant.example", own.pem().as_bytes()).unwrap();
    let spiffe = Arc::new(Spiffe::new(bundles, BTreeMap::new()));
    api.follow(spiffe.clone(), BTreeSet::from(["plant.example".to_owned()])).unwrap();
    assert_eq!(shown(&spiffe, &caller).unwrap_err().kind(), ErrorKind::Unverified);
    assert!(shown(&spiffe, &own.leaf(svid(&["spiffe://plant.example/line-3/camera"]))).is_ok());
}

#[test]
fn an_agent_that_is_not_there_is_said_so() {
    let refused = |endpoint: &str, id: Option<&str>| {
        let settings =
            WorkloadApiSettings { endpoint: Some(endpoint.into()), id: id.map(str::to_owned), wait_seconds: Some(1) };
        let error = WorkloadApi::connect(&settings).err().unwrap();
        (error.kind(), error.to_string())
    };
    for bad in ["", "agent.sock", "http://127.0.0.1:9", "unix:", "tcp://example.org:1", "unix://\0"] {
        let (kind, text) = refused(bad, None);
        assert!(kind == ErrorKind::Invalid && text.contains("expected one like"), "{bad:?}: {text}");
    }
    assert!(refused("unix:///nowhere/agent.sock", Some("https://a")).1.contains("expected `spiffe://`"));
    let (kind, text) = refused("unix:///nowhere/agent.sock", None);
    assert!(kind == ErrorKind::Unavailable && text.contains("is the agent running"), "{text}");
    let read: WorkloadApiSettings = toml::from_str("endpoint = \"unix:///run/agent.sock\"").unwrap();
    assert_eq!(read.id, None);
    assert!(toml::from_str::<WorkloadApiSettings>("socket = \"/run/agent.sock\"").is_err());
}

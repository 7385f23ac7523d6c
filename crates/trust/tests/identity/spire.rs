//! The Workload API against SPIRE: identities and roots that turn over while they are in use.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::Arc,
    time::SystemTime,
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
    spiffe::{Authority, svid},
    spire_part::{Spire, until},
};

const WORKLOAD: &str = "spiffe://test.example/edge";

fn settings(spire: &Spire) -> WorkloadApiSettings {
    WorkloadApiSettings { endpoint: Some(spire.endpoint()), ..WorkloadApiSettings::default() }
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
    let api = WorkloadApi::connect(&settings(&spire)).unwrap();
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
    let api = WorkloadApi::connect(&settings(&spire)).unwrap();
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
    let api = WorkloadApi::connect(&settings(&spire)).unwrap();
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
        let api = WorkloadApi::connect(&WorkloadApiSettings { id: Some(id.into()), ..settings(&spire) });
        assert_eq!(api.unwrap().id().unwrap().to_string(), id);
    }
    let as_one = |id: &str| WorkloadApiSettings { id: Some(id.into()), wait_seconds: Some(5), ..settings(&spire) };
    let none = WorkloadApi::connect(&as_one("spiffe://test.example/none")).err().unwrap().to_string();
    assert!(none.contains("no such identity, but") && none.contains(WORKLOAD), "{none}");
    let api = WorkloadApi::connect(&as_one(id)).unwrap();
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

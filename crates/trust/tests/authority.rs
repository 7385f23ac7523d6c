//! The local authority, judged by OpenSSL.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    sync::Arc,
    time::{Duration, SystemTime},
};

use edgeward_trust::{
    ErrorKind,
    authority::{Authority, AuthorityKeys, LeafKey, LeafKind, LeafRequest, Lifetimes, State, Step},
    keys::{KeyProvider, SealedFile, Unlock},
};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn keys(folder: &Path) -> AuthorityKeys {
    let open = |name: &str| -> Arc<dyn KeyProvider> {
        let (path, unlock) = (folder.join(name), Unlock::KeyFile(vec![5; 32].into()));
        let file = if path.exists() { SealedFile::open(&path, &unlock) } else { SealedFile::create(&path, &unlock) };
        Arc::new(file.unwrap())
    };
    AuthorityKeys { online: open("keys"), root: Some(open("root.keys")) }
}

fn authority(folder: &Path, now: SystemTime) -> Authority {
    Authority::init(&folder.join("ca"), "hospital.example", keys(folder), Lifetimes::default(), now).unwrap()
}

fn request(name: &str) -> LeafRequest {
    let (dns, addresses) = (Vec::new(), Vec::new());
    LeafRequest {
        name: name.to_owned(),
        kind: LeafKind::Client,
        dns,
        addresses,
        lifetime: None,
        key: LeafKey::Generate,
    }
}

fn server() -> LeafRequest {
    let addresses = vec!["127.0.0.1".parse().unwrap()];
    LeafRequest { kind: LeafKind::Server, dns: vec!["edge-1.example".to_owned()], addresses, ..request("edge-1") }
}

fn openssl(args: &[&str], folder: &Path) -> Output {
    Command::new("openssl").args(args).current_dir(folder).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Whether OpenSSL accepts `leaf.pem` with the authority's roots, and further options.
fn accepted(folder: &Path, options: &[&str]) -> Result<(), String> {
    let output = openssl(
        &[&["verify", "-CAfile", "ca/roots.pem", "-untrusted", "leaf.pem"], options, &["leaf.pem"]].concat(),
        folder,
    );
    if output.status.success() { Ok(()) } else { Err(text(&output)) }
}

/// Whoever waits for the authority must not undo what was done meanwhile.
#[test]
fn an_authority_is_waited_for_and_read_as_it_then_is() {
    let (folder, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let mut first = authority(folder.path(), now);
    let thief = first.issue(&request("thief"), now).unwrap();
    std::thread::scope(|scope| {
        let late = scope.spawn(|| {
            let mut late = Authority::open(&folder.path().join("ca"), keys(folder.path()), Lifetimes::default())?;
            late.issue(&request("late"), now)
        });
        first.revoke("thief", "stolen", now).unwrap();
        drop(first);
        late.join().unwrap().unwrap();
    });
    let state = State::read(&folder.path().join("ca")).unwrap();
    assert!(state.revoked.contains_key(&thief.serial) && state.leaves.len() == 2, "{state:?}");
}

#[test]
fn openssl_accepts_what_is_issued_for_what_it_is_issued() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut authority = authority(folder, SystemTime::now());
    let issued = authority.issue(&server(), SystemTime::now()).unwrap();
    assert_eq!(issued.spiffe_id, "spiffe://hospital.example/edge-1");
    fs::write(folder.join("leaf.pem"), &issued.chain).unwrap();
    let strict = ["-x509_strict", "-policy_check"];
    for options in [
        &["-purpose", "sslserver"][..],
        &["-purpose", "sslclient"],
        &["-verify_hostname", "edge-1.example"],
        &["-verify_ip", "127.0.0.1"],
        &["-crl_check", "-CRLfile", "ca/crl.pem"],
    ] {
        assert_eq!(accepted(folder, &[&strict, options].concat()), Ok(()), "{options:?}");
    }
    assert!(accepted(folder, &["-verify_hostname", "edge-2.example"]).is_err());
    let shown = text(&openssl(&["x509", "-in", "leaf.pem", "-noout", "-text"], folder));
    for part in
        ["URI:spiffe://hospital.example/edge-1", "DNS:edge-1.example", "IP Address:127.0.0.1", "ASN1 OID: prime256v1"]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    // The key is the certificate's.
    fs::write(folder.join("leaf.key"), issued.key.unwrap().as_bytes()).unwrap();
    let of_key = text(&openssl(&["pkey", "-in", "leaf.key", "-pubout"], folder));
    assert_eq!(of_key, text(&openssl(&["x509", "-in", "leaf.pem", "-noout", "-pubkey"], folder)));

    let issued = authority.issue(&request("ward/scanner-3"), SystemTime::now()).unwrap();
    fs::write(folder.join("leaf.pem"), &issued.chain).unwrap();
    assert_eq!(accepted(folder, &["-purpose", "sslclient", "-x509_strict"]), Ok(()));
    assert!(accepted(folder, &["-purpose", "sslserver"]).is_err());
}

#[test]
fn a_request_with_a_key_of_its_own_gets_the_names_that_were_granted() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut authority = authority(folder, SystemTime::now());
    let made = openssl(
        &[
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "own.key",
            "-out",
            "own.csr",
            "-subj",
            "/CN=admin",
            "-addext",
            "subjectAltName=URI:spiffe://hospital.example/admin",
        ],
        folder,
    );
    assert!(made.status.success(), "{}", text(&made));
    let csr = fs::read_to_string(folder.join("own.csr")).unwrap();
    let issued = authority
        .issue(&LeafRequest { key: LeafKey::Request(csr.clone()), ..request("ward/x") }, SystemTime::now())
        .unwrap();
    assert!(issued.key.is_none());
    fs::write(folder.join("leaf.pem"), &issued.chain).unwrap();
    assert_eq!(accepted(folder, &["-purpose", "sslclient"]), Ok(()));
    let shown = text(&openssl(&["x509", "-in", "leaf.pem", "-noout", "-text"], folder));
    assert!(shown.contains("URI:spiffe://hospital.example/ward/x") && !shown.contains("admin"), "{shown}");
    let of_key = text(&openssl(&["pkey", "-in", "own.key", "-pubout"], folder));
    assert_eq!(of_key, text(&openssl(&["x509", "-in", "leaf.pem", "-noout", "-pubkey"], folder)));
    // A request whose signature does not fit its key is somebody else's.
    let (middle, mut forged) = (csr.len() - 60, csr.into_bytes());
    forged[middle] = if forged[middle] == b'A' { b'B' } else { b'A' };
    let forged = LeafKey::Request(String::from_utf8(forged).unwrap());
    let error = authority.issue(&LeafRequest { key: forged, ..request("ward/x") }, SystemTime::now()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[test]
fn what_is_revoked_is_refused_and_the_version_grows() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let now = SystemTime::now();
    let mut authority = authority(folder, now);
    let issued = authority.issue(&request("ward/lost"), now).unwrap();
    let other = authority.issue(&request("ward/kept"), now).unwrap();
    assert_eq!(authority.revocations().version, 0);
    assert_eq!(authority.revoke("ward/lost", "left in a taxi", now).unwrap(), 1);
    assert_eq!(authority.revoke(&other.serial, "a mistake", now).unwrap(), 2);
    assert_eq!(authority.revoke("ward/none", "", now).unwrap_err().kind(), ErrorKind::NotFound);
    let revocations = authority.revocations();
    assert_eq!(revocations.revoked[&issued.serial].reason, "left in a taxi");
    let written = fs::read_to_string(folder.join("ca/revocations.json")).unwrap();
    assert_eq!(serde_json::from_str::<edgeward_trust::authority::Revocations>(&written).unwrap().version, 2);
    fs::write(folder.join("leaf.pem"), &issued.chain).unwrap();
    let refused = accepted(folder, &["-crl_check", "-CRLfile", "ca/crl.pem"]).unwrap_err();
    assert!(refused.contains("certificate revoked"), "{refused}");
    let good = authority.issue(&request("ward/new"), now).unwrap();
    fs::write(folder.join("leaf.pem"), &good.chain).unwrap();
    assert_eq!(accepted(folder, &["-crl_check", "-CRLfile", "ca/crl.pem"]), Ok(()));
    // What has ended needs no revocation any more.
    authority.maintain(now + 40 * DAY).unwrap();
    assert!(authority.revocations().revoked.is_empty());
    assert_eq!(authority.revocations().version, 4);
}

/// Two roots verify while they overlap: a leaf of the old one and a leaf of the new one with the same bundle.
#[test]
fn roots_overlap_when_they_are_renewed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let begin = SystemTime::now();
    let lifetimes = Lifetimes {
        root: 400 * DAY,
        root_overlap: 100 * DAY,
        root_settle: 10 * DAY,
        intermediate: 30 * DAY,
        ..Lifetimes::default()
    };
    let mut authority =
        Authority::init(&folder.join("ca"), "hospital.example", keys(folder), lifetimes.clone(), begin).unwrap();
    let old = authority.issue(&request("old"), begin).unwrap();
    assert_eq!(authority.maintain(begin + 301 * DAY).unwrap().first(), Some(&Step::MakeRoot));
    assert_eq!(authority.state().roots.len(), 2);
    let later = begin + 330 * DAY;
    let new = authority.issue(&request("new"), later).unwrap();
    let at = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs().to_string();
    for (leaf, time) in [(&old, begin), (&new, later)] {
        fs::write(folder.join("leaf.pem"), &leaf.chain).unwrap();
        assert_eq!(accepted(folder, &["-attime", &at(time + HOUR)]), Ok(()));
    }
    let issuer = |leaf: &str| {
        fs::write(folder.join("chain.pem"), leaf.split_inclusive("-----END CERTIFICATE-----\n").nth(1).unwrap())
            .unwrap();
        text(&openssl(&["x509", "-in", "chain.pem", "-noout", "-issuer"], folder))
    };
    assert!(issuer(&old.chain).contains("root-1"), "{}", issuer(&old.chain));
    assert!(issuer(&new.chain).contains("root-2"), "{}", issuer(&new.chain));
    authority.maintain(begin + 401 * DAY).unwrap();
    assert_eq!(authority.state().roots.len(), 1);
}

#[test]
fn an_authority_issues_without_its_root_until_an_intermediate_is_due() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let now = SystemTime::now();
    drop(authority(folder, now));
    let offline = AuthorityKeys { root: None, ..keys(folder) };
    let mut authority = Authority::open(&folder.join("ca"), offline, Lifetimes::default()).unwrap();
    authority.issue(&request("a"), now + 59 * DAY).unwrap();
    let error = authority.issue(&request("a"), now + 61 * DAY).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("root's keys are offline"), "{error}");
    drop(authority);
    let mut authority = Authority::open(&folder.join("ca"), keys(folder), Lifetimes::default()).unwrap();
    let steps = authority.maintain(now + 61 * DAY).unwrap();
    assert!(steps.contains(&Step::MakeIntermediate), "{steps:?}");
    authority.issue(&request("a"), now + 61 * DAY).unwrap();
}

#[test]
fn what_cannot_be_named_or_opened_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let now = SystemTime::now();
    let mut made = authority(folder, now);
    for name in ["", "/a", "a/", "a//b", "..", "a/../b", "a b", "é", "a?b", "a#b", &"a".repeat(1025)] {
        assert_eq!(made.issue(&request(name), now).err().unwrap().kind(), ErrorKind::Invalid, "{name}");
    }
    for dns in ["", "a b", "é.example", "a\u{0}b", "*."] {
        let bad = LeafRequest { dns: vec![dns.to_owned()], ..server() };
        assert_eq!(made.issue(&bad, now).err().unwrap().kind(), ErrorKind::Invalid, "{dns:?}");
    }
    let init = |domain: &str, to: &str| {
        Authority::init(&folder.join(to), domain, keys(folder), Lifetimes::default(), now).err()
    };
    for domain in ["", "A", "a/b", "a:1", "é"] {
        assert_eq!(init(domain, "other").unwrap().kind(), ErrorKind::Invalid, "{domain}");
    }
    let opened = Authority::open(&folder.join("ca"), keys(folder), Lifetimes::default()).err().unwrap();
    assert_eq!(opened.kind(), ErrorKind::Unavailable);
    drop(made);
    assert!(init("hospital.example", "ca").unwrap().to_string().contains("has an authority already"));
    assert_eq!(State::read(folder).unwrap_err().kind(), ErrorKind::NotFound);
    fs::write(folder.join("ca/authority.json"), "{\"trust_domain\": 1}").unwrap();
    assert_eq!(State::read(&folder.join("ca")).unwrap_err().kind(), ErrorKind::Invalid);
}

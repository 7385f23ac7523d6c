//! A second party's word: what it has seen cannot be taken back with the checkpoint.

use std::{
    fs,
    io::Read as _,
    net::TcpListener,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use edgeward_trust::{
    ErrorKind,
    audit::{
        note::{NoteKey, SignatureType},
        verify::FindingKind,
        witness::{Witness, submit},
    },
};

use crate::{
    peers::tool,
    support::{ORIGIN, Place, keys},
};

fn witness(place: &Place) -> Witness {
    Witness::new("witness.example/w", keys(place.root()), "witness", &place.root().join("memory")).unwrap()
}

/// Makes the log what it was with fewer records, checkpoint, history and all, as its own key signed it.
fn roll_back(place: &Place, to: &Place) {
    fs::remove_dir_all(place.log()).unwrap();
    fs::rename(to.log(), place.log()).unwrap();
}

/// A log with the same key and records, which stopped earlier.
fn earlier(place: &Place, records: u64) -> Place {
    let other = Place::new();
    fs::copy(place.root().join("keys"), other.root().join("keys")).unwrap();
    other.add(records);
    other
}

#[test]
fn a_log_that_was_cut_back_with_its_checkpoint_is_found_by_its_witness() {
    let place = Place::with_records(300);
    let (key, log) = (place.signer().key().clone(), place.log());
    let witness = witness(&place);
    witness.cosign(&log, &key, 1_700_000_000).unwrap();
    place.add(100);
    let cosigned = witness.cosign(&log, &key, 1_700_000_060).unwrap();
    let seen = [(cosigned, witness.key().clone())];
    assert_eq!(place.verify_witnessed(&seen).findings, []);

    roll_back(&place, &earlier(&place, 390));
    assert_eq!(place.verify().findings, [], "the log alone tells nothing");
    let findings = place.verify_witnessed(&seen).findings;
    let found: Vec<_> = findings.iter().map(|finding| (finding.kind, finding.first, finding.last)).collect();
    assert_eq!(found, [(FindingKind::Truncated, 390, 399)]);
    assert!(
        findings[0].text.contains("witness `witness.example/w` saw 400 records at 2023-11-14T22:14:20Z"),
        "{findings:?}"
    );
    let error = witness.cosign(&log, &key, 1_700_000_120).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Tampered);
    assert!(error.to_string().contains("400 were witnessed before"), "{error}");

    // As long as before, but with another history.
    let other = earlier(&place, 100);
    other.add(400);
    roll_back(&place, &other);
    let found: Vec<_> = place.verify_witnessed(&seen).findings.iter().map(|finding| finding.kind).collect();
    assert_eq!(found, [FindingKind::Changed]);
    let error = witness.cosign(&log, &key, 1_700_000_180).unwrap_err();
    assert!(error.to_string().contains("not a continuation"), "{error}");
}

#[test]
fn what_a_witness_did_not_sign_is_no_evidence() {
    let place = Place::with_records(10);
    let witness = witness(&place);
    let cosigned = witness.cosign(&place.log(), place.signer().key(), 1).unwrap();
    let alone = fs::read_to_string(place.log().join("checkpoint")).unwrap();
    for note in [alone, cosigned.replacen("10\n", "11\n", 1)] {
        let signer = place.signer();
        let witnessed = [(note, witness.key().clone())];
        let given = edgeward_trust::audit::verify::Verification {
            folder: &place.log(),
            key: signer.key(),
            witnessed: &witnessed,
        };
        let error = edgeward_trust::audit::verify::verify(&given).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unverified, "{error}");
    }
}

/// Ends the process with its guard.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(command: &mut Command) -> Process {
    Process(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
}

/// litewitness of Torchwood, which takes its key from an SSH agent.
fn litewitness(place: &Place) -> Option<(Vec<Process>, String, NoteKey)> {
    let mut program = tool("litewitness")?;
    let path = |name: &str| place.root().join(name);
    let done =
        |command: &mut Command| assert!(command.stdout(Stdio::null()).status().unwrap().success(), "{command:?}");
    done(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path("ssh")));
    let agent = start(Command::new("ssh-agent").args(["-D", "-a"]).arg(path("agent")));
    while !path("agent").exists() {
        std::thread::yield_now();
    }
    done(Command::new("ssh-add").arg("-q").arg(path("ssh")).env("SSH_AUTH_SOCK", path("agent")));
    let public = fs::read_to_string(path("ssh.pub")).unwrap();
    let blob = BASE64_STANDARD.decode(public.split(' ').nth(1).unwrap()).unwrap();
    let key = NoteKey::new("lite.example/w", SignatureType::Witness, *blob.last_chunk().unwrap()).unwrap();
    let fingerprint = Command::new("ssh-keygen").arg("-lf").arg(path("ssh.pub")).output().unwrap();
    let fingerprint = String::from_utf8(fingerprint.stdout).unwrap().split(' ').nth(1).unwrap().to_owned();

    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let (error, into) = std::io::pipe().unwrap();
    program.args(["-name", key.name(), "-key", &fingerprint, "-listen", &address]);
    program.arg("-ssh-agent").arg(path("agent")).arg("-db").arg(path("witness.db")).stderr(into).process_group(0);
    let witness = start(&mut program);
    drop(program);
    wait_for(error, "listening");
    while std::net::TcpStream::connect(&address).is_err() {
        std::thread::yield_now();
    }
    // What `witnessctl add-log` and `add-key` do; it cannot be built from the module proxy.
    let log_key = place.signer().key().to_string();
    let empty = BASE64_STANDARD.encode(edgeward_trust::audit::merkle::empty_hash());
    let sql =
        format!("INSERT INTO log VALUES ('{ORIGIN}', 0, '{empty}'); INSERT INTO key VALUES ('{ORIGIN}', '{log_key}');");
    done(Command::new("sqlite3").arg(path("witness.db")).arg(sql));
    Some((vec![witness, agent], format!("http://{address}"), key))
}

/// Reads until a text comes; a thread reads on, so that the writer never waits.
fn wait_for(mut from: std::io::PipeReader, text: &str) {
    let (mut read, mut part) = (String::new(), [0; 4096]);
    while !read.contains(text) {
        let count = from.read(&mut part).unwrap();
        assert_ne!(count, 0, "ended without `{text}`: {read}");
        read.push_str(&String::from_utf8_lossy(&part[..count]));
    }
    std::thread::spawn(move || std::io::copy(&mut from, &mut std::io::sink()));
}

#[test]
fn a_witness_by_others_cosigns_and_refuses_what_was_rewritten() {
    let place = Place::with_records(5);
    if ["ssh-agent", "sqlite3"]
        .iter()
        .any(|name| Command::new("which").arg(name).output().is_ok_and(|o| !o.status.success()))
    {
        println!("skipped: needs `ssh-agent` and `sqlite3`");
        return;
    }
    let Some((_processes, url, witness)) = litewitness(&place) else { return };
    let (log, log_key) = (place.log(), place.signer().key().clone());
    let mut cosigned = submit(&log, &log_key, &url, &witness).unwrap();
    for more in [1, 300, 700] {
        place.add(more);
        cosigned = submit(&log, &log_key, &url, &witness).unwrap();
    }
    let seen = [(cosigned, witness.clone())];
    assert_eq!(place.verify_witnessed(&seen).findings, []);
    let other = earlier(&place, 5);
    other.add(2000);
    roll_back(&place, &other);
    let error = submit(&log, &log_key, &url, &witness).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unverified);
    assert!(error.to_string().contains("refused with 4"), "{error}");
    assert!(!place.verify_witnessed(&seen).findings.is_empty());
    let error = submit(&log, &log_key, "http://127.0.0.1:9", &witness).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

//! `edgeward trust init|issue|revoke|list|renew` and `trust audit`, as typed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, process::Command, sync::Arc, time::SystemTime};

use binary::{edgeward, json, text};
use edgeward_trust::{
    audit::{AuditLog, Kind, LogOptions, LogSigner, Record, Verdict},
    keys::{SealedFile, Unlock},
};

#[path = "support/binary.rs"]
mod binary;

fn succeeds(folder: &Path, words: &str) -> String {
    let output = edgeward(folder, words);
    assert!(output.status.success(), "{words}: {}", text(&output));
    text(&output)
}

/// The exit code and what is said.
fn fails(folder: &Path, words: &str) -> (i32, String) {
    let output = edgeward(folder, words);
    (output.status.code().unwrap(), text(&output))
}

/// Appends with the authority's own key, as a server does.
fn append(folder: &Path, records: std::ops::Range<u64>) {
    let unlock = Unlock::from_key_file(&folder.join("trust/unlock.key")).unwrap();
    let keys = Arc::new(SealedFile::open(&folder.join("trust/keys"), &unlock).unwrap());
    let signer = LogSigner::new("edgeward.local/audit", keys, "audit").unwrap();
    let log = AuditLog::open(&LogOptions::new(folder.join("log")), signer).unwrap();
    for n in records {
        let record = Record {
            time: SystemTime::now(),
            kind: Kind::Decision,
            principal: format!("local:device-{}", n % 3),
            action: "infer".to_owned(),
            resource: "Model::\"m/1\"".to_owned(),
            decision: if n.is_multiple_of(5) { Verdict::Deny } else { Verdict::Allow },
            policies: Vec::new(),
            policy_version: None,
            score: None,
            digests: Default::default(),
            context: Default::default(),
            reason: "an escape \u{1b}[2J".to_owned(),
        };
        log.note(&record).unwrap();
    }
}

#[test]
fn an_authority_is_made_used_and_renewed() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let told = succeeds(home, "trust init trust --dns edge-1.example --ip 10.0.0.7");
    assert!(told.contains("opens the sealed keys"), "{told}");
    for secret in ["unlock.key", "keys", "root.keys", "server.key", "admin.key"] {
        assert_eq!(fs::metadata(home.join("trust").join(secret)).unwrap().mode() & 0o077, 0, "{secret}");
    }
    let verified = Command::new("openssl")
        .args([
            "verify",
            "-CAfile",
            "roots.pem",
            "-untrusted",
            "server.pem",
            "-verify_hostname",
            "edge-1.example",
            "server.pem",
        ])
        .current_dir(home.join("trust"))
        .output()
        .unwrap();
    assert!(verified.status.success(), "{}", text(&verified));

    let issued = json(home, "trust issue trust ward/scanner-3 --lifetime 1h");
    assert_eq!(issued["spiffe_id"], "spiffe://edgeward.local/ward/scanner-3");
    assert!(home.join("scanner-3.pem").exists() && home.join("scanner-3.key").exists());
    let revoked = json(home, "trust revoke trust ward/scanner-3 --reason lost");
    assert_eq!(revoked["version"], 1);
    let listed = json(home, "trust list trust");
    assert_eq!(listed["leaves"].as_array().unwrap().len(), 3);
    assert_eq!(listed["revoked"][issued["serial"].as_str().unwrap()]["reason"], "lost");
    assert!(succeeds(home, "trust list trust").contains("revoked: lost"));

    // Without the root's keys all goes on.
    fs::rename(home.join("trust/root.keys"), home.join("offline.keys")).unwrap();
    succeeds(home, "trust issue trust ward/scanner-4");
    assert_eq!(succeeds(home, "trust renew trust --root-keys offline.keys"), "nothing is due\n");
    assert_eq!(succeeds(home, "trust renew trust --dry-run"), "nothing is due\n");

    for (words, code, said) in [
        ("trust init trust", 2, "has keys already"),
        ("trust issue trust a//b", 2, "cannot name a certificate"),
        ("trust issue none a", 2, "unlock.key"),
        ("trust revoke trust nobody", 2, "neither the serial number nor the name"),
        ("trust list none", 2, "edgeward trust init"),
    ] {
        let (found, text) = fails(home, words);
        assert_eq!(found, code, "{words}: {text}");
        assert!(text.contains(said), "{words}: {text}");
    }
}

#[test]
fn a_log_is_verified_proved_queried_and_witnessed() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    succeeds(home, "trust init trust");
    append(home, 0..600);
    let verified = json(home, "trust audit verify log --key trust/audit.vkey");
    assert_eq!((verified["records"].as_u64(), verified["findings"].as_array().unwrap().len()), (Some(600), 0));

    let proof = edgeward(home, "trust audit prove log 599 --key trust/audit.vkey");
    fs::write(home.join("proof"), &proof.stdout).unwrap();
    let proved = json(home, "trust audit check proof --key trust/audit.vkey");
    assert_eq!((proved["record"]["seq"].as_u64(), proved["size"].as_u64()), (Some(599), Some(600)));
    assert!(succeeds(home, "trust audit prove log --since 300 --key trust/audit.vkey").starts_with("old 300\n"));

    let denied = json(home, "trust audit query log --decision deny --principal local:device-0 --since 1h");
    assert_eq!(denied.as_array().unwrap().len(), 40);
    let table = succeeds(home, "trust audit query log --limit 2");
    assert!(!table.contains('\u{1b}') && table.contains("infer"), "{table:?}");

    let witness =
        "trust audit witness log --key trust/audit.vkey --name witness.example/w --memory memory --out cosigned";
    succeeds(home, witness);
    append(home, 600..700);
    succeeds(home, witness);
    let with_witness =
        "trust audit verify log --key trust/audit.vkey --witness memory/witness.vkey --cosigned cosigned";
    succeeds(home, with_witness);

    // The owner of the key makes the log anew, shorter.
    fs::remove_dir_all(home.join("log")).unwrap();
    append(home, 0..690);
    succeeds(home, "trust audit verify log --key trust/audit.vkey");
    let (code, said) = fails(home, with_witness);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("records 690 to 699 are gone: witness `witness.example/w` saw 700 records"), "{said}");
    let (code, said) = fails(home, witness);
    assert_eq!(code, 1, "{said}");

    // Somebody else changes a record.
    let path = home.join("log/tile/entries/000");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(6).position(|part| part == b"\"deny\"").unwrap();
    bytes[at + 1] = b'D';
    fs::write(&path, bytes).unwrap();
    let (code, said) = fails(home, "trust audit verify log --key trust/audit.vkey");
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("record 0 is not the one that was written"), "{said}");
    for words in [
        "trust audit verify none --key trust/audit.vkey",
        "trust audit verify log --key nonsense",
        "trust audit query none",
    ] {
        assert_eq!(fails(home, words).0, 2, "{words}: {}", fails(home, words).1);
    }
}

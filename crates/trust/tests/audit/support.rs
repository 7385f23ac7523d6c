//! Logs in temporary folders.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use edgeward_trust::{
    ErrorKind,
    audit::{
        AuditLog, Durability, Entry, Kind, LogOptions, LogSigner, Query, Record, Sha256Digest, Verdict,
        verify::{Report, Verification, verify},
    },
    keys::{KeyKind, KeyProvider, SealedFile, Unlock},
};

pub const ORIGIN: &str = "audit.hospital.example/ward";

/// Keys in a folder, made at the first call.
pub fn keys(folder: &Path) -> Arc<dyn KeyProvider> {
    let (secret, path) = (folder.join("secret"), folder.join("keys"));
    if !path.exists() {
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&secret).unwrap();
        std::io::Write::write_all(&mut file, &[7; 32]).unwrap();
        let provider = SealedFile::create(&path, &Unlock::from_key_file(&secret).unwrap()).unwrap();
        provider.create("audit", KeyKind::Ed25519).unwrap();
        provider.create("witness", KeyKind::Ed25519).unwrap();
    }
    Arc::new(SealedFile::open(&path, &Unlock::from_key_file(&secret).unwrap()).unwrap())
}

/// A folder with keys and a log.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        keys(folder.path());
        Self { folder }
    }

    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    pub fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    pub fn signer(&self) -> LogSigner {
        LogSigner::new(ORIGIN, keys(self.root()), "audit").unwrap()
    }

    pub fn options(&self) -> LogOptions {
        LogOptions {
            durability: Durability::None,
            publish_every: Duration::from_secs(3600),
            ..LogOptions::new(self.log())
        }
    }

    pub fn open(&self) -> AuditLog {
        // A process that another test starts holds this one's locks as well, until it is the program that it is to be.
        for _ in 0..500 {
            match AuditLog::open(&self.options(), self.signer()) {
                Err(error) if error.kind() == ErrorKind::Unavailable => std::thread::sleep(Duration::from_millis(10)),
                opened => return opened.unwrap(),
            }
        }
        panic!("another process keeps the log")
    }

    /// A log of `count` records, closed.
    pub fn with_records(count: u64) -> Self {
        let place = Self::new();
        place.add(count);
        place
    }

    pub fn add(&self, count: u64) {
        let log = self.open();
        let tickets: Vec<_> = (0..count).map(|n| log.append(&record(n)).unwrap()).collect();
        for ticket in tickets {
            ticket.wait().unwrap();
        }
    }

    pub fn verify(&self) -> Report {
        self.verify_witnessed(&[])
    }

    pub fn verify_witnessed(&self, witnessed: &[(String, edgeward_trust::audit::note::NoteKey)]) -> Report {
        let signer = self.signer();
        verify(&Verification { folder: &self.log(), key: signer.key(), witnessed }).unwrap()
    }

    pub fn entries(&self) -> Vec<Entry> {
        let mut found = Vec::new();
        Query::default()
            .run(&self.log(), |entry| {
                found.push(entry);
                true
            })
            .unwrap();
        found
    }
}

/// The `n`-th record of a test.
pub fn record(n: u64) -> Record {
    Record {
        time: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + n),
        kind: Kind::Decision,
        principal: format!("spiffe://hospital.example/device-{}", n % 10),
        action: "infer".to_owned(),
        resource: "Model::\"pneumonia/3\"".to_owned(),
        decision: if n.is_multiple_of(3) { Verdict::Deny } else { Verdict::Allow },
        policies: vec![format!("segment-{}", n % 7)],
        policy_version: Some("12".to_owned()),
        score: Some(0.75),
        digests: [("request".to_owned(), Sha256Digest::of(&n.to_be_bytes()))].into(),
        context: Default::default(),
        reason: format!("record {n}"),
    }
}

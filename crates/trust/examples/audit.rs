//! Measures the audit log: `cargo run --release -p edgeward-trust --example audit -- FOLDER RECORDS [DURABILITY]`.
//!
//! Appends under each durability, or the one named `strict`, `interval` or `none`, with 8 callers that keep 1,024 records in flight each, then verifies the log of the last, proves 1,000
//! of its records and verifies the proofs. FOLDER must be on the disk that is meant and not exist.

use std::{
    collections::VecDeque,
    error::Error,
    fs,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use edgeward_trust::{
    TrustError,
    audit::{
        AuditLog, Durability, Kind, LogOptions, LogSigner, Record, Sha256Digest, Verdict,
        proof::{Published, verify_proof},
        verify::{Verification, verify},
    },
    keys::{KeyKind, KeyProvider, SealedFile, Unlock},
};

const CALLERS: u64 = 8;
const IN_FLIGHT: usize = 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(folder), Some(records), only) = (args.next(), args.next(), args.next()) else {
        return Err("expected FOLDER RECORDS [DURABILITY]".into());
    };
    let (folder, records): (&Path, u64) = (Path::new(&folder), records.parse()?);
    fs::create_dir(folder)?;
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(folder.join("secret"))?;
    fs::write(folder.join("secret"), [7; 32])?;
    let keys = SealedFile::create(&folder.join("keys"), &Unlock::from_key_file(&folder.join("secret"))?)?;
    keys.create("audit", KeyKind::Ed25519)?;
    let signer = LogSigner::new("audit.example/log", Arc::new(keys), "audit")?;
    let interval = Durability::Interval(Duration::from_millis(100));
    let all = [("strict", Durability::Strict), ("interval", interval), ("none", Durability::None)];
    let (mut last, mut rates) = (None, Vec::new());
    for (name, durability) in all.into_iter().filter(|(name, _)| only.as_ref().is_none_or(|only| only == name)) {
        let log = folder.join(name);
        let per_second = append(&LogOptions { durability, ..LogOptions::new(&log) }, &signer, records, name)?;
        rates.push(format!("\"{name}_per_s\":{per_second}"));
        last = Some(log);
    }
    let (prove_us, verify_us) = check(&last.ok_or("expected `strict`, `interval` or `none`")?, &signer)?;
    println!("{{{},\"prove_us\":{prove_us},\"verify_us\":{verify_us}}}", rates.join(","));
    Ok(())
}

fn append(options: &LogOptions, signer: &LogSigner, records: u64, name: &str) -> Result<f64, Box<dyn Error>> {
    let log = AuditLog::open(options, signer.clone())?;
    let began = Instant::now();
    std::thread::scope(|scope| {
        let work = |caller| {
            let log = &log;
            scope.spawn(move || call(log, caller, records / CALLERS))
        };
        let callers: Vec<_> = (0..CALLERS).map(work).collect();
        callers
            .into_iter()
            .try_for_each(|caller| caller.join().map_err(|_| "a caller panicked")?.map_err(|e| e.to_string()))
    })?;
    let acknowledged = began.elapsed().as_secs_f64();
    drop(log);
    let published = began.elapsed().as_secs_f64();
    println!(
        "{name}: {records} records, {:.0}/s acknowledged, {:.0}/s with tiles and checkpoint",
        records as f64 / acknowledged,
        records as f64 / published
    );
    Ok(records as f64 / acknowledged)
}

fn call(log: &AuditLog, caller: u64, records: u64) -> Result<(), TrustError> {
    let mut tickets = VecDeque::new();
    for n in 0..records {
        if tickets.len() == IN_FLIGHT {
            tickets.pop_front().map_or(Ok(0), edgeward_trust::audit::Ticket::wait)?;
        }
        tickets.push_back(log.append(&record(caller, n))?);
    }
    tickets.into_iter().try_for_each(|ticket| ticket.wait().map(drop))
}

fn record(caller: u64, n: u64) -> Record {
    Record {
        time: SystemTime::now(),
        kind: Kind::Decision,
        principal: format!("spiffe://hospital.example/device-{caller}"),
        action: "infer".to_owned(),
        resource: "Model::\"pneumonia/3\"".to_owned(),
        decision: if n.is_multiple_of(100) { Verdict::Deny } else { Verdict::Allow },
        policies: vec![format!("segment-{}", n % 7)],
        policy_version: Some("12".to_owned()),
        score: Some(0.75),
        digests: [("request".to_owned(), Sha256Digest::from([n as u8; 32]))].into(),
        context: Default::default(),
        reason: String::new(),
    }
}

fn check(folder: &Path, signer: &LogSigner) -> Result<(f64, f64), Box<dyn Error>> {
    let began = Instant::now();
    let report = verify(&Verification { folder, key: signer.key(), witnessed: &[] })?;
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "verify: {} records, {} checkpoints, {} findings in {seconds:.2} s",
        report.records,
        report.checkpoints,
        report.findings.len()
    );
    let published = Published::open(folder, signer.key())?;
    let size = published.head().size;
    let places: Vec<u64> = (0..1000u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % size).collect();
    let began = Instant::now();
    let proofs: Vec<String> = places.iter().map(|&seq| published.prove(seq)).collect::<Result<_, _>>()?;
    let prove_us = began.elapsed().as_secs_f64() * 1e3;
    let began = Instant::now();
    for (proof, &seq) in proofs.iter().zip(&places) {
        assert_eq!(verify_proof(proof, signer.key(), &[])?.seq, seq);
    }
    let verify_us = began.elapsed().as_secs_f64() * 1e3;
    println!("one of {size} records: proof made in {prove_us:.0} us, verified in {verify_us:.0} us (mean of 1,000)");
    Ok((prove_us, verify_us))
}

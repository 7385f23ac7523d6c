//! What a crash, a torn write and a full disk leave.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use edgeward_trust::audit::{AuditLog, Durability, LogOptions};

use crate::support::{Place, record};

const CHILD: &str = "EDGEWARD_TEST_AUDIT_CHILD";

/// Runs one test of this binary in a process of its own.
fn child(test: &str, root: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, root).stdout(Stdio::piped());
    command
}

/// In the child: appends from four threads and prints each number once its record is acknowledged.
#[test]
fn child_appends() {
    let Some(root) = env::var_os(CHILD) else { return };
    let root = Path::new(&root);
    let signer =
        edgeward_trust::audit::LogSigner::new(crate::support::ORIGIN, crate::support::keys(root), "audit").unwrap();
    let publish_every = Duration::from_millis(20);
    let options = LogOptions { durability: Durability::Strict, publish_every, ..LogOptions::new(root.join("log")) };
    let log = AuditLog::open(&options, signer).unwrap();
    let begin = log.status().size;
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let log = &log;
            scope.spawn(move || {
                for n in (begin + thread..).step_by(4) {
                    if log.append(&record(n)).and_then(edgeward_trust::audit::Ticket::wait).is_ok() {
                        let mut out = std::io::stdout().lock();
                        writeln!(out, "\nacknowledged {n}").unwrap();
                        out.flush().unwrap();
                    }
                }
            });
        }
    });
}

#[test]
fn kill_9_loses_no_acknowledged_record() {
    let place = Place::new();
    let mut acknowledged = BTreeSet::new();
    for round in 0..25 {
        let mut process = child("crash::child_appends", place.root()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut heard = 0;
        let enough = 1 + (round * 37) % 400;
        while heard < enough {
            heard += u32::from(hear(lines.next().unwrap().unwrap(), &mut acknowledged));
        }
        process.kill().unwrap();
        process.wait().unwrap();
        // What was printed before the end counts as well.
        for line in lines.map_while(Result::ok) {
            hear(line, &mut acknowledged);
        }

        let log = place.open();
        let recovery = log.recovery();
        drop(log);
        let found: BTreeSet<u64> = place
            .entries()
            .iter()
            .filter_map(|entry| entry.record.reason.strip_prefix("record ")?.parse().ok())
            .collect();
        let lost: Vec<_> = acknowledged.difference(&found).collect();
        assert!(lost.is_empty(), "round {round}: {lost:?} lost; {recovery:?}");
        assert_eq!(place.verify().findings, [], "round {round}: {recovery:?}");
    }
    assert!(acknowledged.len() > 1000, "{}", acknowledged.len());
}

fn hear(line: String, acknowledged: &mut BTreeSet<u64>) -> bool {
    let number = line.strip_prefix("acknowledged ").and_then(|number| number.parse().ok());
    number.is_some_and(|number| acknowledged.insert(number))
}

fn segment(log: &Path) -> std::path::PathBuf {
    let mut paths: Vec<_> = fs::read_dir(log.join("journal")).unwrap().map(|item| item.unwrap().path()).collect();
    paths.sort();
    paths.pop().unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for item in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(item.file_name());
        if item.path().is_dir() {
            copy(&item.path(), &target);
        } else {
            fs::copy(item.path(), target).unwrap();
        }
    }
}

/// A journal that ends anywhere within its last frame loses that frame only, keeps the bytes, and says so in the log.
#[test]
fn a_torn_tail_is_cut_and_kept() {
    let place = Place::new();
    let log = place.open();
    let mut ends = Vec::new();
    for n in 0..3 {
        log.append(&record(n)).unwrap().wait().unwrap();
        ends.push(fs::metadata(segment(&place.log())).unwrap().len());
    }
    // As the process would leave it now: nothing is published.
    let image = place.root().join("image");
    copy(&place.log(), &image);
    drop(log);
    let bytes = fs::read(segment(&image)).unwrap();
    for cut in (0..bytes.len()).step_by(29).chain(ends.iter().map(|&end| end as usize)) {
        let torn = Place::new();
        fs::remove_dir_all(torn.root()).unwrap();
        copy(place.root(), torn.root());
        fs::remove_dir_all(torn.log()).unwrap();
        copy(&image, &torn.log());
        fs::write(segment(&torn.log()), &bytes[..cut]).unwrap();
        let whole = ends.iter().filter(|&&end| end as usize <= cut).count() as u64;
        let left = cut as u64 - ends.iter().copied().rfind(|&end| end as usize <= cut).unwrap_or(0);
        let log = torn.open();
        assert_eq!((log.recovery().replayed, log.recovery().cut_bytes), (whole, left), "cut at {cut}");
        drop(log);
        let entries = torn.entries();
        assert_eq!(entries.len() as u64, whole + u64::from(left > 0), "cut at {cut}");
        assert_eq!(torn.log().join("cut").exists(), left > 0);
        assert_eq!(entries.last().map(|entry| entry.record.action == "log.recover").unwrap_or_default(), left > 0);
        assert_eq!(torn.verify().findings, []);
    }
}

/// An end within the first publication leaves tiles and no checkpoint: the journal has all records.
#[test]
fn an_end_within_the_first_publication_loses_nothing() {
    let place = Place::with_records(300);
    for name in ["checkpoint", "checkpoints"] {
        fs::remove_file(place.log().join(name)).unwrap();
    }
    fs::remove_dir_all(place.log().join("tile/1")).unwrap();
    assert_eq!(place.verify().findings, []);
    let log = place.open();
    assert_eq!((log.recovery().published, log.recovery().replayed), (0, 300));
    drop(log);
    assert_eq!((place.entries().len(), place.verify().published), (300, 300));
    // Without the records the same is no such end.
    let place = Place::with_records(300);
    for name in ["checkpoint", "checkpoints"] {
        fs::remove_file(place.log().join(name)).unwrap();
    }
    fs::write(segment(&place.log()), "").unwrap();
    assert_eq!(place.verify().findings.len(), 1);
    let error = AuditLog::open(&place.options(), place.signer()).err().unwrap();
    assert_eq!(error.kind(), edgeward_trust::ErrorKind::Tampered, "{error}");
}

/// In the child: files may not grow beyond 256 KiB, as if the disk was full.
#[test]
fn child_fills_its_disk() {
    let Some(root) = env::var_os(CHILD) else { return };
    let root = Path::new(&root);
    let signer =
        edgeward_trust::audit::LogSigner::new(crate::support::ORIGIN, crate::support::keys(root), "audit").unwrap();
    let options = LogOptions { publish_every: Duration::from_secs(3600), ..LogOptions::new(root.join("log")) };
    let log = AuditLog::open(&options, signer).unwrap();
    let limit = |bytes: Option<u64>| {
        let old = rustix::process::getrlimit(rustix::process::Resource::Fsize);
        let new = rustix::process::Rlimit { current: bytes, ..old };
        rustix::process::setrlimit(rustix::process::Resource::Fsize, new).unwrap();
    };
    limit(Some(256 << 10));
    let mut taken = 0;
    let error = loop {
        match log.append(&record(taken)).unwrap().wait() {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("cannot be written"), "{error}");
    assert!(log.status().failure.unwrap().contains("cannot be written"));
    assert!(log.is_failing());
    for _ in 0..6 {
        assert!(log.append(&record(taken)).unwrap().wait().is_err());
    }
    assert_eq!(log.status().refused, 7, "what the log tells of itself is no record of a caller");
    limit(None);
    // The disk has room again: the log goes on, and tells what it could not take.
    log.append(&record(taken)).unwrap().wait().unwrap();
    assert_eq!((log.status().failure, log.is_failing()), (None, false));
    println!("\ntaken {taken}");
}

#[test]
fn a_full_disk_refuses_and_the_log_goes_on_when_there_is_room() {
    let place = Place::new();
    let output = child_ignoring_sigxfsz("crash::child_fills_its_disk", place.root());
    let taken: u64 = output.lines().find_map(|line| line.strip_prefix("taken ")?.parse().ok()).expect(&output);
    assert!(taken > 100, "{taken}");
    let entries = place.entries();
    let told: Vec<_> = entries.iter().filter(|entry| entry.record.action == "log.refuse").collect();
    assert_eq!(told.len(), 1);
    assert!(told[0].record.reason.starts_with("7 records"), "{}", told[0].record.reason);
    assert_eq!(entries.len() as u64, taken + 2);
    assert_eq!(place.verify().findings, []);
}

/// A write beyond the limit raises a signal first, whose default ends the process.
fn child_ignoring_sigxfsz(test: &str, root: &Path) -> String {
    let binary = env::current_exe().unwrap();
    let script = format!("trap '' XFSZ; exec '{}' --exact {test} --nocapture --test-threads=1", binary.display());
    let output = Command::new("sh").args(["-c", &script]).env(CHILD, root).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    text
}

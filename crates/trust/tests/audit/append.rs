//! Appending, reading, proving.

use std::time::Duration;

use edgeward_trust::{
    ErrorKind,
    audit::{
        AuditLog, Durability, LogOptions, Query, Verdict,
        merkle::Head,
        proof::{Published, verify_grown, verify_proof},
    },
};

use crate::support::{Place, record};

#[test]
fn records_are_found_in_order_and_verify_at_every_size_around_a_tile() {
    let place = Place::new();
    let mut expected = 0;
    for more in [0, 1, 1, 253, 1, 1, 255, 1, 512, 3] {
        place.add(more);
        expected += more;
        let report = place.verify();
        assert_eq!((report.records, report.findings.as_slice()), (expected, &[][..]), "{expected}");
        assert_eq!(report.published, expected);
    }
    for (entry, seq) in place.entries().iter().zip(0..) {
        assert_eq!(entry.seq, seq);
    }
    assert_eq!(place.entries().len() as u64, expected);
}

#[test]
fn what_is_not_published_yet_is_read_from_the_journal() {
    let place = Place::with_records(300);
    let log = place.open();
    for n in 300..420 {
        assert_eq!(log.append(&record(n)).unwrap().wait().unwrap(), n);
    }
    assert_eq!(log.status().published, 300);
    assert_eq!(place.entries().len(), 420);
    let report = place.verify();
    assert_eq!((report.records, report.published, report.findings.len()), (420, 300, 0), "{report:?}");
    let head = log.flush().unwrap();
    assert_eq!((head.size, log.status().published), (420, 420));
}

#[test]
fn many_threads_get_places_of_their_own() {
    let place = Place::new();
    let options = LogOptions { durability: Durability::Strict, ..place.options() };
    let log = AuditLog::open(&options, place.signer()).unwrap();
    let mut places: Vec<u64> = std::thread::scope(|scope| {
        let work = |n: u64| {
            let log = &log;
            scope.spawn(move || {
                (0..50).map(|m| log.append(&record(100 * n + m)).unwrap().wait().unwrap()).collect::<Vec<_>>()
            })
        };
        let threads: Vec<_> = (0..8).map(work).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    places.sort_unstable();
    assert_eq!(places, (0..400).collect::<Vec<_>>());
    drop(log);
    assert_eq!(place.verify().findings, []);
}

#[tokio::test]
async fn a_ticket_is_a_future() {
    let place = Place::new();
    let log = place.open();
    assert_eq!(log.append(&record(0)).unwrap().await.unwrap(), 0);
}

#[test]
fn a_log_has_one_writer() {
    let place = Place::new();
    let _log = place.open();
    let error = AuditLog::open(&place.options(), place.signer()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("another process writes"), "{error}");
}

/// More callers than the queue holds: none is taken silently, and the log tells how many found no place.
#[test]
fn a_full_queue_refuses_and_the_log_says_how_many() {
    let place = Place::new();
    let options = LogOptions { durability: Durability::Strict, queue_records_max: 1, ..place.options() };
    let log = AuditLog::open(&options, place.signer()).unwrap();
    let (mut taken, mut refused) = (Vec::new(), 0u64);
    while refused < 5 {
        match log.append(&record(taken.len() as u64)) {
            Ok(ticket) => taken.push(ticket),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable);
                assert!(error.to_string().contains("1 records wait already"), "{error}");
                refused += 1;
            }
        }
    }
    let count = taken.len();
    for ticket in taken {
        ticket.wait().unwrap();
    }
    assert_eq!(log.status().refused, refused);
    while log.append(&record(0)).is_err() {}
    drop(log);
    let entries = place.entries();
    let told: u64 = entries
        .iter()
        .filter(|entry| entry.record.action == "log.refuse")
        .map(|entry| entry.record.reason.split(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert!(told >= refused, "{told} of {refused}");
    assert!(entries.iter().filter(|entry| entry.record.action == "infer").count() > count);
    assert_eq!(place.verify().findings, []);
}

#[test]
fn queries_find_what_they_name() {
    let place = Place::with_records(600);
    let count = |query: Query| {
        let mut found = 0;
        query
            .run(&place.log(), |_| {
                found += 1;
                true
            })
            .unwrap();
        found
    };
    let at = |n: u64| Some(record(n).time);
    for (what, query, expected) in [
        ("all", Query::default(), 600),
        (
            "one device",
            Query { principal: Some("spiffe://hospital.example/device-3".to_owned()), ..Query::default() },
            60,
        ),
        ("all devices", Query { principal: Some("spiffe://hospital.example/*".to_owned()), ..Query::default() }, 600),
        ("denied", Query { decision: Some(Verdict::Deny), ..Query::default() }, 200),
        ("a time", Query { since: at(10), until: at(20), ..Query::default() }, 10),
        ("from a place on", Query { first: 590, ..Query::default() }, 10),
        ("another action", Query { action: Some("load".to_owned()), ..Query::default() }, 0),
    ] {
        assert_eq!(count(query), expected, "{what}");
    }
    let mut seen = 0;
    let stop = |_| {
        seen += 1;
        seen < 3
    };
    Query::default().run(&place.log(), stop).unwrap();
    assert_eq!(seen, 3);
}

#[test]
fn every_record_is_proved_and_a_changed_proof_is_refused() {
    let place = Place::with_records(700);
    let (folder, key) = (place.log(), place.signer().key().clone());
    let published = Published::open(&folder, &key).unwrap();
    for seq in [0, 1, 255, 256, 511, 512, 698, 699] {
        let proof = published.prove(seq).unwrap();
        let proved = verify_proof(&proof, &key, &[]).unwrap();
        assert_eq!((proved.seq, proved.checkpoint.head.size), (seq, 700));
        assert!(String::from_utf8(proved.entry).unwrap().contains(&format!("record {seq}\"")));
        for (at, _) in proof.char_indices().step_by(37) {
            let mut changed: Vec<char> = proof.chars().collect();
            let place = proof[..at].chars().count();
            changed[place] = if changed[place] == 'A' { 'B' } else { 'A' };
            let changed: String = changed.into_iter().collect();
            let same =
                verify_proof(&changed, &key, &[]).is_ok_and(|other| other == verify_proof(&proof, &key, &[]).unwrap());
            assert!(verify_proof(&changed, &key, &[]).is_err() || same, "{at}: {changed}");
        }
    }
    assert_eq!(published.prove(700).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn growth_is_proved_and_a_rewritten_log_is_not() {
    let place = Place::with_records(300);
    let key = place.signer().key().clone();
    let heads: Vec<Head> = [40, 57, 700]
        .into_iter()
        .map(|more| {
            place.add(more);
            Published::open(&place.log(), &key).unwrap().head()
        })
        .collect();
    let folder = place.log();
    let published = Published::open(&folder, &key).unwrap();
    for old in &heads {
        let proof = published.prove_grown(old.size).unwrap();
        assert_eq!(verify_grown(&proof, old, &key).unwrap().head, published.head());
        let other = Head { root: [1; 32], ..*old };
        assert_eq!(verify_grown(&proof, &other, &key).unwrap_err().kind(), ErrorKind::Unverified);
    }
    assert!(published.prove_grown(10_000).is_err());
}

#[test]
fn a_checkpoint_is_published_in_time_without_being_asked() {
    let place = Place::new();
    let options = LogOptions { publish_every: Duration::from_millis(1), ..place.options() };
    let log = AuditLog::open(&options, place.signer()).unwrap();
    log.append(&record(0)).unwrap().wait().unwrap();
    while log.status().published < 1 {
        std::thread::yield_now();
    }
    assert_eq!(place.verify().published, 1);
}

/// A published tile that stays as it is must not be written again: a crash in the middle would leave a checkpoint without its tile.
#[test]
fn what_is_published_is_never_written_again() {
    let place = Place::with_records(300);
    let log = place.open();
    let upper = place.log().join("tile/1/000.p/1");
    let mark = |path: &std::path::Path| std::fs::write(path, "written before").unwrap();
    mark(&upper);
    for n in 300..310 {
        log.append(&record(n)).unwrap().wait().unwrap();
    }
    assert_eq!(log.flush().unwrap().size, 310);
    assert_eq!(std::fs::read(&upper).unwrap(), b"written before");
    assert!(place.log().join("tile/0/001.p/54").exists());
}

//! Somebody who can write the log's files, but has not its key.

use std::{fs, path::PathBuf};

use edgeward_trust::{
    ErrorKind,
    audit::{
        merkle::{fold, leaf_hash},
        tile::take_entry,
        verify::{Finding, FindingKind},
    },
};

use crate::support::Place;

/// Records in the log that is attacked: two full tiles and a part.
const RECORDS: u64 = 600;

fn bundle(place: &Place, index: u64) -> PathBuf {
    let name = if index < 2 { format!("{index:03}") } else { "002.p/88".to_owned() };
    place.log().join("tile/entries").join(name)
}

fn tile(place: &Place, index: u64) -> PathBuf {
    let name = if index < 2 { format!("{index:03}") } else { "002.p/88".to_owned() };
    place.log().join("tile/0").join(name)
}

fn read_bundle(path: &PathBuf) -> Vec<Vec<u8>> {
    let bytes = fs::read(path).unwrap();
    let (mut rest, mut entries) = (bytes.as_slice(), Vec::new());
    while let Some((entry, after)) = take_entry(rest) {
        entries.push(entry.to_vec());
        rest = after;
    }
    entries
}

fn write_bundle(path: &PathBuf, entries: &[Vec<u8>]) {
    let bytes: Vec<u8> =
        entries.iter().flat_map(|entry| [&(entry.len() as u16).to_be_bytes()[..], entry].concat()).collect();
    fs::write(path, bytes).unwrap();
}

fn edit(path: PathBuf, change: impl FnOnce(&mut Vec<Vec<u8>>)) {
    let mut entries = read_bundle(&path);
    change(&mut entries);
    write_bundle(&path, &entries);
}

fn allow(entry: &mut Vec<u8>) {
    let text = String::from_utf8(entry.clone()).unwrap();
    assert!(text.contains("\"deny\""));
    *entry = text.replace("\"deny\"", "\"allow\"").into_bytes();
}

fn named(findings: &[Finding]) -> Vec<(FindingKind, u64, u64)> {
    findings.iter().map(|finding| (finding.kind, finding.first, finding.last)).collect()
}

#[test]
fn a_changed_dropped_or_moved_record_is_named() {
    use FindingKind::{Changed, Missing, Moved, Truncated};
    type Attack = fn(&Place);
    let attacks: [(&str, Attack, &[(FindingKind, u64, u64)]); 9] = [
        ("changed", |place| edit(bundle(place, 1), |entries| allow(&mut entries[300 - 256])), &[(Changed, 300, 300)]),
        ("first changed", |place| edit(bundle(place, 0), |entries| allow(&mut entries[0])), &[(Changed, 0, 0)]),
        (
            "last changed",
            |place| edit(bundle(place, 2), |entries| allow(&mut entries[597 - 512])),
            &[(Changed, 597, 597)],
        ),
        ("dropped", |place| edit(bundle(place, 1), |entries| drop(entries.remove(44))), &[(Missing, 300, 300)]),
        ("two dropped", |place| edit(bundle(place, 0), |entries| drop(entries.drain(7..9))), &[(Missing, 7, 8)]),
        ("last dropped", |place| edit(bundle(place, 2), |entries| drop(entries.pop())), &[(Missing, 599, 599)]),
        ("swapped", |place| edit(bundle(place, 1), |entries| entries.swap(10, 11)), &[(Moved, 266, 266)]),
        ("bundle gone", |place| fs::remove_file(bundle(place, 1)).unwrap(), &[(Missing, 256, 511)]),
        ("rest gone", |place| fs::remove_file(bundle(place, 2)).unwrap(), &[(Truncated, 512, 599)]),
    ];
    for (what, attack, expected) in attacks {
        let place = Place::with_records(RECORDS);
        attack(&place);
        assert_eq!(named(&place.verify().findings), expected, "{what}: {:?}", place.verify().findings);
    }
}

/// Whoever changes a record's hash too is found by the level above; who changes that too, by the checkpoint.
#[test]
fn hashes_that_are_changed_with_the_record_are_found() {
    let place = Place::with_records(RECORDS);
    edit(bundle(&place, 1), |entries| allow(&mut entries[300 - 256]));
    let hashes: Vec<_> = read_bundle(&bundle(&place, 1)).iter().map(|entry| leaf_hash(entry)).collect();
    fs::write(tile(&place, 1), hashes.as_flattened()).unwrap();
    let findings = named(&place.verify().findings);
    assert!(findings.contains(&(FindingKind::Hashes, 256, 511)), "{findings:?}");
    assert!(findings.contains(&(FindingKind::Changed, 0, 599)), "{findings:?}");

    let upper = place.log().join("tile/1/000.p/2");
    let mut roots = fs::read(&upper).unwrap();
    roots[32..].copy_from_slice(&fold(&hashes).unwrap());
    fs::write(&upper, roots).unwrap();
    assert_eq!(named(&place.verify().findings), [(FindingKind::Changed, 0, 599)]);
    let error = edgeward_trust::audit::AuditLog::open(&place.options(), place.signer()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Tampered, "{error}");
}

/// With the checkpoints that were published before, a rewritten record is found between two of them.
#[test]
fn earlier_checkpoints_narrow_down_what_was_rewritten() {
    let place = Place::new();
    [200, 100, 100, 112].into_iter().for_each(|more| place.add(more));
    edit(place.log().join("tile/entries/001"), |entries| allow(&mut entries[330 - 256]));
    let hashes: Vec<_> =
        read_bundle(&place.log().join("tile/entries/001")).iter().map(|entry| leaf_hash(entry)).collect();
    fs::write(tile(&place, 1), hashes.as_flattened()).unwrap();
    let upper = place.log().join("tile/1/000.p/2");
    let mut roots = fs::read(&upper).unwrap();
    roots[32..].copy_from_slice(&fold(&hashes).unwrap());
    fs::write(&upper, roots).unwrap();
    let findings = named(&place.verify().findings);
    assert_eq!(findings.first(), Some(&(FindingKind::Changed, 300, 399)), "{findings:?}");
}

#[test]
fn a_log_that_was_cut_back_is_found_by_what_it_signed_before() {
    let place = Place::with_records(300);
    let early = fs::read(place.log().join("checkpoint")).unwrap();
    place.add(300);
    fs::write(place.log().join("checkpoint"), early).unwrap();
    fs::remove_dir_all(place.log().join("journal")).unwrap();
    assert_eq!(named(&place.verify().findings), [(FindingKind::Truncated, 300, 599)]);
}

#[test]
fn a_forged_or_missing_checkpoint_is_found() {
    let place = Place::with_records(RECORDS);
    let path = place.log().join("checkpoint");
    let note = fs::read_to_string(&path).unwrap();
    let forged = note.replacen("600", "599", 1);
    for text in [forged.as_str(), "", "no note", &note[..note.len() - 10]] {
        fs::write(&path, text).unwrap();
        let findings = place.verify().findings;
        assert!(findings.iter().any(|finding| finding.kind == FindingKind::Checkpoint), "{text:?}: {findings:?}");
    }
    fs::remove_file(&path).unwrap();
    assert!(place.verify().findings.iter().any(|finding| finding.kind == FindingKind::Checkpoint));
    let error = edgeward_trust::audit::AuditLog::open(&place.options(), place.signer()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Tampered, "{error}");
}

/// Records that only the journal has are signed as well.
#[test]
fn a_changed_journal_is_found() {
    let place = Place::new();
    let log = place.open();
    for n in 0..3 {
        log.append(&crate::support::record(n)).unwrap().wait().unwrap();
    }
    let path = place.log().join("journal").join(format!("{:020}", 0));
    let bytes = fs::read(&path).unwrap();
    let frame = edgeward_trust::audit::journal::Frame::decode(&bytes).unwrap();
    let mut forged = frame.0.clone();
    allow(&mut forged.entries[0]);
    fs::write(&path, [forged.encode().as_slice(), frame.1].concat()).unwrap();
    assert_eq!(named(&place.verify().findings), [(FindingKind::Changed, 0, 0)]);
    // Without its first frame the second has no beginning.
    fs::write(&path, frame.1).unwrap();
    let findings = place.verify().findings;
    assert!(findings[0].text.contains("records 0 to 0 are missing"), "{findings:?}");
    fs::write(&path, bytes).unwrap();
}

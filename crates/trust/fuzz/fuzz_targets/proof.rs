//! What an audit log's reader takes from others: proofs, keys, notes, entries.

#![no_main]

use edgeward_trust::audit::{Entry, note::NoteKey, proof::verify_proof};
use libfuzzer_sys::fuzz_target;

const KEY: &str = "edgeward.local/audit+96acdf81+AVCtFCWdkaUNE841Aea0mkwL0+p2ksFiLjnct+1FL/NH";

fuzz_target!(|data: &[u8]| {
    let _ = Entry::decode(data);
    let _ = Entry::seq_of(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = NoteKey::parse(text);
    let key = NoteKey::parse(KEY).expect("a key");
    if let Ok(proved) = verify_proof(text, &key, &[]) {
        // What the seed proves, and nothing else, was signed.
        assert_eq!(proved.seq, 3);
    }
});

//! An OCI layout of a stranger. Parts are apart by the byte 255: `oci-layout`, `index.json`, then blobs. In a part, `@N` stands for the
//! SHA-256 of blob N and `#N` for its length, so that what is tried goes beyond the first digest. What is imported is a whole release.

#![no_main]

use std::fs;

use edgeward_store::oci;
use libfuzzer_sys::fuzz_target;
use sha2::{Digest as _, Sha256};

fuzz_target!(|data: &[u8]| {
    if data.len() > 64 << 10 {
        return;
    }
    let mut parts: Vec<Vec<u8>> = data.split(|byte| *byte == 255).take(12).map(<[u8]>::to_vec).collect();
    // A blob may name those after it.
    for place in (0..parts.len()).rev() {
        let filled = fill(&parts[place], &parts);
        parts[place] = filled;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let layout = folder.path().join("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).expect("a folder");
    for (place, part) in parts.iter().enumerate() {
        let name = match place {
            0 => "oci-layout".to_owned(),
            1 => "index.json".to_owned(),
            _ => format!("blobs/sha256/{}", hex(part)),
        };
        fs::write(layout.join(name), part).expect("a file");
    }
    let out = folder.path().join("out");
    match oci::import(&layout, None, &out) {
        Ok(release) => release.check_files().expect("what was imported is whole"),
        Err(_) => assert!(!out.exists(), "half a release is left"),
    }
    // Nothing beside what was there and what was asked for.
    let there = fs::read_dir(folder.path()).expect("the folder").count();
    assert_eq!(there, 1 + usize::from(out.exists()), "something is left behind");
});

fn fill(part: &[u8], parts: &[Vec<u8>]) -> Vec<u8> {
    let mut filled = Vec::with_capacity(part.len());
    let mut bytes = part.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let number = bytes.peek().filter(|next| next.is_ascii_digit() && matches!(byte, b'@' | b'#'));
        let blob = number.and_then(|number| parts.get(usize::from(*number - b'0') + 2));
        match blob {
            Some(blob) => {
                bytes.next();
                let text = if byte == b'@' { hex(blob) } else { blob.len().to_string() };
                filled.extend(text.bytes());
            }
            None => filled.push(byte),
        }
    }
    filled
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

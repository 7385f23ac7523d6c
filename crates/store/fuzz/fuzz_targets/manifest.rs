//! A release's manifest: what is read is written as the same bytes, so that one release has one id, and names stay within their folder.

#![no_main]

use edgeward_store::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(manifest) = Manifest::parse(data) else { return };
    assert_eq!(manifest.to_bytes().expect("what was read can be written"), data);
    for path in manifest.files.keys() {
        let parts: Vec<&str> = path.split('/').collect();
        assert!(parts.iter().all(|part| !part.is_empty() && *part != "." && *part != ".."), "`{path}`");
        assert!(!path.contains(['\\', '\0']), "`{path}`");
    }
    for variant in &manifest.variants {
        manifest.file(&variant.graph).expect("a graph is a file of the release");
    }
    let unsealed = manifest.unsealed();
    assert!(!unsealed.is_sealed());
    Manifest::parse(&unsealed.to_bytes().expect("it can be written")).expect("without its seal it is a manifest too");
});

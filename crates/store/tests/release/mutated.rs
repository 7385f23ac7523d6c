//! Manifests, signatures and layouts with random changes: refused or read, never a panic.

use std::fs;

use edgeward_store::{
    Manifest, oci,
    signing::{Bundle, ModelStatement},
};
use proptest::prelude::*;

use crate::support::{Home, model};

/// Changes of bytes: at, what, and how many are cut out there.
fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, usize)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4usize), 1..6)
}

fn changed(bytes: &[u8], changes: &[(prop::sample::Index, u8, usize)]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, byte, cut) in changes {
        if bytes.is_empty() {
            break;
        }
        let at = at.index(bytes.len());
        bytes[at] = *byte;
        let end = (at + cut).min(bytes.len());
        bytes.drain(at..end);
    }
    bytes
}

fn sample() -> (Vec<u8>, Vec<u8>) {
    let home = Home::new();
    home.pack("r", 1, &model(100, 1));
    home.sign("r");
    (fs::read(home.path("r/edgeward.json")).unwrap(), fs::read(home.path("r/model.sig")).unwrap())
}

#[test]
fn random_changes_never_panic() {
    let (manifest, bundle) = sample();
    let payload = Bundle::parse(&bundle).unwrap().payload;
    proptest!(ProptestConfig::with_cases(2000), |(changes in changes())| {
        if let Ok(read) = Manifest::parse(&changed(&manifest, &changes)) {
            // What is read is what is written.
            prop_assert_eq!(Manifest::parse(&read.to_bytes().unwrap()).unwrap(), read);
        }
        let _ = Bundle::parse(&changed(&bundle, &changes));
        let _ = ModelStatement::parse(&changed(&payload, &changes));
    });
}

#[test]
fn random_layouts_never_panic_and_never_leave_their_folder() {
    let home = Home::new();
    home.pack("r", 1, &model(100, 1));
    oci::export(&home.path("r"), &home.path("layout")).unwrap();
    let whole = crate::support::files(&home.path("layout"));
    proptest!(ProptestConfig::with_cases(200), |(changes in changes(), which in any::<prop::sample::Index>())| {
        let (name, bytes) = &whole[which.index(whole.len())];
        fs::write(home.path("layout").join(name), changed(bytes, &changes)).unwrap();
        let result = oci::import(&home.path("layout"), None, &home.path("back"));
        prop_assert_eq!(result.is_ok(), home.path("back").exists());
        if result.is_ok() {
            fs::remove_dir_all(home.path("back")).unwrap();
        }
        fs::write(home.path("layout").join(name), bytes).unwrap();
    });
}

/// Numbers and names that a manifest may not have, each in an otherwise good one.
#[test]
fn hostile_manifests_are_refused_by_name() {
    let (manifest, _) = sample();
    let text = String::from_utf8(manifest).unwrap();
    let cases = [
        (r#""sequence":1"#, r#""sequence":0"#, "sequence is 0"),
        (r#""sequence":1"#, r#""sequence":9007199254740992"#, "sequence is 9007199254740992"),
        (r#""sequence":1"#, r#""sequence":1.5"#, "floating point"),
        (r#""sequence":1"#, r#""sequence":1,"extra":1"#, "unknown field `extra`"),
        (r#""sequence":1"#, r#""sequence":1,"sequence":2"#, "duplicate field"),
        (r#""name":"chest""#, r#""name":"../chest""#, "cannot name a release"),
        (r#""format":"edgeward-release-1""#, r#""format":"edgeward-release-2""#, "expected `edgeward-release-1`"),
        ("variants/a/model.onnx", "../a/model.onnx", "cannot be a file of a release"),
        ("variants/a/model.onnx", "variants/a/model.pkl", "expected a file `….onnx`"),
        ("variants/a/model.onnx", "edgeward.json", "is about a release"),
        ("variants/a/a.onnx.data", "variants/b/a.onnx.data", "outside its folder"),
        ("variants/b/model.onnx", "VARIANTS/a/model.onnx", "upper and lower case"),
        (r#""name":"b""#, r#""name":"a""#, "is there twice"),
    ];
    for (from, to, expected) in cases {
        assert!(text.contains(from), "{from}");
        let error = Manifest::parse(text.replace(from, to).as_bytes()).err().unwrap();
        assert!(error.to_string().contains(expected), "{to}: {error}");
    }
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value["files"]["variants/a/extra.bin"] = value["files"]["variants/a/model.onnx"].clone();
    let error = Manifest::parse(&serde_json::to_vec(&value).unwrap()).err().unwrap();
    assert!(error.to_string().contains("is listed and of no variant"), "{error}");
    value["files"]["variants/a/model.onnx"]["size"] = serde_json::json!(u64::MAX);
    let error = Manifest::parse(&serde_json::to_vec(&value).unwrap()).err().unwrap();
    assert!(error.to_string().contains("size of `variants/a/model.onnx`"), "{error}");
}

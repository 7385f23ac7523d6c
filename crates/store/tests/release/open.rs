//! Opening: signature, downgrade, and that only what is signed and listed loads.

use std::{fs, thread};

use edgeward_graph::{Limits, Model};
use edgeward_store::{ErrorKind, Floor, OpenOptions, Opened, StoreError, open, signing::TrustRoots};

use crate::support::{Home, model, refused};

fn open_with(home: &Home, folder: &str, floor: Option<&Floor>) -> Result<Opened, StoreError> {
    let trust = home.trust();
    open(&home.path(folder), &OpenOptions { trust: &trust, keys: Some(home.keys.as_ref()), floor })
}

#[test]
fn a_variant_loads_as_one_onnx_file_with_its_data() {
    let home = Home::new();
    let model = model(5000, 1);
    home.pack("r", 1, &model);
    refused(open_with(&home, "r", None), ErrorKind::Unverified, "is not signed");
    home.sign("r");
    let opened = open_with(&home, "r", None).unwrap();
    for name in ["a", "b"] {
        let loaded = opened.load(name).unwrap();
        let read = Model::from_bytes(loaded.model.clone(), &Limits::default()).unwrap();
        let weights = |model: &Model| model.tensor(&model.graph().initializer[0]).unwrap();
        assert_eq!(weights(&read).raw(), weights(&model).raw(), "{name}");
        assert!(!loaded.locked, "what is not sealed is not hidden");
    }
    refused(opened.load("c"), ErrorKind::NotFound, "there are `a`, `b`");
    let nobody = TrustRoots::default();
    let options = OpenOptions { trust: &nobody, keys: None, floor: None };
    refused(open(&home.path("r"), &options), ErrorKind::Unverified, "not trusted here");
}

/// Who changes a file after the signature was verified changes nothing that is loaded.
#[test]
fn a_file_that_changes_after_opening_is_refused_when_it_loads() {
    let home = Home::new();
    home.pack("r", 1, &model(5000, 1));
    home.sign("r");
    let opened = open_with(&home, "r", None).unwrap();
    let path = home.path("r/variants/a/a.onnx.data");
    let whole = fs::read(&path).unwrap();
    let mut changed = whole.clone();
    changed[4000] ^= 1;
    fs::write(&path, &changed).unwrap();
    refused(opened.load("a"), ErrorKind::Tampered, "`variants/a/a.onnx.data` was changed");
    fs::write(&path, &whole[1..]).unwrap();
    refused(opened.load("a"), ErrorKind::Tampered, "bytes");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(home.path("r-source/a.onnx.data"), &path).unwrap();
    refused(opened.load("a"), ErrorKind::Invalid, "symbolic link");
    assert!(opened.load("b").is_ok());
}

#[test]
fn an_older_release_is_refused_where_a_newer_was_seen() {
    let home = Home::new();
    for sequence in [3, 4] {
        let name = format!("r{sequence}");
        home.pack(&name, sequence, &model(100, sequence as u32));
        home.sign(&name);
    }
    let floor = Floor::at(home.path("floor.json"));
    for folder in ["r3", "r3", "r4", "r4"] {
        open_with(&home, folder, Some(&floor)).unwrap();
    }
    refused(open_with(&home, "r3", Some(&floor)), ErrorKind::Downgrade, "release 3 of `chest` is older than 4");
    // Its signature is as good as ever: without a floor it opens.
    open_with(&home, "r3", None).unwrap();
    // Another release with the same number.
    home.pack("again", 4, &model(100, 9));
    home.sign("again");
    refused(open_with(&home, "again", Some(&floor)), ErrorKind::Downgrade, "another with this number");
    // A release that nobody signed raises nothing.
    home.pack("r9", 9, &model(100, 9));
    refused(open_with(&home, "r9", Some(&floor)), ErrorKind::Unverified, "is not signed");
    open_with(&home, "r4", Some(&floor)).unwrap();
    // Who breaks the file does not get an old one in.
    fs::write(home.path("floor.json"), b"{").unwrap();
    refused(open_with(&home, "r3", Some(&floor)), ErrorKind::Invalid, "floor.json");
}

#[test]
fn many_at_once_keep_the_newest() {
    let home = Home::new();
    let floor = Floor::at(home.path("floor.json"));
    let id = home.pack("r", 1, &model(10, 1)).id();
    thread::scope(|scope| {
        for sequence in 1..=16 {
            let floor = &floor;
            scope.spawn(move || {
                let _ = floor.raise("chest", sequence, id);
                floor.raise(&format!("other-{sequence}"), 1, id).unwrap();
            });
        }
    });
    refused(floor.raise("chest", 15, id), ErrorKind::Downgrade, "older than 16");
    for sequence in 1..=16 {
        refused(floor.raise(&format!("other-{sequence}"), 0, id), ErrorKind::Downgrade, "older than 1");
    }
}

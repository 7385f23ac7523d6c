//! OCI image layouts: a round trip, and layouts that lie.

use std::{fs, path::PathBuf};

use edgeward_store::{ErrorKind, digest::Digest, oci, signing};
use serde_json::{Value, json};

use crate::support::{Home, files, model, refused};

fn exported() -> Home {
    let home = Home::new();
    home.pack("r", 1, &model(2000, 1));
    home.sign("r");
    oci::export(&home.path("r"), &home.path("layout")).unwrap();
    home
}

#[test]
fn a_release_comes_back_as_it_was() {
    let home = exported();
    let back = oci::import(&home.path("layout"), None, &home.path("back")).unwrap();
    assert_eq!(files(&home.path("back")), files(&home.path("r")));
    signing::verify(&back, &home.trust()).unwrap();
    assert!(oci::import(&home.path("layout"), Some("chest:1.1"), &home.path("named")).is_ok());
    refused(oci::import(&home.path("layout"), Some("x"), &home.path("x")), ErrorKind::NotFound, "no release `x`");
    refused(oci::import(&home.path("layout"), None, &home.path("back")), ErrorKind::Exists, "exists already");
    refused(oci::export(&home.path("r"), &home.path("layout")), ErrorKind::Exists, "exists already");
}

fn json_file(path: PathBuf) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Writes another image manifest and points the index to it.
fn replace_image(home: &Home, change: impl FnOnce(&mut Value)) {
    let mut index = json_file(home.path("layout/index.json"));
    let blob = |digest: &str| home.path(&format!("layout/blobs/sha256/{}", digest.trim_start_matches("sha256:")));
    let mut image = json_file(blob(index["manifests"][0]["digest"].as_str().unwrap()));
    change(&mut image);
    let bytes = serde_json::to_vec(&image).unwrap();
    let digest = format!("sha256:{}", Digest::of(&bytes));
    fs::write(blob(&digest), &bytes).unwrap();
    index["manifests"][0]["digest"] = json!(digest);
    index["manifests"][0]["size"] = json!(bytes.len());
    fs::write(home.path("layout/index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
}

#[test]
fn layouts_that_lie_are_refused_by_name() {
    type Change = fn(&mut Value);
    let cases: [(&str, Change, ErrorKind, &str); 11] = [
        ("size", |i| i["layers"][0]["size"] = json!(5), ErrorKind::Tampered, "are listed"),
        ("huge size", |i| i["layers"][0]["size"] = json!(u64::MAX), ErrorKind::Tampered, "are listed"),
        ("no digest", |i| i["layers"][0]["digest"] = json!("sha256:zz"), ErrorKind::Invalid, "image manifest"),
        (
            "sha512",
            |i| i["layers"][0]["digest"] = json!(format!("sha512:{}", "a".repeat(128))),
            ErrorKind::Invalid,
            "expected a digest",
        ),
        (
            "path",
            |i| i["layers"][0]["annotations"]["org.opencontainers.image.title"] = json!("../../evil"),
            ErrorKind::Tampered,
            "`../../evil` is not listed",
        ),
        (
            "absolute",
            |i| i["layers"][0]["annotations"]["org.opencontainers.image.title"] = json!("/etc/cron.d/x"),
            ErrorKind::Tampered,
            "is not listed",
        ),
        ("no path", |i| i["layers"][0]["annotations"] = json!({}), ErrorKind::Invalid, "has no"),
        (
            "twice",
            |i| {
                let first = i["layers"][0].clone();
                i["layers"].as_array_mut().unwrap().push(first);
            },
            ErrorKind::Tampered,
            "is there twice",
        ),
        ("missing", |i| drop(i["layers"].as_array_mut().unwrap().remove(0)), ErrorKind::Tampered, "has no layer"),
        ("other artifact", |i| i["artifactType"] = json!("application/x"), ErrorKind::Invalid, "is no release"),
        (
            "swapped",
            |i| {
                let second = i["layers"][1]["digest"].clone();
                i["layers"][0]["digest"] = second;
            },
            ErrorKind::Tampered,
            "`variants/a/",
        ),
    ];
    let home = exported();
    let index = fs::read(home.path("layout/index.json")).unwrap();
    for (what, change, kind, expected) in cases {
        fs::write(home.path("layout/index.json"), &index).unwrap();
        replace_image(&home, change);
        let error = oci::import(&home.path("layout"), None, &home.path("back")).err().unwrap();
        assert!(error.kind() == kind && error.to_string().contains(expected), "{what}: {:?} {error}", error.kind());
        assert!(!home.path("back").exists(), "{what}");
    }
}

#[test]
fn blobs_that_changed_are_refused_by_name() {
    let home = exported();
    for (name, bytes) in files(&home.path("layout/blobs")) {
        let path = home.path("layout/blobs").join(&name);
        for changed in [bytes[1..].to_vec(), [&bytes[..], b"x"].concat(), bytes.iter().map(|byte| byte ^ 1).collect()] {
            fs::write(&path, changed).unwrap();
            let error = oci::import(&home.path("layout"), None, &home.path("back")).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Tampered, "{name}: {error}");
        }
        fs::remove_file(&path).unwrap();
        let error = oci::import(&home.path("layout"), None, &home.path("back")).err().unwrap();
        assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains(&name), "{name}: {error}");
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        let error = oci::import(&home.path("layout"), None, &home.path("back")).err().unwrap();
        assert!(error.to_string().contains("symbolic link"), "{name}: {error}");
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
    }
    oci::import(&home.path("layout"), None, &home.path("back")).unwrap();
}

//! `edgeward release seal`, `rekey` and `oci:` places, as typed; and the same with keys in a token.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "../../trust/tests/parts/part.rs"]
mod part;
mod support;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use binary::{edgeward, json, text};
use edgeward_graph::DataType;
use serde_json::{Value, json};
use support::{Server, identity, slow};

/// The exit code and what is said.
fn fails(folder: &Path, words: &str) -> (i32, String) {
    let output = edgeward(folder, words);
    assert!(!output.status.success(), "{words}: {}", text(&output));
    (output.status.code().unwrap(), text(&output))
}

/// A signed release of two variants, one of them with external data.
fn signed(home: &Path) {
    identity(DataType::Float32).write(home.join("plain.onnx")).unwrap();
    slow(40).write_external(home.join("external.onnx"), 100).unwrap();
    json(home, "release pack plain.onnx external.onnx --out r --name chest --version 1.0.0 --sequence 3");
    json(home, "release sign r --keys keys --write-public-key release.pub");
}

fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read(path).unwrap());
            }
        }
    }
    found
}

/// Why a server does not load the release with these keys; nothing where it does.
fn unserved(home: &Path, release: &str, keys: &str) -> Option<String> {
    let (key, keys) = (home.join("release.pub"), home.join(keys));
    let server = Server::start(
        &[&home.join(release)],
        &["--engine", "rten", "--public-key", key.to_str().unwrap(), "--release-keys", keys.to_str().unwrap()],
    );
    let index: Value = serde_json::from_str(&server.ask("POST", "/v2/repository/index", "", b"{}").1).unwrap();
    assert_eq!(index[0]["name"], "chest", "{index}");
    (index[0]["state"] != "READY").then(|| index[0]["reason"].as_str().unwrap().to_owned())
}

#[test]
fn a_sealed_release_holds_nothing_that_can_be_read() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    signed(home);
    let (code, said) = fails(home, "release seal r --out s");
    assert!(code == 2 && said.contains("expected `--keys FILE`"), "{said}");
    let sealed = json(home, "release seal r --out s --keys keys");
    let (before, after) = (files(&home.join("r")), files(&home.join("s")));
    for (path, plain) in before.iter().filter(|(path, _)| path.starts_with("variants")) {
        let file = &after[path];
        // A part of each file, from its middle, is nowhere in what lies there now.
        let part = &plain[plain.len() / 2..][..plain.len().min(32) / 2];
        assert!(file.starts_with(b"EDGSEAL1") && !file.windows(part.len()).any(|seen| seen == part), "{path:?}");
    }
    assert!(after.contains_key(Path::new("key.json")) && !after.contains_key(Path::new("model.sig")));
    let (code, said) = fails(home, "release verify s --public-key release.pub");
    assert!(code == 1 && said.contains("`s` is not signed"), "{said}");
    json(home, "release sign s --keys keys");
    let verified = json(home, "release verify s --public-key release.pub");
    assert_eq!((&verified["id"], &verified["sealed"]), (&sealed["id"], &json!(true)));
    assert!(text(&edgeward(home, "release list s")).contains("sealed, signed"));
    // Sealed once more it is another ciphertext of the same release.
    json(home, "release seal r --out again --keys keys");
    assert_ne!(
        files(&home.join("again")).get(Path::new("variants/plain/model.onnx")),
        after.get(Path::new("variants/plain/model.onnx"))
    );
    let (code, said) = fails(home, "release seal s --out t --keys keys");
    assert!(code == 2 && said.contains("is sealed already; `rekey`"), "{said}");
    let (code, said) = fails(home, "release seal r --out s --keys keys");
    assert!(code == 2 && said.contains("exists already"), "{said}");
    let (code, said) = fails(home, "release seal r --out t --keys keys --key nothing");
    assert!(code == 2 && said.contains("no key `nothing`"), "{said}");
    fs::write(home.join("r/variants/plain/model.onnx"), b"x").unwrap();
    let (code, said) = fails(home, "release seal r --out t --keys keys");
    assert!(code == 1 && said.contains("`variants/plain/model.onnx`"), "{said}");
    assert!(!home.join("t").exists());
    assert_eq!(unserved(home, "s", "keys"), None);
}

#[test]
fn a_key_is_turned_over_and_handed_on_without_touching_the_files() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    signed(home);
    json(home, "release seal r --out s --keys keys");
    json(home, "release sign s --keys keys");
    let before = files(&home.join("s"));
    let changed = || {
        let now = files(&home.join("s"));
        assert!(now.keys().eq(before.keys()));
        now.into_iter().filter(|(path, bytes)| before[path] != *bytes).map(|(path, _)| path).collect::<Vec<_>>()
    };
    let turned = json(home, "release rekey s --keys keys --rotate");
    assert_eq!((&turned["key_version"], changed()), (&json!(2), vec![PathBuf::from("key.json")]));
    json(home, "release verify s --public-key release.pub");
    assert_eq!(unserved(home, "s", "keys"), None);
    // Handed on to somebody else's keys.
    fs::create_dir(home.join("site")).unwrap();
    json(home, "release seal r --out site/own --keys site/keys");
    let handed = json(home, "release rekey s --keys keys --to-keys site/keys --to-key-file site/unlock.key");
    assert_eq!((&handed["id"], changed()), (&turned["id"], vec![PathBuf::from("key.json")]));
    assert_eq!(unserved(home, "s", "site/keys"), None);
    let reason = unserved(home, "s", "keys").unwrap();
    assert!(reason.contains("does not unwrap this"), "{reason}");
    // Who cannot open it hands nothing on.
    let whole = files(&home.join("s"));
    let (code, said) = fails(home, "release rekey s --keys keys");
    assert!(code == 1 && said.contains("does not unwrap this"), "{said}");
    // The key file beside the keys is the one that is tried.
    json(home, "release rekey s --keys site/keys --to-keys keys");
    let (_, said) = fails(home, "release rekey r --keys keys");
    assert!(said.contains("`r` is not sealed"), "{said}");
    fs::write(home.join("s/key.json"), &whole[Path::new("key.json")]).unwrap();
    let of_another = fs::read(home.join("site/own/key.json")).unwrap();
    assert_eq!(unserved(home, "s", "site/keys"), None);
    // The same release's, but sealed another time: it unwraps, and opens nothing.
    fs::write(home.join("s/key.json"), of_another).unwrap();
    let reason = unserved(home, "s", "site/keys").unwrap();
    assert!(reason.contains("does not open"), "{reason}");
    for (text, expected) in [("", "key.json"), ("{}", "missing field"), ("{\"format\":\"x\"}", "missing field")] {
        fs::write(home.join("s/key.json"), text).unwrap();
        let reason = unserved(home, "s", "site/keys").unwrap();
        assert!(reason.contains(expected), "{text}: {reason}");
    }
    fs::remove_file(home.join("s/key.json")).unwrap();
    let reason = unserved(home, "s", "site/keys").unwrap();
    assert!(reason.contains("its `key.json` is missing"), "{reason}");
}

#[test]
fn a_release_goes_through_an_oci_layout_unchanged() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    signed(home);
    json(home, "release seal r --out s --keys keys");
    json(home, "release sign s --keys keys");
    let trusted = "--public-key release.pub --floor floor.json";
    for release in ["r", "s"] {
        let pushed = json(home, &format!("release push {release} oci:layout-{release}"));
        let pulled = json(home, &format!("release pull oci:layout-{release} back-{release} {trusted}"));
        assert_eq!(pushed["id"], pulled["id"]);
        assert_eq!(files(&home.join(format!("back-{release}"))), files(&home.join(release)));
    }
    let index: Value = serde_json::from_slice(&fs::read(home.join("layout-r/index.json")).unwrap()).unwrap();
    let entry = &index["manifests"][0];
    assert_eq!(entry["artifactType"], "application/vnd.edgeward.release.v1");
    assert_eq!(entry["annotations"]["org.opencontainers.image.ref.name"], "chest:1.0.0");
    assert_eq!(unserved(home, "back-s", "keys"), None);
    let (code, said) = fails(home, "release push r oci:layout-r");
    assert!(code == 2 && said.contains("exists already"), "{said}");
    json(home, &format!("release pull oci:layout-r named --name chest:1.0.0 {trusted}"));
    let (code, said) = fails(home, &format!("release pull oci:layout-r none --name chest:9 {trusted}"));
    assert!(code == 2 && said.contains("has no release `chest:9`"), "{said}");
    let (code, said) = fails(home, &format!("release pull oci:nowhere none {trusted}"));
    assert!(code == 2 && said.contains("nowhere"), "{said}");
    let (code, said) = fails(home, "release pull oci:layout-r none --public-key keys");
    assert!(code == 2 && said.contains("public key"), "{said}");
    // A blob that was changed, in size or in content, and one that leads elsewhere.
    let largest = fs::read_dir(home.join("layout-r/blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
    let largest = largest.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let whole = fs::read(&largest).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for (bytes, expected) in [(&flipped[..], "was changed"), (&whole[1..], "bytes"), (&[], "bytes")] {
        fs::write(&largest, bytes).unwrap();
        let (code, said) = fails(home, &format!("release pull oci:layout-r none {trusted}"));
        assert!(code == 1 && said.contains(expected), "{said}");
        assert!(!home.join("none").exists());
    }
    fs::remove_file(&largest).unwrap();
    std::os::unix::fs::symlink(home.join("external.onnx.data"), &largest).unwrap();
    let (_, said) = fails(home, &format!("release pull oci:layout-r none {trusted}"));
    assert!(said.contains("symbolic link") && !home.join("none").exists(), "{said}");
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output));
}

/// Keys that never leave a token sign, seal, and open a release for a server.
#[test]
fn keys_in_a_token_sign_seal_and_serve() {
    let Some(library) = part::part("EDGEWARD_TEST_PKCS11", "the library libsofthsm2.so") else { return };
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let config = home.join("softhsm2.conf");
    fs::create_dir(home.join("tokens")).unwrap();
    let tokens = home.join("tokens");
    fs::write(
        &config,
        format!("directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n", tokens.display()),
    )
    .unwrap();
    let init = ["--init-token", "--free", "--label", "edge", "--so-pin", "1234", "--pin", "5678"];
    run(Command::new("softhsm2-util").args(init).env("SOFTHSM2_CONF", &config));
    for (make, kind, label) in [("--keypairgen", "EC:prime256v1", "release"), ("--keygen", "AES:32", "seal")] {
        let mut tool = Command::new("pkcs11-tool");
        tool.arg("--module").arg(&library).args(["--token-label", "edge", "--login", "--pin", "5678", make]);
        run(tool.args(["--key-type", kind, "--label", label, "--id", "01"]).env("SOFTHSM2_CONF", &config));
    }
    fs::write(home.join("pin"), "5678\n").unwrap();
    fs::set_permissions(home.join("pin"), fs::Permissions::from_mode(0o600)).unwrap();
    let settings =
        format!("provider = \"pkcs11\"\nmodule = {library:?}\ntoken = \"edge\"\npin = {{ file = \"pin\" }}\n");
    fs::write(home.join("token.toml"), settings).unwrap();
    identity(DataType::Float32).write(home.join("plain.onnx")).unwrap();
    let with_token = |words: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgeward"));
        run(command.args(words.split(' ')).current_dir(home).env("SOFTHSM2_CONF", &config));
    };
    with_token("release pack plain.onnx --out r --name chest");
    with_token("release seal r --out s --keys token.toml");
    with_token("release sign s --keys token.toml --write-public-key release.pub");
    let (key, token) = (home.join("release.pub"), home.join("token.toml"));
    let arguments =
        ["--engine", "rten", "--public-key", key.to_str().unwrap(), "--release-keys", token.to_str().unwrap()];
    let server = Server::start_with(&[&home.join("s")], &arguments, |command| {
        command.env("SOFTHSM2_CONF", &config);
    });
    assert_eq!(server.ask("GET", "/v2/models/chest/ready", "", b"").0, 200);
    // From the token to a file of keys, for a machine that has none.
    with_token("release seal r --out own --keys keys");
    with_token("release rekey s --keys token.toml --to-keys keys");
    assert_eq!(unserved(home, "s", "keys"), None);
    let (code, said) = fails(home, "release seal r --out t --keys nowhere.toml");
    assert!(code == 2 && said.contains("nowhere.toml"), "{said}");
}

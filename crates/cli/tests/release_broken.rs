//! Releases and their keys when commands run at once, are killed, or meet what somebody else has broken or planted.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[allow(dead_code, reason = "each test file uses a part of it")]
#[path = "../../store/tests/release/support.rs"]
mod releases;

use std::{
    fs::{self, File},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use binary::{edgeward, json, text};
use serde_json::Value;

/// The exit code and what is said.
fn fails(folder: &Path, words: &str) -> (i32, String) {
    let output = edgeward(folder, words);
    assert!(!output.status.success(), "{words}: {}", text(&output));
    (output.status.code().unwrap(), text(&output))
}

/// Runs all of them at once; each must succeed.
fn at_once(folder: &Path, all: &[String]) {
    let start = |words: &String| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgeward"));
        let command = command.args(words.split(' ')).current_dir(folder);
        (words.clone(), command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    };
    let running: Vec<_> = all.iter().map(start).collect();
    for (words, child) in running {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{words}: {}", text(&output));
    }
}

/// A packed release of so many weights.
fn packed(home: &Path, name: &str, sequence: u64, weights: usize) {
    releases::model(weights, 1).write(home.join("m.onnx")).unwrap();
    json(home, &format!("release pack m.onnx --out {name} --name chest --sequence {sequence}"));
}

fn signed(home: &Path, name: &str, sequence: u64, weights: usize) {
    packed(home, name, sequence, weights);
    json(home, &format!("release sign {name} --keys keys --write-public-key release.pub"));
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn commands_that_make_and_turn_over_keys_at_once_lose_none() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    packed(home, "r", 1, 100);
    fs::create_dir(home.join("k")).unwrap();
    // Two files of keys share what opens them.
    let seal = |n: &usize| format!("release seal r --out s{n} --keys k/keys-{}", n % 2);
    at_once(home, &(0..6).map(|n| seal(&n)).collect::<Vec<_>>());
    let rekey = |n: usize| format!("release rekey s{n} --keys k/keys-{}", n % 2);
    at_once(home, &(0..6).map(|n| rekey(n) + " --rotate").collect::<Vec<_>>());
    // Each opens what it wraps anew, and nobody's version is missing.
    let versions: Vec<Value> = (0..6).map(|n| json(home, &rekey(n))["key_version"].clone()).collect();
    assert_eq!(versions, [4; 6]);
    let listed = names(&home.join("k"));
    assert!(!listed.iter().any(|name| name.contains("new")), "{listed:?}");
}

/// What is left where a command is killed while it writes is no part of the release, and the next command removes it.
#[test]
fn what_a_killed_command_has_left_is_ignored_and_cleared_away() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    packed(home, "r", 1, 100);
    json(home, "release seal r --out s --keys keys");
    json(home, "release sign s --keys keys --write-public-key release.pub");
    let left = |name: &str| fs::write(home.join("s").join(name), b"half of").unwrap();
    ["model.sig", "key.json"].iter().for_each(|name| left(&format!(".new-{name}-abc234")));
    left(".new-key.json-held77");
    let held = File::open(home.join("s/.new-key.json-held77")).unwrap();
    held.lock().unwrap();
    json(home, "release verify s --public-key release.pub --keys keys");
    json(home, "release rekey s --keys keys");
    json(home, "release sign s --keys keys");
    // The one that another command is at work on stays.
    let mut found = names(&home.join("s"));
    found.retain(|name| name.starts_with('.'));
    assert_eq!(found, [".new-key.json-held77"]);
    for name in [".new-key.json", ".new-other-abc234", ".new-key.json-abc2345", "variants/.new-key.json-abc234"] {
        left(name);
        let (code, said) = fails(home, "release verify s --public-key release.pub");
        assert!(code == 1 && said.contains("not listed"), "{name}: {said}");
        fs::remove_file(home.join("s").join(name)).unwrap();
    }
}

#[test]
fn folders_of_killed_commands_are_cleared_away() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    packed(home, "r", 1, 100);
    for name in [".release-abc234.unfinished", ".release-held77.unfinished", ".release-backup", ".release-x.unfinished"]
    {
        fs::create_dir(home.join(name)).unwrap();
        fs::copy(home.join("r/edgeward.json"), home.join(name).join("edgeward.json")).unwrap();
    }
    let held = File::open(home.join(".release-held77.unfinished")).unwrap();
    held.lock().unwrap();
    assert_eq!(json(home, "release list .").as_array().unwrap().len(), 1);
    json(home, "release seal r --out s --keys keys");
    let mut found = names(home);
    found.retain(|name| name.starts_with(".release"));
    found.sort();
    assert_eq!(found, [".release-backup", ".release-held77.unfinished", ".release-x.unfinished"]);
}

/// Killed for real, again and again: the same command goes on, and nothing is left.
#[test]
fn a_command_that_was_killed_is_given_again() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    signed(home, "r", 1, 1 << 20);
    json(home, "release push r place");
    let pull = "release pull place got --public-key release.pub";
    for round in 0..12 {
        for words in ["release seal r --out s --keys keys", pull] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_edgeward"));
            let command = command.args(words.split(' ')).current_dir(home).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            // By its progress, not by time: as soon as so many names more are there.
            let before = count(home);
            while child.try_wait().unwrap().is_none() && count(home) < before + round {
                std::thread::yield_now();
            }
            let _ = child.kill();
            child.wait().unwrap();
            ["s", "got"].iter().for_each(|made| drop(fs::remove_dir_all(home.join(made))));
        }
    }
    json(home, pull);
    json(home, "release seal r --out s --keys keys");
    json(home, "release verify got --public-key release.pub");
    assert_eq!(names(&home.join("got")).len(), names(&home.join("r")).len());
    let found = names(home);
    assert!(!found.iter().any(|name| name.starts_with('.') || name.ends_with(".partial")), "{found:?}");
}

/// Names beneath a folder, of which some come and go.
fn count(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| 1 + if entry.path().is_dir() { count(&entry.path()) } else { 0 }).sum()
}

/// Who may write into the folder that a pull fills gets nothing outside of it overwritten.
#[test]
fn a_pull_follows_no_planted_link() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    signed(home, "r", 1, 1000);
    json(home, "release push r place");
    let victim = home.join("victim");
    let partial = home.join("got.partial");
    let plant = |what: &str| {
        let _ = fs::remove_dir_all(home.join("got"));
        fs::write(&victim, b"precious").unwrap();
        fs::create_dir_all(home.join("outside/m")).unwrap();
        match what {
            "folder" => return symlink(home.join("outside"), &partial).unwrap(),
            "folder of files" => {
                fs::create_dir(&partial).unwrap();
                symlink(home.join("outside"), partial.join("variants")).unwrap();
            }
            "second name" => {
                fs::create_dir_all(partial.join("variants/m")).unwrap();
                fs::hard_link(&victim, partial.join("variants/m/model.onnx")).unwrap();
            }
            "pipe" => {
                fs::create_dir_all(partial.join("variants/m")).unwrap();
                let pipe = partial.join("variants/m/model.onnx");
                assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
            }
            _ => {
                fs::create_dir_all(partial.join("variants/m")).unwrap();
                symlink(&victim, partial.join("variants/m/model.onnx")).unwrap();
                symlink(&victim, partial.join("model.sig")).unwrap();
            }
        }
        fs::copy(home.join("r/edgeward.json"), partial.join("edgeward.json")).unwrap();
    };
    for what in ["file", "folder", "folder of files", "second name", "pipe"] {
        plant(what);
        json(home, "release pull place got --public-key release.pub");
        assert_eq!(fs::read(&victim).unwrap(), b"precious", "{what}");
        assert_eq!(names(&home.join("outside/m")), Vec::<String>::new(), "{what}");
        json(home, "release verify got --public-key release.pub");
    }
}

/// The packs of a place.
fn packs(home: &Path) -> Vec<PathBuf> {
    let mut packs: Vec<_> =
        fs::read_dir(home.join("place/packs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    packs.sort();
    packs
}

#[test]
fn a_push_finds_and_mends_what_is_broken_there() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    signed(home, "r1", 1, 1 << 18);
    signed(home, "r2", 2, 1 << 18);
    json(home, "release push r1 place");
    let [pack] = packs(home).try_into().unwrap();
    let whole = fs::read(&pack).unwrap();
    let index = home.join("place/releases/chest/00000000000000000001/index.json");
    let listed = fs::read(&index).unwrap();
    let flipped: Vec<u8> = whole.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at == 70_000)).collect();
    let pulls = |sequence: u64| {
        let _ = fs::remove_dir_all(home.join("got"));
        json(home, &format!("release pull place got --sequence {sequence} --public-key release.pub"));
    };
    let refused = |expected: &str| {
        let _ = fs::remove_dir_all(home.join("got"));
        let (_, said) = fails(home, "release pull place got --sequence 1 --public-key release.pub");
        assert!(said.contains(expected) && said.contains("push RELEASE PLACE --check"), "{said}");
        fs::remove_dir_all(home.join("got.partial")).unwrap();
    };
    for (broken, expected) in [(None, "is missing"), (Some(&flipped[..]), "does not hold"), (Some(&whole[..9]), "")] {
        match broken {
            None => fs::remove_file(&pack).unwrap(),
            Some(bytes) => fs::write(&pack, bytes).unwrap(),
        }
        if !expected.is_empty() {
            refused(expected);
        }
        let pushed = json(home, "release push r1 place");
        assert_eq!((&pushed["broken_packs"], pushed["sent_bytes"].as_u64()), (&1.into(), Some(whole.len() as u64)));
        assert_eq!(fs::read(&pack).unwrap(), whole);
        assert_eq!(json(home, "release push r1 place")["sent_bytes"], 0);
        pulls(1);
    }
    // An index that cannot be read, and one that says other places.
    let text = String::from_utf8(listed.clone()).unwrap();
    for changed in ["{".to_owned(), text.replacen("\"offset\":0", "\"offset\":1", 1)] {
        fs::write(&index, changed).unwrap();
        json(home, "release push r1 place");
        pulls(1);
    }
    // What was begun, and broken before the index was written.
    fs::remove_file(&index).unwrap();
    fs::write(&pack, &flipped).unwrap();
    json(home, "release push r1 place");
    pulls(1);
    // Another release does not build on what is broken.
    fs::write(&pack, &flipped).unwrap();
    let said = text_of(home, "release push r2 place");
    assert!(said.contains("missing or broken: 1") && said.contains("push others of `chest`"), "{said}");
    pulls(2);
}

fn text_of(home: &Path, words: &str) -> String {
    let output = edgeward(home, words);
    assert!(output.status.success(), "{words}: {}", text(&output));
    text(&output)
}

#[test]
fn verify_tells_what_can_be_told_of_the_wrapped_key() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    packed(home, "r", 1, 100);
    for name in ["s", "t"] {
        json(home, &format!("release seal r --out {name} --keys keys"));
        json(home, &format!("release sign {name} --keys keys --write-public-key release.pub"));
    }
    let key = home.join("s/key.json");
    let verify = "release verify s --public-key release.pub";
    json(home, &format!("{verify} --keys keys"));
    // That of the same release, sealed another time: well-formed, and it opens nothing.
    fs::copy(home.join("t/key.json"), &key).unwrap();
    json(home, verify);
    let (code, said) = fails(home, &format!("{verify} --keys keys"));
    assert!(code == 1 && said.contains("does not open"), "{said}");
    for (broken, expected) in [("", "key.json"), ("{}", "missing field"), ("garbage", "key.json")] {
        fs::write(&key, broken).unwrap();
        let (code, said) = fails(home, verify);
        assert!(code != 0 && said.contains(expected), "{said}");
    }
    fs::remove_file(&key).unwrap();
    let (_, said) = fails(home, verify);
    assert!(said.contains("its `key.json` is missing"), "{said}");
}

#[test]
fn secrets_that_others_may_read_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    packed(home, "r", 1, 100);
    let mode = |name: &str, mode| fs::set_permissions(home.join(name), fs::Permissions::from_mode(mode)).unwrap();
    fs::write(home.join("words"), "correct horse\n").unwrap();
    let sign = "release sign r --keys sealed --passphrase-file words";
    mode("words", 0o644);
    let (code, said) = fails(home, sign);
    assert!(code == 2 && said.contains("others may read it (mode 644)") && said.contains("chmod 600"), "{said}");
    mode("words", 0o600);
    json(home, sign);
    json(home, "trust init trust");
    json(home, "trust issue trust release/builder --out builder");
    let sign = "release sign r --private-key builder.key";
    mode("builder.key", 0o640);
    let (code, said) = fails(home, sign);
    assert!(code == 2 && said.contains("others may read it (mode 640)"), "{said}");
    mode("builder.key", 0o600);
    json(home, sign);
}

/// One document, also where the work was done and what it found is bad.
#[test]
fn json_is_one_document_where_the_exit_code_is_1() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    json(home, "trust init trust --model chest");
    let case = "[[case]]\nname = \"anybody\"\nprincipal = { id = \"spiffe://edgeward.local/x\", strength = \"key_bound\" }\n\
                action = \"infer\"\nresource = \"Model::chest\"\nexpect = \"allow\"\n";
    fs::write(home.join("trust/policies/tests.toml"), case).unwrap();
    let output = edgeward(home, "trust policy test trust/policies --json");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["failed"], 1, "{report}");
}

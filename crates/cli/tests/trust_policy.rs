//! `edgeward trust policy`, on the folder that `docs/policies.md` shows and on broken ones.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

/// Writes each block of the document that names a file into a folder.
fn documented() -> tempfile::TempDir {
    let document = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/policies.md");
    let text = fs::read_to_string(document).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut written = 0;
    for block in text.split("\n```").skip(1).step_by(2) {
        let (head, body) = block.split_once('\n').unwrap();
        if let Some((_, name)) = head.split_once(' ') {
            fs::write(folder.path().join(name), body).unwrap();
            written += 1;
        }
    }
    assert_eq!(written, 4, "blocks of docs/policies.md that name a file");
    folder
}

fn policy(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgeward"));
    command.current_dir(folder).args(["trust", "policy"]).args(arguments).stdin(Stdio::null());
    command.env_remove("EDGEWARD_CONFIG").output().unwrap()
}

fn json(folder: &Path, arguments: &[&str]) -> Value {
    let output = policy(folder, &[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Standard error and the exit code.
fn failure(folder: &Path, arguments: &[&str]) -> (String, Option<i32>) {
    let output = policy(folder, arguments);
    (String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code())
}

#[test]
fn what_the_document_shows_is_right() {
    let folder = documented();
    let checked = json(folder.path(), &["check", ".", "--strict"]);
    assert_eq!(checked["policies"], 4);
    assert_eq!(checked["warnings"], serde_json::json!([]));
    let tested = json(folder.path(), &["test", "."]);
    assert_eq!((&tested["cases"], &tested["failed"]), (&3.into(), &0.into()));
    assert_eq!(tested["results"][0]["place"], "tests.toml:1");
}

#[test]
fn a_decision_that_is_not_expected_fails() {
    let folder = documented();
    let tests = folder.path().join("tests.toml");
    fs::write(&tests, fs::read_to_string(&tests).unwrap().replace("\"allow\"", "\"deny\"")).unwrap();
    let output = policy(folder.path(), &["test", "."]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("FAIL a radiologist") && text.contains("expected `deny`, got `allow`"), "{text}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("1 of 3 decisions are not as expected"));
}

#[test]
fn a_change_is_tried_out_on_past_requests() {
    let folder = documented();
    let simulated = json(folder.path(), &["simulate", ".", "--against", "past.jsonl"]);
    assert_eq!((&simulated["requests"], &simulated["newly_denied"]), (&2.into(), &1.into()));
    assert_eq!(simulated["changes"][0]["request"]["principal"]["strength"], "bearer");
    let policies = folder.path().join("clinic.cedar");
    fs::write(&policies, fs::read_to_string(&policies).unwrap().replace("principal.strength >= 2", "true")).unwrap();
    let simulated = json(folder.path(), &["simulate", ".", "--against", "past.jsonl"]);
    assert_eq!(simulated["newly_denied"], 0);
}

#[test]
fn a_denial_is_explained() {
    let folder = documented();
    let asked =
        ["explain", ".", "--principal", "https://login.example#anna", "--group", "radiology", "--action", "infer"];
    let weak = [&asked[..], &["--resource", "Model::chest-xray", "--score", "40"]].concat();
    let explained = json(folder.path(), &weak);
    assert_eq!(explained["decision"]["reason"], "not_permitted");
    let nearest = &explained["nearest"][0];
    assert_eq!(nearest["policy"]["id"], "radiologists-infer");
    assert_eq!(nearest["unmet"].as_array().unwrap().len(), 2, "{nearest}");
    assert_eq!(nearest["unmet"][1]["values"], serde_json::json!([["context[\"score\"]", "40"]]));
    let text = String::from_utf8_lossy(&policy(folder.path(), &weak).stdout).into_owned();
    assert!(text.contains("when context.score >= 60 (context[\"score\"] is 40)"), "{text}");

    let public =
        [&asked[..], &["--resource", "Model::chest-xray", "--network", "public", "--strength", "key_bound"]].concat();
    let explained = json(folder.path(), &public);
    assert_eq!(explained["decision"]["reason"], "forbidden");
    assert_eq!(explained["decision"]["policies"][0]["id"], "sensitive-only-from-known-networks");
    let strong = [&asked[..], &["--resource", "Model::chest-xray", "--strength", "key_bound"]].concat();
    let explained = json(folder.path(), &strong);
    assert_eq!(explained["decision"]["effect"], "allow");
    assert_eq!(explained["decision"]["terms"]["obligations"]["round"], 3);
}

#[test]
fn all_who_may_are_listed() {
    let folder = documented();
    let who = |arguments: &[&str]| -> Vec<String> {
        let found = json(folder.path(), &[&["who-can", "."], arguments].concat());
        found.as_array().unwrap().iter().map(|one| one["who"]["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        who(&["infer", "ModelVersion::triage/2"]),
        [
            "User of Group::https://login.example#radiology",
            "User of Group::radiologists",
            "Workload of Group::https://login.example#radiology",
            "Workload of Group::radiologists",
            "Workload::spiffe://st-mary.example/scanner",
        ]
    );
    let scanner = ["Workload::spiffe://st-mary.example/scanner"];
    assert_eq!(who(&["infer", "ModelVersion::triage/2", "--strength", "bearer"]), scanner);
    assert_eq!(who(&["get", "Endpoint::live"])[..2], ["User", "Workload"]);
    assert!(who(&["load", "Model::triage"]).is_empty());
    let (text, code) = failure(folder.path(), &["who-can", ".", "infer", "Model::elbow"]);
    assert!(code == Some(2) && text.contains("`Model::elbow` is not listed"), "{text}");
    let (text, code) = failure(folder.path(), &["who-can", ".", "fly", "Model::triage"]);
    assert!(code == Some(2) && text.contains("action `fly` is unknown"), "{text}");
}

#[test]
fn wrong_input_exits_with_2_and_says_where() {
    let folder = documented();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("bad.jsonl", "\n{\"principal\": 3}\n");
    let rows: [(&[&str], &str); 3] = [
        (&["check", "nowhere"], "cannot read the folder of policies `nowhere`"),
        (&["simulate", ".", "--against", "nothing.jsonl"], "cannot read past requests `nothing.jsonl`"),
        (&["simulate", ".", "--against", "bad.jsonl"], "line 2 of the log is no past request"),
    ];
    for (arguments, expected) in rows {
        let (text, code) = failure(folder.path(), arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {text}");
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
    write("tests.toml", "[[case]]\nname = 3\n");
    let (text, code) = failure(folder.path(), &["test", "."]);
    assert!(code == Some(2) && text.contains("tests.toml:2:8"), "{text}");
    write("z.cedar", "permit(principal, action, resource) when { context.skore > 3 };");
    let (text, code) = failure(folder.path(), &["check", "."]);
    assert!(code == Some(2) && text.contains("z.cedar:1:44"), "{text}");
}

/// The first policies name an administrator whom no file lists.
#[test]
fn who_is_named_by_a_policy_alone_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_edgeward"))
        .args(["trust", "init", "ft", "--model", "start"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = policy(folder.path(), &["who-can", "ft/policies", "infer", "Model::start"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("spiffe://edgeward.local/admin"), "{text}");
}

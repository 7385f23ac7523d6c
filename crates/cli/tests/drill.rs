//! `edgeward trust drill` against servers that are well configured, and against ones with a defence switched off each.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use support::{Server, repository, trust::Trust};

use crate::gateway::Gateway;

#[path = "drill/gateway.rs"]
mod gateway;
#[path = "drill/models.rs"]
mod models;
mod support;

/// What a run of drills came to.
struct Run {
    code: i32,
    report: Value,
    told: String,
}

/// There are no federated jobs, and no witness that would know a log which is set back.
const OPEN: [&str; 2] = ["poisoned", "log"];

impl Run {
    fn outcomes(&self) -> BTreeMap<&str, &str> {
        let drills = self.report["drills"].as_array().unwrap_or_else(|| panic!("{}", self.told));
        drills.iter().map(|drill| (drill["id"].as_str().unwrap(), drill["outcome"].as_str().unwrap())).collect()
    }

    fn drill(&self, id: &str) -> &Value {
        let drills = self.report["drills"].as_array().unwrap_or_else(|| panic!("{}", self.told));
        drills.iter().find(|drill| drill["id"] == id).unwrap()
    }

    /// Ends with the exit code that goes with these outcomes.
    fn expect(&self, expected: &[(&str, &str)]) {
        for (id, outcome) in expected {
            assert_eq!(self.drill(id)["outcome"], *outcome, "{id}: {:#}", self.drill(id));
        }
        let through = self.outcomes().values().any(|outcome| *outcome == "got_through");
        assert_eq!(self.code, i32::from(through), "{}", self.told);
    }
}

/// Runs the drills `only` against a REST listener.
fn drill(server: &str, trust: &Path, only: &str, more: &[&str]) -> Run {
    let output = Command::new(env!("CARGO_BIN_EXE_edgeward"))
        .args(["trust", "drill", "--json", "--server", server, "--only", only, "--trust"])
        .arg(trust)
        .args(more)
        .output()
        .unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let report = told.lines().next().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
    Run { code: output.status.code().unwrap(), report, told }
}

fn https(server: &Server) -> String {
    format!("https://{}", server.http)
}

/// A trust folder in which `ward` may use `ident` on some terms.
fn trust(terms: &str) -> Trust {
    trust_of("ident", terms)
}

/// The same for another model.
fn trust_of(model: &str, terms: &str) -> Trust {
    let trust = Trust::init(&[model]);
    trust.policy("ward.cedar", &permit("ward", model, terms));
    trust
}

fn permit(name: &str, model: &str, terms: &str) -> String {
    format!(
        "@id(\"{name}\")\n{terms}\npermit (principal == Workload::\"spiffe://edgeward.local/{name}\", \
         action in [Action::\"use\", Action::\"inspect\"], resource in Model::\"{model}\");\n\
         permit (principal == Workload::\"spiffe://edgeward.local/{name}\", action == Action::\"get\", resource == Endpoint::\"live\");\n"
    )
}

/// Drills at the door and inside it.
const ACCESS: &str =
    "plaintext,foreign,expired,stolen,algorithms,audience,replay,traversal,cross-segment,policy-down,revoked";

#[test]
fn a_server_that_asks_who_calls_holds_at_the_door() {
    let (models, trust) = (repository(), trust(""));
    let server = trust.serve(&[models.path()]);
    let (grpc, metrics) = (format!("https://{}", server.grpc), format!("https://{}", server.metrics));
    let run =
        drill(&https(&server), &trust.folder(), ACCESS, &["--grpc", &grpc, "--metrics", &metrics, "--model", "ident"]);
    let all: Vec<(&str, &str)> = ACCESS.split(',').map(|id| (id, "held")).collect();
    run.expect(&all);
    let revoked = run.drill("revoked").to_string();
    assert!(revoked.contains("cut with PermissionDenied"), "{revoked}");
    // The policies are the operator's own again.
    let after = trust.curl("admin", &format!("{}/v2/trust/policies", https(&server)), &[]);
    assert_eq!(after.json()["policies"], 4, "{}", after.body);
    server.terminate();
    let denied = trust.audit().iter().filter(|record| record["decision"] == "deny").count();
    assert!(denied > 80, "each attempt is on the record: {denied}");
}

#[test]
fn without_tls_and_identities_everything_gets_through() {
    let (models, trust) = (repository(), trust(""));
    let server = Server::start(&[models.path()], &["--engine", "rten"]);
    let (http, grpc) = (format!("http://{}", server.http), format!("http://{}", server.grpc));
    let run = drill(&http, &trust.folder(), ACCESS, &["--grpc", &grpc, "--model", "ident"]);
    run.expect(&[
        ("plaintext", "got_through"),
        ("foreign", "got_through"),
        ("expired", "got_through"),
        ("stolen", "got_through"),
        ("algorithms", "got_through"),
        ("audience", "got_through"),
        ("replay", "got_through"),
        ("cross-segment", "got_through"),
        ("policy-down", "got_through"),
        ("revoked", "got_through"),
    ]);
}

#[test]
fn tls_in_front_of_a_server_that_asks_nobody_is_no_defence() {
    let (models, trust) = (repository(), trust(""));
    let server = Server::start(&[models.path()], &["--engine", "rten"]);
    let gateway = Gateway::start(&trust.folder(), &server.http, gateway::as_it_is);
    let run = drill(
        &gateway.url(),
        &trust.folder(),
        "plaintext,foreign,stolen,algorithms,replay,cross-segment",
        &["--model", "ident"],
    );
    run.expect(&[
        ("plaintext", "held"),
        ("foreign", "got_through"),
        ("stolen", "got_through"),
        ("algorithms", "got_through"),
        ("replay", "got_through"),
        ("cross-segment", "got_through"),
    ]);
}

#[test]
fn a_gateway_that_tidies_paths_opens_the_way_to_the_model() {
    let (models, trust) = (repository(), trust(""));
    let server = Server::start(&[models.path()], &["--engine", "rten"]);
    let tidy = Gateway::start(&trust.folder(), &server.http, gateway::tidied);
    drill(&tidy.url(), &trust.folder(), "traversal", &["--model", "ident"]).expect(&[("traversal", "got_through")]);
}

#[test]
fn a_policy_without_segments_lets_anyone_in() {
    let (models, trust) = (repository(), trust(""));
    trust.policy("open.cedar", "permit (principal, action, resource);\n");
    let server = trust.serve(&[models.path()]);
    drill(&https(&server), &trust.folder(), "cross-segment,foreign", &["--model", "ident"])
        .expect(&[("cross-segment", "got_through"), ("foreign", "held")]);
}

#[test]
fn a_server_that_answers_to_another_name_takes_what_was_made_for_that() {
    let (models, trust) = (repository(), trust(""));
    let config = trust.files.path().join("hosts.toml");
    fs::write(&config, "[trust]\nhosts = [\"other.invalid\"]\n").unwrap();
    let arguments = ["--config", config.to_str().unwrap()];
    let server = Server::start_trusted(&[models.path()], &trust.folder(), &arguments, &trust.log());
    drill(&https(&server), &trust.folder(), "audience,replay", &["--model", "ident"])
        .expect(&[("audience", "got_through"), ("replay", "held")]);
}

#[test]
fn a_server_that_follows_another_folder_does_not_hear_of_revocations() {
    let (models, trust) = (repository(), trust(""));
    let copy = trust.files.path().join("copy");
    copy_folder(&trust.folder(), &copy);
    let server = Server::start_trusted(&[models.path()], &copy, &["--engine", "rten"], &trust.log());
    let grpc = format!("https://{}", server.grpc);
    let run = drill(&https(&server), &trust.folder(), "revoked,expired", &["--grpc", &grpc, "--model", "ident"]);
    run.expect(&[("revoked", "got_through"), ("expired", "held")]);
    assert!(run.drill("revoked").to_string().contains("still open after"), "{:#}", run.drill("revoked"));
}

fn copy_folder(from: &Path, to: &PathBuf) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[test]
fn what_cannot_be_drilled_is_refused_by_name() {
    let trust = trust("");
    let folder = trust.folder();
    let unknown = drill("https://127.0.0.1:1", &folder, "plaintext,nosuch", &[]);
    assert_eq!(unknown.code, 2);
    assert!(unknown.told.contains("no drill `nosuch`") && unknown.told.contains("`plaintext`"), "{}", unknown.told);
    let nobody = drill("https://127.0.0.1:1", &folder, "plaintext", &[]);
    assert_eq!(nobody.code, 1);
    assert!(nobody.told.contains("`https://127.0.0.1:1` does not answer"), "{}", nobody.told);
    let elsewhere = drill("https://127.0.0.1:1", &folder.join("nowhere"), "plaintext", &[]);
    assert_eq!(elsewhere.code, 2, "{}", elsewhere.told);
    let (models, trust) = (repository(), self::trust(""));
    let server = trust.serve(&[models.path()]);
    let unlisted = drill(&https(&server), &trust.folder(), "plaintext", &["--model", "nothing"]);
    assert_eq!(unlisted.code, 2);
    assert!(unlisted.told.contains("model `nothing`"), "{}", unlisted.told);
}

/// Terms that bound what a caller learns and costs. A request holds one digit.
const STRICT: &str = "@output(\"top_k=1,labels\")\n@query_budget(\"24/day\")\n@rate(\"50/s\")\n@concurrent(\"4\")\n@request_bytes(\"4096\")";

#[test]
fn a_model_on_strict_terms_gives_nothing_away() {
    let files = tempfile::tempdir().unwrap();
    let folder = files.path().join("models");
    let Some(data) = models::digits(&folder, 400) else { return };
    let trust = trust_of("digits", STRICT);
    let server = trust.serve(&[&folder]);
    let (grpc, report) = (format!("https://{}", server.grpc), files.path().join("report.html"));
    let all = format!("{ACCESS},extraction,inversion,membership,evasion,sponge,flood,poisoned,log");
    let data = data.to_str().unwrap();
    let more = [
        "--grpc",
        &grpc,
        "--data",
        data,
        "--members",
        data,
        "--non-members",
        data,
        "--flood",
        "300",
        "--queries",
        "128",
        "--report",
        report.to_str().unwrap(),
    ];
    let run = drill(&https(&server), &trust.folder(), &all, &more);
    let expected: Vec<(&str, &str)> =
        all.split(',').map(|id| (id, if OPEN.contains(&id) { "not_applicable" } else { "held" })).collect();
    run.expect(&expected);
    assert_eq!(run.code, 0);
    let page = fs::read_to_string(report).unwrap();
    assert!(page.contains("<svg") && all.split(',').all(|id| page.contains(&format!("id=\"{id}\""))), "{page}");
}

#[test]
fn a_model_without_terms_is_copied_fooled_and_flooded() {
    let files = tempfile::tempdir().unwrap();
    let folder = files.path().join("models");
    let Some(data) = models::digits(&folder, 768) else { return };
    let trust = trust_of("digits", "");
    let server = trust.serve(&[&folder]);
    let more = ["--data", data.to_str().unwrap(), "--flood", "300"];
    drill(&https(&server), &trust.folder(), "extraction,evasion,flood", &more).expect(&[
        ("extraction", "got_through"),
        ("evasion", "got_through"),
        ("flood", "got_through"),
    ]);
}

#[test]
fn confidence_gives_members_away_and_labels_alone_do_not() {
    let files = tempfile::tempdir().unwrap();
    let (members, others) = (models::directions(1, 60), models::directions(2, 60));
    models::memoriser(&files.path().join("models"), &members);
    let members = models::rows(files.path().join("members.json"), "INPUT0", &members);
    let others = models::rows(files.path().join("others.json"), "INPUT0", &others);
    let more = ["--members", members.to_str().unwrap(), "--non-members", others.to_str().unwrap()];
    for (terms, outcome) in [
        ("", "got_through"),
        ("@output(\"top_k=1,labels\")", "held"),
        ("@query_budget(\"8/day\")\n@request_bytes(\"400\")", "held"),
    ] {
        let trust = trust_of("memoriser", terms);
        let server = trust.serve(&[&files.path().join("models")]);
        drill(&https(&server), &trust.folder(), "membership", &more).expect(&[("membership", outcome)]);
    }
    // The same rows on both sides are no more than chance, whatever is said of them.
    let trust = trust_of("memoriser", "");
    let server = trust.serve(&[&files.path().join("models")]);
    let same = ["--members", members.to_str().unwrap(), "--non-members", members.to_str().unwrap()];
    drill(&https(&server), &trust.folder(), "membership", &same).expect(&[("membership", "held")]);
}

#[test]
fn scores_give_the_training_data_away_and_a_budget_does_not() {
    let files = tempfile::tempdir().unwrap();
    models::template(&files.path().join("models"));
    let noisy = models::random(3, 40 * 16);
    let faces: Vec<Vec<f32>> = noisy
        .chunks(16)
        .map(|noise| models::FACE.iter().zip(noise).map(|(value, noise)| 0.9 * value + 0.1 * noise).collect())
        .collect();
    let data = models::rows(files.path().join("faces.json"), "INPUT0", &faces);
    let more = ["--data", data.to_str().unwrap()];
    let strict = "@query_budget(\"24/day\")\n@request_bytes(\"400\")";
    for (terms, outcome) in [("", "got_through"), (strict, "held")] {
        let trust = trust_of("template", terms);
        let server = trust.serve(&[&files.path().join("models")]);
        drill(&https(&server), &trust.folder(), "inversion", &more).expect(&[("inversion", outcome)]);
    }
}

#[test]
fn a_request_without_bound_is_a_sponge() {
    let files = tempfile::tempdir().unwrap();
    models::costly(&files.path().join("models"));
    for (terms, outcome) in [("", "got_through"), ("@request_bytes(\"4096\")", "held")] {
        let trust = trust_of("costly", terms);
        let server = trust.serve(&[&files.path().join("models")]);
        drill(&https(&server), &trust.folder(), "sponge", &[]).expect(&[("sponge", outcome)]);
    }
}

#[test]
fn plain_files_are_served_changed_and_can_be_read() {
    let files = tempfile::tempdir().unwrap();
    models::template(files.path());
    let trust = trust_of("template", "");
    let server = trust.serve(&[files.path()]);
    let folder = files.path().to_str().unwrap();
    drill(&https(&server), &trust.folder(), "swapped,at-rest", &["--models", folder])
        .expect(&[("swapped", "got_through"), ("at-rest", "got_through")]);
    drill(&https(&server), &trust.folder(), "swapped,at-rest", &[])
        .expect(&[("swapped", "not_applicable"), ("at-rest", "not_applicable")]);
}

/// What a server says to it: nothing but what was signed is served, and nothing of it lies open.
#[test]
fn sealed_releases_hold_on_a_server_that_takes_no_other_model() {
    let files = tempfile::tempdir().unwrap();
    let home = files.path();
    models::template(&home.join("plain"));
    let in_home = |words: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_edgeward")).args(words.split(' ')).current_dir(home).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    };
    in_home("release pack plain/template/1/model.onnx --out open/template --name template --sequence 3");
    in_home("release seal open/template --out sealed/template --keys keys");
    for release in ["open/template", "sealed/template"] {
        in_home(&format!("release sign {release} --keys keys --write-public-key release.pub"));
    }
    let at = |name: &str| home.join(name).to_str().unwrap().to_owned();
    let (key, keys) = (at("release.pub"), at("keys"));
    let believes = ["--public-key", &key, "--release-keys", &keys];
    let only = [&believes[..], &["--releases-only"]].concat();
    let trust = trust_of("template", "");
    let server = Server::start_trusted(&[&home.join("sealed")], &trust.folder(), &only, &trust.log());
    let drilled = |folder: &str, how: &[&str], expected: [&str; 2]| {
        let folder = at(folder);
        let more = [how, &["--models", &folder]].concat();
        let run = drill(&https(&server), &trust.folder(), "swapped,at-rest", &more);
        run.expect(&[("swapped", expected[0]), ("at-rest", expected[1])]);
        run
    };
    let run = drilled("sealed", &only, ["held", "held"]);
    let swapped = run.drill("swapped").to_string();
    for tried in ["every file of", "which nobody signed", "signed with a key of the attacker's own"] {
        assert!(swapped.contains(tried), "{swapped}");
    }
    // The drill has its own memory of what was seen.
    assert!(fs::read_to_string(trust.folder().join("floor.json")).unwrap().contains("\"sequence\": 3"));
    // Each defence by itself.
    drilled("open", &only, ["held", "got_through"]);
    let run = drilled("sealed", &believes, ["got_through", "held"]);
    assert!(run.drill("swapped").to_string().contains("template.onnx, which nobody signed"), "{}", run.told);
    // Keys that lie with what they open; and files that nobody can serve say nothing.
    for file in ["keys", "unlock.key"] {
        fs::copy(home.join(file), home.join("sealed").join(file)).unwrap();
    }
    let beside = at("sealed/keys");
    drilled("sealed", &["--public-key", &key, "--release-keys", &beside, "--releases-only"], ["held", "got_through"]);
    drilled("sealed", &["--public-key", &key, "--releases-only"], ["not_applicable", "not_applicable"]);
}

#[test]
fn a_log_that_was_changed_is_found_out() {
    let (models, trust) = (repository(), trust(""));
    let server = trust.serve(&[models.path()]);
    drill(&https(&server), &trust.folder(), "cross-segment", &["--model", "ident"]);
    server.terminate();
    let server = trust.serve(&[models.path()]);
    // Each change is found; that the log is set back only a witness could tell, and this installation has none.
    let run = drill(&https(&server), &trust.folder(), "log", &[]);
    assert_eq!(run.drill("log")["outcome"], "not_applicable", "{}", run.drill("log"));
    assert!(run.drill("log")["reason"].as_str().unwrap().contains("no witness has seen this log"));
    // With a witness's word of a later checkpoint it is found.
    server.terminate();
    let witnessed = witnessed(&trust.folder());
    let server = trust.serve(&[models.path()]);
    let witnessed: Vec<&str> = witnessed.iter().map(String::as_str).collect();
    let run = drill(&https(&server), &trust.folder(), "log", &witnessed);
    assert_eq!(run.drill("log")["outcome"], "held", "{:#}", run.drill("log"));
    // A server that writes its next records writes the last tile anew, and mends what was done to it.
    let found = (0..5).any(|_| {
        change_denials(&trust.folder().join("audit/tile/entries"));
        let run = drill(&https(&server), &trust.folder(), "log", &[]);
        run.drill("log")["outcome"] == "got_through" && run.code == 1
    });
    assert!(found, "the log is said to be whole");
}

/// Has the log cosigned by a witness; the options that say so.
fn witnessed(trust: &Path) -> [String; 4] {
    let at = |path: &str| trust.join(path).to_str().unwrap().to_owned();
    let (key, cosigned) = (at("witness/witness.vkey"), at("cosigned"));
    let output = Command::new(env!("CARGO_BIN_EXE_edgeward"))
        .args(["trust", "audit", "witness", &at("audit"), "--key", &at("audit.vkey")])
        .args(["--name", "ledger.example/w", "--memory", &at("witness"), "--out", &cosigned])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ["--witness".to_owned(), key, "--cosigned".to_owned(), cosigned]
}

fn change_denials(entries: &Path) {
    let mut parts: Vec<PathBuf> = fs::read_dir(entries).unwrap().map(|entry| entry.unwrap().path()).collect();
    while let Some(path) = parts.pop() {
        if path.is_dir() {
            parts.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.windows(6).position(|found| found == b"\"deny\"").unwrap_or(40);
        bytes[at + 1] = b'D';
        fs::write(path, bytes).unwrap();
    }
}

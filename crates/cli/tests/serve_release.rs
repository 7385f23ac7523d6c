//! `edgeward serve` on releases: who signed them, which is newest, what is sealed; and what becomes of those that do not pass.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
mod support;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use binary::{edgeward, json, text};
use edgeward_graph::{
    DataType, Model, Tensor,
    proto::{GraphProto, NodeProto},
    tensor_proto,
};
use serde_json::{Value, json};
use support::{Server, model, port, slow, trust::Trust};

/// `OUTPUT0 = INPUT0 × by`: an answer tells which model gave it.
fn times(by: f32) -> Model {
    let node = NodeProto {
        op_type: Some("Mul".to_owned()),
        input: vec!["INPUT0".to_owned(), "by".to_owned()],
        output: vec!["OUTPUT0".to_owned()],
        ..NodeProto::default()
    };
    model(GraphProto {
        name: Some("times".to_owned()),
        node: vec![node],
        initializer: vec![tensor_proto("by", &Tensor::from_vec([1], vec![by]).unwrap())],
        input: vec![port("INPUT0", DataType::Float32)],
        output: vec![port("OUTPUT0", DataType::Float32)],
        ..GraphProto::default()
    })
}

/// A folder with keys, and releases made in it.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// A signed release of a model that multiplies by its number.
    fn release(&self, folder: &str, name: &str, sequence: u64) {
        self.release_of(folder, name, sequence, &times(sequence as f32));
    }

    fn release_of(&self, folder: &str, name: &str, sequence: u64, model: &Model) {
        model.write(self.at("m.onnx")).unwrap();
        let words = format!("--name {name} --version 1.{sequence}.0 --sequence {sequence}");
        json(self.path(), &format!("release pack m.onnx --out {folder} {words}"));
        self.sign(folder);
    }

    fn sign(&self, folder: &str) {
        json(self.path(), &format!("release sign {folder} --keys keys --write-public-key release.pub"));
    }

    /// A server that believes the key, and remembers what it saw.
    fn serve(&self, models: &str, arguments: &[&str]) -> Server {
        self.serve_logging(models, arguments, &self.at("log"))
    }

    fn serve_logging(&self, models: &str, arguments: &[&str], log: &Path) -> Server {
        let (key, floor) = (self.at("release.pub"), self.at("floor.json"));
        let known = ["--engine", "rten", "--public-key", key.to_str().unwrap(), "--floor", floor.to_str().unwrap()];
        Server::start_logging(&[&self.at(models)], &[&known, arguments].concat(), log)
    }

    fn floor(&self) -> Value {
        fs::read(self.at("floor.json")).map_or(Value::Null, |bytes| serde_json::from_slice(&bytes).unwrap())
    }
}

fn post(server: &Server, path: &str, body: &Value) -> (u16, String) {
    server.ask("POST", path, "", body.to_string().as_bytes())
}

fn index(server: &Server) -> Vec<Value> {
    let (status, body) = post(server, "/v2/repository/index", &json!({}));
    assert_eq!(status, 200, "{body}");
    serde_json::from_str::<Value>(&body).unwrap().as_array().unwrap().clone()
}

fn entry(server: &Server, name: &str) -> Value {
    index(server).into_iter().find(|entry| entry["name"] == name).unwrap_or_else(|| panic!("{:?}", index(server)))
}

/// What the model makes of ones; nothing where it does not answer.
fn answer(server: &Server, name: &str) -> Option<f64> {
    let data = vec![1; 16];
    let input = json!({ "name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": data });
    let (_, body) = post(server, &format!("/v2/models/{name}/infer"), &json!({ "inputs": [input] }));
    serde_json::from_str::<Value>(&body).ok()?.pointer("/outputs/0/data/0")?.as_f64()
}

fn ready(server: &Server) -> bool {
    server.ask("GET", "/v2/health/ready", "", b"").0 == 200
}

fn get(server: &Server, path: &str) -> Value {
    serde_json::from_str(&server.ask("GET", path, "", b"").1).unwrap()
}

#[test]
fn a_signed_release_serves_under_its_own_name_and_number() {
    let home = Home::new();
    home.release("folder-of-another-name", "chest", 7);
    let server = home.serve("folder-of-another-name", &[]);
    assert!(ready(&server));
    assert_eq!(answer(&server, "chest"), Some(7.0));
    let expected = json!([{ "name": "chest", "version": "7", "state": "READY", "reason": "" }]);
    assert_eq!(Value::from(index(&server)), expected);
    assert_eq!(get(&server, "/v2/models/chest")["versions"], json!(["7"]));
    assert_eq!(get(&server, "/v2/models/chest/versions/7/stats")["model_stats"][0]["inference_count"], 1);
    let told = &get(&server, "/v2/models/chest/config")["parameters"];
    let value = |key: &str| told[key]["string_value"].as_str().unwrap().to_owned();
    assert_eq!((value("release_version"), value("release_variant")), ("1.7.0".to_owned(), "m".to_owned()));
    let id = json(home.path(), "release list folder-of-another-name")[0]["id"].as_str().unwrap().to_owned();
    assert!(value("release_id") == id && value("release_signed_by").starts_with("key "), "{told}");
    assert_eq!(home.floor()["releases"]["chest"], json!({ "sequence": 7, "id": id }));
}

/// Graph and weights in two files, sealed and not.
#[test]
fn external_data_and_seals_are_opened_in_memory() {
    let home = Home::new();
    slow(40).write_external(home.at("external.onnx"), 100).unwrap();
    json(home.path(), "release pack external.onnx --out models/plain --name chest --sequence 1");
    home.sign("models/plain");
    let server = home.serve("models", &[]);
    assert_eq!(answer(&server, "chest"), Some(1.0));
    drop(server);
    json(home.path(), "release seal models/plain --out sealed/chest --keys keys");
    home.sign("sealed/chest");
    let log = home.at("log");
    let keys = home.at("keys");
    let server = home.serve_logging("sealed", &["--release-keys", keys.to_str().unwrap()], &log);
    assert_eq!(answer(&server, "chest"), Some(1.0), "{}", fs::read_to_string(&log).unwrap());
    drop(server);
    // The seal changes nothing about which release it is, and without the key there is none.
    let server = home.serve("sealed", &[]);
    let reason = entry(&server, "chest")["reason"].to_string();
    assert!(reason.contains("is sealed; expected the keys that open it") && !ready(&server), "{reason}");
    drop(server);
    json(home.path(), "release sign models/plain --keys others");
    let others = home.at("others");
    let server = home.serve("sealed", &["--release-keys", others.to_str().unwrap()]);
    let reason = entry(&server, "chest")["reason"].to_string();
    assert!(reason.contains("does not unwrap this") && answer(&server, "chest").is_none(), "{reason}");
    drop(server);
    // Keys that are named and not to be had are a mistake of whoever starts the server.
    for (keys, said) in [("nowhere", "nowhere"), ("sealed/chest/edgeward.json", "unlock.key")] {
        let words = format!("serve sealed --insecure --public-key release.pub --release-keys {keys}");
        let output = edgeward(home.path(), &words);
        assert!(output.status.code() == Some(2) && text(&output).contains(said), "{}", text(&output));
    }
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn cut(path: &Path, to: usize) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..to.min(bytes.len())]).unwrap();
}

/// Each of these is done to the release of `chest`; `lungs` beside it goes on.
#[test]
fn what_does_not_pass_is_named_and_others_serve() {
    let home = Home::new();
    home.release("true/chest-3", "chest", 3);
    home.release("true/lungs", "lungs", 2);
    home.release("other", "chest", 4);
    home.release("foreign", "chest", 3);
    json(home.path(), "release sign foreign --keys others");
    let model = "variants/m/model.onnx";
    let replace = |path: &Path, with: &dyn Fn(&Path)| {
        fs::rename(path, home.at("moved")).unwrap();
        with(path);
    };
    type Harm<'a> = (&'a str, &'a str, &'a str, &'a dyn Fn(&Path));
    let table: &[Harm<'_>] = &[
        ("a bit of the graph", "chest", "was changed", &|r| flip(&r.join(model))),
        ("the graph cut short", "chest", "bytes;", &|r| cut(&r.join(model), 20)),
        ("the graph empty", "chest", "has 0 bytes", &|r| cut(&r.join(model), 0)),
        ("the graph gone", "chest", "model.onnx", &|r| fs::remove_file(r.join(model)).unwrap()),
        ("the graph a link", "chest", "symbolic link", &|r| {
            replace(&r.join(model), &|path| symlink(home.at("moved"), path).unwrap());
        }),
        ("the graph's folder a link", "chest", "`variants/m` is in the release's folder and not listed", &|r| {
            replace(&r.join("variants/m"), &|path| symlink(home.at("moved"), path).unwrap());
        }),
        ("the graph with a second name", "chest", "hard links", &|r| {
            fs::hard_link(r.join(model), home.at("moved")).unwrap();
        }),
        ("a pipe in the graph's place", "chest", "not a regular file", &|r| {
            replace(&r.join(model), &|path| {
                assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
            });
        }),
        ("a file more", "chest", "not listed", &|r| fs::write(r.join("variants/m/extra.onnx"), b"x").unwrap()),
        ("no signature", "chest", "is not signed", &|r| fs::remove_file(r.join("model.sig")).unwrap()),
        ("an empty signature", "chest", "`model.sig`", &|r| cut(&r.join("model.sig"), 0)),
        ("somebody else's signature", "chest", "not trusted here", &|r| {
            fs::copy(home.at("foreign/model.sig"), r.join("model.sig")).unwrap();
        }),
        ("another release's manifest", "chest", "is not what was signed", &|r| {
            fs::copy(home.at("other/edgeward.json"), r.join("edgeward.json")).unwrap();
        }),
        ("the manifest cut short", "chest-3", "`edgeward.json`", &|r| cut(&r.join("edgeward.json"), 50)),
        ("an empty manifest", "chest-3", "`edgeward.json`", &|r| cut(&r.join("edgeward.json"), 0)),
        ("a name with slashes", "chest-3", "cannot name a release", &|r| {
            let manifest = fs::read_to_string(r.join("edgeward.json")).unwrap();
            fs::write(r.join("edgeward.json"), manifest.replace("\"chest\"", "\"../x\"")).unwrap();
        }),
    ];
    for (what, name, reason, harm) in table {
        let copied = Command::new("cp").args(["-r", "true", "models"]).current_dir(home.path()).status().unwrap();
        assert!(copied.success());
        harm(&home.at("models/chest-3"));
        let server = home.serve("models", &[]);
        let told = entry(&server, name);
        assert!(told["state"] == "UNAVAILABLE" && told["reason"].as_str().unwrap().contains(reason), "{what}: {told}");
        assert!(told["reason"].as_str().unwrap().contains("chest-3"), "{what}: {told}");
        assert!(answer(&server, "chest").is_none() && !ready(&server), "{what}");
        assert_eq!(answer(&server, "lungs"), Some(2.0), "{what}");
        // It says why to the caller, too, and what does not load bars nothing.
        assert!(post(&server, &format!("/v2/repository/models/{name}/load"), &json!({})).1.contains(reason), "{what}");
        assert_eq!(home.floor()["releases"]["chest"], Value::Null, "{what}");
        drop(server);
        fs::remove_dir_all(home.at("models")).unwrap();
        let moved = home.at("moved");
        drop(if moved.is_dir() { fs::remove_dir_all(moved) } else { fs::remove_file(moved) });
    }
}

#[test]
fn a_newer_release_takes_over_and_a_bad_or_older_one_does_not() {
    let home = Home::new();
    home.release("models/chest-1", "chest", 1);
    for sequence in [2, 3] {
        home.release(&format!("chest-{sequence}"), "chest", sequence);
    }
    let server = home.serve("models", &["--watch"]);
    assert_eq!(answer(&server, "chest"), Some(1.0));
    fs::rename(home.at("chest-2"), home.at("models/chest-2")).unwrap();
    support::until("version 2", || entry(&server, "chest")["version"] == "2");
    assert_eq!(answer(&server, "chest"), Some(2.0));

    // One that was changed, however new: the one before goes on, and is said to.
    fs::write(home.at("chest-3/variants/m/model.onnx"), b"x").unwrap();
    fs::rename(home.at("chest-3"), home.at("models/chest-3")).unwrap();
    let serves_on = |reason: &str| {
        support::until("the reason", || entry(&server, "chest")["reason"].as_str().unwrap().contains(reason));
        let told = entry(&server, "chest");
        assert!(told["state"] == "READY" && told["version"] == "2", "{told}");
        assert!(ready(&server) && answer(&server, "chest") == Some(2.0));
    };
    serves_on("the last load failed, and this serves on: model `chest`: release `");
    // A manifest that is cut while it is served does not take the model away.
    fs::remove_dir_all(home.at("models/chest-3")).unwrap();
    support::until("a version without a reason", || entry(&server, "chest")["reason"] == "");
    let manifest = fs::read(home.at("models/chest-2/edgeward.json")).unwrap();
    fs::write(home.at("models/chest-2/edgeward.json"), b"").unwrap();
    serves_on("`edgeward.json`");
    fs::write(home.at("models/chest-2/edgeward.json"), manifest).unwrap();
    support::until("a version without a reason", || entry(&server, "chest")["reason"] == "");
    // Nor does the older one take the place of the newer.
    fs::remove_dir_all(home.at("models/chest-2")).unwrap();
    serves_on("release 1 of `chest` is older than 2");
    drop(server);

    // A server that starts anew has the floor alone to know it by.
    let server = home.serve("models", &[]);
    let reason = entry(&server, "chest")["reason"].to_string();
    assert!(reason.contains("is older than 2") && !ready(&server), "{reason}");
    drop(server);
    home.release_of("models/other-2", "chest", 2, &times(9.0));
    let server = home.serve("models", &[]);
    let reason = entry(&server, "chest")["reason"].to_string();
    assert!(reason.contains("another with this number was seen"), "{reason}");
    // When all are gone, so is the model.
    drop(server);
    home.release("models/chest-4", "chest", 4);
    let server = home.serve("models", &["--watch"]);
    assert_eq!(answer(&server, "chest"), Some(4.0));
    for folder in ["chest-1", "other-2", "chest-4"] {
        fs::rename(home.at("models").join(folder), home.at(&format!("away-{folder}"))).unwrap();
    }
    support::until("another answer", || answer(&server, "chest").is_none());
    assert!(ready(&server));
}

#[test]
fn a_floor_that_cannot_be_read_or_written_lets_nothing_in() {
    let home = Home::new();
    home.release("r", "chest", 1);
    let floor = home.at("floor.json");
    fs::create_dir(&floor).unwrap();
    let refused = |expected: &str| {
        let server = home.serve("r", &[]);
        let reason = entry(&server, "chest")["reason"].to_string();
        assert!(reason.contains("floor.json") && reason.contains(expected) && !ready(&server), "{reason}");
    };
    refused("directory");
    fs::remove_dir(&floor).unwrap();
    fs::write(&floor, b"{").unwrap();
    refused("EOF");
    fs::remove_file(&floor).unwrap();
    // Nowhere to put the lock.
    fs::create_dir(home.at("floor.json.lock")).unwrap();
    refused("directory");
    let server = home.serve("r", &["--watch", "--watch-seconds", "1"]);
    assert!(answer(&server, "chest").is_none());
    fs::remove_dir(home.at("floor.json.lock")).unwrap();
    // Tried again by itself.
    support::until("another answer", || answer(&server, "chest") == Some(1.0));
    drop(server);
    // Written, and the server gone before it served: the same release comes up again.
    drop(home.serve("r", &[]));
    fs::remove_file(home.at("floor.json.lock")).unwrap();
    fs::create_dir(home.at("floor.json.lock")).unwrap();
    assert_eq!(answer(&home.serve("r", &[]), "chest"), Some(1.0), "what was seen needs no place to write");
}

#[test]
fn two_of_one_name_are_refused_unless_one_is_newer_or_both_are_one() {
    let home = Home::new();
    home.release("models/a", "chest", 1);
    symlink("a", home.at("models/current")).unwrap();
    let server = home.serve("models", &[]);
    assert_eq!(answer(&server, "chest"), Some(1.0), "one release by two ways");
    drop(server);
    home.release("models/b", "chest", 1);
    let server = home.serve("models", &[]);
    let reason = entry(&server, "chest")["reason"].to_string();
    assert!(reason.contains("is there twice") && reason.contains("/b`"), "{reason}");
    drop(server);
    fs::remove_dir_all(home.at("models/b")).unwrap();
    times(5.0).write(home.at("models/chest.onnx")).unwrap();
    let server = home.serve("models", &[]);
    let reason = entry(&server, "chest")["reason"].to_string();
    assert!(reason.contains("is there twice") && reason.contains("chest.onnx"), "{reason}");
    drop(server);
    fs::remove_file(home.at("models/chest.onnx")).unwrap();
    // What is still being fetched is none yet.
    home.release("models/chest-9.partial", "chest", 9);
    assert_eq!(answer(&home.serve("models", &[]), "chest"), Some(1.0));
}

#[test]
fn the_repository_api_loads_releases_and_takes_no_files_for_them() {
    let home = Home::new();
    home.release("models/chest-1", "chest", 1);
    times(5.0).write(home.at("models/plain.onnx")).unwrap();
    let server = home.serve("models", &["--explicit"]);
    let load = |name: &str, parameters: Value| {
        post(&server, &format!("/v2/repository/models/{name}/load"), &json!({ "parameters": parameters }))
    };
    assert_eq!(entry(&server, "chest")["state"], "");
    assert_eq!(load("chest", json!({})).0, 200);
    assert_eq!(answer(&server, "chest"), Some(1.0));
    // How it is scheduled may be said; what it is may not.
    assert_eq!(load("chest", json!({ "config": "{\"max_batch_size\": 4, \"dynamic_batching\": {}}" })).0, 200);
    assert_eq!(get(&server, "/v2/models/chest/config")["max_batch_size"], 4);
    assert_eq!(answer(&server, "chest"), Some(1.0));
    for (parameters, said) in [
        (json!({ "config": "{}", "file:1/model.onnx": "AAAA" }), "nobody has signed the `file:` parameters"),
        (json!({ "config": "{\"output\": [{\"name\": \"OUTPUT0\", \"label_filename\": \"l\"}]}" }), "`label_filename`"),
        (json!({ "config": "{\"name\": \"lungs\"}" }), "names it `lungs`"),
        (
            json!({ "config": "{\"platform\": \"ensemble\", \"ensemble_scheduling\": {\"step\": []}}" }),
            "`ensemble_scheduling`",
        ),
    ] {
        let (status, body) = load("chest", parameters.clone());
        assert!(status == 400 && body.contains(said), "{parameters}: {status} {body}");
        assert_eq!(answer(&server, "chest"), Some(1.0));
    }
    // What came meanwhile is found when it is asked for.
    home.release("models/chest-2", "chest", 2);
    home.release("models/lungs", "lungs", 6);
    assert_eq!((load("chest", json!({})).0, load("lungs", json!({})).0, load("plain", json!({})).0), (200, 200, 200));
    let told = ["chest", "lungs", "plain"].map(|name| answer(&server, name));
    assert_eq!(told, [Some(2.0), Some(6.0), Some(5.0)]);
    assert_eq!(post(&server, "/v2/repository/models/chest/unload", &json!({})).0, 200);
    assert_eq!((answer(&server, "chest"), entry(&server, "chest")["reason"].clone()), (None, json!("unloaded")));
    assert_eq!(load("liver", json!({})).0, 404);
    // An ensemble beside it loads the release that it needs.
    let ensemble = "platform: \"ensemble\"\ninput { name: \"X\" data_type: TYPE_FP32 dims: [ -1, 16 ] }\n\
        output { name: \"Y\" data_type: TYPE_FP32 dims: [ -1, 16 ] }\nensemble_scheduling { step { model_name: \"chest\" \
        model_version: -1 input_map { key: \"INPUT0\" value: \"X\" } output_map { key: \"OUTPUT0\" value: \"Y\" } } }\n";
    fs::create_dir_all(home.at("models/twice/1")).unwrap();
    fs::write(home.at("models/twice/config.pbtxt"), ensemble).unwrap();
    assert_eq!(load("twice", json!({})), (200, "{}".to_owned()));
    assert_eq!((entry(&server, "twice")["state"].clone(), answer(&server, "chest")), (json!("READY"), Some(2.0)));
}

#[test]
fn a_server_of_releases_only_refuses_everything_else() {
    let home = Home::new();
    home.release("models/chest-1", "chest", 1);
    let server = home.serve("models", &["--releases-only"]);
    assert!(ready(&server) && answer(&server, "chest") == Some(1.0));
    let files = json!({ "parameters": { "config": "{}", "file:1/model.onnx": "AAAA" } });
    let (status, body) = post(&server, "/v2/repository/models/own/load", &files);
    assert!(status == 400 && body.contains("takes releases only"), "{status} {body}");
    drop(server);
    times(5.0).write(home.at("models/plain.onnx")).unwrap();
    let folder = home.at("models/triton/1");
    fs::create_dir_all(&folder).unwrap();
    times(5.0).write(folder.join("model.onnx")).unwrap();
    // The same by the file.
    fs::write(home.at("edgeward.toml"), "[release]\nonly = true\n").unwrap();
    let config = home.at("edgeward.toml");
    for arguments in [&["--releases-only"][..], &["--config", config.to_str().unwrap()]] {
        let server = home.serve("models", arguments);
        assert_eq!(answer(&server, "chest"), Some(1.0));
        for name in ["plain", "triton"] {
            let reason = entry(&server, name)["reason"].to_string();
            assert!(reason.contains("is no release, and this server takes releases only"), "{reason}");
            assert!(answer(&server, name).is_none() && !ready(&server));
        }
    }
}

/// The settings name the signer; a signer who is named no longer is believed no longer.
#[test]
fn signers_are_asked_for_with_each_load() {
    let home = Home::new();
    home.release("models/chest-1", "chest", 1);
    let config = home.at("edgeward.toml");
    let settings = format!("[release]\npublic_keys = [{:?}]\nfloor = {:?}\n", home.at("trusted.pub"), home.at("f"));
    fs::write(&config, settings).unwrap();
    fs::copy(home.at("release.pub"), home.at("trusted.pub")).unwrap();
    let server = Server::start(&[&home.at("models")], &["--engine", "rten", "--config", config.to_str().unwrap()]);
    assert_eq!(answer(&server, "chest"), Some(1.0));
    json(home.path(), "release verify models/chest-1 --config edgeward.toml");
    json(home.path(), "release sign models/chest-1 --keys others --write-public-key trusted.pub");
    home.sign("models/chest-1");
    let (status, body) = post(&server, "/v2/repository/models/chest/load", &json!({}));
    assert!(status == 400 && body.contains("not trusted here"), "{status} {body}");
    assert_eq!(answer(&server, "chest"), Some(1.0), "what serves goes on");
    drop(server);
    // Nobody is named at all.
    let server = Server::start(&[&home.at("models")], &["--engine", "rten"]);
    let reason = entry(&server, "chest")["reason"].to_string();
    assert!(reason.contains("whose signature is to be taken?") && !ready(&server), "{reason}");
    // A key that cannot be read is said before anything loads.
    let output = edgeward(home.path(), "serve models --insecure --public-key m.onnx");
    assert!(output.status.code() == Some(2) && text(&output).contains("public key"), "{}", text(&output));
}

#[test]
fn the_variant_that_this_machine_runs_best_is_served() {
    let home = Home::new();
    for (name, by) in [("slow", 2.0), ("fast", 3.0), ("foreign", 4.0), ("wide", 5.0)] {
        times(by).write(home.at(&format!("{name}.onnx"))).unwrap();
    }
    let variant = |name: &str, more: &str| format!("[[variant]]\nname = \"{name}\"\nmodel = \"{name}.onnx\"\n{more}\n");
    let spec = [
        "name = \"chest\"\nversion = \"1\"\nsequence = 1\n".to_owned(),
        variant("slow", "engine = \"rten\"\nfigures = { p50_ms = 9.0, per_second = 900.0 }"),
        variant("fast", "engine = \"rten\"\nthreads = 1\nfigures = { latency_ms_p50 = 4.0, per_second = 300.0 }"),
        variant("foreign", "engine = \"tensorrt\"\nfigures = { p50_ms = 0.1 }"),
        variant("wide", "engine = \"rten\"\nthreads = 4096\nfigures = { p50_ms = 0.2, per_second = 5000.0 }"),
    ];
    fs::write(home.at("release.toml"), spec.concat()).unwrap();
    json(home.path(), "release pack --spec release.toml --out r");
    home.sign("r");
    let server = home.serve("r", &[]);
    assert_eq!(answer(&server, "chest"), Some(3.0));
    assert_eq!(get(&server, "/v2/models/chest/config")["parameters"]["release_variant"]["string_value"], "fast");
    drop(server);
    let server = home.serve("r", &["--goal", "throughput"]);
    assert_eq!(answer(&server, "chest"), Some(2.0));
    drop(server);
    // A variant that was changed is no reason to take the next.
    fs::write(home.at("r/variants/fast/model.onnx"), b"x").unwrap();
    let server = home.serve("r", &[]);
    let reason = entry(&server, "chest")["reason"].to_string();
    assert!(reason.contains("`variants/fast/model.onnx` has 1 bytes") && !ready(&server), "{reason}");
}

#[test]
fn releases_come_from_a_place_that_they_were_pushed_to() {
    let home = Home::new();
    for (name, sequence) in [("chest", 1), ("chest", 2), ("lungs", 5)] {
        home.release(&format!("{name}-{sequence}"), name, sequence);
    }
    json(home.path(), "release seal lungs-5 --out lungs-sealed --keys keys");
    home.sign("lungs-sealed");
    json(home.path(), "release push chest-1 place");
    json(home.path(), "release push lungs-sealed place");
    let (cache, keys) = (home.at("cache"), home.at("keys"));
    let arguments = ["--release-cache", cache.to_str().unwrap(), "--release-keys", keys.to_str().unwrap()];
    let watched = [&arguments[..], &["--watch", "--watch-seconds", "1"]].concat();
    let server = home.serve("place", &watched);
    assert_eq!((answer(&server, "chest"), answer(&server, "lungs")), (Some(1.0), Some(5.0)));
    assert!(ready(&server));
    json(home.path(), "release push chest-2 place");
    support::until("another answer", || answer(&server, "chest") == Some(2.0));
    let kept = || {
        let places = fs::read_dir(&cache).unwrap().map(|place| place.unwrap().path());
        let folders = places.flat_map(|place| fs::read_dir(place).unwrap().map(|entry| entry.unwrap().file_name()));
        let mut names: Vec<String> = folders.map(|name| name.into_string().unwrap()).collect();
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        names.iter().map(|name| name.split('-').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    support::until("what is kept", || kept() == ["chest", "lungs"]);
    // Sealed there is sealed here.
    let graph = fs::read(home.at("lungs-sealed/variants/m/model.onnx")).unwrap();
    let found = Command::new("find").arg(&cache).args(["-name", "model.onnx"]).output().unwrap();
    let files = String::from_utf8(found.stdout).unwrap();
    assert!(files.lines().any(|file| fs::read(file).unwrap() == graph), "{files}");
    drop(server);
    // Somebody else's release in the place is refused, and what was there is not brought back.
    home.release("chest-3", "chest", 3);
    json(home.path(), "release sign chest-3 --keys others");
    json(home.path(), "release push chest-3 place");
    let server = home.serve("place", &arguments);
    let reason = entry(&server, "chest")["reason"].to_string();
    assert!(reason.contains("not trusted here") && answer(&server, "chest").is_none(), "{reason}");
    assert_eq!(answer(&server, "lungs"), Some(5.0));
}

/// Behind TLS, identities and policies as any model is; the floor lies in the trust folder.
#[test]
fn callers_of_a_release_are_asked_as_of_any_model() {
    let home = Home::new();
    home.release("r", "chest", 1);
    let trust = Trust::init(&["chest"]);
    // Signed by a certificate of the same authority, under a name that is for that.
    let folder = trust.folder().display().to_string();
    json(home.path(), &format!("trust issue {folder} release/builder --out builder"));
    json(home.path(), "release sign r --private-key builder.key --certificate builder.pem");
    let roots = format!("{folder}/roots.pem");
    let ward = ["--engine", "rten", "--roots", &roots, "--identity", "spiffe://edgeward.local/ward/*"];
    let server = Server::start(&[&home.at("r")], &ward);
    let reason = entry(&server, "chest")["reason"].to_string();
    assert!(reason.contains("signed by `spiffe://edgeward.local/release/builder`") && !ready(&server), "{reason}");
    let arguments = ["--engine", "rten", "--roots", &roots, "--identity", "spiffe://edgeward.local/release/*"];
    let server = Server::start_trusted(&[&home.at("r")], &trust.folder(), &arguments, &trust.log());
    let url = format!("https://{}/v2/models/chest/versions/1", server.http);
    assert_eq!(trust.curl("admin", &url, &[]).status, 200);
    assert_eq!(trust.curl("", &url, &[]).status, 401);
    assert!(fs::read_to_string(trust.folder().join("floor.json")).unwrap().contains("chest"));
}

//! `edgeward release`, as typed; signatures against `model_signing`, the tool of the specification's authors.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use binary::{edgeward, json, text};
use edgeward_graph::{DataType, Tensor, tensor_proto};
use serde_json::Value;
use support::{identity, slow};

/// The exit code and what is said.
fn fails(folder: &Path, words: &str) -> (i32, String) {
    let output = edgeward(folder, words);
    assert!(!output.status.success(), "{words}: {}", text(&output));
    (output.status.code().unwrap(), text(&output))
}

/// Two models, one of them with external data.
fn models(folder: &Path) {
    identity(DataType::Float32).write(folder.join("plain.onnx")).unwrap();
    slow(40).write_external(folder.join("external.onnx"), 100).unwrap();
}

/// A release that is signed with a key of a sealed file.
fn signed(home: &Path) {
    models(home);
    json(home, "release pack plain.onnx external.onnx --out r --name chest --version 1.0.0 --sequence 3");
    json(home, "release sign r --keys keys --write-public-key release.pub");
}

#[test]
fn a_release_is_packed_signed_verified_and_listed() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    models(home);
    fs::write(home.join("report.json"), r#"{"accuracy": 0.9}"#).unwrap();
    let words = "release pack plain.onnx external.onnx --name chest --version 1.0.0 --sequence 3 --report report.json";
    let packed = json(home, &format!("{words} --out r"));
    assert_eq!(packed["manifest"]["variants"][1]["data"][0], "variants/external/external.onnx.data");
    assert_eq!(packed["manifest"]["variants"][1]["precision"], "float32");
    // The same files make the same release.
    assert_eq!(json(home, &format!("{words} --out again"))["id"], packed["id"]);
    let (code, said) = fails(home, &format!("{words} --out r"));
    assert!(code == 2 && said.contains("exists already"), "{said}");

    let (code, said) = fails(home, "release verify r --public-key r/edgeward.json");
    assert!(code == 2 && said.contains("public key"), "{said}");
    json(home, "release sign r --keys keys --write-public-key release.pub");
    let verified = json(home, "release verify r --public-key release.pub");
    assert_eq!((&verified["id"], &verified["sequence"]), (&packed["id"], &Value::from(3)));
    let listed = json(home, "release list .");
    let states: Vec<_> = listed.as_array().unwrap().iter().map(|r| r["signed"].as_bool().unwrap()).collect();
    assert_eq!(states, [false, true]);
    let (code, said) = fails(home, "release verify again --public-key release.pub");
    assert!(code == 1 && said.contains("`again` is not signed"), "{said}");
    // Another's key.
    json(home, "release sign again --keys others --write-public-key others.pub");
    let (code, said) = fails(home, "release verify again --public-key release.pub");
    assert!(code == 1 && said.contains("not trusted here"), "{said}");
    json(home, "release verify again --public-key release.pub --public-key others.pub");
}

#[test]
fn what_was_changed_added_or_removed_is_named() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    signed(home);
    let model = home.join("r/variants/plain/model.onnx");
    let data = home.join("r/variants/external/external.onnx.data");
    let whole = fs::read(&model).unwrap();
    let refused = |expected: &str| {
        let (code, said) = fails(home, "release verify r --public-key release.pub");
        assert!(code != 0 && said.contains(expected), "{said}");
    };
    let mut changed = whole.clone();
    changed[5] ^= 1;
    fs::write(&model, &changed).unwrap();
    refused("`variants/plain/model.onnx` was changed");
    fs::write(&model, &whole[1..]).unwrap();
    refused("`variants/plain/model.onnx` has");
    fs::write(&model, [&whole[..], b"x"].concat()).unwrap();
    refused("more than");
    fs::remove_file(&model).unwrap();
    refused("`variants/plain/model.onnx`: ");
    std::os::unix::fs::symlink(home.join("plain.onnx"), &model).unwrap();
    refused("is or passes a symbolic link");
    fs::remove_file(&model).unwrap();
    fs::hard_link(home.join("plain.onnx"), &model).unwrap();
    refused("hard links");
    fs::remove_file(&model).unwrap();
    fs::write(&model, &whole).unwrap();
    json(home, "release verify r --public-key release.pub");
    for extra in ["variants/plain/extra.bin", ".hidden", "model.pkl"] {
        fs::write(home.join("r").join(extra), b"x").unwrap();
        refused(&format!("`{extra}` is in the release's folder and not listed"));
        fs::remove_file(home.join("r").join(extra)).unwrap();
    }
    fs::remove_file(&data).unwrap();
    refused("external.onnx.data");
}

/// A manifest that was changed together with its files is another release, which nobody signed.
#[test]
fn a_manifest_that_was_rewritten_is_not_what_was_signed() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    signed(home);
    let path = home.join("r/edgeward.json");
    let manifest = fs::read_to_string(&path).unwrap();
    fs::write(&path, manifest.replace("\"sequence\":3", "\"sequence\":9")).unwrap();
    let (code, said) = fails(home, "release verify r --public-key release.pub");
    assert!(code == 1 && said.contains("`edgeward.json` is not what was signed"), "{said}");
    fs::write(&path, manifest.replace("\"sequence\":3", "\"sequence\": 3")).unwrap();
    let (code, said) = fails(home, "release verify r --public-key release.pub");
    assert!(code == 2 && said.contains("not canonical"), "{said}");
}

#[test]
fn only_onnx_and_what_it_names_is_packed() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    models(home);
    fs::write(home.join("weights.pkl"), b"\x80\x04cos\nsystem\n").unwrap();
    fs::write(home.join("fake.onnx"), b"\x80\x04cos\nsystem\n").unwrap();
    for file in ["weights.pkl", "fake.onnx"] {
        let (code, said) = fails(home, &format!("release pack {file} --out r"));
        assert!(code == 2 && said.contains("not an ONNX model"), "{said}");
    }
    std::os::unix::fs::symlink("plain.onnx", home.join("link.onnx")).unwrap();
    let (_, said) = fails(home, "release pack link.onnx --out r");
    assert!(said.contains("is or passes a symbolic link"), "{said}");
    fs::write(home.join("report.json"), b"{").unwrap();
    let (_, said) = fails(home, "release pack plain.onnx --out r --report report.json");
    assert!(said.contains("expected JSON"), "{said}");
    let (_, said) = fails(home, "release pack plain.onnx --out r --name Chest");
    assert!(said.contains("`Chest` cannot name a release"), "{said}");
    let mut outside = slow(40);
    let big = Tensor::from_vec([40, 40], vec![0f32; 1600]).unwrap();
    outside.graph_mut().initializer = vec![tensor_proto("matrix", &big)];
    outside.write_external(home.join("outside.onnx"), 100).unwrap();
    let bytes = fs::read(home.join("outside.onnx")).unwrap();
    let at = bytes.windows(12).position(|part| part == b"outside.onnx").unwrap();
    let mut evil = bytes.clone();
    evil[at..at + 12].copy_from_slice(b"../../../../");
    fs::write(home.join("outside.onnx"), evil).unwrap();
    let (_, said) = fails(home, "release pack outside.onnx --out r");
    assert!(said.contains("relative path without `..`"), "{said}");
    assert!(
        !home.join("r").exists()
            && fs::read_dir(home)
                .unwrap()
                .all(|e| { !e.unwrap().file_name().to_string_lossy().starts_with(".release-") })
    );
}

/// A spec gives each variant its own words.
#[test]
fn a_spec_says_what_the_variants_are() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    fs::create_dir(home.join("in")).unwrap();
    models(&home.join("in"));
    let spec = "name = \"chest\"\nversion = \"2.0\"\nsequence = 4\n[[variant]]\nname = \"fast\"\nmodel = \"plain.onnx\"\n\
        engine = \"onnxruntime\"\nthreads = 2\nprecision = \"int8\"\nfigures = { latency_ms_p50 = 1.25, accuracy = 0.9 }\n";
    fs::write(home.join("in/release.toml"), spec).unwrap();
    let packed = json(home, "release pack --spec in/release.toml --out r");
    let variant = &packed["manifest"]["variants"][0];
    assert_eq!((&variant["engine"], &variant["threads"]), (&Value::from("onnxruntime"), &Value::from(2)));
    assert_eq!(variant["figures"]["latency_ms_p50"], 1.25);
    fs::write(home.join("in/release.toml"), spec.replace("engine", "motor")).unwrap();
    let (code, said) = fails(home, "release pack --spec in/release.toml --out s");
    assert!(code == 2 && said.contains("motor"), "{said}");
}

/// `model_signing` in its own environment; none where it is not installed.
fn model_signing() -> Option<PathBuf> {
    match std::env::var_os("EDGEWARD_TEST_MODEL_SIGNING") {
        Some(python) => Some(python.into()),
        None => {
            println!("skipped: EDGEWARD_TEST_MODEL_SIGNING is not set (`cargo xtask test` sets it)");
            assert!(std::env::var_os("EDGEWARD_ALL_PARTS").is_none_or(|all| all != "1"), "a part is missing");
            None
        }
    }
}

fn run(folder: &Path, program: &Path, words: &str) -> Output {
    Command::new(program).args(words.split(' ')).current_dir(folder).output().unwrap()
}

#[test]
fn the_tool_of_the_specification_verifies_ours_and_we_verify_its() {
    let Some(python) = model_signing() else { return };
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    signed(home);
    let tool = |words: &str| run(home, &python, &format!("-m model_signing {words}"));
    let theirs = "verify key --public_key release.pub --signature r/model.sig r";
    let output = tool(theirs);
    assert!(output.status.success(), "{}", text(&output));
    // A changed file is found by theirs as by ours.
    let model = home.join("r/variants/plain/model.onnx");
    let whole = fs::read(&model).unwrap();
    fs::write(&model, [&whole[..], b"x"].concat()).unwrap();
    assert!(text(&tool(theirs)).contains("Hash mismatch"), "{}", text(&tool(theirs)));
    fs::write(&model, &whole).unwrap();

    // Now theirs: a key of OpenSSL signs the folder, with our provenance in it or without.
    let openssl = Path::new("openssl");
    for words in ["ecparam -name prime256v1 -genkey -noout -out ec.key", "ec -in ec.key -pubout -out ec.pub"] {
        assert!(run(home, openssl, words).status.success());
    }
    fs::remove_file(home.join("r/provenance.sigstore.json")).unwrap();
    let output = tool("sign key --private_key ec.key --signature r/model.sig r");
    assert!(output.status.success(), "{}", text(&output));
    json(home, "release verify r --public-key ec.pub");
    let (_, said) = fails(home, "release verify r --public-key release.pub");
    assert!(said.contains("not trusted here"), "{said}");
    // And the same key, used by us.
    json(home, "release sign r --private-key ec.key");
    let output = tool("verify key --public_key ec.pub --signature r/model.sig r");
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn certificates_are_understood_by_both() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    models(home);
    json(home, "release pack plain.onnx --out r");
    json(home, "trust init trust --domain hospital.example");
    json(home, "trust issue trust release/builder --out builder");
    json(home, "release sign r --private-key builder.key --certificate builder.pem");
    let verify = "release verify r --roots trust/roots.pem --identity";
    let verified = json(home, &format!("{verify} spiffe://hospital.example/release/*"));
    assert_eq!(verified["signed_by"], "spiffe://hospital.example/release/builder");
    let (code, said) = fails(home, &format!("{verify} spiffe://hospital.example/ward/*"));
    assert!(code == 1 && said.contains("expected `spiffe://hospital.example/ward/*`"), "{said}");
    json(home, "trust init other --domain hospital.example");
    let (code, said) = fails(home, &verify.replace("trust/", "other/").replace("--identity", "--identity spiffe:*"));
    assert!(code == 1 && said.contains("leads to no trusted root"), "{said}");
    let (code, said) = fails(home, "release sign r --private-key builder.key --certificate trust/admin.pem");
    assert!(code == 2 && said.contains("another key's"), "{said}");

    let Some(python) = model_signing() else { return };
    let tool = |words: &str| run(home, &python, &format!("-m model_signing {words}"));
    let output = tool("verify certificate --certificate_chain trust/roots.pem --signature r/model.sig r");
    assert!(output.status.success(), "{}", text(&output));
    fs::remove_file(home.join("r/provenance.sigstore.json")).unwrap();
    let chain = fs::read_to_string(home.join("builder.pem")).unwrap();
    let end = chain.find("-----END CERTIFICATE-----\n").unwrap() + 26;
    fs::write(home.join("leaf.pem"), &chain[..end]).unwrap();
    fs::write(home.join("intermediate.pem"), &chain[end..]).unwrap();
    let output = tool(
        "sign certificate --private_key builder.key --signing_certificate leaf.pem --certificate_chain intermediate.pem --signature r/model.sig r",
    );
    assert!(output.status.success(), "{}", text(&output));
    json(home, &format!("{verify} spiffe://hospital.example/release/builder"));
}

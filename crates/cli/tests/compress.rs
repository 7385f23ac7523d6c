//! `edgeward compress`, through the binary; its files are opened by other implementations.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use binary::{edgeward, json, others_open, text};
use serde_json::Value;

#[path = "support/binary.rs"]
mod binary;

/// Two bands of points, eight numbers each and a class.
fn rows(path: &Path, count: usize) {
    let mut lines = "a,b,c,d,e,f,g,h,kind\n".to_owned();
    for i in 0..count {
        let noise = |k: usize| ((i * 7919 + k * 104_729) % 1000) as f64 / 1000.0;
        let class = i % 2;
        let numbers: Vec<String> =
            (0..8).map(|k| format!("{:.3}", noise(k) + 0.3 * (class * (k % 3)) as f64)).collect();
        lines += &format!("{},kind{class}\n", numbers.join(","));
    }
    fs::write(path, lines).unwrap();
}

/// A folder with `rows.csv` and `net.onnx`, trained once and for a moment; large enough that weights are what the file is.
fn folder() -> tempfile::TempDir {
    static TRAINED: OnceLock<tempfile::TempDir> = OnceLock::new();
    let trained = TRAINED.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        rows(&folder.path().join("rows.csv"), 400);
        json(folder.path(), "train new mlp --input 8 --classes 2 --width 512 -o start.onnx");
        let how = "--epochs 2 --batch 20 --rate 0.003 --engine rten";
        json(folder.path(), &format!("train start.onnx --data rows.csv -o net.onnx {how}"));
        folder
    });
    let folder = tempfile::tempdir().unwrap();
    for name in ["rows.csv", "net.onnx"] {
        fs::copy(trained.path().join(name), folder.path().join(name)).unwrap();
    }
    folder
}

/// A busy machine may find each variant slower once; not three times over.
fn compressed(folder: &Path, words: &str) -> Value {
    let mut output = edgeward(folder, &format!("{words} --json"));
    for _ in 0..2 {
        if output.status.success() {
            break;
        }
        output = edgeward(folder, &format!("{words} --json"));
    }
    assert!(output.status.success(), "{words}: {}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What every report must say, whatever was found.
fn holds(report: &Value) {
    for variant in report["variants"].as_array().unwrap() {
        let (before, after) = (&report["original"]["figures"], &variant["figures"]);
        if variant["refused"].is_null() {
            assert!(after["drop"].as_f64().unwrap() <= report["limits"]["drop_max"].as_f64().unwrap(), "{variant}");
            assert!(after["bytes"].as_u64().unwrap() <= before["bytes"].as_u64().unwrap(), "{variant}");
        } else {
            assert!(variant["file"].is_null(), "{variant}");
            assert_ne!(variant["name"], report["chosen"]);
        }
    }
}

/// A release takes what was written, with its figures, and the original where it is named.
fn is_released(path: &Path, report: &Value) {
    let packed = json(path, "release pack out net.onnx --out release");
    let manifest = &packed["manifest"];
    let variants = manifest["variants"].as_array().unwrap();
    let names: Vec<&Value> = variants.iter().map(|variant| &variant["name"]).collect();
    assert_eq!(
        (names[0], names[names.len() - 1], &manifest["name"]),
        (&report["chosen"], &"net".into(), &"net".into())
    );
    let written = report["variants"].as_array().unwrap().iter().filter(|variant| !variant["file"].is_null());
    assert_eq!(written.count() + 1, names.len());
    let (first, chosen) = (&variants[0], report["variants"].as_array().unwrap());
    let chosen = chosen.iter().find(|variant| variant["name"] == report["chosen"]).unwrap();
    assert_eq!((&first["engine"], &first["figures"]["metric"]), (&chosen["engine"], &chosen["metric"]));
    assert!(path.join("release/report.json").is_file());
    fs::create_dir(path.join("other")).unwrap();
    let refused = edgeward(path, "release pack other --out another");
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused).contains("`edgeward compress` wrote"), "{}", text(&refused));
    fs::write(
        path.join("other/report.json"),
        fs::read_to_string(path.join("out/report.json")).unwrap().replace(
            &format!("\"file\": \"{}", chosen["name"].as_str().unwrap()),
            &format!("\"file\": \"../out/{}", chosen["name"].as_str().unwrap()),
        ),
    )
    .unwrap();
    let refused = edgeward(path, "release pack other --out another");
    assert!(text(&refused).contains("no file beside it"), "{}", text(&refused));
}

#[test]
fn a_trained_model_becomes_smaller_and_keeps_its_accuracy() {
    let folder = folder();
    let path = folder.path();
    let report = compressed(path, "compress net.onnx --data rows.csv --for size --quick -o out");
    holds(&report);
    assert_eq!((&report["data"]["kind"], &report["metric"]), (&"labelled".into(), &"accuracy".into()));
    assert_eq!(report["data"]["examples"], 400);
    let chosen = report["variants"].as_array().unwrap().iter().find(|v| v["name"] == report["chosen"]).unwrap();
    let (before, after) =
        (fs::metadata(path.join("net.onnx")).unwrap(), fs::metadata(path.join("out/model.onnx")).unwrap());
    assert_eq!(chosen["figures"]["bytes"], after.len());
    assert!(after.len() * 10 < before.len() * 6, "{} of {}", after.len(), before.len());
    let judge = |model: &str| json(path, &format!("evaluate {model} --data rows.csv"))["accuracy"].as_f64().unwrap();
    assert!(judge("out/model.onnx") >= judge("net.onnx") - 0.011);
    let interval = &chosen["interval"];
    let within = interval["low"].as_f64().unwrap()..=interval["high"].as_f64().unwrap();
    assert!(within.contains(&chosen["metric"].as_f64().unwrap()), "{chosen}");
    let written: Value = serde_json::from_slice(&fs::read(path.join("out/report.json")).unwrap()).unwrap();
    assert_eq!(written["chosen"], report["chosen"]);
    let page = fs::read_to_string(path.join("out/report.html")).unwrap();
    assert!(page.contains("<svg") && !page.contains("<script") && !page.contains("http"), "{page}");
    others_open(&path.join("out"));
    is_released(path, &report);
    // Again over its own result, but never over anything else.
    let again = compressed(path, "compress net.onnx --data rows.csv --for size --quick --calibration 320 -o out");
    let observed = |report: &Value| report["data"]["calibrated"].as_u64().unwrap();
    assert!(observed(&report) <= 64 && observed(&again) == 320, "{} {}", observed(&report), observed(&again));
    fs::create_dir(path.join("mine")).unwrap();
    fs::write(path.join("mine/notes.txt"), "keep").unwrap();
    let refused = edgeward(path, "compress net.onnx --quick -o mine");
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused).contains("holds something else"), "{}", text(&refused));
}

#[test]
fn nobody_elses_files_are_replaced() {
    let folder = folder();
    let path = folder.path();
    let refused = |words: &str, reason: &str| {
        let output = edgeward(path, words);
        assert_eq!(output.status.code(), Some(2), "{words}: {}", text(&output));
        assert!(text(&output).contains(reason), "{words}: {}", text(&output));
    };
    fs::create_dir_all(path.join("mine/within")).unwrap();
    fs::write(path.join("mine/report.json"), r#"{"my": "coverage"}"#).unwrap();
    refused("compress net.onnx --quick -o mine", "holds something else");
    let report = compressed(path, "compress net.onnx --data rows.csv --for size --quick -o out");
    holds(&report);
    fs::write(path.join("out/notes.txt"), "keep").unwrap();
    refused("compress net.onnx --quick -o out", "`notes.txt`");
    fs::remove_file(path.join("out/notes.txt")).unwrap();
    refused("compress out/model.onnx --quick -o out", "holds the model that is compressed");
    refused("compress net.onnx --quick -o .", "is no name of a folder");
    // Nor where an interrupted run would be kept.
    fs::create_dir(path.join("other.partial")).unwrap();
    fs::write(path.join("other.partial/lock"), "theirs").unwrap();
    fs::write(path.join("other.partial/data.bin"), "keep").unwrap();
    refused("compress net.onnx --quick -o other", "holds something else");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(path.join("mine"), path.join("link.partial")).unwrap();
        refused("compress net.onnx --quick -o link", "holds something else");
        std::os::unix::fs::symlink(path.join("mine"), path.join("linked")).unwrap();
        refused("compress net.onnx --quick -o linked", "is a link");
    }
    assert_eq!(fs::read_to_string(path.join("other.partial/lock")).unwrap(), "theirs");
    assert!(path.join("mine/within").is_dir() && path.join("out/report.html").is_file());
}

#[test]
fn weights_are_rounded_by_data() {
    let folder = folder();
    let path = folder.path();
    let report = compressed(path, "compress net.onnx --data rows.csv --for size -o out");
    holds(&report);
    let variants = report["variants"].as_array().unwrap();
    // MatMulNBits is ONNX Runtime's own: without it such variants are refused, and say why.
    let blocks = report["original"]["engines"].as_array().unwrap().iter().any(|e| e["engine"] == "onnxruntime");
    for name in ["bf16", "int4-gptq", "int8-weights", "int4-adaround", "int4-adaround-inputs"] {
        let variant = variants.iter().find(|v| v["name"] == name).unwrap_or_else(|| panic!("no {name}"));
        if blocks {
            let cosine = variant["agreement"]["cosine"].as_f64().unwrap();
            assert!(cosine > 0.9, "{name}: {cosine}");
        }
    }
    others_open(&path.join("out"));
    // Made-up inputs are nothing to round by.
    let output = edgeward(path, "compress net.onnx --quick -o other --json");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["variants"].as_array().unwrap().iter().all(|v| v["name"] != "int4-gptq"));
}

#[test]
fn nothing_is_written_where_nothing_is_good_enough() {
    let folder = folder();
    let path = folder.path();
    let output = edgeward(path, "compress net.onnx --quick --max-bytes 10 -o out --json");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(!path.join("out").exists());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    holds(&report);
    assert_eq!((&report["chosen"], &report["data"]["kind"]), (&Value::Null, &"synthesised".into()));
    for variant in report["variants"].as_array().unwrap() {
        assert!(variant["refused"].is_string(), "{variant}");
    }
    assert!(text(&output).contains("nothing was written"), "{}", text(&output));
}

#[test]
fn wrong_input_is_told() {
    let folder = folder();
    let path = folder.path();
    fs::write(path.join("text.onnx"), "no model").unwrap();
    let halves = fs::read_to_string(path.join("rows.csv")).unwrap().replace("kind0", "0.5").replace("kind1", "-1");
    fs::write(path.join("halves.csv"), halves).unwrap();
    for (words, expected) in [
        ("compress text.onnx --quick", "text.onnx"),
        ("compress gone.onnx", "does not exist"),
        ("compress net.onnx --metric accuracy", "needs labels"),
        ("compress net.onnx --data gone.csv", "does not exist"),
        ("compress net.onnx --data halves.csv", "needs classes, and the labels of the data are none"),
        ("compress net.onnx --max-drop 2", "expected 0 to 1"),
        ("compress net.onnx --engine fast", "no engine `fast`"),
    ] {
        let output = edgeward(path, words);
        assert_eq!(output.status.code(), Some(2), "{words}: {}", text(&output));
        assert!(text(&output).contains(expected), "{words}: {}", text(&output));
    }
}

#[test]
fn real_models_become_better_or_are_truly_refused() {
    let data = std::env::var_os("EDGEWARD_DATA").map(PathBuf::from);
    let data = data.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"));
    if !data.join("onnx").is_dir() {
        return println!("skipped: no real models in `{}`", data.display());
    }
    for (name, shapes) in [
        ("mnist_rten", ""),
        ("ultraface_rfb_320", ""),
        ("yunet_face_120x160", ""),
        ("silero_vad_16k_op15", " --shape input=1,512 --shape state=2,1,128"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(data.join(format!("onnx/{name}.onnx")), folder.path().join("model.onnx")).unwrap();
        let output = edgeward(folder.path(), &format!("compress model.onnx --quick -o out --json{shapes}"));
        let report: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{name}: {e}: {}", text(&output)));
        holds(&report);
        match (output.status.code(), report["chosen"].as_str()) {
            (Some(0), Some(_)) => others_open(&folder.path().join("out")),
            (Some(1), None) => assert!(!folder.path().join("out").exists(), "{name}"),
            other => panic!("{name}: {other:?}: {}", text(&output)),
        }
    }
}

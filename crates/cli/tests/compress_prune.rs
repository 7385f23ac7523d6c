//! `edgeward compress --prune`, through the binary: models that are trained, cut, trained on, and judged beside all others.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path, sync::OnceLock};

use binary::{edgeward, json, others_open, text};
use edgeward_graph::{
    Limits, Model,
    proto::{AttributeProto, NodeProto, attribute_proto},
};
use serde_json::Value;

#[path = "support/binary.rs"]
mod binary;

/// An IDX file of bytes.
fn idx(path: &Path, shape: &[u32], bytes: &[u8]) {
    let mut file = vec![0, 0, 8, u8::try_from(shape.len()).unwrap()];
    shape.iter().for_each(|size| file.extend(size.to_be_bytes()));
    file.extend(bytes);
    fs::write(path, file).unwrap();
}

/// Pictures of bars, 12 by 12: lying, standing, or both, with noise.
fn bars(folder: &Path, count: usize) {
    let (mut pictures, mut labels) = (Vec::new(), Vec::new());
    for i in 0..count {
        let noise = |k: usize| ((i * 7919 + k * 104_729) % 997) as f64 / 997.0;
        let (class, at) = (i % 3, (noise(3) * 12.0) as usize);
        for y in 0..12 {
            for x in 0..12 {
                let on = (class != 1 && y == at) || (class != 0 && x == at);
                pictures.push((noise(y * 12 + x) * 90.0) as u8 + if on { 120 } else { 0 });
            }
        }
        labels.push(class as u8);
    }
    idx(&folder.join("bars-images.idx"), &[count as u32, 12, 12], &pictures);
    idx(&folder.join("bars-labels.idx"), &[count as u32], &labels);
}

const DATA: &str = "--data bars-images.idx --labels bars-labels.idx";

/// A folder with a residual network that tells bars apart; it is trained once.
fn folder() -> tempfile::TempDir {
    static TRAINED: OnceLock<tempfile::TempDir> = OnceLock::new();
    let trained = TRAINED.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        bars(folder.path(), 240);
        json(folder.path(), "train new resnet --input 1,12,12 --classes 3 --width 8 --depth 8 -o start.onnx");
        json(folder.path(), &format!("train start.onnx {DATA} -o net.onnx --epochs 12 --batch 24 --rate 0.004"));
        folder
    });
    let folder = tempfile::tempdir().unwrap();
    for name in ["bars-images.idx", "bars-labels.idx", "net.onnx"] {
        fs::copy(trained.path().join(name), folder.path().join(name)).unwrap();
    }
    folder
}

fn variant<'r>(report: &'r Value, name: &str) -> &'r Value {
    let variants = report["variants"].as_array().unwrap();
    variants.iter().find(|variant| variant["name"] == name).unwrap_or_else(|| panic!("no `{name}` in {report}"))
}

/// Weights of a layer that a variant has for each that the original has.
fn left(variant: &Value) -> f64 {
    let sum = |key: &str| variant["layers"].as_array().unwrap().iter().map(|l| l[key].as_f64().unwrap()).sum::<f64>();
    sum("bytes") / sum("bytes_before")
}

#[test]
fn a_pruned_model_is_trained_on_and_judged_beside_the_others() {
    let folder = folder();
    let path = folder.path();
    let words = format!("compress net.onnx {DATA} --prune 0.6,0.3 --epochs 4 --for size --quick -o out --json");
    let output = edgeward(path, &words);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", text(&output));
    assert!(text(&output).contains("stays as wide as it is: `fc`"), "{}", text(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output)));
    let original = report["original"]["figures"]["bytes"].as_u64().unwrap();
    for (name, most) in [("pruned-30", 0.7), ("pruned-60", 0.4)] {
        let pruned = variant(&report, name);
        assert!(pruned["recipe"].as_str().unwrap().contains("trained on"), "{pruned}");
        // The last layer stays, so that of the weights of layers a little more may be left than of all.
        assert!(left(pruned) <= most + 0.02, "{name}: {}", left(pruned));
        assert!(pruned["figures"]["bytes"].as_u64().unwrap() < original, "{pruned}");
        // A third would be told right by chance.
        assert!(pruned["metric"].as_f64().unwrap() > 0.6, "{pruned}");
        let integers = variant(&report, &format!("{name}-int8"));
        assert!(left(integers) < left(pruned) / 3.0, "{integers}");
    }
    if output.status.success() {
        others_open(&path.join("out"));
    }
}

#[test]
fn every_importance_prunes() {
    let folder = folder();
    let path = folder.path();
    for importance in ["l1", "scale", "taylor", "activation"] {
        let words = format!("compress net.onnx {DATA} --prune 0.4 --importance {importance} --epochs 0 --quick -o out");
        let output = edgeward(path, &format!("{words} --json --engine rten"));
        assert!(matches!(output.status.code(), Some(0 | 1)), "{importance}: {}", text(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let pruned = variant(&report, "pruned-40");
        assert!(left(pruned) < 0.9, "{importance}: {pruned}");
    }
}

#[test]
fn whole_blocks_go_before_channels() {
    let folder = folder();
    let path = folder.path();
    let words =
        format!("compress net.onnx {DATA} --prune-blocks 1 --prune 0.01,0.604 --epochs 2 --quick -o out --json");
    let output = edgeward(path, &words);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", text(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output)));
    let (shorter, narrower) = (variant(&report, "pruned-blocks-1"), variant(&report, "pruned-60.4"));
    assert!(!shorter["recipe"].as_str().unwrap().contains("channels"), "{shorter}");
    // What the blocks took is enough for the one, and the other's name is its own.
    assert!(text(&output).contains("no `pruned-01`: "), "{}", text(&output));
    for variant in [shorter, narrower] {
        let recipe = variant["recipe"].as_str().unwrap();
        assert!(recipe.starts_with("without the blocks ") && recipe.contains("trained on"), "{recipe}");
    }
    let layers = |variant: &Value| variant["layers"].as_array().unwrap().len();
    assert!(layers(shorter) < layers(variant(&report, "int8")));
    assert_eq!(layers(shorter), layers(narrower));
    assert!(left(narrower) < left(shorter), "{} {}", left(narrower), left(shorter));
    assert!(shorter["metric"].as_f64().unwrap() > 0.6, "{shorter}");
}

#[test]
fn without_labels_nothing_is_trained_on() {
    let folder = folder();
    let path = folder.path();
    let output = edgeward(path, "compress net.onnx --prune 0.3 --quick -o out --json --engine rten");
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", text(&output));
    assert!(text(&output).contains("needs labelled data"), "{}", text(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["data"]["calibrated"], 32, "no more than there are");
    let recipe = variant(&report, "pruned-30")["recipe"].as_str().unwrap().to_owned();
    assert!(recipe.contains("not trained on"), "{recipe}");
}

#[test]
fn importance_by_gradients_says_where_none_pass() {
    let folder = folder();
    let path = folder.path();
    let mut model = Model::read(path.join("net.onnx"), &Limits::default()).unwrap();
    let graph = model.graph_mut();
    let result = graph.output[0].name.clone();
    let last = graph.node.iter_mut().find(|node| node.output.first().map(String::as_str) == result.as_deref()).unwrap();
    last.output = vec!["before".to_owned()];
    // The same numbers, by an operator without a rule.
    let lambda = AttributeProto {
        name: Some("lambd".to_owned()),
        f: Some(0.0),
        r#type: Some(attribute_proto::AttributeType::Float.into()),
        ..AttributeProto::default()
    };
    graph.node.push(NodeProto {
        op_type: Some("Shrink".to_owned()),
        input: vec!["before".to_owned()],
        output: vec![result.unwrap()],
        attribute: vec![lambda],
        ..NodeProto::default()
    });
    model.write(path.join("shrink.onnx")).unwrap();
    let output = edgeward(path, &format!("compress shrink.onnx {DATA} --prune 0.3 --quick --importance taylor"));
    let text = text(&output);
    if text.contains("unsupported") && !text.contains("taylor") {
        return println!("skipped: no engine here runs Shrink");
    }
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("Shrink") && text.contains("do not pass through this model"), "{text}");
    assert!(!text.contains("needs labels"), "{text}");
}

#[test]
fn wrong_words_are_told() {
    let folder = folder();
    let path = folder.path();
    for (words, expected) in [
        ("--prune 1.5", "expected more than 0 and less than 1"),
        ("--prune 0.3,no", "`no` is no number"),
        ("--prune-blocks 0", "0"),
        ("--prune-blocks 9 --quick", "the graph has 3 blocks"),
        ("--epochs 3", "--prune"),
        ("--prune 0.3 --quick --importance taylor", "needs labels"),
    ] {
        let output = edgeward(path, &format!("compress net.onnx {words}"));
        assert_eq!(output.status.code(), Some(2), "{words}: {}", text(&output));
        assert!(text(&output).contains(expected), "{words}: {}", text(&output));
    }
}

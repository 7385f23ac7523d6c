//! Starters: checked by onnx, run by ONNX Runtime and the built-in engine alike.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use edgeward_engine::{Registry, RegistryConfig, RunOptions, SessionOptions, Source};
use edgeward_graph::{DataType, Model, Tensor, check, stats};
use edgeward_train::starter::{Kind, Starter, starter};
use serde_json::Value;

mod reference;

fn wanted(kind: Kind, input: &[usize], classes: usize) -> Starter {
    Starter { kind, input: input.to_vec(), classes, width: None, depth: None, vocabulary: 100, dropout: 0.0, seed: 1 }
}

fn all() -> Vec<(&'static str, Starter)> {
    vec![
        ("resnet-small", wanted(Kind::Resnet, &[1, 28, 28], 2)),
        ("resnet-large", Starter { width: Some(16), ..wanted(Kind::Resnet, &[3, 96, 96], 5) }),
        ("resnet-18-small", Starter { depth: Some(18), width: Some(8), ..wanted(Kind::Resnet, &[3, 32, 32], 10) }),
        ("mobilenet-small", Starter { width: Some(50), ..wanted(Kind::Mobilenet, &[3, 32, 32], 10) }),
        ("mobilenet-large", wanted(Kind::Mobilenet, &[3, 96, 96], 10)),
        ("mlp", wanted(Kind::Mlp, &[1, 28, 28], 10)),
        ("mlp-rows", Starter { depth: Some(1), width: Some(5), ..wanted(Kind::Mlp, &[7], 1) }),
        ("mlp-dropout", Starter { dropout: 0.3, ..wanted(Kind::Mlp, &[7], 2) }),
        ("transformer-dropout", Starter { dropout: 0.1, ..wanted(Kind::Transformer, &[8], 2) }),
        ("transformer", wanted(Kind::Transformer, &[16], 2)),
        ("transformer-narrow", Starter { width: Some(9), depth: Some(1), ..wanted(Kind::Transformer, &[5], 3) }),
    ]
}

/// As the script fills them.
fn inputs(model: &Model) -> Vec<(String, Tensor)> {
    let of = |port: edgeward_graph::Port| {
        let size = |dim: &edgeward_graph::Dimension| match dim {
            edgeward_graph::Dimension::Fixed(size) => *size,
            _ => 3,
        };
        let shape: Vec<usize> = port.shape.unwrap().iter().map(size).collect();
        let count: usize = shape.iter().product();
        let tensor = if port.dtype == Some(DataType::Int64) {
            let most = if port.name.contains("mask") { 1 } else { i64::MAX };
            Tensor::from_vec(shape, (0..count as i64).map(|i| (i % 7 + 1).min(most)).collect())
        } else {
            Tensor::from_vec(shape, (0..count).map(|i| (i as f64).sin() as f32).collect())
        };
        (port.name, tensor.unwrap())
    };
    model.inputs().into_iter().map(of).collect()
}

fn run(path: &Path, model: &Model) -> Tensor {
    let registry = Registry::new(RegistryConfig { onnxruntime_lib: None, openvino_lib: None });
    let source = Source::File(path.to_owned());
    let session = registry.get("rten").unwrap().load(&source, &SessionOptions::default()).unwrap();
    let inputs = inputs(model);
    let borrowed: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    session.run(&borrowed, RunOptions::default()).unwrap().remove(0)
}

#[test]
fn every_starter_runs_and_says_as_many_classes() {
    let folder = tempfile::tempdir().unwrap();
    let mut found = Vec::new();
    for (name, wanted) in all() {
        let model = starter(&wanted).unwrap();
        check(&model).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let path = folder.path().join(format!("{name}.onnx"));
        model.write(&path).unwrap();
        let output = run(&path, &model);
        assert_eq!(output.shape(), [3, wanted.classes], "{name}");
        let values = output.values::<f32>().unwrap().into_owned();
        assert!(values.iter().all(|value| value.is_finite() && value.abs() < 100.0), "{name}: {values:?}");
        assert!(
            values.iter().any(|value| *value != values[0]) || values.len() == 1,
            "{name} says one thing: {values:?}"
        );
        found.push((name, wanted.classes, values));
    }
    let modules = ["onnx", "onnxruntime"];
    let Some(reference) = reference::python("starters/check.py", &modules, &[folder.path()], &Value::Null) else {
        return;
    };
    for (name, classes, values) in found {
        let expected: Vec<Vec<f32>> = serde_json::from_value(reference[name].clone()).unwrap();
        for (row, (ours, theirs)) in values.chunks(classes).zip(&expected).enumerate() {
            let close = ours.iter().zip(theirs).all(|(a, b)| (a - b).abs() <= 1e-4 * (1.0 + b.abs()));
            assert!(close, "{name} row {row}: {ours:?}, ONNX Runtime {theirs:?}");
        }
    }
}

/// Sizes that the papers state.
#[test]
fn starters_have_the_size_of_their_models() {
    let parameters = |wanted: &Starter| stats(&starter(wanted).unwrap()).parameters;
    // torchvision: 11,689,512 and 3,504,872 parameters; here BatchNormalization's running statistics count as well,
    // and MobileNetV2 holds the two bounds of each of its 35 ReLU6.
    let resnet = parameters(&wanted(Kind::Resnet, &[3, 224, 224], 1000));
    assert_eq!(resnet, 11_689_512 + 2 * 4800);
    let mobilenet = parameters(&wanted(Kind::Mobilenet, &[3, 224, 224], 1000));
    assert_eq!(mobilenet, 3_504_872 + 2 * 17_056 + 2 * 35);
    // He et al. 2016, table 6: ResNet-20 has 0.27 million.
    let small = parameters(&wanted(Kind::Resnet, &[3, 32, 32], 10));
    assert!((265_000..285_000).contains(&small), "{small}");
}

#[test]
fn a_seed_gives_the_same_weights() {
    for (name, wanted) in all() {
        let bytes = |seed| starter(&Starter { seed, ..wanted.clone() }).unwrap().to_bytes().unwrap();
        assert_eq!(bytes(4), bytes(4), "{name}");
        assert_ne!(bytes(4), bytes(5), "{name}");
    }
}

#[test]
fn impossible_starters_are_refused() {
    let table = [
        (wanted(Kind::Resnet, &[28, 28], 2), "`28,28`"),
        (wanted(Kind::Transformer, &[1, 28, 28], 2), "`1,28,28`"),
        (wanted(Kind::Mlp, &[], 2), "``"),
        (wanted(Kind::Mlp, &[0], 2), "`0`"),
        (wanted(Kind::Mlp, &[4], 0), "classes `0`"),
        (Starter { depth: Some(19), ..wanted(Kind::Resnet, &[1, 28, 28], 2) }, "depth `19`"),
        (Starter { depth: Some(3), ..wanted(Kind::Mobilenet, &[1, 28, 28], 2) }, "depth `3`"),
        (Starter { width: Some(1 << 30), ..wanted(Kind::Mlp, &[4], 2) }, "width"),
        (Starter { dropout: 1.0, ..wanted(Kind::Mlp, &[4], 2) }, "dropout `1`"),
        (Starter { dropout: 0.1, ..wanted(Kind::Resnet, &[1, 28, 28], 2) }, "dropout `0.1`"),
        (wanted(Kind::Mlp, &[usize::MAX, 2], 2), "no shape"),
    ];
    for (wanted, words) in table {
        let error = starter(&wanted).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

//! Steps as a trainer meets them: built from a forward graph, run by an engine, finished into a model.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use edgeward_graph::{DataType, Tensor};
use edgeward_train::{AdamSpec, Loss, OptimiserSpec, Pattern, StepSpec, build, finished};
use support::{Run, engines, load, model, node, noise, port};

use edgeward_graph::{Model, proto::AttributeProto};

/// Two layers: x · w + b, Relu, then Gemm.
fn perceptron() -> Model {
    model(
        vec![
            node("MatMul", &["x", "w1"], &["h0"], vec![]),
            node("Add", &["h0", "b1"], &["h1"], vec![]),
            node("Relu", &["h1"], &["h2"], vec![]),
            node("Gemm", &["h2", "w2", "b2"], &["logits"], vec![AttributeProto::of_int("transB", 1)]),
            node("Softmax", &["logits"], &["p"], vec![AttributeProto::of_int("axis", -1)]),
        ],
        vec![port("x", DataType::Float32, &["batch", "6"])],
        vec![port("p", DataType::Float32, &["batch", "3"])],
        vec![("w1", noise(1, &[6, 16])), ("b1", noise(2, &[16])), ("w2", noise(3, &[3, 16])), ("b2", noise(4, &[3]))],
    )
}

/// Rows whose class is the place of the largest of their first three values.
fn rows(count: usize) -> (Tensor, Tensor) {
    let x = noise(9, &[count, 6]);
    let classes: Vec<i64> = x
        .values::<f32>()
        .unwrap()
        .chunks(6)
        .map(|row| (0..3).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as i64)
        .collect();
    (x, Tensor::from_vec([count], classes).unwrap())
}

#[test]
fn a_classifier_learns_on_every_engine() {
    let forward = perceptron();
    let (x, target) = rows(64);
    for spec in [
        StepSpec::new(Loss::cross_entropy().into(), OptimiserSpec::sgd()),
        StepSpec::new(Loss::cross_entropy().into(), OptimiserSpec::AdamW(AdamSpec::default())),
    ] {
        let rate = if spec.optimiser == OptimiserSpec::sgd() { 0.5 } else { 0.02 };
        let step = build(&forward, &spec).unwrap();
        for engine in engines() {
            let mut run = Run::new(engine.as_ref(), &step, 1);
            let losses: Vec<f32> = (0..60).map(|_| run.step(rate, &[("x", &x), ("target", &target)])).collect();
            assert!(losses[59] < 0.5 * losses[0], "{}: {losses:?}", engine.name());
            let trained = finished(&forward, &step, &run.state).unwrap();
            let session = load(engine.as_ref(), &trained, 1);
            let p = session.run(&[("x", &x)], Default::default()).unwrap().remove(0);
            let right = p
                .values::<f32>()
                .unwrap()
                .chunks(3)
                .zip(target.values::<i64>().unwrap().iter())
                .filter(|(row, class)| (0..3).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as i64 == **class)
                .count();
            assert!(right >= 56, "{}: {right} of 64", engine.name());
        }
    }
}

#[test]
fn frozen_weights_are_no_state() {
    let mut spec = StepSpec::new(Loss::cross_entropy().into(), OptimiserSpec::sgd());
    spec.frozen = vec![Pattern::new("?1").unwrap()];
    let step = build(&perceptron(), &spec).unwrap();
    let names: Vec<&str> = step.state.iter().map(|s| s.input.as_str()).collect();
    assert_eq!(names, ["w2", "b2"]);
    // Nothing of the first layer is differentiated.
    let gradients = step.graph.graph().node.iter().filter(|n| n.name().starts_with("gradient/MatMul"));
    assert_eq!(gradients.count(), 0);
}

//! An engine's own operators: what a lowered training step computes is what its portable graph computes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{collections::BTreeSet, num::NonZeroUsize, sync::Arc};

use bytes::Bytes;
use edgeward_engine::{Engine, RunOptions, Session, SessionOptions, Source};
use edgeward_graph::{DataType, Dimension, Model, Port, Tensor};
use edgeward_train::{
    AdamSpec, Loss, OptimiserSpec, PrivateSpec, Step, StepSpec, build,
    starter::{Kind, Starter, starter},
};
use support::{engines, model, node, noise, port};

use edgeward_graph::proto::AttributeProto;

/// Where there is an engine that lowers on this processor.
fn lowering() -> Option<Arc<dyn Engine>> {
    #[cfg(target_arch = "x86_64")]
    let fits = is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    let fits = false;
    let engine = engines().into_iter().find(|engine| engine.name() == "onnxruntime").filter(|_| fits);
    if engine.is_none() {
        eprintln!("skipped: lowering needs ONNX Runtime and AVX-512");
    }
    engine
}

fn load(engine: &dyn Engine, model: &Model, lower: bool, threads: usize) -> Box<dyn Session> {
    let options =
        SessionOptions { threads: NonZeroUsize::new(threads), profile: true, lower, ..SessionOptions::default() };
    engine.load(&Source::Bytes(Bytes::from(model.to_bytes().unwrap())), &options).unwrap()
}

/// An input filled: numbers around 0, or classes below 2.
fn filled(port: &Port, batch: usize, seed: u64) -> Tensor {
    let size = |dim: &Dimension| if let Dimension::Fixed(size) = dim { *size } else { batch };
    let shape: Vec<usize> = port.shape.as_ref().unwrap().iter().map(size).collect();
    let count: usize = shape.iter().product();
    match port.dtype {
        Some(DataType::Int64) if port.name.contains("mask") => Tensor::from_vec(shape, vec![1i64; count]).unwrap(),
        Some(DataType::Int64) => {
            Tensor::from_vec(shape, (0..count as u64).map(|i| ((i * 7 + seed) % 5 % 2) as i64).collect::<Vec<_>>())
                .unwrap()
        }
        _ => noise(seed, &shape),
    }
}

/// Loss and next state of one step.
fn stepped(session: &dyn Session, step: &Step, state: &[Tensor], batch: usize, seed: u64) -> (f32, Vec<Tensor>) {
    let scalar = |v: f32| Tensor::from_vec([], vec![v]).unwrap();
    let (rate, count) = (scalar(0.05), scalar(1.0));
    let own: Vec<(String, Tensor)> = step
        .data
        .iter()
        .chain(&step.targets)
        .enumerate()
        .map(|(i, port)| (port.name.clone(), filled(port, batch, seed + i as u64)))
        .chain(step.noise.iter().map(|port| (port.name.clone(), filled(port, batch, 1))))
        .collect();
    let mut inputs: Vec<(&str, &Tensor)> = own.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    inputs.push((&step.scalars.rate, &rate));
    inputs.extend(step.scalars.step.as_deref().map(|name| (name, &count)));
    inputs.extend(step.state.iter().zip(state).map(|(s, t)| (s.input.as_str(), t)));
    let mut wanted = vec![step.loss.as_str()];
    wanted.extend(step.state.iter().map(|s| s.output.as_str()));
    let mut outputs = session.run(&inputs, RunOptions { outputs: Some(&wanted), cancel: None }).unwrap();
    let state = outputs.split_off(1);
    (outputs.remove(0).values::<f32>().unwrap()[0], state)
}

/// Length of the difference next to the length of `b`; next to that of a thousandth for each element where `b` is shorter: an offset
/// that a later normalisation takes away has a gradient of nothing but what is rounded.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.values::<f32>().unwrap(), b.values::<f32>().unwrap());
    assert_eq!(a.len(), b.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let apart = square(&mut a.iter().zip(b.iter()).map(|(a, b)| f64::from(a - b)));
    apart.sqrt() / square(&mut b.iter().map(|b| f64::from(*b))).sqrt().max(1e-3 * (b.len() as f64).sqrt())
}

/// Normalisations over the few elements of a small batch amplify what is rounded: PyTorch's own float32 is that far from its float64.
const APART_MAX: f64 = 1e-2;

/// Both forms of a step from the same state; the lowered one must run `operators`.
fn equal(forward: &Model, spec: &StepSpec, batch: usize, operators: &[&str]) {
    let Some(engine) = lowering() else { return };
    let step = build(forward, spec).unwrap();
    let initial: Vec<Tensor> = step.state.iter().map(|s| s.initial.clone()).collect();
    let portable = load(engine.as_ref(), &step.graph, false, 1);
    for threads in [1, 2] {
        let lowered = load(engine.as_ref(), &step.graph, true, threads);
        for seed in [3, 40] {
            let (loss, next) = stepped(lowered.as_ref(), &step, &initial, batch, seed);
            let (expected_loss, expected) = stepped(portable.as_ref(), &step, &initial, batch, seed);
            assert!((loss - expected_loss).abs() <= 1e-4 * expected_loss.abs().max(1.0), "{loss} is {expected_loss}");
            for ((ours, theirs), state) in next.iter().zip(&expected).zip(&step.state) {
                assert_eq!(ours.shape(), theirs.shape(), "{}", state.output);
                let apart = distance(ours, theirs);
                assert!(apart <= APART_MAX, "{} is {apart} away, threads {threads}", state.output);
            }
            let (again_loss, again) = stepped(lowered.as_ref(), &step, &initial, batch, seed);
            assert_eq!(loss.to_bits(), again_loss.to_bits());
            assert!(again.iter().zip(&next).all(|(a, b)| a.raw() == b.raw()), "a second run differs in its bits");
        }
        let ran: BTreeSet<String> = lowered.profile().unwrap().nodes.into_iter().map(|node| node.op_type).collect();
        for operator in operators {
            assert!(ran.contains(*operator), "`{operator}` did not run: {ran:?}");
        }
    }
}

fn wanted(kind: Kind, input: &[usize]) -> Starter {
    Starter { kind, input: input.to_vec(), classes: 2, width: None, depth: None, vocabulary: 50, dropout: 0.0, seed: 1 }
}

fn sgd() -> StepSpec {
    let optimiser = OptimiserSpec::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.01 };
    StepSpec::new(Loss::cross_entropy().into(), optimiser)
}

fn adam() -> StepSpec {
    StepSpec::new(Loss::cross_entropy().into(), OptimiserSpec::AdamW(AdamSpec::default()))
}

const CONVOLUTIONS: [&str; 5] = ["Conv", "ConvWeightGradient", "ConvInputGradient", "BatchNorm", "BatchNormGradient"];

#[test]
fn a_residual_network() {
    let small = Starter { depth: Some(18), width: Some(20), ..wanted(Kind::Resnet, &[1, 14, 14]) };
    equal(&starter(&small).unwrap(), &sgd(), 3, &CONVOLUTIONS);
    let large = Starter { width: Some(16), ..wanted(Kind::Resnet, &[3, 96, 80]) };
    let operators = [&CONVOLUTIONS[..], &["MaxPool", "MaxPoolGradient", "Sgd"]].concat();
    equal(&starter(&large).unwrap(), &sgd(), 2, &operators);
}

#[test]
fn a_network_of_depthwise_convolutions() {
    let small = Starter { width: Some(50), ..wanted(Kind::Mobilenet, &[3, 40, 40]) };
    equal(&starter(&small).unwrap(), &sgd(), 4, &CONVOLUTIONS);
}

#[test]
fn a_transformer() {
    let small = Starter { width: Some(36), depth: Some(2), ..wanted(Kind::Transformer, &[9]) };
    // Not by Adam, whose first step has the length of the rate wherever a gradient is not 0: keys' offsets have none but rounding's.
    equal(&starter(&small).unwrap(), &sgd(), 5, &["LayerNormGradient", "SoftmaxGradient", "GatherGradient", "Sgd"]);
}

/// Each example clipped, with noise that is the same on both sides.
#[test]
fn a_private_step() {
    let private = Some(PrivateSpec { clip_norm: 0.5, expected_batch: 5.0 });
    let small = Starter { width: Some(36), depth: Some(1), ..wanted(Kind::Transformer, &[9]) };
    equal(&starter(&small).unwrap(), &StepSpec { private, ..adam() }, 5, &["SoftmaxGradient", "Adam"]);
}

/// As [`a_private_step`], with gradients of single examples that are made themselves (the first convolution, of many places) and others by
/// their factors (the second).
#[test]
fn a_private_step_of_convolutions() {
    let ints = |name: &str, values: &[i64]| AttributeProto::of_ints(name, values);
    let forward = model(
        vec![
            node("Conv", &["x", "w1", "b1"], &["h1"], vec![ints("pads", &[0, 1, 2, 3])]),
            node("Relu", &["h1"], &["h2"], vec![]),
            node("Conv", &["h2", "w2", "b2"], &["h3"], vec![ints("strides", &[6, 7])]),
            node("Relu", &["h3"], &["h4"], vec![]),
            node("GlobalAveragePool", &["h4"], &["pool"], vec![]),
            node("Flatten", &["pool"], &["flat"], vec![]),
            node("Gemm", &["flat", "w3"], &["logits"], vec![]),
        ],
        vec![port("x", DataType::Float32, &["batch", "7", "15", "16"])],
        vec![port("logits", DataType::Float32, &["batch", "2"])],
        vec![
            ("w1", noise(1, &[17, 7, 3, 2])),
            ("b1", noise(2, &[17])),
            ("w2", noise(3, &[24, 17, 3, 3])),
            ("b2", noise(4, &[24])),
            ("w3", noise(5, &[24, 2])),
        ],
    );
    let private = Some(PrivateSpec { clip_norm: 0.5, expected_batch: 9.0 });
    let kinds = ["Conv", "ConvWeightGradient", "ConvInputGradient", "ReluGradient"];
    equal(&forward, &StepSpec { private, ..sgd() }, 9, &kinds);
}

/// Kernels, strides, paddings and dilations that starters lack, a bias, a value that is used twice and one that leaves the graph.
#[test]
fn uncommon_convolutions() {
    let ints = |name: &str, values: &[i64]| AttributeProto::of_ints(name, values);
    let forward = model(
        vec![
            node("Conv", &["x", "w1", "b1"], &["h1"], vec![ints("strides", &[2, 3]), ints("pads", &[0, 1, 2, 3])]),
            node("Relu", &["h1"], &["h2"], vec![]),
            node("Conv", &["h2", "w2"], &["h3"], vec![ints("dilations", &[2, 1]), ints("pads", &[2, 0, 2, 0])]),
            node("Add", &["h3", "h3"], &["h4"], vec![]),
            node("Tanh", &["h4"], &["h5"], vec![]),
            node("GlobalAveragePool", &["h5"], &["pool"], vec![]),
            node("Flatten", &["pool"], &["flat"], vec![]),
            node("Gemm", &["flat", "w3"], &["logits"], vec![]),
        ],
        vec![port("x", DataType::Float32, &["batch", "7", "15", "16"])],
        vec![
            port("logits", DataType::Float32, &["batch", "2"]),
            port("h3", DataType::Float32, &["batch", "18", "8", "7"]),
        ],
        vec![
            ("w1", noise(1, &[17, 7, 3, 2])),
            ("b1", noise(2, &[17])),
            ("w2", noise(3, &[18, 17, 3, 1])),
            ("w3", noise(4, &[18, 2])),
        ],
    );
    equal(&forward, &sgd(), 3, &["Conv", "ConvWeightGradient", "ConvInputGradient", "ReluGradient"]);
}

/// What a file tells of itself and what does not hold is left alone.
#[test]
fn composites_that_do_not_fit_are_passed_over() {
    let Some(engine) = lowering() else { return };
    let small = Starter { depth: Some(18), width: Some(20), ..wanted(Kind::Resnet, &[1, 14, 14]) };
    let mut step = build(&starter(&small).unwrap(), &sgd()).unwrap();
    let mut told = step.graph.composites().unwrap();
    assert!(told.len() > 40, "{}", told.len());
    for (index, composite) in told.iter_mut().enumerate() {
        match index % 5 {
            0 => composite.input.clear(),
            1 => composite.output.truncate(1),
            2 => composite.input.iter_mut().for_each(|name| name.push('?')),
            3 => composite.attribute.iter_mut().for_each(|attribute| attribute.ints = vec![-1]),
            _ => composite.op_type = Some("Nothing".to_owned()),
        }
    }
    step.graph.set_composites(told);
    let initial: Vec<Tensor> = step.state.iter().map(|s| s.initial.clone()).collect();
    let portable = load(engine.as_ref(), &step.graph, false, 1);
    let (expected, _) = stepped(portable.as_ref(), &step, &initial, 2, 5);
    let options = SessionOptions { lower: true, ..SessionOptions::default() };
    // Attributes that no convolution has may be refused; nothing else is computed.
    if let Ok(session) = engine.load(&Source::Bytes(Bytes::from(step.graph.to_bytes().unwrap())), &options) {
        let (loss, _) = stepped(session.as_ref(), &step, &initial, 2, 5);
        assert!((loss - expected).abs() <= 1e-3 * expected.abs().max(1.0), "{loss} is {expected}");
    }
}

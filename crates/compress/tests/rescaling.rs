//! Factors moved between layers: graphs compute what they did, ranges are alike, and bytes lose less.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;

use edgeward_compress::{
    ALPHA, Activations, Bias, Form, Prepared, StaticSpec, Statistics, WeightBits, calibrate, equalise,
    histogram::Method, observe::Inputs, prepare, quantise_static, smooth,
};
use edgeward_engine::Engine;
use edgeward_graph::{Model, Tensor, check, proto::AttributeProto};
use proptest::prelude::*;
use support::{Builder, batches, decibels, dump, engines, ints, load, numbers, run};

const ROWS: usize = 6;
const WIDTH: usize = 16;

/// How a normalisation is written, and who reads it beside products.
#[derive(Clone, Debug)]
struct Block {
    whole: bool,
    residual: bool,
    products: usize,
    gemm: bool,
    seed: u64,
}

fn block() -> impl Strategy<Value = Block> {
    (any::<bool>(), any::<bool>(), 1usize..4, any::<bool>(), 0u64..1000)
        .prop_map(|(whole, residual, products, gemm, seed)| Block { whole, residual, products, gemm, seed })
}

impl Block {
    fn model(&self) -> Model {
        let mut b = Builder::new(&[ROWS as i64, WIDTH as i64]);
        b.opset = 17;
        // Two channels are much larger than the others, as in transformers.
        let mut scale: Vec<f32> = numbers(self.seed + 1, WIDTH).iter().map(|v| v + 1.5).collect();
        scale[3] = 60.0;
        scale[11] = -40.0;
        b.floats("gamma", &[WIDTH], scale).drawn("beta", &[WIDTH], self.seed + 2);
        self.normalised(&mut b);
        let mut last = "n".to_owned();
        for at in 0..self.products {
            let (weight, value, sum) = (format!("w{at}"), format!("m{at}"), format!("s{at}"));
            b.drawn(&weight, &[WIDTH, WIDTH], self.seed + 10 + at as u64);
            if self.gemm && at == 0 {
                b.drawn("bias", &[WIDTH], self.seed + 30);
                b.node("Gemm", &["n", &weight, "bias"], &value, vec![AttributeProto::of_int("transB", 1)]);
            } else {
                b.node("MatMul", &["n", &weight], &value, vec![]);
            }
            if at == 0 && !self.residual {
                last = value;
                continue;
            }
            b.node("Add", &[&last, &value], &sum, vec![]);
            last = sum;
        }
        b.drawn("head", &[WIDTH, 4], self.seed + 40).node("MatMul", &[&last, "head"], "y", vec![]);
        b.model(&[("y", &[ROWS as i64, 4])])
    }

    fn normalised(&self, b: &mut Builder) {
        if self.whole {
            let epsilon = AttributeProto::of_float("epsilon", 1e-5);
            b.node(
                "LayerNormalization",
                &["x", "gamma", "beta"],
                "n",
                vec![epsilon, AttributeProto::of_int("axis", -1)],
            );
            return;
        }
        b.floats("epsilon", &[], vec![1e-5]);
        let mean = || vec![ints("axes", &[-1]), AttributeProto::of_int("keepdims", 1)];
        b.node("ReduceMean", &["x"], "mean", mean()).node("Sub", &["x", "mean"], "d", vec![]);
        b.node("Mul", &["d", "d"], "square", vec![]).node("ReduceMean", &["square"], "var", mean());
        b.node("Add", &["var", "epsilon"], "shifted", vec![]).node("Sqrt", &["shifted"], "deviation", vec![]);
        b.node("Div", &["d", "deviation"], "unit", vec![]);
        b.node("Mul", &["unit", "gamma"], "scaled", vec![]).node("Add", &["scaled", "beta"], "n", vec![]);
    }
}

fn statistics(engine: &dyn Engine, prepared: &Prepared, data: &[Inputs]) -> Statistics {
    calibrate(prepared, &|model| load(engine, model), &mut data.iter().cloned().map(Ok)).unwrap()
}

/// The greatest difference, over the greatest size.
fn off(expected: &[f32], found: &[f32]) -> f32 {
    assert_eq!(expected.len(), found.len());
    let most = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
    expected.iter().zip(found).fold(0f32, |worst, (a, b)| worst.max((a - b).abs())) / most
}

fn spec(form: Form) -> StaticSpec {
    StaticSpec {
        form,
        activations: Activations::U8,
        weights: WeightBits::Eight,
        bias: Bias::AsItIs,
        keep: BTreeSet::new(),
    }
}

/// A rewritten graph says what the original says, and as bytes is nearer to it by more than so many decibels than the prepared one.
fn same_and_nearer(engine: &dyn Engine, model: &Model, rewritten: &Prepared, data: &[Inputs], more: f64) {
    for inputs in data {
        let expected = run(engine, model, inputs);
        let off = off(&expected, &run(engine, &rewritten.model, inputs));
        assert!(off < 1e-5, "{}: off by {off}", engine.name());
    }
    let before = as_bytes(engine, &prepare(model).unwrap(), model, data);
    let after = as_bytes(engine, rewritten, model, data);
    assert!(after > before + more, "{}: {after:.1} dB, {before:.1} before", engine.name());
}

/// Signal over noise of all that `rewritten` says as bytes.
fn as_bytes(engine: &dyn Engine, rewritten: &Prepared, original: &Model, data: &[Inputs]) -> f64 {
    let statistics = statistics(engine, rewritten, data);
    let ranges = statistics.ranges(Method::MinMax);
    let quantised = quantise_static(rewritten, &ranges, &statistics, &spec(Form::Inputs)).unwrap().model;
    check(&quantised).unwrap();
    let (mut expected, mut found) = (Vec::new(), Vec::new());
    for inputs in data {
        expected.extend(run(engine, original, inputs));
        found.extend(run(engine, &quantised, inputs));
    }
    decibels(&expected, &found)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn smoothed_graphs_compute_the_same(block in block()) {
        let model = block.model();
        let prepared = prepare(&model).unwrap();
        let data = batches(&[ROWS, WIDTH], 4);
        for engine in engines() {
            let smoothed = smooth(&prepared, &statistics(engine.as_ref(), &prepared, &data), ALPHA).unwrap();
            let text = dump(&smoothed.prepared.model);
            prop_assert_eq!(smoothed.places, 1, "{}", text);
            prop_assert_eq!(smoothed.prepared.layers.len(), prepared.layers.len());
            // A residual connection reads the value as it was.
            prop_assert_eq!(text.contains("n.smooth"), block.residual, "{}", text);
            check(&smoothed.prepared.model).unwrap();
            for inputs in &data {
                let expected = run(engine.as_ref(), &model, inputs);
                let found = run(engine.as_ref(), &smoothed.prepared.model, inputs);
                let off = off(&expected, &found);
                prop_assert!(off < 1e-5, "{}: off by {off}\n{text}", engine.name());
            }
        }
    }
}

#[test]
fn smoothed_graphs_lose_less_as_bytes() {
    for (whole, residual) in [(true, false), (false, false), (true, true)] {
        let block = Block { whole, residual, products: 2, gemm: true, seed: 5 };
        let (model, data) = (block.model(), batches(&[ROWS, WIDTH], 12));
        let prepared = prepare(&model).unwrap();
        for engine in engines() {
            let smoothed = smooth(&prepared, &statistics(engine.as_ref(), &prepared, &data), ALPHA).unwrap().prepared;
            let before = as_bytes(engine.as_ref(), &prepared, &model, &data);
            let after = as_bytes(engine.as_ref(), &smoothed, &model, &data);
            assert!(after > before + 1.0, "{}: {after:.1} dB, {before:.1} before", engine.name());
        }
    }
}

#[test]
fn what_is_not_normalised_is_not_smoothed() {
    let mut b = Builder::new(&[ROWS as i64, WIDTH as i64]);
    b.drawn("w", &[WIDTH, WIDTH], 1).drawn("v", &[WIDTH, 2], 2);
    b.node("MatMul", &["x", "w"], "m", vec![]).node("Sigmoid", &["m"], "s", vec![]);
    b.node("MatMul", &["s", "v"], "y", vec![]);
    let prepared = prepare(&b.model(&[("y", &[ROWS as i64, 2])])).unwrap();
    let engine = engines().remove(0);
    let statistics = statistics(engine.as_ref(), &prepared, &batches(&[ROWS, WIDTH], 2));
    let smoothed = smooth(&prepared, &statistics, ALPHA).unwrap();
    assert_eq!((smoothed.places, dump(&smoothed.prepared.model)), (0, dump(&prepared.model)));
}

/// Conv, a depthwise Conv and a Conv, channels of very different sizes, pooled into a Gemm.
fn uneven() -> Model {
    let mut b = Builder::new(&[1, 3, 8, 8]);
    let sized = |seed: u64, channels: usize, rest: usize| -> Vec<f32> {
        let size = |at: usize| 10f32.powf((at / rest * 7 % channels) as f32 * 2.0 / channels as f32 - 1.0);
        numbers(seed, channels * rest).iter().enumerate().map(|(at, value)| value * size(at)).collect()
    };
    b.floats("w0", &[8, 3, 3, 3], sized(1, 8, 27)).floats("b0", &[8], sized(2, 8, 1));
    b.floats("w1", &[8, 1, 3, 3], sized(3, 8, 9)).drawn("b1", &[8], 4);
    b.floats("w2", &[6, 8, 1, 1], sized(5, 6, 8)).drawn("w3", &[6, 2], 6);
    let padded = || vec![ints("pads", &[1, 1, 1, 1])];
    b.node("Conv", &["x", "w0", "b0"], "c0", padded()).node("Relu", &["c0"], "r0", vec![]);
    b.node("Conv", &["r0", "w1", "b1"], "c1", [padded(), vec![AttributeProto::of_int("group", 8)]].concat());
    b.node("LeakyRelu", &["c1"], "r1", vec![AttributeProto::of_float("alpha", 0.1)]);
    b.node("Conv", &["r1", "w2"], "c2", vec![]).node("Relu", &["c2"], "r2", vec![]);
    b.node("GlobalAveragePool", &["r2"], "p", vec![]);
    b.node("Flatten", &["p"], "f", vec![AttributeProto::of_int("axis", 1)]);
    b.node("Gemm", &["f", "w3"], "y", vec![]);
    b.model(&[("y", &[1, 2])])
}

#[test]
fn equal_ranges_compute_the_same_and_lose_less() {
    let model = uneven();
    let equal = equalise(&prepare(&model).unwrap()).unwrap();
    assert_eq!(equal.places, 3, "{}", dump(&equal.prepared.model));
    check(&equal.prepared.model).unwrap();
    let data = batches(&[1, 3, 8, 8], 12);
    for engine in engines() {
        same_and_nearer(engine.as_ref(), &model, &equal.prepared, &data, 1.0);
    }
}

#[test]
fn ranges_are_alike_between_layers() {
    let equal = equalise(&prepare(&uneven()).unwrap()).unwrap().prepared;
    let weights = |layer: usize| -> Tensor {
        let name = &equal.model.graph().node[equal.layers[layer].node].input[1];
        let tensor = equal.model.graph().initializer.iter().find(|tensor| tensor.name() == name).unwrap();
        equal.model.tensor(tensor).unwrap()
    };
    let most = |values: &[f32]| values.iter().fold(0f32, |most, value| most.max(value.abs()));
    let (first, second) = (weights(0), weights(1));
    let (first, second) = (first.values::<f32>().unwrap(), second.values::<f32>().unwrap());
    for (one, other) in first.chunks(27).zip(second.chunks(9)) {
        let (one, other) = (most(one), most(other));
        assert!((one / other - 1.0).abs() < 0.01, "{one} and {other}");
    }
}

#[test]
fn what_something_else_reads_is_left() {
    for (op, attributes) in [("Sigmoid", vec![]), ("Relu", vec![])] {
        let mut b = Builder::new(&[1, 3, 6, 6]);
        b.drawn("w0", &[3, 3, 1, 1], 1).drawn("w1", &[3, 3, 1, 1], 2);
        b.node("Conv", &["x", "w0"], "c", vec![]).node(op, &["c"], "r", attributes);
        b.node("Conv", &["r", "w1"], "d", vec![]);
        // A Sigmoid is not homogeneous; what a Relu makes is added once more.
        let last = if op == "Relu" { "r" } else { "x" };
        b.node("Add", &["d", last], "y", vec![]);
        let prepared = prepare(&b.model(&[("y", &[1, 3, 6, 6])])).unwrap();
        let equal = equalise(&prepared).unwrap();
        assert_eq!((equal.places, dump(&equal.prepared.model)), (0, dump(&prepared.model)), "{op}");
    }
}

const CHANNELS: usize = 8;

/// A Conv whose channels are of different sizes, SiLU, and two depthwise convolutions that read it.
fn gated(apart: f32) -> Model {
    let size = |at: usize| if at == 2 { 0.0 } else { apart.powf((at * 3 % CHANNELS) as f32 / (CHANNELS - 1) as f32) };
    let first: Vec<f32> = numbers(1, CHANNELS * 3).iter().enumerate().map(|(at, v)| v * size(at / 3)).collect();
    // What is small is multiplied by much: it counts as much as the others.
    let filters = |seed: u64| -> Vec<f32> {
        let value = |(at, v): (usize, &f32)| v * apart / size(at / 9).max(1.0);
        numbers(seed, CHANNELS * 9).iter().enumerate().map(value).collect()
    };
    let mut b = Builder::new(&[1, 3, 8, 8]);
    b.floats("w0", &[CHANNELS, 3, 1, 1], first).floats("w1", &[CHANNELS, 1, 3, 3], filters(3));
    b.floats("w2", &[CHANNELS, 1, 3, 3], filters(4)).drawn("b1", &[CHANNELS], 5).drawn("w3", &[2, CHANNELS, 1, 1], 6);
    let depthwise = || vec![ints("pads", &[1, 1, 1, 1]), AttributeProto::of_int("group", CHANNELS as i64)];
    b.node("Conv", &["x", "w0"], "c", vec![]).node("Sigmoid", &["c"], "s", vec![]);
    b.node("Mul", &["c", "s"], "g", vec![]);
    b.node("Conv", &["g", "w1", "b1"], "d1", depthwise()).node("Conv", &["g", "w2"], "d2", depthwise());
    b.node("Add", &["d1", "d2"], "d", vec![]).node("Conv", &["d", "w3"], "y", vec![]);
    b.model(&[("y", &[1, 2, 8, 8])])
}

#[test]
fn channels_are_alike_before_depthwise_convolutions() {
    let (model, data) = (gated(200.0), batches(&[1, 3, 8, 8], 12));
    let prepared = prepare(&model).unwrap();
    for engine in engines() {
        let smoothed = smooth(&prepared, &statistics(engine.as_ref(), &prepared, &data), ALPHA).unwrap();
        let text = dump(&smoothed.prepared.model);
        // One multiplication for both.
        let multiplications = text.lines().filter(|line| line.starts_with("Mul ")).count();
        assert_eq!((smoothed.places, multiplications), (1, 2), "{text}");
        check(&smoothed.prepared.model).unwrap();
        same_and_nearer(engine.as_ref(), &model, &smoothed.prepared, &data, 6.0);
    }
}

#[test]
fn channels_that_are_alike_are_left() {
    let prepared = prepare(&gated(2.0)).unwrap();
    let engine = engines().remove(0);
    let statistics = statistics(engine.as_ref(), &prepared, &batches(&[1, 3, 8, 8], 4));
    let smoothed = smooth(&prepared, &statistics, ALPHA).unwrap();
    assert_eq!((smoothed.places, dump(&smoothed.prepared.model)), (0, dump(&prepared.model)));
}

/// Factors of channels that are far apart are no bytes, whatever lies around them is.
#[test]
fn factors_far_apart_stay_floats() {
    for (apart, bytes) in [(4.0f32, true), (400.0, false)] {
        let mut b = Builder::new(&[1, 3, 8, 8]);
        let factors: Vec<f32> = (0..4).map(|at| apart.powf(at as f32 / 3.0)).collect();
        b.drawn("w0", &[4, 3, 1, 1], 1).floats("factors", &[4, 1, 1], factors).drawn("w1", &[2, 4, 1, 1], 2);
        b.node("Conv", &["x", "w0"], "c", vec![]).node("Mul", &["c", "factors"], "m", vec![]);
        b.node("Conv", &["m", "w1"], "y", vec![]);
        let prepared = prepare(&b.model(&[("y", &[1, 2, 8, 8])])).unwrap();
        let engine = engines().remove(0);
        let statistics = statistics(engine.as_ref(), &prepared, &batches(&[1, 3, 8, 8], 4));
        let ranges = statistics.ranges(Method::MinMax);
        let quantised = quantise_static(&prepared, &ranges, &statistics, &spec(Form::Chains)).unwrap();
        let text = dump(&quantised.model);
        let floats = quantised.model.graph().node.iter().any(|node| node.input.iter().any(|name| name == "factors"));
        assert_eq!((quantised.layers, floats), (2, !bytes), "{text}");
    }
}

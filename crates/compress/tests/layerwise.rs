//! Weights rounded by what comes before them: against a reference in numpy, and by the error of layers whose inputs go
//! together.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/stepping.rs"]
mod stepping;
mod support;

use std::collections::BTreeSet;

use edgeward_compress::{
    Activations, Bias, BlockBits, Form, GptqSpec, Prepared, Solved, StaticSpec, WeightBits, adaround, calibrate, gptq,
    histogram::Method, observe::Inputs, prepare, quantise_blocks, quantise_blocks_in_steps, quantise_static_in_steps,
};
use edgeward_engine::Engine;
use edgeward_graph::{Model, Tensor, check, proto::AttributeProto};
use serde_json::{Value, json};
use stepping::python;
use support::{Builder, decibels, dump, engines, ints, load, numbers, run};

/// Rows whose numbers go together: a few causes, and a little of their own.
fn together(seed: u64, rows: usize, width: usize) -> Vec<f32> {
    let causes = width / 4;
    let (mix, cause, own) =
        (numbers(900, causes * width), numbers(seed, rows * causes), numbers(seed + 500, rows * width));
    let number = |at: usize| {
        let (row, column) = (at / width, at % width);
        let sum: f32 = (0..causes).map(|k| cause[row * causes + k] * mix[k * width + column]).sum();
        sum + 0.05 * own[at]
    };
    (0..rows * width).map(number).collect()
}

fn given(seed: u64, rows: usize, width: usize) -> Inputs {
    vec![("x".to_owned(), Tensor::from_vec([rows, width], together(seed, rows, width)).unwrap())]
}

/// A MatMul of `[rows, inputs]`, or a Gemm whose weights lie by output.
fn layer(op: &str, rows: usize, inputs: usize, outputs: usize) -> Model {
    let mut b = Builder::new(&[rows as i64, inputs as i64]);
    if op == "MatMul" {
        b.drawn("w", &[inputs, outputs], 3).node("MatMul", &["x", "w"], "y", vec![]);
    } else {
        b.drawn("w", &[outputs, inputs], 3).drawn("b", &[outputs], 4);
        b.node("Gemm", &["x", "w", "b"], "y", vec![AttributeProto::of_int("transB", 1)]);
    }
    b.model(&[("y", &[rows as i64, outputs as i64])])
}

fn solved(engine: &dyn Engine, prepared: &Prepared, spec: &GptqSpec, data: &[Inputs]) -> Solved {
    gptq(prepared, spec, &|model| load(engine, model), &|| Box::new(data.iter().cloned().map(Ok))).unwrap()
}

/// The weights, output by output.
fn weights(model: &Model, op: &str) -> Vec<f32> {
    let tensor = model.graph().initializer.iter().find(|tensor| tensor.name() == "w").unwrap();
    let tensor = model.tensor(tensor).unwrap();
    let values = tensor.values::<f32>().unwrap().into_owned();
    if op != "MatMul" {
        return values;
    }
    let (inputs, outputs) = (tensor.shape()[0], tensor.shape()[1]);
    (0..outputs).flat_map(|o| (0..inputs).map(move |i| (o, i))).map(|(o, i)| values[i * outputs + o]).collect()
}

#[test]
fn weights_are_those_of_the_reference() {
    let cases = [
        ("MatMul", 64, 8, BlockBits::Four, 32, 0.01),
        ("Gemm", 48, 5, BlockBits::Four, 16, 0.01),
        ("Gemm", 256, 3, BlockBits::Eight, 64, 0.1),
        ("MatMul", 512, 7, BlockBits::Four, 256, 0.01),
        ("MatMul", 160, 4, BlockBits::Eight, 32, 0.01),
    ];
    let (rows, batches) = (24, 5u64);
    for engine in engines() {
        let (mut told, mut found) = (Vec::new(), Vec::new());
        for (op, inputs, outputs, bits, block, damping) in cases {
            let prepared = prepare(&layer(op, rows, inputs, outputs)).unwrap();
            let data: Vec<Inputs> = (0..batches).map(|seed| given(seed, rows, inputs)).collect();
            let spec = GptqSpec { bits, block, damping };
            let seen: Vec<f32> = (0..batches).flat_map(|seed| together(seed, rows, inputs)).collect();
            told.push(json!({
                "weight": weights(&prepared.model, op), "seen": seen, "inputs": inputs, "outputs": outputs,
                "bits": if bits == BlockBits::Four { 4 } else { 8 }, "block": block, "damping": damping,
            }));
            found.push(weights(&solved(engine.as_ref(), &prepared, &spec, &data).prepared.model, op));
        }
        let Some(expected) = python("layerwise/reference.py", &Value::Array(told)) else { return };
        for ((case, found), expected) in cases.iter().zip(&found).zip(expected.as_array().unwrap()) {
            let expected: Vec<f64> = expected.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
            assert_eq!(found.len(), expected.len());
            let off = found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
            assert!(off < 1e-4, "{} {case:?}: off by {off}", engine.name());
        }
    }
}

/// On rows that were not seen.
fn noise(engine: &dyn Engine, float: &Model, rounded: &Model, (rows, width): (usize, usize)) -> f64 {
    let inputs = given(77, rows, width);
    decibels(&run(engine, float, &inputs), &run(engine, rounded, &inputs))
}

#[test]
fn layers_lose_less_than_by_the_nearest() {
    for engine in engines() {
        for (op, inputs, outputs, bits) in [
            ("MatMul", 64, 24, BlockBits::Four),
            ("Gemm", 128, 10, BlockBits::Four),
            ("MatMul", 192, 16, BlockBits::Eight),
        ] {
            let prepared = prepare(&layer(op, 40, inputs, outputs)).unwrap();
            let data: Vec<Inputs> = (0..8).map(|seed| given(seed, 40, inputs)).collect();
            let solved = solved(engine.as_ref(), &prepared, &GptqSpec::new(bits, 32), &data);
            assert_eq!(solved.layers, 1);
            let nearest = quantise_blocks(&prepared, bits, 32).unwrap().model;
            let by_data = quantise_blocks_in_steps(&solved.prepared, bits, 32, &solved.steps).unwrap().model;
            check(&by_data).unwrap();
            assert!(dump(&by_data).contains("MatMulNBits"), "{}", dump(&by_data));
            let floats = noise(engine.as_ref(), &prepared.model, &solved.prepared.model, (40, inputs));
            if load(engine.as_ref(), &by_data).is_err() {
                println!("skipped: {} lacks MatMulNBits", engine.name());
                continue;
            }
            let nearest = noise(engine.as_ref(), &prepared.model, &nearest, (40, inputs));
            let ratio = noise(engine.as_ref(), &prepared.model, &by_data, (40, inputs));
            // With eight bits the operator's own rounding of its inputs is much of the noise.
            let gain = if bits == BlockBits::Four { 3.0 } else { 0.2 };
            assert!(ratio > nearest + gain, "{op} {bits:?}: {ratio:.1} dB, nearest {nearest:.1} dB");
            // The blocks hold what was solved: with four bits inputs of bytes hardly add to the noise.
            assert!(floats >= ratio - 0.5, "{op} {bits:?}: {floats:.1} dB as floats, {ratio:.1} dB as blocks");
        }
    }
}

#[test]
fn what_cannot_be_solved_is_left() {
    let engine = engines().remove(0);
    // Read twice, of a width that has no blocks, without anything before it: each stays as it was.
    let mut b = Builder::new(&[4, 32]);
    b.drawn("twice", &[32, 32], 1).drawn("odd", &[32, 24], 2).drawn("last", &[24, 2], 3);
    b.node("MatMul", &["x", "twice"], "a", vec![]).node("MatMul", &["a", "twice"], "c", vec![]);
    b.node("MatMul", &["c", "odd"], "d", vec![]).node("MatMul", &["d", "last"], "y", vec![]);
    let prepared = prepare(&b.model(&[("y", &[4, 2])])).unwrap();
    let spec = GptqSpec::new(BlockBits::Four, 32);
    let zeros: Vec<Inputs> = vec![vec![("x".to_owned(), Tensor::from_vec([4, 32], vec![0f32; 128]).unwrap())]];
    for data in [&zeros[..], &[]] {
        let found = solved(engine.as_ref(), &prepared, &spec, data);
        assert_eq!((found.layers, found.steps.len()), (0, 0));
    }
    let found = solved(engine.as_ref(), &prepared, &spec, &[given(1, 4, 32)]);
    assert_eq!((found.layers, found.steps.keys().map(String::as_str).collect::<Vec<_>>()), (1, vec!["odd"]));
    let spec = GptqSpec { block: 48, ..spec };
    let refused = gptq(&prepared, &spec, &|model| load(engine.as_ref(), model), &|| Box::new(std::iter::empty()));
    assert!(refused.unwrap_err().to_string().contains("`48`"));
}

/// Pictures of stripes and a little noise, each channel's in another direction, so that no channel's matrix fits another's.
fn pictures(seed: u64) -> Inputs {
    let (channels, side) = (4, 9);
    let stripes = numbers(seed, channels * 2 * side);
    let noise = numbers(seed + 700, channels * side * side);
    let number = |at: usize| {
        let (channel, row, column) = (at / side / side, at / side % side, at % side);
        let stripe = [row, column, row + column, row + side - 1 - column][channel];
        stripes[channel * 2 * side + stripe] + 0.05 * noise[at]
    };
    let values = (0..channels * side * side).map(number).collect();
    vec![("x".to_owned(), Tensor::from_vec([1, channels, side, side], values).unwrap())]
}

/// A convolution of pictures of four channels.
fn convolution(group: usize, strides: i64, pads: i64) -> Model {
    let mut b = Builder::new(&[1, 4, 9, 9]);
    b.drawn("w", &[8, 4 / group, 3, 3], 3).drawn("b", &[8], 4);
    let group = AttributeProto::of_int("group", group as i64);
    b.node("Conv", &["x", "w", "b"], "y", vec![ints("pads", &[pads; 4]), group]);
    let attributes = &mut b.graph.node[0].attribute;
    attributes.retain(|attribute| attribute.name() != "strides");
    attributes.push(ints("strides", &[strides, strides]));
    let side = (9 + 2 * pads - 3) / strides + 1;
    b.model(&[("y", &[1, 8, side, side])])
}

/// The same weights rounded to the nearest of the same steps.
fn nearest(prepared: &Prepared, solved: &Solved, by_output: bool, most: f32) -> Model {
    let mut model = prepared.model.clone();
    let tensor = model.graph().initializer.iter().position(|tensor| tensor.name() == "w").unwrap();
    let was = model.tensor(&model.graph().initializer[tensor]).unwrap();
    let steps = &solved.steps["w"];
    let row = was.len() / steps.len();
    let step = |at: usize| if by_output { steps[at / row] } else { steps[at % steps.len()] };
    let round = |(at, value): (usize, &f32)| (value / step(at)).round_ties_even().clamp(-most, most) * step(at);
    let values: Vec<f32> = was.values::<f32>().unwrap().iter().enumerate().map(round).collect();
    let rounded = Tensor::from_vec(was.shape().to_vec(), values).unwrap();
    model.graph_mut().initializer[tensor] = edgeward_graph::tensor_proto("w", &rounded);
    model
}

#[test]
fn rounding_up_or_down_by_data_loses_less() {
    let rows = |seed| given(seed, 40, 32);
    // Nine weights leave little to choose.
    let cases: [(&str, Model, &dyn Fn(u64) -> Inputs, bool, f64); 5] = [
        ("MatMul", layer("MatMul", 40, 32, 12), &rows, false, 2.0),
        ("Gemm", layer("Gemm", 40, 32, 12), &rows, true, 2.0),
        ("Conv", convolution(1, 1, 1), &pictures, true, 1.0),
        ("Conv of two groups", convolution(2, 2, 1), &pictures, true, 1.0),
        ("depthwise Conv", convolution(4, 1, 0), &pictures, true, 0.0),
    ];
    for engine in engines() {
        for (name, model, inputs, by_output, gain) in &cases {
            let prepared = prepare(model).unwrap();
            let data: Vec<Inputs> = (0..16).map(inputs).collect();
            let load = |model: &Model| load(engine.as_ref(), model);
            let solved =
                adaround(&prepared, WeightBits::Four, &load, &|| Box::new(data.iter().cloned().map(Ok))).unwrap();
            assert_eq!(solved.layers, 1);
            let other = nearest(&prepared, &solved, *by_output, 7.0);
            let unseen = inputs(99);
            let expected = run(engine.as_ref(), model, &unseen);
            let before = decibels(&expected, &run(engine.as_ref(), &other, &unseen));
            let after = decibels(&expected, &run(engine.as_ref(), &solved.prepared.model, &unseen));
            assert!(after > before + gain, "{} {name}: {after:.1} dB, nearest {before:.1} dB", engine.name());
            exported(engine.as_ref(), &solved, &data);
        }
    }
}

/// `w` with number `at` as `value`.
fn changed(model: &Model, at: usize, value: f32) -> Model {
    let mut model = model.clone();
    let tensor = model.graph().initializer.iter().position(|tensor| tensor.name() == "w").unwrap();
    let was = model.tensor(&model.graph().initializer[tensor]).unwrap();
    let mut values = was.values::<f32>().unwrap().into_owned();
    values[at] = value;
    let now = Tensor::from_vec(was.shape().to_vec(), values).unwrap();
    model.graph_mut().initializer[tensor] = edgeward_graph::tensor_proto("w", &now);
    model
}

#[test]
fn no_other_choice_of_a_weight_makes_results_better() {
    // What a convolution's window sees is told by the engine that runs it: strides, padding and groups count.
    let engine = engines().pop().unwrap();
    for (model, row) in [(convolution(2, 2, 1), 18), (convolution(4, 1, 0), 9)] {
        no_better_choice(engine.as_ref(), &model, row);
    }
}

/// `row` weights make one output.
fn no_better_choice(engine: &dyn Engine, model: &Model, row: usize) {
    let prepared = prepare(model).unwrap();
    let data: Vec<Inputs> = (0..6).map(pictures).collect();
    let load = |model: &Model| load(engine, model);
    let solved = adaround(&prepared, WeightBits::Four, &load, &|| Box::new(data.iter().cloned().map(Ok))).unwrap();
    let all = |model: &Model| data.iter().flat_map(|inputs| run(engine, model, inputs)).collect::<Vec<f32>>();
    let expected = all(model);
    let least = decibels(&expected, &all(&solved.prepared.model));
    let weights = |model: &Model| {
        let tensor = model.graph().initializer.iter().find(|tensor| tensor.name() == "w").unwrap();
        model.tensor(tensor).unwrap().values::<f32>().unwrap().into_owned()
    };
    let (was, is, steps) = (weights(model), weights(&solved.prepared.model), &solved.steps["w"]);
    let mut tried = 0;
    for (at, (was, is)) in was.iter().zip(&is).enumerate() {
        let step = steps[at / row];
        let other = if is > was { is - step } else { is + step };
        if (other - was).abs() >= step || other.abs() > 7.5 * step {
            continue;
        }
        let ratio = decibels(&expected, &all(&changed(&solved.prepared.model, at, other)));
        assert!(ratio <= least + 1e-3, "weight {at} as {other} instead of {is}: {ratio} dB, {least} dB before");
        tried += 1;
    }
    assert!(tried > is.len() / 2, "{tried}");
}

/// The static integers are those that were solved.
fn exported(engine: &dyn Engine, solved: &Solved, data: &[Inputs]) {
    let mut batches = data.iter().cloned().map(Ok);
    let statistics = calibrate(&solved.prepared, &|model| load(engine, model), &mut batches).unwrap();
    let spec = StaticSpec {
        form: Form::Inputs,
        activations: Activations::U8,
        weights: WeightBits::Four,
        bias: Bias::Corrected,
        keep: BTreeSet::new(),
    };
    let ranges = statistics.ranges(Method::MinMax);
    let model = quantise_static_in_steps(&solved.prepared, &ranges, &statistics, &spec, &solved.steps).unwrap().model;
    check(&model).unwrap();
    let found = |model: &Model, name: &str| {
        model.tensor(model.graph().initializer.iter().find(|t| t.name() == name).unwrap()).unwrap()
    };
    let (integers, floats) = (found(&model, "w.int8"), found(&solved.prepared.model, "w"));
    let (integers, steps) = (integers.values::<i8>().unwrap(), &solved.steps["w"]);
    for (at, (integer, float)) in integers.iter().zip(floats.values::<f32>().unwrap().iter()).enumerate() {
        let near = steps.iter().any(|step| (f32::from(*integer) * step - float).abs() <= 1e-6);
        assert!(near && integer.abs() <= 7, "weight {at}: {integer} for {float}");
    }
}

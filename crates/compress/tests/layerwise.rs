//! Weights rounded by what comes before them: against a reference in numpy, and by the error of layers whose inputs go
//! together.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/stepping.rs"]
mod stepping;
mod support;

use edgeward_compress::{
    BlockBits, GptqSpec, Prepared, Solved, gptq, observe::Inputs, prepare, quantise_blocks, quantise_blocks_in_steps,
};
use edgeward_engine::Engine;
use edgeward_graph::{Model, Tensor, check, proto::AttributeProto};
use serde_json::{Value, json};
use stepping::python;
use support::{Builder, decibels, dump, engines, load, numbers, run};

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

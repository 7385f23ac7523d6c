//! Integers in operators of their own, LSTMs with weights of bytes, and weights of 16 bits.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;

use edgeward_compress::{
    Activations, Bias, Convolutions, DynamicSpec, Form, Half, StaticSpec, WeightBits, calibrate, halve,
    histogram::Method, prepare, quantise_dynamic, quantise_recurrent, quantise_static, to_operators,
};
use edgeward_graph::{Model, Tensor, check, proto::AttributeProto};
use support::{Builder, batches, decibels, dump, engines, ints, load, numbers, residual, run};

fn operators(model: &Model, shape: &[usize]) -> (Model, Model) {
    let prepared = prepare(model).unwrap();
    let engine = engines().pop().unwrap();
    let mut data = batches(shape, 16).into_iter().map(Ok);
    let statistics = calibrate(&prepared, &|model| load(engine.as_ref(), model), &mut data).unwrap();
    let spec = StaticSpec {
        form: Form::Chains,
        activations: Activations::U8,
        weights: WeightBits::Eight,
        bias: Bias::Corrected,
        keep: BTreeSet::new(),
    };
    let pairs = quantise_static(&prepared, &statistics.ranges(Method::MinMax), &statistics, &spec).unwrap();
    let operators = to_operators(&pairs).unwrap();
    assert_eq!(operators.layers, pairs.layers);
    (pairs.model, operators.model)
}

/// Both forms say the same, where an engine has the operators, but for the last step of their bytes.
fn same(model: &Model, shape: &[usize], expected: &[&str]) {
    let (pairs, operators) = operators(model, shape);
    let text = dump(&operators);
    for op in expected {
        assert!(text.lines().any(|line| line.starts_with(&format!("{op} "))), "no {op} in\n{text}");
    }
    check(&operators).unwrap_or_else(|errors| panic!("{errors:?}\n{text}"));
    let mut ran = false;
    for engine in engines().into_iter().filter(|engine| engine.name() == "onnxruntime") {
        for inputs in &batches(shape, 4) {
            let float = run(engine.as_ref(), model, inputs);
            let (was, is) = (run(engine.as_ref(), &pairs, inputs), run(engine.as_ref(), &operators, inputs));
            let (was, is) = (decibels(&float, &was), decibels(&float, &is));
            assert!(is > 25.0 && is > was - 3.0, "{is:.1} dB, as pairs {was:.1} dB\n{text}");
        }
        ran = true;
    }
    if !ran {
        println!("skipped: ONNX Runtime is not installed");
    }
}

#[test]
fn chains_become_operators() {
    let mut b = residual(1);
    b.drawn("w2", &[2, 4, 1, 1], 5).node("Conv", &["r1", "w2"], "y", vec![]);
    let model = b.model(&[("y", &[1, 2, 8, 8])]);
    same(&model, &[1, 3, 8, 8], &["QLinearConv", "QLinearAdd"]);
    let (_, operators) = operators(&model, &[1, 3, 8, 8]);
    let text = dump(&operators);
    let count = |op: &str| text.lines().filter(|line| line.starts_with(op)).count();
    // Bytes from the first to the last.
    assert_eq!((count("QLinearConv"), count("QuantizeLinear"), count("DequantizeLinear")), (3, 1, 1), "{text}");
}

#[test]
fn what_moves_joins_and_pools_works_on_bytes() {
    let mut b = Builder::new(&[1, 4, 8, 8]);
    b.drawn("w0", &[4, 4, 3, 3], 1).drawn("w1", &[4, 4, 1, 1], 2).drawn("w2", &[3, 8, 1, 1], 3);
    let padded = || vec![ints("pads", &[1, 1, 1, 1])];
    b.node("Conv", &["x", "w0"], "c", padded()).node("Sigmoid", &["c"], "s", vec![]);
    b.node("Mul", &["c", "s"], "m", vec![]);
    b.node("MaxPool", &["m"], "p", vec![ints("kernel_shape", &[3, 3]), ints("pads", &[1, 1, 1, 1])]);
    b.node("Conv", &["p", "w1"], "d", vec![]).node(
        "LeakyRelu",
        &["d"],
        "l",
        vec![AttributeProto::of_float("alpha", 0.1)],
    );
    b.node("Concat", &["p", "l"], "j", vec![AttributeProto::of_int("axis", 1)]);
    b.node("Transpose", &["j"], "t", vec![ints("perm", &[0, 1, 3, 2])]);
    b.node("Conv", &["t", "w2"], "y", vec![]);
    let model = b.model(&[("y", &[1, 3, 8, 8])]);
    let all =
        ["QLinearConv", "QLinearSigmoid", "QLinearMul", "MaxPool", "QLinearLeakyRelu", "QLinearConcat", "Transpose"];
    same(&model, &[1, 4, 8, 8], &all);
}

#[test]
fn floats_between_stay() {
    let mut b = Builder::new(&[2, 6]);
    b.drawn("w0", &[6, 5], 1).drawn("w1", &[5, 3], 2);
    b.node("MatMul", &["x", "w0"], "m", vec![]).node("Relu", &["m"], "r", vec![]);
    b.node("MatMul", &["r", "w1"], "y", vec![]);
    let model = b.model(&[("y", &[2, 3])]);
    let (pairs, operators) = operators(&model, &[2, 6]);
    assert_eq!(dump(&pairs), dump(&operators));
    // A product that another one reads as it is stays bytes.
    let mut b = Builder::new(&[2, 6]);
    b.drawn("w0", &[6, 5], 1).drawn("w1", &[5, 3], 2);
    b.node("MatMul", &["x", "w0"], "m", vec![]).node("MatMul", &["m", "w1"], "y", vec![]);
    same(&b.model(&[("y", &[2, 3])]), &[2, 6], &["QLinearMatMul"]);
}

/// `x` of [steps, batch, 5] through an LSTM of `directions` and 6 numbers of state.
fn recurrent(directions: usize) -> Model {
    let (inputs, hidden) = (5, 6);
    let mut b = Builder::new(&[7, 2, inputs as i64]);
    b.drawn("w", &[directions, 4 * hidden, inputs], 1).drawn("r", &[directions, 4 * hidden, hidden], 2);
    b.floats("b", &[directions, 8 * hidden], numbers(3, directions * 8 * hidden));
    let direction = if directions == 2 { "bidirectional" } else { "forward" };
    let attributes =
        vec![AttributeProto::of_int("hidden_size", hidden as i64), AttributeProto::of_text("direction", direction)];
    b.node("LSTM", &["x", "w", "r", "b"], "y", attributes);
    b.model(&[("y", &[7, directions as i64, 2, hidden as i64])])
}

#[test]
fn lstms_have_weights_of_bytes() {
    for directions in [1, 2] {
        let model = recurrent(directions);
        let prepared = prepare(&model).unwrap();
        let spec =
            DynamicSpec { weights: WeightBits::Eight, convolutions: Convolutions::Floats, keep: BTreeSet::new() };
        let dynamic = quantise_dynamic(&prepared, &spec).unwrap();
        let quantised = quantise_recurrent(&prepared, &dynamic, WeightBits::Eight).unwrap();
        assert_eq!(quantised.layers, 1);
        let text = dump(&quantised.model);
        let inputs = ["x", "w.int8", "r.int8", "b", "", "", "", "", "w.scale", "w.zero", "r.scale", "r.zero"].join(" ");
        assert_eq!(text, format!("DynamicQuantizeLSTM {inputs} -> y"));
        check(&quantised.model).unwrap();
        for engine in engines().into_iter().filter(|engine| engine.name() == "onnxruntime") {
            for inputs in &batches(&[7, 2, 5], 3) {
                let expected = run(engine.as_ref(), &model, inputs);
                let ratio = decibels(&expected, &run(engine.as_ref(), &quantised.model, inputs));
                assert!(ratio > 25.0, "{directions}: {ratio:.1} dB");
            }
        }
    }
}

#[test]
fn weights_of_bfloat16_hold_what_binary16_does_not() {
    let mut b = Builder::new(&[2, 8]);
    let mut wide = numbers(1, 64);
    wide[7] = 1e6;
    b.floats("w", &[8, 8], wide).node("MatMul", &["x", "w"], "y", vec![]);
    let model = b.model(&[("y", &[2, 8])]);
    let prepared = prepare(&model).unwrap();
    assert!(!dump(&halve(&prepared, Half::Binary16).unwrap()).contains("Cast"));
    let halved = halve(&prepared, Half::BFloat16).unwrap();
    assert!(dump(&halved).starts_with("Cast w.half -> w\n"), "{}", dump(&halved));
    check(&halved).unwrap();
    for engine in engines() {
        // The built-in engine may lack the type.
        if load(engine.as_ref(), &halved).is_err() && engine.name() == "rten" {
            println!("skipped: rten lacks bfloat16");
            continue;
        }
        for inputs in &batches(&[2, 8], 3) {
            let ratio = decibels(&run(engine.as_ref(), &model, inputs), &run(engine.as_ref(), &halved, inputs));
            assert!(ratio > 40.0, "{}: {ratio:.1} dB", engine.name());
        }
    }
    // Rounded to the nearest of 8 bits, ties to even.
    let stored = halved.graph().initializer.iter().find(|tensor| tensor.name() == "w.half").unwrap();
    let stored: Tensor = halved.tensor(stored).unwrap();
    let most = stored.values::<half::bf16>().unwrap()[7].to_f32();
    assert_eq!(most, 999_424.0);
}

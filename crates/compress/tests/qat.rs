//! Rounding in the training graph: its gradients against PyTorch, its results against the exported integers, and what it
//! brings back of a model of four bits.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/learning.rs"]
mod learning;
#[path = "support/stepping.rs"]
mod stepping;
mod support;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use edgeward_compress::{
    Activations, Bias, BlockBits, DistilSpec, Form, Labels, Prepared, Range, Ranges, Rounded, Rounding, StaticSpec,
    Statistics, WeightBits, WeightSteps, calibrate, histogram::Method, join, prepare, quantise_blocks_in_steps,
    quantise_static, quantise_static_in_steps, round_in_training,
};
use edgeward_engine::Engine;
use edgeward_graph::{Model, Tensor, check, proto::AttributeProto, tensor_proto};
use edgeward_train::{
    Loss,
    data::{Dataset, Fit, Loader, OpenOptions, Plan, Sampling, Wanted, open, split_fraction},
    metrics::Metric,
    starter::{Kind, Starter, starter},
    trainer::{Task, evaluate},
};
use learning::{Pace, adam, learn};
use serde_json::{Value, json};
use stepping::{Asked, gradients, near, python, told};
use support::{Builder, batches, decibels, dump, engines, ints, load, numbers, residual};

/// MatMul and Add, Relu, Gemm.
fn product() -> Model {
    let mut b = Builder::new(&[0, 8]);
    b.drawn("w0", &[8, 16], 1).drawn("b0", &[16], 2).drawn("w1", &[3, 16], 3).drawn("b1", &[3], 4);
    b.node("MatMul", &["x", "w0"], "m", vec![]).node("Add", &["m", "b0"], "a", vec![]);
    b.node("Relu", &["a"], "h", vec![]);
    b.node("Gemm", &["h", "w1", "b1"], "y", vec![AttributeProto::of_int("transB", 1)]);
    b.model(&[("y", &[0, 3])])
}

fn spec(form: Form, weights: WeightBits) -> StaticSpec {
    StaticSpec { form, activations: Activations::U8, weights, bias: Bias::AsItIs, keep: BTreeSet::new() }
}

fn tensor(model: &Model, name: &str) -> Tensor {
    model.tensor(model.graph().initializer.iter().find(|tensor| tensor.name() == name).unwrap()).unwrap()
}

/// What the reference needs to know of a rounded weight; `number` is that of its step.
fn weight(model: &Model, rounding: &Rounding, number: usize, name: &str, bias: &str, blocks: bool) -> Value {
    let factor = rounding.factors[number].0.text().to_owned();
    let first = tensor(model, &factor.replace("factor", "first"));
    let values = tensor(model, name);
    let cut: Vec<usize> = match (blocks, values.shape()) {
        (false, shape) => shape.to_vec(),
        (true, &[rows, columns]) if name == "w1" => vec![rows, columns / 4, 4],
        (true, &[rows, columns]) => vec![rows / 4, 4, columns],
        _ => panic!("no matrix"),
    };
    json!({
        "weight": name, "values": told(&values), "first": told(&first), "factor": factor, "cut": cut,
        "low": if blocks { -8 } else { -7 }, "high": 7, "count": values.len() / first.len(),
        "transposed": name == "w1", "bias": bias, "offset": told(&tensor(model, bias)),
    })
}

fn value(model: &Model, rounding: &Rounding, number: usize, name: &str, count: usize) -> Value {
    let factor = rounding.factors[number].0.text().to_owned();
    let first = tensor(model, &factor.replace("factor", "first"));
    let reader = model.graph().node.iter().find(|n| n.op_type() == "QuantizeLinear" && n.input[0] == name).unwrap();
    let zero = tensor(model, &reader.input[2]).values::<u8>().unwrap()[0];
    json!({ "zero": zero, "first": told(&first), "factor": factor, "count": count })
}

#[test]
fn gradients_of_weights_and_steps_are_those_of_pytorch() {
    let prepared = prepare(&product()).unwrap();
    let mut ranges = Ranges::new();
    ranges.insert("x".to_owned(), Range::new(-0.7, 0.9));
    ranges.insert("h".to_owned(), Range::new(0.0, 0.8));
    let four = spec(Form::Inputs, WeightBits::Four);
    let x = Tensor::from_vec([6, 8], numbers(5, 48)).unwrap();
    let labels = [0i64, 2, 1, 1, 0, 2];
    let target = Tensor::from_vec([6], labels.to_vec()).unwrap();
    for (case, rounded) in
        [("static", Rounded::Static { ranges: &ranges, spec: &four }), ("blocks", Rounded::Blocks { block: 4 })]
    {
        let rounding = round_in_training(&prepared, &rounded).unwrap();
        let mut forward = rounding.forward.clone();
        // Away from bounds and halves, where neither side of a gradient is the right one.
        for name in ["w0", "w1"] {
            let moved = tensor(&forward, name).values::<f32>().unwrap().iter().map(|v| v * 0.97).collect::<Vec<_>>();
            let moved = Tensor::from_vec(tensor(&forward, name).shape().to_vec(), moved).unwrap();
            let place = forward.graph_mut().initializer.iter_mut().find(|t| t.name() == name).unwrap();
            *place = tensor_proto(name, &moved);
        }
        let blocks = case == "blocks";
        let of = |number, name, bias| weight(&forward, &rounding, number, name, bias, blocks);
        let (first, second) = (of(0, "w0", "b0"), of(1, "w1", "b1"));
        let layers = if blocks {
            json!([first, {}, second])
        } else {
            let (h, x) = (value(&forward, &rounding, 2, "h", 16), value(&forward, &rounding, 3, "x", 8));
            json!([x, first, {}, h, second])
        };
        let told = json!({ "x": told(&x), "labels": labels, "layers": layers });
        let Some(expected) = python("qat/reference.py", &told) else { return };
        let asked = Asked {
            loss: Loss::cross_entropy().into(),
            frozen: rounding.frozen.clone(),
            factors: rounding.factors.clone(),
        };
        for engine in engines() {
            // The reference has the paper's factor in its graph; here it is beside the gradient.
            let found = gradients(engine.as_ref(), &forward, &asked, &[("x", &x), ("target", &target)]);
            near(&format!("{case} on {}", engine.name()), &found, &expected);
        }
    }
}

/// Conv, normalised and clipped, then Conv and a sum of both, pooled.
fn block() -> Model {
    let mut b = residual(0);
    b.node("MaxPool", &["r1"], "p", vec![ints("kernel_shape", &[2, 2])]);
    b.drawn("w2", &[2, 4, 1, 1], 5).node("Conv", &["p", "w2"], "y", vec![]);
    b.model(&[("y", &[0, 2, 7, 7])])
}

fn observed(model: &Model, shape: &[usize]) -> (Prepared, Statistics) {
    let prepared = prepare(model).unwrap();
    let engine = engines().pop().unwrap();
    let mut data = batches(shape, 16).into_iter().map(Ok);
    let statistics = calibrate(&prepared, &|model| load(engine.as_ref(), model), &mut data).unwrap();
    (prepared, statistics)
}

#[test]
fn the_training_graph_says_what_the_exported_integers_say() {
    for (case, model, shape) in [("block", block(), vec![1, 3, 8, 8]), ("product", product(), vec![2, 8])] {
        let (prepared, statistics) = observed(&model, &shape);
        let ranges = statistics.ranges(Method::MinMax);
        for (form, bits) in
            [(Form::Chains, WeightBits::Eight), (Form::Chains, WeightBits::Four), (Form::Inputs, WeightBits::Four)]
        {
            let spec = spec(form, bits);
            let rounding = round_in_training(&prepared, &Rounded::Static { ranges: &ranges, spec: &spec }).unwrap();
            check(&rounding.forward).unwrap_or_else(|errors| panic!("{errors:?}\n{}", dump(&rounding.forward)));
            let learnt = rounding.learnt(&prepared, &ranges, &rounding.forward).unwrap();
            let exported =
                quantise_static_in_steps(&learnt.prepared, &learnt.ranges, &statistics, &spec, &learnt.steps).unwrap();
            for engine in engines() {
                for inputs in &batches(&shape, 3) {
                    let trained = support::run(engine.as_ref(), &rounding.forward, inputs);
                    let written = support::run(engine.as_ref(), &exported.model, inputs);
                    let ratio = decibels(&trained, &written);
                    // Biases and constants are rounded only in the file, which moves a few sums over a half.
                    assert!(ratio > 30.0, "{case} {form:?} {bits:?} on {}: {ratio:.1} dB", engine.name());
                }
            }
        }
    }
}

#[test]
fn weights_in_blocks_say_the_same_before_and_after_their_export() {
    let mut b = Builder::new(&[0, 32]);
    b.drawn("w0", &[32, 64], 1).drawn("w1", &[3, 64], 3).drawn("b1", &[3], 4);
    b.node("MatMul", &["x", "w0"], "m", vec![]).node("Relu", &["m"], "h", vec![]);
    b.node("Gemm", &["h", "w1", "b1"], "y", vec![AttributeProto::of_int("transB", 1)]);
    let prepared = prepare(&b.model(&[("y", &[0, 3])])).unwrap();
    let rounding = round_in_training(&prepared, &Rounded::Blocks { block: 32 }).unwrap();
    let learnt = rounding.learnt(&prepared, &Ranges::new(), &rounding.forward).unwrap();
    assert_eq!((learnt.steps["w0"].len(), learnt.steps["w1"].len()), (64, 6));
    let exported = quantise_blocks_in_steps(&learnt.prepared, BlockBits::Four, 32, &learnt.steps).unwrap();
    assert_eq!(exported.layers, 2);
    // The operator is ONNX Runtime's own, and rounds its inputs to bytes.
    for engine in engines().into_iter().filter(|engine| engine.name() == "onnxruntime") {
        for inputs in &batches(&[2, 32], 3) {
            let trained = support::run(engine.as_ref(), &rounding.forward, inputs);
            let ratio = decibels(&trained, &support::run(engine.as_ref(), &exported.model, inputs));
            assert!(ratio > 35.0, "{ratio:.1} dB");
        }
    }
}

#[test]
fn steps_that_shrank_to_nothing_are_told() {
    let prepared = prepare(&product()).unwrap();
    let rounding = round_in_training(&prepared, &Rounded::Blocks { block: 4 }).unwrap();
    let mut trained = rounding.forward.clone();
    let factor = rounding.factors[0].0.text().to_owned();
    let count = tensor(&trained, &factor).len();
    let shape = tensor(&trained, &factor).shape().to_vec();
    let place = trained.graph_mut().initializer.iter_mut().find(|t| t.name() == factor).unwrap();
    *place = tensor_proto(&factor, &Tensor::from_vec(shape, vec![-0.1f32; count]).unwrap());
    let text = rounding.learnt(&prepared, &Ranges::new(), &trained).unwrap_err().to_string();
    assert!(text.contains("the steps of `w0` shrank to nothing"), "{text}");
    let bare = prepare(&Builder::new(&[0, 3]).node("Relu", &["x"], "y", vec![]).model(&[("y", &[0, 3])])).unwrap();
    let text = round_in_training(&bare, &Rounded::Blocks { block: 4 }).unwrap_err().to_string();
    assert!(text.contains("no layer whose weights could be rounded"), "{text}");
}

fn accuracy(engine: &dyn Engine, model: &Model, data: &Arc<dyn Dataset>) -> f64 {
    let target = edgeward_graph::Port {
        name: "target".to_owned(),
        dtype: Some(edgeward_graph::DataType::Int64),
        shape: Some(vec![edgeward_graph::Dimension::Symbol("batch".to_owned())]),
    };
    let wanted = Wanted { inputs: model.inputs(), targets: vec![target], ..Wanted::default() };
    let fit = Fit::new(data.clone(), wanted).unwrap();
    let loader = Loader::to_judge(fit, Plan { batch: 100, sampling: Sampling::Sequential, seed: 0 });
    let session = load(engine, model).unwrap();
    evaluate(session.as_ref(), &loader, Task::Classes).unwrap().get(Metric::Accuracy).unwrap()
}

#[test]
fn training_with_rounding_brings_back_what_four_bits_lose() {
    let data = std::env::var_os("EDGEWARD_DATA").map(PathBuf::from);
    let data = data.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"));
    let path = data.join("mnist/t10k-images-idx3-ubyte.gz");
    let engine = engines().into_iter().find(|engine| engine.name() == "onnxruntime");
    let (true, Some(engine)) = (path.is_file(), engine) else {
        return println!("skipped: no digits at `{}`, or no ONNX Runtime", path.display());
    };
    let engine = engine.as_ref();
    let splits = open(&path, &OpenOptions::default()).unwrap();
    let all = splits.train.or(splits.test).or(splits.val).unwrap();
    let (some, unseen) = split_fraction(all, 0.3, 0).unwrap();
    let wanted = Starter {
        kind: Kind::Resnet,
        input: vec![1, 28, 28],
        classes: 10,
        width: Some(4),
        depth: Some(8),
        vocabulary: 1,
        dropout: 0.0,
        seed: 3,
    };
    let pace = |epochs, rate| Pace { batch: 50, epochs, rate };
    let float =
        learn(engine, &starter(&wanted).unwrap(), &adam(Loss::cross_entropy().into()), some.clone(), &pace(3, 0.01));
    let prepared = prepare(&float).unwrap();
    let sample: Vec<usize> = (0..64).collect();
    let fit = Fit::new(some.clone(), Wanted { inputs: float.inputs(), ..Wanted::default() }).unwrap();
    let mut inputs = std::iter::once(Ok(fit.batch(&sample).unwrap().inputs));
    let statistics = calibrate(&prepared, &|model| load(engine, model), &mut inputs).unwrap();
    let ranges = statistics.ranges(Method::MinMax);
    let spec = spec(Form::Chains, WeightBits::Four);
    let rounded = quantise_static(&prepared, &ranges, &statistics, &spec).unwrap().model;
    let rounding = round_in_training(&prepared, &Rounded::Static { ranges: &ranges, spec: &spec }).unwrap();
    let distil = DistilSpec { labels: Labels::Classes(0.5), temperature: 1.0, ..DistilSpec::default() };
    let joined = join(&rounding.forward, &prepared, &distil).unwrap();
    let mut step = adam(joined.loss.clone());
    step.frozen = joined.frozen.iter().chain(&rounding.frozen).cloned().collect();
    step.factors.clone_from(&rounding.factors);
    let trained = learn(engine, &joined.forward, &step, some.clone(), &pace(2, 0.002));
    let learnt = rounding.learnt(&prepared, &ranges, &trained).unwrap();
    let exported =
        quantise_static_in_steps(&learnt.prepared, &learnt.ranges, &statistics, &spec, &learnt.steps).unwrap();
    let [before, lost, after] = [&float, &rounded, &exported.model].map(|model| accuracy(engine, model, &unseen));
    println!("accuracy: {before:.4} as floats, {lost:.4} at four bits, {after:.4} after training with rounding");
    assert!(before - lost > 0.02, "four bits lose nothing that could be brought back: {before} {lost}");
    assert!(after - lost >= 0.5 * (before - lost), "{before:.4} as floats, {lost:.4} at four bits, {after:.4} after");
    // Steps were learnt, not only weights.
    let first: WeightSteps = rounding.learnt(&prepared, &ranges, &rounding.forward).unwrap().steps;
    assert!(learnt.steps.iter().any(|(name, steps)| steps != &first[name]));
}

//! Steps as a trainer meets them: built from a forward graph, run by an engine, finished into a model.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use edgeward_graph::{DataType, Tensor};
use edgeward_train::{AdamSpec, Loss, OptimiserSpec, Pattern, StepSpec, build, differentiate, finished};
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

/// A batch of numbers, the mean of whose embeddings is classified.
fn embedding(rows: usize) -> Model {
    model(
        vec![
            node("Gather", &["table", "x"], &["e"], vec![]),
            node("ReduceMean", &["e"], &["m"], vec![AttributeProto::of_ints("axes", vec![1])]),
            node("Reshape", &["m", "target_shape"], &["f"], vec![]),
            node("Gemm", &["f", "w"], &["logits"], vec![]),
        ],
        vec![port("x", DataType::Int64, &["batch", "64"])],
        vec![port("logits", DataType::Float32, &["batch", "3"])],
        vec![
            ("table", noise(1, &[rows, 32])),
            ("w", noise(2, &[32, 3])),
            ("target_shape", Tensor::from_vec([2], vec![-1i64, 32]).unwrap()),
        ],
    )
}

#[test]
fn sums_into_repeated_rows_are_right_with_any_number_of_threads() {
    let momentum = OptimiserSpec::Sgd { momentum: 0.5, nesterov: false, weight_decay: 0.0 };
    let step = build(&embedding(7), &StepSpec::new(Loss::cross_entropy().into(), momentum)).unwrap();
    // 4096 indices into 7 rows: each row gets some 600 sums.
    let (batch, length) = (64, 64);
    let numbers: Vec<i64> =
        noise(5, &[batch * length]).values::<f32>().unwrap().iter().map(|v| ((v + 1.0) * 3.49) as i64).collect();
    let x = Tensor::from_vec([batch, length], numbers).unwrap();
    let target = Tensor::from_vec([batch], (0..batch as i64).map(|i| i % 3).collect()).unwrap();
    for engine in engines() {
        let gradient = |threads| {
            let mut run = Run::new(engine.as_ref(), &step, threads);
            run.step(0.1, &[("x", &x), ("target", &target)]);
            run.states()["momentum/table"].clone()
        };
        let alone = gradient(1);
        for threads in [2, 4, 8, 2, 4, 8, 2, 4, 8] {
            let (own, other) = (gradient(threads), alone.values::<f32>().unwrap());
            let own = own.values::<f32>().unwrap();
            let largest = other.iter().fold(0f32, |m, v| m.max(v.abs()));
            let error = own.iter().zip(other.iter()).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(error <= 1e-5 * largest, "{} with {threads} threads: {error} of {largest}", engine.name());
        }
    }
}

fn refusal(forward: &Model, spec: &StepSpec) -> String {
    build(forward, spec).map(drop).unwrap_err().to_string()
}

fn plain() -> StepSpec {
    StepSpec::new(Loss::cross_entropy().into(), OptimiserSpec::sgd())
}

#[test]
fn what_cannot_be_trained_is_named() {
    let mut forward = perceptron();
    forward.graph_mut().node[2].op_type = Some("Shrink".to_owned());
    assert!(refusal(&forward, &plain()).contains("node `Relu_h2` (Shrink)"), "{}", refusal(&forward, &plain()));
    // Only where a gradient must pass: the weights before it are frozen.
    let frozen = StepSpec { frozen: vec![Pattern::new("?1").unwrap()], ..plain() };
    forward.graph_mut().node[2].op_type = Some("Round".to_owned());
    build(&forward, &frozen).unwrap();

    let none = StepSpec { frozen: vec![Pattern::new("*").unwrap()], ..plain() };
    assert!(refusal(&perceptron(), &none).contains("no weight is left to train"));
    let unknown = StepSpec { frozen: vec![Pattern::new("layer*").unwrap()], ..plain() };
    assert!(refusal(&perceptron(), &unknown).contains("pattern `layer*` fits no weight; there are `w1`"));
    assert!(Pattern::new("[").unwrap_err().to_string().contains("pattern `[`"));
    for (spec, text) in [
        (StepSpec { clip_norm: Some(0.0), ..plain() }, "clip_norm is `0`"),
        (StepSpec { ema: Some(1.0), ..plain() }, "decay is `1`"),
        (StepSpec { clip_norm: Some(f32::NAN), ..plain() }, "clip_norm is `NaN`"),
    ] {
        assert!(refusal(&perceptron(), &spec).contains(text), "{}", refusal(&perceptron(), &spec));
    }
    let mut function = perceptron();
    function.graph_mut().node[2].domain = Some("com.example".to_owned());
    function
        .proto_mut()
        .opset_import
        .push(edgeward_graph::proto::OperatorSetIdProto { domain: Some("com.example".to_owned()), version: Some(1) });
    assert!(refusal(&function, &plain()).contains("operators of the domain `com.example`"));
}

#[test]
fn state_of_another_model_is_refused() {
    let step = build(&perceptron(), &plain()).unwrap();
    let state: Vec<Tensor> = step.state.iter().map(|s| s.initial.clone()).collect();
    let error = finished(&perceptron(), &step, &state[1..]).map(drop).unwrap_err().to_string();
    assert!(error.contains("3 tensors of state, the step has 4"), "{error}");
    let error = finished(&embedding(7), &step, &state).map(drop).unwrap_err().to_string();
    assert!(error.contains("has no weight"), "{error}");
    let mut swapped = state.clone();
    swapped.swap(0, 1);
    let error = finished(&perceptron(), &step, &swapped).map(drop).unwrap_err().to_string();
    assert!(error.contains("state `w1` is float32 [16], expected float32 [6, 16]"), "{error}");
}

#[test]
fn a_dropout_keeps_what_its_mask_says() {
    let mut forward = perceptron();
    let ratio = Tensor::from_vec([], vec![0.25f32]).unwrap();
    forward.graph_mut().initializer.push(edgeward_graph::tensor_proto("ratio", &ratio));
    forward.graph_mut().node[2] = node("Dropout", &["h1", "ratio"], &["h2"], vec![]);
    let momentum = OptimiserSpec::Sgd { momentum: 0.5, nesterov: false, weight_decay: 0.0 };
    let step = build(&forward, &StepSpec { optimiser: momentum, ..plain() }).unwrap();
    let [mask] = step.masks.as_slice() else { panic!("{:?}", step.masks) };
    assert_eq!((mask.input.as_str(), mask.keep), ("mask/Dropout_h2", 0.75));
    let (x, target) = rows(8);
    // Of 16 units every second is dropped: no gradient reaches its bias, and the others' outputs are divided by 0.75.
    let kept: Vec<f32> = (0..8 * 16).map(|i| (i % 2) as f32).collect();
    let kept = Tensor::from_vec([8, 16], kept).unwrap();
    for engine in engines() {
        let mut run = Run::new(engine.as_ref(), &step, 1);
        run.step(0.1, &[("x", &x), ("target", &target), (&mask.input, &kept)]);
        let bias = run.states()["momentum/b1"].clone();
        let bias = bias.values::<f32>().unwrap();
        assert!(bias.iter().step_by(2).all(|v| *v == 0.0), "{bias:?}");
        assert!(bias.iter().skip(1).step_by(2).all(|v| *v != 0.0), "{bias:?}");
    }
}

/// The same network as an older operator set writes it.
#[test]
fn older_operator_sets_are_brought_forward() {
    let (x, target) = rows(16);
    let loss = |forward: &Model| {
        let step = build(forward, &plain()).unwrap();
        assert_eq!(step.graph.opset(), 17);
        engines()
            .iter()
            .map(|e| Run::new(e.as_ref(), &step, 1).step(0.1, &[("x", &x), ("target", &target)]))
            .collect::<Vec<_>>()
    };
    let new = perceptron();
    let mut old = perceptron();
    old.proto_mut().opset_import[0].version = Some(11);
    let graph = old.graph_mut();
    graph.node[4].attribute.clear();
    graph.node.insert(3, node("Unsqueeze", &["h2"], &["h3"], vec![AttributeProto::of_ints("axes", vec![1])]));
    graph.node.insert(4, node("Squeeze", &["h3"], &["h4"], vec![AttributeProto::of_ints("axes", vec![1])]));
    graph.node[5].input[0] = "h4".to_owned();
    assert_eq!(loss(&new), loss(&old));
    old.proto_mut().opset_import[0].version = Some(9);
    assert!(refusal(&old, &plain()).contains("operator set 9, training takes 11 and newer"));
}

/// The sum of slices of `x`, each by a factor of its own: begin, end, factor.
fn sliced(slices: &[(i64, i64, f32)]) -> Model {
    let (mut nodes, mut sum, mut own) = (Vec::new(), String::new(), Vec::new());
    for (i, &(begin, end, factor)) in slices.iter().enumerate() {
        let name = |what: &str| format!("{what}{i}");
        own.push((name("begin"), Tensor::from_vec([1], vec![begin]).unwrap()));
        own.push((name("end"), Tensor::from_vec([1], vec![end]).unwrap()));
        own.push((name("factor"), Tensor::from_vec([1], vec![factor]).unwrap()));
        nodes.push(node("Slice", &["x", &name("begin"), &name("end"), "one"], &[&name("part")], vec![]));
        nodes.push(node("Mul", &[&name("part"), &name("factor")], &[&name("scaled")], vec![]));
        let before = std::mem::replace(&mut sum, name("sum"));
        let terms: [&str; 2] = [&before, &name("scaled")];
        nodes.push(node(if i == 0 { "Identity" } else { "Add" }, &terms[usize::from(i == 0)..], &[&sum], vec![]));
    }
    own.push(("one".to_owned(), Tensor::from_vec([1], vec![1i64]).unwrap()));
    let weights = own.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    let output = vec![port(&sum, DataType::Float32, &["2", "2"])];
    model(nodes, vec![port("x", DataType::Float32, &["2", "6"])], output, weights)
}

#[test]
fn gradients_of_slices_that_fill_a_value_are_put_side_by_side() {
    let x = noise(1, &[2, 6]);
    let seed = Tensor::from_vec([2, 2], vec![1f32; 4]).unwrap();
    let filled = ([(2, 4, 3.0), (0, 2, 2.0), (-2, 6, 5.0)], [2.0, 2.0, 3.0, 3.0, 5.0, 5.0], 0);
    let apart = ([(1, 3, 3.0), (4, 6, 2.0), (1, 3, 1.0)], [0.0, 4.0, 4.0, 0.0, 2.0, 2.0], 3);
    let overlapping = ([(0, 2, 3.0), (1, 3, 2.0), (4, 6, 1.0)], [3.0, 5.0, 2.0, 0.0, 1.0, 1.0], 3);
    for (slices, row, pads) in [filled, apart, overlapping] {
        let made = differentiate(&sliced(&slices), &["sum2".to_owned()], &["x".to_owned()]).unwrap();
        let count = made.graph.graph().node.iter().filter(|node| node.op_type() == "Pad").count();
        assert_eq!(count, pads, "{slices:?}");
        for engine in engines() {
            let session = load(engine.as_ref(), &made.graph, 1);
            let wanted = [made.gradients[0].as_str()];
            let options = edgeward_engine::RunOptions { outputs: Some(&wanted), cancel: None };
            let given: Vec<(&str, &Tensor)> = session
                .inputs()
                .iter()
                .map(|info| (info.name.as_str(), if info.name == "x" { &x } else { &seed }))
                .collect();
            let gradient = session.run(&given, options).unwrap().remove(0);
            assert_eq!(gradient.values::<f32>().unwrap(), [row, row].concat(), "{slices:?}");
        }
    }
}

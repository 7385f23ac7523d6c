//! What is pruned computes what the original computes once the weights of what goes are zeros: the proof that all that
//! depends on each other was found. On graphs by hand, on random ones, on starters and on real models.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::{Path, PathBuf};

use edgeward_compress::prune::{
    Norm, Plan, Removal, Selection, Target, activations, apply, blocks, choose, gradients, influence, magnitude,
    normalisation, plan, ready, taylor, without,
};
use edgeward_engine::{SessionOptions, Source};
use edgeward_graph::{
    DataType, Dimension, Limits, Model, Port, Tensor, check, cost, infer, proto::AttributeProto, stats, tensor_proto,
};
use edgeward_train::{
    Loss,
    starter::{Kind, Starter, starter},
};
use proptest::prelude::*;
use support::{Builder, batches, dump, engines, ints, load, numbers, run};

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto::of_int(name, value)
}

fn selection(part: f64) -> Selection {
    Selection { target: Target::MultiplyAdds, part, floor: 0.1, multiple: 1 }
}

fn chosen(model: &Model, part: f64) -> (Plan, Removal) {
    let plan = plan(model).unwrap();
    let scores = magnitude(model, &plan, Norm::Two).unwrap();
    let removal = choose(&plan, &scores, &selection(part));
    (plan, removal)
}

/// `model` with zeros for all that belongs to what goes.
fn zeroed(model: &Model, plan: &Plan, removal: &Removal) -> Model {
    let mut model = model.clone();
    let units = plan.groups.iter().zip(&removal.units);
    for member in units.flat_map(|(group, units)| units.iter().flat_map(|&unit| &group.units[unit].members)) {
        let at = model.graph().initializer.iter().position(|tensor| tensor.name() == member.tensor).unwrap();
        let tensor = model.tensor(&model.graph().initializer[at]).unwrap();
        let (shape, mut values) = (tensor.shape().to_vec(), tensor.values::<f32>().unwrap().into_owned());
        let inner: usize = shape[member.axis + 1..].iter().product();
        for (element, value) in values.iter_mut().enumerate() {
            if member.indices.contains(&(element / inner % shape[member.axis])) {
                *value = 0.0;
            }
        }
        let tensor = Tensor::from_vec(shape, values).unwrap();
        model.graph_mut().initializer[at] = tensor_proto(&member.tensor, &tensor);
    }
    model
}

/// Prunes a part and compares; then every other unit of every group. Gives the plan and what is left of the former.
fn holds(model: &Model, shape: &[usize], part: f64) -> (Plan, Model) {
    let model = ready(model).unwrap();
    let (plan, removal) = chosen(&model, part);
    let pruned = compared(&model, &plan, &removal, shape);
    let units = plan.groups.iter().map(|group| (1..group.units.len()).step_by(2).collect());
    compared(&model, &plan, &Removal { units: units.collect(), left: 1.0 }, shape);
    (plan, pruned)
}

fn compared(model: &Model, plan: &Plan, removal: &Removal, shape: &[usize]) -> Model {
    let pruned = apply(model, plan, removal).unwrap();
    assert!(check(&pruned).is_ok(), "{:?}\n{}", check(&pruned), dump(&pruned));
    assert_eq!(stats(&pruned).parameters < stats(model).parameters, removal.count() > 0, "{}", dump(&pruned));
    let zeroed = zeroed(model, plan, removal);
    for engine in engines() {
        for inputs in &batches(shape, 2) {
            let (expected, got) = (run(engine.as_ref(), &zeroed, inputs), run(engine.as_ref(), &pruned, inputs));
            assert_eq!(expected.len(), got.len());
            let largest = expected.iter().fold(1f32, |most, value| most.max(value.abs()));
            for (a, b) in expected.iter().zip(&got) {
                assert!((a - b).abs() <= 1e-5 * largest, "{a} {b} on {}\n{}", engine.name(), dump(&pruned));
            }
        }
    }
    pruned
}

fn sizes(model: &Model, tensor: &str) -> Vec<i64> {
    model.graph().initializer.iter().find(|t| t.name() == tensor).unwrap().dims.clone()
}

fn normalised(b: &mut Builder, name: &str, channels: usize, from: &str, to: &str) {
    let names = ["scale", "shift", "mean", "var"].map(|kind| format!("{name}.{kind}"));
    for (at, tensor) in names.iter().enumerate() {
        let values = numbers(at as u64 + 7, channels).into_iter().map(|value| value.abs() + 0.2).collect();
        b.floats(tensor, &[channels], values);
    }
    let [scale, shift, mean, var] = &names;
    b.node("BatchNormalization", &[from, scale, shift, mean, var], to, vec![]);
}

fn padded() -> Vec<AttributeProto> {
    vec![ints("pads", &[1, 1, 1, 1])]
}

/// Two convolutions that are added, with normalisations; then pooled, flattened and multiplied.
fn residual() -> Model {
    let mut b = Builder::new(&[0, 3, 8, 8]);
    b.drawn("w0", &[8, 3, 3, 3], 1).drawn("w1", &[12, 8, 3, 3], 2).drawn("w2", &[8, 12, 3, 3], 3);
    b.node("Conv", &["x", "w0"], "c0", padded());
    normalised(&mut b, "n0", 8, "c0", "m0");
    b.node("Relu", &["m0"], "r0", vec![]).node("Conv", &["r0", "w1"], "c1", padded());
    normalised(&mut b, "n1", 12, "c1", "m1");
    b.node("Relu", &["m1"], "r1", vec![]).node("Conv", &["r1", "w2"], "c2", padded());
    normalised(&mut b, "n2", 8, "c2", "m2");
    b.node("Add", &["r0", "m2"], "s", vec![]).node("Relu", &["s"], "r2", vec![]);
    b.node("GlobalAveragePool", &["r2"], "p", vec![]).node("Flatten", &["p"], "f", vec![]);
    b.drawn("w3", &[5, 8], 4).drawn("b3", &[5], 5);
    b.node("Gemm", &["f", "w3", "b3"], "y", vec![int("transB", 1)]);
    b.model(&[("y", &[0, 5])])
}

#[test]
fn what_is_added_goes_together() {
    let (plan, pruned) = holds(&residual(), &[2, 3, 8, 8], 0.5);
    let layers: Vec<Vec<String>> = plan.groups.iter().map(|group| group.layers.clone()).collect();
    assert_eq!(layers, [vec!["c0".to_owned(), "c2".to_owned()], vec!["c1".to_owned()]]);
    assert_eq!(plan.left.len(), 1);
    assert_eq!(plan.left[0].layer, "y");
    assert!(plan.left[0].reason.contains("output of the graph"), "{:?}", plan.left);
    let kept = sizes(&pruned, "w0")[0];
    assert!(kept < 8, "{}", dump(&pruned));
    assert_eq!((sizes(&pruned, "w2")[0], sizes(&pruned, "w3")[1], sizes(&pruned, "n0.mean")[0]), (kept, kept, kept));
}

#[test]
fn what_is_joined_keeps_its_places() {
    let mut b = Builder::new(&[0, 3, 6, 6]);
    b.drawn("w0", &[6, 3, 3, 3], 1).drawn("w1", &[10, 3, 1, 1], 2).drawn("w2", &[2, 19, 1, 1], 3);
    b.node("Conv", &["x", "w0"], "a", padded()).node("Conv", &["x", "w1"], "b", vec![]);
    b.node("Sigmoid", &["a"], "sa", vec![]);
    // The picture itself is between: its channels stay.
    b.node("Concat", &["sa", "x", "b"], "j", vec![int("axis", 1)]).node("Relu", &["j"], "r", vec![]);
    b.node("Conv", &["r", "w2"], "y", vec![]);
    let (plan, pruned) = holds(&b.model(&[("y", &[0, 2, 6, 6])]), &[2, 3, 6, 6], 0.4);
    assert_eq!(plan.groups.len(), 2);
    assert_eq!(sizes(&pruned, "w2")[1], sizes(&pruned, "w0")[0] + 3 + sizes(&pruned, "w1")[0]);
    assert!(sizes(&pruned, "w2")[1] < 19);
}

/// MobileNet's block: widened, by channel, squeezed and excited, narrowed, added.
#[test]
fn depthwise_convolutions_follow_their_inputs() {
    let mut b = Builder::new(&[0, 3, 8, 8]);
    b.drawn("w0", &[8, 3, 3, 3], 1).drawn("w1", &[24, 8, 1, 1], 2).drawn("w2", &[24, 1, 3, 3], 3);
    b.drawn("w3", &[6, 24, 1, 1], 4).drawn("w4", &[24, 6, 1, 1], 5).drawn("w5", &[8, 24, 1, 1], 6);
    b.drawn("head", &[4, 8, 1, 1], 7).drawn("b2", &[24], 8);
    b.node("Conv", &["x", "w0"], "c0", padded()).node("Conv", &["c0", "w1"], "c1", vec![]);
    normalised(&mut b, "n1", 24, "c1", "m1");
    b.node("HardSwish", &["m1"], "r1", vec![]);
    b.node("Conv", &["r1", "w2", "b2"], "c2", [padded(), vec![int("group", 24)]].concat());
    b.node("GlobalAveragePool", &["c2"], "p", vec![]).node("Conv", &["p", "w3"], "e0", vec![]);
    b.node("Relu", &["e0"], "e1", vec![]).node("Conv", &["e1", "w4"], "e2", vec![]);
    b.node("Sigmoid", &["e2"], "e3", vec![]).node("Mul", &["c2", "e3"], "q", vec![]);
    b.node("Conv", &["q", "w5"], "c5", vec![]).node("Add", &["c0", "c5"], "s", vec![]);
    b.node("Conv", &["s", "head"], "y", vec![]);
    b.opset = 14;
    let (plan, pruned) = holds(&b.model(&[("y", &[0, 4, 8, 8])]), &[2, 3, 8, 8], 0.8);
    assert_eq!(plan.groups.len(), 3, "{:?}", plan.groups);
    let group = pruned.graph().node.iter().find(|node| node.output[0] == "c2").unwrap().attr_int("group");
    assert_eq!(group, Some(sizes(&pruned, "w2")[0]));
    assert!(group < Some(24));
    assert_eq!(sizes(&pruned, "w4")[0], sizes(&pruned, "w1")[0]);
}

#[test]
fn a_flattened_picture_loses_blocks_of_columns() {
    for (reshapes, columns) in [(false, 8 * 9), (true, 8 * 9)] {
        let mut b = Builder::new(&[2, 3, 3, 3]);
        b.drawn("w0", &[8, 3, 3, 3], 1).drawn("w1", &[columns, 10], 2).drawn("b1", &[10], 3).drawn("w2", &[10, 4], 4);
        b.node("Conv", &["x", "w0"], "c", padded()).node("Relu", &["c"], "r", vec![]);
        if reshapes {
            let shape = Tensor::from_vec([2], vec![2i64, 72]).unwrap();
            b.graph.initializer.push(tensor_proto("shape", &shape));
            b.node("Reshape", &["r", "shape"], "f", vec![]);
        } else {
            b.node("Flatten", &["r"], "f", vec![]);
        }
        b.node("Gemm", &["f", "w1", "b1"], "g", vec![]).node("Relu", &["g"], "h", vec![]);
        b.node("MatMul", &["h", "w2"], "y", vec![]);
        let (plan, pruned) = holds(&b.model(&[("y", &[2, 4])]), &[2, 3, 3, 3], 0.5);
        assert_eq!(plan.groups.len(), 2);
        assert_eq!(sizes(&pruned, "w1")[0], sizes(&pruned, "w0")[0] * 9);
        assert!(sizes(&pruned, "w0")[0] < 8);
    }
}

#[test]
fn groups_of_a_convolution_stay_alike() {
    let mut b = Builder::new(&[0, 3, 6, 6]);
    b.drawn("w0", &[12, 3, 1, 1], 1).drawn("w1", &[8, 3, 3, 3], 2).drawn("w2", &[8, 2, 2, 2], 3);
    b.drawn("w3", &[2, 4, 1, 1], 4).drawn("b2", &[4], 5);
    b.node("Conv", &["x", "w0"], "a", vec![]).node("Relu", &["a"], "ra", vec![]);
    b.node("Conv", &["ra", "w1"], "b", [padded(), vec![int("group", 4)]].concat());
    let transposed = vec![int("group", 2), ints("strides", &[2, 2]), ints("kernel_shape", &[2, 2])];
    b.node("ConvTranspose", &["b", "w2", "b2"], "t", [transposed, vec![ints("pads", &[0; 4])]].concat());
    b.node("Conv", &["t", "w3"], "y", vec![]);
    let (_, pruned) = holds(&b.model(&[("y", &[0, 2, 12, 12])]), &[2, 3, 6, 6], 0.4);
    assert_eq!(sizes(&pruned, "w0")[0], sizes(&pruned, "w1")[1] * 4);
    assert!(stats(&pruned).parameters < 36 + 216 + 64 + 8);
}

#[test]
fn parts_and_slices_follow() {
    let mut b = Builder::new(&[0, 3, 6, 6]);
    b.drawn("w0", &[12, 3, 3, 3], 1).drawn("w1", &[5, 16, 1, 1], 2);
    let constant = |values: &[i64]| Tensor::from_vec([values.len()], values.to_vec()).unwrap();
    for (name, values) in [("sizes", &[5i64, 7][..]), ("from", &[-7]), ("to", &[i64::MAX]), ("axis", &[1])] {
        b.graph.initializer.push(tensor_proto(name, &constant(values)));
    }
    b.node("Conv", &["x", "w0"], "c", padded());
    b.node("Split", &["c", "sizes"], "p", vec![int("axis", 1)]);
    b.graph.node.last_mut().unwrap().output.push("q".to_owned());
    b.node("Slice", &["c", "from", "to", "axis"], "s", vec![]);
    b.node("Relu", &["q"], "r", vec![]).node("Mul", &["r", "s"], "m", vec![]);
    b.node("Concat", &["p", "m", "p"], "j", vec![int("axis", 1)]);
    b.node("Conv", &["j", "w1"], "k", vec![]);
    b.drawn("w2", &[2, 5, 1, 1], 3).node("Conv", &["k", "w2"], "y", vec![]);
    let mut model = b.model(&[("y", &[0, 2, 6, 6])]);
    // Twice five and seven.
    let at = model.graph().initializer.iter().position(|t| t.name() == "w1").unwrap();
    let wide = Tensor::from_vec([5, 17, 1, 1], numbers(2, 85)).unwrap();
    model.graph_mut().initializer[at] = tensor_proto("w1", &wide);
    let (_, pruned) = holds(&model, &[1, 3, 6, 6], 0.4);
    assert!(sizes(&pruned, "w0")[0] < 12);
}

#[test]
fn a_slice_keeps_one_type_for_its_numbers() {
    let mut b = Builder::new(&[0, 3, 6, 6]);
    b.drawn("w0", &[12, 3, 3, 3], 1).drawn("w1", &[4, 6, 1, 1], 2);
    for (name, value) in [("from", 6i32), ("to", 12), ("axis", 1), ("step", 1)] {
        b.graph.initializer.push(tensor_proto(name, &Tensor::from_vec([1], vec![value]).unwrap()));
    }
    b.node("Conv", &["x", "w0"], "c", padded()).node("Slice", &["c", "from", "to", "axis", "step"], "s", vec![]);
    b.node("Relu", &["s"], "r", vec![]).node("Conv", &["r", "w1"], "y", vec![]);
    let (_, pruned) = holds(&b.model(&[("y", &[0, 4, 6, 6])]), &[1, 3, 6, 6], 0.4);
    assert!(sizes(&pruned, "w0")[0] < 12);
}

#[test]
fn what_cannot_be_pruned_is_named() {
    let mut b = Builder::new(&[0, 3, 6, 6]);
    b.drawn("w0", &[8, 3, 3, 3], 1).drawn("w1", &[8, 8, 1, 1], 2).drawn("w2", &[4, 8, 1, 1], 3);
    b.node("Conv", &["x", "w0"], "a", padded()).node("LRN", &["a"], "l", vec![int("size", 3)]);
    b.node("Conv", &["l", "w1"], "b", vec![]).node("Softmax", &["b"], "s", vec![int("axis", 1)]);
    b.node("Conv", &["s", "w2"], "y", vec![]);
    let model = ready(&b.model(&[("y", &[0, 4, 6, 6])])).unwrap();
    let plan = plan(&model).unwrap();
    assert!(plan.groups.is_empty(), "{:?}", plan.groups);
    let told: Vec<String> = plan.left.iter().map(|left| format!("{}: {}", left.layer, left.reason)).collect();
    assert_eq!(
        told,
        [
            "a: node `l` (LRN) is an operator that channels are not followed through",
            "b: node `s` (Softmax) normalises over it",
            "y: `y` is an output of the graph"
        ]
    );
}

#[test]
fn every_importance_finds_what_does_nothing() {
    let model = ready(&residual()).unwrap();
    let plan = plan(&model).unwrap();
    // Unit 3 of the inner convolution, and of the sum.
    let removal = Removal { units: vec![vec![3], vec![3]], left: 1.0 };
    let model = zeroed(&model, &plan, &removal);
    let engine = engines().pop().unwrap();
    let loader = |model: &Model| load(engine.as_ref(), model);
    let mut data = batches(&[4, 3, 8, 8], 3).into_iter().map(Ok);
    let observed = activations(&model, &plan, &loader, &mut data).unwrap();
    let step = gradients(&model, &Loss::cross_entropy().into()).unwrap();
    let session =
        engine.load(&Source::Bytes(step.graph.to_bytes().unwrap().into()), &SessionOptions::default()).unwrap();
    let target = ("target".to_owned(), Tensor::from_vec([4], vec![0i64, 1, 2, 3]).unwrap());
    let mut labelled = batches(&[4, 3, 8, 8], 3).into_iter().map(|inputs| Ok([inputs, vec![target.clone()]].concat()));
    let told = taylor(&model, &plan, &step, session.as_ref(), &mut labelled).unwrap();
    for (name, scores) in [
        ("one", magnitude(&model, &plan, Norm::One).unwrap()),
        ("two", magnitude(&model, &plan, Norm::Two).unwrap()),
        ("scale", normalisation(&model, &plan).unwrap()),
        ("activation", observed),
        ("taylor", told),
    ] {
        for (group, scores) in scores.0.iter().enumerate() {
            for (unit, score) in scores.iter().enumerate() {
                assert_eq!(*score == 0.0, unit == 3, "{name}: group {group}, unit {unit}: {score}");
            }
        }
        let chosen = choose(&plan, &scores, &selection(0.05));
        assert!(chosen.units.iter().flatten().any(|unit| *unit == 3), "{name}: {chosen:?}");
    }
}

#[test]
fn targets_floors_and_multiples_are_kept() {
    let model = ready(&residual()).unwrap();
    let plan = plan(&model).unwrap();
    let scores = magnitude(&model, &plan, Norm::Two).unwrap();
    for part in [0.0, 0.2, 0.5, 0.7] {
        for target in [Target::MultiplyAdds, Target::Parameters] {
            let removal = choose(&plan, &scores, &Selection { target, part, floor: 0.1, multiple: 1 });
            assert!(removal.left <= 1.0 - part + 1e-9, "{target:?} {part}: {}", removal.left);
            assert_eq!(removal.count() == 0, part == 0.0);
            let pruned = apply(&model, &plan, &removal).unwrap();
            let of = |model: &Model| match target {
                Target::Parameters => stats(model).parameters as f64,
                Target::MultiplyAdds => {
                    let sizes = [("n".to_owned(), 1)].into();
                    cost(model, &infer(model, &sizes).unwrap()).total as f64
                }
            };
            assert!((of(&pruned) / of(&model) - removal.left).abs() < 1e-9, "{target:?} {part}");
        }
    }
    let all = Selection { target: Target::Parameters, part: 1.0, floor: 0.25, multiple: 4 };
    let removal = choose(&plan, &scores, &all);
    let kept: Vec<usize> = plan.groups.iter().zip(&removal.units).map(|(g, u)| g.units.len() - u.len()).collect();
    assert_eq!(kept, [2, 4]);
}

/// The starter of a kind, as small as it can be told apart.
fn small(kind: Kind) -> Model {
    let input = if kind == Kind::Transformer { vec![12] } else { vec![3, 16, 16] };
    let wanted = Starter { kind, input, classes: 4, width: None, depth: None, vocabulary: 50, dropout: 0.0, seed: 1 };
    ready(&starter(&wanted).unwrap()).unwrap()
}

/// `model` with zeros for all initialisers that `shorter` lacks.
fn silenced(model: &Model, shorter: &Model) -> Model {
    let kept: Vec<&str> = shorter.graph().initializer.iter().map(|tensor| tensor.name()).collect();
    let mut silenced = model.clone();
    for at in 0..model.graph().initializer.len() {
        let proto = &model.graph().initializer[at];
        let tensor = model.tensor(proto).unwrap();
        if !kept.contains(&proto.name()) && tensor.dtype() == DataType::Float32 {
            let zeros = vec![0f32; tensor.shape().iter().product()];
            silenced.graph_mut().initializer[at] =
                tensor_proto(proto.name(), &Tensor::from_vec(tensor.shape(), zeros).unwrap());
        }
    }
    silenced
}

/// The layers of each block of a graph.
fn named(model: &Model) -> Vec<Vec<String>> {
    blocks(&ready(model).unwrap()).unwrap().into_iter().map(|block| block.layers).collect()
}

#[test]
fn the_innermost_sums_are_blocks_and_masks_are_none() {
    // A network that is added to its own input, as those are that remove noise, of two branches.
    let mut b = Builder::new(&[0, 3, 8, 8]);
    b.drawn("w0", &[8, 3, 3, 3], 1).drawn("w1", &[8, 8, 3, 3], 2).drawn("w2", &[8, 8, 3, 3], 3);
    b.drawn("w3", &[3, 8, 3, 3], 4);
    b.node("Conv", &["x", "w0"], "c0", padded());
    for (op, from, layer, weight, to) in [("Add", "c0", "c1", "w1", "s1"), ("Sum", "s1", "c2", "w2", "s2")] {
        b.node("Conv", &[from, weight], layer, padded()).node(op, &[from, layer], to, vec![]);
    }
    b.node("Conv", &["s2", "w3"], "c3", padded()).node("Add", &["x", "c3"], "y", vec![]);
    assert_eq!(named(&b.model(&[("y", &[0, 3, 8, 8])])), [["c1"], ["c2"]]);
    // Attention with one head and a mask of its own: the scores are no stream.
    let mut b = Builder::new(&[0, 6, 8]);
    for (seed, weight) in ["q", "k", "v", "m"].into_iter().enumerate() {
        let width = if weight == "m" { 6 } else { 8 };
        b.drawn(&format!("w{weight}"), &[8, width], seed as u64);
        b.node("MatMul", &["x", &format!("w{weight}")], weight, vec![]);
    }
    b.node("Transpose", &["k"], "t", vec![ints("perm", &[0, 2, 1])]).node("MatMul", &["q", "t"], "p", vec![]);
    b.node("Add", &["p", "m"], "sum", vec![]).floats("scale", &[1], vec![0.3]);
    b.node("Mul", &["sum", "scale"], "scores", vec![]).node("Softmax", &["scores"], "a", vec![int("axis", -1)]);
    b.node("MatMul", &["a", "v"], "o", vec![]).node("Add", &["x", "o"], "y", vec![]);
    assert_eq!(named(&b.model(&[("y", &[0, 6, 8])])), [["q", "k", "v", "m"]]);
}

#[test]
fn a_block_whose_influence_cannot_be_told_has_none_that_is_finite() {
    let mut b = Builder::new(&[0, 3, 8, 8]);
    b.drawn("w", &[3, 3, 3, 3], 1).floats("none", &[1], vec![f32::INFINITY]);
    b.node("Conv", &["x", "w"], "c", padded()).node("Mul", &["c", "none"], "i", vec![]);
    b.node("Add", &["x", "i"], "y", vec![]);
    let model = ready(&b.model(&[("y", &[0, 3, 8, 8])])).unwrap();
    let engine = engines().remove(0);
    let load = |model: &Model| load(engine.as_ref(), model);
    let all = blocks(&model).unwrap();
    let turned = influence(&model, &all, &load, &mut std::iter::once(Ok(inputs(&model)))).unwrap();
    assert_eq!(turned, [f64::INFINITY]);
}

#[test]
fn a_model_without_a_block_is_one_whose_block_adds_nothing() {
    for kind in Kind::ALL {
        let (model, name) = (small(kind), kind.name());
        let all = blocks(&model).unwrap();
        assert_eq!(all.is_empty(), kind == Kind::Mlp, "{name}: {all:?}");
        let work = |model: &Model| plan(model).unwrap().cost(Target::MultiplyAdds);
        for block in &all {
            let shorter = without(&model, block).unwrap();
            assert!(work(&shorter) < work(&model), "{name}: {block:?}");
            same(&silenced(&model, &shorter), &shorter, name);
        }
        let Some(block) = all.last() else { continue };
        let silent = silenced(&model, &without(&model, block).unwrap());
        let engine = engines().remove(0);
        let load = |model: &Model| load(engine.as_ref(), model);
        let turned = influence(&silent, &all, &load, &mut std::iter::once(Ok(inputs(&silent)))).unwrap();
        let (last, others) = turned.split_last().unwrap();
        assert!(last.abs() < 1e-9 && others.iter().all(|turn| *turn > 1e-6), "{name}: {turned:?}");
        assert!(influence(&silent, &all, &load, &mut std::iter::empty()).is_err());
    }
}

#[test]
fn pruned_starters_train_on() {
    for kind in Kind::ALL {
        let model = small(kind);
        let (plan, removal) = chosen(&model, 0.3);
        let left: Vec<String> = plan.left.iter().map(|left| format!("{}: {}", left.layer, left.reason)).collect();
        println!(
            "{}: {:.3} left, {} of {} units go, {left:?}",
            kind.name(),
            removal.left,
            removal.count(),
            plan.units()
        );
        assert!(removal.left < 0.75, "{}: {} left; {left:?}", kind.name(), removal.left);
        let pruned = apply(&model, &plan, &removal).unwrap();
        assert!(gradients(&pruned, &Loss::cross_entropy().into()).is_ok(), "{}", kind.name());
        let zeroed = zeroed(&model, &plan, &removal);
        same(&zeroed, &pruned, kind.name());
    }
}

/// Inputs of a model that takes one, ids and masks among them.
fn inputs(model: &Model) -> Vec<(String, Tensor)> {
    let made = |port: &Port| {
        let size = |dim: &Dimension| if let Dimension::Fixed(size) = dim { *size } else { 2 };
        let shape: Vec<usize> = port.shape.as_ref().unwrap().iter().map(size).collect();
        let count = shape.iter().product::<usize>();
        let ids = (0..count as i64).map(|at| if port.name.contains("mask") { 1 } else { at * 7 % 50 });
        let tensor = match port.dtype {
            Some(DataType::Int64) => Tensor::from_vec(shape, ids.collect::<Vec<i64>>()),
            _ => Tensor::from_vec(shape, numbers(3, count)),
        };
        (port.name.clone(), tensor.unwrap())
    };
    model.inputs().iter().map(made).collect()
}

fn same(zeroed: &Model, pruned: &Model, name: &str) {
    let inputs = inputs(zeroed);
    for engine in engines() {
        let (expected, got) = (run(engine.as_ref(), zeroed, &inputs), run(engine.as_ref(), pruned, &inputs));
        let largest = expected.iter().fold(1f32, |most, value| most.max(value.abs()));
        let worst = expected.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(worst <= 1e-5 * largest, "{name} on {}: {worst} of {largest}", engine.name());
    }
}

#[test]
fn heads_go_as_a_whole() {
    let wanted = Starter {
        kind: Kind::Transformer,
        input: vec![12],
        classes: 4,
        width: Some(128),
        depth: Some(2),
        vocabulary: 50,
        dropout: 0.0,
        seed: 1,
    };
    let model = ready(&starter(&wanted).unwrap()).unwrap();
    let plan = plan(&model).unwrap();
    let of = |part: &str| plan.groups.iter().filter(|group| group.layers[0].contains(part)).collect::<Vec<_>>();
    let heads = edgeward_train::starter::heads(128);
    assert_eq!(of("qkv").iter().map(|group| group.units.len()).collect::<Vec<_>>(), [heads; 2]);
    assert!(heads > 1);
    assert_eq!(of("fc1").len(), 2);
    // All heads but one of the first layer, and half of the neurons of the second.
    let units = plan.groups.iter().map(|group| match group.layers[0].as_str() {
        name if name.contains("0.qkv") => (1..heads).collect(),
        name if name.contains("1.fc1") => (0..group.units.len()).step_by(2).collect(),
        _ => Vec::new(),
    });
    let removal = Removal { units: units.collect(), left: 1.0 };
    let pruned = apply(&model, &plan, &removal).unwrap();
    same(&zeroed(&model, &plan, &removal), &pruned, "transformer");
}

/// Queries, keys and values apart, as other exporters write them.
#[test]
fn heads_of_three_layers_go_together() {
    let mut b = Builder::new(&[2, 5, 12]);
    let list = |values: &[i64]| Tensor::from_vec([values.len()], values.to_vec()).unwrap();
    b.graph.initializer.push(tensor_proto("parted", &list(&[2, 5, 4, 3])));
    b.graph.initializer.push(tensor_proto("joined", &list(&[0, 0, -1])));
    b.floats("root", &[], vec![1.7]);
    for (at, name) in ["q", "k", "v"].into_iter().enumerate() {
        b.drawn(&format!("w{name}"), &[12, 12], at as u64).drawn(&format!("b{name}"), &[12], at as u64 + 9);
        b.node("MatMul", &["x", &format!("w{name}")], &format!("m{name}"), vec![]);
        b.node("Add", &[&format!("m{name}"), &format!("b{name}")], &format!("a{name}"), vec![]);
        b.node("Reshape", &[&format!("a{name}"), "parted"], &format!("r{name}"), vec![]);
        let order = if name == "k" { [0, 2, 3, 1] } else { [0, 2, 1, 3] };
        b.node("Transpose", &[&format!("r{name}")], name, vec![ints("perm", &order)]);
    }
    b.node("MatMul", &["q", "k"], "scores", vec![]).node("Div", &["scores", "root"], "scaled", vec![]);
    b.node("Softmax", &["scaled"], "weights", vec![int("axis", -1)]);
    b.node("MatMul", &["weights", "v"], "mixed", vec![]);
    b.node("Transpose", &["mixed"], "turned", vec![ints("perm", &[0, 2, 1, 3])]);
    b.node("Reshape", &["turned", "joined"], "flat", vec![]);
    b.drawn("wo", &[12, 6], 20).node("MatMul", &["flat", "wo"], "y", vec![]);
    let (plan, pruned) = holds(&b.model(&[("y", &[2, 5, 6])]), &[2, 5, 12], 0.5);
    assert_eq!(plan.groups.len(), 1);
    assert_eq!((plan.groups[0].units.len(), plan.groups[0].layers.len()), (4, 3));
    assert_eq!(sizes(&pruned, "wo")[0], 6);
}

fn data() -> Option<PathBuf> {
    let data = std::env::var_os("EDGEWARD_DATA").map(PathBuf::from);
    let data = data.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"));
    data.join("onnx").is_dir().then_some(data)
}

#[test]
fn real_models_shrink_or_are_left_and_named() {
    let Some(data) = data() else { return println!("skipped: no real models") };
    let files = std::fs::read_dir(data.join("onnx")).unwrap().map(|entry| entry.unwrap().path());
    for path in files.filter(|path| path.extension().is_some_and(|ending| ending == "onnx")) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let model = ready(&Model::read(&path, &Limits::default()).unwrap()).unwrap();
        let (plan, removal) = chosen(&model, 0.3);
        assert!(!plan.groups.is_empty() || !plan.left.is_empty(), "{name}");
        assert!(plan.left.iter().all(|left| !left.reason.is_empty()), "{name}");
        let pruned = apply(&model, &plan, &removal).unwrap();
        println!("{name}: {} groups, {:.3} left, {} layers stay", plan.groups.len(), removal.left, plan.left.len());
        for left in &plan.left {
            println!("  {}: {}", left.layer, left.reason);
        }
        let zeroed = zeroed(&model, &plan, &removal);
        let Some(engine) = engines().into_iter().find(|engine| engine.name() == "onnxruntime") else { continue };
        load(engine.as_ref(), &pruned).unwrap();
        let fixed = |dim: &Dimension| matches!(dim, Dimension::Fixed(_));
        if model.inputs().iter().all(|port| port.shape.as_ref().is_some_and(|shape| shape.iter().all(fixed))) {
            same(&zeroed, &pruned, &name);
        }
    }
}

/// One step of a random graph; channels are 4, 6 or 8.
#[derive(Clone, Copy, Debug)]
enum Step {
    Conv(usize),
    Depthwise,
    Grouped,
    Normalise,
    Relu,
    Sigmoid,
    Add(usize),
    Mul(usize),
    Concat(usize),
    Excite(usize),
    Pool,
    Halves,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (2usize..5).prop_map(|half| Step::Conv(half * 2)),
        1 => Just(Step::Depthwise),
        1 => Just(Step::Grouped),
        1 => Just(Step::Normalise),
        1 => Just(Step::Relu),
        1 => Just(Step::Sigmoid),
        2 => (0usize..8).prop_map(Step::Add),
        1 => (0usize..8).prop_map(Step::Mul),
        2 => (0usize..8).prop_map(Step::Concat),
        1 => (0usize..8).prop_map(Step::Excite),
        1 => Just(Step::Pool),
        1 => Just(Step::Halves),
    ]
}

/// A graph of values `[1, C, 5, 5]` that ends in a matrix over its flattened last value.
fn graph(steps: &[Step]) -> Model {
    let mut b = Builder::new(&[1, 4, 5, 5]);
    let mut values: Vec<(String, usize)> = vec![("x".to_owned(), 4)];
    for (at, step) in steps.iter().enumerate() {
        let (last, channels) = values.last().unwrap().clone();
        let alike = |which: usize| {
            let fits: Vec<&String> = values.iter().filter(|value| value.1 == channels).map(|value| &value.0).collect();
            fits[which % fits.len()].clone()
        };
        let (name, weight) = (format!("v{at}"), format!("w{at}"));
        let seed = at as u64;
        let made = match step {
            Step::Conv(outputs) => {
                b.drawn(&weight, &[*outputs, channels, 3, 3], seed).drawn(&format!("b{at}"), &[*outputs], seed + 50);
                b.node("Conv", &[&last, &weight, &format!("b{at}")], &name, padded());
                *outputs
            }
            Step::Depthwise | Step::Grouped => {
                let groups = if matches!(step, Step::Grouped) { 2 } else { channels };
                b.drawn(&weight, &[channels, channels / groups, 3, 3], seed);
                b.node("Conv", &[&last, &weight], &name, [padded(), vec![int("group", groups as i64)]].concat());
                channels
            }
            Step::Normalise => {
                normalised(&mut b, &format!("n{at}"), channels, &last, &name);
                channels
            }
            Step::Relu | Step::Sigmoid => {
                b.node(if matches!(step, Step::Relu) { "Relu" } else { "Sigmoid" }, &[&last], &name, vec![]);
                channels
            }
            Step::Add(which) | Step::Mul(which) => {
                let op = if matches!(step, Step::Add(_)) { "Add" } else { "Mul" };
                b.node(op, &[&last, &alike(*which)], &name, vec![]);
                channels
            }
            Step::Concat(which) => {
                let (other, more) = values[which % values.len()].clone();
                b.node("Concat", &[&last, &other], &name, vec![int("axis", 1)]);
                channels + more
            }
            Step::Excite(which) => {
                let pooled = format!("p{at}");
                b.node("GlobalAveragePool", &[&alike(*which)], &pooled, vec![]);
                b.node("Mul", &[&last, &pooled], &name, vec![]);
                channels
            }
            Step::Pool => {
                let attributes = vec![ints("kernel_shape", &[3, 3]), ints("pads", &[1, 1, 1, 1])];
                b.node("MaxPool", &[&last], &name, attributes);
                channels
            }
            Step::Halves => {
                // The two halves of the channels change places.
                let half = channels as i64 / 2;
                let sizes = Tensor::from_vec([2], vec![half, channels as i64 - half]).unwrap();
                b.graph.initializer.push(tensor_proto(&format!("s{at}"), &sizes));
                b.node("Split", &[&last, &format!("s{at}")], &format!("l{at}"), vec![int("axis", 1)]);
                b.graph.node.last_mut().unwrap().output.push(format!("h{at}"));
                b.node("Concat", &[&format!("h{at}"), &format!("l{at}")], &name, vec![int("axis", 1)]);
                channels
            }
        };
        values.push((name, made));
    }
    let (last, channels) = values.last().unwrap().clone();
    b.node("Flatten", &[&last], "flat", vec![]).drawn("head", &[channels * 25, 3], 99);
    b.node("MatMul", &["flat", "head"], "y", vec![]);
    b.model(&[("y", &[1, 3])])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn random_graphs_say_what_they_said_with_zeros(steps in prop::collection::vec(step(), 1..12), part in 0.1f64..0.9) {
        holds(&graph(&steps), &[1, 4, 5, 5], part);
    }
}

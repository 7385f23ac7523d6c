//! A student beside its teacher: the loss and its gradients against PyTorch, layers that are taken out, and learning that
//! brings a student nearer.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/learning.rs"]
mod learning;
#[path = "support/stepping.rs"]
mod stepping;
mod support;

use std::sync::Arc;

use edgeward_compress::{DistilSpec, Joined, Labels, Pair, Scores, join, pairs_by_order, prepare, shorten};
use edgeward_graph::{Model, Tensor, check, proto::AttributeProto};
use edgeward_train::{
    data::{Columns, Role},
    starter::{Kind, Starter, starter},
};
use learning::{Pace, adam, learn};
use serde_json::json;
use stepping::{Asked, constants, gradients, near, python, told};
use support::{Builder, decibels, dump, engines, load, numbers};

fn pair(student: &str, teacher: &str) -> Pair {
    Pair { student: student.to_owned(), teacher: teacher.to_owned() }
}

/// x · w0 + b0, Relu, w1; `width` hidden numbers.
fn mlp(width: usize, seed: u64) -> Model {
    let mut b = Builder::new(&[0, 6]);
    b.drawn("w0", &[6, width], seed).drawn("b0", &[width], seed + 1).drawn("w1", &[width, 3], seed + 2);
    b.node("MatMul", &["x", "w0"], "m", vec![]).node("Add", &["m", "b0"], "a", vec![]);
    b.node("Relu", &["a"], "h", vec![]).node("MatMul", &["h", "w1"], "y", vec![]);
    b.model(&[("y", &[0, 3])])
}

/// Attention over four places whose last is masked, its mean classified, and a softmax as what the model says.
fn attention(width: usize, seed: u64) -> Model {
    let mut b = Builder::new(&[0, 4, 6]);
    b.drawn("wq", &[6, width], seed).drawn("wk", &[6, width], seed + 1).drawn("w1", &[6, 3], seed + 2);
    b.floats("mask", &[4], vec![0.0, 0.0, 0.0, f32::NEG_INFINITY]);
    b.node("MatMul", &["x", "wq"], "q", vec![]).node("MatMul", &["x", "wk"], "k", vec![]);
    b.node("Transpose", &["k"], "kt", vec![AttributeProto::of_ints("perm", vec![0, 2, 1])]);
    b.node("MatMul", &["q", "kt"], "s0", vec![]).node("Add", &["s0", "mask"], "s", vec![]);
    let last = || vec![AttributeProto::of_int("axis", -1)];
    b.node("Softmax", &["s"], "a", last()).node("MatMul", &["a", "x"], "seen", vec![]);
    let mean = vec![AttributeProto::of_ints("axes", vec![1]), AttributeProto::of_int("keepdims", 0)];
    b.node("ReduceMean", &["seen"], "m", mean).node("MatMul", &["m", "w1"], "z", vec![]);
    b.node("Softmax", &["z"], "y", last());
    b.model(&[("y", &[0, 3])])
}

#[test]
fn loss_and_gradients_are_those_of_pytorch() {
    let mut checked = 0;
    for (case, student, teacher, alpha, shape) in [
        ("mlp", mlp(4, 1), mlp(9, 11), 0.3, vec![5, 6]),
        ("attention", attention(3, 1), attention(5, 11), 0.0, vec![5, 4, 6]),
    ] {
        let pairs = if case == "mlp" { vec![pair("h", "h")] } else { vec![pair("a", "a")] };
        let labels = if alpha > 0.0 { Labels::Classes(alpha) } else { Labels::None };
        let spec = DistilSpec { temperature: 3.0, labels, pairs, hidden: 0.7, attention: 0.4, ..DistilSpec::default() };
        let prepared = prepare(&teacher).unwrap();
        let joined = join(&student, &prepared, &spec).unwrap();
        check(&joined.forward).unwrap();
        assert_eq!((joined.hidden, joined.attention), if case == "mlp" { (1, 0) } else { (0, 1) });
        let x = Tensor::from_vec(shape.clone(), numbers(5, shape.iter().product())).unwrap();
        let labels = [0i64, 2, 1, 1, 0];
        let target = Tensor::from_vec([5], labels.to_vec()).unwrap();
        let own = constants(&joined.forward);
        let expected = python(
            "distil/reference.py",
            &json!({
                "case": case, "x": told(&x), "labels": labels, "temperature": 3.0, "alpha": f64::from(alpha),
                "student": constants(&student), "teacher": constants(&teacher), "projection": own["distil/projection"],
            }),
        );
        let Some(expected) = expected else { return };
        let asked = Asked { loss: joined.loss.clone(), frozen: joined.frozen.clone(), factors: Vec::new() };
        let feed: &[(&str, &Tensor)] = &[("x", &x), ("target", &target)];
        for engine in engines() {
            let feed = if case == "mlp" { feed } else { &feed[..1] };
            near(case, &gradients(engine.as_ref(), &joined.forward, &asked, feed), &expected);
            checked += 1;
        }
    }
    assert!(checked >= 2);
}

#[test]
fn what_cannot_be_compared_is_named() {
    let teacher = prepare(&mlp(9, 11)).unwrap();
    let refusal = |student: &Model, spec: &DistilSpec| join(student, &teacher, spec).map(drop).unwrap_err().to_string();
    let plain = DistilSpec::default();
    let mut other = mlp(4, 1);
    other.graph_mut().rename_value("x", "picture");
    assert!(refusal(&other, &plain).contains("lacks the teacher's input `x`; it has `picture`"));
    let mut renamed = mlp(4, 1);
    renamed.graph_mut().rename_value("y", "scores");
    assert!(refusal(&renamed, &plain).contains("output `scores`: has no equal"));
    let wide = support::Builder::new(&[0, 7]).node("Relu", &["x"], "y", vec![]).model(&[("y", &[0, 7])]);
    assert!(refusal(&wide, &plain).contains("input `x`: is of another type or shape"));
    for (spec, expected) in [
        (DistilSpec { temperature: 0.0, ..plain.clone() }, "temperature `0`"),
        (DistilSpec { labels: Labels::Classes(1.5), ..plain.clone() }, "expected 0 to 1"),
        (
            DistilSpec { pairs: vec![pair("gone", "h")], ..plain.clone() },
            "`gone` of the student: is no value of floats",
        ),
        (
            DistilSpec { pairs: vec![pair("h", "gone")], ..plain.clone() },
            "`gone` of the teacher: is no value of floats",
        ),
        (DistilSpec { hidden: f32::NAN, ..plain.clone() }, "weight of hidden states `NaN`"),
    ] {
        let text = refusal(&mlp(4, 1), &spec);
        assert!(text.contains(expected), "{text}");
    }
}

/// A transformer of so many layers over eight tokens.
fn transformer(depth: usize, width: usize, seed: u64) -> Model {
    let wanted = Starter {
        kind: Kind::Transformer,
        input: vec![8],
        classes: 3,
        width: Some(width),
        depth: Some(depth),
        vocabulary: 20,
        dropout: 0.0,
        seed,
    };
    starter(&wanted).unwrap()
}

#[test]
fn layers_are_taken_out_evenly_and_the_rest_is_as_it_was() {
    let teacher = transformer(6, 16, 1);
    for (count, kept) in [(1, vec![0]), (2, vec![0, 3]), (3, vec![0, 2, 4]), (5, vec![0, 1, 2, 3, 4])] {
        let shorter = shorten(&teacher, count).unwrap();
        assert_eq!((shorter.layers, &shorter.kept), (6, &kept));
        // The weights of the kept layers, and no others.
        let layers: std::collections::BTreeSet<usize> = (shorter.model.graph().initializer.iter())
            .filter_map(|tensor| tensor.name().strip_prefix("layers.")?.split('.').next()?.parse().ok())
            .collect();
        assert!(layers.len() <= count + 1 && layers.len() >= count, "{layers:?}");
        let softmaxes = dump(&shorter.model).lines().filter(|line| line.starts_with("Softmax")).count();
        assert_eq!(softmaxes, count);
        let maps = shorter.pairs.iter().filter(|pair| pair.student.ends_with("softmax")).count();
        assert_eq!((maps, shorter.pairs.len() - maps), (count, count), "{:?}", shorter.pairs);
    }
    // One layer of two: the same as a model that never had the other.
    let shorter = shorten(&transformer(2, 16, 1), 1).unwrap();
    let alone = |model: &Model| {
        let engine = engines().remove(0);
        let tensor = |values: Vec<i64>| Tensor::from_vec([2, 8], values).unwrap();
        let inputs = vec![
            ("input_ids".to_owned(), tensor((0..16).map(|i| i % 20).collect())),
            ("attention_mask".to_owned(), tensor((0..16).map(|i| i64::from(i % 8 < 6)).collect())),
        ];
        support::run(engine.as_ref(), model, &inputs)
    };
    let mut expected = transformer(1, 16, 9);
    for tensor in &mut expected.graph_mut().initializer {
        let other = shorter.model.graph().initializer.iter().find(|other| other.name() == tensor.name());
        tensor.clone_from(other.unwrap());
    }
    assert!(decibels(&alone(&expected), &alone(&shorter.model)) > 100.0);
    for (count, expected) in [(0, "`0` layers"), (6, "expected 1 to 5"), (9, "expected 1 to 5")] {
        let text = shorten(&teacher, count).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
    assert!(shorten(&mlp(4, 1), 1).unwrap_err().to_string().contains("repeats no layers"));
}

#[test]
fn a_student_of_its_own_is_laid_beside_by_order() {
    let pairs = pairs_by_order(&transformer(2, 16, 1), &transformer(6, 32, 2));
    let layer = |name: &str| name.split('.').nth(1).unwrap().to_owned();
    let found: Vec<(String, String)> = pairs.iter().map(|pair| (layer(&pair.student), layer(&pair.teacher))).collect();
    for (student, teacher) in [("0", "2"), ("1", "5")] {
        assert!(found.contains(&(student.to_owned(), teacher.to_owned())), "{pairs:?}");
    }
    assert_eq!(pairs_by_order(&transformer(6, 16, 1), &transformer(2, 16, 2)), []);
    assert_eq!(pairs_by_order(&mlp(4, 1), &mlp(9, 2)), []);
}

/// Texts of eight tokens; the class is which third of the vocabulary most of them are from.
fn texts(rows: usize) -> Columns {
    let ids: Vec<i64> = numbers(77, rows * 8).iter().map(|v| ((v + 1.0) * 9.99) as i64).collect();
    let classes: Vec<i64> = ids
        .chunks(8)
        .map(|row| (0..3i64).max_by_key(|third| row.iter().filter(|id| **id / 7 == *third).count()).unwrap())
        .collect();
    let ones = vec![1i64; rows * 8];
    Columns::new(vec![
        ("input_ids".to_owned(), Role::Input, Tensor::from_vec([rows, 8], ids).unwrap()),
        ("attention_mask".to_owned(), Role::Input, Tensor::from_vec([rows, 8], ones).unwrap()),
        ("kind".to_owned(), Role::Target, Tensor::from_vec([rows], classes).unwrap()),
    ])
    .unwrap()
}

const PACE: Pace = Pace { batch: 32, epochs: 6, rate: 0.003 };

#[test]
fn a_student_comes_nearer_to_its_teacher() {
    let engine = engines().into_iter().find(|engine| engine.name() == "onnxruntime");
    let engine = engine.unwrap_or_else(|| engines().remove(0));
    let loss = edgeward_train::Loss::cross_entropy().into();
    let teacher = learn(engine.as_ref(), &transformer(4, 32, 1), &adam(loss), Arc::new(texts(512)), &PACE);
    let shorter = shorten(&teacher, 1).unwrap();
    let prepared = prepare(&teacher).unwrap();
    // No labels: what the teacher says is all there is to learn from.
    let spec = DistilSpec { scores: Scores::OfClasses, pairs: shorter.pairs.clone(), ..DistilSpec::default() };
    let joined = join(&shorter.model, &prepared, &spec).unwrap();
    assert!(joined.hidden == 1 && joined.attention == 1);
    let mut step = adam(joined.loss.clone());
    step.frozen.clone_from(&joined.frozen);
    let trained = learn(engine.as_ref(), &joined.forward, &step, Arc::new(texts(512)), &PACE);
    let student = Joined::student(&shorter.model, &trained).unwrap();
    let unseen: Vec<i64> = numbers(3, 800).iter().map(|v| ((v + 1.0) * 9.99) as i64).collect();
    let inputs = vec![
        ("input_ids".to_owned(), Tensor::from_vec([100, 8], unseen).unwrap()),
        ("attention_mask".to_owned(), Tensor::from_vec([100, 8], vec![1i64; 800]).unwrap()),
    ];
    let said = |model: &Model| support::run(engine.as_ref(), model, &inputs);
    let expected = said(&teacher);
    let (before, after) = (decibels(&expected, &said(&shorter.model)), decibels(&expected, &said(&student)));
    println!("the student is {before:.1} dB from its teacher untrained, {after:.1} dB after distillation");
    assert!(after > before + 6.0, "{before:.1} dB before, {after:.1} dB after");
    // The teacher is as it was.
    for tensor in &prepared.model.graph().initializer {
        let name = format!("teacher/{}", tensor.name());
        let kept = trained.graph().initializer.iter().find(|other| other.name() == name).unwrap();
        assert_eq!(prepared.model.tensor(tensor).unwrap().raw(), trained.tensor(kept).unwrap().raw(), "{name}");
    }
}

//! Metrics against scikit-learn, schedules against PyTorch, event files by TensorBoard's own reader.

use std::time::{Duration, UNIX_EPOCH};

use edgeward_train::{
    events::EventWriter,
    metrics::{Classified, Metric, Scores, auc, errors, guess},
    schedule::{Schedule, Shape},
};
use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha12Rng};
use serde_json::{Value, json};

mod reference;

/// Scores with many equal ones, and labels that the scores say something of.
fn case(seed: u64, rows: usize, classes: usize) -> (Vec<f32>, Vec<u32>) {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    let (mut scores, mut labels) = (Vec::new(), Vec::new());
    for row in 0..rows {
        let label = if row < classes { row as u32 } else { rng.random_range(0..classes as u32) };
        let raw: Vec<f32> = (0..classes as u32)
            .map(|class| f32::from(rng.random_range(1u8..6)) + if class == label { 1.0 } else { 0.0 })
            .collect();
        let sum: f32 = raw.iter().sum();
        scores.extend(raw.iter().map(|value| value / sum));
        labels.push(label);
    }
    (scores, labels)
}

#[test]
fn figures_are_those_of_scikit_learn() {
    let cases: Vec<(Vec<f32>, Vec<u32>, usize)> = (0..30)
        .map(|seed| {
            let classes = 2 + seed as usize % 4;
            let (scores, labels) = case(seed, 10 + 17 * seed as usize, classes);
            (scores, labels, classes)
        })
        .collect();
    let asked: Vec<Value> = cases
        .iter()
        .map(|(scores, labels, classes)| {
            let rows: Vec<&[f32]> = scores.chunks(*classes).collect();
            json!({ "probabilities": rows, "labels": labels })
        })
        .collect();
    let Some(reference) = reference::python("figures/reference.py", &["sklearn"], &[], &json!(asked)) else { return };
    for (seed, ((scores, labels, _), expected)) in cases.iter().zip(reference.as_array().unwrap()).enumerate() {
        let found = Classified::new(scores, labels, Scores::Probabilities).unwrap().figures();
        let pairs = [
            ("accuracy", Some(found.accuracy)),
            ("f1", Some(found.f1)),
            ("f1_macro", Some(found.f1_macro)),
            ("auc", found.auc),
            ("log_loss", Some(found.log_loss)),
            ("calibration_error", Some(found.calibration_error)),
        ];
        for (name, value) in pairs {
            let (value, expected) = (value.unwrap(), expected[name].as_f64().unwrap());
            assert!((value - expected).abs() < 1e-6, "seed {seed}, {name}: {value}, scikit-learn {expected}");
        }
        assert_eq!(json!(found.confusion), expected["confusion"], "seed {seed}");
    }
}

#[test]
fn figures_of_small_cases() {
    assert_eq!(auc(&[0.1, 0.4, 0.35, 0.8], &[false, false, true, true]), Some(0.75));
    assert_eq!(auc(&[0.5; 4], &[true, false, true, false]), Some(0.5));
    assert_eq!(auc(&[0.5; 2], &[true, true]), None);
    // One logit a row: the second of two classes.
    let found = Classified::new(&[2.0, -1.0, 0.5, -3.0], &[1, 0, 0, 1], Scores::Logits).unwrap().figures();
    assert_eq!((found.accuracy, found.confusion.clone()), (0.5, vec![vec![1, 1], vec![1, 1]]));
    assert_eq!((found.f1, found.auc), (0.5, Some(0.5)));
    // A class that is not there.
    let found = Classified::new(&[3.0, 0.0, 0.0, 0.0, 3.0, 0.0], &[0, 1], Scores::Logits).unwrap().figures();
    assert_eq!((found.accuracy, found.f1_macro, found.auc), (1.0, 1.0, None));
    for (output, labels) in
        [(vec![], vec![]), (vec![1.0], vec![]), (vec![f32::NAN, 0.0], vec![0]), (vec![0.0; 2], vec![2])]
    {
        assert!(Classified::new(&output, &labels, Scores::Logits).is_err(), "{output:?} {labels:?}");
    }
    assert_eq!(guess(&[0.2, 0.8, 1.0, 0.0], 2), Scores::Probabilities);
    assert_eq!(guess(&[0.2, 0.9, 1.0, 0.0], 2), Scores::Logits);
    let found = errors(&[1.0, 2.0], &[1.0, 4.0], 2).unwrap();
    assert_eq!((found.mse, found.mae), (2.0, 1.0));
    assert!(errors(&[1.0], &[1.0, 2.0], 1).is_err());
    assert!(Metric::Auc.improves(0.9, 0.8) && Metric::Loss.improves(0.1, 0.2));
    assert!("auk".parse::<Metric>().unwrap_err().contains("`auc`"));
}

#[test]
fn schedules_are_those_of_pytorch() {
    let steps = 200;
    let schedule = |shape, warmup_steps| Schedule { shape, rate: 0.1, warmup_steps, steps };
    let all = [
        ("one-cycle", schedule(Shape::OneCycle, 0)),
        ("cosine", schedule(Shape::Cosine, 0)),
        ("linear", schedule(Shape::Linear, 0)),
        ("constant", schedule(Shape::Constant, 0)),
        ("warm cosine", schedule(Shape::Cosine, 20)),
    ];
    for (name, schedule) in &all {
        let rates: Vec<f64> = (0..2 * steps).map(|step| schedule.rate(step)).collect();
        assert!(rates.iter().all(|rate| (0.0..=0.1 + 1e-12).contains(rate)), "{name}");
    }
    let Some(reference) = reference::python("figures/schedules.py", &["torch"], &[], &json!(steps)) else { return };
    for (name, schedule) in all {
        for (step, expected) in reference[name].as_array().unwrap().iter().enumerate() {
            let (rate, expected) = (schedule.rate(step as u64), expected.as_f64().unwrap());
            assert!((rate - expected).abs() < 1e-9, "{name} step {step}: {rate}, PyTorch {expected}");
        }
    }
}

#[test]
fn tensorboard_reads_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let at = |step: u64| UNIX_EPOCH + Duration::from_millis(1_700_000_000_000 + step * 10);
    let mut writer = EventWriter::create(&folder.path().join("run"), at(0)).unwrap();
    for step in 0..100 {
        let scalars = [("train/loss", 1.0 / (step + 1) as f64), ("train/usd_per_step", 0.0)];
        writer.scalars(at(step), step, &scalars).unwrap();
    }
    writer.flush().unwrap();
    // A second writer of the same second takes another file.
    let second = EventWriter::create(&folder.path().join("run"), at(0)).unwrap();
    assert_ne!(second.path(), writer.path());
    let modules = ["tensorboard.backend.event_processing.event_accumulator"];
    let Some(read) = reference::python("figures/events.py", &modules, &[writer.path()], &Value::Null) else { return };
    let loss = read["train/loss"].as_array().unwrap();
    assert_eq!(loss.len(), 100);
    for (step, event) in loss.iter().enumerate() {
        assert_eq!(event[0], step);
        assert!((event[1].as_f64().unwrap() - 1.0 / (step + 1) as f64).abs() < 1e-7);
        assert!((event[2].as_f64().unwrap() - (1_700_000_000.0 + step as f64 * 0.01)).abs() < 1e-4);
    }
    assert_eq!(read["train/usd_per_step"].as_array().unwrap().len(), 100);
}

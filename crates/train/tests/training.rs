//! Steps against PyTorch: losses, optimisers, clipped examples, and whole models that PyTorch exported.
//!
//! `training/reference.py` exports the models and computes in f64 what the steps must give.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{collections::BTreeMap, env, fs, num::NonZeroU32, path::Path, process::Command};

use edgeward_graph::{Limits, Model, Tensor};
use edgeward_train::{
    AdamSpec, Loss, LossSpec, LossTerm, OptimiserSpec, Pattern, PrivateSpec, Role, Step, StepSpec, build,
};
use serde::Deserialize;
use support::{Run, engines};

#[derive(Deserialize)]
struct Case {
    file: String,
    loss: Vec<LossText>,
    spec: SpecText,
    optimiser: Option<OptimiserText>,
    #[serde(default)]
    rate: f32,
    inputs: BTreeMap<String, Value>,
    /// The data of each step; one step where there is none.
    #[serde(default)]
    series: Vec<Value>,
    losses: Vec<f64>,
    #[serde(default)]
    gradients: BTreeMap<String, Value>,
    #[serde(default)]
    weights: BTreeMap<String, Value>,
    #[serde(default)]
    statistics: BTreeMap<String, Value>,
    /// How far PyTorch's f32 is from its f64.
    own_error: Option<f64>,
    /// How far the losses of PyTorch's f32 are from those of its f64, where that bounds ours.
    spread: Option<f64>,
}

#[derive(Deserialize)]
struct LossText {
    kind: String,
    #[serde(default)]
    smoothing: f32,
    class_weights: Option<Vec<f32>>,
    ignore: Option<i64>,
    positive: Option<f32>,
    #[serde(default)]
    delta: f32,
    #[serde(default)]
    temperature: f32,
    weight: Option<f32>,
    target: Option<String>,
}

#[derive(Deserialize)]
struct SpecText {
    clip: Option<f32>,
    accumulate: Option<NonZeroU32>,
    ema: Option<f32>,
    #[serde(default)]
    frozen: Vec<String>,
    #[serde(default)]
    example_weights: bool,
    private: Option<f32>,
}

#[derive(Deserialize)]
struct OptimiserText {
    kind: String,
    #[serde(default)]
    momentum: f32,
    #[serde(default)]
    nesterov: bool,
    #[serde(default)]
    decay: f32,
    beta1: Option<f32>,
    beta2: Option<f32>,
    epsilon: Option<f32>,
}

#[derive(Deserialize)]
struct Value {
    shape: Vec<usize>,
    at: usize,
    integer: bool,
}

impl Value {
    fn words<'b>(&self, blob: &'b [u8]) -> impl Iterator<Item = [u8; 8]> + use<'b> {
        let count: usize = self.shape.iter().product();
        blob[self.at..self.at + 8 * count].chunks(8).map(|b| b.try_into().unwrap())
    }

    fn values(&self, blob: &[u8]) -> Vec<f64> {
        self.words(blob).map(f64::from_le_bytes).collect()
    }

    fn tensor(&self, blob: &[u8]) -> Tensor {
        if self.integer {
            return Tensor::from_vec(self.shape.clone(), self.words(blob).map(i64::from_le_bytes).collect()).unwrap();
        }
        let values = self.values(blob).iter().map(|&v| v as f32).collect::<Vec<_>>();
        Tensor::from_vec(self.shape.clone(), values).unwrap()
    }
}

impl LossText {
    fn term(&self) -> LossTerm {
        let loss = match self.kind.as_str() {
            "cross_entropy" => Loss::CrossEntropy {
                smoothing: self.smoothing,
                class_weights: self.class_weights.clone(),
                axis: 1,
                ignore: self.ignore,
            },
            "binary" => Loss::BinaryCrossEntropy { positive_weight: self.positive },
            "square" => Loss::MeanSquared,
            "absolute" => Loss::MeanAbsolute,
            "huber" => Loss::Huber { delta: self.delta },
            "kl" => Loss::KullbackLeibler { temperature: self.temperature },
            "cosine" => Loss::Cosine,
            other => panic!("loss `{other}`"),
        };
        LossTerm {
            loss,
            weight: self.weight.unwrap_or(1.0),
            output: None,
            target: self.target.clone(),
            reference: None,
        }
    }
}

impl OptimiserText {
    fn spec(&self) -> OptimiserSpec {
        let usual = AdamSpec::default();
        let adam = AdamSpec {
            beta1: self.beta1.unwrap_or(usual.beta1),
            beta2: self.beta2.unwrap_or(usual.beta2),
            epsilon: self.epsilon.unwrap_or(usual.epsilon),
            weight_decay: self.decay,
        };
        match self.kind.as_str() {
            "sgd" => OptimiserSpec::Sgd { momentum: self.momentum, nesterov: self.nesterov, weight_decay: self.decay },
            "adam" => OptimiserSpec::Adam(adam),
            "adamw" => OptimiserSpec::AdamW(adam),
            "lamb" => OptimiserSpec::Lamb(adam),
            other => panic!("optimiser `{other}`"),
        }
    }
}

impl Case {
    fn spec(&self) -> StepSpec {
        // After one step with momentum the state holds the gradient itself.
        let momentum = OptimiserSpec::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 };
        let optimiser = self.optimiser.as_ref().map_or(momentum, OptimiserText::spec);
        let loss = LossSpec { terms: self.loss.iter().map(LossText::term).collect() };
        let text = &self.spec;
        StepSpec {
            clip_norm: text.clip,
            accumulate: text.accumulate.unwrap_or(NonZeroU32::MIN),
            ema: text.ema,
            frozen: text.frozen.iter().map(|p| Pattern::new(p).unwrap()).collect(),
            example_weights: text.example_weights,
            private: text.private.map(|clip_norm| PrivateSpec { clip_norm, expected_batch: 1.0 }),
            ..StepSpec::new(loss, optimiser)
        }
    }
}

/// Cases whose names begin with `names`, made by the script; none without Python.
fn cases(names: &[&str]) -> Option<(tempfile::TempDir, BTreeMap<String, Case>, Vec<u8>)> {
    let Some(python) = env::var_os("EDGEWARD_TEST_PYTHON") else {
        eprintln!("skipped: EDGEWARD_TEST_PYTHON is not set");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/training/reference.py");
    let output = Command::new(python).arg(script).arg("write").arg(folder.path()).args(names).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let cases: BTreeMap<String, Case> =
        serde_json::from_slice(&fs::read(folder.path().join("index.json")).unwrap()).unwrap();
    let blob = fs::read(folder.path().join("values.bin")).unwrap();
    assert!(!cases.is_empty());
    Some((folder, cases, blob))
}

fn check_all(names: &[&str]) {
    let Some((folder, cases, blob)) = cases(names) else { return };
    let mut errors = Errors::new();
    let mut complaints: Vec<String> = cases
        .iter()
        .filter_map(|(name, case)| {
            check(case, &blob, folder.path(), &mut errors).err().map(|reason| format!("{name}: {reason}"))
        })
        .collect();
    complaints.extend(too_far(errors));
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// Relative distances of gradients from PyTorch's f64, and those of PyTorch's f32, by model and engine.
type Errors = BTreeMap<String, Vec<(f64, f64)>>;

/// Models whose middle distance is more than twice PyTorch's.
fn too_far(errors: Errors) -> Vec<String> {
    let middle = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let mut complaints = Vec::new();
    for (name, pairs) in errors {
        let (own, other): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
        let (own, other) = (middle(own), middle(other));
        eprintln!("{name}: gradients are {own:.2e} from f64, those of PyTorch's f32 {other:.2e}");
        if own > 2.0 * other {
            complaints.push(format!("{name}: gradients are off by {own:.2e}, PyTorch's by {other:.2e}"));
        }
    }
    complaints
}

fn check(case: &Case, blob: &[u8], folder: &Path, errors: &mut Errors) -> Result<(), String> {
    let forward = Model::read(folder.join(&case.file), &Limits::default()).unwrap();
    let step = build(&forward, &case.spec()).map_err(|e| e.to_string())?;
    let fixed: Vec<(&str, Tensor)> = case.inputs.iter().map(|(name, v)| (name.as_str(), v.tensor(blob))).collect();
    for engine in engines() {
        let mut run = Run::new(engine.as_ref(), &step, 2);
        let mut distance = 0.0;
        for (number, expected) in case.losses.iter().enumerate() {
            let series = case.series.get(number).map(|v| v.tensor(blob));
            let mut feed: Vec<(&str, &Tensor)> = fixed.iter().map(|(name, tensor)| (*name, tensor)).collect();
            feed.extend(series.iter().map(|tensor| ("x", tensor)));
            let last = case.spec.accumulate.is_none_or(|every| (number + 1).is_multiple_of(every.get() as usize));
            let loss = f64::from(run.step_of(case.rate, &feed, last));
            distance += (loss - expected).abs() / case.losses.len() as f64;
            if case.spread.is_none() && (loss - expected).abs() > 1e-5 * expected.abs().max(1.0) {
                return Err(format!("{}: loss {loss} in step {number}, expected {expected}", engine.name()));
            }
        }
        if let Some(spread) = case.spread {
            let told =
                format!("{}: losses are {distance:.2e} from f64, those of PyTorch up to {spread:.2e}", engine.name());
            eprintln!("{}: {told}", case.file);
            // Four runs do not show all of PyTorch's spread.
            if distance > 4.0 * spread {
                return Err(told);
            }
        }
        let error = states(case, &step, &run, blob).map_err(|reason| format!("{}: {reason}", engine.name()))?;
        if let Some(own) = case.own_error {
            errors.entry(format!("{} by {}", case.file, engine.name())).or_default().push((error, own));
        }
    }
    Ok(())
}

/// Compares what is told of the state; returns the relative distance of all gradients together.
fn states(case: &Case, step: &Step, run: &Run, blob: &[u8]) -> Result<f64, String> {
    let mut bound = Bound { own: case.own_error, square: 0.0, whole: 0.0, found: 0 };
    for (state, tensor) in step.state.iter().zip(&run.state) {
        let expected = match &state.role {
            Role::Moment { name, kind } if kind == "momentum" => case.gradients.get(name),
            Role::Weight { name } if case.spec.ema.is_none() => case.weights.get(name),
            Role::Average { name } => case.weights.get(name),
            Role::RunningStatistic { name } => case.statistics.get(name),
            _ => None,
        };
        let Some(expected) = expected else { continue };
        bound.compare(&state.input, tensor, &expected.values(blob), matches!(state.role, Role::Moment { .. }))?;
    }
    let asked = case.gradients.len() + case.statistics.len() + case.weights.len();
    let frozen = case.weights.keys().filter(|name| !step.state.iter().any(|s| s.input == **name)).count();
    if bound.found + frozen != asked {
        return Err(format!("{} of {asked} tensors are compared", bound.found));
    }
    Ok((bound.square / bound.whole).sqrt())
}

/// Sums of squares over all gradients.
struct Bound {
    own: Option<f64>,
    square: f64,
    whole: f64,
    found: usize,
}

impl Bound {
    fn compare(&mut self, name: &str, own: &Tensor, expected: &[f64], sums: bool) -> Result<(), String> {
        self.found += 1;
        let own = own.values::<f32>().unwrap();
        if own.len() != expected.len() {
            return Err(format!("`{name}` has {} elements, expected {}", own.len(), expected.len()));
        }
        let square: f64 = own.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
        let whole: f64 = expected.iter().map(|v| v * v).sum();
        if sums {
            self.square += square;
            self.whole += whole;
        }
        // Of a deep model only the sum over all tensors is bounded: single ones may be all but 0.
        let near = square.sqrt() <= 2e-5 * whole.sqrt().max(1e-2);
        if self.own.is_none() && !near {
            return Err(format!("`{name}` is off by {:.2e} of its norm", (square / whole).sqrt()));
        }
        Ok(())
    }
}

#[test]
fn losses_have_the_gradients_of_pytorch() {
    check_all(&["loss_"]);
}

#[test]
fn optimisers_step_as_pytorch_does() {
    check_all(&["optimiser_"]);
}

#[test]
fn whole_models_are_no_further_from_f64_than_twice_pytorch() {
    check_all(&["model_"]);
}

#[test]
fn losses_of_fifty_steps_are_within_the_spread_of_pytorch() {
    check_all(&["fifty_"]);
}

#[test]
fn clipped_sums_are_those_of_single_examples() {
    check_all(&["private_"]);
}

//! One step of training through an engine, and PyTorch as the reference: a script beside the test, JSON in and out.

#![allow(dead_code, clippy::unwrap_used, reason = "each test uses a part; a test fails by panicking")]

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use edgeward_engine::{Engine, RunOptions};
use edgeward_graph::{Model, Tensor};
use edgeward_train::{LossSpec, OptimiserSpec, Pattern, StepSpec, build};
use serde_json::{Value, json};

use super::load;

/// What a step is made of beside its forward graph.
pub struct Asked {
    pub loss: LossSpec,
    pub frozen: Vec<Pattern>,
    pub factors: Vec<(Pattern, f32)>,
}

/// The loss of a batch, and the gradient of each weight by its name.
pub fn gradients(
    engine: &dyn Engine,
    forward: &Model,
    asked: &Asked,
    feed: &[(&str, &Tensor)],
) -> (f64, BTreeMap<String, Vec<f32>>) {
    // After one step with momentum the state holds the gradient itself.
    let momentum = OptimiserSpec::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 };
    let mut spec = StepSpec::new(asked.loss.clone(), momentum);
    spec.frozen.clone_from(&asked.frozen);
    spec.factors.clone_from(&asked.factors);
    let step = build(forward, &spec).unwrap();
    let session = load(engine, &step.graph).unwrap();
    let rate = Tensor::from_vec([], vec![0.1f32]).unwrap();
    let mut inputs: Vec<(&str, &Tensor)> = feed.to_vec();
    inputs.push((&step.scalars.rate, &rate));
    inputs.extend(step.state.iter().map(|state| (state.input.as_str(), &state.initial)));
    let moments: Vec<_> = step.state.iter().filter(|state| state.input.starts_with("momentum/")).collect();
    let mut wanted = vec![step.loss.as_str()];
    wanted.extend(moments.iter().map(|state| state.output.as_str()));
    let outputs = session.run(&inputs, RunOptions { outputs: Some(&wanted), ..RunOptions::default() }).unwrap();
    let loss = f64::from(outputs[0].values::<f32>().unwrap()[0]);
    let named = moments.iter().zip(&outputs[1..]);
    let named = named.map(|(state, tensor)| (state.input["momentum/".len()..].to_owned(), tensor));
    (loss, named.map(|(name, tensor)| (name, tensor.values::<f32>().unwrap().to_vec())).collect())
}

/// Shape and numbers, as the scripts read them.
pub fn told(tensor: &Tensor) -> Value {
    json!({ "shape": tensor.shape(), "values": tensor.values::<f32>().unwrap().to_vec() })
}

/// All constants of floats.
pub fn constants(model: &Model) -> Value {
    let tensors = model.graph().initializer.iter().map(|t| (t.name().to_owned(), model.tensor(t).unwrap()));
    let floats = tensors.filter(|(_, tensor)| tensor.values::<f32>().is_ok());
    Value::Object(floats.map(|(name, tensor)| (name, told(&tensor))).collect())
}

/// What `script` of this folder makes of `input`; none, said aloud, where Python or PyTorch is missing.
pub fn python(script: &str, input: &Value) -> Option<Value> {
    python_with("torch", script, input)
}

/// The same of a script that needs another package.
pub fn python_with(package: &str, script: &str, input: &Value) -> Option<Value> {
    let Some(python) = std::env::var_os("EDGEWARD_TEST_PYTHON") else {
        println!("skipped: EDGEWARD_TEST_PYTHON is not set (`cargo xtask test` sets it)");
        return None;
    };
    let there = Command::new(&python).args(["-c", &format!("import {package}")]).stderr(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        println!("skipped: the Python of EDGEWARD_TEST_PYTHON lacks {package}");
        return None;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(script);
    let mut child = Command::new(python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "the script failed");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

/// Holds the loss and all gradients against what a script says.
pub fn near(case: &str, found: &(f64, BTreeMap<String, Vec<f32>>), expected: &Value) {
    let loss = expected["loss"].as_f64().unwrap();
    assert!((found.0 - loss).abs() <= 1e-5 * loss.abs().max(1.0), "{case}: loss {} instead of {loss}", found.0);
    let gradients = expected["gradients"].as_object().unwrap();
    let mut names: Vec<&String> = gradients.keys().collect();
    names.sort();
    assert_eq!(found.1.keys().collect::<Vec<_>>(), names, "{case}");
    for (name, values) in gradients {
        let values: Vec<f64> = values.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        let own = &found.1[name];
        assert_eq!(own.len(), values.len(), "{case}: {name}");
        let scale = values.iter().fold(1e-3f64, |most, v| most.max(v.abs()));
        let error = own.iter().zip(&values).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max) / scale;
        assert!(error < 5e-5, "{case}: gradient of {name} is off by {error:.1e}\n{own:?}\n{values:?}");
    }
}

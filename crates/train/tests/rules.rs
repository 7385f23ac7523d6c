//! Every rule against PyTorch's autograd in f64, and against finite differences.
//!
//! `rules/reference.py` writes the cases with PyTorch's gradients. Here each is differentiated: in f32 the engines run the
//! result, in f64 ONNX's reference evaluator does, called by the script again.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{env, fs, path::Path, process::Command};

use edgeward_engine::RunOptions;
use edgeward_graph::{Limits, Model, Tensor};
use edgeward_train::{Differentiated, differentiate};
use serde::Deserialize;
use support::{engines, try_load};

#[derive(Deserialize)]
struct Case {
    name: String,
    inputs: Vec<Value>,
    seeds: Vec<Value>,
    gradients: Vec<Value>,
}

#[derive(Deserialize)]
struct Value {
    name: String,
    shape: Vec<usize>,
    at: usize,
}

impl Value {
    fn values(&self, blob: &[u8]) -> Vec<f64> {
        let count: usize = self.shape.iter().product();
        blob[self.at..self.at + 8 * count].chunks(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn tensor(&self, blob: &[u8]) -> Tensor {
        let values = self.values(blob).iter().map(|&v| v as f32).collect::<Vec<_>>();
        Tensor::from_vec(self.shape.clone(), values).unwrap()
    }
}

#[test]
fn every_rule_gives_the_gradient_of_pytorch() {
    let Some(python) = env::var_os("EDGEWARD_TEST_PYTHON") else {
        eprintln!("skipped: EDGEWARD_TEST_PYTHON is not set");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rules/reference.py");
    let call = |what: &str| Command::new(&python).arg(script).arg(what).arg(folder.path()).output().unwrap();
    let written = call("write");
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let cases: Vec<Case> = serde_json::from_slice(&fs::read(folder.path().join("index.json")).unwrap()).unwrap();
    let blob = fs::read(folder.path().join("values.bin")).unwrap();
    let mut complaints: Vec<String> = Vec::new();
    for case in &cases {
        if let Err(reason) = check(case, &blob, folder.path()) {
            complaints.push(format!("{}: {reason}", case.name));
        }
    }
    let checked = call("check");
    if !checked.status.success() {
        complaints.push(String::from_utf8_lossy(&checked.stdout).into_owned());
        complaints.push(String::from_utf8_lossy(&checked.stderr).into_owned());
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

fn differentiated(case: &Case, folder: &Path, dtype: &str) -> Result<Differentiated, String> {
    let path = folder.join(format!("{}.{dtype}.onnx", case.name));
    let forward = Model::read(path, &Limits::default()).map_err(|e| e.to_string())?;
    let names = |values: &[Value]| values.iter().map(|v| v.name.clone()).collect::<Vec<_>>();
    differentiate(&forward, &names(&case.seeds), &names(&case.inputs)).map_err(|e| format!("{dtype}: {e}"))
}

fn check(case: &Case, blob: &[u8], folder: &Path) -> Result<(), String> {
    let wide = differentiated(case, folder, "f64")?;
    wide.graph.write(folder.join(format!("{}.f64.vjp.onnx", case.name))).map_err(|e| e.to_string())?;
    let narrow = differentiated(case, folder, "f32")?;
    let seeds: Vec<Tensor> = case.seeds.iter().map(|v| v.tensor(blob)).collect();
    let inputs: Vec<Tensor> = case.inputs.iter().map(|v| v.tensor(blob)).collect();
    let mut feed: Vec<(&str, &Tensor)> = case.inputs.iter().map(|v| v.name.as_str()).zip(&inputs).collect();
    feed.extend(narrow.seeds.iter().map(String::as_str).zip(&seeds));
    let wanted: Vec<&str> = narrow.gradients.iter().map(String::as_str).collect();
    for engine in engines() {
        let session = match try_load(engine.as_ref(), &narrow.graph, 2) {
            Ok(session) => session,
            // The built-in engine lacks operators that the forward graph itself has.
            Err(_) if engine.name() == "rten" => continue,
            Err(e) => return Err(e.to_string()),
        };
        let options = RunOptions { outputs: Some(&wanted), ..RunOptions::default() };
        let found = match session.run(&feed, options) {
            Ok(found) => found,
            Err(_) if engine.name() == "rten" && case.name == "conv_volume" => continue,
            Err(e) => return Err(e.to_string()),
        };
        for (own, expected) in found.iter().zip(&case.gradients) {
            near(own, expected, blob).map_err(|reason| format!("{} by {}: {reason}", engine.name(), expected.name))?;
        }
    }
    Ok(())
}

fn near(own: &Tensor, expected: &Value, blob: &[u8]) -> Result<(), String> {
    if own.shape() != expected.shape {
        return Err(format!("shape {:?}, expected {:?}", own.shape(), expected.shape));
    }
    let values = expected.values(blob);
    let scale = values.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
    let own = own.values::<f32>().unwrap();
    let error = own.iter().zip(&values).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0f64, f64::max) / scale;
    if error < 2e-5 { Ok(()) } else { Err(format!("off by {error:.2e} of the largest")) }
}

//! How much a unit matters, by what the loss would do without it: `Σ |w · g|`, the first term of Taylor's series.
//!
//! Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", equation 8, in its form by weights, with the
//! sizes summed instead of the squares.

use std::collections::HashMap;

use edgeward_engine::{RunOptions, Session};
use edgeward_graph::{DataType, Model, Tensor};
use edgeward_train::{LossSpec, OptimiserSpec, Role, Step, StepSpec, TrainError, build};

use super::{Plan, Scores, importance::summed};
use crate::{CompressError, edit::Edit, fuse, observe::Inputs};

/// A step that tells gradients: momentum of its first run, which begins at 0. Dropouts are left out.
pub fn gradients(model: &Model, loss: &LossSpec) -> Result<Step, TrainError> {
    let mut edit = Edit::new(model.clone());
    // Nothing that it removes can fail.
    let _ = fuse::idle(&mut edit);
    let optimiser = OptimiserSpec::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 };
    build(&edit.model, &StepSpec::new(loss.clone(), optimiser))
}

/// Runs `step`, which [`gradients`] made and `session` runs, on all batches of inputs and targets, and sums up.
pub fn taylor(
    model: &Model,
    plan: &Plan,
    step: &Step,
    session: &dyn Session,
    batches: &mut dyn Iterator<Item = Result<Inputs, CompressError>>,
) -> Result<Scores, CompressError> {
    let edit = Edit::new(model.clone());
    let of = |role: &Role| match role {
        Role::Moment { name, .. } => Some(name.clone()),
        _ => None,
    };
    let told: Vec<(String, &str)> =
        step.state.iter().filter_map(|state| Some((of(&state.role)?, state.output.as_str()))).collect();
    let wanted: Vec<&str> = told.iter().map(|(_, output)| *output).collect();
    let rate = match step.scalars.dtype {
        DataType::Float64 => Tensor::from_vec([0usize; 0], vec![0f64])?,
        _ => Tensor::from_vec([0usize; 0], vec![0f32])?,
    };
    let mut sums: HashMap<String, Vec<f64>> = HashMap::new();
    for batch in batches {
        let batch = batch?;
        let given = batch.iter().map(|(name, tensor)| (name.as_str(), tensor));
        let state = step.state.iter().map(|state| (state.input.as_str(), &state.initial));
        let inputs: Vec<(&str, &Tensor)> =
            given.chain(state).chain(std::iter::once((step.scalars.rate.as_str(), &rate))).collect();
        let made = session.run(&inputs, RunOptions { outputs: Some(&wanted), cancel: None })?;
        for ((name, _), gradient) in told.iter().zip(&made) {
            let (Some((_, weight)), Ok(gradient)) = (edit.floats(name), gradient.values::<f32>()) else { continue };
            let sum = sums.entry(name.clone()).or_insert_with(|| vec![0.0; weight.len()]);
            for ((sum, weight), gradient) in sum.iter_mut().zip(&weight).zip(gradient.iter()) {
                *sum += f64::from((weight * gradient).abs());
            }
        }
    }
    if sums.is_empty() {
        return Err(CompressError::Data("the data to tell gradients by holds no examples".to_owned()));
    }
    Ok(summed(plan, |tensor| sums.get(tensor).cloned()))
}

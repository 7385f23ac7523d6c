//! A model's outputs over a data set, as figures.

use edgeward_engine::{RunOptions, Session};
use edgeward_graph::Tensor;
use serde::{Deserialize, Serialize};

use crate::{
    TrainError,
    data::{Loader, to_f64},
    metrics::{Classified, Errors, Figures, Metric, errors, guess},
};

/// What a model's first output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// A score for each class, or one for the second of two.
    Classes,
    /// Quantities.
    Quantities,
}

/// Figures of one judgement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Judged {
    /// Of classes.
    Classes(Figures),
    /// Of quantities.
    Quantities(Errors),
}

impl Judged {
    /// One figure; none where it is not defined.
    pub fn get(&self, metric: Metric) -> Option<f64> {
        match (self, metric) {
            (Self::Classes(figures), Metric::Loss) => Some(figures.log_loss),
            (Self::Classes(figures), Metric::Accuracy) => Some(figures.accuracy),
            (Self::Classes(figures), Metric::F1) => Some(figures.f1),
            (Self::Classes(figures), Metric::Auc) => figures.auc,
            (Self::Classes(figures), Metric::CalibrationError) => Some(figures.calibration_error),
            (Self::Quantities(errors), Metric::Loss | Metric::Mse) => Some(errors.mse),
            (Self::Quantities(errors), Metric::Mae) => Some(errors.mae),
            _ => None,
        }
    }

    /// Every figure that has a name, in the order of [`Metric::ALL`].
    pub fn all(&self) -> Vec<(Metric, f64)> {
        Metric::ALL.into_iter().filter_map(|metric| Some((metric, self.get(metric)?))).collect()
    }

    /// Examples judged.
    pub fn examples(&self) -> usize {
        match self {
            Self::Classes(figures) => figures.examples,
            Self::Quantities(errors) => errors.examples,
        }
    }
}

/// Runs a model over all examples and compares its first output with the first target. Errors: an output that has no
/// number for each example, or is no number.
pub fn evaluate(session: &dyn Session, data: &Loader, task: Task) -> Result<Judged, TrainError> {
    let first = session.outputs().first().map(|output| output.name.clone());
    let first = first.ok_or_else(|| TrainError::run("the model has no output"))?;
    let (mut said, mut targets) = (Vec::<f32>::new(), Vec::<f64>::new());
    let mut examples = 0;
    for batch in data.epoch(0, 0)? {
        let batch = batch?;
        let inputs: Vec<(&str, &Tensor)> = batch.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let options = RunOptions { outputs: Some(&[&first]), cancel: None };
        let outputs = session.run(&inputs, options)?;
        let numbers = outputs.first().and_then(to_f64);
        let numbers = numbers.ok_or_else(|| TrainError::run(format!("output `{first}` holds no numbers")))?;
        said.extend(numbers.into_iter().map(|value| value as f32));
        let target = batch.targets.first().and_then(|(_, tensor)| to_f64(tensor));
        targets.extend(target.ok_or_else(|| TrainError::run("the data has no targets of numbers"))?);
        examples += batch.rows.len();
    }
    match task {
        Task::Quantities => {
            let targets: Vec<f32> = targets.into_iter().map(|value| value as f32).collect();
            Ok(Judged::Quantities(errors(&said, &targets, examples)?))
        }
        Task::Classes => {
            let labels: Vec<u32> = targets.into_iter().map(|value| value as u32).collect();
            let scores = guess(&said, said.len() / labels.len().max(1));
            Ok(Judged::Classes(Classified::new(&said, &labels, scores)?.figures()))
        }
    }
}

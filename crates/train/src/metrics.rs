//! How good predictions are. Pure: scores and labels in, figures out; running a model is left to the loop.

use std::fmt;

/// What a classifier says of every example, against what is so.
#[derive(Clone, Debug)]
pub struct Classified {
    /// Probabilities `[examples, classes]`, row by row.
    probabilities: Vec<f64>,
    classes: usize,
    labels: Vec<u32>,
}

/// What the numbers of a model's output are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scores {
    /// Unnormalised logarithms: softmax over two classes and more, the logistic function over one.
    Logits,
    /// Probabilities.
    Probabilities,
}

/// Why figures cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MetricError(String);

/// Figures of a classifier.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Figures {
    /// Examples judged.
    pub examples: usize,
    /// Part of the examples whose most probable class is theirs.
    pub accuracy: f64,
    /// F1 of class 1 where there are two classes, else the mean over the classes that occur or are predicted.
    pub f1: f64,
    /// F1 as the mean over classes.
    pub f1_macro: f64,
    /// Area under the ROC curve; for more than two classes the mean of one against the rest. None where it is not
    /// defined: a class does not occur, or all examples are of one.
    pub auc: Option<f64>,
    /// Mean negative logarithm of the probability of the right class.
    pub log_loss: f64,
    /// Expected calibration error over 15 bins of equal width (Guo et al. 2017, equation 3).
    pub calibration_error: f64,
    /// Examples by class (row) and predicted class (column).
    pub confusion: Vec<Vec<u64>>,
}

/// A figure by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Mean loss of the examples; lower is better, as for both errors.
    Loss,
    /// Accuracy.
    Accuracy,
    /// F1 of class 1, or macro.
    F1,
    /// Area under the ROC curve.
    Auc,
    /// Expected calibration error.
    CalibrationError,
    /// Mean squared error.
    Mse,
    /// Mean absolute error.
    Mae,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Loss, Self::Accuracy, Self::F1, Self::Auc, Self::CalibrationError, Self::Mse, Self::Mae];

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Accuracy => "accuracy",
            Self::F1 => "f1",
            Self::Auc => "auc",
            Self::CalibrationError => "calibration_error",
            Self::Mse => "mse",
            Self::Mae => "mae",
        }
    }

    /// True where `new` is better than `old`.
    pub fn improves(self, new: f64, old: f64) -> bool {
        match self {
            Self::Accuracy | Self::F1 | Self::Auc => new > old,
            Self::Loss | Self::CalibrationError | Self::Mse | Self::Mae => new < old,
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Metric {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::name).join("`, `");
        let found = Self::ALL.into_iter().find(|metric| metric.name() == text);
        found.ok_or_else(|| format!("no metric `{text}`; there are `{}`", known()))
    }
}

/// Bins of [`Figures::calibration_error`].
const BINS: usize = 15;

impl Classified {
    /// From a model's output `[examples, classes]`, or `[examples]` for the second of two classes. Errors: a number
    /// that is none, a label beyond the classes, or counts that do not agree.
    pub fn new(output: &[f32], labels: &[u32], scores: Scores) -> Result<Self, MetricError> {
        let error = |text: String| Err(MetricError(text));
        if labels.is_empty() || output.is_empty() || !output.len().is_multiple_of(labels.len()) {
            return error(format!("`{}` outputs are no scores of `{}` examples", output.len(), labels.len()));
        }
        if let Some((place, value)) = output.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return error(format!("the model says `{value}` of example {}", place * labels.len() / output.len()));
        }
        let columns = output.len() / labels.len();
        let classes = columns.max(2);
        if let Some(label) = labels.iter().find(|&&label| label as usize >= classes) {
            return error(format!("a label is `{label}`, the model tells `{classes}` classes apart, from 0"));
        }
        let probabilities = match (columns, scores) {
            (1, Scores::Logits) => output.iter().flat_map(|&z| two(1.0 / (1.0 + f64::from(-z).exp()))).collect(),
            (1, Scores::Probabilities) => output.iter().flat_map(|&p| two(f64::from(p))).collect(),
            (_, Scores::Logits) => output.chunks_exact(columns).flat_map(softmax).collect(),
            (_, Scores::Probabilities) => output.iter().map(|&p| f64::from(p)).collect(),
        };
        Ok(Self { probabilities, classes, labels: labels.to_vec() })
    }

    fn rows(&self) -> impl Iterator<Item = (&[f64], usize)> {
        self.probabilities.chunks_exact(self.classes).zip(self.labels.iter().map(|&label| label as usize))
    }

    /// Every figure.
    pub fn figures(&self) -> Figures {
        let confusion = self.confusion();
        let right: u64 = confusion.iter().enumerate().filter_map(|(class, row)| row.get(class)).sum();
        let scores: Vec<Option<f64>> = (0..self.classes).map(|class| f1(&confusion, class)).collect();
        let defined: Vec<f64> = scores.iter().flatten().copied().collect();
        let f1_macro = defined.iter().sum::<f64>() / defined.len().max(1) as f64;
        let f1 = if self.classes == 2 { scores.get(1).copied().flatten().unwrap_or(0.0) } else { f1_macro };
        Figures {
            examples: self.labels.len(),
            accuracy: right as f64 / self.labels.len() as f64,
            f1,
            f1_macro,
            auc: self.auc(),
            log_loss: self.log_loss(),
            calibration_error: self.calibration_error(),
            confusion,
        }
    }

    fn confusion(&self) -> Vec<Vec<u64>> {
        let mut counts = vec![vec![0; self.classes]; self.classes];
        for (row, label) in self.rows() {
            let predicted = most_probable(row).0;
            if let Some(count) = counts.get_mut(label).and_then(|counts| counts.get_mut(predicted)) {
                *count += 1;
            }
        }
        counts
    }

    fn auc(&self) -> Option<f64> {
        let of = |class: usize| {
            let scores: Vec<f64> = self.rows().filter_map(|(row, _)| row.get(class).copied()).collect();
            let positive: Vec<bool> = self.labels.iter().map(|&label| label as usize == class).collect();
            auc(&scores, &positive)
        };
        if self.classes == 2 {
            return of(1);
        }
        let each: Option<Vec<f64>> = (0..self.classes).map(of).collect();
        each.map(|each| each.iter().sum::<f64>() / self.classes as f64)
    }

    fn log_loss(&self) -> f64 {
        // As scikit-learn: a probability of 0 counts as the smallest step of a binary64 around 1.
        let term = |(row, label): (&[f64], usize)| {
            let sum: f64 = row.iter().sum();
            let probability = row.get(label).copied().unwrap_or(0.0) / if sum > 0.0 { sum } else { 1.0 };
            -probability.clamp(f64::EPSILON, 1.0 - f64::EPSILON).ln()
        };
        self.rows().map(term).sum::<f64>() / self.labels.len() as f64
    }

    fn calibration_error(&self) -> f64 {
        let mut bins = [(0.0f64, 0.0f64); BINS];
        for (row, label) in self.rows() {
            let (predicted, confidence) = most_probable(row);
            // Bins are open on the left: (0, 1/15], (1/15, 2/15], …
            let index = ((confidence * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
            if let Some((confidences, right)) = bins.get_mut(index) {
                *confidences += confidence;
                *right += f64::from(u8::from(predicted == label));
            }
        }
        bins.iter().map(|(confidences, right)| (confidences - right).abs()).sum::<f64>() / self.labels.len() as f64
    }
}

fn two(probability: f64) -> [f64; 2] {
    [1.0 - probability, probability]
}

fn softmax(row: &[f32]) -> Vec<f64> {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = row.iter().map(|&value| f64::from(value - most).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// Class and probability; the first of equals.
fn most_probable(row: &[f64]) -> (usize, f64) {
    let better =
        |best: (usize, f64), (class, &value): (usize, &f64)| if value > best.1 { (class, value) } else { best };
    row.iter().enumerate().fold((0, f64::NEG_INFINITY), better)
}

/// None for a class that neither occurs nor is predicted.
fn f1(confusion: &[Vec<u64>], class: usize) -> Option<f64> {
    let right = confusion.get(class)?.get(class).copied()?;
    let occurs: u64 = confusion.get(class)?.iter().sum();
    let predicted: u64 = confusion.iter().filter_map(|row| row.get(class)).sum();
    (occurs + predicted > 0).then(|| 2.0 * right as f64 / (occurs + predicted) as f64)
}

/// The probability that a positive example scores above a negative one, half counted for equals: the Mann–Whitney
/// statistic by ranks, exact (Hanley & McNeil 1982). None where one kind is missing.
pub fn auc(scores: &[f64], positive: &[bool]) -> Option<f64> {
    let mut order: Vec<(f64, bool)> = scores.iter().copied().zip(positive.iter().copied()).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let positives = order.iter().filter(|(_, positive)| *positive).count() as f64;
    let negatives = order.len() as f64 - positives;
    if positives == 0.0 || negatives == 0.0 {
        return None;
    }
    let mut rank_sum = 0.0;
    let mut before = 0usize;
    for ties in order.chunk_by(|a, b| a.0 == b.0) {
        let rank = before as f64 + (ties.len() as f64 + 1.0) / 2.0;
        rank_sum += rank * ties.iter().filter(|(_, positive)| *positive).count() as f64;
        before += ties.len();
    }
    Some((rank_sum - positives * (positives + 1.0) / 2.0) / (positives * negatives))
}

/// Figures of a model that says quantities.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Errors {
    /// Examples judged.
    pub examples: usize,
    /// Mean squared error.
    pub mse: f64,
    /// Mean absolute error.
    pub mae: f64,
}

/// Compares `output` and `target`, equally many numbers of `examples` examples.
pub fn errors(output: &[f32], target: &[f32], examples: usize) -> Result<Errors, MetricError> {
    if output.len() != target.len() || output.is_empty() {
        return Err(MetricError(format!("the model says `{}` numbers, the data has `{}`", output.len(), target.len())));
    }
    let (mut squares, mut sizes) = (0.0, 0.0);
    for (&said, &is) in output.iter().zip(target) {
        let difference = f64::from(said) - f64::from(is);
        squares += difference * difference;
        sizes += difference.abs();
    }
    let count = output.len() as f64;
    Ok(Errors { examples, mse: squares / count, mae: sizes / count })
}

/// Probabilities where every row, or number, looks like some, else logits.
pub fn guess(output: &[f32], columns: usize) -> Scores {
    let within = output.iter().all(|value| (0.0..=1.0).contains(value));
    let whole =
        columns == 1 || output.chunks_exact(columns.max(1)).all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-3);
    if within && whole { Scores::Probabilities } else { Scores::Logits }
}

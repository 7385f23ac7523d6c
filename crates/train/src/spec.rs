//! What a training step is asked to do: loss, optimiser, what is trained and how gradients are bounded.

use std::num::NonZeroU32;

use globset::{GlobBuilder, GlobMatcher};

use crate::TrainError;

/// Everything that [`crate::build`] needs beside the forward graph.
#[derive(Clone, Debug)]
pub struct StepSpec {
    /// What is made small.
    pub loss: LossSpec,
    /// How weights follow their gradients.
    pub optimiser: OptimiserSpec,
    /// Gradients are scaled down to this norm, that of all of them together, where they are longer.
    pub clip_norm: Option<f32>,
    /// Only these weights are trained; all that look like weights where none is named.
    pub trained: Vec<Pattern>,
    /// These weights keep their values.
    pub frozen: Vec<Pattern>,
    /// Steps whose gradients are averaged before the weights change. More than one adds the input [`Scalars::apply`].
    pub accumulate: NonZeroU32,
    /// Decay of an average of the weights, e.g. 0.999: `average = decay · average + (1 - decay) · weight`.
    pub ema: Option<f32>,
    /// Bounds what one example can do (differential privacy).
    pub private: Option<PrivateSpec>,
    /// Adds the target `example_weight`, float of \[batch\]: what each example counts; 0 leaves it out.
    pub example_weights: bool,
    /// What the gradients of weights are multiplied by, before they are clipped: the first pattern that fits counts.
    pub factors: Vec<(Pattern, f32)>,
}

impl StepSpec {
    /// Trains everything, without clipping, averaging or privacy.
    pub fn new(loss: LossSpec, optimiser: OptimiserSpec) -> Self {
        Self {
            loss,
            optimiser,
            clip_norm: None,
            trained: Vec::new(),
            frozen: Vec::new(),
            accumulate: NonZeroU32::MIN,
            ema: None,
            private: None,
            example_weights: false,
            factors: Vec::new(),
        }
    }
}

/// A weighted sum of losses.
#[derive(Clone, Debug, PartialEq)]
pub struct LossSpec {
    /// At least one.
    pub terms: Vec<LossTerm>,
}

impl From<Loss> for LossSpec {
    fn from(loss: Loss) -> Self {
        Self { terms: vec![LossTerm::from(loss)] }
    }
}

/// One loss over one output.
#[derive(Clone, Debug, PartialEq)]
pub struct LossTerm {
    /// Which.
    pub loss: Loss,
    /// What it counts in the sum.
    pub weight: f32,
    /// The forward graph's output that it judges; the first where none is named.
    pub output: Option<String>,
    /// Name of the target input; `target` where none is given. Terms of one name share one input.
    pub target: Option<String>,
    /// An output of the forward graph that stands for the target, so that no input is asked for: what a teacher within the
    /// graph says. It is differentiated as any value is; freeze what is before it.
    pub reference: Option<String>,
}

impl From<Loss> for LossTerm {
    fn from(loss: Loss) -> Self {
        Self { loss, weight: 1.0, output: None, target: None, reference: None }
    }
}

/// Losses, each a mean over examples (and over what else an example holds).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Loss {
    /// `-log softmax(z)[t]` of logits z; targets are classes, int64, of the output's shape without the class axis.
    /// An output that a Softmax makes is taken from before it.
    CrossEntropy {
        /// Share of the target that goes to all classes alike (Szegedy et al. 2016, section 7).
        smoothing: f32,
        /// What each class counts; the mean is then over these weights, as in PyTorch.
        class_weights: Option<Vec<f32>>,
        /// The axis of the classes.
        axis: i64,
        /// Targets of this value count nothing.
        ignore: Option<i64>,
    },
    /// `max(z, 0) - z t + log(1 + exp(-|z|))` of logits z; targets are floats from 0 to 1 of the output's shape. An
    /// output that a Sigmoid makes is taken from before it.
    BinaryCrossEntropy {
        /// What positive targets count.
        positive_weight: Option<f32>,
    },
    /// `(y - t)²`
    MeanSquared,
    /// `|y - t|`
    MeanAbsolute,
    /// `(y - t)² / 2` up to a distance of `delta`, `delta (|y - t| - delta / 2)` beyond (Huber 1964).
    Huber {
        /// Where the square ends.
        delta: f32,
    },
    /// `T² Σ p (log p - log q)` of softmaxes over the last axis at temperature T, p of the target logits, q of the
    /// output (Hinton et al. 2015, section 2); targets are logits of the output's shape.
    KullbackLeibler {
        /// T.
        temperature: f32,
    },
    /// `1 - y·t / (‖y‖ ‖t‖)` over the last axis; targets are floats of the output's shape.
    Cosine,
}

impl Loss {
    /// Cross-entropy of \[batch, classes\] (or classes on axis 1) without smoothing and weights.
    pub fn cross_entropy() -> Self {
        Self::CrossEntropy { smoothing: 0.0, class_weights: None, axis: 1, ignore: None }
    }
}

/// How weights follow their gradients. The learning rate is an input of the graph.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum OptimiserSpec {
    /// Gradient descent; `v = momentum · v + g`, then `w -= rate · v`, or with Nesterov `rate · (g + momentum · v)`.
    Sgd {
        /// 0 for none.
        momentum: f32,
        /// Looks ahead (Sutskever et al. 2013).
        nesterov: bool,
        /// Added to the gradient: `weight_decay · w`.
        weight_decay: f32,
    },
    /// Kingma and Ba 2015; decay is added to the gradient.
    Adam(AdamSpec),
    /// Loshchilov and Hutter 2019; decay is apart from the gradient.
    AdamW(AdamSpec),
    /// You et al. 2020: Adam's step with decay, scaled by `‖w‖ / ‖step‖` for each weight.
    Lamb(AdamSpec),
}

impl OptimiserSpec {
    /// Plain gradient descent.
    pub fn sgd() -> Self {
        Self::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 }
    }
}

/// Settings of Adam and its kin.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamSpec {
    /// Decay of the gradients' mean.
    pub beta1: f32,
    /// Decay of their squares' mean.
    pub beta2: f32,
    /// Added to the root of the squares' mean.
    pub epsilon: f32,
    /// Pull towards 0.
    pub weight_decay: f32,
}

impl Default for AdamSpec {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 }
    }
}

/// Clipping of each example's gradient (Abadi et al. 2016, algorithm 1).
///
/// The step's gradient is `(Σ clipped + noise) / expected_batch`; noise comes in by [`crate::Step::noise`].
#[derive(Clone, Debug, PartialEq)]
pub struct PrivateSpec {
    /// Bound of one example's gradient, that of all weights together.
    pub clip_norm: f32,
    /// What sums are divided by: the sampling rate times the number of examples, whatever the batch holds. Where steps
    /// accumulate, that of all of them together.
    pub expected_batch: f32,
}

/// A pattern of names: `*` for anything, `?` for one character, `[…]` for one of several, `{a,b}` for either.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    matcher: GlobMatcher,
}

impl Pattern {
    /// Errors: a pattern that does not parse.
    pub fn new(text: &str) -> Result<Self, TrainError> {
        let glob = GlobBuilder::new(text).build();
        let glob = glob.map_err(|e| TrainError::invalid(format!("pattern `{text}`: {}", e.kind())))?;
        Ok(Self { text: text.to_owned(), matcher: glob.compile_matcher() })
    }

    /// The pattern as it was given.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// True where the whole of `name` fits.
    pub fn fits(&self, name: &str) -> bool {
        self.matcher.is_match(name)
    }
}

//! What the options mean: a training step, a schedule and the settings of a run. Pure.

use std::{num::NonZeroU32, path::Path};

use edgeward_graph::{Dimension, Model};
use edgeward_train::{
    AdamSpec, Loss, LossSpec, OptimiserSpec, Pattern, PrivateSpec, Step, StepSpec,
    data::{Augment, Loader, Plan, Sampling, Wanted, class_weights},
    metrics::Metric,
    schedule::{Schedule, Shape},
    trainer::{EXAMPLE_WEIGHT, Settings, Task},
};

use super::{
    failed, fitted,
    material::Material,
    options::{DataOptions, LossName, OptimiserName, SamplingName, ScheduleName, TrainOptions},
};
use crate::failure::Failure;

/// The options, settled.
pub struct Planned {
    /// The training step.
    pub spec: StepSpec,
    /// What the outputs are.
    pub task: Task,
    /// Classes that the model tells apart.
    pub classes: Option<usize>,
    options: TrainOptions,
    plan: Plan,
    metric: Metric,
}

const EPOCHS: u64 = 10;
const BATCH: usize = 64;

impl Planned {
    /// Settles them. Errors: a value out of its range, by its flag.
    pub fn new(options: &TrainOptions, forward: &Model, material: &Material) -> Result<Self, Failure> {
        check(options)?;
        let (classes, task) = classes(options, forward);
        let rows = material.train.len();
        let batch = options.batch.unwrap_or(BATCH);
        let private =
            options.clip_each.map(|clip_norm| PrivateSpec { clip_norm, expected_batch: batch.min(rows) as f32 });
        let mut spec = StepSpec::new(loss(options, classes, material)?, optimiser(options));
        spec.clip_norm = options.clip;
        let patterns = options.freeze.iter().flatten().map(|text| Pattern::new(text));
        spec.frozen = patterns.collect::<Result<_, _>>().map_err(failed)?;
        spec.accumulate = NonZeroU32::new(options.accumulate.unwrap_or(1)).unwrap_or(NonZeroU32::MIN);
        spec.ema = options.ema;
        spec.example_weights = private.is_some();
        spec.private = private;
        let metric = match (&options.metric, task) {
            (Some(name), _) => name.parse().map_err(Failure::input)?,
            (None, Task::Classes) => Metric::Accuracy,
            (None, Task::Quantities) => Metric::Mse,
        };
        let sampling = match options.sampling {
            None if options.clip_each.is_some() => Sampling::Poisson,
            Some(SamplingName::Poisson) => Sampling::Poisson,
            Some(SamplingName::Balanced) => Sampling::Balanced,
            Some(SamplingName::Sequential) => Sampling::Sequential,
            Some(SamplingName::Shuffled) | None => Sampling::Shuffled,
        };
        let plan = Plan { batch, sampling, seed: options.seed.unwrap_or(0) };
        Ok(Self { spec, task, classes, options: options.clone(), plan, metric })
    }

    /// How the data is read.
    pub fn data(&self) -> &DataOptions {
        &self.options.data
    }

    /// The data for learning and for judging, as the step wants it.
    pub fn loaders(&self, material: &Material, step: &Step) -> Result<(Loader, Option<Loader>), Failure> {
        let targets = step.targets.iter().filter(|port| port.name != EXAMPLE_WEIGHT).cloned().collect();
        let data = &self.options.data;
        let options = &self.options;
        let wanted = Wanted {
            inputs: step.data.clone(),
            targets,
            classes: self.classes,
            normalise: data.mean.clone().zip(data.std.clone()),
            augment: Augment {
                flip: options.flip.unwrap_or(false),
                crop_padding: options.crop.unwrap_or(0),
                colour: options.colour.unwrap_or(0.0),
                token_drop: options.token_drop.unwrap_or(0.0),
                unknown_token: material.tokenisation.as_ref().and_then(|t| t.unknown()).unwrap_or(0),
                first_token: material.tokenisation.as_ref().map_or(0, |t| t.first_of_text()),
            },
        };
        let learn = fitted(edgeward_train::data::Fit::new(material.train.clone(), wanted.clone()))?;
        let in_order = Plan { sampling: Sampling::Sequential, ..self.plan.clone() };
        let judge = match &material.val {
            Some(val) => {
                let fit = fitted(edgeward_train::data::Fit::new(val.clone(), wanted))?;
                Some(Loader::to_judge(fit, in_order))
            }
            None => None,
        };
        Ok((Loader::to_learn(learn, self.plan.clone()), judge))
    }

    /// The settings of the loop.
    pub fn settings(&self, data: &Loader, checkpoint: &Path) -> Settings {
        let options = &self.options;
        let epochs = options.epochs.unwrap_or(EPOCHS);
        let accumulate = u64::from(self.spec.accumulate.get());
        let shape = match options.schedule {
            Some(ScheduleName::Constant) => Shape::Constant,
            Some(ScheduleName::OneCycle) => Shape::OneCycle,
            Some(ScheduleName::Linear) => Shape::Linear,
            Some(ScheduleName::Cosine) | None => Shape::Cosine,
        };
        let schedule = Schedule {
            shape,
            rate: options.rate.unwrap_or(if is_sgd(options) { 0.05 } else { 0.001 }),
            warmup_steps: options.warmup.unwrap_or(0),
            steps: epochs.saturating_mul(data.batch_count() as u64) / accumulate,
        };
        let noise = options.clip_each.map(|clip| clip * options.noise.unwrap_or(1.0));
        Settings {
            epochs,
            schedule,
            seed: options.seed.unwrap_or(0),
            accumulate,
            task: self.task,
            metric: self.metric,
            patience: options.patience,
            checkpoint: Some(checkpoint.to_owned()),
            checkpoint_batches: options.checkpoint_batches,
            noise_deviation: noise,
        }
    }
}

fn is_sgd(options: &TrainOptions) -> bool {
    matches!(options.optimiser, Some(OptimiserName::Sgd | OptimiserName::Nesterov))
}

/// Ranges that neither the step nor the loop looks at.
fn check(options: &TrainOptions) -> Result<(), Failure> {
    let wrong = |flag: &str, value: String, expected: &str| {
        Err(Failure::input(format!("`--{flag} {value}` is not possible; expected {expected}")))
    };
    if let Some(rate) = options.rate.filter(|rate| !(*rate > 0.0 && rate.is_finite())) {
        return wrong("rate", rate.to_string(), "a number above 0");
    }
    let positive = [("epochs", options.epochs), ("batch", options.batch.map(|batch| batch as u64))];
    let positive =
        positive.into_iter().chain([("accumulate", options.accumulate.map(u64::from)), ("patience", options.patience)]);
    if let Some((flag, _)) = positive.clone().find(|(_, value)| *value == Some(0)) {
        return wrong(flag, "0".to_owned(), "1 or more");
    }
    let parts = [("token-drop", options.token_drop), ("colour", options.colour), ("smoothing", options.smoothing)];
    if let Some((flag, Some(value))) =
        parts.into_iter().find(|(_, part)| part.is_some_and(|p| !(0.0..1.0).contains(&p)))
    {
        return wrong(flag, value.to_string(), "0 or more and less than 1");
    }
    if let Some(price) = options.price_usd_per_hour.filter(|price| !(*price >= 0.0 && price.is_finite())) {
        return wrong("price-usd-per-hour", price.to_string(), "0 or more");
    }
    if options.data.mean.is_some() != options.data.std.is_some() {
        return Err(Failure::input("`--mean` and `--std` go together"));
    }
    if options.noise.is_some() && options.clip_each.is_none() {
        return Err(Failure::input("`--noise` is a multiple of `--clip-each`, which is not given"));
    }
    match options.noise.filter(|noise| !(*noise >= 0.0 && noise.is_finite())) {
        Some(noise) => wrong("noise", noise.to_string(), "0 or more"),
        None => Ok(()),
    }
}

/// Classes by the first output's last dimension, and whether the loss is about classes at all.
fn classes(options: &TrainOptions, forward: &Model) -> (Option<usize>, Task) {
    let outputs = forward.outputs();
    let last = outputs.first().and_then(|output| output.shape.as_ref()?.last().cloned());
    let columns = match last {
        Some(Dimension::Fixed(size)) => Some(size),
        _ => None,
    };
    match options.loss.unwrap_or(LossName::CrossEntropy) {
        LossName::CrossEntropy => (columns, Task::Classes),
        LossName::BinaryCrossEntropy if columns.is_none_or(|columns| columns == 1) => (Some(2), Task::Classes),
        _ => (None, Task::Quantities),
    }
}

fn loss(options: &TrainOptions, classes: Option<usize>, material: &Material) -> Result<LossSpec, Failure> {
    let name = options.loss.unwrap_or(LossName::CrossEntropy);
    if name != LossName::CrossEntropy && (options.smoothing.is_some() || options.class_weights.is_some()) {
        return Err(Failure::input("`--smoothing` and `--class-weights` belong to `--loss cross-entropy`"));
    }
    Ok(LossSpec::from(match name {
        LossName::CrossEntropy => Loss::CrossEntropy {
            smoothing: options.smoothing.unwrap_or(0.0),
            class_weights: weights(options, classes, material)?,
            axis: 1,
            ignore: None,
        },
        LossName::BinaryCrossEntropy => Loss::BinaryCrossEntropy { positive_weight: None },
        LossName::Mse => Loss::MeanSquared,
        LossName::L1 => Loss::MeanAbsolute,
        LossName::Huber => Loss::Huber { delta: 1.0 },
        LossName::Kl => Loss::KullbackLeibler { temperature: 1.0 },
        LossName::Cosine => Loss::Cosine,
    }))
}

fn weights(options: &TrainOptions, classes: Option<usize>, material: &Material) -> Result<Option<Vec<f32>>, Failure> {
    let Some(text) = &options.class_weights else { return Ok(None) };
    if text == "balanced" {
        let labels = material.train.labels();
        let labels = labels.ok_or_else(|| Failure::input("the targets are no classes, so none can be balanced"))?;
        let most = labels.iter().max().map_or(0, |&label| label as usize + 1);
        return Ok(Some(class_weights(labels, classes.unwrap_or(most))));
    }
    let numbers: Result<Vec<f32>, _> = text.split(',').map(|number| number.trim().parse::<f32>()).collect();
    let expected = "expected `balanced` or numbers between commas";
    numbers.map(Some).map_err(|_| Failure::input(format!("`--class-weights {text}`: {expected}")))
}

fn optimiser(options: &TrainOptions) -> OptimiserSpec {
    let decay = |default: f32| options.weight_decay.unwrap_or(default);
    let momentum = options.momentum.unwrap_or(0.9);
    let adam = |default: f32| AdamSpec { weight_decay: decay(default), ..AdamSpec::default() };
    match options.optimiser.unwrap_or(OptimiserName::Adamw) {
        OptimiserName::Sgd => OptimiserSpec::Sgd { momentum, nesterov: false, weight_decay: decay(0.0) },
        OptimiserName::Nesterov => OptimiserSpec::Sgd { momentum, nesterov: true, weight_decay: decay(0.0) },
        OptimiserName::Adam => OptimiserSpec::Adam(adam(0.0)),
        OptimiserName::Adamw => OptimiserSpec::AdamW(adam(0.01)),
        OptimiserName::Lamb => OptimiserSpec::Lamb(AdamSpec { epsilon: 1e-6, ..adam(0.01) }),
    }
}

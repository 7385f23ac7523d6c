//! What ranges are observed on and variants are judged on: labelled data, inputs alone, or made-up ones.

use std::{cell::Cell, sync::Arc};

use edgeward_compress::{BoxForm, CompressError, Detector, observe::Inputs, report::DataKind};
use edgeward_engine::TensorInfo;
use edgeward_graph::{DataType, Dimension, Model, Port, Tensor};
use edgeward_train::{
    Step,
    data::{Columns, Dataset, Fit, Loader, Plan, Role, Sampling, Splits, Tokenisation, Wanted, tokenise},
};

use crate::{
    failure::{Failure, OrInput as _, Outcome},
    inputs::{self, file},
    train::{
        fitted,
        material::{self, Recipe},
        options::{DataOptions, TrainOptions},
    },
};

use super::{CompressArgs, annotations::Annotations, given::Held};

/// Examples of one run, where the model takes as many as one likes.
const BATCH: usize = 8;
/// Made-up examples.
const SYNTHESISED: usize = 32;

/// Inputs of one run, and what the model shall say of them.
pub struct Example {
    /// Inputs.
    pub inputs: Inputs,
    /// Examples in them.
    pub rows: usize,
    /// Classes, where the data has them.
    pub labels: Vec<u32>,
}

/// Examples by the batch, to go through as often as one likes.
pub struct Material {
    /// Where it comes from.
    pub kind: DataKind,
    /// Examples that ranges are observed on; in a hurry fewer where they settle and no number was asked for.
    pub calibrated: usize,
    /// How boxes are put out, where the command says it.
    pub form: Option<BoxForm>,
    /// Boxes that are to be found.
    pub annotations: Option<Annotations>,
    judged: usize,
    source: Source,
}

enum Source {
    Labelled { calibrate: Loader, judge: Loader, learn: Box<Learn>, batch: usize, fixed: bool },
    Held(Held),
}

impl Source {
    /// Examples that ranges can be observed on.
    fn examples(&self) -> usize {
        match self {
            Self::Labelled { learn, .. } => learn.dataset.len(),
            Self::Held(held) => held.runs.iter().map(|(_, rows)| rows).sum(),
        }
    }
}

/// What training is fed with.
struct Learn {
    dataset: Arc<dyn Dataset>,
    tokenisation: Option<Tokenisation>,
    normalise: Option<(Vec<f32>, Vec<f32>)>,
    /// The batch that the model fixes.
    fixed: Option<usize>,
}

type Examples<'a> = Box<dyn Iterator<Item = Result<Example, CompressError>> + 'a>;

impl Material {
    /// Opens what the arguments name, and where they say nothing the settings.
    pub fn open(args: &CompressArgs, set: &TrainOptions, model: &Model, infos: &[TensorInfo]) -> Result<Self, Failure> {
        let (options, seed) = (&args.data.or(&set.data), set.seed.unwrap_or(0));
        let calibrated = args.calibration.unwrap_or(if args.quick { 64 } else { 256 }) as usize;
        let judged = if args.quick { 512 } else { usize::MAX };
        let form = args.boxes.map(BoxForm::from);
        let material = |kind, source: Source| Self {
            kind,
            calibrated: calibrated.min(source.examples()),
            form,
            annotations: None,
            judged,
            source,
        };
        let annotated = args.annotations.as_deref().map(Annotations::read).transpose()?;
        let Some(path) = &options.data else {
            if let Some(annotations) = annotated {
                return Err(unfit(&annotations, "made-up inputs"));
            }
            labels_are_apart(&args.data, "made-up inputs")?;
            let wanted = inputs::Wanted { shapes: args.shapes.clone(), batch: Some(1) };
            let made = (0..SYNTHESISED).map(|number| Ok((inputs::synthesise_other(infos, model, &wanted, number)?, 1)));
            let held = Held { runs: made.collect::<Result<_, Failure>>()?, rows: SYNTHESISED, batched: true };
            return Ok(material(DataKind::Synthesised, Source::Held(held)));
        };
        let given = Held::read(path, infos, args)?;
        if given.is_some() {
            labels_are_apart(&args.data, &format!("the inputs alone that `{}` holds", path.display()))?;
        }
        match (given, annotated) {
            (Some(given), None) => Ok(material(DataKind::Given, Source::Held(given))),
            (Some(given), annotations) => {
                Ok(Self { annotations, ..material(DataKind::Annotated, Source::Held(given)) })
            }
            (None, None) => Ok(material(DataKind::Labelled, labelled(args, options, model, seed)?)),
            (None, Some(annotations)) => {
                // A file of inputs that cannot be read is told as such.
                file::read(path, infos)?;
                Err(unfit(&annotations, &format!("`{}`", path.display())))
            }
        }
    }

    /// Images that a file of inputs holds for a detector; none where the data is something else.
    pub fn images(&self, detector: &Detector) -> Option<usize> {
        match &self.source {
            Source::Held(held) if detector.form() == BoxForm::Found => Some(held.runs.len()),
            Source::Held(held) => Some(held.rows),
            Source::Labelled { .. } => None,
        }
    }

    /// What ranges are observed on.
    pub fn calibrate(&self, examples: usize) -> impl Iterator<Item = Result<Inputs, CompressError>> + '_ {
        self.to_calibrate(examples).map(|example| Ok(example?.inputs))
    }

    /// All of it; `rows` is how many examples went by.
    pub fn calibrate_counted<'a>(
        &'a self,
        rows: &'a Cell<usize>,
    ) -> impl Iterator<Item = Result<Inputs, CompressError>> + 'a {
        self.to_calibrate(usize::MAX).map(|example| {
            let example = example?;
            rows.set(rows.get() + example.rows);
            Ok(example.inputs)
        })
    }

    fn to_calibrate(&self, examples: usize) -> impl Iterator<Item = Result<Example, CompressError>> + '_ {
        let all: Examples<'_> = match &self.source {
            Source::Labelled { calibrate, batch, fixed, .. } => through(calibrate, *batch, *fixed),
            Source::Held(held) => Box::new(
                spread(held.runs.len())
                    .filter_map(|at| held.runs.get(at))
                    .map(|(inputs, rows)| Ok(example(inputs, *rows))),
            ),
        };
        limited(all, examples.min(self.calibrated))
    }

    /// What `step` learns from, in batches of `batch` unless the model fixes another size.
    pub fn learn(&self, step: &Step, batch: usize, seed: u64) -> Result<Loader, Failure> {
        let held;
        let learn = match &self.source {
            Source::Labelled { learn, .. } => learn,
            Source::Held(all) if !all.batched => {
                return Err(Failure::input(
                    "the inputs of the model have no batch, along which training joins examples; export it with one",
                ));
            }
            Source::Held(all) => {
                held = Learn {
                    dataset: Arc::new(columns(&all.runs)?),
                    tokenisation: None,
                    normalise: None,
                    fixed: fixed_batch(&step.data),
                };
                &held
            }
        };
        let wanted = Wanted {
            inputs: step.data.clone(),
            targets: step.targets.clone(),
            normalise: learn.normalise.clone(),
            ..Wanted::default()
        };
        let batch = learn.fixed.unwrap_or_else(|| batch.min(learn.dataset.len())).max(1);
        let fit = fitted(Fit::new(learn.dataset.clone(), wanted))?;
        Ok(Loader::to_learn(fit, Plan { batch, sampling: Sampling::Shuffled, seed }))
    }

    /// The labelled examples to learn from; the part that judges stays out.
    pub fn labelled(&self) -> Option<material::Material> {
        let Source::Labelled { learn, .. } = &self.source else { return None };
        Some(material::Material { train: learn.dataset.clone(), val: None, tokenisation: learn.tokenisation.clone() })
    }

    /// What variants are judged on.
    pub fn judge(&self) -> impl Iterator<Item = Result<Example, CompressError>> + '_ {
        let all: Examples<'_> = match &self.source {
            Source::Labelled { judge, batch, fixed, .. } => through(judge, *batch, *fixed),
            Source::Held(held) => Box::new(held.runs.iter().map(|(inputs, rows)| Ok(example(inputs, *rows)))),
        };
        limited(all, self.judged)
    }
}

/// Refuses parts of labelled data where `data` is none.
fn labels_are_apart(options: &DataOptions, data: &str) -> Outcome {
    let named = options.val.as_ref().map(|_| "--val").or(options.val_fraction.map(|_| "--val-fraction"));
    named.map_or(Ok(()), |option| {
        Err(Failure::input(format!("`{option}` goes with labelled data, not with {data}; leave it out")))
    })
}

fn unfit(annotations: &Annotations, data: &str) -> Failure {
    Failure::input(format!(
        "annotations `{}` need the photos that they tell of, not {data}; name the model's inputs with `--data FILE.npz`",
        annotations.path().display()
    ))
}

fn example(inputs: &Inputs, rows: usize) -> Example {
    Example { inputs: inputs.clone(), rows, labels: Vec::new() }
}

/// Inputs of all runs, one example after the other.
fn columns(all: &[(Inputs, usize)]) -> Result<Columns, Failure> {
    let first = all.first().map(|(inputs, _)| inputs.as_slice()).unwrap_or_default();
    let column = |at: usize, name: &str| {
        let parts: Vec<&Tensor> = all.iter().filter_map(|(inputs, _)| Some(&inputs.get(at)?.1)).collect();
        Ok((name.to_owned(), Role::Input, Tensor::concat_first(&parts).or_input()?))
    };
    let columns: Vec<_> =
        first.iter().enumerate().map(|(at, (name, _))| column(at, name)).collect::<Result<_, Failure>>()?;
    Columns::new(columns).or_input()
}

fn limited(all: Examples<'_>, examples: usize) -> impl Iterator<Item = Result<Example, CompressError>> + '_ {
    let mut seen = 0;
    all.take_while(move |example| {
        let goes_on = seen < examples;
        seen += example.as_ref().map_or(1, |example| example.rows);
        goes_on
    })
}

/// The numbers below `count`, each once, so that however many are taken come from everywhere: files are often sorted.
fn spread(count: usize) -> impl Iterator<Item = usize> {
    let coprime =
        |step: &usize| (2..=*step).all(|factor| !step.is_multiple_of(factor) || !count.is_multiple_of(factor));
    // Steps of the golden section leave no large gap (Knuth, The Art of Computer Programming 3, section 6.4).
    let step = ((count as f64 * 0.618).ceil() as usize..count).find(coprime).unwrap_or(1);
    (0..count).map(move |at| at * step % count)
}

fn data_error(error: impl std::fmt::Display) -> CompressError {
    CompressError::Data(error.to_string())
}

fn through(loader: &Loader, batch: usize, fixed: bool) -> Examples<'_> {
    let batches = match loader.epoch(0, 0) {
        Ok(batches) => batches,
        Err(error) => return Box::new(std::iter::once(Err(data_error(error)))),
    };
    let example = |batch: Result<edgeward_train::data::Batch, _>| {
        let batch = batch.map_err(data_error)?;
        let labels = batch.targets.first().and_then(|(_, tensor)| tensor.values::<i64>().ok().map(|v| v.to_vec()));
        let labels = labels.unwrap_or_default().into_iter().filter_map(|label| u32::try_from(label).ok()).collect();
        Ok(Example { inputs: batch.inputs, rows: batch.rows.len(), labels })
    };
    let whole = move |example: &Result<Example, CompressError>| {
        !fixed || example.as_ref().map_or(true, |example| example.rows == batch)
    };
    Box::new(batches.map(example).filter(whole))
}

/// The batch that a model fixes; none where it takes any.
fn fixed_batch(ports: &[Port]) -> Option<usize> {
    ports.iter().find_map(|port| match port.shape.as_deref()?.first()? {
        Dimension::Fixed(size) => Some(*size),
        _ => None,
    })
}

fn labelled(args: &CompressArgs, options: &DataOptions, model: &Model, seed: u64) -> Result<Source, Failure> {
    let recipe = Recipe::read(model);
    let mut splits = material::parts(options, recipe.classes.clone(), seed)?;
    if let (Splits { train: Some(train), val: None, test: None }, None) = (&splits, options.val_fraction) {
        // What learnt from an example says nothing of others by it.
        if args.anything_learns().is_some() {
            splits = material::held_out(train.clone(), material::VAL_FRACTION, seed)?;
        }
    }
    let Splits { train, val, test } = splits;
    let judge = test.or(val).or_else(|| train.clone());
    let judge = judge.ok_or_else(|| Failure::input("the data holds no examples"))?;
    let metric = args.metric_on(DataKind::Labelled)?;
    if metric.needs_labels() && judge.labels().is_none() {
        return Err(Failure::input(format!(
            "metric `{}` needs classes, and the labels of the data are none: whole numbers from 0 to 65535; `--metric cosine` needs no labels",
            metric.name()
        )));
    }
    let calibrate = train.unwrap_or_else(|| judge.clone());
    let normalise = (options.mean.clone().or(recipe.mean.clone())).zip(options.std.clone().or(recipe.std.clone()));
    let ports = model.inputs();
    let fixed = fixed_batch(&ports);
    // Boxes that are suppressed in the graph are those of one image.
    let batch = fixed.unwrap_or(if args.asks_for_boxes() { 1 } else { BATCH }).max(1);
    let tokenisation = material::kept_tokenisation(judge.as_ref(), &args.model, options, model)?;
    let tokenised = |dataset: Arc<dyn Dataset>| -> Result<Arc<dyn Dataset>, Failure> {
        let Some(tokenisation) = &tokenisation else { return Ok(dataset) };
        Ok(Arc::new(tokenise(dataset.as_ref(), tokenisation).or_input()?))
    };
    let (calibrate, judge) = (tokenised(calibrate)?, tokenised(judge)?);
    let learn =
        Learn { dataset: calibrate.clone(), tokenisation: tokenisation.clone(), normalise: normalise.clone(), fixed };
    let fit = |dataset: Arc<dyn Dataset>| -> Result<Fit, Failure> {
        let target = Port {
            name: "target".to_owned(),
            dtype: Some(DataType::Int64),
            shape: Some(vec![Dimension::Symbol("batch".to_owned())]),
        };
        let normalise = normalise.clone();
        let wanted = Wanted { inputs: ports.clone(), targets: vec![target], normalise, ..Wanted::default() };
        fitted(Fit::new(dataset, wanted))
    };
    let plan = |sampling| Plan { batch, sampling, seed: args.seed };
    Ok(Source::Labelled {
        calibrate: Loader::to_judge(fit(calibrate)?, plan(Sampling::Shuffled)),
        judge: Loader::to_judge(fit(judge)?, plan(Sampling::Sequential)),
        learn: Box::new(learn),
        batch,
        fixed: fixed.is_some(),
    })
}

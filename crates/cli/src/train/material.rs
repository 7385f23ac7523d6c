//! The data of a run: opened, split, its texts through a tokenizer; and what a trained model keeps of how it was read.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use edgeward_graph::{DataType, Dimension, Model, proto::StringStringEntryProto};
use edgeward_train::{
    data::{DataError, Dataset, OpenOptions, Role, Splits, Tokenisation, open, split_fraction, tokenise},
    trainer::Task,
};
use serde::{Deserialize, Serialize};

use super::{
    options::{DataOptions, TrainOptions},
    plan::Planned,
};
use crate::{
    engines,
    failure::{Failure, OrInput as _},
};

/// Part for judging where the data has none of its own.
pub const VAL_FRACTION: f64 = 0.1;
/// Pieces of a vocabulary where the model does not say how many it takes.
const VOCABULARY: usize = 8000;

/// What there is to learn from and to judge by.
pub struct Material {
    /// To learn from.
    pub train: Arc<dyn Dataset>,
    /// To judge by.
    pub val: Option<Arc<dyn Dataset>>,
    /// What made numbers of its texts.
    pub tokenisation: Option<Tokenisation>,
}

fn wrong(error: DataError) -> Failure {
    Failure::Input(error.into())
}

/// How a file is read.
fn open_options(options: &DataOptions, classes: Option<Vec<String>>) -> OpenOptions {
    OpenOptions {
        target: options.target.clone(),
        labels: options.labels.clone(),
        texts: options.text.clone().unwrap_or_default(),
        header: options.header,
        classes,
    }
}

/// The data set that `--data` names.
fn path(options: &DataOptions) -> Result<&PathBuf, Failure> {
    options
        .data
        .as_ref()
        .ok_or_else(|| Failure::input("no data; name it with `--data PATH` or `path` in `[train.data]`"))
}

/// The parts of the data that options name: what `--val` and `--val-fraction` say goes before the parts that the data has.
pub fn parts(options: &DataOptions, classes: Option<Vec<String>>, seed: u64) -> Result<Splits, Failure> {
    let splits = open(path(options)?, &open_options(options, classes.clone())).map_err(wrong)?;
    let no_train = || Failure::input("the data has no part to learn from");
    match (&options.val, options.val_fraction) {
        (Some(path), _) => {
            let known = classes.or_else(|| splits.train.as_ref()?.classes().map(<[String]>::to_vec));
            let held = open(path, &OpenOptions { labels: None, ..open_options(options, known) }).map_err(wrong)?;
            Ok(Splits { train: splits.train, val: held.val.or(held.train).or(held.test), test: None })
        }
        (None, Some(0.0)) => Ok(Splits { val: None, test: None, ..splits }),
        (None, Some(fraction)) => held_out(splits.train.ok_or_else(no_train)?, fraction, seed),
        (None, None) => Ok(splits),
    }
}

/// A part of what there is to learn from, each class with its share, held out to judge by.
pub fn held_out(train: Arc<dyn Dataset>, fraction: f64, seed: u64) -> Result<Splits, Failure> {
    let (train, val) = split_fraction(train, fraction, seed).map_err(wrong)?;
    Ok(Splits { train: Some(train), val: Some(val), test: None })
}

impl Material {
    /// Opens what the options name.
    pub fn open(model: &Model, options: &TrainOptions) -> Result<Self, Failure> {
        let (data, seed) = (&options.data, options.seed.unwrap_or(0));
        let mut splits = parts(data, None, seed)?;
        if let (Some(train), None, None) = (&splits.train, &splits.val, data.val_fraction) {
            splits = held_out(train.clone(), VAL_FRACTION, seed)?;
        }
        let train = splits.train.ok_or_else(|| Failure::input("the data has no part to learn from"))?;
        let val = splits.val;
        let tokenisation =
            if has_text(train.as_ref()) { Some(tokenisation(model, data, train.as_ref())?) } else { None };
        let Some(tokenisation) = tokenisation else { return Ok(Self { train, val, tokenisation: None }) };
        let numbers = |dataset: Arc<dyn Dataset>| -> Result<Arc<dyn Dataset>, Failure> {
            Ok(Arc::new(tokenise(dataset.as_ref(), &tokenisation).map_err(wrong)?))
        };
        let (train, val) = (numbers(train)?, val.map(numbers).transpose()?);
        Ok(Self { train, val, tokenisation: Some(tokenisation) })
    }
}

/// True where inputs are texts.
fn has_text(dataset: &dyn Dataset) -> bool {
    dataset.fields().iter().any(|field| field.role == Role::Input && field.dtype == DataType::String)
}

fn tokenisation(model: &Model, options: &DataOptions, train: &dyn Dataset) -> Result<Tokenisation, Failure> {
    let (length, takes) = (tokens(model, options)?, vocabulary(model));
    let made = match &options.tokenizer {
        Some(path) => Tokenisation::read(path, length).map_err(wrong)?,
        None => {
            let pieces = options.vocabulary.or(takes).unwrap_or(VOCABULARY);
            Tokenisation::train(train, pieces, length).map_err(wrong)?
        }
    };
    match takes.filter(|takes| made.vocabulary() > *takes) {
        Some(takes) => {
            let has = made.vocabulary();
            Err(Failure::input(format!("the tokenizer has `{has}` pieces, the model takes `{takes}`")))
        }
        None => Ok(made),
    }
}

/// What made numbers of a trained model's texts, where the data has any: the tokenizer that options name, else the one beside the model's file.
pub fn kept_tokenisation(
    dataset: &dyn Dataset,
    file: &Path,
    options: &DataOptions,
    model: &Model,
) -> Result<Option<Tokenisation>, Failure> {
    if !has_text(dataset) {
        return Ok(None);
    }
    let tokenizer = options.tokenizer.clone().unwrap_or_else(|| engines::beside(file, "tokenizer.json"));
    let read = Tokenisation::read(&tokenizer, tokens(model, options)?);
    read.map(Some).context("the data is text; name its tokenizer with `--tokenizer FILE`").or_input()
}

/// Tokens of a text, by the model's first input of integers.
fn tokens(model: &Model, options: &DataOptions) -> Result<usize, Failure> {
    let sized = model.inputs().into_iter().find_map(|port| match port.shape.as_deref() {
        Some([_, Dimension::Fixed(length)]) if port.dtype == Some(DataType::Int64) => Some(*length),
        _ => None,
    });
    sized.or(options.tokens).ok_or_else(|| {
        Failure::input(
            "the data is text, and the model does not say how many tokens it takes; say it with `--tokens N`",
        )
    })
}

/// Rows of the table that the model looks its tokens up in.
fn vocabulary(model: &Model) -> Option<usize> {
    let inputs = model.inputs();
    let graph = model.graph();
    graph.node.iter().filter(|node| node.op_type() == "Gather").find_map(|node| {
        let [table, ids] = node.input.as_slice() else { return None };
        inputs.iter().find(|port| port.name == *ids)?;
        let table = graph.initializer.iter().find(|tensor| tensor.name() == table)?;
        usize::try_from(*table.dims.first()?).ok()
    })
}

/// How the data of a model is read, kept in the model itself so that it can be judged without being told again.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Recipe {
    /// Names of the classes.
    pub classes: Option<Vec<String>>,
    /// Mean of each channel.
    pub mean: Option<Vec<f32>>,
    /// Standard deviation of each channel.
    pub std: Option<Vec<f32>>,
    /// What the outputs are.
    pub task: Option<Task>,
}

/// Key of the recipe among a model's metadata.
const KEY: &str = "edgeward.data";

impl Recipe {
    /// What a run knows.
    pub fn of(material: &Material, planned: &Planned) -> Self {
        Self {
            classes: material.train.classes().map(<[String]>::to_vec),
            mean: planned.data().mean.clone(),
            std: planned.data().std.clone(),
            task: Some(planned.task),
        }
    }

    /// Reads it from a model; nothing where there is none that can be read.
    pub fn read(model: &Model) -> Self {
        let entry = model.proto().metadata_props.iter().find(|entry| entry.key() == KEY);
        entry.and_then(|entry| serde_json::from_str(entry.value()).ok()).unwrap_or_default()
    }

    /// Writes it into a model.
    pub fn write(&self, model: &mut Model) -> Result<(), Failure> {
        let entries = &mut model.proto_mut().metadata_props;
        entries.retain(|entry| entry.key() != KEY);
        entries.push(StringStringEntryProto { key: Some(KEY.to_owned()), value: Some(serde_json::to_string(self)?) });
        Ok(())
    }
}

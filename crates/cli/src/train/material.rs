//! The data of a run: opened, split, its texts through a tokenizer; and what a trained model keeps of how it was read.

use std::{path::PathBuf, sync::Arc};

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
use crate::failure::Failure;

/// Part for judging where the data has none of its own.
const VAL_FRACTION: f64 = 0.1;
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
pub fn open_options(options: &DataOptions, classes: Option<Vec<String>>) -> OpenOptions {
    OpenOptions {
        target: options.target.clone(),
        labels: options.labels.clone(),
        texts: options.text.clone().unwrap_or_default(),
        header: options.header,
        classes,
    }
}

/// The data set that `--data` names.
pub fn path(options: &DataOptions) -> Result<&PathBuf, Failure> {
    options
        .data
        .as_ref()
        .ok_or_else(|| Failure::input("no data; name it with `--data PATH` or `path` in `[train.data]`"))
}

impl Material {
    /// Opens what the options name.
    pub fn open(model: &Model, options: &TrainOptions) -> Result<Self, Failure> {
        let data = &options.data;
        let Splits { train, val, .. } = open(path(data)?, &open_options(data, None)).map_err(wrong)?;
        let train = train.ok_or_else(|| Failure::input("the data has no part to learn from"))?;
        let (train, val) = match (&data.val, val) {
            (Some(path), _) => {
                let known = open_options(data, train.classes().map(<[String]>::to_vec));
                let splits = open(path, &OpenOptions { labels: None, ..known }).map_err(wrong)?;
                (train, splits.val.or(splits.train).or(splits.test))
            }
            (None, Some(val)) if data.val_fraction.is_none() => (train, Some(val)),
            _ if data.val_fraction == Some(0.0) => (train, None),
            _ => {
                let fraction = data.val_fraction.unwrap_or(VAL_FRACTION);
                let (train, val) = split_fraction(train, fraction, options.seed.unwrap_or(0)).map_err(wrong)?;
                (train, Some(val))
            }
        };
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
pub fn has_text(dataset: &dyn Dataset) -> bool {
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

/// Tokens of a text, by the model's first input of integers.
pub fn tokens(model: &Model, options: &DataOptions) -> Result<usize, Failure> {
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

//! Inputs alone, without labels: read from a file and cut into runs of the model.

use std::path::Path;

use edgeward_compress::{observe::Inputs, pictures};
use edgeward_engine::{Dim, TensorInfo};
use edgeward_graph::Tensor;

use super::CompressArgs;
use crate::{
    failure::{Failure, OrInput as _},
    inputs::file,
};

/// Inputs in memory.
pub struct Held {
    /// Of each run, with the examples in them.
    pub runs: Vec<(Inputs, usize)>,
    /// Examples of the file; those of a last batch that is not full are in no run.
    pub rows: usize,
    /// Whether examples are the first dimension of inputs, and can be joined along it.
    pub batched: bool,
}

impl Held {
    /// Reads a file; none where it holds something else, which boxes cannot be told of.
    pub fn read(path: &Path, infos: &[TensorInfo], args: &CompressArgs) -> Result<Option<Self>, Failure> {
        if !path.extension().is_some_and(|ending| ending == "npz" || ending == "json") {
            return Ok(None);
        }
        let all = match file::read(path, infos) {
            Ok(all) => all,
            Err(failure) if args.asks_for_boxes() => return Err(failure),
            Err(_) => return Ok(None),
        };
        if all.len() != infos.len() {
            let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
            let text = format!("`{}` holds {} of {} inputs", path.display(), names.join(", "), infos.len());
            return Err(Failure::input(text));
        }
        let rows = rows(&all);
        if all.iter().any(|(name, tensor)| is_stacked(tensor, info(infos, name))) {
            let whole = rows.filter(|_| all.iter().all(|(name, tensor)| is_stacked(tensor, info(infos, name))));
            return Ok(Some(Self::stacked(&all, whole.ok_or_else(|| uneven(path, &all))?)?));
        }
        let fixed = infos.iter().find_map(fixed);
        if args.asks_for_boxes() {
            match (pictures(&all), rows) {
                // Channels are no examples.
                (Some(1), _) if fixed.is_none_or(|size| rows == Some(size)) => return Ok(Some(Self::picture(all))),
                (Some(2..), None) => return Err(uneven(path, &all)),
                _ => {}
            }
        }
        if rows == Some(0) {
            return Err(Failure::input(format!("`{}` holds no examples", path.display())));
        }
        match (rows, fixed.unwrap_or(1)) {
            (Some(rows), size) if size > 0 && rows >= size => Ok(Some(Self::batches(&all, rows, size)?)),
            _ => Ok(Some(Self::one(all))),
        }
    }

    /// All in one run.
    fn one(inputs: Inputs) -> Self {
        Self { runs: vec![(inputs, 1)], rows: 1, batched: true }
    }

    /// A picture alone, which may have no batch.
    fn picture(inputs: Inputs) -> Self {
        let batched = inputs.iter().any(|(_, tensor)| tensor.shape().len() == 4);
        Self { batched, ..Self::one(inputs) }
    }

    /// Runs of `size` examples, as many as are full.
    fn batches(all: &Inputs, rows: usize, size: usize) -> Result<Self, Failure> {
        let count = rows / size;
        let mut sizes = vec![size; count];
        let rest = rows % size;
        sizes.extend((rest > 0).then_some(rest));
        let mut runs = cut(all, &sizes)?;
        runs.truncate(count);
        Ok(Self { runs: runs.into_iter().map(|inputs| (inputs, size)).collect(), rows, batched: true })
    }

    /// A run of each example for a model that has no batch: the dimension that they are stacked by goes.
    fn stacked(all: &Inputs, rows: usize) -> Result<Self, Failure> {
        let one = |(name, tensor): (String, Tensor)| {
            let shape = tensor.shape().get(1..).unwrap_or_default().to_vec();
            Ok((name, tensor.reshaped(shape).or_input()?))
        };
        let run = |inputs: Inputs| Ok((inputs.into_iter().map(one).collect::<Result<_, Failure>>()?, 1));
        let runs = cut(all, &vec![1; rows])?.into_iter().map(run).collect::<Result<_, Failure>>()?;
        Ok(Self { runs, rows, batched: false })
    }
}

/// Parts of all inputs along their first dimension.
fn cut(all: &Inputs, sizes: &[usize]) -> Result<Vec<Inputs>, Failure> {
    let mut runs = vec![Inputs::new(); sizes.len()];
    for (name, tensor) in all {
        let parts = tensor.split_first(sizes).or_input()?;
        runs.iter_mut().zip(parts).for_each(|(run, part)| run.push((name.clone(), part)));
    }
    Ok(runs)
}

/// The first dimension that all have in common.
fn rows(all: &Inputs) -> Option<usize> {
    let mut all = all.iter().map(|(_, tensor)| tensor.shape().first().copied());
    let first = all.next()??;
    all.all(|rows| rows == Some(first)).then_some(first)
}

fn info<'a>(infos: &'a [TensorInfo], name: &str) -> Option<&'a TensorInfo> {
    infos.iter().find(|info| info.name == name)
}

fn fixed(info: &TensorInfo) -> Option<usize> {
    match info.shape.as_deref()?.first()? {
        Dim::Fixed(size) => Some(*size),
        _ => None,
    }
}

/// Whether an array has one dimension more than the model's input.
fn is_stacked(tensor: &Tensor, info: Option<&TensorInfo>) -> bool {
    let declared = info.and_then(|info| info.shape.as_ref());
    declared.is_some_and(|shape| tensor.shape().len() == shape.len() + 1)
}

fn uneven(path: &Path, all: &Inputs) -> Failure {
    let shapes: Vec<String> = all.iter().map(|(name, tensor)| format!("`{name}` {:?}", tensor.shape())).collect();
    Failure::input(format!(
        "`{}` holds {}: examples are the first dimension, in which these differ; give as many of each input",
        path.display(),
        shapes.join(", ")
    ))
}

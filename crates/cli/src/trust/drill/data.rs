//! Rows for attacks: the operator's own data, or made up.

use std::path::Path;

use edgeward_engine::TensorInfo;
use edgeward_graph::{DataType, Tensor};
use rand::{RngExt as _, rngs::StdRng};

use super::model::Interface;
use crate::{
    failure::{Failure, OrInput as _},
    inputs::file,
};

/// Rows of one input.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// Each as the model takes it.
    pub all: Vec<Vec<f32>>,
    /// Least and largest value.
    pub range: (f32, f32),
}

impl Rows {
    /// Reads `.npz` or `.json` with rows for a model of one input.
    pub fn read(path: &Path, model: &Interface) -> Result<Self, Failure> {
        let wrong = |why: String| Failure::input(format!("`{}`: {why}", path.display()));
        let [input] = model.inputs.as_slice() else {
            return Err(wrong(format!(
                "`{}` takes {} inputs; data is read for models with one",
                model.name,
                model.inputs.len()
            )));
        };
        let dtype = edgeward_serve::from_wire_type(&input.datatype).unwrap_or(DataType::Float32);
        let info = TensorInfo { name: input.name.clone(), dtype, shape: None };
        let inputs = file::read(path, &[info])?;
        let (_, tensor) = inputs.first().ok_or_else(|| wrong("holds nothing".to_owned()))?;
        let values = floats(tensor).or_input()?;
        let width: usize = input.shape(1).iter().product();
        if width == 0 || values.is_empty() || !values.len().is_multiple_of(width) {
            return Err(wrong(format!("{} values are no rows of {width}, which `{}` takes", values.len(), model.name)));
        }
        if let Some(bad) = values.iter().find(|value| !value.is_finite()) {
            return Err(wrong(format!("holds `{bad}`; expected finite numbers")));
        }
        let range =
            values.iter().fold((f32::MAX, f32::MIN), |(least, most), &value| (least.min(value), most.max(value)));
        Ok(Self { all: values.chunks(width).map(<[f32]>::to_vec).collect(), range })
    }

    /// Made-up rows: even noise from 0 to 1, of which half are made dark, so that some are sparse as images and texts are.
    pub fn noise(count: usize, width: usize, rng: &mut StdRng) -> Self {
        let row = |rng: &mut StdRng| {
            let share: f32 = rng.random();
            (0..width).map(|_| if rng.random::<f32>() < share { rng.random() } else { 0.0 }).collect()
        };
        Self { all: (0..count).map(|_| row(rng)).collect(), range: (0.0, 1.0) }
    }

    /// From the least value to the largest.
    pub fn span(&self) -> f32 {
        (self.range.1 - self.range.0).max(f32::EPSILON)
    }
}

fn floats(tensor: &Tensor) -> anyhow::Result<Vec<f32>> {
    Ok(match tensor.dtype() {
        DataType::Float32 => tensor.values::<f32>()?.to_vec(),
        DataType::Float64 => tensor.values::<f64>()?.iter().map(|&value| value as f32).collect(),
        DataType::UInt8 => tensor.values::<u8>()?.iter().map(|&value| f32::from(value)).collect(),
        other => anyhow::bail!("holds {other}; expected floats or bytes"),
    })
}

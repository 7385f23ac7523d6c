//! Runs of a model before it answers its first caller, as `model_warmup` of its configuration asks.

use std::path::Path;

use bytes::Bytes;
use edgeward_engine::{RunOptions, Session};
use edgeward_graph::{DataType, Tensor};

use crate::{
    core::{
        health::Sample,
        repository::{is_name, read_named},
    },
    proto::{
        ModelConfig, ModelWarmup,
        model_warmup::{Input, input::InputDataType},
    },
    types::from_config_type,
};

/// Bytes of one sample's input at most; more is a mistake in the configuration.
const INPUT_BYTES_MAX: usize = 1 << 30;
/// Runs of one sample at most.
const RUNS_MAX: u32 = 10_000;

/// Runs every sample and returns the inputs of the first; an error names the one that fails. Files of samples lie in
/// `files`.
pub(super) fn run(config: &ModelConfig, session: &dyn Session, files: &Path) -> Result<Option<Sample>, String> {
    let mut first = None;
    for sample in &config.model_warmup {
        let of = |text: String| format!("warm-up `{}`: {text}", sample.name);
        let inputs = inputs(config, sample, files).map_err(of)?;
        let named: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        if sample.count > RUNS_MAX {
            return Err(of(format!("`count` is {}, the limit is {RUNS_MAX}", sample.count)));
        }
        for _ in 0..sample.count.max(1) {
            session.run(&named, RunOptions::default()).map_err(|e| of(e.to_string()))?;
        }
        first.get_or_insert(inputs);
    }
    Ok(first)
}

fn inputs(config: &ModelConfig, sample: &ModelWarmup, files: &Path) -> Result<Sample, String> {
    let batched = config.max_batch_size > 0;
    if batched && i64::from(sample.batch_size) > i64::from(config.max_batch_size) {
        return Err(format!("`batch_size` is {}, `max_batch_size` {}", sample.batch_size, config.max_batch_size));
    }
    let batch = batched.then_some(sample.batch_size.max(1) as usize);
    let mut named: Vec<_> = sample.inputs.iter().collect();
    named.sort_by_key(|(name, _)| name.as_str());
    let inputs = named.into_iter().map(|(name, input)| {
        let tensor = tensor(input, batch, files).map_err(|text| format!("input `{name}`: {text}"))?;
        Ok((name.clone(), tensor))
    });
    inputs.collect()
}

fn tensor(input: &Input, batch: Option<usize>, files: &Path) -> Result<Tensor, String> {
    let dtype = from_config_type(input.data_type())
        .ok_or_else(|| format!("data type {} has no values", input.data_type().as_str_name()))?;
    let mut shape: Vec<usize> = batch.into_iter().collect();
    for &size in &input.dims {
        let size = usize::try_from(size).map_err(|_| format!("dims {:?}, expected sizes of 0 or more", input.dims))?;
        shape.push(size);
    }
    let count = counted(dtype, &shape)?;
    match &input.input_data_type {
        Some(InputDataType::ZeroData(true)) => filled(dtype, shape, count, |_| 0),
        Some(InputDataType::RandomData(true)) => {
            let mut state = 0x9e37_79b9_7f4a_7c15u64;
            filled(dtype, shape, count, |bound| {
                // xorshift64; speed and spread are all that matters here.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % bound
            })
        }
        Some(InputDataType::InputDataFile(name)) => from_file(dtype, shape, &files.join(name), name),
        _ => Err("has no data, expected `zero_data`, `random_data` or `input_data_file`".to_owned()),
    }
}

/// Zeros, as `zero_data` makes them.
pub(super) fn zeros(dtype: DataType, shape: Vec<usize>) -> Result<Tensor, String> {
    let count = counted(dtype, &shape)?;
    filled(dtype, shape, count, |_| 0)
}

/// Elements of a shape; an error where they take more than a sample may.
fn counted(dtype: DataType, shape: &[usize]) -> Result<usize, String> {
    let count = edgeward_graph::element_count(shape).map_err(|e| e.to_string())?;
    if dtype.byte_len(count) > INPUT_BYTES_MAX {
        return Err(format!("shape {shape:?} takes {} bytes, the limit is {INPUT_BYTES_MAX}", dtype.byte_len(count)));
    }
    Ok(count)
}

/// Small whole numbers below the bound that `next` is given, so that they are valid in every type.
fn filled(
    dtype: DataType,
    shape: Vec<usize>,
    count: usize,
    mut next: impl FnMut(u64) -> u64,
) -> Result<Tensor, String> {
    use DataType::{BFloat16, Bool, Float16, Float32, Float64, String};
    let bound = if dtype == Bool { 2 } else { 100 };
    let values = (0..count).map(|_| next(bound) as u8);
    let tensor = match dtype {
        String => Tensor::from_strings(shape, values.map(|v| Bytes::from(v.to_string())).collect()),
        Float32 => Tensor::from_vec(shape, values.map(|v| f32::from(v) / 100.0).collect()),
        Float64 => Tensor::from_vec(shape, values.map(|v| f64::from(v) / 100.0).collect()),
        Float16 => Tensor::from_vec(shape, values.map(|v| half::f16::from_f32(f32::from(v) / 100.0)).collect()),
        BFloat16 => Tensor::from_vec(shape, values.map(|v| half::bf16::from_f32(f32::from(v) / 100.0)).collect()),
        _ => {
            let width = dtype.byte_len(1);
            let mut bytes = vec![0u8; dtype.byte_len(count)];
            bytes
                .chunks_mut(width)
                .zip(values)
                .for_each(|(chunk, v)| chunk.first_mut().into_iter().for_each(|b| *b = v));
            Tensor::from_raw(dtype, shape, bytes.into())
        }
    };
    tensor.map_err(|e| e.to_string())
}

/// Raw values, or for strings what the binary tensor extension writes: a length of 4 bytes before each.
fn from_file(dtype: DataType, shape: Vec<usize>, path: &Path, name: &str) -> Result<Tensor, String> {
    if !is_name(name) {
        return Err(format!(
            "`input_data_file` is `{name}`, expected the name of a file in the model's folder `warmup`"
        ));
    }
    let shown = format!("`warmup/{name}`");
    let bytes = read_named(path, &shown, INPUT_BYTES_MAX as u64)?;
    crate::json::from_binary(dtype, shape, bytes.into()).map_err(|text| format!("{shown}: {text}"))
}

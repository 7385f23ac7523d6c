//! The IDX format of MNIST (yann.lecun.com/exdb/mnist): magic `00 00 TYPE RANK`, big-endian sizes, big-endian values.

use std::path::Path;

use edgeward_graph::{DataType, Tensor};

use super::{DataError, record};

/// Reads an array, packed by gzip or not.
pub(crate) fn read(path: &Path) -> Result<Tensor, DataError> {
    let bytes = record::read(path)?;
    parse(&bytes).map_err(|reason| DataError::malformed(path, reason))
}

fn parse(bytes: &[u8]) -> Result<Tensor, String> {
    let cut = || "is cut off".to_owned();
    let Some(([0, 0, kind, rank], rest)) = bytes.split_first_chunk::<4>() else {
        return Err("is no IDX file; expected one that begins with two zero bytes".to_owned());
    };
    let (dims, mut data) = rest.split_at_checked(usize::from(*rank) * 4).ok_or_else(cut)?;
    let size = |word: &[u8; 4]| u32::from_be_bytes(*word) as usize;
    let shape: Vec<usize> = dims.as_chunks::<4>().0.iter().map(size).collect();
    let count = edgeward_graph::element_count(&shape).map_err(|error| error.to_string())?;
    let dtype = match kind {
        0x08 => DataType::UInt8,
        0x09 => DataType::Int8,
        0x0b => DataType::Int16,
        0x0c => DataType::Int32,
        0x0d => DataType::Float32,
        0x0e => DataType::Float64,
        other => return Err(format!("has the unknown element type {other:#04x}")),
    };
    let width = dtype.byte_len(1);
    data = data.get(..count * width).ok_or_else(cut)?;
    let mut little = data.to_vec();
    little.chunks_exact_mut(width).for_each(<[u8]>::reverse);
    Tensor::from_raw(dtype, shape, little.into()).map_err(|error| error.to_string())
}

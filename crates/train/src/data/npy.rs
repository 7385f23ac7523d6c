//! NumPy's `.npy` and `.npz`: little-endian arrays in C order, and the names that say which split and which field each is.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::Path,
};

use edgeward_graph::{DataType, Tensor};
use npyz::{DType, Endianness, NpyHeader, Order, TypeChar};

use super::{DataError, record};

/// Reads one array.
pub(crate) fn read(path: &Path) -> Result<Tensor, DataError> {
    let file = File::open(path).map_err(DataError::io("open", path))?;
    array(&mut BufReader::new(file), record::BYTES_MAX).map_err(|why| why.at(path, ""))
}

/// Reads every array, by name and in the order of the file.
pub(crate) fn read_all(path: &Path) -> Result<Vec<(String, Tensor)>, DataError> {
    let file = File::open(path).map_err(DataError::io("open", path))?;
    let broken = |error: zip::result::ZipError| DataError::malformed(path, format!("is no `.npz` file: {error}"));
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(broken)?;
    let mut left = record::BYTES_MAX;
    let mut arrays = Vec::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(broken)?;
        let name = entry.name().map_err(broken)?.trim_end_matches(".npy").to_owned();
        let tensor = array(&mut entry, left).map_err(|why| why.at(path, &name))?;
        left = left.saturating_sub(tensor.byte_len() as u64);
        arrays.push((name, tensor));
    }
    Ok(arrays)
}

enum Why {
    Broken(String),
    TooLarge,
}

impl Why {
    fn at(self, path: &Path, array: &str) -> DataError {
        match self {
            Self::TooLarge => DataError::Limit { path: path.to_owned(), limit: record::BYTES_MAX },
            Self::Broken(reason) if array.is_empty() => DataError::malformed(path, reason),
            Self::Broken(reason) => DataError::malformed(path, format!("array `{array}` {reason}")),
        }
    }
}

fn array(reader: &mut impl Read, limit: u64) -> Result<Tensor, Why> {
    let broken = |reason: String| Why::Broken(reason);
    let header = NpyHeader::from_reader(&mut *reader).map_err(|error| broken(format!("is no NumPy array: {error}")))?;
    let dtype = dtype(&header.dtype()).map_err(broken)?;
    // One dimension has no order.
    if header.order() == Order::Fortran && header.shape().len() > 1 {
        return Err(broken("is in Fortran order; save `numpy.ascontiguousarray(array)`".to_owned()));
    }
    let shape: Option<Vec<usize>> = header.shape().iter().map(|&dim| usize::try_from(dim).ok()).collect();
    let counted = shape.as_ref().and_then(|shape| edgeward_graph::element_count(shape).ok());
    let (Some(shape), Some(count)) = (shape, counted) else { return Err(Why::TooLarge) };
    let size = dtype.byte_len(count) as u64;
    if size > limit {
        return Err(Why::TooLarge);
    }
    // Grows with what is there, not with what the header promises.
    let mut bytes = Vec::new();
    reader.take(size).read_to_end(&mut bytes).map_err(|error| broken(format!("cannot be read: {error}")))?;
    Tensor::from_raw(dtype, shape, bytes.into()).map_err(|error| broken(format!("is cut off: {error}")))
}

fn dtype(descr: &DType) -> Result<DataType, String> {
    let refuse = || format!("has the element type {}; expected little-endian numbers or bool", descr.descr());
    let DType::Plain(plain) = descr else { return Err(refuse()) };
    if plain.endianness() == Endianness::Big && plain.size_field() > 1 {
        return Err(refuse());
    }
    Ok(match (plain.type_char(), plain.size_field()) {
        (TypeChar::Float, 4) => DataType::Float32,
        (TypeChar::Float, 8) => DataType::Float64,
        (TypeChar::Bool, 1) => DataType::Bool,
        (TypeChar::Int, 1) => DataType::Int8,
        (TypeChar::Int, 2) => DataType::Int16,
        (TypeChar::Int, 4) => DataType::Int32,
        (TypeChar::Int, 8) => DataType::Int64,
        (TypeChar::Uint, 1) => DataType::UInt8,
        (TypeChar::Uint, 2) => DataType::UInt16,
        (TypeChar::Uint, 4) => DataType::UInt32,
        (TypeChar::Uint, 8) => DataType::UInt64,
        _ => return Err(refuse()),
    })
}

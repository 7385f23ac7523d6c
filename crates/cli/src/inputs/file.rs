//! Inputs from a file: NumPy's `.npz`, or JSON as `{"name": [[…]]}` or as a body of the Open Inference Protocol.

use std::{fs::File, io::Read as _, path::Path};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use edgeward_engine::TensorInfo;
use edgeward_graph::{DataType, Tensor};
use serde_json::Value;

use super::{Inputs, MAX_BYTES};
use crate::failure::{Failure, OrInput as _};

/// A JSON file above this is refused; `.npz` is meant for more.
const MAX_JSON_BYTES: u64 = 1 << 30;
const MAX_NESTING: usize = 32;

/// Reads the inputs that the model has; another name in the file is an error.
pub fn read(path: &Path, infos: &[TensorInfo]) -> Result<Inputs, Failure> {
    let load = || match path.extension().and_then(|extension| extension.to_str()) {
        Some("npz") => read_npz(path),
        Some("json") => read_json(path, infos),
        _ => bail!("expected a file that ends in `.npz` or `.json`"),
    };
    let inputs = load().with_context(|| format!("input file `{}`", path.display())).or_input()?;
    if let Some((name, _)) = inputs.iter().find(|(name, _)| infos.iter().all(|info| info.name != *name)) {
        let names: Vec<_> = infos.iter().map(|info| format!("`{}`", info.name)).collect();
        return Err(Failure::input(format!(
            "input file `{}`: the model has no input `{name}`; it has {}",
            path.display(),
            names.join(", ")
        )));
    }
    Ok(inputs)
}

fn read_npz(path: &Path) -> anyhow::Result<Inputs> {
    let mut archive = zip::ZipArchive::new(File::open(path)?)?;
    let mut left = MAX_BYTES as u64;
    let mut inputs = Inputs::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index)?;
        let name = entry.name()?.trim_end_matches(".npy").to_owned();
        let mut bytes = Vec::new();
        let read = entry.by_ref().take(left + 1).read_to_end(&mut bytes)? as u64;
        left = left.checked_sub(read).context("the arrays are too large together")?;
        inputs.push((name.clone(), parse_npy(bytes.into()).with_context(|| format!("array `{name}`"))?));
    }
    Ok(inputs)
}

/// NumPy's format, versions 1 to 3 (numpy.lib.format): magic, version, header length, a Python literal, data.
fn parse_npy(bytes: Bytes) -> anyhow::Result<Tensor> {
    let fixed = bytes.get(..8).filter(|start| start.starts_with(b"\x93NUMPY")).context("is no NumPy array")?;
    let wide = fixed.get(6).is_some_and(|&major| major >= 2);
    let (length, start) = if wide {
        let field = bytes.get(8..12).context("is cut off")?;
        (u32::from_le_bytes(field.try_into()?) as usize, 12)
    } else {
        let field = bytes.get(8..10).context("is cut off")?;
        (usize::from(u16::from_le_bytes(field.try_into()?)), 10)
    };
    let header = bytes.get(start..start + length).context("is cut off")?;
    let header = std::str::from_utf8(header).context("has a header that is no text")?;
    if header.contains("'fortran_order': True") {
        bail!("is in Fortran order; save `numpy.ascontiguousarray(array)`");
    }
    let dtype = npy_dtype(between(header, "'descr': '", "'").context("has a header without `descr`")?)?;
    let shape = between(header, "'shape': (", ")").context("has a header without `shape`")?;
    let shape: Result<Vec<usize>, _> =
        shape.split(',').map(str::trim).filter(|dim| !dim.is_empty()).map(str::parse).collect();
    Ok(Tensor::from_raw(dtype, shape.context("has a header with a wrong `shape`")?, bytes.slice(start + length..))?)
}

fn npy_dtype(descr: &str) -> anyhow::Result<DataType> {
    Ok(match descr {
        "<f4" => DataType::Float32,
        "<f8" => DataType::Float64,
        "<f2" => DataType::Float16,
        "|b1" => DataType::Bool,
        "|i1" => DataType::Int8,
        "<i2" => DataType::Int16,
        "<i4" => DataType::Int32,
        "<i8" => DataType::Int64,
        "|u1" => DataType::UInt8,
        "<u2" => DataType::UInt16,
        "<u4" => DataType::UInt32,
        "<u8" => DataType::UInt64,
        other => bail!("has the element type `{other}`; expected little-endian floats, integers or bool"),
    })
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = text.split_once(before)?.1;
    Some(rest.split_once(after)?.0)
}

fn read_json(path: &Path, infos: &[TensorInfo]) -> anyhow::Result<Inputs> {
    let mut text = String::new();
    File::open(path)?.take(MAX_JSON_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_JSON_BYTES {
        bail!("is larger than {MAX_JSON_BYTES} bytes; use `.npz`");
    }
    let value: Value = serde_json::from_str(&text)?;
    let object = value.as_object().context("is no JSON object")?;
    let mut inputs = Inputs::new();
    for (name, shape, data) in entries(object)? {
        let Some(info) = infos.iter().find(|info| info.name == name) else {
            bail!("the model has no input `{name}`");
        };
        inputs.push((name.to_owned(), tensor(info.dtype, shape, data).with_context(|| format!("input `{name}`"))?));
    }
    Ok(inputs)
}

type Entry<'a> = (&'a str, Option<Vec<usize>>, &'a Value);

/// Name, shape where it stands beside the data, and data of every input.
fn entries(object: &serde_json::Map<String, Value>) -> anyhow::Result<Vec<Entry<'_>>> {
    let Some(list) = object.get("inputs").and_then(Value::as_array).filter(|list| list.iter().all(Value::is_object))
    else {
        return Ok(object.iter().map(|(name, data)| (name.as_str(), None, data)).collect());
    };
    list.iter()
        .map(|entry| {
            let name = entry.get("name").and_then(Value::as_str).context("an entry of `inputs` has no `name`")?;
            let data = entry.get("data").with_context(|| format!("input `{name}` has no `data`"))?;
            let shape = entry.get("shape").map(|shape| serde_json::from_value(shape.clone())).transpose()?;
            Ok((name, shape, data))
        })
        .collect()
}

fn tensor(dtype: DataType, shape: Option<Vec<usize>>, data: &Value) -> anyhow::Result<Tensor> {
    let mut leaves = Vec::new();
    let mut nested = Vec::new();
    flatten(data, 0, &mut nested, &mut leaves)?;
    let shape = shape.unwrap_or(nested);
    macro_rules! numbers {
        ($get:ident, $rust:ty) => {{
            let values: Option<Vec<$rust>> = leaves.iter().map(|v| <$rust>::try_from(v.$get()?).ok()).collect();
            Tensor::from_vec(shape, values.with_context(|| format!("expected values of {dtype}"))?)?
        }};
    }
    Ok(match dtype {
        DataType::Float32 => {
            let values: Option<Vec<f32>> = leaves.iter().map(|v| v.as_f64().map(|v| v as f32)).collect();
            Tensor::from_vec(shape, values.context("expected numbers")?)?
        }
        DataType::Float64 => numbers!(as_f64, f64),
        DataType::Int8 => numbers!(as_i64, i8),
        DataType::Int16 => numbers!(as_i64, i16),
        DataType::Int32 => numbers!(as_i64, i32),
        DataType::Int64 => numbers!(as_i64, i64),
        DataType::UInt8 => numbers!(as_u64, u8),
        DataType::UInt16 => numbers!(as_u64, u16),
        DataType::UInt32 => numbers!(as_u64, u32),
        DataType::UInt64 => numbers!(as_u64, u64),
        DataType::Bool => {
            let values: Option<Vec<bool>> = leaves.iter().map(|v| v.as_bool()).collect();
            Tensor::from_bools(shape, values.context("expected `true` and `false`")?)?
        }
        DataType::String => {
            let values: Option<Vec<Bytes>> = leaves.iter().map(|v| Some(v.as_str()?.to_owned().into())).collect();
            Tensor::from_strings(shape, values.context("expected strings")?)?
        }
        other => bail!("JSON cannot hold {other}; use `.npz`"),
    })
}

/// Appends the leaves of nested arrays and the length at each depth; lists at one depth must be equally long.
fn flatten<'a>(
    value: &'a Value,
    depth: usize,
    shape: &mut Vec<usize>,
    leaves: &mut Vec<&'a Value>,
) -> anyhow::Result<()> {
    let Value::Array(items) = value else {
        if depth != shape.len() {
            bail!("its lists are nested to different depths");
        }
        leaves.push(value);
        return Ok(());
    };
    if depth >= MAX_NESTING {
        bail!("its lists are nested deeper than {MAX_NESTING}");
    }
    match shape.get(depth) {
        None if leaves.is_empty() => shape.push(items.len()),
        Some(&length) if length == items.len() => {}
        _ => bail!("its lists differ in length or depth"),
    }
    items.iter().try_for_each(|item| flatten(item, depth + 1, shape, leaves))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(dtype: DataType, text: &str) -> anyhow::Result<Tensor> {
        tensor(dtype, None, &serde_json::from_str(text).unwrap())
    }

    #[test]
    fn nested_lists_become_a_tensor() {
        let tensor = json(DataType::Float32, "[[1, 2.5, 3], [4, 5, 6]]").unwrap();
        assert_eq!(tensor.shape(), [2, 3]);
        assert_eq!(*tensor.values::<f32>().unwrap(), [1.0, 2.5, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(json(DataType::Int64, "7").unwrap().shape(), [0usize; 0]);
        assert_eq!(json(DataType::String, r#"["a"]"#).unwrap().strings().unwrap(), [Bytes::from("a")]);
    }

    #[test]
    fn ragged_and_wrong_values_are_refused() {
        let cases = [
            (DataType::Float32, "[[1, 2], [3]]"),
            (DataType::Float32, "[[1], 2]"),
            (DataType::Float32, "[1, [2]]"),
            (DataType::Float32, "[\"a\"]"),
            (DataType::Int8, "[200]"),
            (DataType::UInt8, "[-1]"),
            (DataType::Int64, "[1.5]"),
            (DataType::Bool, "[1]"),
            (DataType::Float16, "[1]"),
        ];
        for (dtype, text) in cases {
            assert!(json(dtype, text).is_err(), "{dtype} {text}");
        }
        let deep = "[".repeat(100) + &"]".repeat(100);
        assert!(json(DataType::Float32, &deep).is_err());
    }

    fn npy(header: &str, data: &[u8]) -> Bytes {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes.into()
    }

    #[test]
    fn numpy_arrays_are_read() {
        let array = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }\n", &[0, 0, 128, 63, 0, 0, 0, 64]);
        let tensor = parse_npy(array).unwrap();
        assert_eq!(tensor.shape(), [1, 2]);
        assert_eq!(*tensor.values::<f32>().unwrap(), [1.0, 2.0]);
    }

    #[test]
    fn broken_numpy_arrays_are_refused() {
        let good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }";
        let whole = npy(good, &[0; 8]);
        for end in 0..whole.len() {
            assert!(parse_npy(whole.slice(..end)).is_err(), "cut at {end}");
        }
        let cases = [
            good.replace("<f4", ">f4"),
            good.replace("False", "True"),
            good.replace("(2,)", "(3,)"),
            good.replace("(2,)", "(-2,)"),
            good.replace("(2,)", "(99999999999, 99999999999, 99999999999)"),
        ];
        for header in cases {
            assert!(parse_npy(npy(&header, &[0; 8])).is_err(), "{header}");
        }
    }
}

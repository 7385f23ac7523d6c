//! Checks inputs against what a model declares, so that every engine refuses alike and names the input.

use std::collections::HashMap;

use edgeward_graph::{DataType, Dimension, Model, Port, Tensor};

use crate::{Dim, EngineError, ErrorKind, RunOptions, TensorInfo, cancel};

/// Every element type of ONNX is at home at this alignment.
pub(crate) const ALIGN: usize = 8;

/// Declared inputs and outputs as the contract states them. Errors where one is not a tensor.
pub(crate) fn interface(
    engine: &'static str,
    graph: &Model,
) -> Result<(Vec<TensorInfo>, Vec<TensorInfo>), EngineError> {
    let inputs = tensor_infos(engine, "input", graph.inputs())?;
    Ok((inputs, tensor_infos(engine, "output", graph.outputs())?))
}

fn tensor_infos(engine: &'static str, what: &str, ports: Vec<Port>) -> Result<Vec<TensorInfo>, EngineError> {
    ports
        .into_iter()
        .map(|port| {
            let dtype = port.dtype.ok_or_else(|| {
                let text =
                    format!("{what} `{}` is not a tensor (sequences, maps and optionals are not served)", port.name);
                EngineError::new(engine, ErrorKind::Unsupported, text)
            })?;
            Ok(TensorInfo {
                name: port.name,
                dtype,
                shape: port.shape.map(|dims| dims.into_iter().map(Dim::from).collect()),
            })
        })
        .collect()
}

impl From<Dimension> for Dim {
    fn from(dimension: Dimension) -> Self {
        match dimension {
            Dimension::Fixed(size) => Self::Fixed(size),
            Dimension::Symbol(name) => Self::Symbol(name),
            Dimension::Unknown => Self::Dynamic(()),
        }
    }
}

/// What every run begins with: it is not cancelled, its inputs fit and stand in the order of `declared`, and the wanted
/// outputs are known, by their positions.
pub(crate) fn request<'a>(
    engine: &'static str,
    (inputs, outputs): (&[TensorInfo], &[TensorInfo]),
    given: &[(&str, &'a Tensor)],
    options: &RunOptions<'_>,
) -> Result<(Vec<&'a Tensor>, Vec<usize>), EngineError> {
    cancel::check(engine, options.cancel)?;
    Ok((self::inputs(engine, inputs, given)?, self::outputs(engine, outputs, options.outputs)?))
}

/// Puts `given` into the order of `declared`, after checking names, types, ranks, sizes and equal symbols.
fn inputs<'a>(
    engine: &'static str,
    declared: &[TensorInfo],
    given: &[(&str, &'a Tensor)],
) -> Result<Vec<&'a Tensor>, EngineError> {
    let refuse = |text: String| EngineError::new(engine, ErrorKind::InvalidInput, text);
    if let Some((name, _)) = given.iter().find(|(name, _)| declared.iter().all(|d| d.name != *name)) {
        return Err(refuse(format!("unknown input `{name}`, the model has {}", names(declared))));
    }
    let mut symbols: HashMap<&str, (usize, &str)> = HashMap::new();
    let mut ordered = Vec::with_capacity(declared.len());
    for info in declared {
        let mut found = given.iter().filter(|(name, _)| *name == info.name);
        let Some((_, tensor)) = found.next() else {
            return Err(refuse(format!("missing input `{}`, the model needs {}", info.name, names(declared))));
        };
        if found.next().is_some() {
            return Err(refuse(format!("input `{}` is given twice", info.name)));
        }
        input(info, tensor, &mut symbols).map_err(|text| refuse(format!("input `{}` {text}", info.name)))?;
        ordered.push(*tensor);
    }
    Ok(ordered)
}

fn input<'i>(
    info: &'i TensorInfo,
    tensor: &Tensor,
    symbols: &mut HashMap<&'i str, (usize, &'i str)>,
) -> Result<(), String> {
    if tensor.dtype() != info.dtype {
        return Err(format!("is {}, expected {}", tensor.dtype(), info.dtype));
    }
    let Some(dims) = &info.shape else { return Ok(()) };
    let wrong = || format!("has shape {:?}, expected {}", tensor.shape(), shape_text(dims));
    if dims.len() != tensor.shape().len() {
        return Err(wrong());
    }
    for (dim, &size) in dims.iter().zip(tensor.shape()) {
        match dim {
            Dim::Fixed(expected) if *expected != size => return Err(wrong()),
            Dim::Symbol(symbol) => {
                let (bound, by) = *symbols.entry(symbol).or_insert((size, &info.name));
                if bound != size {
                    return Err(format!("has {size} for `{symbol}`, which is {bound} in `{by}`"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// A declared shape as people write it, e.g. `[batch, 3, ?]`.
pub fn shape_text(dims: &[Dim]) -> String {
    let dims: Vec<String> = dims
        .iter()
        .map(|dim| match dim {
            Dim::Fixed(size) => size.to_string(),
            Dim::Symbol(name) => name.clone(),
            Dim::Dynamic(()) => "?".to_owned(),
        })
        .collect();
    format!("[{}]", dims.join(", "))
}

/// Positions of the wanted outputs in the model's order.
fn outputs(engine: &'static str, declared: &[TensorInfo], wanted: Option<&[&str]>) -> Result<Vec<usize>, EngineError> {
    let Some(wanted) = wanted else { return Ok((0..declared.len()).collect()) };
    let find = |name: &&str| {
        declared.iter().position(|d| d.name == *name).ok_or_else(|| {
            let text = format!("unknown output `{name}`, the model has {}", names(declared));
            EngineError::new(engine, ErrorKind::InvalidInput, text)
        })
    };
    wanted.iter().map(find).collect()
}

/// The shape that an output will have by what the model declares of it and the inputs given; none where that does not
/// say. A model may declare what is not so: an engine must check what it really made.
pub(crate) fn shape_ahead(output: &TensorInfo, declared: &[TensorInfo], given: &[&Tensor]) -> Option<Vec<usize>> {
    let of_symbol = |symbol: &str| {
        let dims = declared.iter().zip(given).filter_map(|(info, tensor)| Some((info.shape.as_ref()?, tensor.shape())));
        let mut pairs = dims.flat_map(|(dims, sizes)| dims.iter().zip(sizes));
        pairs.find_map(|(dim, size)| matches!(dim, Dim::Symbol(name) if name == symbol).then_some(*size))
    };
    let size = |dim: &Dim| match dim {
        Dim::Fixed(size) => Some(*size),
        Dim::Symbol(symbol) => of_symbol(symbol),
        Dim::Dynamic(()) => None,
    };
    output.shape.as_ref()?.iter().map(size).collect()
}

/// True where an engine can write an output of this type and shape straight into `buffer`: it has the length, lies where
/// every element type of ONNX is at home, and is not empty.
pub(crate) fn holds(buffer: &[u8], dtype: DataType, shape: &[usize]) -> bool {
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let fits = dtype != DataType::String && count.is_some_and(|n| dtype.byte_len(n) == buffer.len());
    fits && !buffer.is_empty() && (buffer.as_ptr() as usize).is_multiple_of(ALIGN)
}

/// True where each wanted output has one buffer, and none is wanted twice: a run writes it to one place.
pub(crate) fn one_buffer_each(wanted: &[usize], buffers: &[&mut [u8]]) -> bool {
    let twice = wanted.iter().enumerate().any(|(at, i)| wanted.iter().take(at).any(|earlier| earlier == i));
    !twice && wanted.len() == buffers.len()
}

/// Copies outputs into the caller's buffers; for engines that cannot write there themselves.
pub(crate) fn copy_out(
    engine: &'static str,
    outputs: &[Tensor],
    buffers: &mut [&mut [u8]],
) -> Result<Vec<Vec<usize>>, EngineError> {
    let refuse = |text: String| EngineError::new(engine, ErrorKind::InvalidInput, text);
    if outputs.len() != buffers.len() {
        return Err(refuse(format!("{} buffers for {} outputs", buffers.len(), outputs.len())));
    }
    for (index, (tensor, buffer)) in outputs.iter().zip(buffers).enumerate() {
        match tensor.raw() {
            Some(raw) if raw.len() == buffer.len() => buffer.copy_from_slice(raw),
            Some(raw) => {
                return Err(refuse(format!(
                    "output {index} takes {} bytes, its buffer has {}",
                    raw.len(),
                    buffer.len()
                )));
            }
            None => return Err(refuse(format!("output {index} holds {}, which has no raw bytes", DataType::String))),
        }
    }
    Ok(outputs.iter().map(|t| t.shape().to_vec()).collect())
}

fn names(declared: &[TensorInfo]) -> String {
    let names: Vec<String> = declared.iter().map(|d| format!("`{}`", d.name)).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

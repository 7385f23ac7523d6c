//! Tensors in protobuf messages: raw bytes, or one typed field per class of element.

use std::time::Duration;

use bytes::Bytes;
use edgeward_graph::{DataType, Tensor};

use crate::{
    core::{InferRequest, InferResponse, ModelRef, Parameter, RequestedOutput, ServeError, ServeErrorKind},
    from_wire_type, json,
    proto::{
        self, InferTensorContents, ModelInferRequest, ModelInferResponse, infer_parameter::ParameterChoice,
        model_infer_response::InferOutputTensor,
    },
    wire_type,
};

/// True where the request carries raw bytes; then the answer does too.
pub(super) fn is_raw(request: &ModelInferRequest) -> bool {
    !request.raw_input_contents.is_empty()
}

fn refuse(text: String) -> ServeError {
    ServeError::new(ServeErrorKind::InvalidArgument, text)
}

/// A request as the core takes it.
pub(crate) fn request(request: ModelInferRequest, model: ModelRef) -> Result<InferRequest, ServeError> {
    let (raw, count) = (request.raw_input_contents, request.inputs.len());
    if !raw.is_empty() && raw.len() != count {
        return Err(refuse(format!("{} raw contents for {count} inputs", raw.len())));
    }
    let mut raw = raw.into_iter();
    let inputs = request.inputs.into_iter().map(|input| {
        let of = |text: String| refuse(format!("input `{}`: {text}", input.name));
        let dtype =
            from_wire_type(&input.datatype).ok_or_else(|| of(format!("unknown datatype `{}`", input.datatype)))?;
        let shape = input.shape.iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>();
        let shape = shape.map_err(|_| of(format!("shape {:?} has a negative size", input.shape)))?;
        let tensor = match raw.next() {
            Some(bytes) => json::from_binary(dtype, shape, bytes),
            None => typed(dtype, shape, input.contents.unwrap_or_default()),
        };
        Ok((input.name.clone(), tensor.map_err(of)?))
    });
    let inputs = inputs.collect::<Result<Vec<_>, ServeError>>()?;
    let outputs = request.outputs.into_iter().map(|output| {
        let count = output.parameters.get("classification").and_then(int).unwrap_or(0);
        RequestedOutput { name: output.name, classification: usize::try_from(count).unwrap_or(0) }
    });
    let number = |key: &str| request.parameters.get(key).and_then(int).and_then(|v| u64::try_from(v).ok());
    let custom = request.parameters.iter().filter(|(k, _)| !["priority", "timeout"].contains(&k.as_str()));
    Ok(InferRequest {
        model,
        id: request.id,
        inputs,
        outputs: outputs.collect(),
        priority: number("priority").and_then(|p| u32::try_from(p).ok()).unwrap_or(0),
        timeout: number("timeout").filter(|&us| us > 0).map(Duration::from_micros),
        parameters: custom.filter_map(|(k, v)| Some((k.clone(), parameter(v)?))).collect(),
        beside: false,
    })
}

fn int(parameter: &proto::InferParameter) -> Option<i64> {
    match parameter.parameter_choice.as_ref()? {
        ParameterChoice::Int64Param(v) => Some(*v),
        ParameterChoice::Uint64Param(v) => i64::try_from(*v).ok(),
        ParameterChoice::StringParam(v) => v.parse().ok(),
        _ => None,
    }
}

fn parameter(parameter: &proto::InferParameter) -> Option<Parameter> {
    Some(match parameter.parameter_choice.as_ref()? {
        ParameterChoice::BoolParam(v) => Parameter::Bool(*v),
        ParameterChoice::Int64Param(v) => Parameter::Int(*v),
        ParameterChoice::Uint64Param(v) => Parameter::Int(i64::try_from(*v).ok()?),
        ParameterChoice::DoubleParam(v) => Parameter::Double(*v),
        ParameterChoice::StringParam(v) => Parameter::String(v.clone()),
    })
}

/// The field that holds elements of a type; none where they have no typed form.
fn field(dtype: DataType) -> Option<&'static str> {
    Some(match dtype {
        DataType::Bool => "bool_contents",
        DataType::Int8 | DataType::Int16 | DataType::Int32 => "int_contents",
        DataType::Int64 => "int64_contents",
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 => "uint_contents",
        DataType::UInt64 => "uint64_contents",
        DataType::Float32 => "fp32_contents",
        DataType::Float64 => "fp64_contents",
        DataType::String => "bytes_contents",
        _ => return None,
    })
}

/// An error where another field is filled than the type's.
fn only(expected: &str, dtype: DataType, contents: &InferTensorContents) -> Result<(), String> {
    let lengths = [
        ("bool_contents", contents.bool_contents.len()),
        ("int_contents", contents.int_contents.len()),
        ("int64_contents", contents.int64_contents.len()),
        ("uint_contents", contents.uint_contents.len()),
        ("uint64_contents", contents.uint64_contents.len()),
        ("fp32_contents", contents.fp32_contents.len()),
        ("fp64_contents", contents.fp64_contents.len()),
        ("bytes_contents", contents.bytes_contents.len()),
    ];
    match lengths.into_iter().find(|(name, length)| *length > 0 && *name != expected) {
        None => Ok(()),
        Some((name, length)) => Err(format!(
            "`{name}` is filled ({length} values), expected `{expected}` alone for {}, or raw_input_contents",
            wire_type(dtype)
        )),
    }
}

fn typed(dtype: DataType, shape: Vec<usize>, contents: InferTensorContents) -> Result<Tensor, String> {
    let Some(expected) = field(dtype) else {
        return Err(format!("{} has no typed form; send it in raw_input_contents", wire_type(dtype)));
    };
    only(expected, dtype, &contents)?;
    fn narrow<T: edgeward_graph::Element + Send + Sync, W: Copy + TryInto<T> + std::fmt::Display>(
        shape: Vec<usize>,
        values: &[W],
    ) -> Result<Tensor, String> {
        let one = |v: &W| (*v).try_into().map_err(|_| format!("value {v} does not fit in {}", wire_type(T::DTYPE)));
        let values = values.iter().map(one).collect::<Result<Vec<T>, _>>()?;
        Tensor::from_vec(shape, values).map_err(|e| e.to_string())
    }
    let made = match dtype {
        DataType::Bool => Tensor::from_bools(shape, contents.bool_contents),
        DataType::Int8 => return narrow::<i8, _>(shape, &contents.int_contents),
        DataType::Int16 => return narrow::<i16, _>(shape, &contents.int_contents),
        DataType::Int32 => Tensor::from_vec(shape, contents.int_contents),
        DataType::Int64 => Tensor::from_vec(shape, contents.int64_contents),
        DataType::UInt8 => return narrow::<u8, _>(shape, &contents.uint_contents),
        DataType::UInt16 => return narrow::<u16, _>(shape, &contents.uint_contents),
        DataType::UInt32 => Tensor::from_vec(shape, contents.uint_contents),
        DataType::UInt64 => Tensor::from_vec(shape, contents.uint64_contents),
        DataType::Float32 => Tensor::from_vec(shape, contents.fp32_contents),
        DataType::Float64 => Tensor::from_vec(shape, contents.fp64_contents),
        DataType::String => Tensor::from_strings(shape, contents.bytes_contents),
        other => return Err(format!("{} has no typed form; send it in raw_input_contents", wire_type(other))),
    };
    made.map_err(|e| e.to_string())
}

/// An answer as the client gets it.
pub(crate) fn response(response: InferResponse, raw: bool) -> Result<ModelInferResponse, ServeError> {
    use DataType::{BFloat16, Float16};
    // Half floats have no typed field, and raw contents are for all outputs or for none.
    let raw = raw || response.outputs.iter().any(|(_, t)| matches!(t.dtype(), Float16 | BFloat16));
    let mut raw_output_contents: Vec<Bytes> = Vec::new();
    let mut outputs = Vec::with_capacity(response.outputs.len());
    for (name, tensor) in &response.outputs {
        let contents = if raw {
            raw_output_contents.push(json::to_binary(tensor));
            None
        } else {
            let contents = contents(tensor).map_err(|e| refuse(format!("output `{name}`: {e}")))?;
            Some(contents)
        };
        outputs.push(InferOutputTensor {
            name: name.to_string(),
            datatype: wire_type(tensor.dtype()).to_owned(),
            shape: tensor.shape().iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect(),
            contents,
            ..InferOutputTensor::default()
        });
    }
    Ok(ModelInferResponse {
        model_name: response.model_name.to_string(),
        model_version: response.model_version.to_string(),
        id: response.id,
        outputs,
        raw_output_contents,
        parameters: response.parameters.into_iter().map(|(name, value)| (name, wire(value))).collect(),
    })
}

/// A parameter of an answer.
pub(super) fn wire(parameter: Parameter) -> proto::InferParameter {
    let choice = match parameter {
        Parameter::Bool(v) => ParameterChoice::BoolParam(v),
        Parameter::Int(v) => ParameterChoice::Int64Param(v),
        Parameter::Double(v) => ParameterChoice::DoubleParam(v),
        Parameter::String(v) => ParameterChoice::StringParam(v),
    };
    proto::InferParameter { parameter_choice: Some(choice) }
}

fn contents(tensor: &Tensor) -> Result<InferTensorContents, edgeward_graph::TensorError> {
    let mut out = InferTensorContents::default();
    match tensor.dtype() {
        DataType::Bool => {
            out.bool_contents = tensor.raw().map(|r| r.iter().map(|&b| b != 0).collect()).unwrap_or_default()
        }
        DataType::Int8 => out.int_contents = tensor.values::<i8>()?.iter().map(|&v| v.into()).collect(),
        DataType::Int16 => out.int_contents = tensor.values::<i16>()?.iter().map(|&v| v.into()).collect(),
        DataType::Int32 => out.int_contents = tensor.values::<i32>()?.into_owned(),
        DataType::Int64 => out.int64_contents = tensor.values::<i64>()?.into_owned(),
        DataType::UInt8 => out.uint_contents = tensor.values::<u8>()?.iter().map(|&v| v.into()).collect(),
        DataType::UInt16 => out.uint_contents = tensor.values::<u16>()?.iter().map(|&v| v.into()).collect(),
        DataType::UInt32 => out.uint_contents = tensor.values::<u32>()?.into_owned(),
        DataType::UInt64 => out.uint64_contents = tensor.values::<u64>()?.into_owned(),
        DataType::Float64 => out.fp64_contents = tensor.values::<f64>()?.into_owned(),
        DataType::String => out.bytes_contents = tensor.strings().unwrap_or_default().to_vec(),
        _ => out.fp32_contents = tensor.values::<f32>()?.into_owned(),
    }
    Ok(out)
}

//! Tensor messages to tensors and back: raw and typed fields of every element type.

use bytes::Bytes;

use crate::{
    DataType, GraphError, Tensor, element_count,
    proto::{TensorProto, tensor_proto::DataLocation},
};

/// True where the values lie in another file.
pub(crate) fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location == Some(DataLocation::External as i32)
}

/// Elements that a tensor's declaration asks for, saturating.
pub(crate) fn declared_count(tensor: &TensorProto) -> u64 {
    tensor.dims.iter().fold(1u64, |n, &d| n.saturating_mul(u64::try_from(d).unwrap_or(u64::MAX)))
}

/// Bytes that a tensor's declaration asks for, saturating; what limits are checked against.
pub(crate) fn declared_bytes(tensor: &TensorProto) -> u64 {
    let bits = DataType::from_onnx(tensor.data_type.unwrap_or(0)).map_or(8, |t| t.bits() as u64);
    declared_count(tensor).saturating_mul(bits).div_ceil(8)
}

/// Element type and shape of a tensor message.
pub(crate) fn header(tensor: &TensorProto) -> Result<(DataType, Vec<usize>), GraphError> {
    let name = tensor.name.as_deref().unwrap_or("");
    let place = || format!("tensor `{name}`");
    let number = tensor.data_type.unwrap_or(0);
    let dtype = DataType::from_onnx(number)
        .ok_or_else(|| GraphError::invalid(place(), format!("has the unknown element type {number}")))?;
    let shape = tensor.dims.iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>();
    let shape = shape.map_err(|_| GraphError::invalid(place(), format!("has a negative size in {:?}", tensor.dims)))?;
    Ok((dtype, shape))
}

/// The values of a tensor message without external data.
pub(crate) fn decode(tensor: &TensorProto) -> Result<Tensor, GraphError> {
    let name = tensor.name.as_deref().unwrap_or("");
    let (dtype, shape) = header(tensor)?;
    let result = match (&tensor.raw_data, dtype) {
        (_, DataType::String) => Tensor::from_strings(shape, tensor.string_data.clone()),
        (Some(raw), _) => Tensor::from_raw(dtype, shape, raw.clone()),
        (None, _) => {
            let count = element_count(&shape).map_err(|e| GraphError::tensor(name, e))?;
            let bytes = typed(tensor, dtype, count)
                .map_err(|reason| GraphError::invalid(format!("tensor `{name}`"), reason))?;
            Tensor::from_raw(dtype, shape, bytes)
        }
    };
    result.map_err(|e| GraphError::tensor(name, e))
}

/// Raw bytes of the typed fields; `int32_data` holds the small types, one element (or packed byte) each.
fn typed(tensor: &TensorProto, dtype: DataType, count: usize) -> Result<Bytes, String> {
    use DataType::{Complex64, Complex128, Float32, Float64, Int32, Int64, UInt32, UInt64};
    let (bytes, field) = match dtype {
        Float32 | Complex64 => (cast(&tensor.float_data), "float_data"),
        Float64 | Complex128 => (cast(&tensor.double_data), "double_data"),
        Int64 => (cast(&tensor.int64_data), "int64_data"),
        UInt64 => (cast(&tensor.uint64_data), "uint64_data"),
        UInt32 => (narrow(&tensor.uint64_data, 4)?, "uint64_data"),
        Int32 => (cast(&tensor.int32_data), "int32_data"),
        _ => {
            let size = dtype.bits().div_ceil(8);
            let wide: Vec<u64> = tensor.int32_data.iter().map(|&v| v as u64).collect();
            (wide.iter().flat_map(|v| v.to_le_bytes().into_iter().take(size)).collect(), "int32_data")
        }
    };
    let expected = dtype.byte_len(count);
    if bytes.len() == expected {
        return Ok(bytes.into());
    }
    let unit = (dtype.bits() / 8).max(1);
    Err(format!("`{field}` holds {} values, the shape asks for {}", bytes.len() / unit, expected / unit))
}

fn cast<T: bytemuck::NoUninit>(values: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

fn narrow(values: &[u64], size: usize) -> Result<Vec<u8>, String> {
    if let Some(v) = values.iter().find(|&&v| v > u64::from(u32::MAX)) {
        return Err(format!("value {v} does not fit in uint32"));
    }
    Ok(values.iter().flat_map(|v| v.to_le_bytes().into_iter().take(size)).collect())
}

/// A tensor message of `values`, raw.
pub fn tensor_proto(name: &str, values: &Tensor) -> TensorProto {
    let mut tensor = TensorProto { name: Some(name.to_owned()), ..TensorProto::default() };
    store(&mut tensor, values);
    tensor
}

/// Replaces the values of a tensor message, keeping its name and documentation.
pub(crate) fn store(tensor: &mut TensorProto, values: &Tensor) {
    clear_values(tensor);
    tensor.data_type = Some(values.dtype().to_onnx());
    tensor.dims = values.shape().iter().map(|&d| d as i64).collect();
    match (values.raw(), values.strings()) {
        (Some(raw), _) => tensor.raw_data = Some(raw.clone()),
        (None, strings) => tensor.string_data = strings.unwrap_or_default().to_vec(),
    }
}

/// Drops the values of a tensor message wherever they are.
pub(crate) fn clear_values(tensor: &mut TensorProto) {
    tensor.float_data.clear();
    tensor.int32_data.clear();
    tensor.string_data.clear();
    tensor.int64_data.clear();
    tensor.double_data.clear();
    tensor.uint64_data.clear();
    tensor.raw_data = None;
    tensor.external_data.clear();
    tensor.data_location = None;
}

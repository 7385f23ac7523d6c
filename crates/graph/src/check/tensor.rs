//! Rules of tensor messages: where their values lie, and that these fill the shape.

use crate::{
    DataType, GraphError, codec,
    external::ExternalRef,
    proto::{SparseTensorProto, TensorProto},
};

/// Fields of a tensor message that hold values.
fn fields(tensor: &TensorProto) -> Vec<&'static str> {
    let all = [
        ("float_data", tensor.float_data.is_empty()),
        ("int32_data", tensor.int32_data.is_empty()),
        ("string_data", tensor.string_data.is_empty()),
        ("int64_data", tensor.int64_data.is_empty()),
        ("double_data", tensor.double_data.is_empty()),
        ("uint64_data", tensor.uint64_data.is_empty()),
        ("raw_data", tensor.raw_data.as_ref().is_none_or(|raw| raw.is_empty())),
    ];
    all.into_iter().filter(|(_, empty)| !empty).map(|(name, _)| name).collect()
}

pub(super) fn dense(tensor: &TensorProto) -> Result<(), GraphError> {
    let refuse = |reason: String| Err(GraphError::invalid(format!("tensor `{}`", tensor.name()), reason));
    let fields = fields(tensor);
    if codec::is_external(tensor) {
        if let [field, ..] = fields.as_slice() {
            return refuse(format!("lies in another file and in `{field}`"));
        }
        return codec::header(tensor).and(ExternalRef::of(tensor)).map(drop);
    }
    if let [first, second, ..] = fields.as_slice() {
        return refuse(format!("holds values in `{first}` and `{second}`, expected one of them"));
    }
    if tensor.data_type() == DataType::String.to_onnx() && fields == ["raw_data"] {
        return refuse("holds strings in `raw_data`, expected `string_data`".to_owned());
    }
    codec::decode(tensor).map(drop)
}

/// Sparse tensors: one list of values, their places in ascending order, as single numbers or one row for each.
pub(super) fn sparse(tensor: &SparseTensorProto) -> Result<(), GraphError> {
    let Some(values) = &tensor.values else {
        return Err(GraphError::invalid("sparse tensor", "has no `values`"));
    };
    dense(values)?;
    let refuse = |reason: String| Err(GraphError::invalid(format!("sparse tensor `{}`", values.name()), reason));
    let &[count] = values.dims.as_slice() else {
        return refuse(format!("has values of rank {}, expected 1", values.dims.len()));
    };
    let sizes = &tensor.dims;
    if sizes.is_empty() || sizes.iter().any(|&size| size <= 0) {
        return refuse(format!("has the shape {sizes:?}, expected sizes above 0"));
    }
    let Some(indices) = &tensor.indices else {
        return if count == 0 { Ok(()) } else { refuse("has no `indices`".to_owned()) };
    };
    dense(indices)?;
    if codec::is_external(indices) {
        return Ok(());
    }
    let places = codec::decode(indices)?;
    let Ok(places) = places.values::<i64>() else {
        return refuse(format!("has indices of {}, expected int64", places.dtype()));
    };
    let linear: Option<Vec<i64>> = match indices.dims.as_slice() {
        &[length] if length == count => {
            let whole = sizes.iter().try_fold(1i64, |n, &size| n.checked_mul(size));
            places.iter().map(|&p| Some(p).filter(|&p| p >= 0 && whole.is_none_or(|whole| p < whole))).collect()
        }
        &[length, rank] if length == count && usize::try_from(rank) == Ok(sizes.len()) => {
            places.chunks(sizes.len()).map(|row| place(row, sizes)).collect()
        }
        shape => return refuse(format!("has indices of shape {shape:?} for {count} values of rank {}", sizes.len())),
    };
    match linear {
        None => refuse("has an index outside of its shape".to_owned()),
        Some(linear) if !linear.is_sorted_by(|a, b| a < b) => {
            refuse("has indices that are not in ascending order".to_owned())
        }
        Some(_) => Ok(()),
    }
}

fn place(row: &[i64], sizes: &[i64]) -> Option<i64> {
    row.iter().zip(sizes).try_fold(0i64, |place, (&index, &size)| {
        (0..size).contains(&index).then_some(())?;
        place.checked_mul(size)?.checked_add(index)
    })
}

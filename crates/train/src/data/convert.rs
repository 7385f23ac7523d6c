//! Numbers of one element type as another.

use edgeward_graph::{DataType, Tensor, TensorError};

/// Calls `$each` with the values of a tensor of numbers, whatever their type; none for other types.
macro_rules! numbers {
    ($tensor:expr, $values:ident => $each:expr) => {
        match $tensor.dtype() {
            DataType::Float32 => numbers!(@ $tensor, f32, $values => $each),
            DataType::Float64 => numbers!(@ $tensor, f64, $values => $each),
            DataType::UInt8 => numbers!(@ $tensor, u8, $values => $each),
            DataType::Int8 => numbers!(@ $tensor, i8, $values => $each),
            DataType::UInt16 => numbers!(@ $tensor, u16, $values => $each),
            DataType::Int16 => numbers!(@ $tensor, i16, $values => $each),
            DataType::UInt32 => numbers!(@ $tensor, u32, $values => $each),
            DataType::Int32 => numbers!(@ $tensor, i32, $values => $each),
            DataType::UInt64 => numbers!(@ $tensor, u64, $values => $each),
            DataType::Int64 => numbers!(@ $tensor, i64, $values => $each),
            DataType::Bool => $tensor.raw().map(|raw| { let $values = raw.as_ref(); $each }),
            _ => None,
        }
    };
    (@ $tensor:expr, $type:ty, $values:ident => $each:expr) => {
        $tensor.values::<$type>().ok().map(|values| { let $values = values.as_ref(); $each })
    };
}

/// As binary64; none for strings, halves and packed types.
#[expect(clippy::unnecessary_cast, reason = "one of the types that the macro goes through is this one")]
pub(crate) fn to_f64(tensor: &Tensor) -> Option<Vec<f64>> {
    numbers!(tensor, values => values.iter().map(|&value| value as f64).collect())
}

/// As binary32.
#[expect(clippy::unnecessary_cast, reason = "one of the types that the macro goes through is this one")]
pub(crate) fn to_f32(tensor: &Tensor) -> Option<Vec<f32>> {
    numbers!(tensor, values => values.iter().map(|&value| value as f32).collect())
}

/// As 64-bit integers; a fraction is cut off, so a caller asks first whether there is one.
#[expect(clippy::unnecessary_cast, reason = "one of the types that the macro goes through is this one")]
pub(crate) fn to_i64(tensor: &Tensor) -> Option<Vec<i64>> {
    numbers!(tensor, values => values.iter().map(|&value| value as i64).collect())
}

/// The tensor in another type of numbers; none where that has no meaning.
#[expect(clippy::unnecessary_cast, reason = "one of the types that the macro goes through is this one")]
pub(crate) fn cast(tensor: &Tensor, to: DataType) -> Option<Result<Tensor, TensorError>> {
    if tensor.dtype() == to {
        return Some(Ok(tensor.clone()));
    }
    let shape = tensor.shape().to_vec();
    Some(match to {
        DataType::Float32 => Tensor::from_vec(shape, to_f32(tensor)?),
        DataType::Float64 => Tensor::from_vec(shape, to_f64(tensor)?),
        DataType::Int64 => Tensor::from_vec(shape, to_i64(tensor)?),
        DataType::Int32 => {
            Tensor::from_vec(shape, numbers!(tensor, values => values.iter().map(|&v| v as i32).collect())?)
        }
        DataType::UInt8 => {
            Tensor::from_vec(shape, numbers!(tensor, values => values.iter().map(|&v| v as u8).collect())?)
        }
        DataType::Bool => Tensor::from_bools(shape, to_f64(tensor)?.into_iter().map(|value| value != 0.0).collect()),
        _ => return None,
    })
}

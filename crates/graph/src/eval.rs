//! Values of nodes whose inputs are known: what folding computes, and what inference follows of small integer tensors.
//!
//! Only what every engine computes alike to the last bit is here: arrangements, arithmetic of integers, the four
//! exactly rounded operations of floats, comparisons, conversions. Where a standard leaves the result open (overflow,
//! division by zero, a NaN's bits, a float beyond an integer's range) there is no value.

mod arrange;
mod number;

use bytes::Bytes;

pub(crate) use arrange::{Arrangement, Source, broadcast, count, slice};
pub(crate) use number::{fits, whole};

use crate::{DataType, Tensor, codec, element_count, proto::NodeProto};

/// The first output of a standard operator over known inputs, as `dtype` and `shape` that inference found for it; none
/// where it is not computed here.
pub(crate) fn evaluate(
    node: &NodeProto,
    inputs: &[Option<Tensor>],
    dtype: DataType,
    shape: &[usize],
) -> Option<Tensor> {
    let result = match node.op_type() {
        "ConstantOfShape" => filled(node, shape),
        "Range" => number::range(inputs, shape),
        op if arrange::is_arrangement(op) => arranged(node, inputs, shape),
        _ => number::compute(node, inputs, dtype, shape),
    };
    result.filter(|tensor| tensor.dtype() == dtype && tensor.shape() == shape)
}

/// The integers (or truth values, as 0 and 1) of a tensor.
pub(crate) fn integers(tensor: &Tensor) -> Option<Vec<i64>> {
    match tensor.dtype() {
        DataType::Int64 => Some(tensor.values::<i64>().ok()?.into_owned()),
        DataType::Int32 => Some(tensor.values::<i32>().ok()?.iter().map(|&v| v.into()).collect()),
        DataType::Bool => Some(tensor.raw()?.iter().map(|&v| i64::from(v != 0)).collect()),
        _ => None,
    }
}

fn filled(node: &NodeProto, shape: &[usize]) -> Option<Tensor> {
    let count = element_count(shape).ok()?;
    let Some(value) = node.attr("value").and_then(|a| a.t.as_ref()) else {
        return Tensor::from_vec(shape, vec![0f32; count]).ok();
    };
    let value = codec::decode(value).ok().filter(|value| value.len() == 1)?;
    match value.dtype().bits() {
        2 | 4 => None,
        _ => take(&[&value], &vec![0; count], shape),
    }
}

fn arranged(node: &NodeProto, inputs: &[Option<Tensor>], shape: &[usize]) -> Option<Tensor> {
    let numbers = |index: usize| integers(inputs.get(index)?.as_ref()?);
    let shapes = inputs.iter().map(|i| i.as_ref().map(|t| t.shape().to_vec())).collect();
    let arrangement = Arrangement { node, inputs: shapes, output: shape, numbers: &numbers };
    let data: Option<Vec<&Tensor>> = arrangement.data().map(|i| inputs.get(i)?.as_ref()).collect();
    match (arrangement.source()?, data?.as_slice()) {
        (Source::Same, [one]) => (*one).clone().reshaped(shape).ok(),
        (Source::From(places), data) => take(data, &places, shape),
        _ => None,
    }
}

/// The elements at `places` of `tensors`, these laid one after the other.
fn take(tensors: &[&Tensor], places: &[usize], shape: &[usize]) -> Option<Tensor> {
    let dtype = tensors.first()?.dtype();
    if tensors.iter().any(|t| t.dtype() != dtype) {
        return None;
    }
    if dtype == DataType::String {
        let all: Vec<&Bytes> = tensors.iter().filter_map(|t| t.strings()).flatten().collect();
        let taken: Option<Vec<Bytes>> = places.iter().map(|&i| all.get(i).map(|&s| s.clone())).collect();
        return Tensor::from_strings(shape, taken?).ok();
    }
    let size = dtype.bits() / 8;
    if size == 0 {
        return None;
    }
    let all = match tensors {
        [one] => one.raw()?.clone(),
        many => many.iter().filter_map(|t| t.raw()).flatten().copied().collect::<Vec<u8>>().into(),
    };
    let mut bytes = Vec::with_capacity(places.len() * size);
    for &place in places {
        bytes.extend_from_slice(all.get(place * size..(place + 1) * size)?);
    }
    Tensor::from_raw(dtype, shape, bytes.into()).ok()
}

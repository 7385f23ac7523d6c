//! Quantising and back, as if nothing had happened (Bengio et al. 2013): the gradient passes straight through, but for
//! elements beyond the range, where it is 0.

use edgeward_graph::DataType;

use crate::{
    gradient::{Context, Done},
    shape::axis,
};

/// The gradient of the quantised value is that of the float it stands for.
pub(super) fn dequantise(cx: &mut Context<'_>) -> Done {
    let g = cx.g()?;
    if cx.wants(1) || cx.wants(2) {
        return Err("has no gradient for its scale; freeze it".to_owned());
    }
    cx.give(0, g);
    Ok(())
}

pub(super) fn quantise(cx: &mut Context<'_>) -> Done {
    let (g, x, scale, zero) = (cx.g()?, cx.x(0).to_owned(), cx.x(1).to_owned(), cx.x(2).to_owned());
    if cx.wants(1) || cx.wants(2) {
        return Err("has no gradient for its scale; freeze it".to_owned());
    }
    if cx.int("block_size", 0) != 0 {
        return Err("has no gradient in blocks".to_owned());
    }
    let (low, high) = range(cx.dtype(cx.y(0)))?;
    let dtype = cx.dtype(&x);
    // What rounds to the last number of the range is still within it.
    let [low, high] = [low - 0.5, high + 0.5].map(|bound| {
        let bound = cx.emit.scalar(dtype, bound);
        if zero.is_empty() {
            return cx.emit.op("Mul", &[&bound, &scale]);
        }
        let zero = cx.emit.cast(&zero, dtype);
        let above = cx.emit.op("Sub", &[&bound, &zero]);
        cx.emit.op("Mul", &[&above, &scale])
    });
    let (low, high) = (beside(cx, &low, &scale, &x)?, beside(cx, &high, &scale, &x)?);
    let (above, below) = (cx.emit.op("Greater", &[&x, &low]), cx.emit.op("Less", &[&x, &high]));
    let inside = cx.emit.op("And", &[&above, &below]);
    let mask = cx.emit.cast(&inside, dtype);
    let gradient = cx.emit.op("Mul", &[&g, &mask]);
    cx.give(0, gradient);
    Ok(())
}

/// A bound for each channel laid along the node's axis.
fn beside(cx: &mut Context<'_>, bound: &str, scale: &str, x: &str) -> Result<String, String> {
    if cx.known.rank(scale)? == 0 {
        return Ok(bound.to_owned());
    }
    let rank = cx.known.rank(x)?;
    let at = axis(cx.int("axis", 1), rank)?;
    let after: Vec<i64> = (1..(rank - at) as i64).collect();
    Ok(cx.emit.unsqueeze(bound, &after))
}

fn range(dtype: DataType) -> Result<(f64, f64), String> {
    Ok(match dtype {
        DataType::Int8 => (-128.0, 127.0),
        DataType::UInt8 => (0.0, 255.0),
        DataType::Int16 => (-32768.0, 32767.0),
        DataType::UInt16 => (0.0, 65535.0),
        DataType::Int4 => (-8.0, 7.0),
        DataType::UInt4 => (0.0, 15.0),
        other => return Err(format!("has no gradient by way of {other}")),
    })
}

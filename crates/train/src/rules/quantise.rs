//! Quantising and back, as if nothing had happened (Bengio et al. 2013): the gradient passes straight through, but for
//! elements beyond the range, where it is 0.
//!
//! The gradient of a scale is that of the learned step size (Esser et al. 2020, equation 3): `q - z - x / s` within the
//! range, `q - z` beyond it. DequantizeLinear gives the first part, QuantizeLinear what is taken off, so that a pair of
//! both that shares its scale gives the whole.

use edgeward_graph::{DataType, Dimension};

use crate::{
    emit::Axes,
    gradient::{Context, Done},
    shape::axis,
};

/// The gradient of the quantised value is that of the float it stands for.
pub(super) fn dequantise(cx: &mut Context<'_>) -> Done {
    let g = cx.g()?;
    refuse(cx)?;
    if cx.wants(1) {
        let (q, scale, zero) = (cx.x(0).to_owned(), cx.x(1).to_owned(), cx.x(2).to_owned());
        let dtype = cx.dtype(&scale);
        let mut steps = cx.emit.cast(&q, dtype);
        if !zero.is_empty() {
            let zero = cx.emit.cast(&zero, dtype);
            let zero = beside(cx, &zero, &scale, &q)?;
            steps = cx.emit.op("Sub", &[&steps, &zero]);
        }
        let gradient = cx.emit.op("Mul", &[&g, &steps]);
        let gradient = of_scale(cx, &gradient, &scale, &q)?;
        cx.give(1, gradient);
    }
    cx.give(0, g);
    Ok(())
}

pub(super) fn quantise(cx: &mut Context<'_>) -> Done {
    let (g, x, scale, zero) = (cx.g()?, cx.x(0).to_owned(), cx.x(1).to_owned(), cx.x(2).to_owned());
    refuse(cx)?;
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
    if cx.wants(1) {
        let product = cx.emit.op("Mul", &[&gradient, &x]);
        let wide = beside(cx, &scale, &scale, &x)?;
        let quotient = cx.emit.op("Div", &[&product, &wide]);
        let sum = of_scale(cx, &quotient, &scale, &x)?;
        let off = cx.emit.op("Neg", &[&sum]);
        cx.give(1, off);
    }
    cx.give(0, gradient);
    Ok(())
}

fn refuse(cx: &Context<'_>) -> Done {
    if cx.wants(2) {
        return Err("has no gradient for its zero point; freeze it".to_owned());
    }
    match cx.int("block_size", 0) {
        0 => Ok(()),
        _ => Err("has no gradient in blocks".to_owned()),
    }
}

/// What each element says of the scale, summed to the scale's shape.
fn of_scale(cx: &mut Context<'_>, each: &str, scale: &str, x: &str) -> Result<String, String> {
    let dims = cx.known.dims(scale).ok_or("has a scale whose shape is not known before a run")?;
    match dims.as_slice() {
        [] => Ok(cx.emit.sum(each, &[], Axes::Drop)),
        [Dimension::Fixed(1)] => {
            let sum = cx.emit.sum(each, &[], Axes::Drop);
            Ok(cx.emit.unsqueeze(&sum, &[0]))
        }
        _ => {
            let rank = cx.known.rank(x)?;
            let at = axis(cx.int("axis", 1), rank)?;
            let others: Vec<i64> = (0..rank).filter(|other| *other != at).map(|other| other as i64).collect();
            Ok(if others.is_empty() { each.to_owned() } else { cx.emit.sum(each, &others, Axes::Drop) })
        }
    }
}

/// A number for each channel laid along the node's axis.
fn beside(cx: &mut Context<'_>, bound: &str, scale: &str, x: &str) -> Result<String, String> {
    if matches!(cx.known.dims(scale).as_deref(), Some([] | [Dimension::Fixed(1)])) {
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

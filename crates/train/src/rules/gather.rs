//! Gathering: the gradient is summed into the places that were read, however often.
//!
//! It is `ScatterElements` that sums: with repeated indices ONNX defines it, and engines go through it in one thread. ONNX
//! Runtime's `ScatterND` with several threads lost sums.

use edgeward_graph::proto::AttributeProto;

use crate::{
    emit::Axes,
    gradient::{Context, Done},
    shape::axis,
};

fn adding(along: i64) -> Vec<AttributeProto> {
    vec![AttributeProto::of_int("axis", along), AttributeProto::of_text("reduction", "add")]
}

/// Rows of an embedding, or slices of any value along an axis.
pub(super) fn gather(cx: &mut Context<'_>) -> Done {
    let (g, data, indices) = (cx.g()?, cx.x(0).to_owned(), cx.x(1).to_owned());
    let rank = cx.known.rank(&data)?;
    let along = axis(cx.int("axis", 0), rank)?;
    let of_indices = cx.known.rank(&indices)?;
    let dtype = cx.dtype(&data);
    // [before…, indices…, after…] to [before…, n, after…]: the indices as one axis.
    let mut g = g;
    if of_indices != 1 {
        let (before, after) = (0..along, along + of_indices..rank - 1 + of_indices);
        let shape = cx.emit.op("Shape", &[&g]);
        let mut parts = Vec::new();
        for (range, joined) in [(before, false), (0..0, true), (after, false)] {
            if joined {
                parts.push(cx.emit.ints(&[-1]));
            } else if !range.is_empty() {
                let places = cx.emit.ints(&range.map(|i| i as i64).collect::<Vec<_>>());
                parts.push(cx.emit.op("Gather", &[&shape, &places]));
            }
        }
        let target = cx.emit.concat(&parts, 0);
        g = cx.emit.op("Reshape", &[&g, &target]);
    }
    let mut flat = vec![1i64; rank];
    if let Some(size) = flat.get_mut(along) {
        *size = -1;
    }
    let column = cx.emit.reshape(&indices, &flat);
    let shape = cx.emit.op("Shape", &[&g]);
    let places = cx.emit.op("Expand", &[&column, &shape]);
    let zeros = cx.emit.zeros_like(&data, dtype);
    let gradient = cx.emit.with("ScatterElements", &[&zeros, &places, &g], adding(along as i64));
    cx.give(0, gradient);
    Ok(())
}

pub(super) fn gather_elements(cx: &mut Context<'_>) -> Done {
    let (g, data, indices) = (cx.g()?, cx.x(0).to_owned(), cx.x(1).to_owned());
    let (along, dtype) = (cx.int("axis", 0), cx.dtype(&data));
    let zeros = cx.emit.zeros_like(&data, dtype);
    let gradient = cx.emit.with("ScatterElements", &[&zeros, &indices, &g], adding(along));
    cx.give(0, gradient);
    Ok(())
}

/// The product of sizes; that of a value which no memory holds is of no account.
fn saturated(sizes: &[usize]) -> usize {
    sizes.iter().fold(1usize, |n, &s| n.saturating_mul(s))
}

/// GatherND: the indices become places in the flat data.
pub(super) fn gather_nd(cx: &mut Context<'_>) -> Done {
    let (g, data, indices) = (cx.g()?, cx.x(0).to_owned(), cx.x(1).to_owned());
    if cx.int("batch_dims", 0) != 0 {
        return Err("has no gradient with `batch_dims`".to_owned());
    }
    let (sizes, dtype) = (cx.known.sizes(&data)?, cx.dtype(&data));
    let depth = cx.known.size(&indices, cx.known.rank(&indices)?.saturating_sub(1))?;
    if depth > sizes.len() {
        return Err(format!("takes {depth} indices into {} dimensions", sizes.len()));
    }
    let (outer, inner) = sizes.split_at(depth);
    let row = saturated(inner);
    let strides: Vec<i64> = (0..depth).map(|i| saturated(outer.get(i + 1..).unwrap_or_default()) as i64).collect();
    let rows = saturated(outer);
    let table = cx.emit.reshape(&indices, &[-1, depth as i64]);
    let sizes = cx.emit.ints(&outer.iter().map(|&s| s as i64).collect::<Vec<_>>());
    // Indices may count from the end.
    let table = cx.emit.op("Mod", &[&table, &sizes]);
    let strides = cx.emit.ints(&strides);
    let weighted = cx.emit.op("Mul", &[&table, &strides]);
    let places = cx.emit.sum(&weighted, &[1], Axes::Keep);
    let flat = cx.emit.reshape(&g, &[-1, row as i64]);
    let shape = cx.emit.op("Shape", &[&flat]);
    let places = cx.emit.op("Expand", &[&places, &shape]);
    let zero = cx.emit.scalar(dtype, 0.0);
    let whole = cx.emit.ints(&[rows as i64, row as i64]);
    let zeros = cx.emit.op("Expand", &[&zero, &whole]);
    let sum = cx.emit.with("ScatterElements", &[&zeros, &places, &flat], adding(0));
    let gradient = cx.reshape_like(&sum, &data);
    cx.give(0, gradient);
    Ok(())
}

/// TopK: to the elements that were taken.
pub(super) fn top_k(cx: &mut Context<'_>) -> Done {
    let (g, data, places) = (cx.g()?, cx.x(0).to_owned(), cx.y(1).to_owned());
    if places.is_empty() {
        return Err("does not tell its indices; name its second output".to_owned());
    }
    let (along, dtype) = (cx.int("axis", -1), cx.dtype(&data));
    let zeros = cx.emit.zeros_like(&data, dtype);
    let gradient = cx.emit.with("ScatterElements", &[&zeros, &places, &g], adding(along));
    cx.give(0, gradient);
    Ok(())
}

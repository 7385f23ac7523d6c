//! Products of matrices.

use crate::{
    emit::{Emit, Side},
    gradient::{Context, Done},
    shape::unbroadcast_dims,
};

/// y = a b over the last two axes: da = g bᵀ, db = aᵀ g, summed over what was broadcast.
pub(super) fn matmul(cx: &mut Context<'_>) -> Done {
    let (g, a, b) = (cx.g()?, cx.x(0).to_owned(), cx.x(1).to_owned());
    let (rank_a, rank_b) = (cx.known.rank(&a)?, cx.known.rank(&b)?);
    if rank_a == 1 || rank_b == 1 {
        return with_vector(cx, &g, rank_a, rank_b);
    }
    if cx.wants(0) {
        let turned = cx.emit.transpose(&b, &last_two_swapped(rank_b));
        let product = cx.emit.op("MatMul", &[&g, &turned]);
        let gradient = if rank_b == 2 { product } else { summed(cx, &product, 0) };
        cx.give(0, gradient);
    }
    if cx.wants(1) {
        let gradient = if rank_b == 2 {
            let (rows_a, rows_g) = (rows(cx.emit, cx.known.size(&a, rank_a - 1), &a, rank_a), {
                let width = cx.known.size(&b, 1);
                rows(cx.emit, width, &g, rank_a)
            });
            cx.emit.gemm((&rows_a, Side::Transposed), (&rows_g, Side::Plain), 1.0)
        } else {
            let turned = cx.emit.transpose(&a, &last_two_swapped(rank_a));
            let product = cx.emit.op("MatMul", &[&turned, &g]);
            summed(cx, &product, 1)
        };
        cx.give(1, gradient);
    }
    Ok(())
}

/// `x` of any rank as a matrix whose rows are its last axis.
pub(crate) fn rows(emit: &mut Emit, width: Result<usize, String>, x: &str, rank: usize) -> String {
    if rank == 2 {
        return x.to_owned();
    }
    match width {
        Ok(width) if width > 0 => emit.reshape(x, &[-1, width as i64]),
        // Flatten takes the axes before the last together, whatever their sizes are.
        _ => emit.with("Flatten", &[x], vec![edgeward_graph::proto::AttributeProto::of_int("axis", rank as i64 - 1)]),
    }
}

/// The order of axes that transposes the matrices.
fn last_two_swapped(rank: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rank).collect();
    order.swap(rank - 2, rank - 1);
    order
}

/// A product of the output's batch axes, summed to those of an input.
fn summed(cx: &mut Context<'_>, product: &str, input: usize) -> String {
    let (y, to) = (cx.y(0).to_owned(), cx.x(input).to_owned());
    let tail = cx.known.dims(&to).and_then(|dims| Some(dims.get(dims.len().checked_sub(2)?..)?.to_vec()));
    let wide = match (cx.known.dims(&y), tail) {
        (Some(mut dims), Some(tail)) => {
            dims.truncate(dims.len().saturating_sub(2));
            dims.extend(tail);
            Some(dims)
        }
        _ => None,
    };
    if let (Some(wide), Some(narrow)) = (wide, cx.known.dims(&to))
        && let Some(sum) = unbroadcast_dims(cx.emit, product, &wide, &narrow)
    {
        return sum;
    }
    // Found within the run by the product's own shape.
    crate::shape::unbroadcast_in_run(cx.emit, product, &to)
}

/// A vector is a matrix of one row on the left, of one column on the right.
fn with_vector(cx: &mut Context<'_>, g: &str, rank_a: usize, rank_b: usize) -> Done {
    let (a, b) = (cx.x(0).to_owned(), cx.x(1).to_owned());
    let wide_a = if rank_a == 1 { cx.emit.unsqueeze(&a, &[0]) } else { a.clone() };
    let wide_b = if rank_b == 1 { cx.emit.unsqueeze(&b, &[1]) } else { b.clone() };
    let mut wide_g = g.to_owned();
    if rank_b == 1 {
        wide_g = cx.emit.unsqueeze(&wide_g, &[-1]);
    }
    if rank_a == 1 {
        wide_g = cx.emit.unsqueeze(&wide_g, &[-2]);
    }
    if cx.wants(0) {
        let turned = cx.emit.transpose(&wide_b, &last_two_swapped(rank_b.max(2)));
        let product = cx.emit.op("MatMul", &[&wide_g, &turned]);
        let gradient = vector_sum(cx, &product, rank_b, rank_a, &a);
        cx.give(0, gradient);
    }
    if cx.wants(1) {
        let turned = cx.emit.transpose(&wide_a, &last_two_swapped(rank_a.max(2)));
        let product = cx.emit.op("MatMul", &[&turned, &wide_g]);
        let gradient = vector_sum(cx, &product, rank_a, rank_b, &b);
        cx.give(1, gradient);
    }
    Ok(())
}

fn vector_sum(cx: &mut Context<'_>, product: &str, rank_other: usize, rank: usize, like: &str) -> String {
    let batch: Vec<i64> = (0..rank_other.saturating_sub(2) as i64).collect();
    let sum = if rank == 1 && !batch.is_empty() {
        cx.emit.sum(product, &batch, crate::emit::Axes::Drop)
    } else {
        product.to_owned()
    };
    cx.reshape_like(&sum, like)
}

/// y = α a' b' + β c, where a' and b' may be transposed.
pub(super) fn gemm(cx: &mut Context<'_>) -> Done {
    let (g, a, b) = (cx.g()?, cx.x(0).to_owned(), cx.x(1).to_owned());
    let (turned_a, turned_b) = (cx.int("transA", 0) != 0, cx.int("transB", 0) != 0);
    let (alpha, beta) = (cx.float("alpha", 1.0), cx.float("beta", 1.0));
    let side = |turned| if turned { Side::Transposed } else { Side::Plain };
    if cx.wants(0) {
        let gradient = if turned_a {
            cx.emit.gemm((&b, side(turned_b)), (&g, Side::Transposed), alpha as f32)
        } else {
            cx.emit.gemm((&g, Side::Plain), (&b, side(!turned_b)), alpha as f32)
        };
        cx.give(0, gradient);
    }
    if cx.wants(1) {
        let gradient = if turned_b {
            cx.emit.gemm((&g, Side::Transposed), (&a, side(turned_a)), alpha as f32)
        } else {
            cx.emit.gemm((&a, side(!turned_a)), (&g, Side::Plain), alpha as f32)
        };
        cx.give(1, gradient);
    }
    if cx.wants(2) {
        let sum = cx.unbroadcast(&g, 2);
        let dtype = cx.dtype(&a);
        let gradient = cx.emit.scale(&sum, dtype, beta);
        cx.give(2, gradient);
    }
    Ok(())
}

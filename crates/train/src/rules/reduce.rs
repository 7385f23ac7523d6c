//! Reductions and the softmax family.

use crate::{
    emit::Axes,
    gradient::{Context, Done},
    shape::axis,
};

/// What is reduced, brought back to the input's rank.
struct Reduced {
    /// The output's gradient, with axes of size 1.
    g: String,
    /// The output, with axes of size 1.
    y: String,
    /// Axes that were reduced, empty for all.
    axes: Vec<i64>,
}

impl Reduced {
    /// None where nothing is reduced.
    fn of(cx: &mut Context<'_>) -> Result<Option<Self>, String> {
        let (g, x, y) = (cx.g()?, cx.x(0).to_owned(), cx.y(0).to_owned());
        let axes = cx.list("axes", 1)?.unwrap_or_default();
        if axes.is_empty() && cx.int("noop_with_empty_axes", 0) != 0 {
            return Ok(None);
        }
        if cx.int("keepdims", 1) != 0 {
            return Ok(Some(Self { g, y, axes }));
        }
        let rank = cx.known.rank(&x)?;
        let mut places: Vec<i64> = axes.iter().map(|&a| axis(a, rank).map(|a| a as i64)).collect::<Result<_, _>>()?;
        if places.is_empty() {
            places = (0..rank as i64).collect();
        }
        places.sort_unstable();
        let (g, y) = (cx.emit.unsqueeze(&g, &places), cx.emit.unsqueeze(&y, &places));
        Ok(Some(Self { g, y, axes }))
    }
}

/// ReduceSum, ReduceMean and their kin.
pub(super) fn reduce(cx: &mut Context<'_>) -> Done {
    let x = cx.x(0).to_owned();
    let dtype = cx.dtype(&x);
    let kind = cx.node.op_type();
    let Some(Reduced { g, y, axes }) = Reduced::of(cx)? else {
        return Err("reduces nothing; remove the node".to_owned());
    };
    let gradient = match kind {
        "ReduceSum" => cx.expand_like(&g, &x),
        "ReduceMean" => {
            let g = over_count(cx, &g, &x, &axes)?;
            cx.expand_like(&g, &x)
        }
        "ReduceSumSquare" => {
            let twice = cx.emit.scale(&g, dtype, 2.0);
            cx.emit.op("Mul", &[&x, &twice])
        }
        "ReduceL1" => {
            let sign = cx.emit.op("Sign", &[&x]);
            cx.emit.op("Mul", &[&sign, &g])
        }
        // g x / y, and 0 where all are 0
        "ReduceL2" => {
            let tiny = cx.emit.scalar(dtype, f64::from(f32::MIN_POSITIVE));
            let norm = cx.emit.op("Max", &[&y, &tiny]);
            let share = cx.emit.op("Div", &[&g, &norm]);
            cx.emit.op("Mul", &[&x, &share])
        }
        "ReduceLogSum" => {
            let sum = cx.emit.op("Exp", &[&y]);
            let share = cx.emit.op("Div", &[&g, &sum]);
            cx.expand_like(&share, &x)
        }
        "ReduceLogSumExp" => {
            let less = cx.emit.op("Sub", &[&x, &y]);
            let share = cx.emit.op("Exp", &[&less]);
            cx.emit.op("Mul", &[&share, &g])
        }
        "ReduceProd" => {
            let product = cx.emit.op("Mul", &[&g, &y]);
            cx.emit.op("Div", &[&product, &x])
        }
        // To the elements that equal the extreme, shared among them.
        _ => {
            let equal = cx.emit.op("Equal", &[&x, &y]);
            let mask = cx.emit.cast(&equal, dtype);
            let count = cx.emit.sum(&mask, &axes, Axes::Keep);
            let share = cx.emit.op("Div", &[&g, &count]);
            cx.emit.op("Mul", &[&mask, &share])
        }
    };
    cx.give(0, gradient);
    Ok(())
}

/// `g` divided by the number of elements that were taken together.
fn over_count(cx: &mut Context<'_>, g: &str, x: &str, axes: &[i64]) -> Result<String, String> {
    let (dtype, rank) = (cx.dtype(x), cx.known.rank(x)?);
    let places: Vec<usize> = if axes.is_empty() {
        (0..rank).collect()
    } else {
        axes.iter().map(|&a| axis(a, rank)).collect::<Result<_, _>>()?
    };
    let sizes: Result<Vec<usize>, String> = places.iter().map(|&a| cx.known.size(x, a)).collect();
    if let Ok(sizes) = sizes {
        let count: f64 = sizes.iter().map(|&s| s as f64).product();
        return Ok(cx.emit.scale(g, dtype, 1.0 / count.max(1.0)));
    }
    let shape = cx.emit.op("Shape", &[x]);
    let places = cx.emit.ints(&places.iter().map(|&a| a as i64).collect::<Vec<_>>());
    let sizes = cx.emit.op("Gather", &[&shape, &places]);
    let sizes = cx.emit.cast(&sizes, dtype);
    let count = cx.emit.reduce("ReduceProd", &sizes, &[], Axes::Drop);
    Ok(cx.emit.op("Div", &[g, &count]))
}

/// y = softmax(x): y (g - Σ g y)
pub(super) fn softmax(cx: &mut Context<'_>) -> Done {
    let (g, y) = (cx.g()?, cx.y(0).to_owned());
    let along = cx.int("axis", -1);
    let product = cx.emit.op("Mul", &[&g, &y]);
    let sum = cx.emit.sum(&product, &[along], Axes::Keep);
    let share = cx.emit.op("Mul", &[&y, &sum]);
    let gradient = cx.emit.op("Sub", &[&product, &share]);
    cx.give(0, gradient);
    Ok(())
}

/// y = log softmax(x): g - exp(y) Σ g
pub(super) fn log_softmax(cx: &mut Context<'_>) -> Done {
    let (g, y) = (cx.g()?, cx.y(0).to_owned());
    let along = cx.int("axis", -1);
    let sum = cx.emit.sum(&g, &[along], Axes::Keep);
    let probabilities = cx.emit.op("Exp", &[&y]);
    let share = cx.emit.op("Mul", &[&probabilities, &sum]);
    let gradient = cx.emit.op("Sub", &[&g, &share]);
    cx.give(0, gradient);
    Ok(())
}

//! Pools: the gradient goes back to the elements that each window took.

use edgeward_graph::{Dimension, proto::AttributeProto};

use super::convolve::{Window, spatial_sizes, spread};
use crate::{
    emit::Axes,
    gradient::{Context, Done},
    known::Known,
};

/// Windows whose elements are counted one by one.
const COUNTS_MAX: i64 = 1 << 22;

/// The window of a pool. With `ceil_mode` the last window may reach beyond the padding: so does the padding then.
fn window(known: &Known, cx: &Context<'_>) -> Result<Window, String> {
    let mut window = Window::of(known, cx.node, cx.x(0), None)?;
    if cx.int("ceil_mode", 0) != 0 {
        for i in 0..window.rank() {
            let (size, steps) = (known.size(cx.x(0), i + 2)? as i64, known.size(cx.y(0), i + 2)? as i64);
            let last = (steps - 1).saturating_mul(window.strides[i]).saturating_add(window.reach(i));
            window.ends[i] = window.ends[i].max(last.saturating_sub(size).saturating_sub(window.begins[i]));
        }
    }
    Ok(window)
}

/// `x` [n, c, …] as [n · c, 1, …], so that one kernel serves all channels.
fn single_channel(cx: &mut Context<'_>, x: &str, like: &str, channels: i64) -> Result<String, String> {
    let dims = cx.known.dims(like).ok_or_else(|| format!("the rank of `{like}` is not known before a run"))?;
    let sizes: Option<Vec<i64>> =
        dims.iter().skip(2).map(|d| if let Dimension::Fixed(size) = d { Some(*size as i64) } else { None }).collect();
    if let Some(sizes) = sizes {
        return Ok(cx.emit.reshape(x, &[&[-1, channels], sizes.as_slice()].concat()));
    }
    let shape = cx.emit.with("Shape", &[like], vec![AttributeProto::of_int("start", 2)]);
    let head = cx.emit.ints(&[-1, channels]);
    let target = cx.emit.concat(&[head, shape], 0);
    Ok(cx.emit.op("Reshape", &[x, &target]))
}

/// Each window's gradient to the first of its elements that equals its maximum.
///
/// The operator's own indices would need a scatter, which takes as long; engines that lack them train too this way.
pub(super) fn max(cx: &mut Context<'_>) -> Done {
    let (g, x, y) = (cx.g()?, cx.x(0).to_owned(), cx.y(0).to_owned());
    let window = window(cx.known, cx)?;
    let dtype = cx.dtype(&x);
    let lowest = cx.emit.scalar(dtype, f64::NEG_INFINITY);
    let pads = window.pads();
    let padded = if pads.iter().all(|&p| p == 0) {
        x.clone()
    } else {
        let pads = cx.emit.ints(&pads);
        cx.emit.op("Pad", &[&x, &pads, &lowest])
    };
    let steps = spatial_sizes(cx.known, &y, window.rank());
    let places = window.taps();
    let mut free: Option<String> = None;
    let mut masks = Vec::new();
    for place in &places {
        let tap = window.tap(cx.emit, &padded, place, &steps);
        let mut taken = cx.emit.op("Equal", &[&tap, &y]);
        free = Some(match free {
            None => cx.emit.op("Not", &[&taken]),
            Some(free) => {
                taken = cx.emit.op("And", &[&taken, &free]);
                cx.emit.op("Xor", &[&free, &taken])
            }
        });
        let mask = cx.emit.cast(&taken, dtype);
        masks.push(single_channel(cx, &mask, &y, 1)?);
    }
    let all = cx.emit.concat(&masks, 1);
    let g = single_channel(cx, &g, &y, 1)?;
    let shares = cx.emit.op("Mul", &[&all, &g]);
    // Kernel i puts its channel at place i of the window.
    let count = places.len();
    let mut kernels = vec![0.0; count * count];
    kernels.iter_mut().step_by(count + 1).for_each(|one| *one = 1.0);
    let shape: Vec<usize> = [count, 1].into_iter().chain(window.kernel.iter().map(|&k| k as usize)).collect();
    let kernels = cx.emit.floats(dtype, &shape, &kernels);
    let spread = spread(cx, &window, &shares, &kernels, 1, &x);
    let gradient = cx.reshape_like(&spread, &x);
    cx.give(0, gradient);
    Ok(())
}

/// Each window's gradient to all of its elements alike; padding counts where the node says so.
pub(super) fn average(cx: &mut Context<'_>) -> Done {
    let (g, x, y) = (cx.g()?, cx.x(0).to_owned(), cx.y(0).to_owned());
    let own = Window::of(cx.known, cx.node, &x, None)?;
    let window = window(cx.known, cx)?;
    let dtype = cx.dtype(&x);
    let area: i64 = window.kernel.iter().product();
    let with_pads = cx.int("count_include_pad", 0) != 0;
    let padded = own.begins.iter().chain(&own.ends).any(|&p| p != 0);
    let shares = if (padded && !with_pads) || cx.int("ceil_mode", 0) != 0 {
        let counts = counts(cx, &own, with_pads)?;
        cx.emit.op("Div", &[&g, &counts])
    } else {
        cx.emit.scale(&g, dtype, 1.0 / area as f64)
    };
    let shares = single_channel(cx, &shares, &y, 1)?;
    let shape: Vec<usize> = [1, 1].into_iter().chain(window.kernel.iter().map(|&k| k as usize)).collect();
    let ones = cx.emit.floats(dtype, &shape, &vec![1.0; area as usize]);
    let spread = spread(cx, &window, &shares, &ones, 1, &x);
    let gradient = cx.reshape_like(&spread, &x);
    cx.give(0, gradient);
    Ok(())
}

/// How many elements each window counts, [places…].
fn counts(cx: &mut Context<'_>, own: &Window, with_pads: bool) -> Result<String, String> {
    let mut along = Vec::new();
    for i in 0..own.rank() {
        let size = cx.known.size(cx.x(0), i + 2)? as i64;
        let steps = cx.known.size(cx.y(0), i + 2)? as i64;
        let (low, high) = if with_pads { (-own.begins[i], size + own.ends[i]) } else { (0, size) };
        if steps > COUNTS_MAX {
            return Err(format!("counts {steps} windows along axis {}, at most {COUNTS_MAX} are", i + 2));
        }
        let inside = |step: i64| {
            let start = step * own.strides[i] - own.begins[i];
            (0..own.kernel[i]).map(|k| start + k * own.dilations[i]).filter(|&at| at >= low && at < high).count()
        };
        along.push((0..steps).map(inside).collect::<Vec<usize>>());
    }
    let windows = along.iter().try_fold(1usize, |n, axis| n.checked_mul(axis.len()));
    if windows.is_none_or(|n| n > COUNTS_MAX as usize) {
        return Err(format!("counts more than {COUNTS_MAX} windows"));
    }
    let all = along.iter().fold(vec![1.0f64], |counts, axis| {
        counts.iter().flat_map(|c| axis.iter().map(move |&n| c * n.max(1) as f64)).collect()
    });
    let shape: Vec<usize> = along.iter().map(Vec::len).collect();
    let dtype = cx.dtype(cx.x(0));
    Ok(cx.emit.floats(dtype, &shape, &all))
}

pub(super) fn global_average(cx: &mut Context<'_>) -> Done {
    let (g, x) = (cx.g()?, cx.x(0).to_owned());
    let dtype = cx.dtype(&x);
    let rank = cx.known.rank(&x)?;
    let sizes: Result<Vec<usize>, String> = (2..rank).map(|i| cx.known.size(&x, i)).collect();
    let share = match sizes {
        Ok(sizes) => cx.emit.scale(&g, dtype, 1.0 / sizes.iter().map(|&s| s as f64).product::<f64>().max(1.0)),
        Err(_) => {
            let shape = cx.emit.with("Shape", &[&x], vec![AttributeProto::of_int("start", 2)]);
            let area = cx.emit.reduce("ReduceProd", &shape, &[], Axes::Drop);
            let area = cx.emit.cast(&area, dtype);
            cx.emit.op("Div", &[&g, &area])
        }
    };
    let gradient = cx.expand_like(&share, &x);
    cx.give(0, gradient);
    Ok(())
}

/// To the elements that equal the maximum, shared among them.
pub(super) fn global_max(cx: &mut Context<'_>) -> Done {
    let (g, x, y) = (cx.g()?, cx.x(0).to_owned(), cx.y(0).to_owned());
    let (dtype, rank) = (cx.dtype(&x), cx.known.rank(&x)? as i64);
    let equal = cx.emit.op("Equal", &[&x, &y]);
    let mask = cx.emit.cast(&equal, dtype);
    let count = cx.emit.sum(&mask, &(2..rank).collect::<Vec<_>>(), Axes::Keep);
    let share = cx.emit.op("Div", &[&g, &count]);
    let gradient = cx.emit.op("Mul", &[&mask, &share]);
    cx.give(0, gradient);
    Ok(())
}

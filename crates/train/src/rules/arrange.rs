//! Operators that arrange elements: what they moved, their gradients move back.

use edgeward_graph::proto::AttributeProto;

use crate::{
    emit::{Axes, Place, Range},
    gradient::{Context, Done},
    shape::axis,
};

/// Reshape, Flatten, Squeeze, Unsqueeze, Identity.
pub(super) fn same_elements(cx: &mut Context<'_>) -> Done {
    let (g, x) = (cx.g()?, cx.x(0).to_owned());
    let gradient = if cx.node.op_type() == "Identity" { g } else { cx.reshape_like(&g, &x) };
    cx.give(0, gradient);
    Ok(())
}

/// Dropout that was left in the graph does nothing: training puts masks in its place before.
pub(super) fn dropout(cx: &mut Context<'_>) -> Done {
    let g = cx.g()?;
    cx.give(0, g);
    Ok(())
}

pub(super) fn transpose(cx: &mut Context<'_>) -> Done {
    let (g, rank) = (cx.g()?, cx.known.rank(cx.x(0))?);
    let order: Vec<usize> = match cx.node.attr_ints("perm") {
        Some(order) => order.iter().map(|&a| axis(a, rank)).collect::<Result<_, _>>()?,
        None => (0..rank).rev().collect(),
    };
    let mut back = vec![0; rank];
    for (to, &from) in order.iter().enumerate() {
        if let Some(place) = back.get_mut(from) {
            *place = to;
        }
    }
    let gradient = cx.emit.transpose(&g, &back);
    cx.give(0, gradient);
    Ok(())
}

pub(super) fn expand(cx: &mut Context<'_>) -> Done {
    let g = cx.g()?;
    let gradient = cx.unbroadcast(&g, 0);
    cx.give(0, gradient);
    Ok(())
}

/// Tile: the copies along each axis lie in blocks, which are summed.
pub(super) fn tile(cx: &mut Context<'_>) -> Done {
    let (g, x) = (cx.g()?, cx.x(0).to_owned());
    let repeats = cx.list("repeats", 1)?.ok_or("has no `repeats`")?;
    let sizes = cx.known.sizes(&x)?;
    let apart: Vec<i64> = repeats.iter().zip(&sizes).flat_map(|(&r, &s)| [r, s as i64]).collect();
    let blocks = cx.emit.reshape(&g, &apart);
    let axes: Vec<i64> = (0..sizes.len() as i64).map(|i| 2 * i).collect();
    let gradient = cx.emit.sum(&blocks, &axes, Axes::Drop);
    cx.give(0, gradient);
    Ok(())
}

/// Concat: each input's part.
pub(super) fn concat(cx: &mut Context<'_>) -> Done {
    let g = cx.g()?;
    let along = axis(cx.int("axis", 0), cx.known.rank(cx.y(0))?)?;
    let sizes: Result<Vec<i64>, String> =
        cx.node.input.iter().map(|x| cx.known.size(x, along).map(|s| s as i64)).collect();
    if let Ok(sizes) = sizes {
        let parts = cx.emit.split(&g, &sizes, along as i64);
        for (input, part) in parts.into_iter().enumerate().filter(|(i, _)| cx.wants(*i)).collect::<Vec<_>>() {
            cx.give(input, part);
        }
        return Ok(());
    }
    // Sizes that only a run knows: Split takes them as it finds them.
    let names = cx.node.input.clone();
    let sizes: Vec<String> = names.iter().map(|x| size_in_run(cx, x, along)).collect();
    let sizes = cx.emit.concat(&sizes, 0);
    let attribute = AttributeProto::of_int("axis", along as i64);
    let parts = cx.emit.several("Split", &[&g, &sizes], vec![attribute], names.len());
    for (input, part) in parts.into_iter().enumerate().filter(|(i, _)| cx.wants(*i)).collect::<Vec<_>>() {
        cx.give(input, part);
    }
    Ok(())
}

/// A list of one: the size of `x` along an axis.
pub(super) fn size_in_run(cx: &mut Context<'_>, x: &str, along: usize) -> String {
    let (start, end) = (AttributeProto::of_int("start", along as i64), AttributeProto::of_int("end", along as i64 + 1));
    cx.emit.with("Shape", &[x], vec![start, end])
}

/// Split: the parts' gradients one after the other, zeros where a part has none.
pub(super) fn split(cx: &mut Context<'_>) -> Done {
    let along = axis(cx.int("axis", 0), cx.known.rank(cx.x(0))?)?;
    let dtype = cx.dtype(cx.x(0));
    let names = cx.node.output.clone();
    let parts: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(i, name)| cx.gradient(i).unwrap_or_else(|| cx.emit.zeros_like(name, dtype)))
        .collect();
    let gradient = cx.emit.concat(&parts, along as i64);
    cx.give(0, gradient);
    Ok(())
}

/// Slice: zeros around the gradient, and between its elements where steps were taken.
pub(super) fn slice(cx: &mut Context<'_>) -> Done {
    let (g, x) = (cx.g()?, cx.x(0).to_owned());
    let rank = cx.known.rank(&x)?;
    let starts = cx.list("starts", 1)?.ok_or("has no `starts`")?;
    let ends = cx.list("ends", 2)?.ok_or("has no `ends`")?;
    let axes = cx.list("axes", 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = if cx.x(4).is_empty() { vec![1; starts.len()] } else { cx.list("steps", 4)?.unwrap_or_default() };
    let mut parts = Vec::new();
    for (((&start, &end), &along), &step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
        parts.push(Part { along: axis(along, rank)?, start, end, step });
    }
    let mut gradient = g;
    for part in parts {
        gradient = part.back(cx, &gradient, &x, rank)?;
    }
    cx.give(0, gradient);
    Ok(())
}

/// What a slice takes along one axis.
#[derive(Clone, Copy)]
struct Part {
    along: usize,
    start: i64,
    end: i64,
    step: i64,
}

impl Part {
    /// The gradient as it lay along this axis before the slice.
    fn back(&self, cx: &mut Context<'_>, g: &str, x: &str, rank: usize) -> Result<String, String> {
        let Ok(size) = cx.known.size(x, self.along) else { return self.back_in_run(cx, g, x, rank) };
        let size = (size as i64).min(i64::MAX / 4);
        if self.step == 0 {
            return Err("has a step of 0".to_owned());
        }
        // Longer steps than the axis take one element, as this one does.
        let own = Self { step: self.step.clamp(-size - 1, size + 1), ..*self };
        own.back_sized(cx, g, x, rank, size)
    }

    fn back_sized(&self, cx: &mut Context<'_>, g: &str, x: &str, rank: usize, size: i64) -> Result<String, String> {
        let at = |position: i64| if position < 0 { position.saturating_add(size) } else { position };
        let (first, count) = if self.step > 0 {
            let (from, to) = (at(self.start).clamp(0, size), at(self.end).clamp(0, size));
            (from, (to - from).max(0).div_ceil_positive(self.step))
        } else {
            let to = if self.end == i64::MIN || self.end < -size { -1 } else { at(self.end).clamp(-1, size - 1) };
            let from = at(self.start).clamp(-1, size - 1);
            (from, (from - to).max(0).div_ceil_positive(-self.step))
        };
        if count == 0 {
            let dtype = cx.dtype(x);
            return Ok(cx.emit.zeros_like(x, dtype));
        }
        let mut turned = g.to_owned();
        let mut begin = first;
        if self.step < 0 {
            let backwards = Range { axis: self.along as i64, start: -1, end: i64::MIN + 1, step: -1 };
            turned = cx.emit.slice(&turned, &[backwards]);
            begin = first + (count - 1) * self.step;
        }
        let apart = self.apart(cx, &turned, count, rank);
        let length = (count - 1) * self.step.abs() + 1;
        Ok(cx.emit.placed(&apart, Place { axis: self.along, begin, end: begin + length, size }, rank))
    }

    /// Zeros between the elements: `|step| - 1` after each but the last.
    fn apart(&self, cx: &mut Context<'_>, g: &str, count: i64, rank: usize) -> String {
        let step = self.step.abs();
        if step == 1 || count == 1 {
            return g.to_owned();
        }
        let next = self.along as i64 + 1;
        let single = cx.emit.unsqueeze(g, &[next]);
        let mut pads = vec![0; 2 * (rank + 1)];
        if let Some(end) = pads.get_mut(rank + 1 + self.along + 1) {
            *end = step - 1;
        }
        let wide = cx.emit.pad(&single, &pads);
        let joined = join(cx, &wide, self.along, rank);
        let cut = Range { axis: self.along as i64, start: 0, end: (count - 1) * step + 1, step: 1 };
        cx.emit.slice(&joined, &[cut])
    }

    /// Where the size is known in the run only: a slice from the begin on, or up to a position, in steps of 1.
    fn back_in_run(&self, cx: &mut Context<'_>, g: &str, x: &str, rank: usize) -> Result<String, String> {
        if self.step != 1 {
            return Err(format!("steps along axis {}, whose size is not known before a run", self.along));
        }
        let (whole, part) = (size_in_run(cx, x, self.along), size_in_run(cx, g, self.along));
        let rest = cx.emit.op("Sub", &[&whole, &part]);
        let before = if self.start >= 0 {
            // A start beyond the end leaves nothing, and all of it is padding.
            let start = cx.emit.ints(&[self.start]);
            cx.emit.op("Min", &[&start, &whole])
        } else {
            let start = cx.emit.ints(&[self.start]);
            let from = cx.emit.op("Add", &[&whole, &start]);
            let zero = cx.emit.ints(&[0]);
            cx.emit.op("Max", &[&from, &zero])
        };
        let after = cx.emit.op("Sub", &[&rest, &before]);
        let (lead, tail) = (vec![0; self.along], vec![0; rank - 1 - self.along]);
        let (lead, tail) = (cx.emit.ints(&lead), cx.emit.ints(&tail));
        let pads = [&lead, &before, &tail, &lead, &after, &tail].map(Clone::clone);
        let pads = cx.emit.concat(&pads, 0);
        Ok(cx.emit.op("Pad", &[g, &pads]))
    }
}

/// Axis `along` and the next as one, of a value of `rank + 1` axes.
fn join(cx: &mut Context<'_>, wide: &str, along: usize, rank: usize) -> String {
    let shape = cx.emit.op("Shape", &[wide]);
    let before: Vec<i64> = (0..along as i64).collect();
    let after: Vec<i64> = (along as i64 + 2..rank as i64 + 1).collect();
    let open = cx.emit.ints(&[-1]);
    let mut parts = Vec::new();
    for (list, is_open) in [(before, false), (Vec::new(), true), (after, false)] {
        if is_open {
            parts.push(open.clone());
        } else if !list.is_empty() {
            let places = cx.emit.ints(&list);
            parts.push(cx.emit.op("Gather", &[&shape, &places]));
        }
    }
    let target = cx.emit.concat(&parts, 0);
    cx.emit.op("Reshape", &[wide, &target])
}

trait DivCeil {
    fn div_ceil_positive(self, by: i64) -> i64;
}

impl DivCeil for i64 {
    fn div_ceil_positive(self, by: i64) -> i64 {
        (self + by - 1).div_euclid(by)
    }
}

const PAD_MAX: i64 = 1 << 40;

/// Pad with a constant: the padding cut off. Reflecting and repeating pads sum into what they copy.
pub(super) fn pad(cx: &mut Context<'_>) -> Done {
    let (g, x) = (cx.g()?, cx.x(0).to_owned());
    let rank = cx.known.rank(&x)?;
    let given = cx.list("pads", 1)?.ok_or("has no `pads`")?;
    let axes = match cx.x(3) {
        "" => (0..rank).collect::<Vec<_>>(),
        name => {
            let list = cx.known.integers(name).ok_or("its `axes` are computed in the run, expected a constant")?;
            list.into_iter().map(|a| axis(a, rank)).collect::<Result<_, _>>()?
        }
    };
    if given.iter().any(|p| !(-PAD_MAX..=PAD_MAX).contains(p)) {
        return Err(format!("pads by more than {PAD_MAX}"));
    }
    let mut pads = vec![0i64; 2 * rank];
    for (i, &along) in axes.iter().enumerate() {
        for (to, from) in [(along, i), (rank + along, i + axes.len())] {
            let value = given.get(from).copied().ok_or("`pads` does not fit its axes")?;
            *pads.get_mut(to).ok_or("`pads` does not fit its input")? = value;
        }
    }
    let mode = cx.node.attr_text("mode").unwrap_or("constant").to_owned();
    let gradient = if mode == "constant" {
        unpadded(cx, &g, &pads)
    } else {
        super::resize::copying_pad(cx, &g, &x, &pads, &mode)?
    };
    cx.give(0, gradient);
    Ok(())
}

/// The padding cut off, and zeros put where the node cut off: both at once would be negative padding, which few engines know.
fn unpadded(cx: &mut Context<'_>, g: &str, pads: &[i64]) -> String {
    let (begins, ends) = pads.split_at(pads.len() / 2);
    let ranges: Vec<Range> = (0..)
        .zip(begins.iter().zip(ends))
        .filter(|(_, (begin, end))| **begin > 0 || **end > 0)
        .map(|(axis, (&begin, &end))| {
            let end = if end > 0 { -end } else { i64::MAX };
            Range { axis, start: begin.max(0), end, step: 1 }
        })
        .collect();
    let cut = if ranges.is_empty() { g.to_owned() } else { cx.emit.slice(g, &ranges) };
    cx.emit.pad(&cut, &pads.iter().map(|p| (-p).max(0)).collect::<Vec<_>>())
}

/// Each is the other's inverse, but for DepthToSpace in its column-row-depth order, which is taken apart.
pub(super) fn depth_space(cx: &mut Context<'_>) -> Done {
    let g = cx.g()?;
    let block = AttributeProto::of_int("blocksize", cx.int("blocksize", 1));
    let gradient = match (cx.node.op_type(), cx.node.attr_text("mode")) {
        ("SpaceToDepth", _) => cx.emit.with("DepthToSpace", &[&g], vec![block]),
        (_, Some("CRD")) => {
            let (size, b) = (cx.known.size(cx.x(0), 1)? as i64, cx.int("blocksize", 1).clamp(1, 1 << 16));
            let channels = size / (b * b);
            let deep = cx.emit.with("SpaceToDepth", &[&g], vec![block]);
            // [n, b², c, …] to [n, c, b², …]
            let (h, w) = (cx.known.size(cx.x(0), 2)? as i64, cx.known.size(cx.x(0), 3)? as i64);
            let apart = cx.emit.reshape(&deep, &[-1, b * b, channels, h, w]);
            let turned = cx.emit.transpose(&apart, &[0, 2, 1, 3, 4]);
            cx.emit.reshape(&turned, &[-1, size, h, w])
        }
        _ => cx.emit.with("SpaceToDepth", &[&g], vec![block]),
    };
    cx.give(0, gradient);
    Ok(())
}

/// Trilu: the same triangle of the gradient.
pub(super) fn trilu(cx: &mut Context<'_>) -> Done {
    let g = cx.g()?;
    let upper = AttributeProto::of_int("upper", cx.int("upper", 1));
    let gradient = match cx.x(1).to_owned().as_str() {
        "" => cx.emit.with("Trilu", &[&g], vec![upper]),
        k => cx.emit.with("Trilu", &[&g, k], vec![upper]),
    };
    cx.give(0, gradient);
    Ok(())
}

/// CumSum: the sum from the other end.
pub(super) fn cumulate(cx: &mut Context<'_>) -> Done {
    let (g, along) = (cx.g()?, cx.x(1).to_owned());
    let reverse = AttributeProto::of_int("reverse", 1 - cx.int("reverse", 0));
    let exclusive = AttributeProto::of_int("exclusive", cx.int("exclusive", 0));
    let gradient = cx.emit.with("CumSum", &[&g, &along], vec![exclusive, reverse]);
    cx.give(0, gradient);
    Ok(())
}

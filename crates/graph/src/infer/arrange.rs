//! Operators that arrange: shapes, slices, axes, gathering.

use super::{ValueType, View, axis, compute, items::Item, rules::Types};
use crate::{DataType, Dimension, eval};

use Dimension::{Fixed, Unknown};

fn of(dtype: Option<DataType>, shape: Option<Vec<Dimension>>) -> ValueType {
    ValueType { dtype, shape }
}

/// The first input's type under another shape.
fn like(view: &View<'_>, shape: Option<Vec<Dimension>>) -> Types {
    Ok(vec![of(view.dtype(0), shape)])
}

pub(super) fn reduce(view: &View<'_>) -> Types {
    let Some(dims) = view.dims(0) else { return like(view, None) };
    let keep = view.int("keepdims", 1) != 0;
    let given = view.node.attr_ints("axes").is_some() || view.has(1);
    let axes = match view.list("axes", 1) {
        Some(axes) => axes.into_iter().map(|a| axis(a, dims.len())).collect::<Result<Vec<_>, _>>()?,
        None if given => {
            return like(view, keep.then(|| vec![Unknown; dims.len()]));
        }
        None => Vec::new(),
    };
    if axes.is_empty() && view.int("noop_with_empty_axes", 0) != 0 {
        return like(view, Some(dims));
    }
    let reduced = |i: usize| axes.is_empty() || axes.contains(&i);
    let shape = dims.into_iter().enumerate().filter_map(|(i, dim)| match (reduced(i), keep) {
        (true, true) => Some(Fixed(1)),
        (true, false) => None,
        (false, _) => Some(dim),
    });
    like(view, Some(shape.collect()))
}

pub(super) fn arg(view: &View<'_>) -> Types {
    let dtype = Some(DataType::Int64);
    let Some(mut dims) = view.dims(0) else { return Ok(vec![of(dtype, None)]) };
    let at = axis(view.int("axis", 0), dims.len())?;
    if view.int("keepdims", 1) != 0 {
        dims[at] = Fixed(1);
    } else {
        dims.remove(at);
    }
    Ok(vec![of(dtype, Some(dims))])
}

pub(super) fn top_k(view: &View<'_>) -> Types {
    let Some(mut dims) = view.dims(0) else {
        return Ok(vec![of(view.dtype(0), None), of(Some(DataType::Int64), None)]);
    };
    let at = axis(view.int("axis", -1), dims.len())?;
    let attribute = view.node.attr_int("k").map(Item::Number);
    let count = attribute.or_else(|| view.items(1)?.first().cloned());
    dims[at] = count.map_or(Unknown, |count| count.dimension());
    Ok(vec![of(view.dtype(0), Some(dims.clone())), of(Some(DataType::Int64), Some(dims))])
}

pub(super) fn shape(view: &View<'_>) -> Vec<ValueType> {
    let count = view.dims(0).map_or(Unknown, |dims| {
        let rank = dims.len() as i64;
        let at = |position: i64| (if position < 0 { position + rank } else { position }).clamp(0, rank) as usize;
        Fixed(at(view.int("end", rank)).saturating_sub(at(view.int("start", 0))))
    });
    vec![of(Some(DataType::Int64), Some(vec![count]))]
}

pub(super) fn constant(view: &View<'_>) -> Vec<ValueType> {
    let list = |count: usize| Some(if count == usize::MAX { Vec::new() } else { vec![Fixed(count)] });
    let scalar = usize::MAX;
    let kinds = view.node.attribute.iter().find_map(|a| match a.name() {
        "value_float" => Some((DataType::Float32, scalar)),
        "value_floats" => Some((DataType::Float32, a.floats.len())),
        "value_int" => Some((DataType::Int64, scalar)),
        "value_ints" => Some((DataType::Int64, a.ints.len())),
        "value_string" => Some((DataType::String, scalar)),
        "value_strings" => Some((DataType::String, a.strings.len())),
        _ => None,
    });
    kinds.map(|(dtype, count)| of(Some(dtype), list(count))).into_iter().collect()
}

pub(super) fn constant_of_shape(view: &View<'_>) -> Vec<ValueType> {
    let tensor = view.node.attr("value").and_then(|a| a.t.as_ref());
    let dtype = tensor.map_or(Some(DataType::Float32), |t| DataType::from_onnx(t.data_type()));
    vec![of(dtype, listed(view, 0))]
}

/// The shape that an input's contents spell; only the rank where they are not known.
pub(super) fn listed(view: &View<'_>, index: usize) -> Option<Vec<Dimension>> {
    match (view.items(index), view.dims(index).as_deref()) {
        (Some(items), _) => Some(items.iter().map(Item::dimension).collect()),
        (None, Some([Fixed(rank)])) if *rank <= super::ITEMS_MAX => Some(vec![Unknown; *rank]),
        _ => None,
    }
}

pub(super) fn reshape(view: &View<'_>) -> Types {
    let attribute = view.node.attr_ints("shape").map(|s| s.iter().map(|&n| Item::Number(n)).collect::<Vec<_>>());
    let Some(target) = attribute.or_else(|| view.items(1).map(<[Item]>::to_vec)) else {
        return like(view, listed(view, 1));
    };
    let from = view.dims(0);
    let zero_is_zero = view.int("allowzero", 0) != 0;
    let mut open = None;
    let mut shape = Vec::with_capacity(target.len());
    for (i, item) in target.iter().enumerate() {
        shape.push(match item {
            Item::Number(-1) if open.is_some() => return Err("the target shape has more than one -1".to_owned()),
            Item::Number(-1) => {
                open = Some(i);
                Unknown
            }
            Item::Number(0) if !zero_is_zero => from.as_ref().and_then(|dims| dims.get(i).cloned()).unwrap_or(Unknown),
            Item::Number(n) if *n < 0 => return Err(format!("the target shape holds {n}")),
            other => other.dimension(),
        });
    }
    let Some(from) = from else { return like(view, Some(shape)) };
    if let Some(open) = open {
        shape[open] = remainder(&from, &shape, open)?;
    } else if let (Some(a), Some(b)) = (count(&from), count(&shape))
        && a != b
    {
        return Err(format!("{a} elements do not fill a shape of {b}"));
    }
    like(view, Some(shape))
}

fn count(dims: &[Dimension]) -> Option<usize> {
    dims.iter().try_fold(1usize, |n, dim| if let Fixed(size) = dim { n.checked_mul(*size) } else { None })
}

/// What is left for one dimension: factors that stand on both sides cancel out.
fn remainder(from: &[Dimension], to: &[Dimension], open: usize) -> Result<Dimension, String> {
    let mut left: Vec<Dimension> = from.to_vec();
    let mut divisor = 1usize;
    for (_, dim) in to.iter().enumerate().filter(|(i, _)| *i != open) {
        match (dim, left.iter().position(|other| other == dim && !matches!(dim, Unknown))) {
            (_, Some(at)) => drop(left.remove(at)),
            (Fixed(size), None) => divisor = divisor.saturating_mul(*size),
            _ => return Ok(Unknown),
        }
    }
    match left.iter().filter(|dim| **dim != Fixed(1)).collect::<Vec<_>>().as_slice() {
        [symbol @ Dimension::Symbol(_)] if divisor == 1 => return Ok((*symbol).clone()),
        _ => {}
    }
    match count(&left) {
        Some(total) if divisor > 0 && total.is_multiple_of(divisor) => Ok(Fixed(total / divisor)),
        Some(total) if divisor > 0 => Err(format!("{total} elements do not divide by {divisor}")),
        _ => Ok(Unknown),
    }
}

pub(super) fn flatten(view: &View<'_>) -> Types {
    let Some(dims) = view.dims(0) else { return like(view, Some(vec![Unknown; 2])) };
    let at = view.int("axis", 1);
    let at = if at == dims.len() as i64 { dims.len() } else { axis(at, dims.len())? };
    let part = |dims: &[Dimension]| match dims {
        [one] => one.clone(),
        many => count(many).map_or(Unknown, Fixed),
    };
    let (outer, inner) = dims.split_at(at);
    like(view, Some(vec![part(outer), part(inner)]))
}

pub(super) fn transpose(view: &View<'_>) -> Types {
    let Some(dims) = view.dims(0) else { return like(view, None) };
    let order = match view.node.attr_ints("perm") {
        Some(perm) => perm.iter().map(|&a| axis(a, dims.len())).collect::<Result<Vec<_>, _>>()?,
        None => (0..dims.len()).rev().collect(),
    };
    if order.len() != dims.len() {
        return Err(format!("`perm` has {} axes, the input {}", order.len(), dims.len()));
    }
    like(view, Some(order.into_iter().map(|i| dims[i].clone()).collect()))
}

pub(super) fn squeeze(view: &View<'_>) -> Types {
    let Some(dims) = view.dims(0) else { return like(view, None) };
    let given = view.node.attr_ints("axes").is_some() || view.has(1);
    let axes = match view.list("axes", 1) {
        Some(axes) => axes.into_iter().map(|a| axis(a, dims.len())).collect::<Result<Vec<_>, _>>()?,
        None if given || dims.iter().any(|d| !matches!(d, Fixed(_))) => return like(view, None),
        None => dims.iter().enumerate().filter(|(_, d)| **d == Fixed(1)).map(|(i, _)| i).collect(),
    };
    if let Some(wrong) = axes.iter().find(|&&i| matches!(dims[i], Fixed(n) if n != 1)) {
        return Err(format!("axis {wrong} has size {}, expected 1", compute::text(&dims[*wrong])));
    }
    let kept = dims.into_iter().enumerate().filter(|(i, _)| !axes.contains(i));
    like(view, Some(kept.map(|(_, dim)| dim).collect()))
}

pub(super) fn unsqueeze(view: &View<'_>) -> Types {
    let (Some(dims), Some(axes)) = (view.dims(0), view.list("axes", 1)) else { return like(view, None) };
    let rank = dims.len() + axes.len();
    let axes = axes.into_iter().map(|a| axis(a, rank)).collect::<Result<Vec<_>, _>>()?;
    let mut old = dims.into_iter();
    let shape = (0..rank).map(|i| if axes.contains(&i) { Fixed(1) } else { old.next().unwrap_or(Unknown) });
    like(view, Some(shape.collect()))
}

pub(super) fn concat(view: &View<'_>) -> Types {
    let inputs: Option<Vec<Vec<Dimension>>> = (0..view.node.input.len()).map(|i| view.dims(i)).collect();
    let Some((first, rest)) = inputs.as_deref().and_then(<[_]>::split_first) else { return like(view, None) };
    let at = axis(view.int("axis", 0), first.len())?;
    let mut shape = first.clone();
    for other in rest {
        if other.len() != shape.len() {
            return Err(format!("joins ranks {} and {}", shape.len(), other.len()));
        }
        for (i, (dim, next)) in shape.iter_mut().zip(other).enumerate() {
            *dim = match (&dim, next) {
                (Fixed(a), Fixed(b)) if i == at => Fixed(a.saturating_add(*b)),
                _ if i == at => Unknown,
                (a, b) => compute::same(a, b)?,
            };
        }
    }
    like(view, Some(shape))
}

pub(super) fn split(view: &View<'_>) -> Types {
    let parts = view.outputs();
    let Some(dims) = view.dims(0) else { return Ok(vec![of(view.dtype(0), None); parts]) };
    let at = axis(view.int("axis", 0), dims.len())?;
    let given = view.node.attr_ints("split").is_some() || view.has(1);
    let sizes: Vec<Dimension> = match (view.list("split", 1), &dims[at]) {
        (Some(sizes), _) => sizes.iter().map(|&s| usize::try_from(s).map_or(Unknown, Fixed)).collect(),
        (None, Fixed(whole)) if !given && parts > 0 => {
            let each = whole.div_ceil(parts);
            (0..parts).map(|i| Fixed(each.min(whole.saturating_sub(i * each)))).collect()
        }
        _ => vec![Unknown; parts],
    };
    if sizes.len() != parts {
        return Err(format!("splits into {} parts, it has {parts} outputs", sizes.len()));
    }
    let part = |size| {
        let mut shape = dims.clone();
        shape[at] = size;
        of(view.dtype(0), Some(shape))
    };
    Ok(sizes.into_iter().map(part).collect())
}

pub(super) fn slice(view: &View<'_>) -> Types {
    let Some(mut dims) = view.dims(0) else { return like(view, None) };
    let (starts, ends) = (view.list("starts", 1), view.list("ends", 2));
    let attributes = view.node.attr_ints("starts").is_some();
    let has_axes = view.node.attr_ints("axes").is_some() || !attributes && view.has(3);
    let axes = if has_axes { view.list("axes", 3) } else { starts.as_ref().map(|s| (0..s.len() as i64).collect()) };
    let Some(axes) = axes else { return like(view, Some(vec![Unknown; dims.len()])) };
    let has_steps = !attributes && view.has(4);
    let steps = if has_steps { view.numbers(4) } else { Some(vec![1; axes.len()]) };
    for (i, &a) in axes.iter().enumerate() {
        let at = axis(a, dims.len())?;
        let part = |list: &Option<Vec<i64>>| list.as_ref().and_then(|l| l.get(i).copied());
        dims[at] = match (&dims[at], part(&starts), part(&ends), part(&steps)) {
            (_, _, _, Some(0)) => return Err("steps by 0".to_owned()),
            (Fixed(size), Some(start), Some(end), Some(step)) => {
                eval::slice(*size, start, end, step).map_or(Unknown, |(_, length)| Fixed(length))
            }
            // From the first to the last, whatever the size.
            (dim, Some(0), Some(i64::MAX | 0x7fff_ffff), Some(1)) => dim.clone(),
            _ => Unknown,
        };
    }
    like(view, Some(dims))
}

pub(super) fn gather(view: &View<'_>) -> Types {
    let (Some(mut dims), Some(at)) = (view.dims(0), view.dims(1)) else { return like(view, None) };
    let axis = axis(view.int("axis", 0), dims.len())?;
    dims.splice(axis..=axis, at);
    like(view, Some(dims))
}

pub(super) fn gather_nd(view: &View<'_>) -> Types {
    let (Some(dims), Some(mut at)) = (view.dims(0), view.dims(1)) else { return like(view, None) };
    let batch = usize::try_from(view.int("batch_dims", 0)).unwrap_or(0);
    let Some(Fixed(depth)) = at.pop() else { return like(view, None) };
    let Some(rest) = dims.get(batch.saturating_add(depth)..) else {
        return Err(format!("indexes {depth} dimensions of {}", dims.len()));
    };
    at.extend_from_slice(rest);
    like(view, Some(at))
}

pub(super) fn expand(view: &View<'_>) -> Types {
    match (view.dims(0), listed(view, 1)) {
        (Some(a), Some(b)) => like(view, Some(compute::joined(&a, &b)?)),
        _ => like(view, None),
    }
}

pub(super) fn tile(view: &View<'_>) -> Types {
    let Some(dims) = view.dims(0) else { return like(view, None) };
    let times = view.numbers(1);
    let one = |(i, dim): (usize, Dimension)| match (dim, times.as_ref().and_then(|t| t.get(i))) {
        (Fixed(size), Some(&n)) => usize::try_from(n).map_or(Unknown, |n| Fixed(size.saturating_mul(n))),
        (dim, Some(1)) => dim,
        _ => Unknown,
    };
    like(view, Some(dims.into_iter().enumerate().map(one).collect()))
}

pub(super) fn pad(view: &View<'_>) -> Types {
    let Some(mut dims) = view.dims(0) else { return like(view, None) };
    let pads = view.list("pads", 1).or_else(|| view.node.attr_ints("paddings").map(<[i64]>::to_vec));
    let axes = if view.has(3) { view.numbers(3) } else { Some((0..dims.len() as i64).collect()) };
    let (Some(pads), Some(axes)) = (pads, axes) else { return like(view, Some(vec![Unknown; dims.len()])) };
    for (i, &a) in axes.iter().enumerate() {
        let at = axis(a, dims.len())?;
        let (Some(begin), Some(end)) = (pads.get(i), pads.get(i + axes.len())) else {
            return Err(format!("`pads` has {} numbers for {} axes", pads.len(), axes.len()));
        };
        dims[at] = match &dims[at] {
            Fixed(size) => {
                let padded = (*size as i64).saturating_add(*begin).saturating_add(*end);
                usize::try_from(padded).map(Fixed).map_err(|_| format!("pads axis {at} to {padded}"))?
            }
            dim if *begin == 0 && *end == 0 => dim.clone(),
            _ => Unknown,
        };
    }
    like(view, Some(dims))
}

pub(super) fn range(view: &View<'_>) -> Vec<ValueType> {
    let one = |i| view.items(i).and_then(|items| items.first().cloned());
    let count = match (one(0), one(1), one(2)) {
        (Some(Item::Number(from)), Some(Item::Number(to)), Some(Item::Number(step))) if step != 0 => {
            let length = to.saturating_sub(from);
            let steps = (length / step).saturating_add(i64::from(length % step != 0));
            Fixed(usize::try_from(steps.max(0)).unwrap_or(0))
        }
        (Some(Item::Number(0)), Some(end), Some(Item::Number(1))) => end.dimension(),
        _ => float_steps(view).map_or(Unknown, Fixed),
    };
    vec![of(view.dtype(0), Some(vec![count]))]
}

fn float_steps(view: &View<'_>) -> Option<usize> {
    let one = |i| view.floats(i)?.first().copied().map(f64::from);
    let steps = ((one(1)? - one(0)?) / one(2)?).ceil();
    // A cast of floats saturates, and makes 0 of what is no number.
    Some(steps as usize)
}

pub(super) fn one_hot(view: &View<'_>) -> Types {
    let dtype = view.dtype(2);
    let Some(mut dims) = view.dims(0) else { return Ok(vec![of(dtype, None)]) };
    let depth = view.items(1).and_then(|items| Some(items.first()?.dimension())).unwrap_or(Unknown);
    dims.insert(axis(view.int("axis", -1), dims.len() + 1)?, depth);
    Ok(vec![of(dtype, Some(dims))])
}

pub(super) fn resize(view: &View<'_>) -> Types {
    let Some(dims) = view.dims(0) else { return like(view, None) };
    let axes = match view.node.attr_ints("axes") {
        Some(axes) => axes.iter().map(|&a| axis(a, dims.len())).collect::<Result<Vec<_>, _>>()?,
        None => (0..dims.len()).collect(),
    };
    // Since version 11 a region stands before the scales.
    let at = if view.node.op_type() == "Upsample" || view.opset() < 11 { 1 } else { 2 };
    let attribute = view.node.attr("scales").map(|a| a.floats.as_slice());
    let scales = attribute.or_else(|| view.floats(at)).filter(|scales| scales.len() == axes.len());
    let sizes = if view.has(3) { listed(view, 3).filter(|sizes| sizes.len() == axes.len()) } else { None };
    let new: Option<Vec<Dimension>> = match (sizes, scales) {
        (Some(sizes), _) => Some(kept_ratio(view, &axes.iter().map(|&a| dims[a].clone()).collect::<Vec<_>>(), sizes)),
        (None, Some(scales)) => {
            let scaled = |(&axis, &scale): (&usize, &f32)| match &dims[axis] {
                Fixed(size) => Fixed((*size as f32 * scale).floor() as usize),
                dim if scale == 1. => dim.clone(),
                _ => Unknown,
            };
            Some(axes.iter().zip(scales).map(scaled).collect())
        }
        _ => None,
    };
    let mut shape = dims;
    for (i, axis) in axes.into_iter().enumerate() {
        shape[axis] = new.as_ref().and_then(|new| new.get(i).cloned()).unwrap_or(Unknown);
    }
    like(view, Some(shape))
}

/// The sizes asked for, or one scale for all axes, so that none is exceeded or each is reached.
fn kept_ratio(view: &View<'_>, dims: &[Dimension], sizes: Vec<Dimension>) -> Vec<Dimension> {
    let choose = match view.node.attr_text("keep_aspect_ratio_policy") {
        Some("not_larger") => f32::min,
        Some("not_smaller") => f32::max,
        _ => return sizes,
    };
    let ratio = |(dim, size): (&Dimension, &Dimension)| match (dim, size) {
        (Fixed(dim), Fixed(size)) if *dim > 0 => Some(*size as f32 / *dim as f32),
        _ => None,
    };
    let scales: Option<Vec<f32>> = dims.iter().zip(&sizes).map(ratio).collect();
    let scale = scales.and_then(|scales| scales.into_iter().reduce(choose));
    let one = |dim: &Dimension| match (dim, scale) {
        (Fixed(dim), Some(scale)) => Fixed((*dim as f32 * scale).round() as usize),
        _ => Unknown,
    };
    dims.iter().map(one).collect()
}

pub(super) fn depth_space(view: &View<'_>) -> Vec<ValueType> {
    let block = usize::try_from(view.int("blocksize", 1)).ok().filter(|&b| b > 0).unwrap_or(1);
    let shape = view.dims(0).and_then(|dims| <[Dimension; 4]>::try_from(dims).ok()).map(|[n, c, h, w]| {
        let times = |dim: Dimension, by: usize| if let Fixed(s) = dim { Fixed(s.saturating_mul(by)) } else { Unknown };
        let over = |dim: Dimension, by: usize| match dim {
            Fixed(s) if s.is_multiple_of(by) => Fixed(s / by),
            _ => Unknown,
        };
        if view.node.op_type() == "DepthToSpace" {
            vec![n, over(c, block.saturating_mul(block)), times(h, block), times(w, block)]
        } else {
            vec![n, times(c, block.saturating_mul(block)), over(h, block), over(w, block)]
        }
    });
    vec![of(view.dtype(0), shape)]
}

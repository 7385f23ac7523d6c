//! For each operator: which channels its outputs have, and which of its inputs' channels must go together.
//!
//! A channel may go where all that reads it either keeps it apart from others (element by element, by picture, by block)
//! or multiplies it by weights that go with it. What mixes channels without weights, as a softmax over them, holds them.

use std::rc::Rc;

use edgeward_graph::{Dimension, proto::NodeProto};

use super::{
    flow::{Flow, Source, Value},
    reshape,
    ties::Axis,
};

/// Axes of each output, or why there is no telling.
pub(super) type Done = Result<Vec<Vec<Axis>>, String>;
/// A rule of an operator.
pub(super) type Rule = fn(&mut Flow<'_>, &NodeProto) -> Done;

/// The rule of a node; none where there is none.
pub(super) fn rule(node: &NodeProto) -> Option<Rule> {
    if !node.is_standard() {
        return None;
    }
    Some(match node.op_type() {
        "Conv" => convolution,
        "ConvTranspose" => transposed,
        "Gemm" => gemm,
        "MatMul" => matmul,
        "BatchNormalization" | "InstanceNormalization" => by_channel,
        "LayerNormalization" | "RMSNormalization" => |flow, node| normalised(flow, node, true),
        "Softmax" | "LogSoftmax" | "Hardmax" | "LpNormalization" => |flow, node| normalised(flow, node, false),
        "MaxPool" | "AveragePool" | "LpPool" | "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" => pooled,
        "Concat" => concat,
        "Split" => split,
        "Slice" => slice,
        "Gather" => gather,
        "Transpose" => transpose,
        "Flatten" | "Reshape" => reshape::rule,
        "Squeeze" | "Unsqueeze" => reshape::ones,
        "Resize" | "Upsample" => resize,
        "Pad" => pad,
        "Shape" | "Size" | "Constant" | "ConstantOfShape" | "Range" => sizes,
        op if op.starts_with("Reduce") => reduce,
        op if ELEMENTWISE.contains(&op) => elementwise,
        _ => return None,
    })
}

/// Each element of the output depends on the same element of the inputs alone, these broadcast.
const ELEMENTWISE: [&str; 55] = [
    "Abs",
    "Add",
    "And",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Div",
    "Dropout",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "Max",
    "Mean",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "PRelu",
    "Pow",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Sin",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Sum",
    "Swish",
    "Tanh",
    "ThresholdedRelu",
    "Where",
    "Xor",
];

fn elementwise(flow: &mut Flow<'_>, node: &NodeProto) -> Done {
    let first_alone = matches!(node.op_type(), "Dropout" | "Clip" | "Cast");
    let slots = if first_alone { 1 } else { node.input.len() };
    let inputs = (0..slots).map(|slot| flow.input(node, slot)).collect::<Result<Vec<_>, _>>()?;
    let axes = broadcast(flow, node, &inputs.into_iter().flatten().collect::<Vec<_>>());
    Ok(vec![axes; node.output.len()])
}

/// Axes of values that meet element by element, counted from the last.
fn broadcast(flow: &mut Flow<'_>, node: &NodeProto, inputs: &[Value]) -> Vec<Axis> {
    let rank = inputs.iter().map(Value::rank).max().unwrap_or(0);
    let axis = |from_end: usize| {
        let mut found: Option<Axis> = None;
        for input in inputs.iter().filter(|input| input.rank() > from_end) {
            let at = input.rank() - 1 - from_end;
            if input.size(at) == Some(1) {
                continue;
            }
            let own = input.axes.get(at).cloned().unwrap_or(Axis::Fixed);
            match &found {
                Some(found) => flow.tie(found, &own, node),
                None => found = Some(own),
            }
        }
        // Where another is fixed, this one is held: that its labels go on is without effect.
        found.unwrap_or(Axis::Fixed)
    };
    let mut axes: Vec<Axis> = (0..rank).map(axis).collect();
    axes.reverse();
    axes
}

fn own(value: &Value, axis: usize) -> Axis {
    value.axes.get(axis).cloned().unwrap_or(Axis::Fixed)
}

/// Elements of a value by what is known, open sizes counted as 1.
fn elements(dims: &[Dimension]) -> f64 {
    dims.iter().map(|dim| if let Dimension::Fixed(size) = dim { *size as f64 } else { 1.0 }).product()
}

/// Takes down a layer. `outputs` is the axis of its weight along which its outputs are; each weight meets every place.
fn source(flow: &mut Flow<'_>, node: &NodeProto, outputs: usize, places: &[Dimension]) {
    let Some(tensor) = node.input.get(1).filter(|name| flow.is_weight(name)).cloned() else { return };
    flow.sources.push(Source { node: flow.at, tensor, axis: outputs, times: elements(places) });
}

fn read(flow: &mut Flow<'_>, node: &NodeProto, slot: usize, axis: usize) {
    let Some(name) = node.input.get(slot).filter(|name| !flow.is_weight(name)).cloned() else { return };
    flow.read.insert((name, axis));
}

/// Channels of a grouped convolution: those of the same place in every group go together, so that groups stay alike.
/// `whole` is the axis of all channels, `one` that of one group; `one` has one group's channels.
fn by_group(flow: &mut Flow<'_>, node: &NodeProto, whole: &Axis, one: &Axis, groups: usize) {
    let Axis::Channels(whole) = whole else { return flow.hold(one, node, "reads channels of a fixed number") };
    let size = whole.len() / groups.max(1);
    match one {
        Axis::Channels(one) if one.len() == size => {
            for (at, &label) in whole.iter().enumerate() {
                if let Some(&place) = one.get(at % size) {
                    flow.ties.join(place, label);
                }
            }
        }
        _ => flow.hold(&Axis::Channels(Rc::clone(whole)), node, "has weights that do not fit its groups"),
    }
}

/// The channels of `whole` that have the same place in their group go together.
fn alike(flow: &mut Flow<'_>, whole: &Axis, groups: usize) {
    let Axis::Channels(labels) = whole else { return };
    let size = (labels.len() / groups.max(1)).max(1);
    for (at, &label) in labels.iter().enumerate().skip(size) {
        if let Some(&place) = labels.get(at % size) {
            flow.ties.join(place, label);
        }
    }
}

/// Each channel of `few` goes with its `many.len() / few.len()` channels of `many`.
fn depthwise(flow: &mut Flow<'_>, node: &NodeProto, few: &Axis, many: &Axis) {
    match (few, many) {
        (Axis::Channels(few), Axis::Channels(many)) if many.len().is_multiple_of(few.len().max(1)) => {
            let times = (many.len() / few.len().max(1)).max(1);
            for (at, &label) in many.iter().enumerate() {
                if let Some(&own) = few.get(at / times) {
                    flow.ties.join(own, label);
                }
            }
        }
        _ => flow.tie(few, many, node),
    }
}

struct Convolution {
    x: Value,
    weight: Value,
    groups: usize,
}

fn opened(flow: &mut Flow<'_>, node: &NodeProto) -> Result<Convolution, String> {
    let (x, weight) = (flow.wanted(node, 0)?, flow.wanted(node, 1)?);
    if x.rank() < 3 || weight.rank() != x.rank() {
        return Err("has an input of another rank than its weights".to_owned());
    }
    let spatial = x.axes.iter().skip(2).chain(weight.axes.iter().skip(2));
    spatial.for_each(|axis| flow.hold(axis, node, "moves over it"));
    let groups = usize::try_from(node.attr_int("group").unwrap_or(1)).unwrap_or(1).max(1);
    read(flow, node, 0, 1);
    Ok(Convolution { x, weight, groups })
}

fn convolution(flow: &mut Flow<'_>, node: &NodeProto) -> Done {
    let Convolution { x, weight, groups } = opened(flow, node)?;
    let (inputs, outputs) = (own(&x, 1), own(&weight, 0));
    if groups == 1 {
        flow.tie(&inputs, &own(&weight, 1), node);
    } else if weight.size(1) == Some(1) {
        depthwise(flow, node, &inputs, &outputs);
    } else {
        by_group(flow, node, &inputs, &own(&weight, 1), groups);
        alike(flow, &outputs, groups);
    }
    convolved(flow, node, &x, outputs, 0)
}

fn transposed(flow: &mut Flow<'_>, node: &NodeProto) -> Done {
    let Convolution { x, weight, groups } = opened(flow, node)?;
    flow.tie(&own(&x, 1), &own(&weight, 0), node);
    let each = own(&weight, 1);
    if groups == 1 {
        return convolved(flow, node, &x, each, 1);
    }
    // The weight has the outputs of one group; those of all are labels that this node makes.
    let per_group = weight.size(1).unwrap_or(1);
    let outputs = flow.ties.axis(groups * per_group);
    if x.size(1) == Some(groups) {
        flow.hold(&each, node, "has several outputs for each of its groups");
        depthwise(flow, node, &own(&x, 1), &outputs);
    } else {
        alike(flow, &own(&x, 1), groups);
        by_group(flow, node, &outputs, &each, groups);
    }
    convolved(flow, node, &x, outputs, usize::from(x.size(1) != Some(groups)))
}

fn convolved(flow: &mut Flow<'_>, node: &NodeProto, x: &Value, outputs: Axis, axis: usize) -> Done {
    if let Some(bias) = flow.input(node, 2)? {
        flow.tie(&own(&bias, 0), &outputs, node);
    }
    // Each weight meets every place: of the output, or where the convolution is transposed of the input.
    let places = if node.op_type() == "Conv" { flow.output_dims(node, 0)? } else { x.dims.clone() };
    let of: Vec<Dimension> = places.into_iter().enumerate().filter(|(at, _)| *at != 1).map(|(_, dim)| dim).collect();
    source(flow, node, axis, &of);
    let mut axes = vec![Axis::Fixed; x.rank()];
    for (at, axis) in [(0, own(x, 0)), (1, outputs)] {
        if let Some(slot) = axes.get_mut(at) {
            *slot = axis;
        }
    }
    Ok(vec![axes])
}

fn gemm(flow: &mut Flow<'_>, node: &NodeProto) -> Done {
    let (a, b) = (flow.wanted(node, 0)?, flow.wanted(node, 1)?);
    if a.rank() != 2 || b.rank() != 2 {
        return Err("multiplies what are no matrices".to_owned());
    }
    let turned = |name| usize::from(node.attr_int(name).unwrap_or(0) != 0);
    let (ta, tb) = (turned("transA"), turned("transB"));
    flow.tie(&own(&a, 1 - ta), &own(&b, tb), node);
    read(flow, node, 0, 1 - ta);
    let axes = vec![own(&a, ta), own(&b, 1 - tb)];
    let dims = flow.output_dims(node, 0)?;
    source(flow, node, 1 - tb, dims.get(..1).unwrap_or_default());
    if let Some(c) = flow.input(node, 2)? {
        let result = Value { axes: axes.clone(), dims };
        broadcast(flow, node, &[result, c]);
    }
    Ok(vec![axes])
}

fn matmul(flow: &mut Flow<'_>, node: &NodeProto) -> Done {
    let (a, b) = (flow.wanted(node, 0)?, flow.wanted(node, 1)?);
    let (Some(last), Some(_)) = (a.rank().checked_sub(1), b.rank().checked_sub(1)) else {
        return Err("multiplies a scalar".to_owned());
    };
    flow.tie(&own(&a, last), &own(&b, b.rank().saturating_sub(2)), node);
    read(flow, node, 0, last);
    if a.rank() < 2 || b.rank() < 2 {
        return Err("multiplies a vector".to_owned());
    }
    let cut = |value: &Value| Value {
        axes: value.axes.iter().take(value.rank() - 2).cloned().collect(),
        dims: value.dims.iter().take(value.rank() - 2).cloned().collect(),
    };
    let mut axes = broadcast(flow, node, &[cut(&a), cut(&b)]);
    axes.extend([own(&a, last - 1), own(&b, b.rank() - 1)]);
    if b.rank() == 2 {
        let dims = flow.output_dims(node, 0)?;
        let rows = dims.get(..dims.len().saturating_sub(1)).unwrap_or_default().to_vec();
        source(flow, node, 1, &rows);
    }
    Ok(vec![axes])
}

/// Normalisations whose scale, offset and statistics are by channel.
fn by_channel(flow: &mut Flow<'_>, node: &NodeProto) -> Done {
    let x = flow.wanted(node, 0)?;
    if node.output.iter().filter(|output| !output.is_empty()).count() > 1 {
        return Err("takes statistics of the batch".to_owned());
    }
    for slot in 1..node.input.len() {
        if let Some(parameter) = flow.input(node, slot)? {
            flow.tie(&own(&parameter, 0), &own(&x, 1), node);
        }
    }
    if node.op_type() == "InstanceNormalization" {
        x.axes.iter().skip(2).for_each(|axis| flow.hold(axis, node, "normalises over it"));
    }
    Ok(vec![x.axes])
}

/// What mixes along axes from `axis` on, or along `axis` alone.
fn normalised(flow: &mut Flow<'_>, node: &NodeProto, from_on: bool) -> Done {
    let x = flow.wanted(node, 0)?;
    let axis = at(node.attr_int("axis").unwrap_or(-1), x.rank())?;
    let last = if from_on { x.rank() } else { axis + 1 };
    for held in x.axes.get(axis..last).unwrap_or_default() {
        flow.hold(held, node, "normalises over it");
    }
    Ok(vec![x.axes; node.output.len()])
}

fn at(axis: i64, rank: usize) -> Result<usize, String> {
    let positive = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(positive).ok().filter(|&at| at < rank).ok_or_else(|| format!("names axis {axis} of {rank}"))
}

fn pooled(flow: &mut Flow<'_>, node: &NodeProto) -> Done {
    let x = flow.wanted(node, 0)?;
    x.axes.iter().skip(2).for_each(|axis| flow.hold(axis, node, "moves over it"));
    let axes = x.axes.iter().enumerate().map(|(at, axis)| if at < 2 { axis.clone() } else { Axis::Fixed });
    Ok(vec![axes.collect(); node.output.len()])
}

fn concat(flow: &mut Flow<'_>, node: &NodeProto) -> Done {
    let inputs = (0..node.input.len()).map(|slot| flow.wanted(node, slot)).collect::<Result<Vec<_>, _>>()?;
    let rank = inputs.first().map_or(0, Value::rank);
    if inputs.iter().any(|input| input.rank() != rank) {
        return Err("joins values of several ranks".to_owned());
    }
    let along = at(node.attr_int("axis").unwrap_or(0), rank)?;
    let mut axes = Vec::new();
    for axis in 0..rank {
        if axis == along {
            axes.push(joined(flow, node, &inputs, axis));
            continue;
        }
        let first = inputs.first().map_or(Axis::Fixed, |input| own(input, axis));
        inputs.iter().skip(1).for_each(|input| flow.tie(&first, &own(input, axis), node));
        axes.push(first);
    }
    Ok(vec![axes])
}

fn joined(flow: &mut Flow<'_>, node: &NodeProto, inputs: &[Value], axis: usize) -> Axis {
    if inputs.iter().all(|input| input.labels(axis).is_none()) {
        return Axis::Fixed;
    }
    let mut labels = Vec::new();
    for input in inputs {
        match (own(input, axis), input.size(axis)) {
            (Axis::Channels(own), _) => labels.extend(own.iter().copied()),
            // What is fixed stays, and the others keep their places beside it.
            (Axis::Fixed, Some(size)) => {
                let fixed = flow.ties.axis(size);
                flow.hold(&fixed, node, "joins what has a fixed size");
                if let Axis::Channels(fixed) = fixed {
                    labels.extend(fixed.iter().copied());
                }
            }
            (Axis::Fixed, None) => {
                let all: Vec<Axis> = inputs.iter().map(|input| own(input, axis)).collect();
                all.iter().for_each(|axis| flow.hold(axis, node, "joins what has an open size"));
                return Axis::Fixed;
            }
        }
    }
    Axis::Channels(labels.into())
}

/// Labels `from..to` of an axis.
fn part(axis: &Axis, from: usize, to: usize) -> Axis {
    match axis {
        Axis::Channels(labels) => labels.get(from..to).map_or(Axis::Fixed, |part| Axis::Channels(part.into())),
        Axis::Fixed => Axis::Fixed,
    }
}

fn split(flow: &mut Flow<'_>, node: &NodeProto) -> Done {
    let x = flow.wanted(node, 0)?;
    let along = at(node.attr_int("axis").unwrap_or(0), x.rank())?;
    let mut from = 0;
    let mut outputs = Vec::new();
    for slot in 0..node.output.len() {
        let mut axes = x.axes.clone();
        if x.labels(along).is_some() {
            let dims = flow.output_dims(node, slot)?;
            let Some(Dimension::Fixed(size)) = dims.get(along) else {
                return Err("makes parts of open sizes".to_owned());
            };
            if let Some(axis) = axes.get_mut(along) {
                *axis = part(axis, from, from + size);
            }
            from += size;
        }
        outputs.push(axes);
    }
    Ok(outputs)
}

/// A range of each axis that has channels, one after the other.
fn slice(flow: &mut Flow<'_>, node: &NodeProto) -> Done {
    let x = flow.wanted(node, 0)?;
    if x.is_fixed() {
        return Ok(vec![x.axes]);
    }
    let mut axes = x.axes.clone();
    for range in ranges(flow, node, &x)? {
        let Some(axis) = axes.get_mut(range.axis) else { continue };
        if *axis == Axis::Fixed {
            continue;
        }
        if range.step != 1 {
            return Err("takes every other channel".to_owned());
        }
        *axis = part(axis, range.from, range.to);
    }
    Ok(vec![axes])
}

/// What a Slice takes of one axis.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub axis: usize,
    pub from: usize,
    pub to: usize,
    pub step: i64,
}

/// What a Slice takes of the axes whose sizes are known.
pub(super) fn ranges(flow: &Flow<'_>, node: &NodeProto, x: &Value) -> Result<Vec<Taken>, String> {
    let missing = || "lacks where it begins and ends".to_owned();
    let (starts, ends) = (flow.ints(node, 1)?.ok_or_else(missing)?, flow.ints(node, 2)?.ok_or_else(missing)?);
    let axes = flow.ints(node, 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = flow.ints(node, 4)?.unwrap_or_else(|| vec![1; starts.len()]);
    let mut taken = Vec::new();
    for (((start, end), axis), step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
        let axis = at(*axis, x.rank())?;
        let Some(size) = x.size(axis) else { continue };
        let clamp = |place: i64| {
            let place = if place < 0 { place.saturating_add(size as i64) } else { place };
            usize::try_from(place.clamp(0, size as i64)).unwrap_or(0)
        };
        let (from, to) = (clamp(*start), clamp(*end));
        taken.push(Taken { axis, from, to: to.max(from), step: *step });
    }
    Ok(taken)
}

fn gather(flow: &mut Flow<'_>, node: &NodeProto) -> Done {
    let (data, indices) = (flow.wanted(node, 0)?, flow.wanted(node, 1)?);
    let along = at(node.attr_int("axis").unwrap_or(0), data.rank())?;
    flow.hold(&own(&data, along), node, "picks some of it");
    let mut axes: Vec<Axis> = data.axes.iter().take(along).cloned().collect();
    axes.extend(vec![Axis::Fixed; indices.rank()]);
    axes.extend(data.axes.iter().skip(along + 1).cloned());
    Ok(vec![axes])
}

fn transpose(flow: &mut Flow<'_>, node: &NodeProto) -> Done {
    let x = flow.wanted(node, 0)?;
    let reversed = || (0..x.rank() as i64).rev().collect();
    let order = node.attr_ints("perm").map_or_else(reversed, <[i64]>::to_vec);
    let axes = order.iter().map(|&axis| Ok(own(&x, at(axis, x.rank())?))).collect::<Result<_, String>>()?;
    Ok(vec![axes])
}

fn resize(flow: &mut Flow<'_>, node: &NodeProto) -> Done {
    let x = flow.wanted(node, 0)?;
    if node.input.get(3).is_some_and(|sizes| !sizes.is_empty()) {
        return Err("is told sizes instead of scales".to_owned());
    }
    let dims = flow.output_dims(node, 0)?;
    let same = |at: usize| x.dims.get(at) == dims.get(at);
    for (_, axis) in x.axes.iter().enumerate().filter(|(at, _)| !same(*at)) {
        flow.hold(axis, node, "changes its size");
    }
    Ok(vec![x.axes])
}

fn pad(flow: &mut Flow<'_>, node: &NodeProto) -> Done {
    let x = flow.wanted(node, 0)?;
    let pads = flow.ints(node, 1)?.ok_or("lacks its sizes")?;
    let all = (0..x.rank() as i64).collect();
    let axes = flow.ints(node, 3)?.unwrap_or(all);
    for (place, axis) in axes.iter().enumerate() {
        let widened = [place, place + axes.len()].iter().any(|&at| pads.get(at).is_some_and(|&pad| pad != 0));
        if widened {
            flow.hold(&own(&x, at(*axis, x.rank())?), node, "widens it");
        }
    }
    Ok(vec![x.axes])
}

/// Sizes are told by the run, pruned or not.
fn sizes(flow: &mut Flow<'_>, node: &NodeProto) -> Done {
    let rank = |slot: usize| flow.output_dims(node, slot).map(|dims| vec![Axis::Fixed; dims.len()]);
    Ok((0..node.output.len()).map(|slot| rank(slot).unwrap_or_default()).collect())
}

fn reduce(flow: &mut Flow<'_>, node: &NodeProto) -> Done {
    let x = flow.wanted(node, 0)?;
    let listed = match node.attr_ints("axes") {
        Some(axes) => Some(axes.to_vec()),
        None => flow.ints(node, 1)?,
    };
    let idle = node.attr_int("noop_with_empty_axes").unwrap_or(0) != 0;
    let listed = match listed {
        Some(axes) if !axes.is_empty() => axes,
        _ if idle => return Ok(vec![x.axes]),
        _ => (0..x.rank() as i64).collect(),
    };
    let gone = listed.iter().map(|&axis| at(axis, x.rank())).collect::<Result<Vec<_>, _>>()?;
    let keeps = node.attr_int("keepdims").unwrap_or(1) != 0;
    let mut axes = Vec::new();
    for (place, axis) in x.axes.iter().enumerate() {
        if gone.contains(&place) {
            flow.hold(axis, node, "sums it up without weights");
            axes.extend(keeps.then_some(Axis::Fixed));
        } else {
            axes.push(axis.clone());
        }
    }
    Ok(vec![axes])
}

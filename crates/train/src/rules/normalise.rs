//! Normalisations: `x̂ = (x - mean) / sqrt(variance + ε)`, then a scale and an offset.
//!
//! All have one gradient, over the axes that were normalised (Ioffe and Szegedy 2015, section 3; Ba et al. 2016):
//! `dx = (gs - mean(gs) - x̂ mean(gs x̂)) / sqrt(variance + ε)` where `gs = g · scale`.

use edgeward_graph::{
    DataType,
    proto::{AttributeProto, NodeProto},
};

use crate::{
    emit::{Axes, Emit},
    gradient::{Context, Done},
    known::Known,
    shape::{axis, reshape_like},
};

/// What a normalisation made of its input.
struct Normalised {
    hat: String,
    inverse: String,
}

impl Normalised {
    /// Of `x` over `axes`; `centred` is `x - mean`, or `x` itself where no mean is taken away.
    fn of(emit: &mut Emit, dtype: DataType, centred: &str, axes: &[i64], epsilon: f64) -> Self {
        let square = emit.op("Mul", &[centred, centred]);
        let variance = emit.reduce("ReduceMean", &square, axes, Axes::Keep);
        let inverse = inverse_root(emit, dtype, &variance, epsilon);
        let hat = emit.op("Mul", &[centred, &inverse]);
        Self { hat, inverse }
    }

    /// The gradient of `x` by that of `x̂`.
    fn back(&self, emit: &mut Emit, gs: &str, axes: &[i64]) -> String {
        let mean = emit.reduce("ReduceMean", gs, axes, Axes::Keep);
        let rest = emit.op("Sub", &[gs, &mean]);
        self.without_mean(emit, gs, &rest, axes)
    }

    fn without_mean(&self, emit: &mut Emit, gs: &str, rest: &str, axes: &[i64]) -> String {
        let along = emit.op("Mul", &[gs, &self.hat]);
        let along = emit.reduce("ReduceMean", &along, axes, Axes::Keep);
        let share = emit.op("Mul", &[&self.hat, &along]);
        let rest = emit.op("Sub", &[rest, &share]);
        emit.op("Mul", &[&rest, &self.inverse])
    }
}

/// 1 / sqrt(variance + ε)
fn inverse_root(emit: &mut Emit, dtype: DataType, variance: &str, epsilon: f64) -> String {
    let epsilon = emit.scalar(dtype, epsilon);
    let shifted = emit.op("Add", &[variance, &epsilon]);
    let root = emit.op("Sqrt", &[&shifted]);
    emit.op("Reciprocal", &[&root])
}

/// x̂ of a normalisation that has no statistics of the batch.
pub(super) fn hat(emit: &mut Emit, known: &Known, node: &NodeProto) -> Result<String, String> {
    let name = |index: usize| node.input.get(index).map_or("", String::as_str);
    let x = name(0);
    let (rank, dtype) = (known.rank(x)?, known.dtype(x).unwrap_or(DataType::Float32));
    let epsilon = f64::from(node.attr_float("epsilon").unwrap_or(1e-5));
    let trailing = || {
        let first = axis(node.attr_int("axis").unwrap_or(-1), rank)?;
        Ok::<Vec<i64>, String>((first as i64..rank as i64).collect())
    };
    Ok(match node.op_type() {
        "RMSNormalization" => Normalised::of(emit, dtype, x, &trailing()?, epsilon).hat,
        "BatchNormalization" => {
            let mean = beside_channels(emit, name(3), rank);
            let middle = emit.op("Sub", &[x, &mean]);
            let inverse = inverse_root(emit, dtype, name(4), epsilon);
            let inverse = beside_channels(emit, &inverse, rank);
            emit.op("Mul", &[&middle, &inverse])
        }
        "GroupNormalization" => {
            let grouped = emit.reshape(x, &[0, node.attr_int("num_groups").unwrap_or(1), -1]);
            let middle = centred(emit, &grouped, &[2]);
            let hat = Normalised::of(emit, dtype, &middle, &[2], epsilon).hat;
            reshape_like(emit, known, &hat, x)
        }
        kind => {
            let axes = if kind == "InstanceNormalization" { spatial(rank) } else { trailing()? };
            let middle = centred(emit, x, &axes);
            Normalised::of(emit, dtype, &middle, &axes, epsilon).hat
        }
    })
}

fn centred(emit: &mut Emit, x: &str, axes: &[i64]) -> String {
    let mean = emit.reduce("ReduceMean", x, axes, Axes::Keep);
    emit.op("Sub", &[x, &mean])
}

/// Axes from the node's `axis` on.
fn trailing(cx: &Context<'_>) -> Result<Vec<i64>, String> {
    let rank = cx.known.rank(cx.x(0))?;
    let first = axis(cx.int("axis", -1), rank)?;
    Ok((first as i64..rank as i64).collect())
}

pub(super) fn layer(cx: &mut Context<'_>) -> Done {
    let (g, x, scale) = (cx.g()?, cx.x(0).to_owned(), cx.x(1).to_owned());
    let (axes, epsilon, dtype) = (trailing(cx)?, cx.float("epsilon", 1e-5), cx.dtype(&x));
    let middle = centred(cx.emit, &x, &axes);
    let normal = Normalised::of(cx.emit, dtype, &middle, &axes, epsilon);
    if cx.wants(0) {
        let gs = cx.emit.op("Mul", &[&g, &scale]);
        let gradient = normal.back(cx.emit, &gs, &axes);
        cx.give(0, gradient);
    }
    if cx.wants(1) {
        let product = cx.emit.op("Mul", &[&g, &normal.hat]);
        let gradient = cx.unbroadcast(&product, 1);
        cx.give(1, gradient);
    }
    if cx.wants(2) {
        let gradient = cx.unbroadcast(&g, 2);
        cx.give(2, gradient);
    }
    Ok(())
}

pub(super) fn root_mean_square(cx: &mut Context<'_>) -> Done {
    let (g, x, scale) = (cx.g()?, cx.x(0).to_owned(), cx.x(1).to_owned());
    let (axes, epsilon, dtype) = (trailing(cx)?, cx.float("epsilon", 1e-5), cx.dtype(&x));
    let normal = Normalised::of(cx.emit, dtype, &x, &axes, epsilon);
    if cx.wants(0) {
        let gs = cx.emit.op("Mul", &[&g, &scale]);
        let gradient = normal.without_mean(cx.emit, &gs, &gs, &axes);
        cx.give(0, gradient);
    }
    if cx.wants(1) {
        let product = cx.emit.op("Mul", &[&g, &normal.hat]);
        let gradient = cx.unbroadcast(&product, 1);
        cx.give(1, gradient);
    }
    Ok(())
}

/// The axes after the channels.
fn spatial(rank: usize) -> Vec<i64> {
    (2..rank as i64).collect()
}

/// The sum of all but the channels: over space first, which is the faster order.
pub(super) fn channel_sum(emit: &mut Emit, x: &str, rank: usize) -> String {
    let inner = if rank > 2 { emit.sum(x, &spatial(rank), Axes::Drop) } else { x.to_owned() };
    emit.sum(&inner, &[0], Axes::Drop)
}

/// A value for each channel, laid beside the channels' elements.
fn beside_channels(emit: &mut Emit, x: &str, rank: usize) -> String {
    emit.unsqueeze(x, &(1..rank as i64 - 1).collect::<Vec<_>>())
}

pub(super) fn instance(cx: &mut Context<'_>) -> Done {
    let (g, x, scale) = (cx.g()?, cx.x(0).to_owned(), cx.x(1).to_owned());
    let (rank, epsilon, dtype) = (cx.known.rank(&x)?, cx.float("epsilon", 1e-5), cx.dtype(&x));
    let axes = spatial(rank);
    let middle = centred(cx.emit, &x, &axes);
    let normal = Normalised::of(cx.emit, dtype, &middle, &axes, epsilon);
    if cx.wants(0) {
        let scale = beside_channels(cx.emit, &scale, rank);
        let gs = cx.emit.op("Mul", &[&g, &scale]);
        let gradient = normal.back(cx.emit, &gs, &axes);
        cx.give(0, gradient);
    }
    scale_and_offset(cx, &g, &normal.hat, rank);
    Ok(())
}

fn scale_and_offset(cx: &mut Context<'_>, g: &str, hat: &str, rank: usize) {
    if cx.wants(1) {
        let product = cx.emit.op("Mul", &[g, hat]);
        let gradient = channel_sum(cx.emit, &product, rank);
        cx.give(1, gradient);
    }
    if cx.wants(2) {
        let gradient = channel_sum(cx.emit, g, rank);
        cx.give(2, gradient);
    }
}

/// Channels in groups, each normalised with its space.
pub(super) fn group(cx: &mut Context<'_>) -> Done {
    let (g, x, scale) = (cx.g()?, cx.x(0).to_owned(), cx.x(1).to_owned());
    let (rank, epsilon, dtype) = (cx.known.rank(&x)?, cx.float("epsilon", 1e-5), cx.dtype(&x));
    let groups = cx.int("num_groups", 1);
    if cx.known.size(&x, 1)? != cx.known.size(&scale, 0)? {
        return Err("has a scale for each group, as before version 21; `onnx.version_converter` changes it".to_owned());
    }
    let grouped = cx.emit.reshape(&x, &[0, groups, -1]);
    let middle = centred(cx.emit, &grouped, &[2]);
    let normal = Normalised::of(cx.emit, dtype, &middle, &[2], epsilon);
    if cx.wants(0) {
        let scale = beside_channels(cx.emit, &scale, rank);
        let gs = cx.emit.op("Mul", &[&g, &scale]);
        let gs = cx.emit.reshape(&gs, &[0, groups, -1]);
        let back = normal.back(cx.emit, &gs, &[2]);
        let gradient = cx.reshape_like(&back, &x);
        cx.give(0, gradient);
    }
    if cx.wants(1) {
        let hat = cx.reshape_like(&normal.hat, &x);
        scale_and_offset(cx, &g, &hat, rank);
    } else {
        scale_and_offset(cx, &g, "", rank);
    }
    Ok(())
}

/// With the batch's own statistics where training made them, else with given ones.
pub(super) fn batch(cx: &mut Context<'_>) -> Done {
    let (g, x, scale) = (cx.g()?, cx.x(0).to_owned(), cx.x(1).to_owned());
    let (mean, variance) = (cx.x(3).to_owned(), cx.x(4).to_owned());
    let rank = cx.known.rank(&x)?;
    let (dtype, epsilon) = (cx.dtype(&x), cx.float("epsilon", 1e-5));
    let inverse = inverse_root(cx.emit, dtype, &variance, epsilon);
    let whole = cx.known.of_batch(cx.y(0)).map(str::to_owned);
    let of_batch = whole.is_some();
    if !of_batch && (cx.wants(3) || cx.wants(4)) {
        return Err("has no gradient for statistics that are given; freeze them".to_owned());
    }
    let factor = cx.emit.op("Mul", &[&scale, &inverse]);
    let (mut offsets, mut along) = (String::new(), String::new());
    let mut middle = x.clone();
    if of_batch || cx.wants(1) {
        if !of_batch {
            let mean = beside_channels(cx.emit, &mean, rank);
            middle = cx.emit.op("Sub", &[&x, &mean]);
        }
        let product = cx.emit.op("Mul", &[&g, &middle]);
        along = channel_sum(cx.emit, &product, rank);
    }
    if of_batch || cx.wants(2) {
        offsets = channel_sum(cx.emit, &g, rank);
    }
    if let (true, Some(whole)) = (cx.wants(0), whole) {
        let sums =
            Sums { g: &g, middle: &middle, factor: &factor, inverse: &inverse, offsets: &offsets, along: &along };
        let gradient = sums.back(cx, &x, rank);
        cx.give_past(&whole, gradient);
    } else if cx.wants(0) {
        let factor = beside_channels(cx.emit, &factor, rank);
        let gradient = cx.emit.op("Mul", &[&g, &factor]);
        cx.give(0, gradient);
    }
    if cx.wants(1) {
        let gradient = cx.emit.op("Mul", &[&along, &inverse]);
        cx.give(1, gradient);
    }
    if cx.wants(2) {
        cx.give(2, offsets);
    }
    Ok(())
}

/// What the gradient by a batch's statistics is made of; all but the first two have one value for each channel.
struct Sums<'s> {
    g: &'s str,
    /// x - mean
    middle: &'s str,
    /// scale / sqrt(variance + ε)
    factor: &'s str,
    inverse: &'s str,
    /// Σ g
    offsets: &'s str,
    /// Σ g (x - mean)
    along: &'s str,
}

impl Sums<'_> {
    /// `a g + b (x - mean) + c` with `a = scale / σ`, `b = -a Σ g (x - mean) / (n σ²)`, `c = -a Σ g / n`.
    fn back(&self, cx: &mut Context<'_>, x: &str, rank: usize) -> String {
        let count = channel_count(cx.emit, cx.known, x);
        let share = cx.emit.op("Div", &[self.factor, &count]);
        let square = cx.emit.op("Mul", &[self.inverse, self.inverse]);
        let slope = cx.emit.op("Mul", &[&share, &square]);
        let slope = cx.emit.op("Mul", &[&slope, self.along]);
        let offset = cx.emit.op("Mul", &[&share, self.offsets]);
        let offset = cx.emit.op("Neg", &[&offset]);
        let first = affine(cx, self.g, self.factor, &offset);
        let slope = beside_channels(cx.emit, &slope, rank);
        let second = cx.emit.op("Mul", &[self.middle, &slope]);
        cx.emit.op("Sub", &[&first, &second])
    }
}

/// Elements of one channel in the whole batch, as a number of the type of `x`.
pub(crate) fn channel_count(emit: &mut Emit, known: &Known, x: &str) -> String {
    let dtype = known.dtype(x).unwrap_or(DataType::Float32);
    if let (Some(sizes), Ok(channels)) = (known.of_value(x).element_count(), known.size(x, 1)) {
        return emit.scalar(dtype, sizes as f64 / channels.max(1) as f64);
    }
    let size = emit.op("Size", &[x]);
    let shape = emit.op("Shape", &[x]);
    let one = emit.ints(&[1]);
    let channels = emit.op("Gather", &[&shape, &one]);
    let channels = emit.squeeze(&channels, &[0]);
    let count = emit.op("Div", &[&size, &channels]);
    emit.cast(&count, dtype)
}

/// `x a + b`, a and b for each channel: one pass of a BatchNormalization whose statistics are 0 and 1, where a product and
/// a sum that broadcast take two.
fn affine(cx: &mut Context<'_>, x: &str, a: &str, b: &str) -> String {
    let dtype = cx.dtype(cx.x(0));
    let (zero, one) = (cx.emit.scalar(dtype, 0.0), cx.emit.scalar(dtype, 1.0));
    let shape = cx.emit.op("Shape", &[a]);
    let (zeros, ones) = (cx.emit.op("Expand", &[&zero, &shape]), cx.emit.op("Expand", &[&one, &shape]));
    cx.emit.with("BatchNormalization", &[x, a, b, &zeros, &ones], vec![AttributeProto::of_float("epsilon", 0.0)])
}

/// y = x / ‖x‖ along an axis: `(g - y Σ g y) / ‖x‖`, and `(g - sign(x) Σ g y) / ‖x‖` for the sum of sizes.
pub(super) fn lp(cx: &mut Context<'_>) -> Done {
    let (g, x, y) = (cx.g()?, cx.x(0).to_owned(), cx.y(0).to_owned());
    let along = [cx.int("axis", -1)];
    let norm_kind = if cx.int("p", 2) == 1 { "ReduceL1" } else { "ReduceL2" };
    let norm = cx.emit.reduce(norm_kind, &x, &along, Axes::Keep);
    let product = cx.emit.op("Mul", &[&g, &y]);
    let sum = cx.emit.sum(&product, &along, Axes::Keep);
    let direction = if norm_kind == "ReduceL1" { cx.emit.op("Sign", &[&x]) } else { y };
    let share = cx.emit.op("Mul", &[&direction, &sum]);
    let rest = cx.emit.op("Sub", &[&g, &share]);
    let gradient = cx.emit.op("Div", &[&rest, &norm]);
    cx.give(0, gradient);
    Ok(())
}

//! Convolutions and their transposes, of any number of spatial dimensions.
//!
//! The input's gradient is the other one of the two. The weight's gradient is a product of matrices: the parts of the
//! input that each place of the kernel saw (taps), against the output's gradient. As a plain convolution over transposed
//! operands it is slower by half to three times.

use edgeward_graph::{Dimension, proto::AttributeProto, proto::NodeProto};

use super::normalise::channel_sum;
use crate::{
    emit::{Axes, Emit, Range, Side},
    gradient::{Context, Done},
    known::Known,
    shape::counted,
};

/// Places of a kernel: the gradient by it has nodes for each.
const PLACES_MAX: i64 = 1024;

/// Greatest stride, dilation, padding and size of a kernel, so that sums of them are numbers.
const STEP_MAX: i64 = 1 << 30;

/// How a kernel moves over the spatial dimensions.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    pub kernel: Vec<i64>,
    pub strides: Vec<i64>,
    pub dilations: Vec<i64>,
    pub begins: Vec<i64>,
    pub ends: Vec<i64>,
}

impl Window {
    /// Of a convolution or pool over `x`; `kernel` where the node does not tell it.
    pub fn of(known: &Known, node: &NodeProto, x: &str, kernel: Option<Vec<i64>>) -> Result<Self, String> {
        let list = |name: &str| node.attr_ints(name).filter(|l| !l.is_empty()).map(<[i64]>::to_vec);
        let kernel = list("kernel_shape").or(kernel).ok_or("the kernel's shape is not known before a run")?;
        let rank = kernel.len();
        let fit = |list: Vec<i64>, count: usize, name: &str| {
            let text = format!("`{name}` does not fit a kernel of {rank} dimensions");
            if list.len() == count { Ok(list) } else { Err(text) }
        };
        let strides = fit(list("strides").unwrap_or_else(|| vec![1; rank]), rank, "strides")?;
        let dilations = fit(list("dilations").unwrap_or_else(|| vec![1; rank]), rank, "dilations")?;
        let pads = fit(list("pads").unwrap_or_else(|| vec![0; 2 * rank]), 2 * rank, "pads")?;
        if strides.iter().chain(&dilations).chain(&kernel).any(|v| !(1..=STEP_MAX).contains(v)) {
            return Err(format!("`kernel_shape`, `strides` and `dilations` must be from 1 to {STEP_MAX}"));
        }
        if pads.iter().any(|p| !(0..=STEP_MAX).contains(p)) {
            return Err(format!("`pads` must be from 0 to {STEP_MAX}"));
        }
        if kernel.iter().try_fold(1i64, |n, &k| n.checked_mul(k)).is_none_or(|places| places > PLACES_MAX) {
            return Err(format!("its kernel {kernel:?} has more than {PLACES_MAX} places, each of which takes nodes"));
        }
        let (begins, ends) = pads.split_at(rank);
        let mut window = Self { kernel, strides, dilations, begins: begins.to_vec(), ends: ends.to_vec() };
        match node.attr_text("auto_pad").unwrap_or("NOTSET") {
            "NOTSET" => {}
            "VALID" => (window.begins, window.ends) = (vec![0; rank], vec![0; rank]),
            same => window.pad_same(known, x, same == "SAME_UPPER")?,
        }
        Ok(window)
    }

    /// Padding by which the output has the input's size divided by the stride.
    fn pad_same(&mut self, known: &Known, x: &str, more_at_end: bool) -> Result<(), String> {
        for i in 0..self.kernel.len() {
            let size = (known.size(x, i + 2)? as i64).min(i64::MAX / 4);
            let steps = (size + self.strides[i] - 1) / self.strides[i];
            let all = ((steps - 1) * self.strides[i] + self.reach(i) - size).max(0);
            let (less, more) = (all / 2, all - all / 2);
            (self.begins[i], self.ends[i]) = if more_at_end { (less, more) } else { (more, less) };
        }
        Ok(())
    }

    /// What the kernel covers along a dimension.
    pub fn reach(&self, i: usize) -> i64 {
        (self.kernel[i] - 1) * self.dilations[i] + 1
    }

    /// Number of spatial dimensions.
    pub fn rank(&self) -> usize {
        self.kernel.len()
    }

    /// Places of the kernel.
    pub fn taps(&self) -> Vec<Vec<i64>> {
        self.kernel.iter().fold(vec![Vec::new()], |places, &size| {
            places.iter().flat_map(|p| (0..size).map(move |i| [p.clone(), vec![i]].concat())).collect()
        })
    }

    /// Padding of a whole value, for the operator Pad.
    pub fn pads(&self) -> Vec<i64> {
        [&[0, 0], self.begins.as_slice(), &[0, 0], self.ends.as_slice()].concat()
    }

    /// The part of a padded input that one place of the kernel sees; `steps` are the output's sizes, where known.
    pub fn tap(&self, emit: &mut Emit, padded: &str, place: &[i64], steps: &[Option<i64>]) -> String {
        let mut ranges = Vec::new();
        for (i, &at) in place.iter().enumerate() {
            let start = at * self.dilations[i];
            let end = match steps.get(i).copied().flatten() {
                Some(steps) => (steps - 1).saturating_mul(self.strides[i]).saturating_add(start + 1),
                // From the end: as much as the rest of the kernel covers.
                None => match start + 1 - self.reach(i) {
                    0 => i64::MAX,
                    less => less,
                },
            };
            ranges.push(Range { axis: i as i64 + 2, start, end, step: self.strides[i] });
        }
        if self.kernel.iter().chain(&self.strides).all(|&v| v == 1) {
            return padded.to_owned();
        }
        emit.slice(padded, &ranges)
    }

    /// The attributes of a ConvTranspose that spreads an output's gradient over an input of these sizes.
    pub fn spreading(&self, group: i64, spare: &[i64]) -> Vec<AttributeProto> {
        let mut attributes = vec![
            AttributeProto::of_ints("kernel_shape", self.kernel.clone()),
            AttributeProto::of_ints("strides", self.strides.clone()),
            AttributeProto::of_ints("dilations", self.dilations.clone()),
            AttributeProto::of_ints("pads", [self.begins.as_slice(), &self.ends].concat()),
            AttributeProto::of_int("group", group),
        ];
        if spare.iter().any(|&s| s != 0) {
            attributes.push(AttributeProto::of_ints("output_padding", spare));
        }
        attributes
    }
}

/// Known sizes after the channels.
pub(super) fn spatial_sizes(known: &Known, name: &str, rank: usize) -> Vec<Option<i64>> {
    let dims = known.dims(name).unwrap_or_default();
    let size = |i: usize| match dims.get(i + 2) {
        Some(Dimension::Fixed(size)) => Some(*size as i64),
        _ => None,
    };
    (0..rank).map(size).collect()
}

/// Spreads `g` of the output's sizes over the input `x`: what a ConvTranspose does, cut to the size of `x`.
pub(super) fn spread(cx: &mut Context<'_>, window: &Window, g: &str, weight: &str, group: i64, x: &str) -> String {
    let sizes = spatial_sizes(cx.known, x, window.rank());
    // What the last step of the kernel left over at the end. Where the input's size is known in the run only, the most that
    // there can be, and the rest is cut off.
    let spare: Vec<i64> = (0..window.rank())
        .map(|i| match sizes[i] {
            Some(size) => (size.min(i64::MAX / 4) + window.begins[i] + window.ends[i] - window.reach(i))
                .rem_euclid(window.strides[i]),
            None => window.strides[i] - 1,
        })
        .collect();
    let open: Vec<i64> =
        (0..window.rank()).filter(|&i| sizes[i].is_none() && window.strides[i] > 1).map(|i| i as i64 + 2).collect();
    let spread = cx.emit.with("ConvTranspose", &[g, weight], window.spreading(group, &spare));
    if open.is_empty() {
        return spread;
    }
    let shape = cx.emit.op("Shape", &[x]);
    let axes = cx.emit.ints(&open);
    let ends = cx.emit.op("Gather", &[&shape, &axes]);
    let starts = cx.emit.ints(&vec![0; open.len()]);
    cx.emit.op("Slice", &[&spread, &starts, &ends, &axes])
}

pub(super) fn conv(cx: &mut Context<'_>) -> Done {
    let (g, x, w) = (cx.g()?, cx.x(0).to_owned(), cx.x(1).to_owned());
    let kernel: Vec<i64> = cx.known.sizes(&w)?.iter().skip(2).map(|&s| s as i64).collect();
    let window = Window::of(cx.known, cx.node, &x, Some(kernel))?;
    let group = cx.int("group", 1);
    if cx.wants(0) {
        let gradient = spread(cx, &window, &g, &w, group, &x);
        cx.give(0, gradient);
    }
    if cx.wants(1) {
        let steps = spatial_sizes(cx.known, cx.y(0), window.rank());
        let product = Product { window, group, steps, many: &x, few: &g, weight: cx.known.sizes(&w)? };
        let gradient = product.emit(cx)?;
        cx.give(1, gradient);
    }
    if cx.wants(2) {
        let rank = cx.known.rank(&x)?;
        let gradient = channel_sum(cx.emit, &g, rank);
        cx.give(2, gradient);
    }
    Ok(())
}

/// y = spread of x by w: x's gradient is the convolution of g by w, w's is that of a convolution from g to x.
pub(super) fn transposed(cx: &mut Context<'_>) -> Done {
    let (g, x, w) = (cx.g()?, cx.x(0).to_owned(), cx.x(1).to_owned());
    if cx.node.attr_ints("output_shape").is_some() || cx.node.attr_text("auto_pad").unwrap_or("NOTSET") != "NOTSET" {
        return Err("has no gradient with `output_shape` or `auto_pad`; give `pads`".to_owned());
    }
    let kernel: Vec<i64> = cx.known.sizes(&w)?.iter().skip(2).map(|&s| s as i64).collect();
    let window = Window::of(cx.known, cx.node, &x, Some(kernel))?;
    let group = cx.int("group", 1);
    if cx.wants(0) {
        let attributes = window.spreading(group, &[]);
        let gradient = cx.emit.with("Conv", &[&g, &w], attributes);
        cx.give(0, gradient);
    }
    if cx.wants(1) {
        let steps = spatial_sizes(cx.known, &x, window.rank());
        let product = Product { window, group, steps, many: &g, few: &x, weight: cx.known.sizes(&w)? };
        let gradient = product.emit(cx)?;
        cx.give(1, gradient);
    }
    if cx.wants(2) {
        let rank = cx.known.rank(&x)?;
        let gradient = channel_sum(cx.emit, &g, rank);
        cx.give(2, gradient);
    }
    Ok(())
}

/// The gradient of a weight [outer, inner / group, kernel…] by the value with many places and the one with few.
struct Product<'p> {
    window: Window,
    group: i64,
    /// Spatial sizes of the value with few places.
    steps: Vec<Option<i64>>,
    /// [n, inner, …]: the input of a convolution.
    many: &'p str,
    /// [n, outer, …]: its output's gradient.
    few: &'p str,
    weight: Vec<usize>,
}

/// Which of the forms that a test holds equal is emitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A batched product for each tap: best where the output has many places.
    ByTap,
    /// All taps beside each other in one batched product: best for few channels, and needed for groups.
    Together,
    /// Batch and places as one axis, in one product: best where the output has few places.
    OneMatrix,
}

impl Product<'_> {
    fn form(&self) -> Form {
        let places = counted(self.steps.iter().copied()).unwrap_or(i64::MAX);
        let inner = self.weight.get(1).copied().unwrap_or(1) as i64;
        if self.group > 1 || inner < 16 {
            Form::Together
        } else if places < 100 && self.steps.iter().all(Option::is_some) {
            Form::OneMatrix
        } else {
            Form::ByTap
        }
    }

    fn emit(&self, cx: &mut Context<'_>) -> Result<String, String> {
        let padded = cx.emit.pad(self.many, &self.window.pads());
        let places = self.window.taps();
        let target: Vec<i64> = self.weight.iter().map(|&s| s as i64).collect();
        Ok(match self.form() {
            Form::ByTap => self.by_tap(cx.emit, &padded, &places, &target),
            Form::Together => self.together(cx.emit, &padded, &places, &target),
            Form::OneMatrix => self.one_matrix(cx.emit, &padded, &places, &target),
        })
    }

    fn taps(&self, emit: &mut Emit, padded: &str, places: &[Vec<i64>]) -> Vec<String> {
        places.iter().map(|place| self.window.tap(emit, padded, place, &self.steps)).collect()
    }

    /// Σₙ g [outer, places] · tapᵀ [places, inner], for each tap.
    fn by_tap(&self, emit: &mut Emit, padded: &str, places: &[Vec<i64>], target: &[i64]) -> String {
        let few = emit.reshape(self.few, &[0, 0, -1]);
        let mut parts = Vec::new();
        for tap in self.taps(emit, padded, places) {
            let flat = emit.reshape(&tap, &[0, 0, -1]);
            let turned = emit.transpose(&flat, &[0, 2, 1]);
            let product = emit.op("MatMul", &[&few, &turned]);
            let sum = emit.sum(&product, &[0], Axes::Drop);
            parts.push(emit.unsqueeze(&sum, &[2]));
        }
        let all = emit.concat(&parts, 2);
        emit.reshape(&all, target)
    }

    /// Σₙ g [group, outer, places] · tapsᵀ [group, places, inner · taps].
    fn together(&self, emit: &mut Emit, padded: &str, places: &[Vec<i64>], target: &[i64]) -> String {
        let outer = self.weight.first().copied().unwrap_or(1) as i64 / self.group.max(1);
        let inner = self.weight.get(1).copied().unwrap_or(1) as i64;
        let count = places.len() as i64;
        let mut flat = Vec::new();
        for tap in self.taps(emit, padded, places) {
            let flattened = emit.reshape(&tap, &[0, 0, -1]);
            flat.push(emit.unsqueeze(&flattened, &[2]));
        }
        let all = emit.concat(&flat, 2);
        // [n, channels, taps, places] to [n, group, inner · taps, places]
        let all = emit.reshape_merging(&all, self.group, inner * count);
        let few = emit.reshape(self.few, &[0, 0, -1]);
        let few = emit.reshape_merging(&few, self.group, outer);
        let turned = emit.transpose(&all, &[0, 1, 3, 2]);
        let product = emit.op("MatMul", &[&few, &turned]);
        let sum = emit.sum(&product, &[0], Axes::Drop);
        emit.reshape(&sum, target)
    }

    /// g [outer, n · places] · tapsᵀ [n · places, taps · inner].
    fn one_matrix(&self, emit: &mut Emit, padded: &str, places: &[Vec<i64>], target: &[i64]) -> String {
        let rank = self.window.rank() + 2;
        let mut order: Vec<usize> = (0..rank).collect();
        order.swap(0, 1);
        let few = emit.transpose(self.few, &order);
        let few = emit.reshape(&few, &[0, -1]);
        let turned = emit.transpose(padded, &order);
        let mut flat = Vec::new();
        for tap in self.taps(emit, &turned, places) {
            flat.push(emit.reshape(&tap, &[0, -1]));
        }
        let all = emit.concat(&flat, 0);
        let product = emit.gemm((&few, Side::Plain), (&all, Side::Transposed), 1.0);
        let inner = self.weight.get(1).copied().unwrap_or(1) as i64;
        let apart = emit.reshape(&product, &[0, places.len() as i64, inner]);
        let turned = emit.transpose(&apart, &[0, 2, 1]);
        emit.reshape(&turned, target)
    }
}

impl Emit {
    /// A value [n, …, places] as [n, group, rows, places].
    fn reshape_merging(&mut self, x: &str, group: i64, rows: i64) -> String {
        // The number of places is the only open size but for the batch, which 0 keeps.
        self.reshape(x, &[0, group, rows, -1])
    }
}

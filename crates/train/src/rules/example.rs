//! What single operators tell of the gradient that one example has by a weight.
//!
//! All values have the batch as their first axis. A rule gives the gradients themselves where they are small, or two
//! factors whose product they are.

use edgeward_graph::{DataType, Dimension, proto::NodeProto};

use super::convolve::{Window, spatial_sizes};
use crate::{
    emit::{Axes, Emit},
    known::Known,
    shape::{axis, counted},
};

/// What one use of a weight tells.
pub(crate) enum Part {
    /// The gradients are products, summed over steps.
    Factors(Factors),
    /// The gradients: \[batch, elements of the weight…\], in the weight's order.
    Whole(String),
    /// Rows of an embedding.
    Rows(Rows),
}

/// `Σₜ aₜ bₜᵀ` of each example, a matrix in the weight's order: a is \[batch, steps, m\], b \[batch, steps, n\].
pub(crate) struct Factors {
    a: String,
    b: String,
    steps: Option<i64>,
    sizes: Option<(i64, i64)>,
}

impl Factors {
    /// The factors of several uses as one: steps one after the other.
    pub fn joined(emit: &mut Emit, all: Vec<Self>) -> Self {
        let names = |of: fn(&Self) -> &String| all.iter().map(|f| of(f).clone()).collect::<Vec<_>>();
        let (a, b) = (names(|f| &f.a), names(|f| &f.b));
        let steps = all.iter().try_fold(0i64, |sum, f| sum.checked_add(f.steps?));
        Self { a: emit.concat(&a, 1), b: emit.concat(&b, 1), steps, sizes: all.first().and_then(|f| f.sizes) }
    }

    /// The gradients themselves, \[batch, m, n\].
    pub fn whole(&self, emit: &mut Emit) -> String {
        let turned = emit.transpose(&self.a, &[0, 2, 1]);
        emit.op("MatMul", &[&turned, &self.b])
    }

    /// True where the gradients themselves take no more room than what they are made of.
    pub fn is_small_whole(&self) -> bool {
        self.sizes.is_some_and(|sizes| is_small_whole(self.steps, sizes))
    }

    /// The squared norms, by whichever way multiplies less: over pairs of steps, or the gradients themselves.
    pub fn square(&self, emit: &mut Emit) -> String {
        if self.steps == Some(1) {
            let [a, b] = [&self.a, &self.b].map(|x| emit.reduce("ReduceSumSquare", x, &[1, 2], Axes::Drop));
            return emit.op("Mul", &[&a, &b]);
        }
        let by_pairs = match (self.steps, self.sizes) {
            (Some(steps), Some((m, n))) => steps.saturating_mul(steps).saturating_mul(2) <= m.saturating_mul(n),
            _ => true,
        };
        if !by_pairs {
            let whole = self.whole(emit);
            return emit.reduce("ReduceSumSquare", &whole, &[1, 2], Axes::Drop);
        }
        let [a, b] = [&self.a, &self.b].map(|x| {
            let turned = emit.transpose(x, &[0, 2, 1]);
            emit.op("MatMul", &[x, &turned])
        });
        let product = emit.op("Mul", &[&a, &b]);
        emit.sum(&product, &[1, 2], Axes::Drop)
    }
}

/// True where m × n numbers are no more than steps of m and n.
fn is_small_whole(steps: Option<i64>, (m, n): (i64, i64)) -> bool {
    steps.is_some_and(|steps| m.saturating_mul(n) <= steps.saturating_mul(m.saturating_add(n)))
}

/// Rows g \[batch, steps, n\] that go to the rows `places` \[batch, steps\] of an embedding.
pub(crate) struct Rows {
    g: String,
    places: String,
}

impl Rows {
    /// `Σₜₛ [placeₜ = placeₛ] gₜ·gₛ`.
    pub fn square(&self, emit: &mut Emit, dtype: DataType) -> String {
        let turned = emit.transpose(&self.g, &[0, 2, 1]);
        let products = emit.op("MatMul", &[&self.g, &turned]);
        let (row, column) = (emit.unsqueeze(&self.places, &[1]), emit.unsqueeze(&self.places, &[2]));
        let same = emit.op("Equal", &[&row, &column]);
        let same = emit.cast(&same, dtype);
        let products = emit.op("Mul", &[&products, &same]);
        emit.sum(&products, &[1, 2], Axes::Drop)
    }
}

/// What a node tells of its input `index` by the gradient `g` of its output.
pub(crate) fn per_example(
    emit: &mut Emit,
    known: &Known,
    node: &NodeProto,
    index: usize,
    g: &str,
) -> Result<Part, String> {
    let mut reader = Reader { emit, known, node, g };
    match (node.op_type(), index) {
        ("MatMul", 1) => reader.product(Weight::Second),
        ("Gemm", 1) if node.attr_int("transA").unwrap_or(0) == 0 => {
            let turned = node.attr_int("transB").unwrap_or(0) != 0;
            reader.product(if turned { Weight::SecondTransposed } else { Weight::Second })
        }
        ("Gemm", 2) => {
            let factor = f64::from(node.attr_float("beta").unwrap_or(1.0));
            let dtype = reader.dtype();
            let scaled = reader.emit.scale(g, dtype, factor);
            reader.spread(index, &scaled)
        }
        ("Add" | "Sum" | "Sub", _) => reader.spread(index, g),
        ("Mul", _) => {
            let other = reader.x(1 - index.min(1));
            let product = reader.emit.op("Mul", &[g, &other]);
            reader.spread(index, &product)
        }
        ("Conv", 1) => reader.convolution(),
        ("Conv" | "ConvTranspose" | "InstanceNormalization" | "GroupNormalization" | "BatchNormalization", 2) => {
            Ok(Part::Whole(reader.channels(g)?))
        }
        ("Gather", 0) => reader.rows(),
        ("LayerNormalization", 2) => reader.spread(index, g),
        ("LayerNormalization" | "RMSNormalization", 1) => {
            let hat = super::normalise::hat(reader.emit, known, node)?;
            let product = reader.emit.op("Mul", &[g, &hat]);
            reader.spread(index, &product)
        }
        ("InstanceNormalization" | "GroupNormalization" | "BatchNormalization", 1) => {
            let hat = super::normalise::hat(reader.emit, known, node)?;
            let product = reader.emit.op("Mul", &[g, &hat]);
            Ok(Part::Whole(reader.channels(&product)?))
        }
        (other, _) => Err(format!("tells nothing of single examples' gradients by its input {index} (`{other}`)")),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Weight {
    Second,
    SecondTransposed,
}

struct Reader<'r> {
    emit: &'r mut Emit,
    known: &'r Known,
    node: &'r NodeProto,
    g: &'r str,
}

impl Reader<'_> {
    fn x(&self, index: usize) -> String {
        self.node.input.get(index).cloned().unwrap_or_default()
    }

    fn y(&self) -> &str {
        self.node.output.first().map_or("", String::as_str)
    }

    fn dtype(&self) -> DataType {
        self.known.dtype(self.y()).unwrap_or(DataType::Float32)
    }

    /// Axes between the first and the last as one, that of the steps; its size, where known.
    fn steps(&mut self, x: &str, like: &str) -> Result<(String, Option<i64>), String> {
        let dims = self.known.dims(like).ok_or_else(|| format!("the rank of `{like}` is not known"))?;
        let fixed = |dim: &Dimension| if let Dimension::Fixed(size) = dim { Some(*size as i64) } else { None };
        let middle = dims.get(1..dims.len().saturating_sub(1)).unwrap_or_default();
        let count = counted(middle.iter().map(fixed));
        Ok(match dims.len() {
            0 | 1 => return Err(format!("`{like}` has no axis beside the batch")),
            2 => (self.emit.unsqueeze(x, &[1]), Some(1)),
            3 => (x.to_owned(), count),
            _ => {
                let last = fixed(dims.last().unwrap_or(&Dimension::Unknown));
                let last = last.ok_or_else(|| format!("the last size of `{like}` is not known"))?;
                (self.emit.reshape(x, &[0, -1, last]), count)
            }
        })
    }

    fn product(&mut self, weight: Weight) -> Result<Part, String> {
        let (x, w) = (self.x(0), self.x(1));
        if self.known.rank(&w)? != 2 {
            return Err("its weight is no matrix, and its single examples' gradients are not told".to_owned());
        }
        let alpha = f64::from(self.node.attr_float("alpha").unwrap_or(1.0));
        let y = self.y().to_owned();
        let (a, steps) = self.steps(&x, &x)?;
        let (b, _) = self.steps(self.g, &y)?;
        let dtype = self.dtype();
        let b = self.emit.scale(&b, dtype, alpha);
        let sizes = self.known.sizes(&w).ok().and_then(|s| Some((*s.first()? as i64, *s.get(1)? as i64)));
        let (a, b) = if weight == Weight::SecondTransposed { (b, a) } else { (a, b) };
        Ok(Part::Factors(Factors { a, b, steps, sizes }))
    }

    /// The gradient of a value that was broadcast to the output: `g` summed over all axes but the batch that it lacks.
    fn spread(&mut self, index: usize, g: &str) -> Result<Part, String> {
        let (own, y) = (self.x(index), self.y().to_owned());
        let (narrow, wide) = (self.known.sizes(&own)?, self.known.rank(&y)?);
        let lead = wide.checked_sub(narrow.len()).ok_or("is wider than its output")?;
        if lead == 0 && narrow.first() != Some(&1) {
            return Err(format!("`{own}` has an axis where the batch is"));
        }
        let mut axes: Vec<i64> = (1..lead as i64).collect();
        for (i, &size) in narrow.iter().enumerate().filter(|(i, _)| lead + i > 0) {
            if size == 1 && self.known.size(&y, lead + i) != Ok(1) {
                axes.push((lead + i) as i64);
            }
        }
        if axes.is_empty() {
            return Ok(Part::Whole(g.to_owned()));
        }
        Ok(Part::Whole(self.emit.sum(g, &axes, Axes::Drop)))
    }

    /// \[batch, channels\]: summed over space.
    fn channels(&mut self, x: &str) -> Result<String, String> {
        let rank = self.known.rank(self.y())? as i64;
        if rank <= 2 {
            return Ok(x.to_owned());
        }
        Ok(self.emit.sum(x, &(2..rank).collect::<Vec<_>>(), Axes::Drop))
    }

    fn rows(&mut self) -> Result<Part, String> {
        let (table, indices, y) = (self.x(0), self.x(1), self.y().to_owned());
        let along = axis(self.node.attr_int("axis").unwrap_or(0), self.known.rank(&table)?)?;
        if along != 0 || self.known.rank(&table)? != 2 {
            return Err("gathers something else than rows, and its single examples' gradients are not told".to_owned());
        }
        let (g, _) = self.steps(self.g, &y)?;
        let places = match self.known.rank(&indices)? {
            0 => return Err("gathers one row for all examples".to_owned()),
            1 => self.emit.unsqueeze(&indices, &[1]),
            _ => self.emit.reshape(&indices, &[0, -1]),
        };
        Ok(Part::Rows(Rows { g, places }))
    }

    /// The gradients where these are no larger than what they are made of, else factors over places.
    fn convolution(&mut self) -> Result<Part, String> {
        let (x, w) = (self.x(0), self.x(1));
        let sizes = self.known.sizes(&w)?;
        let kernel: Vec<i64> = sizes.iter().skip(2).map(|&s| s as i64).collect();
        let window = Window::of(self.known, self.node, &x, Some(kernel))?;
        let group = self.node.attr_int("group").unwrap_or(1).max(1);
        let (outer, inner) = (sizes.first().copied().unwrap_or(1) as i64, sizes.get(1).copied().unwrap_or(1) as i64);
        let steps = spatial_sizes(self.known, self.y(), window.rank());
        let padded = self.emit.pad(&x, &window.pads());
        let places = window.taps();
        let mut taps = Vec::new();
        for tap in &places {
            let tap = window.tap(self.emit, &padded, tap, &steps);
            let flat = self.emit.reshape(&tap, &[0, 0, -1]);
            taps.push(self.emit.unsqueeze(&flat, &[2]));
        }
        let all = self.emit.concat(&taps, 2);
        let width = inner * places.len() as i64;
        if group == 1 {
            let all = self.emit.reshape(&all, &[0, width, -1]);
            let b = self.emit.transpose(&all, &[0, 2, 1]);
            let g = self.emit.reshape(self.g, &[0, outer, -1]);
            let count = counted(steps.iter().copied());
            if !is_small_whole(count, (outer, width)) {
                let a = self.emit.transpose(&g, &[0, 2, 1]);
                return Ok(Part::Factors(Factors { a, b, steps: count, sizes: Some((outer, width)) }));
            }
            let whole = self.emit.op("MatMul", &[&g, &b]);
            let shape: Vec<i64> = std::iter::once(0).chain(sizes.iter().map(|&size| size as i64)).collect();
            let whole = self.emit.reshape(&whole, &shape);
            self.emit.composite("ConvExampleGradients", &[&x, &w, self.g], &[&whole], self.node.attribute.clone());
            return Ok(Part::Whole(whole));
        }
        let all = self.emit.reshape(&all, &[0, group, width, -1]);
        let turned = self.emit.transpose(&all, &[0, 1, 3, 2]);
        let g = self.emit.reshape(self.g, &[0, group, outer / group, -1]);
        Ok(Part::Whole(self.emit.op("MatMul", &[&g, &turned])))
    }
}

//! Sizes as far as they are known before a run, and nodes that find them within it where they are not.

use edgeward_graph::Dimension::{self, Fixed, Unknown};

use crate::{
    emit::{Axes, Emit},
    gradient::Context,
    known::Known,
};

/// A position that may count from the end.
pub(crate) fn axis(axis: i64, rank: usize) -> Result<usize, String> {
    let positive = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(positive)
        .ok()
        .filter(|&a| a < rank.max(1))
        .ok_or_else(|| format!("axis {axis} is outside of rank {rank}"))
}

/// The product of sizes; none where one is open, or where it cannot be counted.
pub(crate) fn counted(mut sizes: impl Iterator<Item = Option<i64>>) -> Option<i64> {
    sizes.try_fold(1i64, |n, size| n.checked_mul(size?))
}

impl Known {
    /// The number of dimensions.
    pub fn rank(&self, name: &str) -> Result<usize, String> {
        self.dims(name).map(|dims| dims.len()).ok_or_else(|| format!("the rank of `{name}` is not known before a run"))
    }

    /// All sizes.
    pub fn sizes(&self, name: &str) -> Result<Vec<usize>, String> {
        self.of_value(name).fixed().ok_or_else(|| format!("the sizes of `{name}` are not known before a run"))
    }

    /// One size.
    pub fn size(&self, name: &str, axis: usize) -> Result<usize, String> {
        match self.dims(name).as_ref().and_then(|dims| dims.get(axis)) {
            Some(Fixed(size)) => Ok(*size),
            _ => Err(format!("the size of `{name}` along axis {axis} is not known before a run")),
        }
    }
}

/// A target for `Reshape` that needs no run: at most one size is open, and none is 0.
pub(crate) fn reshape_target(dims: &[Dimension]) -> Option<Vec<i64>> {
    let open = dims.iter().filter(|dim| !matches!(dim, Fixed(_))).count();
    if open > 1 || dims.contains(&Fixed(0)) {
        return None;
    }
    Some(dims.iter().map(|dim| if let Fixed(size) = dim { *size as i64 } else { -1 }).collect())
}

/// `x` under the shape of `like`.
pub(crate) fn reshape_like(emit: &mut Emit, known: &Known, x: &str, like: &str) -> String {
    if let Some(target) = known.dims(like).as_deref().and_then(reshape_target) {
        return emit.reshape(x, &target);
    }
    let shape = emit.op("Shape", &[like]);
    emit.op("Reshape", &[x, &shape])
}

/// The sum of `x`, which has the shape of `from`, over what broadcasting made of `to`: it has the shape of `to`.
pub(crate) fn unbroadcast(emit: &mut Emit, known: &Known, x: &str, from: &str, to: &str) -> String {
    let shapes = (known.dims(from), known.dims(to));
    let (Some(wide), Some(narrow)) = shapes else { return unbroadcast_in_run(emit, x, to) };
    unbroadcast_dims(emit, x, &wide, &narrow).unwrap_or_else(|| unbroadcast_in_run(emit, x, to))
}

/// As [`unbroadcast`], by dimensions; none where they do not tell what was broadcast.
pub(crate) fn unbroadcast_dims(emit: &mut Emit, x: &str, wide: &[Dimension], narrow: &[Dimension]) -> Option<String> {
    let lead = wide.len().checked_sub(narrow.len())?;
    let mut axes = Vec::new();
    for (i, (from, to)) in wide.get(lead..)?.iter().zip(narrow).enumerate() {
        match (from, to) {
            (Fixed(1), Fixed(1)) => {}
            (_, Fixed(1)) => axes.push((lead + i) as i64),
            (_, Fixed(_)) => {}
            (a, b) if a == b && *a != Unknown => {}
            _ => return None,
        }
    }
    let mut sum = x.to_owned();
    if !axes.is_empty() {
        sum = emit.sum(&sum, &axes, Axes::Keep);
    }
    if lead > 0 {
        let leading: Vec<i64> = (0..lead as i64).collect();
        sum = emit.sum(&sum, &leading, Axes::Drop);
    }
    Some(sum)
}

/// Finds the axes within the run: those of size 1, after as many as `to` lacks.
pub(crate) fn unbroadcast_in_run(emit: &mut Emit, x: &str, to: &str) -> String {
    let (from, target) = (emit.op("Shape", &[x]), emit.op("Shape", &[to]));
    let (rank, of_target) = (emit.op("Shape", &[&from]), emit.op("Shape", &[&target]));
    let lacking = emit.op("Sub", &[&rank, &of_target]);
    let one = emit.ints(&[1]);
    let ones = emit.op("Expand", &[&one, &lacking]);
    let padded = emit.concat(&[ones, target.clone()], 0);
    let single = emit.op("Equal", &[&padded, &one]);
    let places = emit.op("NonZero", &[&single]);
    let axes = emit.reshape(&places, &[-1]);
    let keep = edgeward_graph::proto::AttributeProto::of_int("keepdims", 1);
    let none_is_none = edgeward_graph::proto::AttributeProto::of_int("noop_with_empty_axes", 1);
    let sum = emit.with("ReduceSum", &[x, &axes], vec![keep, none_is_none]);
    emit.op("Reshape", &[&sum, &target])
}

impl Context<'_> {
    /// A gradient of the first output's shape, as the gradient of input `to`.
    pub fn unbroadcast(&mut self, gradient: &str, to: usize) -> String {
        let (from, to) = (self.y(0).to_owned(), self.x(to).to_owned());
        unbroadcast(self.emit, self.known, gradient, &from, &to)
    }

    /// `x` under the shape of `like`.
    pub fn reshape_like(&mut self, x: &str, like: &str) -> String {
        reshape_like(self.emit, self.known, x, like)
    }

    /// Sizes of `x` copied to the shape of `like`.
    pub fn expand_like(&mut self, x: &str, like: &str) -> String {
        let fixed = self.known.of_value(like).fixed();
        let shape = match fixed {
            Some(sizes) => self.emit.ints(&sizes.iter().map(|&s| s as i64).collect::<Vec<_>>()),
            None => self.emit.op("Shape", &[like]),
        };
        self.emit.op("Expand", &[x, &shape])
    }

    /// A list that older operator sets have as an attribute and newer ones as an input; none where it is absent.
    pub fn list(&self, attribute: &str, input: usize) -> Result<Option<Vec<i64>>, String> {
        if let Some(list) = self.node.attr_ints(attribute) {
            return Ok(Some(list.to_vec()));
        }
        match self.x(input) {
            "" => Ok(None),
            name => match self.known.integers(name) {
                Some(list) => Ok(Some(list)),
                None => Err(format!("`{attribute}` is computed in the run (`{name}`), expected a constant")),
            },
        }
    }
}

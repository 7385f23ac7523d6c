//! Where each element of an arranging operator's output comes from, whatever the elements are.

use std::ops::Range;

use crate::proto::NodeProto;

/// An arranging operator with what is known of it.
pub(crate) struct Arrangement<'a> {
    /// The node.
    pub node: &'a NodeProto,
    /// Shapes of the inputs; none where one is absent or not known.
    pub inputs: Vec<Option<Vec<usize>>>,
    /// Shape of the output.
    pub output: &'a [usize],
    /// Contents of an input that says how to arrange.
    pub numbers: &'a dyn Fn(usize) -> Option<Vec<i64>>,
}

/// The elements of an output.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Those of the only data input, in their order.
    Same,
    /// By their places in the data inputs, these laid one after the other.
    From(Vec<usize>),
}

/// Axes beyond this are no model's.
const RANK_MAX: usize = 64;

pub(super) fn is_arrangement(op: &str) -> bool {
    const OPS: [&str; 12] = [
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    ];
    OPS.contains(&op)
}

impl Arrangement<'_> {
    /// The inputs that hold elements; the others say how to arrange.
    pub fn data(&self) -> Range<usize> {
        match self.node.op_type() {
            "Concat" => 0..self.inputs.len(),
            "Where" => 1..3,
            _ => 0..1,
        }
    }

    /// Where the elements come from; none where it is not known or not sound.
    pub fn source(&self) -> Option<Source> {
        if self.output.len() > RANK_MAX {
            return None;
        }
        // Beside a size of 0 the others mean nothing, however large they are.
        if count(self.output) == Some(0) {
            return Some(Source::From(Vec::new()));
        }
        let places = match self.node.op_type() {
            "Identity" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => return Some(Source::Same),
            "Transpose" => grid(&self.transposed()?),
            "Expand" => broadcast(self.shape(0)?, self.output)?,
            "Tile" => grid(&self.tiled()?),
            "Slice" => grid(&self.sliced()?),
            "Gather" => grid(&self.gathered()?),
            "Concat" => self.joined()?,
            "Where" => self.chosen()?,
            _ => return None,
        };
        (Some(places.len()) == count(self.output)).then_some(Source::From(places))
    }

    fn shape(&self, index: usize) -> Option<&[usize]> {
        self.inputs.get(index)?.as_deref().filter(|shape| shape.len() <= RANK_MAX)
    }

    fn has(&self, index: usize) -> bool {
        self.node.input.get(index).is_some_and(|name| !name.is_empty())
    }

    fn list(&self, attribute: &str, index: usize) -> Option<Vec<i64>> {
        self.node.attr_ints(attribute).map(<[i64]>::to_vec).or_else(|| (self.numbers)(index))
    }

    fn transposed(&self) -> Option<Vec<Vec<usize>>> {
        let from = self.shape(0)?;
        let order: Vec<usize> = match self.node.attr_ints("perm") {
            Some(perm) => perm.iter().map(|&axis| position(axis, from.len())).collect::<Option<_>>()?,
            None => (0..from.len()).rev().collect(),
        };
        let steps = strides(from);
        order.iter().map(|&axis| Some(walked(*from.get(axis)?, *steps.get(axis)?))).collect()
    }

    fn tiled(&self) -> Option<Vec<Vec<usize>>> {
        let from = self.shape(0)?;
        if from.len() != self.output.len() {
            return None;
        }
        let axis = |((&size, step), &long): ((&usize, usize), &usize)| {
            (0..long).map(|i| i.checked_rem(size).map(|i| i * step)).collect()
        };
        from.iter().zip(strides(from)).zip(self.output).map(axis).collect()
    }

    fn sliced(&self) -> Option<Vec<Vec<usize>>> {
        let from = self.shape(0)?;
        let (starts, ends) = (self.list("starts", 1)?, self.list("ends", 2)?);
        let attributes = self.node.attr_ints("starts").is_some();
        let named = self.node.attr_ints("axes").is_some() || !attributes && self.has(3);
        let axes = if named { self.list("axes", 3)? } else { (0..i64::try_from(starts.len()).ok()?).collect() };
        let steps = if !attributes && self.has(4) { (self.numbers)(4)? } else { vec![1; axes.len()] };
        let mut taken: Vec<Option<Vec<usize>>> = vec![None; from.len()];
        let offsets = strides(from);
        for (i, &axis) in axes.iter().enumerate() {
            let axis = position(axis, from.len())?;
            let (&size, &offset) = (from.get(axis)?, offsets.get(axis)?);
            let (first, length) = slice(size, *starts.get(i)?, *ends.get(i)?, *steps.get(i)?)?;
            let step = *steps.get(i)?;
            let at = |k: usize| usize::try_from(first + i64::try_from(k).ok()? * step).ok()?.checked_mul(offset);
            if taken.get(axis)?.is_some() {
                return None;
            }
            *taken.get_mut(axis)? = Some((0..length).map(at).collect::<Option<_>>()?);
        }
        // Only axes that are taken whole have the output's size, and so one that is walked through.
        let whole = from.iter().zip(offsets);
        let axis = |(taken, (&size, offset)): (Option<Vec<usize>>, (&usize, usize))| {
            taken.unwrap_or_else(|| walked(size, offset))
        };
        Some(taken.into_iter().zip(whole).map(axis).collect())
    }

    fn gathered(&self) -> Option<Vec<Vec<usize>>> {
        let from = self.shape(0)?;
        let axis = position(self.node.attr_int("axis").unwrap_or(0), from.len())?;
        let size = *from.get(axis)?;
        let indices = (self.numbers)(1)?.into_iter().map(|i| position(i, size)).collect::<Option<Vec<_>>>()?;
        let one = |(at, (&size, step)): (usize, (&usize, usize))| {
            if at != axis {
                return Some(walked(size, step));
            }
            indices.iter().map(|i| i.checked_mul(step)).collect()
        };
        from.iter().zip(strides(from)).enumerate().map(one).collect()
    }

    fn joined(&self) -> Option<Vec<usize>> {
        let shapes: Vec<&[usize]> = self.data().map(|i| self.shape(i)).collect::<Option<_>>()?;
        let axis = position(self.node.attr_int("axis")?, self.output.len())?;
        let outer = count(self.output.get(..axis)?)?;
        let mut parts = Vec::with_capacity(shapes.len());
        let mut base = 0;
        for shape in shapes {
            let run = count(shape.get(axis..)?)?;
            parts.push((base, run));
            base += count(shape)?;
        }
        let whole = |i: usize| parts.iter().flat_map(move |&(base, run)| base + i * run..base + (i + 1) * run);
        (Some(base) == count(self.output)).then(|| (0..outer).flat_map(whole).collect())
    }

    fn chosen(&self) -> Option<Vec<usize>> {
        let condition = (self.numbers)(0)?;
        let at = |index: usize| broadcast(self.shape(index)?, self.output);
        let second = count(self.shape(1)?)?;
        let (which, yes, no) = (at(0)?, at(1)?, at(2)?);
        let one = |((which, yes), no): ((usize, usize), usize)| {
            Some(if *condition.get(which)? != 0 { yes } else { second + no })
        };
        which.into_iter().zip(yes).zip(no).map(one).collect()
    }
}

/// A position that may count from the end.
fn position(at: i64, size: usize) -> Option<usize> {
    let size = i64::try_from(size).ok()?;
    let positive = if at < 0 { at.checked_add(size)? } else { at };
    usize::try_from(positive).ok().filter(|_| positive < size)
}

/// Elements of a shape.
pub(crate) fn count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size))
}

/// The first position of a slice and how many it takes; none where it steps by 0.
pub(crate) fn slice(size: usize, start: i64, end: i64, step: i64) -> Option<(i64, usize)> {
    let size = i64::try_from(size).ok()?;
    let from_end = |p: i64| if p < 0 { p.saturating_add(size) } else { p };
    let (low, high) = if step > 0 { (0, size) } else { (-1, size - 1) };
    let (start, end) = (from_end(start).clamp(low, high), from_end(end).clamp(low, high));
    let length = if step > 0 { end - start } else { start - end };
    let step = usize::try_from(step.unsigned_abs()).ok().filter(|&step| step > 0)?;
    Some((start, usize::try_from(length).unwrap_or(0).div_ceil(step)))
}

/// Elements between neighbours along each axis.
pub(super) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut steps = vec![1usize; shape.len()];
    for i in (1..shape.len()).rev() {
        steps[i - 1] = steps[i].saturating_mul(shape[i]);
    }
    steps
}

fn walked(size: usize, step: usize) -> Vec<usize> {
    (0..size).map(|i| i.saturating_mul(step)).collect()
}

/// The places of `from` that the elements of `to` read when it is broadcast.
pub(crate) fn broadcast(from: &[usize], to: &[usize]) -> Option<Vec<usize>> {
    if count(to)? == 0 {
        return Some(Vec::new());
    }
    let skipped = to.len().checked_sub(from.len())?;
    let steps = strides(from);
    let axis = |(i, &size): (usize, &usize)| match i.checked_sub(skipped) {
        None => Some(vec![0; size]),
        Some(i) => match *from.get(i)? {
            own if own == size => Some(walked(size, *steps.get(i)?)),
            1 => Some(vec![0; size]),
            _ => None,
        },
    };
    Some(grid(&to.iter().enumerate().map(axis).collect::<Option<Vec<_>>>()?))
}

/// Every sum of one offset of each axis, the last axis fastest.
pub(super) fn grid(axes: &[Vec<usize>]) -> Vec<usize> {
    if axes.iter().any(Vec::is_empty) {
        return Vec::new();
    }
    axes.iter().fold(vec![0], |bases, axis| match axis.as_slice() {
        [0] => bases,
        axis => bases.iter().flat_map(|base| axis.iter().map(move |offset| base.saturating_add(*offset))).collect(),
    })
}

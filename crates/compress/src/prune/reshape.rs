//! Channels through a change of shape: axes that are joined (a picture flattened before a matrix) and parted (heads).

use std::{collections::BTreeSet, ops::Range, rc::Rc};

use edgeward_graph::{Dimension, proto::NodeProto};

use super::{
    flow::{Flow, Value},
    rules::Done,
    ties::{Axis, Label, Ties},
};

/// Reshape and Flatten.
pub(super) fn rule(flow: &mut Flow<'_>, node: &NodeProto) -> Done {
    let (x, dims) = (flow.wanted(node, 0)?, flow.output_dims(node, 0)?);
    let axes = regrouped(flow, node, &x, &dims);
    if node.op_type() == "Reshape" && axes.iter().any(|axis| *axis != Axis::Fixed) {
        let shape = shape(flow, node, &x, &dims)?;
        flow.shapes.insert(flow.at, shape);
    }
    Ok(vec![axes])
}

/// Squeeze and Unsqueeze.
pub(super) fn ones(flow: &mut Flow<'_>, node: &NodeProto) -> Done {
    let (x, dims) = (flow.wanted(node, 0)?, flow.output_dims(node, 0)?);
    Ok(vec![regrouped(flow, node, &x, &dims)])
}

/// The shape that a Reshape is told, as constant numbers that hold for every run.
fn shape(flow: &Flow<'_>, node: &NodeProto, x: &Value, dims: &[Dimension]) -> Result<Vec<i64>, String> {
    let told = flow.ints(node, 1).ok().flatten().filter(|told| told.len() == dims.len());
    if let Some(told) = told {
        return Ok(told);
    }
    let copies = node.attr_int("allowzero").unwrap_or(0) == 0;
    let mut open = 0;
    let number = |(at, dim): (usize, &Dimension)| match dim {
        Dimension::Fixed(size) => *size as i64,
        Dimension::Symbol(_) if copies && x.dims.get(at) == Some(dim) => 0,
        _ => {
            open += 1;
            -1
        }
    };
    let shape = dims.iter().enumerate().map(number).collect();
    if open > 1 { Err("is told a shape that no constant can say".to_owned()) } else { Ok(shape) }
}

/// Axes of the result.
fn regrouped(flow: &mut Flow<'_>, node: &NodeProto, x: &Value, dims: &[Dimension]) -> Vec<Axis> {
    let mut axes = vec![Axis::Fixed; dims.len()];
    if x.is_fixed() {
        return axes;
    }
    let mut covered = BTreeSet::new();
    for (from, to) in blocks(&x.dims, dims) {
        covered.extend(from.clone());
        let made = block(flow, node, x, from, dims.get(to.clone()).unwrap_or_default());
        for (axis, made) in axes.iter_mut().skip(to.start).zip(made) {
            *axis = made;
        }
    }
    for (at, axis) in x.axes.iter().enumerate() {
        if !covered.contains(&at) {
            flow.hold(axis, node, "changes its shape in a way that is not known");
        }
    }
    axes
}

/// Axes of the result that one block of axes becomes; both have as many elements.
fn block(flow: &mut Flow<'_>, node: &NodeProto, x: &Value, from: Range<usize>, dims: &[Dimension]) -> Vec<Axis> {
    let mut made = vec![Axis::Fixed; dims.len()];
    let with: Vec<usize> = from.clone().filter(|&at| x.labels(at).is_some()).collect();
    let (&[axis], [_, ..]) = (with.as_slice(), dims) else {
        with.iter().filter_map(|&at| x.axes.get(at)).for_each(|axis| flow.hold(axis, node, "joins several of them"));
        return made;
    };
    let Some(labels) = x.labels(axis).cloned() else { return made };
    let after: usize = (axis + 1..from.end).filter_map(|at| x.size(at)).product();
    let before: usize = (from.start..axis).filter_map(|at| x.size(at)).product();
    let size = |dim: &Dimension| if let Dimension::Fixed(size) = dim { *size } else { 1 };
    let sizes: Vec<usize> = dims.iter().map(size).collect();
    let element = Elements { labels, after, count: before * after };
    let wide: Vec<usize> = (0..sizes.len()).filter(|&at| sizes.get(at).is_some_and(|&size| size > 1)).collect();
    if element.len() > ELEMENTS_MAX {
        x.axes.get(axis).iter().for_each(|axis| flow.hold(axis, node, "joins too many elements to follow"));
        return made;
    }
    let clean = wide.iter().find(|&&at| element.is_clean(&sizes, at));
    // Heads stand before what is theirs; groups of a picture's channels stand before their places, which are more.
    let preferred = if x.rank() >= 4 { wide.last() } else { wide.first() };
    let Some(&chosen) = clean.or(preferred) else { return made };
    let labels = element.along(&mut flow.ties, &sizes, chosen);
    if let Some(axis) = made.get_mut(chosen) {
        *axis = Axis::Channels(labels.into());
    }
    made
}

/// Elements of one block that are followed at most.
const ELEMENTS_MAX: usize = 1 << 24;

/// The elements of a block in the order of memory, each of one channel.
struct Elements {
    labels: Rc<[Label]>,
    /// Elements of a channel that follow each other.
    after: usize,
    /// Elements of a channel.
    count: usize,
}

impl Elements {
    fn len(&self) -> usize {
        self.count.saturating_mul(self.labels.len())
    }

    /// The index along axis `at` of `sizes`, and the channel, of every element.
    fn each(&self, sizes: &[usize], at: usize) -> impl Iterator<Item = (usize, Label)> + '_ {
        let stride: usize = sizes.iter().skip(at + 1).product::<usize>().max(1);
        let size = sizes.get(at).copied().unwrap_or(1).max(1);
        let label = |element: usize| self.labels.get(element / self.after.max(1) % self.labels.len().max(1)).copied();
        (0..self.len()).filter_map(move |element| Some((element / stride % size, label(element)?)))
    }

    /// True where one channel alone is at each index.
    fn is_clean(&self, sizes: &[usize], at: usize) -> bool {
        let mut met = vec![None; sizes.get(at).copied().unwrap_or(1)];
        self.each(sizes, at)
            .all(|(index, label)| met.get_mut(index).is_some_and(|met| *met.get_or_insert(label) == label))
    }

    /// The channel at each index; where several meet, they are one from now on.
    fn along(&self, ties: &mut Ties, sizes: &[usize], at: usize) -> Vec<Label> {
        let mut met = vec![None; sizes.get(at).copied().unwrap_or(1)];
        for (index, label) in self.each(sizes, at) {
            if let Some(met) = met.get_mut(index) {
                ties.join(*met.get_or_insert(label), label);
            }
        }
        met.into_iter().flatten().collect()
    }
}

/// Parts of both shapes with as many elements each, in order; what cannot be told is in none.
fn blocks(from: &[Dimension], to: &[Dimension]) -> Vec<(Range<usize>, Range<usize>)> {
    let (mut i, mut j) = (0, 0);
    let mut found = Vec::new();
    while let Some((di, dj)) = next(from.get(i..).unwrap_or_default().iter(), to.get(j..).unwrap_or_default().iter()) {
        found.push((i..i + di, j..j + dj));
        (i, j) = (i + di, j + dj);
    }
    let (mut p, mut q) = (from.len(), to.len());
    let rest = |all: &'_ [Dimension], begin: usize, end: usize| all.get(begin..end).unwrap_or_default().to_vec();
    while let Some((di, dj)) = next(rest(from, i, p).iter().rev(), rest(to, j, q).iter().rev()) {
        found.push((p - di..p, q - dj..q));
        (p, q) = (p - di, q - dj);
    }
    // Ones that are left over on one side.
    let ones = |dims: &[Dimension]| dims.iter().all(|dim| *dim == Dimension::Fixed(1));
    if (i < p || j < q) && ones(&rest(from, i, p)) && ones(&rest(to, j, q)) {
        found.push((i..p, j..q));
    }
    found
}

/// How many dimensions of each side come next to the same number of elements.
fn next<'a>(
    mut from: impl Iterator<Item = &'a Dimension>,
    mut to: impl Iterator<Item = &'a Dimension>,
) -> Option<(usize, usize)> {
    let (first, second) = (from.next()?, to.next()?);
    if first == second && *first != Dimension::Unknown {
        return Some((1, 1));
    }
    let fixed = |dim: &Dimension| if let Dimension::Fixed(size) = dim { Some(*size) } else { None };
    let (mut a, mut b) = (fixed(first)?, fixed(second)?);
    let (mut i, mut j) = (1, 1);
    while a != b {
        if a < b {
            a = a.checked_mul(fixed(from.next()?)?)?;
            i += 1;
        } else {
            b = b.checked_mul(fixed(to.next()?)?)?;
            j += 1;
        }
    }
    (a > 0).then_some((i, j))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(text: &str) -> Vec<Dimension> {
        let dim = |word: &str| match word.parse() {
            Ok(size) => Dimension::Fixed(size),
            Err(_) if word == "?" => Dimension::Unknown,
            Err(_) => Dimension::Symbol(word.to_owned()),
        };
        text.split_whitespace().map(dim).collect()
    }

    #[test]
    fn shapes_fall_into_blocks() {
        for (from, to, expected) in [
            ("n 8 7 7", "n 392", "0..1>0..1 1..4>1..2"),
            ("n 8 7 7", "? 392", "1..4>1..2"),
            ("n s 768", "n s 12 64", "0..1>0..1 1..2>1..2 2..3>2..4"),
            ("n s 12 64", "? ? 768", "2..4>2..3"),
            ("n 512 1 1", "n 512", "0..1>0..1 1..2>1..2 2..4>2..2"),
            ("2 3 4", "6 4", "0..2>0..1 2..3>1..2"),
            ("n 8 h w", "n 8 ?", "0..1>0..1 1..2>1..2"),
        ] {
            let found = blocks(&dims(from), &dims(to));
            let text: Vec<String> = found.iter().map(|(from, to)| format!("{from:?}>{to:?}")).collect();
            assert_eq!(text.join(" "), expected, "{from} to {to}");
        }
    }
}

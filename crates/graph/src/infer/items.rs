//! Contents of small integer tensors, as shape arithmetic makes them.

use super::{ITEMS_MAX, View, axis};
use crate::{DataType, Dimension, Tensor};

/// One element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// A number.
    Number(i64),
    /// The size that a symbol stands for.
    Symbol(String),
    /// Not known.
    Unknown,
}

impl Item {
    pub fn number(&self) -> Option<i64> {
        if let Self::Number(n) = self { Some(*n) } else { None }
    }

    /// The dimension of this size; unknown for a number that is none.
    pub fn dimension(&self) -> Dimension {
        match self {
            Self::Number(n) => usize::try_from(*n).map_or(Dimension::Unknown, Dimension::Fixed),
            Self::Symbol(name) => Dimension::Symbol(name.clone()),
            Self::Unknown => Dimension::Unknown,
        }
    }

    fn of(dim: &Dimension) -> Self {
        match dim {
            Dimension::Fixed(size) => i64::try_from(*size).map_or(Self::Unknown, Self::Number),
            Dimension::Symbol(name) => Self::Symbol(name.clone()),
            Dimension::Unknown => Self::Unknown,
        }
    }
}

/// The numbers of an integer tensor.
pub(super) fn of_tensor(tensor: &Tensor) -> Option<Vec<Item>> {
    let numbers: Vec<i64> = match tensor.dtype() {
        DataType::Int64 => tensor.values::<i64>().ok()?.to_vec(),
        DataType::Int32 => tensor.values::<i32>().ok()?.iter().map(|&v| v.into()).collect(),
        _ => return None,
    };
    Some(numbers.into_iter().map(Item::Number).collect())
}

/// Contents of a node's first output, where they are known and few.
pub(super) fn outputs(view: &View<'_>) -> Option<Vec<Item>> {
    let items = match view.node.op_type() {
        "Constant" => constant(view),
        "Shape" => shape(view),
        "Size" => Some(vec![Item::Number(i64::try_from(view.input(0).element_count()?).ok()?)]),
        "Identity" | "Squeeze" | "Unsqueeze" | "Reshape" | "Flatten" => view.items(0).map(<[Item]>::to_vec),
        "Cast" => {
            let whole = matches!(view.int("to", 0), 6 | 7);
            view.items(0).filter(|_| whole).map(<[Item]>::to_vec)
        }
        "Gather" => gather(view),
        "Concat" => {
            let parts = (0..view.node.input.len()).map(|i| view.items(i).map(<[Item]>::to_vec));
            parts.collect::<Option<Vec<_>>>().map(|parts| parts.concat())
        }
        "Slice" => slice(view),
        "Add" => arithmetic(view, i64::checked_add),
        "Sub" => arithmetic(view, i64::checked_sub),
        "Mul" => arithmetic(view, i64::checked_mul),
        "Div" => arithmetic(view, i64::checked_div),
        "ConstantOfShape" => filled(view),
        "ReduceProd" => product(view),
        _ => None,
    };
    items.filter(|items| items.len() <= ITEMS_MAX)
}

fn constant(view: &View<'_>) -> Option<Vec<Item>> {
    let one = view.node.attr_int("value_int").map(|n| vec![Item::Number(n)]);
    one.or_else(|| Some(view.node.attr_ints("value_ints")?.iter().map(|&n| Item::Number(n)).collect()))
}

fn shape(view: &View<'_>) -> Option<Vec<Item>> {
    let dims = view.dims(0)?;
    let rank = dims.len() as i64;
    let at = |position: i64| (if position < 0 { position + rank } else { position }).clamp(0, rank) as usize;
    let (from, to) = (at(view.int("start", 0)), at(view.int("end", rank)));
    Some(dims.get(from..to.max(from))?.iter().map(Item::of).collect())
}

fn gather(view: &View<'_>) -> Option<Vec<Item>> {
    let (from, at) = (view.items(0)?, view.numbers(1)?);
    // Contents are followed for one dimension, so the axis is that one.
    at.into_iter().map(|i| from.get(axis(i, from.len()).ok()?).cloned()).collect()
}

fn slice(view: &View<'_>) -> Option<Vec<Item>> {
    let from = view.items(0)?;
    let (starts, ends) = (view.list("starts", 1)?, view.list("ends", 2)?);
    let step = if view.has(4) { *view.numbers(4)?.first()? } else { 1 };
    let length = from.len() as i64;
    let at = |position: i64| (if position < 0 { position.saturating_add(length) } else { position }).clamp(0, length);
    let (start, end) = (at(*starts.first()?), at(*ends.first()?));
    if step < 1 {
        return None;
    }
    Some((start..end).step_by(usize::try_from(step).ok()?).filter_map(|i| from.get(i as usize).cloned()).collect())
}

fn arithmetic(view: &View<'_>, with: fn(i64, i64) -> Option<i64>) -> Option<Vec<Item>> {
    let (a, b) = (view.items(0)?, view.items(1)?);
    let length = a.len().max(b.len());
    let at = |items: &[Item], i: usize| if items.len() == 1 { items.first().cloned() } else { items.get(i).cloned() };
    let one = |i| {
        Some(match (at(a, i)?, at(b, i)?) {
            (Item::Number(a), Item::Number(b)) => with(a, b).map_or(Item::Unknown, Item::Number),
            // One times a size, and a size over one, is that size.
            (Item::Symbol(s), Item::Number(1)) if matches!(view.node.op_type(), "Mul" | "Div") => Item::Symbol(s),
            (Item::Number(1), Item::Symbol(s)) if view.node.op_type() == "Mul" => Item::Symbol(s),
            _ => Item::Unknown,
        })
    };
    (0..length).map(one).collect()
}

fn filled(view: &View<'_>) -> Option<Vec<Item>> {
    let &[count] = view.numbers(0)?.as_slice() else { return None };
    let value = match view.node.attr("value").and_then(|a| a.t.as_ref()) {
        Some(tensor) => of_tensor(&crate::codec::decode(tensor).ok()?)?.first()?.clone(),
        None => return None,
    };
    let count = usize::try_from(count).ok().filter(|&count| count <= ITEMS_MAX)?;
    Some(vec![value; count])
}

fn product(view: &View<'_>) -> Option<Vec<Item>> {
    let all = view.numbers(0)?.into_iter().try_fold(1i64, i64::checked_mul)?;
    Some(vec![Item::Number(all)])
}

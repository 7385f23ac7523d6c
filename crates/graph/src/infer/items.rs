//! Contents of small integer tensors, as shape arithmetic makes them.

use super::{ITEMS_MAX, ValueType, View};
use crate::{
    DataType, Dimension, Tensor,
    eval::{self, Arrangement, Source},
};

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

/// The numbers of a tensor of integers or truth values.
pub(super) fn of_tensor(tensor: &Tensor) -> Option<Vec<Item>> {
    Some(eval::integers(tensor)?.into_iter().map(Item::Number).collect())
}

/// Contents of a node's first output of type `output`, where they are known and few.
pub(super) fn outputs(view: &View<'_>, output: &ValueType) -> Option<Vec<Item>> {
    let (dtype, shape) = (output.dtype?, output.fixed()?);
    let count = eval::count(&shape).filter(|&count| count <= ITEMS_MAX)?;
    let items = match view.node.op_type() {
        "Constant" => constant(view),
        "Shape" => self::shape(view),
        "Size" => Some(vec![Item::Number(i64::try_from(view.input(0).element_count()?).ok()?)]),
        "Cast" => view.contents(0).map(<[Item]>::to_vec),
        "ConstantOfShape" => filled(view, count),
        "Range" => range(view, count),
        "ReduceProd" if count == 1 => product(view),
        op => arranged(view, &shape).or_else(|| arithmetic(view, op, &shape)),
    };
    let held = |item: Item| match item {
        Item::Number(n) if !eval::fits(n, dtype) => Item::Unknown,
        item => item,
    };
    let items = items.filter(|items| items.len() == count)?;
    matches!(dtype, DataType::Int64 | DataType::Int32 | DataType::Bool).then(|| items.into_iter().map(held).collect())
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

/// Items in another order or number: gathered, joined, sliced, repeated, chosen.
fn arranged(view: &View<'_>, shape: &[usize]) -> Option<Vec<Item>> {
    let inputs = (0..view.node.input.len()).map(|i| view.input(i).fixed()).collect();
    let numbers = |index| view.contents(index)?.iter().map(Item::number).collect();
    let arrangement = Arrangement { node: view.node, inputs, output: shape, numbers: &numbers };
    match arrangement.source()? {
        Source::Same => Some(view.contents(0)?.to_vec()),
        Source::From(places) => {
            let all = arrangement.data().map(|i| part(view, i)).collect::<Option<Vec<_>>>()?.concat();
            places.into_iter().map(|place| all.get(place).cloned()).collect()
        }
    }
}

/// Contents of an input, each unknown where only their number is known.
fn part(view: &View<'_>, index: usize) -> Option<Vec<Item>> {
    let count = || eval::count(&view.input(index).fixed()?).filter(|&count| count <= ITEMS_MAX);
    view.contents(index).map(<[Item]>::to_vec).or_else(|| Some(vec![Item::Unknown; count()?]))
}

fn arithmetic(view: &View<'_>, op: &str, shape: &[usize]) -> Option<Vec<Item>> {
    let with = eval::whole(view.node).filter(|_| view.node.input.len() == 2)?;
    let side = |index: usize| Some((view.contents(index)?, eval::broadcast(&view.input(index).fixed()?, shape)?));
    let ((a, left), (b, right)) = (side(0)?, side(1)?);
    let one = |(left, right): (usize, usize)| {
        Some(match (a.get(left)?, b.get(right)?) {
            (Item::Number(a), Item::Number(b)) => {
                let result = with((*a).into(), (*b).into()).and_then(|n| i64::try_from(n).ok());
                result.map_or(Item::Unknown, Item::Number)
            }
            // One times a size, and a size over one, is that size.
            (Item::Symbol(s), Item::Number(1)) if matches!(op, "Mul" | "Div") => Item::Symbol(s.clone()),
            (Item::Number(1), Item::Symbol(s)) if op == "Mul" => Item::Symbol(s.clone()),
            // No size is negative; exporters ask whether one is -1.
            (Item::Symbol(_), Item::Number(n)) if *n < 0 && op == "Equal" => Item::Number(0),
            _ => Item::Unknown,
        })
    };
    left.into_iter().zip(right).map(one).collect()
}

fn filled(view: &View<'_>, count: usize) -> Option<Vec<Item>> {
    let value = view.node.attr("value").and_then(|a| a.t.as_ref())?;
    let value = of_tensor(&crate::codec::decode(value).ok()?)?.first()?.clone();
    Some(vec![value; count])
}

fn range(view: &View<'_>, count: usize) -> Option<Vec<Item>> {
    let one = |index: usize| view.contents(index)?.first()?.number();
    let (start, step) = (one(0)?, one(2)?);
    let at = |i: usize| start.checked_add(i64::try_from(i).ok()?.checked_mul(step)?);
    (0..count).map(|i| at(i).map(Item::Number)).collect()
}

fn product(view: &View<'_>) -> Option<Vec<Item>> {
    let all = view.contents(0)?.iter().map(Item::number).collect::<Option<Vec<_>>>()?;
    Some(vec![Item::Number(all.into_iter().try_fold(1i64, i64::checked_mul)?)])
}

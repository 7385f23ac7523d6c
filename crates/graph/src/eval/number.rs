//! Arithmetic on known numbers, element by element and along axes.

use half::{bf16, f16};

use super::arrange::{broadcast, grid, strides};
use crate::{DataType, Element, Tensor, proto::NodeProto};

/// An operation on two integers; none where the result is not one that every engine agrees on.
pub(crate) type Whole = fn(i128, i128) -> Option<i128>;

/// The operation of a node on two integers; truth values are 0 and 1. Division rounds towards zero.
pub(crate) fn whole(node: &NodeProto) -> Option<Whole> {
    Some(match node.op_type() {
        "Add" | "Sum" => i128::checked_add,
        "Sub" => i128::checked_sub,
        "Mul" => i128::checked_mul,
        "Div" => i128::checked_div,
        "Mod" if node.attr_int("fmod").unwrap_or(0) != 0 => i128::checked_rem,
        "Mod" => |a, b| a.checked_rem(b).map(|r| if r != 0 && (r < 0) != (b < 0) { r + b } else { r }),
        "Max" => |a, b| Some(a.max(b)),
        "Min" => |a, b| Some(a.min(b)),
        "And" | "BitwiseAnd" => |a, b| Some(a & b),
        "Or" | "BitwiseOr" => |a, b| Some(a | b),
        "Xor" | "BitwiseXor" => |a, b| Some(a ^ b),
        "Equal" => |a, b| Some((a == b).into()),
        "Less" => |a, b| Some((a < b).into()),
        "LessOrEqual" => |a, b| Some((a <= b).into()),
        "Greater" => |a, b| Some((a > b).into()),
        "GreaterOrEqual" => |a, b| Some((a >= b).into()),
        _ => return None,
    })
}

fn compared(op: &str) -> Option<fn(f64, f64) -> bool> {
    Some(match op {
        "Equal" => |a, b| a == b,
        "Less" => |a, b| a < b,
        "LessOrEqual" => |a, b| a <= b,
        "Greater" => |a, b| a > b,
        "GreaterOrEqual" => |a, b| a >= b,
        _ => return None,
    })
}

/// The operations that IEEE 754 rounds exactly, in the width of the type.
fn real(node: &NodeProto, dtype: DataType) -> Option<fn(f64, f64) -> f64> {
    Some(match (node.op_type(), dtype) {
        ("Add", DataType::Float32) => |a, b| (a as f32 + b as f32).into(),
        ("Sub", DataType::Float32) => |a, b| (a as f32 - b as f32).into(),
        ("Mul", DataType::Float32) => |a, b| (a as f32 * b as f32).into(),
        ("Div", DataType::Float32) => |a, b| (a as f32 / b as f32).into(),
        ("Add", DataType::Float64) => |a, b| a + b,
        ("Sub", DataType::Float64) => |a, b| a - b,
        ("Mul", DataType::Float64) => |a, b| a * b,
        ("Div", DataType::Float64) => |a, b| a / b,
        _ => return None,
    })
}

/// Numbers read one by one, without a loss.
enum Numbers<'a> {
    Whole(Box<dyn Fn(usize) -> i128 + 'a>),
    Real(Box<dyn Fn(usize) -> f64 + 'a>),
}

impl<'a> Numbers<'a> {
    fn of(tensor: &'a Tensor) -> Option<Self> {
        use DataType::*;
        fn whole<T: Element + Into<i128>>(tensor: &Tensor) -> Option<Numbers<'_>> {
            let values = tensor.values::<T>().ok()?;
            Some(Numbers::Whole(Box::new(move |i| values.get(i).map_or(0, |&v| v.into()))))
        }
        fn real<T: Element + Into<f64>>(tensor: &Tensor) -> Option<Numbers<'_>> {
            let values = tensor.values::<T>().ok()?;
            Some(Numbers::Real(Box::new(move |i| values.get(i).map_or(0., |&v| v.into()))))
        }
        match tensor.dtype() {
            Int8 => whole::<i8>(tensor),
            Int16 => whole::<i16>(tensor),
            Int32 => whole::<i32>(tensor),
            Int64 => whole::<i64>(tensor),
            UInt8 => whole::<u8>(tensor),
            UInt16 => whole::<u16>(tensor),
            UInt32 => whole::<u32>(tensor),
            UInt64 => whole::<u64>(tensor),
            Float16 => real::<f16>(tensor),
            BFloat16 => real::<bf16>(tensor),
            Float32 => real::<f32>(tensor),
            Float64 => real::<f64>(tensor),
            Bool => {
                let bytes = tensor.raw()?;
                Some(Self::Whole(Box::new(move |i| i128::from(bytes.get(i).is_some_and(|&b| b != 0)))))
            }
            _ => None,
        }
    }
}

/// True where a type holds `value`.
pub(crate) fn fits(value: i64, dtype: DataType) -> bool {
    match dtype {
        DataType::Int64 => true,
        DataType::Int32 => i32::try_from(value).is_ok(),
        DataType::Bool => matches!(value, 0 | 1),
        _ => false,
    }
}

/// A tensor of integers; none where the type does not hold one of them.
fn store_whole(dtype: DataType, shape: &[usize], values: impl Iterator<Item = Option<i128>>) -> Option<Tensor> {
    use DataType::*;
    macro_rules! narrowed {
        ($type:ty) => {{
            let all = values.map(|v| <$type>::try_from(v?).ok()).collect::<Option<Vec<$type>>>()?;
            Tensor::from_vec(shape, all).ok()
        }};
    }
    match dtype {
        Int8 => narrowed!(i8),
        Int16 => narrowed!(i16),
        Int32 => narrowed!(i32),
        Int64 => narrowed!(i64),
        UInt8 => narrowed!(u8),
        UInt16 => narrowed!(u16),
        UInt32 => narrowed!(u32),
        UInt64 => narrowed!(u64),
        Bool => Tensor::from_bools(shape, values.map(|v| v.map(|v| v != 0)).collect::<Option<_>>()?).ok(),
        _ => None,
    }
}

/// A tensor of floats, each rounded once to nearest; none for a NaN, or where two roundings would be needed.
fn store_real(dtype: DataType, shape: &[usize], values: impl Iterator<Item = Option<f64>>) -> Option<Tensor> {
    let values = values.map(|v| v.filter(|v| !v.is_nan()));
    let single = |v: Option<f64>| v.map(|v| v as f32).filter(|&s| Some(f64::from(s)) == v);
    match dtype {
        DataType::Float32 => {
            Tensor::from_vec(shape, values.map(|v| v.map(|v| v as f32)).collect::<Option<Vec<_>>>()?).ok()
        }
        DataType::Float64 => Tensor::from_vec(shape, values.collect::<Option<Vec<_>>>()?).ok(),
        DataType::Float16 => {
            Tensor::from_vec(shape, values.map(|v| single(v).map(f16::from_f32)).collect::<Option<Vec<_>>>()?).ok()
        }
        DataType::BFloat16 => {
            Tensor::from_vec(shape, values.map(|v| single(v).map(bf16::from_f32)).collect::<Option<Vec<_>>>()?).ok()
        }
        _ => None,
    }
}

/// Element-wise operators, conversions and reductions of integers.
pub(super) fn compute(node: &NodeProto, inputs: &[Option<Tensor>], dtype: DataType, shape: &[usize]) -> Option<Tensor> {
    let first = inputs.first()?.as_ref()?;
    match node.op_type() {
        "Cast" | "CastLike" => cast(first, dtype),
        "Abs" | "BitwiseNot" | "Ceil" | "Floor" | "Neg" | "Not" | "Round" => unary(node.op_type(), first),
        "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceSum" => reduce(node, inputs, shape),
        op => {
            let inputs: Vec<&Tensor> = inputs.iter().map(Option::as_ref).collect::<Option<_>>()?;
            let many = matches!(op, "Max" | "Min" | "Sum");
            if inputs.iter().any(|t| t.dtype() != first.dtype()) || !many && inputs.len() != 2 {
                return None;
            }
            inputs.split_first().and_then(|(first, rest)| elementwise(node, first, rest, dtype, shape))
        }
    }
}

fn elementwise(node: &NodeProto, first: &Tensor, rest: &[&Tensor], dtype: DataType, shape: &[usize]) -> Option<Tensor> {
    let place = |tensor: &Tensor| broadcast(tensor.shape(), shape);
    let rest: Vec<(Numbers, Vec<usize>)> =
        rest.iter().map(|t| Some((Numbers::of(t)?, place(t)?))).collect::<Option<_>>()?;
    let places = place(first)?;
    match Numbers::of(first)? {
        Numbers::Whole(read) => {
            let operation = whole(node)?;
            let one = |(i, &at): (usize, &usize)| {
                rest.iter().try_fold(read(at), |sum, (numbers, places)| match numbers {
                    Numbers::Whole(read) => operation(sum, read(*places.get(i)?)),
                    Numbers::Real(_) => None,
                })
            };
            store_whole(dtype, shape, places.iter().enumerate().map(one))
        }
        Numbers::Real(read) => {
            let [(Numbers::Real(other), others)] = rest.as_slice() else { return None };
            let pairs = places.iter().zip(others).map(|(&a, &b)| (read(a), other(b)));
            match compared(node.op_type()) {
                Some(holds) => Tensor::from_bools(shape, pairs.map(|(a, b)| holds(a, b)).collect()).ok(),
                None => {
                    let operation = real(node, first.dtype())?;
                    store_real(dtype, shape, pairs.map(|(a, b)| Some(operation(a, b))))
                }
            }
        }
    }
}

fn unary(op: &str, tensor: &Tensor) -> Option<Tensor> {
    let (dtype, shape) = (tensor.dtype(), tensor.shape());
    match Numbers::of(tensor)? {
        Numbers::Whole(read) => {
            let operation: fn(i128) -> i128 = match (op, dtype) {
                ("Not", DataType::Bool) => |v| i128::from(v == 0),
                ("BitwiseNot", _) => |v| !v,
                ("Abs", _) => i128::abs,
                ("Neg", _) => |v| -v,
                _ => return None,
            };
            store_whole(dtype, shape, (0..tensor.len()).map(|i| Some(operation(read(i)))))
        }
        Numbers::Real(read) => {
            let operation: fn(f64) -> f64 = match op {
                "Abs" => f64::abs,
                "Neg" => |v| -v,
                "Ceil" => f64::ceil,
                "Floor" => f64::floor,
                "Round" => f64::round_ties_even,
                _ => return None,
            };
            store_real(dtype, shape, (0..tensor.len()).map(|i| Some(operation(read(i)))))
        }
    }
}

/// A conversion: integers wrap, floats are rounded to nearest, and to integers towards zero where these hold them.
fn cast(tensor: &Tensor, to: DataType) -> Option<Tensor> {
    use DataType::*;
    if tensor.dtype() == to {
        return Some(tensor.clone());
    }
    let (shape, all) = (tensor.shape(), 0..tensor.len());
    let float = matches!(to, Float16 | BFloat16 | Float32 | Float64);
    match Numbers::of(tensor)? {
        Numbers::Whole(read) if to == Float32 => Tensor::from_vec(shape, all.map(|i| read(i) as f32).collect()).ok(),
        Numbers::Whole(read) if float => {
            // Beyond 2^53 an integer would be rounded twice on its way to 16 bits.
            let exact = |v: i128| (to == Float64 || v.unsigned_abs() <= 1 << 53).then_some(v as f64);
            store_real(to, shape, all.map(|i| exact(read(i))))
        }
        Numbers::Whole(read) => store_whole(to, shape, all.map(|i| Some(wrapped(read(i), to)))),
        Numbers::Real(read) if float => store_real(to, shape, all.map(|i| Some(read(i)))),
        Numbers::Real(read) => {
            let one = |v: f64| match to {
                Bool => Some(i128::from(v != 0.)).filter(|_| !v.is_nan()),
                _ => (v.abs() < 1e30).then_some(v as i128),
            };
            store_whole(to, shape, all.map(|i| one(read(i))))
        }
    }
}

fn wrapped(value: i128, to: DataType) -> i128 {
    match to {
        DataType::Int8 => (value as i8).into(),
        DataType::Int16 => (value as i16).into(),
        DataType::Int32 => (value as i32).into(),
        DataType::Int64 => (value as i64).into(),
        DataType::UInt8 => (value as u8).into(),
        DataType::UInt16 => (value as u16).into(),
        DataType::UInt32 => (value as u32).into(),
        DataType::UInt64 => (value as u64).into(),
        _ => value,
    }
}

/// Reductions of integers; those of floats depend on the order of their sums.
fn reduce(node: &NodeProto, inputs: &[Option<Tensor>], shape: &[usize]) -> Option<Tensor> {
    let tensor = inputs.first()?.as_ref()?;
    let from = tensor.shape();
    let given = match (node.attr_ints("axes"), inputs.get(1)) {
        (Some(axes), _) => axes.to_vec(),
        (None, Some(Some(axes))) => super::integers(axes)?,
        _ => Vec::new(),
    };
    if given.is_empty() && node.attr_int("noop_with_empty_axes").unwrap_or(0) != 0 {
        return Some(tensor.clone());
    }
    let rank = i64::try_from(from.len()).ok()?;
    let reduced = |i: usize| given.is_empty() || given.iter().any(|&a| (if a < 0 { a + rank } else { a }) == i as i64);
    let kept: Vec<usize> = from.iter().enumerate().map(|(i, &size)| if reduced(i) { 1 } else { size }).collect();
    let steps = strides(&kept);
    let axis = |((i, &size), step): ((usize, &usize), &usize)| {
        (0..size).map(|k| if reduced(i) { 0 } else { k * step }).collect::<Vec<_>>()
    };
    let axes = from.iter().enumerate().zip(&steps).map(axis);
    let targets = if tensor.is_empty() { Vec::new() } else { grid(&axes.collect::<Vec<_>>()) };
    let Numbers::Whole(read) = Numbers::of(tensor)? else { return None };
    let (start, operation): (Option<i128>, Whole) = match node.op_type() {
        "ReduceSum" => (Some(0), i128::checked_add),
        "ReduceProd" => (Some(1), i128::checked_mul),
        "ReduceMax" => (None, |a, b| Some(a.max(b))),
        _ => (None, |a, b| Some(a.min(b))),
    };
    let mut sums = vec![start; super::count(&kept)?];
    for (i, target) in targets.into_iter().enumerate() {
        let sum = sums.get_mut(target)?;
        *sum = Some(match *sum {
            Some(sum) => operation(sum, read(i))?,
            None => read(i),
        });
    }
    store_whole(tensor.dtype(), shape, sums.into_iter())
}

/// Integers from a start in equal steps; the count is the shape's.
pub(super) fn range(inputs: &[Option<Tensor>], shape: &[usize]) -> Option<Tensor> {
    let first = inputs.first()?.as_ref()?;
    let scalar = |index: usize| {
        let tensor = inputs.get(index)?.as_ref().filter(|t| t.len() == 1 && t.dtype() == first.dtype())?;
        if let Numbers::Whole(read) = Numbers::of(tensor)? { Some(read(0)) } else { None }
    };
    let (start, step, &[count]) = (scalar(0)?, scalar(2)?, shape) else { return None };
    let one = |i: usize| start.checked_add(i128::try_from(i).ok()?.checked_mul(step)?);
    store_whole(first.dtype(), shape, (0..count).map(one))
}

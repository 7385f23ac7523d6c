//! Operators of single fields: attention, losses, sampling, signals, text.

use super::{ValueType, View, arrange::listed, axis, compute, rules::Types};
use crate::{DataType, Dimension};

use Dimension::{Fixed, Unknown};

fn of(dtype: Option<DataType>, shape: Option<Vec<Dimension>>) -> ValueType {
    ValueType { dtype, shape }
}

fn scalar(dtype: DataType) -> Vec<ValueType> {
    vec![of(Some(dtype), Some(Vec::new()))]
}

/// A dimension calculated from a known one.
fn with(dim: &Dimension, calculate: impl Fn(usize) -> Option<usize>) -> Dimension {
    if let Fixed(size) = dim { calculate(*size).map_or(Unknown, Fixed) } else { Unknown }
}

fn plus(a: &Dimension, b: &Dimension) -> Dimension {
    if let Fixed(b) = *b { with(a, |a| a.checked_add(b)) } else { Unknown }
}

/// Rules of this room; none for other operators.
pub(super) fn outputs(view: &View<'_>) -> Option<Types> {
    Some(match view.node.op_type() {
        "AffineGrid" => Ok(affine_grid(view)),
        "Attention" => attention(view),
        "Bernoulli" | "EyeLike" | "RandomNormalLike" | "RandomUniformLike" => Ok(like_with_type(view)),
        "Col2Im" => Ok(col_to_im(view)),
        "DFT" => dft(view),
        "Einsum" => einsum(view),
        "Det" => Ok(vec![of(
            view.dtype(0),
            view.dims(0).map(|mut dims| {
                dims.truncate(dims.len().saturating_sub(2));
                dims
            }),
        )]),
        "GridSample" => Ok(grid_sample(view)),
        "ImageDecoder" => Ok(image(view)),
        "MaxUnpool" => Ok(max_unpool(view)),
        "NegativeLogLikelihoodLoss" => Ok(vec![loss(view)]),
        "OptionalHasElement" => Ok(scalar(DataType::Bool)),
        "RandomNormal" | "RandomUniform" => Ok(random(view)),
        "RegexFullMatch" => Ok(vec![of(Some(DataType::Bool), view.dims(0))]),
        "RoiAlign" => Ok(roi_align(view)),
        "SequenceLength" => Ok(scalar(DataType::Int64)),
        "SoftmaxCrossEntropyLoss" => Ok(vec![loss(view), view.input(0)]),
        "StringConcat" => compute::broadcast(view, 0, Some(DataType::String)),
        "StringNormalizer" => Ok(string_normalizer(view)),
        "StringSplit" => Ok(string_split(view)),
        "TfIdfVectorizer" => Ok(tf_idf(view)),
        _ => return None,
    })
}

fn like_with_type(view: &View<'_>) -> Vec<ValueType> {
    let dtype = view.node.attr_int("dtype").and_then(|n| DataType::from_onnx(i32::try_from(n).ok()?));
    vec![of(dtype.or(view.dtype(0)), view.dims(0))]
}

fn random(view: &View<'_>) -> Vec<ValueType> {
    let dtype =
        view.node.attr_int("dtype").map_or(Some(DataType::Float32), |n| DataType::from_onnx(i32::try_from(n).ok()?));
    let shape = view.node.attr_ints("shape");
    vec![of(dtype, shape.map(|list| list.iter().map(|&n| usize::try_from(n).map_or(Unknown, Fixed)).collect()))]
}

/// Queries, keys and values of [batch, heads, length, size], or of [batch, length, heads × size].
fn attention(view: &View<'_>) -> Types {
    let heads = |name: &str| view.node.attr_int(name).and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
    let split = |index: usize, count: Option<usize>| {
        Some(match view.dims(index)?.as_slice() {
            [batch, heads, length, size] => [batch.clone(), heads.clone(), length.clone(), size.clone()],
            [batch, length, all] => {
                let size = with(all, |all| all.checked_div(count?));
                [batch.clone(), count.map_or(Unknown, Fixed), length.clone(), size]
            }
            _ => return None,
        })
    };
    let (q_heads, kv_heads) = (heads("q_num_heads"), heads("kv_num_heads"));
    let (q, k, v) = (split(0, q_heads), split(1, kv_heads), split(2, kv_heads));
    let past =
        if view.has(4) { view.dims(4).and_then(|dims| dims.get(2).cloned()).unwrap_or(Unknown) } else { Fixed(0) };
    let all = k.as_ref().map(|[_, _, length, _]| plus(&past, length));
    let result = match (&q, &v) {
        (Some([batch, heads, length, _]), Some([.., size])) => Some(match view.dims(0) {
            Some(dims) if dims.len() == 3 => {
                let whole = with(size, |size| size.checked_mul(q_heads?));
                vec![batch.clone(), length.clone(), whole]
            }
            _ => vec![batch.clone(), heads.clone(), length.clone(), size.clone()],
        }),
        _ => None,
    };
    let present = |side: Option<[Dimension; 4]>| {
        let [batch, heads, _, size] = side?;
        Some(vec![batch, heads, all.clone()?, size])
    };
    let scores = match (&q, &all) {
        (Some([batch, heads, length, _]), Some(all)) => {
            Some(vec![batch.clone(), heads.clone(), length.clone(), all.clone()])
        }
        _ => None,
    };
    let (keys, values) = (present(k), present(v));
    let of_input = |index: usize, shape| of(view.dtype(index), shape);
    Ok(vec![of_input(0, result), of_input(1, keys), of_input(2, values), of_input(0, scores)])
}

/// A loss over targets, one for each or reduced to a scalar.
fn loss(view: &View<'_>) -> ValueType {
    let each = view.node.attr_text("reduction") == Some("none");
    of(view.dtype(0), if each { view.dims(1) } else { Some(Vec::new()) })
}

fn grid_sample(view: &View<'_>) -> Vec<ValueType> {
    let shape = match (view.dims(0).as_deref(), view.dims(1).as_deref()) {
        (Some([batch, channels, ..]), Some([_, places @ .., _])) => {
            Some([&[batch.clone(), channels.clone()], places].concat())
        }
        _ => None,
    };
    vec![of(view.dtype(0), shape)]
}

/// Letters of the equation name axes; `...` stands for those that have none, and broadcasts.
fn einsum(view: &View<'_>) -> Types {
    let dtype = view.dtype(0);
    let text: String = view.node.attr_text("equation").unwrap_or_default().split_whitespace().collect();
    let (left, right) = text.split_once("->").map_or((text.as_str(), None), |(left, right)| (left, Some(right)));
    let (mut sizes, mut dots) = (std::collections::BTreeMap::<char, Dimension>::new(), Vec::new());
    for (index, term) in left.split(',').enumerate() {
        let Some(dims) = view.dims(index) else { return Ok(vec![of(dtype, None)]) };
        let (before, after) = term.split_once("...").unwrap_or((term, ""));
        let letters = before.chars().count() + after.chars().count();
        let open = dims.len().checked_sub(letters).filter(|&open| open == 0 || term.contains("..."));
        let Some(open) = open else { return Err(format!("the term `{term}` does not fit rank {}", dims.len())) };
        let (head, rest) = dims.split_at(before.chars().count());
        let (middle, tail) = rest.split_at(open);
        dots = compute::joined(&dots, middle)?;
        for (letter, dim) in before.chars().chain(after.chars()).zip(head.iter().chain(tail)) {
            let known = sizes.entry(letter).or_insert(Fixed(1));
            *known = match compute::joined(std::slice::from_ref(known), std::slice::from_ref(dim))?.pop() {
                Some(dim) => dim,
                None => Unknown,
            };
        }
    }
    let right = right.map_or_else(|| implied(left), str::to_owned);
    let (before, after) = right.split_once("...").unwrap_or((&right, ""));
    let named = |letters: &str| letters.chars().map(|c| sizes.get(&c).cloned().unwrap_or(Unknown)).collect::<Vec<_>>();
    let dots = if right.contains("...") { dots } else { Vec::new() };
    Ok(vec![of(dtype, Some([named(before), dots, named(after)].concat()))])
}

/// What an equation without an arrow means: the dots, then each letter that stands once, in order.
fn implied(left: &str) -> String {
    let mut once: Vec<char> =
        left.chars().filter(|c| c.is_alphabetic() && left.chars().filter(|d| d == c).count() == 1).collect();
    once.sort_unstable();
    let dots = if left.contains("...") { "..." } else { "" };
    dots.chars().chain(once).collect()
}

fn affine_grid(view: &View<'_>) -> Vec<ValueType> {
    let shape = match listed(view, 1).as_deref() {
        Some([batch, _, space @ ..]) => Some([std::slice::from_ref(batch), space, &[Fixed(space.len())]].concat()),
        _ => None,
    };
    vec![of(view.dtype(0), shape)]
}

fn col_to_im(view: &View<'_>) -> Vec<ValueType> {
    let shape = match (view.dims(0).as_deref(), listed(view, 1)) {
        (Some([batch, columns, _]), Some(image)) => {
            let block = view.numbers(2);
            let area = || block?.into_iter().try_fold(1usize, |n, b| n.checked_mul(usize::try_from(b).ok()?));
            let area = area();
            let channels = with(columns, |columns| columns.checked_div(area?));
            Some([vec![batch.clone(), channels], image].concat())
        }
        _ => None,
    };
    vec![of(view.dtype(0), shape)]
}

/// Real input has a last dimension of 1, complex one of 2; half of a spectrum is enough where the signal is real.
fn dft(view: &View<'_>) -> Types {
    let dtype = view.dtype(0);
    let Some(mut dims) = view.dims(0) else { return Ok(vec![of(dtype, None)]) };
    let given = match (view.node.attr_int("axis"), view.has(2)) {
        (Some(at), _) => Some(at),
        (None, true) => view.numbers(2).and_then(|at| at.first().copied()),
        (None, false) => Some(if view.opset() < 20 { 1 } else { -2 }),
    };
    let (half, inverse) = (view.int("onesided", 0) != 0, view.int("inverse", 0) != 0);
    let rank = dims.len();
    let parts = Fixed(if half && inverse { 1 } else { 2 });
    let Some(given) = given else {
        // Whichever axis it is keeps its size where none is asked for and no half is cut off.
        let kept = !half && !view.has(1);
        let mut open = if kept { dims } else { vec![Unknown; rank] };
        open.pop();
        open.push(parts);
        return Ok(vec![of(dtype, Some(open))]);
    };
    let at = axis(given, rank)?;
    let length = if view.has(1) {
        view.items(1).and_then(|items| Some(items.first()?.dimension())).unwrap_or(Unknown)
    } else if half && inverse {
        with(&dims[at], |size| size.checked_sub(1)?.checked_mul(2))
    } else {
        dims[at].clone()
    };
    dims[at] = if half && !inverse { with(&length, |size| Some(size / 2 + 1)) } else { length };
    dims[rank - 1] = parts;
    Ok(vec![of(dtype, Some(dims))])
}

fn image(view: &View<'_>) -> Vec<ValueType> {
    let channels = if view.node.attr_text("pixel_format") == Some("Grayscale") { 1 } else { 3 };
    vec![of(Some(DataType::UInt8), Some(vec![Unknown, Unknown, Fixed(channels)]))]
}

fn max_unpool(view: &View<'_>) -> Vec<ValueType> {
    let list = |name: &str| view.node.attr_ints(name).map(<[i64]>::to_vec);
    let dims = view.dims(0);
    let shape = if view.has(2) {
        view.items(2).map(|items| items.iter().map(|item| item.dimension()).collect())
    } else {
        dims.as_ref().zip(list("kernel_shape")).map(|(dims, kernel)| {
            let (strides, pads) = (list("strides"), list("pads"));
            let one = |(i, dim): (usize, &Dimension)| match i.checked_sub(2) {
                None => dim.clone(),
                Some(k) => with(dim, |size| {
                    let at = |list: &Option<Vec<i64>>, k: usize, none| {
                        list.as_ref().map_or(Some(none), |l| l.get(k).copied())
                    };
                    let reach = i64::try_from(size).ok()?.checked_sub(1)?.checked_mul(at(&strides, k, 1)?)?;
                    let whole = reach.checked_add(*kernel.get(k)?)?;
                    let padding = at(&pads, k, 0)?.checked_add(at(&pads, k + kernel.len(), 0)?)?;
                    usize::try_from(whole.checked_sub(padding)?).ok()
                }),
            };
            dims.iter().enumerate().map(one).collect()
        })
    };
    let rank = dims.map(|dims| vec![Unknown; dims.len()]);
    vec![of(view.dtype(0), shape.or(rank))]
}

fn roi_align(view: &View<'_>) -> Vec<ValueType> {
    let size = |name: &str| usize::try_from(view.int(name, 1)).map_or(Unknown, Fixed);
    let first = |index: usize, at: usize| view.dims(index).and_then(|dims| dims.get(at).cloned()).unwrap_or(Unknown);
    let shape = vec![first(1, 0), first(0, 1), size("output_height"), size("output_width")];
    vec![of(view.dtype(0), Some(shape))]
}

fn string_normalizer(view: &View<'_>) -> Vec<ValueType> {
    let shape = view.dims(0).map(|mut dims| {
        dims.pop();
        dims.push(Unknown);
        dims
    });
    vec![of(Some(DataType::String), shape)]
}

fn string_split(view: &View<'_>) -> Vec<ValueType> {
    let counts = view.dims(0);
    let parts = counts.clone().map(|mut dims| {
        dims.push(Unknown);
        dims
    });
    vec![of(Some(DataType::String), parts), of(Some(DataType::Int64), counts)]
}

fn tf_idf(view: &View<'_>) -> Vec<ValueType> {
    let last = view.node.attr_ints("ngram_indexes").and_then(|list| list.iter().max());
    let width = last.and_then(|&last| usize::try_from(last.checked_add(1)?).ok()).map_or(Unknown, Fixed);
    let shape = view.dims(0).map(|mut dims| {
        dims.pop();
        dims.push(width);
        dims
    });
    vec![of(Some(DataType::Float32), shape)]
}

//! Operators that compute: broadcasting, products, convolutions, pooling, recurrence, quantisation.

use super::{ValueType, View, axis, rules::Types};
use crate::{DataType, Dimension};

use Dimension::{Fixed, Unknown};

fn of(dtype: Option<DataType>, shape: Option<Vec<Dimension>>) -> ValueType {
    ValueType { dtype, shape }
}

/// A dimension as messages write it.
pub(super) fn text(dim: &Dimension) -> String {
    match dim {
        Fixed(size) => size.to_string(),
        Dimension::Symbol(name) => name.clone(),
        Unknown => "?".to_owned(),
    }
}

/// Two dimensions that must be one; the error says what they are.
pub(super) fn same(a: &Dimension, b: &Dimension) -> Result<Dimension, String> {
    match (a, b) {
        (Fixed(x), Fixed(y)) if x != y => Err(format!("sizes {x} and {y} do not fit")),
        (Fixed(_), _) => Ok(a.clone()),
        (_, Fixed(_)) => Ok(b.clone()),
        _ if a == b => Ok(a.clone()),
        _ => Ok(Unknown),
    }
}

/// Shapes joined as numpy joins them.
pub(super) fn joined(a: &[Dimension], b: &[Dimension]) -> Result<Vec<Dimension>, String> {
    let rank = a.len().max(b.len());
    let at = |dims: &[Dimension], i: usize| (i + dims.len()).checked_sub(rank).and_then(|i| dims.get(i).cloned());
    let one = |i| {
        Ok(match (at(a, i).unwrap_or(Fixed(1)), at(b, i).unwrap_or(Fixed(1))) {
            (Fixed(1), other) | (other, Fixed(1)) => other,
            // An open dimension may be 1 and then takes the other's size, which is known to be more.
            (Fixed(n), Fixed(m)) if n != m => return Err(format!("shapes do not broadcast: {n} against {m}")),
            (Fixed(n), _) | (_, Fixed(n)) => Fixed(n),
            (x, y) if x == y => x,
            _ => Unknown,
        })
    };
    (0..rank).map(one).collect()
}

pub(super) fn broadcast(view: &View<'_>, first: usize, dtype: Option<DataType>) -> Types {
    let mut shape = view.dims(first);
    for index in first + 1..view.node.input.len() {
        shape = match (shape, view.dims(index)) {
            (Some(a), Some(b)) => Some(joined(&a, &b)?),
            _ => None,
        };
    }
    Ok(vec![of(dtype, shape)])
}

pub(super) fn batch_normalization(view: &View<'_>) -> Vec<ValueType> {
    let statistics = view.input(1);
    vec![view.input(0), statistics.clone(), statistics.clone(), statistics.clone(), statistics]
}

pub(super) fn layer_normalization(view: &View<'_>) -> Types {
    let statistics = match view.dims(0) {
        Some(mut dims) => {
            let from = axis(view.int("axis", -1), dims.len())?;
            dims.iter_mut().skip(from).for_each(|dim| *dim = Fixed(1));
            Some(dims)
        }
        None => None,
    };
    let dtype = DataType::from_onnx(view.int("stash_type", 1) as i32);
    Ok(vec![view.input(0), of(dtype, statistics.clone()), of(dtype, statistics)])
}

pub(super) fn matmul(view: &View<'_>, [left, right]: [usize; 2], dtype: Option<DataType>) -> Types {
    let (Some(mut a), Some(mut b)) = (view.dims(left), view.dims(right)) else { return Ok(vec![of(dtype, None)]) };
    if a.is_empty() || b.is_empty() {
        return Err("multiplies a scalar, expected matrices".to_owned());
    }
    let (row, column) = (a.len() == 1, b.len() == 1);
    if row {
        a.insert(0, Fixed(1));
    }
    if column {
        b.push(Fixed(1));
    }
    let (Some(k), Some(n)) = (a.pop(), b.pop()) else { return Ok(vec![of(dtype, None)]) };
    let (m, inner) = (a.pop().unwrap_or(Unknown), b.pop().unwrap_or(Unknown));
    same(&k, &inner).map_err(|e| format!("inner {e}"))?;
    let mut shape = joined(&a, &b)?;
    shape.extend((!row).then_some(m));
    shape.extend((!column).then_some(n));
    Ok(vec![of(dtype, Some(shape))])
}

pub(super) fn gemm(view: &View<'_>) -> Types {
    let (Some(a), Some(b)) = (view.dims(0), view.dims(1)) else { return Ok(vec![of(view.dtype(0), None)]) };
    let (a, b) = match (a.as_slice(), b.as_slice()) {
        ([m, k], [l, n]) => {
            let a = if view.int("transA", 0) == 0 { (m, k) } else { (k, m) };
            let b = if view.int("transB", 0) == 0 { (l, n) } else { (n, l) };
            ((a.0.clone(), a.1.clone()), (b.0.clone(), b.1.clone()))
        }
        _ => return Err(format!("ranks {} and {}, expected two matrices", a.len(), b.len())),
    };
    same(&a.1, &b.0).map_err(|e| format!("inner {e}"))?;
    Ok(vec![of(view.dtype(0), Some(vec![a.0, b.1]))])
}

/// How a window moves along the spatial dimensions.
struct Window {
    kernel: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    /// Begins, then ends.
    pads: Vec<usize>,
    auto_pad: String,
    ceil: bool,
}

impl Window {
    /// The attributes; none where the kernel is not known.
    fn of(view: &View<'_>, kernel: Option<Vec<usize>>) -> Result<Option<Self>, String> {
        let list = |name: &str| {
            let all = view.node.attr_ints(name).filter(|l| !l.is_empty());
            let sizes = all.map(|l| l.iter().map(|&v| usize::try_from(v)).collect::<Result<Vec<_>, _>>());
            sizes.transpose().map_err(|_| format!("`{name}` holds a negative size"))
        };
        let Some(kernel) = list("kernel_shape")?.or(kernel) else { return Ok(None) };
        let rank = kernel.len();
        let ones = || vec![1; rank];
        let window = Self {
            strides: list("strides")?.unwrap_or_else(ones),
            dilations: list("dilations")?.unwrap_or_else(ones),
            pads: list("pads")?.unwrap_or_else(|| vec![0; 2 * rank]),
            auto_pad: view.node.attr_text("auto_pad").unwrap_or("NOTSET").to_owned(),
            ceil: view.int("ceil_mode", 0) != 0,
            kernel,
        };
        if window.strides.len() != rank || window.dilations.len() != rank || window.pads.len() != 2 * rank {
            return Err(format!("`strides`, `dilations` or `pads` do not fit a kernel of {rank} dimensions"));
        }
        if window.strides.contains(&0) || window.dilations.contains(&0) {
            return Err("`strides` and `dilations` must be 1 or more".to_owned());
        }
        Ok(Some(window))
    }

    fn slide(&self, size: &Dimension, i: usize) -> Result<Dimension, String> {
        let Fixed(size) = *size else { return Ok(Unknown) };
        let (kernel, stride, dilation) = (self.kernel[i], self.strides[i], self.dilations[i]);
        let reach = kernel.saturating_sub(1).saturating_mul(dilation).saturating_add(1);
        Ok(Fixed(match self.auto_pad.as_str() {
            "SAME_UPPER" | "SAME_LOWER" => size.div_ceil(stride),
            auto => {
                let (begin, end) =
                    if auto == "VALID" { (0, 0) } else { (self.pads[i], self.pads[i + self.kernel.len()]) };
                let padded = size.saturating_add(begin).saturating_add(end);
                let room = padded
                    .checked_sub(reach)
                    .ok_or_else(|| format!("a window of {reach} does not fit into {padded}, padding included"))?;
                let steps = if self.ceil { room.div_ceil(stride) } else { room / stride };
                // A window that would begin in the padding at the end does not count.
                if self.ceil && steps * stride >= size + begin { steps } else { steps + 1 }
            }
        }))
    }
}

fn spatial(dims: &[Dimension]) -> Option<Vec<usize>> {
    dims.get(2..)?.iter().map(|dim| if let Fixed(size) = dim { Some(*size) } else { None }).collect()
}

fn slid(dims: &[Dimension], channels: Dimension, window: &Window) -> Result<Vec<Dimension>, String> {
    if dims.len() != window.kernel.len() + 2 {
        return Err(format!("input of rank {}, a kernel of {} dimensions", dims.len(), window.kernel.len()));
    }
    let mut shape = vec![dims.first().cloned().unwrap_or(Unknown), channels];
    for (index, dim) in dims.iter().skip(2).enumerate() {
        shape.push(window.slide(dim, index)?);
    }
    Ok(shape)
}

pub(super) fn convolution(view: &View<'_>, [data, weight]: [usize; 2], dtype: Option<DataType>) -> Types {
    let (dims, weights) = (view.dims(data), view.dims(weight));
    let Some(dims) = dims else { return Ok(vec![of(dtype, None)]) };
    let channels = weights.as_ref().and_then(|w| w.first().cloned()).unwrap_or(Unknown);
    if let (Some(Fixed(given)), Some(Fixed(each))) = (dims.get(1), weights.as_ref().and_then(|w| w.get(1))) {
        let groups = usize::try_from(view.int("group", 1)).unwrap_or(0);
        if each.checked_mul(groups) != Some(*given) {
            return Err(format!("input has {given} channels, the weight takes {each} in {groups} groups"));
        }
    }
    match Window::of(view, weights.as_deref().and_then(spatial))? {
        Some(window) => Ok(vec![of(dtype, Some(slid(&dims, channels, &window)?))]),
        None => {
            let shape = dims.iter().enumerate().map(|(i, dim)| match i {
                0 => dim.clone(),
                1 => channels.clone(),
                _ => Unknown,
            });
            Ok(vec![of(dtype, Some(shape.collect()))])
        }
    }
}

pub(super) fn transposed_convolution(view: &View<'_>) -> Types {
    let (Some(dims), Some(weights)) = (view.dims(0), view.dims(1)) else { return Ok(vec![of(view.dtype(0), None)]) };
    let groups = usize::try_from(view.int("group", 1)).unwrap_or(1);
    let channels = match weights.get(1) {
        Some(Fixed(each)) => Fixed(each.saturating_mul(groups)),
        _ => Unknown,
    };
    let mut shape = vec![dims.first().cloned().unwrap_or(Unknown), channels];
    let Some(window) = Window::of(view, spatial(&weights))? else {
        shape.extend(dims.iter().skip(2).map(|_| Unknown));
        return Ok(vec![of(view.dtype(0), Some(shape))]);
    };
    let asked = view.node.attr_ints("output_shape").unwrap_or_default();
    let extra = view.node.attr_ints("output_padding").unwrap_or_default();
    for (i, dim) in dims.iter().skip(2).enumerate().take(window.kernel.len()) {
        let own = asked.len().checked_sub(window.kernel.len()).and_then(|skip| asked.get(i + skip));
        shape.push(match (own, dim) {
            (Some(&size), _) => usize::try_from(size).map_or(Unknown, Fixed),
            (None, Fixed(size)) => {
                let (stride, same) = (window.strides[i], window.auto_pad.starts_with("SAME"));
                let reach = (window.kernel[i].saturating_sub(1)).saturating_mul(window.dilations[i]).saturating_add(1);
                let added = extra.get(i).and_then(|&e| usize::try_from(e).ok()).unwrap_or(0);
                let whole = size.saturating_sub(1).saturating_mul(stride).saturating_add(reach).saturating_add(added);
                let pads = window.pads[i].saturating_add(window.pads[i + window.kernel.len()]);
                Fixed(if same { size.saturating_mul(stride) } else { whole.saturating_sub(pads) })
            }
            (None, _) => Unknown,
        });
    }
    Ok(vec![of(view.dtype(0), Some(shape))])
}

pub(super) fn pool(view: &View<'_>) -> Types {
    let Some(dims) = view.dims(0) else { return Ok(vec![of(view.dtype(0), None)]) };
    let Some(window) = Window::of(view, None)? else { return Err("has no `kernel_shape`".to_owned()) };
    let shape = slid(&dims, dims.get(1).cloned().unwrap_or(Unknown), &window)?;
    let places = of(Some(DataType::Int64), Some(shape.clone()));
    Ok(vec![of(view.dtype(0), Some(shape)), places])
}

pub(super) fn global_pool(view: &View<'_>) -> Vec<ValueType> {
    let shape = view.dims(0).map(|dims| {
        let one = |(i, dim): (usize, Dimension)| if i < 2 { dim } else { Fixed(1) };
        dims.into_iter().enumerate().map(one).collect()
    });
    vec![of(view.dtype(0), shape)]
}

pub(super) fn recurrent(view: &View<'_>) -> Vec<ValueType> {
    let hidden = view.node.attr_int("hidden_size").and_then(|h| usize::try_from(h).ok()).map_or(Unknown, Fixed);
    let directions = Fixed(if view.node.attr_text("direction") == Some("bidirectional") { 2 } else { 1 });
    let batch_first = view.int("layout", 0) == 1;
    let Some([first, second, _]) = view.dims(0).and_then(|dims| <[Dimension; 3]>::try_from(dims).ok()) else {
        return vec![of(view.dtype(0), None); view.outputs()];
    };
    let (sequence, batch) = if batch_first { (second, first) } else { (first, second) };
    let (all, last) = if batch_first {
        (vec![batch.clone(), sequence, directions.clone(), hidden.clone()], vec![batch, directions, hidden])
    } else {
        (vec![sequence, directions.clone(), batch.clone(), hidden.clone()], vec![directions, batch, hidden])
    };
    let last = of(view.dtype(0), Some(last));
    vec![of(view.dtype(0), Some(all)), last.clone(), last]
}

pub(super) fn quantize(view: &View<'_>) -> Vec<ValueType> {
    let asked = DataType::from_onnx(view.int("output_dtype", 0) as i32);
    let dtype = if view.has(2) { view.dtype(2) } else { asked.or(Some(DataType::UInt8)) };
    vec![of(dtype, view.dims(0))]
}

pub(super) fn dynamic_quantize(view: &View<'_>) -> Vec<ValueType> {
    let scalar = |dtype| of(Some(dtype), Some(Vec::new()));
    vec![of(Some(DataType::UInt8), view.dims(0)), scalar(DataType::Float32), scalar(DataType::UInt8)]
}

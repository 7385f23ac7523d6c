//! Weights rounded one input after the other, what each adds to a layer's error taken up by those that follow: Frantar
//! et al. 2022, "GPTQ: Accurate post-training quantization for generative pre-trained transformers", algorithm 1.
//!
//! With `H = Σ x xᵀ + λ I` and `H⁻¹ = Uᵀ U`, U upper triangular, input i of every output is rounded to `q` and
//! `w_j ← w_j − (w_i − q_i) / U_ii · U_ij` for all j after i. Inputs are taken in their order (`act_order` off).

use std::collections::HashSet;

use edgeward_graph::{Tensor, proto::NodeProto, tensor_proto};
use faer::{
    Accum, Mat, MatRef, Par, Side,
    linalg::{matmul::matmul, triangular_inverse::invert_lower_triangular},
};

use crate::{
    BlockBits, CompressError, Layer, Prepared,
    edit::Edit,
    fuse::channel_axis,
    moments::{Moment, Repeat, moments},
    nbits::{largest_first, nearest},
    observe::Load,
    qat::WeightSteps,
    rescale::weights_of,
};

/// Inputs after which what is left over is handed on to all later ones at once (the paper's B).
const LAZY: usize = 128;
/// Where a matrix cannot be factorised, λ is raised this many times.
const RAISES: usize = 4;

/// How weights are rounded.
#[derive(Clone, Copy, Debug)]
pub struct GptqSpec {
    /// Bits of a weight.
    pub bits: BlockBits,
    /// Weights of an output that share a step: a power of two from 16 to 256.
    pub block: usize,
    /// λ, as a part of the mean of the diagonal of `Σ x xᵀ`; the paper has 0.01.
    pub damping: f64,
}

impl GptqSpec {
    /// The paper's.
    pub fn new(bits: BlockBits, block: usize) -> Self {
        Self { bits, block, damping: 0.01 }
    }
}

/// Weights that lie on the steps that they were rounded to.
#[derive(Clone, Debug)]
pub struct Solved {
    /// With the rounded weights, as floats.
    pub prepared: Prepared,
    /// Their steps.
    pub steps: WeightSteps,
    /// Layers that were rounded so.
    pub layers: usize,
}

impl Solved {
    /// Nothing rounded yet.
    pub(crate) fn begin(prepared: &Prepared) -> Self {
        Self { prepared: prepared.clone(), steps: WeightSteps::new(), layers: 0 }
    }

    /// Puts rounded weights into a layer's constant.
    pub(crate) fn put(&mut self, node: &NodeProto, values: &Tensor, steps: Vec<f32>) {
        let Some(name) = node.input.get(1) else { return };
        let tensors = &mut self.prepared.model.graph_mut().initializer;
        if let Some(tensor) = tensors.iter_mut().find(|tensor| tensor.name() == name) {
            *tensor = tensor_proto(name, values);
        }
        self.steps.insert(name.clone(), steps);
        self.layers += 1;
    }
}

/// Rounds the weights of MatMul and Gemm by what `batches` bring before them; [`crate::quantise_blocks_in_steps`] finds the same
/// integers. Inputs are those of the float model. Layers whose weights something else reads as well, that are wider than
/// 8192 or whose inputs are no multiple of the block are left. Errors: constants that cannot be read, data or an engine that fails.
pub fn gptq(
    prepared: &Prepared,
    spec: &GptqSpec,
    load: Load<'_>,
    batches: Repeat<'_>,
) -> Result<Solved, CompressError> {
    crate::nbits::check_block(spec.block)?;
    let mut solved = Solved::begin(prepared);
    let layers: Vec<&Layer> = own_weights(prepared).into_iter().filter(|layer| layer.op != "Conv").collect();
    let edit = Edit::new(prepared.model.clone());
    moments(prepared, &layers, load, batches, &mut |layer, moment| {
        let Some((node, shape, values)) = weights_of(&edit, layer) else { return Ok(()) };
        let by_output = channel_axis(node) == 0;
        if !moment.size.is_multiple_of(spec.block) {
            return Ok(());
        }
        let outputs = values.len() / moment.size;
        let Some(rounded) = solve(&values, by_output, moment, spec) else { return Ok(()) };
        let mut steps = vec![1.0; rounded.steps.len()];
        // Steps lie as the weights do: by output, or by block of inputs.
        for (at, step) in rounded.steps.iter().enumerate() {
            let (block, output) = (at / outputs, at % outputs);
            let to = if by_output { output * (moment.size / spec.block) + block } else { at };
            if let Some(slot) = steps.get_mut(to) {
                *slot = *step;
            }
        }
        solved.put(node, &Tensor::from_vec(shape, rounded.values)?, steps);
        Ok(())
    })?;
    Ok(solved)
}

/// Multiply-adds that [`gptq`] takes at most beside the runs: who is in a hurry asks before.
pub fn gptq_cost(prepared: &Prepared) -> f64 {
    let cost = |layer: &Layer| {
        let most = layer.weight.iter().max().copied().unwrap_or(0) as f64;
        layer.weights() as f64 * most + most.powi(3) / 2.0
    };
    prepared.layers.iter().filter(|layer| layer.op != "Conv").map(cost).sum()
}

/// Layers whose weights nothing else reads.
pub(crate) fn own_weights(prepared: &Prepared) -> Vec<&Layer> {
    let links = prepared.links();
    let graph = prepared.model.graph();
    let results: HashSet<&str> = graph.output.iter().map(|output| output.name()).collect();
    let own = |layer: &&Layer| {
        let weight = graph.node.get(layer.node).and_then(|node| node.input.get(1));
        weight.is_some_and(|name| links.consumers(name) == [layer.node] && !results.contains(name.as_str()))
    };
    prepared.layers.iter().filter(own).collect()
}

struct Rounded {
    /// As the weights lie.
    values: Vec<f32>,
    /// Block by block, all outputs of a block one after the other.
    steps: Vec<f32>,
}

/// None where the matrix has no factor.
fn solve(values: &[f32], by_output: bool, moment: &Moment, spec: &GptqSpec) -> Option<Rounded> {
    let inputs = moment.size;
    let outputs = values.len() / inputs.max(1);
    let factor = inverse_factor(moment.of_group(0)?, inputs, spec.damping)?;
    let place =
        |input: usize, output: usize| if by_output { output * inputs + input } else { input * outputs + output };
    // Column i holds input i of all outputs.
    let mut left =
        Mat::from_fn(outputs, inputs, |output, input| values.get(place(input, output)).copied().map_or(0.0, f64::from));
    let mut rounded = Rounded { values: vec![0.0; values.len()], steps: Vec::new() };
    let lazy = LAZY.max(spec.block);
    for first in (0..inputs).step_by(lazy) {
        let end = (first + lazy).min(inputs);
        let mut errors = Mat::<f64>::zeros(outputs, end - first);
        for input in first..end {
            if (input - first).is_multiple_of(spec.block) {
                rounded.steps.extend(steps(left.as_ref(), input, spec));
            }
            let steps = rounded.steps.get(rounded.steps.len() - outputs..).unwrap_or_default();
            for (output, step) in steps.iter().enumerate() {
                let weight = left[(output, input)];
                let whole = nearest(weight as f32, spec.bits, *step) * step;
                errors[(output, input - first)] = (weight - f64::from(whole)) / factor[(input, input)];
                if let Some(slot) = rounded.values.get_mut(place(input, output)) {
                    *slot = whole;
                }
            }
            for after in input + 1..end {
                let by = factor[(input, after)];
                let error = errors.col(input - first).try_as_col_major()?.as_slice();
                let column = left.col_mut(after).try_as_col_major_mut()?.as_slice_mut();
                column.iter_mut().zip(error).for_each(|(weight, error)| *weight -= error * by);
            }
        }
        let rest = factor.submatrix(first, end, end - first, inputs - end);
        let later = left.submatrix_mut(0, end, outputs, inputs - end);
        matmul(later, Accum::Add, errors.as_ref(), rest, -1.0, Par::Seq);
    }
    Some(rounded)
}

/// Steps of the block that begins at `first`, one for each output, by the weights as they are now.
fn steps(left: MatRef<'_, f64>, first: usize, spec: &GptqSpec) -> Vec<f32> {
    let step = |output: usize| {
        let numbers: Vec<f32> = (first..first + spec.block).map(|input| left[(output, input)] as f32).collect();
        largest_first(&numbers, spec.bits)
    };
    (0..left.nrows()).map(step).collect()
}

/// The upper triangular U with `Uᵀ U = (H + λ I)⁻¹`. Taken from behind, H is `L Lᵀ`; from behind again, the inverse of L is
/// U: one factorisation, and H is not inverted. None where it has numbers that are none, or no factor.
pub(crate) fn inverse_factor(moment: &[f64], size: usize, damping: f64) -> Option<Mat<f64>> {
    let at = |row: usize, column: usize| moment.get(row * size + column).copied().unwrap_or(0.0);
    let mean = (0..size).map(|i| at(i, i)).sum::<f64>() / size.max(1) as f64;
    if !(mean.is_finite() && mean > 0.0) {
        return None;
    }
    let back = |i: usize| size - 1 - i;
    let factor = (0..=RAISES).find_map(|raise| {
        let lambda = damping * mean * 10f64.powi(raise as i32);
        let matrix = Mat::from_fn(size, size, |row, column| {
            at(back(row), back(column)) + if row == column { lambda } else { 0.0 }
        });
        matrix.llt(Side::Lower).ok()
    })?;
    let mut inverse = Mat::<f64>::zeros(size, size);
    invert_lower_triangular(inverse.as_mut(), factor.L(), Par::Seq);
    let upper =
        Mat::from_fn(size, size, |row, column| if row <= column { inverse[(back(row), back(column))] } else { 0.0 });
    (0..size).all(|i| upper[(i, i)].is_finite() && upper[(i, i)] > 0.0).then_some(upper)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factor_is_that_of_the_inverse() {
        let moment = [4.0, 2.0, 0.5, 2.0, 3.0, 1.0, 0.5, 1.0, 2.0];
        let upper = inverse_factor(&moment, 3, 0.0).unwrap();
        let inverse = upper.transpose() * &upper;
        let one = Mat::from_fn(3, 3, |row, column| moment[row * 3 + column]) * inverse;
        for (row, column) in (0..9).map(|at| (at / 3, at % 3)) {
            let expected = f64::from(u8::from(row == column));
            assert!((one[(row, column)] - expected).abs() < 1e-12, "{one:?}");
            assert!(row <= column || upper[(row, column)] == 0.0);
        }
    }

    #[test]
    fn what_has_no_factor_is_told() {
        assert!(inverse_factor(&[0.0; 4], 2, 0.01).is_none());
        assert!(inverse_factor(&[f64::NAN, 0.0, 0.0, 1.0], 2, 0.01).is_none());
        // One that is singular has one with more damping.
        assert!(inverse_factor(&[1.0, 1.0, 1.0, 1.0], 2, 0.01).is_some());
    }
}

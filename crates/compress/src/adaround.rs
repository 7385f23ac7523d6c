//! Weights rounded up or down by what that does to their layer's results: the problem of Nagel et al. 2020, "Up or down?
//! Adaptive rounding for post-training quantization", equation 20, by a simpler solver.
//!
//! With Δ the change of a weight row, the squared error of its results over the data is `Δ (Σ x xᵀ) Δᵀ`. The paper makes
//! every choice a soft number and trains these; here each weight in turn takes the other of its two integers where that
//! lowers the error, until no single change does (coordinate descent on the same binary quadratic problem, begun at the
//! nearest). Inputs are those of the float model, and results those before an activation function.

use edgeward_graph::Tensor;

use crate::{
    CompressError, Layer, Prepared, WeightBits,
    edit::Edit,
    fuse::channel_axis,
    gptq::{Solved, own_weights},
    moments::{Repeat, moments},
    observe::Load,
    qat::best_step,
    rescale::weights_of,
};

/// Times that all weights of a row are gone through; few rows need more than five.
const SWEEPS: usize = 20;

/// Rounds the weights of all layers, in the steps of the least squared error, one for each output channel;
/// [`crate::quantise_static_in_steps`] finds the same integers. Layers are left out as [`crate::gptq`] leaves them. Errors: data or
/// an engine that fails.
pub fn adaround(
    prepared: &Prepared,
    bits: WeightBits,
    load: Load<'_>,
    batches: Repeat<'_>,
) -> Result<Solved, CompressError> {
    let mut solved = Solved::begin(prepared);
    let edit = Edit::new(prepared.model.clone());
    let layers: Vec<&Layer> = own_weights(prepared);
    moments(prepared, &layers, load, batches, &mut |layer, moment| {
        let Some((node, shape, values)) = weights_of(&edit, layer) else { return Ok(()) };
        let outputs = values.len() / moment.size;
        let groups = moment.sums.len() / (moment.size * moment.size);
        let by_output = channel_axis(node) == 0;
        let place = |output: usize, input: usize| {
            if by_output { output * moment.size + input } else { input * outputs + output }
        };
        let (mut rounded, mut steps) = (values.clone(), Vec::with_capacity(outputs));
        for output in 0..outputs {
            let Some(matrix) = moment.of_group(output * groups / outputs.max(1)) else { return Ok(()) };
            let row: Vec<f32> =
                (0..moment.size).map(|input| values.get(place(output, input)).copied().unwrap_or(0.0)).collect();
            let step = best_step(&row, (-bits.most(), bits.most())).abs();
            for (input, integer) in round(&row, step, bits.most(), matrix).into_iter().enumerate() {
                if let Some(slot) = rounded.get_mut(place(output, input)) {
                    *slot = integer * step;
                }
            }
            steps.push(step);
        }
        solved.put(node, &Tensor::from_vec(shape, rounded)?, steps);
        Ok(())
    })?;
    Ok(solved)
}

/// Multiply-adds that [`adaround`] takes at most beside the runs, if a row's weights change once each.
pub fn adaround_cost(prepared: &Prepared) -> f64 {
    let cost = |layer: &Layer| {
        let inputs = match layer.op.as_str() {
            "Conv" => layer.weight.iter().skip(1).product::<usize>(),
            _ => layer.weight.iter().max().copied().unwrap_or(0),
        };
        layer.weights() as f64 * inputs as f64
    };
    prepared.layers.iter().map(cost).sum()
}

/// The integers of one row, from −`most` to `most`.
fn round(row: &[f32], step: f32, most: f32, matrix: &[f64]) -> Vec<f32> {
    let size = row.len();
    let clipped: Vec<f32> = row.iter().map(|value| (value / step).clamp(-most, most)).collect();
    let mut integers: Vec<f32> = clipped.iter().map(|value| value.round_ties_even()).collect();
    let change: Vec<f64> =
        row.iter().zip(&integers).map(|(value, integer)| f64::from(integer * step) - f64::from(*value)).collect();
    // Half the gradient of the error.
    let mut slope = vec![0f64; size];
    for (line, change) in matrix.chunks(size.max(1)).zip(&change) {
        slope.iter_mut().zip(line).for_each(|(slope, moment)| *slope += moment * change);
    }
    for _ in 0..SWEEPS {
        let mut changed = false;
        for input in 0..size {
            let (Some(exact), Some(integer), Some(line)) =
                (clipped.get(input), integers.get_mut(input), matrix.get(input * size..(input + 1) * size))
            else {
                continue;
            };
            let other = if *integer > *exact { exact.floor() } else { exact.ceil() };
            let by = f64::from((other - *integer) * step);
            let (own, slope_here) = (line.get(input).copied().unwrap_or(0.0), slope.get(input).copied().unwrap_or(0.0));
            if by == 0.0 || 2.0 * by * slope_here + by * by * own >= -1e-12 * own.abs() {
                continue;
            }
            *integer = other;
            slope.iter_mut().zip(line).for_each(|(slope, moment)| *slope += by * moment);
            changed = true;
        }
        if !changed {
            break;
        }
    }
    integers
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(row: &[f32], integers: &[f32], step: f32, matrix: &[f64]) -> f64 {
        let change: Vec<f64> = row.iter().zip(integers).map(|(w, q)| f64::from(q * step) - f64::from(*w)).collect();
        let size = row.len();
        (0..size * size).map(|at| change[at / size] * matrix[at] * change[at % size]).sum()
    }

    #[test]
    fn errors_that_add_up_are_shared() {
        // Both inputs are always the same: up and down together is right.
        let integers = round(&[0.4, 0.4, 1.0], 1.0, 7.0, &[1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
        assert_eq!(integers, [1.0, 0.0, 1.0]);
        assert_eq!(round(&[9.3, -9.0], 1.0, 7.0, &[1.0, 0.9, 0.9, 1.0]), [7.0, -7.0]);
    }

    proptest! {
        #[test]
        fn no_single_change_is_better(
            row in prop::collection::vec(-7f32..7.0, 5), seen in prop::collection::vec(-1f64..1.0, 20)
        ) {
            let dot = |a: usize, b: usize| seen.chunks(5).map(|x| x[a] * x[b]).sum::<f64>();
            let matrix: Vec<f64> = (0..25).map(|at| dot(at / 5, at % 5)).collect();
            let found = round(&row, 1.0, 7.0, &matrix);
            let least = error(&row, &found, 1.0, &matrix);
            let nearest: Vec<f32> = row.iter().map(|w| w.round_ties_even()).collect();
            prop_assert!(least <= error(&row, &nearest, 1.0, &matrix) + 1e-9);
            for at in 0..5 {
                prop_assert!((found[at] - row[at]).abs() < 1.0);
                for other in [row[at].floor(), row[at].ceil()] {
                    let mut changed = found.clone();
                    changed[at] = other;
                    prop_assert!(error(&row, &changed, 1.0, &matrix) >= least - 1e-9);
                }
            }
        }
    }
}

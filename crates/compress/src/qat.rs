//! Training that knows of the integers to come: weights and activations are rounded in the training graph as they will be
//! in the finished file, in steps whose size is learnt (Esser et al. 2020, "Learned step size quantization").
//!
//! A weight is `s · round(clip(w / s))`, by operators whose gradients make that of the paper's equation 3; the rounding, a
//! pair of QuantizeLinear and DequantizeLinear in steps of 1, passes gradients straight. An activation goes through such a
//! pair in its own steps. What is trained is each step's factor over the size that it begins with, so that one learning rate
//! fits all of them.

use std::collections::HashMap;

use edgeward_graph::{
    Dimension, Model, Tensor,
    proto::{AttributeProto, NodeProto},
};
use edgeward_train::Pattern;

use crate::{
    CompressError, Form, Layer, Prepared, StaticSpec, WeightBits,
    calibrate::Ranges,
    edit::{Edit, node, take_over},
    fuse::channel_axis,
    nbits::largest,
    plan::{Plan, moves, plan},
    range::{Range, Steps},
};

/// Parts of the largest weight that the first step is sought among.
const FRACTIONS: usize = 32;

/// Steps of weights, by the weight's name: for each output channel, or for each block in the order that weights lie in.
pub type WeightSteps = HashMap<String, Vec<f32>>;

/// What is rounded while it is trained.
#[derive(Clone, Debug)]
pub enum Rounded<'a> {
    /// What [`crate::quantise_static`] makes integers.
    Static {
        /// Ranges of activations to begin with.
        ranges: &'a Ranges,
        /// How.
        spec: &'a StaticSpec,
    },
    /// Weights of MatMul and Gemm alone, as [`crate::quantise_blocks`] does with 4 bits.
    Blocks {
        /// Weights of one input row that share a step.
        block: usize,
    },
}

/// A graph to train.
#[derive(Clone, Debug)]
pub struct Rounding {
    /// The prepared graph with what is rounded; its weights keep their names.
    pub forward: Model,
    /// Not to be trained: the sizes that steps begin with.
    pub frozen: Vec<Pattern>,
    /// What the gradients of steps are multiplied by: `1 / √(N · Q)`, N the numbers that share a step, Q the largest integer
    /// (Esser et al. 2020, section 2.2).
    pub factors: Vec<(Pattern, f32)>,
    weights: Vec<Trained>,
    values: Vec<(Trained, u8)>,
}

/// A step that is trained.
#[derive(Clone, Debug)]
struct Trained {
    /// The weight, or the value.
    of: String,
    first: Vec<f32>,
    /// Name of its factors.
    factor: String,
}

/// What was learnt, ready to be made integers.
#[derive(Clone, Debug)]
pub struct Learnt {
    /// With the trained weights.
    pub prepared: Prepared,
    /// With the trained steps.
    pub ranges: Ranges,
    /// Of weights.
    pub steps: WeightSteps,
}

/// Puts rounding into a prepared graph. Errors: weights that cannot be read, or nothing to round.
pub fn round_in_training(prepared: &Prepared, rounded: &Rounded<'_>) -> Result<Rounding, CompressError> {
    let mut writer = Writer {
        edit: Edit::new(prepared.model.clone()),
        prepared,
        rounding: Rounding {
            forward: prepared.model.clone(),
            frozen: Vec::new(),
            factors: Vec::new(),
            weights: Vec::new(),
            values: Vec::new(),
        },
        made: HashMap::new(),
    };
    match rounded {
        Rounded::Static { ranges, spec } => {
            let plan = plan(prepared, ranges, spec.form, &spec.keep);
            for layer in plan.layers.iter().filter_map(|at| prepared.layers.get(*at)) {
                writer.by_channel(layer, spec.weights)?;
            }
            writer.values(&plan, spec)?;
        }
        Rounded::Blocks { block } => {
            for layer in prepared.layers.iter().filter(|layer| layer.op != "Conv") {
                writer.by_block(layer, *block)?;
            }
        }
    }
    if writer.rounding.weights.is_empty() {
        return Err(CompressError::unsupported("the graph", "has no layer whose weights could be rounded"));
    }
    let mut forward = writer.edit.model;
    forward.graph_mut().sort_nodes()?;
    Ok(Rounding { forward, ..writer.rounding })
}

impl Rounding {
    /// Takes the weights and steps out of the trained forward graph. Errors: steps that training drove to 0 or beyond.
    pub fn learnt(&self, prepared: &Prepared, ranges: &Ranges, trained: &Model) -> Result<Learnt, CompressError> {
        let mut learnt = Learnt { prepared: prepared.clone(), ranges: ranges.clone(), steps: HashMap::new() };
        take_over(&mut learnt.prepared.model, trained);
        for step in &self.weights {
            learnt.steps.insert(step.of.clone(), step.sizes(trained)?);
        }
        for (step, zero) in &self.values {
            let scale = step.sizes(trained)?.first().copied().unwrap_or(1.0);
            let range = Range::new(-f32::from(*zero) * scale, f32::from(255 - zero) * scale);
            learnt.ranges.insert(step.of.clone(), range);
        }
        Ok(learnt)
    }
}

impl Trained {
    fn sizes(&self, trained: &Model) -> Result<Vec<f32>, CompressError> {
        let tensor = trained.graph().initializer.iter().find(|tensor| tensor.name() == self.factor);
        let tensor =
            tensor.ok_or_else(|| CompressError::Data(format!("the trained graph has no `{}`", self.factor)))?;
        let factors = trained.tensor(tensor)?;
        let factors = factors.values::<f32>()?;
        if factors.iter().any(|factor| !(*factor > 0.0 && factor.is_finite())) {
            let text = format!("the steps of `{}` shrank to nothing in training; try a smaller rate", self.of);
            return Err(CompressError::Data(text));
        }
        Ok(self.first.iter().zip(factors.iter()).map(|(first, factor)| first * factor).collect())
    }
}

struct Writer<'a> {
    edit: Edit,
    prepared: &'a Prepared,
    rounding: Rounding,
    /// Rounded weights that layers share.
    made: HashMap<String, String>,
}

impl Writer<'_> {
    fn node(&mut self, op: &str, stem: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let output = self.edit.fresh(stem);
        self.edit.model.graph_mut().node.push(node(op, output.clone(), inputs, &[&output], attributes));
        output
    }

    /// A step of this shape that is trained: its value's name.
    fn step(&mut self, of: &str, shape: &[usize], first: Vec<f32>) -> Result<(String, Trained), CompressError> {
        let begun = self.edit.constant("qat/first", &Tensor::from_vec(shape.to_vec(), first.clone())?);
        let factor = self.edit.constant("qat/factor", &Tensor::from_vec(shape.to_vec(), vec![1f32; first.len()])?);
        self.rounding.frozen.push(pattern(&begun)?);
        let value = self.node("Mul", "qat/step", &[&begun, &factor], Vec::new());
        Ok((value, Trained { of: of.to_owned(), first, factor }))
    }

    fn factor(&mut self, step: &Trained, shared_by: usize, most: f32) -> Result<(), CompressError> {
        let factor = 1.0 / (shared_by.max(1) as f32 * most).sqrt();
        self.rounding.factors.push((pattern(&step.factor)?, factor));
        Ok(())
    }

    fn weight_of(&self, layer: &Layer) -> Option<(NodeProto, String)> {
        let node = self.edit.node(layer.node)?.clone();
        let weight = node.input.get(1)?.clone();
        Some((node, weight))
    }

    fn by_channel(&mut self, layer: &Layer, bits: WeightBits) -> Result<(), CompressError> {
        let Some((node, weight)) = self.weight_of(layer) else { return Ok(()) };
        let axis = channel_axis(&node);
        let rounded = match self.made.get(&weight) {
            Some(made) => made.clone(),
            None => {
                let (shape, values) = self.edit.floats(&weight).ok_or_else(|| unread(&node))?;
                let inner: usize = shape.iter().skip(axis + 1).product::<usize>().max(1);
                let channels = shape.get(axis).copied().unwrap_or(1).max(1);
                let mut groups = vec![Vec::new(); channels];
                for (at, value) in values.iter().enumerate() {
                    if let Some(group) = groups.get_mut(at / inner % channels) {
                        group.push(*value);
                    }
                }
                let first = groups.iter().map(|group| best_step(group, (-bits.most(), bits.most()))).collect();
                let steps: Vec<usize> = (0..shape.len()).map(|at| if at == axis { channels } else { 1 }).collect();
                let bounds = (-bits.most(), bits.most());
                self.rounded(&weight, (first, &steps), &shape, &shape, bounds)?
            }
        };
        self.edit.set_input(layer.node, 1, &rounded);
        Ok(())
    }

    fn by_block(&mut self, layer: &Layer, block: usize) -> Result<(), CompressError> {
        let Some((node, weight)) = self.weight_of(layer) else { return Ok(()) };
        let rounded = match self.made.get(&weight) {
            Some(made) => made.clone(),
            None => {
                let (shape, values) = self.edit.floats(&weight).ok_or_else(|| unread(&node))?;
                let &[rows, columns] = shape.as_slice() else { return Err(unread(&node)) };
                let by_output = channel_axis(&node) == 0;
                let inputs = if by_output { columns } else { rows };
                if block == 0 || inputs == 0 || !inputs.is_multiple_of(block) {
                    return Ok(());
                }
                let (cut, steps) = if by_output {
                    ([rows, columns / block, block], [rows, columns / block, 1])
                } else {
                    ([rows / block, block, columns], [rows / block, 1, columns])
                };
                // Where an element's step is, in the order that steps lie in.
                let place =
                    |at: usize| if by_output { at / block } else { at / columns / block * columns + at % columns };
                let mut groups = vec![Vec::new(); steps.iter().product()];
                for (at, value) in values.iter().enumerate() {
                    if let Some(group) = groups.get_mut(place(at)) {
                        group.push(*value);
                    }
                }
                let first = groups.iter().map(|group| best_step(group, (-8.0, 7.0))).collect();
                self.rounded(&weight, (first, &steps), &cut, &shape, (-8.0, 7.0))?
            }
        };
        self.edit.set_input(layer.node, 1, &rounded);
        Ok(())
    }

    /// `s · round(clip(w / s, bounds))`, taken apart as `cut` says and put together again.
    fn rounded(
        &mut self,
        weight: &str,
        (first, steps): (Vec<f32>, &[usize]),
        cut: &[usize],
        shape: &[usize],
        (low, high): (f32, f32),
    ) -> Result<String, CompressError> {
        let shared_by = cut.iter().product::<usize>() / first.len().max(1);
        let (size, step) = self.step(weight, steps, first)?;
        self.factor(&step, shared_by, high)?;
        let parts = if cut == shape { weight.to_owned() } else { self.reshape(weight, cut)? };
        let scalar = |value: f32| Tensor::from_vec([], vec![value]);
        let (low, high) =
            (self.edit.constant("qat/low", &scalar(low)?), self.edit.constant("qat/high", &scalar(high)?));
        let one = self.edit.constant("qat/one", &scalar(1.0)?);
        let zero = self.edit.constant("qat/zero", &Tensor::from_vec([], vec![0i8])?);
        let steps = self.node("Div", "qat/steps", &[&parts, &size], Vec::new());
        let within = self.node("Clip", "qat/within", &[&steps, &low, &high], Vec::new());
        let integers = self.node("QuantizeLinear", "qat/integers", &[&within, &one, &zero], Vec::new());
        let whole = self.node("DequantizeLinear", "qat/whole", &[&integers, &one, &zero], Vec::new());
        let product = self.node("Mul", "qat/rounded", &[&whole, &size], Vec::new());
        let rounded = if cut == shape { product } else { self.reshape(&product, shape)? };
        self.made.insert(weight.to_owned(), rounded.clone());
        self.rounding.weights.push(step);
        Ok(rounded)
    }

    fn reshape(&mut self, value: &str, shape: &[usize]) -> Result<String, CompressError> {
        let sizes: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        let sizes = self.edit.constant("qat/shape", &Tensor::from_vec([sizes.len()], sizes)?);
        Ok(self.node("Reshape", "qat/reshaped", &[value, &sizes], Vec::new()))
    }

    /// Pairs behind the planned values, but for those that are moved only: they are whole already.
    fn values(&mut self, plan: &Plan, spec: &StaticSpec) -> Result<(), CompressError> {
        let moved: Vec<String> = (self.prepared.model.graph().node.iter())
            .filter(|node| spec.form == Form::Chains && moves(node.op_type()))
            .filter(|node| node.input.first().is_some_and(|input| plan.values.contains_key(input)))
            .flat_map(|node| node.output.clone())
            .collect();
        for (name, range) in plan.values.iter().filter(|(name, _)| !moved.contains(name)) {
            let steps = range.steps();
            let (size, step) = self.step(name, &[1], vec![steps.scale])?;
            self.factor(&step, self.elements(name), 255.0)?;
            self.value(name, steps, &size, spec)?;
            self.rounding.values.push((step, steps.zero));
        }
        Ok(())
    }

    /// Numbers of one example, as far as sizes are known.
    fn elements(&self, name: &str) -> usize {
        let shape = self.prepared.inferred.of(name).shape.unwrap_or_default();
        let size = |dim: &Dimension| if let Dimension::Fixed(size) = dim { *size } else { 1 };
        shape.iter().skip(1).map(size).product::<usize>().max(1)
    }

    fn value(&mut self, name: &str, steps: Steps, size: &str, spec: &StaticSpec) -> Result<(), CompressError> {
        let axis = self.edit.constant("qat/axis", &Tensor::from_vec([1], vec![0i64])?);
        let zero = self.edit.constant("qat/zero", &steps.zero_tensor(spec.activations)?);
        let result = self.edit.model.graph().output.iter().any(|output| output.name() == name);
        let (before, after) = if result {
            (self.edit.fresh(&format!("{name}.before")), name.to_owned())
        } else {
            (name.to_owned(), self.edit.fresh(&format!("{name}.rounded")))
        };
        for node in &mut self.edit.model.graph_mut().node {
            let renames: &mut [(&mut Vec<String>, &String)] =
                &mut [(&mut node.input, &after), (&mut node.output, &before)];
            for (names, to) in renames {
                names.iter_mut().filter(|other| *other == name).for_each(|other| other.clone_from(to));
            }
        }
        let scale = self.node("Squeeze", "qat/scale", &[size, &axis], Vec::new());
        let integers = self.node("QuantizeLinear", "qat/integers", &[&before, &scale, &zero], Vec::new());
        let own =
            node("DequantizeLinear", self.edit.fresh("qat/float"), &[&integers, &scale, &zero], &[&after], Vec::new());
        self.edit.model.graph_mut().node.push(own);
        Ok(())
    }
}

fn pattern(name: &str) -> Result<Pattern, CompressError> {
    Pattern::new(name).map_err(|error| CompressError::Data(error.to_string()))
}

fn unread(node: &NodeProto) -> CompressError {
    CompressError::unsupported(format!("node `{}`", node.name()), "its weights cannot be read")
}

/// The step of the least squared error, among parts of the one that reaches the largest number.
pub(crate) fn best_step(values: &[f32], (low, high): (f32, f32)) -> f32 {
    let most = largest(values);
    // The side with more integers takes the largest number.
    let whole = if low.abs() > high { most / low } else { most.abs() / high };
    if whole.abs() < f32::MIN_POSITIVE || !whole.is_finite() {
        return 1.0;
    }
    let error = |step: f32| -> f64 {
        let rest = |value: &f32| f64::from((value / step).round_ties_even().clamp(low, high) * step - value);
        values.iter().map(|value| rest(value).powi(2)).sum()
    };
    let steps = (FRACTIONS / 4..=FRACTIONS).rev().map(|part| whole * part as f32 / FRACTIONS as f32);
    let found = steps.map(|step| (error(step), step)).min_by(|a, b| a.0.total_cmp(&b.0));
    found.map_or(whole, |(_, step)| if step.abs() >= f32::MIN_POSITIVE { step } else { whole })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_step_lets_go_of_what_is_rare() {
        assert_eq!(best_step(&[0.0; 4], (-7.0, 7.0)), 1.0);
        assert_eq!(best_step(&[7.0, -3.0, 1.0], (-7.0, 7.0)), 1.0);
        // The greatest number gets the lowest integer where there is one more below.
        assert_eq!(best_step(&[8.0, 4.0, -7.0], (-8.0, 7.0)), -1.0);
        let mut many: Vec<f32> = (0..200).map(|i| (i % 15) as f32 - 7.0).collect();
        many.push(9.0);
        let step = best_step(&many, (-7.0, 7.0));
        assert!(step < 9.0 / 7.0, "{step}");
    }
}

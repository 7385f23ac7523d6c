//! Static quantisation: integers between pairs of QuantizeLinear and DequantizeLinear, the form that every engine reads
//! and fuses.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use edgeward_graph::{
    Model, Tensor,
    proto::{AttributeProto, GraphProto, NodeProto},
    walk,
};

use crate::{
    CompressError, Layer, Prepared,
    calibrate::{Ranges, Statistics},
    correct,
    edit::{Edit, node},
    fuse::{bias_by_channel, bias_name, channel_axis},
    plan::{Form, Plan, plan},
    qat::WeightSteps,
    range::{Activations, Steps},
    tables,
    weights::{Integers, WeightBits},
};

/// How a model is quantised.
#[derive(Clone, Debug)]
pub struct StaticSpec {
    /// Patterns.
    pub form: Form,
    /// Type of activations.
    pub activations: Activations,
    /// Bits of weights.
    pub weights: WeightBits,
    /// Whether biases take up the mean error of rounded weights.
    pub bias: Bias,
    /// Layers, by the name of their value, that stay floats.
    pub keep: BTreeSet<String>,
}

/// What becomes of the mean error that rounded weights make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// It goes off the bias (Nagel et al. 2019, section 4.2).
    Corrected,
    /// Nothing.
    AsItIs,
}

/// A rewritten graph.
#[derive(Clone, Debug)]
pub struct Quantised {
    /// The graph.
    pub model: Model,
    /// Layers on integers.
    pub layers: usize,
    /// Where results of layers are found: value of the float graph and of this one, by the layer's name.
    pub results: BTreeMap<String, (String, String)>,
}

impl Quantised {
    /// Of a rewritten model whose layers' results bear the names that they had; its nodes are put in order, dead ones dropped.
    pub(crate) fn of_same_names(prepared: &Prepared, mut model: Model, layers: usize) -> Result<Self, CompressError> {
        let graph = model.graph_mut();
        graph.sort_nodes()?;
        graph.drop_dead_nodes();
        let same = |layer: &Layer| (layer.name.clone(), (layer.name.clone(), layer.name.clone()));
        Ok(Self { model, layers, results: prepared.layers.iter().map(same).collect() })
    }
}

/// Quantises by ranges that were observed. Errors: a layer whose constants cannot be read.
pub fn quantise_static(
    prepared: &Prepared,
    ranges: &Ranges,
    statistics: &Statistics,
    spec: &StaticSpec,
) -> Result<Quantised, CompressError> {
    quantise_static_in_steps(prepared, ranges, statistics, spec, &WeightSteps::new())
}

/// As [`quantise_static`], weights in `steps` where there are any: those that were learnt. Errors: as there.
pub fn quantise_static_in_steps(
    prepared: &Prepared,
    ranges: &Ranges,
    statistics: &Statistics,
    spec: &StaticSpec,
    steps: &WeightSteps,
) -> Result<Quantised, CompressError> {
    let plan = plan(prepared, ranges, spec.form, &spec.keep);
    let mut rewrite = Rewrite {
        edit: Edit::new(prepared.model.clone()),
        statistics,
        spec,
        steps,
        weights: HashMap::new(),
        made: Vec::new(),
    };
    for &at in &plan.layers {
        if let Some(layer) = prepared.layers.get(at) {
            rewrite.layer(layer, &plan)?;
        }
    }
    if spec.form == Form::Chains {
        rewrite.constants(&plan)?;
    }
    let absorbed = rewrite.absorb(&plan);
    let renamed = rewrite.values(&plan)?;
    let result = |layer: &Layer| {
        let before = absorbed.get(&layer.name).unwrap_or(&layer.name);
        (layer.name.clone(), (before.clone(), renamed.get(before).unwrap_or(before).clone()))
    };
    let results = prepared.layers.iter().map(result).collect();
    let made = rewrite.made;
    let mut edit = rewrite.edit;
    edit.model.graph_mut().node.extend(made);
    tables::quantise(&mut edit)?;
    let mut model = edit.model;
    let graph = model.graph_mut();
    graph.value_info.clear();
    graph.sort_nodes()?;
    graph.drop_dead_nodes();
    Ok(Quantised { model, layers: plan.layers.len(), results })
}

struct Rewrite<'a> {
    edit: Edit,
    statistics: &'a Statistics,
    spec: &'a StaticSpec,
    steps: &'a WeightSteps,
    /// Quantised weights that layers share, by name.
    weights: HashMap<String, (String, Vec<f32>)>,
    made: Vec<NodeProto>,
}

impl Rewrite<'_> {
    fn layer(&mut self, layer: &Layer, plan: &Plan) -> Result<(), CompressError> {
        let Some(node) = self.edit.node(layer.node).cloned() else { return Ok(()) };
        let refuse = || CompressError::unsupported(format!("node `{}`", node.name()), "its weights cannot be read");
        let [input, weight, ..] = node.input.as_slice() else { return Err(refuse()) };
        let steps = plan.values.get(input).map(|range| range.steps()).ok_or_else(refuse)?;
        let (shape, values) = self.edit.floats(weight).ok_or_else(refuse)?;
        let axis = channel_axis(&node);
        let channels = shape.get(axis).copied().unwrap_or(1);
        let bias = bias_by_channel(&self.edit, &node, channels);
        let least = bias.as_ref().map(|bias| least_scales(bias, steps)).unwrap_or_default();
        let integers = match self.steps.get(weight).filter(|steps| steps.len() == channels) {
            Some(steps) => Integers::in_steps(&shape, &values, axis, self.spec.weights, steps.clone()),
            None => Integers::of(&shape, &values, axis, self.spec.weights, &least),
        };
        let (stored, scales) = self.weights(weight, &integers, axis)?;
        self.edit.set_input(layer.node, 1, &stored);
        let error = (self.spec.bias == Bias::Corrected).then(|| {
            let means = self.statistics.channel_means(input)?;
            correct::mean_error(&node, &shape, &values, &integers.floats(), &means)
        });
        let error = error.flatten();
        // A product of matrices has no bias, and one that is computed cannot be corrected.
        let computed = bias_name(&node).is_some() && bias.is_none();
        let fixed = node.op_type() == "MatMul" || computed;
        if let Some(bias) = corrected(bias, error, channels).filter(|_| !fixed) {
            let stored = self.bias(&node, &bias, steps, &scales)?;
            self.edit.set_input(layer.node, 2, &stored);
        }
        Ok(())
    }

    /// The name of dequantised weights, and their scales.
    fn weights(&mut self, weight: &str, integers: &Integers, axis: usize) -> Result<(String, Vec<f32>), CompressError> {
        if let Some(known) = self.weights.get(weight).filter(|(_, scales)| *scales == integers.scales) {
            return Ok(known.clone());
        }
        let values = self.edit.constant(&format!("{weight}.int8"), &integers.tensor()?);
        let scale = self.edit.constant(&format!("{weight}.scale"), &integers.scale_tensor()?);
        let zeros = Tensor::from_vec([integers.scales.len()], vec![0i8; integers.scales.len()])?;
        let zero = self.edit.constant(&format!("{weight}.zero"), &zeros);
        let output = self.dequantise(weight, &[&values, &scale, &zero], Some(axis));
        let made = (output, integers.scales.clone());
        self.weights.insert(weight.to_owned(), made.clone());
        Ok(made)
    }

    fn dequantise(&mut self, stem: &str, inputs: &[&str], axis: Option<usize>) -> String {
        let output = self.edit.fresh(&format!("{stem}.float"));
        let name = self.edit.fresh(&format!("{stem}.dequantise"));
        let axis = axis.map(|axis| AttributeProto::of_int("axis", axis as i64)).into_iter().collect();
        self.made.push(node("DequantizeLinear", name, inputs, &[&output], axis));
        output
    }

    /// Biases as 32-bit integers in units of the products: what integer kernels add.
    fn bias(&mut self, of: &NodeProto, bias: &[f32], steps: Steps, scales: &[f32]) -> Result<String, CompressError> {
        let units: Vec<f32> = scales.iter().map(|scale| scale * steps.scale).collect();
        let stem = of.output.first().map_or("bias", String::as_str);
        let fits = units.iter().all(|unit| *unit >= f32::MIN_POSITIVE)
            && bias.iter().zip(&units).all(|(bias, unit)| f64::from(*bias / *unit).abs() < f64::from(i32::MAX));
        if !fits {
            return Ok(self.edit.constant(&format!("{stem}.bias"), &Tensor::from_vec([bias.len()], bias.to_vec())?));
        }
        let integers: Vec<i32> = bias
            .iter()
            .zip(&units)
            .map(|(bias, unit)| (f64::from(*bias) / f64::from(*unit)).round_ties_even() as i32)
            .collect();
        let values = self.edit.constant(&format!("{stem}.bias.int32"), &Tensor::from_vec([bias.len()], integers)?);
        let scale = self.edit.constant(&format!("{stem}.bias.scale"), &Tensor::from_vec([bias.len()], units)?);
        let zeros = Tensor::from_vec([bias.len()], vec![0i32; bias.len()])?;
        let zero = self.edit.constant(&format!("{stem}.bias.zero"), &zeros);
        Ok(self.dequantise(&format!("{stem}.bias"), &[&values, &scale, &zero], Some(0)))
    }

    /// Constants that are added or multiplied to integers.
    fn constants(&mut self, plan: &Plan) -> Result<(), CompressError> {
        for &index in &plan.computed {
            let Some(node) = self.edit.node(index).filter(|node| matches!(node.op_type(), "Add" | "Mul")).cloned()
            else {
                continue;
            };
            for (slot, name) in node.input.iter().enumerate() {
                let Some((shape, values)) = self.edit.floats(name) else { continue };
                let (low, high) = values.iter().fold((0f32, 0f32), |(low, high), v| (low.min(*v), high.max(*v)));
                let steps = crate::range::Range::new(low, high).steps();
                let stored = self.bytes(name, shape, &values, steps)?;
                self.edit.set_input(index, slot, &stored);
            }
        }
        Ok(())
    }

    fn bytes(&mut self, stem: &str, shape: Vec<usize>, values: &[f32], steps: Steps) -> Result<String, CompressError> {
        let unsigned: Vec<u8> = values.iter().map(|value| steps.quantise(*value)).collect();
        let tensor = match self.spec.activations {
            Activations::U8 => Tensor::from_vec(shape, unsigned)?,
            Activations::S8 => {
                Tensor::from_vec(shape, unsigned.into_iter().map(|v| (i16::from(v) - 128) as i8).collect())?
            }
        };
        let values = self.edit.constant(&format!("{stem}.bytes"), &tensor);
        let (scale, zero) = self.steps(stem, steps)?;
        Ok(self.dequantise(stem, &[&values, &scale, &zero], None))
    }

    fn steps(&mut self, stem: &str, steps: Steps) -> Result<(String, String), CompressError> {
        let scale = self.edit.constant(&format!("{stem}.scale"), &Tensor::from_vec([], vec![steps.scale])?);
        let zero = self.edit.constant(&format!("{stem}.zero"), &steps.zero_tensor(self.spec.activations)?);
        Ok((scale, zero))
    }

    /// Relu and Clip go: a range from 0 cuts off what is below. Returns what stands for which result now.
    fn absorb(&mut self, plan: &Plan) -> HashMap<String, String> {
        let graph = self.edit.model.graph_mut();
        let mut absorbed = HashMap::new();
        for (&before, &clip) in &plan.absorbed {
            let result = graph.node.get_mut(clip).and_then(|clip| {
                clip.input.clear();
                clip.op_type = None;
                clip.output.pop()
            });
            let output = graph.node.get_mut(before).and_then(|node| node.output.first_mut());
            if let (Some(result), Some(output)) = (result, output) {
                absorbed.insert(std::mem::replace(output, result.clone()), result);
            }
        }
        graph.node.retain(|node| node.op_type.is_some());
        absorbed
    }

    /// Puts a pair behind every planned value, and lets its readers read what comes out.
    fn values(&mut self, plan: &Plan) -> Result<BTreeMap<String, String>, CompressError> {
        let kept = kept_names(self.edit.model.graph());
        let mut renamed = BTreeMap::new();
        for (name, range) in &plan.values {
            let (scale, zero) = self.steps(name, range.steps())?;
            let integers = self.edit.fresh(&format!("{name}.integers"));
            let fresh = self.edit.fresh(&format!("{name}.dequantised"));
            let (before, after) = if kept.contains(name) { (fresh, name.clone()) } else { (name.clone(), fresh) };
            for node in &mut self.edit.model.graph_mut().node {
                let renames: &mut [(&mut Vec<String>, &String)] =
                    &mut [(&mut node.input, &after), (&mut node.output, &before)];
                for (names, to) in renames {
                    names.iter_mut().filter(|other| *other == name).for_each(|other| other.clone_from(to));
                }
            }
            let (quantise, dequantise) =
                (self.edit.fresh(&format!("{name}.quantise")), self.edit.fresh(&format!("{name}.dequantise")));
            self.made.push(node("QuantizeLinear", quantise, &[&before, &scale, &zero], &[&integers], Vec::new()));
            self.made.push(node("DequantizeLinear", dequantise, &[&integers, &scale, &zero], &[&after], Vec::new()));
            renamed.insert(name.clone(), after);
        }
        Ok(renamed)
    }
}

/// Values whose dequantised numbers must keep their names: callers know a result by it, and so does a branch or loop. What callers give keeps its
/// own.
fn kept_names(graph: &GraphProto) -> HashSet<String> {
    let mut kept: HashSet<String> = graph.output.iter().map(|output| output.name().to_owned()).collect();
    for within in graph.node.iter().flat_map(|node| &node.attribute).flat_map(walk::subgraphs) {
        walk::nodes_of(&within.node, &mut |node| kept.extend(node.input.iter().cloned()));
        kept.extend(within.output.iter().map(|output| output.name().to_owned()));
    }
    for input in &graph.input {
        kept.remove(input.name());
    }
    kept
}

/// Scales with which a bias stays within 32 bits, with room for what is added to it.
fn least_scales(bias: &[f32], steps: Steps) -> Vec<f32> {
    bias.iter().map(|bias| bias.abs() / steps.scale / (1u32 << 30) as f32).collect()
}

fn corrected(bias: Option<Vec<f32>>, error: Option<Vec<f64>>, channels: usize) -> Option<Vec<f32>> {
    let Some(error) = error.filter(|error| error.len() == channels) else { return bias };
    let bias = bias.unwrap_or_else(|| vec![0.0; channels]);
    Some(bias.iter().zip(error).map(|(bias, error)| (f64::from(*bias) - error) as f32).collect())
}

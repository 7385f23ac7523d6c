//! Puts our operators in the place of what a graph's composites name. Values are plain here: [`super::layout`] follows.

use std::collections::{HashMap, HashSet};

use edgeward_graph::{
    DataType, Dimension, Inferred, Links, Model,
    proto::{AttributeProto, GraphProto, NodeProto},
};

use super::{super::operators, image};

/// Puts operators of our own beside the graph's nodes and takes those away whose outputs they make.
pub(super) fn replace(model: &mut Model, types: &Inferred, composites: &[NodeProto]) {
    let select =
        Select { model, graph: model.graph(), types, links: Links::of(model.graph()), trained: trained(composites) };
    let mut made: HashSet<String> = HashSet::new();
    let mut nodes = Vec::new();
    for composite in composites {
        for mut node in select.operators(composite) {
            // Two composites may share a part: the sum of a gradient that two of them take.
            for name in node.output.iter_mut().filter(|name| made.contains(*name)) {
                *name = format!("{name}/{}{SPARE}", nodes.len());
            }
            if select.fits(&node) {
                made.extend(node.output.iter().cloned());
                nodes.push(node);
            }
        }
    }
    let graph = model.graph_mut();
    graph.node.retain(|node| !node.output.iter().any(|name| made.contains(name)));
    graph.node.append(&mut nodes);
}

/// Normalisations by the batch, by the name of their output.
fn trained(composites: &[NodeProto]) -> HashMap<&str, &NodeProto> {
    let of_batch = composites.iter().filter(|c| c.op_type() == "BatchNormalizationTraining");
    of_batch.filter_map(|c| Some((c.output.first()?.as_str(), c))).collect()
}

struct Select<'a> {
    model: &'a Model,
    graph: &'a GraphProto,
    types: &'a Inferred,
    links: Links<'a>,
    trained: HashMap<&'a str, &'a NodeProto>,
}

/// The parts of a gradient told as one operation.
struct Gradient<'a> {
    inputs: &'a [String],
    output: &'a str,
    of_output: &'a str,
    gradients: &'a [String],
}

impl<'a> Gradient<'a> {
    /// Of an operator with one output that has a gradient.
    fn of(composite: &'a NodeProto) -> Option<Self> {
        let (count, all) = (composite.output.len(), composite.input.len());
        let outputs = all.checked_sub(count)? / 2;
        let this = Self {
            inputs: composite.input.get(..count)?,
            output: composite.input.get(count)?,
            of_output: composite.input.get(count + outputs)?,
            gradients: &composite.output,
        };
        (!this.of_output.is_empty()).then_some(this)
    }

    fn x(&self, index: usize) -> &'a str {
        self.inputs.get(index).map_or("", String::as_str)
    }

    fn d(&self, index: usize) -> Option<&'a str> {
        self.gradients.get(index).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// Names of the first three inputs' gradients, spare ones for those that nobody asked for.
    fn first_three(&self) -> [String; 3] {
        let spare = |index: usize| format!("{}/{index}{SPARE}", self.of_output);
        [0, 1, 2].map(|index| self.d(index).map_or_else(|| spare(index), str::to_owned))
    }
}

/// A node of our own.
pub(super) fn node(kind: &str, inputs: &[&str], outputs: &[&str], attributes: Vec<AttributeProto>) -> NodeProto {
    let names = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect();
    NodeProto {
        op_type: Some(kind.to_owned()),
        domain: Some(operators::domain().to_owned()),
        name: outputs.first().map(|name| format!("{name}/{kind}")),
        input: names(inputs),
        output: names(outputs),
        attribute: attributes,
        ..NodeProto::default()
    }
}

impl Select<'_> {
    /// Its inputs are there, and each of its outputs is made by a node that makes nothing else.
    fn fits(&self, node: &NodeProto) -> bool {
        let alone = |name: &String| {
            let producer = self.links.producer(name).and_then(|index| self.graph.node.get(index));
            producer.is_some_and(|node| node.output.len() == 1)
        };
        let there = |name: &String| {
            self.links.producer(name).is_some()
                || self.graph.input.iter().any(|input| input.name() == name)
                || self.graph.initializer.iter().any(|tensor| tensor.name() == name)
        };
        let spare = |name: &String| name.ends_with(SPARE);
        node.input.iter().all(there)
            && node.output.iter().all(|name| spare(name) || alone(name))
            && node.output.iter().all(|name| !node.input.contains(name))
            && node.output.iter().any(|name| !spare(name))
    }

    /// What stands for a composite, in whole or in part.
    fn operators(&self, composite: &NodeProto) -> Vec<NodeProto> {
        let found = match composite.op_type() {
            "BatchNormalizationTraining" => self.normalisation(composite),
            "SgdUpdate" => self.update(composite, "Sgd"),
            "AdamUpdate" | "AdamWUpdate" => self.update(composite, "Adam"),
            "ConvExampleGradients" => self.example_gradients(composite),
            kind => match Gradient::of(composite) {
                None => None,
                Some(gradient) => match kind {
                    "ConvGradient" => return self.convolution(composite, &gradient),
                    "BatchNormalizationGradient" => self.normalisation_gradient(&gradient),
                    "ReluGradient" => self.bounded(&gradient, 0.0, f32::INFINITY),
                    "ClipGradient" => self.clip(&gradient),
                    "MaxPoolGradient" => self.max_pool(composite, &gradient),
                    "GlobalAveragePoolGradient" => self.average(&gradient),
                    "LayerNormalizationGradient" => self.layer(composite, &gradient),
                    "SoftmaxGradient" => self.softmax(composite, &gradient),
                    "GeluGradient" => self.gelu(composite, &gradient),
                    "GatherGradient" => self.gather(composite, &gradient),
                    _ => None,
                },
            },
        };
        found.into_iter().collect()
    }

    fn is_float(&self, name: &str) -> bool {
        self.types.of(name).dtype == Some(DataType::Float32)
    }

    fn normalisation(&self, told: &NodeProto) -> Option<NodeProto> {
        let ([x, scale, bias], [y, mean, variance]) = (told.input.as_slice(), told.output.as_slice()) else {
            return None;
        };
        image(self.types, x)?;
        let epsilon = told.attr("epsilon").cloned().unwrap_or_else(|| AttributeProto::of_float("epsilon", 1e-5));
        Some(node("BatchNorm", &[x, scale, bias], &[y, mean, variance], vec![epsilon]))
    }

    fn normalisation_gradient(&self, gradient: &Gradient<'_>) -> Option<NodeProto> {
        let told = *self.trained.get(gradient.output)?;
        let own = self.normalisation(told)?;
        let ([x, scale, _], [_, mean, variance]) = (own.input.as_slice(), own.output.as_slice()) else { return None };
        let outputs = gradient.first_three();
        let outputs = outputs.each_ref().map(String::as_str);
        Some(node("BatchNormGradient", &[gradient.of_output, x, scale, mean, variance], &outputs, own.attribute))
    }

    fn convolution(&self, told: &NodeProto, gradient: &Gradient<'_>) -> Vec<NodeProto> {
        let Some(attributes) = convolution_attributes(self.types, told, gradient.x(0), gradient.x(1)) else {
            return Vec::new();
        };
        let (Some([_, height, width]), Some(weight)) =
            (image(self.types, gradient.x(0)), self.types.of(gradient.x(1)).fixed())
        else {
            return Vec::new();
        };
        let mut nodes = Vec::new();
        if let Some(dx) = gradient.d(0) {
            let mut attributes = attributes.clone();
            attributes.push(AttributeProto::of_ints("size", [height as i64, width as i64]));
            nodes.push(node("ConvInputGradient", &[gradient.of_output, gradient.x(1)], &[dx], attributes));
        }
        if let Some(dw) = gradient.d(1) {
            let attributes = weight_attributes(attributes, &weight);
            nodes.push(node("ConvWeightGradient", &[gradient.x(0), gradient.of_output], &[dw], attributes));
        }
        nodes
    }

    /// The gradients that each example has by the weight of a convolution in one group.
    fn example_gradients(&self, told: &NodeProto) -> Option<NodeProto> {
        let ([x, w, g], [dw]) = (told.input.as_slice(), told.output.as_slice()) else { return None };
        if told.attr_int("group").unwrap_or(1) != 1 {
            return None;
        }
        let attributes = convolution_attributes(self.types, told, x, w)?;
        let mut attributes = weight_attributes(attributes, &self.types.of(w).fixed()?);
        attributes.push(AttributeProto::of_int("each_image", 1));
        Some(node("ConvWeightGradient", &[x, g], &[dw], attributes))
    }

    fn bounded(&self, gradient: &Gradient<'_>, low: f32, high: f32) -> Option<NodeProto> {
        let dx = gradient.d(0).filter(|_| self.is_float(gradient.output))?;
        let bounds = vec![AttributeProto::of_float("low", low), AttributeProto::of_float("high", high)];
        Some(node("ReluGradient", &[gradient.of_output, gradient.output], &[dx], bounds))
    }

    fn clip(&self, gradient: &Gradient<'_>) -> Option<NodeProto> {
        let low = constant(self.model, gradient.x(1), f32::NEG_INFINITY)?;
        let high = constant(self.model, gradient.x(2), f32::INFINITY)?;
        self.bounded(gradient, low, high)
    }

    fn max_pool(&self, told: &NodeProto, gradient: &Gradient<'_>) -> Option<NodeProto> {
        image(self.types, gradient.x(0))?;
        let (dx, attributes) = (gradient.d(0)?, pool_attributes(told)?);
        let inputs = [gradient.of_output, gradient.x(0), gradient.output];
        Some(node("MaxPoolGradient", &inputs, &[dx], attributes))
    }

    fn average(&self, gradient: &Gradient<'_>) -> Option<NodeProto> {
        let [_, height, width] = image(self.types, gradient.x(0))?;
        let size = AttributeProto::of_ints("size", [height as i64, width as i64]);
        Some(node("GlobalAveragePoolGradient", &[gradient.of_output], &[gradient.d(0)?], vec![size]))
    }

    /// True where `axis` of the node is the last of `x`.
    fn is_last(&self, told: &NodeProto, x: &str) -> bool {
        let rank = self.types.of(x).shape.map_or(0, |shape| shape.len() as i64);
        let axis = told.attr_int("axis").unwrap_or(-1);
        rank > 0 && (axis == -1 || axis == rank - 1) && self.is_float(x)
    }

    fn layer(&self, told: &NodeProto, gradient: &Gradient<'_>) -> Option<NodeProto> {
        let x = gradient.x(0);
        let last = self.types.of(x).shape.and_then(|shape| shape.last().cloned());
        let whole =
            self.types.of(gradient.x(1)).shape.is_some_and(|shape| shape.len() == 1 && shape.first() == last.as_ref());
        if !self.is_last(told, x) || !whole || gradient.x(2).is_empty() || !matches!(last, Some(Dimension::Fixed(_))) {
            return None;
        }
        let outputs = gradient.first_three();
        let outputs = outputs.each_ref().map(String::as_str);
        let epsilon = AttributeProto::of_float("epsilon", told.attr_float("epsilon").unwrap_or(1e-5));
        Some(node("LayerNormGradient", &[gradient.of_output, x, gradient.x(1)], &outputs, vec![epsilon]))
    }

    fn softmax(&self, told: &NodeProto, gradient: &Gradient<'_>) -> Option<NodeProto> {
        let dx = gradient.d(0).filter(|_| self.is_last(told, gradient.x(0)))?;
        Some(node("SoftmaxGradient", &[gradient.of_output, gradient.output], &[dx], Vec::new()))
    }

    fn gelu(&self, told: &NodeProto, gradient: &Gradient<'_>) -> Option<NodeProto> {
        let exact = told.attr_text("approximate").unwrap_or("none") == "none" && self.is_float(gradient.x(0));
        Some(node(
            "GeluGradient",
            &[gradient.of_output, gradient.x(0)],
            &[gradient.d(0).filter(|_| exact)?],
            Vec::new(),
        ))
    }

    /// Rows of a table.
    fn gather(&self, told: &NodeProto, gradient: &Gradient<'_>) -> Option<NodeProto> {
        let table = self.types.of(gradient.x(0)).fixed()?;
        let &[rows, _] = table.as_slice() else { return None };
        let long = self.types.of(gradient.x(1)).dtype == Some(DataType::Int64);
        let dx = gradient
            .d(0)
            .filter(|_| long && told.attr_int("axis").unwrap_or(0) == 0 && self.is_float(gradient.x(0)))?;
        let rows = AttributeProto::of_int("rows", rows as i64);
        Some(node("GatherGradient", &[gradient.of_output, gradient.x(1)], &[dx], vec![rows]))
    }

    fn update(&self, told: &NodeProto, kind: &str) -> Option<NodeProto> {
        let expected = if kind == "Sgd" { (4, 2) } else { (7, 3) };
        if (told.input.len(), told.output.len()) != expected || !told.input.iter().all(|name| self.is_float(name)) {
            return None;
        }
        let mut attributes = told.attribute.clone();
        for attribute in attributes.iter_mut().filter(|a| a.name() == "nesterov") {
            *attribute = AttributeProto::of_int("nesterov", i64::from(attribute.f.unwrap_or(0.0) != 0.0));
        }
        if kind == "Adam" {
            attributes.push(AttributeProto::of_int("decoupled", i64::from(told.op_type() == "AdamWUpdate")));
        }
        let (input, output) = (told.input.clone(), told.output.clone());
        Some(NodeProto { input, output, ..node(kind, &[], &[], attributes) })
    }
}

/// A number that the graph holds; `absent` where no name is given.
pub(super) fn constant(model: &Model, name: &str, absent: f32) -> Option<f32> {
    if name.is_empty() {
        return Some(absent);
    }
    let message = model.graph().initializer.iter().find(|tensor| tensor.name() == name)?;
    let tensor = model.tensor(message).ok()?;
    tensor.values::<f32>().ok()?.first().copied()
}

/// Ends the names of outputs that nobody asked for.
const SPARE: &str = "/spare";

/// Attributes of a convolution with those of its weight, [outputs, inputs, height, width].
fn weight_attributes(mut attributes: Vec<AttributeProto>, weight: &[usize]) -> Vec<AttributeProto> {
    let kernel: Vec<i64> = weight.iter().skip(2).map(|&size| size as i64).collect();
    attributes.push(AttributeProto::of_ints("kernel_shape", kernel));
    attributes.push(AttributeProto::of_int("outputs", weight.first().map_or(0, |&size| size as i64)));
    attributes
}

/// Attributes of our convolutions; none for those that they do not do.
pub(super) fn convolution_attributes(
    types: &Inferred,
    told: &NodeProto,
    x: &str,
    w: &str,
) -> Option<Vec<AttributeProto>> {
    let [channels, ..] = image(types, x)?;
    let weight = types.of(w);
    let sizes = weight.fixed().filter(|_| weight.dtype == Some(DataType::Float32))?;
    let &[outputs, inner, _, _] = sizes.as_slice() else { return None };
    let group = told.attr_int("group").unwrap_or(1);
    let depthwise = group as usize == channels && outputs == channels && inner == 1;
    if (group != 1 && !depthwise) || told.attr_text("auto_pad").unwrap_or("NOTSET") != "NOTSET" {
        return None;
    }
    let list = |name: &str, default: &[i64]| {
        let given = told.attr_ints(name).filter(|list| !list.is_empty()).unwrap_or(default);
        AttributeProto::of_ints(name, given)
    };
    Some(vec![
        list("strides", &[1, 1]),
        list("pads", &[0, 0, 0, 0]),
        list("dilations", &[1, 1]),
        AttributeProto::of_int("group", group),
        AttributeProto::of_int("channels", channels as i64),
    ])
}

/// Attributes of our pools; none for those that they do not do.
pub(super) fn pool_attributes(told: &NodeProto) -> Option<Vec<AttributeProto>> {
    let plain = told.attr_int("ceil_mode").unwrap_or(0) == 0
        && told.attr_text("auto_pad").unwrap_or("NOTSET") == "NOTSET"
        && told.attr_ints("dilations").is_none_or(|list| list.iter().all(|&d| d == 1))
        && told.output.get(1).is_none_or(String::is_empty);
    let kernel = told.attr_ints("kernel_shape").filter(|_| plain)?;
    let list = |name: &str, default: &[i64]| {
        let given = told.attr_ints(name).filter(|list| !list.is_empty()).unwrap_or(default);
        AttributeProto::of_ints(name, given)
    };
    Some(vec![AttributeProto::of_ints("kernel_shape", kernel), list("strides", &[1, 1]), list("pads", &[0, 0, 0, 0])])
}

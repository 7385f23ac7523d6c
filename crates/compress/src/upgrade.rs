//! Older operator sets raised to 13, the first whose quantisation is by channel.
//!
//! From 7 on: before, operators broadcast by attributes. Which operators changed, and how, is the ONNX specification's
//! change log (onnx/docs/Changelog.md).

use std::collections::HashSet;

use edgeward_graph::{
    Model, Tensor,
    proto::{AttributeProto, GraphProto, NodeProto, TensorProto},
    tensor_proto,
};

use crate::CompressError;

/// The operator set that quantised graphs are written in, where the model's own is not newer.
pub(crate) const OPSET: i64 = 13;
/// The oldest that is raised.
const OLDEST: i64 = 7;
/// The file format that goes with [`OPSET`].
const IR_VERSION: i64 = 7;

/// Raises the standard operator set to at least 13. Errors: a set before 7, or an operator that has no equal there.
pub(crate) fn upgrade(model: &mut Model) -> Result<(), CompressError> {
    let from = model.opset();
    if from < OLDEST {
        let reason = format!("is older than what can be raised; expected {OLDEST} or newer, export the model again");
        return Err(CompressError::unsupported(format!("operator set `{from}`"), reason));
    }
    let proto = model.proto_mut();
    let ir_version = proto.ir_version();
    if let Some(graph) = proto.graph.as_mut() {
        // Exporters of old listed every initialiser among the inputs; nobody means weights to be given.
        let names: HashSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
        graph.input.retain(|input| !names.contains(input.name()));
    }
    proto.ir_version = Some(ir_version.max(IR_VERSION));
    if from >= OPSET {
        return Ok(());
    }
    let shrunk = shrunk(model);
    let proto = model.proto_mut();
    if let Some(graph) = proto.graph.as_mut() {
        raise(graph, from, &shrunk)?;
    }
    for entry in &mut proto.opset_import {
        if matches!(entry.domain(), "" | "ai.onnx") {
            entry.version = Some(OPSET);
        }
    }
    Ok(())
}

/// What Resize makes smaller, by constant scales.
fn shrunk(model: &Model) -> HashSet<String> {
    let graph = model.graph();
    let scales = |name: &str| {
        let makes = |node: &&NodeProto| node.op_type() == "Constant" && node.output.first().is_some_and(|o| o == name);
        let stored = graph.initializer.iter().find(|tensor| tensor.name() == name);
        let computed = || graph.node.iter().find(makes)?.attr("value")?.t.as_ref();
        let scales = model.tensor(stored.or_else(computed)?).ok()?;
        Some(scales.values::<f32>().ok()?.into_owned())
    };
    let resized = graph.node.iter().filter(|node| node.is_standard() && node.op_type() == "Resize");
    let smaller = resized.filter(|node| {
        let scales = node.input.get(1).and_then(|name| scales(name)).unwrap_or_default();
        scales.iter().all(|scale| *scale <= 1.0) && scales.iter().any(|scale| *scale < 1.0)
    });
    smaller.filter_map(|node| node.output.first().cloned()).collect()
}

fn raise(graph: &mut GraphProto, from: i64, shrunk: &HashSet<String>) -> Result<(), CompressError> {
    let mut made = Made { constants: Vec::new(), number: 0, shrunk };
    let nodes = std::mem::take(&mut graph.node);
    for mut node in nodes {
        for inner in node.attribute.iter_mut().flat_map(|a| a.g.iter_mut().chain(&mut a.graphs)) {
            raise(inner, from, shrunk)?;
        }
        if node.is_standard() {
            made.node(node, from, &mut graph.node)?;
        } else {
            graph.node.push(node);
        }
    }
    graph.initializer.extend(made.constants);
    Ok(())
}

/// What the raised nodes need beside themselves.
struct Made<'a> {
    constants: Vec<TensorProto>,
    number: usize,
    shrunk: &'a HashSet<String>,
}

impl Made<'_> {
    fn name(&mut self, node: &NodeProto, what: &str) -> String {
        self.number += 1;
        let first = node.output.first().map_or("", String::as_str);
        format!("{first}.{what}.{}", self.number)
    }

    fn constant(&mut self, node: &NodeProto, what: &str, values: &Tensor) -> String {
        let name = self.name(node, what);
        self.constants.push(tensor_proto(&name, values));
        name
    }

    /// Attribute `name` of integers becomes input `slot`.
    fn ints_to_input(&mut self, node: &mut NodeProto, name: &str, slot: usize) -> Result<(), CompressError> {
        let Some(values) = node.attr_ints(name).map(<[i64]>::to_vec) else { return Ok(()) };
        let constant = self.constant(node, name, &Tensor::from_vec([values.len()], values)?);
        node.attribute.retain(|attribute| attribute.name() != name);
        put(node, slot, constant);
        Ok(())
    }

    /// Attribute `name` becomes input `slot`, a number.
    fn float_to_input(&mut self, node: &mut NodeProto, name: &str, slot: usize) -> Result<(), CompressError> {
        let Some(value) = node.attr_float(name) else { return Ok(()) };
        let constant = self.constant(node, name, &Tensor::from_vec([], vec![value])?);
        node.attribute.retain(|attribute| attribute.name() != name);
        put(node, slot, constant);
        Ok(())
    }

    fn node(&mut self, mut node: NodeProto, from: i64, out: &mut Vec<NodeProto>) -> Result<(), CompressError> {
        match node.op_type() {
            "Squeeze" | "Unsqueeze" | "ReduceSum" => self.ints_to_input(&mut node, "axes", 1)?,
            "Split" => self.ints_to_input(&mut node, "split", 1)?,
            "Clip" if from < 11 => {
                self.float_to_input(&mut node, "min", 1)?;
                self.float_to_input(&mut node, "max", 2)?;
            }
            "Pad" if from < 11 => {
                self.ints_to_input(&mut node, "pads", 1)?;
                self.float_to_input(&mut node, "value", 2)?;
            }
            "Slice" if from < 10 => {
                self.ints_to_input(&mut node, "starts", 1)?;
                self.ints_to_input(&mut node, "ends", 2)?;
                self.ints_to_input(&mut node, "axes", 3)?;
            }
            "TopK" if from < 10 => {
                let k = node.attr_int("k").unwrap_or(1);
                let constant = self.constant(&node, "k", &Tensor::from_vec([1], vec![k])?);
                node.attribute.retain(|attribute| attribute.name() != "k");
                put(&mut node, 1, constant);
            }
            "Upsample" => self.upsample(&mut node)?,
            "Resize" if from < 11 => {
                let smaller = node.output.first().is_some_and(|made| self.shrunk.contains(made));
                resize(&mut node, if smaller { "ceil" } else { "floor" });
            }
            "Dropout" if from < 12 => node.attribute.clear(),
            "Scatter" => node.op_type = Some("ScatterElements".to_owned()),
            "Softmax" | "LogSoftmax" | "Hardmax" => return self.softmax(node, out),
            "Scan" if from < 9 => {
                let reason = "has batches of its own before operator set 9; export the model again";
                return Err(CompressError::unsupported(format!("node `{}` (Scan)", node.name()), reason));
            }
            _ => {}
        }
        out.push(node);
        Ok(())
    }

    fn upsample(&mut self, node: &mut NodeProto) -> Result<(), CompressError> {
        if let Some(scales) = node.attr("scales").map(|attribute| attribute.floats.clone()) {
            let constant = self.constant(node, "scales", &Tensor::from_vec([scales.len()], scales)?);
            node.attribute.retain(|attribute| attribute.name() != "scales");
            put(node, 1, constant);
        }
        node.op_type = Some("Resize".to_owned());
        resize(node, "floor");
        Ok(())
    }

    /// Before 13 everything from `axis` on was one dimension.
    fn softmax(&mut self, mut node: NodeProto, out: &mut Vec<NodeProto>) -> Result<(), CompressError> {
        let axis = node.attr_int("axis").unwrap_or(1);
        node.attribute.retain(|attribute| attribute.name() != "axis");
        node.attribute.push(AttributeProto::of_int("axis", -1));
        if axis == -1 {
            out.push(node);
            return Ok(());
        }
        let (Some(input), Some(output)) = (node.input.first().cloned(), node.output.first().cloned()) else {
            out.push(node);
            return Ok(());
        };
        let (shape, flat, soft) = (self.name(&node, "shape"), self.name(&node, "flat"), self.name(&node, "soft"));
        let make = |op: &str, inputs: &[&str], output: &str, attribute| {
            crate::edit::node(op, format!("{output}.{op}"), inputs, &[output], attribute)
        };
        out.push(make("Shape", &[&input], &shape, Vec::new()));
        out.push(make("Flatten", &[&input], &flat, vec![AttributeProto::of_int("axis", axis)]));
        node.input = vec![flat];
        node.output = vec![soft.clone()];
        out.push(node);
        out.push(make("Reshape", &[&soft, &shape], &output, Vec::new()));
        Ok(())
    }
}

/// Before 11 coordinates were scaled without an offset. Which one is the nearest was left open: engines take the one below, and the one above of
/// what becomes smaller.
fn resize(node: &mut NodeProto, nearest: &str) {
    if node.input.len() == 2 {
        node.input.insert(1, String::new());
    }
    node.attribute.push(AttributeProto::of_text("coordinate_transformation_mode", "asymmetric"));
    if node.attr_text("mode").unwrap_or("nearest") == "nearest" {
        node.attribute.push(AttributeProto::of_text("nearest_mode", nearest));
    }
}

fn put(node: &mut NodeProto, slot: usize, name: String) {
    if node.input.len() <= slot {
        node.input.resize(slot + 1, String::new());
    }
    if let Some(input) = node.input.get_mut(slot) {
        *input = name;
    }
}

//! How much memory the results of a run take, before the run.
//!
//! What is counted are the results of nodes, from their node to their last use, with the largest of those within a loop's or a
//! branch's graph. An engine that fuses nodes or works in place takes less; what it needs beside the results is left out.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use prost::Message as _;

use crate::{
    DataType, Dimension, Inferred, Links, Model, ValueType,
    codec::{clear_values, declared_count},
    cost::is_counted,
    node::place,
    proto::{GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto, type_proto},
    walk,
};

/// The largest moment of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// All results that are in use at it, in bytes.
    pub bytes: u64,
    /// The node that made the largest of them.
    pub place: String,
}

/// The largest moment of the main graph with the sizes of `inferred`; sizes that are not known count nothing. `element_bytes` says what
/// an element of a type takes.
pub fn footprint(model: &Model, inferred: &Inferred, element_bytes: fn(DataType) -> u64) -> Footprint {
    let graph = model.graph();
    let last = last_uses(graph);
    let bytes = |name: &str| value_bytes(&inferred.of(name), element_bytes);
    let mut live: HashMap<&str, Live> = HashMap::new();
    let (mut now, mut most, mut largest) = (0u64, 0u64, 0);
    for (index, node) in graph.node.iter().enumerate() {
        let made: u64 = results(node).map(bytes).fold(0, u64::saturating_add);
        let ends = |name: &&str| last.get(name) == Some(&index);
        let ending: HashSet<&str> =
            used(node).into_iter().filter(|name| live.contains_key(name)).filter(ends).collect();
        // The result may lie where an operand of the same size did that nobody needs any more.
        let reused = ending.iter().any(|name| live.get(name).is_some_and(|value| value.bytes == made));
        let added = inner_most(node, &bytes).saturating_add(if reused { 0 } else { made });
        if now.saturating_add(added) > most {
            most = now.saturating_add(added);
            let own = Live { bytes: added, made_by: index };
            largest = live.values().chain([&own]).max_by_key(|value| value.bytes).map_or(index, |value| value.made_by);
        }
        for name in results(node).filter(|name| last.contains_key(name)) {
            now = now.saturating_add(bytes(name));
            live.insert(name, Live { bytes: bytes(name), made_by: index });
        }
        for name in ending {
            now = now.saturating_sub(live.remove(name).map_or(0, |value| value.bytes));
        }
    }
    let place = graph.node.get(largest).map(|node| place(node, largest)).unwrap_or_default();
    Footprint { bytes: most, place }
}

/// A result in use.
struct Live {
    bytes: u64,
    made_by: usize,
}

/// All sizes of a value in bytes; 0 where one is not known.
fn value_bytes(value: &ValueType, element_bytes: fn(DataType) -> u64) -> u64 {
    let (Some(dtype), Some(dims)) = (value.dtype, &value.shape) else { return 0 };
    let mut count = 1u64;
    for dim in dims {
        match dim {
            Dimension::Fixed(size) => count = count.saturating_mul(*size as u64),
            Dimension::Symbol(_) | Dimension::Unknown => return 0,
        }
    }
    count.saturating_mul(element_bytes(dtype))
}

fn results(node: &NodeProto) -> impl Iterator<Item = &str> {
    node.output.iter().map(String::as_str).filter(|name| !name.is_empty())
}

/// The largest result within the graphs of a node.
fn inner_most(node: &NodeProto, bytes: &dyn Fn(&str) -> u64) -> u64 {
    let mut most = 0;
    for graph in node.attribute.iter().flat_map(walk::subgraphs) {
        walk::nodes_of(&graph.node, &mut |inner| most = results(inner).map(bytes).fold(most, u64::max));
    }
    most
}

/// The inputs of a node and of all nodes in its graphs.
fn used(node: &NodeProto) -> Vec<&str> {
    let mut names = Vec::new();
    walk::nodes_of(std::slice::from_ref(node), &mut |node| names.extend(node.input.iter().map(String::as_str)));
    let graphs = node.attribute.iter().flat_map(walk::subgraphs);
    names.extend(graphs.flat_map(|graph| &graph.output).map(ValueInfoProto::name));
    names
}

/// The last node that uses each value; one after the last for outputs of the graph.
fn last_uses(graph: &GraphProto) -> HashMap<&str, usize> {
    let nodes = graph.node.iter().enumerate();
    let mut last: HashMap<&str, usize> =
        nodes.flat_map(|(at, node)| used(node).into_iter().map(move |n| (n, at))).collect();
    last.extend(graph.output.iter().map(|output| (output.name(), graph.node.len())));
    last
}

/// A node whose result has a size that its inputs' contents say, not their sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenSize {
    /// Its first output.
    pub output: String,
    /// The inputs that say it.
    pub told_by: Vec<String>,
}

/// Which inputs of an operator say how large its result is.
fn telling(op: &str) -> &'static [usize] {
    match op {
        "ConstantOfShape" | "HannWindow" | "HammingWindow" | "BlackmanWindow" => &[0],
        "Expand" | "Tile" | "Pad" | "OneHot" | "Upsample" | "CenterCropPad" | "DFT" => &[1],
        "Range" => &[0, 1, 2],
        "Resize" => &[2, 3],
        "MaxUnpool" => &[2],
        _ => &[],
    }
}

/// The nodes of the main graph whose results have sizes that `inferred` does not know and that contents of their inputs say, in the order
/// of the graph.
pub fn open_sizes(model: &Model, inferred: &Inferred) -> Vec<OpenSize> {
    let open = |node: &&NodeProto| node.output.first().is_some_and(|output| inferred.of(output).fixed().is_none());
    let nodes = model.graph().node.iter().filter(|node| node.is_standard()).filter(open);
    let size = |node: &NodeProto| {
        let told_by = telling(node.op_type()).iter().filter_map(|&i| node.input.get(i)).filter(|name| !name.is_empty());
        let told_by: Vec<String> = told_by.cloned().collect();
        (!told_by.is_empty()).then(|| Some(OpenSize { output: node.output.first()?.clone(), told_by })).flatten()
    };
    nodes.filter_map(size).collect()
}

impl Model {
    /// The model without the contents of tensors that say no sizes: its nodes, types and shapes. It shares no memory with the model.
    pub fn skeleton(&self) -> Self {
        let mut proto = self.proto().clone();
        walk::tensors_mut(&mut proto, &mut |tensor| {
            if declared_count(tensor) > crate::infer::ITEMS_MAX as u64 {
                clear_values(tensor);
            }
        });
        // Texts and tensors that were read share the file's memory, which would be kept for them.
        let own = ModelProto::decode(Bytes::from(proto.encode_to_vec()));
        Self::from_proto(own.unwrap_or(proto))
    }

    /// The part of the model that makes `values`, as a model of the same inputs; none where a type is not known.
    pub fn part(&self, values: &[String], inferred: &Inferred) -> Option<Self> {
        let mut part = self.clone();
        let declared = |name: &String| {
            let elem_type = Some(inferred.of(name).dtype?.to_onnx());
            let tensor = type_proto::Tensor { elem_type, shape: None };
            let kind = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
            Some(ValueInfoProto { name: Some(name.clone()), r#type: Some(kind), ..ValueInfoProto::default() })
        };
        part.graph_mut().output = values.iter().map(declared).collect::<Option<Vec<_>>>()?;
        part.graph_mut().drop_dead_nodes();
        Some(part)
    }
}

/// Of `open`, those whose telling inputs are quickly made, and the others: with products of matrices, convolutions or loops, or from
/// a value whose size is open itself.
pub fn quickly_told(model: &Model, open: Vec<OpenSize>) -> (Vec<OpenSize>, Vec<OpenSize>) {
    let graph = model.graph();
    let links = Links::of(graph);
    let unknown: HashSet<String> = open.iter().map(|size| size.output.clone()).collect();
    let slow = |node: &NodeProto| {
        let loops = matches!(node.op_type(), "Loop" | "Scan" | "If") || !node.is_standard();
        loops || is_counted(node.op_type()) || node.output.iter().any(|output| unknown.contains(output))
    };
    let quick = |size: &OpenSize| {
        let mut seen = HashSet::new();
        let mut names: Vec<&str> = size.told_by.iter().map(String::as_str).collect();
        while let Some(name) = names.pop() {
            let Some(node) = links.producer(name).filter(|_| seen.insert(name)).and_then(|i| graph.node.get(i)) else {
                continue;
            };
            if slow(node) {
                return false;
            }
            names.extend(node.input.iter().map(String::as_str));
        }
        true
    };
    open.into_iter().partition(quick)
}

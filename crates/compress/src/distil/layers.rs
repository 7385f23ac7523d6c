//! Layers that a graph repeats: found by its structure, and a student made of every k-th of them, as Sanh et al. 2019
//! (DistilBERT, section 3) begin theirs.
//!
//! A layer is a run of nodes that equal those of the next one in operators, attributes and shapes of weights. Each may
//! read what the one before it made, its own values, and whatever stands before all of them.

use std::collections::HashMap;

use edgeward_graph::{
    Model,
    proto::{GraphProto, NodeProto},
};
use prost::Message as _;

use super::Pair;
use crate::{
    CompressError,
    edit::{finished, node},
};

/// A student made of a part of its teacher's layers.
#[derive(Clone, Debug)]
pub struct Shortened {
    /// The student, with the teacher's weights.
    pub model: Model,
    /// Layers of the teacher that it keeps, counted from 0.
    pub kept: Vec<usize>,
    /// Layers that the teacher has.
    pub layers: usize,
    /// Values of the student beside those of the teacher whose work they do.
    pub pairs: Vec<Pair>,
}

/// Keeps `count` of the teacher's layers, spread evenly. Errors: a graph that repeats nothing, or too few times, or in a way
/// that no layer can be taken out.
pub fn shorten(teacher: &Model, count: usize) -> Result<Shortened, CompressError> {
    let mut model = teacher.clone();
    model.inline_external()?;
    model.graph_mut().sort_nodes()?;
    let Some(chain) = Chain::of(model.graph()) else {
        let reason = "repeats no layers that could be taken out; name a student of your own with `--student FILE`";
        return Err(CompressError::unsupported("the graph", reason));
    };
    if count == 0 || count >= chain.count {
        let reason =
            format!("is not possible; the graph repeats {} layers, expected 1 to {}", chain.count, chain.count - 1);
        return Err(CompressError::unsupported(format!("a student of `{count}` layers"), reason));
    }
    let kept: Vec<usize> = (0..count).map(|layer| layer * chain.count / count).collect();
    let pairs = chain.pairs(model.graph(), &kept);
    let (layers, shorter) = (chain.count, chain.keep(model.graph(), &kept));
    *model.graph_mut() = shorter;
    Ok(Shortened { model: finished(model)?, kept, layers, pairs })
}

/// What a student's layers stand for, by their order: the i-th of n does what the teacher did up to its `(i + 1) / n`-th
/// part. Nothing where one of both repeats no layers, or the student has more.
pub fn pairs_by_order(student: &Model, teacher: &Model) -> Vec<Pair> {
    let sorted = |model: &Model| {
        let mut graph = model.graph().clone();
        graph.sort_nodes().ok()?;
        Some((Chain::of(&graph)?, graph))
    };
    let (Some((own, own_graph)), Some((other, other_graph))) = (sorted(student), sorted(teacher)) else {
        return Vec::new();
    };
    if own.count > other.count {
        return Vec::new();
    }
    let mut pairs = Vec::new();
    for layer in 0..own.count {
        let last = (layer + 1) * other.count / own.count - 1;
        let hidden = own.carried_names(&own_graph, layer).into_iter().zip(other.carried_names(&other_graph, last));
        let attention = own.softmaxes(&own_graph, layer).into_iter().zip(other.softmaxes(&other_graph, last));
        pairs.extend(hidden.chain(attention).map(|(student, teacher)| Pair { student, teacher }));
    }
    pairs
}

/// Where a value of a layer is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Place {
    /// Node, counted from the layer's first.
    node: usize,
    output: usize,
}

/// Where an input of a layer's node comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Own(Place),
    Before(Place),
    Outside,
}

/// Layers one after the other.
struct Chain {
    /// Index of the first node.
    start: usize,
    /// Nodes of a layer.
    nodes: usize,
    /// Layers.
    count: usize,
    /// What a layer takes from the one before it.
    carried: Vec<Place>,
}

impl Chain {
    /// The repetition that the most nodes are in, and of those cuts the one that carries the least.
    fn of(graph: &GraphProto) -> Option<Self> {
        let signs = signatures(graph);
        let mut runs: Vec<(usize, usize, usize)> = Vec::new();
        for nodes in 1..=signs.len() / 2 {
            let mut first = 0;
            for at in 0..=signs.len() - nodes {
                let same = at + nodes < signs.len() && signs.get(at) == signs.get(at + nodes);
                if same {
                    continue;
                }
                let length = at - first + nodes;
                if at > first && length >= 2 * nodes {
                    runs.push((first, nodes, length));
                }
                first = at + 1;
            }
        }
        runs.sort_by_key(|(_, nodes, length)| (std::cmp::Reverse(length / nodes * nodes), *nodes));
        // Few repetitions are large; the small ones within are no layers.
        runs.into_iter().take(8).find_map(|(first, nodes, length)| {
            let count = length / nodes;
            let cuts = (first..=first + length - nodes * count).take(nodes);
            cuts.filter_map(|start| Self::cut(graph, start, nodes, count)).min_by_key(|chain| chain.carried.len())
        })
    }

    /// The layers from node `start` on; none where they are no chain.
    fn cut(graph: &GraphProto, start: usize, nodes: usize, count: usize) -> Option<Self> {
        let places = places(graph, start, nodes, count);
        let within = graph.node.get(start..start + nodes * count)?;
        let mut forms: Vec<Vec<From>> = Vec::new();
        for (layer, part) in within.chunks(nodes).enumerate() {
            let from = |name: &String| match places.get(name.as_str()) {
                None => Some(From::Outside),
                Some((of, place)) if *of == layer => Some(From::Own(*place)),
                Some((of, place)) if of + 1 == layer => Some(From::Before(*place)),
                Some(_) => None,
            };
            forms.push(part.iter().flat_map(|node| &node.input).map(from).collect::<Option<_>>()?);
        }
        let second = forms.get(1)?;
        // The first layer reads from outside what the others read from the one before.
        let alike = |form: &Vec<From>, first: bool| {
            let same =
                |(a, b): (&From, &From)| a == b || (first && *a == From::Outside && matches!(b, From::Before(_)));
            form.len() == second.len() && form.iter().zip(second).all(same)
        };
        if !forms.iter().enumerate().all(|(layer, form)| alike(form, layer == 0)) {
            return None;
        }
        let last = |name: &str| places.get(name).is_none_or(|(layer, _)| layer + 1 == count);
        let after = graph.node.get(start + nodes * count..)?;
        let read = after.iter().flat_map(|node| &node.input).map(String::as_str);
        if !read.chain(graph.output.iter().map(|output| output.name())).all(last) {
            return None;
        }
        let mut carried: Vec<Place> =
            second.iter().filter_map(|from| if let From::Before(place) = from { Some(*place) } else { None }).collect();
        carried.sort_unstable();
        carried.dedup();
        let weighs = within.iter().take(nodes).any(|node| weighs(graph, node));
        (weighs && !carried.is_empty()).then_some(Self { start, nodes, count, carried })
    }

    fn name<'g>(&self, graph: &'g GraphProto, layer: usize, place: Place) -> Option<&'g str> {
        graph.node.get(self.start + layer * self.nodes + place.node)?.output.get(place.output).map(String::as_str)
    }

    fn carried_names(&self, graph: &GraphProto, layer: usize) -> Vec<String> {
        self.carried.iter().filter_map(|place| Some(self.name(graph, layer, *place)?.to_owned())).collect()
    }

    /// Attention maps of a layer.
    fn softmaxes(&self, graph: &GraphProto, layer: usize) -> Vec<String> {
        let first = self.start + layer * self.nodes;
        let nodes = graph.node.get(first..first + self.nodes).unwrap_or_default();
        let softmax = nodes.iter().filter(|node| node.op_type() == "Softmax");
        softmax.filter_map(|node| node.output.first().cloned()).collect()
    }

    /// Each kept layer stands for itself and those that were taken out after it.
    fn pairs(&self, graph: &GraphProto, kept: &[usize]) -> Vec<Pair> {
        let mut pairs = Vec::new();
        for (at, &layer) in kept.iter().enumerate() {
            let last = kept.get(at + 1).copied().unwrap_or(self.count) - 1;
            let hidden = self.carried_names(graph, layer).into_iter().zip(self.carried_names(graph, last));
            let attention = self.softmaxes(graph, layer).into_iter().zip(self.softmaxes(graph, last));
            pairs.extend(hidden.chain(attention).map(|(student, teacher)| Pair { student, teacher }));
        }
        pairs
    }

    /// The graph with these layers alone, of which the first is one.
    fn keep(&self, graph: &GraphProto, kept: &[usize]) -> GraphProto {
        let places = places(graph, self.start, self.nodes, self.count);
        let before = |layer: usize| kept.iter().copied().filter(|kept| *kept <= layer).max().unwrap_or(0);
        let stands: HashMap<&str, &str> = places
            .iter()
            .filter_map(|(name, (layer, place))| Some((*name, self.name(graph, before(*layer), *place)?)))
            .collect();
        let mut shorter = graph.clone();
        let mut index = 0;
        let layer_of = |index: usize| {
            let at = index.checked_sub(self.start)? / self.nodes;
            (at < self.count).then_some(at)
        };
        shorter.node.retain(|_| {
            index += 1;
            layer_of(index - 1).is_none_or(|layer| kept.contains(&layer))
        });
        for name in shorter.node.iter_mut().flat_map(|node| &mut node.input) {
            if let Some(other) = stands.get(name.as_str()) {
                (*other).clone_into(name);
            }
        }
        for name in graph.output.iter().map(|output| output.name()) {
            // A result keeps the name that callers know.
            if let Some(other) = stands.get(name).filter(|other| **other != name) {
                shorter.node.push(node("Identity", format!("{name}.kept"), &[other], &[name], Vec::new()));
            }
        }
        shorter
    }
}

/// Values made within the layers: which layer, and where in it.
fn places(graph: &GraphProto, start: usize, nodes: usize, count: usize) -> HashMap<&str, (usize, Place)> {
    let mut places = HashMap::new();
    for (at, node) in graph.node.iter().skip(start).take(nodes * count).enumerate() {
        for (output, name) in node.output.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            places.insert(name.as_str(), (at / nodes, Place { node: at % nodes, output }));
        }
    }
    places
}

fn weighs(graph: &GraphProto, node: &NodeProto) -> bool {
    let constant = |name: &String| graph.initializer.iter().any(|tensor| tensor.name() == name);
    matches!(node.op_type(), "Conv" | "Gemm" | "MatMul") && node.input.get(1).is_some_and(constant)
}

/// A number for each node; equal ones are alike in operator, attributes and constants' shapes.
fn signatures(graph: &GraphProto) -> Vec<usize> {
    let shapes: HashMap<&str, (i32, &[i64])> =
        graph.initializer.iter().map(|t| (t.name(), (t.data_type(), t.dims.as_slice()))).collect();
    let mut numbers: HashMap<String, usize> = HashMap::new();
    let mut sign = |node: &NodeProto| {
        let mut text = format!("{} {} {}", node.domain(), node.op_type(), node.output.len());
        for attribute in &node.attribute {
            // What a constant holds may differ by layer, as weights do.
            let held = attribute.t.as_ref().map(|tensor| format!("{} {:?}", tensor.data_type(), tensor.dims));
            text += &held.unwrap_or_else(|| format!("{:?}", attribute.encode_to_vec()));
        }
        for name in &node.input {
            text += &format!(" {:?}", (name.is_empty(), shapes.get(name.as_str())));
        }
        let next = numbers.len();
        *numbers.entry(text).or_insert(next)
    };
    graph.node.iter().map(&mut sign).collect()
}

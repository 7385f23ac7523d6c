//! Changes to a graph that keep it a graph: order, insert, replace, remove, rename, drop what is dead.
//!
//! A subgraph may use values of the graphs around it, so every use is looked for there as well.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
};

use crate::{
    GraphError,
    node::place,
    proto::{GraphProto, NodeProto, ValueInfoProto},
    walk,
};

/// Who makes and who uses each value of one graph, by index into its nodes.
#[derive(Debug, Default)]
pub struct Links<'a> {
    producers: HashMap<&'a str, usize>,
    consumers: HashMap<&'a str, Vec<usize>>,
}

impl<'a> Links<'a> {
    /// Indexes `graph`; a use within a node's subgraphs counts as that node's.
    pub fn of(graph: &'a GraphProto) -> Self {
        let mut links = Self::default();
        for (index, node) in graph.node.iter().enumerate() {
            for output in node.output.iter().filter(|o| !o.is_empty()) {
                links.producers.entry(output).or_insert(index);
            }
            for name in uses(node) {
                let users = links.consumers.entry(name).or_default();
                if users.last() != Some(&index) {
                    users.push(index);
                }
            }
        }
        links
    }

    /// The node that makes `value`; none for inputs, initialisers and unknown names.
    pub fn producer(&self, value: &str) -> Option<usize> {
        self.producers.get(value).copied()
    }

    /// The nodes that use `value`, in the graph's order.
    pub fn consumers(&self, value: &str) -> &[usize] {
        self.consumers.get(value).map_or(&[], Vec::as_slice)
    }
}

/// Values that a node uses, those that its subgraphs take from around them included.
pub fn uses(node: &NodeProto) -> Vec<&str> {
    let mut names: Vec<&str> = node.input.iter().map(String::as_str).filter(|n| !n.is_empty()).collect();
    for graph in node.attribute.iter().flat_map(walk::subgraphs) {
        captured(graph, &mut names);
    }
    names
}

fn captured<'a>(graph: &'a GraphProto, names: &mut Vec<&'a str>) {
    let own = defined(graph);
    let inner = graph.node.iter().flat_map(uses).chain(graph.output.iter().map(ValueInfoProto::name));
    names.extend(inner.filter(|name| !name.is_empty() && !own.contains(name)));
}

/// Names that a graph gives to values of its own.
pub(crate) fn defined(graph: &GraphProto) -> HashSet<&str> {
    let inputs = graph.input.iter().map(ValueInfoProto::name);
    let outputs = graph.node.iter().flat_map(|n| &n.output).map(String::as_str);
    inputs.chain(initializer_names(graph)).chain(outputs).collect()
}

fn initializer_names(graph: &GraphProto) -> impl Iterator<Item = &str> {
    let sparse = graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref());
    graph.initializer.iter().chain(sparse).map(|t| t.name())
}

impl GraphProto {
    /// The first node of that name.
    pub fn find_node(&self, name: &str) -> Option<usize> {
        self.node.iter().position(|n| n.name() == name)
    }

    /// A name that no value of this graph or its subgraphs has, beginning with `stem`.
    pub fn fresh_name(&self, stem: &str) -> String {
        let mut taken: HashSet<&str> = defined(self);
        walk::nodes_of(&self.node, &mut |node| {
            taken.extend(node.input.iter().chain(&node.output).map(String::as_str));
        });
        let mut name = stem.to_owned();
        let mut number = 0u64;
        while taken.contains(name.as_str()) {
            number += 1;
            name = format!("{stem}_{number}");
        }
        name
    }

    /// Puts the nodes in topological order; nodes that are free to stand anywhere keep their order.
    pub fn sort_nodes(&mut self) -> Result<(), GraphError> {
        let order = topological(self)?;
        let mut nodes: Vec<Option<NodeProto>> = std::mem::take(&mut self.node).into_iter().map(Some).collect();
        self.node = order.into_iter().filter_map(|index| nodes.get_mut(index)?.take()).collect();
        Ok(())
    }

    /// Inserts `node` where its inputs are ready: after the last node that makes one of them.
    pub fn insert_node(&mut self, node: NodeProto) -> usize {
        let at = {
            let links = Links::of(self);
            uses(&node).iter().filter_map(|name| links.producer(name)).map(|i| i + 1).max().unwrap_or(0)
        };
        self.node.insert(at, node);
        at
    }

    /// Puts `nodes` in the place of node `index` and returns that one. They must make the values that others use.
    pub fn replace_node(&mut self, index: usize, nodes: Vec<NodeProto>) -> Option<NodeProto> {
        if index >= self.node.len() {
            return None;
        }
        self.node.splice(index..=index, nodes).next()
    }

    /// Removes node `index` and lets the users of its first output use its first input instead.
    ///
    /// Refused where other outputs are in use, or where input and output both bear names that callers know.
    pub fn remove_node(&mut self, index: usize) -> Result<NodeProto, GraphError> {
        let Some(node) = self.node.get(index) else {
            return Err(GraphError::invalid(format!("node {index}"), format!("the graph has {}", self.node.len())));
        };
        let refuse =
            |reason: &str| Err(GraphError::invalid(place(node, index), format!("cannot be removed: {reason}")));
        let (Some(from), Some(to)) = (node.output.first().cloned(), node.input.first().cloned()) else {
            return refuse("it has no input that could stand for its output");
        };
        if from.is_empty() || to.is_empty() {
            return refuse("its first input or output is absent");
        }
        let links = Links::of(self);
        let is_output = |name: &str| self.output.iter().any(|o| o.name() == name);
        if node.output.iter().skip(1).any(|o| !links.consumers(o).is_empty() || is_output(o)) {
            return refuse("another output of it is in use");
        }
        let keep_output_name = is_output(&from);
        if keep_output_name && (links.producer(&to).is_none() || is_output(&to)) {
            return refuse("input and output of the graph would be one value");
        }
        let node = self.node.remove(index);
        if keep_output_name {
            self.rename_value(&to, &from)
        } else {
            self.rename_value(&from, &to)
        }
        self.value_info.retain(|v| v.name() != from);
        Ok(node)
    }

    /// Renames a value in this graph and wherever a subgraph uses it.
    pub fn rename_value(&mut self, from: &str, to: &str) {
        let set = |name: &mut String| {
            if name == from {
                to.clone_into(name);
            }
        };
        let set_some = |name: &mut Option<String>| {
            if let Some(name) = name {
                set(name);
            }
        };
        for value in self.input.iter_mut().chain(&mut self.output).chain(&mut self.value_info) {
            set_some(&mut value.name);
        }
        self.initializer.iter_mut().for_each(|t| set_some(&mut t.name));
        self.sparse_initializer.iter_mut().filter_map(|s| s.values.as_mut()).for_each(|t| set_some(&mut t.name));
        self.quantization_annotation.iter_mut().for_each(|a| set_some(&mut a.tensor_name));
        for node in &mut self.node {
            node.input.iter_mut().chain(&mut node.output).for_each(set);
            for graph in node.attribute.iter_mut().flat_map(|a| a.g.iter_mut().chain(&mut a.graphs)) {
                let shadowed = defined(graph).contains(from);
                if !shadowed {
                    graph.rename_value(from, to);
                }
            }
        }
    }

    /// Removes the nodes and initialisers that no output needs, here and in subgraphs; returns how many nodes. Inputs
    /// keep their defaults.
    pub fn drop_dead_nodes(&mut self) -> usize {
        let mut dropped = 0;
        for node in &mut self.node {
            for graph in node.attribute.iter_mut().flat_map(|a| a.g.iter_mut().chain(&mut a.graphs)) {
                dropped += graph.drop_dead_nodes();
            }
        }
        let (keep, mut live) = self.live();
        live.extend(self.input.iter().map(|input| input.name().to_owned()));
        dropped += keep.iter().filter(|&&k| !k).count();
        let mut kept = keep.iter();
        self.node.retain(|_| *kept.next().unwrap_or(&true));
        self.initializer.retain(|t| live.contains(t.name()));
        self.sparse_initializer.retain(|s| s.values.as_ref().is_some_and(|v| live.contains(v.name())));
        self.value_info.retain(|v| live.contains(v.name()));
        dropped
    }

    fn live(&self) -> (Vec<bool>, HashSet<String>) {
        let links = Links::of(self);
        let mut keep = vec![false; self.node.len()];
        let mut live: HashSet<&str> = HashSet::new();
        let mut open: Vec<&str> = self.output.iter().map(ValueInfoProto::name).collect();
        while let Some(name) = open.pop() {
            if !live.insert(name) {
                continue;
            }
            let Some(index) = links.producer(name) else { continue };
            if !std::mem::replace(&mut keep[index], true) {
                open.extend(uses(&self.node[index]));
            }
        }
        (keep, live.into_iter().map(str::to_owned).collect())
    }
}

/// Kahn's algorithm, always with the earliest of the nodes that are ready.
fn topological(graph: &GraphProto) -> Result<Vec<usize>, GraphError> {
    let links = Links::of(graph);
    let needs: Vec<HashSet<usize>> =
        graph.node.iter().map(|n| uses(n).iter().filter_map(|name| links.producer(name)).collect()).collect();
    let mut open: Vec<usize> = needs.iter().map(HashSet::len).collect();
    let mut users = vec![Vec::new(); graph.node.len()];
    for (user, made_by) in needs.iter().enumerate() {
        made_by.iter().for_each(|&producer| users[producer].push(user));
    }
    let mut ready: BinaryHeap<Reverse<usize>> = (0..open.len()).filter(|&i| open[i] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(open.len());
    while let Some(Reverse(index)) = ready.pop() {
        order.push(index);
        for &user in &users[index] {
            open[user] -= 1;
            if open[user] == 0 {
                ready.push(Reverse(user));
            }
        }
    }
    match (0..open.len()).find(|&i| open[i] > 0) {
        Some(stuck) => Err(GraphError::invalid(place(&graph.node[stuck], stuck), "lies on a cycle")),
        None => Ok(order),
    }
}

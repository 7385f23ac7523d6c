//! Nodes that run other graphs: branches, loops, scans and local functions.
//!
//! What a loop carries may change from turn to turn, so a shape is kept only where the body gives back what it was
//! given. Functions and bodies are gone through again for each use; a bound on the nodes keeps that finite.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use prost::Message as _;

use super::{Fault, Place, State, Trust, ValueType, axis, either, refined};
use crate::{
    DataType, Dimension, GraphError,
    node::place,
    proto::{AttributeProto, FunctionProto, GraphProto, NodeProto, ValueInfoProto},
    rewrite, walk,
};

/// Nodes of functions and bodies that are looked at in one inference.
const INNER_NODES_MAX: usize = 200_000;

/// What copying a node costs beside looking at it.
const BYTES_PER_NODE: usize = 1024;

/// Functions that call functions.
const CALLS_MAX: usize = 16;

/// Turns after which what a loop carries is taken for unknown.
const TURNS_MAX: usize = 4;

/// What is left of the bounds.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    nodes: usize,
    calls: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { nodes: INNER_NODES_MAX, calls: CALLS_MAX }
    }
}

pub(super) type Functions<'a> = HashMap<(&'a str, &'a str, &'a str), &'a FunctionProto>;

pub(super) fn key<'a>(domain: &'a str, name: &'a str, overload: &'a str) -> (&'a str, &'a str, &'a str) {
    (if domain == "ai.onnx" { "" } else { domain }, name, overload)
}

impl<'a> State<'a> {
    pub(super) fn function(&self, node: &NodeProto) -> Option<&'a FunctionProto> {
        self.functions.get(&key(node.domain(), node.op_type(), node.overload())).copied()
    }

    fn afford(&mut self, nodes: usize) -> bool {
        let left = self.bounds.nodes.checked_sub(nodes);
        self.bounds.nodes = left.unwrap_or(0);
        left.is_some()
    }

    fn set_output(&mut self, node: &NodeProto, index: usize, value: ValueType) {
        if let Some(name) = node.output.get(index).filter(|name| !name.is_empty()) {
            self.set(name, value);
        }
    }

    fn input(&self, node: &NodeProto, index: usize) -> ValueType {
        node.input.get(index).map(|name| self.of(name)).unwrap_or_default()
    }

    /// A call of a local function: its nodes, with the call's inputs and attributes in the place of its own.
    pub(super) fn call(&mut self, node: &NodeProto, function: &FunctionProto) -> Result<(), Fault> {
        if self.bounds.calls == 0 || !self.afford(function.node.len()) {
            return Ok(());
        }
        let mut inner = State::new(self.sizes, self.trust);
        inner.functions.clone_from(&self.functions);
        inner.opset = function.opset_import.iter().find(|o| o.domain().is_empty()).map_or(self.opset, |o| o.version());
        inner.bounds = Bounds { calls: self.bounds.calls - 1, ..self.bounds };
        for (formal, actual) in function.input.iter().zip(&node.input) {
            inner.set(formal, self.of(actual));
            inner.items.extend(self.items.get(actual).map(|items| (formal.clone(), items.clone())));
        }
        let outcome = inner.inside(node, function);
        self.bounds.nodes = inner.bounds.nodes;
        outcome?;
        for (index, name) in function.output.iter().enumerate() {
            self.set_output(node, index, inner.of(name));
            if let (Some(items), Some(actual)) = (inner.items.remove(name), node.output.get(index)) {
                self.items.insert(actual.clone(), items);
            }
        }
        Ok(())
    }

    fn inside(&mut self, call: &NodeProto, function: &FunctionProto) -> Result<(), Fault> {
        for (index, node) in function.node.iter().enumerate() {
            let bound = if refers(node) { Cow::Owned(bound(node, call, function)) } else { Cow::Borrowed(node) };
            // What was copied counts as well: attributes may be large.
            if matches!(bound, Cow::Owned(_)) && !self.afford(bound.encoded_len() / BYTES_PER_NODE) {
                return Ok(());
            }
            self.node(&bound).map_err(|fault| match fault {
                Fault::Inner(error) => Fault::Inner(error),
                Fault::Here(reason) => {
                    let place = format!("{} of function `{}`", place(node, index), function.name());
                    Fault::Inner(GraphError::invalid(place, reason))
                }
            })?;
        }
        Ok(())
    }

    /// `If`: what both branches agree on.
    pub(super) fn branches(&mut self, node: &NodeProto) -> Result<(), Fault> {
        let graphs: Vec<&GraphProto> = node.attribute.iter().flat_map(walk::subgraphs).collect();
        let mut ends: Vec<Vec<ValueType>> = Vec::with_capacity(graphs.len());
        for graph in graphs {
            let end = |state: &mut Self| {
                state.graph(graph, Place::Inner)?;
                Ok(graph.output.iter().map(|o| state.of(o.name())).collect())
            };
            ends.push(self.within(graph, end).map_err(Fault::Inner)?);
        }
        for index in 0..node.output.len() {
            let each = ends.iter().map(|end| end.get(index).cloned().unwrap_or_default());
            self.set_output(node, index, each.reduce(|a, b| either(&a, &b)).unwrap_or_default());
        }
        Ok(())
    }

    /// `Loop`: a turn's number and condition, what is carried, and what each turn adds to a list.
    pub(super) fn repeat(&mut self, node: &NodeProto) -> Result<(), Fault> {
        let Some(body) = node.attr("body").and_then(|a| a.g.as_ref()) else { return Ok(()) };
        let scalar = |dtype| ValueType { dtype: Some(dtype), shape: Some(Vec::new()) };
        let carried: Vec<ValueType> = (2..node.input.len()).map(|i| self.input(node, i)).collect();
        let count = carried.len();
        let first = [scalar(DataType::Int64), scalar(DataType::Bool)];
        let (carried, ends) = self.turns(body, &first, carried, &[], 1)?;
        for (index, value) in carried.into_iter().enumerate() {
            self.set_output(node, index, value);
        }
        for (index, end) in ends.into_iter().enumerate().skip(1 + count) {
            let shape = end.shape.map(|dims| [vec![Dimension::Unknown], dims].concat());
            self.set_output(node, index - 1, ValueType { shape, ..end });
        }
        Ok(())
    }

    /// `Scan`: what is carried, and inputs and outputs that are cut and joined along an axis.
    pub(super) fn scan(&mut self, node: &NodeProto) -> Result<(), Fault> {
        let Some(body) = node.attr("body").and_then(|a| a.g.as_ref()).filter(|_| self.opset >= 9) else {
            return Ok(());
        };
        let cut = node.attr_int("num_scan_inputs").and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let Some(count) = node.input.len().checked_sub(cut) else {
            return Err(Fault::Here(format!("scans {cut} inputs, it has {}", node.input.len())));
        };
        let at = |list: &str, index: usize| node.attr_ints(list).and_then(|l| l.get(index).copied()).unwrap_or(0);
        let carried = (0..count).map(|i| self.input(node, i)).collect();
        let (mut parts, mut length) = (Vec::with_capacity(cut), Dimension::Unknown);
        for index in 0..cut {
            let mut part = self.input(node, count + index);
            if let Some(dims) = &mut part.shape {
                let along = dims.remove(axis(at("scan_input_axes", index), dims.len()).map_err(Fault::Here)?);
                length = if length == Dimension::Unknown { along } else { length };
            }
            parts.push(part);
        }
        let (carried, ends) = self.turns(body, &[], carried, &parts, 0)?;
        for (index, value) in carried.into_iter().enumerate() {
            self.set_output(node, index, value);
        }
        for (index, mut end) in ends.into_iter().enumerate().skip(count) {
            if let Some(dims) = &mut end.shape {
                let along = axis(at("scan_output_axes", index - count), dims.len() + 1).map_err(Fault::Here)?;
                dims.insert(along, length.clone());
            }
            self.set_output(node, index, end);
        }
        Ok(())
    }

    /// Goes through a body until what is carried changes no more. Gives what is carried in the end, and the types of
    /// the body's outputs, of which those that are carried on begin at `from`.
    fn turns(
        &mut self,
        body: &GraphProto,
        before: &[ValueType],
        mut carried: Vec<ValueType>,
        after: &[ValueType],
        from: usize,
    ) -> Result<(Vec<ValueType>, Vec<ValueType>), Fault> {
        for turn in 0.. {
            if !self.afford(body.node.len()) {
                break;
            }
            let given = before.iter().chain(&carried).chain(after).cloned().collect();
            let ends = self.within(body, |state| state.body(body, given)).map_err(Fault::Inner)?;
            let back = |i: usize| ends.get(from + i).cloned().unwrap_or_default();
            let merged: Vec<ValueType> = carried.iter().enumerate().map(|(i, value)| either(value, &back(i))).collect();
            if merged == carried {
                return Ok((carried, ends));
            }
            carried = if turn < TURNS_MAX { merged } else { vec![ValueType::default(); merged.len()] };
        }
        Ok((vec![ValueType::default(); carried.len()], Vec::new()))
    }

    /// Runs `look` where `graph`'s own names hide those around it. What it finds stays known, unless proof is asked for.
    fn within<T>(&mut self, graph: &GraphProto, look: impl FnOnce(&mut Self) -> T) -> T {
        let own = if self.trust == Trust::Proven { rewrite::defined(graph) } else { HashSet::new() };
        let around: Vec<_> = own.into_iter().map(|name| (name, self.forget(name))).collect();
        let found = look(self);
        around.into_iter().for_each(|(name, known)| self.restore(name, known));
        found
    }

    fn body(&mut self, body: &GraphProto, given: Vec<ValueType>) -> Result<Vec<ValueType>, GraphError> {
        self.begin(body, Place::Inner)?;
        for (input, value) in body.input.iter().zip(given) {
            let declared = self.of(input.name());
            let both = if self.trust == Trust::Declared { refined(&value, &declared) } else { None };
            self.set(input.name(), both.unwrap_or(value));
        }
        self.nodes(body)?;
        let end = |output: &ValueInfoProto| {
            let found = self.of(output.name());
            let both = (self.trust == Trust::Declared).then(|| refined(&found, &self.declared(output))).flatten();
            both.unwrap_or(found)
        };
        Ok(body.output.iter().map(end).collect())
    }
}

/// True where a node, or one within it, takes an attribute from the call.
fn refers(node: &NodeProto) -> bool {
    let one = |a: &AttributeProto| {
        !a.ref_attr_name().is_empty() || walk::subgraphs(a).any(|graph| graph.node.iter().any(refers))
    };
    node.attribute.iter().any(one)
}

/// A node of a function with the attributes of the call, or the function's defaults, where it refers to them.
fn bound(inside: &NodeProto, call: &NodeProto, function: &FunctionProto) -> NodeProto {
    let mut node = inside.clone();
    node.attribute.retain_mut(|attribute| {
        let referred = attribute.ref_attr_name();
        if referred.is_empty() {
            for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                graph.node.iter_mut().for_each(|inner| *inner = bound(inner, call, function));
            }
            return true;
        }
        let default = || function.attribute_proto.iter().find(|a| a.name() == referred);
        let Some(value) = call.attr(referred).or_else(default) else { return false };
        *attribute = AttributeProto { name: attribute.name.take(), ..value.clone() };
        true
    });
    node
}

//! Visits every node and tensor of a model, those in subgraphs and functions included.
//!
//! The decoder bounds how deep messages nest (100 levels), so plain recursion is safe here.

use crate::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto};

/// Calls `visit` for every node, outer ones first.
pub fn nodes<'a>(model: &'a ModelProto, visit: &mut dyn FnMut(&'a NodeProto)) {
    if let Some(main) = &model.graph {
        nodes_of(&main.node, visit);
    }
    for function in &model.functions {
        nodes_of(&function.node, visit);
    }
}

/// Calls `visit` for `nodes` and those of their subgraphs, outer ones first.
pub fn nodes_of<'a>(nodes: &'a [NodeProto], visit: &mut dyn FnMut(&'a NodeProto)) {
    for node in nodes {
        visit(node);
        for sub in node.attribute.iter().flat_map(subgraphs) {
            nodes_of(&sub.node, visit);
        }
    }
}

/// The graphs that an attribute holds.
pub fn subgraphs(attribute: &AttributeProto) -> impl Iterator<Item = &GraphProto> {
    attribute.g.iter().chain(&attribute.graphs)
}

/// Levels of graphs within graphs; 1 for a flat model.
pub(crate) fn depth(model: &ModelProto) -> u64 {
    fn of(nodes: &[NodeProto]) -> u64 {
        let inner = nodes.iter().flat_map(|n| &n.attribute).flat_map(subgraphs).map(|g| of(&g.node));
        1 + inner.max().unwrap_or(0)
    }
    let main = model.graph.iter().map(|g| of(&g.node));
    main.chain(model.functions.iter().map(|f| of(&f.node))).max().unwrap_or(0)
}

/// Calls `visit` for every tensor: initialisers and attributes, sparse ones by their values and indices.
pub fn tensors<'a>(model: &'a ModelProto, visit: &mut dyn FnMut(&'a TensorProto)) {
    if let Some(main) = &model.graph {
        graph_tensors(main, visit);
    }
    for attribute in model.functions.iter().flat_map(|f| &f.attribute_proto) {
        attribute_tensors(attribute, visit);
    }
    for attribute in model.functions.iter().flat_map(|f| &f.node).flat_map(|n| &n.attribute) {
        attribute_tensors(attribute, visit);
    }
}

fn graph_tensors<'a>(graph: &'a GraphProto, visit: &mut dyn FnMut(&'a TensorProto)) {
    graph.initializer.iter().for_each(&mut *visit);
    for sparse in &graph.sparse_initializer {
        sparse_tensors(sparse, visit);
    }
    for attribute in graph.node.iter().flat_map(|n| &n.attribute) {
        attribute_tensors(attribute, visit);
    }
}

fn attribute_tensors<'a>(attribute: &'a AttributeProto, visit: &mut dyn FnMut(&'a TensorProto)) {
    attribute.t.iter().chain(&attribute.tensors).for_each(&mut *visit);
    for sparse in attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors) {
        sparse_tensors(sparse, visit);
    }
    for graph in subgraphs(attribute) {
        graph_tensors(graph, visit);
    }
}

fn sparse_tensors<'a>(sparse: &'a SparseTensorProto, visit: &mut dyn FnMut(&'a TensorProto)) {
    sparse.values.iter().chain(&sparse.indices).for_each(visit);
}

/// As [`tensors`], to change them.
pub fn tensors_mut(model: &mut ModelProto, visit: &mut dyn FnMut(&mut TensorProto)) {
    if let Some(main) = &mut model.graph {
        graph_tensors_mut(main, visit);
    }
    for attribute in model.functions.iter_mut().flat_map(|f| &mut f.attribute_proto) {
        attribute_tensors_mut(attribute, visit);
    }
    for attribute in model.functions.iter_mut().flat_map(|f| &mut f.node).flat_map(|n| &mut n.attribute) {
        attribute_tensors_mut(attribute, visit);
    }
}

fn graph_tensors_mut(graph: &mut GraphProto, visit: &mut dyn FnMut(&mut TensorProto)) {
    graph.initializer.iter_mut().for_each(&mut *visit);
    for sparse in &mut graph.sparse_initializer {
        sparse.values.iter_mut().chain(&mut sparse.indices).for_each(&mut *visit);
    }
    for attribute in graph.node.iter_mut().flat_map(|n| &mut n.attribute) {
        attribute_tensors_mut(attribute, visit);
    }
}

fn attribute_tensors_mut(attribute: &mut AttributeProto, visit: &mut dyn FnMut(&mut TensorProto)) {
    attribute.t.iter_mut().chain(&mut attribute.tensors).for_each(&mut *visit);
    for sparse in attribute.sparse_tensor.iter_mut().chain(&mut attribute.sparse_tensors) {
        sparse.values.iter_mut().chain(&mut sparse.indices).for_each(&mut *visit);
    }
    for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
        graph_tensors_mut(graph, visit);
    }
}

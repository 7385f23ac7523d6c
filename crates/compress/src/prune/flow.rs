//! Walks a graph from its inputs to its outputs and follows the channels of every value.
//!
//! An index of an axis is a *label*. Rules say for each operator which labels its output has, and which labels must go
//! together; what no rule tells is held, by the name of the node.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    rc::Rc,
};

use edgeward_graph::{DataType, Dimension, Inferred, Links, Model, infer, proto::NodeProto};

use super::{
    rules,
    ties::{Axis, Label, Ties},
};
use crate::{CompressError, edit::Edit};

/// A value as rules see it.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub axes: Vec<Axis>,
    pub dims: Vec<Dimension>,
}

impl Value {
    /// Labels of an axis.
    pub fn labels(&self, axis: usize) -> Option<&Rc<[Label]>> {
        match self.axes.get(axis)? {
            Axis::Channels(labels) => Some(labels),
            Axis::Fixed => None,
        }
    }

    /// Size of an axis.
    pub fn size(&self, axis: usize) -> Option<usize> {
        match self.dims.get(axis)? {
            Dimension::Fixed(size) => Some(*size),
            _ => None,
        }
    }

    pub fn rank(&self) -> usize {
        self.axes.len()
    }

    pub fn is_fixed(&self) -> bool {
        self.axes.iter().all(|axis| *axis == Axis::Fixed)
    }
}

/// What multiplies by constant weights, and along which axis of them its outputs are.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// Index of the node.
    pub node: usize,
    /// Initialiser.
    pub tensor: String,
    /// Axis of the outputs.
    pub axis: usize,
    /// Times that each weight is multiplied in a run, open sizes counted as 1.
    pub times: f64,
}

/// The channels of all values.
pub(super) struct Flow<'m> {
    pub model: &'m Model,
    pub inferred: Inferred,
    pub ties: Ties,
    pub axes: HashMap<String, Vec<Axis>>,
    pub sources: Vec<Source>,
    /// Values whose channels a layer sums over, with the axis.
    pub read: BTreeSet<(String, usize)>,
    /// What each Reshape's shape is as numbers, by node.
    pub shapes: HashMap<usize, Vec<i64>>,
    edit: Edit,
    /// The node that is looked at.
    pub at: usize,
}

impl<'m> Flow<'m> {
    /// Follows the channels of `model`, whose graph is in topological order.
    pub fn of(model: &'m Model) -> Result<Self, CompressError> {
        let inferred = infer(model, &BTreeMap::new())?;
        let mut flow = Self {
            model,
            inferred,
            ties: Ties::default(),
            axes: HashMap::new(),
            sources: Vec::new(),
            read: BTreeSet::new(),
            shapes: HashMap::new(),
            edit: Edit::new(model.clone()),
            at: 0,
        };
        flow.constants();
        for (index, node) in model.graph().node.iter().enumerate() {
            flow.at = index;
            flow.node(node);
        }
        for output in &model.graph().output {
            let reason = format!("`{}` is an output of the graph", output.name());
            flow.hold_value(output.name(), &reason);
        }
        flow.inner();
        Ok(flow)
    }

    /// Each index of a constant of floats is a label of its own.
    fn constants(&mut self) {
        for tensor in &self.model.graph().initializer {
            if tensor.data_type() != DataType::Float32.to_onnx() || !self.edit.is_constant(tensor.name()) {
                continue;
            }
            let sizes = tensor.dims.iter().map(|&size| usize::try_from(size).unwrap_or(0));
            let axes = sizes.map(|size| if size > 1 { self.ties.axis(size) } else { Axis::Fixed });
            self.axes.insert(tensor.name().to_owned(), axes.collect());
        }
    }

    fn node(&mut self, node: &NodeProto) {
        let outputs = match rules::rule(node) {
            Some(rule) => rule(self, node),
            None => Err("is an operator that channels are not followed through".to_owned()),
        };
        match outputs {
            Ok(outputs) => {
                for (name, axes) in node.output.iter().zip(outputs) {
                    self.axes.insert(name.clone(), axes);
                }
            }
            Err(reason) => {
                let reason = format!("{} {reason}", self.place(node));
                node.input.iter().for_each(|name| self.hold_value(name, &reason));
            }
        }
    }

    /// "`conv1` (Conv)", or by its output where the node has no name.
    pub fn place(&self, node: &NodeProto) -> String {
        let name = if node.name().is_empty() { node.output.first().map_or("", String::as_str) } else { node.name() };
        format!("node `{name}` ({})", node.op_type())
    }

    pub fn hold_value(&mut self, name: &str, reason: &str) {
        for axis in self.axes.get(name).into_iter().flatten() {
            self.ties.hold(axis, reason);
        }
    }

    /// What graphs within nodes take from around them.
    fn inner(&mut self) {
        let graph = self.model.graph();
        let has_graph = |node: &NodeProto| node.attribute.iter().any(|a| a.g.is_some() || !a.graphs.is_empty());
        let with: Vec<usize> = (0..graph.node.len()).filter(|&i| graph.node.get(i).is_some_and(has_graph)).collect();
        if with.is_empty() {
            return;
        }
        let links = Links::of(graph);
        let taken = |name: &&String| links.consumers(name).iter().any(|user| with.contains(user));
        let names: Vec<String> = self.axes.keys().filter(taken).cloned().collect();
        for name in names {
            self.hold_value(&name, &format!("`{name}` goes into a graph within a node"));
        }
    }

    /// A value; an error where its rank is not known.
    pub fn value(&self, name: &str) -> Result<Value, String> {
        let dims = self.inferred.of(name).shape.ok_or_else(|| format!("reads `{name}`, whose shape is not known"))?;
        let axes = self.axes.get(name).filter(|axes| axes.len() == dims.len()).cloned();
        Ok(Value { axes: axes.unwrap_or_else(|| vec![Axis::Fixed; dims.len()]), dims })
    }

    /// An input of a node; none where it is absent.
    pub fn input(&self, node: &NodeProto, slot: usize) -> Result<Option<Value>, String> {
        node.input.get(slot).filter(|name| !name.is_empty()).map(|name| self.value(name)).transpose()
    }

    /// An input that must be there.
    pub fn wanted(&self, node: &NodeProto, slot: usize) -> Result<Value, String> {
        self.input(node, slot)?.ok_or_else(|| format!("lacks input {slot}"))
    }

    /// Dimensions of an output.
    pub fn output_dims(&self, node: &NodeProto, slot: usize) -> Result<Vec<Dimension>, String> {
        let name = node.output.get(slot).ok_or_else(|| format!("lacks output {slot}"))?;
        self.inferred.of(name).shape.ok_or_else(|| "makes a value whose shape is not known".to_owned())
    }

    /// Numbers of a constant input; none where it is absent.
    pub fn ints(&self, node: &NodeProto, slot: usize) -> Result<Option<Vec<i64>>, String> {
        let Some(name) = node.input.get(slot).filter(|name| !name.is_empty()) else { return Ok(None) };
        let tensor = self.edit.value(name).ok_or_else(|| format!("takes `{name}`, which is no constant"))?;
        match tensor.dtype() {
            DataType::Int64 => tensor.values::<i64>().map(|v| Some(v.into_owned())).map_err(|e| e.to_string()),
            DataType::Int32 => tensor
                .values::<i32>()
                .map(|v| Some(v.iter().map(|&v| i64::from(v)).collect()))
                .map_err(|e| e.to_string()),
            other => Err(format!("takes `{name}` of {other}, expected integers")),
        }
    }

    /// True for an initialiser of floats that no caller can replace.
    pub fn is_weight(&self, name: &str) -> bool {
        self.edit.is_constant(name) && self.axes.contains_key(name)
    }

    pub fn tie(&mut self, a: &Axis, b: &Axis, node: &NodeProto) {
        let reason = format!("{} ties it to what has a fixed size", self.place(node));
        self.ties.tie(a, b, &reason);
    }

    pub fn hold(&mut self, axis: &Axis, node: &NodeProto, reason: &str) {
        let reason = format!("{} {reason}", self.place(node));
        self.ties.hold(axis, &reason);
    }
}

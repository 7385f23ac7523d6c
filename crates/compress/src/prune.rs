//! Structured pruning: channels, neurons and heads that a graph can do without are taken out of it, with all that is
//! tied to them, so that the graph really shrinks.
//!
//! [`ready`] makes a model ready, [`plan`] finds the groups of channels that can go, [`importance`](crate::prune::magnitude)
//! scores them, [`choose`] says which go, [`apply`] takes them out; [`blocks`] are what goes as a whole. Groups of what depends on each other are those of Fang
//! et al. 2023, "DepGraph: Towards Any Structural Pruning", found here by channel instead of by layer: a set of indices
//! of tensors that only go together. Training after it is for callers.

mod activation;
mod apply;
mod blocks;
mod choose;
mod flow;
mod importance;
mod reshape;
mod rules;
mod taylor;
mod ties;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use edgeward_graph::{Inferred, Model, proto::GraphProto};

use self::{
    flow::{Flow, Source},
    ties::{Axis, Label},
};
use crate::{CompressError, fuse, prepare::folded};

pub use activation::activations;
pub use apply::apply;
pub use blocks::{Block, blocks, influence, without};
pub use choose::{Removal, Selection, Target, choose};
pub use importance::{Norm, Scores, magnitude, normalisation};
pub use taylor::{gradients, taylor};

/// Indices of one axis of one initialiser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The initialiser.
    pub tensor: String,
    /// Its axis.
    pub axis: usize,
    /// Indices along it, ascending.
    pub indices: Vec<usize>,
}

/// What goes as a whole or stays: a channel, a neuron, a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Everything that belongs to it.
    pub members: Vec<Member>,
    label: Label,
}

/// Units of the same kind: each has its part of the same axes of the same initialisers.
#[derive(Clone, Debug)]
pub struct Group {
    /// The layers that make them, by their nodes' names, in the graph's order.
    pub layers: Vec<String>,
    /// Units, by their first index.
    pub units: Vec<Unit>,
}

/// A layer whose outputs stay as many as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Its node's name.
    pub layer: String,
    /// Why.
    pub reason: String,
}

/// What of a model can be pruned.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Units that can go, by group, in the graph's order.
    pub groups: Vec<Group>,
    /// Layers whose outputs must stay, in the graph's order.
    pub left: Vec<Left>,
    /// The weights that multiply, with how often each is used in a run.
    times: Vec<(String, f64)>,
    /// Shapes of the initialisers.
    sizes: HashMap<String, Vec<usize>>,
    /// Axes of all values, by the labels that stand for their sets.
    axes: HashMap<String, Vec<Axis>>,
    /// Values whose channels a layer sums over, with the axis.
    read: BTreeSet<(String, usize)>,
    shapes: HashMap<usize, Vec<i64>>,
    inferred: Inferred,
}

/// Makes a model ready to be pruned and trained: its tensors in itself, in operator set 13 or newer, constants folded, no
/// node without effect. Normalisations stay apart from the weights before them.
pub fn ready(model: &Model) -> Result<Model, CompressError> {
    let mut edit = folded(model)?;
    fuse::constants(&mut edit);
    let mut model = edit.model;
    model.graph_mut().drop_dead_nodes();
    model.graph_mut().value_info.clear();
    Ok(model)
}

/// Finds what of `model`, which is [`ready`], can be pruned. Errors: a graph that contradicts itself.
pub fn plan(model: &Model) -> Result<Plan, CompressError> {
    let mut flow = Flow::of(model)?;
    let groups = groups(&mut flow);
    let left = left(&mut flow, &groups);
    let times = flow.sources.iter().map(|source| (source.tensor.clone(), source.times)).collect();
    let size = |dims: &[i64]| dims.iter().map(|&size| usize::try_from(size).unwrap_or(0)).collect();
    let tensors = &model.graph().initializer;
    let sizes = tensors.iter().map(|tensor| (tensor.name().to_owned(), size(&tensor.dims))).collect();
    let axes = std::mem::take(&mut flow.axes);
    let rooted = |axis: &Axis, flow: &mut Flow<'_>| match axis {
        Axis::Fixed => Axis::Fixed,
        Axis::Channels(labels) => Axis::Channels(labels.iter().map(|&label| flow.ties.root(label)).collect()),
    };
    let axes = axes
        .into_iter()
        .map(|(name, axes)| (name, axes.iter().map(|axis| rooted(axis, &mut flow)).collect()))
        .collect();
    let Flow { read, shapes, inferred, .. } = flow;
    Ok(Plan { groups, left, times, sizes, axes, read, shapes, inferred })
}

/// An axis of an initialiser.
type Place = (String, usize);

/// All sets that may go and that a layer's outputs belong to, those of the same axes together.
fn groups(flow: &mut Flow<'_>) -> Vec<Group> {
    let mut made: BTreeMap<Label, BTreeSet<usize>> = BTreeMap::new();
    for source in flow.sources.clone() {
        for label in labels(flow, &source.tensor, source.axis) {
            let root = flow.ties.root(label);
            if flow.ties.reason(root).is_none() {
                made.entry(root).or_default().insert(source.node);
            }
        }
    }
    let mut members: BTreeMap<Label, BTreeMap<Place, Vec<usize>>> = BTreeMap::new();
    let model = flow.model;
    for tensor in &model.graph().initializer {
        for axis in 0..tensor.dims.len() {
            for (index, label) in labels(flow, tensor.name(), axis).into_iter().enumerate() {
                let root = flow.ties.root(label);
                if made.contains_key(&root) {
                    let places = members.entry(root).or_default();
                    places.entry((tensor.name().to_owned(), axis)).or_default().push(index);
                }
            }
        }
    }
    let mut by_places: BTreeMap<(Vec<usize>, Vec<Place>), Vec<Unit>> = BTreeMap::new();
    for (label, places) in members {
        let nodes = made.get(&label).map(|nodes| nodes.iter().copied().collect()).unwrap_or_default();
        let key = (nodes, places.keys().cloned().collect());
        let member = |((tensor, axis), indices)| Member { tensor, axis, indices };
        let members = places.into_iter().map(member).collect();
        by_places.entry(key).or_default().push(Unit { members, label });
    }
    let title = |node: &usize| title(model.graph(), *node);
    let group = |((nodes, _), mut units): ((Vec<usize>, Vec<Place>), Vec<Unit>)| {
        units.sort_by_key(|unit| unit.members.first().and_then(|member| member.indices.first().copied()));
        Group { layers: nodes.iter().map(title).collect(), units }
    };
    by_places.into_iter().map(group).collect()
}

fn labels(flow: &Flow<'_>, tensor: &str, axis: usize) -> Vec<Label> {
    match flow.axes.get(tensor).and_then(|axes| axes.get(axis)) {
        Some(Axis::Channels(labels)) => labels.to_vec(),
        _ => Vec::new(),
    }
}

/// What a layer is called: its node's name, else what it makes.
fn title(graph: &GraphProto, node: usize) -> String {
    let Some(node) = graph.node.get(node) else { return String::new() };
    let name = if node.name().is_empty() { node.output.first().map_or("", String::as_str) } else { node.name() };
    name.to_owned()
}

/// Layers that are in no group of at least two units, and why.
fn left(flow: &mut Flow<'_>, groups: &[Group]) -> Vec<Left> {
    let prunable: BTreeSet<&String> =
        groups.iter().filter(|group| group.units.len() > 1).flat_map(|group| &group.layers).collect();
    let mut left = Vec::new();
    for source in flow.sources.clone() {
        let layer = title(flow.model.graph(), source.node);
        if prunable.contains(&layer) {
            continue;
        }
        let reason = reason(flow, &source);
        left.push(Left { layer, reason });
    }
    left
}

fn reason(flow: &mut Flow<'_>, source: &Source) -> String {
    let labels = labels(flow, &source.tensor, source.axis);
    let found = labels.iter().find_map(|&label| flow.ties.reason(label).map(str::to_owned));
    found.unwrap_or_else(|| {
        let alone = if labels.is_empty() { "it has one output only" } else { "all its outputs are tied together" };
        alone.to_owned()
    })
}

impl Plan {
    /// Units of all groups.
    pub fn units(&self) -> usize {
        self.groups.iter().map(|group| group.units.len()).sum()
    }

    /// All that the model has of the target: multiply-adds of a run, open sizes counted as 1, or elements.
    pub fn cost(&self, target: Target) -> f64 {
        choose::cost(self, &[], target)
    }
}

//! Which values of a graph become integers: a decision on the graph and the ranges, without a rewrite.
//!
//! Engines fuse quantised operators by patterns. ONNX Runtime runs an operator on integers only where all that goes in
//! and comes out is quantised, so whole chains are ([`Form::Chains`]). OpenVINO spreads integers by itself from what
//! goes into multiplications and fuses float activations between ([`Form::Inputs`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use edgeward_graph::{Links, proto::NodeProto};

use crate::{Prepared, calibrate::Ranges, range::Range};

/// Which patterns a quantised graph is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Everything between two multiplications is quantised as well.
    Chains,
    /// Only what goes into multiplications.
    Inputs,
}

/// How far factors of channels may be apart in a multiplication by bytes: the smallest is rounded by up to 6 % then.
const FACTORS_APART_MAX: f32 = 16.0;

/// What becomes integers.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Values with a range.
    pub values: BTreeMap<String, Range>,
    /// Layers, by index into [`Prepared::layers`].
    pub layers: Vec<usize>,
    /// Nodes that compute on integers.
    pub(crate) computed: BTreeSet<usize>,
    /// Relu and Clip nodes that quantising their input does as well, by the node before them.
    pub(crate) absorbed: BTreeMap<usize, usize>,
}

/// Operators that multiply.
fn multiplies(op: &str) -> bool {
    matches!(op, "Conv" | "Gemm" | "MatMul")
}

/// Operators that only move numbers: what comes out has the range of what went in.
pub(crate) fn moves(op: &str) -> bool {
    matches!(op, "MaxPool" | "Reshape" | "Transpose" | "Flatten" | "Squeeze" | "Unsqueeze" | "Slice" | "Split")
        || matches!(op, "DepthToSpace" | "SpaceToDepth" | "Resize")
}

/// Operators that ONNX Runtime has on integers.
fn computes(op: &str) -> bool {
    matches!(op, "Add" | "Mul" | "Concat" | "AveragePool" | "GlobalAveragePool" | "Sigmoid" | "LeakyRelu")
}

fn clips(op: &str) -> bool {
    matches!(op, "Relu" | "Clip")
}

/// The Relu, or Clip from 0, that alone reads what node `index` makes.
pub(crate) fn clip_behind(prepared: &Prepared, links: &Links<'_>, index: usize) -> Option<usize> {
    let graph = prepared.model.graph();
    let output = graph.node.get(index)?.output.first()?;
    let &[user] = links.consumers(output) else { return None };
    let clip = graph.node.get(user).filter(|node| node.is_standard() && clips(node.op_type()))?;
    let lower = clip.op_type() == "Relu" || clip.input.get(1).is_some_and(|name| is_zero(prepared, name));
    let is_result = graph.output.iter().any(|result| result.name() == output);
    (lower && !is_result).then_some(user)
}

fn is_zero(prepared: &Prepared, name: &str) -> bool {
    floats(prepared, name).is_some_and(|values| values == [0.0])
}

/// The numbers of a constant of binary32.
fn floats(prepared: &Prepared, name: &str) -> Option<Vec<f32>> {
    let tensor = prepared.model.graph().initializer.iter().find(|tensor| tensor.name() == name)?;
    Some(prepared.model.tensor(tensor).ok()?.values::<f32>().ok()?.into_owned())
}

/// Operators whose values calibration looks at.
pub(crate) fn quantisable(op: &str) -> bool {
    multiplies(op) || moves(op) || computes(op) || clips(op)
}

/// Inputs of a node that are numbers, not shapes, axes or scales.
fn data_inputs(node: &NodeProto) -> &[String] {
    match node.op_type() {
        "Add" | "Mul" | "Concat" => &node.input,
        "MatMul" => node.input.get(..2).unwrap_or_default(),
        _ => node.input.get(..1).unwrap_or_default(),
    }
}

/// Decides. Layers whose name is in `keep` stay floats.
pub fn plan(prepared: &Prepared, ranges: &Ranges, form: Form, keep: &BTreeSet<String>) -> Plan {
    let mut planner = Planner::new(prepared, ranges, form);
    planner.multiplications(keep);
    if form == Form::Chains {
        planner.between();
    }
    planner.conclude()
}

struct Planner<'a> {
    prepared: &'a Prepared,
    ranges: &'a Ranges,
    form: Form,
    links: Links<'a>,
    constants: HashSet<&'a str>,
    /// Nodes on integers.
    chosen: HashSet<usize>,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn new(prepared: &'a Prepared, ranges: &'a Ranges, form: Form) -> Self {
        let graph = prepared.model.graph();
        Self {
            prepared,
            ranges,
            form,
            links: prepared.links(),
            constants: graph.initializer.iter().map(|tensor| tensor.name()).collect(),
            chosen: HashSet::new(),
            plan: Plan::default(),
        }
    }

    fn node(&self, index: usize) -> Option<&'a NodeProto> {
        self.prepared.model.graph().node.get(index)
    }

    fn has_range(&self, name: &str) -> bool {
        self.ranges.contains_key(name)
    }

    fn multiplications(&mut self, keep: &BTreeSet<String>) {
        let mut with_weights = HashMap::new();
        for (at, layer) in self.prepared.layers.iter().enumerate() {
            with_weights.insert(layer.node, ());
            let input = self.node(layer.node).and_then(|node| node.input.first());
            let ready = input.is_some_and(|name| self.has_range(name));
            // A convolution on integers without a range for its result would come out as floats.
            let whole = self.form == Form::Inputs || layer.op != "Conv" || self.result_range(layer.node).is_some();
            if ready && whole && !keep.contains(&layer.name) {
                self.plan.layers.push(at);
                self.chosen.insert(layer.node);
            }
        }
        if self.form == Form::Chains {
            return;
        }
        for (index, node) in self.prepared.model.graph().node.iter().enumerate() {
            let pair = node.op_type() == "MatMul" && node.is_standard() && !with_weights.contains_key(&index);
            let name = node.output.first().map_or("", String::as_str);
            if pair && !keep.contains(name) && data_inputs(node).iter().all(|input| self.has_range(input)) {
                self.chosen.insert(index);
            }
        }
    }

    /// What [`clip_behind`] a node the lower end of the quantised range does.
    fn clip_after(&self, index: usize) -> Option<usize> {
        let clip = clip_behind(self.prepared, &self.links, index)?;
        let range = self.ranges.get(self.node(clip)?.output.first()?)?;
        (range.low == 0.0).then_some(clip)
    }

    /// The value that a chosen node's result is quantised as.
    fn result(&self, index: usize) -> Option<&'a str> {
        let node = self.clip_after(index).unwrap_or(index);
        self.node(node)?.output.first().map(String::as_str)
    }

    fn result_range(&self, index: usize) -> Option<Range> {
        self.ranges.get(self.result(index)?).copied()
    }

    /// Chooses what lies between two multiplications on integers.
    fn between(&mut self) {
        let mut reached: HashSet<&str> = HashSet::new();
        let mut open: Vec<usize> = Vec::new();
        for (index, node) in self.prepared.model.graph().node.iter().enumerate() {
            let chosen = self.chosen.contains(&index);
            if !chosen && !self.may_join(index, &reached) {
                continue;
            }
            if !chosen {
                open.push(index);
            }
            // A product of matrices comes out as floats unless it is read as integers.
            if node.op_type() == "Conv" || !chosen {
                reached.extend(node.output.iter().map(String::as_str));
                reached.extend(self.result(index));
            }
        }
        // What no multiplication reads stays floats: results should not lose more than they must.
        for index in open.into_iter().rev() {
            if self.is_read_as_integers(index) {
                self.chosen.insert(index);
            }
        }
    }

    fn may_join(&self, index: usize, reached: &HashSet<&str>) -> bool {
        let Some(node) = self.node(index) else { return false };
        let op = node.op_type();
        let nearest = op != "Resize" || node.attr_text("mode").unwrap_or("nearest") == "nearest";
        let inputs = data_inputs(node);
        let ready = |name: &String| self.has_range(name) || (self.constants.contains(name.as_str()) && op != "Concat");
        // Places of the greatest numbers are no numbers that bytes could stand for.
        let places = op == "MaxPool" && node.output.len() > 1;
        node.is_standard()
            && (moves(op) || computes(op))
            && !places
            && nearest
            && inputs.iter().all(ready)
            && inputs.iter().any(|name| reached.contains(name.as_str()))
            && (node.output.iter().all(|name| self.has_range(name)) || self.result_range(index).is_some())
            && (op != "Mul" || !inputs.iter().any(|name| self.is_coarse_as_bytes(name)))
    }

    /// True for a constant whose small numbers a byte would leave few steps of.
    fn is_coarse_as_bytes(&self, name: &str) -> bool {
        let Some(values) = floats(self.prepared, name) else { return false };
        let sizes = || values.iter().map(|value| value.abs()).filter(|size| *size > 0.0);
        sizes().fold(0.0, f32::max) > FACTORS_APART_MAX * sizes().fold(f32::INFINITY, f32::min)
    }

    fn is_read_as_integers(&self, index: usize) -> bool {
        let Some(node) = self.node(index) else { return false };
        let after = self.clip_after(index).and_then(|clip| self.node(clip));
        let made = node.output.iter().chain(after.iter().flat_map(|node| &node.output));
        made.flat_map(|name| self.links.consumers(name)).any(|user| self.chosen.contains(user))
    }

    fn conclude(mut self) -> Plan {
        self.plan.computed = self.chosen.iter().copied().collect();
        for index in self.plan.computed.clone() {
            let Some(node) = self.node(index) else { continue };
            // Constants have no observed range, and are quantised where they are used.
            data_inputs(node).iter().for_each(|name| self.add(name));
            let op = node.op_type();
            if self.form == Form::Inputs || matches!(op, "Gemm" | "MatMul") {
                continue;
            }
            if moves(op) {
                node.output.iter().for_each(|name| self.add(name));
                self.share(node);
                continue;
            }
            if let Some(result) = self.result(index) {
                self.add(result);
            }
            if let Some(clip) = self.clip_after(index) {
                self.plan.absorbed.insert(index, clip);
            }
        }
        self.plan
    }

    fn add(&mut self, name: &str) {
        if let Some(range) = self.ranges.get(name) {
            self.plan.values.entry(name.to_owned()).or_insert(*range);
        }
    }

    /// What only moves keeps its range, so that engines move integers.
    fn share(&mut self, node: &NodeProto) {
        let range = node.input.first().and_then(|input| self.plan.values.get(input)).copied();
        if let Some(range) = range {
            self.plan.values.extend(node.output.iter().map(|name| (name.clone(), range)));
        }
    }
}

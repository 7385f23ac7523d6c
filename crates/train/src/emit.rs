//! Writes nodes: names, constants and attributes in one place.
//!
//! A node that was emitted before is not emitted again, so that rules need not agree on who makes what.

use std::collections::{HashMap, HashSet};

use edgeward_graph::{
    DataType, Tensor,
    proto::{AttributeProto, GraphProto, NodeProto, TensorProto},
    tensor_proto, walk,
};
use prost::Message as _;

/// Where reductions leave their axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Axes {
    /// As axes of size 1.
    Keep,
    /// Gone.
    Drop,
}

/// Where a part lies along an axis of a value of zeros.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// The axis.
    pub axis: usize,
    /// Its first index.
    pub begin: i64,
    /// The index behind its last.
    pub end: i64,
    /// The whole axis.
    pub size: i64,
}

/// Nodes and constants that are added to a graph.
pub(crate) struct Emit {
    /// In topological order.
    pub nodes: Vec<NodeProto>,
    /// Constants that the nodes use.
    pub initializers: Vec<TensorProto>,
    /// What the nodes spell out, for [`edgeward_graph::Model::set_composites`].
    pub composites: Vec<NodeProto>,
    /// Version of the standard's operators that the graph imports: some take as input what others take as attribute.
    pub opset: i64,
    /// What new names begin with.
    pub stem: String,
    taken: HashSet<String>,
    numbers: HashMap<String, u64>,
    emitted: HashMap<Vec<u8>, Vec<String>>,
    constants: HashMap<Vec<u8>, String>,
    /// What [`Emit::placed`] made, with the part and its place.
    places: HashMap<String, (String, Place)>,
}

impl Emit {
    /// Adds to `graph`, whose names are taken.
    pub fn to(graph: &GraphProto, opset: i64) -> Self {
        let mut taken: HashSet<String> = HashSet::new();
        let values = graph.input.iter().chain(&graph.output).chain(&graph.value_info);
        taken.extend(values.map(|v| v.name().to_owned()));
        taken.extend(graph.initializer.iter().map(|t| t.name().to_owned()));
        walk::nodes_of(&graph.node, &mut |node| {
            taken.extend(node.input.iter().chain(&node.output).cloned());
            taken.extend(node.name.clone());
        });
        Self {
            nodes: Vec::new(),
            initializers: Vec::new(),
            composites: Vec::new(),
            opset,
            stem: String::new(),
            taken,
            numbers: HashMap::new(),
            emitted: HashMap::new(),
            constants: HashMap::new(),
            places: HashMap::new(),
        }
    }

    /// A name that nothing has, beginning with `stem`.
    pub fn name(&mut self, stem: &str) -> String {
        if self.taken.insert(stem.to_owned()) {
            return stem.to_owned();
        }
        loop {
            let number = self.numbers.entry(stem.to_owned()).or_default();
            *number += 1;
            let name = format!("{stem}_{number}");
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }

    /// A node without attributes; returns its output.
    pub fn op(&mut self, kind: &str, inputs: &[&str]) -> String {
        self.with(kind, inputs, Vec::new())
    }

    /// A node; returns its first output.
    pub fn with(&mut self, kind: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.several(kind, inputs, attributes, 1).swap_remove(0)
    }

    /// A node with `count` outputs, at least one.
    pub fn several(
        &mut self,
        kind: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
        count: usize,
    ) -> Vec<String> {
        let mut node = NodeProto {
            op_type: Some(kind.to_owned()),
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            attribute: attributes,
            ..NodeProto::default()
        };
        let mut key = node.encode_to_vec();
        key.extend(count.to_le_bytes());
        if let Some(outputs) = self.emitted.get(&key) {
            return outputs.clone();
        }
        let stem = format!("{}/{kind}", self.stem);
        let outputs: Vec<String> = (0..count.max(1)).map(|_| self.name(&stem)).collect();
        node.name = outputs.first().cloned();
        node.output.clone_from(&outputs);
        self.nodes.push(node);
        self.emitted.insert(key, outputs.clone());
        outputs
    }

    /// Tells that `outputs` are what the operation `kind` makes of `inputs`; empty names stand for what is absent.
    pub fn composite(&mut self, kind: &str, inputs: &[&str], outputs: &[&str], attributes: Vec<AttributeProto>) {
        let names = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect();
        self.composites.push(NodeProto {
            op_type: Some(kind.to_owned()),
            input: names(inputs),
            output: names(outputs),
            attribute: attributes,
            ..NodeProto::default()
        });
    }

    /// `x` under the name `to`.
    pub fn identity(&mut self, x: &str, to: &str) {
        self.nodes.push(NodeProto {
            op_type: Some("Identity".to_owned()),
            name: Some(to.to_owned()),
            input: vec![x.to_owned()],
            output: vec![to.to_owned()],
            ..NodeProto::default()
        });
    }

    /// A constant.
    pub fn tensor(&mut self, values: &Tensor) -> String {
        let mut message = tensor_proto("", values);
        let key = message.encode_to_vec();
        if let Some(name) = self.constants.get(&key) {
            return name.clone();
        }
        let name = self.name("const");
        message.name = Some(name.clone());
        self.initializers.push(message);
        self.constants.insert(key, name.clone());
        name
    }

    /// A list of integers: axes, shapes.
    pub fn ints(&mut self, values: &[i64]) -> String {
        match Tensor::from_vec([values.len()], values.to_vec()) {
            Ok(list) => self.tensor(&list),
            // A list has as many elements as it has.
            Err(_) => String::new(),
        }
    }

    /// A number of a type that computes: a float, or an integer of 64 bits.
    pub fn scalar(&mut self, dtype: DataType, value: f64) -> String {
        self.floats(dtype, &[], &[value])
    }

    /// Numbers of a type that computes.
    pub fn floats(&mut self, dtype: DataType, shape: &[usize], values: &[f64]) -> String {
        let tensor = match dtype {
            DataType::Float64 => Tensor::from_vec(shape, values.to_vec()),
            DataType::Int64 => Tensor::from_vec(shape, values.iter().map(|&v| v as i64).collect::<Vec<_>>()),
            _ => Tensor::from_vec(shape, values.iter().map(|&v| v as f32).collect::<Vec<_>>()),
        };
        let Ok(tensor) = tensor else { return String::new() };
        let name = self.tensor(&tensor);
        if matches!(dtype, DataType::Float16 | DataType::BFloat16) { self.cast(&name, dtype) } else { name }
    }

    /// `x` in another type.
    pub fn cast(&mut self, x: &str, to: DataType) -> String {
        self.with("Cast", &[x], vec![AttributeProto::of_int("to", to.to_onnx().into())])
    }

    /// `x` times a number.
    pub fn scale(&mut self, x: &str, dtype: DataType, by: f64) -> String {
        if by == 1.0 {
            return x.to_owned();
        }
        if by == -1.0 {
            return self.op("Neg", &[x]);
        }
        let by = self.scalar(dtype, by);
        self.op("Mul", &[x, &by])
    }

    /// A reduction, e.g. `ReduceSum`; over all axes where none is named.
    pub fn reduce(&mut self, kind: &str, x: &str, axes: &[i64], after: Axes) -> String {
        let keep = AttributeProto::of_int("keepdims", i64::from(after == Axes::Keep));
        if axes.is_empty() {
            return self.with(kind, &[x], vec![keep]);
        }
        // Before version 18 only the sum took its axes as an input.
        if kind == "ReduceSum" || self.opset >= 18 {
            let axes = self.ints(axes);
            return self.with(kind, &[x, &axes], vec![keep]);
        }
        self.with(kind, &[x], vec![AttributeProto::of_ints("axes", axes), keep])
    }

    /// The sum over `axes`.
    pub fn sum(&mut self, x: &str, axes: &[i64], after: Axes) -> String {
        self.reduce("ReduceSum", x, axes, after)
    }

    /// The axes in another order.
    pub fn transpose(&mut self, x: &str, order: &[usize]) -> String {
        if order.iter().enumerate().all(|(i, &o)| i == o) {
            return x.to_owned();
        }
        let order: Vec<i64> = order.iter().map(|&o| o as i64).collect();
        self.with("Transpose", &[x], vec![AttributeProto::of_ints("perm", order)])
    }

    /// The elements under another shape; -1 for what is left, 0 for the same size as before.
    pub fn reshape(&mut self, x: &str, shape: &[i64]) -> String {
        let shape = self.ints(shape);
        self.op("Reshape", &[x, &shape])
    }

    /// Axes of size 1 put in.
    pub fn unsqueeze(&mut self, x: &str, axes: &[i64]) -> String {
        if axes.is_empty() {
            return x.to_owned();
        }
        let axes = self.ints(axes);
        self.op("Unsqueeze", &[x, &axes])
    }

    /// Axes of size 1 taken away.
    pub fn squeeze(&mut self, x: &str, axes: &[i64]) -> String {
        let axes = self.ints(axes);
        self.op("Squeeze", &[x, &axes])
    }

    /// A part of `x`: from `starts` to `ends`, in steps.
    pub fn slice(&mut self, x: &str, ranges: &[Range]) -> String {
        let column = |of: fn(&Range) -> i64| ranges.iter().map(of).collect::<Vec<_>>();
        let starts = self.ints(&column(|r| r.start));
        let ends = self.ints(&column(|r| r.end));
        let axes = self.ints(&column(|r| r.axis));
        if ranges.iter().all(|r| r.step == 1) {
            return self.op("Slice", &[x, &starts, &ends, &axes]);
        }
        let steps = self.ints(&column(|r| r.step));
        self.op("Slice", &[x, &starts, &ends, &axes, &steps])
    }

    /// Zeros around `x`: all begins, then all ends.
    pub fn pad(&mut self, x: &str, pads: &[i64]) -> String {
        if pads.iter().all(|&p| p == 0) {
            return x.to_owned();
        }
        let pads = self.ints(pads);
        self.op("Pad", &[x, &pads])
    }

    /// `x` at its place in zeros of `rank` axes.
    pub fn placed(&mut self, x: &str, place: Place, rank: usize) -> String {
        let mut pads = vec![0; 2 * rank];
        if let Some(before) = pads.get_mut(place.axis) {
            *before = place.begin;
        }
        if let Some(after) = pads.get_mut(rank + place.axis) {
            *after = place.size - place.end;
        }
        let padded = self.pad(x, &pads);
        if padded != x {
            self.places.insert(padded.clone(), (x.to_owned(), place));
        }
        padded
    }

    /// Parts that lie side by side in zeros, and fill them, are their sum one after the other.
    fn side_by_side(&mut self, values: &[String]) -> Option<String> {
        let mut parts: Vec<_> = values.iter().map(|name| self.places.get(name).cloned()).collect::<Option<_>>()?;
        parts.sort_by_key(|(_, place)| place.begin);
        let (axis, size) = parts.first().map(|(_, place)| (place.axis, place.size))?;
        let mut filled = 0;
        for (_, place) in &parts {
            if (place.axis, place.size, place.begin) != (axis, size, filled) {
                return None;
            }
            filled = place.end;
        }
        let names: Vec<String> = parts.into_iter().map(|(name, _)| name).collect();
        (filled == size).then(|| self.concat(&names, axis as i64))
    }

    /// Values one after the other along an axis.
    pub fn concat(&mut self, values: &[String], axis: i64) -> String {
        if let [one] = values {
            return one.clone();
        }
        let names: Vec<&str> = values.iter().map(String::as_str).collect();
        self.with("Concat", &names, vec![AttributeProto::of_int("axis", axis)])
    }

    /// Parts of these sizes along an axis.
    pub fn split(&mut self, x: &str, sizes: &[i64], axis: i64) -> Vec<String> {
        let parts = self.ints(sizes);
        self.several("Split", &[x, &parts], vec![AttributeProto::of_int("axis", axis)], sizes.len())
    }

    /// The matrices' product, one or both transposed.
    pub fn gemm(&mut self, a: (&str, Side), b: (&str, Side), alpha: f32) -> String {
        let flag = |name, side| AttributeProto::of_int(name, i64::from(side == Side::Transposed));
        let mut attributes = vec![flag("transA", a.1), flag("transB", b.1)];
        if alpha != 1.0 {
            attributes.push(AttributeProto::of_float("alpha", alpha));
        }
        self.with("Gemm", &[a.0, b.0], attributes)
    }

    /// Zeros like `x`, whatever `x` holds.
    pub fn zeros_like(&mut self, x: &str, dtype: DataType) -> String {
        let zero = self.scalar(dtype, 0.0);
        let shape = self.op("Shape", &[x]);
        self.op("Expand", &[&zero, &shape])
    }

    /// The sum of values of one shape.
    pub fn total(&mut self, values: &[String]) -> Option<String> {
        let (first, rest) = values.split_first()?;
        if let Some(joined) = self.side_by_side(values) {
            return Some(joined);
        }
        Some(rest.iter().fold(first.clone(), |sum, next| self.op("Add", &[&sum, next])))
    }
}

/// How a matrix goes into a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// As it is.
    Plain,
    /// Rows as columns.
    Transposed,
}

/// A part along one axis.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub axis: i64,
    pub start: i64,
    pub end: i64,
    pub step: i64,
}

//! A walk over the protobuf bytes before they are decoded.
//!
//! Decoding trades two bytes of file for hundreds of bytes of memory, and a decoder's error says which field is broken
//! but not of which node. So one pass counts what decoding will take and names the place of a defect. Values are left
//! to the decoder.

use std::{mem::size_of, ops::Range};

use crate::{
    GraphError, Limits,
    limits::within,
    proto::{
        AttributeProto, FunctionProto, GraphProto, NodeProto, SparseTensorProto, StringStringEntryProto, TensorProto,
        TypeProto, ValueInfoProto,
    },
};

/// Messages whose fields are walked; the others are leaves that hold little.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    ValueInfo,
    Type,
    Function,
    Training,
    Leaf,
}

impl Kind {
    /// The message that `field` of this message holds, and the field's name.
    fn child(self, field: u64) -> Option<(Kind, &'static str)> {
        use Kind::*;
        Some(match (self, field) {
            (Model, 7) => (Graph, "graph"),
            (Model, 20) => (Training, "training_info"),
            (Model, 25) => (Function, "function"),
            (Training, 1) => (Graph, "initialization"),
            (Training, 2) => (Graph, "algorithm"),
            (Graph, 1) | (Function, 7) => (Node, "node"),
            (Graph, 5) => (Tensor, "initializer"),
            (Graph, 11) => (ValueInfo, "input"),
            (Graph, 12) => (ValueInfo, "output"),
            (Graph, 13) | (Function, 12) => (ValueInfo, "value_info"),
            (Graph, 15) => (Sparse, "sparse_initializer"),
            (Function, 11) | (Node, 5) => (Attribute, "attribute"),
            (Attribute, 5 | 10) => (Tensor, "tensor"),
            (Attribute, 6 | 11) => (Graph, "graph"),
            (Attribute, 14 | 15) => (Type, "type"),
            (Attribute, 22 | 23) => (Sparse, "sparse_tensor"),
            (Sparse, 1) => (Tensor, "values"),
            (Sparse, 2) => (Tensor, "indices"),
            (ValueInfo, 2) => (Type, "type"),
            (Model, 8 | 14 | 26) | (Graph, 14 | 16) | (Node, 9 | 10) | (Tensor, 3 | 13 | 16) => (Leaf, "entry"),
            (Function, 9 | 14) | (Training, 3 | 4) | (ValueInfo, 4) | (Type, _) => (Leaf, "entry"),
            _ => return None,
        })
    }

    /// Where this message keeps its own name.
    fn name_field(self) -> Option<u64> {
        match self {
            Kind::Node => Some(3),
            Kind::Tensor => Some(8),
            Kind::Attribute | Kind::ValueInfo | Kind::Function => Some(1),
            _ => None,
        }
    }

    /// True where `field` is text, which protobuf wants in UTF-8.
    fn is_text(self, field: u64) -> bool {
        match self {
            Kind::Model => matches!(field, 2..=4 | 6),
            Kind::Graph => matches!(field, 2 | 10),
            Kind::Node => matches!(field, 1..=4 | 6..=8),
            Kind::Attribute => matches!(field, 1 | 13 | 21),
            Kind::Tensor => matches!(field, 8 | 12),
            Kind::ValueInfo => matches!(field, 1 | 3),
            Kind::Function => matches!(field, 1 | 4..=6 | 8 | 10 | 13),
            Kind::Type => field == 6,
            Kind::Sparse | Kind::Training | Kind::Leaf => false,
        }
    }

    fn memory(self) -> usize {
        match self {
            Kind::Model => 0,
            Kind::Graph => size_of::<GraphProto>(),
            Kind::Node => size_of::<NodeProto>(),
            Kind::Attribute => size_of::<AttributeProto>(),
            Kind::Tensor => size_of::<TensorProto>(),
            Kind::Sparse => size_of::<SparseTensorProto>(),
            Kind::ValueInfo => size_of::<ValueInfoProto>(),
            Kind::Type => size_of::<TypeProto>(),
            Kind::Function => size_of::<FunctionProto>(),
            Kind::Training => 2 * size_of::<GraphProto>(),
            Kind::Leaf => 2 * size_of::<StringStringEntryProto>(),
        }
    }
}

/// Counts what `bytes` hold and finds the first defect of their framing.
pub(crate) fn scan(bytes: &[u8], limits: &Limits) -> Result<(), GraphError> {
    let mut walk = Walk { all: bytes, limits, nodes: 0, functions: 0, memory: 0 };
    walk.message(Kind::Model, 0, bytes.len(), 0).map_err(|fault| match fault {
        Fault::Limit(error) => error,
        Fault::Bytes { mut path, reason } => {
            path.reverse();
            let place = if path.is_empty() { "model".to_owned() } else { path.join(", ") };
            GraphError::Malformed(format!("{place}: {reason}"))
        }
    })
}

struct Walk<'a> {
    all: &'a [u8],
    limits: &'a Limits,
    nodes: u64,
    functions: u64,
    memory: u64,
}

/// The decoder's own bound on messages within messages.
const MESSAGE_DEPTH_MAX: u32 = 99;

enum Fault {
    Limit(GraphError),
    /// Innermost place first.
    Bytes {
        path: Vec<String>,
        reason: String,
    },
}

impl From<GraphError> for Fault {
    fn from(error: GraphError) -> Self {
        Self::Limit(error)
    }
}

fn defect(reason: String) -> Fault {
    Fault::Bytes { path: Vec::new(), reason }
}

impl Walk<'_> {
    /// Walks one message; a defect in it, or below, gets its name.
    fn message(&mut self, kind: Kind, start: usize, end: usize, depth: u32) -> Result<(), Fault> {
        self.admit(kind, depth)?;
        let mut name = None;
        self.fields(kind, start..end, depth, &mut name).map_err(|fault| fault.of(self.name_at(name)))
    }

    fn fields(
        &mut self,
        kind: Kind,
        range: Range<usize>,
        depth: u32,
        name: &mut Option<Range<usize>>,
    ) -> Result<(), Fault> {
        let (mut at, end, mut counts) = (range.start, range.end, [0u32; 32]);
        while at < end {
            let before = at;
            let key = self.varint(&mut at, end)?;
            let (field, wire) = (key >> 3, key & 7);
            match wire {
                0 => drop(self.varint(&mut at, end)?),
                1 => at = self.advance(at, 8, end, before)?,
                5 => at = self.advance(at, 4, end, before)?,
                2 => {
                    let length = self.varint(&mut at, end)?;
                    let from = at;
                    at = self.advance(at, length, end, before)?;
                    if kind.name_field() == Some(field) {
                        *name = Some(from..at);
                    }
                    match kind.child(field) {
                        Some((child, label)) => {
                            let ordinal = counts.get_mut(field as usize).map_or(0, |n| std::mem::replace(n, *n + 1));
                            self.message(child, from, at, depth + 1).map_err(|fault| fault.below(label, ordinal))?;
                        }
                        None => self.plain(kind, field, from, at)?,
                    }
                }
                _ => return Err(defect(format!("field {field} at byte {before} has the unknown wire type {wire}"))),
            }
        }
        Ok(())
    }

    fn admit(&mut self, kind: Kind, depth: u32) -> Result<(), Fault> {
        match kind {
            Kind::Node => {
                self.nodes += 1;
                within("number of nodes", self.nodes, self.limits.nodes)?;
            }
            Kind::Function => {
                self.functions += 1;
                within("number of functions", self.functions, self.limits.functions)?;
            }
            _ => {}
        }
        if depth > MESSAGE_DEPTH_MAX {
            within("nesting of messages", depth.into(), MESSAGE_DEPTH_MAX.into())?;
        }
        self.charge(kind.memory())
    }

    fn charge(&mut self, bytes: usize) -> Result<(), Fault> {
        self.memory += bytes as u64;
        Ok(within("memory for the model's structure in bytes", self.memory, self.limits.structure_bytes)?)
    }

    fn plain(&mut self, kind: Kind, field: u64, from: usize, to: usize) -> Result<(), Fault> {
        self.charge(size_of::<String>() * 2)?;
        let bytes = self.all.get(from..to).unwrap_or_default();
        if kind.is_text(field) && std::str::from_utf8(bytes).is_err() {
            return Err(defect(format!("text of field {field} at byte {from} is not UTF-8")));
        }
        Ok(())
    }

    fn advance(&self, at: usize, length: u64, end: usize, field_at: usize) -> Result<usize, Fault> {
        let left = (end - at) as u64;
        if length > left {
            return Err(defect(format!("field at byte {field_at} claims {length} bytes, {left} are left")));
        }
        Ok(at + length as usize)
    }

    fn varint(&self, at: &mut usize, end: usize) -> Result<u64, Fault> {
        let start = *at;
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.all.get(*at).filter(|_| *at < end);
            let Some(byte) = byte else { return Err(defect(format!("number at byte {start} is cut off"))) };
            *at += 1;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(defect(format!("number at byte {start} is longer than 10 bytes")))
    }

    fn name_at(&self, range: Option<Range<usize>>) -> Option<&str> {
        let name = std::str::from_utf8(self.all.get(range?)?).ok()?;
        (name.len() <= NAME_BYTES_MAX && !name.is_empty()).then_some(name)
    }
}

/// Longer names are of no help in an error.
const NAME_BYTES_MAX: usize = 200;

impl Fault {
    /// Adds the name of the message that the defect is in.
    fn of(self, name: Option<&str>) -> Self {
        match (self, name) {
            (Self::Bytes { mut path, reason }, Some(name)) => {
                path.push(format!("`{name}`"));
                Self::Bytes { path, reason }
            }
            (fault, _) => fault,
        }
    }

    /// Adds which part of the message above the defect is in.
    fn below(self, label: &str, ordinal: u32) -> Self {
        let Self::Bytes { mut path, reason } = self else { return self };
        let named = path.pop_if(|last| last.starts_with('`'));
        path.push(match named {
            Some(name) => format!("{label} {ordinal} {name}"),
            None => format!("{label} {ordinal}"),
        });
        Self::Bytes { path, reason }
    }
}

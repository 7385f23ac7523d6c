//! A walk over the protobuf bytes before they are decoded.
//!
//! Decoding trades two bytes of file for hundreds of bytes of memory, and a decoder's error says which field is broken
//! but not of which node. So one pass counts what decoding will take and names the place of a defect. Values are left
//! to the decoder.

use std::{mem::size_of, ops::Range};

use prost::Message as _;

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
    walk(bytes, limits, false)
}

/// The place of what the decoder says of `bytes`: the innermost message that does not decode. None where each does.
pub(crate) fn blame(bytes: &[u8], limits: &Limits) -> Option<GraphError> {
    walk(bytes, limits, true).err()
}

fn walk(bytes: &[u8], limits: &Limits, decode: bool) -> Result<(), GraphError> {
    let mut walk = Walk { all: bytes, limits, decode, nodes: 0, functions: 0, memory: 0, claimed: None, last: None };
    walk.message(Kind::Model, 0, bytes.len(), 0).map(drop).map_err(|fault| match fault {
        Fault::Limit(error) => error,
        Fault::Bytes { mut path, reason } => {
            path.reverse();
            let place = if path.is_empty() { "model".to_owned() } else { path.join(", ") };
            GraphError::Malformed(format!("{place}: {reason}"))
        }
    })
}

/// What the decoder says of one message.
fn decoded(kind: Kind, bytes: &[u8]) -> Result<(), prost::DecodeError> {
    match kind {
        Kind::Graph => GraphProto::decode(bytes).map(drop),
        Kind::Node => NodeProto::decode(bytes).map(drop),
        Kind::Attribute => AttributeProto::decode(bytes).map(drop),
        Kind::Tensor => TensorProto::decode(bytes).map(drop),
        Kind::Sparse => SparseTensorProto::decode(bytes).map(drop),
        Kind::ValueInfo => ValueInfoProto::decode(bytes).map(drop),
        Kind::Type => TypeProto::decode(bytes).map(drop),
        Kind::Function => FunctionProto::decode(bytes).map(drop),
        Kind::Model | Kind::Training | Kind::Leaf => Ok(()),
    }
}

/// The decoder's reason without the types of its own that it names before.
pub(crate) fn reason(error: &prost::DecodeError) -> String {
    let text = error.to_string();
    let text = text.trim_start_matches("failed to decode Protobuf message: ");
    let field = |part: &&str| part.split('.').count() == 2 && !part.contains(' ');
    let mut parts = text.split(": ").peekable();
    let mut at = None;
    while let Some(part) = parts.next_if(field) {
        at = at.or(part.split('.').nth(1));
    }
    let rest = parts.collect::<Vec<_>>().join(": ");
    at.map_or_else(|| rest.clone(), |at| format!("`{}`: {rest}", at.trim_start_matches("r#")))
}

struct Walk<'a> {
    all: &'a [u8],
    limits: &'a Limits,
    /// Decode each message as well.
    decode: bool,
    nodes: u64,
    functions: u64,
    memory: u64,
    /// Where the file should end, by a message that goes beyond its end: then it is cut off, and is walked to where it ends.
    claimed: Option<u64>,
    /// The last message that was whole: what it is, which of its kind, and its name.
    last: Option<(&'static str, u32, Option<Range<usize>>)>,
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
    fn message(&mut self, kind: Kind, start: usize, end: usize, depth: u32) -> Result<Option<Range<usize>>, Fault> {
        self.admit(kind, depth)?;
        let mut name = None;
        let walked = self.fields(kind, start..end, depth, &mut name);
        let decoded = |()| match self.all.get(start..end).filter(|_| self.decode) {
            Some(bytes) => decoded(kind, bytes).map_err(|e| defect(reason(&e))),
            None => Ok(()),
        };
        walked.and_then(decoded).map_err(|fault| match fault {
            // Between two of its parts, which is all that there is to name.
            Fault::Bytes { path, reason } if kind == Kind::Graph && path.is_empty() => {
                defect(format!("{reason}{}", self.behind()))
            }
            fault => fault.of(self.name_at(name.clone())),
        })?;
        Ok(name)
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
                    let child = kind.child(field);
                    let whole = self.advance(at, length, end, before);
                    let cut = whole.is_err() && end == self.all.len() && child.is_some();
                    at = if cut { self.cut_at(from as u64 + length.min(u64::MAX >> 1)) } else { whole? };
                    if kind.name_field() == Some(field) {
                        *name = Some(from..at);
                    }
                    match child {
                        Some((child, label)) => {
                            let ordinal = counts.get_mut(field as usize).map_or(0, |n| std::mem::replace(n, *n + 1));
                            let walked = self.message(child, from, at, depth + 1);
                            let own = walked.map_err(|fault| fault.below(label, ordinal))?;
                            if cut {
                                return Err(self.cut_behind().below(label, ordinal));
                            }
                            if child != Kind::Leaf {
                                self.last = Some((label, ordinal, own));
                            }
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
            let reason = match self.claimed {
                Some(_) if end == self.all.len() => self.cut_off(),
                _ if end == self.all.len() => format!(
                    "field at byte {field_at} claims {length} bytes, {left} are left: the file is cut off, or its length damaged"
                ),
                _ => format!("field at byte {field_at} claims {length} bytes, {left} are left"),
            };
            return Err(defect(reason));
        }
        Ok(at + length as usize)
    }

    /// The end of the file, for a message that should end at `claimed`. The outermost says best how long the file was.
    fn cut_at(&mut self, claimed: u64) -> usize {
        self.claimed.get_or_insert(claimed);
        self.all.len()
    }

    /// The file ends within a message, behind a part of it that is whole.
    fn cut_behind(&self) -> Fault {
        defect(format!("{}{}", self.cut_off(), self.behind()))
    }

    /// The last part that was whole.
    fn behind(&self) -> String {
        match &self.last {
            None => String::new(),
            Some((label, ordinal, name)) => match self.name_at(name.clone()) {
                Some(name) => format!(", behind {label} {ordinal} `{name}`"),
                None => format!(", behind {label} {ordinal}"),
            },
        }
    }

    fn cut_off(&self) -> String {
        let (there, claimed) = (self.all.len(), self.claimed.unwrap_or(0));
        format!("the file is cut off: {there} bytes are there, it claims at least {claimed}")
    }

    fn varint(&self, at: &mut usize, end: usize) -> Result<u64, Fault> {
        let start = *at;
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.all.get(*at).filter(|_| *at < end);
            let Some(byte) = byte else {
                let cut = self.claimed.filter(|_| end == self.all.len()).map(|_| self.cut_off());
                return Err(defect(cut.unwrap_or_else(|| format!("number at byte {start} is cut off"))));
            };
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

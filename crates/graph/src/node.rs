//! Attributes of a node by name, and how messages name a node.

use crate::proto::{AttributeProto, NodeProto, TensorProto, attribute_proto::AttributeType};

impl NodeProto {
    /// The attribute of that name.
    pub fn attr(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute.iter().find(|a| a.name() == name)
    }

    /// An integer attribute.
    pub fn attr_int(&self, name: &str) -> Option<i64> {
        self.attr(name)?.i
    }

    /// A float attribute.
    pub fn attr_float(&self, name: &str) -> Option<f32> {
        self.attr(name)?.f
    }

    /// A list of integers; none where the attribute is absent, which differs from an empty list.
    pub fn attr_ints(&self, name: &str) -> Option<&[i64]> {
        self.attr(name).map(|a| a.ints.as_slice())
    }

    /// A string attribute, where it is text.
    pub fn attr_text(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.attr(name)?.s.as_ref()?).ok()
    }

    /// True for operators of the standard itself.
    pub fn is_standard(&self) -> bool {
        matches!(self.domain(), "" | "ai.onnx")
    }
}

impl AttributeProto {
    /// An integer.
    pub fn of_int(name: &str, value: i64) -> Self {
        Self { i: Some(value), ..Self::typed(name, AttributeType::Int) }
    }

    /// A list of integers.
    pub fn of_ints(name: &str, values: impl Into<Vec<i64>>) -> Self {
        Self { ints: values.into(), ..Self::typed(name, AttributeType::Ints) }
    }

    /// A float.
    pub fn of_float(name: &str, value: f32) -> Self {
        Self { f: Some(value), ..Self::typed(name, AttributeType::Float) }
    }

    /// Text.
    pub fn of_text(name: &str, value: &str) -> Self {
        Self { s: Some(bytes::Bytes::copy_from_slice(value.as_bytes())), ..Self::typed(name, AttributeType::String) }
    }

    /// A tensor.
    pub fn of_tensor(name: &str, value: TensorProto) -> Self {
        Self { t: Some(value), ..Self::typed(name, AttributeType::Tensor) }
    }

    fn typed(name: &str, kind: AttributeType) -> Self {
        Self { name: Some(name.to_owned()), r#type: Some(kind as i32), ..Self::default() }
    }
}

/// "node `conv1` (Conv)", or by its place in the graph where it has no name.
pub(crate) fn place(node: &NodeProto, index: usize) -> String {
    match node.name() {
        "" => format!("node {index} ({})", node.op_type()),
        name => format!("node `{name}` ({})", node.op_type()),
    }
}

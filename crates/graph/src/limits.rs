//! How large a model may be before it is refused.

use crate::{GraphError, proto::ModelProto, walk};

/// Bounds on what a model file may ask for. The defaults hold for every model in use and stop a hostile one early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the ONNX file itself, external data apart (protobuf allows 2 GiB - 1).
    pub file_bytes: u64,
    /// Nodes in all graphs, subgraphs and functions together.
    pub nodes: u64,
    /// Tensors in all graphs together.
    pub tensors: u64,
    /// Depth of graphs within attributes of nodes.
    pub nesting: u64,
    /// Model-local functions.
    pub functions: u64,
    /// Bytes of all tensors together, external data included.
    pub tensor_bytes: u64,
    /// Memory for the decoded structure, tensor data aside: many small messages take more memory than file.
    pub structure_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            file_bytes: i32::MAX as u64,
            nodes: 1_000_000,
            tensors: 1_000_000,
            nesting: 32,
            functions: 10_000,
            tensor_bytes: 1 << 40,
            structure_bytes: 2 << 30,
        }
    }
}

impl Limits {
    pub(crate) fn file(&self, bytes: u64) -> Result<(), GraphError> {
        within("the size of the ONNX file in bytes", bytes, self.file_bytes)
    }

    pub(crate) fn model(&self, model: &ModelProto) -> Result<(), GraphError> {
        within("the number of functions", model.functions.len() as u64, self.functions)?;
        within("the nesting of graphs", walk::depth(model), self.nesting)?;
        let mut nodes = 0;
        walk::nodes(model, &mut |_| nodes += 1);
        within("the number of nodes", nodes, self.nodes)?;
        let (mut tensors, mut bytes) = (0, 0u64);
        walk::tensors(model, &mut |tensor| {
            tensors += 1;
            bytes = bytes.saturating_add(crate::codec::declared_bytes(tensor));
        });
        within("the number of tensors", tensors, self.tensors)?;
        within("the bytes of all tensors", bytes, self.tensor_bytes)
    }
}

pub(crate) fn within(what: &str, actual: u64, limit: u64) -> Result<(), GraphError> {
    if actual <= limit { Ok(()) } else { Err(GraphError::Limit { what: what.to_owned(), actual, limit }) }
}

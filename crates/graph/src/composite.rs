//! Composites: operations that a graph spells out in standard nodes, told beside them.
//!
//! The nodes remain the graph: an engine that knows nothing of composites runs them. One that has a faster way to make the
//! same outputs of the same inputs may take it, and need not guess from the nodes what they are for. As StableHLO's
//! composites have it, a composite is a name with attributes, and its decomposition.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use prost::Message as _;

use crate::{
    GraphError, Model,
    proto::{GraphProto, NodeProto, StringStringEntryProto},
};

/// The model's metadata under which composites stand.
const KEY: &str = "edgeward.composites";

impl Model {
    /// The operations that the main graph spells out: nodes whose inputs and outputs are values of the graph. Empty where
    /// the model tells none; an error where what it tells cannot be read.
    pub fn composites(&self) -> Result<Vec<NodeProto>, GraphError> {
        let Some(entry) = self.proto().metadata_props.iter().find(|entry| entry.key() == KEY) else {
            return Ok(Vec::new());
        };
        let fail = |reason: String| GraphError::invalid(format!("metadata `{KEY}`"), reason);
        let bytes = STANDARD.decode(entry.value()).map_err(|e| fail(e.to_string()))?;
        Ok(GraphProto::decode(bytes.as_slice()).map_err(|e| fail(e.to_string()))?.node)
    }

    /// Tells `composites` beside the graph, instead of what was told before.
    pub fn set_composites(&mut self, composites: Vec<NodeProto>) {
        let told = &mut self.proto_mut().metadata_props;
        told.retain(|entry| entry.key() != KEY);
        if !composites.is_empty() {
            let graph = GraphProto { node: composites, ..GraphProto::default() };
            let value = Some(STANDARD.encode(graph.encode_to_vec()));
            told.push(StringStringEntryProto { key: Some(KEY.to_owned()), value });
        }
    }
}

//! What a model is made of, in numbers.

use std::collections::BTreeMap;

use crate::{Model, codec, walk};

/// Counts of a model's parts, subgraphs and functions included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Nodes.
    pub nodes: usize,
    /// Operator types with their counts, most frequent first; other domains as `domain.Type`.
    pub operators: Vec<(String, usize)>,
    /// Elements of all initialisers.
    pub parameters: u64,
    /// Bytes of all initialisers, external data included.
    pub initializer_bytes: u64,
}

/// Counts the parts of `model` by what it declares; opens no external data.
pub fn stats(model: &Model) -> Stats {
    let mut operators: BTreeMap<String, usize> = BTreeMap::new();
    let mut nodes = 0;
    walk::nodes(model.proto(), &mut |node| {
        nodes += 1;
        let op = node.op_type.as_deref().unwrap_or("");
        let name = match node.domain.as_deref() {
            None | Some("" | "ai.onnx") => op.to_owned(),
            Some(domain) => format!("{domain}.{op}"),
        };
        *operators.entry(name).or_default() += 1;
    });
    let mut operators: Vec<(String, usize)> = operators.into_iter().collect();
    operators.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let tensors = &model.graph().initializer;
    Stats {
        nodes,
        operators,
        parameters: tensors.iter().map(codec::declared_count).fold(0, u64::saturating_add),
        initializer_bytes: tensors.iter().map(codec::declared_bytes).fold(0, u64::saturating_add),
    }
}

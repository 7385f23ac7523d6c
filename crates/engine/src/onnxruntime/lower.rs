//! Lowering: a training graph in the operators of our own that run it fastest, see `operators`.
//!
//! What the graph's nodes are for it tells itself, as [composites](edgeward_graph::Model::composites); values between convolutions
//! are kept blocked, 16 channels beside each other. Whatever is not known here stays as it is, and is given plain values.

mod fuse;
mod layout;
mod select;

use edgeward_graph::{DataType, Inferred, Model, infer, proto::OperatorSetIdProto};

use super::operators;

/// The model in our own operators; none where it tells no composites, or the processor or library does not fit.
///
/// A composite that does not fit its graph is left out, not an error: the nodes that spell it out are there.
pub(super) fn lowered(model: &Model) -> Option<Model> {
    if !operators::available() {
        return None;
    }
    let composites = model.composites().ok().filter(|told| !told.is_empty())?;
    let types = infer(model, &Default::default()).ok()?;
    let mut model = model.clone();
    select::replace(&mut model, &types, &composites);
    model.graph_mut().sort_nodes().ok()?;
    model.graph_mut().drop_dead_nodes();
    fuse::tails(&mut model, &types);
    model.graph_mut().sort_nodes().ok()?;
    layout::assign(&mut model, &types);
    model.set_composites(Vec::new());
    model.graph_mut().value_info.clear();
    let import = OperatorSetIdProto { domain: Some(operators::domain().to_owned()), version: Some(1) };
    model.proto_mut().opset_import.push(import);
    Some(model)
}

/// Channels, height and width of an f32 value [n, c, h, w].
fn image(types: &Inferred, name: &str) -> Option<[usize; 3]> {
    let value = types.of(name);
    let shape = value.shape.filter(|shape| shape.len() == 4 && value.dtype == Some(DataType::Float32))?;
    let size = |i: usize| match shape.get(i) {
        Some(edgeward_graph::Dimension::Fixed(size)) if *size > 0 => Some(*size),
        _ => None,
    };
    Some([size(1)?, size(2)?, size(3)?])
}

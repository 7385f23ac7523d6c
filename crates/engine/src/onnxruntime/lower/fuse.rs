//! A normalisation, the sum and the activation after it are one pass over memory, and so are their gradients.

use edgeward_graph::{
    Inferred, Links, Model,
    proto::{AttributeProto, GraphProto, NodeProto},
};

use super::{super::operators, select::constant};

/// What stands after a normalisation, by the indices of nodes.
struct Tail {
    norm: usize,
    /// Joins another value.
    add: Option<usize>,
    activation: usize,
    /// The activation's gradient.
    mask: usize,
    /// The normalisation's.
    gradient: usize,
    bounds: [f32; 2],
}

/// Takes sums and activations into the normalisations before them, where nothing else sees what lies between.
pub(super) fn tails(model: &mut Model, types: &Inferred) {
    loop {
        let links = Links::of(model.graph());
        let tail = (0..model.graph().node.len()).find_map(|index| Tail::find(model, &links, types, index));
        let Some(tail) = tail else { return };
        tail.fuse(model.graph_mut());
    }
}

fn is_own(node: &NodeProto, kind: &str) -> bool {
    node.domain() == operators::domain() && node.op_type() == kind
}

impl Tail {
    fn find(model: &Model, links: &Links<'_>, types: &Inferred, norm: usize) -> Option<Self> {
        let graph = model.graph();
        let node = graph.node.get(norm).filter(|node| is_own(node, "BatchNorm") && node.attr("low").is_none())?;
        let only = |value: &String| match links.consumers(value) {
            [one] if !graph.output.iter().any(|output| output.name() == value) => Some(*one),
            _ => None,
        };
        let mut next = only(node.output.first()?)?;
        let mut add = None;
        let joins = graph.node.get(next)?;
        if joins.op_type() == "Add" && joins.is_standard() {
            let shape = types.of(joins.output.first()?).shape;
            let shapes_agree = joins.input.iter().all(|name| types.of(name).shape == shape)
                && joins.input.first() != joins.input.get(1);
            (add, next) = (Some(next).filter(|_| shapes_agree), only(joins.output.first()?)?);
            add?;
        }
        let activation = graph.node.get(next)?;
        let bounds = bounds(model, activation)?;
        let y = activation.output.first()?;
        let kind = |index: &&usize, kind| graph.node.get(**index).is_some_and(|node| is_own(node, kind));
        let mask = *links.consumers(y).iter().find(|index| kind(index, "ReluGradient"))?;
        let masked = graph.node.get(mask).filter(|node| node.input.get(1) == Some(y))?.output.first()?;
        let of_norm = |index: &&usize| {
            let gradient = graph.node.get(**index);
            // Both normalise the same value.
            kind(index, "BatchNormGradient")
                && gradient.is_some_and(|gradient| {
                    gradient.input.first() == Some(masked)
                        && gradient.input.get(1) == node.input.first()
                        && gradient.input.get(3) == node.output.get(1)
                })
        };
        let gradient = *links.consumers(masked).iter().find(of_norm)?;
        Some(Self { norm, add, activation: next, mask, gradient, bounds })
    }

    fn fuse(&self, graph: &mut GraphProto) {
        let names = |index: usize, graph: &GraphProto| graph.node.get(index).cloned().unwrap_or_default();
        let (activation, mask) = (names(self.activation, graph), names(self.mask, graph));
        let between = names(self.norm, graph).output.first().cloned().unwrap_or_default();
        let addend = self.add.and_then(|add| names(add, graph).input.into_iter().find(|name| *name != between));
        let [low, high] = self.bounds;
        let bounds = [AttributeProto::of_float("low", low), AttributeProto::of_float("high", high)];
        if let Some(norm) = graph.node.get_mut(self.norm) {
            norm.attribute.extend(bounds.clone());
            norm.input.extend(addend);
            if let (Some(y), Some(after)) = (norm.output.first_mut(), activation.output.first()) {
                y.clone_from(after);
            }
        }
        if let Some(gradient) = graph.node.get_mut(self.gradient) {
            gradient.attribute.extend(bounds);
            if let (Some(g), Some(whole)) = (gradient.input.first_mut(), mask.input.first()) {
                g.clone_from(whole);
            }
            gradient.input.extend(activation.output.first().cloned());
            // The other side of the sum takes it as well.
            gradient.output.extend(mask.output.first().cloned());
        }
        let mut gone = vec![self.activation, self.mask];
        gone.extend(self.add);
        gone.sort_unstable();
        for index in gone.into_iter().rev() {
            graph.node.remove(index);
        }
    }
}

/// Bounds of a Relu or Clip.
fn bounds(model: &Model, node: &NodeProto) -> Option<[f32; 2]> {
    match node.op_type() {
        "Relu" if node.is_standard() => Some([0.0, f32::INFINITY]),
        "Clip" if node.is_standard() => {
            let bound =
                |index: usize, absent| constant(model, node.input.get(index).map_or("", String::as_str), absent);
            Some([bound(1, f32::NEG_INFINITY)?, bound(2, f32::INFINITY)?])
        }
        _ => None,
    }
}

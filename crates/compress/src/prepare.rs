//! A model made ready: in a recent operator set, with constants folded, and every node and layer under a name of its own.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
};

use edgeward_graph::{DataType, Dimension, FoldLimits, Inferred, Links, Model, fold_constants, infer};

use crate::{CompressError, edit::Edit, focus, fuse, upgrade};

/// A float model that rewrites begin with. It computes what its source does, up to rounding.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The graph.
    pub model: Model,
    /// Types and shapes of its values.
    pub inferred: Inferred,
    /// What can be quantised by its weights, in the graph's order.
    pub layers: Vec<Layer>,
    /// Normalisations that went into weights.
    pub folded: usize,
}

/// What multiplies by constant weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Index of its node.
    pub node: usize,
    /// The value that it makes, which names it.
    pub name: String,
    /// `Conv`, `Gemm` or `MatMul`.
    pub op: String,
    /// Shape of its weights.
    pub weight: Vec<usize>,
}

impl Layer {
    /// Weights.
    pub fn weights(&self) -> usize {
        self.weight.iter().product()
    }

    /// True for convolutions whose filters see one channel each.
    pub fn is_depthwise(&self) -> bool {
        self.op == "Conv" && self.weight.get(1) == Some(&1) && self.weight.first().is_some_and(|filters| *filters > 1)
    }
}

/// Makes a model ready. Errors: external data that is missing, an operator set that cannot be raised, or a graph that
/// contradicts itself.
pub fn prepare(model: &Model) -> Result<Prepared, CompressError> {
    let mut edit = folded(model)?;
    fuse::idle(&mut edit)?;
    let mut edit = Edit::new(edit.model);
    let folded = fuse::batch_norms(&mut edit)?;
    fuse::gemm_factors(&mut edit)?;
    focus::unslice(&mut edit)?;
    concluded(edit.model, folded)
}

/// As [`prepare`], without what would copy weights: normalisations and factors of a Gemm stay where they are. Errors: as there.
pub fn prepare_in_place(model: &Model) -> Result<Prepared, CompressError> {
    let mut edit = folded(model)?;
    fuse::idle(&mut edit)?;
    concluded(edit.model, 0)
}

/// A rewritten graph, looked at anew.
pub(crate) fn concluded(mut model: Model, folded: usize) -> Result<Prepared, CompressError> {
    let graph = model.graph_mut();
    graph.sort_nodes()?;
    graph.drop_dead_nodes();
    name_nodes(&mut model);
    // Declared shapes of values that no longer exist, or under older rules, are worth less than inferred ones.
    model.graph_mut().value_info.clear();
    let inferred = infer(&model, &BTreeMap::new())?;
    let layers = layers(&model);
    Ok(Prepared { model, inferred, layers, folded })
}

/// What every rewrite begins with: all tensors within, in a recent operator set, constants folded.
pub(crate) fn folded(model: &Model) -> Result<Edit, CompressError> {
    let mut model = model.clone();
    model.inline_external()?;
    upgrade::upgrade(&mut model)?;
    model.graph_mut().sort_nodes()?;
    fold_constants(&mut model, &FoldLimits::default());
    Ok(Edit::new(model))
}

/// Profiles and reports tell nodes by their names. A node without one is called by what it makes, in whatever is cut from the model as well.
fn name_nodes(model: &mut Model) {
    let mut seen = HashSet::new();
    for (index, node) in model.graph_mut().node.iter_mut().enumerate() {
        if node.name().is_empty() || seen.contains(node.name()) {
            let made = node.output.first().filter(|made| !made.is_empty() && !seen.contains(*made));
            node.name = Some(made.cloned().unwrap_or_else(|| format!("{}_{index}", node.op_type())));
        }
        seen.insert(node.name().to_owned());
    }
}

fn layers(model: &Model) -> Vec<Layer> {
    let edit = Edit::new(model.clone());
    let graph = model.graph();
    let layer = |(node, proto): (usize, &edgeward_graph::proto::NodeProto)| {
        let weight = proto.input.get(1).filter(|name| edit.is_constant(name))?;
        let tensor = graph.initializer.iter().find(|tensor| tensor.name() == weight)?;
        let shape: Vec<usize> = tensor.dims.iter().map(|&size| usize::try_from(size).ok()).collect::<Option<_>>()?;
        let fits = match proto.op_type() {
            "Conv" => shape.len() >= 3,
            "MatMul" => shape.len() == 2,
            "Gemm" => {
                let factor = |name| proto.attr_float(name).unwrap_or(1.0) == 1.0;
                shape.len() == 2 && proto.attr_int("transA").unwrap_or(0) == 0 && factor("alpha") && factor("beta")
            }
            _ => false,
        };
        let float = tensor.data_type() == DataType::Float32.to_onnx();
        let name = proto.output.first()?.clone();
        let op = proto.op_type().to_owned();
        (proto.is_standard() && fits && float && shape.iter().all(|&size| size > 0)).then_some(Layer {
            node,
            name,
            op,
            weight: shape,
        })
    };
    graph.node.iter().enumerate().filter_map(layer).collect()
}

impl Prepared {
    /// Who makes and reads what.
    pub(crate) fn links(&self) -> Links<'_> {
        Links::of(self.model.graph())
    }

    /// True for values of binary32.
    pub(crate) fn is_float(&self, value: &str) -> bool {
        self.inferred.of(value).dtype == Some(DataType::Float32)
    }

    /// Multiply-adds of a layer in one run; open sizes count as 1.
    pub fn multiply_adds(&self, layer: &Layer) -> f64 {
        let shape = self.inferred.of(&layer.name).shape.unwrap_or_default();
        let channels = if layer.op == "Conv" { 1 } else { shape.len().saturating_sub(1) };
        let size = |(axis, size): (usize, &Dimension)| match size {
            Dimension::Fixed(size) if axis != channels => *size as f64,
            _ => 1.0,
        };
        layer.weights() as f64 * shape.iter().enumerate().map(size).product::<f64>()
    }

    /// What a layer is called where people read it: its node's name.
    pub fn title(&self, layer: &Layer) -> Cow<'_, str> {
        self.model.graph().node.get(layer.node).map_or(Cow::Borrowed(""), |node| Cow::Borrowed(node.name()))
    }
}

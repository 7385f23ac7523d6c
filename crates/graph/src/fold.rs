//! Folding: nodes whose results are the same in every run become tensors of the model.
//!
//! The folded model gives the same bits as the one before. So only what [`crate::eval`] computes is folded, a graph
//! input's default is no constant, and the shape of a value is one only where no run can have another. Local functions
//! are left as they are.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::{
    DataType, Dimension, Model, Tensor, check, codec, element_count,
    eval::{self, count},
    infer::{Known, Place, State, Trust},
    proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto},
    rewrite,
};

/// How much folding may compute and keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoldLimits {
    /// Bytes of one operand or result; a larger one is left to the engine.
    pub value_bytes: usize,
    /// Bytes of all operands and results together.
    pub total_bytes: usize,
}

impl Default for FoldLimits {
    fn default() -> Self {
        Self { value_bytes: 16 << 20, total_bytes: 256 << 20 }
    }
}

/// What folding did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Folded {
    /// Nodes that became tensors.
    pub nodes: usize,
    /// Nodes that no output needs, dropped.
    pub dropped: usize,
}

/// Before this version of the file format every initialiser is an input's default.
const CONSTANT_INITIALIZERS_IR: i64 = 4;

/// Replaces nodes whose inputs are all constant, in the main graph and its subgraphs, by initialisers, then drops the
/// nodes and initialisers that no output needs.
///
/// Left as they are: models of operator sets outside [`OPSETS`](crate::OPSETS), and those with training information,
/// whose bindings name initialisers. The graph must be in topological order; what is not is not folded.
pub fn fold_constants(model: &mut Model, limits: &FoldLimits) -> Folded {
    let proto = model.proto();
    if !check::OPSETS.contains(&model.opset()) || !proto.training_info.is_empty() {
        return Folded::default();
    }
    // Inference goes through the functions while the graph changes.
    let functions = ModelProto {
        functions: proto.functions.clone(),
        opset_import: proto.opset_import.clone(),
        ..ModelProto::default()
    };
    let sizes = BTreeMap::new();
    let local = proto.functions.iter().filter(|f| matches!(f.domain(), "" | "ai.onnx")).map(|f| f.name().to_owned());
    let mut fold = Fold {
        local: local.collect(),
        reader: model.without_messages(),
        state: State::of_model(&functions, &sizes, Trust::Proven),
        constants: HashMap::new(),
        as_nodes: proto.ir_version() < CONSTANT_INITIALIZERS_IR,
        value_bytes: limits.value_bytes,
        bytes_left: limits.total_bytes,
        nodes: 0,
    };
    let graph = model.graph_mut();
    fold.graph(graph, Place::Main);
    let nodes = fold.nodes;
    Folded { nodes, dropped: graph.drop_dead_nodes() }
}

struct Fold<'a> {
    /// Standard operators that the model replaces by functions of its own.
    local: HashSet<String>,
    reader: Model,
    state: State<'a>,
    constants: HashMap<String, Tensor>,
    /// Results stay nodes, of type Constant.
    as_nodes: bool,
    value_bytes: usize,
    bytes_left: usize,
    nodes: usize,
}

/// What the graphs around know under the names that a graph defines itself.
type Shadowed = Vec<(String, Known, Option<Tensor>)>;

impl Fold<'_> {
    fn graph(&mut self, graph: &mut GraphProto, place: Place) {
        let shadowed = self.enter(graph, place);
        let outputs: HashSet<String> = graph.output.iter().map(|o| o.name().to_owned()).collect();
        let nodes = std::mem::take(&mut graph.node);
        let mut defined: HashSet<String> = rewrite::defined(graph).into_iter().map(str::to_owned).collect();
        for mut node in nodes {
            for inner in node.attribute.iter_mut().flat_map(|a| a.g.iter_mut().chain(&mut a.graphs)) {
                self.graph(inner, Place::Inner);
            }
            // A name that is defined twice is a defect, which folding must not turn into another model.
            let twice = node.output.iter().filter(|o| !o.is_empty()).any(|o| !defined.insert(o.clone()));
            let result = self.node(&node).filter(|_| !twice);
            self.nodes += usize::from(result.is_some());
            match result {
                // Some engines want a node behind each output.
                Some(tensor) if self.as_nodes || outputs.contains(tensor.name()) => graph.node.push(constant(tensor)),
                Some(tensor) => graph.initializer.push(tensor),
                None => graph.node.push(node),
            }
        }
        for (name, known, tensor) in shadowed {
            self.constants.remove(&name);
            self.constants.extend(tensor.map(|tensor| (name.clone(), tensor)));
            self.state.restore(&name, known);
        }
    }

    fn enter(&mut self, graph: &GraphProto, place: Place) -> Shadowed {
        let aside = |name: &str| (name.to_owned(), self.state.forget(name), self.constants.remove(name));
        let shadowed = rewrite::defined(graph).into_iter().map(aside).collect();
        // A tensor that cannot be read is not constant; `check` says what is wrong with it.
        let _ = self.state.begin(graph, place);
        let inputs: HashSet<&str> = graph.input.iter().map(ValueInfoProto::name).collect();
        for tensor in graph.initializer.iter().filter(|t| !inputs.contains(t.name())) {
            self.learn(tensor.name(), tensor);
        }
        shadowed
    }

    fn learn(&mut self, name: &str, tensor: &TensorProto) {
        if codec::declared_bytes(tensor) <= self.value_bytes as u64
            && let Ok(values) = self.reader.tensor(tensor)
        {
            self.constants.insert(name.to_owned(), values);
        }
    }

    /// The tensor that a node always makes; none where it depends on a run.
    fn node(&mut self, node: &NodeProto) -> Option<TensorProto> {
        // A node that contradicts its inputs makes nothing known.
        let sound = self.state.node(node).is_ok();
        if self.local.contains(node.op_type()) && node.is_standard() {
            node.output.iter().for_each(|name| drop(self.state.forget(name)));
            return None;
        }
        let [name] = node.output.as_slice() else { return None };
        if !sound || !node.is_standard() || name.is_empty() {
            return None;
        }
        if node.op_type() == "Constant" {
            if let Some(tensor) = node.attr("value").and_then(|a| a.t.as_ref()) {
                self.learn(name, tensor);
            } else if let Some(tensor) = listed(node) {
                self.constants.insert(name.clone(), tensor);
            }
            return None;
        }
        let tensor = self.result(node, name)?;
        let message = codec::tensor_proto(name, &tensor);
        self.constants.insert(name.clone(), tensor);
        self.state.constant(name, &message).ok()?;
        Some(message)
    }

    fn result(&mut self, node: &NodeProto, name: &str) -> Option<Tensor> {
        let output = self.state.of(name);
        let (dtype, shape) = (output.dtype?, output.fixed()?);
        let bytes = dtype.byte_len(element_count(&shape).ok()?);
        if bytes > self.value_bytes {
            return None;
        }
        if matches!(node.op_type(), "Shape" | "Size") {
            let tensor = self.shape(node)?;
            return (tensor.shape() == shape && dtype == DataType::Int64).then_some(tensor);
        }
        let input = |name: &String| match name.as_str() {
            "" => Some(None),
            name => self.constants.get(name).cloned().map(Some),
        };
        // The second input of CastLike only tells a type.
        let read = if node.op_type() == "CastLike" { 1 } else { node.input.len() };
        let inputs: Vec<Option<Tensor>> = node.input.iter().take(read).map(input).collect::<Option<_>>()?;
        let all = inputs.iter().flatten().map(Tensor::byte_len).fold(bytes, usize::saturating_add);
        self.bytes_left = self.bytes_left.checked_sub(all)?;
        eval::evaluate(node, &inputs, dtype, &shape)
    }

    /// What `Shape` and `Size` tell of a value, where no run changes the sizes that they tell.
    fn shape(&self, node: &NodeProto) -> Option<Tensor> {
        let value = self.state.of(node.input.first()?);
        if node.op_type() == "Size" {
            return Tensor::from_vec([], vec![i64::try_from(count(&value.fixed()?)?).ok()?]).ok();
        }
        let dims = value.shape?;
        let rank = i64::try_from(dims.len()).ok()?;
        let at = |name: &str, absent: i64| {
            let position = node.attr_int(name).unwrap_or(absent);
            (if position < 0 { position.saturating_add(rank) } else { position }).clamp(0, rank) as usize
        };
        let (start, end) = (at("start", 0), at("end", rank));
        let size = |dim: &Dimension| if let Dimension::Fixed(size) = dim { i64::try_from(*size).ok() } else { None };
        let sizes = dims.get(start..end.max(start))?.iter().map(size).collect::<Option<Vec<_>>>()?;
        Tensor::from_vec([sizes.len()], sizes).ok()
    }
}

/// The values of a Constant that holds numbers in attributes of their own.
fn listed(node: &NodeProto) -> Option<Tensor> {
    let [attribute] = node.attribute.as_slice() else { return None };
    match attribute.name() {
        "value_int" => Tensor::from_vec([], vec![attribute.i?]).ok(),
        "value_ints" => Tensor::from_vec([attribute.ints.len()], attribute.ints.clone()).ok(),
        "value_float" => Tensor::from_vec([], vec![attribute.f?]).ok(),
        "value_floats" => Tensor::from_vec([attribute.floats.len()], attribute.floats.clone()).ok(),
        _ => None,
    }
}

fn constant(tensor: TensorProto) -> NodeProto {
    NodeProto {
        op_type: Some("Constant".to_owned()),
        output: vec![tensor.name().to_owned()],
        attribute: vec![AttributeProto::of_tensor("value", tensor)],
        ..NodeProto::default()
    }
}

//! Types and shapes of every value of a graph, as far as the graph tells them.
//!
//! Dimensions that stay open keep the names that the model gives them. Small integer tensors are followed by their
//! contents as well, since exported models compute the shapes that they reshape to. Local functions are gone through at
//! each call, bodies of loops until what is carried changes no more. Left out, and so unknown: what comes of sequences,
//! optionals, operators of other domains and `Scan` of version 8, which has a batch of its own. An operator without a rule leaves its outputs unknown; a contradiction is
//! an error that names the node.

mod arrange;
mod compute;
mod control;
mod items;
mod rules;
mod special;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    rc::Rc,
};

use control::{Bounds, Functions};
use items::Item;

use crate::{
    DataType, Dimension, GraphError, Model, Tensor, codec,
    node::place,
    proto::{
        GraphProto, ModelProto, NodeProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
        tensor_shape_proto, type_proto,
    },
};

/// Contents are followed up to this many elements: more than any shape has.
pub(crate) const ITEMS_MAX: usize = 64;

/// What is known of one value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ValueType {
    /// Element type; none where it is unknown or no tensor.
    pub dtype: Option<DataType>,
    /// Dimensions; none where the rank is unknown.
    pub shape: Option<Vec<Dimension>>,
}

impl ValueType {
    /// Number of elements, where all dimensions are known.
    pub fn element_count(&self) -> Option<u64> {
        self.shape.as_ref()?.iter().try_fold(1u64, |count, dim| match dim {
            Dimension::Fixed(size) => count.checked_mul(*size as u64),
            Dimension::Symbol(_) | Dimension::Unknown => None,
        })
    }

    /// Sizes, where all are known.
    pub fn fixed(&self) -> Option<Vec<usize>> {
        let size = |dim: &Dimension| if let Dimension::Fixed(size) = dim { Some(*size) } else { None };
        self.shape.as_ref()?.iter().map(size).collect()
    }
}

/// Types of a model's values by name, those of the main graph and of the graphs within it.
#[derive(Clone, Debug, Default)]
pub struct Inferred {
    types: HashMap<String, ValueType>,
}

impl Inferred {
    /// What is known of a value; all unknown for a name that is not in the graph.
    pub fn of(&self, name: &str) -> ValueType {
        self.types.get(name).cloned().unwrap_or_default()
    }

    /// Every value with its type, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &ValueType)> {
        self.types.iter().map(|(name, value)| (name.as_str(), value))
    }
}

/// Infers types and shapes. `sizes` gives sizes to symbols of the model, e.g. `batch`. The graph must be in topological
/// order; an error names the node whose inputs contradict its operator.
pub fn infer(model: &Model, sizes: &BTreeMap<String, usize>) -> Result<Inferred, GraphError> {
    let mut state = State::of_model(model.proto(), sizes, Trust::Declared);
    state.graph(model.graph(), Place::Main)?;
    Ok(Inferred { types: state.types })
}

/// A value of the main graph as one run has it.
#[derive(Clone, Copy, Debug)]
pub enum Given<'a> {
    /// Its sizes.
    Shape(&'a [usize]),
    /// Its sizes, and its contents where these are few.
    Tensor(&'a Tensor),
}

impl Given<'_> {
    fn shape(&self) -> &[usize] {
        match self {
            Self::Shape(shape) => shape,
            Self::Tensor(tensor) => tensor.shape(),
        }
    }
}

/// Values by name.
pub type GivenValues<'a> = BTreeMap<&'a str, Given<'a>>;

/// Types and shapes as one run has them: `given` are its inputs, and results of nodes that are known before it.
pub fn infer_run(model: &Model, given: &GivenValues<'_>) -> Result<Inferred, GraphError> {
    let sizes = symbols(model, given);
    let mut state = State::of_model(model.proto(), &sizes, Trust::Declared);
    state.given = given.iter().map(|(name, given)| ((*name).to_owned(), *given)).collect();
    state.graph(model.graph(), Place::Main)?;
    Ok(Inferred { types: state.types })
}

/// What the declared symbols of the inputs stand for.
fn symbols(model: &Model, given: &GivenValues<'_>) -> BTreeMap<String, usize> {
    let mut sizes = BTreeMap::new();
    for input in model.inputs() {
        let Some(given) = given.get(input.name.as_str()) else { continue };
        for (dim, size) in input.shape.iter().flatten().zip(given.shape()) {
            if let Dimension::Symbol(name) = dim {
                sizes.insert(name.clone(), *size);
            }
        }
    }
    sizes
}

/// Writes what [`infer`] finds into the graph's `value_info`, as other tools expect it.
pub fn annotate(model: &mut Model) -> Result<(), GraphError> {
    let inferred = infer(model, &BTreeMap::new())?;
    let graph = model.graph_mut();
    let known: HashSet<String> = graph
        .input
        .iter()
        .chain(&graph.output)
        .map(|v| v.name().to_owned())
        .chain(graph.initializer.iter().map(|t| t.name().to_owned()))
        .collect();
    let made = graph.node.iter().flat_map(|n| &n.output).filter(|name| !name.is_empty() && !known.contains(*name));
    graph.value_info = made.filter_map(|name| value_info(name, &inferred.of(name))).collect();
    Ok(())
}

fn value_info(name: &str, value: &ValueType) -> Option<ValueInfoProto> {
    let dim = |dim: &Dimension| tensor_shape_proto::Dimension {
        value: match dim {
            Dimension::Fixed(size) => Some(tensor_shape_proto::dimension::Value::DimValue(*size as i64)),
            Dimension::Symbol(name) => Some(tensor_shape_proto::dimension::Value::DimParam(name.clone())),
            Dimension::Unknown => None,
        },
        denotation: None,
    };
    let shape = value.shape.as_ref().map(|dims| TensorShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: Some(value.dtype?.to_onnx()), shape };
    let kind = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: None };
    Some(ValueInfoProto { name: Some(name.to_owned()), r#type: Some(kind), ..ValueInfoProto::default() })
}

/// What inference takes for true.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// All that the model declares; where it lies, an engine complains.
    Declared,
    /// What no run can make false: the main graph's input types, which runs are checked against, and what follows.
    Proven,
}

/// Where a graph stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The model's own.
    Main,
    /// In an attribute of a node.
    Inner,
}

/// What is known so far of the values in scope.
pub(crate) struct State<'a> {
    sizes: &'a BTreeMap<String, usize>,
    trust: Trust,
    types: HashMap<String, ValueType>,
    /// Contents of small tensors of integers and truth values.
    items: HashMap<String, Vec<Item>>,
    /// Contents of small constants of float32.
    floats: HashMap<String, Vec<f32>>,
    functions: Rc<Functions<'a>>,
    opset: i64,
    bounds: Bounds,
    /// Values of the main graph that are known from elsewhere.
    given: HashMap<String, Given<'a>>,
}

impl<'a> State<'a> {
    fn new(sizes: &'a BTreeMap<String, usize>, trust: Trust) -> Self {
        let (types, items, floats) = (HashMap::new(), HashMap::new(), HashMap::new());
        let (functions, bounds, given) = (Rc::default(), Bounds::default(), HashMap::new());
        Self { sizes, trust, types, items, floats, functions, opset: 0, bounds, given }
    }

    /// Nothing is known yet but the model's functions.
    pub(crate) fn of_model(model: &'a ModelProto, sizes: &'a BTreeMap<String, usize>, trust: Trust) -> Self {
        let functions = model.functions.iter().map(|f| (control::key(f.domain(), f.name(), f.overload()), f));
        let opset = model.opset_import.iter().find(|o| matches!(o.domain(), "" | "ai.onnx"));
        Self {
            functions: Rc::new(functions.collect()),
            opset: opset.map_or(1, |o| o.version()),
            ..Self::new(sizes, trust)
        }
    }

    /// What is known of a value.
    pub(crate) fn of(&self, name: &str) -> ValueType {
        self.types.get(name).cloned().unwrap_or_default()
    }

    fn set(&mut self, name: &str, value: ValueType) {
        self.items.remove(name);
        self.floats.remove(name);
        self.types.insert(name.to_owned(), value);
    }

    /// Takes away what is known under `name`, to be given back where the name's scope ends.
    pub(crate) fn forget(&mut self, name: &str) -> Known {
        Known { kind: self.types.remove(name), items: self.items.remove(name), floats: self.floats.remove(name) }
    }

    /// What [`Self::forget`] took away is known again.
    pub(crate) fn restore(&mut self, name: &str, known: Known) {
        self.forget(name);
        self.types.extend(known.kind.map(|kind| (name.to_owned(), kind)));
        self.items.extend(known.items.map(|items| (name.to_owned(), items)));
        self.floats.extend(known.floats.map(|floats| (name.to_owned(), floats)));
    }

    fn nodes(&mut self, graph: &GraphProto) -> Result<(), GraphError> {
        for (index, node) in graph.node.iter().enumerate() {
            self.node(node).map_err(|fault| match fault {
                Fault::Inner(error) => error,
                Fault::Here(reason) => GraphError::invalid(place(node, index), reason),
            })?;
            if !self.given.is_empty() {
                node.output.iter().for_each(|name| self.take(name));
            }
        }
        Ok(())
    }

    fn graph(&mut self, graph: &GraphProto, place: Place) -> Result<(), GraphError> {
        self.begin(graph, place)?;
        self.nodes(graph)?;
        if self.trust == Trust::Proven {
            return Ok(());
        }
        // What the model declares is known beside what is inferred.
        for value in graph.output.iter().chain(&graph.value_info) {
            let declared = self.declared(value);
            let own = self.types.entry(value.name().to_owned()).or_default();
            if let Some(merged) = refined(own, &declared) {
                *own = merged;
            }
        }
        Ok(())
    }

    /// What is known of a graph before its first node: inputs and initialisers.
    pub(crate) fn begin(&mut self, graph: &GraphProto, place: Place) -> Result<(), GraphError> {
        let proven = self.trust == Trust::Proven;
        for input in &graph.input {
            // What a loop hands in may change from turn to turn, whatever is declared.
            let known = !proven || place == Place::Main;
            let declared = if known { self.declared(input) } else { ValueType::default() };
            self.set(input.name(), declared);
            if place == Place::Main {
                self.take(input.name());
            }
        }
        // A caller may give an input another value than its default.
        let defaults: HashSet<&str> = graph.input.iter().filter(|_| proven).map(ValueInfoProto::name).collect();
        for tensor in graph.initializer.iter().filter(|t| !defaults.contains(t.name())) {
            self.constant(tensor.name(), tensor)?;
        }
        Ok(())
    }

    fn declared(&self, value: &ValueInfoProto) -> ValueType {
        let port = crate::model::port(value);
        let bound = |dim: Dimension| match dim {
            Dimension::Symbol(name) => self.sizes.get(&name).map_or(Dimension::Symbol(name), |&s| Dimension::Fixed(s)),
            other => other,
        };
        ValueType { dtype: port.dtype, shape: port.shape.map(|dims| dims.into_iter().map(bound).collect()) }
    }

    /// A tensor that the model holds.
    pub(crate) fn constant(&mut self, name: &str, tensor: &TensorProto) -> Result<(), GraphError> {
        let (dtype, shape) = codec::header(tensor)?;
        let dims = shape.into_iter().map(Dimension::Fixed).collect();
        self.set(name, ValueType { dtype: Some(dtype), shape: Some(dims) });
        if !codec::is_external(tensor)
            && codec::declared_count(tensor) <= ITEMS_MAX as u64
            && let Ok(values) = codec::decode(tensor)
        {
            self.contents(name, &values);
        }
        Ok(())
    }

    fn contents(&mut self, name: &str, values: &Tensor) {
        let numbers = items::of_tensor(values);
        self.items.extend(numbers.map(|numbers| (name.to_owned(), numbers)));
        let floats = values.values::<f32>().ok();
        self.floats.extend(floats.map(|floats| (name.to_owned(), floats.into_owned())));
    }

    /// What is known of a value from elsewhere replaces what the graph tells.
    fn take(&mut self, name: &str) {
        let Some(given) = self.given.get(name).copied() else { return };
        let own = self.of(name);
        let shape = Some(given.shape().iter().map(|&size| Dimension::Fixed(size)).collect());
        let dtype = if let Given::Tensor(tensor) = given { Some(tensor.dtype()) } else { own.dtype };
        self.set(name, ValueType { dtype, shape });
        if let Given::Tensor(tensor) = given
            && given.shape().iter().try_fold(1usize, |n, &d| n.checked_mul(d)).is_some_and(|n| n <= ITEMS_MAX)
        {
            self.contents(name, tensor);
        }
    }

    /// What a node makes, from what is known of its inputs.
    pub(crate) fn node(&mut self, node: &NodeProto) -> Result<(), Fault> {
        node.output.iter().for_each(|name| drop(self.forget(name)));
        if let Some(function) = self.function(node) {
            return self.call(node, function);
        }
        if !node.is_standard() {
            return Ok(());
        }
        match node.op_type() {
            "If" => return self.branches(node),
            "Loop" => return self.repeat(node),
            "Scan" => return self.scan(node),
            _ => {}
        }
        if node.op_type() == "Constant"
            && let (Some(tensor), Some(name)) = (node.attr("value").and_then(|a| a.t.as_ref()), node.output.first())
        {
            return self.constant(name, tensor).map_err(Fault::Inner);
        }
        let view = View { state: self, node };
        let outputs = rules::outputs(&view).map_err(Fault::Here)?;
        let items = outputs.first().and_then(|first| items::outputs(&view, first));
        for (name, value) in node.output.iter().zip(outputs).filter(|(name, _)| !name.is_empty()) {
            self.types.insert(name.clone(), value);
        }
        if let (Some(items), Some(name)) = (items, node.output.first()) {
            self.items.insert(name.clone(), items);
        }
        Ok(())
    }
}

/// What was known under one name.
pub(crate) struct Known {
    kind: Option<ValueType>,
    items: Option<Vec<Item>>,
    floats: Option<Vec<f32>>,
}

/// Why a node has no types.
pub(crate) enum Fault {
    Here(String),
    Inner(GraphError),
}

/// One of two types: only what both agree on.
fn either(a: &ValueType, b: &ValueType) -> ValueType {
    let shape = match (&a.shape, &b.shape) {
        (Some(a), Some(b)) if a.len() == b.len() => {
            let dim = |(a, b): (&Dimension, &Dimension)| if a == b { a.clone() } else { Dimension::Unknown };
            Some(a.iter().zip(b).map(dim).collect())
        }
        _ => None,
    };
    ValueType { dtype: a.dtype.filter(|_| a.dtype == b.dtype), shape }
}

/// Both together: what either knows; none where they contradict each other.
fn refined(a: &ValueType, b: &ValueType) -> Option<ValueType> {
    let shape = match (&a.shape, &b.shape) {
        (Some(x), Some(y)) => {
            if x.len() != y.len() {
                return None;
            }
            let dim = |(x, y): (&Dimension, &Dimension)| match (x, y) {
                (Dimension::Fixed(_), _) | (Dimension::Symbol(_), Dimension::Unknown) => x.clone(),
                _ => y.clone(),
            };
            Some(x.iter().zip(y).map(dim).collect())
        }
        (x, y) => x.clone().or(y.clone()),
    };
    Some(ValueType { dtype: a.dtype.or(b.dtype), shape })
}

/// A node with what is known of its inputs.
struct View<'s> {
    state: &'s State<'s>,
    node: &'s NodeProto,
}

impl View<'_> {
    fn has(&self, index: usize) -> bool {
        self.node.input.get(index).is_some_and(|name| !name.is_empty())
    }

    fn input(&self, index: usize) -> ValueType {
        self.node.input.get(index).and_then(|name| self.state.types.get(name)).cloned().unwrap_or_default()
    }

    fn dtype(&self, index: usize) -> Option<DataType> {
        self.input(index).dtype
    }

    fn dims(&self, index: usize) -> Option<Vec<Dimension>> {
        self.input(index).shape
    }

    /// Contents of an input, whatever its shape.
    fn contents(&self, index: usize) -> Option<&[Item]> {
        self.state.items.get(self.node.input.get(index)?).map(Vec::as_slice)
    }

    /// Contents of an input that is a scalar or a list.
    fn items(&self, index: usize) -> Option<&[Item]> {
        let name = self.node.input.get(index)?;
        let rank = self.state.types.get(name)?.shape.as_ref()?.len();
        self.contents(index).filter(|_| rank <= 1)
    }

    /// Contents of an input where all are known numbers.
    fn numbers(&self, index: usize) -> Option<Vec<i64>> {
        self.items(index)?.iter().map(Item::number).collect()
    }

    /// A list that older operator sets have as an attribute and newer ones as an input; none where it is not known.
    fn list(&self, attribute: &str, index: usize) -> Option<Vec<i64>> {
        match self.node.attr_ints(attribute) {
            Some(list) => Some(list.to_vec()),
            None => self.numbers(index),
        }
    }

    fn int(&self, attribute: &str, default: i64) -> i64 {
        self.node.attr_int(attribute).unwrap_or(default)
    }

    /// Contents of an input of float32, where it is a constant.
    fn floats(&self, index: usize) -> Option<&[f32]> {
        self.state.floats.get(self.node.input.get(index)?).map(Vec::as_slice)
    }

    /// Version of the standard's operators.
    fn opset(&self) -> i64 {
        self.state.opset
    }

    fn outputs(&self) -> usize {
        self.node.output.len()
    }
}

/// A position that may count from the end; an error where it is outside.
fn axis(axis: i64, rank: usize) -> Result<usize, String> {
    let positive = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(positive).ok().filter(|&a| a < rank).ok_or_else(|| format!("axis {axis} is outside of rank {rank}"))
}

//! The rules of the ONNX specification that a graph must keep before anything is built on it.
//!
//! What single operators want of their attributes and inputs is left to shape inference and to the engines.

mod tensor;

use std::{
    collections::{HashMap, HashSet},
    ops::RangeInclusive,
};

use crate::{
    DataType, GraphError, Model,
    node::place,
    proto::{
        AttributeProto, FunctionProto, GraphProto, NodeProto, OperatorSetIdProto, SparseTensorProto, TensorProto,
        TypeProto, ValueInfoProto, attribute_proto::AttributeType, type_proto,
    },
};

/// Versions of the default operator set that this crate is written and tested for.
pub const OPSETS: RangeInclusive<i64> = 7..=23;

/// Versions of the file format that this crate reads.
pub const IR_VERSIONS: RangeInclusive<i64> = 3..=14;

/// More defects than this are not listed: a broken file breaks everywhere.
const ERRORS_MAX: usize = 100;

/// Checks `model` against the specification. Each error names its node or tensor.
///
/// A model of an operator set outside [`OPSETS`] is reported as [`Unsupported`](crate::ErrorKind::Unsupported), not as
/// invalid: an engine may know it. External data is checked for form here, for content by
/// [`Model::check_external`].
pub fn check(model: &Model) -> Result<(), Vec<GraphError>> {
    let proto = model.proto();
    let mut check = Check {
        errors: Vec::new(),
        domains: imported(&proto.opset_import),
        in_function: false,
        every_initializer_an_input: proto.ir_version() < 4,
    };
    check.versions(model);
    check.functions(&proto.functions);
    match &proto.graph {
        Some(graph) => check.graph(graph, "graph", None),
        None => check.add("model", "holds no graph"),
    }
    if check.errors.is_empty() { Ok(()) } else { Err(check.errors) }
}

type FunctionKey<'a> = (&'a str, &'a str, &'a str);

fn key(function: &FunctionProto) -> FunctionKey<'_> {
    (canonical(function.domain()), function.name(), function.overload())
}

fn canonical(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

fn imported(opsets: &[OperatorSetIdProto]) -> HashSet<&str> {
    opsets.iter().map(|o| canonical(o.domain())).collect()
}

struct Check<'a> {
    errors: Vec<GraphError>,
    domains: HashSet<&'a str>,
    in_function: bool,
    /// So it is in files before version 4.
    every_initializer_an_input: bool,
}

/// Names that are visible in a graph: its own, then those around it.
struct Scope<'a, 's> {
    names: HashSet<&'a str>,
    outer: Option<&'s Scope<'a, 's>>,
}

impl Scope<'_, '_> {
    fn has(&self, name: &str) -> bool {
        self.names.contains(name) || self.outer.is_some_and(|outer| outer.has(name))
    }
}

impl<'a> Check<'a> {
    fn add(&mut self, place: impl Into<String>, reason: impl Into<String>) {
        self.push(GraphError::invalid(place, reason));
    }

    fn push(&mut self, error: GraphError) {
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(error);
        }
    }

    fn unsupported(&mut self, reason: String) {
        self.push(GraphError::Unsupported { place: "model".to_owned(), reason });
    }

    fn versions(&mut self, model: &Model) {
        let proto = model.proto();
        match proto.ir_version {
            None => self.add("model", "has no `ir_version`"),
            Some(v) if !IR_VERSIONS.contains(&v) => {
                self.unsupported(format!(
                    "IR version {v}, supported are {} to {}",
                    IR_VERSIONS.start(),
                    IR_VERSIONS.end()
                ));
            }
            Some(_) => {}
        }
        let mut keys = HashSet::new();
        if let Some(entry) = proto.metadata_props.iter().find(|entry| !keys.insert(entry.key())) {
            self.add("model", format!("metadata `{}` is given twice", entry.key()));
        }
        if proto.opset_import.is_empty() {
            self.add("model", "imports no operator set");
        }
        let mut seen = HashMap::new();
        for opset in &proto.opset_import {
            let version = opset.version();
            // Converters write the default set under both of its names; the same version again says nothing new.
            if seen.insert(canonical(opset.domain()), version).is_some_and(|told| told != version) {
                self.add("model", format!("imports the operator set `{}` in two versions", opset.domain()));
            }
            if canonical(opset.domain()).is_empty() && !OPSETS.contains(&version) {
                let (first, last) = (OPSETS.start(), OPSETS.end());
                self.unsupported(format!(
                    "operator set {version}, supported are {first} to {last}; `onnx.version_converter` changes it"
                ));
            }
        }
    }

    fn graph(&mut self, graph: &'a GraphProto, what: &str, outer: Option<&Scope<'a, '_>>) {
        if graph.name().is_empty() {
            self.add(what, "has no name");
        }
        let mut scope = Scope { names: HashSet::new(), outer };
        for input in &graph.input {
            self.value(input, "input", outer.is_none());
            self.define(&mut scope, input.name(), &format!("input `{}`", input.name()));
        }
        self.initializers(graph, &mut scope);
        for (index, node) in graph.node.iter().enumerate() {
            self.node(node, index, &mut scope);
        }
        for output in &graph.output {
            self.value(output, "output", outer.is_none());
            if !scope.names.contains(output.name()) {
                let reason = "is made by no node of it; `Identity` hands on a value from around";
                self.add(format!("output `{}` of {what}", output.name()), reason);
            }
        }
        for value in &graph.value_info {
            self.value(value, "value", false);
        }
    }

    fn define(&mut self, scope: &mut Scope<'a, '_>, name: &'a str, place: &str) {
        if name.is_empty() {
            self.add(place, "has no name");
        } else if scope.has(name) {
            self.add(place, format!("`{name}` is defined twice, each value has one definition"));
        }
        scope.names.insert(name);
    }

    fn initializers(&mut self, graph: &'a GraphProto, scope: &mut Scope<'a, '_>) {
        let inputs: HashSet<&str> = graph.input.iter().map(ValueInfoProto::name).collect();
        let mut seen = HashSet::new();
        let sparse = graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref());
        for tensor in graph.initializer.iter().chain(sparse) {
            let name = tensor.name();
            if !seen.insert(name) || name.is_empty() || !inputs.contains(name) && scope.has(name) {
                self.define(scope, name, &format!("initialiser `{name}`"));
            }
            if self.every_initializer_an_input && !inputs.contains(name) {
                let reason = "is no input of the graph, which files before IR version 4 want of it";
                self.add(format!("initialiser `{name}`"), reason);
            }
            scope.names.insert(name);
        }
        graph.initializer.iter().for_each(|t| self.tensor(t));
        graph.sparse_initializer.iter().for_each(|s| self.sparse(s));
    }

    fn tensor(&mut self, tensor: &TensorProto) {
        if let Err(error) = tensor::dense(tensor) {
            self.push(error);
        }
    }

    fn sparse(&mut self, tensor: &SparseTensorProto) {
        if let Err(error) = tensor::sparse(tensor) {
            self.push(error);
        }
    }

    fn value(&mut self, value: &ValueInfoProto, what: &str, typed: bool) {
        let place = || format!("{what} `{}`", value.name());
        match &value.r#type {
            Some(kind) => {
                if let Err(reason) = self::value_type(kind, 0) {
                    self.add(place(), reason);
                }
            }
            None if typed => self.add(place(), "has no type"),
            None => {}
        }
    }

    fn node(&mut self, node: &'a NodeProto, index: usize, scope: &mut Scope<'a, '_>) {
        let place = place(node, index);
        if node.op_type().is_empty() {
            self.add(&place, "has no operator type");
        }
        if node.input.is_empty() && node.output.is_empty() {
            self.add(&place, "has neither inputs nor outputs");
        }
        self.resolves(node, &place);
        for input in node.input.iter().filter(|name| !name.is_empty()) {
            if !scope.has(input) {
                let reason =
                    format!("input `{input}` is defined by nothing before it (graphs are in topological order)");
                self.add(&place, reason);
            }
        }
        self.attributes(node, &place, scope);
        for output in node.output.iter().filter(|name| !name.is_empty()) {
            self.define(scope, output, &place);
        }
    }

    fn resolves(&mut self, node: &NodeProto, place: &str) {
        let domain = canonical(node.domain());
        if !self.domains.contains(domain) {
            let reason = match domain {
                "" => "uses the default operator set, which is not imported".to_owned(),
                domain => format!("domain `{domain}` is not imported"),
            };
            self.add(place, reason);
        }
    }

    fn attributes(&mut self, node: &'a NodeProto, place: &str, scope: &Scope<'a, '_>) {
        let mut seen = HashSet::new();
        for attribute in &node.attribute {
            let name = attribute.name();
            if name.is_empty() || !seen.insert(name) {
                self.add(place, format!("attribute `{name}` has no name or is given twice"));
            }
            if !attribute.ref_attr_name().is_empty() {
                if !self.in_function {
                    self.add(place, format!("attribute `{name}` refers to a function's attribute outside a function"));
                } else if filled(attribute).next().is_some() {
                    self.add(place, format!("attribute `{name}` refers to a function's attribute and holds a value"));
                }
                continue;
            }
            if let Err(reason) = holds_its_type(attribute) {
                self.add(place, format!("attribute `{name}` {reason}"));
            }
            attribute.t.iter().chain(&attribute.tensors).for_each(|t| self.tensor(t));
            attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors).for_each(|s| self.sparse(s));
            for graph in crate::walk::subgraphs(attribute) {
                self.graph(graph, &format!("`{name}` of {place}"), Some(scope));
            }
        }
    }

    fn functions(&mut self, functions: &'a [FunctionProto]) {
        if functions.iter().map(key).collect::<HashSet<_>>().len() != functions.len() {
            self.add("model", "two functions share domain, name and overload");
        }
        if let Some(name) = recursive(functions) {
            self.add(format!("function `{name}`"), "calls itself, which ONNX does not allow");
        }
        self.in_function = true;
        let model_domains = self.domains.clone();
        functions.iter().for_each(|function| self.function(function));
        self.domains = model_domains;
        self.in_function = false;
    }

    fn function(&mut self, function: &'a FunctionProto) {
        self.domains = imported(&function.opset_import);
        let mut scope = Scope { names: HashSet::new(), outer: None };
        let what = format!("function `{}`", function.name());
        if function.name().is_empty() || function.domain.is_none() {
            self.add(&what, "needs a name and a domain");
        }
        for input in &function.input {
            self.define(&mut scope, input, &what);
        }
        for (index, node) in function.node.iter().enumerate() {
            self.node(node, index, &mut scope);
        }
        let mut seen = HashSet::new();
        for output in &function.output {
            if !scope.has(output) {
                self.add(&what, format!("output `{output}` is made by no node"));
            }
            if !seen.insert(output) {
                self.add(&what, format!("output `{output}` is given twice"));
            }
        }
        let given = function.attribute_proto.iter().map(AttributeProto::name);
        let mut seen = HashSet::new();
        for name in function.attribute.iter().map(String::as_str).chain(given).filter(|name| !seen.insert(*name)) {
            self.add(&what, format!("attribute `{name}` is given twice"));
        }
    }
}

/// Levels of sequences, maps and optionals within each other.
const TYPE_DEPTH_MAX: usize = 16;

fn value_type(kind: &TypeProto, depth: usize) -> Result<(), String> {
    use type_proto::Value;
    if depth > TYPE_DEPTH_MAX {
        return Err(format!("has a type nested more than {TYPE_DEPTH_MAX} deep"));
    }
    let element = |number: i32| match DataType::from_onnx(number) {
        Some(_) => Ok(()),
        None => Err(format!("has the unknown element type {number}")),
    };
    let inner = |kind: &Option<Box<TypeProto>>| match kind {
        Some(kind) => value_type(kind, depth + 1),
        None => Err("has a type without its element type".to_owned()),
    };
    match &kind.value {
        Some(Value::TensorType(tensor)) => element(tensor.elem_type()),
        Some(Value::SparseTensorType(tensor)) => element(tensor.elem_type()),
        Some(Value::SequenceType(sequence)) => inner(&sequence.elem_type),
        Some(Value::OptionalType(optional)) => inner(&optional.elem_type),
        Some(Value::MapType(map)) => inner(&map.value_type),
        Some(Value::OpaqueType(_)) | None => Ok(()),
    }
}

/// The field that an attribute's type names is the one that is filled.
fn holds_its_type(attribute: &AttributeProto) -> Result<(), String> {
    use AttributeType as T;
    let number = attribute.r#type.unwrap_or(0);
    let kind = T::try_from(number).map_err(|_| format!("has the unknown type {number}"))?;
    if kind == T::Undefined {
        return Err("has no type".to_owned());
    }
    if let Some(other) = filled(attribute).find(|of| *of != kind) {
        return Err(format!("is said to be {}, but holds {}", kind.as_str_name(), other.as_str_name()));
    }
    let single = matches!(kind, T::Float | T::Int | T::String | T::Tensor | T::Graph | T::SparseTensor | T::TypeProto);
    if single && filled(attribute).next().is_none() {
        return Err(format!("is said to be {}, but holds nothing", kind.as_str_name()));
    }
    Ok(())
}

/// The types whose fields an attribute fills.
fn filled(attribute: &AttributeProto) -> impl Iterator<Item = AttributeType> {
    use AttributeType as T;
    let fields = [
        (T::Float, attribute.f.is_some()),
        (T::Int, attribute.i.is_some()),
        (T::String, attribute.s.is_some()),
        (T::Tensor, attribute.t.is_some()),
        (T::Graph, attribute.g.is_some()),
        (T::SparseTensor, attribute.sparse_tensor.is_some()),
        (T::TypeProto, attribute.tp.is_some()),
        (T::Floats, !attribute.floats.is_empty()),
        (T::Ints, !attribute.ints.is_empty()),
        (T::Strings, !attribute.strings.is_empty()),
        (T::Tensors, !attribute.tensors.is_empty()),
        (T::Graphs, !attribute.graphs.is_empty()),
        (T::SparseTensors, !attribute.sparse_tensors.is_empty()),
        (T::TypeProtos, !attribute.type_protos.is_empty()),
    ];
    fields.into_iter().filter(|(_, filled)| *filled).map(|(of, _)| of)
}

/// A function that reaches itself by its calls.
fn recursive(functions: &[FunctionProto]) -> Option<&str> {
    let index: HashMap<FunctionKey, usize> = functions.iter().enumerate().map(|(i, f)| (key(f), i)).collect();
    let calls: Vec<Vec<usize>> = functions
        .iter()
        .map(|function| {
            let mut called = Vec::new();
            crate::walk::nodes_of(&function.node, &mut |node| {
                called.extend(index.get(&(canonical(node.domain()), node.op_type(), node.overload())));
            });
            called
        })
        .collect();
    // Functions that call nothing are taken away until none is left, or only those of a cycle and their callers.
    let mut open: Vec<usize> = calls.iter().map(Vec::len).collect();
    let mut callers = vec![Vec::new(); functions.len()];
    for (caller, called) in calls.iter().enumerate() {
        called.iter().for_each(|&c| callers[c].push(caller));
    }
    let mut ready: Vec<usize> = (0..functions.len()).filter(|&i| open[i] == 0).collect();
    let mut done = 0;
    while let Some(leaf) = ready.pop() {
        done += 1;
        for &caller in &callers[leaf] {
            open[caller] -= 1;
            if open[caller] == 0 {
                ready.push(caller);
            }
        }
    }
    let stuck = open.iter().position(|&n| n > 0).filter(|_| done < functions.len())?;
    Some(functions[stuck].name())
}

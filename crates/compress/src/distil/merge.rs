//! Two graphs in one: the teacher's beside the student's, under names of its own, fed by the same inputs.

use std::collections::HashSet;

use edgeward_graph::{
    Model,
    proto::{GraphProto, NodeProto},
};

use super::alike;
use crate::{CompressError, upgrade};

/// The operator set that training graphs are written in, where the models' own is not newer.
const OPSET: i64 = 17;
/// The file format that goes with it.
const IR_VERSION: i64 = 8;

/// Student and teacher in one graph. Its inputs and outputs are the student's; what the teacher makes bears `prefix`.
pub(super) struct Merged {
    pub model: Model,
    pub prefix: String,
}

/// Errors: operator sets that cannot be one, inputs that differ, or a teacher with branches or loops.
pub(super) fn merge(student: &Model, teacher: &Model) -> Result<Merged, CompressError> {
    let mut model = raised(student)?;
    let teacher = raised(teacher)?;
    let (own, other) = (model.opset(), teacher.opset());
    if own != other {
        let reason = format!("is of operator set {own}, the teacher of {other}; export both alike");
        return Err(CompressError::unsupported("the student", reason));
    }
    same_inputs(&model, &teacher)?;
    let prefix = prefix(model.graph());
    for import in &teacher.proto().opset_import {
        if model.opset_of(import.domain()).is_none() {
            model.proto_mut().opset_import.push(import.clone());
        }
    }
    let inputs: HashSet<String> = teacher.inputs().into_iter().map(|port| port.name).collect();
    let renamed = |name: &str| {
        if name.is_empty() || inputs.contains(name) { name.to_owned() } else { format!("{prefix}{name}") }
    };
    let graph = model.graph_mut();
    for tensor in &teacher.graph().initializer {
        let mut tensor = tensor.clone();
        tensor.name = Some(renamed(tensor.name()));
        graph.initializer.push(tensor);
    }
    let nodes: Vec<NodeProto> =
        teacher.graph().node.iter().map(|node| under(node, &prefix, &renamed)).collect::<Result<_, _>>()?;
    // The teacher's come first: what refers to them is emitted after the student's.
    graph.node.splice(0..0, nodes);
    graph.value_info.clear();
    Ok(Merged { model, prefix })
}

fn under(node: &NodeProto, prefix: &str, renamed: &dyn Fn(&str) -> String) -> Result<NodeProto, CompressError> {
    if node.attribute.iter().any(|attribute| attribute.g.is_some() || !attribute.graphs.is_empty()) {
        let reason = "has a graph within it, which cannot stand beside a student";
        return Err(CompressError::unsupported(format!("node `{}` ({})", node.name(), node.op_type()), reason));
    }
    let names = |names: &[String]| names.iter().map(|name| renamed(name)).collect();
    Ok(NodeProto {
        name: Some(format!("{prefix}{}", node.name())),
        input: names(&node.input),
        output: names(&node.output),
        ..node.clone()
    })
}

/// In one file and of a set that training takes.
fn raised(model: &Model) -> Result<Model, CompressError> {
    let mut model = model.clone();
    model.inline_external()?;
    upgrade::upgrade(&mut model)?;
    model.graph_mut().sort_nodes()?;
    let proto = model.proto_mut();
    proto.ir_version = Some(proto.ir_version().max(IR_VERSION));
    // From 13 to 17 no operator changed its meaning, only types were added.
    for import in proto.opset_import.iter_mut().filter(|import| matches!(import.domain(), "" | "ai.onnx")) {
        import.version = Some(import.version().max(OPSET));
    }
    Ok(model)
}

/// Both read the same data. Sizes that the student leaves open may be the teacher's.
fn same_inputs(student: &Model, teacher: &Model) -> Result<(), CompressError> {
    let own = student.inputs();
    for port in teacher.inputs() {
        let Some(same) = own.iter().find(|other| other.name == port.name) else {
            let names: Vec<&str> = own.iter().map(|port| port.name.as_str()).collect();
            let reason = format!("lacks the teacher's input `{}`; it has `{}`", port.name, names.join("`, `"));
            return Err(CompressError::unsupported("the student", reason));
        };
        if same.shape.is_none() || port.shape.is_none() {
            continue;
        }
        if same.dtype != port.dtype || !alike(same.shape.as_deref(), port.shape.as_deref()) {
            let reason = "is of another type or shape than the teacher's; the data must fit both";
            return Err(CompressError::unsupported(format!("the student's input `{}`", port.name), reason));
        }
    }
    Ok(())
}

/// What no name of the student begins with.
fn prefix(graph: &GraphProto) -> String {
    let mut names: Vec<&str> = graph.initializer.iter().map(|tensor| tensor.name()).collect();
    names.extend(graph.node.iter().flat_map(|node| node.input.iter().chain(&node.output)).map(String::as_str));
    let mut prefix = "teacher/".to_owned();
    let mut number = 0u64;
    while names.iter().any(|name| name.starts_with(&prefix)) {
        number += 1;
        prefix = format!("teacher_{number}/");
    }
    prefix
}

//! Tables that rows are looked up in, such as embeddings, as bytes with a scale for each row.

use edgeward_graph::{
    DataType, Links, Tensor,
    proto::{AttributeProto, NodeProto},
};

use crate::{
    CompressError,
    edit::{Edit, node},
    weights::{Integers, WeightBits},
};

/// Smaller tables gain nothing.
const ELEMENTS_MIN: usize = 4096;

/// Quantises every table that only lookups of whole rows read; says how many.
pub(crate) fn quantise(edit: &mut Edit) -> Result<usize, CompressError> {
    let found = tables(edit);
    for (name, users) in &found {
        let Some(table) = edit.float_tensor(name) else { continue };
        let integers = Integers::of(table.shape(), &table.values()?, 0, WeightBits::Eight, &[]);
        let bytes = edit.store(&format!("{name}.int8"), &integers.tensor()?)?;
        let scale = Tensor::from_vec([integers.scales.len(), 1], integers.scales)?;
        let scale = edit.store(&format!("{name}.scale"), &scale)?;
        for &user in users {
            lookup(edit, user, &bytes, &scale);
        }
    }
    Ok(found.len())
}

fn tables(edit: &Edit) -> Vec<(String, Vec<usize>)> {
    let graph = edit.model.graph();
    let links = Links::of(graph);
    let looks_up = |index: &usize, name: &str| {
        graph.node.get(*index).is_some_and(|node| {
            let rows = node.attr_int("axis").unwrap_or(0) == 0 && node.input.first().is_some_and(|input| input == name);
            node.is_standard() && node.op_type() == "Gather" && rows && node.input.get(1).is_none_or(|ids| ids != name)
        })
    };
    let table = |tensor: &edgeward_graph::proto::TensorProto| {
        let users = links.consumers(tensor.name());
        let elements = tensor.dims.iter().product::<i64>();
        let fits = edit.is_constant(tensor.name())
            && tensor.data_type() == DataType::Float32.to_onnx()
            && tensor.dims.len() == 2
            && usize::try_from(elements).is_ok_and(|elements| elements >= ELEMENTS_MIN)
            && !users.is_empty()
            && users.iter().all(|user| looks_up(user, tensor.name()))
            && graph.output.iter().all(|output| output.name() != tensor.name());
        fits.then(|| (tensor.name().to_owned(), users.to_vec()))
    };
    graph.initializer.iter().filter_map(table).collect()
}

/// Rows of bytes, made floats and multiplied by the rows' scales.
fn lookup(edit: &mut Edit, user: usize, bytes: &str, scale: &str) {
    let Some((ids, output)) =
        edit.node(user).and_then(|node| Some((node.input.get(1)?.clone(), node.output.first()?.clone())))
    else {
        return;
    };
    let [rows, floats, scales] = ["rows", "floats", "scales"].map(|what| edit.fresh(&format!("{output}.{what}")));
    let float = DataType::Float32.to_onnx().into();
    let nodes: [NodeProto; 3] = [
        node("Gather", format!("{scales}.node"), &[scale, &ids], &[&scales], Vec::new()),
        node("Cast", format!("{floats}.node"), &[&rows], &[&floats], vec![AttributeProto::of_int("to", float)]),
        node("Mul", format!("{output}.scaled"), &[&floats, &scales], &[&output], Vec::new()),
    ];
    edit.set_input(user, 0, bytes);
    let graph = edit.model.graph_mut();
    if let Some(slot) = graph.node.get_mut(user).and_then(|node| node.output.first_mut()) {
        *slot = rows;
    }
    graph.node.extend(nodes);
}

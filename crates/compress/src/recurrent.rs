//! LSTMs with weights of bytes and inputs by the range of each run: `DynamicQuantizeLSTM` of ONNX Runtime's operators
//! (`com.microsoft`, ContribOperators.md).

use edgeward_graph::{
    Tensor,
    proto::{NodeProto, OperatorSetIdProto},
};

use crate::{CompressError, Prepared, Quantised, WeightBits, edit::Edit, nbits::DOMAIN, weights::Integers};

/// Quantises every LSTM whose weights are constants; `layers` counts them. `quantised` is of `prepared`, after other rewrites.
/// Errors: a graph that is none afterwards.
pub fn quantise_recurrent(
    prepared: &Prepared,
    quantised: &Quantised,
    bits: WeightBits,
) -> Result<Quantised, CompressError> {
    let mut edit = Edit::new(quantised.model.clone());
    let mut layers = 0;
    for index in 0..edit.model.graph().node.len() {
        let Some(node) = edit.node(index).filter(|node| node.is_standard() && node.op_type() == "LSTM").cloned() else {
            continue;
        };
        layers += usize::from(lstm(&mut edit, index, &node, bits)?);
    }
    let mut model = edit.model;
    if layers > 0 && model.opset_of(DOMAIN).is_none() {
        let set = OperatorSetIdProto { domain: Some(DOMAIN.to_owned()), version: Some(1) };
        model.proto_mut().opset_import.push(set);
    }
    Quantised::of_same_names(prepared, model, layers)
}

/// False where the operator cannot take its place.
fn lstm(edit: &mut Edit, index: usize, node: &NodeProto, bits: WeightBits) -> Result<bool, CompressError> {
    // The operator has batches second, as the standard's first layout has.
    if node.attr_int("layout").unwrap_or(0) != 0 {
        return Ok(false);
    }
    let weights = |slot: usize| edit.floats(node.input.get(slot)?).filter(|(shape, _)| shape.len() == 3);
    let (Some(seen), Some(kept)) = (weights(1), weights(2)) else { return Ok(false) };
    let mut more = Vec::new();
    for ((shape, values), slot) in [(seen, 1), (kept, 2)] {
        let name = node.input.get(slot).cloned().unwrap_or_default();
        let &[directions, gates, inputs] = shape.as_slice() else { return Ok(false) };
        // Rows of weights become columns, each with its scale.
        let turned = |direction: usize, input: usize, gate: usize| {
            values.get((direction * gates + gate) * inputs + input).copied().unwrap_or(0.0)
        };
        let (mut integers, mut scales) = (Vec::with_capacity(values.len()), Vec::with_capacity(directions * gates));
        for direction in 0..directions {
            let own: Vec<f32> =
                (0..inputs * gates).map(|at| turned(direction, at / gates.max(1), at % gates.max(1))).collect();
            let rounded = Integers::of(&[inputs, gates], &own, 1, bits, &[]);
            integers.extend(rounded.values);
            scales.extend(rounded.scales);
        }
        let zeros = Tensor::from_vec([directions, gates], vec![0i8; directions * gates])?;
        let stored = Tensor::from_vec([directions, inputs, gates], integers)?;
        let stored = edit.constant(&format!("{name}.int8"), &stored);
        edit.set_input(index, slot, &stored);
        let scales = Tensor::from_vec([directions, gates], scales)?;
        more.push(edit.constant(&format!("{name}.scale"), &scales));
        more.push(edit.constant(&format!("{name}.zero"), &zeros));
    }
    for (at, name) in more.iter().enumerate() {
        edit.set_input(index, 8 + at, name);
    }
    if let Some(node) = edit.model.graph_mut().node.get_mut(index) {
        node.op_type = Some("DynamicQuantizeLSTM".to_owned());
        node.domain = Some(DOMAIN.to_owned());
        node.attribute.retain(|attribute| attribute.name() != "layout");
    }
    Ok(true)
}

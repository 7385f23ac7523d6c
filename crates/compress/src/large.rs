//! Models that no ONNX file holds: each layer is read from the mapped original, quantised and written before the next one begins. In memory are
//! the graph, and a layer or table of the original with what is made of it.

use std::{
    collections::{BTreeSet, HashSet},
    path::Path,
};

use edgeward_graph::{ExternalWriter, Links};

use crate::{
    BlockBits, CompressError, Convolutions, DynamicSpec, Layer, Prepared, Quantised, WeightBits, dynamic,
    edit::{Edit, OUTSIDE_BYTES_MIN},
    nbits,
    qat::WeightSteps,
};

/// Bytes that a model may have with its tensors within ([`Model::whole_len`](edgeward_graph::Model::whole_len)) and still be rewritten as one:
/// what protobuf allows, less what rewrites add.
pub const WHOLE_BYTES_MAX: u64 = i32::MAX as u64 - (32 << 20);
/// Zero points and alignment of a layer's tensors, at most, beside one number for each output.
const LAYER_BYTES_EXTRA: u64 = 5 * 4096;

/// What becomes of the weights of a large model's MatMul and Gemm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LargeForm {
    /// As [`quantise_dynamic`](crate::quantise_dynamic) without convolutions.
    Dynamic(WeightBits),
    /// As [`quantise_blocks`](crate::quantise_blocks), in blocks of this size.
    Blocks(BlockBits, usize),
}

/// Writes the quantised model to `path`, its tensors to `NAME.data` beside it, and says how many layers became integers; where none
/// does, nothing is written. The graph computes what that of the function which `form` names computes. `each` is told after each
/// layer how many of how many were looked at; its error ends the work.
///
/// # Errors
/// A layer whose constants cannot be read, a file that cannot be written, or what `each` says. Then no file is left.
pub fn quantise_large(
    prepared: &Prepared,
    form: LargeForm,
    path: &Path,
    each: &mut dyn FnMut(usize, usize) -> Result<(), CompressError>,
) -> Result<usize, CompressError> {
    let mut edit = Edit::new(prepared.model.clone());
    edit.outside = Some(ExternalWriter::create(path)?);
    let all = prepared.layers.len();
    let mut next = |done: usize| {
        // What was read of the original's file is not needed again.
        prepared.model.release_external();
        each(done, all)
    };
    let layers = match form {
        LargeForm::Dynamic(weights) => {
            let spec = DynamicSpec { weights, convolutions: Convolutions::Floats, keep: BTreeSet::new() };
            dynamic::rewrite(&mut edit, prepared, &spec, &mut next)?
        }
        LargeForm::Blocks(bits, block) => {
            nbits::rewrite(&mut edit, prepared, (bits, block), &WeightSteps::new(), &mut next)?
        }
    };
    let Edit { model, outside, .. } = edit;
    if let Some(outside) = outside.filter(|_| layers > 0) {
        outside.finish(Quantised::of_same_names(prepared, model, layers)?.model, OUTSIDE_BYTES_MIN)?;
    }
    prepared.model.release_external();
    Ok(layers)
}

/// Bytes that [`quantise_large`] writes at most.
pub fn large_bytes_max(prepared: &Prepared, form: LargeForm) -> u64 {
    let taken = prepared.layers.iter().filter(|layer| takes(layer, form));
    let made: u64 = taken.clone().map(|layer| bytes_max(layer, form)).sum();
    // A weight that something else reads as well stays beside its integers; so do tables, which become smaller.
    let nodes: HashSet<usize> = taken.clone().map(|layer| layer.node).collect();
    let links = Links::of(prepared.model.graph());
    let mut gone = HashSet::new();
    let freed: u64 = taken
        .filter_map(|layer| {
            let weight = prepared.model.graph().node.get(layer.node)?.input.get(1)?.as_str();
            let alone = links.consumers(weight).iter().all(|user| nodes.contains(user));
            (alone && gone.insert(weight)).then_some(layer.weights() as u64 * 4)
        })
        .sum();
    (prepared.model.whole_len() + made).saturating_sub(freed)
}

fn takes(layer: &Layer, form: LargeForm) -> bool {
    let whole = match form {
        LargeForm::Dynamic(_) => true,
        // Which of the two are the inputs is the node's to say: where neither is whole blocks, nothing is made.
        LargeForm::Blocks(_, block) => layer.weight.iter().all(|size| size.is_multiple_of(block)),
    };
    layer.op != "Conv" && whole
}

fn bytes_max(layer: &Layer, form: LargeForm) -> u64 {
    let weights = layer.weights() as u64;
    let outputs = layer.weight.iter().copied().max().unwrap_or(0) as u64;
    match form {
        LargeForm::Dynamic(_) => weights + outputs * 5 + LAYER_BYTES_EXTRA,
        LargeForm::Blocks(bits, block) => {
            let packed = if bits == BlockBits::Four { weights / 2 } else { weights };
            packed + weights / block as u64 * 4 + LAYER_BYTES_EXTRA
        }
    }
}

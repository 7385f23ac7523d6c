//! Weights alone as 4 or 8 bits in blocks, for products of matrices: `MatMulNBits` of ONNX Runtime's operators
//! (`com.microsoft`, ContribOperators.md). Activations stay floats, so no data is needed.

use edgeward_graph::{
    Tensor,
    proto::{AttributeProto, OperatorSetIdProto},
};

use crate::{
    CompressError, Layer, Prepared, Quantised,
    edit::{Edit, node},
    fuse::{bias_name, channel_axis},
    qat::WeightSteps,
    tables,
};

/// Where the operator is from.
pub(crate) const DOMAIN: &str = "com.microsoft";
/// Inputs are made bytes for the product: the operator's fastest kernels.
const ACCURACY_LEVEL: i64 = 4;

/// Bits of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockBits {
    /// Two in a byte.
    Four,
    /// One in a byte.
    Eight,
}

impl BlockBits {
    fn count(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// The integer of 0: the middle, which the operator takes where no zero points are given.
    fn zero(self) -> f32 {
        match self {
            Self::Four => 8.0,
            Self::Eight => 128.0,
        }
    }
}

/// Rounds the weights of every MatMul and Gemm to `bits`, in blocks of `block` along their inputs: a power of two from
/// 16 on. Layers whose inputs are no multiple of it are left: not every engine takes a last block that is not full. Errors: a layer whose constants cannot be read.
pub fn quantise_blocks(prepared: &Prepared, bits: BlockBits, block: usize) -> Result<Quantised, CompressError> {
    quantise_blocks_in_steps(prepared, bits, block, &WeightSteps::new())
}

/// As [`quantise_blocks`], in `steps` where there are any: those that were learnt. Errors: as there.
pub fn quantise_blocks_in_steps(
    prepared: &Prepared,
    bits: BlockBits,
    block: usize,
    steps: &WeightSteps,
) -> Result<Quantised, CompressError> {
    let mut edit = Edit::new(prepared.model.clone());
    let layers = rewrite(&mut edit, prepared, (bits, block), steps, &mut |_| Ok(()))?;
    Quantised::of_same_names(prepared, edit.model, layers)
}

/// Rewrites the layers and the tables of `edit`, which is of the prepared model; says how many layers. `each` is told after
/// each layer how many were looked at.
pub(crate) fn rewrite(
    edit: &mut Edit,
    prepared: &Prepared,
    (bits, block): (BlockBits, usize),
    steps: &WeightSteps,
    each: &mut dyn FnMut(usize) -> Result<(), CompressError>,
) -> Result<usize, CompressError> {
    check_block(block)?;
    let mut layers = 0;
    for (at, layer) in prepared.layers.iter().enumerate().filter(|(_, layer)| layer.op != "Conv") {
        layers += usize::from(layer_of(edit, layer, (bits, block), steps)?);
        each(at + 1)?;
    }
    tables::quantise(edit)?;
    if layers > 0 && edit.model.opset_of(DOMAIN).is_none() {
        let set = OperatorSetIdProto { domain: Some(DOMAIN.to_owned()), version: Some(1) };
        edit.model.proto_mut().opset_import.push(set);
    }
    Ok(layers)
}

pub(crate) fn check_block(block: usize) -> Result<(), CompressError> {
    if block.is_power_of_two() && (16..=256).contains(&block) {
        return Ok(());
    }
    let reason = "is no size of a block; expected a power of two from 16 to 256";
    Err(CompressError::unsupported(format!("`{block}`"), reason))
}

fn layer_of(
    edit: &mut Edit,
    layer: &Layer,
    (bits, block): (BlockBits, usize),
    steps: &WeightSteps,
) -> Result<bool, CompressError> {
    let Some(proto) = edit.node(layer.node).cloned() else { return Ok(false) };
    let refuse = || CompressError::unsupported(format!("node `{}`", proto.name()), "its constants cannot be read");
    let (Some(input), Some(weight), Some(output)) = (proto.input.first(), proto.input.get(1), proto.output.first())
    else {
        return Err(refuse());
    };
    let floats = edit.float_tensor(weight).ok_or_else(refuse)?;
    let values = floats.values::<f32>()?;
    let (inputs, outputs, by_output) = match (channel_axis(&proto), floats.shape()) {
        (0, &[outputs, inputs]) => (inputs, outputs, true),
        (_, &[inputs, outputs]) => (inputs, outputs, false),
        _ => return Err(refuse()),
    };
    if inputs == 0 || !inputs.is_multiple_of(block) {
        return Ok(false);
    }
    let at = |output: usize, input: usize| {
        let index = if by_output { output * inputs + input } else { input * outputs + output };
        values.get(index).copied().unwrap_or(0.0)
    };
    let blocks = inputs / block;
    let mut packed = Vec::with_capacity(outputs * blocks * block * bits.count() / 8);
    let mut scales = Vec::with_capacity(outputs * blocks);
    for output in 0..outputs {
        for first in (0..blocks).map(|number| number * block) {
            let numbers: Vec<f32> = (first..first + block).map(|input| at(output, input)).collect();
            let number = if by_output { output * blocks + first / block } else { first / block * outputs + output };
            let learnt = steps.get(weight).and_then(|steps| steps.get(number)).copied();
            let scale = learnt.unwrap_or_else(|| largest_first(&numbers, bits));
            round_block(&numbers, bits, scale, &mut packed);
            scales.push(scale);
        }
    }
    let stored = Tensor::from_vec([outputs, blocks, block * bits.count() / 8], packed)?;
    let stored = edit.store(&format!("{weight}.blocks"), &stored)?;
    let scales = edit.store(&format!("{weight}.scales"), &Tensor::from_vec([outputs, blocks], scales)?)?;
    let bias = bias_name(&proto);
    let product = if bias.is_some() { edit.fresh(&format!("{output}.unbiased")) } else { output.clone() };
    let attributes = [("K", inputs), ("N", outputs), ("bits", bits.count()), ("block_size", block)];
    let mut attributes: Vec<AttributeProto> =
        attributes.map(|(name, value)| AttributeProto::of_int(name, value as i64)).to_vec();
    attributes.push(AttributeProto::of_int("accuracy_level", ACCURACY_LEVEL));
    let mut multiply =
        node("MatMulNBits", proto.name().to_owned(), &[input, &stored, &scales], &[&product], attributes);
    multiply.domain = Some(DOMAIN.to_owned());
    let graph = edit.model.graph_mut();
    if let Some(slot) = graph.node.get_mut(layer.node) {
        *slot = multiply;
    }
    if let Some(bias) = bias {
        graph.node.push(node("Add", format!("{output}.biased"), &[&product, bias], &[output], Vec::new()));
    }
    Ok(true)
}

/// The number of the greatest size, with its sign; the first of several.
pub(crate) fn largest(numbers: &[f32]) -> f32 {
    numbers.iter().copied().fold(0.0, |most, value| if value.abs() > most.abs() { value } else { most })
}

/// The step with which the number of the greatest size gets the lowest integer, so that all of them are used.
pub(crate) fn largest_first(numbers: &[f32], bits: BlockBits) -> f32 {
    let scale = largest(numbers) / -bits.zero();
    if scale.abs() >= f32::MIN_POSITIVE { scale } else { 1.0 }
}

/// The integer nearest to a number, counted from that of 0.
pub(crate) fn nearest(value: f32, bits: BlockBits, scale: f32) -> f32 {
    let zero = bits.zero();
    (value / scale).round_ties_even().clamp(-zero, zero - 1.0)
}

/// Appends a block's integers.
fn round_block(numbers: &[f32], bits: BlockBits, scale: f32, packed: &mut Vec<u8>) {
    let zero = bits.zero();
    let integers: Vec<u8> = numbers.iter().map(|value| (nearest(*value, bits, scale) + zero) as u8).collect();
    match bits {
        BlockBits::Four => packed.extend(integers.chunks(2).filter_map(|two| Some(two.first()? | (two.get(1)? << 4)))),
        BlockBits::Eight => packed.extend(integers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_their_numbers() {
        let mut packed = Vec::new();
        let numbers: Vec<f32> = (0..16).map(|i| i as f32 - 8.0).collect();
        assert_eq!(largest_first(&numbers, BlockBits::Four), 1.0);
        round_block(&numbers, BlockBits::Four, 1.0, &mut packed);
        assert_eq!(packed, [0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe]);
        packed.clear();
        assert_eq!(largest_first(&[0.0; 3], BlockBits::Eight), 1.0);
        round_block(&[0.0; 16], BlockBits::Eight, 1.0, &mut packed);
        assert_eq!(packed, [128; 16]);
    }
}

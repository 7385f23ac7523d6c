//! What a run of a model costs: multiply-adds of the operators that make up nearly all of it.

use std::collections::BTreeMap;

use crate::{Dimension, Inferred, Model, node::place, proto::NodeProto};

/// Multiply-adds by operator type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Operator type and its multiply-adds, most first.
    pub operators: Vec<(String, u64)>,
    /// Sum over all.
    pub total: u64,
    /// The first node whose shapes are not known; the sum is then too small.
    pub unknown: Option<String>,
}

/// Counts the multiply-adds of convolutions, matrix products and recurrent layers of the main graph for the shapes that
/// `inferred` has. Element-wise operators are left out, as is usual for the figure (ResNet-50: 4.1 × 10⁹).
pub fn cost(model: &Model, inferred: &Inferred) -> Cost {
    let mut by_type: BTreeMap<&str, u64> = BTreeMap::new();
    let mut unknown = None;
    for (index, node) in model.graph().node.iter().enumerate().filter(|(_, node)| node.is_standard()) {
        let Some(count) = counted(node.op_type()) else { continue };
        match count(node, inferred) {
            Some(macs) => {
                let sum = by_type.entry(node.op_type()).or_default();
                *sum = sum.saturating_add(macs);
            }
            None if unknown.is_none() => unknown = Some(place(node, index)),
            None => {}
        }
    }
    let mut operators: Vec<(String, u64)> = by_type.into_iter().map(|(op, n)| (op.to_owned(), n)).collect();
    operators.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let total = operators.iter().fold(0u64, |sum, (_, n)| sum.saturating_add(*n));
    Cost { operators, total, unknown }
}

type Count = fn(&NodeProto, &Inferred) -> Option<u64>;

fn counted(op: &str) -> Option<Count> {
    Some(match op {
        "Conv" | "ConvInteger" => |node, inferred| convolution(node, inferred, 1),
        "QLinearConv" => |node, inferred| convolution(node, inferred, 3),
        "ConvTranspose" => transposed,
        "MatMul" | "MatMulInteger" | "QLinearMatMul" => matmul,
        "Gemm" => gemm,
        "LSTM" | "GRU" | "RNN" => recurrent,
        _ => return None,
    })
}

/// True for operators whose multiply-adds are counted: those that take time.
pub(crate) fn is_counted(op: &str) -> bool {
    counted(op).is_some()
}

fn input(node: &NodeProto, inferred: &Inferred, index: usize) -> Option<Vec<usize>> {
    inferred.of(node.input.get(index)?).fixed()
}

fn elements(inferred: &Inferred, name: &str) -> Option<u64> {
    inferred.of(name).element_count()
}

fn product(sizes: &[usize]) -> Option<u64> {
    sizes.iter().try_fold(1u64, |n, &size| n.checked_mul(size as u64))
}

/// Each output element sums over the weight of one output channel.
fn convolution(node: &NodeProto, inferred: &Inferred, weight: usize) -> Option<u64> {
    let per_output = product(input(node, inferred, weight)?.get(1..)?)?;
    elements(inferred, node.output.first()?)?.checked_mul(per_output)
}

/// Each input element goes into the weight of one input channel.
fn transposed(node: &NodeProto, inferred: &Inferred) -> Option<u64> {
    let per_input = product(input(node, inferred, 1)?.get(1..)?)?;
    elements(inferred, node.input.first()?)?.checked_mul(per_input)
}

fn matmul(node: &NodeProto, inferred: &Inferred) -> Option<u64> {
    let left = inferred.of(node.input.first()?).shape?;
    let Some(Dimension::Fixed(inner)) = left.last() else { return None };
    elements(inferred, node.output.first()?)?.checked_mul(*inner as u64)
}

fn gemm(node: &NodeProto, inferred: &Inferred) -> Option<u64> {
    let left = input(node, inferred, 0)?;
    let inner = *left.get(usize::from(node.attr_int("transA").unwrap_or(0) == 0))?;
    elements(inferred, node.output.first()?)?.checked_mul(inner as u64)
}

/// Both weights once per element of the batch and step; a direction's weights are in the same tensors.
fn recurrent(node: &NodeProto, inferred: &Inferred) -> Option<u64> {
    let steps = product(input(node, inferred, 0)?.get(..2)?)?;
    let weights = elements(inferred, node.input.get(1)?)?.checked_add(elements(inferred, node.input.get(2)?)?)?;
    steps.checked_mul(weights)
}

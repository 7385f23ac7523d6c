//! Which rule an operator has. A rule tells the types of the outputs, in their order.

use super::{ValueType, View, arrange, compute, special};
use crate::{DataType, Dimension};

pub(super) type Types = Result<Vec<ValueType>, String>;

/// Types of a node's outputs; fewer than it has where the rest is unknown.
#[expect(clippy::too_many_lines, reason = "a table: one line for each operator or family")]
pub(super) fn outputs(view: &View<'_>) -> Types {
    match view.node.op_type() {
        "Abs"
        | "Acos"
        | "Acosh"
        | "Asin"
        | "Asinh"
        | "Atan"
        | "Atanh"
        | "BitwiseNot"
        | "Celu"
        | "Ceil"
        | "Clip"
        | "Cos"
        | "Cosh"
        | "CumSum"
        | "Elu"
        | "Erf"
        | "Exp"
        | "Floor"
        | "Gelu"
        | "GroupNormalization"
        | "HardSigmoid"
        | "HardSwish"
        | "Hardmax"
        | "Identity"
        | "InstanceNormalization"
        | "LRN"
        | "LeakyRelu"
        | "Log"
        | "LogSoftmax"
        | "LpNormalization"
        | "MeanVarianceNormalization"
        | "Mish"
        | "Neg"
        | "Not"
        | "PRelu"
        | "Reciprocal"
        | "Relu"
        | "RMSNormalization"
        | "Round"
        | "Scatter"
        | "ScatterElements"
        | "ScatterND"
        | "Selu"
        | "Shrink"
        | "Sigmoid"
        | "Sign"
        | "Sin"
        | "Sinh"
        | "Softmax"
        | "Softplus"
        | "Softsign"
        | "Sqrt"
        | "Swish"
        | "Tan"
        | "Tanh"
        | "ThresholdedRelu"
        | "Trilu"
        | "ReverseSequence"
        | "RotaryEmbedding" => Ok(vec![view.input(0)]),
        "BatchNormalization" => Ok(compute::batch_normalization(view)),
        "Dropout" => {
            let mask = ValueType { dtype: Some(DataType::Bool), shape: view.dims(0) };
            Ok(vec![view.input(0), mask])
        }
        "LayerNormalization" => compute::layer_normalization(view),
        "Cast" => Ok(vec![ValueType { dtype: DataType::from_onnx(view.int("to", 0) as i32), shape: view.dims(0) }]),
        "CastLike" => Ok(vec![ValueType { dtype: view.dtype(1), shape: view.dims(0) }]),
        "IsNaN" | "IsInf" => Ok(vec![ValueType { dtype: Some(DataType::Bool), shape: view.dims(0) }]),
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Mod" | "Max" | "Min" | "Mean" | "Sum" | "BitShift" | "BitwiseAnd"
        | "BitwiseOr" | "BitwiseXor" => compute::broadcast(view, 0, view.dtype(0)),
        "And" | "Or" | "Xor" | "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" => {
            compute::broadcast(view, 0, Some(DataType::Bool))
        }
        "Where" => compute::broadcast(view, 0, view.dtype(1)),
        "MatMul" => compute::matmul(view, [0, 1], view.dtype(0)),
        "MatMulInteger" => compute::matmul(view, [0, 1], Some(DataType::Int32)),
        "QLinearMatMul" => compute::matmul(view, [0, 3], view.dtype(7)),
        "Gemm" => compute::gemm(view),
        "Conv" | "DeformConv" => compute::convolution(view, [0, 1], view.dtype(0)),
        "ConvInteger" => compute::convolution(view, [0, 1], Some(DataType::Int32)),
        "QLinearConv" => compute::convolution(view, [0, 3], view.dtype(7)),
        "ConvTranspose" => compute::transposed_convolution(view),
        "MaxPool" | "AveragePool" | "LpPool" => compute::pool(view),
        "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" => Ok(compute::global_pool(view)),
        "LSTM" | "GRU" | "RNN" => Ok(compute::recurrent(view)),
        "QuantizeLinear" => Ok(compute::quantize(view)),
        "DequantizeLinear" => Ok(vec![ValueType { dtype: view.dtype(1), shape: view.dims(0) }]),
        "DynamicQuantizeLinear" => Ok(compute::dynamic_quantize(view)),
        op if op.starts_with("Reduce") => arrange::reduce(view),
        "ArgMax" | "ArgMin" => arrange::arg(view),
        "TopK" => arrange::top_k(view),
        "Shape" => Ok(arrange::shape(view)),
        "Size" => Ok(vec![ValueType { dtype: Some(DataType::Int64), shape: Some(Vec::new()) }]),
        "Constant" => Ok(arrange::constant(view)),
        "ConstantOfShape" => Ok(arrange::constant_of_shape(view)),
        "Reshape" => arrange::reshape(view),
        "Flatten" => arrange::flatten(view),
        "Transpose" => arrange::transpose(view),
        "Squeeze" => arrange::squeeze(view),
        "Unsqueeze" => arrange::unsqueeze(view),
        "Concat" => arrange::concat(view),
        "Split" => arrange::split(view),
        "Slice" => arrange::slice(view),
        "Gather" => arrange::gather(view),
        "GatherElements" => Ok(vec![ValueType { dtype: view.dtype(0), shape: view.dims(1) }]),
        "GatherND" => arrange::gather_nd(view),
        "Expand" => arrange::expand(view),
        "Tile" => arrange::tile(view),
        "Pad" => arrange::pad(view),
        "Range" => Ok(arrange::range(view)),
        "OneHot" => arrange::one_hot(view),
        "Resize" | "Upsample" => arrange::resize(view),
        "DepthToSpace" | "SpaceToDepth" => Ok(arrange::depth_space(view)),
        "NonZero" => {
            let rank = view.dims(0).map_or(Dimension::Unknown, |dims| Dimension::Fixed(dims.len()));
            Ok(vec![ValueType { dtype: Some(DataType::Int64), shape: Some(vec![rank, Dimension::Unknown]) }])
        }
        "NonMaxSuppression" => {
            let shape = vec![Dimension::Unknown, Dimension::Fixed(3)];
            Ok(vec![ValueType { dtype: Some(DataType::Int64), shape: Some(shape) }])
        }
        _ => special::outputs(view).unwrap_or_else(|| Ok(Vec::new())),
    }
}

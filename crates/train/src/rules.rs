//! Which rule an operator has. A rule emits what its node hands from the gradients of its outputs to its inputs.
//!
//! A rule is asked with a [`Context`]: it looks at its node, emits nodes of the standard only, and gives a gradient to
//! each input that is wanted. How to add one is told in docs/training.md.

mod arrange;
mod convolve;
mod einsum;
mod elementwise;
mod example;
mod gather;
mod matrix;
mod normalise;
mod pool;
mod quantise;
mod reduce;
mod resize;

use edgeward_graph::proto::NodeProto;

use crate::gradient::{Context, Done};

pub(crate) use example::{Factors, Part, per_example};
pub(crate) use normalise::channel_count;

/// Operators whose results do not change with small changes of their inputs, or are no floats: no gradient passes.
pub(crate) fn is_flat(node: &NodeProto) -> bool {
    node.is_standard()
        && matches!(
            node.op_type(),
            "And"
                | "ArgMax"
                | "ArgMin"
                | "BitShift"
                | "BitwiseAnd"
                | "BitwiseNot"
                | "BitwiseOr"
                | "BitwiseXor"
                | "Ceil"
                | "Constant"
                | "ConstantOfShape"
                | "Equal"
                | "EyeLike"
                | "Floor"
                | "Greater"
                | "GreaterOrEqual"
                | "Hardmax"
                | "IsInf"
                | "IsNaN"
                | "Less"
                | "LessOrEqual"
                | "NonMaxSuppression"
                | "NonZero"
                | "Not"
                | "OneHot"
                | "Or"
                | "RandomNormal"
                | "RandomNormalLike"
                | "RandomUniform"
                | "RandomUniformLike"
                | "Range"
                | "Round"
                | "Shape"
                | "Sign"
                | "Size"
                | "Xor"
        )
}

/// Operators whose gradients are told as one operation beside the nodes that spell them out: engines know faster ways.
pub(crate) fn is_composite(node: &NodeProto) -> bool {
    let kinds = [
        "BatchNormalization",
        "Clip",
        "Conv",
        "Gather",
        "Gelu",
        "GlobalAveragePool",
        "LayerNormalization",
        "MaxPool",
        "Relu",
        "Softmax",
    ];
    node.is_standard() && kinds.contains(&node.op_type())
}

/// Gives the gradients of a node's inputs; an error says why this node has none.
pub(crate) fn gradient(cx: &mut Context<'_>) -> Done {
    if !cx.node.is_standard() {
        return Err(format!("no gradient is known for operators of the domain `{}`", cx.node.domain()));
    }
    match cx.node.op_type() {
        "Abs" | "Acos" | "Acosh" | "Asin" | "Asinh" | "Atan" | "Atanh" | "Celu" | "Cos" | "Cosh" | "Elu" | "Erf"
        | "Exp" | "Gelu" | "HardSigmoid" | "HardSwish" | "LeakyRelu" | "Log" | "Mish" | "Neg" | "Reciprocal"
        | "Relu" | "Selu" | "Sigmoid" | "Sin" | "Sinh" | "Softplus" | "Softsign" | "Sqrt" | "Swish" | "Tan"
        | "Tanh" | "ThresholdedRelu" => elementwise::unary(cx),
        "Add" | "Sum" | "Mean" => elementwise::sum(cx),
        "Sub" => elementwise::sub(cx),
        "Mul" => elementwise::mul(cx),
        "Div" => elementwise::div(cx),
        "Pow" => elementwise::pow(cx),
        "Mod" => elementwise::modulo(cx),
        "Max" | "Min" => elementwise::extreme(cx),
        "Where" => elementwise::choose(cx),
        "Clip" => elementwise::clip(cx),
        "PRelu" => elementwise::prelu(cx),
        "Cast" | "CastLike" => elementwise::cast(cx),
        "MatMul" => matrix::matmul(cx),
        "Gemm" => matrix::gemm(cx),
        "Einsum" => einsum::einsum(cx),
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Identity" => arrange::same_elements(cx),
        "Dropout" => arrange::dropout(cx),
        "Transpose" => arrange::transpose(cx),
        "Expand" => arrange::expand(cx),
        "Tile" => arrange::tile(cx),
        "Concat" => arrange::concat(cx),
        "Split" => arrange::split(cx),
        "Slice" => arrange::slice(cx),
        "Pad" => arrange::pad(cx),
        "DepthToSpace" | "SpaceToDepth" => arrange::depth_space(cx),
        "Trilu" => arrange::trilu(cx),
        "CumSum" => arrange::cumulate(cx),
        "Gather" => gather::gather(cx),
        "GatherElements" => gather::gather_elements(cx),
        "GatherND" => gather::gather_nd(cx),
        "TopK" => gather::top_k(cx),
        "ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceL1" | "ReduceL2" | "ReduceSumSquare"
        | "ReduceLogSum" | "ReduceLogSumExp" | "ReduceProd" => reduce::reduce(cx),
        "Softmax" => reduce::softmax(cx),
        "LogSoftmax" => reduce::log_softmax(cx),
        "LpNormalization" => normalise::lp(cx),
        "LayerNormalization" => normalise::layer(cx),
        "RMSNormalization" => normalise::root_mean_square(cx),
        "InstanceNormalization" => normalise::instance(cx),
        "GroupNormalization" => normalise::group(cx),
        "BatchNormalization" => normalise::batch(cx),
        "Conv" => convolve::conv(cx),
        "ConvTranspose" => convolve::transposed(cx),
        "MaxPool" => pool::max(cx),
        "AveragePool" => pool::average(cx),
        "GlobalAveragePool" => pool::global_average(cx),
        "GlobalMaxPool" => pool::global_max(cx),
        "Resize" | "Upsample" => resize::resize(cx),
        "DequantizeLinear" => quantise::dequantise(cx),
        "QuantizeLinear" => quantise::quantise(cx),
        other => Err(format!(
            "no gradient is known for the operator `{other}`; freeze the weights before it, or add a rule \
             (docs/training.md)"
        )),
    }
}

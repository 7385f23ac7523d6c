//! A transformer encoder over tokens.

use edgeward_graph::{DataType, Model, proto::AttributeProto};

use super::{
    Starter, StarterError,
    builder::{Builder, Init},
    shown,
};
use crate::data::{ATTENTION_MASK, INPUT_IDS};

/// Numbers that one head looks at, where the width allows.
const HEAD_WIDTH: usize = 64;
/// Added to the scores of what is no token: its share of the attention is 0 in binary32.
const NOT_A_TOKEN: f32 = 1e4;

/// Attention heads of a width: one for each 64 numbers, at least 2 where the width can be halved.
pub fn heads(width: usize) -> usize {
    match width {
        _ if width >= 2 * HEAD_WIDTH && width.is_multiple_of(HEAD_WIDTH) => width / HEAD_WIDTH,
        _ if width.is_multiple_of(2) => 2,
        _ => 1,
    }
}

/// Sizes that every layer has.
#[derive(Clone, Copy)]
struct Sizes {
    width: usize,
    heads: usize,
    dropout: f32,
}

pub(super) fn transformer(wanted: &Starter) -> Result<Model, StarterError> {
    let &[tokens] = wanted.input.as_slice() else {
        let text = format!("input `{}` is no number of tokens; expected e.g. `64`", shown(&wanted.input));
        return Err(StarterError(text));
    };
    let width = wanted.width.unwrap_or(128);
    let sizes = Sizes { width, heads: heads(width), dropout: wanted.dropout };
    let mut graph = Builder::new("transformer", wanted.seed);
    graph.input(INPUT_IDS, DataType::Int64, &[tokens]);
    graph.input(ATTENTION_MASK, DataType::Int64, &[tokens]);
    let table = graph.weight("embedding.weight", &[wanted.vocabulary, width], Init::Normal(0.02))?;
    let places = graph.weight("position.weight", &[tokens, width], Init::Normal(0.02))?;
    let embedded = graph.node("embedding", "Gather", &[&table, INPUT_IDS], vec![AttributeProto::of_int("axis", 0)]);
    let placed = graph.node("position", "Add", &[&embedded, &places], Vec::new());
    let mut last = graph.dropout("dropout", &placed, wanted.dropout)?;
    let mask = graph.node("mask", "Cast", &[ATTENTION_MASK], vec![AttributeProto::of_int("to", 1)]);
    let bias = mask_bias(&mut graph, &mask)?;
    shared_constants(&mut graph, sizes)?;
    for layer in 0..wanted.depth.unwrap_or(2) {
        last = attention(&mut graph, &last, &bias, &format!("layers.{layer}"), sizes)?;
        last = feed_forward(&mut graph, &last, &format!("layers.{layer}"), sizes)?;
    }
    let normed = norm(&mut graph, &last, "norm", width)?;
    let mean = masked_mean(&mut graph, &normed, &mask)?;
    graph.head(&mean, width, wanted.classes)?;
    Ok(graph.model())
}

/// `[batch, 1, 1, tokens]`: 0 for a token, a large negative number for none.
fn mask_bias(graph: &mut Builder, mask: &str) -> Result<String, StarterError> {
    let one = graph.scalar("mask.one", 1.0)?;
    let large = graph.scalar("mask.large", NOT_A_TOKEN)?;
    let axes = graph.integers("mask.axes", &[1, 2])?;
    let less = graph.node("mask.less", "Sub", &[mask, &one], Vec::new());
    let scaled = graph.node("mask.scaled", "Mul", &[&less, &large], Vec::new());
    Ok(graph.node("mask.bias", "Unsqueeze", &[&scaled, &axes], Vec::new()))
}

fn shared_constants(graph: &mut Builder, sizes: Sizes) -> Result<(), StarterError> {
    let (width, heads) = (sizes.width as i64, sizes.heads as i64);
    graph.integers("heads.shape", &[0, 0, heads, width / heads])?;
    graph.integers("width.shape", &[0, 0, width])?;
    graph.integers("thirds", &[width; 3])?;
    graph.scalar("scale", 1.0 / (sizes.width as f32 / sizes.heads as f32).sqrt())?;
    graph.scalar("gelu.root", std::f32::consts::SQRT_2)?;
    graph.scalar("gelu.one", 1.0)?;
    graph.scalar("gelu.half", 0.5)?;
    Ok(())
}

fn norm(graph: &mut Builder, from: &str, name: &str, width: usize) -> Result<String, StarterError> {
    let scale = graph.weight(&format!("{name}.weight"), &[width], Init::Constant(1.0))?;
    let bias = graph.weight(&format!("{name}.bias"), &[width], Init::Constant(0.0))?;
    let attributes = vec![AttributeProto::of_int("axis", -1), AttributeProto::of_float("epsilon", 1e-5)];
    Ok(graph.node(name, "LayerNormalization", &[from, &scale, &bias], attributes))
}

fn dense(graph: &mut Builder, from: &str, name: &str, ins: usize, outs: usize) -> Result<String, StarterError> {
    let weight = graph.weight(&format!("{name}.weight"), &[ins, outs], Init::Xavier(ins, outs))?;
    let bias = graph.weight(&format!("{name}.bias"), &[outs], Init::Constant(0.0))?;
    let product = graph.node(&format!("{name}.matmul"), "MatMul", &[from, &weight], Vec::new());
    Ok(graph.node(name, "Add", &[&product, &bias], Vec::new()))
}

fn attention(graph: &mut Builder, from: &str, bias: &str, name: &str, sizes: Sizes) -> Result<String, StarterError> {
    let normed = norm(graph, from, &format!("{name}.norm1"), sizes.width)?;
    let all = dense(graph, &normed, &format!("{name}.qkv"), sizes.width, 3 * sizes.width)?;
    let thirds = ["q", "k", "v"].map(|part| format!("{name}.{part}"));
    let outputs: Vec<&str> = thirds.iter().map(String::as_str).collect();
    let axis = vec![AttributeProto::of_int("axis", -1)];
    graph.nodes(&format!("{name}.split"), "Split", &[&all, "thirds"], &outputs, axis);
    // Keys stand ready to be multiplied from the right.
    let orders = [[0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]];
    let mut heads = thirds.iter().zip(orders).map(|(third, order)| {
        let apart = graph.node(&format!("{third}.heads"), "Reshape", &[third, "heads.shape"], Vec::new());
        graph.node(&format!("{third}.turned"), "Transpose", &[&apart], vec![AttributeProto::of_ints("perm", order)])
    });
    let (Some(q), Some(k), Some(v)) = (heads.next(), heads.next(), heads.next()) else {
        return Err(StarterError("attention has three parts".to_owned()));
    };
    drop(heads);
    let products = graph.node(&format!("{name}.scores"), "MatMul", &[&q, &k], Vec::new());
    let scaled = graph.node(&format!("{name}.scaled"), "Mul", &[&products, "scale"], Vec::new());
    let masked = graph.node(&format!("{name}.masked"), "Add", &[&scaled, bias], Vec::new());
    let axis = vec![AttributeProto::of_int("axis", -1)];
    let shares = graph.node(&format!("{name}.softmax"), "Softmax", &[&masked], axis);
    let seen = graph.node(&format!("{name}.seen"), "MatMul", &[&shares, &v], Vec::new());
    let order = vec![AttributeProto::of_ints("perm", [0, 2, 1, 3])];
    let turned = graph.node(&format!("{name}.back"), "Transpose", &[&seen], order);
    let joined = graph.node(&format!("{name}.joined"), "Reshape", &[&turned, "width.shape"], Vec::new());
    let out = dense(graph, &joined, &format!("{name}.out"), sizes.width, sizes.width)?;
    let out = graph.dropout(&format!("{name}.dropout1"), &out, sizes.dropout)?;
    Ok(graph.node(&format!("{name}.add1"), "Add", &[from, &out], Vec::new()))
}

fn feed_forward(graph: &mut Builder, from: &str, name: &str, sizes: Sizes) -> Result<String, StarterError> {
    let normed = norm(graph, from, &format!("{name}.norm2"), sizes.width)?;
    let wide = dense(graph, &normed, &format!("{name}.fc1"), sizes.width, 4 * sizes.width)?;
    // GELU by the error function (Hendrycks & Gimpel 2016), as PyTorch exports it below opset 20.
    let shrunk = graph.node(&format!("{name}.gelu.shrunk"), "Div", &[&wide, "gelu.root"], Vec::new());
    let erf = graph.node(&format!("{name}.gelu.erf"), "Erf", &[&shrunk], Vec::new());
    let above = graph.node(&format!("{name}.gelu.above"), "Add", &[&erf, "gelu.one"], Vec::new());
    let product = graph.node(&format!("{name}.gelu.product"), "Mul", &[&wide, &above], Vec::new());
    let gelu = graph.node(&format!("{name}.gelu"), "Mul", &[&product, "gelu.half"], Vec::new());
    let out = dense(graph, &gelu, &format!("{name}.fc2"), 4 * sizes.width, sizes.width)?;
    let out = graph.dropout(&format!("{name}.dropout2"), &out, sizes.dropout)?;
    Ok(graph.node(&format!("{name}.add2"), "Add", &[from, &out], Vec::new()))
}

/// The mean over a text's tokens, `[batch, width]`.
fn masked_mean(graph: &mut Builder, from: &str, mask: &str) -> Result<String, StarterError> {
    let last = graph.integers("mean.last", &[2])?;
    let tokens = graph.integers("mean.tokens", &[1])?;
    let column = graph.node("mean.column", "Unsqueeze", &[mask, &last], Vec::new());
    let kept = graph.node("mean.kept", "Mul", &[from, &column], Vec::new());
    let sum = graph.node("mean.sum", "ReduceSum", &[&kept, &tokens], vec![AttributeProto::of_int("keepdims", 0)]);
    let count = graph.node("mean.count", "ReduceSum", &[mask, &tokens], vec![AttributeProto::of_int("keepdims", 1)]);
    Ok(graph.node("mean", "Div", &[&sum, &count], Vec::new()))
}

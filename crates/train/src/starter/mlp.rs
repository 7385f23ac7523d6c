//! Dense layers.

use edgeward_graph::{DataType, Model, proto::AttributeProto};

use super::{
    Starter, StarterError,
    builder::{Builder, Init},
};

/// `input` flattened, `depth` hidden layers of `width` with ReLU, and the head.
pub(super) fn mlp(wanted: &Starter) -> Result<Model, StarterError> {
    let (width, depth) = (wanted.width.unwrap_or(128), wanted.depth.unwrap_or(2));
    let mut graph = Builder::new("mlp", wanted.seed);
    graph.input("input", DataType::Float32, &wanted.input);
    let mut features = wanted.input.iter().product();
    let mut last = match wanted.input.len() {
        1 => "input".to_owned(),
        _ => graph.node("flatten", "Flatten", &["input"], Vec::new()),
    };
    for layer in 0..depth {
        let name = format!("layers.{layer}");
        let weight = graph.weight(&format!("{name}.weight"), &[width, features], Init::He(features))?;
        let bias = graph.weight(&format!("{name}.bias"), &[width], Init::Constant(0.0))?;
        let gemm = graph.node(&name, "Gemm", &[&last, &weight, &bias], vec![AttributeProto::of_int("transB", 1)]);
        let relu = graph.node(&format!("{name}.relu"), "Relu", &[&gemm], Vec::new());
        last = graph.dropout(&format!("{name}.dropout"), &relu, wanted.dropout)?;
        features = width;
    }
    graph.head(&last, features, wanted.classes)?;
    Ok(graph.model())
}

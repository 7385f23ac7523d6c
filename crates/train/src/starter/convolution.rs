//! Convolutional networks for pictures: ResNet and MobileNetV2.

use edgeward_graph::{DataType, Model, proto::AttributeProto};

use super::{
    Starter, StarterError,
    builder::{Builder, Init},
    shown,
};

/// Pictures up to this side keep their size in the first layer.
const SMALL: usize = 64;

/// A convolution and what follows it.
struct Conv<'a> {
    name: &'a str,
    ins: usize,
    outs: usize,
    kernel: usize,
    stride: usize,
    groups: usize,
}

impl Conv<'_> {
    /// The convolution, without a bias, and its BatchNormalization.
    fn normed(&self, graph: &mut Builder, from: &str, norm: &str) -> Result<String, StarterError> {
        let Self { name, ins, outs, kernel, stride, groups } = *self;
        let shape = [outs, ins / groups, kernel, kernel];
        // Fan out, as PyTorch's models have it.
        let init = Init::He(outs * kernel * kernel / groups);
        let weight = graph.weight(&format!("{name}.weight"), &shape, init)?;
        let pad = (kernel / 2) as i64;
        let attributes = vec![
            AttributeProto::of_ints("dilations", [1, 1]),
            AttributeProto::of_int("group", groups as i64),
            AttributeProto::of_ints("kernel_shape", [kernel as i64; 2]),
            AttributeProto::of_ints("pads", [pad; 4]),
            AttributeProto::of_ints("strides", [stride as i64; 2]),
        ];
        let conv = graph.node(name, "Conv", &[from, &weight], attributes);
        let mut inputs = vec![conv];
        for (part, value) in [("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)] {
            inputs.push(graph.weight(&format!("{norm}.{part}"), &[outs], Init::Constant(value))?);
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let attributes = vec![AttributeProto::of_float("epsilon", 1e-5), AttributeProto::of_float("momentum", 0.9)];
        Ok(graph.node(norm, "BatchNormalization", &inputs, attributes))
    }
}

fn picture(wanted: &Starter) -> Result<(usize, bool), StarterError> {
    match wanted.input.as_slice() {
        &[channels, height, width] => Ok((channels, height.max(width) <= SMALL)),
        other => {
            let text = format!("input `{}` is no picture; expected `channels,height,width`", shown(other));
            Err(StarterError(text))
        }
    }
}

fn pooled_head(graph: &mut Builder, last: &str, features: usize, classes: usize) -> Result<(), StarterError> {
    let pooled = graph.node("avgpool", "GlobalAveragePool", &[last], Vec::new());
    let flat = graph.node("flatten", "Flatten", &[&pooled], vec![AttributeProto::of_int("axis", 1)]);
    graph.head(&flat, features, classes)
}

/// Blocks of each stage by the number of layers.
fn stages(depth: usize) -> Result<Vec<usize>, StarterError> {
    match depth {
        18 => Ok(vec![2, 2, 2, 2]),
        34 => Ok(vec![3, 4, 6, 3]),
        _ if (8..=1202).contains(&depth) && (depth - 2).is_multiple_of(6) => Ok(vec![(depth - 2) / 6; 3]),
        _ => Err(StarterError(format!(
            "depth `{depth}` is no resnet; expected 18, 34, or 8, 14, 20, 26, 32, 44, 56 … 6n+2"
        ))),
    }
}

pub(super) fn resnet(wanted: &Starter) -> Result<Model, StarterError> {
    let (channels, small) = picture(wanted)?;
    let stages = stages(wanted.depth.unwrap_or(if small { 20 } else { 18 }))?;
    let mut outs = wanted.width.unwrap_or(if stages.len() == 3 { 16 } else { 64 });
    let mut graph = Builder::new("resnet", wanted.seed);
    graph.input("input", DataType::Float32, &wanted.input);
    let (kernel, stride) = if small { (3, 1) } else { (7, 2) };
    let stem = Conv { name: "conv1", ins: channels, outs, kernel, stride, groups: 1 };
    let normed = stem.normed(&mut graph, "input", "bn1")?;
    let mut last = graph.node("relu", "Relu", &[&normed], Vec::new());
    if !small {
        let attributes = vec![
            AttributeProto::of_ints("kernel_shape", [3, 3]),
            AttributeProto::of_ints("pads", [1; 4]),
            AttributeProto::of_ints("strides", [2, 2]),
        ];
        last = graph.node("maxpool", "MaxPool", &[&last], attributes);
    }
    let mut ins = outs;
    for (stage, &blocks) in stages.iter().enumerate() {
        outs <<= usize::from(stage > 0);
        for block in 0..blocks {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let name = format!("layer{}.{block}", stage + 1);
            last = residual(&mut graph, &last, &name, (ins, outs, stride))?;
            ins = outs;
        }
    }
    pooled_head(&mut graph, &last, outs, wanted.classes)?;
    Ok(graph.model())
}

/// Two convolutions around which the input goes, through a third where the shape changes.
fn residual(
    graph: &mut Builder,
    from: &str,
    name: &str,
    (ins, outs, stride): (usize, usize, usize),
) -> Result<String, StarterError> {
    let first = format!("{name}.conv1");
    let conv = Conv { name: &first, ins, outs, kernel: 3, stride, groups: 1 };
    let normed = conv.normed(graph, from, &format!("{name}.bn1"))?;
    let relu = graph.node(&format!("{name}.relu1"), "Relu", &[&normed], Vec::new());
    let second = format!("{name}.conv2");
    let conv = Conv { name: &second, ins: outs, outs, kernel: 3, stride: 1, groups: 1 };
    let normed = conv.normed(graph, &relu, &format!("{name}.bn2"))?;
    let around = if ins == outs && stride == 1 {
        from.to_owned()
    } else {
        let third = format!("{name}.downsample.0");
        let conv = Conv { name: &third, ins, outs, kernel: 1, stride, groups: 1 };
        conv.normed(graph, from, &format!("{name}.downsample.1"))?
    };
    let sum = graph.node(&format!("{name}.add"), "Add", &[&normed, &around], Vec::new());
    Ok(graph.node(&format!("{name}.relu2"), "Relu", &[&sum], Vec::new()))
}

/// Expansion, channels, blocks and stride of each stage (Sandler et al. 2018, table 2).
const STAGES: [(usize, usize, usize, usize); 7] =
    [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)];

pub(super) fn mobilenet(wanted: &Starter) -> Result<Model, StarterError> {
    let (channels, small) = picture(wanted)?;
    if let Some(depth) = wanted.depth {
        return Err(StarterError(format!("depth `{depth}` has no meaning for a mobilenet; its `width` may be given")));
    }
    // Multiples of 8, never more than a tenth below what was asked for.
    let scaled = |channels: usize| {
        let exact = channels * wanted.width.unwrap_or(100);
        let near = ((exact / 100 + 4) / 8 * 8).max(8);
        if near * 1000 < exact * 9 { near + 8 } else { near }
    };
    let mut graph = Builder::new("mobilenet", wanted.seed);
    graph.input("input", DataType::Float32, &wanted.input);
    let mut ins = scaled(32);
    let stride = if small { 1 } else { 2 };
    let stem = Conv { name: "features.0.0", ins: channels, outs: ins, kernel: 3, stride, groups: 1 };
    let normed = stem.normed(&mut graph, "input", "features.0.1")?;
    let mut last = relu6(&mut graph, &normed, "features.0.2")?;
    let mut number = 1;
    for (stage, (expansion, outs, blocks, stride)) in STAGES.into_iter().enumerate() {
        for block in 0..blocks {
            // Small pictures would be a point before the end.
            let stride = if block > 0 || (small && stage == 1) { 1 } else { stride };
            let shape = Inverted { number, ins, outs: scaled(outs), expansion, stride };
            last = shape.add(&mut graph, &last)?;
            (ins, number) = (scaled(outs), number + 1);
        }
    }
    let outs = scaled(1280).max(1280);
    let name = format!("features.{number}.0");
    let conv = Conv { name: &name, ins, outs, kernel: 1, stride: 1, groups: 1 };
    let normed = conv.normed(&mut graph, &last, &format!("features.{number}.1"))?;
    let last = relu6(&mut graph, &normed, &format!("features.{number}.2"))?;
    pooled_head(&mut graph, &last, outs, wanted.classes)?;
    Ok(graph.model())
}

/// An inverted residual with a linear bottleneck.
struct Inverted {
    number: usize,
    ins: usize,
    outs: usize,
    expansion: usize,
    stride: usize,
}

impl Inverted {
    fn add(&self, graph: &mut Builder, from: &str) -> Result<String, StarterError> {
        let prefix = format!("features.{}.conv", self.number);
        let wide = self.ins * self.expansion;
        let mut last = from.to_owned();
        let mut part = 0;
        let depthwise = (wide, 3, self.stride, wide);
        let pointwise = (self.ins, 1, 1, 1);
        let parts = if self.expansion == 1 { vec![depthwise] } else { vec![pointwise, depthwise] };
        for (ins, kernel, stride, groups) in parts {
            let name = format!("{prefix}.{part}.0");
            let conv = Conv { name: &name, ins, outs: wide, kernel, stride, groups };
            let normed = conv.normed(graph, &last, &format!("{prefix}.{part}.1"))?;
            last = relu6(graph, &normed, &format!("{prefix}.{part}.2"))?;
            part += 1;
        }
        let name = format!("{prefix}.{part}");
        let conv = Conv { name: &name, ins: wide, outs: self.outs, kernel: 1, stride: 1, groups: 1 };
        let normed = conv.normed(graph, &last, &format!("{prefix}.{}", part + 1))?;
        if self.ins != self.outs || self.stride != 1 {
            return Ok(normed);
        }
        Ok(graph.node(&format!("{prefix}.add"), "Add", &[from, &normed], Vec::new()))
    }
}

fn relu6(graph: &mut Builder, from: &str, name: &str) -> Result<String, StarterError> {
    let least = graph.scalar(&format!("{name}.min"), 0.0)?;
    let most = graph.scalar(&format!("{name}.max"), 6.0)?;
    Ok(graph.node(name, "Clip", &[from, &least, &most], Vec::new()))
}

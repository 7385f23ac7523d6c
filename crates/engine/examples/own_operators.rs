//! Times the operators of the domain `edgeward` over shapes of networks, each as a model of one node, on two threads:
//! `cargo run --release -p edgeward-engine --example own_operators [part of a name]`.
//!
//! Prints the least and the median time and the processor time of a run, and for convolutions how many billion operations a second
//! that is.

#![expect(clippy::unwrap_used, reason = "an example fails by panicking")]

use std::{num::NonZeroUsize, time::Instant};

use bytes::Bytes;
use edgeward_engine::{Engine, Registry, RegistryConfig, RunOptions, SessionOptions, Source};
use edgeward_graph::{
    DataType, Model, Tensor,
    proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TypeProto, ValueInfoProto, type_proto,
    },
};

fn ints(name: &str, values: &[usize]) -> AttributeProto {
    let ints = values.iter().map(|&v| i64::try_from(v).unwrap()).collect();
    AttributeProto { name: Some(name.to_owned()), r#type: Some(7), ints, ..AttributeProto::default() }
}

fn int(name: &str, value: usize) -> AttributeProto {
    let (name, i) = (Some(name.to_owned()), Some(i64::try_from(value).unwrap()));
    AttributeProto { name, r#type: Some(2), i, ..AttributeProto::default() }
}

fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto { name: Some(name.to_owned()), r#type: Some(1), f: Some(value), ..AttributeProto::default() }
}

fn model(op: &str, attributes: Vec<AttributeProto>, inputs: &[Tensor], outputs: usize) -> Source {
    let port = |name: String| {
        let tensor = type_proto::Tensor { elem_type: Some(DataType::Float32.to_onnx()), shape: None };
        let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() });
        ValueInfoProto { name: Some(name), r#type, ..ValueInfoProto::default() }
    };
    let names = |letter: &str, count: usize| (0..count).map(|i| format!("{letter}{i}")).collect::<Vec<_>>();
    let (input, output) = (names("i", inputs.len()), names("o", outputs));
    let node = NodeProto {
        op_type: Some(op.to_owned()),
        domain: Some("edgeward".to_owned()),
        input: input.clone(),
        output: output.clone(),
        attribute: attributes,
        ..NodeProto::default()
    };
    let graph = GraphProto {
        name: Some("g".to_owned()),
        node: vec![node],
        input: input.into_iter().map(port).collect(),
        output: output.into_iter().map(port).collect(),
        ..GraphProto::default()
    };
    let opset = |domain: &str, version| OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version) };
    let proto = ModelProto {
        ir_version: Some(8),
        opset_import: vec![opset("", 17), opset("edgeward", 1)],
        graph: Some(graph),
        ..ModelProto::default()
    };
    Source::Bytes(Bytes::from(Model::from_proto(proto).to_bytes().unwrap()))
}

fn random(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let values = (0..count).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0).collect();
    Tensor::from_vec(shape, values).unwrap()
}

/// Times one operator; `operations` is what it computes.
fn time(engine: &dyn Engine, what: &str, source: &Source, inputs: &[Tensor], operations: usize) {
    let options = SessionOptions { threads: NonZeroUsize::new(2), ..SessionOptions::default() };
    let session = engine.load(source, &options).unwrap();
    let names: Vec<String> = (0..inputs.len()).map(|i| format!("i{i}")).collect();
    let given: Vec<(&str, &Tensor)> = names.iter().map(String::as_str).zip(inputs).collect();
    let wanted = std::env::args().nth(1).unwrap_or_default();
    if !what.contains(&wanted) {
        return;
    }
    session.run(&given, RunOptions::default()).unwrap();
    let (begin, cpu_begin, mut times) = (Instant::now(), cpu_ms(), Vec::new());
    while times.len() < 10 || begin.elapsed().as_secs_f64() < 0.5 {
        let start = Instant::now();
        session.run(&given, RunOptions::default()).unwrap();
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let cpu = (cpu_ms() - cpu_begin) / times.len() as f64;
    times.sort_by(f64::total_cmp);
    let (least, median) = (times[0], times[times.len() / 2]);
    print!("{what:46} {least:8.2} ms least, {median:8.2} median, {cpu:8.2} of processor");
    if operations > 0 {
        let rate = |ms: f64| operations as f64 / ms / 1e6;
        print!(", {:5.0} GFLOP/s at least time, {:5.0} of one processor", rate(least), rate(cpu));
    }
    println!();
}

/// Processor time of this process, in steps of 10 ms: what counts on a machine that others use as well.
fn cpu_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    fields.filter_map(|f| f.parse::<f64>().ok()).sum::<f64>() * 10.0
}

/// Images, channels, outputs, height and width, kernel, stride, depthwise.
type Shape = (usize, usize, usize, usize, usize, usize, bool);

const SHAPES: &[Shape] = &[
    (64, 64, 64, 28, 3, 1, false),
    (64, 128, 128, 14, 3, 1, false),
    (64, 256, 256, 7, 3, 1, false),
    (64, 512, 512, 4, 3, 1, false),
    (64, 64, 128, 28, 3, 2, false),
    (64, 64, 128, 28, 1, 2, false),
    (8, 64, 64, 56, 3, 1, false),
    (8, 3, 64, 224, 7, 2, false),
    (16, 96, 24, 24, 1, 1, false),
    (16, 24, 144, 24, 1, 1, false),
    (16, 960, 160, 3, 1, 1, false),
    (16, 160, 960, 3, 1, 1, false),
    (16, 96, 96, 48, 3, 2, true),
    (16, 144, 144, 24, 3, 1, true),
    (16, 384, 384, 6, 3, 1, true),
];

fn convolution(engine: &dyn Engine, shape: &Shape) {
    let &(n, c, o, h, k, stride, depthwise) = shape;
    let (pad, plain) = (k / 2, c < 16);
    let out = (h + 2 * pad - k) / stride + 1;
    let inputs = if depthwise { 1 } else { c };
    let common = || {
        let group = if depthwise { c } else { 1 };
        let sizes = vec![ints("strides", &[stride; 2]), ints("pads", &[pad; 4]), int("group", group)];
        sizes.into_iter().chain([int("channels", c), int("plain", usize::from(plain))]).collect::<Vec<_>>()
    };
    let x = if plain { random(&[n, c, h, h]) } else { random(&[n, c.div_ceil(16), h, h, 16]) };
    let (w, dy) = (random(&[o, inputs, k, k]), random(&[n, o.div_ceil(16), out, out, 16]));
    let operations = 2 * n * o * inputs * k * k * out * out;
    let name = |what: &str| {
        let kind = if depthwise { "depthwise" } else { "" };
        format!("{what} {n}x{c}x{h}x{h} to {o}, {k}x{k} by {stride} {kind}")
    };
    let given = [x.clone(), w.clone()];
    time(engine, &name("forward"), &model("Conv", common(), &given, 1), &given, operations);
    let attributes = common().into_iter().chain([ints("kernel_shape", &[k; 2]), int("outputs", o)]).collect();
    let given = [x, dy.clone()];
    time(engine, &name("weights"), &model("ConvWeightGradient", attributes, &given, 1), &given, operations);
    let attributes = common().into_iter().chain([ints("size", &[h; 2])]).collect();
    let given = [dy, w];
    time(engine, &name("input"), &model("ConvInputGradient", attributes, &given, 1), &given, operations);
}

fn passes(engine: &dyn Engine) {
    let (x, vector) = (random(&[64, 4, 28, 28, 16]), random(&[64]));
    let positive = Tensor::from_vec([64], vec![0.5f32; 64]).unwrap();
    let activation = || vec![float("epsilon", 1e-5), float("low", 0.0)];
    let each = |op: &str, attributes: Vec<AttributeProto>, inputs: &[Tensor], outputs: usize| {
        let what = format!("{op} 64x64x28x28, {} inputs", inputs.len());
        time(engine, &what, &model(op, attributes, inputs, outputs), inputs, 0);
    };
    let forward = [x.clone(), vector.clone(), vector.clone()];
    each("BatchNorm", activation(), &forward, 3);
    let [a, b, c] = forward;
    each("BatchNorm", activation(), &[a, b, c, x.clone()], 3);
    let backward = [x.clone(), x.clone(), vector.clone(), vector, positive, x.clone()];
    each("BatchNormGradient", activation(), &backward[..5], 3);
    each("BatchNormGradient", activation(), &backward, 3);
    each("BatchNormGradient", activation(), &backward, 4);
    each("ReluGradient", vec![float("low", 0.0)], &[x.clone(), x.clone()], 1);
    let window = || vec![ints("kernel_shape", &[3, 3]), ints("strides", &[2, 2]), ints("pads", &[1; 4])];
    let pooled = random(&[64, 4, 14, 14, 16]);
    each("MaxPool", window(), std::slice::from_ref(&x), 1);
    each("MaxPoolGradient", window(), &[pooled.clone(), x.clone(), pooled], 1);
    each("ToBlocked", Vec::new(), &[random(&[64, 64, 28, 28])], 1);
    each("FromBlocked", vec![int("channels", 64)], &[x], 1);
}

fn main() {
    let engine = Registry::new(RegistryConfig::default()).get("onnxruntime").unwrap();
    SHAPES.iter().for_each(|shape| convolution(&*engine, shape));
    passes(&*engine);
}

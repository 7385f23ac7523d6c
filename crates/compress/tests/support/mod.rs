//! Graphs written by hand, dumped as text, and run.

#![allow(dead_code, clippy::unwrap_used, reason = "each test uses a part; a test fails by panicking")]

use std::sync::Arc;

use edgeward_compress::{CompressError, observe::Inputs};
use edgeward_engine::{Engine, Registry, RegistryConfig, Session, SessionOptions, Source};
use edgeward_graph::{
    DataType, Model, Tensor,
    proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto, TypeProto,
        ValueInfoProto,
        tensor_shape_proto::{Dimension, dimension},
        type_proto,
    },
    tensor_proto,
};

/// Engines of this machine: the built-in one, and ONNX Runtime where it is installed.
pub fn engines() -> Vec<Arc<dyn Engine>> {
    let registry = Registry::new(RegistryConfig::default());
    ["rten", "onnxruntime"].iter().filter_map(|name| registry.get(name).ok()).collect()
}

pub fn load(engine: &dyn Engine, model: &Model) -> Result<Box<dyn Session>, CompressError> {
    Ok(engine.load(&Source::Bytes(model.to_bytes()?.into()), &SessionOptions::default())?)
}

/// All outputs as numbers, one after the other.
pub fn run(engine: &dyn Engine, model: &Model, inputs: &Inputs) -> Vec<f32> {
    let session = load(engine, model).unwrap();
    let outputs = session.run(&edgeward_compress::observe::borrowed(inputs), Default::default()).unwrap();
    outputs.iter().flat_map(|tensor| tensor.values::<f32>().unwrap().to_vec()).collect()
}

/// Signal to noise in decibels.
pub fn decibels(expected: &[f32], got: &[f32]) -> f64 {
    assert_eq!(expected.len(), got.len());
    let signal: f64 = expected.iter().map(|x| f64::from(*x).powi(2)).sum();
    let noise: f64 = expected.iter().zip(got).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum();
    10.0 * (signal / noise).log10()
}

/// Numbers that repeat, about evenly in −1 to 1.
pub fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

pub fn port(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = |d: &i64| {
        let value = match d {
            0 => dimension::Value::DimParam("n".to_owned()),
            size => dimension::Value::DimValue(*size),
        };
        Dimension { value: Some(value), ..Dimension::default() }
    };
    let shape = Some(TensorShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: Some(DataType::Float32.to_onnx()), shape };
    let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() });
    ValueInfoProto { name: Some(name.to_owned()), r#type, ..ValueInfoProto::default() }
}

/// A graph that grows node by node.
pub struct Builder {
    pub graph: GraphProto,
    pub opset: i64,
}

impl Builder {
    pub fn new(input: &[i64]) -> Self {
        let graph = GraphProto { name: Some("g".to_owned()), input: vec![port("x", input)], ..GraphProto::default() };
        Self { graph, opset: 13 }
    }

    pub fn node(&mut self, op: &str, inputs: &[&str], output: &str, mut attribute: Vec<AttributeProto>) -> &mut Self {
        // The built-in engine wants these named.
        if matches!(op, "Conv" | "MaxPool") {
            for named in [ints("pads", &[0; 4]), ints("strides", &[1, 1]), ints("dilations", &[1, 1])] {
                if attribute.iter().all(|given| given.name() != named.name()) {
                    attribute.push(named);
                }
            }
        }
        self.graph.node.push(NodeProto {
            op_type: Some(op.to_owned()),
            input: inputs.iter().map(|i| (*i).to_owned()).collect(),
            output: vec![output.to_owned()],
            attribute,
            ..NodeProto::default()
        });
        self
    }

    pub fn floats(&mut self, name: &str, shape: &[usize], values: Vec<f32>) -> &mut Self {
        let tensor = Tensor::from_vec(shape.to_vec(), values).unwrap();
        self.graph.initializer.push(tensor_proto(name, &tensor));
        self
    }

    /// Shapes, axes and the like.
    pub fn whole(&mut self, name: &str, values: &[i64]) -> &mut Self {
        let tensor = Tensor::from_vec([values.len()], values.to_vec()).unwrap();
        self.graph.initializer.push(tensor_proto(name, &tensor));
        self
    }

    /// Drawn weights, small enough that layers keep the size of their inputs.
    pub fn drawn(&mut self, name: &str, shape: &[usize], seed: u64) -> &mut Self {
        let count = shape.iter().product::<usize>();
        let fan = (count / shape[0].max(1)).max(1) as f32;
        let values = numbers(seed, count).into_iter().map(|v| v * (3.0 / fan).sqrt()).collect();
        self.floats(name, shape, values)
    }

    pub fn model(&self, outputs: &[(&str, &[i64])]) -> Model {
        let mut graph = self.graph.clone();
        graph.output = outputs.iter().map(|(name, dims)| port(name, dims)).collect();
        let opset = OperatorSetIdProto { version: Some(self.opset), ..OperatorSetIdProto::default() };
        let proto =
            ModelProto { ir_version: Some(8), opset_import: vec![opset], graph: Some(graph), ..ModelProto::default() };
        Model::from_proto(proto)
    }
}

/// One line for each node: operator, inputs, outputs.
pub fn dump(model: &Model) -> String {
    let line = |node: &NodeProto| format!("{} {} -> {}", node.op_type(), node.input.join(" "), node.output.join(" "));
    model.graph().node.iter().map(line).collect::<Vec<_>>().join("\n")
}

pub fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto::of_ints(name, values.to_vec())
}

/// Batches of drawn inputs `x`.
pub fn batches(shape: &[usize], count: u64) -> Vec<Inputs> {
    let batch = |seed: u64| {
        let values = numbers(seed + 1000, shape.iter().product());
        vec![("x".to_owned(), Tensor::from_vec(shape.to_vec(), values).unwrap())]
    };
    (0..count).map(batch).collect()
}

/// `x` of [batch, 3, 8, 8]: Conv, normalised and clipped, then Conv and a sum of both, clipped as `r1`; a batch of 0 is open.
pub fn residual(batch: i64) -> Builder {
    let mut b = Builder::new(&[batch, 3, 8, 8]);
    b.drawn("w0", &[4, 3, 3, 3], 1).drawn("w1", &[4, 4, 3, 3], 2).drawn("b1", &[4], 3);
    b.floats("scale", &[4], vec![1.5, 0.5, 1.0, 2.0]).floats("shift", &[4], vec![0.1, 0.2, 0.3, -0.4]);
    b.floats("mean", &[4], vec![0.2, -0.1, 0.0, 0.1]).floats("var", &[4], vec![0.5, 1.0, 2.0, 0.1]);
    let pads = || vec![ints("pads", &[1, 1, 1, 1])];
    b.node("Conv", &["x", "w0"], "c0", pads());
    b.node("BatchNormalization", &["c0", "scale", "shift", "mean", "var"], "n0", vec![]);
    b.node("Relu", &["n0"], "r0", vec![]).node("Conv", &["r0", "w1", "b1"], "c1", pads());
    b.node("Add", &["r0", "c1"], "s", vec![]).node("Relu", &["s"], "r1", vec![]);
    b
}

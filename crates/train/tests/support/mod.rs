//! Graphs written by hand, and steps run through an engine.

#![allow(dead_code, clippy::unwrap_used, reason = "each test uses a part; a test fails by panicking")]

use std::{collections::HashMap, num::NonZeroUsize, sync::Arc};

use bytes::Bytes;
use edgeward_engine::{Engine, EngineError, Registry, RegistryConfig, RunOptions, Session, SessionOptions, Source};
use edgeward_graph::{
    DataType, Model, Tensor,
    proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
        TypeProto, ValueInfoProto,
        tensor_shape_proto::{Dimension, dimension},
        type_proto,
    },
    tensor_proto,
};
use edgeward_train::Step;

/// Engines of this machine that run training graphs.
pub fn engines() -> Vec<Arc<dyn Engine>> {
    let registry = Registry::new(RegistryConfig::default());
    ["onnxruntime", "rten"].iter().filter_map(|name| registry.get(name).ok()).collect()
}

/// Loads with `threads`.
pub fn load(engine: &dyn Engine, model: &Model, threads: usize) -> Box<dyn Session> {
    try_load(engine, model, threads).unwrap()
}

/// As [`load`], where it may be refused.
pub fn try_load(engine: &dyn Engine, model: &Model, threads: usize) -> Result<Box<dyn Session>, EngineError> {
    let bytes = Bytes::from(model.to_bytes().unwrap());
    let options = SessionOptions { threads: NonZeroUsize::new(threads), ..SessionOptions::default() };
    engine.load(&Source::Bytes(bytes), &options)
}

/// A declared size: a number, or a name that begins with a letter.
pub fn port(name: &str, dtype: DataType, dims: &[&str]) -> ValueInfoProto {
    let dim = |d: &&str| Dimension {
        value: Some(match d.parse::<i64>() {
            Ok(size) => dimension::Value::DimValue(size),
            Err(_) => dimension::Value::DimParam((*d).to_owned()),
        }),
        ..Dimension::default()
    };
    let shape = Some(TensorShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: Some(dtype.to_onnx()), shape };
    let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() });
    ValueInfoProto { name: Some(name.to_owned()), r#type, ..ValueInfoProto::default() }
}

/// A node: operator, inputs, outputs, attributes.
pub fn node(op: &str, inputs: &[&str], outputs: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
    let own = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    NodeProto {
        op_type: Some(op.to_owned()),
        name: Some(format!("{op}_{}", outputs[0])),
        input: own(inputs),
        output: own(outputs),
        attribute,
        ..NodeProto::default()
    }
}

/// A model of operator set 17.
pub fn model(
    nodes: Vec<NodeProto>,
    input: Vec<ValueInfoProto>,
    output: Vec<ValueInfoProto>,
    weights: Vec<(&str, Tensor)>,
) -> Model {
    let initializer: Vec<TensorProto> = weights.iter().map(|(name, tensor)| tensor_proto(name, tensor)).collect();
    let graph =
        GraphProto { name: Some("g".to_owned()), node: nodes, input, output, initializer, ..GraphProto::default() };
    let opset = OperatorSetIdProto { version: Some(17), ..OperatorSetIdProto::default() };
    let proto =
        ModelProto { ir_version: Some(8), opset_import: vec![opset], graph: Some(graph), ..ModelProto::default() };
    Model::from_proto(proto)
}

/// Numbers between -1 and 1 that look random, the same for each seed.
pub fn noise(seed: u64, shape: &[usize]) -> Tensor {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678_9ABC_DEF1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    };
    let count = shape.iter().product();
    Tensor::from_vec(shape, (0..count).map(|_| next()).collect::<Vec<f32>>()).unwrap()
}

/// A training run: a session and the state between its steps.
pub struct Run {
    session: Box<dyn Session>,
    step: Step,
    /// In the order of the step's.
    pub state: Vec<Tensor>,
    count: f32,
}

impl Run {
    pub fn new(engine: &dyn Engine, step: &Step, threads: usize) -> Self {
        let state = step.state.iter().map(|s| s.initial.clone()).collect();
        Self { session: load(engine, &step.graph, threads), step: step.clone(), state, count: 0.0 }
    }

    /// One step; returns the loss.
    pub fn step(&mut self, rate: f32, feed: &[(&str, &Tensor)]) -> f32 {
        self.outputs(rate, feed, &[]).0
    }

    /// One step of several whose gradients accumulate; `last` changes the weights.
    pub fn step_of(&mut self, rate: f32, feed: &[(&str, &Tensor)], last: bool) -> f32 {
        let apply = Tensor::from_bools([], vec![last]).unwrap();
        let name = self.step.scalars.apply.clone();
        let mut feed = feed.to_vec();
        feed.extend(name.as_deref().map(|name| (name, &apply)));
        let zeros: Vec<(String, Tensor)> = self
            .step
            .noise
            .iter()
            .map(|port| {
                let shape: Vec<usize> = port
                    .shape
                    .iter()
                    .flatten()
                    .map(|dim| match dim {
                        edgeward_graph::Dimension::Fixed(size) => *size,
                        _ => panic!("noise of an open shape"),
                    })
                    .collect();
                let count = shape.iter().product();
                (port.name.clone(), Tensor::from_vec(shape, vec![0f32; count]).unwrap())
            })
            .collect();
        feed.extend(zeros.iter().map(|(name, tensor)| (name.as_str(), tensor)));
        self.step(rate, &feed)
    }

    /// One step; returns the loss and other outputs.
    pub fn outputs(&mut self, rate: f32, feed: &[(&str, &Tensor)], more: &[&str]) -> (f32, Vec<Tensor>) {
        self.count += 1.0;
        let scalar = |v: f32| Tensor::from_vec([], vec![v]).unwrap();
        let (rate, count) = (scalar(rate), scalar(self.count));
        let mut inputs: Vec<(&str, &Tensor)> = feed.to_vec();
        inputs.push((&self.step.scalars.rate, &rate));
        inputs.extend(self.step.scalars.step.as_deref().map(|name| (name, &count)));
        inputs.extend(self.step.state.iter().zip(&self.state).map(|(s, t)| (s.input.as_str(), t)));
        let mut wanted = vec![self.step.loss.as_str()];
        wanted.extend(more);
        wanted.extend(self.step.state.iter().map(|s| s.output.as_str()));
        let options = RunOptions { outputs: Some(&wanted), ..RunOptions::default() };
        let mut outputs = self.session.run(&inputs, options).unwrap();
        self.state = outputs.split_off(1 + more.len());
        let loss = outputs.remove(0);
        (loss.values::<f32>().unwrap()[0], outputs)
    }

    /// State by the name of its input.
    pub fn states(&self) -> HashMap<String, Tensor> {
        self.step.state.iter().map(|s| s.input.clone()).zip(self.state.iter().cloned()).collect()
    }
}

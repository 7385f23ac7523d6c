//! The operators of the domain `edgeward`, each within a model that ONNX Runtime runs, against loops in float64.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{num::NonZeroUsize, sync::Arc};

use bytes::Bytes;
use edgeward_engine::{Engine, EngineError, Registry, RegistryConfig, RunOptions, SessionOptions, Source};
use edgeward_graph::{
    DataType, Model, Tensor,
    proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TypeProto, ValueInfoProto, type_proto,
    },
};
use proptest::prelude::*;

mod own_operators_parts;

/// The engine, where it and the operators are there.
fn engine() -> Option<Arc<dyn Engine>> {
    let there = cfg!(target_arch = "x86_64") && has_avx512();
    if !there {
        println!("skipped: the processor lacks AVX-512F");
        return None;
    }
    match Registry::new(RegistryConfig::default()).get("onnxruntime") {
        Ok(engine) => Some(engine),
        Err(e) if std::env::var_os("EDGEWARD_ALL_ENGINES").is_some() => panic!("{e}"),
        Err(e) => {
            println!("skipped: {e}");
            None
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    std::arch::is_x86_feature_detected!("avx512f")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512() -> bool {
    false
}

/// A node of the domain and how it is run.
#[derive(Clone)]
struct Op {
    name: &'static str,
    attributes: Vec<AttributeProto>,
    /// Outputs with a name; none for one left out.
    outputs: Vec<bool>,
    threads: usize,
}

fn op(name: &'static str, threads: usize) -> Op {
    Op { name, attributes: Vec::new(), outputs: vec![true], threads }
}

impl Op {
    fn ints(mut self, name: &str, values: &[usize]) -> Self {
        let ints = values.iter().map(|&v| i64::try_from(v).unwrap()).collect();
        let name = Some(name.to_owned());
        self.attributes.push(AttributeProto { name, r#type: Some(7), ints, ..AttributeProto::default() });
        self
    }

    fn int(mut self, name: &str, value: usize) -> Self {
        let (name, i) = (Some(name.to_owned()), Some(i64::try_from(value).unwrap()));
        self.attributes.push(AttributeProto { name, r#type: Some(2), i, ..AttributeProto::default() });
        self
    }

    fn float(mut self, name: &str, value: f32) -> Self {
        let name = Some(name.to_owned());
        self.attributes.push(AttributeProto { name, r#type: Some(1), f: Some(value), ..AttributeProto::default() });
        self
    }

    fn outputs(mut self, named: &[bool]) -> Self {
        self.outputs = named.to_vec();
        self
    }

    /// The node's model; an input that is none is left out.
    fn model(&self, inputs: &[Option<&Tensor>]) -> Source {
        let port = |name: &str, dtype: DataType| {
            let tensor = type_proto::Tensor { elem_type: Some(dtype.to_onnx()), shape: None };
            let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() });
            ValueInfoProto { name: Some(name.to_owned()), r#type, ..ValueInfoProto::default() }
        };
        let name = |letter: &str, i: usize, there: bool| if there { format!("{letter}{i}") } else { String::new() };
        let node = NodeProto {
            op_type: Some(self.name.to_owned()),
            name: Some("the_node".to_owned()),
            domain: Some("edgeward".to_owned()),
            input: inputs.iter().enumerate().map(|(i, t)| name("i", i, t.is_some())).collect(),
            output: self.outputs.iter().enumerate().map(|(i, &there)| name("o", i, there)).collect(),
            attribute: self.attributes.clone(),
            ..NodeProto::default()
        };
        let given = inputs.iter().enumerate().filter_map(|(i, t)| Some(port(&format!("i{i}"), t.as_ref()?.dtype())));
        let input = given.collect();
        let wanted = self.outputs.iter().enumerate().filter(|(_, there)| **there);
        let output = wanted.map(|(i, _)| port(&format!("o{i}"), DataType::Float32)).collect();
        let graph = GraphProto { name: Some("g".to_owned()), node: vec![node], input, output, ..GraphProto::default() };
        let opset =
            |domain: &str, version| OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version) };
        let proto = ModelProto {
            ir_version: Some(8),
            opset_import: vec![opset("", 17), opset("edgeward", 1)],
            graph: Some(graph),
            ..ModelProto::default()
        };
        Source::Bytes(Bytes::from(Model::from_proto(proto).to_bytes().unwrap()))
    }

    fn run(&self, engine: &dyn Engine, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, EngineError> {
        let options = SessionOptions { threads: NonZeroUsize::new(self.threads), ..SessionOptions::default() };
        let session = engine.load(&self.model(inputs), &options)?;
        let names: Vec<String> = (0..inputs.len()).map(|i| format!("i{i}")).collect();
        let given: Vec<(&str, &Tensor)> =
            names.iter().zip(inputs).filter_map(|(n, t)| Some((n.as_str(), (*t)?))).collect();
        session.run(&given, RunOptions::default())
    }
}

/// Numbers from -1 to 1, the same for the same seed.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn tensor(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_vec(shape, values.to_vec()).unwrap()
}

fn random(seed: u64, shape: &[usize]) -> Tensor {
    tensor(shape, &numbers(seed, shape.iter().product()))
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.values::<f32>().unwrap().into_owned()
}

/// A plain image as a blocked one, with rubbish in spare channels.
fn blocked(plain: &Tensor) -> Tensor {
    let [n, c, h, w] = <[usize; 4]>::try_from(plain.shape()).unwrap();
    let blocks = c.div_ceil(16);
    let mut out = numbers(99, n * blocks * h * w * 16).iter().map(|v| v * 1e6).collect::<Vec<_>>();
    for (at, value) in floats(plain).into_iter().enumerate() {
        let (image, channel, pixel) = (at / (c * h * w), at / (h * w) % c, at % (h * w));
        out[((image * blocks + channel / 16) * h * w + pixel) * 16 + channel % 16] = value;
    }
    tensor(&[n, blocks, h, w, 16], &out)
}

/// The channels of a blocked image, after a look that nothing else is infinite.
fn plain(blocked: &Tensor, channels: usize) -> Tensor {
    let [n, blocks, h, w, 16] = <[usize; 5]>::try_from(blocked.shape()).unwrap() else { panic!("not blocked") };
    assert_eq!(blocks, channels.div_ceil(16));
    let values = floats(blocked);
    assert!(values.iter().all(|v| v.is_finite()));
    let mut out = vec![0.0; n * channels * h * w];
    for (at, value) in out.iter_mut().enumerate() {
        let (image, channel, pixel) = (at / (channels * h * w), at / (h * w) % channels, at % (h * w));
        *value = values[((image * blocks + channel / 16) * h * w + pixel) * 16 + channel % 16];
    }
    tensor(&[n, channels, h, w], &out)
}

/// Fails where a value is farther from the expected than `tolerance` of the largest expected.
fn close(what: &str, given: &Tensor, shape: &[usize], expected: &[f64], tolerance: f64) {
    assert_eq!(given.shape(), shape, "{what}");
    let scale = expected.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    for (at, (given, expected)) in floats(given).iter().zip(expected).enumerate() {
        let error = (f64::from(*given) - expected).abs();
        assert!(error <= tolerance * scale, "{what}: value {at} is {given}, expected {expected}");
    }
}

fn wide(tensor: &Tensor) -> Vec<f64> {
    floats(tensor).into_iter().map(f64::from).collect()
}

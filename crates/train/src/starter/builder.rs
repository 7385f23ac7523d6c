//! A graph as it grows: nodes, drawn weights, and the frame around them.

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
use rand::{SeedableRng as _, rngs::ChaCha12Rng};
use rand_distr::{Distribution as _, Normal, Uniform};

use super::StarterError;

const OPSET: i64 = 17;
const IR_VERSION: i64 = 8;

/// A graph being made. A node's first output has the node's name.
pub(super) struct Builder {
    graph: GraphProto,
    rng: ChaCha12Rng,
}

/// How the numbers of a weight are drawn.
#[derive(Clone, Copy)]
pub(super) enum Init {
    /// The same number throughout.
    Constant(f32),
    /// Normal of this deviation.
    Normal(f64),
    /// Normal for what feeds a ReLU (He et al. 2015, equation 10); counts the inputs, or outputs, of one unit.
    He(usize),
    /// Uniform by inputs and outputs of one unit (Glorot & Bengio 2010, equation 16).
    Xavier(usize, usize),
}

impl Builder {
    pub(super) fn new(name: &str, seed: u64) -> Self {
        let graph = GraphProto { name: Some(name.to_owned()), ..GraphProto::default() };
        Self { graph, rng: ChaCha12Rng::seed_from_u64(seed) }
    }

    /// An input `[batch, …]`.
    pub(super) fn input(&mut self, name: &str, dtype: DataType, shape: &[usize]) {
        self.graph.input.push(value(name, dtype, shape));
    }

    pub(super) fn output(&mut self, name: &str, shape: &[usize]) {
        self.graph.output.push(value(name, DataType::Float32, shape));
    }

    pub(super) fn node(&mut self, name: &str, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.nodes(name, op, inputs, &[name], attributes);
        name.to_owned()
    }

    /// A node with outputs of their own names.
    pub(super) fn nodes(
        &mut self,
        name: &str,
        op: &str,
        inputs: &[&str],
        outputs: &[&str],
        attribute: Vec<AttributeProto>,
    ) {
        let own = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        self.graph.node.push(NodeProto {
            name: Some(name.to_owned()),
            op_type: Some(op.to_owned()),
            input: own(inputs),
            output: own(outputs),
            attribute,
            ..NodeProto::default()
        });
    }

    /// Draws a weight. Errors: more numbers than memory takes.
    pub(super) fn weight(&mut self, name: &str, shape: &[usize], init: Init) -> Result<String, StarterError> {
        let count = edgeward_graph::element_count(shape).map_err(|error| StarterError(error.to_string()))?;
        let fail = |error: &dyn std::fmt::Display| StarterError(format!("`{name}` cannot be drawn: {error}"));
        let rng = &mut self.rng;
        let normal = |deviation: f64| Normal::new(0.0f32, deviation as f32).map_err(|error| fail(&error));
        let values: Vec<f32> = match init {
            Init::Constant(value) => vec![value; count],
            Init::Normal(deviation) => normal(deviation)?.sample_iter(rng).take(count).collect(),
            Init::He(fan) => normal((2.0 / fan.max(1) as f64).sqrt())?.sample_iter(rng).take(count).collect(),
            Init::Xavier(ins, outs) => {
                let most = (6.0 / (ins + outs).max(1) as f64).sqrt() as f32;
                let uniform = Uniform::new_inclusive(-most, most).map_err(|error| fail(&error))?;
                uniform.sample_iter(rng).take(count).collect()
            }
        };
        let tensor = Tensor::from_vec(shape, values).map_err(|error| fail(&error))?;
        self.graph.initializer.push(tensor_proto(name, &tensor));
        Ok(name.to_owned())
    }

    /// A constant of shapes and axes.
    pub(super) fn integers(&mut self, name: &str, values: &[i64]) -> Result<String, StarterError> {
        let tensor = Tensor::from_vec([values.len()], values.to_vec()).map_err(|e| StarterError(e.to_string()))?;
        self.graph.initializer.push(tensor_proto(name, &tensor));
        Ok(name.to_owned())
    }

    /// A single number.
    pub(super) fn scalar(&mut self, name: &str, value: f32) -> Result<String, StarterError> {
        let tensor = Tensor::from_vec([0usize; 0], vec![value]).map_err(|e| StarterError(e.to_string()))?;
        self.graph.initializer.push(tensor_proto(name, &tensor));
        Ok(name.to_owned())
    }

    /// A dropout, which an engine that serves leaves out; nothing where its part is 0.
    pub(super) fn dropout(&mut self, name: &str, from: &str, part: f32) -> Result<String, StarterError> {
        if part == 0.0 {
            return Ok(from.to_owned());
        }
        let ratio = self.scalar(&format!("{name}.ratio"), part)?;
        Ok(self.node(name, "Dropout", &[from, &ratio], Vec::new()))
    }

    /// The dense layer at the end, `[batch, features]` to the output `logits`.
    pub(super) fn head(&mut self, from: &str, features: usize, classes: usize) -> Result<(), StarterError> {
        let weight = self.weight("fc.weight", &[classes, features], Init::Xavier(features, classes))?;
        let bias = self.weight("fc.bias", &[classes], Init::Constant(0.0))?;
        self.nodes("fc", "Gemm", &[from, &weight, &bias], &["logits"], vec![AttributeProto::of_int("transB", 1)]);
        self.output("logits", &[classes]);
        Ok(())
    }

    pub(super) fn model(self) -> Model {
        let opset = OperatorSetIdProto { version: Some(OPSET), ..OperatorSetIdProto::default() };
        Model::from_proto(ModelProto {
            ir_version: Some(IR_VERSION),
            producer_name: Some("edgeward".to_owned()),
            opset_import: vec![opset],
            graph: Some(self.graph),
            ..ModelProto::default()
        })
    }
}

fn value(name: &str, dtype: DataType, shape: &[usize]) -> ValueInfoProto {
    let sizes = shape.iter().map(|&size| dimension::Value::DimValue(size as i64));
    let dims = std::iter::once(dimension::Value::DimParam("batch".to_owned())).chain(sizes);
    let dim = dims.map(|value| Dimension { value: Some(value), ..Dimension::default() }).collect();
    let tensor = type_proto::Tensor { elem_type: Some(dtype.to_onnx()), shape: Some(TensorShapeProto { dim }) };
    let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() });
    ValueInfoProto { name: Some(name.to_owned()), r#type, ..ValueInfoProto::default() }
}

//! What is known of a graph's values before it runs: types, sizes, small constants.

use std::collections::{BTreeMap, HashMap};

use edgeward_graph::{DataType, Dimension, GraphError, Inferred, Model, Tensor, ValueType, infer, proto::NodeProto};

/// Constants of more elements are weights; nothing is decided by them.
const ITEMS_MAX: usize = 4096;

/// Types of all values, contents of small constants.
pub(crate) struct Known {
    types: Inferred,
    constants: HashMap<String, Tensor>,
    produced: HashMap<String, NodeProto>,
    of_batch: HashMap<String, String>,
}

impl Known {
    /// Infers `model`, whose graph is in topological order.
    pub fn of(model: &Model) -> Result<Self, GraphError> {
        let types = infer(model, &BTreeMap::new())?;
        let graph = model.graph();
        let small = |dims: &[i64]| dims.iter().fold(1i64, |n, &d| n.saturating_mul(d)) <= ITEMS_MAX as i64;
        let mut constants = HashMap::new();
        for tensor in graph.initializer.iter().filter(|t| small(&t.dims)) {
            constants.insert(tensor.name().to_owned(), model.tensor(tensor)?);
        }
        for node in graph.node.iter().filter(|n| n.op_type() == "Constant" && n.is_standard()) {
            let Some(name) = node.output.first() else { continue };
            if let Some(values) = constant(model, node)? {
                constants.insert(name.clone(), values);
            }
        }
        let made = graph.node.iter().flat_map(|n| n.output.iter().map(move |o| (o.clone(), n)));
        // Attributes of nodes share their tensors' bytes.
        let produced = made.filter(|(name, _)| !name.is_empty()).map(|(name, node)| (name, node.clone())).collect();
        Ok(Self { types, constants, produced, of_batch: HashMap::new() })
    }

    /// Says which normalisations take the batch's own statistics: from their outputs to what they normalise.
    pub fn with_batch_statistics(self, of_batch: HashMap<String, String>) -> Self {
        Self { of_batch, ..self }
    }

    /// What a normalisation by the batch's own statistics normalises, by its output; none for other nodes. The node itself
    /// is given what remains of it without its mean.
    pub fn of_batch(&self, output: &str) -> Option<&str> {
        self.of_batch.get(output).map(String::as_str)
    }

    /// Type and shape.
    pub fn of_value(&self, name: &str) -> ValueType {
        self.types.of(name)
    }

    /// Element type.
    pub fn dtype(&self, name: &str) -> Option<DataType> {
        self.types.of(name).dtype
    }

    /// Dimensions; none where the rank is open.
    pub fn dims(&self, name: &str) -> Option<Vec<Dimension>> {
        self.types.of(name).shape
    }

    /// The node that makes a value.
    pub fn producer(&self, name: &str) -> Option<&NodeProto> {
        self.produced.get(name)
    }

    /// The integers of a small constant.
    pub fn integers(&self, name: &str) -> Option<Vec<i64>> {
        let tensor = self.constants.get(name)?;
        match tensor.dtype() {
            DataType::Int64 => Some(tensor.values::<i64>().ok()?.into_owned()),
            DataType::Int32 => Some(tensor.values::<i32>().ok()?.iter().map(|&v| v.into()).collect()),
            _ => None,
        }
    }

    /// The floats of a small constant.
    pub fn floats(&self, name: &str) -> Option<Vec<f64>> {
        let tensor = self.constants.get(name)?;
        match tensor.dtype() {
            DataType::Float32 => Some(tensor.values::<f32>().ok()?.iter().map(|&v| v.into()).collect()),
            DataType::Float64 => Some(tensor.values::<f64>().ok()?.into_owned()),
            _ => None,
        }
    }
}

fn constant(model: &Model, node: &NodeProto) -> Result<Option<Tensor>, GraphError> {
    let Some(attribute) = node.attribute.first() else { return Ok(None) };
    if let Some(tensor) = &attribute.t {
        return model.tensor(tensor).map(Some);
    }
    let list = attribute.ints.clone();
    let made = match attribute.name() {
        "value_int" => attribute.i.map(|v| Tensor::from_vec([], vec![v])),
        "value_ints" => Some(Tensor::from_vec([list.len()], list)),
        "value_float" => attribute.f.map(|v| Tensor::from_vec([], vec![v])),
        "value_floats" => Some(Tensor::from_vec([attribute.floats.len()], attribute.floats.clone())),
        _ => None,
    };
    Ok(made.and_then(Result::ok))
}

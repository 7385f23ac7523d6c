//! A graph while it is rewritten: names that are free, constants that are read and added.

use std::collections::{HashMap, HashSet};

use edgeward_graph::{
    DataType, ExternalWriter, Model, Tensor, check,
    proto::{AttributeProto, NodeProto, TensorProto},
    tensor_proto, walk,
};

use crate::CompressError;

/// Smaller constants stay in the ONNX file, where there is another for the large ones: engines look into them when they load.
pub(crate) const OUTSIDE_BYTES_MIN: usize = 1024;

/// A model, the names that it uses, and where its constants are.
pub(crate) struct Edit {
    pub model: Model,
    taken: HashSet<String>,
    constants: HashMap<String, usize>,
    /// Where large constants go at once, for a model that memory should not hold.
    pub outside: Option<ExternalWriter>,
}

impl Edit {
    pub fn new(model: Model) -> Self {
        let mut taken = HashSet::new();
        walk::nodes(model.proto(), &mut |node| {
            taken.extend(node.input.iter().chain(&node.output).cloned());
            taken.insert(node.name().to_owned());
        });
        let graph = model.graph();
        taken.extend(graph.input.iter().chain(&graph.output).map(|value| value.name().to_owned()));
        taken.extend(graph.initializer.iter().map(|tensor| tensor.name().to_owned()));
        let mut edit = Self { model, taken, constants: HashMap::new(), outside: None };
        edit.index();
        edit
    }

    /// Initialisers that no caller can replace.
    fn index(&mut self) {
        let graph = self.model.graph();
        let inputs: HashSet<&str> = graph.input.iter().map(|input| input.name()).collect();
        let constant = graph.initializer.iter().enumerate().filter(|(_, tensor)| !inputs.contains(tensor.name()));
        self.constants = constant.map(|(index, tensor)| (tensor.name().to_owned(), index)).collect();
    }

    /// A name that nothing has, beginning with `stem`.
    pub fn fresh(&mut self, stem: &str) -> String {
        let mut name = stem.to_owned();
        let mut number = 0u64;
        while !self.taken.insert(name.clone()) {
            number += 1;
            name = format!("{stem}_{number}");
        }
        name
    }

    pub fn is_constant(&self, name: &str) -> bool {
        self.constants.contains_key(name)
    }

    /// The values of a constant; none where it is none or cannot be read.
    pub fn value(&self, name: &str) -> Option<Tensor> {
        let tensor = self.model.graph().initializer.get(*self.constants.get(name)?)?;
        self.model.tensor(tensor).ok()
    }

    /// A constant of binary32 numbers, where it lies.
    pub fn float_tensor(&self, name: &str) -> Option<Tensor> {
        self.value(name).filter(|tensor| tensor.dtype() == DataType::Float32)
    }

    /// The same: shape, and a copy of the values.
    pub fn floats(&self, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let tensor = self.float_tensor(name)?;
        let values = tensor.values::<f32>().ok()?.into_owned();
        Some((tensor.shape().to_vec(), values))
    }

    /// Adds a constant and returns its name.
    pub fn constant(&mut self, stem: &str, values: &Tensor) -> String {
        let name = self.fresh(stem);
        let initializer = &mut self.model.graph_mut().initializer;
        initializer.push(tensor_proto(&name, values));
        self.constants.insert(name.clone(), initializer.len() - 1);
        name
    }

    /// As [`constant`](Self::constant), for one that may be large: where there is a file for such it is written there, and is not
    /// to be read again. Errors: the file cannot be written.
    pub fn store(&mut self, stem: &str, values: &Tensor) -> Result<String, CompressError> {
        let Some(outside) = self.outside.as_mut().filter(|_| values.byte_len() >= OUTSIDE_BYTES_MIN) else {
            return Ok(self.constant(stem, values));
        };
        let mut tensor = TensorProto::default();
        outside.append(&mut tensor, values)?;
        let name = self.fresh(stem);
        tensor.name = Some(name.clone());
        self.model.graph_mut().initializer.push(tensor);
        Ok(name)
    }

    pub fn node(&self, index: usize) -> Option<&NodeProto> {
        self.model.graph().node.get(index)
    }

    /// Points input `slot` of node `index` to another value.
    pub fn set_input(&mut self, index: usize, slot: usize, name: &str) {
        let Some(node) = self.model.graph_mut().node.get_mut(index) else { return };
        if node.input.len() <= slot {
            node.input.resize(slot + 1, String::new());
        }
        if let Some(input) = node.input.get_mut(slot) {
            name.clone_into(input);
        }
    }
}

/// `model` without what no output needs any more and without types that were noted before; checked. Errors: the first defect.
pub(crate) fn finished(mut model: Model) -> Result<Model, CompressError> {
    model.graph_mut().value_info.clear();
    model.graph_mut().drop_dead_nodes();
    match check(&model).err().and_then(|errors| errors.into_iter().next()) {
        Some(error) => Err(error.into()),
        None => Ok(model),
    }
}

/// `model` takes over the initialisers of `trained` that have its own names, types and shapes.
pub(crate) fn take_over(model: &mut Model, trained: &Model) {
    for tensor in &mut model.graph_mut().initializer {
        let learnt = trained.graph().initializer.iter().find(|other| other.name() == tensor.name());
        let same = |other: &&TensorProto| other.dims == tensor.dims && other.data_type() == tensor.data_type();
        if let Some(learnt) = learnt.filter(same) {
            tensor.clone_from(learnt);
        }
    }
}

/// A node of the standard's operators.
pub(crate) fn node(
    op: &str,
    name: String,
    inputs: &[&str],
    outputs: &[&str],
    attribute: Vec<AttributeProto>,
) -> NodeProto {
    let own = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    NodeProto {
        op_type: Some(op.to_owned()),
        name: Some(name),
        input: own(inputs),
        output: own(outputs),
        attribute,
        ..NodeProto::default()
    }
}

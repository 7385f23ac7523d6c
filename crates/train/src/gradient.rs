//! Reverse-mode differentiation: goes through a graph backwards and lets each operator's rule emit its part.
//!
//! The gradient of a value is the derivative of one number, the loss, by the value's elements; it has the value's type
//! and shape. What the rules themselves say is in [`crate::rules`].

use std::collections::{HashMap, HashSet};

use edgeward_graph::{DataType, proto::NodeProto};

use crate::{TrainError, emit::Emit, known::Known, rules};

/// Gradients by the name of their value.
pub(crate) type Gradients = HashMap<String, String>;

/// What a sweep goes through.
pub(crate) struct Sweep<'a> {
    /// The forward nodes in topological order.
    pub nodes: &'a [NodeProto],
    /// What is known of their values.
    pub known: &'a Known,
    /// Values whose gradients are asked for.
    pub wanted: &'a HashSet<String>,
    /// Of these, values whose gradients are left to the caller: [`Swept::uses`] tells who uses them.
    pub deferred: &'a HashSet<String>,
}

/// A node that uses deferred values, and what a rule needs to find their gradients.
#[derive(Clone, Debug)]
pub(crate) struct Use {
    /// Index of the node.
    pub node: usize,
    /// Gradients of its outputs.
    pub outputs: Vec<Option<String>>,
}

/// What a sweep found.
pub(crate) struct Swept {
    /// Gradients of the wanted values that the loss depends on.
    pub gradients: Gradients,
    /// Uses of deferred values, last node first.
    pub uses: Vec<Use>,
}

impl Sweep<'_> {
    /// Emits the gradients; `seeds` are values with their gradients.
    pub fn run(&self, emit: &mut Emit, seeds: Vec<(String, String)>) -> Result<Swept, TrainError> {
        let reached = self.reached();
        let mut open: HashMap<String, Vec<String>> = HashMap::new();
        for (value, gradient) in seeds {
            open.entry(value).or_default().push(gradient);
        }
        let mut swept = Swept { gradients: Gradients::new(), uses: Vec::new() };
        for (index, node) in self.nodes.iter().enumerate().rev() {
            let differentiable = |name: &String| !name.is_empty() && reached.contains(name.as_str());
            if !node.input.iter().any(differentiable) || rules::is_flat(node) {
                continue;
            }
            emit.stem = stem(node, index);
            let outputs: Vec<Option<String>> = node.output.iter().map(|name| emit.total(&open.remove(name)?)).collect();
            if outputs.iter().all(Option::is_none) {
                continue;
            }
            self.keep(&mut swept.gradients, node, &outputs);
            let wants = node.input.iter().map(|n| differentiable(n) && !self.deferred.contains(n)).collect();
            let given = self.rule(emit, index, &outputs, wants)?;
            for (input, gradient) in given {
                open.entry(input).or_default().push(gradient);
            }
            if node.input.iter().any(|name| self.deferred.contains(name)) {
                swept.uses.push(Use { node: index, outputs });
            }
        }
        for (name, parts) in open.into_iter().filter(|(name, _)| self.wanted.contains(name)) {
            emit.stem = format!("gradient/{name}");
            swept.gradients.extend(emit.total(&parts).map(|sum| (name, sum)));
        }
        Ok(swept)
    }

    /// The gradients that one node hands to the inputs that `wants` names, told as one operation where it is a composite.
    pub fn rule(
        &self,
        emit: &mut Emit,
        index: usize,
        outputs: &[Option<String>],
        wants: Vec<bool>,
    ) -> Result<Vec<(String, String)>, TrainError> {
        let Some(node) = self.nodes.get(index) else { return Ok(Vec::new()) };
        if !wants.contains(&true) {
            return Ok(Vec::new());
        }
        let mut context =
            Context { emit: &mut *emit, known: self.known, node, outputs: outputs.to_vec(), wants, given: Vec::new() };
        rules::gradient(&mut context)
            .map_err(|reason| TrainError::Unsupported { place: place(node, index), reason })?;
        let given = context.given;
        if rules::is_composite(node) {
            tell(emit, node, outputs, &given);
        }
        Ok(given)
    }

    fn keep(&self, gradients: &mut Gradients, node: &NodeProto, outputs: &[Option<String>]) {
        for (name, gradient) in node.output.iter().zip(outputs) {
            if let Some(gradient) = gradient.as_ref().filter(|_| self.wanted.contains(name)) {
                gradients.insert(name.clone(), gradient.clone());
            }
        }
    }

    /// Values that depend on a wanted one by a way that has a derivative.
    fn reached(&self) -> HashSet<&str> {
        let mut reached: HashSet<&str> = self.wanted.iter().map(String::as_str).collect();
        for node in self.nodes.iter().filter(|node| !rules::is_flat(node)) {
            if node.input.iter().any(|name| reached.contains(name.as_str())) {
                // Quantised values stand for the floats that they were.
                let stands = node.op_type() == "QuantizeLinear";
                let floats = node.output.iter().filter(|name| stands || self.known.dtype(name).is_none_or(is_float));
                reached.extend(floats.map(String::as_str));
            }
        }
        reached
    }
}

/// Tells the gradient of a node as one operation, `ConvGradient` for a Conv: from the node's inputs, its outputs and the outputs'
/// gradients to the inputs' gradients, empty where there is none. What a rule gives to a value before the node is its first
/// input's.
fn tell(emit: &mut Emit, node: &NodeProto, outputs: &[Option<String>], given: &[(String, String)]) {
    let of_outputs = outputs.iter().map(|g| g.as_deref().unwrap_or_default());
    let inputs: Vec<&str> = node.input.iter().chain(&node.output).map(String::as_str).chain(of_outputs).collect();
    let mut gradients = vec![""; node.input.len()];
    for (name, gradient) in given {
        let at = node.input.iter().position(|input| input == name).unwrap_or(0);
        if let Some(place) = gradients.get_mut(at) {
            *place = gradient;
        }
    }
    emit.composite(&format!("{}Gradient", node.op_type()), &inputs, &gradients, node.attribute.clone());
}

/// True for the types whose values have derivatives.
pub(crate) fn is_float(dtype: DataType) -> bool {
    matches!(dtype, DataType::Float32 | DataType::Float64 | DataType::Float16 | DataType::BFloat16)
}

fn stem(node: &NodeProto, index: usize) -> String {
    match node.name() {
        "" => format!("gradient/{}_{index}", node.op_type()),
        name => format!("gradient/{name}"),
    }
}

/// "node `conv1` (Conv)", or by its first output where it has no name.
pub(crate) fn place(node: &NodeProto, index: usize) -> String {
    match (node.name(), node.output.first()) {
        ("", Some(output)) => format!("the node that makes `{output}` ({})", node.op_type()),
        ("", None) => format!("node {index} ({})", node.op_type()),
        (name, _) => format!("node `{name}` ({})", node.op_type()),
    }
}

/// A node before its rule: what it is, what is known, and where its gradients go.
pub(crate) struct Context<'a> {
    pub emit: &'a mut Emit,
    pub known: &'a Known,
    pub node: &'a NodeProto,
    outputs: Vec<Option<String>>,
    wants: Vec<bool>,
    given: Vec<(String, String)>,
}

/// What keeps a rule from giving a gradient.
pub(crate) type Done = Result<(), String>;

impl Context<'_> {
    /// Gradient of an output; none where nothing depends on it.
    pub fn gradient(&self, output: usize) -> Option<String> {
        self.outputs.get(output).cloned().flatten()
    }

    /// Gradient of the only output that has a derivative; an error where another one is asked for.
    pub fn g(&self) -> Result<String, String> {
        if let Some(other) = (1..self.outputs.len()).find(|&i| self.gradient(i).is_some()) {
            return Err(format!("has no gradient by way of its output {other}"));
        }
        self.gradient(0).ok_or_else(|| "has no gradient of its first output".to_owned())
    }

    /// True where the gradient of that input is asked for.
    pub fn wants(&self, input: usize) -> bool {
        self.wants.get(input).copied().unwrap_or(false)
    }

    /// Hands a gradient to an input.
    pub fn give(&mut self, input: usize, gradient: String) {
        if let Some(name) = self.node.input.get(input) {
            self.given.push((name.clone(), gradient));
        }
    }

    /// Hands a gradient to a value before the node's inputs.
    pub fn give_past(&mut self, name: &str, gradient: String) {
        self.given.push((name.to_owned(), gradient));
    }

    /// Name of an input; empty where it is absent.
    pub fn x(&self, input: usize) -> &str {
        self.node.input.get(input).map_or("", String::as_str)
    }

    /// Name of an output; empty where it is absent.
    pub fn y(&self, output: usize) -> &str {
        self.node.output.get(output).map_or("", String::as_str)
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.node.input.len()
    }

    /// Element type of a value; float32 where it is not known.
    pub fn dtype(&self, name: &str) -> DataType {
        self.known.dtype(name).unwrap_or(DataType::Float32)
    }

    /// An integer attribute.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.node.attr_int(name).unwrap_or(default)
    }

    /// A float attribute.
    pub fn float(&self, name: &str, default: f32) -> f64 {
        f64::from(self.node.attr_float(name).unwrap_or(default))
    }
}

//! A training step as one graph: data, targets and state go in; loss, outputs and the next state come out.

use std::collections::{HashMap, HashSet};

use edgeward_graph::{
    DataType, Dimension, Model, Port, Tensor, annotate, check, fold_constants,
    proto::{NodeProto, ValueInfoProto},
    tensor_proto,
};

use crate::{
    Mask, StepSpec, TrainError,
    emit::{Axes, Emit},
    expand::{Expanded, expand},
    gradient::{Gradients, Sweep},
    known::Known,
    loss::{self, Each},
    optimise::{self, Before, Shared},
    parameters::{self, Parameters},
    prepare::{self, FOLDED, Size, declared},
    private::Private,
};

/// A training step, ready for an engine.
#[derive(Clone, Debug)]
pub struct Step {
    /// The graph, of standard operators only. Its inputs are [`Step::data`], [`Step::targets`], [`Step::scalars`],
    /// [`Step::masks`], [`Step::noise`] and the inputs of [`Step::state`].
    pub graph: Model,
    /// The forward graph's own inputs.
    pub data: Vec<Port>,
    /// What the losses compare with; `example_weight` last, where the spec asks for it.
    pub targets: Vec<Port>,
    /// Numbers that each step is given.
    pub scalars: Scalars,
    /// What each dropout keeps, to be drawn anew for each step.
    pub masks: Vec<Mask>,
    /// For privacy: noise that is added to the sum of the clipped gradients, one tensor for each weight, zeros for none.
    pub noise: Vec<Port>,
    /// Output: the loss, a scalar.
    pub loss: String,
    /// Output: the norm of all gradients together before clipping, a scalar; none where examples are clipped.
    pub gradient_norm: Option<String>,
    /// The forward graph's own outputs, as the weights before this step make them.
    pub outputs: Vec<Port>,
    /// What goes from one step to the next.
    pub state: Vec<State>,
}

/// Names of the scalar inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scalars {
    /// The learning rate.
    pub rate: String,
    /// The number of this update, 1 for the first; where the optimiser asks for it.
    pub step: Option<String>,
    /// Truth value: whether this step's gradients, and those accumulated before, change the weights; where gradients
    /// accumulate.
    pub apply: Option<String>,
    /// Element type of rate and step, that of the weights.
    pub dtype: DataType,
}

/// A tensor that goes from one step to the next.
#[derive(Clone, Debug)]
pub struct State {
    /// Name of the graph's input.
    pub input: String,
    /// Name of the graph's output that is the next step's input.
    pub output: String,
    /// Its value before the first step.
    pub initial: Tensor,
    /// What it is.
    pub role: Role,
}

/// What a state is; `name` is that of the weight or statistic in the forward graph.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// A weight.
    Weight {
        /// Its initialiser.
        name: String,
    },
    /// A running mean or variance of a normalisation.
    RunningStatistic {
        /// Its initialiser.
        name: String,
    },
    /// What the optimiser remembers of a weight.
    Moment {
        /// The weight.
        name: String,
        /// Which: `momentum`, `mean`, `square`.
        kind: String,
    },
    /// The average of a weight.
    Average {
        /// The weight.
        name: String,
    },
    /// Gradients that wait for the weights to change.
    Accumulated {
        /// The weight.
        name: String,
    },
}

/// Makes the graph of a training step.
///
/// Errors name the node that no gradient passes, the pattern that fits no weight, or the setting out of range.
pub fn build(forward: &Model, spec: &StepSpec) -> Result<Step, TrainError> {
    validate(spec)?;
    let mut model = prepare::readied(forward)?;
    let parameters = parameters::select(&model, spec)?;
    let mut initial = prepare::release(&mut model, &parameters)?;
    let mut draft = Draft::of(model, &parameters, spec)?;
    let gradients = draft.gradients(spec)?;
    draft.update(spec, &gradients, &mut initial)?;
    draft.finish()
}

/// `forward` with what the steps made of its weights and running statistics: the averages of the weights where the step
/// keeps them, else the weights. `state` is in the order of [`Step::state`].
pub fn finished(forward: &Model, step: &Step, state: &[Tensor]) -> Result<Model, TrainError> {
    if state.len() != step.state.len() {
        let (given, expected) = (state.len(), step.state.len());
        return Err(TrainError::invalid(format!("{given} tensors of state, the step has {expected}")));
    }
    let mut values: HashMap<&str, &Tensor> = HashMap::new();
    let mut averages: HashMap<&str, &Tensor> = HashMap::new();
    for (entry, tensor) in step.state.iter().zip(state) {
        if tensor.shape() != entry.initial.shape() || tensor.dtype() != entry.initial.dtype() {
            let (shape, expected) = (tensor.shape(), entry.initial.shape());
            let text = format!("state `{}` is {} {shape:?}", entry.input, tensor.dtype());
            return Err(TrainError::invalid(format!("{text}, expected {} {expected:?}", entry.initial.dtype())));
        }
        match &entry.role {
            Role::Weight { name } | Role::RunningStatistic { name } => drop(values.insert(name, tensor)),
            Role::Average { name } => drop(averages.insert(name, tensor)),
            Role::Moment { .. } | Role::Accumulated { .. } => {}
        }
    }
    values.extend(averages);
    let mut model = forward.clone();
    model.inline_external()?;
    for message in &mut model.graph_mut().initializer {
        if let Some(tensor) = values.remove(message.name()) {
            *message = tensor_proto(message.name.as_deref().unwrap_or_default(), tensor);
        }
    }
    match values.keys().next() {
        Some(name) => {
            Err(TrainError::invalid(format!("the forward graph has no weight `{name}`; is it the one of the step?")))
        }
        None => Ok(model),
    }
}

fn validate(spec: &StepSpec) -> Result<(), TrainError> {
    let positive = [
        ("clip_norm", spec.clip_norm),
        ("the privacy's clip_norm", spec.private.as_ref().map(|p| p.clip_norm)),
        ("expected_batch", spec.private.as_ref().map(|p| p.expected_batch)),
    ];
    for (name, value) in positive {
        if let Some(value) = value.filter(|v| !(*v > 0.0 && v.is_finite())) {
            return Err(TrainError::invalid(format!("{name} is `{value}`, expected a positive number")));
        }
    }
    if let Some(decay) = spec.ema.filter(|d| !(0.0..1.0).contains(d)) {
        return Err(TrainError::invalid(format!("the average's decay is `{decay}`, expected 0 to below 1")));
    }
    if let Some((pattern, factor)) = spec.factors.iter().find(|(_, factor)| !factor.is_finite()) {
        let text = format!("the factor of `{}` is `{factor}`, expected a finite number", pattern.text());
        return Err(TrainError::invalid(text));
    }
    if spec.private.is_some() && !spec.factors.is_empty() {
        return Err(TrainError::invalid("factors would change what privacy clips; leave them out"));
    }
    if spec.loss.terms.is_empty() {
        return Err(TrainError::invalid("no loss is given"));
    }
    if spec.private.is_some() && spec.clip_norm.is_some() {
        return Err(TrainError::invalid("clip_norm and privacy both clip; leave clip_norm out"));
    }
    Ok(())
}

/// A step in the making.
struct Draft {
    model: Model,
    emit: Emit,
    parameters: Parameters,
    expanded: Expanded,
    data: Vec<Port>,
    outputs: Vec<Port>,
    targets: Vec<Port>,
    scalars: Scalars,
    noise: Vec<Port>,
    /// Types of what is added to the model's inputs.
    inputs: Vec<ValueInfoProto>,
    loss: String,
    /// The loss of each example, where privacy asks for it.
    losses: String,
    /// The dimension that counts examples.
    batch: Dimension,
    gradient_norm: Option<String>,
    state: Vec<State>,
}

impl Draft {
    fn of(model: Model, parameters: &Parameters, spec: &StepSpec) -> Result<Self, TrainError> {
        let known = Known::of(&model)?;
        let mut emit = Emit::to(model.graph(), model.opset());
        let trained: HashSet<String> = parameters.weights.iter().cloned().collect();
        let expanded = expand(&mut emit, &model.graph().node, &known, &trained)?;
        let held: HashSet<&String> = parameters.weights.iter().chain(&parameters.statistics).collect();
        let data = model.inputs().into_iter().filter(|port| !held.contains(&port.name)).collect();
        let outputs = model.outputs();
        let mut draft = Self {
            scalars: Scalars { rate: String::new(), step: None, apply: None, dtype: DataType::Float32 },
            inputs: Vec::new(),
            targets: Vec::new(),
            noise: Vec::new(),
            loss: String::new(),
            losses: String::new(),
            batch: Dimension::Unknown,
            gradient_norm: None,
            state: Vec::new(),
            parameters: parameters.clone(),
            model,
            emit,
            expanded,
            data,
            outputs,
        };
        draft.loss(spec, &known)?;
        draft.scalars(spec);
        Ok(draft)
    }

    fn input(&mut self, name: &str, dtype: DataType, dims: &[Dimension]) -> String {
        let name = self.emit.name(name);
        self.inputs.push(declared(&name, dtype, &dims.iter().map(Size::from).collect::<Vec<_>>()));
        name
    }

    fn scalars(&mut self, spec: &StepSpec) {
        self.scalars.rate = self.input("rate", self.scalars.dtype, &[]);
        if optimise::counts_steps(&spec.optimiser) {
            self.scalars.step = Some(self.input("step", self.scalars.dtype, &[]));
        }
        if spec.accumulate.get() > 1 {
            self.scalars.apply = Some(self.input("apply", DataType::Bool, &[]));
        }
    }

    /// The target of a term: one that was made before under its name, else a new input.
    fn target(&mut self, name: &str, dtype: DataType, dims: &[Dimension]) -> Result<String, TrainError> {
        if let Some(port) = self.targets.iter().find(|port| port.name == name) {
            if port.dtype == Some(dtype) && port.shape.as_deref() == Some(dims) {
                return Ok(port.name.clone());
            }
            let text = "is asked for in two types or shapes; name the terms' targets apart";
            return Err(TrainError::invalid(format!("target `{name}` {text}")));
        }
        let input = self.input(name, dtype, dims);
        self.targets.push(Port { name: input.clone(), dtype: Some(dtype), shape: Some(dims.to_vec()) });
        Ok(input)
    }

    /// Emits the losses and their weighted sum.
    fn loss(&mut self, spec: &StepSpec, known: &Known) -> Result<(), TrainError> {
        let names: Vec<String> = self.outputs.iter().map(|port| port.name.clone()).collect();
        let mut terms: Vec<(Each, f64)> = Vec::new();
        for term in &spec.loss.terms {
            let judged = loss::judged(known, term, &names)?;
            self.scalars.dtype = judged.dtype;
            self.batch = judged.dims.first().cloned().unwrap_or(Dimension::Unknown);
            let target = match &term.reference {
                Some(name) => loss::referred(known, &judged, name, &names)?,
                None => {
                    let name = term.target.as_deref().unwrap_or("target");
                    self.target(name, judged.target_dtype, &judged.target_dims)?
                }
            };
            self.emit.stem = "loss".to_owned();
            terms.push((loss::each(&mut self.emit, &term.loss, &judged, &target)?, term.weight.into()));
        }
        let dtype = self.scalars.dtype;
        let weights = if spec.example_weights {
            let batch = self.batch.clone();
            Some(self.target("example_weight", dtype, &[batch])?)
        } else {
            None
        };
        self.emit.stem = "loss".to_owned();
        let parts: Vec<String> = terms
            .iter()
            .map(|(each, weight)| {
                let mean = mean(&mut self.emit, each, weights.as_deref(), dtype);
                self.emit.scale(&mean, dtype, *weight)
            })
            .collect();
        self.loss = self.emit.total(&parts).unwrap_or_default();
        if spec.private.is_some() {
            let parts: Vec<String> =
                terms.iter().map(|(each, weight)| own(&mut self.emit, each, dtype, *weight)).collect();
            self.losses = self.emit.total(&parts).unwrap_or_default();
            if let Some(weights) = &weights {
                self.losses = self.emit.op("Mul", &[&self.losses, weights]);
            }
        }
        Ok(())
    }

    /// The forward graph with loss, as a model of its own.
    fn forward(&self) -> Model {
        let mut model = self.model.clone();
        let graph = model.graph_mut();
        graph.node.clone_from(&self.emit.nodes);
        graph.initializer.extend(self.emit.initializers.iter().cloned());
        graph.input.extend(self.inputs.iter().cloned());
        let masks = self.expanded.masks.iter();
        graph
            .input
            .extend(masks.map(|m| declared(&m.input, m.dtype, &m.shape.iter().map(Size::from).collect::<Vec<_>>())));
        model
    }

    /// Emits the gradients of all weights.
    fn gradients(&mut self, spec: &StepSpec) -> Result<Gradients, TrainError> {
        let forward = self.forward();
        let known = Known::of(&forward)?.with_batch_statistics(self.expanded.of_batch.clone());
        let wanted: HashSet<String> = self.parameters.weights.iter().cloned().collect();
        let nodes: Vec<NodeProto> = self.emit.nodes.clone();
        let sweep = Sweep { nodes: &nodes, known: &known, wanted: &wanted, deferred: &HashSet::new() };
        self.emit.stem = "gradient".to_owned();
        if let Some(private) = &spec.private {
            if let Some(name) = self.expanded.of_batch.keys().min() {
                let text = "takes statistics of the whole batch, so no example stands for itself";
                return Err(TrainError::invalid(format!(
                    "the normalisation that makes `{name}` {text}; freeze its scale and offset, or use GroupNormalization"
                )));
            }
            let (batch, dtype, clip_norm) = (self.batch.clone(), self.scalars.dtype, f64::from(private.clip_norm));
            let private = Private { nodes: &nodes, known: &known, wanted: &wanted, batch, dtype, clip_norm };
            let gradients = private.gradients(&mut self.emit, &self.losses)?;
            return self.all(gradients);
        }
        let seed = self.emit.scalar(self.scalars.dtype, 1.0);
        let swept = sweep.run(&mut self.emit, vec![(self.loss.clone(), seed)])?;
        self.all(swept.gradients)
    }

    /// Every weight has a gradient.
    fn all(&self, gradients: Gradients) -> Result<Gradients, TrainError> {
        match self.parameters.weights.iter().find(|name| !gradients.contains_key(*name)) {
            Some(name) => Err(TrainError::invalid(format!("the loss does not depend on weight `{name}`; freeze it"))),
            None => Ok(gradients),
        }
    }

    /// Emits clipping, the optimiser and averages.
    fn update(
        &mut self,
        spec: &StepSpec,
        gradients: &Gradients,
        initial: &mut HashMap<String, Tensor>,
    ) -> Result<(), TrainError> {
        self.emit.stem = "clip".to_owned();
        let weights: Vec<String> = self.parameters.weights.clone();
        let mut own: Vec<String> = weights.iter().filter_map(|name| gradients.get(name).cloned()).collect();
        for (name, gradient) in weights.iter().zip(&mut own) {
            if let Some((_, factor)) = spec.factors.iter().find(|(pattern, _)| pattern.fits(name)) {
                *gradient = self.emit.scale(gradient, self.scalars.dtype, f64::from(*factor));
            }
        }
        if let Some(bound) = spec.clip_norm {
            self.clip(&mut own, f64::from(bound));
        }
        let shared =
            Shared { dtype: self.scalars.dtype, rate: self.scalars.rate.clone(), step: self.scalars.step.clone() };
        for (name, gradient) in weights.iter().zip(&own) {
            let Some(value) = initial.remove(name) else { continue };
            self.update_one(spec, &shared, name, gradient, value)?;
        }
        for name in self.parameters.statistics.clone() {
            let Some(value) = initial.remove(&name) else { continue };
            // A normalisation that is not trained keeps its statistics: they stay what they are.
            if let Some(next) = self.expanded.statistics.get(&name).cloned() {
                self.remember(&name.clone(), next, value, Role::RunningStatistic { name });
            } else {
                self.model.graph_mut().input.retain(|input| input.name() != name);
                self.model.graph_mut().initializer.push(tensor_proto(&name, &value));
            }
        }
        Ok(())
    }

    /// Scales all gradients by `min(1, bound / (norm + 1e-6))`, as PyTorch does.
    fn clip(&mut self, gradients: &mut [String], bound: f64) {
        let (emit, dtype) = (&mut self.emit, self.scalars.dtype);
        let squares: Vec<String> =
            gradients.iter().map(|g| emit.reduce("ReduceSumSquare", g, &[], Axes::Drop)).collect();
        let Some(sum) = emit.total(&squares) else { return };
        let norm = emit.op("Sqrt", &[&sum]);
        let tiny = emit.scalar(dtype, 1e-6);
        let below = emit.op("Add", &[&norm, &tiny]);
        let (bound, one) = (emit.scalar(dtype, bound), emit.scalar(dtype, 1.0));
        let ratio = emit.op("Div", &[&bound, &below]);
        let factor = emit.op("Min", &[&ratio, &one]);
        for gradient in gradients {
            *gradient = emit.op("Mul", &[gradient, &factor]);
        }
        self.gradient_norm = Some(norm);
    }

    fn update_one(
        &mut self,
        spec: &StepSpec,
        shared: &Shared,
        name: &str,
        gradient: &str,
        value: Tensor,
    ) -> Result<(), TrainError> {
        self.emit.stem = format!("update/{name}");
        let dims: Vec<Dimension> = value.shape().iter().map(|&s| Dimension::Fixed(s)).collect();
        let zeros = zeros(&value)?;
        let dtype = shared.dtype;
        if value.dtype() != dtype {
            let text = format!("weight `{name}` is {}, the loss is {dtype}", value.dtype());
            return Err(TrainError::invalid(format!("{text}; freeze it, or convert the model to one type")));
        }
        let (mut gradient, owned) = (gradient.to_owned(), name.to_owned());
        let apply = self.scalars.apply.clone();
        let mut shares = f64::from(spec.accumulate.get());
        if let Some(apply) = &apply {
            let before = self.input(&format!("accumulated/{name}"), dtype, &dims);
            let sum = self.emit.op("Add", &[&before, &gradient]);
            let zero = self.emit.scalar(dtype, 0.0);
            let next = self.emit.op("Where", &[apply, &zero, &sum]);
            gradient = sum;
            let role = Role::Accumulated { name: owned.clone() };
            self.remember(&before, next, zeros.clone(), role);
        }
        if let Some(private) = &spec.private {
            let noise = self.input(&format!("noise/{name}"), dtype, &dims);
            gradient = self.emit.op("Add", &[&gradient, &noise]);
            self.noise.push(Port { name: noise, dtype: Some(dtype), shape: Some(dims.clone()) });
            shares = f64::from(private.expected_batch);
        }
        gradient = self.emit.scale(&gradient, dtype, 1.0 / shares);
        let kinds = optimise::moments(&spec.optimiser);
        let moments: Vec<String> =
            kinds.iter().map(|kind| self.input(&format!("{kind}/{name}"), dtype, &dims)).collect();
        let before = Before { weight: name, gradient: &gradient, moments: &moments };
        let after = optimise::update(&mut self.emit, &spec.optimiser, shared, &before);
        let held = |emit: &mut Emit, old: &str, new: String| match &apply {
            Some(apply) => emit.op("Where", &[apply, &new, old]),
            None => new,
        };
        let weight = held(&mut self.emit, name, after.weight);
        for ((kind, old), new) in kinds.iter().zip(&moments).zip(after.moments) {
            let next = held(&mut self.emit, old, new);
            let role = Role::Moment { name: owned.clone(), kind: (*kind).to_owned() };
            self.remember(old, next, zeros.clone(), role);
        }
        if let Some(decay) = spec.ema {
            let old = self.input(&format!("average/{name}"), dtype, &dims);
            let new = optimise::averaged(&mut self.emit, dtype, Some(&old), &weight, decay.into());
            let next = held(&mut self.emit, &old, new);
            self.remember(&old, next, value.clone(), Role::Average { name: owned.clone() });
        }
        self.remember(name, weight, value, Role::Weight { name: owned });
        Ok(())
    }

    fn remember(&mut self, input: &str, output: String, initial: Tensor, role: Role) {
        self.state.push(State { input: input.to_owned(), output, initial, role });
    }

    /// Puts the graph together, checks it, and drops what no output needs.
    fn finish(mut self) -> Result<Step, TrainError> {
        self.state.sort_by_key(|state| match state.role {
            Role::Weight { .. } => 0,
            Role::RunningStatistic { .. } => 1,
            Role::Moment { .. } => 2,
            Role::Average { .. } => 3,
            Role::Accumulated { .. } => 4,
        });
        let mut graph = self.forward();
        let scalar = |name: &str| declared(name, self.scalars.dtype, &[]);
        let mut names: HashMap<String, String> = HashMap::new();
        for state in &mut self.state {
            let name = self.emit.name(&format!("next/{}", state.input));
            names.insert(std::mem::replace(&mut state.output, name.clone()), name);
        }
        for metric in [Some(&mut self.loss), self.gradient_norm.as_mut()].into_iter().flatten() {
            let stem = if metric.starts_with("clip") { "gradient_norm" } else { "loss" };
            let name = self.emit.name(stem);
            names.insert(std::mem::replace(metric, name.clone()), name);
        }
        let proto = graph.graph_mut();
        for node in proto.node.iter_mut().chain(&mut self.emit.composites) {
            for name in node.input.iter_mut().chain(&mut node.output) {
                if let Some(new) = names.get(name) {
                    name.clone_from(new);
                }
            }
        }
        proto.name = Some("training_step".to_owned());
        proto.output.insert(0, scalar(&self.loss));
        proto.output.extend(self.gradient_norm.as_deref().map(scalar));
        proto.output.extend(self.state.iter().map(|state| {
            let shape: Vec<Size> = state.initial.shape().iter().map(|&s| Size::Fixed(s)).collect();
            declared(&state.output, state.initial.dtype(), &shape)
        }));
        fold_constants(&mut graph, &FOLDED);
        if let Err(mut errors) = check(&graph)
            && !errors.is_empty()
        {
            return Err(errors.swap_remove(0).into());
        }
        annotate(&mut graph)?;
        graph.set_composites(self.emit.composites);
        Ok(Step {
            graph,
            data: self.data,
            targets: self.targets,
            scalars: self.scalars,
            masks: self.expanded.masks,
            noise: self.noise,
            loss: self.loss,
            gradient_norm: self.gradient_norm,
            outputs: self.outputs,
            state: self.state,
        })
    }
}

/// `Σ w sums / Σ w counts` over the batch.
fn mean(emit: &mut Emit, each: &Each, weights: Option<&str>, dtype: DataType) -> String {
    let weighted = |emit: &mut Emit, x: &str| match weights {
        Some(weights) => emit.op("Mul", &[x, weights]),
        None => x.to_owned(),
    };
    let sums = weighted(emit, &each.sums);
    let sum = emit.sum(&sums, &[0], Axes::Drop);
    // A count that is the same for all examples is broadcast first.
    let shape = emit.op("Shape", &[&each.sums]);
    let counts = emit.op("Expand", &[&each.counts, &shape]);
    let counts = weighted(emit, &counts);
    let count = emit.sum(&counts, &[0], Axes::Drop);
    let tiny = emit.scalar(dtype, f64::from(f32::MIN_POSITIVE));
    let count = emit.op("Max", &[&count, &tiny]);
    emit.op("Div", &[&sum, &count])
}

/// The mean loss of each example for itself, times `weight`.
fn own(emit: &mut Emit, each: &Each, dtype: DataType, weight: f64) -> String {
    let tiny = emit.scalar(dtype, f64::from(f32::MIN_POSITIVE));
    let elements = emit.op("Max", &[&each.elements, &tiny]);
    let mean = emit.op("Div", &[&each.sums, &elements]);
    emit.scale(&mean, dtype, weight)
}

fn zeros(like: &Tensor) -> Result<Tensor, TrainError> {
    let bytes = vec![0u8; like.byte_len()];
    Tensor::from_raw(like.dtype(), like.shape(), bytes.into()).map_err(|e| TrainError::invalid(e.to_string()))
}

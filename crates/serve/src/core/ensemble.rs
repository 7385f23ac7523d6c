//! A graph of models as Triton's `ensemble_scheduling` describes it: tensors go from step to step in memory.
//!
//! A step runs as soon as its inputs are there, so that branches overlap, and only steps that the wanted outputs need.

use std::collections::{BTreeMap, HashMap, HashSet};

use edgeward_engine::{Dim, TensorInfo};
use edgeward_graph::Tensor;
use futures_util::stream::{FuturesUnordered, StreamExt as _};

use crate::{
    core::{InferRequest, ModelRef, RequestedOutput, ServeError, ServeErrorKind, Server},
    proto::{ModelConfig, ModelEnsembling},
    types::from_config_type,
};

/// Steps of one ensemble at most.
const STEPS_MAX: usize = 1000;

/// Steps in an order in which each finds its inputs made, with what goes in and out.
#[derive(Debug)]
pub(super) struct Ensemble {
    pub inputs: Vec<TensorInfo>,
    pub outputs: Vec<TensorInfo>,
    steps: Vec<Step>,
    /// The step that makes a tensor.
    makers: HashMap<String, usize>,
}

/// One model of the graph.
#[derive(Debug)]
struct Step {
    model: ModelRef,
    /// (input of the model, tensor of the ensemble)
    inputs: Vec<(String, String)>,
    /// (output of the model, tensor of the ensemble)
    outputs: Vec<(String, String)>,
}

impl Step {
    fn name(&self) -> &str {
        &self.model.name
    }
}

/// Names of the models that an ensemble's steps run.
pub(super) fn members(ensemble: &ModelEnsembling) -> Vec<String> {
    let names: HashSet<&str> = ensemble.step.iter().map(|step| step.model_name.as_str()).collect();
    let mut names: Vec<String> = names.into_iter().map(str::to_owned).collect();
    names.sort_unstable();
    names
}

impl Ensemble {
    /// Checks the graph against the models that it names, which are loaded. An error names the step.
    pub fn new(config: &ModelConfig, ensembling: &ModelEnsembling, server: &Server) -> Result<Self, String> {
        let batched = config.max_batch_size > 0;
        let inputs = config.input.iter().map(|i| info(&i.name, i.data_type(), &i.dims, batched));
        let outputs = config.output.iter().map(|o| info(&o.name, o.data_type(), &o.dims, batched));
        let (inputs, outputs) = (inputs.collect::<Result<Vec<_>, _>>()?, outputs.collect::<Result<Vec<_>, _>>()?);
        if inputs.is_empty() || outputs.is_empty() || ensembling.step.is_empty() {
            return Err("an ensemble needs `input`, `output` and at least one `step`".to_owned());
        }
        if ensembling.step.len() > STEPS_MAX {
            return Err(format!("{} steps, the limit is {STEPS_MAX}", ensembling.step.len()));
        }
        let steps = ensembling.step.iter().map(step).collect::<Result<Vec<_>, _>>()?;
        let steps = ordered(steps, &inputs)?;
        check_types(&steps, &inputs, &outputs, server)?;
        let made = steps.iter().enumerate().flat_map(|(i, s)| s.outputs.iter().map(move |(_, t)| (t.clone(), i)));
        let makers = made.collect();
        Ok(Self { inputs, outputs, steps, makers })
    }

    /// An error where the models that serve now do not fit the graph.
    pub fn check(&self, server: &Server) -> Result<(), String> {
        check_types(&self.steps, &self.inputs, &self.outputs, server)
    }

    /// The models that must serve for the ensemble to serve.
    pub fn members(&self) -> impl Iterator<Item = &ModelRef> {
        self.steps.iter().map(|step| &step.model)
    }

    /// Runs the steps that the wanted outputs need.
    pub async fn infer(&self, request: &InferRequest, server: &Server) -> Result<Vec<Tensor>, ServeError> {
        self.fits(request)?;
        let wanted: Vec<&str> = match request.outputs.as_slice() {
            [] => self.outputs.iter().map(|o| o.name.as_str()).collect(),
            some => some.iter().map(|o| o.name.as_str()).collect(),
        };
        let needed = self.needed(&wanted);
        let mut values: HashMap<&str, Tensor> = HashMap::new();
        for (name, tensor) in &request.inputs {
            values.insert(name, tensor.clone());
        }
        let mut waiting: Vec<usize> = (0..self.steps.len()).filter(|i| needed.contains(i)).collect();
        let mut running = FuturesUnordered::new();
        loop {
            waiting.retain(|&index| {
                let Some(step) = self.steps.get(index) else { return false };
                let Some(inputs) = inputs_of(step, &values) else { return true };
                running.push(self.run(step, inputs, &needed, &wanted, request, server));
                false
            });
            match running.next().await {
                Some(made) => values.extend(made?),
                None => break,
            }
        }
        let missing = |name: &str| {
            let text = format!("ensemble `{}`: output `{name}` was not made", request.model.name);
            ServeError::new(ServeErrorKind::Internal, text)
        };
        let tensors = wanted.iter().map(|name| values.get(name).cloned().ok_or_else(|| missing(name)));
        let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
        let own = |name: &str| self.outputs.iter().find(|o| o.name == name);
        let other = |(name, tensor): (&&str, &Tensor)| own(name).is_some_and(|own| own.dtype != tensor.dtype());
        if wanted.iter().zip(&tensors).any(other) {
            self.check(server).map_err(|reason| unfit(request, &reason))?;
        }
        Ok(tensors)
    }

    async fn run<'a>(
        &'a self,
        step: &'a Step,
        inputs: Vec<(String, Tensor)>,
        needed: &HashSet<usize>,
        wanted: &[&str],
        request: &InferRequest,
        server: &Server,
    ) -> Result<Vec<(&'a str, Tensor)>, ServeError> {
        let used = |tensor: &str| {
            let feeds = |i: &usize| self.steps.get(*i).is_some_and(|s| s.inputs.iter().any(|(_, t)| t == tensor));
            wanted.contains(&tensor) || needed.iter().any(feeds)
        };
        let asked: Vec<&(String, String)> = step.outputs.iter().filter(|(_, tensor)| used(tensor)).collect();
        let outputs = asked.iter().map(|(name, _)| RequestedOutput { name: name.clone(), classification: 0 });
        let inner = InferRequest {
            model: step.model.clone(),
            id: request.id.clone(),
            inputs,
            outputs: outputs.collect(),
            priority: request.priority,
            timeout: request.timeout,
            parameters: request.parameters.clone(),
            beside: true,
        };
        let answer = Box::pin(server.infer(inner)).await.map_err(|e| {
            // A member that is gone is the ensemble's failure, not an unknown path of the caller's.
            let kind = if e.kind == ServeErrorKind::NotFound { ServeErrorKind::Unavailable } else { e.kind };
            let message = format!("ensemble `{}`, step `{}`: {}", request.model.name, step.name(), e.message);
            // Nor is one that was replaced by a model that takes other tensors.
            let fits = if kind == ServeErrorKind::InvalidArgument { self.check(server) } else { Ok(()) };
            fits.map_or_else(
                |reason| unfit(request, &reason),
                |()| ServeError { kind, message, retry_after: e.retry_after },
            )
        })?;
        let tensors = answer.outputs.into_iter().map(|(_, tensor)| tensor);
        Ok(asked.iter().map(|(_, tensor)| tensor.as_str()).zip(tensors).collect())
    }

    /// The steps that make the wanted tensors, and those that these need.
    fn needed(&self, wanted: &[&str]) -> HashSet<usize> {
        let mut needed = HashSet::new();
        let mut open: Vec<&str> = wanted.to_vec();
        while let Some(tensor) = open.pop() {
            let Some(&maker) = self.makers.get(tensor) else { continue };
            if needed.insert(maker)
                && let Some(step) = self.steps.get(maker)
            {
                open.extend(step.inputs.iter().map(|(_, tensor)| tensor.as_str()));
            }
        }
        needed
    }

    fn fits(&self, request: &InferRequest) -> Result<(), ServeError> {
        let refuse = |text: String| {
            let text = format!("ensemble `{}`: {text}", request.model.name);
            Err(ServeError::new(ServeErrorKind::InvalidArgument, text))
        };
        for (name, tensor) in &request.inputs {
            match self.inputs.iter().find(|i| i.name == *name) {
                None => return refuse(format!("unknown input `{name}`")),
                Some(info) if info.dtype != tensor.dtype() => {
                    return refuse(format!("input `{name}` is {}, expected {}", tensor.dtype(), info.dtype));
                }
                Some(_) => {}
            }
        }
        for info in &self.inputs {
            match request.inputs.iter().filter(|(name, _)| *name == info.name).count() {
                0 => return refuse(format!("missing input `{}`", info.name)),
                1 => {}
                _ => return refuse(format!("input `{}` is given twice", info.name)),
            }
        }
        match request.outputs.iter().find(|o| self.outputs.iter().all(|own| own.name != o.name)) {
            Some(unknown) => refuse(format!("unknown output `{}`", unknown.name)),
            None => Ok(()),
        }
    }
}

/// The models that serve now do not fit the graph.
fn unfit(request: &InferRequest, reason: &str) -> ServeError {
    let text = format!("ensemble `{}` is not ready: {reason}", request.model.name);
    ServeError::new(ServeErrorKind::Unavailable, text)
}

fn inputs_of(step: &Step, values: &HashMap<&str, Tensor>) -> Option<Vec<(String, Tensor)>> {
    let inputs = step.inputs.iter().map(|(name, tensor)| Some((name.clone(), values.get(tensor.as_str())?.clone())));
    inputs.collect()
}

fn step(step: &crate::proto::model_ensembling::Step) -> Result<Step, String> {
    let version = match step.model_version {
        -1 => None,
        number => Some(u64::try_from(number).map_err(|_| {
            format!("step `{}`: `model_version` is {number}, expected -1 or a version", step.model_name)
        })?),
    };
    let pairs = |map: &HashMap<String, String>| {
        let sorted: BTreeMap<_, _> = map.iter().collect();
        sorted.into_iter().map(|(k, v)| (k.clone(), v.clone())).collect::<Vec<_>>()
    };
    Ok(Step {
        model: ModelRef { name: step.model_name.as_str().into(), version },
        inputs: pairs(&step.input_map),
        outputs: pairs(&step.output_map),
    })
}

fn info(name: &str, kind: crate::proto::DataType, dims: &[i64], batched: bool) -> Result<TensorInfo, String> {
    let dtype = from_config_type(kind).ok_or_else(|| format!("`{name}` has no data type"))?;
    let own = dims.iter().map(|&d| usize::try_from(d).map_or(Dim::Dynamic(()), Dim::Fixed));
    let shape = batched.then_some(Dim::Dynamic(())).into_iter().chain(own).collect();
    Ok(TensorInfo { name: name.to_owned(), dtype, shape: Some(shape) })
}

/// Puts the steps in order; an error names a tensor that is made twice or never, or a step on a cycle.
fn ordered(mut steps: Vec<Step>, inputs: &[TensorInfo]) -> Result<Vec<Step>, String> {
    let mut made: HashSet<&str> = inputs.iter().map(|i| i.name.as_str()).collect();
    let mut known = made.clone();
    for (step, tensor) in steps.iter().flat_map(|s| s.outputs.iter().map(move |(_, t)| (s, t))) {
        if !known.insert(tensor) {
            return Err(format!("step `{}`: tensor `{tensor}` is made twice", step.name()));
        }
    }
    for (step, tensor) in steps.iter().flat_map(|s| s.inputs.iter().map(move |(_, t)| (s, t))) {
        if !known.contains(tensor.as_str()) {
            return Err(format!("step `{}`: tensor `{tensor}` is made by no step and is no input", step.name()));
        }
    }
    let (mut order, mut left): (Vec<usize>, Vec<usize>) = (Vec::new(), (0..steps.len()).collect());
    while !left.is_empty() {
        let before = left.len();
        left.retain(|&index| {
            let ready = steps[index].inputs.iter().all(|(_, tensor)| made.contains(tensor.as_str()));
            if ready {
                made.extend(steps[index].outputs.iter().map(|(_, tensor)| tensor.as_str()));
                order.push(index);
            }
            !ready
        });
        if left.len() == before {
            return Err(format!("step `{}` lies on a cycle", steps[left[0]].name()));
        }
    }
    let mut places: Vec<Option<Step>> = steps.drain(..).map(Some).collect();
    Ok(order.into_iter().filter_map(|index| places[index].take()).collect())
}

/// Follows types and shapes from the ensemble's inputs through each model to its outputs.
fn check_types(steps: &[Step], inputs: &[TensorInfo], outputs: &[TensorInfo], server: &Server) -> Result<(), String> {
    let mut tensors: HashMap<String, TensorInfo> = inputs.iter().map(|i| (i.name.clone(), i.clone())).collect();
    for step in steps {
        let of = |text: String| format!("step `{}`: {text}", step.name());
        let version = server.version(&step.model).map_err(|e| of(e.message))?;
        for (name, tensor) in &step.inputs {
            let wanted = version.inputs().iter().find(|i| i.name == *name);
            let wanted = wanted.ok_or_else(|| of(format!("the model has no input `{name}`")))?;
            let given = tensors.get(tensor).ok_or_else(|| of(format!("tensor `{tensor}` is not made before it")))?;
            fits(given, wanted).map_err(|text| of(format!("tensor `{tensor}` for input `{name}` {text}")))?;
        }
        if let Some(open) = version.inputs().iter().find(|i| step.inputs.iter().all(|(name, _)| *name != i.name)) {
            return Err(of(format!("the model's input `{}` is given no tensor", open.name)));
        }
        for (name, tensor) in &step.outputs {
            let made = version.outputs().iter().find(|o| o.name == *name);
            let made = made.ok_or_else(|| of(format!("the model has no output `{name}`")))?;
            tensors.insert(tensor.clone(), made.clone());
        }
    }
    for output in outputs {
        let made = tensors.get(&output.name).ok_or_else(|| format!("output `{}` is made by no step", output.name))?;
        fits(made, output).map_err(|text| format!("output `{}` {text}", output.name))?;
    }
    Ok(())
}

/// An error where one cannot be the other: other types, ranks, or fixed sizes.
fn fits(given: &TensorInfo, wanted: &TensorInfo) -> Result<(), String> {
    let shape = |info: &TensorInfo| info.shape.as_deref().map_or_else(|| "?".to_owned(), edgeward_engine::shape_text);
    let clash = |(a, b): (&Dim, &Dim)| matches!((a, b), (Dim::Fixed(a), Dim::Fixed(b)) if a != b);
    if given.dtype != wanted.dtype {
        return Err(format!("is {}, expected {}", given.dtype, wanted.dtype));
    }
    match (&given.shape, &wanted.shape) {
        (Some(a), Some(b)) if a.len() != b.len() || a.iter().zip(b).any(clash) => {
            Err(format!("has shape {}, expected {}", shape(given), shape(wanted)))
        }
        _ => Ok(()),
    }
}

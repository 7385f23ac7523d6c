//! Distillation: a student learns what a teacher says, both in one training graph (Hinton et al. 2015).
//!
//! The teacher is in inference form, its weights are not trained and nothing of it is differentiated. It runs with every
//! step instead of once ahead: what it says follows the variation of examples, hidden states of all examples would not fit
//! anywhere, and no file has to be kept apart from the data.

mod layers;
mod merge;

use edgeward_graph::{DataType, Dimension, Inferred, Links, Model, Tensor, proto::AttributeProto, tensor_proto};
use edgeward_train::{Loss, LossSpec, LossTerm, Pattern};
use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha12Rng};

use self::merge::{Merged, merge};
use crate::{
    CompressError, Prepared,
    edit::{Edit, node, take_over},
    observe,
};

pub use layers::{Shortened, pairs_by_order, shorten};

/// Scores of attention below this one count as this one: minus infinity masks what is no token, and would make no numbers.
const LEAST_SCORE: f32 = -1e4;

/// What the student is to follow.
#[derive(Clone, Debug)]
pub struct DistilSpec {
    /// Softens what both say: logits are divided by it.
    pub temperature: f32,
    /// Whether there are labels, and what they count.
    pub labels: Labels,
    /// What the first output is.
    pub scores: Scores,
    /// Values that shall be alike: attention maps where both are softmaxes, else hidden states.
    pub pairs: Vec<Pair>,
    /// What all hidden states together count.
    pub hidden: f32,
    /// What all attention maps together count.
    pub attention: f32,
    /// Draws the projections that hidden states of different width go through.
    pub seed: u64,
}

impl Default for DistilSpec {
    fn default() -> Self {
        Self {
            temperature: 2.0,
            labels: Labels::None,
            scores: Scores::OfClasses,
            pairs: Vec::new(),
            hidden: 1.0,
            attention: 1.0,
            seed: 0,
        }
    }
}

/// Whether the data has labels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Labels {
    /// The teacher's word alone counts.
    None,
    /// Cross-entropy with classes counts this part, the teacher's word the rest.
    Classes(f32),
}

/// What a model's first output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scores {
    /// Scores, or probabilities, of two classes and more: compared by the divergence of their softmaxes.
    OfClasses,
    /// Anything else: compared by squares.
    Quantities,
}

/// A value of the student and one of the teacher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The student's.
    pub student: String,
    /// The teacher's.
    pub teacher: String,
}

/// A forward graph of both, and what is made small.
#[derive(Clone, Debug)]
pub struct Joined {
    /// Takes the student's inputs; its outputs are the student's, then those that the loss compares.
    pub forward: Model,
    /// The loss.
    pub loss: LossSpec,
    /// What is not trained: the teacher.
    pub frozen: Vec<Pattern>,
    /// Hidden states that are compared.
    pub hidden: usize,
    /// Attention maps that are compared.
    pub attention: usize,
}

/// Puts both into one graph. Errors: inputs that differ, an output of the student that the teacher lacks, a pair of values
/// that cannot be compared, a setting out of range.
pub fn join(student: &Model, teacher: &Prepared, spec: &DistilSpec) -> Result<Joined, CompressError> {
    validate(spec)?;
    let merged = merge(student, &teacher.model)?;
    let inferred = edgeward_graph::infer(&merged.model, &std::collections::BTreeMap::new())?;
    let Merged { model, prefix } = merged;
    let mut joiner = Joiner {
        edit: Edit::new(model),
        prefix: prefix.clone(),
        inferred,
        terms: Vec::new(),
        compared: Vec::new(),
        rng: ChaCha12Rng::seed_from_u64(spec.seed),
    };
    joiner.outputs(student, spec)?;
    let (hidden, attention) = joiner.pairs(spec)?;
    let mut model = joiner.edit.model;
    model.graph_mut().sort_nodes()?;
    let forward = observe::with_outputs(&model, &joiner.compared);
    let weights = edgeward_train::parameters(&forward).map_err(|error| CompressError::Data(error.to_string()))?.weights;
    let frozen = if weights.iter().any(|name| name.starts_with(&prefix)) {
        vec![Pattern::new(&format!("{prefix}*")).map_err(|error| CompressError::Data(error.to_string()))?]
    } else {
        Vec::new()
    };
    Ok(Joined { forward, loss: LossSpec { terms: joiner.terms }, frozen, hidden, attention })
}

impl Joined {
    /// `student` with the weights that `trained`, the forward graph after its training, has for it.
    pub fn student(student: &Model, trained: &Model) -> Result<Model, CompressError> {
        let mut model = student.clone();
        model.inline_external()?;
        take_over(&mut model, trained);
        Ok(model)
    }
}

fn validate(spec: &DistilSpec) -> Result<(), CompressError> {
    let refuse = |what: &str, value: f32, expected: &str| {
        Err(CompressError::Data(format!("{what} `{value}` is not possible; expected {expected}")))
    };
    if !(spec.temperature > 0.0 && spec.temperature.is_finite()) {
        return refuse("temperature", spec.temperature, "a number above 0");
    }
    match spec.labels {
        Labels::Classes(part) if !(0.0..=1.0).contains(&part) => return refuse("part of the labels", part, "0 to 1"),
        _ => {}
    }
    for (what, value) in [("weight of hidden states", spec.hidden), ("weight of attention", spec.attention)] {
        if !(value >= 0.0 && value.is_finite()) {
            return refuse(what, value, "0 or more");
        }
    }
    Ok(())
}

struct Joiner {
    edit: Edit,
    /// What names of the teacher's values begin with.
    prefix: String,
    inferred: Inferred,
    terms: Vec<LossTerm>,
    /// Values that become outputs.
    compared: Vec<String>,
    rng: ChaCha12Rng,
}

impl Joiner {
    fn term(&mut self, loss: Loss, weight: f32, student: &str, teacher: &str) {
        self.compared.extend([student.to_owned(), teacher.to_owned()]);
        let (output, reference) = (Some(student.to_owned()), Some(teacher.to_owned()));
        self.terms.push(LossTerm { weight, output, reference, ..LossTerm::from(loss) });
    }

    /// Each float output of the student with the teacher's of the same name; labels with the first.
    fn outputs(&mut self, student: &Model, spec: &DistilSpec) -> Result<(), CompressError> {
        let part = match spec.labels {
            Labels::None => 0.0,
            Labels::Classes(part) => part,
        };
        if part > 0.0 {
            self.terms.push(LossTerm { weight: part, ..LossTerm::from(Loss::cross_entropy()) });
        }
        for (at, port) in student.outputs().iter().enumerate() {
            let name = port.name.as_str();
            let teacher = format!("{}{name}", self.prefix);
            let (own, other) = (self.inferred.of(name), self.inferred.of(&teacher));
            if own.dtype != Some(DataType::Float32) {
                continue;
            }
            if other.dtype != own.dtype || !alike(own.shape.as_deref(), other.shape.as_deref()) {
                let reason = "has no equal of the same shape among the teacher's outputs";
                return Err(CompressError::unsupported(format!("the student's output `{name}`"), reason));
            }
            let rank = own.shape.as_ref().map_or(0, Vec::len);
            let columns = own.shape.as_deref().and_then(<[Dimension]>::last).cloned();
            let several = rank == 2 && columns != Some(Dimension::Fixed(1));
            if at == 0 && several && spec.scores == Scores::OfClasses {
                let loss = Loss::KullbackLeibler { temperature: spec.temperature };
                let (own, other) = (self.logits(name), self.logits(&teacher));
                self.term(loss, 1.0 - part, &own, &other);
                if spec.labels == Labels::None && own == name {
                    // The divergence does not see what is added to all scores alike; callers of raw scores do.
                    self.term(Loss::MeanSquared, 1.0, name, &teacher);
                }
            } else if rank > 0 {
                self.term(Loss::MeanSquared, 1.0 - part, name, &teacher);
            }
        }
        if self.terms.iter().all(|term| term.weight == 0.0) {
            return Err(CompressError::Data(
                "the student has no output of floats that a loss could compare".to_owned(),
            ));
        }
        self.terms.retain(|term| term.weight > 0.0);
        Ok(())
    }

    /// What goes into the softmax that makes an output; the output itself where none does.
    fn logits(&self, name: &str) -> String {
        self.scores(name).unwrap_or_else(|| name.to_owned())
    }

    /// What goes into a softmax over the last axis.
    fn scores(&self, name: &str) -> Option<String> {
        let graph = self.edit.model.graph();
        let node = graph.node.get(Links::of(graph).producer(name)?)?;
        let rank = self.inferred.of(name).shape?.len() as i64;
        let axis = node.attr_int("axis").unwrap_or(-1);
        let softmax = node.is_standard() && node.op_type() == "Softmax" && (axis == -1 || axis == rank - 1);
        if node.op_type() == "Identity" {
            return self.scores(node.input.first()?);
        }
        softmax.then(|| node.input.first().cloned()).flatten()
    }

    /// Adds what pairs say; how many hidden states and attention maps there are.
    fn pairs(&mut self, spec: &DistilSpec) -> Result<(usize, usize), CompressError> {
        let mut maps = Vec::new();
        let mut states = Vec::new();
        for pair in &spec.pairs {
            let teacher = format!("{}{}", self.prefix, pair.teacher);
            for (whose, name, shown) in
                [("student", &pair.student, &pair.student), ("teacher", &teacher, &pair.teacher)]
            {
                if self.inferred.of(name).dtype != Some(DataType::Float32) {
                    let reason = "is no value of floats; `edgeward inspect` lists a graph's values";
                    return Err(CompressError::unsupported(format!("`{shown}` of the {whose}"), reason));
                }
            }
            match (self.scores(&pair.student), self.scores(&teacher)) {
                (Some(own), Some(other)) => maps.push((own, other)),
                _ => states.push((pair.student.clone(), teacher)),
            }
        }
        let mut attention = 0;
        for (own, other) in &maps {
            // Maps of different numbers of heads, or of tokens, have nothing to be held against.
            if spec.attention > 0.0 && self.same_shape(own, other) {
                let (own, other) = (self.bounded(own)?, self.bounded(other)?);
                let loss = Loss::KullbackLeibler { temperature: 1.0 };
                self.term(loss, spec.attention / maps.len() as f32, &own, &other);
                attention += 1;
            }
        }
        if spec.hidden > 0.0 {
            for (own, other) in &states {
                let projected = self.projected(own, other)?;
                self.term(Loss::MeanSquared, spec.hidden / states.len() as f32, &projected, other);
            }
        }
        Ok((if spec.hidden > 0.0 { states.len() } else { 0 }, attention))
    }

    fn same_shape(&self, own: &str, other: &str) -> bool {
        alike(self.inferred.of(own).shape.as_deref(), self.inferred.of(other).shape.as_deref())
    }

    fn bounded(&mut self, scores: &str) -> Result<String, CompressError> {
        let least = self.edit.constant("distil/least", &Tensor::from_vec([], vec![LEAST_SCORE])?);
        Ok(self.node("Clip", "distil/scores", &[scores, &least]))
    }

    /// The student's hidden state as wide as the teacher's, by a map that is learnt.
    fn projected(&mut self, own: &str, other: &str) -> Result<String, CompressError> {
        let (from, to) = (self.inferred.of(own).shape, self.inferred.of(other).shape);
        let (Some(from), Some(to)) = (from, to) else { return Err(apart(own, other)) };
        if alike(Some(&from), Some(&to)) {
            return Ok(own.to_owned());
        }
        let axis = if from.len() == 4 { 1 } else { from.len().saturating_sub(1) };
        let rest = |dims: &[Dimension]| {
            let others = dims.iter().enumerate().filter(|(at, _)| *at != axis);
            others.map(|(_, dim)| dim.clone()).collect::<Vec<_>>()
        };
        let widths = (from.get(axis), to.get(axis));
        let (Some(Dimension::Fixed(narrow)), Some(Dimension::Fixed(wide))) = widths else {
            return Err(apart(own, other));
        };
        if from.len() < 2 || from.len() != to.len() || !alike(Some(&rest(&from)), Some(&rest(&to))) {
            return Err(apart(own, other));
        }
        let shape = if from.len() == 4 { vec![*wide, *narrow, 1, 1] } else { vec![*narrow, *wide] };
        // Uniform, as Glorot and Bengio 2010, equation 16, begin linear layers.
        let most = (6.0 / (narrow + wide) as f32).sqrt();
        let values: Vec<f32> = (0..narrow * wide).map(|_| self.rng.random_range(-most..=most)).collect();
        let weight = self.edit.fresh("distil/projection");
        let stored = tensor_proto(&weight, &Tensor::from_vec(shape, values)?);
        self.edit.model.graph_mut().initializer.push(stored);
        if from.len() < 4 {
            return Ok(self.node("MatMul", "distil/hidden", &[own, &weight]));
        }
        let output = self.node("Conv", "distil/hidden", &[own, &weight]);
        if let Some(node) = self.edit.model.graph_mut().node.last_mut() {
            let pair = |name, value| AttributeProto::of_ints(name, vec![value; 2]);
            node.attribute = vec![pair("kernel_shape", 1), pair("strides", 1), pair("dilations", 1)];
            node.attribute.push(AttributeProto::of_ints("pads", vec![0; 4]));
        }
        Ok(output)
    }

    fn node(&mut self, op: &str, stem: &str, inputs: &[&str]) -> String {
        let output = self.edit.fresh(stem);
        self.edit.model.graph_mut().node.push(node(op, output.clone(), inputs, &[&output], Vec::new()));
        output
    }
}

fn apart(own: &str, other: &str) -> CompressError {
    let reason =
        format!("cannot be compared with the teacher's `{other}`: only the width may differ, and both must be known");
    CompressError::unsupported(format!("the student's value `{own}`"), reason)
}

/// True for shapes that no fixed size tells apart.
fn alike(a: Option<&[Dimension]>, b: Option<&[Dimension]>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return false };
    let apart =
        |(a, b): (&Dimension, &Dimension)| matches!((a, b), (Dimension::Fixed(a), Dimension::Fixed(b)) if a != b);
    a.len() == b.len() && !a.iter().zip(b).any(apart)
}

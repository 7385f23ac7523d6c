//! Losses as nodes: from an output and a target to one number for each example.

use edgeward_graph::{DataType, Dimension, proto::AttributeProto};

use crate::{
    Loss, LossTerm, TrainError,
    emit::{Axes, Emit},
    known::Known,
    shape::axis,
};

/// What a term asks of its target, and what it judges.
pub(crate) struct Judged {
    /// The value that is judged: logits where the output is made of them.
    pub output: String,
    pub dtype: DataType,
    pub dims: Vec<Dimension>,
    pub target_dtype: DataType,
    pub target_dims: Vec<Dimension>,
}

/// The loss of each example.
pub(crate) struct Each {
    /// Sums over an example's elements, \[batch\].
    pub sums: String,
    /// What the sums are to be divided by, \[batch\] or a scalar.
    pub counts: String,
    /// The number of elements that count, \[batch\] or a scalar: the counts without the classes' weights.
    pub elements: String,
}

/// Finds what `term` judges in the forward graph.
pub(crate) fn judged(known: &Known, term: &LossTerm, outputs: &[String]) -> Result<Judged, TrainError> {
    let name = match &term.output {
        None => outputs.first().cloned().unwrap_or_default(),
        Some(name) if outputs.contains(name) => name.clone(),
        Some(name) => {
            let all = outputs.join("`, `");
            return Err(TrainError::invalid(format!("the loss names the output `{name}`; there are `{all}`")));
        }
    };
    let of = known.of_value(&name);
    let (Some(dtype), Some(dims)) = (of.dtype, of.shape) else {
        return Err(TrainError::invalid(format!("the shape of output `{name}` is not known before a run")));
    };
    if !matches!(dtype, DataType::Float32 | DataType::Float64) {
        return Err(TrainError::invalid(format!("output `{name}` is {dtype}, expected float32 or float64")));
    }
    if dims.is_empty() {
        return Err(TrainError::invalid(format!("output `{name}` is a scalar, expected one row for each example")));
    }
    let mut target = (dtype, dims.clone());
    let mut output = name;
    match &term.loss {
        Loss::CrossEntropy { axis: along, .. } => {
            let at = axis(*along, dims.len()).map_err(|e| TrainError::invalid(format!("output `{output}`: {e}")))?;
            target.0 = DataType::Int64;
            target.1.remove(at);
            output = before(known, &output, "Softmax");
        }
        Loss::BinaryCrossEntropy { .. } => output = before(known, &output, "Sigmoid"),
        _ => {}
    }
    Ok(Judged { output, dtype, dims, target_dtype: target.0, target_dims: target.1 })
}

/// The output of the forward graph that stands for a term's target. Errors: there is none of that name, or it has another
/// type or shape.
pub(crate) fn referred(known: &Known, judged: &Judged, name: &str, outputs: &[String]) -> Result<String, TrainError> {
    if !outputs.iter().any(|output| output == name) {
        let all = outputs.join("`, `");
        return Err(TrainError::invalid(format!("the loss refers to the output `{name}`; there are `{all}`")));
    }
    let of = known.of_value(name);
    let fits = |dims: &[Dimension]| {
        let apart =
            |(a, b): (&Dimension, &Dimension)| matches!((a, b), (Dimension::Fixed(a), Dimension::Fixed(b)) if a != b);
        dims.len() == judged.target_dims.len() && !dims.iter().zip(&judged.target_dims).any(apart)
    };
    if of.dtype != Some(judged.target_dtype) || !of.shape.as_deref().is_some_and(fits) {
        let text = format!("output `{name}` cannot stand for the target of `{}`", judged.output);
        return Err(TrainError::invalid(format!("{text}: it has another type or shape")));
    }
    Ok(name.to_owned())
}

/// What goes into the last operator where that is `kind`.
fn before(known: &Known, name: &str, kind: &str) -> String {
    match known.producer(name) {
        Some(node) if node.op_type() == "Identity" => {
            node.input.first().map_or_else(|| name.to_owned(), |input| before(known, input, kind))
        }
        Some(node) if node.op_type() == kind => node.input.first().cloned().unwrap_or_default(),
        _ => name.to_owned(),
    }
}

/// Emits the loss of each example.
pub(crate) fn each(emit: &mut Emit, loss: &Loss, judged: &Judged, target: &str) -> Result<Each, TrainError> {
    let mut writer = Writer { emit, dtype: judged.dtype };
    let y = judged.output.as_str();
    let rank = judged.dims.len();
    let values = match loss {
        Loss::CrossEntropy { .. } => return cross_entropy(&mut writer, loss, judged, target),
        Loss::BinaryCrossEntropy { positive_weight } => binary(&mut writer, y, target, *positive_weight),
        Loss::MeanSquared => {
            let rest = writer.two("Sub", y, target);
            writer.two("Mul", &rest, &rest)
        }
        Loss::MeanAbsolute => {
            let rest = writer.two("Sub", y, target);
            writer.emit.op("Abs", &[&rest])
        }
        Loss::Huber { delta } => huber(&mut writer, y, target, f64::from(*delta)),
        Loss::KullbackLeibler { temperature } => divergence(&mut writer, y, target, f64::from(*temperature)),
        Loss::Cosine => cosine(&mut writer, y, target),
    };
    let reduced = matches!(loss, Loss::KullbackLeibler { .. } | Loss::Cosine);
    let left: &[Dimension] = if reduced { judged.dims.get(..rank - 1).unwrap_or_default() } else { &judged.dims };
    let sums = writer.sums(&values, left.len());
    let counts = writer.count(&values, left);
    Ok(Each { sums, elements: counts.clone(), counts })
}

struct Writer<'e> {
    emit: &'e mut Emit,
    dtype: DataType,
}

impl Writer<'_> {
    fn two(&mut self, kind: &str, a: &str, b: &str) -> String {
        self.emit.op(kind, &[a, b])
    }

    fn n(&mut self, value: f64) -> String {
        self.emit.scalar(self.dtype, value)
    }

    fn times(&mut self, x: &str, by: f64) -> String {
        self.emit.scale(x, self.dtype, by)
    }

    /// Over all axes but the first.
    fn sums(&mut self, x: &str, rank: usize) -> String {
        if rank < 2 {
            return x.to_owned();
        }
        self.emit.sum(x, &(1..rank as i64).collect::<Vec<_>>(), Axes::Drop)
    }

    /// The number of elements of one example.
    fn count(&mut self, x: &str, dims: &[Dimension]) -> String {
        let rest = dims.get(1..).unwrap_or_default();
        let sizes: Option<f64> =
            rest.iter().map(|dim| if let Dimension::Fixed(size) = dim { Some(*size as f64) } else { None }).product();
        if let Some(count) = sizes {
            return self.n(count);
        }
        let (start, shape) = (AttributeProto::of_int("start", 1), [x]);
        let shape = self.emit.with("Shape", &shape, vec![start]);
        let count = self.emit.reduce("ReduceProd", &shape, &[], Axes::Drop);
        self.emit.cast(&count, self.dtype)
    }
}

fn cross_entropy(w: &mut Writer<'_>, loss: &Loss, judged: &Judged, target: &str) -> Result<Each, TrainError> {
    let Loss::CrossEntropy { smoothing, class_weights, axis: along, ignore } = loss else {
        return Err(TrainError::invalid("not a cross-entropy"));
    };
    let rank = judged.dims.len();
    let along = axis(*along, rank).map_err(TrainError::invalid)? as i64;
    let log = w.emit.with("LogSoftmax", &[&judged.output], vec![AttributeProto::of_int("axis", along)]);
    let mut classes = target.to_owned();
    let (mut counted, mut present) = (None, None);
    if let Some(ignore) = ignore {
        let none = w.emit.scalar(DataType::Int64, *ignore as f64);
        let same = w.two("Equal", target, &none);
        let other = w.emit.op("Not", &[&same]);
        counted = Some(w.emit.cast(&other, w.dtype));
        present.clone_from(&counted);
        let zero = w.emit.scalar(DataType::Int64, 0.0);
        classes = w.emit.op("Where", &[&same, &zero, target]);
    }
    let places = w.emit.unsqueeze(&classes, &[along]);
    let picked = w.emit.with("GatherElements", &[&log, &places], vec![AttributeProto::of_int("axis", along)]);
    let picked = w.emit.squeeze(&picked, &[along]);
    let mut values = w.emit.op("Neg", &[&picked]);
    let weights = class_weights.as_ref().map(|weights| {
        let values: Vec<f64> = weights.iter().map(|&v| v.into()).collect();
        w.emit.floats(w.dtype, &[values.len()], &values)
    });
    if let Some(weights) = &weights {
        let of_target = w.emit.op("Gather", &[weights, &classes]);
        values = w.two("Mul", &values, &of_target);
        counted = Some(match counted {
            Some(counted) => w.two("Mul", &counted, &of_target),
            None => of_target,
        });
    }
    if *smoothing > 0.0 {
        values = smoothed(w, &values, &log, weights.as_deref(), judged, (along, f64::from(*smoothing)))?;
    }
    if let Some(present) = &present {
        values = w.two("Mul", &values, present);
    }
    let rest = rank - 1;
    let counts = match counted {
        Some(counted) => w.sums(&counted, rest),
        None => w.count(&values, &judged.target_dims),
    };
    let elements = match present {
        Some(present) => w.sums(&present, rest),
        None => w.count(&values, &judged.target_dims),
    };
    Ok(Each { sums: w.sums(&values, rest), counts, elements })
}

/// `(1 - s) value + s / C · Σ -log p`, each class by its weight.
fn smoothed(
    w: &mut Writer<'_>,
    values: &str,
    log: &str,
    weights: Option<&str>,
    judged: &Judged,
    (along, smoothing): (i64, f64),
) -> Result<String, TrainError> {
    let Some(Dimension::Fixed(classes)) = usize::try_from(along).ok().and_then(|at| judged.dims.get(at)) else {
        return Err(TrainError::invalid("label smoothing asks for a known number of classes"));
    };
    let mut all = log.to_owned();
    if let Some(weights) = weights {
        let after = judged.dims.len() as i64 - along;
        let beside = w.emit.unsqueeze(weights, &(1..after).collect::<Vec<_>>());
        all = w.two("Mul", log, &beside);
    }
    let sum = w.emit.sum(&all, &[along], Axes::Drop);
    let uniform = w.times(&sum, -smoothing / (*classes).max(1) as f64);
    let own = w.times(values, 1.0 - smoothing);
    Ok(w.two("Add", &own, &uniform))
}

/// `z - z t + λ softplus(-z)`, λ = 1 + (p - 1) t; without p: λ = 1.
fn binary(w: &mut Writer<'_>, z: &str, target: &str, positive: Option<f32>) -> String {
    let product = w.two("Mul", z, target);
    let rest = w.two("Sub", z, &product);
    let opposite = w.emit.op("Neg", &[z]);
    let mut soft = w.emit.op("Softplus", &[&opposite]);
    if let Some(positive) = positive {
        let more = w.times(target, f64::from(positive) - 1.0);
        let one = w.n(1.0);
        let lambda = w.two("Add", &one, &more);
        soft = w.two("Mul", &soft, &lambda);
    }
    w.two("Add", &rest, &soft)
}

/// With m = min(d, δ): m² / 2 + δ (d - m).
fn huber(w: &mut Writer<'_>, y: &str, target: &str, delta: f64) -> String {
    let rest = w.two("Sub", y, target);
    let distance = w.emit.op("Abs", &[&rest]);
    let bound = w.n(delta);
    let near = w.two("Min", &distance, &bound);
    let square = w.two("Mul", &near, &near);
    let square = w.times(&square, 0.5);
    let far = w.two("Sub", &distance, &near);
    let line = w.times(&far, delta);
    w.two("Add", &square, &line)
}

fn divergence(w: &mut Writer<'_>, y: &str, target: &str, temperature: f64) -> String {
    let along = || vec![AttributeProto::of_int("axis", -1)];
    let [own, other] = [y, target].map(|z| {
        let cooled = w.times(z, 1.0 / temperature);
        w.emit.with("LogSoftmax", &[&cooled], along())
    });
    let p = w.emit.op("Exp", &[&other]);
    let ratio = w.two("Sub", &other, &own);
    let product = w.two("Mul", &p, &ratio);
    let sum = w.emit.sum(&product, &[-1], Axes::Drop);
    w.times(&sum, temperature * temperature)
}

fn cosine(w: &mut Writer<'_>, y: &str, target: &str) -> String {
    let product = w.two("Mul", y, target);
    let dot = w.emit.sum(&product, &[-1], Axes::Drop);
    let tiny = w.n(1e-8);
    let [a, b] = [y, target].map(|x| {
        let norm = w.emit.reduce("ReduceL2", x, &[-1], Axes::Drop);
        w.two("Max", &norm, &tiny)
    });
    let norms = w.two("Mul", &a, &b);
    let similarity = w.two("Div", &dot, &norms);
    let one = w.n(1.0);
    w.two("Sub", &one, &similarity)
}

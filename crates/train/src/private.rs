//! Clipping each example's gradient within one step (Abadi et al. 2016), without a pass for each example.
//!
//! One sweep gives the gradients of all operators' outputs for the sum of the examples' losses. From these and the
//! operators' inputs come the norms of the examples' gradients: of a weight that is multiplied, `‖Σₜ aₜ bₜᵀ‖² = Σₜₛ (aₜ·aₛ)
//! (bₜ·bₛ)` (Goodfellow 2015; Li et al. 2022, section 4), or the gradients themselves where these are smaller. Each is scaled by
//! `min(1, C / norm)`: gradients that are there themselves are summed so; where not, the outputs' gradients are scaled and give the
//! clipped sum by the same rules (Bu et al. 2023).

use std::collections::{BTreeMap, HashMap, HashSet};

use edgeward_graph::{
    DataType, Dimension,
    proto::{AttributeProto, NodeProto},
};

use crate::{
    TrainError,
    emit::{Axes, Emit},
    gradient::{Gradients, Sweep, Use, place},
    known::Known,
    rules::{self, Part},
};

/// The uses of values, each with the index of the input.
type Uses<'u> = BTreeMap<String, Vec<(usize, &'u Use)>>;

/// What is known of the examples' gradients by a value.
enum Told {
    /// The squared norms, \[batch\].
    Square(String),
    /// The gradients, \[batch, elements of the value\].
    Whole(String),
}

/// A step whose examples are clipped.
pub(crate) struct Private<'a> {
    pub nodes: &'a [NodeProto],
    pub known: &'a Known,
    /// The weights.
    pub wanted: &'a HashSet<String>,
    /// The dimension that counts examples.
    pub batch: Dimension,
    pub dtype: DataType,
    pub clip_norm: f64,
}

impl Private<'_> {
    /// The sums of the clipped gradients of all weights; `losses` has one number for each example.
    pub fn gradients(&self, emit: &mut Emit, losses: &str) -> Result<Gradients, TrainError> {
        if self.batch == Dimension::Unknown {
            return Err(TrainError::invalid("the batch has no name in the model's inputs; privacy needs one"));
        }
        let views = self.views();
        let deferred: HashSet<String> = views.keys().map(|name| (*name).to_owned()).collect();
        let sweep = Sweep { nodes: self.nodes, known: self.known, wanted: &deferred, deferred: &deferred };
        let one = emit.scalar(self.dtype, 1.0);
        let shape = emit.op("Shape", &[losses]);
        let seed = emit.op("Expand", &[&one, &shape]);
        let swept = sweep.run(emit, vec![(losses.to_owned(), seed)])?;
        let uses = self.by_value(&swept.uses, &views)?;
        let told = self.told(emit, &uses)?;
        let factor = self.factor(emit, &told)?;
        let clipped = self.clipped(emit, &sweep, (&uses, &told), &factor)?;
        emit.stem = "gradient".to_owned();
        let none = HashSet::new();
        let back = Sweep { nodes: self.nodes, known: self.known, wanted: self.wanted, deferred: &none };
        Ok(back.run(emit, clipped)?.gradients)
    }

    /// Values that are a weight under another shape, and the weights themselves, with the weight's name; only those that
    /// something else than another view uses.
    fn views(&self) -> BTreeMap<&str, &str> {
        let mut source: HashMap<&str, &str> = self.wanted.iter().map(|name| (name.as_str(), name.as_str())).collect();
        for node in self.nodes {
            if let (true, Some(input), Some(output)) = (is_view(node), node.input.first(), node.output.first())
                && let Some(&weight) = source.get(input.as_str())
            {
                source.insert(output, weight);
            }
        }
        let users = self.nodes.iter().filter(|node| !(is_view(node) && reads_source(node, &source)));
        let used: HashSet<&str> = users.flat_map(|node| &node.input).map(String::as_str).collect();
        source.into_iter().filter(|(name, _)| used.contains(name)).collect()
    }

    /// The uses of each value. A weight must go by one value: what two forms of it share could not be told.
    fn by_value<'u>(&self, uses: &'u [Use], views: &BTreeMap<&str, &str>) -> Result<Uses<'u>, TrainError> {
        let mut found: Uses<'_> = BTreeMap::new();
        for usage in uses {
            let Some(node) = self.nodes.get(usage.node) else { continue };
            for (index, name) in node.input.iter().enumerate().filter(|(_, name)| views.contains_key(name.as_str())) {
                found.entry(name.clone()).or_default().push((index, usage));
            }
        }
        let mut weights = HashSet::new();
        if let Some(twice) = found.keys().filter_map(|name| views.get(name.as_str())).find(|w| !weights.insert(**w)) {
            let text = "is used in two forms, whose gradients of one example are not told together; freeze it";
            return Err(TrainError::invalid(format!("weight `{twice}` {text}")));
        }
        Ok(found)
    }

    /// What is known of the examples' gradients by each value.
    fn told(&self, emit: &mut Emit, uses: &Uses<'_>) -> Result<BTreeMap<String, Told>, TrainError> {
        let mut all = BTreeMap::new();
        for (name, uses) in uses {
            emit.stem = format!("norm/{name}");
            let mut parts = Vec::new();
            for (input, usage) in uses {
                parts.push(self.part(emit, *input, usage)?);
            }
            all.insert(name.clone(), self.together(emit, name, parts)?);
        }
        Ok(all)
    }

    /// `min(1, C / norm)` of each example, \[batch\].
    fn factor(&self, emit: &mut Emit, told: &BTreeMap<String, Told>) -> Result<String, TrainError> {
        let mut squares = Vec::new();
        for (name, told) in told {
            emit.stem = format!("norm/{name}");
            squares.push(match told {
                Told::Square(square) => square.clone(),
                Told::Whole(flat) => emit.reduce("ReduceSumSquare", flat, &[1], Axes::Drop),
            });
        }
        emit.stem = "clip".to_owned();
        let Some(sum) = emit.total(&squares) else {
            return Err(TrainError::invalid("the loss depends on no weight"));
        };
        let norm = emit.op("Sqrt", &[&sum]);
        let bound = emit.scalar(self.dtype, self.clip_norm);
        let longer = emit.op("Max", &[&norm, &bound]);
        Ok(emit.op("Div", &[&bound, &longer]))
    }

    /// What one use tells of the examples' gradients.
    fn part(&self, emit: &mut Emit, input: usize, usage: &Use) -> Result<Part, TrainError> {
        let Some(node) = self.nodes.get(usage.node) else { return Err(TrainError::invalid("a node is missing")) };
        let fail = |reason: String| TrainError::Unsupported { place: place(node, usage.node), reason };
        let Some(g) = usage.outputs.first().cloned().flatten() else {
            return Err(fail("has no gradient of its first output".to_owned()));
        };
        self.batch_axis(node.output.first().map_or("", String::as_str)).map_err(fail)?;
        rules::per_example(emit, self.known, node, input, &g).map_err(fail)
    }

    /// The first axis of a value must be the batch.
    fn batch_axis(&self, name: &str) -> Result<(), String> {
        let dims = self.known.dims(name).unwrap_or_default();
        if dims.first() == Some(&self.batch) {
            return Ok(());
        }
        Err(format!("its output `{name}` does not have the batch as its first axis, which privacy needs"))
    }

    /// The sum of all parts.
    fn together(&self, emit: &mut Emit, name: &str, parts: Vec<Part>) -> Result<Told, TrainError> {
        let (mut factors, mut whole, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            match part {
                Part::Factors(factor) => factors.push(factor),
                Part::Whole(gradients) => whole.push(flat(emit, &gradients)),
                Part::Rows(row) => rows.push(row),
            }
        }
        match (factors.as_slice(), whole.as_slice(), rows.as_slice()) {
            ([_, ..], [], []) => {
                let joined = rules::Factors::joined(emit, factors);
                if !joined.is_small_whole() {
                    return Ok(Told::Square(joined.square(emit)));
                }
                let gradients = joined.whole(emit);
                Ok(Told::Whole(flat(emit, &gradients)))
            }
            (_, [_, ..], []) => {
                for factor in factors {
                    let gradients = factor.whole(emit);
                    whole.push(flat(emit, &gradients));
                }
                Ok(Told::Whole(emit.total(&whole).unwrap_or_default()))
            }
            ([], [], [one]) => Ok(Told::Square(one.square(emit, self.dtype))),
            _ => {
                let text = "is used by operators whose gradients of one example are not told together; freeze it";
                Err(TrainError::invalid(format!("weight `{name}` {text}")))
            }
        }
    }

    /// The clipped sums: of gradients that are there, and by the rules of the others' operators.
    fn clipped(
        &self,
        emit: &mut Emit,
        sweep: &Sweep<'_>,
        (uses, told): (&Uses<'_>, &BTreeMap<String, Told>),
        factor: &str,
    ) -> Result<Vec<(String, String)>, TrainError> {
        let mut all = Vec::new();
        for (name, uses) in uses {
            emit.stem = format!("clipped/{name}");
            if let Some(Told::Whole(flat)) = told.get(name) {
                let row = emit.unsqueeze(factor, &[0]);
                let sum = emit.op("MatMul", &[&row, flat]);
                let shape = emit.op("Shape", &[name]);
                all.push((name.clone(), emit.op("Reshape", &[&sum, &shape])));
                continue;
            }
            for (input, usage) in uses {
                let Some(node) = self.nodes.get(usage.node) else { continue };
                let outputs = node.output.iter().zip(&usage.outputs);
                let outputs: Vec<Option<String>> =
                    outputs.map(|(y, g)| Some(self.scaled(emit, y, g.as_deref()?, factor))).collect();
                let wants = (0..node.input.len()).map(|i| i == *input).collect();
                all.extend(sweep.rule(emit, usage.node, &outputs, wants)?);
            }
        }
        Ok(all)
    }

    fn scaled(&self, emit: &mut Emit, y: &str, g: &str, factor: &str) -> String {
        let rank = self.known.dims(y).map_or(1, |dims| dims.len());
        let beside = emit.unsqueeze(factor, &(1..rank as i64).collect::<Vec<_>>());
        emit.op("Mul", &[g, &beside])
    }
}

/// \[batch, all else\].
fn flat(emit: &mut Emit, x: &str) -> String {
    emit.with("Flatten", &[x], vec![AttributeProto::of_int("axis", 1)])
}

/// Operators that keep a weight's elements, and so its gradient's norm.
fn is_view(node: &NodeProto) -> bool {
    node.is_standard()
        && matches!(
            node.op_type(),
            "Cast" | "CastLike" | "Flatten" | "Identity" | "Reshape" | "Squeeze" | "Transpose" | "Unsqueeze"
        )
}

fn reads_source(node: &NodeProto, source: &HashMap<&str, &str>) -> bool {
    node.input.first().is_some_and(|name| source.contains_key(name.as_str()))
}

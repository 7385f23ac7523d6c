//! Candidates of static integers that something was done for before: factors moved between layers, weights rounded by what
//! comes before them. And the same integers in operators of their own.

use std::{collections::BTreeSet, rc::Rc};

use edgeward_compress::{
    ALPHA, Form, Layer, Prepared, Quantised, StaticSpec, WeightBits, WeightSteps, adaround, adaround_cost, equalise,
    observe::Inputs, quantise_static_in_steps, report::DataKind, smooth, to_operators,
};
use edgeward_graph::{Model, Tensor};

use super::{
    Work,
    candidates::{Calibrated, Candidate, told},
};
use crate::failure::{Failure, Outcome};

/// Examples that weights are rounded by: pictures hold many windows, texts many words.
const EXAMPLES: usize = 32;
/// Multiply-adds that rounding may take: minutes on one core.
const COST: f64 = 3e11;

/// What was done before, and to what.
struct Before<'a> {
    name: &'a str,
    text: &'a str,
    prepared: &'a Prepared,
    steps: &'a WeightSteps,
    weights: WeightBits,
}

/// Of one form, the graph whose bytes say most nearly what the original says.
pub struct Nearest {
    pub form: Form,
    /// It and its ranges.
    pub calibrated: Rc<Calibrated>,
    /// What was done to it before; nothing to the graph as it came.
    pub text: &'static str,
}

/// What graphs are compared by: inputs, and what the original says.
struct Comparison {
    inputs: Vec<Inputs>,
    expected: Vec<Vec<Tensor>>,
}

impl Work<'_> {
    /// Static integers after moving factors, in each form in which they say more nearly what the original says. The nearest graph of each form.
    pub fn rescaled(&self, calibrated: &Rc<Calibrated>, made: &mut Vec<Candidate>) -> Result<Vec<Nearest>, Failure> {
        let forms = [Form::Chains, Form::Inputs];
        let as_it_came = |form| Nearest { form, calibrated: Rc::clone(calibrated), text: "" };
        let graphs = self.rescaled_graphs(calibrated)?;
        if graphs.is_empty() {
            return Ok(forms.map(as_it_came).into());
        }
        let inputs = self.compared()?;
        let comparison = Comparison { expected: self.results(&self.prepared.model, &inputs)?, inputs };
        let mut others = Vec::new();
        for (name, text, graph) in graphs {
            others.push((name, text, Rc::new(self.calibrated_of(&Rc::new(graph))?)));
        }
        let mut nearest = Vec::new();
        for form in forms {
            let first = self.cosine_of(calibrated, form, &comparison)?;
            let (mut best, mut most) = (as_it_came(form), first);
            for (name, text, after) in &others {
                let cosine = self.cosine_of(after, form, &comparison)?;
                if cosine > first {
                    let (steps, weights) = (&WeightSteps::new(), WeightBits::of_this_machine());
                    self.form_of(after, &Before { name, text, prepared: &after.prepared, steps, weights }, form, made)?;
                }
                if cosine > most {
                    (best, most) = (Nearest { form, calibrated: Rc::clone(after), text }, cosine);
                }
            }
            nearest.push(best);
        }
        Ok(nearest)
    }

    /// Graphs in which factors were moved, what they are called, and how, in words. In a hurry only where depthwise convolutions are, whose channels
    /// differ the most.
    fn rescaled_graphs(&self, calibrated: &Calibrated) -> Result<Vec<(&'static str, &'static str, Prepared)>, Failure> {
        if self.args.quick && !self.prepared.layers.iter().any(Layer::is_depthwise) {
            return Ok(Vec::new());
        }
        let smoothed = smooth(&self.prepared, &calibrated.statistics, ALPHA)?;
        let all = [
            ("int8-smooth", "outliers of activations moved into weights (SmoothQuant)", smoothed),
            ("int8-equalised", "ranges made alike from layer to layer", equalise(&self.prepared)?),
        ];
        Ok(all.into_iter().filter(|(.., of)| of.places > 0).map(|(name, text, of)| (name, text, of.prepared)).collect())
    }

    /// How nearly all of a graph as bytes says what the original says; the least where the engine refuses that.
    fn cosine_of(&self, calibrated: &Calibrated, form: Form, comparison: &Comparison) -> Result<f64, Failure> {
        self.go_on("comparing graphs")?;
        if form == Form::Chains {
            return Ok(calibrated.cosine);
        }
        let all = self.quantised(calibrated, form, &BTreeSet::new())?;
        Ok(self.cosine(&all.model, &comparison.inputs, &comparison.expected).unwrap_or(f64::NEG_INFINITY))
    }

    /// Static integers whose weights were rounded by data, up or down.
    pub fn rounded(&self, calibrated: &Calibrated, weights: WeightBits, made: &mut Vec<Candidate>) -> Outcome {
        if self.material.kind == DataKind::Synthesised || adaround_cost(&self.prepared) > COST {
            return Ok(());
        }
        self.go_on("rounding weights up or down")?;
        let load = |model: &Model| self.load(model);
        let solved = adaround(&self.prepared, weights, &load, &|| self.repeated(EXAMPLES));
        let Some(solved) = self.solved("rounded up or down", solved)? else { return Ok(()) };
        let (name, text) = match weights {
            WeightBits::Four => ("int4-adaround", "weights of 4 bits in bytes, rounded up or down by data"),
            _ => ("int8-adaround", "weights rounded up or down by data"),
        };
        let (prepared, steps) = (&solved.prepared, &solved.steps);
        self.forms_of(calibrated, &Before { name, text, prepared, steps, weights }, made)
    }

    fn forms_of(&self, calibrated: &Calibrated, before: &Before<'_>, made: &mut Vec<Candidate>) -> Outcome {
        self.form_of(calibrated, before, Form::Chains, made)?;
        self.form_of(calibrated, before, Form::Inputs, made)
    }

    fn form_of(&self, calibrated: &Calibrated, before: &Before<'_>, form: Form, made: &mut Vec<Candidate>) -> Outcome {
        let (end, text) = told(form);
        let name = format!("{}{end}", before.name);
        self.go_on(&format!("quantising: {name}"))?;
        let spec = StaticSpec { weights: before.weights, ..self.spec(form, &BTreeSet::new()) };
        let (ranges, statistics) = (&calibrated.ranges, &calibrated.statistics);
        let quantised = quantise_static_in_steps(before.prepared, ranges, statistics, &spec, before.steps)?;
        let recipe = format!("{}, then {text}, ranges by {}", before.text, calibrated.method());
        let noise = self.noise_to(&calibrated.prepared, &quantised)?;
        made.push(self.keep(&name, &recipe, &quantised.model, |_| 1.0, noise)?);
        Ok(())
    }

    /// Chains of bytes in operators of their own, where any part of the graph becomes such.
    pub fn operators(&self, pairs: &Quantised, made: &mut Vec<Candidate>) -> Outcome {
        let operators = to_operators(pairs)?;
        if operators.model.graph().node.len() == pairs.model.graph().node.len() {
            return Ok(());
        }
        let recipe =
            "weights and chains of activations as bytes, in operators of their own instead of pairs (QOperator)";
        made.push(self.keep("int8-qoperator", recipe, &operators.model, |_| 1.0, self.noise(&operators)?)?);
        Ok(())
    }
}

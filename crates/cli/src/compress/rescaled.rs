//! Candidates of static integers that something was done for before: factors moved between layers, weights rounded by what
//! comes before them. And the same integers in operators of their own.

use std::collections::BTreeSet;

use edgeward_compress::{
    ALPHA, Form, Layer, Prepared, Quantised, Rescaled, StaticSpec, WeightBits, WeightSteps, adaround, adaround_cost,
    equalise, quantise_static_in_steps, report::DataKind, smooth, to_operators,
};
use edgeward_graph::Model;

use super::{
    Work,
    candidates::{Calibrated, Candidate},
};
use crate::failure::Outcome;

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

impl Work<'_> {
    /// Static integers after moving factors, where a calibrated model says more nearly what the original says. In a hurry
    /// only where depthwise convolutions are, whose channels differ the most.
    pub fn rescaled(&self, calibrated: &Calibrated, made: &mut Vec<Candidate>) -> Outcome {
        if !self.args.quick {
            let smoothed = smooth(&self.prepared, &calibrated.statistics, ALPHA)?;
            let text = "outliers of activations moved into weights (SmoothQuant)";
            self.if_nearer(calibrated, &smoothed, ("int8-smooth", text), made)?;
        }
        if !self.args.quick || self.prepared.layers.iter().any(is_depthwise) {
            let equal = equalise(&self.prepared)?;
            self.if_nearer(calibrated, &equal, ("int8-equalised", "ranges made alike from layer to layer"), made)?;
        }
        Ok(())
    }

    fn if_nearer(
        &self,
        calibrated: &Calibrated,
        rescaled: &Rescaled,
        (name, text): (&str, &str),
        made: &mut Vec<Candidate>,
    ) -> Outcome {
        if rescaled.places == 0 {
            return Ok(());
        }
        let prepared = &rescaled.prepared;
        let after = self.calibrated_of(prepared)?;
        if after.cosine <= calibrated.cosine {
            return Ok(());
        }
        let (steps, weights) = (&WeightSteps::new(), WeightBits::of_this_machine());
        self.forms_of(&after, &Before { name, text, prepared, steps, weights }, made)
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
        for (form, end, text) in [
            (Form::Chains, "", "then weights and chains of activations as bytes"),
            (Form::Inputs, "-inputs", "then weights and what goes into multiplications as bytes"),
        ] {
            let name = format!("{}{end}", before.name);
            self.go_on(&format!("quantising: {name}"))?;
            let spec = StaticSpec { weights: before.weights, ..self.spec(form, &BTreeSet::new()) };
            let (ranges, statistics) = (&calibrated.ranges, &calibrated.statistics);
            let quantised = quantise_static_in_steps(before.prepared, ranges, statistics, &spec, before.steps)?;
            let recipe = format!("{}, {text}, ranges by {}", before.text, calibrated.method());
            made.push(self.keep(&name, &recipe, &quantised.model, |_| 1.0, self.noise(&quantised)?)?);
        }
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

fn is_depthwise(layer: &Layer) -> bool {
    layer.op == "Conv" && layer.weight.get(1) == Some(&1) && layer.weight.first().is_some_and(|channels| *channels > 1)
}

//! Static integers with some layers left as floats, where all of them as integers lose too much.

use std::{
    collections::{BTreeSet, HashMap},
    rc::Rc,
};

use edgeward_compress::{CompressError, Form, Prepared, Sensitivity, layer_errors};
use edgeward_graph::Model;

use super::{
    Original, Work,
    candidates::{Calibrated, Candidate, LAYER_EXAMPLES, told},
    rescaled::Nearest,
};
use crate::failure::Failure;

/// An order in which layers become floats again.
struct Order {
    layers: Vec<String>,
    /// What a variant of it is called, and what comes first, in words.
    name: &'static str,
    text: &'static str,
}

impl Order {
    fn first(&self, count: usize) -> BTreeSet<String> {
        self.layers.iter().take(count).cloned().collect()
    }
}

impl Work<'_> {
    /// Leaves so many layers as floats that the metric holds: those that lose the most, and those that lose the most for what they cost, since few
    /// costly layers may take more time than many cheap ones, or less. What lies between layers is rounded in one form only, so each
    /// form has its own numbers. What each layer loses alone, in the last of the forms.
    pub fn mixed(
        &self,
        bases: &[Nearest],
        original: &Original,
        made: &mut Vec<Candidate>,
    ) -> Result<Vec<Sensitivity>, Failure> {
        let mut errors: Option<(&Rc<Calibrated>, Vec<Sensitivity>)> = None;
        for base in bases {
            let known = errors.take().filter(|(calibrated, _)| Rc::ptr_eq(calibrated, &base.calibrated));
            let found = match known {
                Some((_, found)) => found,
                None => self.errors_alone(&base.calibrated)?,
            };
            self.mixed_of(base, &orders(&base.calibrated.prepared, &found), original, made)?;
            errors = Some((&base.calibrated, found));
        }
        Ok(errors.map(|(_, found)| found).unwrap_or_default())
    }

    fn mixed_of(
        &self,
        base: &Nearest,
        orders: &[Order],
        original: &Original,
        made: &mut Vec<Candidate>,
    ) -> Result<(), Failure> {
        let (end, _) = told(base.form);
        let first = if base.text.is_empty() { String::new() } else { format!("{}; then ", base.text) };
        let mut before = None;
        for order in orders {
            let Some(count) = self.fewest_floats(base, original, order)? else { continue };
            let keep = order.first(count);
            if before.as_ref() == Some(&keep) {
                continue;
            }
            let recipe = format!("{first}static bytes, but the {count} layers {} as floats", order.text);
            let name = format!("{}{end}", order.name);
            self.static_candidate(&base.calibrated, base.form, &keep, (&name, &recipe), made)?;
            before = Some(keep);
        }
        Ok(())
    }

    /// What each layer loses alone, the worst first.
    fn errors_alone(&self, calibrated: &Calibrated) -> Result<Vec<Sensitivity>, Failure> {
        self.go_on("quantising each layer alone")?;
        let load = |model: &Model| self.load(model);
        let mut batches = self.material.calibrate(LAYER_EXAMPLES);
        let (mut done, all) = (0, calibrated.prepared.layers.len());
        let each = || {
            done += 1;
            self.show(&format!("layer {done} of {all}")).map_err(|failure| CompressError::Data(failure.message()))
        };
        let (ranges, statistics) = (&calibrated.ranges, &calibrated.statistics);
        let spec = self.spec(Form::Chains, &BTreeSet::new());
        Ok(layer_errors(&calibrated.prepared, ranges, statistics, &spec, &load, &mut batches, each)?)
    }

    /// How many of the first layers must be floats; none where all but one are too few.
    fn fewest_floats(&self, base: &Nearest, original: &Original, order: &Order) -> Result<Option<usize>, Failure> {
        let all = base.calibrated.prepared.layers.len();
        fewest(all, |count| {
            self.go_on(&format!("{count} of {all} layers as floats"))?;
            let model = self.quantised(&base.calibrated, base.form, &order.first(count))?.model;
            Ok(self.drop(&model, base.form, original)? <= self.args.max_drop)
        })
    }
}

/// The layers of a graph in the orders that are tried; the worst come first in `found`.
fn orders(prepared: &Prepared, found: &[Sensitivity]) -> [Order; 2] {
    let adds: HashMap<&str, f64> =
        prepared.layers.iter().map(|layer| (layer.name.as_str(), prepared.multiply_adds(layer))).collect();
    let adds = |layer: &str| adds.get(layer).copied().unwrap_or_default().max(1.0);
    let mut by_cost = found.to_vec();
    by_cost.sort_by(|a, b| (b.error / adds(&b.layer)).total_cmp(&(a.error / adds(&a.layer))));
    let order = |layers: &[Sensitivity], name, text| Order {
        layers: layers.iter().map(|layer| layer.layer.clone()).collect(),
        name,
        text,
    };
    [
        order(found, "int8-mixed", "that lose the most"),
        order(&by_cost, "int8-mixed-cheap", "that lose the most for each multiply-add of them"),
    ]
}

/// The least number from 1 to below `all` that holds, where what holds goes on to hold: by doubling, then by halves.
fn fewest(all: usize, mut holds: impl FnMut(usize) -> Result<bool, Failure>) -> Result<Option<usize>, Failure> {
    let (mut fails, mut enough) = (0, 1);
    while enough < all && !holds(enough)? {
        (fails, enough) = (enough, enough * 2);
    }
    if enough >= all {
        return Ok(None);
    }
    while enough - fails > 1 {
        let middle = fails.midpoint(enough);
        if holds(middle)? { enough = middle } else { fails = middle }
    }
    Ok(Some(enough))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_that_hold_are_found() {
        for all in 1..40 {
            for least in 1..=all {
                let mut asked = 0;
                let found = fewest(all, |count| {
                    asked += 1;
                    Ok(count >= least)
                });
                // A power of two beyond all layers is not asked for.
                let reached = least.next_power_of_two() < all;
                assert_eq!(found.ok().flatten(), reached.then_some(least), "{all} {least}");
                assert!(asked <= 12, "{asked}");
            }
        }
    }
}

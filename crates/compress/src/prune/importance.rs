//! How much a unit matters, by the weights that belong to it.

use std::collections::{HashMap, HashSet};

use edgeward_graph::Model;

use super::{Place, Plan};
use crate::{CompressError, edit::Edit};

/// What each unit is worth, in the order of [`Plan::groups`] and of their units. Only units of one group compare; across
/// groups they do as parts of their group's mean.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores(pub Vec<Vec<f64>>);

/// How weights add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// `Σ |w|` (Li et al. 2017, "Pruning Filters for Efficient ConvNets", section 3.1)
    One,
    /// `√(Σ w²)` over all members (Fang et al. 2023, equation 6)
    Two,
}

/// The norm of all weights of a unit: of the layer that makes it, of those that read it, of what is between.
pub fn magnitude(model: &Model, plan: &Plan, norm: Norm) -> Result<Scores, CompressError> {
    let statistics = slots(model, &[3, 4]);
    let edit = Edit::new(model.clone());
    let each = |value: f32| match norm {
        Norm::One => f64::from(value.abs()),
        Norm::Two => f64::from(value) * f64::from(value),
    };
    let mut sums = summed(plan, |tensor| {
        if statistics.contains(tensor) {
            return None;
        }
        Some(edit.floats(tensor)?.1.into_iter().map(each).collect())
    });
    if norm == Norm::Two {
        sums.0.iter_mut().flatten().for_each(|sum| *sum = sum.sqrt());
    }
    Ok(sums)
}

/// The scale of normalisations, `Σ |γ|` (Liu et al. 2017, "Learning Efficient Convolutional Networks through Network
/// Slimming", section 3); [`magnitude`] where a group has no normalisation.
pub fn normalisation(model: &Model, plan: &Plan) -> Result<Scores, CompressError> {
    let scales = slots(model, &[1]);
    let edit = Edit::new(model.clone());
    let found = summed(plan, |tensor| {
        let scale = scales.contains(tensor).then(|| edit.floats(tensor)).flatten()?;
        Some(scale.1.into_iter().map(|value| f64::from(value.abs())).collect())
    });
    let mut scores = magnitude(model, plan, Norm::Two)?;
    for ((group, score), found) in plan.groups.iter().zip(&mut scores.0).zip(found.0) {
        let members = group.units.iter().flat_map(|unit| &unit.members);
        if members.into_iter().any(|member| scales.contains(member.tensor.as_str())) {
            *score = found;
        }
    }
    Ok(scores)
}

/// Names of these inputs of all batch normalisations.
fn slots<'m>(model: &'m Model, slots: &[usize]) -> HashSet<&'m str> {
    let nodes = model.graph().node.iter().filter(|node| node.op_type() == "BatchNormalization");
    nodes.flat_map(|node| slots.iter().filter_map(|&slot| node.input.get(slot)).map(String::as_str)).collect()
}

/// Sums over the elements of all members of each unit. `elements` gives a tensor's, in its order; none where it does not
/// count.
pub(super) fn summed(plan: &Plan, elements: impl Fn(&str) -> Option<Vec<f64>>) -> Scores {
    let mut values: HashMap<&str, Option<Vec<f64>>> = HashMap::new();
    let mut sums: HashMap<Place, Vec<f64>> = HashMap::new();
    let mut scores = Vec::new();
    for group in &plan.groups {
        let mut score = Vec::new();
        for unit in &group.units {
            let mut sum = 0.0;
            for member in &unit.members {
                let by_index = sums.entry((member.tensor.clone(), member.axis)).or_insert_with(|| {
                    let values = values.entry(&member.tensor).or_insert_with(|| elements(&member.tensor));
                    let sizes = plan.sizes.get(&member.tensor).map(Vec::as_slice).unwrap_or_default();
                    values.as_ref().map(|values| along(values, sizes, member.axis)).unwrap_or_default()
                });
                sum += member.indices.iter().filter_map(|&index| by_index.get(index)).sum::<f64>();
            }
            score.push(sum);
        }
        scores.push(score);
    }
    Scores(scores)
}

/// Sums for each index of an axis.
pub(super) fn along(values: &[f64], sizes: &[usize], axis: usize) -> Vec<f64> {
    let size = sizes.get(axis).copied().unwrap_or(1).max(1);
    let inner = sizes.iter().skip(axis + 1).product::<usize>().max(1);
    let mut sums = vec![0.0; size];
    for (at, value) in values.iter().enumerate() {
        if let Some(sum) = sums.get_mut(at / inner % size) {
            *sum += value;
        }
    }
    sums
}

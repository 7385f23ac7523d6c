//! How much a unit matters, by what it makes on data: the mean of `|x|` over all that reads it.
//!
//! Hu et al. 2016, "Network Trimming", count zeros after a ReLU; the mean size is the same idea without a threshold, and
//! holds for any activation.

use std::collections::HashMap;

use super::{
    Plan, Scores,
    importance::along,
    ties::{Axis, Label},
};
use crate::{
    CompressError,
    observe::{self, Batches, Load},
};
use edgeward_graph::Model;

/// Runs all batches; the score of a unit is the mean of `|x|` of its channels, over all values that layers read.
pub fn activations(model: &Model, plan: &Plan, load: Load<'_>, batches: Batches<'_>) -> Result<Scores, CompressError> {
    let given: Vec<String> = model.inputs().into_iter().map(|port| port.name).collect();
    let has_channels = |(name, axis): &&(String, usize)| labels(plan, name, *axis).is_some() && !given.contains(name);
    let read: Vec<&(String, usize)> = plan.read.iter().filter(has_channels).collect();
    let mut names: Vec<String> = read.iter().map(|(name, _)| name.clone()).collect();
    names.dedup();
    let session = load(&observe::with_outputs(model, &names))?;
    let wanted: Vec<&str> = read.iter().map(|(name, _)| name.as_str()).collect();
    let mut sums: HashMap<Label, (f64, f64)> = HashMap::new();
    let mut seen = 0;
    for batch in batches {
        let made = observe::run(session.as_ref(), &batch?, &wanted)?;
        for ((name, axis), tensor) in read.iter().zip(&made) {
            let Some(labels) = labels(plan, name, *axis) else { continue };
            let values: Vec<f64> = tensor.values::<f32>()?.iter().map(|value| f64::from(value.abs())).collect();
            let count = values.len() as f64 / labels.len().max(1) as f64;
            for (&label, sum) in labels.iter().zip(along(&values, tensor.shape(), *axis)) {
                let entry = sums.entry(label).or_default();
                *entry = (entry.0 + sum, entry.1 + count);
            }
        }
        seen += 1;
    }
    if seen == 0 {
        return Err(CompressError::Data("the data to observe activations on holds no examples".to_owned()));
    }
    let mean = |label: &Label| sums.get(label).map_or(0.0, |(sum, count)| sum / count.max(1.0));
    let scores = plan.groups.iter().map(|group| group.units.iter().map(|unit| mean(&unit.label)).collect());
    Ok(Scores(scores.collect()))
}

fn labels<'p>(plan: &'p Plan, name: &str, axis: usize) -> Option<&'p [Label]> {
    match plan.axes.get(name)?.get(axis)? {
        Axis::Channels(labels) => Some(labels),
        Axis::Fixed => None,
    }
}

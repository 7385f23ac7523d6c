//! Outliers of activations moved into weights: Xiao et al. 2023, "SmoothQuant: Accurate and efficient post-training
//! quantization for large language models", equations 3 and 4.
//!
//! `Y = (X diag(s)⁻¹) · (diag(s) W)` with `s_j = max|X_j|^α / max|W_j|^(1−α)`. The division goes into the scale and shift of
//! the normalisation before; where something else reads the normalised value as well, as a residual connection does, a
//! multiplication does it.

use std::collections::{BTreeMap, HashSet};

use edgeward_graph::{Links, Tensor, proto::NodeProto};

use crate::{
    CompressError, Layer, Prepared, Statistics,
    edit::{Edit, node},
    equalise::Rescaled,
    prepare::concluded,
    rescale::{Sides, is_by_channel, multiply, only_reader, possible, weights_of},
};

/// α: how much of the difficulty goes into weights; the paper's 0.5 shares it.
pub const ALPHA: f64 = 0.5;

/// Moves outliers of what products of matrices read behind normalisations. `alpha` is from 0 to 1. Errors: constants that
/// cannot be written.
pub fn smooth(prepared: &Prepared, statistics: &Statistics, alpha: f64) -> Result<Rescaled, CompressError> {
    let mut edit = Edit::new(prepared.model.clone());
    let links = prepared.links();
    let mut places = 0;
    for (value, layers) in by_input(prepared) {
        let Some(most) = statistics.channel_most(value) else { continue };
        let Some(constants) = taken_up(prepared, &edit, &links, value, most.len()) else { continue };
        let Some(factors) = factors(&edit, &layers, most, alpha) else { continue };
        let by = |channel: usize| factors.get(channel).copied().unwrap_or(1.0);
        for layer in &layers {
            let Some(sides) = weights_of(&edit, layer).and_then(|(node, shape, _)| Sides::of(node, &shape)) else {
                continue;
            };
            multiply(&mut edit, (layer.node, 1), |at| by(sides.channels(at).0))?;
        }
        let readers: HashSet<usize> = layers.iter().map(|layer| layer.node).collect();
        let result = prepared.model.graph().output.iter().any(|output| output.name() == value);
        if !result && links.consumers(value).iter().all(|reader| readers.contains(reader)) {
            for place in constants {
                multiply(&mut edit, place, |at| 1.0 / by(at))?;
            }
        } else {
            divide(&mut edit, value, &layers, &factors)?;
        }
        places += 1;
    }
    Ok(Rescaled { prepared: concluded(edit.model, prepared.folded)?, places })
}

/// Products of matrices by what they read.
fn by_input(prepared: &Prepared) -> BTreeMap<&str, Vec<&Layer>> {
    let mut found: BTreeMap<&str, Vec<&Layer>> = BTreeMap::new();
    for layer in prepared.layers.iter().filter(|layer| layer.op != "Conv") {
        let input = prepared.model.graph().node.get(layer.node).and_then(|node| node.input.first());
        if let Some(input) = input {
            found.entry(input).or_default().push(layer);
        }
    }
    found
}

/// Constants that channels of `value` can be divided in: scale and shift of a normalisation, or of the multiplication and
/// addition that it ends with. None where there are none.
fn taken_up(
    prepared: &Prepared,
    edit: &Edit,
    links: &Links<'_>,
    value: &str,
    channels: usize,
) -> Option<Vec<(usize, usize)>> {
    let index = links.producer(value)?;
    let node = prepared.model.graph().node.get(index).filter(|node| node.is_standard())?;
    let constant = |slot: usize| is_by_channel(edit, node, slot, channels);
    let one_of_two = || [0, 1].into_iter().find(|slot| node.input.len() == 2 && constant(*slot));
    match node.op_type() {
        "LayerNormalization" | "RMSNormalization" => {
            let shift = node.input.get(2).is_some_and(|name| !name.is_empty());
            let whole = constant(1) && (!shift || constant(2)) && node.output.first().is_some_and(|name| name == value);
            let one = |slot: usize| edit.floats(node.input.get(slot)?).filter(|(shape, _)| shape.len() == 1);
            (whole && one(1).is_some())
                .then(|| std::iter::once((index, 1)).chain(shift.then_some((index, 2))).collect())
        }
        "Mul" => Some(vec![(index, one_of_two()?)]),
        "Add" => {
            let slot = one_of_two()?;
            let other = node.input.get(1 - slot)?;
            only_reader(prepared, links, other)?;
            let before = links.producer(other).and_then(|index| prepared.model.graph().node.get(index));
            before.filter(|node: &&NodeProto| node.op_type() == "Mul")?;
            let mut found = taken_up(prepared, edit, links, other, channels)?;
            found.push((index, slot));
            Some(found)
        }
        _ => None,
    }
}

/// What each channel is divided by; none where shapes do not fit.
fn factors(edit: &Edit, layers: &[&Layer], most: &[f32], alpha: f64) -> Option<Vec<f32>> {
    let mut weights = vec![0f32; most.len()];
    for layer in layers {
        let (node, shape, values) = weights_of(edit, layer)?;
        let sides = Sides::of(node, &shape).filter(|sides| sides.inputs == most.len())?;
        weights.iter_mut().zip(sides.most(&values).0).for_each(|(most, other)| *most = most.max(other));
    }
    let factor = |(activation, weight): (&f32, &f32)| {
        // A channel without weights, or that is always 0, has nothing to share.
        possible((f64::from(*activation).powf(alpha) / f64::from(*weight).powf(1.0 - alpha)) as f32)
    };
    Some(most.iter().zip(&weights).map(factor).collect())
}

/// Lets the layers read a divided copy.
fn divide(edit: &mut Edit, value: &str, layers: &[&Layer], factors: &[f32]) -> Result<(), CompressError> {
    let inverse: Vec<f32> = factors.iter().map(|factor| 1.0 / factor).collect();
    let inverse = edit.constant(&format!("{value}.inverse"), &Tensor::from_vec([inverse.len()], inverse)?);
    let smooth = edit.fresh(&format!("{value}.smooth"));
    for layer in layers {
        edit.set_input(layer.node, 0, &smooth);
    }
    let title = edit.fresh(&format!("{smooth}.node"));
    edit.model.graph_mut().node.push(node("Mul", title, &[value, &inverse], &[&smooth], Vec::new()));
    Ok(())
}

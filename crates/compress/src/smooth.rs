//! Outliers of activations moved into weights: Xiao et al. 2023, "SmoothQuant: Accurate and efficient post-training
//! quantization for large language models", equations 3 and 4.
//!
//! `Y = (X diag(s)⁻¹) · (diag(s) W)` with `s_j = max|X_j|^α / max|W_j|^(1−α)`. The division goes into the scale and shift of
//! the normalisation before; where something else reads the normalised value as well, as a residual connection does, a
//! multiplication does it.
//!
//! What a depthwise convolution reads is one number for each filter times what it would be, so all of the difficulty goes into weights there (α = 1),
//! behind whatever comes before: `s_j = max|X_j| / max|X|`, by a multiplication, which engines fuse with the activation before it.

use std::collections::{BTreeMap, HashSet};

use edgeward_graph::{Links, Tensor, proto::NodeProto};

use crate::{
    CompressError, Layer, Prepared, Statistics,
    edit::{Edit, node},
    equalise::Rescaled,
    fuse::bias_name,
    prepare::concluded,
    rescale::{Sides, is_by_channel, multiply, only_reader, possible, weights_of},
};

/// α: how much of the difficulty goes into weights; the paper's 0.5 shares it.
pub const ALPHA: f64 = 0.5;

/// Of how many times the median channel the greatest one is where a depthwise convolution's input is levelled: half of its channels have two bits
/// less than the others.
const UNEVEN: f32 = 4.0;
/// The least that a channel is divided by to be larger: it gains 8 bits, and may hold more in other data than in what was observed.
const FACTOR_MIN: f32 = 1.0 / 256.0;

/// Moves outliers of what products of matrices read behind normalisations, by `alpha` from 0 to 1, and makes channels alike that
/// depthwise convolutions read. Errors: constants that cannot be written.
pub fn smooth(prepared: &Prepared, statistics: &Statistics, alpha: f64) -> Result<Rescaled, CompressError> {
    let mut edit = Edit::new(prepared.model.clone());
    let links = prepared.links();
    let mut places = 0;
    for (value, layers) in by_input(prepared, |layer| layer.op != "Conv") {
        places += usize::from(share(&mut edit, prepared, &links, statistics, (value, &layers), alpha)?);
    }
    for (value, layers) in by_input(prepared, Layer::is_depthwise) {
        places += usize::from(level(&mut edit, statistics, value, &layers)?);
    }
    Ok(Rescaled { prepared: concluded(edit.model, prepared.folded)?, places })
}

/// Some layers by what they read.
fn by_input(prepared: &Prepared, wanted: impl Fn(&Layer) -> bool) -> BTreeMap<&str, Vec<&Layer>> {
    let mut found: BTreeMap<&str, Vec<&Layer>> = BTreeMap::new();
    for layer in prepared.layers.iter().filter(|layer| wanted(layer)) {
        let input = prepared.model.graph().node.get(layer.node).and_then(|node| node.input.first());
        if let Some(input) = input {
            found.entry(input).or_default().push(layer);
        }
    }
    found
}

/// Shares the outliers of a normalised value with the products that read it. False where it cannot be done.
fn share(
    edit: &mut Edit,
    prepared: &Prepared,
    links: &Links<'_>,
    statistics: &Statistics,
    (value, layers): (&str, &[&Layer]),
    alpha: f64,
) -> Result<bool, CompressError> {
    let Some(most) = statistics.channel_most(value) else { return Ok(false) };
    let Some(constants) = taken_up(prepared, edit, links, value, most.len()) else { return Ok(false) };
    let Some(factors) = factors(edit, layers, most, alpha) else { return Ok(false) };
    let by = |channel: usize| factors.get(channel).copied().unwrap_or(1.0);
    multiply_weights(edit, layers, &factors)?;
    let readers: HashSet<usize> = layers.iter().map(|layer| layer.node).collect();
    let result = prepared.model.graph().output.iter().any(|output| output.name() == value);
    if !result && links.consumers(value).iter().all(|reader| readers.contains(reader)) {
        for place in constants {
            multiply(edit, place, |at| 1.0 / by(at))?;
        }
    } else {
        divide(edit, value, layers, &factors, 0)?;
    }
    Ok(true)
}

/// Makes all channels of a value as large as its largest before depthwise convolutions read it. Their weights lose nothing by it: each filter has a scale
/// of its own, and all it reads is multiplied by one factor. False where the channels are much alike, or unknown.
fn level(edit: &mut Edit, statistics: &Statistics, value: &str, layers: &[&Layer]) -> Result<bool, CompressError> {
    let Some(most) = statistics.channel_most(value) else { return Ok(false) };
    let mut sizes: Vec<f32> = most.iter().copied().filter(|size| *size > 0.0).collect();
    sizes.sort_by(f32::total_cmp);
    let (Some(&median), Some(&greatest)) = (sizes.get(sizes.len() / 2), sizes.last()) else { return Ok(false) };
    let fits = |layer: &&Layer| {
        let sides = weights_of(edit, layer).and_then(|(node, shape, _)| Sides::of(node, &shape));
        sides.is_some_and(|sides| sides.inputs == most.len())
    };
    if greatest < UNEVEN * median || !layers.iter().all(fits) {
        return Ok(false);
    }
    // A channel that is always 0 has nothing to make larger.
    let factor = |size: &f32| if *size > 0.0 { possible((size / greatest).max(FACTOR_MIN)) } else { 1.0 };
    let factors: Vec<f32> = most.iter().map(factor).collect();
    multiply_weights(edit, layers, &factors)?;
    let window = layers.first().map_or(0, |layer| layer.weight.len().saturating_sub(2));
    divide(edit, value, layers, &factors, window)?;
    Ok(true)
}

/// Multiplies what each input channel is multiplied by.
fn multiply_weights(edit: &mut Edit, layers: &[&Layer], factors: &[f32]) -> Result<(), CompressError> {
    for layer in layers {
        let Some(sides) = weights_of(edit, layer).and_then(|(node, shape, _)| Sides::of(node, &shape)) else {
            continue;
        };
        let by = |at: usize| factors.get(sides.channels(at).0).copied().unwrap_or(1.0);
        multiply(edit, (layer.node, 1), by)?;
    }
    Ok(())
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
            let shift = bias_name(node).is_some();
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

/// Lets the layers read a divided copy, whose channels are followed by so many dimensions.
fn divide(
    edit: &mut Edit,
    value: &str,
    layers: &[&Layer],
    factors: &[f32],
    followed: usize,
) -> Result<(), CompressError> {
    let inverse: Vec<f32> = factors.iter().map(|factor| 1.0 / factor).collect();
    let shape: Vec<usize> = std::iter::once(inverse.len()).chain(std::iter::repeat_n(1, followed)).collect();
    let inverse = edit.constant(&format!("{value}.inverse"), &Tensor::from_vec(shape, inverse)?);
    let smooth = edit.fresh(&format!("{value}.smooth"));
    for layer in layers {
        edit.set_input(layer.node, 0, &smooth);
    }
    let title = edit.fresh(&format!("{smooth}.node"));
    edit.model.graph_mut().node.push(node("Mul", title, &[value, &inverse], &[&smooth], Vec::new()));
    Ok(())
}

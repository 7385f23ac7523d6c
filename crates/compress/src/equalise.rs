//! Ranges of weights made alike from layer to layer: Nagel et al. 2019, "Data-free quantization through weight
//! equalization and bias correction", section 4.1.
//!
//! Between two layers whose channels nothing else reads and where only what is homogeneous stands (`f(s x) = s f(x)` for
//! s > 0), output channel i of the first is divided by `s_i = √(r¹_i / r²_i)` and its weights in the second are multiplied
//! by it (equation 11, with r the greatest size of the channel's weights). Both ranges become `√(r¹_i r²_i)`.

use std::collections::HashMap;

use edgeward_graph::{Links, Tensor};

use crate::{
    CompressError, Layer, Prepared,
    edit::Edit,
    fuse::{bias_name, channel_axis},
    gptq::own_weights,
    prepare::concluded,
    rescale::{Sides, is_by_channel, multiply, only_reader, possible, weights_of},
};

/// Chains of layers are gone through until nothing moves, or so often.
const ROUNDS: usize = 20;
/// What counts as nothing.
const STILL: f32 = 1e-3;

/// A graph that computes the same with other weights.
#[derive(Clone, Debug)]
pub struct Rescaled {
    /// The graph.
    pub prepared: Prepared,
    /// Places where factors were moved.
    pub places: usize,
}

/// Two layers and what is added to channels between them.
struct Pair {
    first: usize,
    second: usize,
    added: Vec<(usize, usize)>,
}

/// Makes ranges alike wherever two layers follow each other so. Errors: constants that cannot be written.
pub fn equalise(prepared: &Prepared) -> Result<Rescaled, CompressError> {
    let mut edit = Edit::new(prepared.model.clone());
    let pairs = pairs(prepared, &edit);
    let mut weights: HashMap<usize, (Sides, Vec<f32>)> = HashMap::new();
    let layers: HashMap<usize, &Layer> = prepared.layers.iter().map(|layer| (layer.node, layer)).collect();
    for index in pairs.iter().flat_map(|pair| [pair.first, pair.second]) {
        let read = layers.get(&index).and_then(|layer| weights_of(&edit, layer));
        let Some((node, shape, values)) = read else { continue };
        let Some(sides) = Sides::of(node, &shape) else { continue };
        weights.insert(index, (sides, values));
    }
    let factors = balance(&pairs, &mut weights);
    for (pair, factors) in pairs.iter().zip(&factors) {
        let by = |channel: usize| factors.get(channel).copied().unwrap_or(1.0);
        let has_bias = edit.node(pair.first).is_some_and(|node| bias_name(node).is_some());
        for place in has_bias.then_some((pair.first, 2)).into_iter().chain(pair.added.iter().copied()) {
            multiply(&mut edit, place, |at| 1.0 / by(at))?;
        }
    }
    for (index, (_, values)) in weights {
        let Some(name) = edit.node(index).and_then(|node| node.input.get(1)).cloned() else { continue };
        let Some((shape, _)) = edit.floats(&name) else { continue };
        let own = edit.constant(&format!("{name}.equal"), &Tensor::from_vec(shape, values)?);
        edit.set_input(index, 1, &own);
    }
    Ok(Rescaled { prepared: concluded(edit.model, prepared.folded)?, places: pairs.len() })
}

/// Rescales the weights in place; the factors of each pair.
fn balance(pairs: &[Pair], weights: &mut HashMap<usize, (Sides, Vec<f32>)>) -> Vec<Vec<f32>> {
    let mut factors: Vec<Vec<f32>> = pairs.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        let mut moved = 0f32;
        for (pair, all) in pairs.iter().zip(&mut factors) {
            let (Some((first, before)), Some((second, after))) = (weights.get(&pair.first), weights.get(&pair.second))
            else {
                continue;
            };
            let (ranges, next) = (first.most(before).1, second.most(after).0);
            all.resize(ranges.len(), 1.0);
            let factor = |(one, other): (&f32, &f32)| {
                // A channel without weights on one side has no range to share.
                possible((one / other).sqrt())
            };
            let step: Vec<f32> = ranges.iter().zip(&next).map(factor).collect();
            moved = step.iter().fold(moved, |most, factor| most.max(factor.ln().abs()));
            all.iter_mut().zip(&step).for_each(|(all, step)| *all *= step);
            let by = |channel: usize| step.get(channel).copied().unwrap_or(1.0);
            if let Some((sides, values)) = weights.get_mut(&pair.first) {
                values.iter_mut().enumerate().for_each(|(at, value)| *value /= by(sides.channels(at).1));
            }
            if let Some((sides, values)) = weights.get_mut(&pair.second) {
                values.iter_mut().enumerate().for_each(|(at, value)| *value *= by(sides.channels(at).0));
            }
        }
        if moved < STILL {
            break;
        }
    }
    factors
}

fn pairs(prepared: &Prepared, edit: &Edit) -> Vec<Pair> {
    let links = prepared.links();
    let own: HashMap<usize, &Layer> = own_weights(prepared).into_iter().map(|layer| (layer.node, layer)).collect();
    own_weights(prepared).into_iter().filter_map(|layer| pair(prepared, edit, &links, &own, layer)).collect()
}

/// The pair that begins with `layer`.
fn pair(
    prepared: &Prepared,
    edit: &Edit,
    links: &Links<'_>,
    own: &HashMap<usize, &Layer>,
    layer: &Layer,
) -> Option<Pair> {
    let graph = prepared.model.graph();
    let (node, shape, _) = weights_of(edit, layer)?;
    let channels = *shape.get(channel_axis(node))?;
    if bias_name(node).is_some() && !is_by_channel(edit, node, 2, channels) {
        return None;
    }
    let convolution = layer.op == "Conv";
    let (mut value, mut added) = (layer.name.as_str(), Vec::new());
    loop {
        let index = only_reader(prepared, links, value)?;
        let reader = graph.node.get(index).filter(|node| node.is_standard())?;
        if let Some(second) = own.get(&index) {
            let (node, shape, _) = weights_of(edit, second)?;
            let fits = Sides::of(node, &shape).is_some_and(|sides| sides.inputs == channels);
            let reads = node.input.first().is_some_and(|name| name == value);
            return (fits && reads).then_some(Pair { first: layer.node, second: index, added });
        }
        match reader.op_type() {
            "Relu" | "LeakyRelu" => {}
            "PRelu" if reader.input.first().is_some_and(|name| name == value) => {}
            "MaxPool" | "AveragePool" | "GlobalAveragePool" if convolution && reader.output.len() == 1 => {}
            // One number for each channel is left of a picture; with more, the next layer has more inputs than channels.
            "Flatten" if convolution && reader.attr_int("axis").unwrap_or(1) == 1 => {}
            "Add" if !convolution => {
                let slot = usize::from(reader.input.first().is_some_and(|name| name == value));
                if !is_by_channel(edit, reader, slot, channels) {
                    return None;
                }
                added.push((index, slot));
            }
            _ => return None,
        }
        value = reader.output.first()?;
    }
}

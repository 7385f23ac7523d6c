//! Pictures that are sliced into their phases before a convolution, as YOLOv5 and YOLOX do (Focus): one convolution with a larger stride reads
//! the picture itself.
//!
//! With phases `X_(a,b)[i, j] = X[s i + a, s j + b]` side by side as channels, weight `W_(a,b)[k, l]` meets pixel `s (i + k) + a`: it is weight
//! `[s k + a, s l + b]` of a filter s times as high and wide, whose strides and paddings are s times those that were.

use std::collections::{HashMap, HashSet};

use edgeward_graph::{
    Links, Tensor,
    proto::{AttributeProto, NodeProto},
};

use crate::{CompressError, edit::Edit};

/// An end of a slice that is beyond any picture.
const BEYOND: i64 = i32::MAX as i64;

/// Lets convolutions read pictures instead of their phases. The slices stay where something else reads them. Errors: weights that cannot be
/// written.
pub(crate) fn unslice(edit: &mut Edit) -> Result<(), CompressError> {
    let links = Links::of(edit.model.graph());
    let nodes = 0..edit.model.graph().node.len();
    let found: Vec<(usize, Focus)> = nodes.filter_map(|index| Some((index, focus_of(edit, &links, index)?))).collect();
    for (index, focus) in found {
        let weight = edit.constant(&format!("{}.whole", focus.weight), &Tensor::from_vec(focus.shape, focus.values)?);
        edit.set_input(index, 0, &focus.picture);
        edit.set_input(index, 1, &weight);
        if let Some(node) = edit.model.graph_mut().node.get_mut(index) {
            node.attribute
                .retain(|attribute| !matches!(attribute.name(), "kernel_shape" | "strides" | "pads" | "auto_pad"));
            node.attribute.extend(focus.attributes);
        }
    }
    Ok(())
}

/// A convolution of phases, as one of the picture.
struct Focus {
    picture: String,
    weight: String,
    shape: Vec<usize>,
    values: Vec<f32>,
    attributes: [AttributeProto; 3],
}

fn focus_of(edit: &Edit, links: &Links<'_>, index: usize) -> Option<Focus> {
    let graph = edit.model.graph();
    let node = graph.node.get(index).filter(|node| node.is_standard() && node.op_type() == "Conv")?;
    let side_by_side = node.input.first()?;
    let concat = graph.node.get(links.producer(side_by_side)?)?;
    let at_channels = concat.attr_int("axis").is_some_and(|axis| axis == 1 || axis == -3);
    let alone = links.consumers(side_by_side) == [index] && graph.output.iter().all(|o| o.name() != side_by_side);
    if !(concat.is_standard() && concat.op_type() == "Concat" && at_channels && alone && is_plain(node)) {
        return None;
    }
    let phases: Vec<Phase<'_>> = concat.input.iter().map(|name| phase(edit, links, name)).collect::<Option<_>>()?;
    let &Phase { picture, step, .. } = phases.first()?;
    let distinct: HashSet<[usize; 2]> = phases.iter().map(|phase| phase.at).collect();
    let alike = phases.iter().all(|phase| phase.picture == picture && phase.step == step);
    if !alike || distinct.len() != phases.len() || phases.len() != step.checked_mul(step)? {
        return None;
    }
    let name = node.input.get(1)?;
    let (shape, values) = edit.floats(name)?;
    let &[filters, seen, height, width] = shape.as_slice() else { return None };
    let channels = seen.checked_div(phases.len()).filter(|channels| channels * phases.len() == seen)?;
    let whole = [filters, channels, height.checked_mul(step)?, width.checked_mul(step)?];
    let mut spread = vec![0f32; values.len()];
    for (at, value) in values.iter().enumerate() {
        let (column, row) = (at % width, at / width % height);
        let (input, filter) = (at / (width * height) % seen, at / (width * height * seen));
        let [y, x] = phases.get(input / channels)?.at;
        let place = ((filter * channels + input % channels) * whole[2] + row * step + y) * whole[3] + column * step + x;
        *spread.get_mut(place)? = *value;
    }
    let times = |name: &str, otherwise: usize, count: usize| -> Option<AttributeProto> {
        let given = node.attr_ints(name).map_or_else(|| vec![otherwise as i64; count], <[i64]>::to_vec);
        let step = i64::try_from(step).ok()?;
        Some(AttributeProto::of_ints(
            name,
            given.iter().map(|value| value.checked_mul(step)).collect::<Option<Vec<_>>>()?,
        ))
    };
    let kernel = AttributeProto::of_ints("kernel_shape", [whole[2] as i64, whole[3] as i64]);
    Some(Focus {
        picture: picture.to_owned(),
        weight: name.clone(),
        shape: whole.to_vec(),
        values: spread,
        attributes: [kernel, times("strides", 1, 2)?, times("pads", 0, 4)?],
    })
}

/// True for a convolution of all channels, without gaps, whose paddings are given.
fn is_plain(node: &NodeProto) -> bool {
    node.attr_int("group").unwrap_or(1) == 1
        && node.attr_ints("dilations").is_none_or(|gaps| gaps.iter().all(|gap| *gap == 1))
        && node.attr_text("auto_pad").is_none_or(|how| how == "NOTSET")
}

/// Every `step`-th row and column of a picture, from `at` on.
struct Phase<'a> {
    picture: &'a str,
    step: usize,
    at: [usize; 2],
}

fn phase<'a>(edit: &'a Edit, links: &Links<'_>, name: &'a str) -> Option<Phase<'a>> {
    let (mut picture, mut found) = (name, HashMap::new());
    while found.len() < 2 {
        let node = edit.node(links.producer(picture)?)?;
        if !node.is_standard() || node.op_type() != "Slice" {
            return None;
        }
        let numbers = |slot: usize| Some(edit.value(node.input.get(slot)?)?.values::<i64>().ok()?.into_owned());
        let (starts, ends, axes, steps) = (numbers(1)?, numbers(2)?, numbers(3)?, numbers(4)?);
        for (((start, end), axis), step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
            let axis = if *axis < 0 { axis + 4 } else { *axis };
            let from = usize::try_from(*start).ok()?;
            let step = usize::try_from(*step).ok().filter(|step| (2..=4).contains(step) && from < *step)?;
            if !matches!(axis, 2 | 3) || *end < BEYOND || found.insert(axis, (from, step)).is_some() {
                return None;
            }
        }
        picture = node.input.first()?;
    }
    let (&(y, rows), &(x, columns)) = (found.get(&2)?, found.get(&3)?);
    (rows == columns).then_some(Phase { picture, step: rows, at: [y, x] })
}

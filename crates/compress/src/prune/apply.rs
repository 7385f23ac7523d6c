//! Takes units out of a graph: initialisers lose rows, and constants that tell sizes tell the new ones.

use std::collections::{BTreeMap, HashSet};

use bytes::BytesMut;
use edgeward_graph::{
    DataType, Dimension, Inferred, Model, Tensor, infer,
    proto::{AttributeProto, NodeProto},
    tensor_proto,
};

use super::{
    Plan, Removal,
    ties::{Axis, Label},
};
use crate::{
    CompressError,
    edit::{Edit, finished},
};

/// `model` without the units of `removal`; `plan` is the model's own. Errors: a graph that does not come out as it should,
/// which is then not what the plan took it for.
pub fn apply(model: &Model, plan: &Plan, removal: &Removal) -> Result<Model, CompressError> {
    let units = plan.groups.iter().zip(&removal.units);
    let labels = units.flat_map(|(group, units)| units.iter().filter_map(|&unit| group.units.get(unit)));
    let cut = Cut { plan, gone: labels.map(|unit| unit.label).collect() };
    let mut model = model.clone();
    cut.initialisers(&mut model)?;
    let mut edit = Edit::new(model);
    for index in 0..edit.model.graph().node.len() {
        cut.node(&mut edit, index)?;
    }
    let model = finished(edit.model)?;
    cut.agrees(&infer(&model, &BTreeMap::new())?)?;
    Ok(model)
}

struct Cut<'p> {
    plan: &'p Plan,
    gone: HashSet<Label>,
}

impl Cut<'_> {
    fn axes(&self, name: &str) -> &[Axis] {
        self.plan.axes.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// How many of these stay.
    fn count(&self, labels: &[Label]) -> usize {
        labels.iter().filter(|label| !self.gone.contains(label)).count()
    }

    /// Indices of an axis that stay; none where all do.
    fn kept(&self, axis: &Axis) -> Option<Vec<usize>> {
        let Axis::Channels(labels) = axis else { return None };
        let kept: Vec<usize> =
            labels.iter().enumerate().filter(|(_, label)| !self.gone.contains(label)).map(|(at, _)| at).collect();
        (kept.len() < labels.len()).then_some(kept)
    }

    fn initialisers(&self, model: &mut Model) -> Result<(), CompressError> {
        let mut changed = Vec::new();
        for (index, proto) in model.graph().initializer.iter().enumerate() {
            let cuts = self.axes(proto.name()).iter().enumerate().filter_map(|(at, axis)| Some((at, self.kept(axis)?)));
            let mut tensor: Option<Tensor> = None;
            for (axis, kept) in cuts {
                let whole = tensor.take().map_or_else(|| model.tensor(proto), Ok)?;
                tensor = Some(picked(&whole, axis, &kept)?);
            }
            changed.extend(tensor.map(|tensor| (index, tensor_proto(proto.name(), &tensor))));
        }
        for (index, tensor) in changed {
            if let Some(place) = model.graph_mut().initializer.get_mut(index) {
                *place = tensor;
            }
        }
        Ok(())
    }

    fn node(&self, edit: &mut Edit, index: usize) -> Result<(), CompressError> {
        let Some(node) = edit.node(index).filter(|node| node.is_standard()).cloned() else { return Ok(()) };
        match node.op_type() {
            "Conv" | "ConvTranspose" => self.groups(edit, index, &node),
            "Reshape" => self.reshape(edit, index, &node)?,
            "Split" => self.split(edit, index, &node)?,
            "Slice" => self.slice(edit, index, &node)?,
            _ => {}
        }
        Ok(())
    }

    /// A depthwise convolution has as many groups as channels.
    fn groups(&self, edit: &mut Edit, index: usize, node: &NodeProto) {
        let groups = node.attr_int("group").unwrap_or(1);
        let input = node.input.first().map(|name| self.axes(name)).unwrap_or_default();
        let Some(Axis::Channels(labels)) = input.get(1) else { return };
        if groups == 1 || groups != labels.len() as i64 {
            return;
        }
        let kept = self.count(labels);
        if let Some(node) = edit.model.graph_mut().node.get_mut(index) {
            node.attribute.retain(|attribute| attribute.name() != "group");
            node.attribute.push(AttributeProto::of_int("group", kept as i64));
        }
    }

    fn reshape(&self, edit: &mut Edit, index: usize, node: &NodeProto) -> Result<(), CompressError> {
        let output = node.output.first().map(|name| self.axes(name)).unwrap_or_default();
        let Some(told) = self.plan.shapes.get(&index) else { return Ok(()) };
        if output.iter().all(|axis| self.kept(axis).is_none()) {
            return Ok(());
        }
        let size = |(at, &told): (usize, &i64)| match output.get(at) {
            Some(Axis::Channels(labels)) if told >= 0 => self.count(labels) as i64,
            _ => told,
        };
        let shape: Vec<i64> = told.iter().enumerate().map(size).collect();
        list(edit, (index, 1), "shape", shape)
    }

    fn split(&self, edit: &mut Edit, index: usize, node: &NodeProto) -> Result<(), CompressError> {
        let along = node.attr_int("axis").unwrap_or(0);
        let mut sizes = Vec::new();
        for output in &node.output {
            let axes = self.axes(output);
            let at = if along < 0 { along + axes.len() as i64 } else { along };
            let Some(Axis::Channels(labels)) = usize::try_from(at).ok().and_then(|at| axes.get(at)) else {
                return Ok(());
            };
            sizes.push(self.count(labels) as i64);
        }
        if let Some(node) = edit.model.graph_mut().node.get_mut(index) {
            node.attribute.retain(|attribute| attribute.name() != "num_outputs");
        }
        list(edit, (index, 1), "split", sizes)
    }

    /// Where a Slice begins and ends, by the channels that are left before.
    fn slice(&self, edit: &mut Edit, index: usize, node: &NodeProto) -> Result<(), CompressError> {
        let Some(input) = node.input.first() else { return Ok(()) };
        let axes = self.axes(input);
        let numbers = |slot: usize| {
            let value = node.input.get(slot).filter(|name| !name.is_empty()).and_then(|name| edit.value(name))?;
            match value.dtype() {
                DataType::Int32 => Some(value.values::<i32>().ok()?.iter().map(|&v| i64::from(v)).collect()),
                _ => value.values::<i64>().ok().map(|v| v.into_owned()),
            }
        };
        let (Some(mut starts), Some(mut ends)): (Option<Vec<i64>>, Option<Vec<i64>>) = (numbers(1), numbers(2)) else {
            return Ok(());
        };
        let along = numbers(3).unwrap_or_else(|| (0..starts.len() as i64).collect());
        let mut changed = false;
        for ((start, end), at) in starts.iter_mut().zip(&mut ends).zip(&along) {
            let at = if *at < 0 { *at + axes.len() as i64 } else { *at };
            let axis = usize::try_from(at).ok().and_then(|at| axes.get(at));
            let Some(Axis::Channels(labels)) = axis.filter(|axis| self.kept(axis).is_some()) else { continue };
            let size = labels.len() as i64;
            let before = |place: i64| {
                let place = if place < 0 { place.saturating_add(size) } else { place }.clamp(0, size);
                let labels = labels.get(..usize::try_from(place).unwrap_or(0)).unwrap_or_default();
                self.count(labels) as i64
            };
            (*start, *end) = (before(*start), before(*end));
            changed = true;
        }
        if !changed {
            return Ok(());
        }
        // All of one type: those that stay could be of another.
        if let Some(steps) = numbers(4) {
            list(edit, (index, 4), "steps", steps)?;
        }
        list(edit, (index, 1), "starts", starts)?;
        list(edit, (index, 2), "ends", ends)?;
        if node.input.len() > 3 {
            list(edit, (index, 3), "axes", along)?;
        }
        Ok(())
    }

    /// Every value has the size that the plan says it has now.
    fn agrees(&self, now: &Inferred) -> Result<(), CompressError> {
        for (name, was) in self.plan.inferred.iter() {
            let (Some(before), Some(after)) = (&was.shape, now.of(name).shape) else { continue };
            let axes = self.axes(name);
            let expected = before.iter().enumerate().map(|(at, dim)| match (axes.get(at), dim) {
                (Some(Axis::Channels(labels)), Dimension::Fixed(_)) => Dimension::Fixed(self.count(labels)),
                _ => dim.clone(),
            });
            let both_known =
                |pair: &(Dimension, &Dimension)| matches!(pair, (Dimension::Fixed(_), Dimension::Fixed(_)));
            let differs = |(a, b): (Dimension, &Dimension)| a != *b;
            if before.len() != after.len() || expected.zip(&after).filter(both_known).any(differs) {
                let reason = format!("came out as {after:?}; it cannot be pruned around");
                return Err(CompressError::unsupported(format!("value `{name}`"), reason));
            }
        }
        Ok(())
    }
}

/// Points an input of a node to a list of its own.
fn list(edit: &mut Edit, (index, slot): (usize, usize), kind: &str, numbers: Vec<i64>) -> Result<(), CompressError> {
    let output = edit.node(index).and_then(|node| node.output.first()).cloned().unwrap_or_default();
    let name = edit.constant(&format!("{output}.{kind}"), &Tensor::from_vec([numbers.len()], numbers)?);
    edit.set_input(index, slot, &name);
    Ok(())
}

/// These indices of an axis of a tensor.
fn picked(tensor: &Tensor, axis: usize, kept: &[usize]) -> Result<Tensor, CompressError> {
    let mut shape = tensor.shape().to_vec();
    let size = shape.get(axis).copied().unwrap_or(1).max(1);
    let element = tensor.dtype().bits() / 8;
    let inner = shape.iter().skip(axis + 1).product::<usize>().max(1) * element;
    let raw = tensor.raw().cloned().unwrap_or_default();
    let mut bytes = BytesMut::with_capacity(raw.len() / size * kept.len());
    for outer in raw.chunks(size * inner) {
        kept.iter()
            .filter_map(|&at| outer.get(at * inner..(at + 1) * inner))
            .for_each(|row| bytes.extend_from_slice(row));
    }
    if let Some(size) = shape.get_mut(axis) {
        *size = kept.len();
    }
    Ok(Tensor::from_raw(tensor.dtype(), shape, bytes.freeze())?)
}

//! Factors of channels moved from one place of a graph to another: what a channel is divided by before, it is multiplied
//! by after, and the results stay.

use edgeward_graph::{Links, Tensor, proto::NodeProto};

use crate::{CompressError, Layer, Prepared, edit::Edit, fuse::channel_axis};

/// Which channel of its input and of its output each weight of a layer belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sides {
    /// Channels that go in.
    pub inputs: usize,
    /// Channels that come out.
    pub outputs: usize,
    /// Input channels that one weight row sees.
    seen: usize,
    /// Numbers of a window.
    inner: usize,
    groups: usize,
    by_output: bool,
}

impl Sides {
    pub fn of(node: &NodeProto, shape: &[usize]) -> Option<Self> {
        let (&rows, &columns) = (shape.first()?, shape.get(1)?);
        if node.op_type() != "Conv" {
            let by_output = channel_axis(node) == 0;
            let (outputs, inputs) = if by_output { (rows, columns) } else { (columns, rows) };
            return Some(Self { inputs, outputs, seen: inputs, inner: 1, groups: 1, by_output });
        }
        let groups = usize::try_from(node.attr_int("group").unwrap_or(1)).ok().filter(|groups| *groups > 0)?;
        let inner = shape.iter().skip(2).product::<usize>().max(1);
        let whole = rows.is_multiple_of(groups) && columns > 0;
        let inputs = columns.checked_mul(groups)?;
        whole.then_some(Self { inputs, outputs: rows, seen: columns, inner, groups, by_output: true })
    }

    /// Input and output channel of weight `at`.
    pub fn channels(&self, at: usize) -> (usize, usize) {
        if !self.by_output {
            return (at / self.outputs.max(1), at % self.outputs.max(1));
        }
        let (row, column) = (at / self.inner / self.seen.max(1), at / self.inner % self.seen.max(1));
        (row / (self.outputs / self.groups).max(1) * self.seen + column, row)
    }

    /// The greatest size of the weights of each input channel, and of each output channel.
    pub fn most(&self, values: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (mut inputs, mut outputs) = (vec![0f32; self.inputs], vec![0f32; self.outputs]);
        for (at, value) in values.iter().enumerate() {
            let (input, output) = self.channels(at);
            for most in [inputs.get_mut(input), outputs.get_mut(output)].into_iter().flatten() {
                *most = most.max(value.abs());
            }
        }
        (inputs, outputs)
    }
}

/// A layer's node, the shape of its weights and the weights.
pub(crate) fn weights_of<'a>(edit: &'a Edit, layer: &Layer) -> Option<(&'a NodeProto, Vec<usize>, Vec<f32>)> {
    let node = edit.node(layer.node)?;
    let (shape, values) = edit.floats(node.input.get(1)?)?;
    Some((node, shape, values))
}

/// True where input `slot` of a node is a constant with one number for each of `channels`, along the last axis.
pub(crate) fn is_by_channel(edit: &Edit, node: &NodeProto, slot: usize, channels: usize) -> bool {
    let constant = node.input.get(slot).and_then(|name| edit.floats(name));
    constant.is_some_and(|(shape, values)| values.len() == channels && shape.last() == Some(&channels))
}

/// Gives input `slot` of node `index` a constant of its own: what it reads now, number `at` times `factor(at)`.
pub(crate) fn multiply(
    edit: &mut Edit,
    (index, slot): (usize, usize),
    factor: impl Fn(usize) -> f32,
) -> Result<(), CompressError> {
    let Some(name) = edit.node(index).and_then(|node| node.input.get(slot)).cloned() else { return Ok(()) };
    let Some((shape, values)) = edit.floats(&name) else { return Ok(()) };
    let values = values.iter().enumerate().map(|(at, value)| value * factor(at)).collect::<Vec<f32>>();
    let own = edit.constant(&format!("{name}.rescaled"), &Tensor::from_vec(shape, values)?);
    edit.set_input(index, slot, &own);
    Ok(())
}

/// A factor that can be multiplied and divided by, else 1.
pub(crate) fn possible(factor: f32) -> f32 {
    if factor.is_normal() && (1.0 / factor).is_normal() { factor } else { 1.0 }
}

/// The node that alone reads `value`, which is no result.
pub(crate) fn only_reader(prepared: &Prepared, links: &Links<'_>, value: &str) -> Option<usize> {
    let &[user] = links.consumers(value) else { return None };
    let node = prepared.model.graph().node.get(user)?;
    let once = node.input.iter().filter(|name| *name == value).count() == 1;
    (once && prepared.model.graph().output.iter().all(|output| output.name() != value)).then_some(user)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::node;

    #[test]
    fn weights_know_their_channels() {
        let check = |op: &str, attributes, shape: &[usize]| {
            let sides = Sides::of(&node(op, String::new(), &[], &[], attributes), shape).unwrap();
            (0..shape.iter().product()).map(|at| sides.channels(at)).collect::<Vec<_>>()
        };
        assert_eq!(check("MatMul", vec![], &[2, 2]), [(0, 0), (0, 1), (1, 0), (1, 1)]);
        assert_eq!(check("Conv", vec![], &[2, 1, 2]), [(0, 0), (0, 0), (0, 1), (0, 1)]);
        let group = edgeward_graph::proto::AttributeProto::of_int("group", 2);
        assert_eq!(check("Conv", vec![group], &[4, 1, 1]), [(0, 0), (0, 1), (1, 2), (1, 3)]);
    }
}

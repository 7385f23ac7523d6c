//! What rounded weights add to a layer's results on average: `Σ (ŵ − w) · E[x]` by output channel (Nagel et al. 2019,
//! "Data-Free Quantization through Weight Equalization and Bias Correction", section 4.2).

use edgeward_graph::proto::NodeProto;

use crate::fuse::channel_axis;

/// The mean error of each output channel; none where shapes do not fit. Padding counts as if it were not there.
pub(crate) fn mean_error(
    node: &NodeProto,
    shape: &[usize],
    before: &[f32],
    after: &[f32],
    means: &[f64],
) -> Option<Vec<f64>> {
    let axis = channel_axis(node);
    let (&rows, &columns) = (shape.first()?, shape.get(1)?);
    let inner = shape.iter().skip(2).product::<usize>().max(1);
    let channels = *shape.get(axis)?;
    let groups = if node.op_type() == "Conv" { usize::try_from(node.attr_int("group").unwrap_or(1)).ok()? } else { 1 };
    let inputs = if axis == 0 { columns.checked_mul(groups)? } else { rows };
    if means.len() != inputs || groups == 0 || !channels.is_multiple_of(groups) {
        return None;
    }
    let mut errors = vec![0.0; channels];
    let whole = columns.max(1) * inner;
    for (row, (before, after)) in before.chunks(whole).zip(after.chunks(whole)).enumerate() {
        let first = if axis == 0 { row / (channels / groups) * columns } else { 0 };
        for (column, (before, after)) in before.chunks(inner).zip(after.chunks(inner)).enumerate() {
            let (output, input) = if axis == 0 { (row, first + column) } else { (column, row) };
            if let (Some(error), Some(mean)) = (errors.get_mut(output), means.get(input)) {
                let sum: f64 = before.iter().zip(after).map(|(a, b)| f64::from(*b) - f64::from(*a)).sum();
                *error += sum * mean;
            }
        }
    }
    Some(errors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::node;

    #[test]
    fn errors_follow_rows_columns_and_groups() {
        let check = |op: &str, attributes, shape: &[usize], means: &[f64]| {
            let node = node(op, String::new(), &[], &[], attributes);
            let before: Vec<f32> = vec![0.0; shape.iter().product()];
            let after: Vec<f32> = (0..before.len()).map(|i| i as f32).collect();
            mean_error(&node, shape, &before, &after, means)
        };
        assert_eq!(check("MatMul", vec![], &[2, 3], &[1.0, 10.0]).unwrap(), [30.0, 41.0, 52.0]);
        assert_eq!(check("Conv", vec![], &[1, 2, 2], &[1.0, 10.0]).unwrap(), [51.0]);
        let group = edgeward_graph::proto::AttributeProto::of_int("group", 2);
        assert_eq!(check("Conv", vec![group], &[2, 1, 2], &[1.0, 10.0]).unwrap(), [1.0, 50.0]);
        assert_eq!(check("Conv", vec![], &[2, 1, 2], &[1.0, 10.0]), None);
    }
}

//! Whether numbers are those of the form that shapes tell. Shapes alone do not say whether boxes are decoded, or whether scores are.

use std::ops::RangeInclusive;

use edgeward_graph::Tensor;

use super::{Layout, Run, shapes};
use crate::{CompressError, compare::floats};

/// Corners up to this are parts of the side. A box may reach a little beyond the picture, pixels are larger.
const PARTS_MAX: f64 = 2.0;
/// How far from 1 the scores of a cell may add up to and still be a softmax's: those of bytes miss it by a few hundredths. Sigmoids of all
/// cells do not come so near.
const SOFTMAX_ERROR: f64 = 0.1;
/// Scores, and what they may be beyond by rounding.
const SCORES: RangeInclusive<f64> = -0.001..=1.001;
/// A raw width or height is the logarithm of strides, and no picture is e^12 of them wide.
const LOGARITHM_MAX: f64 = 12.0;

/// With what only numbers tell; none where the run has no cells. Errors: boxes that are decoded, or are no corners.
pub(super) fn settled(layout: Layout, run: &Run<'_>) -> Result<Option<Layout>, CompressError> {
    match layout {
        Layout::Yolox { output, classes } => {
            offsets_are_raw(&values(run.outputs, output), 5 + classes, run)?;
            Ok(Some(layout))
        }
        Layout::Ssd { boxes, scores, classes, .. } => {
            let (corners, scores_of) = (values(run.outputs, boxes), values(run.outputs, scores));
            if corners.is_empty() {
                return Ok(None);
            }
            corners_are_in_order(&corners, run)?;
            let background = classes > 1 && sums_up(&scores_of, classes);
            let parts = corners.iter().filter(|corner| corner.is_finite()).all(|corner| corner.abs() <= PARTS_MAX);
            Ok(Some(Layout::Ssd { boxes, scores, classes, background, parts }))
        }
        Layout::Yolo { .. } | Layout::Found { .. } => Ok(Some(layout)),
    }
}

/// Scores beyond 0 and 1 are those of a graph without its last step, or of another form. All of them are looked at: suppression would leave
/// those out by which it shows.
pub(super) fn scores_are_parts(layout: Layout, run: &Run<'_>) -> Result<(), CompressError> {
    let scores = raw_scores(layout, run.outputs);
    let (least, greatest) = scores.iter().fold((0f64, 0f64), |(low, high), score| (low.min(*score), high.max(*score)));
    let Some(wrong) = [least, greatest].into_iter().find(|score| !SCORES.contains(score)) else { return Ok(()) };
    Err(CompressError::Data(format!(
        "as `{}` the outputs {} hold a score of {wrong:.3}; expected 0 to 1, as a softmax or sigmoid makes them, or name another form with \
         `--boxes`",
        layout.form().name(),
        shapes(run)
    )))
}

fn values(outputs: &[Tensor], at: usize) -> Vec<f64> {
    outputs.get(at).and_then(floats).unwrap_or_default()
}

/// Every score that is put out, whatever its box.
fn raw_scores(layout: Layout, outputs: &[Tensor]) -> Vec<f64> {
    match layout {
        Layout::Yolox { output, classes } => {
            let all = values(outputs, output);
            all.chunks_exact(5 + classes).flat_map(|cell| cell.iter().skip(4)).copied().collect()
        }
        Layout::Yolo { output, .. } => {
            let all = values(outputs, output);
            let Some(&[_, lines, cells]) = outputs.get(output).map(Tensor::shape) else { return Vec::new() };
            all.chunks_exact((lines * cells).max(1)).flat_map(|image| image.iter().skip(4 * cells)).copied().collect()
        }
        Layout::Ssd { scores, .. } | Layout::Found { scores, .. } => values(outputs, scores),
    }
}

/// Read as logarithms, sizes in pixels would be boxes beyond any picture, which nobody would notice: every box of a variant would be as wrong.
fn offsets_are_raw(all: &[f64], cell: usize, run: &Run<'_>) -> Result<(), CompressError> {
    let sizes = all.chunks_exact(cell).flat_map(|cell| cell.iter().skip(2).take(2));
    let Some(size) = sizes.copied().find(|size| size.is_finite() && *size > LOGARITHM_MAX) else { return Ok(()) };
    Err(CompressError::Data(format!(
        "as `yolox` the outputs {} hold a width or height of {size:.1}, which is no raw one, a logarithm: boxes are decoded within the graph; \
         export it without decoding them, or name another form with `--boxes`",
        shapes(run)
    )))
}

/// Centres with sizes, and raw offsets, are in the order of corners here and there only.
fn corners_are_in_order(corners: &[f64], run: &Run<'_>) -> Result<(), CompressError> {
    let (boxes, _) = corners.as_chunks::<4>();
    let ordered = boxes.iter().filter(|[left, top, right, bottom]| left <= right && top <= bottom).count();
    if 2 * ordered >= boxes.len() {
        return Ok(());
    }
    Err(CompressError::Data(format!(
        "as `ssd` the outputs {} hold {} boxes of which {ordered} are corners in order; expected left, top, right, bottom: export it with boxes \
         decoded to corners (centres with sizes, as DETR has them, and raw offsets are not read), or name another form with `--boxes`",
        shapes(run),
        boxes.len()
    )))
}

/// Whether all cells are a softmax; those that are no numbers say nothing.
fn sums_up(scores: &[f64], classes: usize) -> bool {
    let sums = scores.chunks_exact(classes).map(|cell| cell.iter().sum::<f64>());
    let mut sums = sums.filter(|sum| sum.is_finite()).peekable();
    sums.peek().is_some() && sums.all(|sum| (sum - 1.0).abs() < SOFTMAX_ERROR)
}

//! What a detector puts out, read as boxes: which of the usual forms it is, and the boxes in pixels of the model's input.
//!
//! The form is told from the original's first run and stays for its variants, so that a variant with damaged outputs is judged by the same
//! measure and not by another one.

use edgeward_graph::{DataType, Tensor};

use crate::{
    CompressError,
    boxes::{Detection, Rect, Suppression},
    compare::floats,
    observe::Inputs,
};

/// What is judged: COCO's habit of counting boxes from a score of almost nothing, at most 100 of an image.
const JUDGED: Suppression = Suppression { score_min: 0.001, overlap_max: 0.45, kept_max: 100 };
/// Sides of a cell in pixels.
const STRIDES: [usize; 3] = [8, 16, 32];
/// Corners up to this are parts of the side. A box may reach a little beyond the picture, pixels are larger.
const PARTS_MAX: f64 = 2.0;
/// How far from 1 the scores of a cell may add up to and still be a softmax's.
const SOFTMAX_ERROR: f64 = 1e-3;
/// What a score may be beyond 1 by rounding.
const SCORE_MAX: f64 = 1.001;

/// How boxes are put out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoxForm {
    /// One output `[n, cells, 5 + classes]` of raw offsets for strides of 8, 16 and 32: centre and size, objectness, classes. A cell's score
    /// is objectness times its best class (Ge et al. 2021, YOLOX).
    Yolox,
    /// One output `[n, 4 + classes, cells]`: centre and size in pixels, a score for each class (Ultralytics from version 8 on).
    Yolo,
    /// Boxes `[n, cells, 4]` as corners, in pixels or as parts of the side, and scores `[n, cells, classes]`. Class 0 is the background where
    /// a cell's scores add up to 1 (Liu et al. 2016, SSD).
    Ssd,
    /// Boxes `[k, 4]` as corners in pixels, labels `[k]` as integers, scores `[k]`, of one image, after suppression within the graph (torchvision).
    Found,
}

impl BoxForm {
    /// All of them, in the order in which they are looked for.
    pub const ALL: [Self; 4] = [Self::Found, Self::Ssd, Self::Yolox, Self::Yolo];

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Yolox => "yolox",
            Self::Yolo => "yolo",
            Self::Ssd => "ssd",
            Self::Found => "found",
        }
    }

    /// Outputs that it has.
    pub fn outputs(self) -> &'static str {
        match self {
            Self::Yolox => "one output [n, cells, 5 + classes], a cell for each 8, 16 and 32 pixels",
            Self::Yolo => "one output [n, 4 + classes, cells]",
            Self::Ssd => "boxes [n, cells, 4] and scores [n, cells, classes]",
            Self::Found => "boxes [k, 4], integer labels [k] and scores [k]",
        }
    }
}

/// Reads a detector's outputs.
#[derive(Clone, Debug)]
pub struct Detector {
    layout: Layout,
    /// Width and height of the input.
    side: (usize, usize),
}

/// A form with the numbers of its outputs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    Yolox { output: usize, classes: usize },
    Yolo { output: usize, classes: usize },
    Ssd { boxes: usize, scores: usize, classes: usize, background: bool, parts: bool },
    Found { boxes: usize, labels: usize, scores: usize },
}

/// A run of a model.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// Names of the outputs.
    pub names: &'a [String],
    /// Outputs.
    pub outputs: &'a [Tensor],
    /// What they were made of.
    pub inputs: &'a Inputs,
}

impl Detector {
    /// For outputs as those of `run`, in this form, or in the one that fits. Errors: no input is a picture, no form fits, the named one does
    /// not, or scores are not within 0 to 1.
    pub fn find(form: Option<BoxForm>, run: &Run<'_>) -> Result<Self, CompressError> {
        let pictures = run.inputs.iter().filter_map(|(_, tensor)| side(tensor.shape())).next();
        let side = pictures.ok_or_else(|| {
            let text = "boxes are told of pictures, and no input is one; expected [n, channels, height, width]";
            CompressError::Data(text.to_owned())
        })?;
        let layout = match form {
            Some(form) => Layout::of(form, run, side).ok_or_else(|| unfit(form, run, side))?,
            None => BoxForm::ALL
                .into_iter()
                .filter(|form| *form != BoxForm::Yolo || yolo_cells(run, side))
                .find_map(|form| Layout::of(form, run, side))
                .ok_or_else(|| unknown(run))?,
        };
        let detector = Self { layout: layout.settled(run.outputs), side };
        detector.check_scores(run)?;
        Ok(detector)
    }

    /// The form.
    pub fn form(&self) -> BoxForm {
        match self.layout {
            Layout::Yolox { .. } => BoxForm::Yolox,
            Layout::Yolo { .. } => BoxForm::Yolo,
            Layout::Ssd { .. } => BoxForm::Ssd,
            Layout::Found { .. } => BoxForm::Found,
        }
    }

    /// Classes that it tells apart, without a background; none where labels are whatever the graph says.
    pub fn classes(&self) -> Option<usize> {
        match self.layout {
            Layout::Yolox { classes, .. } | Layout::Yolo { classes, .. } => Some(classes),
            Layout::Ssd { classes, background, .. } => Some(classes - usize::from(background)),
            Layout::Found { .. } => None,
        }
    }

    /// Images of a run of `rows` examples: those, or in the form `found` one, whose input may have no batch.
    pub fn images(&self, rows: usize) -> usize {
        if self.form() == BoxForm::Found { 1 } else { rows }
    }

    /// Boxes of each image of a run of `rows` examples, the best 100 from a score of 0.001 on, none that a better one of its class overlaps by
    /// more than 0.45. What is no rectangle is left out. Errors: outputs of other shapes or types than the form has.
    pub fn detections(&self, outputs: &[Tensor], rows: usize) -> Result<Vec<Vec<Detection>>, CompressError> {
        match self.layout {
            Layout::Yolox { output, classes } => {
                let cells = cells(self.side, &STRIDES);
                let values = numbers(outputs, output, &[rows, cells, 5 + classes])?;
                Ok(each(&values, rows).map(|image| JUDGED.thin(yolox(image, classes, self.side))).collect())
            }
            Layout::Yolo { output, classes } => {
                let cells = outputs.get(output).and_then(|tensor| tensor.shape().get(2).copied()).unwrap_or(0);
                let values = numbers(outputs, output, &[rows, 4 + classes, cells])?;
                Ok(each(&values, rows).map(|image| JUDGED.thin(yolo(image, cells))).collect())
            }
            Layout::Ssd { boxes, scores, classes, background, parts } => {
                let cells = outputs.get(boxes).and_then(|tensor| tensor.shape().get(1).copied()).unwrap_or(0);
                let corners = numbers(outputs, boxes, &[rows, cells, 4])?;
                let scores = numbers(outputs, scores, &[rows, cells, classes])?;
                let (width, height) = if parts { self.side } else { (1, 1) };
                let factors = [width as f64, height as f64, width as f64, height as f64];
                let image =
                    |(boxes, scores)| JUDGED.thin(ssd(boxes, scores, classes, usize::from(background), factors));
                Ok(each(&corners, rows).zip(each(&scores, rows)).map(image).collect())
            }
            Layout::Found { boxes, labels, scores } => Ok(vec![JUDGED.limit(found(outputs, boxes, labels, scores)?)]),
        }
    }

    /// Scores beyond 1 are those of a graph without its last step, or of another form.
    fn check_scores(&self, run: &Run<'_>) -> Result<(), CompressError> {
        let rows = run.outputs.first().and_then(|tensor| tensor.shape().first().copied()).unwrap_or(1);
        let all = self.detections(run.outputs, rows)?;
        let best = all.iter().flatten().map(|one| one.score).fold(0.0, f64::max);
        if best <= SCORE_MAX {
            return Ok(());
        }
        Err(CompressError::Data(format!(
            "as `{}` the outputs {} hold a score of {best:.3}; expected 0 to 1, as a softmax or sigmoid makes them, or name another form with \
             `--boxes`",
            self.form().name(),
            shapes(run)
        )))
    }
}

impl Layout {
    /// Where the outputs of `run` have this form's shapes.
    fn of(form: BoxForm, run: &Run<'_>, side: (usize, usize)) -> Option<Self> {
        match form {
            BoxForm::Yolox | BoxForm::Yolo => {
                let [tensor] = run.outputs else { return None };
                let &[_, first, second] = tensor.shape() else { return None };
                floats(tensor)?;
                if form == BoxForm::Yolo {
                    return Some(Self::Yolo {
                        output: 0,
                        classes: first.checked_sub(4).filter(|classes| *classes > 0)?,
                    });
                }
                let classes = second.checked_sub(5).filter(|classes| *classes > 0)?;
                (first == cells(side, &STRIDES)).then_some(Self::Yolox { output: 0, classes })
            }
            BoxForm::Ssd => {
                let [a, b] = run.outputs else { return None };
                let named = |at: usize| {
                    run.names.get(at).is_some_and(|name| {
                        let name = name.to_lowercase();
                        name.contains("box") || name.contains("loc")
                    })
                };
                let (boxes, scores) = match (corners(a), corners(b)) {
                    (true, true) if named(0) != named(1) => {
                        if named(0) {
                            (0, 1)
                        } else {
                            (1, 0)
                        }
                    }
                    (true, false) => (0, 1),
                    (false, true) => (1, 0),
                    _ => return None,
                };
                let (shape, cells) = (run.outputs.get(scores)?.shape(), run.outputs.get(boxes)?.shape());
                let &[n, count, classes] = shape else { return None };
                floats(a).and(floats(b))?;
                let same = cells.first() == Some(&n) && cells.get(1) == Some(&count) && classes > 0;
                same.then_some(Self::Ssd { boxes, scores, classes, background: false, parts: false })
            }
            BoxForm::Found => {
                let all = || run.outputs.iter().enumerate();
                let named = |name: &str| run.names.iter().position(|one| one.eq_ignore_ascii_case(name));
                let only = |fits: &dyn Fn(&Tensor) -> bool| {
                    let mut fitting = all().filter(|(_, tensor)| fits(tensor)).map(|(at, _)| at);
                    fitting.next().filter(|_| fitting.next().is_none())
                };
                let [is_boxes, is_labels, is_scores]: [&dyn Fn(&Tensor) -> bool; 3] = [
                    &|t| t.shape().len() == 2 && t.shape().get(1) == Some(&4) && !whole(t),
                    &|t| t.shape().len() == 1 && whole(t),
                    &|t| t.shape().len() == 1 && !whole(t),
                ];
                let role = |name: &str, fits: &dyn Fn(&Tensor) -> bool| {
                    let at = named(name).or_else(|| only(fits))?;
                    run.outputs.get(at).filter(|tensor| fits(tensor)).map(|_| at)
                };
                let (boxes, labels) = (role("boxes", is_boxes)?, role("labels", is_labels)?);
                Some(Self::Found { boxes, labels, scores: role("scores", is_scores)? })
            }
        }
    }

    /// With what only the numbers tell: whether class 0 is the background and whether corners are parts of the side.
    fn settled(self, outputs: &[Tensor]) -> Self {
        let Self::Ssd { boxes, scores, classes, .. } = self else { return self };
        let values = |at: usize| outputs.get(at).and_then(floats).unwrap_or_default();
        let (corners, scores_of) = (values(boxes), values(scores));
        let sums_up = |cell: &[f64]| (cell.iter().sum::<f64>() - 1.0).abs() < SOFTMAX_ERROR;
        let background = classes > 1 && scores_of.chunks_exact(classes).all(sums_up);
        let parts = corners.iter().all(|corner| corner.abs() <= PARTS_MAX);
        Self::Ssd { boxes, scores, classes, background, parts }
    }
}

/// Width and height of a picture, its channels first or last.
fn side(shape: &[usize]) -> Option<(usize, usize)> {
    let picture = match shape {
        [_, picture @ ..] if picture.len() == 3 => picture,
        picture => picture,
    };
    let &[a, b, c] = picture else { return None };
    let channels = |size: usize| (1..=4).contains(&size);
    match (channels(a), channels(c)) {
        (true, _) => Some((c, b)),
        (false, true) => Some((b, a)),
        _ => None,
    }
}

/// Cells of all strides.
fn cells((width, height): (usize, usize), strides: &[usize]) -> usize {
    strides.iter().map(|stride| (width / stride).saturating_mul(height / stride)).sum()
}

/// Whether an output of the form `yolo` has as many cells as a detector of this input would: any `[n, a, b]` has its shape.
fn yolo_cells(run: &Run<'_>, side: (usize, usize)) -> bool {
    let known: [&[usize]; 3] = [&STRIDES, &[8, 16, 32, 64], &[4, 8, 16, 32]];
    let count = run.outputs.first().and_then(|tensor| tensor.shape().get(2).copied());
    known.iter().any(|strides| count == Some(cells(side, strides)))
}

fn corners(tensor: &Tensor) -> bool {
    matches!(tensor.shape(), [_, _, 4])
}

fn whole(tensor: &Tensor) -> bool {
    matches!(tensor.dtype(), DataType::Int64 | DataType::Int32)
}

fn shapes(run: &Run<'_>) -> String {
    let all = run.names.iter().zip(run.outputs);
    all.map(|(name, tensor)| format!("`{name}` {:?}", tensor.shape())).collect::<Vec<_>>().join(", ")
}

fn unfit(form: BoxForm, run: &Run<'_>, side: (usize, usize)) -> CompressError {
    let cells = match form {
        BoxForm::Yolox => format!(", {} in all", cells(side, &STRIDES)),
        _ => String::new(),
    };
    let (name, expected) = (form.name(), form.outputs());
    CompressError::Data(format!(
        "`--boxes {name}` does not fit the outputs {}; expected {expected}{cells}",
        shapes(run)
    ))
}

fn unknown(run: &Run<'_>) -> CompressError {
    let forms = BoxForm::ALL.map(|form| format!("`{}` ({})", form.name(), form.outputs())).join(", ");
    CompressError::Data(format!(
        "the outputs {} are no boxes of a known form; there are {forms}; name one with `--boxes FORM`",
        shapes(run)
    ))
}

/// An output's numbers, where it has this shape.
fn numbers(outputs: &[Tensor], at: usize, shape: &[usize]) -> Result<Vec<f64>, CompressError> {
    let tensor = outputs.get(at).ok_or_else(|| CompressError::Data(format!("output {at} is missing")))?;
    if tensor.shape() != shape {
        let text = format!("output {at} has the shape {:?}, expected {shape:?}", tensor.shape());
        return Err(CompressError::Data(text));
    }
    floats(tensor).ok_or_else(|| CompressError::Data(format!("output {at} holds {}, expected floats", tensor.dtype())))
}

/// The numbers of each image.
fn each(values: &[f64], images: usize) -> impl Iterator<Item = &[f64]> {
    let width = values.len() / images.max(1);
    (0..images).map(move |image| values.get(image * width..(image + 1) * width).unwrap_or_default())
}

fn wanted(score: f64) -> bool {
    score >= JUDGED.score_min
}

/// The best class of each cell.
fn yolox(image: &[f64], classes: usize, (width, height): (usize, usize)) -> Vec<Detection> {
    let places = STRIDES.into_iter().flat_map(|stride| {
        let (columns, rows) = (width / stride, height / stride);
        (0..rows).flat_map(move |row| (0..columns).map(move |column| (column as f64, row as f64, stride as f64)))
    });
    let detection = |(cell, (column, row, stride)): (&[f64], (f64, f64, f64))| {
        let (&[x, y, width, height, objectness], scores) = cell.split_first_chunk::<5>()?;
        let best = |best: (usize, f64), (at, score): (usize, &f64)| if *score > best.1 { (at, *score) } else { best };
        let (class, score) = scores.iter().enumerate().fold((0, f64::NEG_INFINITY), best);
        let score = objectness * score;
        let sizes = [(x + column) * stride, (y + row) * stride, width.exp() * stride, height.exp() * stride];
        let rect = wanted(score).then(|| Rect::of_centre(sizes)).flatten()?;
        Some(Detection { rect, class, score })
    };
    image.chunks_exact(5 + classes).zip(places).filter_map(detection).collect()
}

/// Every class of each cell.
fn yolo(image: &[f64], cells: usize) -> Vec<Detection> {
    let mut lines = image.chunks_exact(cells.max(1));
    let mut side = || lines.next().unwrap_or_default();
    let (x, y, width, height) = (side(), side(), side(), side());
    let rect = |at: usize| Rect::of_centre([*x.get(at)?, *y.get(at)?, *width.get(at)?, *height.get(at)?]);
    let of_class = |(class, scores): (usize, &[f64])| -> Vec<Detection> {
        let high = scores.iter().enumerate().filter(|(_, score)| wanted(**score));
        high.filter_map(|(at, score)| Some(Detection { rect: rect(at)?, class, score: *score })).collect()
    };
    lines.enumerate().flat_map(of_class).collect()
}

/// Every class of each cell from class `first` on, which becomes class 0.
fn ssd(boxes: &[f64], scores: &[f64], classes: usize, first: usize, factors: [f64; 4]) -> Vec<Detection> {
    let (boxes, _) = boxes.as_chunks::<4>();
    let cells = boxes.iter().zip(scores.chunks_exact(classes.max(1)));
    let detections = |(corners, scores): (&[f64; 4], &[f64])| {
        let high = scores.iter().skip(first).copied().enumerate().filter(|(_, score)| wanted(*score));
        let mut scaled = *corners;
        scaled.iter_mut().zip(factors).for_each(|(corner, factor)| *corner *= factor);
        let rect = Rect::of_corners(scaled);
        high.filter_map(|(class, score)| Some(Detection { rect: rect?, class, score })).collect::<Vec<_>>()
    };
    cells.flat_map(detections).collect()
}

fn found(outputs: &[Tensor], boxes: usize, labels: usize, scores: usize) -> Result<Vec<Detection>, CompressError> {
    let missing = || CompressError::Data(format!("output {labels} is missing"));
    let labels_of = outputs.get(labels).ok_or_else(missing)?;
    let count = labels_of.len();
    let corners = numbers(outputs, boxes, &[count, 4])?;
    let scores = numbers(outputs, scores, &[count])?;
    let labels_of: Vec<i64> = match labels_of.dtype() {
        DataType::Int32 => labels_of.values::<i32>()?.iter().map(|label| i64::from(*label)).collect(),
        DataType::Int64 => labels_of.values::<i64>()?.to_vec(),
        other => return Err(CompressError::Data(format!("output {labels} holds {other}, expected integers"))),
    };
    let (corners, _) = corners.as_chunks::<4>();
    let all = corners.iter().zip(labels_of).zip(scores);
    let one = |((corners, label), score): ((&[f64; 4], i64), f64)| {
        Some(Detection { rect: Rect::of_corners(*corners)?, class: usize::try_from(label).ok()?, score })
    };
    Ok(all.filter_map(one).collect())
}

//! What a detector puts out, read as boxes: which of the usual forms it is, and the boxes in pixels of the model's input.
//!
//! The form is told from the original's first run and stays for its variants, so that a variant with damaged outputs is judged by the same
//! measure and not by another one.

mod sound;

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
    /// Whether a run had cells, whose numbers tell what shapes do not.
    settled: bool,
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
    /// not, or the numbers are none of its.
    pub fn find(form: Option<BoxForm>, run: &Run<'_>) -> Result<Self, CompressError> {
        let (_, side) = picture(run.inputs).ok_or_else(|| no_picture(run.inputs))?;
        let layout = match form {
            Some(form) => Layout::of(form, run, side).ok_or_else(|| unfit(form, run, side))?,
            None => BoxForm::ALL
                .into_iter()
                .filter(|form| *form != BoxForm::Yolo || yolo_cells(run, side))
                .find_map(|form| Layout::of(form, run, side))
                .ok_or_else(|| unknown(run))?,
        };
        let mut detector = Self { layout, side, settled: false };
        let images = pictures(run.inputs).unwrap_or(1);
        if detector.form() == BoxForm::Found && images > 1 {
            return Err(CompressError::Data(format!(
                "as `found` the outputs {} tell of one image in a run, and the model takes {images}; export it for one",
                shapes(run)
            )));
        }
        detector.check(run)?;
        Ok(detector)
    }

    /// Takes in a run of the original: the first one with cells settles what only numbers tell. Errors: numbers that are none of the form's.
    pub fn check(&mut self, run: &Run<'_>) -> Result<(), CompressError> {
        if let Some(layout) = (!self.settled).then(|| sound::settled(self.layout, run)).transpose()?.flatten() {
            (self.layout, self.settled) = (layout, true);
        }
        sound::scores_are_parts(self.layout, run)
    }

    /// The form.
    pub fn form(&self) -> BoxForm {
        self.layout.form()
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
}

impl Layout {
    fn form(self) -> BoxForm {
        match self {
            Self::Yolox { .. } => BoxForm::Yolox,
            Self::Yolo { .. } => BoxForm::Yolo,
            Self::Ssd { .. } => BoxForm::Ssd,
            Self::Found { .. } => BoxForm::Found,
        }
    }

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
                let named = |at: usize| run.names.get(at).is_some_and(|name| tells_boxes(name));
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
}

/// Whether a part of an output's name says that it holds boxes: `pred_boxes`, `loc`, `bbox_1`, but not `block_cls`.
fn tells_boxes(name: &str) -> bool {
    let name = name.to_lowercase();
    name.split(|c: char| !c.is_alphanumeric()).any(|part| {
        let part = part.trim_end_matches(|c: char| c.is_ascii_digit());
        matches!(part.strip_suffix('s').unwrap_or(part), "box" | "bbox" | "boxe" | "bboxe" | "loc" | "location")
    })
}

/// Pictures that the inputs of a run hold; one without a batch counts as one. None where no input is a picture.
pub fn pictures(inputs: &Inputs) -> Option<usize> {
    match picture(inputs)?.0 {
        &[images, _, _, _] => Some(images),
        _ => Some(1),
    }
}

/// Shape of the input that is a picture, with its width and height. One with a batch comes first: sequences have three dimensions as well.
fn picture(inputs: &Inputs) -> Option<(&[usize], (usize, usize))> {
    let shapes = || inputs.iter().map(|(_, tensor)| tensor.shape());
    let of_rank = |rank| shapes().filter(|shape| shape.len() == rank).find_map(|shape| Some((shape, side(shape)?)));
    of_rank(4).or_else(|| of_rank(3))
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

/// Whether both outputs could be the boxes of the form `ssd`, and their names do not tell.
fn undecided(run: &Run<'_>) -> bool {
    let named = run.names.iter().filter(|name| tells_boxes(name)).count();
    matches!(run.outputs, [a, b] if corners(a) && a.shape() == b.shape()) && named != 1
}

/// Names and shapes of the outputs, and the types of those that are not read.
fn shapes(run: &Run<'_>) -> String {
    let read = [DataType::Float32, DataType::Float64, DataType::Float16, DataType::Int64, DataType::Int32];
    let one = |(name, tensor): (&String, &Tensor)| {
        let dtype = Some(tensor.dtype()).filter(|dtype| !read.contains(dtype));
        let dtype = dtype.map(|dtype| format!(" of {dtype}, which is not read")).unwrap_or_default();
        format!("`{name}` {:?}{dtype}", tensor.shape())
    };
    run.names.iter().zip(run.outputs).map(one).collect::<Vec<_>>().join(", ")
}

fn no_picture(inputs: &Inputs) -> CompressError {
    let shape = |(name, tensor): &(String, Tensor)| format!("`{name}` {:?}", tensor.shape());
    CompressError::Data(format!(
        "boxes are told of pictures, and no input is one; expected [n, channels, height, width], 1 to 4 channels, first or last; the model \
         takes {}",
        inputs.iter().map(shape).collect::<Vec<_>>().join(", ")
    ))
}

fn unfit(form: BoxForm, run: &Run<'_>, side: (usize, usize)) -> CompressError {
    if form == BoxForm::Ssd && undecided(run) {
        return unnamed(run);
    }
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

fn unnamed(run: &Run<'_>) -> CompressError {
    CompressError::Data(format!(
        "of the outputs {} each could be the boxes of the form `ssd`; rename one of them, and only one, to `boxes` or `loc`",
        shapes(run)
    ))
}

fn unknown(run: &Run<'_>) -> CompressError {
    if undecided(run) {
        return unnamed(run);
    }
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

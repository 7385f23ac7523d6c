//! How good a variant is: by labels, by boxes (`detected.rs`), or by what the original says.

use anyhow::Context as _;
use edgeward_compress::{
    Agreement, BoxForm, Compared, CompressError, Detection, Detector, Run,
    interval::{Interval, bootstrap, wilson},
    observe,
};
use edgeward_engine::Session;
use edgeward_graph::{DataType, Tensor};
use edgeward_train::metrics::{Classified, Figures, Scores, guess};

use super::{
    MetricName,
    data::{Example, Material},
    detected::Boxes,
};
use crate::{
    failure::{Failure, OrInput as _, Outcome},
    inputs,
};

/// Draws of a bootstrap.
pub const DRAWS: usize = 200;
/// Results of the original that are kept at most; judging ends with the batch that goes beyond, unless it needs boxes alone.
const KEPT_BYTES: usize = 1 << 30;

/// A model's own outputs agree with themselves by 1; by less where they are no numbers.
const SENSIBLE: f64 = 0.5;

/// What the original says, batch by batch.
#[derive(Default)]
pub struct Reference {
    names: Vec<String>,
    outputs: Vec<Vec<Tensor>>,
    /// What its first output is, where there are labels.
    scores: Option<Scores>,
    /// What boxes are held against, where they are judged.
    boxes: Option<Boxes>,
}

/// A variant's metric.
pub struct Verdict {
    /// The metric.
    pub metric: f64,
    /// Its 95 % interval.
    pub interval: Option<Interval>,
    /// With the original.
    pub agreement: Agreement,
    /// Examples.
    pub examples: usize,
}

#[derive(Default)]
struct Said {
    first: Vec<f32>,
    labels: Vec<u32>,
    compared: Compared,
    /// Boxes of each image.
    found: Vec<Vec<Detection>>,
}

impl Reference {
    /// The form of the boxes that the outputs seem to be.
    pub fn boxes_seen(&self, material: &Material) -> Option<BoxForm> {
        let example = material.judge().next()?.ok()?;
        let run = Run { names: &self.names, outputs: self.outputs.first()?, inputs: &example.inputs };
        Detector::find(None, &run).ok().map(|detector| detector.form())
    }
}

/// Runs the original, keeps what it says, and judges it.
pub fn original(
    session: &dyn Session,
    material: &Material,
    metric: MetricName,
) -> Result<(Reference, Verdict), Failure> {
    let mut reference = Reference {
        names: session.outputs().iter().map(|output| output.name.clone()).collect(),
        ..Reference::default()
    };
    let (mut kept, mut said) = (0, Said::default());
    for example in material.judge() {
        let goes_on = kept <= KEPT_BYTES;
        if !goes_on && metric != MetricName::Map {
            break;
        }
        let example = example.or_input()?;
        let outputs = run(session, &reference.names, &example.inputs);
        let outputs = outputs.with_context(|| inputs::described(&example.inputs)).or_input()?;
        if metric.needs_labels() {
            check_scores(&reference.names, &outputs)?;
        }
        let run = Run { names: &reference.names, outputs: &outputs, inputs: &example.inputs };
        match &mut reference.boxes {
            Some(boxes) => boxes.check(&run)?,
            none => *none = Boxes::new(metric, material, &run)?,
        }
        said.take(goes_on.then_some(outputs.as_slice()), &outputs, &example, reference.boxes.as_ref()).or_input()?;
        if goes_on {
            kept += outputs.iter().map(Tensor::byte_len).sum::<usize>();
            reference.outputs.push(outputs);
        }
    }
    if reference.outputs.is_empty() {
        return Err(Failure::input("the data holds no examples to judge on"));
    }
    if metric.needs_labels() {
        let columns = said.first.len() / said.labels.len().max(1);
        reference.scores = Some(guess(&said.first, columns));
    }
    if let Some(boxes) = &mut reference.boxes {
        boxes.settle(&said.found, material)?;
    }
    let verdict = verdict(&said, &reference, metric)?;
    if reference.outputs.iter().flatten().all(Tensor::is_empty) {
        return Err(Failure::input("the model's outputs hold nothing for this data: nothing can be compared"));
    }
    if metric == MetricName::Cosine && verdict.metric < SENSIBLE {
        let text =
            "the model's outputs are no numbers (NaN, or infinite) for most of this data: nothing can be compared";
        return Err(Failure::input(text));
    }
    Ok((reference, verdict))
}

/// Labels are held against scores.
fn check_scores(names: &[String], outputs: &[Tensor]) -> Outcome {
    match (names.first(), outputs.first()) {
        (Some(name), Some(first)) if first.dtype() != DataType::Float32 => Err(Failure::input(format!(
            "the first output `{name}` holds {}, where labels need scores of float32; put the scores first, or use `--metric cosine`",
            first.dtype().name()
        ))),
        _ => Ok(()),
    }
}

/// Judges a variant. An error of its engine is the variant's fault, not the caller's.
pub fn variant(
    session: &dyn Session,
    material: &Material,
    reference: &Reference,
    metric: MetricName,
) -> Result<Verdict, Failure> {
    verdict(&said(session, material, reference)?, reference, metric)
}

fn run(session: &dyn Session, names: &[String], inputs: &observe::Inputs) -> Result<Vec<Tensor>, CompressError> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    observe::run(session, inputs, &names)
}

fn said(session: &dyn Session, material: &Material, reference: &Reference) -> Result<Said, CompressError> {
    let (mut said, mut kept) = (Said::default(), reference.outputs.iter());
    for example in material.judge() {
        let expected = kept.next();
        if expected.is_none() && reference.boxes.is_none() {
            break;
        }
        let example = example?;
        let outputs = run(session, &reference.names, &example.inputs)?;
        said.take(expected.map(Vec::as_slice), &outputs, &example, reference.boxes.as_ref())?;
    }
    Ok(said)
}

impl Said {
    /// Takes in a run; `expected` is what the original said, where that was kept.
    fn take(
        &mut self,
        expected: Option<&[Tensor]>,
        outputs: &[Tensor],
        example: &Example,
        boxes: Option<&Boxes>,
    ) -> Result<(), CompressError> {
        let detector = boxes.map(Boxes::detector);
        let rows = detector.map_or(example.rows, |detector| detector.images(example.rows));
        if let Some(expected) = expected {
            self.compared.add(expected, outputs, rows);
        }
        if let Some(detector) = detector {
            self.found.extend(detector.detections(outputs, rows)?);
        } else if let Some(first) = outputs.first().filter(|_| !example.labels.is_empty()) {
            // Where scores are needed, they were checked to be such.
            if let Ok(scores) = first.values::<f32>() {
                self.first.extend(scores.iter());
            }
            self.labels.extend(&example.labels);
        }
        Ok(())
    }
}

fn verdict(said: &Said, reference: &Reference, metric: MetricName) -> Result<Verdict, Failure> {
    let agreement = said.compared.agreement();
    let examples = agreement.examples;
    if let Some(boxes) = &reference.boxes {
        let (metric, interval) = boxes.judged(&said.found);
        return Ok(Verdict { metric, interval, agreement, examples: said.found.len() });
    }
    let Some(scores) = reference.scores else {
        let cosines = said.compared.cosines();
        let mean = |rows: &[usize]| {
            let sum: f64 = rows.iter().filter_map(|row| cosines.get(*row)).sum();
            Some(sum / rows.len().max(1) as f64)
        };
        let interval = bootstrap(examples, DRAWS, 0, mean);
        return Ok(Verdict { metric: agreement.cosine, interval, agreement, examples });
    };
    let figures = Classified::new(&said.first, &said.labels, scores)?.figures();
    let of = |figures: &Figures| match metric {
        MetricName::F1 => Some(figures.f1),
        MetricName::Auc => figures.auc,
        _ => Some(figures.accuracy),
    };
    let Some(value) = of(&figures) else {
        return Err(Failure::input("`auc` is not defined for this data: every class must occur"));
    };
    let interval = if metric == MetricName::Accuracy {
        let right = (figures.accuracy * figures.examples as f64).round() as usize;
        Some(wilson(right, figures.examples))
    } else {
        let columns = said.first.len() / said.labels.len().max(1);
        bootstrap(said.labels.len(), DRAWS, 0, |rows| of(&drawn(said, rows, columns, scores)?))
    };
    Ok(Verdict { metric: value, interval, agreement, examples })
}

fn drawn(said: &Said, rows: &[usize], columns: usize, scores: Scores) -> Option<Figures> {
    let first: Vec<f32> = rows
        .iter()
        .flat_map(|row| said.first.get(row * columns..(row + 1) * columns).unwrap_or_default())
        .copied()
        .collect();
    let labels: Vec<u32> = rows.iter().filter_map(|row| said.labels.get(*row).copied()).collect();
    Some(Classified::new(&first, &labels, scores).ok()?.figures())
}

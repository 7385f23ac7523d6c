//! How good a detector's boxes are: beside annotated ones, or beside those that the original found.

use edgeward_compress::{
    BoxForm, Detection, Detector, Matched, Run, Truth,
    interval::{Interval, bootstrap},
    report::DataKind,
};

use super::{MetricName, data::Material, judge::DRAWS};
use crate::failure::{Failure, OrInput as _, Outcome};

/// Boxes of the original count as right from this score on, where nothing is annotated.
const SURE: f64 = 0.3;

/// What boxes are held against.
pub struct Boxes {
    detector: Detector,
    truths: Vec<Vec<Truth>>,
    /// Images in the order that decides between equal scores.
    order: Vec<usize>,
}

impl Boxes {
    /// Reads outputs as those of the original's first run; nothing for another metric than boxes are judged by.
    pub fn new(metric: MetricName, material: &Material, run: &Run<'_>) -> Result<Option<Self>, Failure> {
        if metric != MetricName::Map {
            return Ok(None);
        }
        let detector = Detector::find(material.form, run).or_input()?;
        Ok(Some(Self { detector, truths: Vec::new(), order: Vec::new() }))
    }

    /// Takes in a further run of the original.
    pub fn check(&mut self, run: &Run<'_>) -> Outcome {
        self.detector.check(run).or_input()
    }

    /// Reads a run's outputs.
    pub fn detector(&self) -> &Detector {
        &self.detector
    }

    /// Takes what is right from the annotations, else from what the original found. Errors: nothing to hold boxes against.
    pub fn settle(&mut self, found: &[Vec<Detection>], material: &Material) -> Result<(), Failure> {
        let Some(annotations) = &material.annotations else {
            self.order = (0..found.len()).collect();
            self.truths = found.iter().map(|image| sure(image)).collect();
            if self.truths.iter().all(Vec::is_empty) {
                return Err(nothing_found(material.kind, found.len()));
            }
            return Ok(());
        };
        let (path, listed) = (annotations.path().display(), annotations.len());
        if let Some(images) = material.images(&self.detector).filter(|images| *images != listed) {
            return Err(Failure::input(format!(
                "annotations `{path}` list {listed} images, the data holds {images} examples; give one image for each example, in their order"
            )));
        }
        let none_found = || {
            Failure::input(format!(
                "the model finds none of the boxes of `{path}`; are they in pixels of the model's input, in the order of the examples, \
                 categories ascending in the order of its classes?"
            ))
        };
        // Without a cell in any run, what the classes are is not known.
        if found.iter().all(Vec::is_empty) {
            return Err(none_found());
        }
        let strange = found.iter().flatten().find(|one| one.class == 0 && !annotations.has(0));
        if self.detector.form() == BoxForm::Found && strange.is_some() {
            return Err(Failure::input(format!(
                "the model finds the label `0`, which is no category of `{path}`; labels of the form `found` are ids of categories: number \
                 these from 0"
            )));
        }
        self.truths = annotations.truths(&self.detector, found.len())?;
        self.order = annotations.order(found.len());
        match self.matched(found).precision() {
            None => Err(Failure::input(format!("annotations `{path}` have no box in the images that are judged"))),
            Some(precision) if precision > 0.0 => Ok(()),
            Some(_) => Err(none_found()),
        }
    }

    /// Mean average precision, and its interval over images.
    pub fn judged(&self, found: &[Vec<Detection>]) -> (f64, Option<Interval>) {
        let matched = self.matched(found);
        let interval = bootstrap(matched.images(), DRAWS, 0, |images| matched.precision_of(images));
        (matched.precision().unwrap_or(f64::NAN), interval)
    }

    fn matched(&self, found: &[Vec<Detection>]) -> Matched {
        let pair = |at: &usize| Some((self.truths.get(*at)?.as_slice(), found.get(*at)?.as_slice()));
        Matched::new(self.order.iter().filter_map(pair))
    }
}

fn sure(found: &[Detection]) -> Vec<Truth> {
    let sure = found.iter().filter(|one| one.score >= SURE);
    sure.map(|one| Truth { rect: one.rect, class: one.class, crowd: false }).collect()
}

fn nothing_found(kind: DataKind, images: usize) -> Failure {
    let text = if kind == DataKind::Synthesised {
        format!(
            "the model finds no box of a score of {SURE} in {images} made-up inputs; give real photos with `--data FILE.npz`"
        )
    } else {
        format!(
            "the model finds no box of a score of {SURE} in the {images} examples of `--data`; give photos of what it finds, prepared as it \
             takes them, or boxes with `--annotations FILE`"
        )
    };
    Failure::input(text)
}

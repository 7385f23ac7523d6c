//! Candidates that learn from the original: a student given, or made of a part of its layers; and the run that trains it.

use std::{path::PathBuf, rc::Rc};

use edgeward_compress::{
    DistilSpec, Joined, Labels, Pair, Prepared, Scores, join, pairs_by_order, prepare, report::DataKind, shorten,
};
use edgeward_graph::{Dimension, Model};
use edgeward_train::{
    AdamSpec, OptimiserSpec, Pattern, StepSpec, build,
    data::Loader,
    metrics::Metric,
    schedule::{Schedule, Shape},
    trainer::{Settings, Task},
};

use super::{Original, Work, candidates::Candidate, training::Lesson};
use crate::{
    engines,
    failure::{Failure, OrInput as _},
    print,
    train::{failed, material::Recipe},
};

/// Name of the variant.
const STUDENT: &str = "student";
/// Examples of one step.
const BATCH: usize = 32;
/// Longest norm of all gradients together: a step cannot throw away what the teacher's weights hold.
const CLIP_NORM: f32 = 1.0;
/// Times that a student goes through the data, where nobody says so.
const EPOCHS: u64 = 5;
/// The learning rate of a student.
const RATE: f64 = 0.001;

/// How candidates are trained.
#[derive(clap::Args)]
pub struct LearnOptions {
    /// ONNX file that learns what the model says, and is tried as well
    #[arg(long, value_name = "FILE", conflicts_with = "student_layers")]
    student: Option<PathBuf>,
    /// Also try a student of so many of the model's own layers
    #[arg(long, value_name = "N")]
    student_layers: Option<usize>,
    /// Value of the student that is to be like one of the model, beside the results (repeat) [default: by order of layers]
    #[arg(long = "match", value_name = "STUDENT=MODEL", value_parser = pair)]
    pairs: Vec<Pair>,
    /// What the scores of student and model are divided by before they are compared
    #[arg(long, value_name = "T", default_value_t = 2.0)]
    temperature: f32,
    /// What labels count beside the model's word, 0 to 1 [default: 0.5, without labels 0]
    #[arg(long, value_name = "PART")]
    alpha: Option<f32>,
    /// Also try integers that the model was trained for, so many times through the data
    #[arg(long, value_name = "EPOCHS", value_parser = clap::value_parser!(u64).range(1..))]
    pub qat: Option<u64>,
    /// Highest learning rate of such training [default: 0.0002]
    #[arg(long, value_name = "RATE")]
    pub qat_rate: Option<f64>,
}

impl LearnOptions {
    /// The first option that has something learn from the data.
    pub fn asks_to_learn(&self) -> Option<&'static str> {
        let student = self.student.as_ref().map(|_| "--student").or(self.student_layers.map(|_| "--student-layers"));
        student.or(self.qat.map(|_| "--qat"))
    }
}

fn pair(text: &str) -> Result<Pair, String> {
    match text.split_once('=') {
        Some((student, teacher)) if !student.is_empty() && !teacher.is_empty() => {
            Ok(Pair { student: student.to_owned(), teacher: teacher.to_owned() })
        }
        _ => Err(format!("`{text}` is no pair; expected `STUDENT=MODEL`")),
    }
}

/// A model that is to learn from the original.
pub struct Student {
    model: Model,
    /// Where it comes from, in words.
    what: String,
    joined: Joined,
}

/// A run of training.
pub struct Course<'a> {
    /// What is trained.
    pub joined: &'a Joined,
    /// What is not, beside what the join says.
    pub frozen: &'a [Pattern],
    /// What gradients are multiplied by.
    pub factors: &'a [(Pattern, f32)],
    /// Times through the data.
    pub epochs: u64,
    /// The highest learning rate.
    pub rate: f64,
    /// What is shown meanwhile.
    pub title: &'a str,
}

impl Work<'_> {
    fn check_learning(&self) -> Result<(), Failure> {
        let options = &self.args.learn;
        if options.asks_to_learn().is_some() && self.material.kind == DataKind::Synthesised {
            return Err(Failure::input("nothing can be learnt from made-up inputs; name data with `--data PATH`"));
        }
        for (name, rate) in [("rate", self.args.rate), ("qat-rate", options.qat_rate)] {
            if let Some(rate) = rate.filter(|rate| !(*rate > 0.0 && rate.is_finite())) {
                return Err(Failure::input(format!("`--{name} {rate}` is not possible; expected a number above 0")));
            }
        }
        if self.args.epochs == Some(0) && (options.student.is_some() || options.student_layers.is_some()) {
            return Err(Failure::input("`--epochs 0` is not possible for a student; expected 1 or more"));
        }
        if let Some(alpha) = options.alpha.filter(|alpha| !(0.0..=1.0).contains(alpha)) {
            return Err(Failure::input(format!("`--alpha {alpha}` is not possible; expected 0 to 1")));
        }
        if options.student.is_none() && !options.pairs.is_empty() {
            return Err(Failure::input("`--match` names values of the student that `--student FILE` gives"));
        }
        options.student.as_deref().map_or(Ok(()), engines::check_file)
    }

    /// The student that was asked for, before any work: what cannot be trained is refused at once.
    pub fn student(&self, teacher: &Model) -> Result<Option<Student>, Failure> {
        self.check_learning()?;
        let options = &self.args.learn;
        let (model, what, pairs) = if let Some(path) = &options.student {
            let student = engines::read_model(path)?;
            let pairs = match options.pairs.is_empty() {
                true => self.known(pairs_by_order(&student, teacher)),
                false => options.pairs.clone(),
            };
            (student, "given".to_owned(), pairs)
        } else if let Some(count) = options.student_layers {
            let shorter = shorten(teacher, count).or_input()?;
            let what = format!("{count} of {} layers, begun with the original's", shorter.layers);
            (shorter.model, what, self.known(shorter.pairs))
        } else {
            return Ok(None);
        };
        let spec = DistilSpec { pairs, ..self.distil_spec(options.temperature) };
        let joined = join(&model, &self.prepared, &spec).or_input()?;
        Ok(Some(Student { model, what, joined }))
    }

    /// Trains the student, and goes on to make of it what was made of the original.
    pub fn with_student(
        self,
        student: Option<Student>,
        original: &Original,
        made: &mut Vec<Candidate>,
    ) -> Result<Self, Failure> {
        let Some(student) = student else { return Ok(self) };
        let before = made.len();
        let trained = self.trained(&student, made);
        let Some(prepared) = self.unless_it_fails(STUDENT, trained)? else {
            made.truncate(before);
            return Ok(self);
        };
        let work = Self { prepared: Rc::new(prepared), of: Some(STUDENT), ..self };
        made.extend(work.candidates(original)?.0);
        Ok(work)
    }

    /// Pairs whose values the prepared original still has.
    fn known(&self, mut pairs: Vec<Pair>) -> Vec<Pair> {
        pairs.retain(|pair| self.prepared.inferred.of(&pair.teacher).dtype.is_some());
        pairs
    }

    fn trained(&self, student: &Student, made: &mut Vec<Candidate>) -> Result<Prepared, Failure> {
        if let Some(noted) = self.taken(STUDENT)
            && let Some(first) = noted.first()
        {
            let prepared = prepare(&engines::read_model(&first.path)?)?;
            made.extend(noted);
            return Ok(prepared);
        }
        let options = &self.args.learn;
        let (joined, epochs, rate) =
            (&student.joined, self.args.epochs.unwrap_or(EPOCHS), self.args.rate.unwrap_or(RATE));
        let course = Course { joined, frozen: &[], factors: &[], epochs, rate, title: STUDENT };
        let mut model = Joined::student(&student.model, &self.learn(&course)?)?;
        self.recipe_to(&mut model);
        let mut recipe = format!("distilled, {}; {epochs} epochs at temperature {}", student.what, options.temperature);
        recipe += &format!(", {} hidden states and {} attention maps compared", joined.hidden, joined.attention);
        let prepared = prepare(&model)?;
        made.push(self.keep_own(STUDENT, recipe, &model, &prepared)?);
        self.kept.note_candidates(STUDENT, made.get(made.len() - 1..).unwrap_or_default())?;
        Ok(prepared)
    }

    /// How a model is held against the original.
    pub fn distil_spec(&self, temperature: f32) -> DistilSpec {
        let first = self.prepared.model.outputs().into_iter().next();
        let shape = first.map(|port| self.prepared.inferred.of(&port.name).shape.unwrap_or_default());
        let several = matches!(shape.as_deref(), Some([_, columns]) if *columns != Dimension::Fixed(1));
        let quantities = Recipe::read(&self.prepared.model).task == Some(Task::Quantities);
        let labelled = self.material.kind == DataKind::Labelled && several && !quantities;
        let part = self.args.learn.alpha.unwrap_or(0.5);
        DistilSpec {
            temperature,
            labels: if labelled { Labels::Classes(part) } else { Labels::None },
            scores: if quantities { Scores::Quantities } else { Scores::OfClasses },
            seed: self.args.seed,
            ..DistilSpec::default()
        }
    }

    /// Trains and returns the forward graph with its new weights.
    pub fn learn(&self, course: &Course<'_>) -> Result<Model, Failure> {
        self.go_on(&format!("{}: building the training step", course.title))?;
        let adam = OptimiserSpec::AdamW(AdamSpec::default());
        let mut spec = StepSpec::new(course.joined.loss.clone(), adam);
        spec.frozen = course.joined.frozen.iter().chain(course.frozen).cloned().collect();
        spec.factors = course.factors.to_vec();
        spec.clip_norm = Some(CLIP_NORM);
        let step = build(&course.joined.forward, &spec).map_err(failed)?;
        let data = self.material.learn(&step, BATCH, self.args.seed)?;
        let settings = settings(course, &data, self.args.seed);
        let (forward, title) = (&course.joined.forward, course.title);
        let trained = self.train(Lesson { forward, step: &step, data, judge: None, settings, title })?;
        if let Some(last) = trained.progress.epochs.last() {
            let text =
                format!("{}: loss {:.4} after {} epochs", course.title, last.loss, trained.progress.epochs.len());
            self.bar.suspend(|| print::note!("{text}"));
        }
        Ok(trained.model)
    }

    /// How data is read is told by the original; a student that does not say so is read alike.
    fn recipe_to(&self, model: &mut Model) {
        let own = &mut model.proto_mut().metadata_props;
        for entry in &self.prepared.model.proto().metadata_props {
            if own.iter().all(|other| other.key() != entry.key()) {
                own.push(entry.clone());
            }
        }
    }
}

fn settings(course: &Course<'_>, data: &Loader, seed: u64) -> Settings {
    let steps = course.epochs.saturating_mul(data.batch_count() as u64);
    Settings {
        epochs: course.epochs,
        schedule: Schedule { shape: Shape::Cosine, rate: course.rate, warmup_steps: steps / 20, steps },
        seed,
        accumulate: 1,
        task: Task::Classes,
        metric: Metric::Loss,
        patience: None,
        checkpoint: None,
        checkpoint_batches: None,
        noise_deviation: None,
    }
}

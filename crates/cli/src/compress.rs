//! `edgeward compress`: a model made smaller and faster, measured against its original, or nothing.
//!
//! Decides nothing itself: the rewrites and what is better are `edgeward-compress`; `compress/candidates.rs` says what is
//! tried, `compress/prune.rs` what is tried with fewer channels, `compress/judge.rs` how good it is (boxes: `compress/detected.rs`), `compress/timing.rs`
//! how fast, `compress/emit.rs` what is written, `compress/large.rs` what is other where two of a model fit nowhere.

mod annotations;
mod candidates;
mod data;
mod detected;
mod distil;
mod emit;
mod given;
mod judge;
mod kept;
mod large;
mod mixed;
mod prune;
mod qat;
mod rescaled;
mod timing;
mod training;
mod weights;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::anyhow;
use clap::ArgGroup;
use edgeward_compress::{
    BoxForm, CompressError, Entropy, Form, Layer, Prepared, Sensitivity, WHOLE_BYTES_MAX,
    choose::{self, Goal, Limits},
    prepare,
    report::{Data, DataKind, Machine, Phase, Report, Turns, Variant},
    transfer_bytes,
};
use edgeward_engine::{Engine, Registry, Session, SessionOptions, Source};
use edgeward_graph::Model;
use indicatif::ProgressBar;

use self::{
    candidates::Candidate,
    data::Material,
    judge::Reference,
    kept::Kept,
    timing::{Timed, Timing},
};
use crate::{
    Context, engines,
    failure::{Failure, OrInput as _, Outcome},
    inputs::NamedShape,
    interrupt, print,
    train::options::DataOptions,
};

/// Options of `compress`.
#[derive(clap::Args)]
#[command(group(ArgGroup::new("training").args(["ratios", "blocks", "student", "student_layers"]).multiple(true)))]
pub struct CompressArgs {
    /// ONNX file
    model: PathBuf,
    #[command(flatten)]
    data: DataOptions,
    /// What may not drop [default: accuracy with labels, map with `--annotations` or `--boxes`, else cosine]
    #[arg(long, value_name = "NAME")]
    metric: Option<MetricName>,
    /// Boxes that a detector shall find in the examples of `--data`, in pixels of the model's input: JSON of COCO's instances, its `images` in the
    /// order of the examples [default: the boxes that the original finds]
    #[arg(long, value_name = "FILE")]
    annotations: Option<PathBuf>,
    /// How a detector puts out boxes [default: told from its outputs]
    #[arg(long, value_name = "FORM")]
    boxes: Option<FormName>,
    /// How much the metric may drop
    #[arg(long, default_value_t = 0.01, value_name = "PART", value_parser = drop_max)]
    max_drop: f64,
    /// Longest median time of one request
    #[arg(long, value_name = "MS", value_parser = crate::tune::milliseconds)]
    max_latency_ms: Option<f64>,
    /// Largest file
    #[arg(long, value_name = "BYTES")]
    max_bytes: Option<u64>,
    /// What the result shall be best at
    #[arg(long = "for", value_name = "WHAT", default_value = "latency")]
    goal: GoalName,
    /// Fewer examples, shorter slices, no search layer by layer
    #[arg(long)]
    quick: bool,
    /// Examples that ranges are observed on [default: 256, with --quick up to 64, until they settle]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    calibration: Option<u32>,
    /// Engine to measure on: `onnxruntime`, `openvino` or `rten` (repeat) [default: all that are there]
    #[arg(long = "engine", value_name = "NAME")]
    engines: Vec<String>,
    /// Threads within one run [default: as many as cores]
    #[arg(long, value_name = "N", value_parser = engines::threads)]
    threads: Option<NonZeroUsize>,
    /// Shape of an input, where inputs are made up, e.g. `image=1,3,224,224` (repeat)
    #[arg(long = "shape", value_name = "NAME=DIMS")]
    shapes: Vec<NamedShape>,
    /// Draws the examples that ranges are observed on
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Models from this size on are quantised layer by layer, in little memory, and loaded one at a time [default: what an ONNX file cannot
    /// hold, 2 GB]
    #[arg(long, value_name = "BYTES")]
    large: Option<u64>,
    #[command(flatten)]
    learn: distil::LearnOptions,
    #[command(flatten)]
    pruning: prune::PruneOptions,
    /// Times through the data: of a student [default: 5], and of each ratio of pruning, where 0 trains nothing [default: 6, with
    /// --quick 1]
    #[arg(long, value_name = "N", requires = "training")]
    epochs: Option<u64>,
    /// Highest learning rate: of a student [default: 0.001], and after pruning [default: that of `[train]`, else as `train` has it]
    #[arg(long, value_name = "RATE", requires = "training")]
    rate: Option<f64>,
    /// Folder of the result [default: MODEL.compressed beside the model]
    #[arg(short, long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

/// A metric by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum MetricName {
    /// Part of the examples that are told right
    Accuracy,
    /// F1 of class 1 of two, else the mean over classes
    F1,
    /// Area under the ROC curve
    Auc,
    /// Cosine of the angle to what the original says, the least of all outputs
    Cosine,
    /// Mean average precision of boxes (COCO), beside `--annotations` or those that the original finds
    Map,
}

impl MetricName {
    fn needs_labels(self) -> bool {
        !matches!(self, Self::Cosine | Self::Map)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::F1 => "f1",
            Self::Auc => "auc",
            Self::Cosine => "cosine",
            Self::Map => "map",
        }
    }
}

/// A form of a detector's outputs by name.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum FormName {
    /// One output [n, cells, 5 + classes]: raw offsets, a cell for each 8, 16 and 32 pixels
    Yolox,
    /// One output [n, 4 + classes, cells]: centres and sizes in pixels (Ultralytics from version 8 on)
    Yolo,
    /// Boxes [n, cells, 4] as corners, scores [n, cells, classes]
    Ssd,
    /// Boxes [k, 4] as corners, labels [k], scores [k] of one image, after suppression (torchvision)
    Found,
}

impl From<FormName> for BoxForm {
    fn from(name: FormName) -> Self {
        match name {
            FormName::Yolox => Self::Yolox,
            FormName::Yolo => Self::Yolo,
            FormName::Ssd => Self::Ssd,
            FormName::Found => Self::Found,
        }
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum GoalName {
    /// One request at a time
    Latency,
    /// Many requests
    Throughput,
    /// The file
    Size,
    /// The processor's time, of all cores together
    Energy,
}

impl From<GoalName> for Goal {
    fn from(name: GoalName) -> Self {
        match name {
            GoalName::Latency => Self::Latency,
            GoalName::Throughput => Self::Throughput,
            GoalName::Size => Self::Size,
            GoalName::Energy => Self::Energy,
        }
    }
}

fn drop_max(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err("expected 0 to 1".to_owned()) }
}

/// What every step of a compression works with.
struct Work<'a> {
    args: &'a CompressArgs,
    /// What candidates are made of: the original, then the student.
    prepared: Rc<Prepared>,
    /// What candidates' names begin with, `student` for those of the student.
    of: Option<&'static str>,
    /// Bytes of the original's layers, by their names.
    layer_bytes: HashMap<String, u64>,
    material: Material,
    metric: MetricName,
    reference: Reference,
    /// Engines that run the original, the first of them for what is not timed.
    engines: Vec<Arc<dyn Engine>>,
    threads: NonZeroUsize,
    bar: ProgressBar,
    /// The most examples that ranges were observed on; 0 where none were, or an interrupted run did it.
    observed: Cell<usize>,
    /// What was done and when it began.
    phases: RefCell<Vec<(String, Instant)>>,
    /// Holds the candidates' files until the best are known.
    kept: Kept,
}

/// Runs the command.
pub fn run(args: &CompressArgs, context: &Context) -> Outcome {
    interrupt::listen();
    let output = args.output();
    let report = compress(args, context)?;
    emit::show(&report, &output, context)
}

/// Compresses and writes the result, where there is one.
pub fn compress(args: &CompressArgs, context: &Context) -> Result<Report, Failure> {
    let began = Instant::now();
    engines::check_file(&args.model)?;
    let output = args.output();
    emit::check_folder(&output, &args.model)?;
    let model = engines::read_model(&args.model)?;
    if model.whole_len() > args.large.unwrap_or(WHOLE_BYTES_MAX) {
        return large::compress(args, context, &model, began);
    }
    let kept = keep(args, &model, context)?;
    let (mut work, original) = Work::begin(args, &model, kept, context)?;
    work.check_pruning(&model)?;
    let student = work.student(&model)?;
    let (mut candidates, sensitivity) = work.candidates(&original)?;
    work.pruned(&model, context, &mut candidates)?;
    let work = work.with_student(student, &original, &mut candidates)?;
    let report = work.report(original, candidates, sensitivity, began)?;
    work.bar.finish_and_clear();
    if report.chosen.is_some() {
        emit::write(&report, work.kept.folder(), &args.model, &output)?;
    }
    work.kept.remove();
    Ok(report)
}

/// Opens what an interrupted run may have left. Beside the command's own words that is told by files which the command does not name: the
/// model's data, settings, and what these name.
fn keep(args: &CompressArgs, model: &Model, context: &Context) -> Result<Kept, Failure> {
    let (given, set) = (&args.data, &context.settings.train.data);
    let sets = [(&given.data, &set.data), (&given.val, &set.val), (&given.labels, &set.labels)];
    let sets = sets.into_iter().chain([(&given.tokenizer, &set.tokenizer)]);
    let named = sets.filter_map(|(given, set)| set.clone().filter(|_| given.is_none()));
    let settings = std::iter::once(PathBuf::from(crate::settings::DEFAULT_FILE));
    let files: Vec<PathBuf> = data_files(&args.model, model)?.into_iter().chain(settings).chain(named).collect();
    Kept::open(&args.output(), crate::tune::hash(&args.model)?, &files)
}

/// The files of a model's external data.
fn data_files(path: &Path, model: &Model) -> Result<Vec<PathBuf>, Failure> {
    let folder = path.parent().unwrap_or(Path::new(""));
    Ok(model.external_locations().or_input()?.iter().map(|location| folder.join(location)).collect())
}

/// Bytes of a model's files, and in transfer.
fn sizes(path: &Path, entropy: Entropy) -> Result<(u64, u64), Failure> {
    let (mut bytes, mut transfer) = (0, 0);
    let data = data_files(path, &engines::read_model(path)?)?;
    for path in std::iter::once(path.to_owned()).chain(data) {
        let mut file = std::fs::File::open(path)?;
        bytes += file.metadata()?.len();
        transfer += transfer_bytes(&mut file, entropy)?;
    }
    Ok((bytes, transfer))
}

impl CompressArgs {
    /// Folder of the result.
    fn output(&self) -> PathBuf {
        self.output.clone().unwrap_or_else(|| engines::beside(&self.model, "compressed"))
    }

    /// The first option that asks for something which learns from the data.
    fn anything_learns(&self) -> Option<&'static str> {
        self.learn.asks_to_learn().or_else(|| self.pruning.asks_to_cut())
    }

    /// Whether boxes are judged.
    fn asks_for_boxes(&self) -> bool {
        self.annotations.is_some() || self.boxes.is_some() || self.metric == Some(MetricName::Map)
    }

    /// What variants are held to on data of this kind.
    fn metric_on(&self, kind: DataKind) -> Result<MetricName, Failure> {
        let labelled = kind == DataKind::Labelled;
        let boxes = self.annotations.as_ref().map(|_| "--annotations").or(self.boxes.map(|_| "--boxes"));
        let metric = self.metric.unwrap_or(match (boxes, labelled) {
            (Some(_), _) => MetricName::Map,
            (None, true) => MetricName::Accuracy,
            (None, false) => MetricName::Cosine,
        });
        if let Some(option) = boxes.filter(|_| metric != MetricName::Map) {
            let text = format!("`{option}` goes with `--metric map`, not with `{}`", metric.name());
            return Err(Failure::input(text));
        }
        if metric.needs_labels() && !labelled {
            let text = format!("metric `{}` needs labels; name labelled data with `--data PATH`", metric.name());
            return Err(Failure::input(text));
        }
        Ok(metric)
    }
}

/// Bytes of a model's layers, by their names.
fn layer_bytes(prepared: &Prepared) -> HashMap<String, u64> {
    let bytes = |layer: &Layer| (prepared.title(layer).into_owned(), layer.weights() as u64 * 4);
    prepared.layers.iter().map(bytes).collect()
}

fn threads(args: &CompressArgs) -> NonZeroUsize {
    args.threads.or_else(|| std::thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN)
}

/// Says how far the work is.
fn bar() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// The original's verdict and its place among the candidates.
struct Original {
    candidate: Candidate,
    verdict: judge::Verdict,
}

impl<'a> Work<'a> {
    fn begin(
        args: &'a CompressArgs,
        model: &Model,
        kept: Kept,
        context: &Context,
    ) -> Result<(Self, Original), Failure> {
        let bar = bar();
        bar.set_message("preparing");
        let prepared = prepare(model).or_input()?;
        let threads = threads(args);
        let registry = engines::registry(&context.settings.engine);
        let (engines, session) = able(&registry, args, threads)?;
        let material = Material::open(args, &context.settings.train, model, session.inputs())?;
        let metric = args.metric_on(material.kind)?;
        bar.set_message("judging the original");
        let (reference, verdict) = judge::original(session.as_ref(), &material, metric)?;
        if args.metric.is_none()
            && metric == MetricName::Cosine
            && let Some(form) = reference.boxes_seen(&material)
        {
            let form = form.name();
            bar.suspend(|| {
                print::note!(
                    "the outputs look like boxes (`{form}`), of which a cosine tells little; judge them by `--data PHOTOS.npz --metric map`"
                );
            });
        }
        let candidate = Candidate::original(args.model.clone());
        let work = Self {
            args,
            layer_bytes: layer_bytes(&prepared),
            prepared: Rc::new(prepared),
            of: None,
            material,
            metric,
            reference,
            engines,
            threads,
            bar,
            observed: Cell::default(),
            phases: RefCell::default(),
            kept,
        };
        Ok((work, Original { candidate, verdict }))
    }

    fn options(&self) -> SessionOptions {
        SessionOptions { threads: Some(self.threads), ..SessionOptions::default() }
    }

    /// Loads a graph with the first engine.
    fn load(&self, model: &Model) -> Result<Box<dyn Session>, CompressError> {
        self.load_with(|_| true, model)
    }

    /// Loads a model with the engine that fuses a form best, where it is there.
    fn load_for(&self, form: Form, model: &Model) -> Result<Box<dyn Session>, CompressError> {
        let name = if form == Form::Inputs { "openvino" } else { "onnxruntime" };
        self.load_with(|engine| engine.name() == name, model)
    }

    /// With the first engine that is wanted, else the first of all.
    fn load_with(
        &self,
        wanted: impl Fn(&dyn Engine) -> bool,
        model: &Model,
    ) -> Result<Box<dyn Session>, CompressError> {
        let engine = self.engines.iter().find(|engine| wanted(engine.as_ref())).or_else(|| self.engines.first());
        let engine = engine.ok_or_else(|| CompressError::Data("no engine runs the model".to_owned()))?;
        let bytes = model.to_bytes()?;
        Ok(engine.load(&Source::Bytes(bytes.into()), &self.options())?)
    }

    /// The next part of the work begins, unless it was interrupted.
    fn go_on(&self, message: &str) -> Outcome {
        self.phases.borrow_mut().push((message.to_owned(), Instant::now()));
        self.show(message)
    }

    /// Says how far it is, and ends where it was interrupted.
    fn show(&self, message: &str) -> Outcome {
        self.bar.set_message(message.to_owned());
        if interrupt::came() { Err(self.interrupted()) } else { Ok(()) }
    }

    fn interrupted(&self) -> Failure {
        let folder = self.kept.folder().display();
        Failure::Work(anyhow!("interrupted; what took long is kept in `{folder}`, the same command goes on from there"))
    }

    /// A candidate's name, or a group's.
    pub fn named(&self, name: &str) -> String {
        self.of.map_or_else(|| name.to_owned(), |of| format!("{of}-{name}"))
    }

    /// Candidates that take training: those that an interrupted run left, else made now.
    fn once(
        &self,
        group: &str,
        made: &mut Vec<Candidate>,
        make: impl FnOnce(&mut Vec<Candidate>) -> Outcome,
    ) -> Outcome {
        let group = self.named(group);
        if let Some(noted) = self.taken(&group) {
            made.extend(noted);
            return Ok(());
        }
        let before = made.len();
        make(made)?;
        self.kept.note_candidates(&group, made.get(before..).unwrap_or_default())
    }

    /// The same, where a training that fails adds none.
    fn once_trained(
        &self,
        group: &str,
        made: &mut Vec<Candidate>,
        make: impl FnOnce(&mut Vec<Candidate>) -> Outcome,
    ) -> Outcome {
        let before = made.len();
        let trained = self.once(group, made, make);
        if self.unless_it_fails(&self.named(group), trained)?.is_none() {
            made.truncate(before);
        }
        Ok(())
    }

    /// What a training came to; none where it failed, which is said: the other candidates are worth their work.
    fn unless_it_fails<T>(&self, name: &str, made: Result<T, Failure>) -> Result<Option<T>, Failure> {
        match made {
            Err(Failure::Work(error)) if !interrupt::came() => {
                self.bar.suspend(|| print::note!("no `{name}`: {error:#}"));
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    /// Candidates that an interrupted run left.
    fn taken(&self, group: &str) -> Option<Vec<Candidate>> {
        let noted = self.kept.candidates(group)?;
        self.bar.suspend(|| print::note!("`{group}` is taken from the run that was interrupted"));
        Some(noted)
    }

    /// What took how long, in order; each went on until the next began.
    fn phases(&self) -> Vec<Phase> {
        let begun = self.phases.borrow();
        let ends = begun.iter().skip(1).map(|(_, next)| *next).chain([Instant::now()]);
        let phase = |((what, from), to): (&(String, Instant), Instant)| Phase {
            what: what.clone(),
            seconds: to.duration_since(*from).as_secs_f64(),
        };
        begun.iter().zip(ends).map(phase).collect()
    }

    /// Times, judges and sorts all candidates.
    fn report(
        &self,
        original: Original,
        candidates: Vec<Candidate>,
        sensitivity: Vec<Sensitivity>,
        began: Instant,
    ) -> Result<Report, Failure> {
        let all: Vec<&Candidate> = std::iter::once(&original.candidate).chain(&candidates).collect();
        let timed = self.time(&all)?;
        let mut variants = Vec::new();
        for (candidate, timed) in all.iter().zip(&timed) {
            self.go_on(&format!("judging {}", candidate.name))?;
            variants.push(self.variant(candidate, timed, original.verdict.metric)?);
        }
        let report = self.concluded(variants, original.verdict.examples, began);
        Ok(Report { sensitivity, ..report })
    }

    /// What is told of judged variants, the original first.
    fn concluded(&self, mut variants: Vec<Variant>, examples: usize, began: Instant) -> Report {
        let (limits, goal) = (self.limits(), Goal::from(self.args.goal));
        let chosen = decide(&mut variants, &limits, goal);
        let original = variants.remove(0);
        let calibrated = Some(self.observed.get()).filter(|observed| *observed > 0).unwrap_or(self.material.calibrated);
        Report {
            model: self.args.model.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            model_sha256: self.kept.model_sha256().to_owned(),
            machine: machine(self.threads),
            data: Data { kind: self.judged_on(), examples, calibrated },
            metric: self.metric.name().to_owned(),
            goal,
            limits,
            original,
            variants,
            chosen,
            sensitivity: Vec::new(),
            timing: Turns::Taken,
            memory: None,
            phases: self.phases(),
            seconds: began.elapsed().as_secs_f64(),
        }
    }

    /// Labels say nothing of boxes: these are then held against the original's.
    fn judged_on(&self) -> DataKind {
        match self.material.kind {
            DataKind::Labelled if self.metric == MetricName::Map => DataKind::Given,
            kind => kind,
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            drop_max: self.args.max_drop,
            latency_ms_max: self.args.max_latency_ms,
            bytes_max: self.args.max_bytes,
        }
    }

    /// How candidates are timed; `each` is told before each turn.
    fn timing<'t>(&'t self, each: &'t dyn Fn(usize, usize, Option<Duration>) -> Outcome) -> Timing<'t> {
        let Self { args, threads, .. } = self;
        Timing { threads: *threads, quick: args.quick, shapes: &args.shapes, goal: args.goal.into(), each }
    }

    fn time(&self, all: &[&Candidate]) -> Result<Vec<Vec<Timed>>, Failure> {
        let first = self.material.judge().next().transpose()?;
        let mut timed: Vec<Vec<Timed>> = all.iter().map(|_| Vec::new()).collect();
        let mut least = f64::INFINITY;
        for engine in &self.engines {
            self.go_on(&format!("timing on {}", engine.name()))?;
            let each = |turn: usize, turns: usize, left: Option<Duration>| {
                let left = left.map_or_else(String::new, |left| format!(", at most {} s left", left.as_secs() + 1));
                self.show(&format!("timing on {}, turn {turn} of {turns}{left}", engine.name()))
            };
            let timing = self.timing(&each);
            let on_engine = timing.all(engine.as_ref(), all, first.as_ref().map(|example| &example.inputs), least)?;
            least = on_engine.iter().map(|timed| timed.cost(timing.goal)).fold(least, f64::min);
            timed.iter_mut().zip(on_engine).for_each(|(all, one)| all.push(one));
        }
        Ok(timed)
    }

    /// A candidate's figures on the engine that runs it best and well.
    fn variant(&self, candidate: &Candidate, timed: &[Timed], metric_before: f64) -> Result<Variant, Failure> {
        let verdict = |timed: &Timed| {
            let engine = self.engines.iter().find(|engine| engine.name() == timed.engine)?;
            let session = engine.load(&Source::File(candidate.path.clone()), &self.options());
            let verdict = session
                .map_err(Failure::from)
                .and_then(|session| judge::variant(session.as_ref(), &self.material, &self.reference, self.metric));
            Some(verdict.map_err(|failure| failure.message()))
        };
        self.settled(candidate, timed, (metric_before, Entropy::Most), verdict)
    }

    /// The same, where `verdict` says how good the candidate is on an engine, or why that cannot be said.
    fn settled(
        &self,
        candidate: &Candidate,
        timed: &[Timed],
        (metric_before, entropy): (f64, Entropy),
        mut verdict: impl FnMut(&Timed) -> Option<Result<judge::Verdict, String>>,
    ) -> Result<Variant, Failure> {
        let mut variant = candidate.variant(timed);
        let mut order: Vec<&Timed> = timed.iter().filter(|timed| timed.p50_ms.is_some()).collect();
        order.sort_by(|a, b| a.cost(self.args.goal.into()).total_cmp(&b.cost(self.args.goal.into())));
        let sizes = sizes(&candidate.path, entropy)?;
        let mut reasons = Vec::new();
        // An engine may run a graph and still compute something else: then the next one is asked.
        for timed in order {
            let verdict = match verdict(timed) {
                None => continue,
                Some(Ok(verdict)) => verdict,
                Some(Err(reason)) => {
                    reasons.push(format!("{}: {reason}", timed.engine));
                    continue;
                }
            };
            let drop = metric_before - verdict.metric;
            let good = drop <= self.args.max_drop;
            if variant.figures.is_none() || good {
                emit::judged(&mut variant, timed, &verdict, sizes, drop);
            }
            if good {
                break;
            }
        }
        if variant.figures.is_none() {
            reasons.extend(timed.iter().filter_map(|t| Some(format!("{}: {}", t.engine, t.refused.as_ref()?))));
            variant.refused = Some(format!("no engine runs it: {}", reasons.join("; ")));
        }
        Ok(variant)
    }
}

/// Marks what may not be emitted and what nothing beats; the name of the best.
fn decide(variants: &mut [Variant], limits: &Limits, goal: Goal) -> Option<String> {
    let before = variants.first().and_then(|original| original.figures)?;
    for variant in variants.iter_mut().skip(1) {
        if let Some(figures) = variant.figures {
            variant.refused = choose::refusal(&before, &figures, limits, goal);
        }
    }
    let figures: Vec<(usize, choose::Figures)> =
        variants.iter().enumerate().filter_map(|(index, variant)| Some((index, variant.figures?))).collect();
    let front = choose::pareto(&figures.iter().map(|(_, figures)| *figures).collect::<Vec<_>>());
    for ((index, _), on_front) in figures.iter().zip(front) {
        if let Some(variant) = variants.get_mut(*index) {
            variant.pareto = on_front;
        }
    }
    let allowed: Vec<_> = figures
        .into_iter()
        .filter(|(index, _)| *index > 0 && variants.get(*index).is_some_and(|variant| variant.refused.is_none()))
        .collect();
    let best = choose::best(&allowed, goal)?;
    for (index, variant) in variants.iter_mut().enumerate().skip(1) {
        if variant.refused.is_none() && (variant.pareto || index == best) {
            variant.file = Some(format!("{}.onnx", variant.name));
        }
    }
    variants.get(best).map(|variant| variant.name.clone())
}

/// Engines that load and run the original, and a session of the first.
fn able(
    registry: &Registry,
    args: &CompressArgs,
    threads: NonZeroUsize,
) -> Result<(Vec<Arc<dyn Engine>>, Box<dyn Session>), Failure> {
    args.engines.iter().try_for_each(|name| engines::known(name))?;
    let wanted = |name: &str| args.engines.is_empty() || args.engines.iter().any(|engine| engine == name);
    let options = SessionOptions { threads: Some(threads), ..SessionOptions::default() };
    let source = Source::File(args.model.clone());
    let (mut able, mut first, mut reasons) = (Vec::new(), None, Vec::new());
    for name in registry.names().iter().filter(|name| wanted(name)) {
        let loaded = registry.get(name).and_then(|engine| Ok((engine.load(&source, &options)?, engine)));
        match loaded {
            Ok((session, engine)) => {
                able.push(engine);
                first.get_or_insert(session);
            }
            Err(error) => reasons.push(error.to_string()),
        }
    }
    let none = || Failure::Work(anyhow!("no engine runs `{}`: {}", args.model.display(), reasons.join("; ")));
    first.map(|session| (able, session)).ok_or_else(none)
}

fn machine(threads: NonZeroUsize) -> Machine {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name));
    Machine {
        processor: name.map_or_else(|| std::env::consts::ARCH.to_owned(), |name| name.trim().to_owned()),
        cores: threads.get(),
        vnni: edgeward_compress::WeightBits::of_this_machine() == edgeward_compress::WeightBits::Eight,
    }
}

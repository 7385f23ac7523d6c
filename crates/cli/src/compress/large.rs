//! Models that no ONNX file holds, and that are not in memory twice: weights are quantised layer by layer into files, and the original and
//! each variant are loaded, timed, judged and closed one at a time.

use std::{
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use anyhow::anyhow;
use edgeward_compress::{
    BlockBits, CompressError, Entropy, LargeForm, Layer, Prepared, WeightBits, large_bytes_max, prepare_in_place,
    quantise_large,
    report::{LayerFigures, Memory, Report, Turns, Variant},
};
use edgeward_engine::{Engine, Session, SessionOptions, Source};
use edgeward_graph::Model;

use super::{
    CompressArgs, Work,
    candidates::{BLOCK, Candidate},
    data::Material,
    emit,
    judge::{self, Reference, Verdict},
    kept::Kept,
    timing::Timed,
};
use crate::{
    Context, engines,
    failure::{Failure, OrInput as _, Outcome},
    interrupt, measure, print,
};

/// A variant that is made.
struct Wanted {
    name: &'static str,
    recipe: &'static str,
    form: LargeForm,
    /// Bytes of a weight, scales aside.
    weight_bytes: f64,
}

/// A candidate on one engine: how fast it is, and how good where it runs.
struct Told {
    timed: Timed,
    verdict: Option<Result<Verdict, String>>,
}

impl Told {
    fn refused(engine: &str, reason: &str) -> Self {
        let (engine, refused) = (engine.to_owned(), Some(reason.to_owned()));
        Self { timed: Timed { engine, p50_ms: None, per_second: None, core_ms: None, refused }, verdict: None }
    }
}

/// OpenVINO has had 2.7 times the file in memory when it had loaded 1.3 billion weights, ONNX Runtime 1.1 times.
const NOT_NAMED: &str = "not tried on a model of this size, which another engine runs; name it with `--engine`";

/// What is not made of a large model, how it is made of others, and why not here.
const LEFT_OUT: [(&str, &str, &str); 5] = [
    ("fp16", "weights as binary16, made binary32 when loaded", TWICE),
    ("bf16", "weights as bfloat16, made binary32 when loaded", TWICE),
    ("int4-gptq", "weights as 4 bits, each rounded by the errors of those before it", OBSERVED),
    ("int8", "weights and activations as bytes, in all forms", OBSERVED),
    ("int8-dynamic-conv", "convolutions as bytes as well, activations by the range of each run", LAYERS),
];
const TWICE: &str = "not tried on a model of this size: loaded, its weights are there a second time as binary32";
const OBSERVED: &str =
    "not tried on a model of this size: what its layers read is observed in a copy of the model with more results";
const LAYERS: &str = "not tried on a model of this size: of its layers MatMul and Gemm alone are quantised";

/// Compresses and writes the result, where there is one.
pub fn compress(args: &CompressArgs, context: &Context, model: &Model, began: Instant) -> Result<Report, Failure> {
    nothing_learns(args)?;
    let output = args.output();
    let prepared = prepare_in_place(model).or_input()?;
    let wanted = wanted(args);
    room(&output, &prepared, &wanted)?;
    let kept = super::keep(args, model, context)?;
    let (work, original, first) = Work::begin_large(args, model, prepared, kept, context)?;
    let before = measure::peak_resident().unwrap_or(0);
    let (candidates, quantising) = work.quantised_large(&wanted)?;
    let mut variants = vec![first];
    for candidate in &candidates {
        let told = work.told(candidate)?;
        variants.push(work.variant_of(candidate, told, original.metric)?);
    }
    variants.extend(work.left_out());
    let bytes_max = before.max(quantising.unwrap_or(0)).max(measure::peak_resident().unwrap_or(0));
    let mut report = work.concluded(variants, original.examples, began);
    report.data.calibrated = 0;
    report.timing = Turns::OneByOne;
    report.memory = Some(Memory { quantising_bytes_max: quantising, bytes_max });
    work.bar.finish_and_clear();
    if report.chosen.is_some() {
        emit::write(&report, work.kept.folder(), &args.model, &output)?;
    }
    work.kept.remove();
    Ok(report)
}

/// What learns has a second copy of the model in memory, and states of its weights.
fn nothing_learns(args: &CompressArgs) -> Outcome {
    let Some(option) = args.anything_learns() else { return Ok(()) };
    let model = args.model.display();
    Err(Failure::input(format!(
        "`{option}` needs `{model}` in memory several times, which is too large; leave the option out"
    )))
}

fn wanted(args: &CompressArgs) -> Vec<Wanted> {
    let bits = WeightBits::of_this_machine();
    let mut all = vec![
        Wanted {
            name: "int8-dynamic",
            recipe: "weights of MatMul and Gemm as bytes, activations by the range of each run",
            form: LargeForm::Dynamic(bits),
            weight_bytes: 1.0,
        },
        Wanted {
            name: "int4-weights",
            recipe: "weights of MatMul and Gemm as 4 bits in blocks of 32, activations as they are",
            form: LargeForm::Blocks(BlockBits::Four, BLOCK),
            weight_bytes: 0.5,
        },
    ];
    if !args.quick {
        all.push(Wanted {
            name: "int8-weights",
            recipe: "weights of MatMul and Gemm as bytes in blocks of 32, activations as they are",
            form: LargeForm::Blocks(BlockBits::Eight, BLOCK),
            weight_bytes: 1.0,
        });
    }
    all
}

/// An error where the disk has no room for the variants: known before hours of work, not after.
fn room(output: &Path, prepared: &Prepared, wanted: &[Wanted]) -> Outcome {
    let needed: u64 = wanted.iter().map(|wanted| large_bytes_max(prepared, wanted.form)).sum();
    let partial = Kept::folder_of(output);
    // What an interrupted run left there is taken up, or goes.
    let left = std::fs::read_dir(&partial).into_iter().flatten().filter_map(|entry| entry.ok()?.metadata().ok());
    let left: u64 = left.map(|about| about.len()).sum();
    let parent = emit::parent(output);
    let exists = parent.ancestors().find(|folder| folder.is_dir());
    let folder = exists.unwrap_or(Path::new("."));
    let about = rustix::fs::statvfs(folder).map_err(|error| {
        Failure::input(format!("folder `{}` of the result cannot be used: {error}", folder.display()))
    })?;
    let free = about.f_bavail.saturating_mul(about.f_frsize);
    if needed <= free.saturating_add(left) {
        return Ok(());
    }
    let (needed, free) = (print::bytes(needed), print::bytes(free));
    Err(Failure::input(format!(
        "variants take up to {needed} in `{}`, where {free} are free; make room, or name another folder with `-o`",
        folder.display()
    )))
}

impl<'a> Work<'a> {
    /// Loads the original with one engine after the other, keeps what it says, and judges and times it on each.
    fn begin_large(
        args: &'a CompressArgs,
        model: &Model,
        prepared: Prepared,
        kept: Kept,
        context: &Context,
    ) -> Result<(Self, Verdict, Variant), Failure> {
        let (engine, session, others) = first_engine(args, context)?;
        let material = Material::open(args, &context.settings.train, model, session.inputs())?;
        let metric = args.metric_on(material.kind)?;
        let mut work = Self {
            args,
            layer_bytes: super::layer_bytes(&prepared),
            prepared: Rc::new(prepared),
            of: None,
            material,
            metric,
            reference: Reference::default(),
            engines: vec![engine.clone()],
            threads: super::threads(args),
            bar: super::bar(),
            observed: std::cell::Cell::default(),
            phases: std::cell::RefCell::default(),
            kept,
        };
        work.go_on("judging the original")?;
        let (reference, verdict) = judge::original(session.as_ref(), &work.material, metric)?;
        work.reference = reference;
        let candidate = Candidate::original(args.model.clone());
        let mut told = vec![work.told_of(engine.name(), &candidate, session)?];
        for engine in others {
            if args.engines.is_empty() {
                told.push(Told::refused(engine.name(), NOT_NAMED));
                continue;
            }
            let one = work.told_on(engine.as_ref(), &candidate)?;
            if one.timed.p50_ms.is_some() {
                work.engines.push(engine);
            }
            told.push(one);
        }
        let variant = work.variant_of(&candidate, told, verdict.metric)?;
        Ok((work, verdict, variant))
    }

    /// The variants' files, and the most memory while they were made; those of an interrupted run are taken.
    fn quantised_large(&self, wanted: &[Wanted]) -> Result<(Vec<Candidate>, Option<u64>), Failure> {
        let forgotten = measure::forget_peak();
        let (mut made, mut anew) = (Vec::new(), false);
        for wanted in wanted {
            self.once(wanted.name, &mut made, |made| {
                anew = true;
                made.extend(self.quantise_large(wanted)?);
                Ok(())
            })?;
        }
        Ok((made, forgotten.filter(|()| anew).and_then(|()| measure::peak_resident())))
    }

    fn quantise_large(&self, wanted: &Wanted) -> Result<Option<Candidate>, Failure> {
        let name = wanted.name;
        self.go_on(&format!("quantising: {name}"))?;
        let path = self.kept.path(&format!("{name}.onnx"));
        let each = |done: usize, all: usize| {
            let shown = self.show(&format!("quantising: {name}, layer {done} of {all}"));
            shown.map_err(|failure| CompressError::Data(failure.message()))
        };
        let layers = quantise_large(&self.prepared, wanted.form, &path, &mut { each });
        if interrupt::came() {
            return Err(self.interrupted());
        }
        let figures = |layer: &Layer| LayerFigures {
            name: self.prepared.title(layer).into_owned(),
            op: layer.op.clone(),
            bytes_before: self.bytes_before(layer),
            bytes: (layer.weights() as f64 * if layer.op == "Conv" { 4.0 } else { wanted.weight_bytes }) as u64,
            snr_db: None,
        };
        let candidate = Candidate {
            name: name.to_owned(),
            recipe: wanted.recipe.to_owned(),
            path,
            layers: self.prepared.layers.iter().map(figures).collect(),
        };
        Ok((layers? > 0).then_some(candidate))
    }

    /// A candidate on each engine that runs the original.
    fn told(&self, candidate: &Candidate) -> Result<Vec<Told>, Failure> {
        self.engines.iter().map(|engine| self.told_on(engine.as_ref(), candidate)).collect()
    }

    /// Loads a candidate, times and judges it, and closes it.
    fn told_on(&self, engine: &dyn Engine, candidate: &Candidate) -> Result<Told, Failure> {
        self.go_on(&format!("loading {} on {}", candidate.name, engine.name()))?;
        match engine.load(&Source::File(candidate.path.clone()), &self.options()) {
            Ok(session) => self.told_of(engine.name(), candidate, session),
            Err(error) => Ok(Told::refused(engine.name(), error.message())),
        }
    }

    fn told_of(&self, engine: &str, candidate: &Candidate, session: Box<dyn Session>) -> Result<Told, Failure> {
        let first = self.material.judge().next().transpose()?;
        self.go_on(&format!("timing {} on {engine}", candidate.name))?;
        let each = |turn: usize, turns: usize, _| {
            self.show(&format!("timing {} on {engine}, turn {turn} of {turns}", candidate.name))
        };
        let timing = self.timing(&each);
        let (timed, session) = timing.alone(engine, candidate, session, first.as_ref().map(|first| &first.inputs))?;
        self.go_on(&format!("judging {} on {engine}", candidate.name))?;
        let judged = |session: Box<dyn Session>| {
            judge::variant(session.as_ref(), &self.material, &self.reference, self.metric)
                .map_err(|failure| failure.message())
        };
        Ok(Told { timed, verdict: session.map(judged) })
    }

    fn variant_of(&self, candidate: &Candidate, told: Vec<Told>, metric_before: f64) -> Result<Variant, Failure> {
        self.go_on(&format!("packing {}", candidate.name))?;
        let timed: Vec<Timed> = told.iter().map(|told| told.timed.clone()).collect();
        let mut verdicts: Vec<_> = told.into_iter().map(|told| (told.timed.engine, told.verdict)).collect();
        self.settled(candidate, &timed, (metric_before, Entropy::Fast), |timed| {
            verdicts.iter_mut().find(|(engine, _)| *engine == timed.engine)?.1.take()
        })
    }

    /// What would have been tried on a smaller model.
    fn left_out(&self) -> impl Iterator<Item = Variant> {
        let convolutions = self.prepared.layers.iter().any(|layer| layer.op == "Conv");
        let quick = self.args.quick;
        let named = move |(name, ..): &(&str, &str, &str)| match *name {
            "bf16" => !quick,
            "int8-dynamic-conv" => !quick && convolutions,
            _ => true,
        };
        LEFT_OUT.into_iter().filter(named).map(|(name, recipe, reason)| {
            let (name, recipe) = (name.to_owned(), recipe.to_owned());
            let candidate = Candidate { name, recipe, path: PathBuf::new(), layers: Vec::new() };
            Variant { refused: Some(reason.to_owned()), ..candidate.variant(&[]) }
        })
    }
}

type Opened = (Arc<dyn Engine>, Box<dyn Session>, Vec<Arc<dyn Engine>>);

/// The first engine that loads the original, with its session, and those that are to be tried after it.
fn first_engine(args: &CompressArgs, context: &Context) -> Result<Opened, Failure> {
    args.engines.iter().try_for_each(|name| engines::known(name))?;
    let registry = engines::registry(&context.settings.engine);
    let named = |name: &&&str| args.engines.is_empty() || args.engines.iter().any(|engine| engine == **name);
    let options = SessionOptions { threads: Some(super::threads(args)), ..SessionOptions::default() };
    let source = Source::File(args.model.clone());
    let mut reasons = Vec::new();
    let mut names = registry.names().iter().filter(named);
    while let Some(name) = names.next() {
        match registry.get(name).and_then(|engine| Ok((engine.load(&source, &options)?, engine))) {
            Ok((session, engine)) => {
                let others = names.filter_map(|name| registry.get(name).ok()).collect();
                return Ok((engine, session, others));
            }
            Err(error) => reasons.push(error.to_string()),
        }
    }
    Err(Failure::Work(anyhow!("no engine runs `{}`: {}", args.model.display(), reasons.join("; "))))
}

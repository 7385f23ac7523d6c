//! `edgeward tune`: the engine, threads, batch and instances that serve a model best on this machine.
//!
//! Decides nothing itself: `tune/plan.rs` says what to measure and what is best, `tune/agree.rs` whether engines agree,
//! `tune/state.rs` remembers. The result goes to a file beside the model; `tune/result.rs` is what `serve` takes of it.

mod agree;
mod plan;
pub mod result;
mod state;

use std::{
    collections::{BTreeMap, HashMap},
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use edgeward_engine::{Provider, Registry, RunOptions, Session, SessionOptions};
use edgeward_graph::{Model, Tensor};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use self::{
    plan::{Candidate, Score, Scores},
    state::State,
};
use crate::{
    Context,
    engines::{self, ProviderArgs},
    failure::{Failure, OrInput as _, Outcome},
    inputs::{self, Inputs, NamedShape, Wanted},
    interrupt,
    measure::{self, Load, Summary},
    print,
};

/// Turns through all candidates in each round.
const TURNS: usize = 3;
/// Sessions of models that are larger than this together are not kept between slices.
const KEPT_BYTES: u64 = 2 << 30;

/// Options of `tune`.
#[derive(clap::Args)]
pub struct TuneArgs {
    /// ONNX file
    model: PathBuf,
    /// 99 of 100 requests shall take at most this long
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    target_latency_ms: Option<f64>,
    /// Cores to use at most, never more than there are [default: all]
    #[arg(long, value_name = "N", value_parser = engines::threads)]
    threads_max: Option<std::num::NonZeroUsize>,
    /// Engine to try: `onnxruntime`, `openvino` or `rten` (repeat) [default: all that are there]
    #[arg(long = "engine", value_name = "NAME")]
    engines: Vec<String>,
    #[command(flatten)]
    providers: ProviderArgs,
    /// Seconds of the shortest slice; later rounds take twice as long each
    #[arg(long, default_value_t = 0.1, value_parser = crate::bench::seconds)]
    slice_seconds: f64,
    /// Shape of an input, e.g. `image=1,3,224,224` (repeat)
    #[arg(long = "shape", value_name = "NAME=DIMS")]
    shapes: Vec<NamedShape>,
    /// Result [default: MODEL.tune.json beside the model]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// A time above 0.
pub fn milliseconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value.is_finite() => Ok(value),
        _ => Err(format!("`{text}` is no time; expected milliseconds above 0")),
    }
}

/// The result as it is written.
#[derive(Serialize)]
struct Report {
    model_sha256: String,
    latency: Best,
    throughput: Best,
    target_latency_ms: Option<f64>,
    target_met: bool,
    tolerance: f64,
    /// Engines, and single settings of one, that were left out, and why.
    excluded: BTreeMap<String, String>,
    /// Slices that an interrupted run had measured already.
    resumed_slices: usize,
    /// Everything that was measured, those that fell out early as well.
    measured: Vec<Best>,
}

#[derive(Clone, Serialize)]
struct Best {
    #[serde(flatten)]
    candidate: Candidate,
    #[serde(flatten)]
    score: Score,
}

/// What does not change from slice to slice.
struct Bench<'a> {
    args: &'a TuneArgs,
    model: &'a Model,
    registry: &'a Registry,
    /// What every engine is to run on; those that do not have it are left out, as `serve` would not take them.
    providers: Vec<Provider>,
    /// Sessions by engine and threads, where they are small enough to be kept.
    sessions: HashMap<(String, usize), Vec<Box<dyn Session>>>,
    keep_sessions: bool,
    tolerance: f64,
    /// What the first engine answers, by batch.
    reference: HashMap<usize, Vec<Tensor>>,
}

/// Runs the command.
pub fn run(args: &TuneArgs, context: &Context) -> Outcome {
    engines::check_file(&args.model)?;
    let model = engines::read_model(&args.model)?;
    let output = args.output.clone().unwrap_or_else(|| engines::beside(&args.model, "tune.json"));
    check_output(&output)?;
    let registry = engines::registry(&context.settings.engine);
    let cores = cores(args.threads_max);
    let file_bytes = std::fs::metadata(&args.model)?.len();
    let mut bench = Bench {
        args,
        model: &model,
        registry: &registry,
        providers: args.providers.or(&context.settings.engine)?,
        sessions: HashMap::new(),
        keep_sessions: file_bytes.saturating_mul(6 * cores as u64) <= KEPT_BYTES,
        tolerance: agree::tolerance(&model),
        reference: HashMap::new(),
    };
    let mut excluded = BTreeMap::new();
    let agreeing = agreeing_engines(&mut bench, &mut excluded)?;
    let takes_batches = takes_batches(&mut bench, &agreeing)?;
    let all = plan::candidates(&agreeing, cores, takes_batches);

    let sha256 = hash(&args.model)?;
    let on = &bench.providers;
    let key = format!("{sha256} {:?} {cores} {} {all:?} {on:?}", args.shapes, args.slice_seconds);
    let mut state = State::open(&state_path(&output), &key).or_input()?;
    let resumed_slices = state.resumed();
    let measured = halve(&mut bench, &mut state, all, &mut excluded)?;
    if measured.last.is_empty() {
        return Err(nothing_left(&excluded));
    }
    let mut report = conclude(args, &measured, sha256)?;
    (report.tolerance, report.excluded, report.resumed_slices) = (bench.tolerance, excluded, resumed_slices);
    std::fs::write(&output, serde_json::to_vec_pretty(&report)?)
        .with_context(|| format!("cannot write `{}`", output.display()))?;
    state.remove();
    show(&report, &output, context)?;
    if args.output.is_none() && !context.json {
        let model = args.model.display();
        print::line(&format!(
            "`edgeward serve {model}` takes what is best for latency, `--goal throughput` the other"
        ))?;
    }
    if report.target_met {
        return Ok(());
    }
    let target = args.target_latency_ms.unwrap_or_default();
    Err(Failure::Work(anyhow!("no setting answers 99 of 100 requests within {target} ms; the nearest was written")))
}

fn nothing_left(excluded: &BTreeMap<String, String>) -> Failure {
    let reasons: Vec<_> = excluded.iter().map(|(name, reason)| format!("{name}: {reason}")).collect();
    Failure::Work(anyhow!("no setting is left to choose from: {}", reasons.join("; ")))
}

/// Known before minutes of measuring, not after.
fn check_output(output: &Path) -> Outcome {
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let why = match () {
        () if output.is_dir() => "is a folder; name a file in it",
        () if !folder.is_dir() => "is in a folder that does not exist",
        () => return Ok(()),
    };
    Err(Failure::input(format!("result `{}` {why}, with `-o FILE`", output.display())))
}

/// More threads than cores only wait for each other.
fn cores(threads_max: Option<std::num::NonZeroUsize>) -> usize {
    let there = std::thread::available_parallelism().map_or(1, usize::from);
    threads_max.map_or(there, |most| there.min(most.get()))
}

fn state_path(output: &Path) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_owned();
    name.push(".state");
    output.with_file_name(name)
}

/// SHA-256 of a file, in hexadecimal.
pub fn hash(path: &Path) -> Result<String, Failure> {
    let mut file = std::fs::File::open(path)?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            read => hasher.update(buffer.get(..read).unwrap_or_default()),
        }
    }
}

/// The engines whose outputs agree with those of the first that loads the model.
fn agreeing_engines(bench: &mut Bench<'_>, excluded: &mut BTreeMap<String, String>) -> Result<Vec<String>, Failure> {
    let named = bench.args.engines.clone();
    named.iter().try_for_each(|name| engines::known(name))?;
    let names: Vec<String> =
        if named.is_empty() { bench.registry.names().iter().map(|&name| name.to_owned()).collect() } else { named };
    let mut agreeing = Vec::new();
    let mut reference: Option<(Vec<String>, Vec<Tensor>)> = None;
    for name in names {
        let outputs = match bench.outputs(&name, 1, 1) {
            Ok(outputs) => outputs,
            Err(Failure::Input(error)) => return Err(Failure::Input(error)),
            Err(failure) => {
                excluded.insert(name, failure.message());
                continue;
            }
        };
        let (names, expected) = reference.get_or_insert_with(|| outputs.clone());
        match agree::disagreement(names, expected, &outputs.1, bench.tolerance) {
            None => agreeing.push(name),
            Some(reason) => drop(excluded.insert(name, format!("it disagrees with the first engine: {reason}"))),
        }
    }
    bench.reference.extend(reference.map(|(_, outputs)| (1, outputs)));
    if agreeing.is_empty() {
        let reasons: Vec<_> = excluded.iter().map(|(name, reason)| format!("{name}: {reason}")).collect();
        return Err(Failure::Work(anyhow!("no engine runs `{}`: {}", bench.args.model.display(), reasons.join("; "))));
    }
    Ok(agreeing)
}

/// A model may leave its first dimension open and still not take two items: that is tried.
fn takes_batches(bench: &mut Bench<'_>, engines: &[String]) -> Result<bool, Failure> {
    let Some(engine) = engines.first() else { return Ok(false) };
    let sessions = bench.take(engine, 1, 1)?;
    let takes = sessions.first().is_some_and(|session| {
        inputs::takes_batches(session.inputs())
            && bench.args.shapes.is_empty()
            && bench.inputs(session.as_ref(), 2).is_ok_and(|inputs| doubles(session.as_ref(), &inputs))
    });
    bench.give_back(engine, 1, sessions);
    Ok(takes)
}

fn doubles(session: &dyn Session, inputs: &Inputs) -> bool {
    let outputs = session.run(&inputs::borrowed(inputs), RunOptions::default());
    outputs.is_ok_and(|outputs| outputs.iter().all(|tensor| tensor.shape().first() == Some(&2)))
}

impl Bench<'_> {
    fn inputs(&self, session: &dyn Session, batch: usize) -> Result<Inputs, Failure> {
        let wanted = Wanted { shapes: self.args.shapes.clone(), batch: Some(batch) };
        inputs::synthesise(session.inputs(), self.model, &wanted)
    }

    /// As many sessions of an engine as asked for, those that were kept first.
    fn take(&mut self, engine: &str, threads: usize, count: usize) -> Result<Vec<Box<dyn Session>>, Failure> {
        let mut sessions = self.sessions.remove(&(engine.to_owned(), threads)).unwrap_or_default();
        let (threads_wanted, providers) = (threads.try_into().ok(), self.providers.clone());
        let options = SessionOptions { threads: threads_wanted, profile: false, providers, lower: false };
        while sessions.len() < count {
            sessions.push(engines::load(self.registry, &self.args.model, Some(engine), &options)?.session);
        }
        Ok(sessions)
    }

    fn give_back(&mut self, engine: &str, threads: usize, sessions: Vec<Box<dyn Session>>) {
        if self.keep_sessions {
            self.sessions.insert((engine.to_owned(), threads), sessions);
        }
    }

    /// Whether a setting answers what the first engine does on one thread.
    fn check(&mut self, reference: &str, candidate: &Candidate) -> Result<(), Failure> {
        let Candidate { engine, batch, threads, .. } = candidate;
        if !self.reference.contains_key(batch) {
            let (_, outputs) = self.outputs(reference, 1, *batch)?;
            self.reference.insert(*batch, outputs);
        }
        let (names, outputs) = self.outputs(engine, *threads, *batch)?;
        let expected = self.reference.get(batch).map(Vec::as_slice).unwrap_or_default();
        match agree::disagreement(&names, expected, &outputs, self.tolerance) {
            None => Ok(()),
            Some(reason) => Err(Failure::Work(anyhow!("it disagrees with {reference} on 1 thread: {reason}"))),
        }
    }

    /// Names and values of what one run answers.
    fn outputs(&mut self, engine: &str, threads: usize, batch: usize) -> Result<(Vec<String>, Vec<Tensor>), Failure> {
        let sessions = self.take(engine, threads, 1)?;
        let session = sessions.first().ok_or_else(|| anyhow!("no session"))?;
        let inputs = self.inputs(session.as_ref(), batch)?;
        let run = session.run(&inputs::borrowed(&inputs), RunOptions::default());
        let outputs = run.with_context(|| inputs::described(&inputs))?;
        let names = session.outputs().iter().map(|info| info.name.clone()).collect();
        self.give_back(engine, threads, sessions);
        Ok((names, outputs))
    }

    fn slice(&mut self, candidate: &Candidate, seconds: f64) -> Result<Summary, Failure> {
        let Candidate { engine, batch, threads, instances } = candidate;
        let sessions = self.take(engine, *threads, *instances)?;
        let used: Vec<&dyn Session> = sessions.iter().take(*instances).map(AsRef::as_ref).collect();
        let first = used.first().ok_or_else(|| anyhow!("no session"))?;
        let inputs = self.inputs(*first, *batch)?;
        let named = inputs::borrowed(&inputs);
        let load = Load { sessions: &used, inputs: &named, batch: *batch, budget: Duration::ZERO, min_runs: 1 };
        // The run before has left its own data in the caches.
        measure::measure(&load)?;
        let summary = measure::measure(&Load { budget: Duration::from_secs_f64(seconds), ..load })?;
        self.give_back(engine, *threads, sessions);
        Ok(summary)
    }
}

/// What was measured: all of it, and what is left in the last round.
struct Measured {
    all: Scores,
    last: Scores,
}

/// Rounds of turns until few candidates are left.
fn halve(
    bench: &mut Bench<'_>,
    state: &mut State,
    mut left: Vec<Candidate>,
    excluded: &mut BTreeMap<String, String>,
) -> Result<Measured, Failure> {
    let reference = left.first().map(|candidate| candidate.engine.clone()).unwrap_or_default();
    let mut slices: BTreeMap<Candidate, Vec<Summary>> = BTreeMap::new();
    let bar = progress_bar();
    interrupt::listen();
    for round in 0.. {
        let weight = plan::weight(round);
        let seconds = bench.args.slice_seconds * weight as f64;
        bar.set_length(bar.position() + plan::work(left.len(), round, TURNS));
        for turn in 0..TURNS {
            for candidate in left.clone() {
                stop_if_interrupted(state)?;
                bar.set_message(format!("round {}: {}", round + 1, label(&candidate)));
                let measured = state.slice(round, turn, &candidate, || {
                    if (round, turn) == (0, 0) {
                        bench.check(&reference, &candidate)?;
                    }
                    bench.slice(&candidate, seconds)
                });
                match measured {
                    Ok(summary) => slices.entry(candidate).or_default().push(summary),
                    Err(failure) => {
                        excluded.insert(label(&candidate), failure.message());
                        slices.remove(&candidate);
                        left.retain(|other| *other != candidate);
                    }
                }
                bar.inc(weight);
            }
        }
        let scored = |(c, s): (&Candidate, &Vec<Summary>)| Some((c.clone(), Score::of(s)?));
        let all: Scores = slices.iter().filter_map(scored).collect();
        let last: Scores = all.iter().filter(|(c, _)| left.contains(c)).map(|(c, s)| (c.clone(), s.clone())).collect();
        let next = plan::survivors(&last, bench.args.target_latency_ms);
        if plan::is_last(&last) || next.len() == left.len() {
            bar.finish_and_clear();
            return Ok(Measured { all, last });
        }
        left = next;
    }
    Ok(Measured { all: Scores::new(), last: Scores::new() })
}

fn stop_if_interrupted(state: &State) -> Outcome {
    if !interrupt::came() {
        return Ok(());
    }
    let kept = state.path().display();
    Err(Failure::Work(anyhow!(
        "interrupted; what was measured is in `{kept}`, and the same command goes on from there"
    )))
}

fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new(1);
    if let Ok(style) = ProgressStyle::with_template("{bar:30.cyan/dim} {percent:>3} %, {eta} left, {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

fn label(candidate: &Candidate) -> String {
    let Candidate { engine, batch, threads, instances } = candidate;
    format!("{engine}, {threads} threads, batch {batch}, {instances} at once")
}

fn conclude(args: &TuneArgs, measured: &Measured, model_sha256: String) -> Result<Report, Failure> {
    let best = |(candidate, score): (&Candidate, &Score)| Best { candidate: candidate.clone(), score: score.clone() };
    let nothing = || anyhow!("every candidate failed");
    let latency = plan::best_latency(&measured.last).map(best).ok_or_else(nothing)?;
    let met = plan::best_throughput(&measured.last, args.target_latency_ms).map(best);
    let target_met = met.is_some();
    // Where nothing meets the target, the shortest latency comes nearest.
    let throughput = met.unwrap_or_else(|| latency.clone());
    Ok(Report {
        model_sha256,
        latency,
        throughput,
        target_latency_ms: args.target_latency_ms,
        target_met,
        tolerance: 0.0,
        excluded: BTreeMap::new(),
        resumed_slices: 0,
        measured: measured.all.iter().map(best).collect(),
    })
}

fn show(report: &Report, output: &Path, context: &Context) -> Outcome {
    if context.json {
        return print::json(report);
    }
    for (name, reason) in &report.excluded {
        print::line(&format!("left out {name}: {reason}"))?;
    }
    let row = |goal: &str, best: &Best| {
        let Candidate { engine, batch, threads, instances } = &best.candidate;
        let mut row = vec![goal.to_owned(), engine.clone()];
        row.extend([threads, batch, instances].map(usize::to_string));
        row.extend([print::ms(best.score.p50_ms), print::ms(best.score.p99_ms), print::rate(best.score.per_second)]);
        row
    };
    let rows = vec![row("latency", &report.latency), row("throughput", &report.throughput)];
    let header = ["best for", "engine", "threads", "batch", "at once", "p50", "p99", "items/s"];
    print::table(&header, rows, 2)?;
    if report.resumed_slices > 0 {
        print::line(&format!("went on from {} measurements of an interrupted run", report.resumed_slices))?;
    }
    print::line(&format!("written to {}", output.display()))
}

//! `edgeward bench`: what one model costs on this machine with one engine, without a server.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use edgeward_engine::{Profile, RunOptions, Session, SessionOptions};
use serde::Serialize;

use crate::{
    Context,
    engines::{self, EngineArgs},
    failure::{Failure, Outcome},
    inputs::{self, NamedShape, Wanted},
    measure::{self, Load, PeakMemory, Summary},
    print,
};

const PROFILE_ROWS: usize = 15;

/// Options of `bench`.
#[derive(clap::Args)]
pub struct BenchArgs {
    /// ONNX file
    model: PathBuf,
    #[command(flatten)]
    engine: EngineArgs,
    /// Items in one run, where the model leaves its first dimension open
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,
    /// Seconds to measure
    #[arg(long, default_value_t = 3.0, value_parser = seconds)]
    seconds: f64,
    /// Time of each operator
    #[arg(long)]
    profile: bool,
    /// Inputs from a `.npz` or `.json` file instead of made-up ones
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Shape of an input, e.g. `image=1,3,224,224` (repeat)
    #[arg(long = "shape", value_name = "NAME=DIMS")]
    shapes: Vec<NamedShape>,
}

/// A number of seconds from a millisecond to a day.
pub fn seconds(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    if (0.001..=86400.0).contains(&value) { Ok(value) } else { Err("expected 0.001 to 86400".to_owned()) }
}

#[derive(Serialize)]
struct Report {
    model: String,
    engine: &'static str,
    engine_version: String,
    threads: Option<usize>,
    batch: u32,
    inputs: Vec<InputShape>,
    load_ms: f64,
    first_run_ms: f64,
    #[serde(flatten)]
    summary: Summary,
    /// Engine, model and what its runs take, beyond what the process had before; none where that cannot be measured.
    peak_memory_bytes: Option<u64>,
    /// None where it was not asked for, or the engine records none.
    profile: Option<Profile>,
}

#[derive(Serialize)]
struct InputShape {
    name: String,
    shape: Vec<usize>,
}

/// Runs the command.
pub fn run(args: &BenchArgs, context: &Context) -> Outcome {
    let report = measure_model(args, context)?;
    if context.json {
        return print::json(&report);
    }
    print_report(&report)?;
    match &report.profile {
        Some(profile) => print_profile(profile),
        None if args.profile => print::line(&format!("{} records no times of operators", report.engine)),
        None => Ok(()),
    }
}

fn measure_model(args: &BenchArgs, context: &Context) -> Result<Report, Failure> {
    engines::check_file(&args.model)?;
    // What is no model is said before an engine is opened; it is not kept, so that only the engine's copy counts.
    drop(engines::read_model(&args.model)?);
    let registry = engines::registry(&context.settings.engine);
    let engine = args.engine.or(&context.settings.engine)?;
    let options = engine.session();
    let mut memory = PeakMemory::start();
    let prepared = engines::load(&registry, &args.model, engine.engine.as_deref(), &options)?;
    let session = prepared.session.as_ref();
    let wanted = Wanted { shapes: args.shapes.clone(), batch: Some(args.batch as usize) };
    memory.iter_mut().for_each(PeakMemory::pause);
    let inputs = inputs::of(session.inputs(), &engines::read_model(&args.model)?, args.input.as_deref(), &wanted)?;
    let memory = memory.filter(|memory| memory.resume().is_some());
    let named = inputs::borrowed(&inputs);

    let began = Instant::now();
    session.run(&named, RunOptions::default()).with_context(|| inputs::described(&inputs))?;
    let first_run = began.elapsed();
    let load = |seconds, min_runs| Load {
        sessions: &[],
        inputs: &named,
        batch: args.batch as usize,
        budget: Duration::from_secs_f64(seconds),
        min_runs,
    };
    // Caches, thread pools and the processor's clock settle first.
    measure::measure(&Load { sessions: &[session], ..load(args.seconds * 0.1, 1) })?;
    let summary = measure::measure(&Load { sessions: &[session], ..load(args.seconds, 3) })?;
    let peak_memory_bytes = memory.map(PeakMemory::end);
    let profile =
        args.profile.then(|| profile(args, prepared.engine.as_ref(), &options, &named)).transpose()?.flatten();
    Ok(Report {
        model: args.model.display().to_string(),
        engine: prepared.engine.name(),
        engine_version: prepared.engine.info().version,
        threads: engine.threads.map(usize::from),
        batch: args.batch,
        inputs: inputs.iter().map(|(name, t)| InputShape { name: name.clone(), shape: t.shape().to_vec() }).collect(),
        load_ms: prepared.load.as_secs_f64() * 1e3,
        first_run_ms: first_run.as_secs_f64() * 1e3,
        summary,
        peak_memory_bytes,
        profile,
    })
}

/// A second session records the operators, so that recording does not slow what is reported.
fn profile(
    args: &BenchArgs,
    engine: &dyn edgeward_engine::Engine,
    options: &SessionOptions,
    inputs: &[(&str, &edgeward_graph::Tensor)],
) -> Result<Option<Profile>, Failure> {
    let options = SessionOptions { profile: true, ..options.clone() };
    let session: Box<dyn Session> = engine.load(&edgeward_engine::Source::File(args.model.clone()), &options)?;
    let budget = Duration::from_secs_f64(args.seconds.min(1.0));
    measure::measure(&Load { sessions: &[session.as_ref()], inputs, batch: 1, budget, min_runs: 3 })?;
    Ok(session.profile())
}

fn print_report(report: &Report) -> Outcome {
    let shapes: Vec<_> = report.inputs.iter().map(|input| format!("{} {:?}", input.name, input.shape)).collect();
    let threads = report.threads.map_or_else(|| "its own choice of".to_owned(), |threads| threads.to_string());
    print::line(&format!("{}  {} {}, {threads} threads", report.model, report.engine, report.engine_version))?;
    print::line(&format!("inputs: {}", shapes.join(", ")))?;
    let summary = &report.summary;
    let row = vec![
        print::ms(report.load_ms),
        print::ms(report.first_run_ms),
        print::ms(summary.p50_ms),
        print::ms(summary.p90_ms),
        print::ms(summary.p99_ms),
        print::rate(summary.per_second),
        report.peak_memory_bytes.map_or_else(|| "unknown".to_owned(), print::bytes),
    ];
    let header = ["load", "first run", "p50", "p90", "p99", "items/s", "peak memory"];
    print::table(&header, vec![row], 0)
}

fn print_profile(profile: &Profile) -> Outcome {
    let total: f64 = profile.nodes.iter().map(|node| node.total.as_secs_f64()).sum();
    let runs = profile.runs.max(1) as f64;
    let row = |node: &edgeward_engine::NodeTime| {
        let seconds = node.total.as_secs_f64();
        let share = if total > 0.0 { 100.0 * seconds / total } else { 0.0 };
        vec![node.op_type.clone(), node.name.clone(), print::ms(seconds * 1e3 / runs), format!("{share:.1} %")]
    };
    let rows: Vec<_> = profile.nodes.iter().take(PROFILE_ROWS).map(row).collect();
    print::table(&["operator", "node", "per run", "share"], rows, 2)?;
    match profile.nodes.len().saturating_sub(PROFILE_ROWS) {
        0 => Ok(()),
        more => print::line(&format!("and {more} more; all of them with `--json`")),
    }
}

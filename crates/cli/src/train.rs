//! `edgeward train`: from a model and data to the same model with new weights.
//!
//! Composes what `edgeward-train` has; decides nothing about gradients, data or the loop. `train/options.rs` is what may be
//! said on the command line and in `[train]`, `train/plan.rs` what it means, `train/material.rs` opens the data.

pub mod material;
mod new;
pub mod options;
pub mod plan;
mod watch;

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use edgeward_engine::{Loaded, Registry, SessionOptions, Source};
use edgeward_train::{
    Step, TrainError, build,
    data::Fit,
    trainer::{Checkpoint, End, EpochReport, Run, train},
};
use serde::Serialize;

use self::{
    material::{Material, Recipe},
    options::TrainOptions,
    plan::Planned,
};
use crate::{
    Context,
    engines::{self, EngineArgs},
    failure::{Failure, Outcome},
    interrupt, print,
};

/// Options of `train`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct TrainCommand {
    #[command(subcommand)]
    start: Option<Start>,
    #[command(flatten)]
    args: TrainArgs,
}

#[derive(clap::Subcommand)]
enum Start {
    /// Write an initialised model to begin with
    New(new::NewArgs),
}

#[derive(clap::Args)]
struct TrainArgs {
    /// ONNX file
    #[arg(required = true)]
    model: Option<PathBuf>,
    /// Trained model
    #[arg(short, long, value_name = "FILE", required = true)]
    output: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    options: TrainOptions,
    /// Go on from the checkpoint of a run that was interrupted
    #[arg(long)]
    resume: bool,
    /// Run the training step in standard operators, without the engine's own faster ones
    #[arg(long)]
    portable: bool,
}

/// What a run came to.
#[derive(Serialize)]
struct Report<'a> {
    output: String,
    tokenizer: Option<String>,
    engine: &'static str,
    threads: Option<usize>,
    end: End,
    metric: &'static str,
    #[serde(flatten)]
    cost: watch::Cost,
    /// From 1; none where nothing judged.
    best_epoch: Option<u64>,
    /// What the metric was in it.
    best: Option<f64>,
    steps: u64,
    epochs: &'a [EpochReport],
}

/// Runs the command.
pub fn run(command: &TrainCommand, context: &Context) -> Outcome {
    match &command.start {
        Some(Start::New(args)) => new::run(args, context),
        None => learn(&command.args, context),
    }
}

/// Where files go.
struct Places {
    output: PathBuf,
    tokenizer: PathBuf,
    checkpoint: PathBuf,
    /// The checkpoint is the user's own file, which stays.
    checkpoint_stays: bool,
}

impl Places {
    fn new(output: &Path, options: &TrainOptions) -> Result<Self, Failure> {
        let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if output.is_dir() || !folder.is_dir() {
            let why = if output.is_dir() { "is a folder" } else { "is in a folder that does not exist" };
            return Err(Failure::input(format!("output `{}` {why}; name a file with `-o FILE`", output.display())));
        }
        let beside = || engines::beside(output, "checkpoint");
        Ok(Self {
            output: output.to_owned(),
            tokenizer: engines::beside(output, "tokenizer.json"),
            checkpoint: options.checkpoint.clone().unwrap_or_else(beside),
            checkpoint_stays: options.checkpoint.is_some(),
        })
    }
}

fn learn(args: &TrainArgs, context: &Context) -> Outcome {
    let options = args.options.or(&context.settings.train);
    let (Some(path), Some(output)) = (&args.model, &args.output) else {
        return Err(Failure::input("a model and `-o FILE` are needed"));
    };
    engines::check_file(path)?;
    let forward = engines::read_model(path)?;
    let places = Places::new(output, &options)?;
    let how = args.engine.or(&context.settings.engine)?;
    let material = Material::open(&forward, &options)?;
    let planned = Planned::new(&options, &forward, &material)?;
    let step = build(&forward, &planned.spec).map_err(|error| in_model(path, error))?;
    let registry = engines::registry(&context.settings.engine);
    let session = SessionOptions { lower: !args.portable, ..how.session() };
    let loaded = load(&registry, &step, how.engine.as_deref(), &session)?;
    let (data, judge) = planned.loaders(&material, &step)?;
    let settings = planned.settings(&data, &places.checkpoint);
    let resume = match args.resume {
        true => Some(Checkpoint::read(&places.checkpoint).map_err(failed)?),
        false => None,
    };
    if let Some(tokenisation) = &material.tokenisation {
        std::fs::write(&places.tokenizer, tokenisation.to_json().map_err(|error| failed(error.into()))?)?;
    }
    interrupt::listen();
    let mut watch = watch::Terminal::new(&options, &data, settings.epochs, context)?;
    let run = Run {
        forward: &forward,
        step: &step,
        session: loaded.session.as_ref(),
        engine: loaded.engine.as_ref(),
        options: how.session(),
        data,
        judge,
        settings,
    };
    let trained = train(&run, resume, &mut watch);
    let cost = watch.cost();
    watch.finish()?;
    let trained = trained.map_err(failed)?;
    if trained.end == End::Stopped {
        let kept = places.checkpoint.display();
        let epoch = trained.progress.epoch + 1;
        let text = format!("interrupted in epoch {epoch}; the same command with `--resume` goes on from `{kept}`");
        return Err(Failure::Work(anyhow!(text)));
    }
    let mut model = trained.model;
    Recipe::of(&material, &planned).write(&mut model)?;
    model.write(&places.output)?;
    if !places.checkpoint_stays {
        // The run is over; that there may be none is no error.
        let _ = std::fs::remove_file(&places.checkpoint);
    }
    let report = Report {
        output: places.output.display().to_string(),
        tokenizer: material.tokenisation.as_ref().map(|_| places.tokenizer.display().to_string()),
        engine: loaded.engine.name(),
        threads: how.threads.map(usize::from),
        end: trained.end,
        metric: run.settings.metric.name(),
        cost,
        best_epoch: trained.progress.best_epoch.map(|epoch| epoch + 1),
        best: trained.progress.best,
        steps: trained.progress.step,
        epochs: &trained.progress.epochs,
    };
    show(&report, context)
}

/// The named engine and no other, or the first that can.
fn load(registry: &Registry, step: &Step, engine: Option<&str>, options: &SessionOptions) -> Result<Loaded, Failure> {
    let source = Source::Bytes(step.graph.to_bytes()?.into());
    let loaded = match engine {
        None => registry.load(None, &source, options),
        Some(name) => {
            registry.get(name).and_then(|engine| Ok(Loaded { session: engine.load(&source, options)?, engine }))
        }
    };
    loaded.map_err(|error| Failure::Work(anyhow::Error::new(error).context("the training step does not load")))
}

fn in_model(path: &Path, error: TrainError) -> Failure {
    Failure::Input(anyhow::Error::new(error).context(format!("model `{}`", path.display())))
}

/// What the caller can mend is the caller's fault.
pub fn failed(error: TrainError) -> Failure {
    use edgeward_train::ErrorKind::{Data, Graph, Invalid, Unsupported};
    match error.kind() {
        Graph | Unsupported | Invalid | Data => Failure::Input(error.into()),
        _ => Failure::Work(error.into()),
    }
}

fn show(report: &Report<'_>, context: &Context) -> Outcome {
    if context.json {
        return print::json(report);
    }
    let best = report.best_epoch.zip(report.best);
    let best =
        best.map_or_else(String::new, |(epoch, value)| format!(", {} {value:.4} in epoch {epoch}", report.metric));
    let why = if report.end == End::Patience { ", ended early: no epoch was better" } else { "" };
    print::line(&format!("{} after {} epochs on {}{best}{why}", report.output, report.epochs.len(), report.engine))?;
    print::line(&report.cost.to_string())?;
    match &report.tokenizer {
        Some(tokenizer) => print::line(&format!("its tokenizer is {tokenizer}")),
        None => Ok(()),
    }
}

/// A fit, or what does not fit as the caller's fault.
pub fn fitted(fit: Result<Fit, edgeward_train::data::DataError>) -> Result<Fit, Failure> {
    fit.map_err(|error| Failure::Input(error.into()))
}

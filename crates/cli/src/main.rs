//! The `edgeward` binary: command line, configuration and composition.
//!
//! What a command does is in its own module; how graphs are read, run and served is in the crates below.

mod bench;
mod compress;
mod demo;
mod engine;
mod engines;
mod evaluate;
mod failure;
mod gate;
mod infer;
mod inputs;
mod inspect;
mod interrupt;
mod log;
mod measure;
mod memory;
mod print;
mod release;
mod serve;
mod settings;
mod signals;
mod telemetry;
mod train;
mod trust;
mod tune;
mod whole;
mod wire;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{failure::Outcome, settings::Settings};

/// Takes an ONNX model from training to production.
#[derive(Parser)]
#[command(name = "edgeward", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// Configuration file [default: edgeward.toml where the working folder has one]
    #[arg(long, global = true, env = "EDGEWARD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Show what a model is made of and which engines run it
    Inspect(inspect::InspectArgs),
    /// Run a model once and print its outputs
    Infer(infer::InferArgs),
    /// Measure load time, latency, throughput and memory of a model
    Bench(bench::BenchArgs),
    /// Find the engine, threads and batch that serve a model best on this machine
    Tune(tune::TuneArgs),
    /// Train a model on data, or write one to begin with
    Train(Box<train::TrainCommand>),
    /// Judge a model on data
    Evaluate(Box<evaluate::EvaluateArgs>),
    /// Make a model smaller and faster, measured, or not at all
    Compress(Box<compress::CompressArgs>),
    /// Train a small model, serve it, send requests and print what they cost
    Demo(demo::DemoArgs),
    /// Serve models over the Open Inference Protocol
    Serve(Box<serve::ServeArgs>),
    /// Local authority, policies and the audit log
    Trust(trust::TrustCommand),
    /// Releases: pack, sign, verify, seal and move them
    Release(release::ReleaseCommand),
    /// List, fetch and locate engines
    Engine(engine::EngineCommand),
}

/// What every command knows beside its own options.
pub struct Context {
    /// Print JSON instead of text.
    pub json: bool,
    /// `edgeward.toml`.
    pub settings: Settings,
}

fn main() -> ExitCode {
    memory::set_up();
    signals::survive_full_files();
    let cli = Cli::parse();
    let json = cli.json;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            print::note!("error: {}", failure.message());
            if json && !failure.is_told() {
                // Where standard output is what failed, there is nobody left to tell.
                let _ = print::json(&serde_json::json!({ "error": failure.message() }));
            }
            failure.exit_code()
        }
    }
}

fn run(cli: Cli) -> Outcome {
    let context = Context { json: cli.json, settings: settings::load(cli.config.as_deref())? };
    match cli.command {
        Command::Inspect(args) => inspect::run(&args, &context),
        Command::Infer(args) => infer::run(&args, &context),
        Command::Bench(args) => bench::run(&args, &context),
        Command::Tune(args) => tune::run(&args, &context),
        Command::Train(args) => train::run(&args, &context),
        Command::Evaluate(args) => evaluate::run(&args, &context),
        Command::Compress(args) => compress::run(&args, &context),
        Command::Demo(args) => demo::run(&args, &context),
        Command::Serve(args) => serve::run(*args, &context),
        Command::Trust(args) => trust::run(&args, &context),
        Command::Release(args) => release::run(&args, &context),
        Command::Engine(args) => engine::run(&args, &context),
    }
}

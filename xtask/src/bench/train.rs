//! `cargo xtask bench train`: what a training step costs next to PyTorch's, and what training reaches on real data.

mod private;
mod result;
mod sides;

use anyhow::{Context as _, ensure};

use self::sides::{CASES, Case, Form, Material, RESNET, Side, TRANSFORMER, Turn};
use crate::bench::{Bar, Benchmark, Effort, Row, figure, peers::Edgeward, run_bars};

const BARS: [(&str, Bar); 6] = [
    ("step", step),
    ("rust", rust),
    ("dp", private::run),
    ("memory", memory),
    ("result", result::run),
    ("builtin", built_in),
];

/// Runs the benchmark; an error where a bar does not hold.
pub fn run(args: &[String]) -> anyhow::Result<()> {
    let benchmark = Benchmark {
        name: "cargo xtask bench train",
        about: "What a training step costs, next to PyTorch",
        bars: &BARS,
        long: &[],
        models: &[],
    };
    run_bars(&benchmark, args)
}

/// PyTorch as it comes, and its other settings.
const EAGER: Side = Side::Torch("eager");
const SETTINGS: [Side; 2] = [Side::Torch("channels_last"), Side::Torch("compile")];

/// The largest difference of mean losses, as a part, between two sides that do the same: they begin with the same weights and see
/// the same batches, and normalisations amplify what is rounded.
const LOSS_DIFFERENCE_MAX: f64 = 0.02;

/// One step of each model.
fn step(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let material = Material::new(edgeward, effort);
    let mut rows = Vec::new();
    let mut ahead = 0;
    for case in CASES {
        match step_of(&material, &case, effort) {
            Ok((found, is_ahead)) => {
                rows.extend(found);
                ahead += usize::from(is_ahead);
            }
            Err(error) => rows.push(Row::skipped("step", case.what, error)),
        }
    }
    rows.push(Row::at_least("step", "models on which it is ahead of every setting", ahead as f64, "", 1.0));
    Ok(rows)
}

/// Rows of a model, and whether it is ahead there.
fn step_of(material: &Material<'_>, case: &Case, effort: Effort) -> anyhow::Result<(Vec<Row>, bool)> {
    let engine = material.edgeward.fast_engine();
    let (ours, plain) =
        (Side::Edgeward { engine, form: Form::Lowered }, Side::Edgeward { engine, form: Form::Portable });
    let sides: Vec<Side> = [ours, plain, EAGER].into_iter().chain(case.settings()).collect();
    let mut turns = material.alternate(case, &sides, effort.rounds)?.into_iter();
    let (Some(own), Some(plain), Some(eager)) = (turns.next(), turns.next(), turns.next()) else {
        anyhow::bail!("no side ran")
    };
    let (own, plain, eager) = (own?, plain?, eager?);
    agree(&own, &eager)?;
    agree(&plain, &eager)?;
    let named = std::iter::once(("eager", Ok(eager.clone()))).chain(sides.iter().skip(3).map(Side::name).zip(turns));
    let (mut best, mut told) = (("eager", eager.step_ms), Vec::new());
    for (name, turn) in named {
        match turn {
            Ok(turn) => {
                told.push(format!("{name} {}", turn.shown()));
                best = if turn.step_ms < best.1 { (name, turn.step_ms) } else { best };
            }
            Err(error) => told.push(format!("{name} skipped: {error:#}")),
        }
    }
    let what = |side: &str| format!("{}: time of a step to that of PyTorch, {side}", case.what);
    let best_ratio = own.step_ms / best.1;
    let rows = vec![
        Row::at_most("step", what("eager"), own.step_ms / eager.step_ms, "", 1.0).against(format!(
            "{} {}, {}",
            material.edgeward.fast_engine(),
            own.shown(),
            told.join(", ")
        )),
        Row::at_most("step", what("its best"), best_ratio, "", 1.15).against(format!("its best is {}", best.0)),
        Row::information("step", what("its best, in the portable graph"), plain.step_ms / best.1, "")
            .against(plain.shown()),
    ];
    Ok((rows, best_ratio < 1.0))
}

/// One step of the models that candle and burn were given.
fn rust(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let material = Material::new(edgeward, effort);
    let ours = Side::Edgeward { engine: edgeward.fast_engine(), form: Form::Lowered };
    let libraries = ["candle", "burn"];
    let mut rows = Vec::new();
    for case in [RESNET, TRANSFORMER] {
        let sides: Vec<Side> = std::iter::once(ours).chain(libraries.map(Side::Rust)).collect();
        let mut turns = material.alternate(&case, &sides, 1)?.into_iter();
        let own = turns.next().context("no side ran")??;
        for (library, turn) in libraries.into_iter().zip(turns) {
            let what = format!("{}: time of a step in {library} to that", case.what);
            rows.push(match turn {
                Ok(turn) => Row::at_least("rust", what, turn.step_ms / own.step_ms, "", 2.0).against(format!(
                    "{} and {}",
                    turn.shown(),
                    own.shown()
                )),
                Err(error) => Row::skipped("rust", what, error),
            });
        }
    }
    Ok(rows)
}

/// Both sides did the same.
fn agree(own: &Turn, other: &Turn) -> anyhow::Result<()> {
    let difference = (own.loss - other.loss).abs() / other.loss.abs();
    let (ours, theirs) = (figure(own.loss), figure(other.loss));
    ensure!(difference <= LOSS_DIFFERENCE_MAX, "the losses differ: {ours} and PyTorch's {theirs}; not the same step");
    Ok(())
}

/// The most memory of the processes that train.
fn memory(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let material = Material::new(edgeward, effort);
    let ours = Side::Edgeward { engine: edgeward.fast_engine(), form: Form::Lowered };
    let row = |case: &Case| -> anyhow::Result<Row> {
        let mut turns = material.alternate(case, &[ours, EAGER], 1)?.into_iter();
        let (Some(own), Some(eager)) = (turns.next(), turns.next()) else { anyhow::bail!("no side ran") };
        let (own, eager) = (own?.peak_memory_bytes, eager?.peak_memory_bytes);
        let what = format!("{}: peak resident memory to that of PyTorch, eager", case.what);
        let against = format!("{} and {} MB, whole processes", figure(own / 1e6), figure(eager / 1e6));
        Ok(Row::at_most("memory", what, own / eager, "", 1.0).against(against))
    };
    let skipped = |case: &Case, error| Row::skipped("memory", case.what, error);
    Ok(CASES.iter().map(|case| row(case).unwrap_or_else(|error| skipped(case, error))).collect())
}

/// The engine that is built in next to the faster one.
fn built_in(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    ensure!(edgeward.onnxruntime, "ONNX Runtime is not installed, so the built-in engine has no other beside it");
    let material = Material::new(edgeward, effort);
    let sides = ["rten", "onnxruntime"].map(|engine| Side::Edgeward { engine, form: Form::Lowered });
    let row = |case: &Case| -> anyhow::Result<Row> {
        let mut turns = material.alternate(case, &sides, 1)?.into_iter();
        let (Some(own), Some(other)) = (turns.next(), turns.next()) else { anyhow::bail!("no side ran") };
        let (own, other) = (own?, other?);
        agree(&own, &other)?;
        let what = format!("{}: time of a step on the built-in engine to that on ONNX Runtime", case.what);
        let against = format!("{} and {}", own.shown(), other.shown());
        Ok(Row::information("builtin", what, own.step_ms / other.step_ms, "").against(against))
    };
    let skipped = |case: &Case, error| Row::skipped("builtin", case.what, error);
    Ok(CASES.iter().map(|case| row(case).unwrap_or_else(|error| skipped(case, error))).collect())
}

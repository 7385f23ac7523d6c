//! Benchmarks, each with its peers in one run.
//!
//! A benchmark measures rows and prints them; which figures are good enough is in the rows, not here.

mod client;
mod compress;
mod idle;
mod load;
mod memory;
mod peers;
mod reload;
mod serve;
mod start;
mod starter;
mod tensor;
mod train;
mod trust;
mod wire;

use std::{io::Write as _, process::Command};

use clap::{CommandFactory as _, FromArgMatches as _};
use serde::Serialize;

use crate::{bench::peers::Edgeward, steps};

/// Runs the benchmark that `args` name.
///
/// The client's own cost must be small, above all that of its TLS: an unoptimised build of this program hands over to an optimised one.
pub fn run(args: &[String]) -> anyhow::Result<()> {
    if cfg!(debug_assertions) {
        let mut command = Command::new("cargo");
        command.current_dir(crate::root()).args(["run", "--release", "--quiet", "-p", "xtask", "--", "bench"]);
        return steps::run(command.args(args));
    }
    match args.split_first() {
        Some((name, rest)) if name == "serve" => serve::run(rest),
        Some((name, rest)) if name == "trust" => trust::run(rest),
        Some((name, rest)) if name == "train" => train::run(rest),
        Some((name, rest)) if name == "compress" => compress::run(rest),
        _ => anyhow::bail!("no benchmark `{}`; there are `serve`, `trust`, `train` and `compress`", args.join(" ")),
    }
}

/// How much of everything is measured.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Times that each side has its turn.
    pub rounds: usize,
    /// Seconds of a turn.
    pub seconds: u64,
    /// Divides counts of requests, cycles and connections.
    pub divisor: usize,
}

impl Effort {
    /// The whole, or a tenth to see that it runs.
    fn new(quick: bool) -> Self {
        if quick { Self { rounds: 1, seconds: 1, divisor: 20 } } else { Self { rounds: 3, seconds: 4, divisor: 1 } }
    }
}

/// Measures the rows of one bar.
type Bar = fn(&Edgeward, Effort) -> anyhow::Result<Vec<Row>>;

#[derive(clap::Parser)]
struct Options {
    /// Print rows as JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Measure these bars only (repeat)
    #[arg(long, value_name = "BAR")]
    only: Vec<String>,
    /// A tenth of the time, to see that it runs
    #[arg(long)]
    quick: bool,
}

/// What a benchmark measures, and on what.
struct Benchmark {
    /// How it is called.
    name: &'static str,
    about: &'static str,
    bars: &'static [(&'static str, Bar)],
    /// Bars that `--quick` leaves out, unless it is told to measure them.
    long: &'static [&'static str],
    /// Models of `tests/models/make.py` that it needs.
    models: &'static [&'static str],
}

/// Measures those bars of a benchmark that `args` ask for, and prints them; an error where one does not hold.
fn run_bars(benchmark: &Benchmark, args: &[String]) -> anyhow::Result<()> {
    let Benchmark { name, about, bars, long, models } = *benchmark;
    let known = bars.iter().map(|(bar, _)| *bar).collect::<Vec<_>>().join(", ");
    let command = Options::command().name(name).about(about).after_help(format!("Bars: {known}"));
    let options = Options::from_arg_matches(&command.get_matches_from(std::iter::once(&name.to_owned()).chain(args)))?;
    if let Some(unknown) = options.only.iter().find(|only| bars.iter().all(|(bar, _)| bar != only)) {
        anyhow::bail!("no bar `{unknown}`; there are {known}");
    }
    let effort = Effort::new(options.quick);
    eprintln!("building, making models");
    let edgeward = Edgeward::prepare(models)?;
    let mut rows = Vec::new();
    for &(name, bar) in bars {
        let by_itself = options.only.is_empty() && !(options.quick && long.contains(&name));
        if by_itself || options.only.iter().any(|only| only == name) {
            eprintln!("measuring: {name}");
            rows.extend(bar(&edgeward, effort).unwrap_or_else(|error| vec![Row::skipped(name, "this bar", error)]));
        }
    }
    print(&rows, options.json)?;
    match rows.iter().filter(|row| row.holds == Some(false)).count() {
        0 => Ok(()),
        missed => anyhow::bail!("{missed} of {} rows do not hold", rows.len()),
    }
}

/// One figure and what it is held against.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Group of rows that `--only` takes.
    pub bar: &'static str,
    /// What was measured.
    pub what: String,
    /// The figure; none where it could not be taken.
    pub value: Option<f64>,
    /// Its unit.
    pub unit: &'static str,
    /// The other side's figure, or why there is none.
    pub against: String,
    /// What the figure must be.
    pub target: String,
    /// Whether it is; none where the row is for information.
    pub holds: Option<bool>,
}

impl Row {
    /// A figure without a bar.
    pub fn information(bar: &'static str, what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        let (against, target) = (String::new(), String::new());
        Self { bar, what: what.into(), value: Some(value), unit, against, target, holds: None }
    }

    /// A figure that may be `max` at most.
    pub fn at_most(bar: &'static str, what: impl Into<String>, value: f64, unit: &'static str, max: f64) -> Self {
        let holds = Some(value <= max);
        Self { target: format!("≤ {}", figure(max)), holds, ..Self::information(bar, what, value, unit) }
    }

    /// A figure that must be `min` at least.
    pub fn at_least(bar: &'static str, what: impl Into<String>, value: f64, unit: &'static str, min: f64) -> Self {
        let holds = Some(value >= min);
        Self { target: format!("≥ {}", figure(min)), holds, ..Self::information(bar, what, value, unit) }
    }

    /// A bar that could not be measured.
    pub fn skipped(bar: &'static str, what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        let (against, target) = (format!("skipped: {why:#}"), String::new());
        Self { bar, what: what.into(), value: None, unit: "", against, target, holds: Some(false) }
    }

    /// Says what the figure is held against.
    pub fn against(self, against: impl Into<String>) -> Self {
        Self { against: against.into(), ..self }
    }
}

/// Three significant digits, whole from 100 on.
pub fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 || value == value.trunc() => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Prints the rows as JSON or as a table.
pub fn print(rows: &[Row], json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&serde_json::json!({ "rows": rows }))?)?;
        return Ok(());
    }
    let width = |text: &dyn Fn(&Row) -> usize| rows.iter().map(text).max().unwrap_or(0);
    let value = |row: &Row| row.value.map_or_else(|| "–".to_owned(), |v| format!("{} {}", figure(v), row.unit));
    let (what_width, value_width) = (width(&|r| r.what.chars().count()), width(&|r| value(r).chars().count()));
    let target_width = width(&|r| r.target.chars().count());
    for row in rows {
        let verdict = match row.holds {
            Some(true) => "holds",
            Some(false) => "FAILS",
            None => "",
        };
        let (bar, what, value, target) = (row.bar, &row.what, value(row), &row.target);
        let line = format!(
            "{bar:<10}  {what:<what_width$}  {value:>value_width$}  {target:<target_width$}  {verdict:<5}  {}",
            row.against
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// The middle value; the upper one of two.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

//! `cargo xtask bench trust`: what it costs that every call is verified, next to a server that asks nobody.

mod path;
mod revocation;

use std::process::Command;

use anyhow::Context as _;
use clap::Parser;

use crate::{
    bench::{Row, peers::Edgeward, print, serve::Effort},
    steps,
};

#[derive(Parser)]
#[command(name = "cargo xtask bench trust", about = "What verifying every call costs")]
struct Options {
    /// Print rows as JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Measure these bars only: path, decision, revocation, audit (repeat)
    #[arg(long, value_name = "BAR")]
    only: Vec<String>,
    /// A tenth of the time, to see that it runs
    #[arg(long)]
    quick: bool,
}

type Bar = fn(&Edgeward, Effort) -> anyhow::Result<Vec<Row>>;

const BARS: [(&str, Bar); 4] =
    [("path", path::run), ("decision", decision), ("revocation", revocation::run), ("audit", audit)];

/// Runs the benchmark; an error where a bar does not hold.
pub fn run(args: &[String]) -> anyhow::Result<()> {
    let name = "cargo xtask bench trust".to_owned();
    let options = Options::parse_from(std::iter::once(&name).chain(args));
    if let Some(unknown) = options.only.iter().find(|only| BARS.iter().all(|(bar, _)| bar != only)) {
        anyhow::bail!("no bar `{unknown}`; there are {}", BARS.map(|(bar, _)| bar).join(", "));
    }
    let effort = Effort::new(options.quick);
    eprintln!("building, making models");
    let edgeward = Edgeward::prepare()?;
    let mut rows = Vec::new();
    for (name, bar) in BARS {
        if options.only.is_empty() || options.only.iter().any(|only| only == name) {
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

/// The last line that an example of the trust crate prints: its figures as JSON.
fn example(name: &str, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
    let mut command = Command::new("cargo");
    command.current_dir(crate::root());
    command.args(["run", "--release", "--quiet", "-p", "edgeward-trust", "--example", name, "--"]).args(arguments);
    let text = steps::output(&mut command)?;
    serde_json::from_str(text.lines().last().unwrap_or_default()).context("the example printed no figures")
}

fn number(figures: &serde_json::Value, key: &str) -> anyhow::Result<f64> {
    figures[key].as_f64().with_context(|| format!("the example printed no `{key}`"))
}

/// One decision in a large set of policies.
fn decision(_: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let (policies, entities) = (10_000 / effort.divisor, 100_000 / effort.divisor);
    let figures = example("decide", &[&policies.to_string(), &entities.to_string()])?;
    let set = format!("{policies} policies, {entities} entities");
    Ok(vec![
        Row::at_most("decision", "a caller's first request, median", number(&figures, "first_us")?, "µs", 20.0)
            .against(set.clone()),
        Row::at_most("decision", "further requests, median", number(&figures, "again_us")?, "µs", 20.0).against(set),
        Row::information("decision", "loading the set", number(&figures, "load_s")?, "s"),
    ])
}

/// Appending to the log and proving from it.
fn audit(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let records = (10_000_000 / effort.divisor).to_string();
    let mut rows = Vec::new();
    for durability in ["strict", "interval"] {
        let folder = edgeward.work.join(format!("audit-{durability}"));
        let figures = example("audit", &[&folder.display().to_string(), &records, durability])?;
        std::fs::remove_dir_all(&folder)?;
        let per_second = number(&figures, &format!("{durability}_per_s"))?;
        rows.push(Row::at_least("audit", format!("records/s appended, {durability}"), per_second, "/s", 100_000.0));
        if durability == "interval" {
            for (key, what) in [("prove_us", "inclusion proof made"), ("verify_us", "inclusion proof verified")] {
                let row = Row::information("audit", what, number(&figures, key)?, "µs");
                rows.push(row.against(format!("one of {records} records")));
            }
        }
    }
    Ok(rows)
}

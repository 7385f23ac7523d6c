//! `cargo xtask bench trust`: what it costs that every call is verified and every model sealed, next to a server that asks nobody and to
//! a model that lies open.

mod path;
mod revocation;
mod sealed;

use std::process::Command;

use anyhow::Context as _;

use crate::{
    bench::{Bar, Benchmark, Effort, Row, peers::Edgeward, run_bars},
    steps,
};

const BARS: [(&str, Bar); 5] = [
    ("path", path::run),
    ("decision", decision),
    ("revocation", revocation::run),
    ("audit", audit),
    ("sealed", sealed::run),
];

/// Runs the benchmark; an error where a bar does not hold.
pub fn run(args: &[String]) -> anyhow::Result<()> {
    let benchmark = Benchmark {
        name: "cargo xtask bench trust",
        about: "What verifying every call costs",
        bars: &BARS,
        long: &[],
        models: &["identity16", "mobilenetv2"],
    };
    run_bars(&benchmark, args)
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

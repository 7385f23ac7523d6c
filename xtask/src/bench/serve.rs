//! `cargo xtask bench serve`: what serving costs on this machine, next to the servers that people use today.

use clap::Parser;

use crate::bench::{Row, idle, memory, peers::Edgeward, print, reload, start, tensor, wire};

#[derive(Parser)]
#[command(name = "cargo xtask bench serve", about = "What serving costs, next to other servers")]
struct Options {
    /// Print rows as JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Measure these bars only: wire, tensor, saturation, memory, reload, idle, start (repeat)
    #[arg(long, value_name = "BAR")]
    only: Vec<String>,
    /// A tenth of the time, to see that it runs
    #[arg(long)]
    quick: bool,
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
    pub fn new(quick: bool) -> Self {
        if quick { Self { rounds: 1, seconds: 1, divisor: 20 } } else { Self { rounds: 3, seconds: 4, divisor: 1 } }
    }
}

type Bar = fn(&Edgeward, Effort) -> anyhow::Result<Vec<Row>>;

const BARS: [(&str, Bar); 7] = [
    ("wire", wire::run),
    ("tensor", tensor::wire_cost),
    ("saturation", tensor::saturation),
    ("memory", memory::run),
    ("reload", reload::run),
    ("idle", idle::run),
    ("start", start::run),
];

/// Runs the benchmark; an error where a bar does not hold.
pub fn run(args: &[String]) -> anyhow::Result<()> {
    let name = "cargo xtask bench serve".to_owned();
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

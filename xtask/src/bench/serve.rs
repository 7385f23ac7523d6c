//! `cargo xtask bench serve`: what serving costs on this machine, next to the servers that people use today.

use crate::bench::{Bar, Benchmark, idle, memory, reload, run_bars, start, tensor, wire};

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
    let benchmark = Benchmark {
        name: "cargo xtask bench serve",
        about: "What serving costs, next to other servers",
        bars: &BARS,
        long: &[],
        models: &["identity16", "identity150528", "mobilenetv2", "resnet50_int8", "perceptron_4mb", "perceptron_100mb"],
    };
    run_bars(&benchmark, args)
}

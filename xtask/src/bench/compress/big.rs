//! A model of 1.3 billion parameters: what it takes to quantise it layer by layer.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, bail};

use super::{report::Compressed, text};
use crate::{
    bench::{Effort, Row, peers::Edgeward},
    steps,
};

/// Free memory and disk without which nothing is begun.
const FREE_BYTES_MIN: u64 = 16 << 30;
/// The most memory, as a part of the model's files.
const MEMORY_MAX: f64 = 2.0;

/// Makes the model, compresses it and measures memory, time, sizes and agreement; the files go afterwards.
pub fn run(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let folder = edgeward.work.join("big");
    fs::create_dir_all(&folder)?;
    let rows = room(&folder).and_then(|()| measured(edgeward, effort, &folder));
    fs::remove_dir_all(&folder)?;
    rows
}

fn room(folder: &Path) -> anyhow::Result<()> {
    let disk = rustix::fs::statvfs(folder)?;
    let disk = disk.f_bavail.saturating_mul(disk.f_frsize);
    let memory = fs::read_to_string("/proc/meminfo")?;
    let memory = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next());
    let memory = memory.context("`/proc/meminfo` has no `MemAvailable`")?.parse::<u64>()? * 1024;
    for (what, free) in [("disk", disk), ("memory", memory)] {
        if free < FREE_BYTES_MIN {
            bail!("{} GB of {what} are free, {} are needed", free >> 30, FREE_BYTES_MIN >> 30);
        }
    }
    Ok(())
}

fn measured(edgeward: &Edgeward, effort: Effort, folder: &Path) -> anyhow::Result<Vec<Row>> {
    let mut command = Command::new(&edgeward.python);
    steps::run(command.arg(crate::root().join("bench/big_model.py")).arg(folder))?;
    let [model, prompts, out] = ["model.onnx", "prompts.npz", "out"].map(|name| text(&folder.join(name)));
    let mut arguments = vec![model.as_str(), "--data", &prompts, "--for", "size", "--max-drop", "0.1", "-o", &out];
    arguments.extend((effort.divisor > 1).then_some("--quick"));
    let report = Compressed::run(edgeward, &arguments)?;
    report.chosen().context("nothing was good enough")?;
    let bytes = report.original().bytes()?;
    let memory = |what: &str, key: &str| -> anyhow::Result<Row> {
        let peak = report.memory(key)?;
        let row =
            Row::at_most("big", format!("1.3 billion parameters: {what}, to the file"), peak / bytes, "×", MEMORY_MAX);
        Ok(row.against(format!("{:.2} of {:.2} GB", peak / 1e9, bytes / 1e9)))
    };
    let mut rows = vec![
        memory("most memory while quantising", "quantising_bytes_max")?,
        memory("most memory of all, loaded by the engine", "bytes_max")?,
        Row::information("big", "the whole command", report.seconds()?, "s"),
    ];
    for name in ["int8-dynamic", "int8-weights", "int4-weights"] {
        let Some(variant) = report.named(name).filter(|variant| variant.bytes().is_ok()) else { continue };
        let seconds = report.seconds_of(|part| part == format!("quantising: {name}"))?;
        let row = Row::information("big", format!("{name}: time to quantise"), seconds, "s");
        let (size, drop) = (variant.bytes()? / 1e9, variant.drop()?);
        rows.push(row.against(format!("{size:.2} GB, cosine {:.4}; {}", 1.0 - drop, variant.shown())));
    }
    Ok(rows)
}

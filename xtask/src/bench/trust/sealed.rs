//! What a seal costs a server that starts: the same release of 100 MB, sealed and unsealed, in turns.

use std::{path::Path, process::Command, time::Instant};

use crate::{
    bench::{
        Effort, Row,
        client::binary_request,
        figure, median,
        memory::{MODEL, WIDTH},
        peers::{Edgeward, Running},
        start::first_answer,
    },
    steps,
};

const RATIO_MAX: f64 = 1.3;

/// Each installed engine.
pub fn run(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let home = tempfile::Builder::new().prefix("sealed").tempdir_in(&edgeward.work)?;
    prepare(edgeward, home.path())?;
    let mut engines = vec!["rten"];
    if edgeward.onnxruntime {
        engines.push("onnxruntime");
    }
    let mut rows = Vec::new();
    for engine in engines {
        rows.extend(one(edgeward, home.path(), engine, effort.rounds * 5)?);
    }
    Ok(rows)
}

/// Packs, seals and signs the releases `plain` and `sealed`.
fn prepare(edgeward: &Edgeward, home: &Path) -> anyhow::Result<()> {
    let model = edgeward.model(MODEL).display().to_string();
    for words in [
        &["pack", &model, "--out", "plain", "--name", "weights"][..],
        &["seal", "plain", "--out", "sealed", "--keys", "keys"],
        &["sign", "plain", "--keys", "keys", "--write-public-key", "release.pub"],
        &["sign", "sealed", "--keys", "keys"],
    ] {
        steps::output(Command::new(&edgeward.binary).arg("release").args(words).current_dir(home))?;
    }
    Ok(())
}

/// Milliseconds from the start of the process to its first answer, and the most megabytes that it had until then.
fn start(edgeward: &Edgeward, home: &Path, release: &str, engine: &str) -> anyhow::Result<(f64, f64)> {
    let at = |name: &str| home.join(name).display().to_string();
    let (key, keys) = (at("release.pub"), at("keys"));
    let arguments =
        ["--engine", engine, "--threads", "1", "--public-key", &key, "--release-keys", &keys, "--releases-only"];
    let (mut command, http, grpc) = edgeward.command(&home.join(release), &arguments)?;
    let began = Instant::now();
    let server = Running::spawn(&mut command, http, grpc)?;
    first_answer(&server, &binary_request("weights", "INPUT0", &[1, WIDTH], &vec![0.5; WIDTH]), began)?;
    Ok((began.elapsed().as_secs_f64() * 1e3, server.peak_bytes()? / 1e6))
}

fn one(edgeward: &Edgeward, home: &Path, engine: &str, times: usize) -> anyhow::Result<[Row; 2]> {
    let mut taken = [const { (Vec::new(), Vec::new()) }; 2];
    for _ in 0..times {
        for (release, (milliseconds, megabytes)) in ["plain", "sealed"].into_iter().zip(&mut taken) {
            let (time, memory) = start(edgeward, home, release, engine)?;
            milliseconds.push(time);
            megabytes.push(memory);
        }
    }
    let [(mut plain_ms, mut plain_mb), (mut sealed_ms, mut sealed_mb)] = taken;
    let row = |what: &str, plain: &mut Vec<f64>, sealed: &mut Vec<f64>, unit: &str| {
        let (plain, sealed) = (median(plain), median(sealed));
        let what = format!("{engine}, a release of 100 MB: {what}, sealed to unsealed");
        let row = Row::at_most("sealed", what, sealed / plain, "×", RATIO_MAX);
        row.against(format!("{} and {} {unit}, medians of {times} in turns", figure(sealed), figure(plain)))
    };
    Ok([
        row("process start to first answer", &mut plain_ms, &mut sealed_ms, "ms"),
        row("most memory", &mut plain_mb, &mut sealed_mb, "MB"),
    ])
}

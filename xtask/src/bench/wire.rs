//! What a request costs beside the model: 16 floats to a model that gives them back, against other servers.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use crate::{
    bench::{
        Effort, Row,
        client::{Connection, json_body, json_request},
        figure, load, median,
        peers::{Edgeward, Peer, Running},
    },
    python, steps,
};

const BAR: &str = "wire";
const SHAPE: [usize; 2] = [1, 16];

/// A server that takes part, and what its turns came to.
struct Side {
    name: &'static str,
    model: &'static str,
    server: Running,
    grpc_body: PathBuf,
    turns: Vec<Turn>,
}

/// One turn of one side: JSON and gRPC at 1 and at 32 connections.
struct Turn {
    loads: [load::Figures; 4],
}

const JSON_1: usize = 0;
const JSON_32: usize = 1;
const GRPC_1: usize = 2;
const GRPC_32: usize = 3;

/// Measures all sides in turns.
pub fn run(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let values = values();
    let json = edgeward.work.join("wire.json");
    fs::write(&json, json_body("INPUT0", &SHAPE, &values))?;
    let engine = ["--engine", edgeward.fast_engine()];
    let ours = edgeward.serve(&edgeward.model("identity16"), &engine)?;
    let mut sides = vec![side("Edgeward", "identity16", ours, edgeward)?];
    for peer in Peer::ALL {
        let started = peer.start(&edgeward.work).and_then(|server| side(peer.name(), "identity", server, edgeward));
        match started {
            Ok(side) => sides.push(side),
            Err(error) => rows.push(Row::skipped(BAR, format!("against {}", peer.name()), error)),
        }
    }
    let mut engine_us = Vec::new();
    for round in 0..effort.rounds {
        let count = sides.len();
        // Another side begins each round, so that none always follows the same one.
        for turn in 0..count {
            let side = &mut sides[(round + turn) % count];
            let turn = take_turn(side, &json, effort.seconds)?;
            side.turns.push(turn);
        }
        let seconds = effort.seconds as f64 / 4.0;
        engine_us.push(edgeward.bare("identity16", &engine, seconds)?.0 * 1e3);
    }
    rows.splice(0..0, compare(&sides, edgeward.fast_engine(), median(&mut engine_us)));
    Ok(rows)
}

fn values() -> Vec<f32> {
    (1..=16).map(|i| i as f32 * 0.123_457).collect()
}

/// A side whose answers have been checked.
fn side(name: &'static str, model: &'static str, server: Running, edgeward: &Edgeward) -> anyhow::Result<Side> {
    let grpc_body = edgeward.work.join(format!("wire-{name}.grpc"));
    fs::write(&grpc_body, load::grpc_body(model, "INPUT0", &SHAPE, &values()))?;
    let mut connection = Connection::open(server.http)?;
    let answer = connection.ask(&json_request(model, "INPUT0", &SHAPE, &values()))?;
    let body: serde_json::Value = serde_json::from_slice(answer.body).context("the answer is no JSON")?;
    let numbers = body["outputs"][0]["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    let same =
        |(got, sent): (&serde_json::Value, f32)| got.as_f64().is_some_and(|v| (v - f64::from(sent)).abs() < 1e-5);
    if numbers.len() != 16 || !numbers.iter().zip(values()).all(same) {
        bail!("{name} gives back other numbers: {body}");
    }
    let root = crate::root();
    let python = python::ensure_package(&root.join("target/bench-env"), Peer::Triton.requirement())?;
    let mut check = Command::new(python);
    steps::output(check.arg(root.join("bench/check_grpc.py")).args([&server.grpc.to_string(), model]))?;
    Ok(Side { name, model, server, grpc_body, turns: Vec::new() })
}

fn take_turn(side: &Side, json: &Path, seconds: u64) -> anyhow::Result<Turn> {
    let url = format!("http://{}/v2/models/{}/infer", side.server.http, side.model);
    let (grpc, body) = (side.server.grpc, side.grpc_body.as_path());
    load::wrk(&url, json, 32, 1)?;
    load::h2load(grpc, body, 32, 1)?;
    Ok(Turn {
        loads: [
            load::wrk(&url, json, 1, seconds)?,
            load::wrk(&url, json, 32, seconds)?,
            load::h2load(grpc, body, 1, seconds)?,
            load::h2load(grpc, body, 32, seconds)?,
        ],
    })
}

impl Side {
    fn per_second(&self, load: usize) -> f64 {
        median(&mut self.turns.iter().map(|turn| turn.loads[load].per_second).collect::<Vec<_>>())
    }

    fn p50_us(&self, load: usize) -> f64 {
        median(&mut self.turns.iter().map(|turn| turn.loads[load].p50_us).collect::<Vec<_>>())
    }
}

fn compare(sides: &[Side], engine: &str, engine_us: f64) -> Vec<Row> {
    let Some((ours, others)) = sides.split_first() else { return Vec::new() };
    let mut rows = Vec::new();
    for other in others {
        for (load, what) in [(JSON_32, "JSON, 32 connections"), (GRPC_32, "gRPC, 32 connections")] {
            let (mine, theirs) = (ours.per_second(load), other.per_second(load));
            let what = format!("{what}: requests/s of {}'s", other.name);
            let row = match (other.name, load) {
                ("Triton", JSON_32) => Row::at_least(BAR, what, mine / theirs, "×", 1.2),
                ("Triton", _) => Row::at_least(BAR, what, mine / theirs, "×", 1.0),
                ("MLServer", JSON_32) => Row::at_least(BAR, what, mine / theirs, "×", 8.0),
                _ => Row::information(BAR, what, mine / theirs, "×"),
            };
            rows.push(row.against(format!("{} and {}/s", figure(mine), figure(theirs))));
        }
        for (load, what) in [(JSON_1, "JSON, 1 connection"), (GRPC_1, "gRPC, 1 connection")] {
            let (mine, theirs) = (ours.p50_us(load), other.p50_us(load));
            let what = format!("{what}: p50 of {}'s", other.name);
            let row = match other.name {
                "Triton" => Row::at_most(BAR, what, mine / theirs, "×", 1.0),
                _ => Row::information(BAR, what, mine / theirs, "×"),
            };
            rows.push(row.against(format!("{} and {} µs", figure(mine), figure(theirs))));
        }
    }
    for (load, what) in [(JSON_1, "JSON, 1 connection"), (GRPC_1, "gRPC, 1 connection")] {
        let above = (ours.p50_us(load) - engine_us) / 1e3;
        let row = Row::at_most(BAR, format!("{what}: p50 above the engine's own"), above, "ms", 0.1);
        rows.push(row.against(format!("{engine} alone {} µs", figure(engine_us))));
    }
    rows
}

//! Whether memory comes back: a model of 100 MB is loaded, asked once and unloaded, again and again.

use anyhow::bail;

use crate::bench::{
    Effort, Row,
    client::{Connection, binary_request, post},
    figure,
    peers::Edgeward,
};

/// A model of 100 MB that takes one row of so many numbers.
pub const MODEL: &str = "perceptron_100mb";
/// See [`MODEL`].
pub const WIDTH: usize = 2240;
const CYCLES: usize = 1000;
/// From here on caches and thread pools are there.
const SETTLED: usize = 10;

/// Each installed engine.
pub fn run(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let mut engines = vec!["rten"];
    if edgeward.onnxruntime {
        engines.push("onnxruntime");
    }
    engines.into_iter().map(|engine| one(edgeward, engine, (CYCLES / effort.divisor).max(SETTLED * 2))).collect()
}

fn one(edgeward: &Edgeward, engine: &str, cycles: usize) -> anyhow::Result<Row> {
    let folder = edgeward.repository(MODEL, None)?;
    let server = edgeward.serve(&folder, &["--explicit", "--engine", engine])?;
    let mut connection = Connection::open(server.http)?;
    let load = post(&format!("/v2/repository/models/{MODEL}/load"), "", b"{}");
    let unload = post(&format!("/v2/repository/models/{MODEL}/unload"), "", b"{}");
    let infer = binary_request(MODEL, "INPUT0", &[1, WIDTH], &vec![0.5; WIDTH]);
    let mut settled = 0.0;
    for cycle in 1..=cycles {
        for request in [&load, &infer, &unload] {
            let answer = connection.ask(request)?;
            if answer.status != 200 {
                bail!("cycle {cycle}: status {}: {}", answer.status, String::from_utf8_lossy(answer.body));
            }
        }
        if cycle == SETTLED {
            settled = server.resident_bytes()?;
        }
    }
    let last = server.resident_bytes()?;
    let what = format!("{engine}, {cycles} cycles of 100 MB: resident memory of that after the tenth");
    let row = Row::at_most("memory", what, last / settled * 100.0, "%", 110.0);
    Ok(row.against(format!("{} and {} MB", figure(last / 1e6), figure(settled / 1e6))))
}

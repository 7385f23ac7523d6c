//! From the start of the process to its first answer.

use std::time::{Duration, Instant};

use anyhow::bail;

use crate::bench::{
    Effort, Row,
    client::{Connection, binary_request},
    figure, median,
    peers::{Edgeward, Running},
};

const LIMIT: Duration = Duration::from_secs(30);

/// The built-in engine with a small model, ONNX Runtime with a larger one.
pub fn run(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let times = effort.rounds * 5;
    let small = binary_request("perceptron_4mb", "INPUT0", &[1, 1020], &vec![0.5; 1020]);
    let large = binary_request("resnet50_int8", "image", &[1, 3, 224, 224], &vec![0.5; 150_528]);
    let built_in = one(edgeward, "rten", ("perceptron_4mb", &small), times, 60.0)?;
    let loaded = match edgeward.onnxruntime {
        true => one(edgeward, "onnxruntime", ("resnet50_int8", &large), times, 300.0)?,
        false => Row::skipped("start", "onnxruntime, resnet50_int8", "ONNX Runtime is not installed"),
    };
    Ok(vec![built_in, loaded])
}

fn one(edgeward: &Edgeward, engine: &str, model: (&str, &[u8]), times: usize, max: f64) -> anyhow::Result<Row> {
    let (name, request) = model;
    let mut taken = Vec::new();
    for _ in 0..times {
        let (mut command, http, grpc) = edgeward.command(&edgeward.model(name), &["--engine", engine])?;
        let began = Instant::now();
        let server = Running::spawn(&mut command, http, grpc)?;
        first_answer(&server, request, began)?;
        taken.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let p50 = median(&mut taken);
    let worst = taken.last().copied().unwrap_or(p50);
    let what = format!("{engine}, {name}: from process start to first answer");
    let row = Row::at_most("start", what, p50, "ms", max);
    Ok(row.against(format!("median of {times}, worst {} ms", figure(worst))))
}

/// Knocks until the port is open and asks until the answer is 200.
pub fn first_answer(server: &Running, request: &[u8], began: Instant) -> anyhow::Result<()> {
    while began.elapsed() < LIMIT {
        let status = Connection::open(server.http).and_then(|mut c| Ok(c.ask(request)?.status));
        if status.is_ok_and(|status| status == 200) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    bail!("no answer within {} s", LIMIT.as_secs())
}

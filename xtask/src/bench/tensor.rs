//! An image's worth of numbers: what it costs to bring them to the engine, and what is left of the engine's throughput.

use std::{num::NonZeroUsize, time::Duration};

use crate::bench::{
    Row,
    client::{Until, binary_request, closed_loop, json_request},
    figure, median,
    peers::Edgeward,
    serve::Effort,
};

const MODEL: &str = "mobilenetv2";
const SHAPE: [usize; 4] = [1, 3, 224, 224];

fn image() -> Vec<f32> {
    // Varied digits, since the length of a number in JSON counts.
    (0..SHAPE.iter().product::<usize>()).map(|i| (i as f32 * 0.618_034).fract() * 2.0 - 1.0).collect()
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// One connection, binary and JSON, against the engine alone; MobileNetV2 for the bar, an identity for the wire alone.
pub fn wire_cost(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let threads = cores().to_string();
    let options = ["--engine", edgeward.fast_engine(), "--threads", &threads];
    let mut rows = Vec::new();
    for (model, input) in [(MODEL, "image"), ("identity150528", "INPUT0")] {
        let server = edgeward.serve(&edgeward.model(model), &options)?;
        let requests = [binary_request(model, input, &SHAPE, &image()), json_request(model, input, &SHAPE, &image())];
        let (mut bare, mut served) = (Vec::new(), [Vec::new(), Vec::new()]);
        // Short turns in alternation: the engine's own time drifts by more than what is measured.
        for _ in 0..effort.rounds * 3 {
            bare.push(edgeward.bare(model, &options, effort.seconds as f64 / 2.0)?.0);
            for (request, p50s) in requests.iter().zip(&mut served) {
                let turn = Duration::from_millis(effort.seconds * 500);
                p50s.push(closed_loop(server.http, request, 1, Until::Elapsed(turn)).whole()?.p50_ms);
            }
        }
        let bare = median(&mut bare);
        for ((kind, max), p50s) in [("binary", 0.3), ("JSON", 3.0)].into_iter().zip(&mut served) {
            let p50 = median(p50s);
            let what = format!("{model}, {kind}, 1 connection: p50 above the engine's own");
            let row = match model {
                MODEL => Row::at_most("tensor", what, p50 - bare, "ms", max),
                _ => Row::information("tensor", what, p50 - bare, "ms"),
            };
            rows.push(row.against(format!("{} and {} ms", figure(p50), figure(bare))));
        }
    }
    Ok(rows)
}

/// Threads and batch with the highest throughput of the engine alone.
struct Best {
    threads: usize,
    batch: usize,
    per_second: f64,
}

/// Saturated by 1-image requests, against the engine alone at its best.
pub fn saturation(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let best = best(edgeward, effort)?;
    let (threads, batch) = (best.threads.to_string(), best.batch.to_string());
    let options = ["--engine", edgeward.fast_engine(), "--threads", &threads];
    let bare_options = [&options[..], &["--batch", &batch]].concat();
    let instances = cores() / best.threads;
    let batching = if best.batch > 1 { "dynamic_batching { }" } else { "" };
    let config = format!(
        "platform: \"onnxruntime_onnx\"\nmax_batch_size: {batch}\ninstance_group [ {{ count: {instances}, kind: KIND_CPU }} ]\n{batching}\n"
    );
    let server = edgeward.serve(&edgeward.repository(MODEL, Some(&config))?, &options)?;
    let request = binary_request(MODEL, "image", &SHAPE, &image());
    let (mut bare, mut served) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        bare.push(edgeward.bare(MODEL, &bare_options, effort.seconds as f64)?.1);
        let turn = Until::Elapsed(Duration::from_secs(effort.seconds));
        served.push(closed_loop(server.http, &request, 32, turn).whole()?.per_second);
    }
    let (bare, served) = (median(&mut bare), median(&mut served));
    let what = format!("{MODEL}, 32 connections of 1 image: share of the engine's own throughput");
    let row = Row::at_least("saturation", what, served / bare * 100.0, "%", 95.0);
    let own = format!("{threads} threads, batch {batch}, best of a search {}/s", figure(best.per_second));
    Ok(vec![row.against(format!("{} and {}/s ({own})", figure(served), figure(bare)))])
}

fn best(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Best> {
    let mut best = Best { threads: 1, batch: 1, per_second: 0.0 };
    // One caller: only as many threads as cores can use the machine.
    let threads = cores();
    for batch in [1usize, 2, 4, 8, 16] {
        let (t, b) = (threads.to_string(), batch.to_string());
        let options = ["--engine", edgeward.fast_engine(), "--threads", &t, "--batch", &b];
        let (_, per_second) = edgeward.bare(MODEL, &options, effort.seconds as f64 / 2.0)?;
        // A larger batch costs latency and memory: it must be worth it beyond the noise.
        if per_second > best.per_second * 1.01 {
            best = Best { threads, batch, per_second };
        }
    }
    Ok(best)
}

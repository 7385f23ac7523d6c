//! An image's worth of numbers: what it costs to bring them to the engine, and what is left of the engine's throughput.

use std::{num::NonZeroUsize, time::Duration};

use crate::bench::{
    Row,
    client::{Until, binary_request, closed_loop, json_request},
    figure, median,
    peers::{Edgeward, Running},
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

/// Saturated by 1-image requests, against the engine alone at its best: once as the server does best, with as many
/// instances of one thread as there are cores, and once with the engine's own setting.
pub fn saturation(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let best = best(edgeward, effort)?;
    let (threads, batch) = (best.threads.to_string(), best.batch.to_string());
    let bare_options = ["--engine", edgeward.fast_engine(), "--threads", &threads, "--batch", &batch];
    let parallel = instances(edgeward, cores(), 1, 1)?;
    let same = instances(edgeward, (cores() / best.threads).max(1), best.threads, best.batch)?;
    let request = binary_request(MODEL, "image", &SHAPE, &image());
    let (mut bare, mut served) = (Vec::new(), [Vec::new(), Vec::new()]);
    for _ in 0..effort.rounds {
        bare.push(edgeward.bare(MODEL, &bare_options, effort.seconds as f64)?.1);
        for (server, figures) in [&parallel, &same].into_iter().zip(&mut served) {
            let turn = Until::Elapsed(Duration::from_secs(effort.seconds));
            figures.push(closed_loop(server.http, &request, 32, turn).whole()?.per_second);
        }
    }
    let bare = median(&mut bare);
    let own = format!("{threads} threads, batch {batch}, best of a search {}/s", figure(best.per_second));
    let row = |what: &str, figures: &mut [f64]| {
        let what = format!("{MODEL}, 32 connections of 1 image, {what}: share of the engine's own throughput");
        let served = median(figures);
        let row = Row::at_least("saturation", what, served / bare * 100.0, "%", 95.0);
        row.against(format!("{} and {}/s ({own})", figure(served), figure(bare)))
    };
    let [parallel, same] = &mut served;
    let same = row("the engine's setting", same);
    let information = Row { target: String::new(), holds: None, ..same };
    Ok(vec![row(&format!("{} instances of 1 thread", cores()), parallel), information])
}

/// A server with a setting; batches are formed where they may be larger than one.
fn instances(edgeward: &Edgeward, count: usize, threads: usize, batch: usize) -> anyhow::Result<Running> {
    let batching = if batch > 1 { "dynamic_batching { }" } else { "" };
    let config = format!(
        "platform: \"onnxruntime_onnx\"\nmax_batch_size: {batch}\ninstance_group [ {{ count: {count}, kind: KIND_CPU }} ]\n{batching}\n"
    );
    let options = ["--engine", edgeward.fast_engine(), "--threads", &threads.to_string()];
    edgeward.serve(&edgeward.repository(MODEL, Some(&config))?, &options)
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

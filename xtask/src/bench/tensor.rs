//! An image's worth of numbers: what it costs to bring them to the engine, and what is left of the engine's throughput.

use std::{num::NonZeroUsize, time::Duration};

use crate::bench::{
    Effort, Row,
    client::{Until, binary_request, closed_loop, json_request},
    figure, median,
    peers::Edgeward,
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

/// How the engine alone is run: sessions side by side, threads of each, and images of a run.
#[derive(Clone, Copy)]
struct Setting {
    sessions: usize,
    threads: usize,
    batch: usize,
}

/// Saturated by 1-image requests, against the engine alone at its best.
///
/// The engine's best is searched over sessions side by side, threads and batches; the server is told what was found, and
/// forms batches as it finds requests.
pub fn saturation(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let best = best(edgeward, effort)?;
    let Setting { sessions, threads, batch } = best;
    let batching = if batch > 1 { "dynamic_batching { }\n" } else { "" };
    let config = format!(
        "platform: \"onnxruntime_onnx\"\nmax_batch_size: {batch}\ninstance_group [ {{ count: {sessions}, kind: KIND_CPU }} ]\n{batching}"
    );
    let each = threads.to_string();
    let options = ["--engine", edgeward.fast_engine(), "--threads", &each];
    let server = edgeward.serve(&edgeward.repository(MODEL, Some(&config))?, &options)?;
    let request = binary_request(MODEL, "image", &SHAPE, &image());
    let (mut bare, mut served) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        bare.push(throughput(edgeward, best, effort.seconds as f64)?);
        let turn = Until::Elapsed(Duration::from_secs(effort.seconds));
        served.push(closed_loop(server.http, &request, 32, turn).whole()?.per_second);
    }
    let (bare, served) = (median(&mut bare), median(&mut served));
    let what = format!("{MODEL}, 32 connections of 1 image: share of the engine's own throughput");
    let own = format!("{sessions} sessions of {threads} threads, batch {batch}");
    let row = Row::at_least("saturation", what, served / bare * 100.0, "%", 95.0);
    Ok(vec![row.against(format!("{} and {}/s ({own})", figure(served), figure(bare)))])
}

/// Images per second of the engine alone.
fn throughput(edgeward: &Edgeward, setting: Setting, seconds: f64) -> anyhow::Result<f64> {
    let (threads, batch) = (setting.threads.to_string(), setting.batch.to_string());
    let options = ["--engine", edgeward.fast_engine(), "--threads", &threads, "--batch", &batch];
    std::thread::scope(|scope| {
        let all: Vec<_> =
            (0..setting.sessions).map(|_| scope.spawn(|| edgeward.bare(MODEL, &options, seconds))).collect();
        let rates = all.into_iter().map(|one| match one.join() {
            Ok(measured) => Ok(measured?.1),
            Err(_) => anyhow::bail!("a measurement ended early"),
        });
        rates.sum()
    })
}

fn best(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Setting> {
    let (mut best, mut most) = (Setting { sessions: 1, threads: 1, batch: 1 }, 0.0);
    // The machine is used whole, either by one session or by one for each core.
    for (sessions, threads) in [(1, cores()), (cores(), 1)] {
        for batch in [1, 2, 4, 8, 16] {
            let setting = Setting { sessions, threads, batch };
            let rate = throughput(edgeward, setting, effort.seconds as f64 / 2.0)?;
            // A larger batch costs latency and memory: it must be worth it beyond the noise.
            if rate > most * 1.01 {
                (best, most) = (setting, rate);
            }
        }
    }
    Ok(best)
}

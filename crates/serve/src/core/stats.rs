//! What a version has done so far: lock-free counters, as the statistics extension and Prometheus show them.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::proto::{InferStatistics, ModelStatistics, StatisticDuration};

/// Upper bounds of the histograms' buckets, in microseconds.
const BOUNDS_US: [u64; 16] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000,
    30_000_000,
];

/// Count, sum and buckets of one kind of duration.
#[derive(Debug, Default)]
pub struct Timer {
    count: AtomicU64,
    total_ns: AtomicU64,
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
}

impl Timer {
    fn add(&self, time: Duration) {
        let us = time.as_micros() as u64;
        self.count.fetch_add(1, Relaxed);
        self.total_ns.fetch_add(time.as_nanos() as u64, Relaxed);
        let bucket = BOUNDS_US.partition_point(|&bound| bound < us);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Relaxed);
        }
    }

    fn proto(&self) -> Option<StatisticDuration> {
        Some(StatisticDuration { count: self.count.load(Relaxed), ns: self.total_ns.load(Relaxed) })
    }

    fn total_us(&self) -> u64 {
        self.total_ns.load(Relaxed) / 1000
    }
}

/// The counters of one version.
#[derive(Debug, Default)]
pub struct Stats {
    /// Requests answered.
    pub success: Timer,
    /// Requests refused or failed.
    pub failure: Timer,
    /// Time in the queue.
    pub queue: Timer,
    /// Time in the engine.
    pub compute: Timer,
    /// Requests accepted and not yet answered.
    pub pending: AtomicU64,
    inferences: AtomicU64,
    last_ms: AtomicU64,
}

impl Stats {
    /// Records an answered request of `batch` inferences.
    pub fn succeeded(&self, batch: u64, request: Duration, queue: Duration, compute: Duration, now_ms: u64) {
        self.success.add(request);
        self.queue.add(queue);
        self.compute.add(compute);
        self.inferences.fetch_add(batch, Relaxed);
        self.last_ms.store(now_ms, Relaxed);
    }

    /// Records a request that got an error.
    pub fn failed(&self, request: Duration) {
        self.failure.add(request);
    }

    /// As the statistics extension asks.
    pub fn proto(&self, name: &str, version: u64) -> ModelStatistics {
        ModelStatistics {
            name: name.to_owned(),
            version: version.to_string(),
            last_inference: self.last_ms.load(Relaxed),
            inference_count: self.inferences.load(Relaxed),
            execution_count: self.compute.count.load(Relaxed),
            inference_stats: Some(InferStatistics {
                success: self.success.proto(),
                fail: self.failure.proto(),
                queue: self.queue.proto(),
                compute_input: Some(StatisticDuration::default()),
                compute_infer: self.compute.proto(),
                compute_output: Some(StatisticDuration::default()),
                cache_hit: Some(StatisticDuration::default()),
                cache_miss: Some(StatisticDuration::default()),
            }),
            ..ModelStatistics::default()
        }
    }
}

/// Prometheus text of all versions given.
pub fn prometheus<'a>(versions: impl Iterator<Item = (&'a str, u64, &'a Stats)> + Clone) -> String {
    let mut text = String::new();
    let counters: [(&str, &str, fn(&Stats) -> u64); 8] = [
        ("nv_inference_request_success", "Requests answered", |s| s.success.count.load(Relaxed)),
        ("nv_inference_request_failure", "Requests refused or failed", |s| s.failure.count.load(Relaxed)),
        ("nv_inference_count", "Inferences, a batch counting its size", |s| s.inferences.load(Relaxed)),
        ("nv_inference_exec_count", "Runs of the engine", |s| s.compute.count.load(Relaxed)),
        ("nv_inference_request_duration_us", "Sum of request times", |s| s.success.total_us()),
        ("nv_inference_queue_duration_us", "Sum of queue times", |s| s.queue.total_us()),
        ("nv_inference_compute_infer_duration_us", "Sum of engine times", |s| s.compute.total_us()),
        ("nv_inference_pending_request_count", "Requests not yet answered", |s| s.pending.load(Relaxed)),
    ];
    for (name, help, value) in counters {
        let kind = if name.ends_with("pending_request_count") { "gauge" } else { "counter" };
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (model, version, stats) in versions.clone() {
            let _ = writeln!(text, "{name}{{model={},version=\"{version}\"}} {}", quoted(model), value(stats));
        }
    }
    let histograms: [(&str, fn(&Stats) -> &Timer); 3] = [
        ("edgeward_request_duration_seconds", |s| &s.success),
        ("edgeward_queue_duration_seconds", |s| &s.queue),
        ("edgeward_compute_duration_seconds", |s| &s.compute),
    ];
    for (name, timer) in histograms {
        let _ = writeln!(text, "# HELP {name} Time per answered request\n# TYPE {name} histogram");
        for (model, version, stats) in versions.clone() {
            histogram(&mut text, name, &format!("model={},version=\"{version}\"", quoted(model)), timer(stats));
        }
    }
    text
}

fn histogram(text: &mut String, name: &str, labels: &str, timer: &Timer) {
    let mut sum = 0;
    let bounds = BOUNDS_US.iter().map(|&us| format!("{}", us as f64 / 1e6)).chain(["+Inf".to_owned()]);
    for (bucket, bound) in timer.buckets.iter().zip(bounds) {
        sum += bucket.load(Relaxed);
        let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {sum}");
    }
    let total = timer.total_ns.load(Relaxed) as f64 / 1e9;
    let _ = writeln!(text, "{name}_sum{{{labels}}} {total}\n{name}_count{{{labels}}} {sum}");
}

/// A label's value as the text format writes it.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

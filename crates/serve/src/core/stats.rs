//! What a version has done so far: lock-free counters, as the statistics extension and Prometheus show them.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::{
    core::{ServeErrorKind, execute::Times},
    proto::{InferBatchStatistics, InferStatistics, ModelStatistics, StatisticDuration},
};

/// Batch sizes that are counted one by one; larger ones count as this.
const BATCH_SIZES_MAX: usize = 1024;
/// Why requests fail, as Triton names it.
const REASONS: [&str; 4] = ["REJECTED", "CANCELED", "BACKEND", "OTHER"];

/// Upper bounds of the histograms' buckets, in microseconds.
const BOUNDS_US: [u64; 16] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000,
    30_000_000,
];

/// Count and sum of one kind of duration.
#[derive(Debug, Default)]
pub struct Sum {
    count: AtomicU64,
    total_ns: AtomicU64,
}

impl Sum {
    fn add(&self, time: Duration) {
        self.count.fetch_add(1, Relaxed);
        self.total_ns.fetch_add(time.as_nanos() as u64, Relaxed);
    }

    fn proto(&self) -> Option<StatisticDuration> {
        Some(StatisticDuration { count: self.count(), ns: self.total_ns.load(Relaxed) })
    }

    fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    fn total_us(&self) -> u64 {
        self.total_ns.load(Relaxed) / 1000
    }
}

/// Count, sum and buckets of one kind of duration.
#[derive(Debug, Default)]
pub struct Timer {
    sum: Sum,
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
}

impl Timer {
    fn add(&self, time: Duration) {
        let us = time.as_micros() as u64;
        self.sum.add(time);
        let bucket = BOUNDS_US.partition_point(|&bound| bound < us);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Relaxed);
        }
    }
}

/// Runs of one batch size.
#[derive(Debug, Default)]
struct Runs {
    input: Sum,
    infer: Sum,
    output: Sum,
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
    /// Time for joining the requests of a batch.
    input: Sum,
    /// Time for taking a batch apart and classifying.
    output: Sum,
    hit: Sum,
    miss: Sum,
    failures: [AtomicU64; REASONS.len()],
    inferences: AtomicU64,
    executions: AtomicU64,
    last_ms: AtomicU64,
    /// By batch size, from 1.
    runs: Box<[Runs]>,
}

/// An answered request, with where its time went.
#[derive(Debug)]
pub(super) struct Served {
    /// Inferences in it.
    pub size: usize,
    pub request: Duration,
    pub queue: Duration,
    pub times: Times,
    pub now_ms: u64,
}

impl Stats {
    /// No request yet; batches of `max_batch` inferences at most.
    pub fn new(max_batch: usize) -> Self {
        let sizes = max_batch.clamp(1, BATCH_SIZES_MAX);
        Self { runs: (0..sizes).map(|_| Runs::default()).collect(), ..Self::default() }
    }

    /// Records a run of the engine on `size` inferences.
    pub(super) fn ran(&self, size: usize, times: Times) {
        self.executions.fetch_add(1, Relaxed);
        if let Some(runs) = self.runs.get(size.clamp(1, self.runs.len()) - 1) {
            runs.input.add(times.input);
            runs.infer.add(times.infer);
            runs.output.add(times.output);
        }
    }

    /// Records an answered request.
    pub(super) fn succeeded(&self, served: &Served) {
        self.success.add(served.request);
        self.queue.add(served.queue);
        self.compute.add(served.times.infer);
        self.input.add(served.times.input);
        self.output.add(served.times.output);
        self.inferences.fetch_add(served.size as u64, Relaxed);
        self.last_ms.store(served.now_ms, Relaxed);
    }

    /// Records a request that was answered from the cache.
    pub(super) fn hit(&self, request: Duration, now_ms: u64) {
        self.success.add(request);
        self.hit.add(request);
        self.last_ms.store(now_ms, Relaxed);
    }

    /// Records the time that the cache took for a request that it did not have.
    pub(super) fn missed(&self, lookup: Duration) {
        self.miss.add(lookup);
    }

    /// Records a request that got an error.
    pub(super) fn failed(&self, kind: ServeErrorKind, request: Duration) {
        use ServeErrorKind::{Cancelled, DeadlineExceeded, Internal, Overloaded};
        let reason = match kind {
            Overloaded | DeadlineExceeded => 0,
            Cancelled => 1,
            Internal => 2,
            _ => 3,
        };
        self.failure.add(request);
        if let Some(count) = self.failures.get(reason) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// As the statistics extension asks.
    pub fn proto(&self, name: &str, version: u64) -> ModelStatistics {
        let batches = self.runs.iter().zip(1u64..).filter(|(runs, _)| runs.infer.count() > 0);
        ModelStatistics {
            name: name.to_owned(),
            version: version.to_string(),
            last_inference: self.last_ms.load(Relaxed),
            inference_count: self.inferences.load(Relaxed),
            execution_count: self.executions.load(Relaxed),
            inference_stats: Some(InferStatistics {
                success: self.success.sum.proto(),
                fail: self.failure.sum.proto(),
                queue: self.queue.sum.proto(),
                compute_input: self.input.proto(),
                compute_infer: self.compute.sum.proto(),
                compute_output: self.output.proto(),
                cache_hit: self.hit.proto(),
                cache_miss: self.miss.proto(),
            }),
            batch_stats: batches
                .map(|(runs, batch_size)| InferBatchStatistics {
                    batch_size,
                    compute_input: runs.input.proto(),
                    compute_infer: runs.infer.proto(),
                    compute_output: runs.output.proto(),
                })
                .collect(),
            ..ModelStatistics::default()
        }
    }
}

/// Prometheus text of all versions given.
pub fn prometheus<'a>(versions: impl Iterator<Item = (&'a str, u64, &'a Stats)> + Clone) -> String {
    let mut text = String::new();
    let counters: [(&str, &str, fn(&Stats) -> u64); 13] = [
        ("nv_inference_request_success", "Requests answered", |s| s.success.sum.count()),
        ("nv_inference_count", "Inferences, a batch counting its size", |s| s.inferences.load(Relaxed)),
        ("nv_inference_exec_count", "Runs of the engine", |s| s.executions.load(Relaxed)),
        ("nv_inference_request_duration_us", "Sum of request times", |s| s.success.sum.total_us()),
        ("nv_inference_queue_duration_us", "Sum of queue times", |s| s.queue.sum.total_us()),
        ("nv_inference_compute_input_duration_us", "Sum of times for joining a batch", |s| s.input.total_us()),
        ("nv_inference_compute_infer_duration_us", "Sum of engine times", |s| s.compute.sum.total_us()),
        ("nv_inference_compute_output_duration_us", "Sum of times for taking a batch apart", |s| s.output.total_us()),
        ("nv_cache_num_hits_per_model", "Requests answered from the cache", |s| s.hit.count()),
        ("nv_cache_num_misses_per_model", "Requests that the cache did not have", |s| s.miss.count()),
        ("nv_cache_hit_duration_per_model", "Sum of times of answers from the cache in µs", |s| s.hit.total_us()),
        ("nv_cache_miss_duration_per_model", "Sum of times of fruitless look-ups in µs", |s| s.miss.total_us()),
        ("nv_inference_pending_request_count", "Requests not yet answered", |s| s.pending.load(Relaxed)),
    ];
    for (name, help, value) in counters {
        let kind = if name.ends_with("pending_request_count") { "gauge" } else { "counter" };
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (model, version, stats) in versions.clone() {
            let _ = writeln!(text, "{name}{{model={},version=\"{version}\"}} {}", quoted(model), value(stats));
        }
    }
    failures(&mut text, versions.clone());
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

fn failures<'a>(text: &mut String, versions: impl Iterator<Item = (&'a str, u64, &'a Stats)>) {
    let name = "nv_inference_request_failure";
    let _ = writeln!(text, "# HELP {name} Requests refused or failed\n# TYPE {name} counter");
    for (model, version, stats) in versions {
        for (reason, count) in REASONS.iter().zip(&stats.failures) {
            let (model, count) = (quoted(model), count.load(Relaxed));
            let _ = writeln!(text, "{name}{{model={model},version=\"{version}\",reason=\"{reason}\"}} {count}");
        }
    }
}

fn histogram(text: &mut String, name: &str, labels: &str, timer: &Timer) {
    let mut sum = 0;
    let bounds = BOUNDS_US.iter().map(|&us| format!("{}", us as f64 / 1e6)).chain(["+Inf".to_owned()]);
    for (bucket, bound) in timer.buckets.iter().zip(bounds) {
        sum += bucket.load(Relaxed);
        let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {sum}");
    }
    let total = timer.sum.total_ns.load(Relaxed) as f64 / 1e9;
    let _ = writeln!(text, "{name}_sum{{{labels}}} {total}\n{name}_count{{{labels}}} {sum}");
}

/// A label's value as the text format writes it.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

//! Measuring: runs a session for a while and says what it took.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use edgeward_engine::{EngineError, RunOptions, Session};
use edgeward_graph::Tensor;
use serde::{Deserialize, Serialize};

/// Durations of single runs beyond this many are thinned out, so that a long measurement needs little memory.
const MAX_SAMPLES: usize = 1 << 20;

/// What a measurement of many runs came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Runs.
    pub runs: u64,
    /// Time from the first start to the last end.
    pub seconds: f64,
    /// Median time of a run.
    pub p50_ms: f64,
    /// 90th percentile.
    pub p90_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// Items per second: runs × batch over the time.
    pub per_second: f64,
    /// Processor time of one item, of all threads of this process; waiting threads that spin count.
    #[serde(default)]
    pub core_ms: f64,
}

impl Summary {
    /// Sums up `samples` of runs with `batch` items each that took `elapsed` in all. All zero where there is none.
    pub fn of(mut samples: Vec<Duration>, elapsed: Duration, batch: usize) -> Self {
        samples.sort_unstable();
        let at = |share: f64| percentile(&samples, share).as_secs_f64() * 1e3;
        let seconds = elapsed.as_secs_f64();
        let items = samples.len() as f64 * batch as f64;
        Self {
            runs: samples.len() as u64,
            seconds,
            p50_ms: at(0.50),
            p90_ms: at(0.90),
            p99_ms: at(0.99),
            per_second: if seconds > 0.0 { items / seconds } else { 0.0 },
            core_ms: 0.0,
        }
    }
}

/// Nearest-rank percentile of sorted samples; zero where there is none.
pub fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or_default()
}

/// What to run and for how long.
pub struct Load<'a> {
    /// One session per caller.
    pub sessions: &'a [&'a dyn Session],
    /// Inputs of every run.
    pub inputs: &'a [(&'a str, &'a Tensor)],
    /// Items in one run.
    pub batch: usize,
    /// Callers start no further run after this time.
    pub budget: Duration,
    /// Each caller runs at least this often, whatever the time.
    pub min_runs: u64,
}

/// Runs until the budget is spent; each session has a thread of its own.
pub fn measure(load: &Load<'_>) -> Result<Summary, EngineError> {
    let all = Mutex::new(Vec::new());
    let processor = processor_time();
    let began = Instant::now();
    std::thread::scope(|scope| {
        let callers: Vec<_> =
            load.sessions.iter().skip(1).map(|session| scope.spawn(|| call(*session, load, began, &all))).collect();
        // The first caller is this thread: a single session then runs with no thread between.
        let mut result = load.sessions.first().map_or(Ok(()), |session| call(*session, load, began, &all));
        for caller in callers {
            result = result.and(caller.join().unwrap_or(Ok(())));
        }
        result
    })?;
    let samples = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    let summary = Summary::of(samples, began.elapsed(), load.batch);
    let items = (summary.runs * load.batch as u64).max(1);
    Ok(Summary { core_ms: processor_time().saturating_sub(processor).as_secs_f64() * 1e3 / items as f64, ..summary })
}

/// What all threads of this process have computed.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

fn call(session: &dyn Session, load: &Load<'_>, began: Instant, all: &Mutex<Vec<Duration>>) -> Result<(), EngineError> {
    let mut samples = Vec::new();
    let mut runs = 0;
    while runs < load.min_runs || (began.elapsed() < load.budget && samples.len() < MAX_SAMPLES) {
        let start = Instant::now();
        std::hint::black_box(session.run(load.inputs, RunOptions::default())?);
        samples.push(start.elapsed());
        runs += 1;
    }
    all.lock().unwrap_or_else(PoisonError::into_inner).append(&mut samples);
    Ok(())
}

/// The most memory that is resident at once while something runs, beyond what was there before it.
pub struct PeakMemory {
    before: u64,
    most: u64,
}

impl PeakMemory {
    /// From now on. None where the system does not let a process forget its earlier peak (proc(5), `clear_refs`).
    pub fn start() -> Option<Self> {
        forget_peak()?;
        Some(Self { before: status_kib("VmRSS:")?, most: 0 })
    }

    /// What comes until [`resume`](Self::resume) does not count.
    pub fn pause(&mut self) {
        self.most = self.most.max(status_kib("VmHWM:").unwrap_or(0));
    }

    /// Counts again.
    pub fn resume(&self) -> Option<()> {
        forget_peak()
    }

    /// Bytes.
    pub fn end(mut self) -> u64 {
        self.pause();
        self.most.saturating_sub(self.before)
    }
}

/// From now on [`peak_resident`] is of what comes. None where the system does not let a process forget its earlier peak.
///
/// What this process has freed goes back to the system first: the allocator would keep it, and a library that brings
/// an allocator of its own could not have it.
pub fn forget_peak() -> Option<()> {
    crate::memory::give_back();
    std::fs::write("/proc/self/clear_refs", "5").ok()
}

/// The most memory of this process that was resident at once, in bytes; none where the system does not tell.
pub fn peak_resident() -> Option<u64> {
    status_kib("VmHWM:")
}

fn status_kib(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(values: &[u64]) -> Vec<Duration> {
        values.iter().map(|&v| Duration::from_millis(v)).collect()
    }

    #[test]
    fn percentiles_are_samples_by_nearest_rank() {
        let samples = ms(&(1..=100).collect::<Vec<_>>());
        for (share, expected) in [(0.5, 50), (0.9, 90), (0.99, 99), (1.0, 100), (0.0, 1)] {
            assert_eq!(percentile(&samples, share), Duration::from_millis(expected), "{share}");
        }
        assert_eq!(percentile(&ms(&[7]), 0.99), Duration::from_millis(7));
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
    }

    #[test]
    fn memory_counts_from_the_start_and_not_in_a_pause() {
        let take = |mib: usize| std::hint::black_box(vec![1u8; mib << 20]);
        drop(take(200));
        let Some(mut peak) = PeakMemory::start() else { return println!("skipped: no `clear_refs` here") };
        drop(take(60));
        peak.pause();
        drop(take(200));
        peak.resume().unwrap();
        let bytes = peak.end();
        // Other tests of this process take a little as well.
        assert!((55 << 20..150 << 20).contains(&bytes), "{bytes}");
    }

    #[test]
    fn a_summary_counts_items() {
        let summary = Summary::of(ms(&[30, 10, 20, 40]), Duration::from_millis(200), 8);
        assert_eq!((summary.runs, summary.p50_ms, summary.per_second), (4, 20.0, 160.0));
        assert_eq!(Summary::of(Vec::new(), Duration::ZERO, 1).per_second, 0.0);
    }
}

//! What to try, what to keep and what is best: pure decisions on measurements.
//!
//! Successive halving (Jamieson and Talwalkar, "Non-stochastic Best Arm Identification", 2016): everything is measured
//! briefly, the better half longer. Every round goes through its candidates in turns, several times, so that a drift
//! of the machine's speed hits all of them alike.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::measure::Summary;

/// Candidates that are left for each goal in the last round.
const FINALISTS: usize = 3;
/// A larger batch or more threads must win by more than this to be taken: the difference is noise otherwise.
const MARGIN: f64 = 0.03;
/// Largest batch that is tried.
const BATCHES: &[usize] = &[1, 2, 4, 8, 16, 32];

/// One way to run the model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Candidate {
    /// Engine.
    pub engine: String,
    /// Items in one run.
    pub batch: usize,
    /// Threads within one run.
    pub threads: usize,
    /// Runs side by side.
    pub instances: usize,
}

/// Everything that is worth trying on `cores` cores: threads × instances never exceed them.
pub fn candidates(engines: &[String], cores: usize, takes_batches: bool) -> Vec<Candidate> {
    let batches = if takes_batches { BATCHES } else { &BATCHES[..1] };
    let mut all = Vec::new();
    for engine in engines {
        for &batch in batches {
            for threads in steps(cores) {
                for instances in steps(cores / threads) {
                    all.push(Candidate { engine: engine.clone(), batch, threads, instances });
                }
            }
        }
    }
    all
}

/// 1, 2, 4, … and `max` itself.
fn steps(max: usize) -> Vec<usize> {
    let mut steps: Vec<usize> = std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|n| *n < max).collect();
    steps.push(max.max(1));
    steps
}

/// What a candidate's slices came to: medians, so that one disturbed slice does not count.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// Median time of a run.
    pub p50_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// Items per second.
    pub per_second: f64,
}

impl Score {
    /// The medians of `slices`; none where there is no slice.
    pub fn of(slices: &[Summary]) -> Option<Self> {
        let median = |pick: fn(&Summary) -> f64| {
            let mut values: Vec<f64> = slices.iter().map(pick).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied()
        };
        Some(Self {
            p50_ms: median(|s| s.p50_ms)?,
            p99_ms: median(|s| s.p99_ms)?,
            per_second: median(|s| s.per_second)?,
        })
    }
}

/// Scores by candidate.
pub type Scores = BTreeMap<Candidate, Score>;

/// The best quarter for each goal, at least the finalists: together at most about half of the candidates.
pub fn survivors(scores: &Scores, target_latency_ms: Option<f64>) -> Vec<Candidate> {
    let mut kept: Vec<Candidate> = Vec::new();
    for ranked in [by_latency(scores), by_throughput(scores, target_latency_ms)] {
        let keep = ranked.len().div_ceil(4).max(FINALISTS);
        kept.extend(ranked.into_iter().take(keep).map(|(candidate, _)| candidate.clone()));
    }
    kept.sort();
    kept.dedup();
    kept
}

/// How much longer a slice of `round` is than one of the first: twice as long each, up to 16 times.
pub fn weight(round: usize) -> u64 {
    1 << round.min(4)
}

/// Work from `round` to the end in units of the first round's slices, as far as can be foreseen: half of the
/// candidates stay each time.
pub fn work(candidates: usize, round: usize, turns: usize) -> u64 {
    let this = weight(round) * (candidates * turns) as u64;
    if candidates <= 2 * FINALISTS { this } else { this + work((candidates / 2).max(2 * FINALISTS), round + 1, turns) }
}

/// True when another round would only measure the same again.
pub fn is_last(scores: &Scores) -> bool {
    scores.len() <= 2 * FINALISTS
}

/// The best for one request at a time.
pub fn best_latency(scores: &Scores) -> Option<(&Candidate, &Score)> {
    let ranked = by_latency(scores);
    let best = ranked.first()?.1.p50_ms;
    ranked.into_iter().filter(|(_, score)| score.p50_ms <= best * (1.0 + MARGIN)).min_by_key(|(c, _)| c.threads)
}

/// The best for many requests; none where no candidate meets the target.
pub fn best_throughput(scores: &Scores, target_latency_ms: Option<f64>) -> Option<(&Candidate, &Score)> {
    let ranked: Vec<_> = by_throughput(scores, target_latency_ms)
        .into_iter()
        .filter(|(_, score)| meets(score, target_latency_ms))
        .collect();
    let best = ranked.first()?.1.per_second;
    let close = ranked.into_iter().filter(|(_, score)| score.per_second >= best * (1.0 - MARGIN));
    close.min_by_key(|(candidate, _)| (candidate.batch, candidate.threads * candidate.instances))
}

fn meets(score: &Score, target_latency_ms: Option<f64>) -> bool {
    target_latency_ms.is_none_or(|target| score.p99_ms <= target)
}

/// Candidates that run one request at a time, fastest first.
fn by_latency(scores: &Scores) -> Vec<(&Candidate, &Score)> {
    let mut ranked: Vec<_> = scores.iter().filter(|(c, _)| c.batch == 1 && c.instances == 1).collect();
    ranked.sort_by(|a, b| a.1.p50_ms.total_cmp(&b.1.p50_ms));
    ranked
}

/// Those that meet the target first, then by throughput; those that miss it by how far they do.
fn by_throughput(scores: &Scores, target_latency_ms: Option<f64>) -> Vec<(&Candidate, &Score)> {
    let mut ranked: Vec<_> = scores.iter().collect();
    ranked.sort_by(|(_, a), (_, b)| match (meets(a, target_latency_ms), meets(b, target_latency_ms)) {
        (true, true) => b.per_second.total_cmp(&a.per_second),
        (false, false) => a.p99_ms.total_cmp(&b.p99_ms),
        (a_meets, b_meets) => b_meets.cmp(&a_meets),
    });
    ranked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(engine: &str, batch: usize, threads: usize, instances: usize) -> Candidate {
        Candidate { engine: engine.to_owned(), batch, threads, instances }
    }

    fn score(p50_ms: f64, per_second: f64) -> Score {
        Score { p50_ms, p99_ms: p50_ms * 1.5, per_second }
    }

    #[test]
    fn candidates_fit_the_cores() {
        for cores in 1..=9 {
            let all = candidates(&["a".to_owned(), "b".to_owned()], cores, true);
            assert!(all.iter().all(|c| c.threads * c.instances <= cores && c.threads > 0 && c.instances > 0));
            assert!(all.iter().any(|c| c.threads == cores), "{cores} cores: all of them are tried");
            let mut unique = all.clone();
            unique.sort();
            unique.dedup();
            assert_eq!(unique.len(), all.len());
        }
        assert!(candidates(&["a".to_owned()], 4, false).iter().all(|c| c.batch == 1));
    }

    #[test]
    fn the_fastest_wins_each_goal() {
        let scores = Scores::from([
            (candidate("a", 1, 1, 1), score(10.0, 100.0)),
            (candidate("a", 1, 2, 1), score(6.0, 160.0)),
            (candidate("a", 8, 2, 1), score(40.0, 200.0)),
            (candidate("b", 1, 1, 2), score(11.0, 180.0)),
        ]);
        assert_eq!(best_latency(&scores).unwrap().0, &candidate("a", 1, 2, 1));
        assert_eq!(best_throughput(&scores, None).unwrap().0, &candidate("a", 8, 2, 1));
        assert_eq!(best_throughput(&scores, Some(20.0)).unwrap().0, &candidate("b", 1, 1, 2));
        assert_eq!(best_throughput(&scores, Some(1.0)), None);
    }

    #[test]
    fn a_win_within_the_noise_does_not_cost_threads_or_batch() {
        let scores = Scores::from([
            (candidate("a", 1, 1, 1), score(10.0, 100.0)),
            (candidate("a", 1, 2, 1), score(9.9, 101.0)),
            (candidate("a", 32, 2, 1), score(320.0, 102.0)),
        ]);
        assert_eq!(best_latency(&scores).unwrap().0.threads, 1);
        assert_eq!(best_throughput(&scores, None).unwrap().0.batch, 1);
    }

    #[test]
    fn halving_ends_and_keeps_the_winners() {
        let engines = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let mut left = candidates(&engines, 8, true);
        let value =
            |c: &Candidate| score((c.batch * 7 % 5 + 20 / c.threads) as f64 + 1.0, (c.batch * c.instances) as f64);
        let all: Scores = left.iter().map(|c| (c.clone(), value(c))).collect();
        let mut rounds = 0;
        loop {
            let scores: Scores = left.iter().map(|c| (c.clone(), value(c))).collect();
            if is_last(&scores) {
                assert_eq!(best_latency(&scores).unwrap().1, best_latency(&all).unwrap().1);
                break;
            }
            let next = survivors(&scores, None);
            assert!(next.len() < left.len(), "{} candidates stay {}", left.len(), next.len());
            left = next;
            rounds += 1;
            assert!(rounds < 20);
        }
    }

    #[test]
    fn the_work_ahead_ends_with_the_finalists() {
        assert_eq!(work(0, 0, 3), 0);
        assert_eq!(work(2 * FINALISTS, 0, 3), 18);
        // 24 for one unit, 12 for two, 6 for four.
        assert_eq!(work(24, 0, 3), 3 * (24 + 24 + 24));
        assert_eq!(work(6, 9, 1), 6 * 16);
    }

    #[test]
    fn no_measurement_has_no_best() {
        assert_eq!(Score::of(&[]), None);
        assert_eq!(best_latency(&Scores::new()), None);
        assert!(survivors(&Scores::new(), None).is_empty());
    }
}

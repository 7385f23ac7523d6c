//! Which variants are worth keeping and which one is the best: pure decisions on figures.

use serde::Serialize;

/// What a variant shall be best at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// One request at a time.
    Latency,
    /// Many requests.
    Throughput,
    /// The file.
    Size,
    /// Processor time: on one machine, what energy goes with.
    Energy,
}

/// Figures that decide.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Median time of one request on the engine that runs it best.
    pub p50_ms: f64,
    /// Items per second on the engine that runs it best.
    pub per_second: f64,
    /// Processor time of one request there, of all cores together.
    pub core_ms: f64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes after compression for transfer.
    pub transfer_bytes: u64,
    /// How much worse than the original by the metric; below 0 where it is better.
    pub drop: f64,
}

/// What is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Limits {
    /// Largest drop of the metric.
    pub drop_max: f64,
    /// Longest median time.
    pub latency_ms_max: Option<f64>,
    /// Largest file.
    pub bytes_max: Option<u64>,
}

/// Times and rates within this part of each other count as equal: the difference is noise.
pub const NOISE: f64 = 0.05;

/// Why a variant may not be emitted; none where it is as good as the original in everything and better in what is asked for.
pub fn refusal(original: &Figures, variant: &Figures, limits: &Limits, goal: Goal) -> Option<String> {
    let percent = |part: f64| format!("{:.1} %", part * 100.0);
    // A metric that is no number is no metric.
    if variant.drop.is_nan() || variant.drop > limits.drop_max {
        return Some(format!("the metric drops by {:.4}, allowed are {:.4}", variant.drop, limits.drop_max));
    }
    if let Some(most) = limits.latency_ms_max.filter(|most| variant.p50_ms > *most) {
        return Some(format!("a request takes {:.2} ms, allowed are {most:.2} ms", variant.p50_ms));
    }
    if let Some(most) = limits.bytes_max.filter(|most| variant.bytes > *most) {
        return Some(format!("the file has {} bytes, allowed are {most}", variant.bytes));
    }
    let slower = variant.p50_ms / original.p50_ms - 1.0;
    if slower > NOISE {
        return Some(format!("it is slower than the original by {}", percent(slower)));
    }
    let fewer = 1.0 - variant.per_second / original.per_second;
    if fewer > NOISE {
        return Some(format!("it answers fewer requests per second than the original by {}", percent(fewer)));
    }
    if variant.bytes > original.bytes {
        return Some(format!("its file is larger than the original's by {} bytes", variant.bytes - original.bytes));
    }
    let better = match goal {
        Goal::Latency => -slower > NOISE,
        Goal::Throughput => -fewer > NOISE,
        Goal::Size => variant.bytes < original.bytes,
        Goal::Energy => variant.core_ms < original.core_ms * (1.0 - NOISE),
    };
    (!better).then(|| {
        let what = match goal {
            Goal::Latency => "faster",
            Goal::Throughput => "faster for many requests",
            Goal::Size => "smaller",
            Goal::Energy => "less work for the processor",
        };
        format!("it is not {what} than the original beyond the noise of {}", percent(NOISE))
    })
}

/// For each, whether no other is at least as good in everything and better in something: time, bytes and drop.
pub fn pareto(all: &[Figures]) -> Vec<bool> {
    let axes = |figures: &Figures| [figures.p50_ms, figures.bytes as f64, figures.drop.max(0.0)];
    let dominates = |a: &Figures, b: &Figures| {
        let pairs = axes(a).into_iter().zip(axes(b));
        pairs.clone().all(|(a, b)| a <= b) && pairs.clone().any(|(a, b)| a < b)
    };
    all.iter().map(|one| !all.iter().any(|other| dominates(other, one))).collect()
}

/// Files within this part of each other count as equal.
const SAME_SIZE: f64 = 0.02;
/// Drops that differ by less count as equal.
const SAME_DROP: f64 = 1e-4;

/// The best for a goal among those that may be emitted; of equals the more accurate one, then the smaller, or where size
/// was the goal the faster.
pub fn best(candidates: &[(usize, Figures)], goal: Goal) -> Option<usize> {
    let cost = |figures: &Figures| match goal {
        Goal::Latency => figures.p50_ms,
        Goal::Throughput => 1.0 / figures.per_second,
        Goal::Size => figures.transfer_bytes as f64,
        Goal::Energy => figures.core_ms,
    };
    let least = candidates.iter().map(|(_, figures)| cost(figures)).min_by(f64::total_cmp)?;
    let noise = if goal == Goal::Size { SAME_SIZE } else { NOISE };
    let close = candidates.iter().filter(|(_, figures)| cost(figures) <= least * (1.0 + noise));
    let dropped = |figures: &Figures| (figures.drop.max(0.0) / SAME_DROP).round();
    let second = |figures: &Figures| if goal == Goal::Size { figures.p50_ms } else { figures.bytes as f64 };
    let order = |(_, a): &&(usize, Figures), (_, b): &&(usize, Figures)| {
        dropped(a).total_cmp(&dropped(b)).then(second(a).total_cmp(&second(b))).then(cost(a).total_cmp(&cost(b)))
    };
    close.min_by(order).map(|(index, _)| *index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(p50_ms: f64, bytes: u64, drop: f64) -> Figures {
        Figures { p50_ms, per_second: 1e3 / p50_ms, core_ms: 2.0 * p50_ms, bytes, transfer_bytes: bytes, drop }
    }

    const LIMITS: Limits = Limits { drop_max: 0.01, latency_ms_max: None, bytes_max: None };

    #[test]
    fn nothing_worse_is_emitted() {
        let original = figures(10.0, 1000, 0.0);
        let table = [
            (figures(5.0, 300, 0.0), Goal::Latency, None),
            (figures(5.0, 300, 0.02), Goal::Latency, Some("metric drops")),
            (figures(5.0, 300, f64::NAN), Goal::Latency, Some("metric drops")),
            (figures(12.0, 300, 0.0), Goal::Size, Some("slower")),
            (figures(10.2, 500, 0.0), Goal::Size, None),
            (figures(9.9, 500, 0.0), Goal::Latency, Some("not faster")),
            (figures(5.0, 1001, 0.0), Goal::Latency, Some("larger")),
        ];
        for (variant, goal, expected) in table {
            let said = refusal(&original, &variant, &LIMITS, goal);
            let as_expected = match expected {
                None => said.is_none(),
                Some(text) => said.as_ref().is_some_and(|said| said.contains(text)),
            };
            assert!(as_expected, "{variant:?} {goal:?}: {said:?}");
        }
        let limits = Limits { latency_ms_max: Some(4.0), bytes_max: Some(200), ..LIMITS };
        assert!(refusal(&original, &figures(5.0, 300, 0.0), &limits, Goal::Size).unwrap().contains("4.00 ms"));
        assert!(refusal(&original, &figures(3.0, 300, 0.0), &limits, Goal::Size).unwrap().contains("200"));
    }

    #[test]
    fn what_another_beats_in_everything_is_not_kept() {
        let all =
            [figures(10.0, 1000, 0.0), figures(5.0, 300, 0.002), figures(6.0, 400, 0.003), figures(5.0, 300, 0.002)];
        assert_eq!(pareto(&all), [true, true, false, true]);
    }

    #[test]
    fn the_best_is_by_the_goal_and_of_equals_the_more_accurate() {
        let all = [(0, figures(5.0, 300, 0.002)), (1, figures(5.1, 310, 0.0)), (2, figures(9.0, 100, 0.0))];
        assert_eq!(best(&all, Goal::Latency), Some(1));
        assert_eq!(best(&all, Goal::Size), Some(2));
        let all = [(0, figures(5.0, 300, 0.0)), (1, figures(4.0, 301, 1e-6)), (2, figures(3.0, 400, 0.0))];
        assert_eq!(best(&all, Goal::Size), Some(1));
        assert_eq!(best(&[], Goal::Size), None);
        // As fast on one core as on two.
        let one_core = Figures { core_ms: 5.0, ..figures(5.2, 300, 0.0) };
        assert_eq!(best(&[(0, figures(5.0, 300, 0.0)), (1, one_core)], Goal::Energy), Some(1));
        assert_eq!(refusal(&figures(5.0, 300, 0.0), &one_core, &LIMITS, Goal::Energy), None);
        let said = refusal(&one_core, &figures(5.0, 300, 0.0), &LIMITS, Goal::Energy);
        assert!(said.unwrap().contains("not less work"));
    }
}

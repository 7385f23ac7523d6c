//! The terms on which a policy permits: how outputs are hardened and how much may be used. Written as annotations of a policy.
//!
//! | annotation | means |
//! |---|---|
//! | `@output("top_k=3")` | only the `k` largest scores are answered; `"top_k=1,labels"` answers labels without scores |
//! | `@round("3")` | floats are rounded to so many decimal places |
//! | `@noise("laplace,scale=0.01")` | noise is added; also `gaussian,sigma=…` |
//! | `@query_budget("1000/day")` | so many requests per second, minute, hour or day |
//! | `@rate("50/s")`, `@burst("100")` | requests per time, and how many may come at once |
//! | `@concurrent("4")` | requests that run at the same time |
//! | `@compute_per_day("10m")`, `@compute_per_request("2s")` | time of computing |
//! | `@request_bytes("1048576")` | size of a request |
//!
//! Where several policies permit, the strictest of each term holds.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

/// Annotations that only tell people something.
const NOTES: [&str; 4] = ["id", "description", "owner", "ticket"];
const TERMS: [&str; 10] = [
    "output",
    "round",
    "noise",
    "query_budget",
    "rate",
    "burst",
    "concurrent",
    "compute_per_day",
    "compute_per_request",
    // Last, so that the message reads well.
    "request_bytes",
];

/// On what terms a request is permitted.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Terms {
    /// What is done to outputs before they leave.
    pub obligations: Obligations,
    /// What may be used.
    pub limits: Limits,
}

/// What is done to a model's outputs before they leave (against extraction and inversion).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Obligations {
    /// Only the largest scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<Output>,
    /// Decimal places that floats keep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round: Option<u8>,
    /// Noise that floats get.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise: Option<Noise>,
}

/// Which scores are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Output {
    /// The so many largest.
    pub top_k: u32,
    /// Without the scores themselves.
    pub labels_only: bool,
}

/// Noise on floats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "distribution")]
pub enum Noise {
    /// Laplace around zero.
    Laplace {
        /// The scale `b`; the standard deviation is √2·b.
        scale: f64,
    },
    /// Normal around zero.
    Gaussian {
        /// The standard deviation.
        sigma: f64,
    },
}

impl Noise {
    fn deviation(self) -> f64 {
        match self {
            Self::Laplace { scale } => scale * std::f64::consts::SQRT_2,
            Self::Gaussian { sigma } => sigma,
        }
    }
}

/// What a principal may use of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Limits {
    /// Requests per time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Requests that may come at once; as many as come in one second where not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Requests that run at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent: Option<u32>,
    /// Computing in a day (UTC).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute_per_day: Option<Duration>,
    /// Computing of one request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute_per_request: Option<Duration>,
    /// Size of a request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_bytes: Option<u64>,
    /// Requests in each window of time, aligned to the clock.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub query_budgets: BTreeMap<Window, u32>,
}

/// So many per time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rate {
    /// How many.
    pub count: u32,
    /// In which time.
    pub per: Window,
}

impl Rate {
    /// Time between two requests that come evenly.
    pub fn interval(self) -> Duration {
        self.per.duration() / self.count.max(1)
    }
}

/// A length of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    /// 1 s.
    Second,
    /// 60 s.
    Minute,
    /// 3,600 s.
    Hour,
    /// 86,400 s.
    Day,
}

impl Window {
    /// How long it is.
    pub const fn duration(self) -> Duration {
        Duration::from_secs(match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3600,
            Self::Day => 86_400,
        })
    }
}

impl Terms {
    /// Reads the annotations of a policy.
    ///
    /// # Errors
    /// An unknown annotation or a value that cannot be read: a misspelt protection must not be silently absent.
    pub(super) fn read<'a>(annotations: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Self, String> {
        let mut terms = Self::default();
        for (name, value) in annotations {
            terms.set(name, value)?;
        }
        if terms.limits.burst.is_some() && terms.limits.rate.is_none() {
            return Err("`@burst` means nothing without `@rate`; add `@rate(\"50/s\")`".to_owned());
        }
        Ok(terms)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let (obligations, limits) = (&mut self.obligations, &mut self.limits);
        let read = match name {
            "output" => output(value).map(|output| obligations.output = Some(output)),
            "round" => number(value, 0, 15).map(|digits| obligations.round = Some(digits as u8)),
            "noise" => noise(value).map(|noise| obligations.noise = Some(noise)),
            "query_budget" => rate(value).map(|rate| {
                limits.query_budgets.insert(rate.per, rate.count);
            }),
            "rate" => rate(value).map(|rate| limits.rate = Some(rate)),
            "burst" => number(value, 1, u32::MAX.into()).map(|burst| limits.burst = Some(burst as u32)),
            "concurrent" => number(value, 1, u32::MAX.into()).map(|count| limits.concurrent = Some(count as u32)),
            "compute_per_day" => duration(value).map(|time| limits.compute_per_day = Some(time)),
            "compute_per_request" => duration(value).map(|time| limits.compute_per_request = Some(time)),
            "request_bytes" => number(value, 0, u64::MAX).map(|bytes| limits.request_bytes = Some(bytes)),
            _ if NOTES.contains(&name) => Ok(()),
            _ => {
                let known = [&NOTES[..], &TERMS[..]].concat().join("`, `@");
                return Err(format!("annotation `@{name}` is unknown; expected one of `@{known}`"));
            }
        };
        read.map_err(|expected| format!("annotation `@{name}(\"{value}\")` cannot be read; expected {expected}"))
    }

    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The stricter of both in each term.
    #[must_use]
    pub fn strictest(&self, other: &Self) -> Self {
        let (a, b) = (&self.obligations, &other.obligations);
        let obligations = Obligations {
            output: both(a.output, b.output, |a, b| Output {
                top_k: a.top_k.min(b.top_k),
                labels_only: a.labels_only || b.labels_only,
            }),
            round: both(a.round, b.round, u8::min),
            noise: both(a.noise, b.noise, |a, b| if a.deviation() >= b.deviation() { a } else { b }),
        };
        Self { obligations, limits: self.limits.strictest(&other.limits) }
    }
}

impl Limits {
    /// The stricter of both in each limit.
    #[must_use]
    pub fn strictest(&self, other: &Self) -> Self {
        let mut query_budgets = self.query_budgets.clone();
        for (&window, &count) in &other.query_budgets {
            query_budgets.entry(window).and_modify(|known| *known = count.min(*known)).or_insert(count);
        }
        Self {
            rate: both(self.rate, other.rate, |a, b| if a.interval() >= b.interval() { a } else { b }),
            burst: both(self.burst, other.burst, u32::min),
            concurrent: both(self.concurrent, other.concurrent, u32::min),
            compute_per_day: both(self.compute_per_day, other.compute_per_day, Duration::min),
            compute_per_request: both(self.compute_per_request, other.compute_per_request, Duration::min),
            request_bytes: both(self.request_bytes, other.request_bytes, u64::min),
            query_budgets,
        }
    }
}

fn both<T>(a: Option<T>, b: Option<T>, stricter: impl FnOnce(T, T) -> T) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(stricter(a, b)),
        (one, None) | (None, one) => one,
    }
}

fn number(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let expected = || format!("a whole number from {least} to {most}");
    text.parse().ok().filter(|number| (least..=most).contains(number)).ok_or_else(expected)
}

fn output(text: &str) -> Result<Output, String> {
    let (top_k, labels_only) = match text.split_once(',') {
        Some((top_k, rest)) if rest.trim() == "labels" => (top_k, true),
        Some(_) => (text, false),
        None => (text, false),
    };
    let top_k = top_k.trim().strip_prefix("top_k=").and_then(|k| number(k, 1, u32::MAX.into()).ok());
    let expected = || "`top_k=K` or `top_k=K,labels` with K of at least 1".to_owned();
    top_k.map(|k| Output { top_k: k as u32, labels_only }).ok_or_else(expected)
}

fn noise(text: &str) -> Result<Noise, String> {
    let positive = |value: &str| value.parse::<f64>().ok().filter(|value| value.is_finite() && *value > 0.0);
    let read = text.split_once(',').and_then(|(distribution, parameter)| {
        match (distribution.trim(), parameter.trim().split_once('=')?) {
            ("laplace", ("scale", value)) => Some(Noise::Laplace { scale: positive(value)? }),
            ("gaussian", ("sigma", value)) => Some(Noise::Gaussian { sigma: positive(value)? }),
            _ => None,
        }
    });
    read.ok_or_else(|| "`laplace,scale=S` or `gaussian,sigma=S` with S above 0".to_owned())
}

fn rate(text: &str) -> Result<Rate, String> {
    let read = text.split_once('/').and_then(|(count, per)| {
        let per = match per.trim() {
            "s" | "second" => Window::Second,
            "min" | "minute" => Window::Minute,
            "h" | "hour" => Window::Hour,
            "d" | "day" => Window::Day,
            _ => return None,
        };
        Some(Rate { count: number(count.trim(), 1, u32::MAX.into()).ok()? as u32, per })
    });
    read.ok_or_else(|| "`COUNT/second`, `/minute`, `/hour` or `/day`, as `50/s`".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "a time with its unit, as `250ms`, `2s` or `10m`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, value: &str) -> Result<Terms, String> {
        Terms::read([(name, value)].into_iter())
    }

    #[test]
    fn each_annotation_is_read() {
        assert_eq!(
            read("output", "top_k=3, labels").unwrap().obligations.output,
            Some(Output { top_k: 3, labels_only: true })
        );
        assert_eq!(read("round", "0").unwrap().obligations.round, Some(0));
        assert_eq!(read("noise", "laplace,scale=0.5").unwrap().obligations.noise, Some(Noise::Laplace { scale: 0.5 }));
        assert_eq!(read("query_budget", "9/day").unwrap().limits.query_budgets, [(Window::Day, 9)].into());
        assert_eq!(read("rate", "50/s").unwrap().limits.rate, Some(Rate { count: 50, per: Window::Second }));
        assert_eq!(read("compute_per_day", "10m").unwrap().limits.compute_per_day, Some(Duration::from_secs(600)));
        assert_eq!(read("request_bytes", "0").unwrap().limits.request_bytes, Some(0));
        assert!(read("owner", "anything").unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (name, value) in [
            ("output", "top_k=0"),
            ("output", "top_k=1,label"),
            ("output", "1"),
            ("round", "16"),
            ("round", "-1"),
            ("noise", "laplace,scale=nan"),
            ("noise", "laplace,sigma=1"),
            ("noise", "gaussian,sigma=0"),
            ("query_budget", "0/day"),
            ("rate", "50"),
            ("rate", "50/year"),
            ("burst", "3"),
            ("concurrent", "0"),
            ("compute_per_request", "2"),
            ("rond", "3"),
        ] {
            let message = read(name, value).unwrap_err();
            assert!(message.contains(&format!("`@{name}")), "{name}: {message}");
        }
    }

    #[test]
    fn the_strictest_of_each_term_holds() {
        let a = Terms::read(
            [("output", "top_k=5,labels"), ("rate", "100/s"), ("query_budget", "10/hour"), ("round", "4")].into_iter(),
        );
        let b = Terms::read(
            [("output", "top_k=2"), ("rate", "60/minute"), ("query_budget", "20/day"), ("concurrent", "1")].into_iter(),
        );
        let (a, b) = (a.unwrap(), b.unwrap());
        let strict = a.strictest(&b);
        assert_eq!(strict, b.strictest(&a));
        assert_eq!(strict.obligations.output, Some(Output { top_k: 2, labels_only: true }));
        assert_eq!(strict.obligations.round, Some(4));
        assert_eq!(strict.limits.rate, Some(Rate { count: 60, per: Window::Minute }));
        assert_eq!(strict.limits.concurrent, Some(1));
        assert_eq!(strict.limits.query_budgets, [(Window::Hour, 10), (Window::Day, 20)].into());
        assert_eq!(strict.strictest(&Terms::default()), strict);
    }
}

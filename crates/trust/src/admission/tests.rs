//! Limits one by one, then under hostile clocks, crowds and concurrency.

use std::time::UNIX_EPOCH;

use proptest::prelude::*;

use super::*;
use crate::policy::Rate;

const NOON: u64 = 1_795_608_000; // 25 November 2026, 12:00 UTC.

pub(super) fn at(millis: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOON) + Duration::from_millis(millis)
}

fn demand(principal: &str) -> Demand<'_> {
    Demand { principal, model: "chest", request_bytes: 100, compute: Duration::ZERO }
}

fn admission() -> Admission {
    Admission::new(&AdmissionSettings::default())
}

fn per_second(count: u32) -> Option<Rate> {
    Some(Rate { count, per: Window::Second })
}

#[test]
fn a_rate_lets_a_burst_through_and_then_one_by_one() {
    let (admission, limits) = (admission(), Limits { rate: per_second(10), burst: Some(3), ..Limits::default() });
    let ask =
        |millis| admission.admit(&demand("anna"), &limits, at(millis)).map(drop).map_err(|refusal| refusal.retry_after);
    assert_eq!([ask(0), ask(0), ask(0)], [Ok(()); 3]);
    assert_eq!(ask(0), Err(Some(Duration::from_millis(100))));
    assert_eq!(ask(40), Err(Some(Duration::from_millis(60))));
    assert_eq!([ask(100), ask(100).map_err(|_| None)], [Ok(()), Err(None)]);
    assert_eq!(
        [ask(10_000), ask(10_000), ask(10_000), ask(10_000).map_err(|_| None)],
        [Ok(()), Ok(()), Ok(()), Err(None)]
    );
}

#[test]
fn accounts_are_of_a_principal_and_a_model() {
    let (admission, limits) = (admission(), Limits { rate: per_second(1), ..Limits::default() });
    assert!(admission.admit(&demand("anna"), &limits, at(0)).is_ok());
    assert_eq!(admission.admit(&demand("anna"), &limits, at(0)).unwrap_err().limit, Limit::Rate);
    assert!(admission.admit(&demand("otto"), &limits, at(0)).is_ok());
    assert!(admission.admit(&Demand { model: "knee", ..demand("anna") }, &limits, at(0)).is_ok());
}

#[test]
fn sizes_and_single_runs_are_bounded() {
    let limits =
        Limits { request_bytes: Some(100), compute_per_request: Some(Duration::from_secs(2)), ..Limits::default() };
    let admission = admission();
    let ask = |bytes, seconds| {
        let demand = Demand { request_bytes: bytes, compute: Duration::from_secs(seconds), ..demand("anna") };
        admission.admit(&demand, &limits, at(0)).map(|permit| permit.compute_max).map_err(|refusal| refusal.limit)
    };
    assert_eq!(ask(100, 2), Ok(Some(Duration::from_secs(2))));
    assert_eq!(ask(101, 2), Err(Limit::RequestBytes));
    assert_eq!(ask(100, 3), Err(Limit::ComputePerRequest));
}

#[test]
fn so_many_at_the_same_time() {
    let (admission, limits) = (admission(), Limits { concurrent: Some(2), ..Limits::default() });
    let ask = || admission.admit(&demand("anna"), &limits, at(0));
    let (one, two) = (ask().unwrap(), ask().unwrap());
    assert_eq!(ask().unwrap_err().limit, Limit::Concurrent);
    drop(one);
    let three = ask().unwrap();
    assert!(ask().is_err());
    two.finish(Duration::ZERO);
    three.finish(Duration::ZERO);
    assert!(ask().is_ok());
}

#[test]
fn a_refused_request_counts_nowhere() {
    let limits = Limits {
        rate: per_second(1),
        concurrent: Some(1),
        query_budgets: [(Window::Hour, 1)].into(),
        ..Limits::default()
    };
    let admission = admission();
    admission.admit(&demand("anna"), &limits, at(0)).unwrap().finish(Duration::ZERO);
    for _ in 0..10 {
        assert_eq!(
            admission.admit(&demand("anna"), &limits, at(1000)).unwrap_err().limit,
            Limit::QueryBudget(Window::Hour)
        );
    }
    // Neither the place nor the turn of the refused ones is taken.
    let free = Limits { query_budgets: Default::default(), ..limits };
    assert!(admission.admit(&demand("anna"), &free, at(1000)).is_ok());
}

#[test]
fn budgets_begin_anew_with_their_window() {
    let (admission, limits) =
        (admission(), Limits { query_budgets: [(Window::Minute, 2), (Window::Day, 3)].into(), ..Limits::default() });
    let ask = |millis| admission.admit(&demand("anna"), &limits, at(millis)).map(drop);
    assert_eq!([ask(0), ask(1)], [Ok(()); 2]);
    let retry_after = Some(Duration::from_millis(59_000));
    assert_eq!(ask(1000), Err(Refusal { limit: Limit::QueryBudget(Window::Minute), retry_after }));
    assert!(ask(60_000).is_ok());
    assert_eq!(ask(60_001).unwrap_err().limit, Limit::QueryBudget(Window::Day));
    assert!(ask(12 * 3600 * 1000).is_ok());
}

#[test]
fn computing_is_reserved_and_settled() {
    let (admission, limits) =
        (admission(), Limits { compute_per_day: Some(Duration::from_secs(10)), ..Limits::default() });
    let ask = |seconds, millis| {
        let demand = Demand { compute: Duration::from_secs(seconds), ..demand("anna") };
        admission.admit(&demand, &limits, at(millis))
    };
    let running = ask(6, 0).unwrap();
    assert_eq!(ask(6, 0).unwrap_err().limit, Limit::ComputePerDay);
    running.finish(Duration::from_secs(3));
    drop(ask(6, 0).unwrap());
    ask(1, 0).unwrap().finish(Duration::from_secs(9));
    assert_eq!(ask(0, 0).unwrap_err().retry_after, Some(Duration::from_secs(12 * 3600)));
    // What began yesterday is settled on no other day.
    let tomorrow = 12 * 3600 * 1000;
    let late = ask(4, tomorrow).unwrap();
    late.finish(Duration::from_secs(4));
    assert!(ask(6, tomorrow).is_ok());
    assert_eq!(ask(11, tomorrow).unwrap_err().retry_after, None);
}

#[test]
fn a_clock_that_is_set_back_gives_nothing_away_and_locks_nobody_out() {
    let limits = Limits {
        rate: per_second(1),
        query_budgets: [(Window::Hour, 3)].into(),
        compute_per_day: Some(Duration::from_secs(60)),
        ..Limits::default()
    };
    let admission = admission();
    let ask = |now| admission.admit(&demand("anna"), &limits, now).map(drop).map_err(|refusal| refusal.limit);
    assert_eq!(ask(at(0)), Ok(()));
    let yesterday = at(0) - Duration::from_secs(86_400);
    assert_eq!(ask(yesterday), Err(Limit::Rate));
    assert_eq!(ask(yesterday + Duration::from_secs(1)), Ok(()));
    assert_eq!(ask(yesterday + Duration::from_secs(3)), Ok(()));
    assert_eq!(ask(yesterday + Duration::from_secs(5)), Err(Limit::QueryBudget(Window::Hour)));
    for odd in [UNIX_EPOCH - Duration::from_secs(5), UNIX_EPOCH + Duration::from_secs(1 << 40)] {
        let _ = ask(odd);
    }
}

#[test]
fn a_crowd_is_bounded_and_who_is_in_flight_is_kept() {
    let admission = Admission::new(&AdmissionSettings { accounts_max: 100 });
    let limits = Limits { concurrent: Some(1), ..Limits::default() };
    let running = admission.admit(&demand("anna"), &limits, at(0)).unwrap();
    for number in 0..10_000 {
        drop(admission.admit(&demand(&format!("crowd{number}")), &limits, at(0)).unwrap());
    }
    assert!(admission.accounts() <= 100, "{}", admission.accounts());
    assert_eq!(admission.admit(&demand("anna"), &limits, at(0)).unwrap_err().limit, Limit::Concurrent);
    drop(running);
    assert!(admission.admit(&demand("anna"), &limits, at(0)).is_ok());
    // More in flight than accounts are kept: each still has its own.
    let all: Vec<_> = (0..500).map(|n| admission.admit(&demand(&n.to_string()), &limits, at(0)).unwrap()).collect();
    for number in 0..500 {
        let again = admission.admit(&demand(&number.to_string()), &limits, at(0));
        assert_eq!(again.unwrap_err().limit, Limit::Concurrent, "{number}");
    }
    drop(all);
}

#[test]
fn threads_together_get_no_more_than_one_alone() {
    let limits = Limits { query_budgets: [(Window::Day, 1000)].into(), concurrent: Some(3), ..Limits::default() };
    let (admission, admitted) = (admission(), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    if let Ok(permit) = admission.admit(&demand("anna"), &limits, at(0)) {
                        assert!(permit.account.in_flight.load(Ordering::Relaxed) <= 3);
                        admitted.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert!(admitted.load(Ordering::Relaxed) <= 1000);
    let in_flight = |permit: Permit| permit.account.in_flight.load(Ordering::Relaxed);
    assert_eq!(in_flight(admission.admit(&demand("anna"), &Limits::default(), at(0)).unwrap()), 1);
}

proptest! {
    #[test]
    fn a_rate_is_never_exceeded(
        count in 1u32..50, burst in 1u32..20, steps in proptest::collection::vec(0u64..400, 1..200),
    ) {
        let limits = Limits { rate: per_second(count), burst: Some(burst), ..Limits::default() };
        let (admission, mut now, mut admitted) = (admission(), 0, Vec::new());
        for step in steps {
            now += step;
            if admission.admit(&demand("anna"), &limits, at(now)).is_ok() {
                admitted.push(now);
            }
        }
        prop_assert!(!admitted.is_empty());
        for (first, &from) in admitted.iter().enumerate() {
            for (last, &to) in admitted.iter().enumerate().skip(first) {
                let most = f64::from(burst) + (to - from) as f64 / 1000.0 * f64::from(count) + 1e-6;
                prop_assert!((last - first + 1) as f64 <= most, "{from} to {to}: {}", last - first + 1);
            }
        }
    }
}

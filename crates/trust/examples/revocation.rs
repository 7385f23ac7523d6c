//! How long from a revocation to the last of its streams knowing it.
//!
//! `cargo run --release -p edgeward-trust --example revocation -- [STREAMS] [ROUNDS]`: as many streams of one principal wait on tasks of a
//! server's runtime beside twice as many of others; one call revokes. Prints percentiles over all notifications of all rounds, in
//! microseconds, then what a review of all streams costs.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use edgeward_trust::{
    Method, Principal, Strength, TrustError,
    revocation::{Live, Registry, RegistrySettings, Revocations, Revoked},
};

fn live(id: String) -> Live<()> {
    let expires_at = SystemTime::now() + Duration::from_secs(3600);
    let principal = Principal {
        id,
        method: Method::Oidc,
        strength: Strength::KeyBound,
        tenant: None,
        groups: Vec::new(),
        claims: BTreeMap::new(),
        bound_to: None,
        expires_at,
    };
    Live { principal: Arc::new(principal), valid_until: expires_at, context: () }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let mut number = |default: usize| args.next().map_or(Ok(default), |text| text.parse::<usize>());
    let (streams, rounds) = (number(1000)?, number(50)?);
    let registry = Arc::new(Registry::new(Arc::new(Revocations::new(1_000_000)), RegistrySettings::default()));
    let others: Vec<_> = (0..2 * streams)
        .map(|i| registry.enter(live(format!("other-{i}")), SystemTime::now()))
        .collect::<Result<_, TrustError>>()?;

    let (mut notified, mut calls) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let id = format!("camera-{round}");
        let mut waiting = Vec::new();
        for _ in 0..streams {
            let mut stream = registry.enter(live(id.clone()), SystemTime::now())?;
            waiting.push(tokio::spawn(async move {
                stream.cut().await;
                Instant::now()
            }));
        }
        tokio::task::yield_now().await;
        let began = Instant::now();
        let cut = registry.revoke(Revoked::Principal(id), None, SystemTime::now())?;
        calls.push(began.elapsed());
        if cut != streams {
            return Err(format!("{cut} of {streams} streams were cut").into());
        }
        for task in waiting {
            notified.push(task.await?.duration_since(began));
        }
    }
    report("revocation to notification", &mut notified);
    report("the call itself", &mut calls);

    let began = Instant::now();
    let sweep = registry.review(None, SystemTime::now(), &|_| Ok(()));
    println!("review of {} streams without their decisions: {} µs", sweep.checked, began.elapsed().as_micros());
    drop(others);
    Ok(())
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_micros();
    println!("{what}: p50 {} µs, p99 {} µs, max {} µs ({} values)", at(0.5), at(0.99), at(1.0), times.len());
}

//! Revocations and open streams.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use edgeward_trust::{
    ErrorKind, Method, Principal, Strength, Thumbprint, TrustError,
    revocation::{Change, Cut, Live, Registry, RegistrySettings, Revocations, Revoked, Stream, Sweep},
};

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn principal(id: &str, session: &str, key: u8) -> Principal {
    Principal {
        id: id.to_owned(),
        method: Method::Oidc,
        strength: Strength::KeyBound,
        tenant: None,
        groups: Vec::new(),
        claims: BTreeMap::from([(Principal::SESSION.to_owned(), session.to_owned())]),
        bound_to: Some(Thumbprint([key; 32])),
        expires_at: at(1000),
    }
}

fn live(id: &str, session: &str, key: u8) -> Live<&'static str> {
    Live { principal: Arc::new(principal(id, session, key)), valid_until: at(1000), context: "infer" }
}

fn registry(settings: RegistrySettings) -> Arc<Registry<&'static str>> {
    Arc::new(Registry::new(Arc::new(Revocations::new(1000)), settings))
}

fn three() -> (Arc<Registry<&'static str>>, [Stream<&'static str>; 3]) {
    let registry = registry(RegistrySettings::default());
    let streams = [("a", "s1", 1), ("a", "s2", 2), ("b", "s3", 1)]
        .map(|(id, s, k)| registry.enter(live(id, s, k), at(0)).unwrap());
    (registry, streams)
}

fn cuts(streams: &[Stream<&'static str>]) -> Vec<bool> {
    streams.iter().map(|stream| stream.is_cut().is_some()).collect()
}

#[test]
fn a_revocation_is_for_a_principal_a_session_or_a_key() {
    let revocations = Revocations::new(1000);
    let one = principal("a", "s", 1);
    let kind = |r: Result<(), TrustError>| r.map_err(|e| e.kind());
    assert_eq!(kind(revocations.check(&one, at(0))), Ok(()));
    for what in [Revoked::Principal("a".into()), Revoked::Session("s".into()), Revoked::Key(Thumbprint([1; 32]))] {
        revocations.add(what.clone(), Some(at(10)), at(0)).unwrap();
        assert_eq!(kind(revocations.check(&one, at(9))), Err(ErrorKind::Denied), "{what}");
        assert_eq!(kind(revocations.check(&principal("b", "t", 2), at(9))), Ok(()), "{what}");
        assert_eq!(kind(revocations.check(&one, at(10))), Ok(()), "{what} has ended");
        assert!(revocations.lift(&what) && !revocations.lift(&what));
    }
    // The longer of two revocations holds.
    let what = Revoked::Principal("a".into());
    revocations.add(what.clone(), None, at(0)).unwrap();
    revocations.add(what.clone(), Some(at(1)), at(0)).unwrap();
    assert!(revocations.holds(&what, at(1_000_000)));
}

#[test]
fn the_list_is_bounded_and_forgets_what_has_ended() {
    let revocations = Revocations::new(100);
    let add = |i: u32, now: u64| revocations.add(Revoked::Session(i.to_string()), Some(at(now + 10)), at(now));
    for i in 0..100 {
        add(i, 0).unwrap();
    }
    assert_eq!(add(100, 0).unwrap_err().kind(), ErrorKind::Unavailable);
    assert!((0..100).all(|i| revocations.holds(&Revoked::Session(i.to_string()), at(5))));
    // Those that have ended make room in their part of the list as it is written.
    assert!((0..10_000).filter(|i| add(200 + i, 20).is_ok()).count() > 50);
}

#[test]
fn a_revocation_cuts_the_streams_that_it_is_about() {
    let rows = [
        (Revoked::Principal("a".into()), [true, true, false]),
        (Revoked::Session("s2".into()), [false, true, false]),
        (Revoked::Key(Thumbprint([1; 32])), [true, false, true]),
        (Revoked::Principal("nobody".into()), [false; 3]),
    ];
    for (what, expected) in rows {
        let (registry, streams) = three();
        let cut = registry.revoke(what.clone(), None, at(1)).unwrap();
        assert_eq!((cuts(&streams), cut), (expected.to_vec(), expected.iter().filter(|c| **c).count()), "{what}");
        assert_eq!(registry.revoke(what, None, at(1)).unwrap(), 0, "a stream is cut once");
    }
}

#[test]
fn who_was_revoked_opens_no_stream() {
    let registry = registry(RegistrySettings::default());
    registry.revoke(Revoked::Principal("a".into()), None, at(0)).unwrap();
    assert_eq!(registry.enter(live("a", "s", 1), at(1)).err().map(|e| e.kind()), Some(ErrorKind::Denied));
    assert_eq!(registry.enter(live("b", "s", 1), at(1000)).err().map(|e| e.kind()), Some(ErrorKind::Expired));
    assert_eq!(registry.open(), 0);
}

#[test]
fn a_full_list_still_cuts() {
    let registry = Arc::new(Registry::new(Arc::new(Revocations::new(0)), RegistrySettings::default()));
    let stream = registry.enter(live("a", "s", 1), at(0)).unwrap();
    assert_eq!(
        registry.revoke(Revoked::Principal("a".into()), None, at(1)).unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    assert_eq!(stream.is_cut(), Some(Cut::Revoked));
}

#[test]
fn streams_are_bounded_and_leave_when_dropped() {
    let registry = registry(RegistrySettings { streams_max: 3, streams_per_principal_max: 2 });
    let enter = |id: &str| registry.enter(live(id, "s", 1), at(0)).map_err(|e| e.kind());
    let mut streams = vec![enter("a").unwrap(), enter("a").unwrap()];
    assert_eq!(enter("a").err(), Some(ErrorKind::Denied));
    streams.push(enter("b").unwrap());
    assert_eq!(enter("c").err(), Some(ErrorKind::Denied));
    streams.clear();
    assert_eq!(registry.open(), 0);
    enter("a").unwrap();
}

#[test]
fn a_review_cuts_what_is_denied_or_has_ended() {
    let (registry, streams) = three();
    let allow = |_: &Live<&str>| Ok(());
    assert_eq!(registry.review(None, at(1), &allow), Sweep { checked: 3, cut: 0 });
    let deny = |live: &Live<&str>| match live.principal.id.as_str() {
        "b" => Err(TrustError::new(ErrorKind::Denied, "policy 7")),
        _ => Ok(()),
    };
    assert_eq!(registry.review(Some("a"), at(1), &deny), Sweep { checked: 2, cut: 0 });
    assert_eq!(registry.review(None, at(1), &deny), Sweep { checked: 3, cut: 1 });
    assert_eq!(streams[2].is_cut(), Some(Cut::Denied("policy 7".into())));
    assert_eq!(registry.review(None, at(1000), &allow), Sweep { checked: 3, cut: 2 });
    assert_eq!(streams[0].is_cut(), Some(Cut::Ended));
}

#[tokio::test]
async fn changes_are_looked_at_at_once_and_time_by_the_timer() {
    tokio::time::pause();
    let (registry, mut streams) = three();
    let denied = Arc::new(AtomicBool::new(false));
    let elapsed = tokio::time::Instant::now();
    let watching = tokio::spawn({
        let (registry, denied) = (Arc::clone(&registry), Arc::clone(&denied));
        async move {
            let decide = |live: &Live<&str>| match (denied.load(Ordering::Relaxed), live.principal.id.as_str()) {
                (true, "a") => Err(TrustError::new(ErrorKind::Denied, "score 0.9 is over 0.7")),
                _ => Ok(()),
            };
            registry.watch(Duration::from_secs(5), || at(990) + elapsed.elapsed(), decide).await;
        }
    });
    // The first review is by the timer, at its start; then only the push can be what cuts: the paused clock does not move for it.
    tokio::task::yield_now().await;
    denied.store(true, Ordering::Relaxed);
    registry.push(Change::Principal("a".into()));
    assert_eq!(streams[0].cut().await, Cut::Denied("score 0.9 is over 0.7".into()));
    assert_eq!(elapsed.elapsed(), Duration::ZERO);
    assert_eq!(streams[2].is_cut(), None);
    registry.push(Change::Policy);
    assert_eq!(streams[2].cut().await, Cut::Ended);
    assert_eq!(elapsed.elapsed().as_secs(), 10);
    watching.abort();
}

#[test]
fn no_stream_slips_past_a_revocation_at_the_same_time() {
    for round in 0..200 {
        let registry = registry(RegistrySettings::default());
        let barrier = Arc::new(std::sync::Barrier::new(2));
        let opener = std::thread::spawn({
            let (registry, barrier) = (Arc::clone(&registry), Arc::clone(&barrier));
            move || {
                barrier.wait();
                registry.enter(live("a", "s", 1), at(0)).ok()
            }
        });
        barrier.wait();
        registry.revoke(Revoked::Principal("a".into()), None, at(0)).unwrap();
        if let Some(stream) = opener.join().unwrap() {
            assert_eq!(stream.is_cut(), Some(Cut::Revoked), "round {round}");
        }
    }
}

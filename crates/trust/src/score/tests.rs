//! The score is bounded, explains itself, and never rises with worse signals.

use proptest::prelude::*;

use super::*;

fn calm() -> Signals<'static> {
    Signals {
        strength: Strength::Attested,
        attested_age: Some(Duration::ZERO),
        posture: &[],
        source: Some(IpAddr::from([127, 0, 0, 1])),
        hour: 10,
        weekday: 3,
        rate_ratio: Some(1.0),
        known_for: Some(Duration::from_secs(u64::MAX)),
        detectors: &[],
    }
}

fn scorer() -> Scorer {
    Scorer::new(ScoreSettings::default()).unwrap()
}

#[test]
fn the_best_is_100_and_the_worst_near_0() {
    assert_eq!(scorer().score(&calm()).total, 100);
    let worst = Signals {
        strength: Strength::Bearer,
        attested_age: None,
        source: None,
        rate_ratio: Some(1e9),
        known_for: None,
        detectors: &[],
        ..calm()
    };
    // 0.3 of 35, 0.2 of 10 and the 5 of time.
    assert_eq!(scorer().score(&worst).total, 18);
}

#[test]
fn a_detector_caps_what_everything_else_says() {
    let detectors = [(Detector::Probing, 0.2), (Detector::Costly, 0.9), (Detector::Malformed, 0.0)];
    let score = scorer().score(&Signals { detectors: &detectors, ..calm() });
    assert_eq!(score.total, 10);
    assert_eq!(score.part(Part::Detectors), 10);
    assert_eq!(score.parts[6].points, -90.0);
    assert_eq!(score.suspicions, [(Detector::Probing, 20), (Detector::Costly, 90)]);
    for odd in [f32::NAN, f32::INFINITY, 7.0] {
        let detectors = [(Detector::Probing, odd)];
        assert_eq!(scorer().score(&Signals { detectors: &detectors, ..calm() }).total, 0, "{odd}");
    }
}

#[test]
fn an_attestation_ages() {
    let at = |seconds| {
        let signals = Signals { attested_age: Some(Duration::from_secs(seconds)), ..calm() };
        scorer().score(&signals).part(Part::Posture)
    };
    assert_eq!([at(0), at(3600), at(5400), at(7200), at(u64::MAX)], [100, 100, 50, 0, 0]);
}

#[test]
fn addresses_are_placed() {
    let settings =
        ScoreSettings { known_networks: vec!["203.0.113.0/24".parse().unwrap()], ..ScoreSettings::default() };
    let scorer = Scorer::new(settings).unwrap();
    let rows = [
        ("127.0.0.1", Network::Loopback),
        ("::ffff:127.0.0.1", Network::Loopback),
        ("203.0.113.9", Network::Known),
        ("::ffff:203.0.113.9", Network::Known),
        ("10.1.2.3", Network::Private),
        ("fd00::1", Network::Private),
        ("8.8.8.8", Network::Public),
        ("2001:db8::1", Network::Public),
    ];
    for (address, expected) in rows {
        assert_eq!(scorer.network(Some(address.parse().unwrap())), expected, "{address}");
    }
    assert_eq!(scorer.network(None), Network::Public);
}

#[test]
fn work_may_go_past_midnight() {
    let settings = ScoreSettings { work_hours: Some((22, 5)), work_days: vec![1, 2], ..ScoreSettings::default() };
    let scorer = Scorer::new(settings).unwrap();
    let at = |hour, weekday| scorer.score(&Signals { hour, weekday, ..calm() }).part(Part::Time);
    assert_eq!([at(23, 1), at(3, 2), at(12, 1), at(23, 3)], [100, 100, 0, 0]);
}

#[test]
fn settings_that_cannot_be_meant_are_refused() {
    let read = |text: &str| toml::from_str::<ScoreSettings>(text).map(Scorer::new);
    for text in [
        "weights = { identity = -1 }",
        "weights = { identity = nan }",
        "weights = { identity = 0 }",
        "weights = { detectors = 1 }",
        "work_hours = [8, 24]",
        "work_days = [0]",
    ] {
        assert!(read(text).unwrap().is_err(), "{text}");
    }
    for text in ["weights = { luck = 1 }", "known_networks = [\"10.0.0.0/40\"]", "weight = 1"] {
        assert!(read(text).is_err(), "{text}");
    }
    assert!(read("weights = { identity = 1 }\nknown_networks = [\"10.0.0.0/8\"]").unwrap().is_ok());
}

fn strengths() -> impl Strategy<Value = Strength> {
    prop_oneof![Just(Strength::Bearer), Just(Strength::KeyBound), Just(Strength::Attested)]
}

proptest! {
    #[test]
    fn worse_signals_never_raise_it(
        strength in strengths(), age in proptest::option::of(0u64..10_000), ratio in proptest::option::of(0f32..1e6),
        known in proptest::option::of(0u64..1_000_000), suspicion in 0f32..1.0, more in 1u64..5_000,
    ) {
        let detectors = [(Detector::Costly, suspicion)];
        let signals = Signals {
            strength, attested_age: age.map(Duration::from_secs), rate_ratio: ratio,
            known_for: known.map(Duration::from_secs), detectors: &detectors, ..calm()
        };
        let score = scorer().score(&signals);
        prop_assert!(score.total <= 100);
        let sum: f32 = score.parts.iter().map(|part| part.points).sum();
        prop_assert!((sum - f32::from(score.total)).abs() <= 0.51, "{sum} {}", score.total);
        let suspected = [(Detector::Costly, suspicion), (Detector::Probing, suspicion + 0.1)];
        let worse = [
            Signals { strength: Strength::Bearer, ..signals.clone() },
            Signals { attested_age: None, ..signals.clone() },
            Signals { attested_age: age.map(|age| Duration::from_secs(age + more)), ..signals.clone() },
            Signals { rate_ratio: ratio.map(|ratio| ratio + more as f32), ..signals.clone() },
            Signals { known_for: None, ..signals.clone() },
            Signals { source: None, ..signals.clone() },
            Signals { detectors: &suspected, ..signals.clone() },
        ];
        for other in worse {
            prop_assert!(scorer().score(&other).total <= score.total, "{other:?}");
        }
    }
}

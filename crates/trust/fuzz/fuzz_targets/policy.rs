//! A set of policies as the API takes it: the policies, a zero byte, the entities. What is taken decides without a panic, and nothing is
//! permitted without a policy.

#![no_main]

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use edgeward_trust::{
    Action, Method, Principal, Resource, Strength,
    policy::{Observed, Request, Rules, SourceFile, Sources},
    score::{Network, Score},
};
use libfuzzer_sys::fuzz_target;

static CALLER: LazyLock<Principal> = LazyLock::new(|| Principal {
    id: "spiffe://domain.example/caller".to_owned(),
    method: Method::Spiffe,
    strength: Strength::KeyBound,
    tenant: Some("tenant".to_owned()),
    groups: vec!["group".to_owned()],
    claims: [("path".to_owned(), "/caller".to_owned())].into(),
    bound_to: None,
    expires_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 33),
});

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (policies, entities) = text.split_once('\0').unwrap_or((text, ""));
    let file = |name: &str, text: &str| vec![SourceFile { name: name.to_owned(), text: text.to_owned() }];
    let sources = Sources { policies: file("a.cedar", policies), entities: file("entities.toml", entities) };
    let Ok(rules) = Rules::compile(&sources, 1) else { return };
    let observed = Observed {
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_764_000_000),
        source: Some([127, 0, 0, 1].into()),
        network: Network::Loopback,
        site: String::new(),
        session_age: Duration::from_secs(1),
        attested_age: None,
        request_bytes: 1000,
        score: Score::flat(80),
    };
    for resource in ["ModelVersion::m/1", "Model::m", "Endpoint::live"] {
        let resource: Resource = resource.parse().expect("a resource");
        let action = if resource.model().is_some() { Action::Infer } else { Action::Get };
        let request = Request { principal: &CALLER, action, resource: &resource };
        let decision = rules.decide(&request, &observed);
        assert!(!decision.allowed() || !decision.policies.is_empty(), "permitted by nothing");
        assert_eq!(decision.effect, rules.decide_by_all(&request, &observed).effect, "the index decides otherwise");
    }
});

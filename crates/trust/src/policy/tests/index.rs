//! The index finds what Cedar finds: on random sets of policies, requests and observations, both say the same in every detail.

use proptest::{prelude::*, sample::select};

use super::*;

const SCOPES: [&[&str]; 3] = [
    &[
        "principal",
        "principal",
        r#"principal == User::"https://login.example#anna""#,
        r#"principal == User::"https://login.example#root""#,
        r#"principal in Group::"radiologists""#,
        r#"principal in Group::"https://login.example#radiology""#,
        r#"principal in Tenant::"st-mary""#,
        r#"principal in Tenant::"other""#,
        "principal is User",
        "principal is Workload",
        r#"principal is User in Group::"radiologists""#,
        r#"principal is Workload in Tenant::"st-mary""#,
    ],
    &[
        "action",
        r#"action == Action::"infer""#,
        r#"action == Action::"load""#,
        r#"action in Action::"use""#,
        r#"action in Action::"operate""#,
        r#"action in [Action::"infer", Action::"use", Action::"metadata"]"#,
        r#"action in [Action::"load", Action::"inspect"]"#,
    ],
    &[
        "resource",
        "resource",
        r#"resource == Model::"chest""#,
        r#"resource in Model::"chest""#,
        r#"resource == ModelVersion::"knee/1""#,
        r#"resource in Segment::"st-mary/imaging/north""#,
        r#"resource in Site::"north""#,
        r#"resource in ModelGroup::"imaging""#,
        "resource is Model",
        "resource is ModelVersion",
        r#"resource is ModelVersion in Model::"chest""#,
        "resource is Endpoint",
    ],
];

const CONDITIONS: &[&str] = &[
    "",
    "",
    "when { context.score >= 50 }",
    "when { context has attested_age_s && context.attested_age_s < 60 }",
    "unless { principal.strength == 1 }",
    r#"when { ["public", "private"].contains(context.network) }"#,
    r#"when { principal.hasTag("claim.ward") }"#,
    r#"when { resource.hasTag("sensitivity") && resource.getTag("sensitivity") == "high" }"#,
    "when { principal in [Group::\"radiologists\", Group::\"other\"] }",
    // Overflows, which is an error.
    "when { context.request_bytes + 9223372036854775807 > 0 }",
    "when { context.session_age_s * 4 < 100 }",
];

fn policy() -> impl Strategy<Value = String> {
    let [principal, action, resource] = SCOPES;
    let effect = prop_oneof![3 => Just("permit"), 1 => Just("forbid")];
    (effect, select(principal), select(action), select(resource), select(CONDITIONS), select(CONDITIONS)).prop_map(
        |(effect, principal, action, resource, one, two)| {
            format!("{effect}({principal}, {action}, {resource}) {one} {two};\n")
        },
    )
}

fn principal() -> impl Strategy<Value = Principal> {
    let id = select(&["https://login.example#anna", "https://login.example#root", "https://evil.example#anna"][..]);
    let groups = proptest::sample::subsequence(vec!["radiology", "radiologists", "x"], 0..=3);
    let tenant = select(vec![None, Some("st-mary"), Some("other"), Some("nowhere")]);
    let method = select(vec![Method::Oidc, Method::Local]);
    let strength = select(vec![Strength::Bearer, Strength::KeyBound, Strength::Attested]);
    (id, groups, tenant, method, strength, any::<bool>()).prop_map(|(id, groups, tenant, method, strength, ward)| {
        Principal {
            id: id.to_owned(),
            groups: groups.into_iter().map(str::to_owned).collect(),
            tenant: tenant.map(str::to_owned),
            method,
            strength,
            claims: if ward { anna().claims } else { BTreeMap::new() },
            ..anna()
        }
    })
}

fn observation() -> impl Strategy<Value = Observed> {
    let network = select(vec![Network::Known, Network::Public, Network::Private]);
    let attested = proptest::option::of(0u64..120);
    (0u8..=100, network, attested, 0u64..2, prop_oneof![0u64..50, Just(u64::MAX)]).prop_map(
        |(score, network, attested, request_bytes, age)| Observed {
            score: Score::flat(score),
            network,
            attested_age: attested.map(Duration::from_secs),
            request_bytes,
            session_age: Duration::from_secs(age),
            ..observed()
        },
    )
}

const RESOURCES: &[&str] = &[
    "Model::chest",
    "Model::knee",
    "ModelVersion::chest/1",
    "ModelVersion::knee/1",
    "ModelVersion::knee/2",
    "Endpoint::metrics",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn it_decides_as_evaluating_everything_does(
        texts in proptest::collection::vec(policy(), 0..24),
        requests in proptest::collection::vec(
            (principal(), select(&[Action::Infer, Action::Load, Action::Metadata][..]), select(RESOURCES), observation()), 1..16,
        ),
    ) {
        let rules = Rules::compile(&sources(&texts.concat()), 1).unwrap();
        for (principal, action, resource, observed) in requests {
            let resource: Resource = resource.parse().unwrap();
            let request = Request { principal: &principal, action, resource: &resource };
            let (indexed, whole) = (rules.decide(&request, &observed), rules.decide_by_all(&request, &observed));
            prop_assert_eq!(format!("{indexed:?}"), format!("{whole:?}"), "{:?}", request);
        }
    }
}

#[test]
fn only_what_can_apply_is_evaluated() {
    let mut text = String::new();
    for number in 0..500 {
        text += &format!(
            "permit(principal == User::\"u{number}\", action == Action::\"infer\", resource == Model::\"chest\");\n"
        );
    }
    text += "permit(principal, action, resource);\n";
    let rules = Rules::compile(&sources(&text), 1).unwrap();
    let resource = "Model::chest".parse().unwrap();
    let request = Request { principal: &anna(), action: Action::Infer, resource: &resource };
    assert_eq!(rules.candidates(&request).unwrap(), ["p.cedar:501"]);
}

//! Decisions over small sets of policies; the index against Cedar's own evaluation of everything; files that must be refused.

mod index;
mod questions;
mod refused;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::*;
use crate::{
    Action, Method, Principal, Resource, Strength,
    score::{Network, Score},
};

const ENTITIES: &str = r#"
[Tenant.st-mary]
issuers = ["https://login.example"]
[Tenant.other]
[Group.radiologists]
in = "Tenant::st-mary"
[Group."https://login.example#radiology"]
in = ["Group::radiologists"]
[Site.north]
[ModelGroup.imaging]
[Segment."st-mary/imaging/north"]
in = ["Tenant::st-mary", "ModelGroup::imaging", "Site::north"]
[Model.chest]
in = ["Segment::st-mary/imaging/north"]
any_version = true
sensitivity = "high"
[Model.knee]
in = ["Segment::st-mary/imaging/north"]
[ModelVersion."knee/1"]
[User."https://login.example#root"]
clearance = "top"
"#;

pub(super) fn sources(policies: &str) -> Sources {
    let file = |name: &str, text: &str| SourceFile { name: name.to_owned(), text: text.to_owned() };
    Sources { policies: vec![file("p.cedar", policies)], entities: vec![file("entities.toml", ENTITIES)] }
}

pub(super) fn now() -> SystemTime {
    // Wednesday, 25 November 2026, 10:00 UTC.
    UNIX_EPOCH + Duration::from_secs(1_795_600_800)
}

pub(super) fn observed() -> Observed {
    Observed {
        now: now(),
        source: None,
        network: Network::Known,
        site: "north".to_owned(),
        session_age: Duration::ZERO,
        attested_age: None,
        request_bytes: 1000,
        score: Score::flat(80),
    }
}

pub(super) fn anna() -> Principal {
    Principal {
        id: "https://login.example#anna".to_owned(),
        method: Method::Oidc,
        strength: Strength::KeyBound,
        tenant: Some("st-mary".to_owned()),
        groups: vec!["radiology".to_owned()],
        claims: BTreeMap::from([("ward".to_owned(), "3".to_owned())]),
        bound_to: None,
        expires_at: now() + Duration::from_secs(60),
    }
}

/// Decides through the index, and checks that evaluating everything says the same.
fn decide(policies: &str, principal: &Principal, action: Action, resource: &str) -> Decision {
    let rules = Rules::compile(&sources(policies), 1).unwrap();
    let resource: Resource = resource.parse().unwrap();
    let request = Request { principal, action, resource: &resource };
    let decision = rules.decide(&request, &observed());
    if decision.reason != Reason::Expired {
        assert_eq!(format!("{decision:?}"), format!("{:?}", rules.decide_by_all(&request, &observed())));
    }
    assert_eq!(format!("{decision:?}"), format!("{:?}", rules.decide(&request, &observed())), "when remembered");
    decision
}

#[test]
fn one_policy_decides_what_it_is_about() {
    let policies = [
        r#"permit(principal in Group::"radiologists", action == Action::"infer", resource in Segment::"st-mary/imaging/north");"#,
        r#"permit(principal in Tenant::"st-mary", action in Action::"use", resource in Site::"north");"#,
        r#"permit(principal is User in Group::"https://login.example#radiology", action, resource is ModelVersion in Model::"chest");"#,
        r#"permit(principal == User::"https://login.example#anna", action in [Action::"infer", Action::"load"], resource in ModelGroup::"imaging");"#,
        r#"permit(principal, action, resource) when { principal.issuer == "https://login.example" && principal.strength >= 2 };"#,
        r#"permit(principal, action, resource) when { principal.hasTag("claim.ward") && principal.getTag("claim.ward") == "3" };"#,
        r#"permit(principal, action, resource in Model::"chest") when { context.score >= 80 && context.network == "known" };"#,
        r#"permit(principal, action, resource) when { context.hour == 10 && context.weekday == 3 && !(context has source) };"#,
        r#"permit(principal, action, resource) when { context.now > datetime("2026-11-25T09:59:59Z") && context.now < datetime("2026-11-25T10:00:01Z") };"#,
    ];
    let wrong: Vec<&str> = policies
        .into_iter()
        .filter(|policy| decide(policy, &anna(), Action::Infer, "ModelVersion::chest/3").reason != Reason::Permitted)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_is_not_listed_is_denied() {
    let all = "permit(principal, action, resource);";
    for (resource, expected) in [
        ("Model::chest", Reason::Permitted),
        ("ModelVersion::chest/99", Reason::Permitted),
        ("ModelVersion::knee/1", Reason::Permitted),
        ("ModelVersion::knee/2", Reason::NotListed),
        ("ModelVersion::chest", Reason::NotListed),
        ("Model::elbow", Reason::NotListed),
        ("Key::anything", Reason::NotListed),
    ] {
        assert_eq!(decide(all, &anna(), Action::Infer, resource).reason, expected, "{resource}");
    }
    let long = format!("Model::{}", "a".repeat(1 << 20));
    assert_eq!(decide(all, &anna(), Action::Infer, &long).reason, Reason::NotListed);
    assert_eq!(decide(all, &anna(), Action::Get, "Endpoint::metrics").reason, Reason::Permitted);
}

#[test]
fn an_issuer_cannot_name_what_is_the_operators() {
    let tenant = r#"permit(principal in Tenant::"st-mary", action, resource);"#;
    let group = r#"permit(principal in Group::"radiologists", action, resource);"#;
    let mallory = Principal {
        id: "https://evil.example#anna".to_owned(),
        groups: vec!["radiologists".to_owned(), "radiology".to_owned()],
        ..anna()
    };
    for policy in [tenant, group] {
        assert!(decide(policy, &anna(), Action::Infer, "Model::chest").allowed());
        assert_eq!(decide(policy, &mallory, Action::Infer, "Model::chest").reason, Reason::NotPermitted, "{policy}");
    }
    let label = r#"permit(principal, action, resource) when { principal.hasTag("clearance") && principal.getTag("clearance") == "top" };"#;
    let claimed = Principal { claims: BTreeMap::from([("clearance".to_owned(), "top".to_owned())]), ..anna() };
    assert!(!decide(label, &claimed, Action::Infer, "Model::chest").allowed());
    let root = Principal { id: "https://login.example#root".to_owned(), ..anna() };
    assert!(decide(label, &root, Action::Infer, "Model::chest").allowed());
}

#[test]
fn a_forbid_wins_and_an_error_denies() {
    let forbidden = r#"@id("all") permit(principal, action, resource);
        @id("never") forbid(principal, action, resource) when { resource.hasTag("sensitivity") };"#;
    let decision = decide(forbidden, &anna(), Action::Infer, "Model::chest");
    assert_eq!((decision.reason, decision.policies[0].id.as_str()), (Reason::Forbidden, "never"));
    assert!(decide(forbidden, &anna(), Action::Infer, "Model::knee").allowed());

    // Cedar itself would skip the policy that fails, and permit.
    let fails = r#"permit(principal, action, resource);
        forbid(principal, action, resource) when { context.request_bytes + 9223372036854775807 > 0 };"#;
    let decision = decide(fails, &anna(), Action::Infer, "Model::chest");
    assert_eq!((decision.effect, decision.reason), (Effect::Deny, Reason::Failed));
    assert!(decision.errors[0].contains("p.cedar:2"), "{:?}", decision.errors);
}

#[test]
fn a_credential_that_has_ended_permits_nothing() {
    let ended = Principal { expires_at: now(), ..anna() };
    let decision = decide("permit(principal, action, resource);", &ended, Action::Infer, "Model::chest");
    assert_eq!(decision.reason, Reason::Expired);
}

#[test]
fn more_groups_than_can_be_decided_on_are_denied() {
    let crowd = Principal { groups: (0..1001).map(|group| group.to_string()).collect(), ..anna() };
    let decision = decide("permit(principal, action, resource);", &crowd, Action::Infer, "Model::chest");
    assert_eq!(decision.reason, Reason::Failed);
}

#[test]
fn the_terms_of_all_policies_that_permit_hold() {
    let policies = r#"
        @id("a") @output("top_k=3") @rate("100/s") permit(principal, action, resource);
        @id("b") @round("2") @rate("10/s") permit(principal in Group::"radiologists", action, resource);
        @id("c") @round("1") permit(principal in Tenant::"other", action, resource);"#;
    let decision = decide(policies, &anna(), Action::Infer, "Model::chest");
    let obligations = &decision.terms.obligations;
    assert_eq!((obligations.output.unwrap().top_k, obligations.round), (3, Some(2)));
    assert_eq!(decision.terms.limits.rate, Some(Rate { count: 10, per: Window::Second }));
    assert_eq!(decision.policies.iter().map(|policy| policy.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn a_bad_set_leaves_the_old_one_in_force() {
    let policies = Policies::new(&sources("permit(principal, action, resource);")).unwrap();
    let first = policies.current().version().clone();
    assert!(policies.replace(&sources("permit(principal, action, resource)")).is_err());
    assert_eq!(policies.current().version(), &first);
    assert_eq!(policies.replace(&sources("permit(principal, action, resource);")).unwrap(), first);
    let second = policies.replace(&sources("forbid(principal, action, resource);")).unwrap();
    assert_eq!((first.number, second.number), (1, 2));
    let resource = "Model::chest".parse().unwrap();
    let request = Request { principal: &anna(), action: Action::Infer, resource: &resource };
    assert_eq!(policies.decide(&request, &observed()).version, second);
}

#[test]
fn the_words_are_those_of_the_schema() {
    let rules = Rules::compile(&sources("permit(principal, action, resource);"), 1).unwrap();
    drop(rules);
    let (schema, _) =
        cedar_policy::Schema::from_cedarschema_str(include_str!("../../policies/schema.cedarschema")).unwrap();
    let names =
        |list: Vec<&'static str>| list.into_iter().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    let groups: Vec<_> = schema.action_groups().map(|uid| uid.id().unescaped().to_owned()).collect();
    let actions = schema.actions().map(|uid| uid.id().unescaped().to_owned()).filter(|name| !groups.contains(name));
    assert_eq!(
        actions.collect::<std::collections::BTreeSet<_>>(),
        names(Action::ALL.iter().map(|a| a.name()).collect())
    );
    let kinds = schema.resources().map(|kind| kind.basename().to_owned()).collect();
    assert_eq!(names(crate::ResourceKind::ALL.iter().map(|kind| kind.name()).collect()), kinds);
}

//! Why, who, and what would change.

use super::*;
use crate::policy::{past_requests, run_cases, simulate};

const POLICIES: &str = r#"
@id("clinic") permit(principal in Group::"radiologists", action in Action::"use", resource in Segment::"st-mary/imaging/north")
when { principal.strength >= 2 && context.score >= 90 } unless { context.network == "public" || context.hour < 6 };
@id("operators") permit(principal in Tenant::"other", action in Action::"operate", resource);
@id("guarded") permit(principal, action == Action::"infer", resource == Model::"knee")
when { context has attested_age_s && context.attested_age_s < 60 };
@id("root") permit(principal == User::"https://login.example#root", action, resource);
@id("all-metrics") permit(principal, action == Action::"get", resource == Endpoint::"metrics");
"#;

fn rules() -> Rules {
    Rules::compile(&sources(POLICIES), 1).unwrap()
}

fn explain(principal: &Principal, resource: &str, observed: &Observed) -> Explanation {
    let resource: Resource = resource.parse().unwrap();
    let request = Request { principal, action: Action::Infer, resource: &resource };
    rules().explain(&request, observed, 5)
}

fn parts(nearest: &Nearest) -> Vec<(&str, &str)> {
    nearest.unmet.iter().map(|unmet| (unmet.part, unmet.text.as_str())).collect()
}

#[test]
fn a_denial_names_the_condition_that_failed_and_its_value() {
    let explanation = explain(&anna(), "Model::chest", &observed());
    assert_eq!(explanation.decision.reason, Reason::NotPermitted);
    let nearest = &explanation.nearest[0];
    assert_eq!(nearest.policy.id, "clinic");
    assert_eq!(parts(nearest), [("when", "context.score >= 90")]);
    assert_eq!(nearest.unmet[0].values, [("context[\"score\"]".to_owned(), "80".to_owned())]);

    let public = Observed { network: Network::Public, ..observed() };
    let stranger = Principal { groups: Vec::new(), strength: Strength::Bearer, ..anna() };
    let explanation = explain(&stranger, "Model::chest", &public);
    let clinic = explanation.nearest.iter().find(|nearest| nearest.policy.id == "clinic").unwrap();
    assert_eq!(
        parts(clinic),
        [
            ("principal", "principal in Group::\"radiologists\""),
            ("when", "principal.strength >= 2"),
            ("when", "context.score >= 90"),
            ("unless", "context.network == \"public\""),
        ]
    );
}

#[test]
fn a_guarded_condition_is_told_once() {
    let explanation = explain(&anna(), "Model::knee", &observed());
    let guarded = explanation.nearest.iter().find(|nearest| nearest.policy.id == "guarded").unwrap();
    assert_eq!(parts(guarded), [("when", "context has attested_age_s")]);
    let old = Observed { attested_age: Some(Duration::from_secs(61)), ..observed() };
    let explanation = explain(&anna(), "Model::knee", &old);
    let guarded = explanation.nearest.iter().find(|nearest| nearest.policy.id == "guarded").unwrap();
    assert_eq!(parts(guarded), [("when", "context.attested_age_s < 60")]);
}

#[test]
fn what_is_not_listed_has_no_nearest_policy() {
    let explanation = explain(&anna(), "Model::elbow", &observed());
    assert_eq!((explanation.decision.reason, explanation.nearest.len()), (Reason::NotListed, 0));
}

#[test]
fn everyone_who_may_is_found() {
    let who = |resource: &str, action, strength, score| {
        let observed = Observed { score: Score::flat(score), ..observed() };
        let found = rules().who_can(action, &resource.parse().unwrap(), strength, &observed).unwrap();
        found.into_iter().map(|allowed| allowed.who.to_string()).collect::<Vec<_>>()
    };
    let root = "User::https://login.example#root";
    assert_eq!(who("Model::chest", Action::Infer, Strength::KeyBound, 80), [root]);
    let members = ["https://login.example#radiology", "radiologists"]
        .map(|group| ["User", "Workload"].map(|kind| format!("any {kind} of Group::{group}")));
    let [[a, c], [b, d]] = members;
    assert_eq!(who("Model::chest", Action::Infer, Strength::KeyBound, 95), [a, b, c, d, root.to_owned()]);
    assert_eq!(who("Model::chest", Action::Infer, Strength::Bearer, 95), [root]);
    let everyone = who("Endpoint::metrics", Action::Get, Strength::Bearer, 0);
    assert_eq!(everyone[..2], ["any verified User", "any verified Workload"]);
    assert!(rules().who_can(Action::Infer, &"Model::elbow".parse().unwrap(), Strength::Bearer, &observed()).is_err());
}

#[test]
fn records_say_what_was_asked() {
    let resource: Resource = "Model::chest".parse().unwrap();
    let observed = Observed {
        source: Some("10.0.0.1".parse().unwrap()),
        attested_age: Some(Duration::from_secs(3)),
        ..observed()
    };
    let request = Request { principal: &anna(), action: Action::Infer, resource: &resource };
    let record = RequestRecord::of(&request, &observed);
    let line = serde_json::to_string(&PastRequest { request: record.clone(), effect: Effect::Allow }).unwrap();
    let read: Vec<PastRequest> = past_requests(line.as_bytes()).map(Result::unwrap).collect();
    assert_eq!(read[0].request, record);
    assert_eq!(record.observed.observed(UNIX_EPOCH).now, observed.now);
    assert_eq!(record.principal.principal().unwrap().groups, anna().groups);
    let simulation = simulate(&rules(), read.into_iter().map(Ok), 0, now()).unwrap();
    assert_eq!((simulation.requests, simulation.newly_denied, simulation.changes.len()), (1, 1, 0));
}

#[test]
fn a_log_that_is_damaged_is_refused_by_line() {
    let good =
        r#"{"principal": {"id": "local:a"}, "action": "infer", "resource": "Model::a", "effect": "allow", "more": 1}"#;
    let long = "x".repeat(2 << 20);
    for (text, expected) in [
        (format!("{good}\n\n{{"), "line 3 of the log is no past request"),
        (format!("{good}\n\u{feff}{good}"), "line 2 of the log is no past request"),
        (format!("{good}\n{long}"), "line 2 of the log has more than"),
        (good.replace("infer", "fly"), "line 1 of the log is no past request: action `fly` is unknown"),
    ] {
        let error = past_requests(text.as_bytes()).find_map(Result::err).unwrap().to_string();
        assert!(error.starts_with(expected), "{error}");
        assert!(past_requests(text.as_bytes()).count() <= 3);
    }
}

#[test]
fn cases_that_are_not_met_say_what_differs() {
    let text = r#"
[[case]]
name = "root"
principal = { id = "https://login.example#root" }
action = "load"
resource = "Model::knee"
expect = "deny"
policies = ["clinic"]
terms = { round = "2" }
"#;
    let file = SourceFile { name: "tests.toml".to_owned(), text: text.to_owned() };
    let results = run_cases(&rules(), &file, now()).unwrap();
    assert_eq!(
        (results[0].passed, results[0].place.as_str(), results[0].differences.len()),
        (false, "tests.toml:2", 3)
    );
    for (from, to, expected) in [
        ("\"load\"", "\"fly\"", "tests.toml:5:10: action `fly` is unknown"),
        ("https://login.example#root", "root", "tests.toml:2: principal `root` is of no known form"),
        ("round", "rond", "tests.toml:2: annotation `@rond` is unknown"),
        ("expect", "expects", "tests.toml:"),
    ] {
        let file = SourceFile { text: text.replace(from, to), ..file.clone() };
        let error = run_cases(&rules(), &file, now()).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

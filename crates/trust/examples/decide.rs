//! Measures a decision with 10,000 policies and 100,000 entities: median and 99th percentile, in microseconds.
//!
//! `cargo run --release -p edgeward-trust --example decide [POLICIES] [ENTITIES]`. Every tenth policy has conditions of several attributes;
//! requests go through all tenants, and three in four are allowed.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant, SystemTime},
};

use edgeward_trust::{
    Action, Method, Principal, Resource, Strength,
    policy::{Observed, Request, Rules, SourceFile, Sources},
    score::{Network, Score},
};

const TENANTS: usize = 100;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut counts = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let policies = counts.next().transpose()?.unwrap_or(10_000);
    let entities = counts.next().transpose()?.unwrap_or(100_000);
    let sources = Sources {
        policies: vec![SourceFile { name: "p.cedar".to_owned(), text: policy_text(policies)? }],
        entities: vec![SourceFile { name: "entities.toml".to_owned(), text: entity_text(entities)? }],
    };
    let start = Instant::now();
    let rules = Rules::compile(&sources, 1)?;
    let (policies, scopes, entities) = rules.counts();
    println!(
        "{policies} policies of {scopes} scopes, {entities} entities, loaded in {:.1} s",
        start.elapsed().as_secs_f64()
    );
    let load_s = start.elapsed().as_secs_f64();
    let callers: Vec<(Principal, Resource)> = (0..4000).map(caller).collect();
    let first_us = measure("first time", &rules, &callers);
    measure("again", &rules, &callers);
    let again_us = measure("again", &rules, &callers);
    println!("{{\"load_s\":{load_s},\"first_us\":{first_us},\"again_us\":{again_us}}}");
    Ok(())
}

fn policy_text(count: usize) -> Result<String, std::fmt::Error> {
    let mut text = String::from(
        "@id(\"guard\") forbid(principal, action in Action::\"use\", resource) when { context.score < 20 };\n\
         @id(\"health\") permit(principal, action == Action::\"get\", resource == Endpoint::\"live\");\n",
    );
    for number in 0..count.saturating_sub(2) {
        let (tenant, group) = (number % TENANTS, number / TENANTS);
        let condition = if number.is_multiple_of(10) {
            "principal.strength >= 2 && context.score >= 60 && context.hour >= 0 && [\"known\", \"loopback\"].contains(context.network)"
        } else {
            "principal.strength >= 2 && context.score >= 60"
        };
        writeln!(
            text,
            "permit(principal in Group::\"t{tenant}/g{group}\", action in Action::\"use\", resource in Segment::\"t{tenant}/m{}/s0\") when {{ {condition} }};",
            group % 10,
        )?;
    }
    Ok(text)
}

fn entity_text(count: usize) -> Result<String, std::fmt::Error> {
    let mut text = String::from("[Site.s0]\n");
    let mut listed = 1;
    for group in 0..10 {
        writeln!(text, "[ModelGroup.m{group}]")?;
    }
    for tenant in 0..TENANTS {
        writeln!(text, "[Tenant.t{tenant}]")?;
        for group in 0..100 {
            writeln!(text, "[Group.\"t{tenant}/g{group}\"]\nin = \"Tenant::t{tenant}\"")?;
        }
        for group in 0..10 {
            writeln!(
                text,
                "[Segment.\"t{tenant}/m{group}/s0\"]\nin = [\"Tenant::t{tenant}\", \"ModelGroup::m{group}\", \"Site::s0\"]"
            )?;
        }
        listed += 111;
    }
    let rest = count.saturating_sub(listed + 10);
    for number in 0..rest / 2 {
        let (tenant, place) = (number % TENANTS, number / TENANTS);
        writeln!(text, "[User.\"https://login.example#u{number}\"]\nin = \"Group::t{tenant}/g{}\"", place % 100)?;
        writeln!(text, "[Model.\"x{number}\"]\nin = \"Segment::t{tenant}/m{}/s0\"\nany_version = true", place % 10)?;
    }
    Ok(text)
}

fn caller(number: usize) -> (Principal, Resource) {
    let principal = Principal {
        id: format!("https://login.example#u{number}"),
        method: Method::Oidc,
        strength: if number.is_multiple_of(4) { Strength::Bearer } else { Strength::KeyBound },
        tenant: Some(format!("t{}", number % TENANTS)),
        groups: vec!["staff".to_owned(), "clinic".to_owned()],
        claims: BTreeMap::from([("email".to_owned(), format!("u{number}@example.com"))]),
        bound_to: None,
        expires_at: SystemTime::now() + Duration::from_secs(3600),
    };
    (principal, Resource::version(&format!("x{number}"), 1))
}

fn measure(name: &str, rules: &Rules, callers: &[(Principal, Resource)]) -> f64 {
    let observed = Observed {
        now: SystemTime::now(),
        source: None,
        network: Network::Known,
        site: "s0".to_owned(),
        session_age: Duration::ZERO,
        attested_age: None,
        request_bytes: 1000,
        score: Score::flat(80),
    };
    let (mut allowed, mut times) = (0, Vec::with_capacity(callers.len()));
    for (principal, resource) in callers {
        let request = Request { principal, action: Action::Infer, resource };
        let start = Instant::now();
        let decision = rules.decide(&request, &observed);
        times.push(start.elapsed().as_secs_f64() * 1e6);
        allowed += usize::from(decision.allowed());
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or_default();
    println!("{name}: {allowed} of {} allowed, median {:.1} µs, p99 {:.1} µs", times.len(), at(0.5), at(0.99));
    at(0.5)
}

//! `edgeward trust policy`: what a folder of policies says, before a server enforces it.

use std::{
    fs::File,
    io::{BufRead, BufReader, stdin},
    net::IpAddr,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::Context as _;
use edgeward_trust::{
    Resource,
    audit::{Entry, Query},
    policy::{
        Allowed, CaseResult, Change, Decision, Explanation, Observed, ObservedRecord, PRINCIPAL, PrincipalRecord,
        Request, Rules, Simulation, SourceFile, Sources, past_requests, recorded_request, run_cases, simulate,
    },
};
use serde_json::json;

use crate::{
    Context,
    failure::{Failure, OrInput as _, Outcome},
    print,
};

/// Options of `trust policy`.
#[derive(clap::Args)]
pub struct PolicyCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Check policies and entities against the schema
    Check {
        /// Folder of `.cedar` files and `entities.toml`
        dir: PathBuf,
        /// Fail where something is hardly meant: names that are not listed, policies that can never apply
        #[arg(long)]
        strict: bool,
    },
    /// Compare decisions with the expected ones of `tests.toml`
    Test {
        /// Folder of policies
        dir: PathBuf,
        /// Files of expected decisions [default: `tests.toml` and `*.tests.toml` of the folder]
        files: Vec<PathBuf>,
    },
    /// Show how a request is decided and, where it is denied, which policies came nearest and what of them is not met
    Explain {
        /// Folder of policies
        dir: PathBuf,
        #[command(flatten)]
        caller: Caller,
        /// Operation, as `infer`
        #[arg(long)]
        action: edgeward_trust::Action,
        /// `KIND::NAME`, as `ModelVersion::chest-xray/1`
        #[arg(long)]
        resource: Resource,
        #[command(flatten)]
        observation: Observation,
        /// Policies to show
        #[arg(long, default_value_t = 3)]
        nearest: usize,
    },
    /// List all principals that may do something
    WhoCan {
        /// Folder of policies
        dir: PathBuf,
        /// Operation, as `infer`
        action: edgeward_trust::Action,
        /// `KIND::NAME`, as `Model::chest-xray`
        resource: Resource,
        /// What their credentials prove
        #[arg(long, default_value = "attested", value_parser = ["bearer", "key_bound", "attested"])]
        strength: String,
        #[command(flatten)]
        observation: Observation,
    },
    /// Show which past decisions would be others under these policies; exit code 0 even where some would
    Simulate {
        /// Folder of policies
        dir: PathBuf,
        /// Folder of an audit log, or past requests as JSON lines; `-` for standard input
        #[arg(long, value_name = "FILE")]
        against: PathBuf,
        /// Changed decisions to show
        #[arg(long, default_value_t = 100)]
        changes: usize,
    },
}

/// Who asks.
#[derive(clap::Args)]
struct Caller {
    /// `spiffe://DOMAIN/PATH`, `ISSUER#SUBJECT`, `arn:…` or `local:NAME`
    #[arg(long)]
    principal: String,
    /// What the credential proves
    #[arg(long, default_value = "bearer", value_parser = ["bearer", "key_bound", "attested"])]
    strength: String,
    /// Tenant that the credential claims
    #[arg(long)]
    tenant: Option<String>,
    /// Group that the issuer vouches for
    #[arg(long = "group", value_name = "NAME")]
    groups: Vec<String>,
    /// Claim of the credential
    #[arg(long = "claim", value_name = "NAME=VALUE", value_parser = claim)]
    claims: Vec<(String, String)>,
}

/// What is observed; what is not said is taken to be harmless.
#[derive(clap::Args)]
struct Observation {
    /// Trust score, 0 to 100
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u8).range(..=100))]
    score: u8,
    /// Address of the caller
    #[arg(long, value_name = "ADDRESS")]
    source: Option<IpAddr>,
    /// Where that lies
    #[arg(long, default_value = "loopback", value_parser = ["loopback", "known", "private", "public"])]
    network: String,
    /// Where the server runs
    #[arg(long, default_value = "")]
    site: String,
    /// When, as `2026-11-25T10:00:00Z` [default: now]
    #[arg(long, value_name = "MOMENT")]
    at: Option<String>,
    /// Age of the attestation
    #[arg(long, value_name = "SECONDS")]
    attested_age_s: Option<u64>,
    /// Size of the request
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    request_bytes: u64,
}

fn claim(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| "expected `NAME=VALUE`".to_owned())?;
    Ok((name.to_owned(), value.to_owned()))
}

impl Caller {
    fn record(&self) -> PrincipalRecord {
        PrincipalRecord {
            strength: Some(self.strength.clone()),
            tenant: self.tenant.clone(),
            groups: self.groups.clone(),
            claims: self.claims.iter().cloned().collect(),
            ..PrincipalRecord::named(&self.principal)
        }
    }
}

impl Observation {
    fn observed(&self) -> Result<Observed, Failure> {
        let record: ObservedRecord = serde_json::from_value(json!({
            "at": self.at,
            "source": self.source,
            "network": self.network,
            "site": self.site,
            "attested_age_s": self.attested_age_s,
            "request_bytes": self.request_bytes,
            "score": self.score,
        }))
        .or_input()?;
        Ok(record.observed(SystemTime::now()))
    }
}

/// Runs the command.
pub fn run(args: &PolicyCommand, context: &Context) -> Outcome {
    match &args.action {
        Action::Check { dir, strict } => check(dir, *strict, context),
        Action::Test { dir, files } => test(dir, files, context),
        Action::Explain { dir, caller, action, resource, observation, nearest } => {
            let principal = caller.record().principal().or_input()?;
            let request = Request { principal: &principal, action: *action, resource };
            explain(&rules(dir)?.explain(&request, &observation.observed()?, *nearest), context)
        }
        Action::WhoCan { dir, action, resource, strength, observation } => {
            let record = PrincipalRecord { strength: Some(strength.clone()), ..PrincipalRecord::named("local:") };
            let strength = record.principal().or_input()?.strength;
            let allowed = rules(dir)?.who_can(*action, resource, strength, &observation.observed()?).or_input()?;
            who_can(&allowed, context)
        }
        Action::Simulate { dir, against, changes } => simulation(dir, against, *changes, context),
    }
}

fn rules(dir: &Path) -> Result<Rules, Failure> {
    Rules::compile(&Sources::read(dir).or_input()?, 1).or_input()
}

fn check(dir: &Path, strict: bool, context: &Context) -> Outcome {
    let rules = rules(dir)?;
    let (policies, scopes, entities) = rules.counts();
    let digest = &rules.version().digest;
    if context.json {
        let warnings = rules.warnings();
        print::json(
            &json!({ "policies": policies, "scopes": scopes, "entities": entities, "digest": digest, "warnings": warnings }),
        )?;
    } else {
        rules.warnings().iter().try_for_each(|warning| print::line(&format!("warning: {warning}")))?;
        let [policies, scopes, entities] = [policies, scopes, entities].map(|count| print::thousands(count as u64));
        print::line(&format!("{policies} policies of {scopes} scopes, {entities} entities, digest {digest}"))?;
    }
    match rules.warnings().len() {
        count if strict && count > 0 => Err(Failure::told(format!("{count} warnings, and `--strict` was asked for"))),
        _ => Ok(()),
    }
}

fn test(dir: &Path, files: &[PathBuf], context: &Context) -> Outcome {
    let rules = rules(dir)?;
    let files = if files.is_empty() { test_files(dir)? } else { files.to_vec() };
    let mut results: Vec<CaseResult> = Vec::new();
    for path in &files {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read expected decisions `{}`", path.display()))
            .or_input()?;
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        results.extend(run_cases(&rules, &SourceFile { name, text }, SystemTime::now()).or_input()?);
    }
    if results.is_empty() {
        return Err(Failure::input(format!(
            "there are no cases in `{}`; expected `[[case]]` in `tests.toml`",
            dir.display()
        )));
    }
    let failed = results.iter().filter(|result| !result.passed).count();
    if context.json {
        print::json(&json!({ "cases": results.len(), "failed": failed, "results": results }))?;
    } else {
        for result in &results {
            print::line(&format!(
                "{} {} ({})",
                if result.passed { "ok  " } else { "FAIL" },
                result.name,
                result.place
            ))?;
            result.differences.iter().try_for_each(|difference| print::line(&format!("     {difference}")))?;
        }
    }
    match failed {
        0 => Ok(()),
        _ => Err(Failure::told(format!("{failed} of {} decisions are not as expected", results.len()))),
    }
}

fn test_files(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let shown = dir.display();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read `{shown}`")).or_input()? {
        let path = entry.with_context(|| format!("cannot read `{shown}`"))?.path();
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        if name == "tests.toml" || name.ends_with(".tests.toml") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn explain(explanation: &Explanation, context: &Context) -> Outcome {
    if context.json {
        return print::json(explanation);
    }
    let decision = &explanation.decision;
    print::line(&format!("{}: {}", decision.effect, decision.reason))?;
    for policy in &decision.policies {
        let description = policy.annotations.get("description").map_or_else(String::new, |text| format!(": {text}"));
        print::line(&format!("  {} ({}){description}", policy.id, policy.place))?;
    }
    decision.errors.iter().try_for_each(|error| print::line(&format!("  {error}")))?;
    if !decision.terms.is_empty() {
        print::line(&format!("  on these terms: {}", serde_json::to_string(&decision.terms)?))?;
    }
    if decision.allowed() || explanation.nearest.is_empty() {
        return Ok(());
    }
    print::line("nearest policies that would permit it, and what of each is not met:")?;
    for nearest in &explanation.nearest {
        print::line(&format!("  {} ({})", nearest.policy.id, nearest.policy.place))?;
        for unmet in &nearest.unmet {
            let values: Vec<String> = unmet.values.iter().map(|(name, value)| format!("{name} is {value}")).collect();
            let values = if values.is_empty() { String::new() } else { format!(" ({})", values.join(", ")) };
            let error = unmet.error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
            print::line(&format!("    {} {}{values}{error}", label(unmet.part), unmet.text))?;
        }
    }
    Ok(())
}

/// The word before a part's text; a part of a scope begins with its own.
fn label(part: &str) -> &str {
    if matches!(part, "when" | "unless") { part } else { "scope" }
}

fn who_can(allowed: &[Allowed], context: &Context) -> Outcome {
    if context.json {
        return print::json(&allowed);
    }
    if allowed.is_empty() {
        return print::line("nobody");
    }
    let rows = allowed.iter().map(|allowed| vec![allowed.who.to_string(), because(&allowed.decision)]).collect();
    print::table(&["who", "by"], rows, 2)
}

fn simulation(dir: &Path, against: &Path, changes: usize, context: &Context) -> Outcome {
    let rules = rules(dir)?;
    if against.is_dir() {
        let (mut past, mut unread) = (Vec::new(), 0u64);
        let keep = |entry: Entry| {
            let request = recorded_request(&entry.record);
            unread += u64::from(request.is_none() && entry.record.context.contains_key(PRINCIPAL));
            past.extend(request.map(Ok));
            true
        };
        Query::default().run(against, keep).or_input()?;
        if unread > 0 {
            print::note!(
                "{unread} records are left out: what they tell of their callers was too long to be kept whole"
            );
        }
        return show_simulation(&simulate(&rules, past, changes, SystemTime::now()).or_input()?, context);
    }
    let reader: Box<dyn BufRead> = if against == Path::new("-") {
        Box::new(stdin().lock())
    } else {
        let file = File::open(against).with_context(|| format!("cannot read past requests `{}`", against.display()));
        Box::new(BufReader::new(file.or_input()?))
    };
    show_simulation(&simulate(&rules, past_requests(reader), changes, SystemTime::now()).or_input()?, context)
}

fn show_simulation(simulation: &Simulation, context: &Context) -> Outcome {
    if context.json {
        return print::json(simulation);
    }
    let row = |change: &Change| {
        let request = &change.request;
        vec![
            request.principal.id.clone(),
            request.action.to_string(),
            request.resource.to_string(),
            format!("{} → {}", change.was, change.would_be.effect),
            because(&change.would_be),
        ]
    };
    if !simulation.changes.is_empty() {
        let rows = simulation.changes.iter().map(row).collect();
        print::table(&["principal", "action", "resource", "decision", "because"], rows, 5)?;
    }
    print::line(&format!(
        "{} requests: {} newly allowed, {} newly denied",
        print::thousands(simulation.requests),
        print::thousands(simulation.newly_allowed),
        print::thousands(simulation.newly_denied)
    ))
}

/// The policies that decided, else the reason.
fn because(decision: &Decision) -> String {
    let ids: Vec<&str> = decision.policies.iter().map(|policy| policy.id.as_str()).collect();
    if ids.is_empty() { decision.reason.to_string() } else { ids.join(", ") }
}

//! `edgeward trust drill`: breach attempts, run by anyone against their own server.
//!
//! Each family of drills is in its own module. A drill acts over the wire as an attacker would and returns what it found; what a finding
//! means is decided there, from what came back.

mod cast;
mod catalogue;
mod data;
mod evasion;
mod extraction;
mod files;
mod load;
mod log;
mod maths;
mod model;
mod network;
mod outcome;
mod page;
mod policy;
mod privacy;
mod second;
mod surrogate;
mod tamper;
mod token;

use std::{
    io::IsTerminal as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use edgeward_trust::{Resource, audit::note::NoteKey};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use self::{
    cast::{Cast, Folder},
    catalogue::CATALOGUE,
    data::Rows,
    model::Interface,
    outcome::{Drill, Finding, Outcome as Ended, Verdict},
};
use crate::{
    Context,
    failure::{Failure, Outcome},
    print,
    release::opening::{Opening, OpeningArgs},
    trust::{audit::WitnessedArgs, authority::Unlocking},
    wire::{self, Call, Dialer, Listener},
};

/// Options of `trust drill`.
#[derive(clap::Args)]
pub struct DrillArgs {
    /// REST listener of the server: `https://HOST:PORT`
    #[arg(long, value_name = "URL")]
    server: Listener,
    /// Its gRPC listener
    #[arg(long, value_name = "URL")]
    grpc: Option<Listener>,
    /// Its listener of metrics
    #[arg(long, value_name = "URL")]
    metrics: Option<Listener>,
    /// Folder that `trust init` made, from which callers get their credentials
    #[arg(long, value_name = "DIR")]
    trust: PathBuf,
    #[command(flatten)]
    unlock: Unlocking,
    #[command(flatten)]
    opening: OpeningArgs,
    /// The model to attack [default: the first that is ready]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Who turns against the model: a name of the local authority [default: the first that policies permit]
    #[arg(long = "as", value_name = "NAME")]
    insider: Option<String>,
    /// Rows as callers send them, for attacks on the model: `.npz` or `.json` with its input [default: noise]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Rows that the model was trained on
    #[arg(long, value_name = "FILE", requires = "non_members")]
    members: Option<PathBuf>,
    /// Rows like those that it was not trained on
    #[arg(long, value_name = "FILE", requires = "members")]
    non_members: Option<PathBuf>,
    /// Rows that the thief of a model asks about
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(16..=1_000_000))]
    queries: u32,
    /// Requests of a flood
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(16..=10_000_000))]
    flood: u32,
    /// The files that the server loads, for drills on copies of them
    #[arg(long, value_name = "PATH")]
    models: Option<PathBuf>,
    #[command(flatten)]
    witnessed: WitnessedArgs,
    /// Write the report as a page
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Run these alone
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    only: Vec<String>,
}

/// Where drills are played.
pub struct Stage<'a> {
    folder: Folder<'a>,
    cast: Cast,
    http: Listener,
    grpc: Option<Listener>,
    metrics: Option<Listener>,
    model: Option<Interface>,
    data: Option<Rows>,
    members: Option<Rows>,
    non_members: Option<Rows>,
    queries: usize,
    flood: usize,
    models: Option<PathBuf>,
    opening: Opening,
    witnessed: Vec<(String, NoteKey)>,
}

impl Stage<'_> {
    /// Name of the model; a made-up one where the server has none.
    fn model_name(&self) -> &str {
        self.model.as_ref().map_or("model", |model| &model.name)
    }

    /// What the page says of this run.
    fn told(&self) -> page::Run<'_> {
        page::Run {
            server: self.http.to_string(),
            domain: &self.folder.domain,
            model: self.model_name(),
            insider: &self.cast.insider.name,
            at: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
        }
    }

    /// A request for the model as everyone sends it; empty where it takes texts.
    fn ordinary_body(&self) -> String {
        let zeros = |input: &model::Port| {
            let shape = input.shape(1);
            let count: usize = shape.iter().product();
            json!({ "name": input.name, "datatype": input.datatype, "shape": shape, "data": vec![0; count] })
        };
        let Some(model) = &self.model else { return String::new() };
        json!({ "inputs": model.inputs.iter().map(zeros).collect::<Vec<Value>>() }).to_string()
    }
}

/// Runs the command.
pub fn run(args: &DrillArgs, context: &Context) -> Outcome {
    let drills = chosen(&args.only)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let findings = runtime.block_on(async {
        let stage = stage(args, context).await?;
        let mut findings = Vec::with_capacity(drills.len());
        let bar = progress(drills.len());
        for drill in drills {
            bar.set_message(drill.title);
            findings.push(play(drill, &stage).await?);
            bar.inc(1);
        }
        bar.finish_and_clear();
        if let Some(path) = &args.report {
            let page = page::render(&findings, &stage.told());
            std::fs::write(path, page).map_err(|error| Failure::input(format!("`{}`: {error}", path.display())))?;
        }
        Ok::<_, Failure>(findings)
    })?;
    // Connections that nobody reads must not hold up the end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    report(&findings, context)
}

fn chosen(only: &[String]) -> Result<Vec<&'static Drill>, Failure> {
    if let Some(unknown) = only.iter().find(|id| CATALOGUE.iter().all(|drill| drill.id != id.as_str())) {
        let known: Vec<&str> = CATALOGUE.iter().map(|drill| drill.id).collect();
        return Err(Failure::input(format!("no drill `{unknown}`; there are `{}`", known.join("`, `"))));
    }
    Ok(CATALOGUE.iter().filter(|drill| only.is_empty() || only.iter().any(|id| id == drill.id)).collect())
}

fn progress(drills: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(drills as u64);
    if let Ok(style) = ProgressStyle::with_template("{pos}/{len} {bar:20} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

async fn stage<'a>(args: &'a DrillArgs, context: &Context) -> Result<Stage<'a>, Failure> {
    let settings = &context.settings.trust;
    let folder = Folder {
        path: &args.trust,
        policies: settings.policies.clone().unwrap_or_else(|| args.trust.join("policies")),
        audit: settings.audit.folder.clone().unwrap_or_else(|| args.trust.join("audit")),
        unlock: &args.unlock,
        domain: cast::domain(&args.trust)?,
    };
    let admin = folder.issue("admin", Duration::from_secs(60))?;
    let dialer = Cast::dialer(&folder)?;
    let model = interface(&dialer, &args.server, &admin.shown, args.model.as_deref()).await?;
    let resource = model.as_ref().map(|model| Resource::version(&model.name, &model.version));
    let cast = Cast::gather(&folder, dialer, resource.as_ref(), args.insider.as_deref())?;
    let (http, grpc, metrics) = (args.server.clone(), args.grpc.clone(), args.metrics.clone());
    let rows = |path: &Option<PathBuf>| match (path, &model) {
        (Some(path), Some(model)) => Rows::read(path, model).map(Some),
        _ => Ok(None),
    };
    let (data, members, non_members) = (rows(&args.data)?, rows(&args.members)?, rows(&args.non_members)?);
    let (queries, flood, models) = (args.queries as usize, args.flood as usize, args.models.clone());
    let opening = args.opening.resolve(&context.settings.release);
    let witnessed = args.witnessed.read()?;
    Ok(Stage {
        folder,
        cast,
        http,
        grpc,
        metrics,
        model,
        data,
        members,
        non_members,
        queries,
        flood,
        models,
        opening,
        witnessed,
    })
}

/// The model that is named, or the first that is ready.
async fn interface(
    dialer: &Dialer,
    server: &Listener,
    admin: &wire::Shown,
    named: Option<&str>,
) -> Result<Option<Interface>, Failure> {
    let ask = async |call| dialer.ask(server, Some(admin), call).await;
    let index = ask(Call::post("/v2/repository/index", "{\"ready\":true}")).await;
    if index.status() == 0 {
        return Err(Failure::Work(anyhow::anyhow!("`{server}` does not answer: {index}")));
    }
    let first = index.json().pointer("/0/name").and_then(Value::as_str).map(str::to_owned);
    let Some(name) = named.map(str::to_owned).or(first) else { return Ok(None) };
    let metadata = ask(Call::get(&format!("/v2/models/{name}"))).await;
    match Interface::read(&metadata.json()) {
        Some(model) => Ok(Some(model)),
        None if named.is_none() => Ok(None),
        None => Err(Failure::input(format!(
            "model `{name}`: the administrator has {metadata}; expected one that is served and listed"
        ))),
    }
}

async fn play(drill: &'static Drill, stage: &Stage<'_>) -> Result<Finding, Failure> {
    let started = Instant::now();
    let verdict = catalogue::play(drill.id, stage).await?;
    let Drill { id, title, atlas, tried, defence } = *drill;
    let Verdict { outcome, reason, evidence, figure } = verdict;
    let seconds = started.elapsed().as_secs_f64();
    Ok(Finding { id, title, atlas, tried, outcome, reason, defence, evidence, figure, seconds })
}

fn report(findings: &[Finding], context: &Context) -> Outcome {
    let count = |outcome: Ended| findings.iter().filter(|finding| finding.outcome == outcome).count();
    let (held, through, not_applicable) = (count(Ended::Held), count(Ended::GotThrough), count(Ended::NotApplicable));
    if context.json {
        print::json(
            &json!({ "held": held, "got_through": through, "not_applicable": not_applicable, "drills": findings }),
        )?;
    } else {
        table(findings)?;
        print::line(&format!("{held} held, {through} got through, {not_applicable} not applicable"))?;
    }
    if through == 0 {
        return Ok(());
    }
    let ids: Vec<&str> = findings.iter().filter(|f| f.outcome == Ended::GotThrough).map(|f| f.id).collect();
    Err(Failure::told(format!("got through: {}", ids.join(", "))))
}

fn table(findings: &[Finding]) -> Outcome {
    let row = |finding: &Finding| {
        let atlas = if finding.atlas.is_empty() { "–".to_owned() } else { finding.atlas.join(" ") };
        vec![finding.id.to_owned(), atlas, finding.outcome.name().to_owned(), finding.reason.clone()]
    };
    print::table(&["drill", "ATLAS", "outcome", "because"], findings.iter().map(row).collect(), 4)?;
    for finding in findings.iter().filter(|finding| finding.outcome == Ended::GotThrough) {
        print::line(&format!("\n{} got through; it is held by: {}", finding.id, finding.defence))?;
        for line in finding.evidence.iter().filter(|line| line.through) {
            print::line(&format!("  {}: {}", line.what, line.found))?;
        }
    }
    Ok(())
}

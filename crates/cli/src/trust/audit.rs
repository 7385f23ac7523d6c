//! `edgeward trust audit`: what an audit log proves.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use clap::ValueEnum;
use edgeward_trust::audit::{
    Entry, Kind, Query, Verdict,
    note::NoteKey,
    proof::{Published, verify_proof},
    verify::{Report, Verification, verify},
    witness::{Witness, submit},
};
use serde_json::json;

use super::{authority::Unlocking, failure};
use crate::{
    Context,
    failure::{Failure, OrInput as _, Outcome},
    print,
};

/// Options of `trust audit`.
#[derive(clap::Args)]
pub struct AuditCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Check a whole log and name every record that was changed, dropped, moved or cut off
    Verify(VerifyArgs),
    /// Write the proof that a record is in the log, or that the log only grew
    Prove(ProveArgs),
    /// Check a proof that `prove` wrote, without the log
    Check(CheckArgs),
    /// Find records
    Query(Box<QueryArgs>),
    /// Have the log's checkpoint cosigned by a second party
    Witness(WitnessArgs),
}

#[derive(clap::Args)]
struct LogArgs {
    /// Folder of the log
    log: PathBuf,
    /// The log's public key, or a file with it; from a place that who writes the log cannot change
    #[arg(long, value_name = "KEY")]
    key: String,
}

#[derive(clap::Args)]
struct VerifyArgs {
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    witnessed: WitnessedArgs,
}

/// What second parties saw of a log.
#[derive(clap::Args)]
pub struct WitnessedArgs {
    /// A witness's public key, or a file with it; once for each `--cosigned`
    #[arg(long, value_name = "KEY", requires = "cosigned")]
    witness: Vec<String>,
    /// A checkpoint that the witness cosigned, which it or you kept
    #[arg(long, value_name = "FILE", requires = "witness")]
    cosigned: Vec<PathBuf>,
}

impl WitnessedArgs {
    /// Each cosigned checkpoint with the key of its witness.
    pub fn read(&self) -> Result<Vec<(String, NoteKey)>, Failure> {
        if self.witness.len() != self.cosigned.len() {
            return Err(Failure::input("expected one `--witness` for each `--cosigned`"));
        }
        self.cosigned.iter().zip(&self.witness).map(|(note, witness)| Ok((read(note)?, key(witness)?))).collect()
    }
}

#[derive(clap::Args)]
struct ProveArgs {
    #[command(flatten)]
    log: LogArgs,
    /// The record's number
    #[arg(required_unless_present = "since")]
    record: Option<u64>,
    /// Prove that the log only grew since it had so many records
    #[arg(long, conflicts_with = "record", value_name = "RECORDS")]
    since: Option<u64>,
}

#[derive(clap::Args)]
struct CheckArgs {
    /// The proof
    proof: PathBuf,
    /// The log's public key, or a file with it
    #[arg(long, value_name = "KEY")]
    key: String,
    /// Public keys of witnesses that must have cosigned
    #[arg(long, value_name = "KEY")]
    witness: Vec<String>,
}

#[derive(clap::Args)]
struct QueryArgs {
    /// Folder of the log
    log: PathBuf,
    /// Who asked; `*` at the end takes all that begin so
    #[arg(long)]
    principal: Option<String>,
    /// What was asked for, likewise
    #[arg(long)]
    action: Option<String>,
    /// On what, likewise
    #[arg(long)]
    resource: Option<String>,
    /// What was decided
    #[arg(long)]
    decision: Option<Decision>,
    /// What kind of event
    #[arg(long)]
    kind: Option<EventKind>,
    /// Not before: `2026-11-25T10:00:00Z`, or so long ago: `15m`
    #[arg(long, value_parser = moment)]
    since: Option<SystemTime>,
    /// Before, likewise
    #[arg(long, value_parser = moment)]
    until: Option<SystemTime>,
    /// The most records to print, the oldest first; where there are more, it is said
    #[arg(long, default_value_t = 1000)]
    limit: usize,
}

#[derive(clap::Args)]
struct WitnessArgs {
    #[command(flatten)]
    log: LogArgs,
    /// Ask the witness at this address (C2SP tlog-witness)
    #[arg(long, requires = "witness", conflicts_with_all = ["name", "memory"])]
    url: Option<String>,
    /// Its public key, or a file with it
    #[arg(long, value_name = "KEY")]
    witness: Option<String>,
    /// Be the witness of this name, with the key `witness` of `--keys`
    #[arg(long, requires = "memory", required_unless_present = "url")]
    name: Option<String>,
    /// Folder where the witness remembers, out of reach of who writes the log
    #[arg(long, value_name = "FOLDER")]
    memory: Option<PathBuf>,
    /// Sealed file of the witness's key, made where it does not exist
    #[arg(long, value_name = "FILE", requires = "memory")]
    keys: Option<PathBuf>,
    #[command(flatten)]
    unlock: Unlocking,
    /// Where to write the cosigned checkpoint [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Decision {
    Allow,
    Deny,
    Error,
}

#[derive(Clone, Copy, ValueEnum)]
enum EventKind {
    Decision,
    Admin,
    Session,
    Log,
}

/// Runs the command.
pub fn run(args: &AuditCommand, context: &Context) -> Outcome {
    match &args.action {
        Action::Verify(args) => verify_log(args, context),
        Action::Prove(args) => prove(args),
        Action::Check(args) => check(args, context),
        Action::Query(args) => query(args, context),
        Action::Witness(args) => witness(args),
    }
}

/// A public key as it stands on the command line, or in a file.
fn key(text: &str) -> Result<NoteKey, Failure> {
    if Path::new(text).is_file() {
        return NoteKey::parse(&read(Path::new(text))?).map_err(failure);
    }
    NoteKey::parse(text).map_err(failure)
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| Failure::input(format!("`{}`: {error}", path.display())))
}

fn verify_log(args: &VerifyArgs, context: &Context) -> Outcome {
    let witnessed = args.witnessed.read()?;
    let log_key = key(&args.log.key)?;
    let report =
        verify(&Verification { folder: &args.log.log, key: &log_key, witnessed: &witnessed }).map_err(failure)?;
    if context.json {
        print::json(&report)?;
    } else {
        print_report(&report)?;
    }
    if report.findings.is_empty() {
        return Ok(());
    }
    Err(Failure::told(format!("the log is not what was signed: {} findings", report.findings.len())))
}

fn print_report(report: &Report) -> Outcome {
    for finding in &report.findings {
        print::line(&finding.text)?;
    }
    if report.torn_bytes > 0 {
        print::line(&format!(
            "{} bytes at the journal's end are no whole frame (a write in progress or torn)",
            report.torn_bytes
        ))?;
    }
    print::line(&format!(
        "{} records, {} of them published, compared with {} signed checkpoints: {}",
        print::thousands(report.records),
        print::thousands(report.published),
        print::thousands(report.checkpoints),
        if report.findings.is_empty() { "as they were written" } else { "changed" }
    ))
}

fn prove(args: &ProveArgs) -> Outcome {
    let key = key(&args.log.key)?;
    let published = Published::open(&args.log.log, &key).map_err(failure)?;
    let proof = match (args.record, args.since) {
        (Some(record), _) => published.prove(record),
        (None, since) => published.prove_grown(since.unwrap_or_default()),
    };
    print::line(proof.map_err(failure)?.trim_end())
}

fn check(args: &CheckArgs, context: &Context) -> Outcome {
    let witnesses = args.witness.iter().map(|text| key(text)).collect::<Result<Vec<_>, _>>()?;
    let proved = verify_proof(&read(&args.proof)?, &key(&args.key)?, &witnesses).map_err(failure)?;
    let entry = String::from_utf8_lossy(&proved.entry);
    if context.json {
        let record: serde_json::Value = serde_json::from_slice(&proved.entry)?;
        return print::json(
            &json!({ "record": record, "log": proved.checkpoint.origin, "size": proved.checkpoint.head.size }),
        );
    }
    print::line(&format!(
        "record {} of {}'s {}: {entry}",
        proved.seq, proved.checkpoint.origin, proved.checkpoint.head.size
    ))
}

fn query(args: &QueryArgs, context: &Context) -> Outcome {
    let query = Query {
        principal: args.principal.clone(),
        action: args.action.clone(),
        resource: args.resource.clone(),
        decision: args.decision.map(|decision| match decision {
            Decision::Allow => Verdict::Allow,
            Decision::Deny => Verdict::Deny,
            Decision::Error => Verdict::Error,
        }),
        kind: args.kind.map(|kind| match kind {
            EventKind::Decision => Kind::Decision,
            EventKind::Admin => Kind::Admin,
            EventKind::Session => Kind::Session,
            EventKind::Log => Kind::Log,
        }),
        since: args.since,
        until: args.until,
        first: 0,
    };
    let (mut found, mut next) = (Vec::new(), None);
    let keep = |entry: Entry| {
        if found.len() < args.limit {
            found.push(entry);
        } else {
            next = Some(entry.seq);
        }
        next.is_none()
    };
    query.run(&args.log, keep).map_err(failure)?;
    if let Some(next) = next {
        print::note!("there are more, from record {next} on: raise `--limit`, or narrow the query");
    }
    if context.json {
        return print::json(&found);
    }
    let header = ["record", "time", "decision", "principal", "action", "resource", "reason"];
    print::table(&header, found.iter().map(row).collect(), header.len())
}

fn row(entry: &Entry) -> Vec<String> {
    let record = &entry.record;
    let decision = match record.decision {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
        Verdict::Error => "error",
    };
    let time = humantime::format_rfc3339_millis(record.time).to_string();
    let texts = [&record.principal, &record.action, &record.resource, &record.reason];
    // What a caller sent must not move the terminal's cursor.
    let plain = |text: &String| text.replace(char::is_control, "\u{fffd}");
    [entry.seq.to_string(), time, decision.to_owned()].into_iter().chain(texts.map(plain)).collect()
}

fn witness(args: &WitnessArgs) -> Outcome {
    let log_key = key(&args.log.key)?;
    let cosigned = match (&args.url, &args.witness, &args.name, &args.memory) {
        (Some(url), Some(witness), ..) => submit(&args.log.log, &log_key, url, &key(witness)?).map_err(failure)?,
        (_, _, Some(name), Some(memory)) => {
            let keys = args.keys.clone().unwrap_or_else(|| memory.join("keys"));
            fs::create_dir_all(memory).or_input()?;
            let provider = args.unlock.open_or_create(&keys, &[("witness", edgeward_trust::keys::KeyKind::Ed25519)])?;
            let witness = Witness::new(name, Arc::new(provider), "witness", memory).map_err(failure)?;
            let time_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
            let cosigned = witness.cosign(&args.log.log, &log_key, time_s).map_err(failure)?;
            fs::write(memory.join("witness.vkey"), format!("{}\n", witness.key()))?;
            cosigned
        }
        _ => return Err(Failure::input("expected `--url` with `--witness`, or `--name` with `--memory`")),
    };
    match &args.out {
        Some(path) => {
            fs::write(path, cosigned).map_err(|error| Failure::input(format!("`{}`: {error}", path.display())))
        }
        None => print::line(cosigned.trim_end()),
    }
}

/// A time, or how long ago it was.
fn moment(text: &str) -> Result<SystemTime, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return SystemTime::now().checked_sub(ago).ok_or_else(|| format!("`{text}` is too long ago"));
    }
    humantime::parse_rfc3339_weak(text)
        .map_err(|_| format!("`{text}` is no time; expected `2026-11-25T10:00:00Z` or an age like `15m`"))
}

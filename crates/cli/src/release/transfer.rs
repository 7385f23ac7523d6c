//! `edgeward release push|pull`: to and from folders, object storage and OCI image layouts.

use std::path::{Path, PathBuf};

use edgeward_store::{
    Floor, Release, oci,
    remote::{Check, PullOptions, PullReport, Remote, Selection},
    signing,
};
use serde_json::json;

use super::{failure, keys::TrustArgs};
use crate::{
    Context,
    failure::{Failure, Outcome},
    print,
};

/// Before the folder of an OCI image layout.
const OCI: &str = "oci:";

/// Options of `release push`.
#[derive(clap::Args)]
pub struct PushArgs {
    /// Folder of the release
    release: PathBuf,
    /// A folder, `s3://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`, `gs://BUCKET/PREFIX` (credentials from the environment), or `oci:FOLDER` for a
    /// new OCI image layout
    place: String,
    /// Read back all that is there already and that the release shares, and send again what was changed; in a folder that is always done, elsewhere
    /// sizes are compared
    #[arg(long)]
    check: bool,
}

/// Options of `release pull`.
#[derive(clap::Args)]
pub struct PullArgs {
    /// Where it is, as for `push`
    place: String,
    /// New folder of the release; after an interruption the same command goes on
    out: PathBuf,
    /// Name of the model, where there are several; of an OCI image layout `NAME:VERSION`
    #[arg(long)]
    name: Option<String>,
    /// Sequence [default: the newest]
    #[arg(long)]
    sequence: Option<u64>,
    /// Releases that are here: what they share with it is not fetched (repeat)
    #[arg(long, value_name = "FOLDER")]
    have: Vec<PathBuf>,
    /// File that remembers the newest release of each name; an older one is refused
    #[arg(long, value_name = "FILE")]
    floor: Option<PathBuf>,
    #[command(flatten)]
    trust: TrustArgs,
    /// Do not ask who signed it; `release verify` must, before it is used
    #[arg(long, conflicts_with_all = ["public_key", "roots", "floor"])]
    unverified: bool,
}

/// Opens object storage with the environment's credentials.
pub fn remote(place: &str) -> Result<Remote, Failure> {
    Remote::open(
        place,
        std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?))),
    )
    .map_err(failure)
}

/// A runtime for as long as a transfer takes.
pub fn wait<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(work))
}

/// Runs `release push`.
pub fn push(args: &PushArgs, context: &Context) -> Outcome {
    if let Some(layout) = args.place.strip_prefix(OCI) {
        let id = oci::export(&args.release, Path::new(layout)).map_err(failure)?;
        return if context.json {
            print::json(&json!({ "id": id, "place": args.place }))
        } else {
            print::line(&format!("{layout}: an OCI image layout of {id}"))
        };
    }
    let remote = remote(&args.place)?;
    // A folder is read as fast as the release's files are.
    let check = if args.check || is_folder(&args.place) { Check::Digests } else { Check::Sizes };
    let report = wait(remote.push(&args.release, check))?.map_err(failure)?;
    if context.json {
        return print::json(&report);
    }
    print::line(&format!(
        "{}: {} sent of {}, {} saved",
        args.place,
        print::bytes(report.sent_bytes),
        print::bytes(report.total_bytes),
        print::bytes(report.shared_bytes + report.resumed_bytes)
    ))?;
    match report.broken_packs {
        0 => Ok(()),
        count => print::line(&format!(
            "packs there that were missing or broken: {count}; what this release has in them was sent again, push others of `{}` again as well",
            Release::open(&args.release).map_err(failure)?.manifest().name
        )),
    }
}

fn is_folder(place: &str) -> bool {
    !place.contains("://") || place.starts_with("file://")
}

/// Runs `release pull`.
pub fn pull(args: &PullArgs, context: &Context) -> Outcome {
    let settings = &context.settings.release;
    let trust = if args.unverified { None } else { Some(args.trust.open(settings)?) };
    let (release, report) = match args.place.strip_prefix(OCI) {
        Some(layout) => {
            let release = oci::import(Path::new(layout), args.name.as_deref(), &args.out).map_err(failure)?;
            let total_bytes = release.manifest().size();
            (release, PullReport { total_bytes, fetched_bytes: total_bytes, ..PullReport::default() })
        }
        None => {
            let selection = Selection { name: args.name.clone(), sequence: args.sequence };
            let options = PullOptions { selection, trust: trust.as_ref(), have: &args.have };
            wait(remote(&args.place)?.pull(&args.out, &options))?.map_err(failure)?
        }
    };
    let floor = args.floor.as_ref().or(settings.floor.as_ref());
    let accepted = accept(&release, floor, trust.as_ref());
    if let Err(refused) = accepted {
        // What is not taken does not stay where a server might look for it.
        std::fs::remove_dir_all(&args.out)?;
        return Err(refused);
    }
    if context.json {
        return print::json(&json!({ "id": release.id(), "folder": args.out, "transfer": report }));
    }
    print::line(&format!(
        "{}: {} {}, sequence {}; {} fetched of {}, {} saved",
        args.out.display(),
        release.manifest().name,
        release.manifest().version,
        release.manifest().sequence,
        print::bytes(report.fetched_bytes),
        print::bytes(report.total_bytes),
        print::bytes(report.shared_bytes + report.resumed_bytes)
    ))
}

/// Who signed it, and whether it is newer than what was seen.
fn accept(release: &Release, floor: Option<&PathBuf>, trust: Option<&signing::TrustRoots>) -> Outcome {
    let Some(trust) = trust else { return Ok(()) };
    signing::verify(release, trust).map_err(failure)?;
    let Some(floor) = floor else { return Ok(()) };
    let manifest = release.manifest();
    let id = manifest.unsealed().id().map_err(failure)?;
    Floor::at(floor).raise(&manifest.name, manifest.sequence, id).map_err(failure)
}

//! `edgeward release list`.

use std::path::PathBuf;

use edgeward_store::{Release, StoreError, manifest::SIGNATURE};
use serde_json::{Value, json};

use super::{failure, transfer};
use crate::{Context, failure::Outcome, print};

/// Options of `release list`.
#[derive(clap::Args)]
pub struct ListArgs {
    /// Folder of a release, or with releases in it; or a place that releases were pushed to
    place: PathBuf,
}

/// Runs the command.
pub fn run(args: &ListArgs, context: &Context) -> Outcome {
    let place = args.place.to_string_lossy();
    if place.contains("://") || args.place.join("releases").is_dir() {
        return pushed(&place, context);
    }
    let found = edgeward_store::list(&args.place).map_err(failure)?;
    if context.json {
        let facts = found.iter().map(|(path, release)| match release {
            Ok(release) => facts(release),
            Err(error) => json!({ "folder": path, "error": error.to_string() }),
        });
        return print::json(&facts.collect::<Vec<_>>());
    }
    let header = ["release", "version", "state", "variants", "id", "sequence", "size"];
    let rows = found.iter().map(|(path, release)| row(&path.display().to_string(), release)).collect();
    print::table(&header, rows, 5)
}

/// What object storage holds.
fn pushed(place: &str, context: &Context) -> Outcome {
    let found = transfer::wait(transfer::remote(place)?.list(None))?.map_err(failure)?;
    if context.json {
        return print::json(&found);
    }
    let rows = found.into_iter().map(|listed| vec![listed.name, listed.sequence.to_string()]).collect();
    print::table(&["release", "sequence"], rows, 1)
}

fn signed(release: &Release) -> bool {
    matches!(release.beside(SIGNATURE), Ok(Some(_)))
}

fn facts(release: &Release) -> Value {
    json!({ "folder": release.folder(), "id": release.id(), "signed": signed(release), "sealed": release.manifest().is_sealed(), "size": release.manifest().size(), "manifest": release.manifest() })
}

fn row(path: &str, release: &Result<Release, StoreError>) -> Vec<String> {
    let release = match release {
        Ok(release) => release,
        Err(error) => return vec![path.to_owned(), String::new(), error.to_string()],
    };
    let manifest = release.manifest();
    let state = match (manifest.is_sealed(), signed(release)) {
        (true, true) => "sealed, signed",
        (true, false) => "sealed, not signed",
        (false, true) => "signed",
        (false, false) => "not signed",
    };
    let variants: Vec<&str> = manifest.variants.iter().map(|variant| variant.name.as_str()).collect();
    vec![
        manifest.name.clone(),
        manifest.version.clone(),
        state.to_owned(),
        variants.join(", "),
        release.id().to_string().chars().take(16).collect(),
        manifest.sequence.to_string(),
        print::bytes(manifest.size()),
    ]
}

//! `edgeward release seal|rekey`.

use std::path::PathBuf;

use serde_json::json;

use super::{
    failure,
    keys::{KeyArgs, SEALING_KEY, open_keys},
};
use crate::{
    Context,
    failure::{Failure, Outcome},
    print,
    trust::Unlocking,
};

/// Options of `release seal`.
#[derive(clap::Args)]
pub struct SealArgs {
    /// Folder of the release
    release: PathBuf,
    /// New folder of the sealed release
    #[arg(long, short, value_name = "FOLDER")]
    out: PathBuf,
    #[command(flatten)]
    keys: KeyArgs,
    /// Name of the wrapping key with its provider
    #[arg(long, default_value = SEALING_KEY)]
    key: String,
}

/// Options of `release rekey`.
#[derive(clap::Args)]
pub struct RekeyArgs {
    /// Folder of the sealed release
    release: PathBuf,
    /// Keys that open it and wrap its data key anew
    #[command(flatten)]
    keys: KeyArgs,
    /// Name of the key that wraps from now on, in its newest version
    #[arg(long, default_value = SEALING_KEY)]
    key: String,
    /// Sealed file of the keys that wrap from now on, or a `.toml` file that names another provider [default: the same]
    #[arg(long, value_name = "FILE")]
    to_keys: Option<PathBuf>,
    /// File of at least 32 random bytes that opens `--to-keys` [default: `unlock.key` beside it]
    #[arg(long, value_name = "FILE", requires = "to_keys")]
    to_key_file: Option<PathBuf>,
    /// Make a new version of the key first
    #[arg(long)]
    rotate: bool,
}

/// Runs `release seal`.
pub fn seal(args: &SealArgs, context: &Context) -> Outcome {
    let keys = args.keys.required()?;
    let sealed = edgeward_store::seal(&args.release, &args.out, keys.as_ref(), &args.key).map_err(failure)?;
    if context.json {
        return print::json(&json!({ "id": sealed.id(), "folder": sealed.folder(), "key": args.key }));
    }
    print::line(&format!("{}: sealed with key `{}`, id {}", args.out.display(), args.key, sealed.id()))?;
    print::line(&format!("sign it next: `edgeward release sign {}`", args.out.display()))
}

/// Runs `release rekey`.
pub fn rekey(args: &RekeyArgs, context: &Context) -> Outcome {
    let from = args.keys.required()?;
    let to = match &args.to_keys {
        Some(path) => open_keys(path, &Unlocking::by(None, args.to_key_file.clone()))?,
        None => from.clone(),
    };
    if args.rotate {
        to.rotate(&args.key).map_err(|error| failure(error.into()))?;
    }
    let id = edgeward_store::rekey(&args.release, from.as_ref(), to.as_ref(), &args.key).map_err(failure)?;
    let version = to.describe(&args.key).map_err(|error| Failure::Work(error.into()))?.versions.len();
    if context.json {
        return print::json(&json!({ "id": id, "key": args.key, "key_version": version }));
    }
    let folder = args.release.display();
    print::line(&format!(
        "{folder}: the data key is wrapped by version {version} of `{}`; its files and signature stay",
        args.key
    ))
}

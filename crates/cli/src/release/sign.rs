//! `edgeward release sign|verify`.

use std::{fs, path::PathBuf};

use edgeward_store::{
    Release,
    signing::{self, Signer, SigningKey},
};
use edgeward_trust::keys::read_private;
use serde_json::json;

use super::{
    failure,
    keys::{KeyArgs, SIGNING_KEY, TrustArgs, open_keys, read},
};
use crate::{
    Context,
    failure::{Failure, OrInput as _, Outcome},
    print,
    trust::Unlocking,
};

/// Options of `release sign`.
#[derive(clap::Args)]
pub struct SignArgs {
    /// Folder of the release
    release: PathBuf,
    #[command(flatten)]
    keys: KeyArgs,
    /// Name of the key with its provider
    #[arg(long, default_value = SIGNING_KEY)]
    key: String,
    /// Private key of P-256 in PEM, instead of a file of keys
    #[arg(long, value_name = "FILE", required_unless_present = "keys", conflicts_with = "keys")]
    private_key: Option<PathBuf>,
    /// The key's certificate and its intermediates (PEM): who verifies then needs the root, not the key
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// Write the public key (PEM), for who verifies
    #[arg(long, value_name = "FILE")]
    write_public_key: Option<PathBuf>,
}

/// Options of `release verify`.
#[derive(clap::Args)]
pub struct VerifyArgs {
    /// Folder of the release
    release: PathBuf,
    #[command(flatten)]
    trust: TrustArgs,
    /// Keys that open a sealed release, to find out whether they do: a sealed file of keys, or a `.toml` file that names another provider
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    #[command(flatten)]
    unlock: Unlocking,
}

/// Runs `release sign`.
pub fn sign(args: &SignArgs, context: &Context) -> Outcome {
    let key = match (&args.private_key, args.keys.open()?) {
        (Some(path), _) => SigningKey::from_pem(&read_private(path).or_input()?)
            .map_err(|error| Failure::input(format!("`{}`: {error}", path.display())))?,
        (None, Some(provider)) => SigningKey::Provider(provider, args.key.clone()),
        (None, None) => return Err(Failure::input("expected `--keys FILE` or `--private-key FILE`")),
    };
    let signer = match &args.certificate {
        Some(path) => Signer::with_certificate(key, &read(path)?),
        None => Signer::with_key(key),
    };
    let signer = signer.map_err(failure)?;
    let id = signing::sign(&args.release, &signer).map_err(failure)?;
    if let Some(path) = &args.write_public_key {
        fs::write(path, signer.public_key().to_pem())
            .map_err(|error| Failure::input(format!("`{}`: {error}", path.display())))?;
    }
    if context.json {
        return print::json(&json!({ "id": id, "key": signer.public_key().hint() }));
    }
    print::line(&format!("{}: {id} is signed by key {}", args.release.display(), signer.public_key().hint()))
}

/// Runs `release verify`.
pub fn verify(args: &VerifyArgs, context: &Context) -> Outcome {
    let trust = args.trust.open(&context.settings.release)?;
    let release = Release::open(&args.release).map_err(failure)?;
    let signed_by = signing::verify(&release, &trust).map_err(failure)?;
    release.check_files().map_err(failure)?;
    let keys = args.keys.as_ref().map(|path| open_keys(path, &args.unlock)).transpose()?;
    // Nobody signs how the data key is wrapped; what can be told of it is told.
    if keys.is_some() || release.manifest().is_sealed() {
        edgeward_store::check_key(&release, keys.as_deref()).map_err(failure)?;
    }
    let manifest = release.manifest();
    if context.json {
        return print::json(
            &json!({ "id": release.id(), "signed_by": signed_by.to_string(), "name": manifest.name, "version": manifest.version, "sequence": manifest.sequence, "sealed": manifest.is_sealed() }),
        );
    }
    print::line(&format!("{}: as it was signed by {signed_by}", args.release.display()))?;
    print::line(&format!(
        "{} {}, sequence {}, {}, id {}",
        manifest.name,
        manifest.version,
        manifest.sequence,
        print::bytes(manifest.size()),
        release.id()
    ))
}

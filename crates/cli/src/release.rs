//! `edgeward release`: pack, sign, seal and move releases; each in its own module.

mod keys;
pub mod opening;
mod pack;
mod seal;
mod show;
mod sign;
mod transfer;

use edgeward_store::{ErrorKind, StoreError};

use crate::{
    Context,
    failure::{Failure, Outcome},
};

/// Options of `release`.
#[derive(clap::Args)]
pub struct ReleaseCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Make a release of ONNX models
    Pack(pack::PackArgs),
    /// Sign a release with a key, or a key and its certificate
    Sign(sign::SignArgs),
    /// Check a release's signature and every file of it
    Verify(sign::VerifyArgs),
    /// Encrypt a release's files under a key that the file of keys wraps
    Seal(seal::SealArgs),
    /// Wrap the data key of a sealed release anew, without touching its files
    Rekey(seal::RekeyArgs),
    /// Send a release to a folder, object storage or an OCI image layout
    Push(transfer::PushArgs),
    /// Fetch a release from there
    Pull(transfer::PullArgs),
    /// Show the releases of a folder or of object storage
    List(show::ListArgs),
}

/// Runs the command.
pub fn run(args: &ReleaseCommand, context: &Context) -> Outcome {
    match &args.action {
        Action::Pack(args) => pack::run(args, context),
        Action::Sign(args) => sign::sign(args, context),
        Action::Verify(args) => sign::verify(args, context),
        Action::Seal(args) => seal::seal(args, context),
        Action::Rekey(args) => seal::rekey(args, context),
        Action::Push(args) => transfer::push(args, context),
        Action::Pull(args) => transfer::pull(args, context),
        Action::List(args) => show::run(args, context),
    }
}

/// The caller's fault, or the work's.
fn failure(error: StoreError) -> Failure {
    match error.kind() {
        ErrorKind::Invalid | ErrorKind::NotFound | ErrorKind::Exists => Failure::Input(error.into()),
        _ => Failure::Work(error.into()),
    }
}

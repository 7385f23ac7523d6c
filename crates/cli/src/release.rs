//! `edgeward release`: pack, sign, seal and move releases; each in its own module.

mod keys;
mod pack;
mod show;
mod sign;

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
    /// Show the releases of a folder
    List(show::ListArgs),
}

/// Runs the command.
pub fn run(args: &ReleaseCommand, context: &Context) -> Outcome {
    match &args.action {
        Action::Pack(args) => pack::run(args, context),
        Action::Sign(args) => sign::sign(args, context),
        Action::Verify(args) => sign::verify(args, context),
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

//! `edgeward trust`: identities, policy, keys and the log, each in its own module.

mod policy;

use crate::{Context, failure::Outcome};

/// Options of `trust`.
#[derive(clap::Args)]
pub struct TrustCommand {
    #[command(subcommand)]
    area: Area,
}

#[derive(clap::Subcommand)]
enum Area {
    /// Check, test, explain and try out policies
    Policy(policy::PolicyCommand),
}

/// Runs the command.
pub fn run(args: &TrustCommand, context: &Context) -> Outcome {
    match &args.area {
        Area::Policy(args) => policy::run(args, context),
    }
}

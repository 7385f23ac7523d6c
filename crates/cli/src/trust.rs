//! `edgeward trust`: identities, policy, keys and the log, each in its own module.

mod audit;
pub mod authority;
mod drill;
mod policy;

pub use authority::Unlocking;
use edgeward_trust::{ErrorKind, TrustError};

use crate::{
    Context,
    failure::{Failure, Outcome},
};

/// Options of `trust`.
#[derive(clap::Args)]
pub struct TrustCommand {
    #[command(subcommand)]
    area: Area,
}

#[derive(clap::Subcommand)]
enum Area {
    /// Make a local authority with an admin's and a server's certificate
    Init(authority::InitArgs),
    /// Issue a certificate
    Issue(authority::IssueArgs),
    /// Revoke the certificates of a serial number or name
    Revoke(authority::RevokeArgs),
    /// Show what the local authority has issued and revoked
    List(authority::ListArgs),
    /// Renew what is due of the local authority
    Renew(authority::RenewArgs),
    /// Verify, prove, query and witness an audit log
    Audit(audit::AuditCommand),
    /// Check, test, explain and try out policies
    Policy(policy::PolicyCommand),
    /// Try to break into a server of one's own, and say what held
    Drill(Box<drill::DrillArgs>),
}

/// Runs the command.
pub fn run(args: &TrustCommand, context: &Context) -> Outcome {
    match &args.area {
        Area::Init(args) => authority::init(args, context),
        Area::Issue(args) => authority::issue(args, context),
        Area::Revoke(args) => authority::revoke(args, context),
        Area::List(args) => authority::list(args, context),
        Area::Renew(args) => authority::renew(args, context),
        Area::Audit(args) => audit::run(args, context),
        Area::Policy(args) => policy::run(args, context),
        Area::Drill(args) => drill::run(args, context),
    }
}

/// The caller's fault, or the work's.
fn failure(error: TrustError) -> Failure {
    match error.kind() {
        ErrorKind::Invalid | ErrorKind::NotFound => Failure::Input(error.into()),
        _ => Failure::Work(error.into()),
    }
}

//! Zero trust as NIST SP 800-207 means it: who asks, what they may do, and the proof of what was decided.
//!
//! What decides (policy, score, admission) is pure: time and observations are arguments. Adapters (identity providers, key
//! providers, the log's files) do the I/O. The enforcement point is the server, not this crate.

pub mod admission;
pub mod audit;
pub mod authority;
pub mod detect;
mod error;
mod file;
pub mod identity;
pub mod keys;
pub mod policy;
mod principal;
mod remote;
mod resource;
pub mod revocation;
pub mod score;
pub mod session;
pub mod tls;

pub use error::{ErrorKind, TrustError};
pub use principal::{Method, Principal, Strength, Thumbprint};
pub use resource::{Action, RESOURCE_ID_BYTES_MAX, Resource, ResourceKind};

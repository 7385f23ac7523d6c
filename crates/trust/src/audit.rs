//! The audit log: every decision and admin act in an append-only Merkle log, as Certificate Transparency keeps certificates.
//!
//! Files are those of C2SP tlog-tiles, so that others' tools read and verify them; [`journal`] is what comes before. What is
//! proved, and what is not, is in `docs/audit.md`.

pub mod checkpoint;
pub mod journal;
mod log;
pub mod merkle;
pub mod note;
pub mod proof;
mod publish;
mod query;
mod record;
mod recover;
pub mod tile;
pub mod verify;
pub mod witness;
mod writer;

pub use log::{AuditLog, Durability, LogOptions, LogSigner, LogStatus, Ticket, ed25519_public};
pub use query::Query;
pub use record::{Entry, Kind, Record, Sha256Digest, Verdict};
pub use recover::{Recovery, read_checkpoint};

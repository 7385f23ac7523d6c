//! The audit log as a server uses it, and as somebody attacks it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod append;
mod crash;
mod peers;
mod support;
mod tamper;
mod witness;

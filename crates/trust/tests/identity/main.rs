//! Identity providers: the contract that each passes, then what is particular to each, with real issuers where they can run here.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod aws;
mod contract;
mod dpop;
mod issuer;
mod keys;
mod oidc;
#[path = "../parts/part.rs"]
mod part;
mod parts;
mod revocation;
mod session;
mod spiffe;
mod spire;
#[path = "../parts/spire.rs"]
mod spire_part;

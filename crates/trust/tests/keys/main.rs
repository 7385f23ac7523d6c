//! Key providers: the contract that each passes, then what is particular to each, with the real part where it can run here.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod answering;
#[path = "../parts/bao.rs"]
mod bao;
mod contract;
mod kms;
#[path = "../parts/part.rs"]
mod part;
mod pkcs11;
mod sealed;
mod vault;

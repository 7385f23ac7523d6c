//! Releases against who would change them: in the folder, in the seal, in an OCI image layout, in object storage.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod mutated;
mod oci;
mod open;
mod remote;
mod seal;
mod support;

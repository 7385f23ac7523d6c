//! Releases: immutable, content-addressed packages of a model's variants; signed, sealed, and moved between folders and object storage.
//!
//! A release is a folder: a [`Manifest`] that lists every file with its size and digest, the variants' ONNX files, and a report. What
//! stands in it is hostile until its signature, digests and names are checked. Running it is the engine's business, asking for it the server's.

pub mod digest;
mod error;
mod files;
mod floor;
pub mod manifest;
mod memory;
mod name;
pub mod oci;
mod open;
mod pack;
pub mod remote;
mod seal;
pub mod signing;
mod staged;

pub use error::{ErrorKind, StoreError};
pub use files::{Release, list};
pub use floor::Floor;
pub use manifest::Manifest;
pub use open::{LoadedVariant, OpenOptions, Opened, open};
pub use pack::{PackSpec, VariantSpec, pack};
pub use seal::{check_key, rekey, seal};

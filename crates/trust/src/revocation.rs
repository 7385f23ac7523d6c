//! Continuous verification: what was permitted once is looked at again, by timer and at once when something changes.
//!
//! [`Revocations`] is asked with every request and costs it no lock. [`Registry`] knows the streams that are open now and cuts those that a
//! revocation or a new decision ends; who holds a stream awaits its cut beside its work. [`Kept`] has what must outlive the server.

mod kept;
mod list;
mod registry;

pub use kept::{KEPT, Kept, KeptRevocations};
pub(crate) use list::canonical_serial;
pub use list::{Revocations, Revoked};
pub use registry::{Change, Cut, Live, Registry, RegistrySettings, Stream, Sweep};

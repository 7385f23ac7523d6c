//! Signatures as the OpenSSF Model Signing specification v1 has them, and SLSA provenance beside them.
//!
//! A signature is a Sigstore bundle (v0.3) that holds a DSSE envelope with an in-toto statement. It is made with a key, or with a key and
//! its certificate; `model_signing` verifies ours and we verify its. Sigstore's own identities (which need its public log) are refused.

mod bundle;
mod chain;
mod signer;
mod statement;
mod trust;

use std::path::Path;

use crate::{
    digest::Digest,
    error::{StoreError, unverified},
    files::Release,
    manifest::{PROVENANCE, SIGNATURE},
};

pub use bundle::{BUNDLE_BYTES_MAX, Bundle, Material};
pub use signer::{Signer, SigningKey};
pub use statement::{ModelStatement, Resource};
pub use trust::{PublicKey, TrustRoots, VerifiedBy};

/// Signs a release: its provenance first, then everything, the provenance included.
///
/// # Errors
/// `Tampered` where a file is not what the manifest lists: what is signed was checked.
pub fn sign(folder: &Path, signer: &Signer) -> Result<Digest, StoreError> {
    let release = Release::open(folder)?;
    release.check_files()?;
    let provenance = signer.sign(&statement::provenance(&release)?)?;
    release.write_beside(PROVENANCE, &provenance)?;
    let statement = ModelStatement::of(&release, &provenance, &release.manifest().name);
    release.write_beside(SIGNATURE, &signer.sign(&statement.to_bytes()?)?)?;
    Ok(release.id())
}

/// Checks who signed a release, and that exactly its files are signed; the files' content is compared by [`Release::check_files`].
///
/// # Errors
/// `Unverified` where there is no signature, or none that is trusted; `Tampered` where it is one of other files.
pub fn verify(release: &Release, trust: &TrustRoots) -> Result<VerifiedBy, StoreError> {
    let bytes = release.beside(SIGNATURE)?.ok_or_else(|| {
        unverified(format!("`{}` is not signed: it has no `{SIGNATURE}`", release.folder().display()))
    })?;
    let (payload, signed_by) = trust.open(&bytes).map_err(|error| error.at(format!("`{SIGNATURE}`")))?;
    let statement = ModelStatement::parse(&payload).map_err(|error| error.at(format!("`{SIGNATURE}`")))?;
    statement.covers(release)?;
    if let Some(provenance) = release.beside(PROVENANCE)? {
        let (payload, made_by) = trust.open(&provenance).map_err(|error| error.at(format!("`{PROVENANCE}`")))?;
        statement::check_provenance(&payload, release).map_err(|error| error.at(format!("`{PROVENANCE}`")))?;
        tracing::debug!(?made_by, "provenance verified");
    }
    Ok(signed_by)
}

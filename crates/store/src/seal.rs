//! Sealed releases: files encrypted in authenticated chunks under a data key that a key provider wraps.
//!
//! The construction is STREAM (Hoang, Reyhanitabar, Rogaway, Vizár: Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance,
//! 2015), as age uses it: each file has a key of its own (HKDF-SHA256 of the data key with a random salt, for this path of this release), so
//! nonces are counters and no file can stand in for another; the nonce's last byte marks the last chunk, so none can be cut off.

mod file;
mod key;

use std::{collections::BTreeMap, path::Path};

use edgeward_trust::keys::{KeyProvider, random_bytes};
use zeroize::Zeroizing;

use crate::{
    digest::{Digest, Hashing},
    error::{StoreError, invalid},
    files::{Release, check_stored},
    manifest::{FileEntry, KEY, MANIFEST, Manifest, Stored},
    staged::Staged,
};

pub(crate) use file::FileKey;
pub(crate) use key::DataKey;

/// Seals a release into a new folder: its files encrypted, its data key wrapped by `key` of the provider. The seal has to be signed anew.
///
/// # Errors
/// `Invalid` where it is sealed already, `Exists` where the folder is, `Tampered` where a file is not what is listed.
pub fn seal(folder: &Path, out: &Path, keys: &dyn KeyProvider, key: &str) -> Result<Release, StoreError> {
    let release = Release::open(folder)?;
    if release.manifest().is_sealed() {
        return Err(invalid(format!("`{}` is sealed already; `rekey` wraps its key anew", folder.display())));
    }
    release.check_nothing_else()?;
    let staged = Staged::beside(out)?;
    let data_key = DataKey::new(Zeroizing::new(random_bytes::<32>()?), release.id());
    let mut files = BTreeMap::new();
    for (path, entry) in &release.manifest().files {
        let sealed = seal_file(&release, path, entry, &data_key, &staged)?;
        files.insert(path.clone(), FileEntry { sealed: Some(sealed), ..*entry });
    }
    let manifest = Manifest { files, ..release.manifest().clone() };
    let bytes = manifest.to_bytes()?;
    Manifest::parse(&bytes)?;
    staged.write(MANIFEST, &bytes)?;
    staged.write(KEY, &data_key.wrap(keys, key)?)?;
    staged.keep()?;
    Release::open(out)
}

fn seal_file(
    release: &Release,
    path: &str,
    entry: &FileEntry,
    data_key: &DataKey,
    staged: &Staged,
) -> Result<Stored, StoreError> {
    let mut plain = Hashing::new(std::io::sink());
    let mut sealed = Hashing::new(staged.create(path)?);
    data_key.file(path, random_bytes()?)?.seal(release.file(path)?, &mut plain, &mut sealed, entry.size)?;
    let (_, sha256, size) = plain.finish();
    check_stored(path, entry.stored(), Stored { size, sha256 })?;
    let (_, sha256, size) = sealed.finish();
    Ok(Stored { size, sha256 })
}

/// Wraps the data key of a sealed release anew; its files, its id and its signature stay.
///
/// # Errors
/// `Invalid` where it is not sealed, `Tampered` where `from` does not unwrap its key.
pub fn rekey(folder: &Path, from: &dyn KeyProvider, to: &dyn KeyProvider, key: &str) -> Result<Digest, StoreError> {
    let release = Release::open(folder)?;
    // A key that opens nothing is not wrapped anew.
    let data_key = opens(&release, from)?;
    release.write_beside(KEY, &data_key.wrap(to, key)?)?;
    Ok(release.id())
}

/// Whether a release's key file is one: well-formed where there are no keys to ask; with them, whether it opens the release.
///
/// # Errors
/// `NotFound` where it is missing, `Invalid` where it is malformed, `Tampered` where the keys do not unwrap it or it opens nothing.
pub fn check_key(release: &Release, keys: Option<&dyn KeyProvider>) -> Result<(), StoreError> {
    match keys {
        Some(keys) => opens(release, keys).map(drop),
        None => DataKey::wrapped(release).map(drop),
    }
}

/// The data key, which opens the smallest file.
fn opens(release: &Release, keys: &dyn KeyProvider) -> Result<DataKey, StoreError> {
    let data_key = DataKey::unwrap(release, keys)?;
    if let Some((path, entry)) = release.manifest().files.iter().min_by_key(|(_, entry)| entry.size) {
        file::read(release, path, entry, Some(&data_key))?;
    }
    Ok(data_key)
}

pub(crate) use file::read;

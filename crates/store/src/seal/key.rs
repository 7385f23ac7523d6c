//! The data key of a release, and the file that holds it wrapped.

use aws_lc_rs::{
    aead::{AES_256_GCM, LessSafeKey, UnboundKey},
    hkdf,
};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use edgeward_trust::keys::KeyProvider;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::FileKey;
use crate::{
    digest::Digest,
    error::{ErrorKind, StoreError, invalid},
    files::Release,
    manifest::KEY,
    name::check_name,
};

const FORMAT: &str = "edgeward-key-1";

/// The wrapped data key, as it is stored.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrapped {
    format: String,
    /// Of the provider: `file`, `vault`. For people; whichever provider is given is asked.
    provider: String,
    /// Name of the key that wraps.
    key: String,
    /// Base64.
    wrapped: String,
}

fn place(release: &Release) -> String {
    release.folder().join(KEY).display().to_string()
}

/// Encrypts the files of one release.
pub(crate) struct DataKey {
    key: Zeroizing<[u8; 32]>,
    /// Id of the release without its seal.
    release: Digest,
}

impl DataKey {
    pub(crate) fn new(key: Zeroizing<[u8; 32]>, release: Digest) -> Self {
        Self { key, release }
    }

    /// What the provider binds to the wrapped key: it opens this release only.
    fn context(release: Digest) -> Vec<u8> {
        [b"edgeward release ".as_slice(), &release.0].concat()
    }

    /// The key file's JSON.
    pub(crate) fn wrap(&self, keys: &dyn KeyProvider, key: &str) -> Result<Vec<u8>, StoreError> {
        let wrapped = keys.wrap(key, &*self.key, &Self::context(self.release))?;
        let file = Wrapped {
            format: FORMAT.to_owned(),
            provider: keys.name().to_owned(),
            key: key.to_owned(),
            wrapped: BASE64_STANDARD.encode(wrapped),
        };
        serde_json::to_vec(&file).map_err(|error| invalid(format!("`{KEY}`: {error}")))
    }

    /// Has the data key of a sealed release unwrapped.
    pub(crate) fn unwrap(release: &Release, keys: &dyn KeyProvider) -> Result<Self, StoreError> {
        let place = || place(release);
        let (key, wrapped) = Self::wrapped(release)?;
        let id = release.manifest().unsealed().id()?;
        let unwrapped = keys.unwrap(&key, &wrapped, &Self::context(id)).map_err(StoreError::from);
        let unwrapped = unwrapped.map_err(|error| error.at(place()))?;
        let key = <[u8; 32]>::try_from(unwrapped.as_slice());
        let key = key.map_err(|_| invalid(format!("`{}`: expected a key of 32 bytes", place())))?;
        Ok(Self { key: Zeroizing::new(key), release: id })
    }

    /// The name of the key that wraps, and the wrapped key, as they lie beside a sealed release.
    pub(crate) fn wrapped(release: &Release) -> Result<(String, Vec<u8>), StoreError> {
        if !release.manifest().is_sealed() {
            return Err(invalid(format!("`{}` is not sealed", release.folder().display())));
        }
        let bytes = release.beside(KEY)?.ok_or_else(|| {
            let text = format!("`{}` is sealed and its `{KEY}` is missing", release.folder().display());
            StoreError::new(ErrorKind::NotFound, text)
        })?;
        let wrong = |why: String| invalid(format!("`{}`: {why}", place(release)));
        let file: Wrapped = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        if file.format != FORMAT {
            return Err(wrong(format!("format `{}`; expected `{FORMAT}`", file.format.escape_debug())));
        }
        check_name("key", &file.key).map_err(|error| error.at(place(release)))?;
        let wrapped = BASE64_STANDARD.decode(&file.wrapped).map_err(|error| wrong(format!("not base64: {error}")))?;
        Ok((file.key, wrapped))
    }

    /// The key of one file.
    pub(crate) fn file(&self, path: &str, salt: [u8; 32]) -> Result<FileKey, StoreError> {
        let failed = |_| StoreError::new(ErrorKind::Unavailable, "the cryptographic library could not derive a key");
        let pseudorandom = hkdf::Salt::new(hkdf::HKDF_SHA256, &salt).extract(&*self.key);
        let info = [b"edgeward-seal-1\0".as_slice(), &self.release.0, path.as_bytes()];
        let output = pseudorandom.expand(&info, &AES_256_GCM).map_err(failed)?;
        Ok(FileKey::new(LessSafeKey::new(UnboundKey::from(output)), salt))
    }
}

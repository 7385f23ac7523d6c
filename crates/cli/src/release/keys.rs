//! The keys that releases are signed, verified and sealed with, as the command line and `[release]` name them.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use edgeward_store::signing::{PublicKey, TrustRoots};
use edgeward_trust::keys::{KeyKind, KeyProvider, KeySettings};

use super::{failure, opening::ReleaseSettings};
use crate::{
    failure::{Failure, OrInput as _},
    trust::Unlocking,
};

/// The key that signs releases, in a file of keys made here.
pub const SIGNING_KEY: &str = "release";
/// The key that wraps the data keys of sealed releases, likewise.
pub const SEALING_KEY: &str = "seal";

/// Who keeps the keys.
#[derive(clap::Args)]
pub struct KeyArgs {
    /// Sealed file of keys, made with the keys `release` (signs) and `seal` (wraps) where it does not exist; or a `.toml` file that names
    /// another provider (docs/keys.md)
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    #[command(flatten)]
    unlock: Unlocking,
}

/// Whose signatures are taken.
#[derive(clap::Args)]
pub struct TrustArgs {
    /// Public key (PEM) whose signatures are taken; may be given several times
    #[arg(long, value_name = "FILE")]
    public_key: Vec<PathBuf>,
    /// Root certificates (PEM) that signers' certificates must lead to
    #[arg(long, value_name = "FILE", requires = "identity")]
    roots: Option<PathBuf>,
    /// Name that the signer's certificate must have, `*` at the end takes all that begin so: `spiffe://hospital.example/release/*`
    #[arg(long, value_name = "NAME", requires = "roots")]
    identity: Vec<String>,
}

impl KeyArgs {
    /// The provider; none where no file is named.
    pub fn open(&self) -> Result<Option<Arc<dyn KeyProvider>>, Failure> {
        let Some(path) = &self.keys else { return Ok(None) };
        if names_provider(path) || path.exists() {
            return open_keys(path, &self.unlock).map(Some);
        }
        let keys = [(SIGNING_KEY, KeyKind::P256), (SEALING_KEY, KeyKind::Wrapping)];
        Ok(Some(Arc::new(self.unlock.open_or_create(path, &keys)?)))
    }

    /// The provider.
    pub fn required(&self) -> Result<Arc<dyn KeyProvider>, Failure> {
        self.open()?.ok_or_else(|| {
            Failure::input("expected `--keys FILE`, a sealed file of keys or the settings of a provider")
        })
    }
}

/// Whether a file is the settings of a provider, not its keys.
pub fn names_provider(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "toml")
}

/// Opens a sealed file of keys, or the provider that a `.toml` file names; relative paths in that are looked for beside it.
pub fn open_keys(path: &Path, unlock: &Unlocking) -> Result<Arc<dyn KeyProvider>, Failure> {
    if !path.exists() {
        let shown = path.display();
        return Err(Failure::input(format!(
            "`{shown}` does not exist; expected a sealed file of keys, or settings of a provider"
        )));
    }
    if !names_provider(path) {
        return unlock.open(path);
    }
    let settings = KeySettings::read(path).or_input()?;
    let folder = path.parent().unwrap_or(Path::new(""));
    settings.within(folder).open().map_err(|error| failure(error.into()))
}

impl TrustArgs {
    /// What was named here; where nothing was, what the settings name.
    pub fn signers(&self, settings: &ReleaseSettings) -> SignerFiles {
        if self.public_key.is_empty() && self.roots.is_none() {
            let ReleaseSettings { public_keys, roots, identities, .. } = settings.clone();
            return SignerFiles { public_keys, roots, identities };
        }
        let (public_keys, roots, identities) = (self.public_key.clone(), self.roots.clone(), self.identity.clone());
        SignerFiles { public_keys, roots, identities }
    }

    /// The keys and roots that were named.
    pub fn open(&self, settings: &ReleaseSettings) -> Result<TrustRoots, Failure> {
        self.signers(settings).open()
    }
}

/// The files that say whose signatures are taken.
#[derive(Clone, Debug, Default)]
pub struct SignerFiles {
    pub public_keys: Vec<PathBuf>,
    pub roots: Option<PathBuf>,
    pub identities: Vec<String>,
}

impl SignerFiles {
    /// True where nobody is named.
    pub fn is_empty(&self) -> bool {
        self.public_keys.is_empty() && self.roots.is_none()
    }

    /// Reads them.
    pub fn open(&self) -> Result<TrustRoots, Failure> {
        let mut trust = TrustRoots::default();
        for path in &self.public_keys {
            let key = PublicKey::from_pem(&read(path)?);
            trust = trust.with_key(key.map_err(|error| Failure::input(format!("`{}`: {error}", path.display())))?);
        }
        if let Some(roots) = &self.roots {
            trust = trust.with_roots(&read(roots)?, &self.identities).map_err(failure)?;
        }
        if self.is_empty() {
            return Err(Failure::input(
                "whose signature is to be taken? expected `--public-key FILE`, or `--roots FILE` with `--identity NAME`; or `public_keys`, \
                 or `roots` with `identities`, in `[release]`",
            ));
        }
        Ok(trust)
    }
}

/// Reads a file that the command line names.
pub fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| Failure::input(format!("`{}`: {error}", path.display())))
}

//! The keys that releases are signed and sealed with, as the command line names them.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use edgeward_store::signing::{PublicKey, TrustRoots};
use edgeward_trust::keys::{KeyKind, KeyProvider};

use super::failure;
use crate::{failure::Failure, trust::Unlocking};

/// The key that signs releases, in a file of keys made here.
pub const SIGNING_KEY: &str = "release";
/// The key that wraps the data keys of sealed releases, likewise.
pub const SEALING_KEY: &str = "seal";

/// A sealed file of keys.
#[derive(clap::Args)]
pub struct KeyArgs {
    /// Sealed file of keys, made with the keys `release` (signs) and `seal` (wraps) where it does not exist
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
    /// The file of keys; none where no file is named.
    pub fn open(&self) -> Result<Option<Arc<dyn KeyProvider>>, Failure> {
        let Some(path) = &self.keys else { return Ok(None) };
        let keys = [(SIGNING_KEY, KeyKind::P256), (SEALING_KEY, KeyKind::Wrapping)];
        Ok(Some(Arc::new(self.unlock.open_or_create(path, &keys)?)))
    }

    /// The file of keys.
    pub fn required(&self) -> Result<Arc<dyn KeyProvider>, Failure> {
        self.open()?.ok_or_else(|| Failure::input("expected `--keys FILE`, a sealed file of keys"))
    }
}

impl TrustArgs {
    /// The keys and roots that were named.
    pub fn open(&self) -> Result<TrustRoots, Failure> {
        let mut trust = TrustRoots::default();
        for path in &self.public_key {
            let key = PublicKey::from_pem(&read(path)?);
            trust = trust.with_key(key.map_err(|error| Failure::input(format!("`{}`: {error}", path.display())))?);
        }
        if let Some(roots) = &self.roots {
            trust = trust.with_roots(&read(roots)?, &self.identity).map_err(failure)?;
        }
        if self.public_key.is_empty() && self.roots.is_none() {
            return Err(Failure::input(
                "whose signature is to be taken? expected `--public-key FILE`, or `--roots FILE` with `--identity NAME`",
            ));
        }
        Ok(trust)
    }
}

/// Reads a file that the command line names.
pub fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| Failure::input(format!("`{}`: {error}", path.display())))
}

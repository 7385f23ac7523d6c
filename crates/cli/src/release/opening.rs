//! `[release]`, and the options by which `serve` and the drills open releases.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
};

use edgeward_serve::core::{ReleaseConfig, ReleaseGoal, ReleasePlace, Signers};
use edgeward_store::Floor;
use edgeward_trust::keys::KeyProvider;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{
    keys::{SignerFiles, TrustArgs, names_provider, open_keys},
    transfer,
};
use crate::{failure::Failure, trust::Unlocking};

/// `[release]`: whose releases are taken, and how they are opened.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct ReleaseSettings {
    /// Public keys (PEM) whose signatures are taken.
    pub public_keys: Vec<PathBuf>,
    /// Root certificates (PEM) that signers' certificates must lead to.
    pub roots: Option<PathBuf>,
    /// Names that these certificates may have.
    pub identities: Vec<String>,
    /// Keys that open sealed releases: a sealed file, or a `.toml` file that names another provider.
    pub keys: Option<PathBuf>,
    /// Opens the sealed file.
    pub key_file: Option<PathBuf>,
    /// Likewise.
    pub passphrase_file: Option<PathBuf>,
    /// File that remembers the newest release of each name.
    pub floor: Option<PathBuf>,
    /// Folder for releases from object storage.
    pub cache: Option<PathBuf>,
    /// A server refuses models that are no release.
    pub only: bool,
}

/// How releases are opened to run them.
#[derive(clap::Args)]
pub struct OpeningArgs {
    #[command(flatten)]
    trust: TrustArgs,
    /// Keys that open sealed releases: a sealed file of keys, or a `.toml` file that names another provider (docs/keys.md)
    #[arg(long, env = "EDGEWARD_RELEASE_KEYS", value_name = "FILE")]
    release_keys: Option<PathBuf>,
    /// File of at least 32 random bytes that opens the sealed file of `--release-keys` [default: `unlock.key` beside it]
    #[arg(long, env = "EDGEWARD_RELEASE_KEY_FILE", value_name = "FILE")]
    release_key_file: Option<PathBuf>,
    /// File with the passphrase of the sealed file of `--release-keys`
    #[arg(long, env = "EDGEWARD_RELEASE_PASSPHRASE_FILE", value_name = "FILE", conflicts_with = "release_key_file")]
    release_passphrase_file: Option<PathBuf>,
    /// Refuse models that are no release
    #[arg(long, env = "EDGEWARD_RELEASES_ONLY")]
    releases_only: bool,
}

/// The options, with what the settings say where they are silent.
#[derive(Clone, Debug)]
pub struct Opening {
    signers: SignerFiles,
    keys: Option<PathBuf>,
    key_file: Option<PathBuf>,
    passphrase_file: Option<PathBuf>,
    only: bool,
}

/// What a server keeps of releases, and where it gets them from.
pub struct Stores<'a> {
    /// File that remembers the newest release of each name.
    pub floor: Option<PathBuf>,
    /// Places that releases were pushed to.
    pub places: &'a [PathBuf],
    /// Folder for what is fetched from there.
    pub cache: Option<PathBuf>,
}

impl OpeningArgs {
    /// What holds.
    pub fn resolve(&self, settings: &ReleaseSettings) -> Opening {
        let unlocks = self.release_key_file.is_some() || self.release_passphrase_file.is_some();
        let (key_file, passphrase_file) = match unlocks {
            true => (self.release_key_file.clone(), self.release_passphrase_file.clone()),
            false => (settings.key_file.clone(), settings.passphrase_file.clone()),
        };
        Opening {
            signers: self.trust.signers(settings),
            keys: self.release_keys.clone().or_else(|| settings.keys.clone()),
            key_file,
            passphrase_file,
            only: self.releases_only || settings.only,
        }
    }
}

impl Opening {
    /// For a server. What is named wrongly is said now, not with the first release.
    pub fn config(&self, stores: Stores<'_>, goal: ReleaseGoal) -> Result<ReleaseConfig, Failure> {
        if !self.signers.is_empty() {
            self.signers.open()?;
        }
        let signers = self.signers.clone();
        let place = |place: &PathBuf| {
            let address = place.to_string_lossy().into_owned();
            let cache = cache_of(&address, stores.cache.as_deref())?;
            Ok(ReleasePlace { remote: transfer::remote(&address)?, address, cache })
        };
        Ok(ReleaseConfig {
            signers: Signers::new(move || signers.open().map_err(|failure| failure.message())),
            keys: self.open_keys()?,
            floor: stores.floor.map(Floor::at),
            places: stores.places.iter().map(place).collect::<Result<_, Failure>>()?,
            goal,
            only: self.only,
        })
    }

    fn open_keys(&self) -> Result<Option<Arc<dyn KeyProvider>>, Failure> {
        let unlock = Unlocking::by(self.passphrase_file.clone(), self.key_file.clone());
        self.keys.as_ref().map(|path| open_keys(path, &unlock)).transpose()
    }

    /// The keys, where they lie beneath a folder and are no settings of a provider.
    pub fn keys_beneath(&self, folder: &Path) -> Option<String> {
        let keys = self.keys.as_ref().filter(|path| !names_provider(path))?;
        let (whole, folder) = (keys.canonicalize().ok()?, folder.canonicalize().ok()?);
        whole.starts_with(folder).then(|| keys.display().to_string())
    }

    /// The same as options of `serve`.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut all = Vec::new();
        let mut add = |flag: &str, value: &Path| all.extend([OsString::from(flag), value.into()]);
        self.signers.public_keys.iter().for_each(|path| add("--public-key", path));
        self.signers.identities.iter().for_each(|name| add("--identity", Path::new(name)));
        for (flag, path) in [
            ("--roots", &self.signers.roots),
            ("--release-keys", &self.keys),
            ("--release-key-file", &self.key_file),
            ("--release-passphrase-file", &self.passphrase_file),
        ] {
            path.iter().for_each(|path| add(flag, path));
        }
        all.extend(self.only.then(|| "--releases-only".into()));
        all
    }
}

/// Whether a path is a place that releases were pushed to: an address, or a folder that `release push` has laid out.
pub fn is_place(path: &Path) -> bool {
    path.to_string_lossy().contains("://") || path.join("packs").is_dir() && path.join("releases").is_dir()
}

/// A place's own folder in the cache, so that what two of them call alike is not mixed up.
fn cache_of(address: &str, cache: Option<&Path>) -> Result<PathBuf, Failure> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let users = || variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    let cache = cache.map(Path::to_owned).or_else(|| Some(users()?.join("edgeward/releases")));
    let cache = cache.ok_or_else(|| {
        Failure::input(format!("`{address}` needs a folder for what is fetched; expected `--release-cache FOLDER`"))
    })?;
    let digest = Sha256::digest(address.as_bytes());
    Ok(cache.join(digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_and_places_are_told_from_folders() {
        let settings: ReleaseSettings = toml::from_str(
            "public_keys = [\"a.pub\"]\nroots = \"r.pem\"\nidentities = [\"spiffe://x/*\"]\nkeys = \"k\"\nfloor = \"f\"\nonly = true\n",
        )
        .unwrap();
        assert!(settings.only && settings.keys == Some("k".into()) && settings.cache.is_none());
        assert!(toml::from_str::<ReleaseSettings>("public_key = \"a.pub\"").is_err());
        let folder = tempfile::tempdir().unwrap();
        assert!(is_place(Path::new("s3://models/prefix")) && !is_place(folder.path()));
        ["packs", "releases"].iter().for_each(|name| std::fs::create_dir(folder.path().join(name)).unwrap());
        assert!(is_place(folder.path()));
        let of = |address| cache_of(address, Some(Path::new("c"))).unwrap();
        assert!(of("s3://a") != of("s3://b") && of("s3://a").starts_with("c"));
    }
}

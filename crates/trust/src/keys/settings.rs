//! Which provider keeps the keys, as a file or table says it.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;

use super::{KeyProvider, Kms, KmsSettings, Pkcs11, Pkcs11Settings, Vault, VaultSettings};
use crate::{ErrorKind, TrustError};

const BYTES_MAX: u64 = 1 << 20;

/// A provider of keys: `provider = "pkcs11"` and its settings. Secrets are not among them, only where they are.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "provider", rename_all = "kebab-case")]
pub enum KeySettings {
    /// A token.
    Pkcs11(Pkcs11Settings),
    /// Transit of HashiCorp Vault or OpenBao.
    Vault(TransitSettings),
    /// AWS KMS.
    AwsKms(KmsSettings),
}

/// A server and the engine in it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransitSettings {
    /// `[server]`
    pub server: VaultSettings,
    /// Where the engine is mounted.
    #[serde(default = "transit")]
    pub mount: String,
}

fn transit() -> String {
    "transit".to_owned()
}

impl KeySettings {
    /// Reads a file of settings.
    ///
    /// # Errors
    /// `Unavailable` where it cannot be read, `Invalid` where it is none.
    pub fn read(path: &Path) -> Result<Self, TrustError> {
        let failed = |kind, why: String| TrustError::new(kind, format!("`{}`: {why}", path.display()));
        let mut text = String::new();
        let file = File::open(path).map_err(|error| failed(ErrorKind::Unavailable, error.to_string()))?;
        let read = file.take(BYTES_MAX).read_to_string(&mut text);
        read.map_err(|error| failed(ErrorKind::Invalid, error.to_string()))?;
        toml::from_str(&text).map_err(|error| failed(ErrorKind::Invalid, error.to_string().trim().to_owned()))
    }

    /// Files that the settings name by a relative path are looked for beside `folder`'s other files.
    #[must_use]
    pub fn within(mut self, folder: &Path) -> Self {
        let place = |path: &mut PathBuf| *path = folder.join(&*path);
        match &mut self {
            Self::Pkcs11(settings) => settings.pin.place(place),
            Self::Vault(settings) => {
                settings.server.roots.iter_mut().for_each(place);
                settings.server.login.place(place);
            }
            Self::AwsKms(settings) => settings.credentials.place(place),
        }
        self
    }

    /// Opens the provider.
    ///
    /// # Errors
    /// The provider's.
    pub fn open(self) -> Result<Arc<dyn KeyProvider>, TrustError> {
        Ok(match self {
            Self::Pkcs11(settings) => Arc::new(Pkcs11::open(settings)?),
            Self::Vault(settings) => Arc::new(Vault::connect(&settings.server)?.transit(&settings.mount)?),
            Self::AwsKms(settings) => Arc::new(Kms::connect(&settings)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_provider_is_read_and_its_files_are_beside_the_settings() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            KeySettings::read(&path).map(|settings| settings.within(folder.path()))
        };
        let token = "provider = \"pkcs11\"\nmodule = \"/lib/p11.so\"\ntoken = \"edge\"\npin = { file = \"pin\" }\n";
        let KeySettings::Pkcs11(settings) = read(token).unwrap() else { panic!("{token}") };
        assert_eq!(settings.pin.to_string(), format!("`{}`", folder.path().join("pin").display()));
        let vault = "provider = \"vault\"\n[server]\naddress = \"https://vault.example:8200\"\nroots = \"/etc/ca.pem\"\n\
                     login = { method = \"approle\", role_id = \"r\", secret_id = { file = \"secret-id\" } }\n";
        let KeySettings::Vault(settings) = read(vault).unwrap() else { panic!("{vault}") };
        assert_eq!((settings.mount.as_str(), settings.server.roots), ("transit", Some("/etc/ca.pem".into())));
        assert!(matches!(read("provider = \"aws-kms\"\nregion = \"eu-central-1\"\n").unwrap(), KeySettings::AwsKms(_)));
        for bad in [
            "",
            "provider = \"file\"",
            "provider = \"pkcs11\"",
            &token.replace("token", "tokn"),
            &format!("x = 1\n{vault}"),
            "\u{0}",
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("keys.toml"), "{bad}: {error}");
        }
        assert_eq!(KeySettings::read(Path::new("/nowhere/keys.toml")).unwrap_err().kind(), ErrorKind::Unavailable);
    }
}

//! Keys in HashiCorp Vault or OpenBao: Transit wraps and signs, PKI certifies servers. One login serves both.
//!
//! The server speaks HTTP with JSON; the few paths that are needed are written here. A wrapped data key is `version || ciphertext`: the
//! server's own `vault:vN:` form holds base64, of which several spellings mean the same.

mod client;
mod login;
mod pki;
mod transit;

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use serde::Deserialize;

use self::{client::Client, login::keep_logged_in};
pub use self::{
    login::LoginSettings,
    pki::{PkiSettings, VaultPki},
    transit::Transit,
};
use crate::{TrustError, remote::Remote};

/// Where the server is, and how to log in.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultSettings {
    /// `https://HOST:PORT`; `http://` on loopback only.
    pub address: String,
    /// The namespace that the paths are in, where the server has several.
    pub namespace: Option<String>,
    /// File of certificates in PEM that are trusted beside the system's.
    pub roots: Option<PathBuf>,
    /// Who this is to the server.
    pub login: LoginSettings,
}

/// How it stands with the login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginStatus {
    /// How often a token was asked for.
    pub logins: u64,
    /// How often a token's time was prolonged.
    pub renewals: u64,
    /// Since when the last attempt failed, and why; none where it did not.
    pub failing: Option<(SystemTime, String)>,
}

/// A server and the login with it, which is renewed in the background and made anew when it ends. Clones share it.
#[derive(Clone)]
pub struct Vault {
    client: Arc<Client>,
    remote: Arc<Remote>,
}

impl Vault {
    /// Logs in.
    ///
    /// # Errors
    /// `Invalid` where a setting is, `Unverified` where the server refuses the login, `Unavailable` where it does not answer.
    pub fn connect(settings: &VaultSettings) -> Result<Self, TrustError> {
        let (client, remote) = (Arc::new(Client::new(settings)?), Arc::new(Remote::start("vault")?));
        let first = client.clone();
        remote.run(async move { first.log_in().await })?;
        remote.spawn(keep_logged_in(client.clone()));
        Ok(Self { client, remote })
    }

    /// How it stands with the login.
    pub fn status(&self) -> LoginStatus {
        self.client.status()
    }

    /// The keys of a Transit engine, by the path that it is mounted at.
    ///
    /// # Errors
    /// `Invalid` where the mount is no path.
    pub fn transit(&self, mount: &str) -> Result<Transit, TrustError> {
        client::check_mount(mount)?;
        Ok(Transit::new(self.clone(), mount.to_owned()))
    }
}

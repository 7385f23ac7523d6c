//! Logins with the server: how one is made, when it is renewed, and when a new one is due.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::client::{Call, Client, check_mount};
use crate::{
    ErrorKind, TrustError,
    keys::{SecretSource, platform_token},
};

/// Between two attempts after one has failed.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Who this process is to the server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
pub enum LoginSettings {
    /// A token that others made, e.g. the file that an agent keeps fresh.
    Token {
        /// Where it is.
        token: SecretSource,
    },
    /// A role and its secret.
    Approle {
        /// Where the method is mounted.
        #[serde(default = "approle")]
        mount: String,
        /// Says which role.
        role_id: String,
        /// Proves it; none where the role is bound to addresses alone.
        secret_id: Option<SecretSource>,
    },
    /// The service account of a pod.
    Kubernetes {
        /// Where the method is mounted.
        #[serde(default = "kubernetes")]
        mount: String,
        /// The server's name for what the account may do.
        role: String,
        /// The account's token, which the platform renews.
        #[serde(default = "service_account")]
        jwt_file: PathBuf,
    },
    /// A token of an OpenID provider, e.g. of a cloud or of a build server.
    Jwt {
        /// Where the method is mounted.
        #[serde(default = "jwt")]
        mount: String,
        /// The server's name for what the token's subject may do.
        role: String,
        /// The token, which the platform renews.
        jwt_file: PathBuf,
    },
}

fn approle() -> String {
    "approle".to_owned()
}

fn kubernetes() -> String {
    "kubernetes".to_owned()
}

fn jwt() -> String {
    "jwt".to_owned()
}

fn service_account() -> PathBuf {
    "/var/run/secrets/kubernetes.io/serviceaccount/token".into()
}

impl LoginSettings {
    /// Whether the settings can be right.
    pub fn check(&self) -> Result<(), TrustError> {
        match self {
            Self::Token { .. } => Ok(()),
            Self::Approle { mount, .. } | Self::Kubernetes { mount, .. } | Self::Jwt { mount, .. } => {
                check_mount(mount)
            }
        }
    }

    /// Lets the paths of files be changed.
    pub(crate) fn place(&mut self, place: impl FnOnce(&mut PathBuf)) {
        match self {
            Self::Token { token } => token.place(place),
            Self::Approle { secret_id, .. } => {
                if let Some(secret_id) = secret_id {
                    secret_id.place(place);
                }
            }
            Self::Kubernetes { jwt_file, .. } | Self::Jwt { jwt_file, .. } => place(jwt_file),
        }
    }

    /// Logs in.
    pub async fn perform(&self, client: &Client, generation: u64) -> Result<Lease, TrustError> {
        let (mount, body) = match self {
            Self::Token { token } => return own_token(client, token.read_text()?, generation).await,
            Self::Approle { mount, role_id, secret_id } => {
                let secret_id = secret_id.as_ref().map(SecretSource::read_text).transpose()?;
                (mount, json!({ "role_id": role_id, "secret_id": secret_id.as_ref().map(|secret| secret.as_str()) }))
            }
            Self::Kubernetes { mount, role, jwt_file } | Self::Jwt { mount, role, jwt_file } => {
                (mount, json!({ "role": role, "jwt": platform_token(jwt_file)?.as_str() }))
            }
        };
        let answer = client.send(&Call::post(format!("auth/{mount}/login"), body), None).await?;
        let said = answer.json().map_err(|error| match error.kind() {
            ErrorKind::Invalid | ErrorKind::Denied | ErrorKind::NotFound => refused(&error),
            _ => error,
        })?;
        let lease = said.get("auth").and_then(|auth| Lease::read(auth, generation));
        lease.ok_or_else(|| answer.unreadable("no `auth` with a `client_token` in it"))
    }
}

fn refused(error: &TrustError) -> TrustError {
    TrustError::new(ErrorKind::Unverified, format!("the login is refused: {error}"))
}

/// Asks how long a token that others made holds.
async fn own_token(client: &Client, token: Zeroizing<String>, generation: u64) -> Result<Lease, TrustError> {
    let answer = client.send(&Call::get("auth/token/lookup-self".to_owned()), Some(&token)).await?;
    let said = answer.json().map_err(|error| match error.kind() {
        ErrorKind::Denied => refused(&error),
        _ => error,
    })?;
    let data = said.get("data").ok_or_else(|| answer.unreadable("no `data` in it"))?;
    let ttl = data.get("ttl").and_then(Value::as_u64).unwrap_or(0);
    let renewable = data.get("renewable").and_then(Value::as_bool).unwrap_or(false);
    Ok(Lease::new(token, ttl, renewable, generation))
}

/// A token and for how long it holds.
pub struct Lease {
    pub token: Zeroizing<String>,
    /// Which login it is of.
    pub generation: u64,
    pub since: Instant,
    renewable: bool,
    /// For how long the login gave it; none where it has no end.
    granted: Option<Duration>,
    /// Since when it holds for how long more.
    renewed: Instant,
    left: Option<Duration>,
}

/// What is due for a login.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    Renew,
    LogIn,
}

impl Lease {
    fn new(token: Zeroizing<String>, ttl_s: u64, renewable: bool, generation: u64) -> Self {
        let (now, left) = (Instant::now(), (ttl_s > 0).then(|| Duration::from_secs(ttl_s)));
        Self { token, generation, since: now, renewable, granted: left, renewed: now, left }
    }

    fn read(auth: &Value, generation: u64) -> Option<Self> {
        let token = auth.get("client_token")?.as_str().filter(|token| !token.is_empty())?;
        let (ttl, renewable) = (auth.get("lease_duration")?.as_u64()?, auth.get("renewable")?.as_bool()?);
        Some(Self::new(token.to_owned().into(), ttl, renewable, generation))
    }

    pub fn has_ended(&self, now: Instant) -> bool {
        self.left.is_some_and(|left| now.saturating_duration_since(self.renewed) >= left)
    }

    /// What is due next, and in how long: after two thirds of its time a token is renewed. One that cannot be renewed, or was only for
    /// less than half the time that the login gave, nears its last end: a new login is due.
    fn due(&self, now: Instant) -> Option<(Due, Duration)> {
        let left = self.left?;
        let wait = (left * 2 / 3).saturating_sub(now.saturating_duration_since(self.renewed));
        let shortened = self.granted.is_some_and(|granted| left < granted / 2);
        Some((if self.renewable && !shortened { Due::Renew } else { Due::LogIn }, wait))
    }
}

/// Renews the login, and logs in anew before it ends for good.
pub async fn keep_logged_in(client: Arc<Client>) {
    let mut failures = 0_u32;
    loop {
        let due = client.lease.lock().await.as_ref().and_then(|lease| lease.due(Instant::now()));
        let Some((due, wait)) = due else {
            client.changed.notified().await;
            continue;
        };
        let retry = (RETRY_MIN * 2_u32.saturating_pow(failures.saturating_sub(1))).min(RETRY_MAX);
        let woken = client.changed.notified();
        if tokio::time::timeout(if failures > 0 { retry } else { wait }, woken).await.is_ok() {
            // Another login: what is due is to be looked at again.
            failures = 0;
            continue;
        }
        failures = match carry_out(&client, &due).await {
            Ok(()) => 0,
            Err(error) => {
                tracing::warn!("key server: {error}");
                (failures + 1).min(16)
            }
        };
    }
}

async fn carry_out(client: &Client, due: &Due) -> Result<(), TrustError> {
    if *due == Due::LogIn {
        return client.log_in().await;
    }
    let mut lease = client.lease.lock().await;
    let Some(lease) = lease.as_mut() else { return Ok(()) };
    let result = renew(client, lease).await;
    client.note(&result, |status| status.renewals += 1);
    // A token that is refused is not asked to be renewed again.
    if result.as_ref().is_err_and(|error| matches!(error.kind(), ErrorKind::Denied | ErrorKind::Invalid)) {
        lease.renewable = false;
    }
    result
}

async fn renew(client: &Client, lease: &mut Lease) -> Result<(), TrustError> {
    let call = Call::post("auth/token/renew-self".to_owned(), json!({}));
    let answer = client.send(&call, Some(&lease.token)).await?;
    let said = answer.json()?;
    let auth = said.get("auth");
    let ttl = auth.and_then(|auth| auth.get("lease_duration")).and_then(Value::as_u64);
    let ttl = ttl.ok_or_else(|| answer.unreadable("no `lease_duration` in it"))?;
    (lease.renewed, lease.left) = (Instant::now(), (ttl > 0).then(|| Duration::from_secs(ttl)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_renewed_after_two_thirds_and_replaced_near_its_end() {
        let lease = |ttl, renewable| Lease::new(String::new().into(), ttl, renewable, 0);
        let s = Duration::from_secs;
        let mut long = lease(300, true);
        let start = long.renewed;
        assert_eq!(long.due(start), Some((Due::Renew, s(200))));
        assert_eq!(long.due(start + s(150)), Some((Due::Renew, s(50))));
        assert_eq!(long.due(start + s(500)), Some((Due::Renew, s(0))));
        assert!(!long.has_ended(start + s(299)) && long.has_ended(start + s(300)));
        // Renewed up to the most that the role allows.
        long.left = Some(s(90));
        assert_eq!(long.due(start), Some((Due::LogIn, s(60))));
        let fixed = lease(300, false);
        assert_eq!(fixed.due(fixed.renewed), Some((Due::LogIn, s(200))));
        let endless = lease(0, false);
        assert!(
            endless.due(endless.renewed + s(1 << 30)).is_none() && !endless.has_ended(endless.renewed + s(1 << 30))
        );
    }
}

//! Requests to the server with the token of the login.

use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex as SyncMutex;
use reqwest::{Method, StatusCode, Url};
use serde_json::Value;
use tokio::sync::{Mutex, Notify};
use zeroize::Zeroizing;

use super::{LoginStatus, VaultSettings, login::Lease};
use crate::{
    ErrorKind, TrustError,
    identity::{
        Http, HttpSettings,
        http::{Request, authority_url, origin},
    },
    keys::vault::login::LoginSettings,
};

const ANSWER_BYTES_MAX: usize = 4 << 20;
const ERROR_CHARS_MAX: usize = 300;
/// Between two logins that were caused by refusals.
const LOGIN_INTERVAL: Duration = Duration::from_secs(1);

/// A path beneath `/v1/` and what is sent there.
pub struct Call {
    pub method: Method,
    pub path: String,
    pub body: Option<Value>,
}

impl Call {
    pub fn get(path: String) -> Self {
        Self { method: Method::GET, path, body: None }
    }

    pub fn post(path: String, body: Value) -> Self {
        Self { method: Method::POST, path, body: Some(body) }
    }
}

/// What the server answered.
pub struct Answer {
    status: StatusCode,
    body: Zeroizing<Vec<u8>>,
    /// Address and path, for errors.
    place: String,
}

impl Answer {
    /// The answer of a request that succeeded; `null` where it says nothing.
    pub fn json(&self) -> Result<Value, TrustError> {
        if !self.status.is_success() {
            return Err(self.error());
        }
        if self.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&self.body).map_err(|error| self.unreadable(&error.to_string()))
    }

    pub fn is_refused_input(&self) -> bool {
        self.status == StatusCode::BAD_REQUEST
    }

    pub fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }

    pub fn is_forbidden(&self) -> bool {
        self.status == StatusCode::FORBIDDEN
    }

    pub fn unreadable(&self, why: &str) -> TrustError {
        TrustError::new(ErrorKind::Unavailable, format!("answer of `{}`: {why}", self.place))
    }

    /// The server's own words.
    pub fn error(&self) -> TrustError {
        let kind = match self.status {
            StatusCode::BAD_REQUEST => ErrorKind::Invalid,
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => ErrorKind::Denied,
            StatusCode::NOT_FOUND => ErrorKind::NotFound,
            _ => ErrorKind::Unavailable,
        };
        TrustError::new(kind, format!("`{}` answered {}{}", self.place, self.status, self.words()))
    }

    pub fn words(&self) -> String {
        let errors = serde_json::from_slice::<Value>(&self.body).ok().and_then(|body| {
            let errors = body.get("errors")?.as_array()?.iter().filter_map(Value::as_str);
            Some(errors.collect::<Vec<_>>().join("; "))
        });
        let words: String = errors.unwrap_or_default().trim().chars().take(ERROR_CHARS_MAX).collect();
        if words.is_empty() { words } else { format!(": {}", words.escape_debug()) }
    }
}

/// The server, and the login that requests are made with.
pub struct Client {
    http: Http,
    base: Url,
    namespace: Option<String>,
    pub(super) login: LoginSettings,
    /// One login at a time.
    pub(super) lease: Mutex<Option<Lease>>,
    /// The lease is another one.
    pub(super) changed: Notify,
    status: SyncMutex<LoginStatus>,
}

impl Client {
    pub fn new(settings: &VaultSettings) -> Result<Self, TrustError> {
        let base = authority_url(&settings.address)?;
        if base.path() != "/" || base.query().is_some() {
            let text = format!("address `{}`: expected `https://HOST:PORT` without a path", settings.address);
            return Err(TrustError::new(ErrorKind::Invalid, text));
        }
        settings.login.check()?;
        let roots_pem = settings.roots.as_ref().map(|path| {
            std::fs::read(path)
                .map_err(|error| TrustError::new(ErrorKind::Invalid, format!("`{}`: {error}", path.display())))
        });
        let http = Http::new(&HttpSettings { roots_pem: roots_pem.transpose()?, ..HttpSettings::default() })?;
        Ok(Self {
            http,
            base,
            namespace: settings.namespace.clone(),
            login: settings.login.clone(),
            lease: Mutex::default(),
            changed: Notify::new(),
            status: SyncMutex::new(LoginStatus { logins: 0, renewals: 0, failing: None }),
        })
    }

    /// Asks with the token of the login; a second time with a new one where that one is known no more.
    pub async fn call(&self, call: &Call) -> Result<Answer, TrustError> {
        let (token, generation) = self.token().await?;
        let answer = self.send(call, Some(&token)).await?;
        // The same status says that the token has ended and that its policy does not allow this.
        if !answer.is_forbidden() || !self.has_ended(&token).await? {
            return Ok(answer);
        }
        self.replace(generation).await?;
        let (token, _) = self.token().await?;
        self.send(call, Some(&token)).await
    }

    /// The answer of a call that must succeed.
    pub async fn ask(&self, call: &Call) -> Result<Value, TrustError> {
        self.call(call).await?.json()
    }

    /// Sends a request, with a token where it needs one.
    pub async fn send(&self, call: &Call, token: Option<&str>) -> Result<Answer, TrustError> {
        let mut url = self.base.clone();
        let (path, query) = call.path.split_once('?').unwrap_or((&call.path, ""));
        url.set_path(&format!("/v1/{path}"));
        url.set_query((!query.is_empty()).then_some(query));
        let mut headers = vec![("x-vault-request", "true")];
        headers.extend(self.namespace.as_deref().map(|namespace| ("x-vault-namespace", namespace)));
        headers.extend(token.map(|token| ("x-vault-token", token)));
        let body = call.body.as_ref().map(|body| {
            headers.push(("content-type", "application/json"));
            body.to_string().into_bytes()
        });
        let request = Request { method: call.method.clone(), url: &url, headers: &headers, body };
        let (status, body) = self.http.send(request, ANSWER_BYTES_MAX).await?;
        Ok(Answer { status, body: body.into(), place: format!("{}/v1/{path}", origin(&self.base)) })
    }

    async fn token(&self) -> Result<(Zeroizing<String>, u64), TrustError> {
        let mut lease = self.lease.lock().await;
        if let Some(lease) = lease.as_ref().filter(|lease| !lease.has_ended(Instant::now())) {
            return Ok((lease.token.clone(), lease.generation));
        }
        self.log_in_to(&mut lease).await?;
        let lease = lease.as_ref().ok_or_else(|| TrustError::new(ErrorKind::Unavailable, "there is no login"))?;
        Ok((lease.token.clone(), lease.generation))
    }

    async fn has_ended(&self, token: &str) -> Result<bool, TrustError> {
        Ok(self.send(&Call::get("auth/token/lookup-self".to_owned()), Some(token)).await?.is_forbidden())
    }

    /// Logs in anew, unless another did since.
    async fn replace(&self, generation: u64) -> Result<(), TrustError> {
        let mut lease = self.lease.lock().await;
        let held = lease.as_ref().map(|lease| (lease.generation, lease.since.elapsed()));
        match held {
            Some((held, _)) if held != generation => Ok(()),
            Some((_, since)) if since < LOGIN_INTERVAL => Ok(()),
            _ => self.log_in_to(&mut lease).await,
        }
    }

    /// Logs in, whatever there was.
    pub async fn log_in(&self) -> Result<(), TrustError> {
        let mut lease = self.lease.lock().await;
        self.log_in_to(&mut lease).await
    }

    async fn log_in_to(&self, lease: &mut Option<Lease>) -> Result<(), TrustError> {
        let generation = lease.as_ref().map_or(0, |lease| lease.generation + 1);
        let result = self.login.perform(self, generation).await;
        self.note(&result, |status| status.logins += 1);
        *lease = Some(result?);
        self.changed.notify_one();
        Ok(())
    }

    /// Writes down how an attempt went.
    pub(super) fn note<T>(&self, result: &Result<T, TrustError>, count: impl FnOnce(&mut LoginStatus)) {
        let mut status = self.status.lock();
        match result {
            Ok(_) => {
                count(&mut status);
                status.failing = None;
            }
            Err(error) => {
                let since = status.failing.take().map_or_else(SystemTime::now, |(since, _)| since);
                status.failing = Some((since, error.to_string()));
            }
        }
    }

    pub fn status(&self) -> LoginStatus {
        self.status.lock().clone()
    }
}

/// Whether an engine can be mounted there: segments of letters, digits, `-`, `_` and `.`.
pub fn check_mount(mount: &str) -> Result<(), TrustError> {
    let taken = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let segment = |segment: &str| !matches!(segment, "" | "." | "..") && segment.chars().all(taken);
    if mount.len() <= 256 && mount.split('/').all(segment) {
        return Ok(());
    }
    let text = format!("`{}` is no path of an engine; expected one like `transit`", mount.escape_debug());
    Err(TrustError::new(ErrorKind::Invalid, text))
}

//! Signed requests to KMS (JSON 1.1, Signature Version 4).

use std::time::{Duration, SystemTime};

use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::{Method, StatusCode, Url};
use serde_json::Value;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::{
    KmsSettings,
    credentials::{Credentials, Source},
};
use crate::{
    ErrorKind, TrustError,
    identity::{
        Http, HttpSettings,
        http::{Request, authority_url, origin},
    },
};

const ANSWER_BYTES_MAX: usize = 1 << 20;
const ERROR_CHARS_MAX: usize = 300;
/// How often a request is made where KMS asks to wait, and how long the first wait is.
const ATTEMPTS: u32 = 4;
const BACKOFF: Duration = Duration::from_millis(100);

/// KMS says no.
pub struct Refusal {
    /// `NotFoundException`.
    pub code: String,
    pub message: String,
    place: String,
}

impl From<Refusal> for TrustError {
    fn from(refusal: Refusal) -> Self {
        let kind = match refusal.code.as_str() {
            "NotFoundException" => ErrorKind::NotFound,
            "ValidationException" | "AlreadyExistsException" | "LimitExceededException" => ErrorKind::Invalid,
            "UnrecognizedClientException"
            | "InvalidSignatureException"
            | "SignatureDoesNotMatch"
            | "InvalidClientTokenId"
            | "IncompleteSignature" => ErrorKind::Unverified,
            "ExpiredTokenException" => ErrorKind::Expired,
            "DisabledException" | "KMSInvalidStateException" | "InvalidKeyUsageException" => ErrorKind::Denied,
            code if code.starts_with("AccessDenied") => ErrorKind::Denied,
            _ => ErrorKind::Unavailable,
        };
        let message: String = refusal.message.chars().take(ERROR_CHARS_MAX).collect();
        let text = format!("{}: `{}`: {}", refusal.place, refusal.code.escape_debug(), message.escape_debug());
        Self::new(kind, text)
    }
}

/// KMS, with the credentials for it.
pub struct Client {
    http: Http,
    url: Url,
    region: String,
    source: Source,
    held: Mutex<Option<Credentials>>,
}

impl Client {
    pub fn new(settings: &KmsSettings) -> Result<Self, TrustError> {
        let region = &settings.region;
        let taken = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !(1..=32).contains(&region.len()) || !region.chars().all(taken) {
            let text = format!("region `{}`: expected one like `eu-central-1`", region.escape_debug());
            return Err(TrustError::new(ErrorKind::Invalid, text));
        }
        let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        let own = format!("https://kms.{region}.{suffix}");
        let url = authority_url(settings.endpoint.as_deref().unwrap_or(&own))?;
        let source = Source::new(&settings.credentials, region, suffix)?;
        let http = Http::new(&HttpSettings::default())?;
        Ok(Self { http, url, region: region.clone(), source, held: Mutex::default() })
    }

    /// Credentials that hold for a while.
    pub async fn credentials(&self) -> Result<Credentials, TrustError> {
        let mut held = self.held.lock().await;
        if let Some(credentials) = held.as_ref().filter(|held| !held.nears_its_end(SystemTime::now())) {
            return Ok(credentials.clone());
        }
        let fresh = self.source.fetch(&self.http).await;
        match (fresh, held.as_ref()) {
            (Ok(fresh), _) => Ok(held.insert(fresh).clone()),
            // Those that are held are good for some minutes more.
            (Err(error), Some(old)) if !old.have_ended(SystemTime::now()) => {
                tracing::warn!("credentials of AWS: {error}");
                Ok(old.clone())
            }
            (Err(error), _) => Err(error),
        }
    }

    /// The answer of an operation that must succeed.
    pub async fn ask(&self, operation: &str, body: &Value) -> Result<Value, TrustError> {
        self.call(operation, body).await?.map_err(TrustError::from)
    }

    /// The answer of an operation, or KMS's refusal. Where it asks to wait, it is asked again.
    pub async fn call(&self, operation: &str, body: &Value) -> Result<Result<Value, Refusal>, TrustError> {
        let mut attempt = 1;
        loop {
            let answer = self.send(operation, body).await?;
            let Err(refusal) = &answer else { return Ok(answer) };
            if attempt == ATTEMPTS || !is_passing(&refusal.code) {
                return Ok(answer);
            }
            if refusal.code == "ExpiredTokenException" {
                *self.held.lock().await = None;
            }
            tokio::time::sleep(BACKOFF * 2_u32.pow(attempt - 1)).await;
            attempt += 1;
        }
    }

    async fn send(&self, operation: &str, body: &Value) -> Result<Result<Value, Refusal>, TrustError> {
        let target = format!("TrentService.{operation}");
        let body = body.to_string().into_bytes();
        let mut headers = vec![("content-type", "application/x-amz-json-1.1"), ("x-amz-target", target.as_str())];
        let signed = self.sign(&headers, &body).await?;
        headers.extend(signed.iter().map(|(name, value)| (*name, value.as_str())));
        let request = Request { method: Method::POST, url: &self.url, headers: &headers, body: Some(body) };
        let (status, body) = self.http.send(request, ANSWER_BYTES_MAX).await?;
        let body = Zeroizing::new(body);
        let said = if body.is_empty() { Ok(Value::Null) } else { serde_json::from_slice::<Value>(&body) };
        if status == StatusCode::OK {
            return said.map(Ok).map_err(|error| self.unreadable(&error.to_string()));
        }
        let said = said.unwrap_or_default();
        let text = |names: [&str; 2]| names.iter().find_map(|name| said.get(name)?.as_str()).map(str::to_owned);
        let code = text(["__type", "code"]).unwrap_or_else(|| status.to_string());
        // `com.amazonaws.kms#NotFoundException` as well as the bare name.
        let code = code.rsplit('#').next().unwrap_or_default().to_owned();
        let place = format!("AWS KMS at `{}`, {operation}", origin(&self.url));
        Ok(Err(Refusal { code, message: text(["message", "Message"]).unwrap_or_default(), place }))
    }

    async fn sign(
        &self,
        headers: &[(&'static str, &str)],
        body: &[u8],
    ) -> Result<Vec<(&'static str, Zeroizing<String>)>, TrustError> {
        let failed = |error: String| TrustError::new(ErrorKind::Invalid, format!("signature for AWS: {error}"));
        let identity = self.credentials().await?.identity();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("kms")
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let request =
            SignableRequest::new("POST", self.url.as_str(), headers.iter().copied(), SignableBody::Bytes(body));
        let request = request.map_err(|error| failed(error.to_string()))?;
        let (instructions, _) = sign(request, &params.into()).map_err(|error| failed(error.to_string()))?.into_parts();
        let known = ["authorization", "x-amz-date", "x-amz-security-token", "x-amz-content-sha256"];
        let header = |(name, value): (&str, &str)| {
            let known = known.into_iter().find(|known| *known == name);
            known.map(|name| (name, value.to_owned().into())).ok_or_else(|| failed(format!("header `{name}`")))
        };
        instructions.headers().map(header).collect()
    }

    /// The bytes of a field.
    pub fn bytes(&self, said: &Value, field: &str) -> Result<Vec<u8>, TrustError> {
        let text = said.get(field).and_then(Value::as_str);
        let bytes = text.and_then(|text| BASE64_STANDARD.decode(text).ok());
        bytes.ok_or_else(|| self.unreadable(&format!("no `{field}` in base64")))
    }

    pub fn unreadable(&self, why: &str) -> TrustError {
        TrustError::new(ErrorKind::Unavailable, format!("answer of AWS KMS at `{}`: {why}", origin(&self.url)))
    }
}

/// What may be otherwise in a moment.
fn is_passing(code: &str) -> bool {
    matches!(
        code,
        "ThrottlingException"
            | "ExpiredTokenException"
            | "KMSInternalException"
            | "DependencyTimeoutException"
            | "500 Internal Server Error"
            | "502 Bad Gateway"
            | "503 Service Unavailable"
    )
}

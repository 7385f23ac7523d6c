//! The one HTTP client that identity and key providers ask with: bounded in time and size, without redirects, over TLS.

use std::time::Duration;

use reqwest::{
    Certificate, Client, Method, StatusCode, Url,
    header::{HeaderMap, HeaderName, HeaderValue},
    redirect::Policy,
};

use super::jose::invalid;
use crate::{ErrorKind, TrustError};

/// How to reach an authority.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for a whole answer.
    pub timeout: Duration,
    /// Certificates in PEM that are trusted beside the system's, e.g. those of a cluster or a company.
    pub roots_pem: Option<Vec<u8>>,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self { connect_timeout: Duration::from_secs(2), timeout: Duration::from_secs(5), roots_pem: None }
    }
}

/// What is asked.
pub(crate) struct Request<'a> {
    pub method: Method,
    pub url: &'a Url,
    pub headers: &'a [(&'static str, &'a str)],
    pub body: Option<Vec<u8>>,
}

/// A client; clones share its connections.
#[derive(Clone, Debug)]
pub struct Http {
    client: Client,
}

impl Http {
    /// A client.
    ///
    /// # Errors
    /// `Invalid` where the roots are no certificates.
    pub fn new(settings: &HttpSettings) -> Result<Self, TrustError> {
        let mut builder = Client::builder()
            .connect_timeout(settings.connect_timeout)
            .timeout(settings.timeout)
            .redirect(Policy::none())
            .referer(false)
            .user_agent(concat!("edgeward/", env!("CARGO_PKG_VERSION")));
        if let Some(pem) = &settings.roots_pem {
            let roots = Certificate::from_pem_bundle(pem).map_err(|e| invalid(format!("roots of issuer: {e}")))?;
            if roots.is_empty() {
                return Err(invalid("roots of issuer: no certificate in the PEM file"));
            }
            builder = roots.into_iter().fold(builder, reqwest::ClientBuilder::add_root_certificate);
        }
        let client = builder.build().map_err(|e| invalid(format!("HTTP client: {}", chain(&e))))?;
        Ok(Self { client })
    }

    /// The status and body of an address. An answer longer than `bytes_max` is refused.
    ///
    /// # Errors
    /// `Unavailable` where there is no such answer in time.
    pub(crate) async fn get(
        &self,
        url: &Url,
        headers: &[(&'static str, &str)],
        bytes_max: usize,
    ) -> Result<(StatusCode, Vec<u8>), TrustError> {
        self.send(Request { method: Method::GET, url, headers, body: None }, bytes_max).await
    }

    /// The status and body that a request is answered with. An answer longer than `bytes_max` is refused.
    ///
    /// # Errors
    /// `Unavailable` where there is no such answer in time.
    pub(crate) async fn send(
        &self,
        request: Request<'_>,
        bytes_max: usize,
    ) -> Result<(StatusCode, Vec<u8>), TrustError> {
        let url = request.url;
        let failed = |e: reqwest::Error| unavailable(format!("`{}` did not answer: {}", origin(url), chain(&e)));
        let mut map = HeaderMap::new();
        for (name, value) in request.headers {
            let mut value = HeaderValue::from_str(value).map_err(|_| invalid(format!("value of header `{name}`")))?;
            value.set_sensitive(true);
            map.insert(HeaderName::from_static(name), value);
        }
        let mut builder = self.client.request(request.method, url.clone()).headers(map);
        if let Some(body) = request.body {
            builder = builder.body(body);
        }
        let mut response = builder.send().await.map_err(failed)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > bytes_max {
                return Err(unavailable(format!("answer of `{}` has more than {bytes_max} bytes", origin(url))));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((response.status(), body))
    }
}

/// An address of an authority: TLS, or this machine.
///
/// # Errors
/// `Invalid` for any other.
pub(crate) fn authority_url(text: &str) -> Result<Url, TrustError> {
    let url = Url::parse(text).map_err(|e| invalid(format!("address `{text}`: {e}")))?;
    let loopback = match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    if url.scheme() != "https" && !(url.scheme() == "http" && loopback) {
        return Err(invalid(format!("address `{text}`: expected `https://` (`http://` on loopback only)")));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid("address of an authority has a user or password in it"));
    }
    Ok(url)
}

/// Address without path and query, which may hold a signature.
pub(crate) fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

pub(crate) fn unavailable(message: impl Into<String>) -> TrustError {
    TrustError::new(ErrorKind::Unavailable, message)
}

/// An error with its causes, without the address that it may repeat.
fn chain(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() { "too late".to_owned() } else { String::new() };
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = if text.is_empty() { error.to_string() } else { format!("{text}: {error}") };
        cause = error.source();
    }
    if text.is_empty() { "request failed".to_owned() } else { text }
}

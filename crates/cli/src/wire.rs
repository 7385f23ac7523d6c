//! Connections to a server as a caller makes them, and as an attacker does: any certificate with any key, raw paths, raw bytes.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore, SignatureScheme,
    client::ResolvesClientCert,
    crypto::{CryptoProvider, aws_lc_rs},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::failure::{Failure, OrInput as _};

/// A server that says nothing for so long has not answered.
pub const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A listener of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Whether it speaks TLS, as the operator says.
    pub tls: bool,
    /// Host name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl std::str::FromStr for Listener {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no address; expected one like `https://127.0.0.1:8000`");
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong()),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        if uri.path().trim_matches('/').is_empty() && uri.query().is_none() {
            return Ok(Self { tls, host, port });
        }
        Err(wrong())
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url(""))
    }
}

impl Listener {
    /// As `Host` has it.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// A whole address.
    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

/// A certificate with a key, which need not be its own.
#[derive(Clone)]
pub struct Shown {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn rustls::sign::SigningKey>,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shown({} certificates)", self.chain.len())
    }
}

impl Shown {
    /// Reads a chain and a key in PEM; whether they belong together is not asked.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, Failure> {
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>()?;
        let key = aws_lc_rs::default_provider()
            .key_provider
            .load_private_key(PrivateKeyDer::from_pem_slice(key.as_bytes())?)?;
        Ok(Self { chain, key })
    }

    /// The same chain, with the key of another.
    #[must_use]
    pub fn with_key_of(&self, other: &Self) -> Self {
        Self { chain: self.chain.clone(), key: other.key.clone() }
    }

    /// The same certificate, followed by those of another chain.
    #[must_use]
    pub fn with_chain_of(&self, other: &Self) -> Self {
        Self { chain: self.chain.iter().take(1).chain(&other.chain).cloned().collect(), key: self.key.clone() }
    }

    /// The own certificate, in DER.
    pub fn leaf(&self) -> &[u8] {
        self.chain.first().map_or(&[][..], |leaf| leaf)
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        // Not checked for belonging together: that is the server's to find out.
        Some(Arc::new(CertifiedKey::new(self.chain.clone(), self.key.clone())))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Makes connections.
#[derive(Clone)]
pub struct Dialer {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

/// A stream, over TLS or not.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Dialer {
    /// Believes servers whose certificates lead to these roots, in PEM.
    pub fn new(roots_pem: &[u8]) -> Result<Self, Failure> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(roots_pem) {
            roots.add(root.or_input()?).or_input()?;
        }
        if roots.is_empty() {
            return Err(Failure::input("the roots of the trust folder hold no certificate"));
        }
        Ok(Self { roots: Arc::new(roots), provider: Arc::new(aws_lc_rs::default_provider()) })
    }

    /// A stream to a listener, with a certificate where one is shown.
    pub async fn stream(
        &self,
        to: &Listener,
        shown: Option<&Shown>,
        protocol: &[u8],
    ) -> std::io::Result<Box<dyn Stream>> {
        let tcp = timeout(ANSWER_TIME_MAX, TcpStream::connect((to.host.as_str(), to.port))).await??;
        tcp.set_nodelay(true)?;
        if !to.tls {
            return Ok(Box::new(tcp));
        }
        let config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(std::io::Error::other)?
            .with_root_certificates(self.roots.clone());
        let mut config = match shown {
            Some(shown) => config.with_client_cert_resolver(Arc::new(shown.clone())),
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        let name = ServerName::try_from(to.host.clone()).map_err(std::io::Error::other)?;
        let tls = timeout(ANSWER_TIME_MAX, TlsConnector::from(Arc::new(config)).connect(name, tcp)).await??;
        Ok(Box::new(tls))
    }

    /// A connection that speaks HTTP/1.1.
    pub async fn connect(&self, to: &Listener, shown: Option<&Shown>) -> std::io::Result<Connection> {
        let stream = self.stream(to, shown, b"http/1.1").await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
        tokio::spawn(connection);
        Ok(Connection { sender, to: to.clone() })
    }

    /// One request over a connection of its own.
    pub async fn ask(&self, to: &Listener, shown: Option<&Shown>, call: Call<'_>) -> Reply {
        match self.connect(to, shown).await {
            Ok(mut connection) => connection.ask(call).await,
            Err(error) => Reply::Closed(format!("no connection: {error}")),
        }
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// Method.
    pub method: Method,
    /// Path as it goes over the wire: nothing is normalised.
    pub path: &'a str,
    /// Further lines; one of `host` replaces the right one.
    pub headers: Vec<(&'a str, String)>,
    /// Body.
    pub body: Bytes,
}

impl<'a> Call<'a> {
    /// Reads.
    pub fn get(path: &'a str) -> Self {
        Self { method: Method::GET, path, headers: Vec::new(), body: Bytes::new() }
    }

    /// Sends.
    pub fn post(path: &'a str, body: impl Into<Bytes>) -> Self {
        Self { method: Method::POST, path, headers: Vec::new(), body: body.into() }
    }

    /// With one more line.
    #[must_use]
    pub fn with(mut self, name: &'a str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub enum Reply {
    /// An answer.
    Answered {
        /// Its status.
        status: u16,
        /// Its body.
        body: Bytes,
    },
    /// No answer: the connection was refused, closed or broken, and how.
    Closed(String),
}

impl Reply {
    /// The status; 0 where there was no answer.
    pub fn status(&self) -> u16 {
        match self {
            Self::Answered { status, .. } => *status,
            Self::Closed(_) => 0,
        }
    }

    /// True for success.
    pub fn succeeded(&self) -> bool {
        (200..300).contains(&self.status())
    }

    /// True where the server took the caller for somebody: it answered, and not that it does not know who calls.
    pub fn recognised(&self) -> bool {
        !matches!(self.status(), 0 | 400 | 401 | 421 | 431 | 503)
    }

    /// The body; empty where there was no answer.
    pub fn body(&self) -> &[u8] {
        match self {
            Self::Answered { body, .. } => body,
            Self::Closed(_) => &[],
        }
    }

    /// The body as JSON; null where it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(self.body()).unwrap_or_default()
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered { status, body, .. } => write!(f, "{status}, {} bytes", body.len()),
            Self::Closed(how) => f.write_str(how),
        }
    }
}

/// A connection that is kept.
pub struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    to: Listener,
}

impl Connection {
    /// Asks, and reads the whole answer.
    pub async fn ask(&mut self, call: Call<'_>) -> Reply {
        match timeout(ANSWER_TIME_MAX, self.answer(call)).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => Reply::Closed(error),
            Err(_) => Reply::Closed(format!("no answer in {} s", ANSWER_TIME_MAX.as_secs())),
        }
    }

    async fn answer(&mut self, call: Call<'_>) -> Result<Reply, String> {
        let uri: Uri = call.path.parse().map_err(|error| format!("not sent: {error}"))?;
        let mut request = Request::builder().method(call.method).uri(uri).body(Full::new(call.body));
        let headers = request.as_mut().map_err(|error| format!("not sent: {error}"))?.headers_mut();
        for (name, value) in &call.headers {
            let name = HeaderName::try_from(*name).map_err(|error| format!("not sent: {error}"))?;
            headers.append(name, HeaderValue::try_from(value.as_str()).map_err(|error| format!("not sent: {error}"))?);
        }
        if !headers.contains_key(http::header::HOST) {
            let host = HeaderValue::try_from(self.to.authority()).map_err(|error| format!("not sent: {error}"))?;
            headers.insert(http::header::HOST, host);
        }
        let request = request.map_err(|error| format!("not sent: {error}"))?;
        let closed = |error: hyper::Error| {
            let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
            format!("closed: {error}{cause}")
        };
        self.sender.ready().await.map_err(closed)?;
        let (parts, body) = self.sender.send_request(request).await.map_err(closed)?.into_parts();
        let body = http_body_util::Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| format!("{}, then broken off: {error}", parts.status.as_u16()))?.to_bytes();
        Ok(Reply::Answered { status: parts.status.as_u16(), body })
    }
}

/// Sends bytes as they are, and reads what comes back first.
pub async fn raw(to: &Listener, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut tcp = timeout(ANSWER_TIME_MAX, TcpStream::connect((to.host.as_str(), to.port))).await??;
    tcp.write_all(bytes).await?;
    let mut answer = vec![0; 4096];
    let read = timeout(ANSWER_TIME_MAX, tcp.read(&mut answer)).await??;
    answer.truncate(read);
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let listener: Listener = "https://[::1]:8000/".parse().unwrap();
        assert_eq!((listener.authority().as_str(), listener.tls), ("[::1]:8000", true));
        assert_eq!("http://localhost".parse::<Listener>().unwrap().url("/v2"), "http://localhost:80/v2");
        for wrong in ["", "localhost:8000", "ftp://a", "https://", "https://a/v2", "https://a?b"] {
            let error = wrong.parse::<Listener>().unwrap_err();
            assert!(error.contains(&format!("`{wrong}`")), "{error}");
        }
    }
}

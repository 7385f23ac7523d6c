//! Who asks, as an identity provider has verified it.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL};
use sha2::{Digest as _, Sha256};

/// A verified caller. Made by identity providers only; what it may do is the policy's word.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Principal {
    /// Unique among all methods: a SPIFFE ID, `ISSUER#SUBJECT` of OIDC, an AWS ARN, `local:NAME` of the local authority.
    pub id: String,
    /// How the identity was shown.
    pub method: Method,
    /// How much the method proves.
    pub strength: Strength,
    /// The organisation that the caller belongs to, where the credential says it.
    pub tenant: Option<String>,
    /// Groups and roles that the issuer vouches for.
    pub groups: Vec<String>,
    /// Further claims of the credential, as text.
    pub claims: BTreeMap<String, String>,
    /// The client's key that the credential is bound to; a caller without this key is somebody else.
    pub bound_to: Option<Thumbprint>,
    /// When the credential ends.
    pub expires_at: SystemTime,
}

impl Principal {
    /// The claim that names the session of this server that a principal speaks in.
    pub const SESSION: &str = "session";

    /// The claim with the serial number of a certificate, in hexadecimal.
    pub const SERIAL: &str = "serial";
    /// The claim that says since when the credential holds, in seconds since 1970.
    pub const SINCE: &str = "since";

    /// The claim of a session with the thumbprint of the key that its credential was bound to, where the session is bound to another.
    pub const CREDENTIAL_KEY: &str = "credential_key";

    /// The keys that it stands on: the one that its credential is bound to, and that of the credential which a session was opened with.
    pub fn keys(&self) -> impl Iterator<Item = Thumbprint> + use<> {
        let before = self.claims.get(Self::CREDENTIAL_KEY).and_then(|text| Thumbprint::from_base64url(text));
        self.bound_to.into_iter().chain(before)
    }

    /// The serial number of the certificate that it has shown.
    pub fn serial(&self) -> Option<&str> {
        self.claims.get(Self::SERIAL).map(String::as_str)
    }

    /// Since when its session or certificate holds.
    pub fn since(&self) -> Option<SystemTime> {
        let seconds = self.claims.get(Self::SINCE)?.parse().ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    }

    /// The session of this server that it speaks in.
    pub fn session(&self) -> Option<&str> {
        self.claims.get(Self::SESSION).map(String::as_str)
    }
}

/// How an identity was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// An X.509-SVID over mutual TLS (SPIFFE).
    Spiffe,
    /// A token of an OpenID provider.
    Oidc,
    /// A pre-signed `GetCallerIdentity` of AWS.
    AwsIam,
    /// A certificate or token of the local authority.
    Local,
}

/// What a credential proves about its holder, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strength {
    /// Whoever has the token is taken for its owner.
    Bearer,
    /// The holder has shown the key that the credential is bound to (RFC 8705, RFC 9449).
    KeyBound,
    /// Beside the key, the workload or device was attested.
    Attested,
}

/// SHA-256 of a client's certificate in DER (RFC 8705) or of its key as a JWK (RFC 7638).
#[derive(Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Thumbprint(pub [u8; 32]);

impl Thumbprint {
    /// Of a certificate in DER: `x5t#S256`.
    pub fn of_certificate(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }

    /// As tokens spell it: base64url without padding, in its one canonical form.
    pub fn from_base64url(text: &str) -> Option<Self> {
        BASE64URL.decode(text).ok()?.try_into().ok().map(Self)
    }

    /// As tokens spell it.
    pub fn to_base64url(self) -> String {
        BASE64URL.encode(self.0)
    }
}

impl fmt::Debug for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

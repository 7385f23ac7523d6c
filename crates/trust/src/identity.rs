//! Who calls: credentials of other authorities, verified.
//!
//! A provider turns a credential and what is known of its connection into a [`Principal`], or refuses. What the principal may do is the
//! policy's word, and whether it was revoked since is the registry's.

pub mod aws;
pub(crate) mod binding;
pub mod dpop;
pub(crate) mod http;
pub mod jose;
pub mod oidc;
pub mod replay;
pub mod spiffe;

use std::{sync::Arc, time::SystemTime};

use futures_util::future::BoxFuture;
use rustls_pki_types::CertificateDer;

pub use self::http::{Http, HttpSettings};
use self::jose::unverified;
use crate::{Principal, Thumbprint, TrustError};

/// What a caller shows.
#[derive(Clone, Copy, Debug)]
pub enum Credential<'a> {
    /// The client certificate of the connection.
    Certificate,
    /// `Authorization: Bearer TOKEN`.
    Bearer(&'a str),
    /// `Authorization: DPoP TOKEN` with the header `DPoP: PROOF`.
    Dpop {
        /// The access token.
        token: &'a str,
        /// The proof that the caller has its key.
        proof: &'a str,
    },
    /// A token that is exchanged for a session (RFC 8693).
    Subject {
        /// The token to exchange.
        token: &'a str,
        /// The key that the exchange's own, verified proof has shown.
        shown: Option<Thumbprint>,
    },
}

impl<'a> Credential<'a> {
    /// The token, where it is one.
    pub fn token(&self) -> Option<&'a str> {
        match *self {
            Self::Certificate => None,
            Self::Bearer(token) | Self::Dpop { token, .. } | Self::Subject { token, .. } => Some(token),
        }
    }
}

/// What is known of the connection and request that a credential came with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Connection<'a> {
    /// Client certificates of the handshake in DER, the caller's own first. The handshake has proven its key, nothing else.
    pub certificates: &'a [CertificateDer<'a>],
    /// HTTP method.
    pub method: &'a str,
    /// Whole address, as the client sees it.
    pub url: &'a str,
}

impl Connection<'_> {
    /// Thumbprint of the client's certificate (RFC 8705 section 3.1).
    pub fn certificate_thumbprint(&self) -> Option<Thumbprint> {
        self.certificates.first().map(|der| Thumbprint::of_certificate(der))
    }
}

/// Verifies the credentials of one authority.
pub trait IdentityProvider: Send + Sync {
    /// What to call it in errors and logs.
    fn name(&self) -> &str;

    /// Whether a credential says that it is of this authority. Proves nothing; at most reads.
    fn claims(&self, credential: &Credential<'_>) -> bool;

    /// Verifies a credential at a time.
    fn verify<'a>(
        &'a self,
        credential: Credential<'a>,
        connection: Connection<'a>,
        now: SystemTime,
    ) -> Verification<'a>;
}

/// A principal, now or after a word with an outside part.
pub enum Verification<'a> {
    /// Decided with what is at hand.
    Done(Result<Principal, TrustError>),
    /// The authority must be asked (its keys, or the token itself).
    Asks(BoxFuture<'a, Result<Principal, TrustError>>),
}

impl Verification<'_> {
    /// Waits where it must.
    ///
    /// # Errors
    /// Those of the provider.
    pub async fn resolve(self) -> Result<Principal, TrustError> {
        match self {
            Self::Done(result) => result,
            Self::Asks(future) => future.await,
        }
    }
}

impl From<Result<Principal, TrustError>> for Verification<'_> {
    fn from(result: Result<Principal, TrustError>) -> Self {
        Self::Done(result)
    }
}

/// All authorities that a server believes.
#[derive(Clone, Default)]
pub struct Identities {
    providers: Vec<Arc<dyn IdentityProvider>>,
}

impl Identities {
    /// Authorities, asked in this order.
    pub fn new(providers: Vec<Arc<dyn IdentityProvider>>) -> Self {
        Self { providers }
    }

    /// Lets the authority that a credential names verify it. Exactly one is asked: a token that fails with its own authority is not
    /// tried with another.
    ///
    /// # Errors
    /// `Unverified` where no authority here is named, else the provider's.
    pub fn verify<'a>(
        &'a self,
        credential: Credential<'a>,
        connection: Connection<'a>,
        now: SystemTime,
    ) -> Verification<'a> {
        match self.providers.iter().find(|provider| provider.claims(&credential)) {
            Some(provider) => provider.verify(credential, connection, now),
            None => Verification::Done(Err(unverified(format!(
                "credential is of no authority that is configured ({})",
                self.providers.iter().map(|p| p.name()).collect::<Vec<_>>().join(", ")
            )))),
        }
    }
}

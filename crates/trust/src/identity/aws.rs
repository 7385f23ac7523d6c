//! AWS IAM: a caller shows who it is by a request that only it can sign, `sts:GetCallerIdentity`, which this server sends for it.
//!
//! As Vault's AWS login and EKS do. The request is signed with the header `x-edgeward-server`, so that one made for another server is of
//! no use here. It counts once and only in exchange for a session: a signature that is good for minutes is no credential for calls.

mod presigned;
mod sts;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use reqwest::{StatusCode, Url};

use self::presigned::Presigned;
use super::{
    Connection, Credential, IdentityProvider, Verification,
    http::{Http, authority_url, origin, unavailable},
    jose::{invalid, unverified},
    replay::ReplayCache,
};
use crate::{Method, Principal, Strength, TrustError};

/// The header that binds a request to a server. Its value is [`AwsSettings::server_id`].
pub const SERVER_HEADER: &str = "x-edgeward-server";
/// How a token begins; the address of the pre-signed request follows as base64url without padding.
pub const TOKEN_PREFIX: &str = "edgeward-aws-v1.";

const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// Which accounts are believed, and where AWS is.
#[derive(Clone, Debug)]
pub struct AwsSettings {
    /// The name of this server, which callers sign.
    pub server_id: String,
    /// Accounts and the organisation of each. Others are refused: anybody can have an account.
    pub accounts: BTreeMap<String, String>,
    /// Addresses of STS that a request may be for.
    pub endpoints: Vec<String>,
    /// Longest validity of a request.
    pub validity_max: Duration,
    /// How far a caller's clock may be ahead.
    pub clock_skew: Duration,
    /// Requests that are remembered against replay.
    pub replay_entries_max: usize,
}

impl AwsSettings {
    /// STS of some regions (and the global one), for requests of at most 15 minutes.
    pub fn new(server_id: impl Into<String>, accounts: BTreeMap<String, String>, regions: &[&str]) -> Self {
        let regional = regions.iter().map(|region| format!("https://sts.{region}.amazonaws.com"));
        Self {
            server_id: server_id.into(),
            accounts,
            endpoints: std::iter::once("https://sts.amazonaws.com".to_owned()).chain(regional).collect(),
            validity_max: Duration::from_secs(900),
            clock_skew: Duration::from_secs(60),
            replay_entries_max: 100_000,
        }
    }
}

/// Verifies pre-signed requests with AWS.
pub struct Aws {
    settings: AwsSettings,
    endpoints: Vec<Url>,
    http: Http,
    replay: ReplayCache,
}

impl Aws {
    /// A verifier.
    ///
    /// # Errors
    /// `Invalid` where an endpoint is no address of TLS, the server has no name, or no account is believed.
    pub fn new(settings: AwsSettings, http: Http) -> Result<Self, TrustError> {
        if settings.server_id.is_empty() || settings.accounts.is_empty() {
            return Err(invalid("AWS identities need a server ID and at least one account"));
        }
        let endpoints = settings.endpoints.iter().map(|text| authority_url(text)).collect::<Result<_, _>>()?;
        let replay = ReplayCache::new(settings.replay_entries_max);
        Ok(Self { settings, endpoints, http, replay })
    }

    async fn ask(&self, request: Presigned, now: SystemTime) -> Result<Principal, TrustError> {
        let headers = [(SERVER_HEADER, self.settings.server_id.as_str()), ("accept", "text/xml")];
        let (status, body) = self.http.get(&request.url, &headers, ANSWER_BYTES_MAX).await?;
        match status {
            StatusCode::OK => {}
            status if status.is_client_error() => {
                let code = sts::error_code(&body).unwrap_or_default();
                return Err(unverified(format!(
                    "AWS does not believe the request: {status} `{}`",
                    code.escape_debug()
                )));
            }
            status => return Err(unavailable(format!("`{}` answered {status}", origin(&request.url)))),
        }
        let caller = sts::Caller::parse(&body)?;
        let tenant = self.settings.accounts.get(&caller.account);
        let tenant =
            tenant.ok_or_else(|| unverified(format!("AWS account `{}` is not believed here", caller.account)))?;
        // Of two that show the same request at the same time, both may be answered by AWS; one is taken.
        self.replay.take(b"aws", &request.signature, request.expires_at + self.settings.clock_skew, now)?;
        Ok(Principal {
            id: caller.principal_arn(),
            method: Method::AwsIam,
            strength: Strength::Bearer,
            tenant: Some(tenant.clone()),
            groups: Vec::new(),
            claims: BTreeMap::from([
                ("arn".to_owned(), caller.arn),
                ("account".to_owned(), caller.account),
                ("user_id".to_owned(), caller.user_id),
            ]),
            bound_to: None,
            expires_at: request.expires_at,
        })
    }
}

impl IdentityProvider for Aws {
    fn name(&self) -> &str {
        "aws"
    }

    fn claims(&self, credential: &Credential<'_>) -> bool {
        credential.token().is_some_and(|token| token.starts_with(TOKEN_PREFIX))
    }

    fn verify<'a>(&'a self, credential: Credential<'a>, _: Connection<'a>, now: SystemTime) -> Verification<'a> {
        let Credential::Subject { token, .. } = credential else {
            return Err(unverified("a pre-signed request of AWS is exchanged for a session, not sent with calls"))
                .into();
        };
        match Presigned::parse(token, &self.endpoints, &self.settings, now) {
            Ok(request) => Verification::Asks(Box::pin(self.ask(request, now))),
            Err(error) => Err(error).into(),
        }
    }
}

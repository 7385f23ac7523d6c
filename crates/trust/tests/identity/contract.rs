//! The contract of `IdentityProvider`: each implementation makes every case below, or says why it cannot exist there.

use std::time::{Duration, SystemTime};

use edgeward_trust::{
    ErrorKind, Principal, TrustError,
    identity::{Connection, Credential, Identities, IdentityProvider},
};
use rustls_pki_types::CertificateDer;

/// What is wrong with a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    Valid,
    Expired,
    NotYetValid,
    /// Signed by an authority of its own that says to be the known one.
    WrongAuthority,
    /// By a known authority, for another server.
    WrongAudience,
    Tampered,
    AlgorithmNone,
    /// HS256, with the authority's public key as the secret.
    HmacWithPublicKey,
    /// The header names another family than the key's.
    OtherFamily,
    UnknownKey,
    /// A second use of what may be used once.
    Replay,
    /// Used by somebody without the key.
    Stolen,
    /// Expired by less than clocks may differ.
    InsideSkew,
    /// Expired by more.
    OutsideSkew,
    Huge,
    CriticalExtension,
}

pub const CASES: &[(Case, Expected)] = &[
    (Case::Valid, Ok(())),
    (Case::Expired, Err(ErrorKind::Expired)),
    (Case::NotYetValid, Err(ErrorKind::Expired)),
    (Case::WrongAuthority, Err(ErrorKind::Unverified)),
    (Case::WrongAudience, Err(ErrorKind::Unverified)),
    (Case::Tampered, Err(ErrorKind::Unverified)),
    (Case::AlgorithmNone, Err(ErrorKind::Unverified)),
    (Case::HmacWithPublicKey, Err(ErrorKind::Unverified)),
    (Case::OtherFamily, Err(ErrorKind::Unverified)),
    (Case::UnknownKey, Err(ErrorKind::Unverified)),
    (Case::Replay, Err(ErrorKind::Unverified)),
    (Case::Stolen, Err(ErrorKind::Unverified)),
    (Case::InsideSkew, Ok(())),
    (Case::OutsideSkew, Err(ErrorKind::Expired)),
    (Case::Huge, Err(ErrorKind::Unverified)),
    (Case::CriticalExtension, Err(ErrorKind::Unverified)),
];

pub type Expected = Result<(), ErrorKind>;

/// A credential with its connection and the time of its use.
#[derive(Clone, Default)]
pub struct Shown {
    pub token: Option<String>,
    pub proof: Option<String>,
    /// Shown as the token to exchange, not with a call.
    pub subject: bool,
    pub chain: Vec<CertificateDer<'static>>,
    pub url: String,
    pub at: Option<SystemTime>,
    /// It is shown once before, which must succeed.
    pub twice: bool,
}

impl Shown {
    pub async fn verify(&self, provider: &dyn IdentityProvider, now: SystemTime) -> Result<Principal, TrustError> {
        let connection = Connection { certificates: &self.chain, method: "POST", url: &self.url };
        provider.verify(self.credential(), connection, self.at.unwrap_or(now)).resolve().await
    }

    pub fn credential(&self) -> Credential<'_> {
        match (&self.token, &self.proof) {
            (Some(token), _) if self.subject => Credential::Subject { token, shown: None },
            (Some(token), Some(proof)) => Credential::Dpop { token, proof },
            (Some(token), None) => Credential::Bearer(token),
            (None, _) => Credential::Certificate,
        }
    }
}

/// Makes credentials of one kind.
pub trait Maker {
    /// None where the case cannot exist for this kind.
    fn make(&self, case: Case) -> Option<Shown>;

    /// The cases that cannot exist, so that none is left out by mistake.
    fn absent(&self) -> &[Case];
}

/// Runs every case; reports all rows that fail.
pub async fn holds(provider: &dyn IdentityProvider, maker: &dyn Maker, now: SystemTime) {
    let mut wrong = Vec::new();
    for (case, expected) in CASES {
        let Some(shown) = maker.make(*case) else {
            assert!(maker.absent().contains(case), "{}: {case:?} is missing", provider.name());
            continue;
        };
        assert!(!maker.absent().contains(case), "{}: {case:?} is made, though said to be absent", provider.name());
        if shown.twice {
            shown.verify(provider, now).await.unwrap();
        }
        let got = shown.verify(provider, now).await;
        if got.as_ref().map(|_| ()).map_err(TrustError::kind) != *expected {
            wrong.push(format!("{case:?}: expected {expected:?}, got {got:?}"));
        }
        if let Ok(principal) = got {
            assert!(!principal.id.is_empty());
            assert!(principal.expires_at + Duration::from_secs(60) > now);
        }
    }
    for (text, shown) in garbage(maker) {
        match shown.verify(provider, now).await {
            Err(error) if matches!(error.kind(), ErrorKind::Unverified | ErrorKind::Expired) => {}
            other => wrong.push(format!("garbage {text}: {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", provider.name(), wrong.join("\n"));
}

/// The valid credential, cut and bent in every way that a byte allows.
fn garbage(maker: &dyn Maker) -> Vec<(String, Shown)> {
    let valid = maker.make(Case::Valid).unwrap();
    let mut all = Vec::new();
    if let Some(token) = &valid.token {
        let with = |token: String| Shown { token: Some(token), ..valid.clone() };
        let texts = ["", ".", "..", "...", "a.b.c", "e30.e30.", "e30.e30.e30", "\u{0}.\u{fffd}.é"];
        all.extend(texts.map(|t| (format!("{t:?}"), with(t.to_owned()))));
        for at in 0..token.len() {
            all.push((format!("cut at {at}"), with(token[..at].to_owned())));
            let mut bent = token.clone().into_bytes();
            bent[at] = if bent[at] == b'A' { b'B' } else { b'A' };
            all.push((format!("bent at {at}"), with(String::from_utf8(bent).unwrap())));
        }
    } else {
        for at in 0..valid.chain[0].len() {
            let mut bent = valid.chain[0].to_vec();
            bent[at] ^= 1;
            let cut = valid.chain[0][..at].to_vec();
            for (what, der) in [("bent", bent), ("cut", cut)] {
                let mut chain = valid.chain.clone();
                chain[0] = CertificateDer::from(der);
                all.push((format!("{what} at {at}"), Shown { chain, ..valid.clone() }));
            }
        }
    }
    all
}

#[tokio::test]
async fn a_server_without_authorities_refuses_everybody() {
    let none = Identities::default();
    for credential in [Credential::Certificate, Credential::Bearer("a.b.c"), Credential::Bearer("")] {
        let refused = none.verify(credential, Connection::default(), SystemTime::now()).resolve().await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unverified);
    }
}

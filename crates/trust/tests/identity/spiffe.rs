//! X.509-SVIDs made by `rcgen`, and what the standard says about them.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use edgeward_trust::{
    ErrorKind, Method, Strength, Thumbprint,
    identity::{
        Connection, Credential, IdentityProvider as _,
        spiffe::{DomainSettings, Spiffe, SpiffeId, TrustBundles},
    },
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, string::Ia5String,
};
use rustls_pki_types::CertificateDer;

use super::contract::{self, Case, Maker, Shown};

const HOUR: Duration = Duration::from_secs(3600);

pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        Self::until(SystemTime::now() + 1000 * HOUR)
    }

    fn until(not_after: SystemTime) -> Self {
        let mut params = CertificateParams::default();
        params.not_after = not_after.into();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "authority");
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub fn leaf(&self, params: CertificateParams) -> CertificateDer<'static> {
        params.signed_by(&KeyPair::generate().unwrap(), &self.issuer).unwrap().der().clone()
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text).unwrap())
}

pub fn svid(ids: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = ids.iter().map(|id| uri(id)).collect();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let now = SystemTime::now();
    params.not_before = (now - HOUR).into();
    params.not_after = (now + HOUR).into();
    params
}

fn bundles(pem: &str) -> TrustBundles {
    let bundles = TrustBundles::new();
    bundles.set("plant.example", pem.as_bytes()).unwrap();
    bundles
}

const ID: &str = "spiffe://plant.example/line-3/camera";

struct Svids {
    known: Authority,
    other: Authority,
}

impl Maker for Svids {
    fn make(&self, case: Case) -> Option<Shown> {
        let now = SystemTime::now();
        let mut chain = vec![self.known.leaf(svid(&[ID]))];
        let mut at = now;
        match case {
            Case::Valid => {}
            Case::Expired => at = now + 2 * HOUR,
            Case::NotYetValid => at = now - 2 * HOUR,
            Case::WrongAuthority => chain = vec![self.other.leaf(svid(&[ID]))],
            Case::Tampered => {
                let mut der = chain[0].to_vec();
                let position = der.windows(6).position(|w| w == b"camera").unwrap();
                der[position] = b'k';
                chain = vec![der.into()];
            }
            Case::UnknownKey => chain = vec![self.other.leaf(svid(&["spiffe://other.example/line-3/camera"]))],
            Case::Huge => chain = vec![chain[0].clone(); 100],
            // A handshake fails without the key, and certificates have none of the rest.
            _ => return None,
        }
        Some(Shown { chain, at: Some(at), ..Shown::default() })
    }

    fn absent(&self) -> &[Case] {
        use Case::*;
        &[
            WrongAudience,
            AlgorithmNone,
            HmacWithPublicKey,
            OtherFamily,
            Replay,
            Stolen,
            InsideSkew,
            OutsideSkew,
            CriticalExtension,
        ]
    }
}

#[tokio::test]
async fn the_contract_holds_for_certificates() {
    let maker = Svids { known: Authority::new(), other: Authority::new() };
    let provider = Spiffe::new(bundles(&maker.known.pem()), BTreeMap::new());
    contract::holds(&provider, &maker, SystemTime::now()).await;
}

async fn verify(
    provider: &Spiffe,
    chain: &[CertificateDer<'static>],
) -> Result<edgeward_trust::Principal, edgeward_trust::TrustError> {
    let connection = Connection { certificates: chain, ..Connection::default() };
    provider.verify(Credential::Certificate, connection, SystemTime::now()).resolve().await
}

#[tokio::test]
async fn a_workload_is_known_by_its_id_its_domain_is_its_organisation() {
    let authority = Authority::new();
    let settings =
        DomainSettings { tenant: Some("plant".into()), strength: Strength::Attested, method: Method::Spiffe };
    let provider = Spiffe::new(bundles(&authority.pem()), BTreeMap::from([("plant.example".to_owned(), settings)]));
    let chain = [authority.leaf(svid(&[ID]))];
    let principal = verify(&provider, &chain).await.unwrap();
    assert_eq!((principal.id.as_str(), principal.tenant.as_deref()), (ID, Some("plant")));
    assert_eq!((principal.method, principal.strength), (Method::Spiffe, Strength::Attested));
    assert_eq!(principal.bound_to, Some(Thumbprint::of_certificate(&chain[0])));
    assert_eq!(principal.claims["path"], "/line-3/camera");
}

#[tokio::test]
async fn what_is_no_svid_is_refused() {
    let authority = Authority::new();
    let provider = Spiffe::new(bundles(&authority.pem()), BTreeMap::new());
    let with = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = svid(&[ID]);
        change(&mut params);
        authority.leaf(params)
    };
    let rows = [
        ("no URI name", authority.leaf(svid(&[]))),
        ("two URI names", authority.leaf(svid(&[ID, "spiffe://plant.example/other"]))),
        ("a domain of its own", authority.leaf(svid(&["spiffe://plant.example"]))),
        ("another scheme", authority.leaf(svid(&["https://plant.example/line-3"]))),
        ("another domain", authority.leaf(svid(&["spiffe://bank.example/line-3"]))),
        ("dots", authority.leaf(svid(&["spiffe://plant.example/a/../b"]))),
        ("an authority", with(&|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
        ("signs certificates", with(&|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign))),
        ("signs lists", with(&|p| p.key_usages.push(KeyUsagePurpose::CrlSign))),
        ("no signatures", with(&|p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment])),
        ("for servers only", with(&|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])),
        ("DNS name only", with(&|p| p.subject_alt_names = vec![SanType::DnsName("plant.example".try_into().unwrap())])),
    ];
    let mut taken = Vec::new();
    for (what, leaf) in rows {
        match verify(&provider, &[leaf]).await {
            Err(error) if error.kind() == ErrorKind::Unverified => {}
            other => taken.push(format!("{what}: {other:?}")),
        }
    }
    assert!(taken.is_empty(), "{}", taken.join("\n"));
    assert!(verify(&provider, &[]).await.is_err());
}

#[tokio::test]
async fn roots_overlap_and_a_bad_bundle_leaves_the_old_one() {
    let (old, new) = (Authority::new(), Authority::new());
    let (by_old, by_new) = ([old.leaf(svid(&[ID]))], [new.leaf(svid(&[ID]))]);
    let provider = Spiffe::new(bundles(&old.pem()), BTreeMap::new());
    assert!(verify(&provider, &by_new).await.is_err());

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bundle.pem");
    std::fs::write(&file, old.pem() + &new.pem()).unwrap();
    provider.bundles().set_from_file("plant.example", &file).unwrap();
    assert!(verify(&provider, &by_old).await.is_ok() && verify(&provider, &by_new).await.is_ok());

    for bad in
        [&b""[..], b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"{\"keys\":[]}", b"{", b"\xff"]
    {
        assert_eq!(provider.bundles().set("plant.example", bad).unwrap_err().kind(), ErrorKind::Invalid);
    }
    assert!(verify(&provider, &by_old).await.is_ok());

    provider.bundles().set("plant.example", new.pem().as_bytes()).unwrap();
    assert!(verify(&provider, &by_old).await.is_err() && verify(&provider, &by_new).await.is_ok());
    provider.bundles().remove("plant.example");
    assert!(verify(&provider, &by_new).await.is_err());
}

#[tokio::test]
async fn a_root_is_an_authority_and_ends() {
    let (ended, leaf) = (Authority::until(SystemTime::now() - HOUR), Authority::new().leaf(svid(&[ID])));
    let provider = Spiffe::new(bundles(&ended.pem()), BTreeMap::new());
    let refused = verify(&provider, &[ended.leaf(svid(&[ID]))]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unverified);
    // A workload's certificate among the roots would let that workload speak for its domain.
    let json = serde_json::json!({ "keys": [{ "use": "x509-svid", "x5c": [BASE64_STANDARD.encode(&leaf)] }] });
    assert_eq!(
        provider.bundles().set("plant.example", json.to_string().as_bytes()).unwrap_err().kind(),
        ErrorKind::Invalid
    );
}

#[tokio::test]
async fn a_bundle_may_be_in_the_json_of_spiffe() {
    let authority = Authority::new();
    let der = BASE64_STANDARD.encode(authority.issuer.der());
    let json = serde_json::json!({ "spiffe_sequence": 1, "keys": [
        { "use": "jwt-svid", "kty": "EC", "kid": "a", "crv": "P-256", "x": "", "y": "" },
        { "use": "x509-svid", "kty": "EC", "crv": "P-256", "x": "", "y": "", "x5c": [der] },
    ]});
    let provider = Spiffe::new(bundles(&json.to_string()), BTreeMap::new());
    assert!(verify(&provider, &[authority.leaf(svid(&[ID]))]).await.is_ok());
}

#[test]
fn ids_have_one_spelling() {
    for good in ["spiffe://a", "spiffe://a.b-c_1/x", "spiffe://a/B/c.d-_/..."] {
        assert_eq!(SpiffeId::parse(good).unwrap().to_string(), good);
    }
    let long = format!("spiffe://a/{}", "b".repeat(2048));
    let bad = [
        "",
        "spiffe:/a",
        "SPIFFE://a/b",
        "spiffe://",
        "spiffe:///b",
        "spiffe://A/b",
        "spiffe://a/",
        "spiffe://a//b",
        "spiffe://a/./b",
        "spiffe://a/b/",
        "spiffe://a/b?c",
        "spiffe://a/b#c",
        "spiffe://a:1/b",
        "spiffe://u@a/b",
        "spiffe://a/%41",
        "spiffe://a/é",
        &long,
    ];
    for text in bad {
        assert_eq!(SpiffeId::parse(text).unwrap_err().kind(), ErrorKind::Unverified, "{text}");
    }
}

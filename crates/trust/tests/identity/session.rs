//! Sessions and the exchange of credentials for them.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use edgeward_trust::{
    ErrorKind, Method, Principal, Strength, Thumbprint, TrustError,
    identity::{
        Connection, Credential, Identities, IdentityProvider,
        dpop::Dpop,
        jose::Algorithm,
        oidc::{Oidc, OidcSettings},
        spiffe::{Spiffe, TrustBundles},
    },
    revocation::{Revocations, Revoked},
    session::{
        Exchange, ExchangeRequest, ExchangeResponse, LocalSigner, SessionKey, SessionSettings, Sessions,
        TokenSigner as _, oauth_error,
    },
};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use super::{
    contract::{self, Case, Maker, Shown},
    dpop::proof,
    issuer::Site,
    keys::{Key, hmac_token, message},
    oidc::{AUDIENCE, URL, claims, http, seconds},
    spiffe::{Authority, svid},
};

const ISSUER: &str = "https://edge.example/sessions";
const EXCHANGE: &str = "https://edge.example/token";

fn sessions(algorithm: Algorithm, dpop: &Arc<Dpop>) -> Sessions {
    let signer = Arc::new(LocalSigner::generate(algorithm).unwrap());
    Sessions::new(SessionSettings::new(ISSUER, AUDIENCE), signer, Arc::clone(dpop)).unwrap()
}

fn principal(now: SystemTime) -> Principal {
    Principal {
        id: "https://issuer.example#camera".into(),
        method: Method::Oidc,
        strength: Strength::Bearer,
        tenant: Some("plant".into()),
        groups: vec!["line-3".into()],
        claims: BTreeMap::from([("scope".into(), "infer".into())]),
        bound_to: None,
        expires_at: now + Duration::from_secs(600),
    }
}

struct Made {
    algorithm: Algorithm,
    /// The same name, another key.
    other: Sessions,
    /// The same key, other names.
    elsewhere: Sessions,
    sessions: Sessions,
    key: Key,
    now: SystemTime,
}

impl Made {
    fn new(algorithm: Algorithm) -> Self {
        let dpop = super::oidc::dpop();
        let der = match algorithm {
            Algorithm::Es256 => rcgen::KeyPair::generate().unwrap().serialize_der(),
            _ => rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_der(),
        };
        let signer = || Arc::new(LocalSigner::from_pkcs8(algorithm, &der).unwrap());
        let make = |audience: &str| {
            Sessions::new(SessionSettings::new(ISSUER, audience), signer(), Arc::clone(&dpop)).unwrap()
        };
        let (elsewhere, here) = (make("https://bank.example"), make(AUDIENCE));
        let other = sessions(algorithm, &dpop);
        Self { algorithm, other, elsewhere, sessions: here, key: Key::p256(), now: SystemTime::now() }
    }

    fn token(&self, sessions: &Sessions, now: SystemTime) -> String {
        let key = SessionKey::Proof(Thumbprint::from_base64url(&super::dpop::thumbprint(&self.key)).unwrap());
        futures_util::FutureExt::now_or_never(sessions.open(&principal(now), key, now)).unwrap().unwrap().token
    }

    /// Header and claims of a good session, to forge others from.
    fn parts(&self) -> (Value, Value) {
        use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
        let token = self.token(&self.sessions, self.now);
        let mut parts =
            token.split('.').map(|part| serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).unwrap()));
        (parts.next().unwrap().unwrap(), parts.next().unwrap().unwrap())
    }
}

impl Maker for Made {
    fn make(&self, case: Case) -> Option<Shown> {
        let good = || self.token(&self.sessions, self.now);
        let (mut header, mut claims) = self.parts();
        let mut at = self.now;
        let thief = Key::p256();
        let token = match case {
            Case::Valid | Case::Replay | Case::Stolen => good(),
            Case::Expired => {
                at = self.now + Duration::from_secs(3600);
                good()
            }
            Case::InsideSkew | Case::OutsideSkew => {
                at = self.now + Duration::from_secs(if case == Case::InsideSkew { 602 } else { 608 });
                good()
            }
            Case::NotYetValid => self.token(&self.sessions, self.now + Duration::from_secs(60)),
            Case::WrongAuthority => self.token(&self.other, self.now),
            Case::WrongAudience => self.token(&self.elsewhere, self.now),
            Case::Tampered => {
                claims["groups"] = json!(["admins"]);
                format!("{}.{}", message(&header, &claims), good().rsplit('.').next()?)
            }
            Case::AlgorithmNone => {
                header["alg"] = json!("none");
                format!("{}.", message(&header, &claims))
            }
            Case::HmacWithPublicKey => {
                header["alg"] = json!("HS256");
                hmac_token(&header, &claims, self.sessions.jwks()["keys"][0].to_string().as_bytes())
            }
            Case::OtherFamily => {
                header["alg"] = json!(if self.algorithm == Algorithm::Es256 { "EdDSA" } else { "ES256" });
                format!("{}.{}", message(&header, &claims), good().rsplit('.').next()?)
            }
            Case::UnknownKey => {
                header["kid"] = json!("another");
                thief.token(&header, &claims)
            }
            Case::Huge => format!("{}{}", good(), "A".repeat(100_000)),
            Case::CriticalExtension => {
                header["crit"] = json!(["exp"]);
                thief.token(&header, &claims)
            }
        };
        let holder = if case == Case::Stolen { &thief } else { &self.key };
        let proof = Some(proof(holder, "POST", URL, Some(&token), at));
        Some(Shown {
            token: Some(token),
            proof,
            at: Some(at),
            url: URL.into(),
            twice: case == Case::Replay,
            ..Shown::default()
        })
    }

    fn absent(&self) -> &[Case] {
        &[]
    }
}

#[tokio::test]
async fn the_contract_holds_for_sessions() {
    for algorithm in [Algorithm::Es256, Algorithm::EdDsa] {
        let made = Made::new(algorithm);
        contract::holds(&made.sessions, &made, made.now).await;
    }
}

#[tokio::test]
async fn a_session_is_its_principal_with_a_key_and_no_stronger() {
    let (dpop, now) = (super::oidc::dpop(), SystemTime::now());
    let (sessions, certificate) = (sessions(Algorithm::Es256, &dpop), Authority::new().leaf(svid(&["spiffe://a/b"])));
    let thumbprint = Thumbprint::of_certificate(&certificate);
    let session = sessions.open(&principal(now), SessionKey::Certificate(thumbprint), now).await.unwrap();
    let chain = [certificate];
    let connection = Connection { certificates: &chain, method: "POST", url: URL };
    let got = sessions.verify(Credential::Bearer(&session.token), connection, now).resolve().await.unwrap();
    assert_eq!(got.session(), Some(session.id.as_str()));
    assert_eq!((got.bound_to, got.strength, got.method), (Some(thumbprint), Strength::Bearer, Method::Oidc));
    let mut expected = principal(now);
    expected.claims.insert(Principal::SESSION.into(), session.id);
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    expected.claims.insert(Principal::SINCE.into(), since.to_string());
    expected.bound_to = Some(thumbprint);
    expected.expires_at = got.expires_at;
    assert_eq!(got, expected);
    // Elsewhere it is nothing, also once it has been verified here.
    for certificates in [&[][..], &[Authority::new().leaf(svid(&["spiffe://a/b"]))][..]] {
        let connection = Connection { certificates, ..connection };
        let refused = sessions.verify(Credential::Bearer(&session.token), connection, now).resolve().await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unverified);
    }
}

#[tokio::test]
async fn keys_of_sessions_rotate_and_old_sessions_live_out_their_time() {
    let made = Made::new(Algorithm::Es256);
    let verify = async |token: &str, at: SystemTime| {
        let proof = proof(&made.key, "POST", URL, Some(token), at);
        let connection = Connection { method: "POST", url: URL, ..Connection::default() };
        let credential = Credential::Dpop { token, proof: &proof };
        made.sessions.verify(credential, connection, at).resolve().await.map(|_| ()).map_err(|e| e.kind())
    };
    let (old, unseen) = (made.token(&made.sessions, made.now), made.token(&made.sessions, made.now));
    made.sessions.rotate(Arc::new(LocalSigner::generate(Algorithm::EdDsa).unwrap()), made.now).unwrap();
    let new = made.token(&made.sessions, made.now);
    assert_eq!(made.sessions.jwks()["keys"].as_array().unwrap().len(), 2);
    assert_eq!((verify(&old, made.now).await, verify(&new, made.now).await), (Ok(()), Ok(())));
    assert_eq!(verify(&unseen, made.now + Duration::from_secs(906)).await, Err(ErrorKind::Unverified));
    made.sessions
        .rotate(Arc::new(LocalSigner::generate(Algorithm::Es256).unwrap()), made.now + Duration::from_secs(906))
        .unwrap();
    assert_eq!(made.sessions.jwks()["keys"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn what_cannot_be_a_session_is_not_opened() {
    let (dpop, now) = (super::oidc::dpop(), SystemTime::now());
    let (sessions, key) = (sessions(Algorithm::Es256, &dpop), SessionKey::Proof(Thumbprint([1; 32])));
    let ended = Principal { expires_at: now, ..principal(now) };
    assert_eq!(sessions.open(&ended, key, now).await.unwrap_err().kind(), ErrorKind::Expired);
    let vast = Principal { groups: vec!["x".repeat(1000); 30], ..principal(now) };
    assert_eq!(sessions.open(&vast, key, now).await.unwrap_err().kind(), ErrorKind::Invalid);
    let long = Principal { expires_at: now + Duration::from_secs(86_400), ..principal(now) };
    assert_eq!(seconds(sessions.open(&long, key, now).await.unwrap().expires_at), seconds(now) + 900);
    assert_eq!(LocalSigner::generate(Algorithm::Rs256).err().map(|e| e.kind()), Some(ErrorKind::Invalid));
    assert_eq!(LocalSigner::from_pkcs8(Algorithm::Es256, b"key").err().map(|e| e.kind()), Some(ErrorKind::Invalid));
    assert!(LocalSigner::generate(Algorithm::Es256).unwrap().public_jwk().get("d").is_none());
}

fn form(token: &str, kind: &str) -> Vec<u8> {
    let pairs = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("subject_token", token),
        ("subject_token_type", kind),
    ];
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish().into_bytes()
}

const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

#[test]
fn a_form_that_asks_for_something_else_is_refused_by_name() {
    let good = String::from_utf8(form("a.b.c", JWT)).unwrap();
    ExchangeRequest::parse(good.as_bytes()).unwrap();
    let rows = [
        (String::new(), "grant_type"),
        (good.replace("token-exchange", "password"), "grant_type"),
        (good.replace("a.b.c", ""), "subject_token"),
        (good.replace("jwt", "saml2"), "subject_token_type"),
        (format!("{good}&actor_token=x"), "actor_token"),
        (format!("{good}&scope=admin"), "scope"),
        (format!("{good}&subject_token=d.e.f"), "twice"),
        (format!("{good}&requested_token_type=urn:ietf:params:oauth:token-type:refresh_token"), "requested_token_type"),
        (format!("{good}&resource={}", "x".repeat(70_000)), "bytes"),
        ("\u{0}=%ff%fe&&&==".to_owned(), "no effect"),
    ];
    for (body, named) in rows {
        let error = ExchangeRequest::parse(body.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(named), "{error}");
    }
}

struct Place {
    exchange: Exchange,
    site: Site,
    issuer: Key,
    authority: Authority,
    now: SystemTime,
}

impl Place {
    async fn new() -> Self {
        let (issuer, authority, dpop) = (Key::p256(), Authority::new(), super::oidc::dpop());
        let site = Site::issuer(&[issuer.listed("one")]).await;
        let sessions = Arc::new(sessions(Algorithm::Es256, &dpop));
        let oidc = Oidc::new(OidcSettings::new(&site.url, AUDIENCE), http(), Arc::clone(&dpop)).unwrap();
        let bundles = TrustBundles::new();
        bundles.set("plant.example", authority.pem().as_bytes()).unwrap();
        let providers: Vec<Arc<dyn IdentityProvider>> =
            vec![Arc::<Sessions>::clone(&sessions), Arc::new(oidc), Arc::new(Spiffe::new(bundles, BTreeMap::new()))];
        let revocations = Arc::new(Revocations::new(100));
        let exchange = Exchange { identities: Identities::new(providers), sessions, dpop, revocations };
        Self { exchange, site, issuer, authority, now: SystemTime::now() }
    }

    fn token(&self, cnf: Option<Value>) -> String {
        let mut claims = claims(&self.site.url, self.now);
        if let Some(cnf) = cnf {
            claims["cnf"] = cnf;
        }
        self.issuer.token(&json!({ "alg": "ES256", "kid": "one" }), &claims)
    }

    async fn run(
        &self,
        body: &[u8],
        proof: Option<&str>,
        chain: &[CertificateDer<'static>],
    ) -> Result<(ExchangeResponse, Principal), TrustError> {
        let connection = Connection { certificates: chain, method: "POST", url: EXCHANGE };
        self.exchange.run(&ExchangeRequest::parse(body)?, proof, connection, self.now).await
    }

    fn proof(&self, key: &Key) -> String {
        proof(key, "POST", EXCHANGE, None, self.now)
    }

    async fn call(
        &self,
        credential: Credential<'_>,
        chain: &[CertificateDer<'static>],
    ) -> Result<Principal, TrustError> {
        let connection = Connection { certificates: chain, method: "POST", url: URL };
        self.exchange.identities.verify(credential, connection, self.now).resolve().await
    }
}

#[tokio::test]
async fn a_token_becomes_a_session_of_the_key_that_was_shown() {
    let place = Place::new().await;
    let (key, thief) = (Key::ed(), Key::ed());
    let (answer, _) = place.run(&form(&place.token(None), JWT), Some(&place.proof(&key)), &[]).await.unwrap();
    assert_eq!((answer.token_type, answer.expires_in), ("DPoP", 600));
    let token = answer.access_token.as_str();
    let shown = proof(&key, "POST", URL, Some(token), place.now);
    let principal = place.call(Credential::Dpop { token, proof: &shown }, &[]).await.unwrap();
    assert_eq!(principal.id, format!("{}#camera", place.site.url));
    let stolen = proof(&thief, "POST", URL, Some(token), place.now);
    for credential in [
        Credential::Bearer(token),
        Credential::Dpop { token, proof: &stolen },
        Credential::Dpop { token, proof: &shown },
    ] {
        assert_eq!(place.call(credential, &[]).await.unwrap_err().kind(), ErrorKind::Unverified);
    }
    // A session is not exchanged for a longer one, and a proof opens one session.
    let again = place.run(&form(token, JWT), Some(&place.proof(&key)), &[]).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Unverified);
    let used = place.proof(&key);
    place.run(&form(&place.token(None), JWT), Some(&used), &[]).await.unwrap();
    assert_eq!(
        place.run(&form(&place.token(None), JWT), Some(&used), &[]).await.unwrap_err().kind(),
        ErrorKind::Unverified
    );
}

#[tokio::test]
async fn a_stolen_token_is_exchanged_by_its_owner_only() {
    let place = Place::new().await;
    let (key, thief) = (Key::p256(), Key::p256());
    let token = place.token(Some(json!({ "jkt": super::dpop::thumbprint(&key) })));
    let refused = place.run(&form(&token, JWT), Some(&place.proof(&thief)), &[]).await.unwrap_err();
    assert_eq!((refused.kind(), oauth_error(&refused)), (ErrorKind::Unverified, "invalid_request"));
    let certificate = [place.authority.leaf(svid(&["spiffe://plant.example/a"]))];
    assert_eq!(place.run(&form(&token, JWT), None, &certificate).await.unwrap_err().kind(), ErrorKind::Unverified);
    let (_, principal) = place.run(&form(&token, JWT), Some(&place.proof(&key)), &[]).await.unwrap();
    assert_eq!(principal.strength, Strength::KeyBound);
    // Without any key there is no session.
    assert_eq!(place.run(&form(&place.token(None), JWT), None, &[]).await.unwrap_err().kind(), ErrorKind::Unverified);
}

#[tokio::test]
async fn a_certificate_becomes_a_session_of_its_connection() {
    let place = Place::new().await;
    let chain = [place.authority.leaf(svid(&["spiffe://plant.example/a"]))];
    let other = [place.authority.leaf(svid(&["spiffe://plant.example/a"]))];
    let kind = "urn:edgeward:params:token-type:client-certificate";
    let thumbprint = Thumbprint::of_certificate(&chain[0]).to_base64url();
    let (answer, _) = place.run(&form(&thumbprint, kind), None, &chain).await.unwrap();
    assert_eq!(answer.token_type, "Bearer");
    let token = Credential::Bearer(&answer.access_token);
    assert_eq!(place.call(token, &chain).await.unwrap().id, "spiffe://plant.example/a");
    assert_eq!(place.call(token, &other).await.unwrap_err().kind(), ErrorKind::Unverified);
    assert_eq!(place.run(&form(&thumbprint, kind), None, &other).await.unwrap_err().kind(), ErrorKind::Unverified);
    assert_eq!(place.run(&form(&thumbprint, kind), None, &[]).await.unwrap_err().kind(), ErrorKind::Unverified);
}

#[tokio::test]
async fn who_was_revoked_gets_no_session_and_other_audiences_none() {
    let place = Place::new().await;
    let body = |more: &str| [form(&place.token(None), JWT), more.as_bytes().to_vec()].concat();
    place.run(&body(&format!("&audience={AUDIENCE}")), Some(&place.proof(&Key::p256())), &[]).await.unwrap();
    let other =
        place.run(&body("&audience=https://bank.example"), Some(&place.proof(&Key::p256())), &[]).await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::Invalid);
    let who = Revoked::Principal(format!("{}#camera", place.site.url));
    place.exchange.revocations.add(who, None, place.now).unwrap();
    let refused = place.run(&body(""), Some(&place.proof(&Key::p256())), &[]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Denied);
}

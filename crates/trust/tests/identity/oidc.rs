//! Tokens of OpenID providers: bearer, bound by proof, bound by certificate; keys that rotate; issuers that fail.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use edgeward_trust::{
    ErrorKind, Method, Principal, Strength, TrustError,
    identity::{
        Connection, Credential, Http, HttpSettings, Identities, IdentityProvider, Verification,
        dpop::{Dpop, DpopSettings},
        jose::Algorithm,
        oidc::{Oidc, OidcSettings},
    },
};
use serde_json::{Value, json};

use super::{
    contract::{self, Case, Maker, Shown},
    dpop::proof,
    issuer::Site,
    keys::{Key, hmac_token},
    spiffe::{Authority, svid},
};

pub const AUDIENCE: &str = "https://edge.example";
pub const URL: &str = "https://edge.example/v2/models/m/infer";

pub fn http() -> Http {
    Http::new(&HttpSettings::default()).unwrap()
}

pub fn dpop() -> Arc<Dpop> {
    Arc::new(Dpop::new(DpopSettings::default()))
}

pub fn oidc(settings: OidcSettings) -> Oidc {
    Oidc::new(settings, http(), dpop()).unwrap()
}

pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

pub fn claims(issuer: &str, now: SystemTime) -> Value {
    let now = seconds(now);
    json!({ "iss": issuer, "aud": AUDIENCE, "sub": "camera", "iat": now, "exp": now + 600, "groups": ["line-3"], "jti": "1" })
}

/// How the tokens of a maker are bound.
enum Binding {
    None,
    Proof(Key),
    Certificate(Authority),
}

struct Tokens {
    issuer: String,
    key: Key,
    other: Key,
    binding: Binding,
    now: SystemTime,
}

impl Tokens {
    fn header(&self) -> Value {
        json!({ "alg": self.key.alg(), "typ": "at+jwt", "kid": "one" })
    }

    fn spoiled(&self, case: Case, cnf: Option<Value>) -> Option<String> {
        let (mut header, mut claims) = (self.header(), claims(&self.issuer, self.now));
        if let Some(cnf) = cnf {
            claims["cnf"] = cnf;
        }
        let other_family = match &self.key {
            Key::Rsa(_) => "ES256",
            _ => "RS256",
        };
        match case {
            Case::WrongAuthority => return Some(self.other.token(&header, &claims)),
            Case::WrongAudience => claims["aud"] = json!(["https://bank.example", "camera"]),
            Case::AlgorithmNone => {
                header["alg"] = json!("none");
                return Some(format!("{}.", super::keys::message(&header, &claims)));
            }
            Case::HmacWithPublicKey => {
                header["alg"] = json!("HS256");
                return Some(hmac_token(&header, &claims, self.key.listed("one").to_string().as_bytes()));
            }
            Case::OtherFamily => header["alg"] = json!(other_family),
            Case::UnknownKey => header["kid"] = json!("two"),
            Case::Huge => claims["filling"] = json!("x".repeat(100_000)),
            Case::CriticalExtension => header["crit"] = json!(["b64"]),
            Case::NotYetValid => claims["nbf"] = json!(seconds(self.now) + 300),
            Case::Tampered => {
                let token = self.key.token(&header, &claims);
                claims["sub"] = json!("admin");
                let forged = super::keys::message(&header, &claims);
                return Some(format!("{forged}.{}", token.rsplit('.').next()?));
            }
            _ => {}
        }
        Some(self.key.token(&header, &claims))
    }
}

impl Maker for Tokens {
    fn make(&self, case: Case) -> Option<Shown> {
        if self.absent().contains(&case) {
            return None;
        }
        let at = match case {
            Case::Expired => self.now + Duration::from_secs(3600),
            Case::InsideSkew => self.now + Duration::from_secs(600 + 20),
            Case::OutsideSkew => self.now + Duration::from_secs(600 + 40),
            _ => self.now,
        };
        let mut shown = Shown { at: Some(at), url: URL.to_owned(), twice: case == Case::Replay, ..Shown::default() };
        match &self.binding {
            Binding::None => shown.token = self.spoiled(case, None),
            Binding::Proof(key) => {
                let jkt = super::dpop::thumbprint(key);
                let token = self.spoiled(case, Some(json!({ "jkt": jkt })))?;
                let thief = Key::p256();
                let holder = if case == Case::Stolen { &thief } else { key };
                shown.proof = Some(proof(holder, "POST", URL, Some(&token), at));
                shown.token = Some(token);
            }
            Binding::Certificate(authority) => {
                let (own, thief) = (authority.leaf(svid(&["spiffe://a/b"])), authority.leaf(svid(&["spiffe://a/b"])));
                let thumbprint = edgeward_trust::Thumbprint::of_certificate(&own).to_base64url();
                shown.token = self.spoiled(case, Some(json!({ "x5t#S256": thumbprint })));
                shown.chain = vec![if case == Case::Stolen { thief } else { own }];
            }
        }
        Some(shown)
    }

    fn absent(&self) -> &[Case] {
        match self.binding {
            Binding::None => &[Case::Replay, Case::Stolen],
            Binding::Proof(_) => &[],
            Binding::Certificate(_) => &[Case::Replay],
        }
    }
}

#[tokio::test]
async fn the_contract_holds_for_every_algorithm_and_binding() {
    for key in [Key::p256, Key::p384, Key::rsa, Key::ed] {
        let bindings = [
            Binding::None,
            Binding::Proof(Key::p256()),
            Binding::Proof(Key::ed()),
            Binding::Certificate(Authority::new()),
        ];
        for binding in bindings {
            let key = key();
            let site = Site::issuer(&[key.listed("one")]).await;
            let provider = oidc(OidcSettings::new(&site.url, AUDIENCE));
            let tokens = Tokens { issuer: site.url.clone(), key, other: Key::p256(), binding, now: SystemTime::now() };
            contract::holds(&provider, &tokens, tokens.now).await;
        }
    }
}

async fn bearer(provider: &dyn IdentityProvider, token: &str, now: SystemTime) -> Result<Principal, TrustError> {
    let connection = Connection { method: "POST", url: URL, ..Connection::default() };
    provider.verify(Credential::Bearer(token), connection, now).resolve().await
}

struct Known {
    site: Site,
    key: Key,
    now: SystemTime,
}

impl Known {
    async fn new() -> Self {
        let key = Key::p256();
        Self { site: Site::issuer(&[key.listed("one")]).await, key, now: SystemTime::now() }
    }

    fn provider(&self) -> Oidc {
        oidc(OidcSettings::new(&self.site.url, AUDIENCE))
    }

    fn token(&self, change: impl FnOnce(&mut Value, &mut Value)) -> String {
        let (mut header, mut claims) = (json!({ "alg": "ES256", "kid": "one" }), claims(&self.site.url, self.now));
        change(&mut header, &mut claims);
        self.key.token(&header, &claims)
    }
}

#[tokio::test]
async fn claims_make_a_principal() {
    let known = Known::new().await;
    let token = known.token(|_, claims| claims["scope"] = json!("infer"));
    let principal = bearer(&known.provider(), &token, known.now).await.unwrap();
    assert_eq!(principal.id, format!("{}#camera", known.site.url));
    assert_eq!((principal.method, principal.strength, principal.bound_to), (Method::Oidc, Strength::Bearer, None));
    assert_eq!((principal.groups, principal.tenant), (vec!["line-3".to_owned()], None));
    assert_eq!(principal.claims["scope"], "infer");
    assert_eq!(seconds(principal.expires_at), seconds(known.now) + 600);
}

#[tokio::test]
async fn malformed_claims_are_refused() {
    let known = Known::new().await;
    let provider = known.provider();
    type Change = fn(&mut Value, &mut Value);
    let rows: &[(&str, Change)] = &[
        ("no exp", |_, c| drop(c.as_object_mut().unwrap().remove("exp"))),
        ("exp as text", |_, c| c["exp"] = json!("tomorrow")),
        ("exp beyond all time", |_, c| c["exp"] = json!(1e300)),
        ("exp before 1970", |_, c| c["exp"] = json!(-1)),
        ("nbf as text", |_, c| c["nbf"] = json!("0")),
        ("no aud", |_, c| drop(c.as_object_mut().unwrap().remove("aud"))),
        ("aud as object", |_, c| c["aud"] = json!({ "a": AUDIENCE })),
        ("aud empty", |_, c| c["aud"] = json!([])),
        ("no sub", |_, c| drop(c.as_object_mut().unwrap().remove("sub"))),
        ("sub as number", |_, c| c["sub"] = json!(7)),
        ("sub with a line end", |_, c| c["sub"] = json!("a\nb")),
        ("sub too long", |_, c| c["sub"] = json!("x".repeat(2000))),
        ("groups of numbers", |_, c| c["groups"] = json!([1])),
        ("too many groups", |_, c| c["groups"] = json!(vec!["a"; 1001])),
        ("cnf empty", |_, c| c["cnf"] = json!({})),
        ("cnf as text", |_, c| c["cnf"] = json!("x")),
        ("cnf null", |_, c| c["cnf"] = Value::Null),
        ("cnf unknown", |_, c| c["cnf"] = json!({ "kid": "x" })),
        ("cnf jkt no digest", |_, c| c["cnf"] = json!({ "jkt": "x" })),
        ("cnf jkt without proof", |_, c| c["cnf"] = json!({ "jkt": "A".repeat(43) })),
        ("cnf x5t without certificate", |_, c| c["cnf"] = json!({ "x5t#S256": "A".repeat(43) })),
        ("typ of a proof", |h, _| h["typ"] = json!("dpop+jwt")),
        ("typ of a logout", |h, _| h["typ"] = json!("logout+jwt")),
        ("alg unknown", |h, _| h["alg"] = json!("ES1024")),
        ("crit null is absent, typ number", |h, _| h["typ"] = json!(1)),
        ("another issuer's name", |_, c| c["iss"] = json!("https://bank.example")),
        ("iss with a slash more", |_, c| c["iss"] = json!(format!("{}/", c["iss"].as_str().unwrap()))),
    ];
    let mut taken = Vec::new();
    for (what, change) in rows {
        match bearer(&provider, &known.token(change), known.now).await {
            Err(error) if error.kind() == ErrorKind::Unverified => {}
            other => taken.push(format!("{what}: {other:?}")),
        }
    }
    assert!(taken.is_empty(), "{}", taken.join("\n"));
    assert!(bearer(&provider, &known.token(|_, _| {}), known.now).await.is_ok());
}

#[tokio::test]
async fn a_token_with_a_proof_that_it_does_not_name_is_refused() {
    let known = Known::new().await;
    let token = known.token(|_, _| {});
    let proof = proof(&Key::p256(), "POST", URL, Some(&token), known.now);
    let connection = Connection { method: "POST", url: URL, ..Connection::default() };
    let credential = Credential::Dpop { token: &token, proof: &proof };
    let refused = known.provider().verify(credential, connection, known.now).resolve().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unverified);
}

#[tokio::test]
async fn keys_rotate_and_unknown_ones_make_few_fetches() {
    let mut known = Known::new().await;
    let provider = known.provider();
    bearer(&provider, &known.token(|_, _| {}), known.now).await.unwrap();
    assert_eq!(known.site.asked("/jwks"), 1);

    let old = known.token(|_, _| {});
    known.key = Key::p256();
    known.site.keys(&[known.key.listed("two")]);
    let new = known.token(|header, _| header["kid"] = json!("two"));
    // Too soon after the last fetch: the new key is not looked for, and the old one still counts.
    for _ in 0..100 {
        assert_eq!(bearer(&provider, &new, known.now).await.unwrap_err().kind(), ErrorKind::Unverified);
    }
    assert_eq!(known.site.asked("/jwks"), 1);
    bearer(&provider, &old, known.now).await.unwrap();

    let later = known.now + Duration::from_secs(11);
    bearer(&provider, &new, later).await.unwrap();
    assert_eq!(known.site.asked("/jwks"), 2);
    assert_eq!(bearer(&provider, &old, later).await.unwrap_err().kind(), ErrorKind::Unverified);
}

#[tokio::test]
async fn one_fetch_serves_all_that_wait_for_it() {
    let known = Known::new().await;
    let provider = Arc::new(known.provider());
    let token = known.token(|_, _| {});
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let (provider, token, now) = (Arc::clone(&provider), token.clone(), known.now);
            tokio::spawn(async move { bearer(&*provider, &token, now).await })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(known.site.asked("/jwks"), 1);
}

#[tokio::test]
async fn known_keys_are_used_at_once_and_outlive_a_silent_issuer_for_a_day() {
    let known = Known::new().await;
    let provider = known.provider();
    let at = |hours: u64| known.now + Duration::from_secs(hours * 3600);
    let token = known.token(|_, claims| claims["exp"] = json!(seconds(at(100))));
    bearer(&provider, &token, known.now).await.unwrap();
    let connection = Connection { method: "POST", url: URL, ..Connection::default() };
    assert!(matches!(provider.verify(Credential::Bearer(&token), connection, known.now), Verification::Done(Ok(_))));

    known.site.page("/jwks", "500 Internal Server Error", "");
    bearer(&provider, &token, at(1)).await.unwrap();
    bearer(&provider, &token, at(23)).await.unwrap();
    assert_eq!(bearer(&provider, &token, at(25)).await.unwrap_err().kind(), ErrorKind::Unavailable);
    known.site.keys(&[known.key.listed("one")]);
    bearer(&provider, &token, at(26)).await.unwrap();
}

#[tokio::test]
async fn an_issuer_that_misbehaves_is_refused() {
    let known = Known::new().await;
    let rows = [
        ("/jwks", "200 OK", "x".repeat(300_000)),
        ("/jwks", "200 OK", "not json".to_owned()),
        ("/jwks", "200 OK", json!({ "keys": [] }).to_string()),
        ("/jwks", "200 OK", json!({ "keys": vec![known.key.listed("one"); 101] }).to_string()),
        ("/jwks", "302 Found", String::new()),
        (
            "/.well-known/openid-configuration",
            "200 OK",
            json!({ "issuer": "https://bank.example", "jwks_uri": "https://bank.example" }).to_string(),
        ),
        (
            "/.well-known/openid-configuration",
            "200 OK",
            json!({ "issuer": known.site.url, "jwks_uri": "http://bank.example/jwks" }).to_string(),
        ),
        (
            "/.well-known/openid-configuration",
            "200 OK",
            json!({ "issuer": known.site.url, "jwks_uri": "file:///etc/passwd" }).to_string(),
        ),
        ("/.well-known/openid-configuration", "404 Not Found", String::new()),
    ];
    let mut taken = Vec::new();
    for (path, status, body) in rows {
        let known = Known::new().await;
        known.site.page(path, status, body.replace("SITE", &known.site.url));
        let got = bearer(&known.provider(), &known.token(|_, _| {}), known.now).await;
        if !got.as_ref().is_err_and(|e| matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Invalid)) {
            taken.push(format!("{path} {status}: {got:?}"));
        }
    }
    assert!(taken.is_empty(), "{}", taken.join("\n"));
}

#[tokio::test]
async fn keys_that_cannot_verify_do_not_spoil_the_set() {
    let known = Known::new().await;
    let mut private = known.key.listed("one");
    private["d"] = json!("AAAA");
    let others = [
        json!({ "kty": "oct", "kid": "one", "k": "AAAA" }),
        json!({ "kty": "EC", "crv": "secp256k1", "kid": "one", "x": "AA", "y": "AA", "alg": "ES256K" }),
        json!({ "kty": "RSA", "kid": "one", "n": "AQAB", "e": "AQAB" }),
        json!({ "kty": "AKP", "kid": "one", "alg": "ML-DSA-44", "pub": "AA" }),
        json!({ "kty": "EC", "kid": "one", "use": "enc", "crv": "P-256", "x": "A", "y": "A" }),
        json!("key"),
        private,
        known.key.listed("one"),
    ];
    known.site.keys(&others);
    bearer(&known.provider(), &known.token(|_, _| {}), known.now).await.unwrap();
}

#[tokio::test]
async fn a_token_goes_to_the_issuer_that_it_names_and_to_no_other() {
    let (first, second) = (Known::new().await, Known::new().await);
    let all = Identities::new(vec![Arc::new(first.provider()), Arc::new(second.provider())]);
    let connection = Connection { method: "POST", url: URL, ..Connection::default() };
    for known in [&first, &second] {
        let token = known.token(|_, _| {});
        let principal = all.verify(Credential::Bearer(&token), connection, known.now).resolve().await.unwrap();
        assert_eq!(principal.id, format!("{}#camera", known.site.url));
    }
    // The second issuer says to be the first.
    let token = second.token(|_, claims| claims["iss"] = json!(first.site.url));
    let refused = all.verify(Credential::Bearer(&token), connection, first.now).resolve().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unverified);
}

#[test]
fn unsafe_settings_are_refused() {
    let with = |change: &dyn Fn(&mut OidcSettings)| {
        let mut settings = OidcSettings::new("https://issuer.example", AUDIENCE);
        change(&mut settings);
        Oidc::new(settings, http(), dpop()).err().map(|e| e.kind())
    };
    assert_eq!(with(&|_| {}), None);
    assert_eq!(with(&|s| s.issuer = "http://issuer.example".into()), Some(ErrorKind::Invalid));
    assert_eq!(with(&|s| s.issuer = "https://user:word@issuer.example".into()), Some(ErrorKind::Invalid));
    assert_eq!(with(&|s| s.audiences.clear()), Some(ErrorKind::Invalid));
    assert_eq!(with(&|s| s.audiences = vec![String::new()]), Some(ErrorKind::Invalid));
    assert_eq!(with(&|s| s.algorithms.clear()), Some(ErrorKind::Invalid));
    assert_eq!(with(&|s| s.clock_skew = Duration::from_secs(301)), Some(ErrorKind::Invalid));
    assert_eq!(with(&|s| s.keys.jwks_uri = Some("http://issuer.example/jwks".into())), Some(ErrorKind::Invalid));
}

/// One known issuer, its token as its documentation shows it, and what must come of it.
async fn preset(settings: OidcSettings, change: Value) -> Result<Principal, TrustError> {
    let (key, now) = (Key::rsa(), SystemTime::now());
    let mut claims = json!({ "iss": settings.issuer, "aud": AUDIENCE, "iat": seconds(now), "exp": seconds(now) + 600 });
    for (name, value) in change.as_object().unwrap() {
        claims[name.as_str()] = value.clone();
    }
    let provider = oidc(settings);
    provider.keys().set(json!({ "keys": [key.listed("k")] }).to_string().as_bytes(), now).unwrap();
    bearer(&provider, &key.token(&json!({ "alg": "RS256", "typ": "JWT", "kid": "k" }), &claims), now).await
}

#[tokio::test]
async fn known_issuers_are_read_as_they_write() {
    const TENANT: &str = "72f988bf-86f1-41af-91ab-2d7cd011db47";
    let entra = || OidcSettings::entra_id(TENANT, AUDIENCE);
    let claims = json!({ "tid": TENANT, "ver": "2.0", "oid": "o-1", "sub": "s-1", "roles": ["Infer"], "groups": ["g-1"], "azp": "app",
        "email": "admin@victim.example", "preferred_username": "a@b.example" });
    let principal = preset(entra(), claims.clone()).await.unwrap();
    assert_eq!(principal.id, format!("https://login.microsoftonline.com/{TENANT}/v2.0#o-1"));
    assert_eq!(
        (principal.tenant.as_deref(), principal.groups),
        (Some(TENANT), vec!["Infer".to_owned(), "g-1".to_owned()])
    );
    assert!(!principal.claims.contains_key("email"));
    let mut other = claims.clone();
    other["tid"] = json!("another");
    assert_eq!(preset(entra(), other).await.unwrap_err().kind(), ErrorKind::Unverified);
    let mut overage = claims;
    overage.as_object_mut().unwrap().remove("groups");
    overage["_claim_names"] = json!({ "groups": "src1" });
    assert_eq!(preset(entra(), overage).await.unwrap().claims["groups_elsewhere"], "src1");

    let claims = json!({ "iss": "accounts.google.com", "sub": "1077", "hd": "plant.example", "email": "a@plant.example", "email_verified": true });
    let principal = preset(OidcSettings::google(AUDIENCE), claims.clone()).await.unwrap();
    assert_eq!(
        (principal.id.as_str(), principal.tenant.as_deref()),
        ("https://accounts.google.com#1077", Some("plant.example"))
    );
    assert_eq!(principal.claims["email"], "a@plant.example");
    let mut unverified = claims;
    unverified["email_verified"] = json!(false);
    assert!(!preset(OidcSettings::google(AUDIENCE), unverified).await.unwrap().claims.contains_key("email"));

    let keycloak = || OidcSettings::keycloak("https://sso.example/realms/plant", AUDIENCE);
    let claims = json!({ "typ": "Bearer", "sub": "u-1", "realm_access": { "roles": ["operator"] }, "groups": ["/line-3"], "azp": "cli" });
    let principal = preset(keycloak(), claims.clone()).await.unwrap();
    assert_eq!(
        (principal.tenant.as_deref(), principal.groups),
        (Some("plant"), vec!["/line-3".to_owned(), "operator".to_owned()])
    );
    let mut id_token = claims;
    id_token["typ"] = json!("ID");
    assert_eq!(preset(keycloak(), id_token).await.unwrap_err().kind(), ErrorKind::Unverified);

    let kubernetes = || OidcSettings::kubernetes("https://kubernetes.default.svc.cluster.local", AUDIENCE);
    let claims = json!({ "aud": [AUDIENCE], "sub": "system:serviceaccount:vision:camera", "kubernetes.io": { "namespace": "vision",
        "serviceaccount": { "name": "camera", "uid": "1" }, "pod": { "name": "camera-0", "uid": "2" } } });
    let principal = preset(kubernetes(), claims).await.unwrap();
    assert_eq!(principal.tenant.as_deref(), Some("vision"));
    assert_eq!(
        (principal.claims["pod"].as_str(), principal.claims["service_account"].as_str()),
        ("camera-0", "camera")
    );
    assert_eq!(
        preset(kubernetes(), json!({ "sub": "system:serviceaccount:vision:camera" })).await.unwrap_err().kind(),
        ErrorKind::Unverified
    );
}

#[tokio::test]
async fn an_algorithm_that_is_not_allowed_is_refused_though_the_key_is_known() {
    let known = Known::new().await;
    let provider =
        oidc(OidcSettings { algorithms: vec![Algorithm::EdDsa], ..OidcSettings::new(&known.site.url, AUDIENCE) });
    let refused = bearer(&provider, &known.token(|_, _| {}), known.now).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unverified);
}

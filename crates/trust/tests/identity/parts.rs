//! The real OpenID provider: tokens that it issues are taken, bound ones only from the client with the key.
//!
//! `EDGEWARD_TEST_NODE_MODULES` names a `node_modules` with `oidc-provider`; `EDGEWARD_ALL_PARTS` makes its absence a failure.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, SystemTime},
};

use edgeward_trust::{
    ErrorKind, Principal, Strength, TrustError,
    identity::{
        Connection, Credential, Http, HttpSettings, IdentityProvider as _,
        oidc::{Oidc, OidcSettings},
    },
};
use rcgen::{CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use super::{
    dpop::proof,
    keys::Key,
    oidc::{AUDIENCE, URL, dpop},
    part::part,
};

struct Provider {
    issuer: String,
    /// Ends when its input does.
    _process: Child,
}

impl Provider {
    async fn start(modules: &Path, port: &str, alg: &str, tls: &[(&str, &Path)]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parts/provider.mjs");
        let mut process = Command::new("node")
            .arg(script)
            .env("MODULES", modules)
            .envs([("PORT", port), ("ALG", alg)])
            .envs(tls.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let issuer = lines.next_line().await.unwrap().expect("the provider ended before it listened");
        Self { issuer, _process: process }
    }

    fn endpoint(&self) -> String {
        format!("{}/token", self.issuer)
    }

    /// A token for a client, with a proof where it has a key.
    async fn token(&self, http: &reqwest::Client, client: &str, key: Option<&Key>) -> String {
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", client),
            ("client_secret", &format!("secret of {client}")),
            ("scope", "infer"),
        ];
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let mut request =
            http.post(self.endpoint()).header("content-type", "application/x-www-form-urlencoded").body(body);
        if let Some(key) = key {
            request = request.header("dpop", proof(key, "POST", &self.endpoint(), None, SystemTime::now()));
        }
        let answer = request.send().await.unwrap().bytes().await.unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        answer["access_token"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    fn verifier(&self, settings: &HttpSettings) -> Oidc {
        Oidc::new(OidcSettings::new(&self.issuer, AUDIENCE), Http::new(settings).unwrap(), dpop()).unwrap()
    }
}

async fn verify(
    oidc: &Oidc,
    credential: Credential<'_>,
    chain: &[CertificateDer<'static>],
) -> Result<Principal, TrustError> {
    let connection = Connection { certificates: chain, method: "POST", url: URL };
    oidc.verify(credential, connection, SystemTime::now()).resolve().await
}

#[tokio::test]
async fn tokens_of_a_real_provider_are_verified_in_each_algorithm() {
    let Some(modules) = part("EDGEWARD_TEST_NODE_MODULES", "a node_modules with oidc-provider") else { return };
    for alg in ["ES256", "RS256", "EdDSA"] {
        let provider = Provider::start(&modules, "0", alg, &[]).await;
        let (http, oidc) = (reqwest::Client::new(), provider.verifier(&HttpSettings::default()));
        let token = provider.token(&http, "plain", None).await;
        let principal = verify(&oidc, Credential::Bearer(&token), &[]).await.unwrap();
        assert_eq!(principal.id, format!("{}#plain", provider.issuer), "{alg}");
        assert_eq!((principal.strength, principal.claims["scope"].as_str()), (Strength::Bearer, "infer"));

        let key = Key::p256();
        let token = provider.token(&http, "proven", Some(&key)).await;
        let now = SystemTime::now();
        let shown = proof(&key, "POST", URL, Some(&token), now);
        let principal = verify(&oidc, Credential::Dpop { token: &token, proof: &shown }, &[]).await.unwrap();
        assert_eq!(principal.strength, Strength::KeyBound, "{alg}");
        for (what, stolen) in [
            ("replayed", shown),
            ("with another key", proof(&Key::p256(), "POST", URL, Some(&token), now)),
            ("for another token", proof(&key, "POST", URL, Some("t"), now)),
        ] {
            let refused = verify(&oidc, Credential::Dpop { token: &token, proof: &stolen }, &[]).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unverified, "{alg} {what}");
        }
        let refused = verify(&oidc, Credential::Bearer(&token), &[]).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unverified, "{alg} without a proof");
    }
}

#[tokio::test]
async fn a_provider_that_restarts_with_new_keys_is_followed() {
    let Some(modules) = part("EDGEWARD_TEST_NODE_MODULES", "a node_modules with oidc-provider") else { return };
    let first = Provider::start(&modules, "0", "ES256", &[]).await;
    let (http, oidc) = (reqwest::Client::new(), first.verifier(&HttpSettings::default()));
    let old = first.token(&http, "plain", None).await;
    verify(&oidc, Credential::Bearer(&old), &[]).await.unwrap();
    let port = first.issuer.rsplit(':').next().unwrap().to_owned();
    let issuer = first.issuer.clone();
    let mut process = first._process;
    process.kill().await.unwrap();
    let second = Provider::start(&modules, &port, "ES256", &[]).await;
    assert_eq!(second.issuer, issuer);
    let new = second.token(&reqwest::Client::new(), "plain", None).await;
    let later = SystemTime::now() + Duration::from_secs(20);
    let connection = Connection { method: "POST", url: URL, ..Connection::default() };
    oidc.verify(Credential::Bearer(&new), connection, later).resolve().await.unwrap();
    let refused = oidc.verify(Credential::Bearer(&old), connection, later).resolve().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unverified);
}

#[tokio::test]
async fn a_token_bound_to_a_certificate_is_refused_on_any_other_connection() {
    let Some(modules) = part("EDGEWARD_TEST_NODE_MODULES", "a node_modules with oidc-provider") else { return };
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let server_key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&server_key, &ca).unwrap();
    let client = || {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        (params.signed_by(&key, &ca).unwrap(), key)
    };
    let (own, own_key) = client();
    let (key, cert, ca_file) =
        (write("key", &server_key.serialize_pem()), write("cert", &server.pem()), write("ca", &ca.pem()));
    let provider = Provider::start(&modules, "0", "ES256", &[("KEY", &key), ("CERT", &cert), ("CA", &ca_file)]).await;

    let roots = HttpSettings { roots_pem: Some(ca.pem().into_bytes()), ..HttpSettings::default() };
    let identity = reqwest::Identity::from_pem((own.pem() + &own_key.serialize_pem()).as_bytes()).unwrap();
    let root = reqwest::Certificate::from_pem(ca.pem().as_bytes()).unwrap();
    let http = reqwest::Client::builder().identity(identity).add_root_certificate(root).build().unwrap();
    let token = provider.token(&http, "certified", None).await;

    let oidc = provider.verifier(&roots);
    let principal = verify(&oidc, Credential::Bearer(&token), &[own.der().clone()]).await.unwrap();
    assert_eq!(principal.strength, Strength::KeyBound);
    for chain in [vec![], vec![client().0.der().clone()], vec![client().0.der().clone(), own.der().clone()]] {
        let refused = verify(&oidc, Credential::Bearer(&token), &chain).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unverified);
    }
    // An issuer behind a certificate that nobody here trusts is not believed.
    let refused =
        verify(&provider.verifier(&HttpSettings::default()), Credential::Bearer(&token), &[own.der().clone()]).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unavailable);
}

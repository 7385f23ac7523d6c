//! Transit, PKI and the logins of Vault's API against OpenBao.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL};
use edgeward_trust::{
    ErrorKind,
    keys::{KeyKind, KeyProvider as _, LoginSettings, PkiSettings, SecretSource, Vault, VaultPki, VaultSettings},
    tls::ServerKeySource as _,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};

use super::{
    answering::answering,
    bao::{Bao, until},
    contract::{SIGNS, contract},
};

/// All that a provider needs, and no more.
const POLICY: &str = "
path \"transit/keys/*\"     { capabilities = [\"create\", \"read\", \"update\"] }
path \"transit/keys\"       { capabilities = [\"list\"] }
path \"transit/encrypt/*\"  { capabilities = [\"update\"] }
path \"transit/decrypt/*\"  { capabilities = [\"update\"] }
path \"transit/sign/*\"     { capabilities = [\"update\"] }
";

fn root() -> LoginSettings {
    // Tests say what their tokens are; nobody else's setting is this one's.
    LoginSettings::Token { token: SecretSource::Env("EDGEWARD_TEST_NO_TOKEN".into()) }
}

fn transit() -> Option<Bao> {
    let bao = Bao::start()?;
    bao.run(&["secrets", "enable", "transit"]);
    bao.policy("edgeward", POLICY);
    Some(bao)
}

fn role(bao: &Bao) -> LoginSettings {
    bao.approle("edge", &["token_policies=edgeward", "token_ttl=1h"])
}

#[test]
fn transit_keeps_the_contract() {
    let Some(bao) = transit() else { return };
    let vault = bao.connect(role(&bao));
    let provider = vault.transit("transit").unwrap();
    assert_eq!(provider.list().unwrap(), []);
    contract(&provider, SIGNS);
    // A key that is not there is not made by wrapping with it, as the server would.
    assert!(provider.list().unwrap().iter().all(|key| key.id != "contract-none"));
    assert_eq!(vault.status().logins, 1);
    // What was wrapped is unwrapped by another process, and by the server's own client.
    let wrapped = provider.wrap("contract-wrap", b"data key", b"c").unwrap();
    let again = bao.connect(role(&bao)).transit("transit").unwrap();
    assert_eq!(again.list().unwrap(), provider.list().unwrap());
    assert_eq!(**again.unwrap("contract-wrap", &wrapped, b"c").unwrap(), *b"data key");
    let base64 = |bytes: &[u8]| base64::prelude::BASE64_STANDARD.encode(bytes);
    let version = u32::from_be_bytes(wrapped[..4].try_into().unwrap());
    let ciphertext = format!("ciphertext=vault:v{version}:{}", base64(&wrapped[4..]));
    let context = format!("associated_data={}", base64(b"c"));
    let opened = bao.run(&["write", "-field=plaintext", "transit/decrypt/contract-wrap", &ciphertext, &context]);
    assert_eq!(opened, base64(b"data key"));
}

#[test]
fn keys_of_other_types_are_left_alone() {
    let Some(bao) = transit() else { return };
    for (name, options) in [("rsa", "type=rsa-2048"), ("derived", "derived=true"), ("Upper", "type=ed25519")] {
        bao.run(&["write", "-f", &format!("transit/keys/{name}"), options]);
    }
    bao.run(&["write", "-f", "transit/keys/plain"]);
    let provider = bao.connect(role(&bao)).transit("transit").unwrap();
    assert_eq!(provider.list().unwrap().iter().map(|key| key.id.as_str()).collect::<Vec<_>>(), ["plain"]);
    for id in ["rsa", "derived"] {
        assert_eq!(provider.wrap(id, b"k", b"").unwrap_err().kind(), ErrorKind::Invalid, "{id}");
        assert_eq!(provider.create(id, KeyKind::Wrapping).unwrap_err().kind(), ErrorKind::Invalid, "{id}");
    }
    // Versions that the server's administrator has retired unwrap nothing.
    let wrapped = provider.wrap("plain", b"k", b"").unwrap();
    provider.rotate("plain").unwrap();
    bao.run(&["write", "transit/keys/plain/config", "min_decryption_version=2"]);
    let error = provider.unwrap("plain", &wrapped, b"").unwrap_err();
    assert!(error.kind() == ErrorKind::Tampered && error.to_string().contains("too old"), "{error}");
    assert_eq!(provider.describe("plain").unwrap().versions.iter().map(|v| v.number).collect::<Vec<_>>(), [2]);
}

#[test]
fn what_the_policy_does_not_allow_is_denied_without_a_new_login() {
    let Some(bao) = transit() else { return };
    bao.policy("reads", "path \"transit/keys/*\" { capabilities = [\"read\"] }");
    bao.run(&["write", "-f", "transit/keys/k"]);
    let vault = bao.connect(bao.approle("reader", &["token_policies=reads"]));
    let provider = vault.transit("transit").unwrap();
    for _ in 0..3 {
        let error = provider.wrap("k", b"k", b"").unwrap_err();
        assert!(error.kind() == ErrorKind::Denied && error.to_string().contains("permission denied"), "{error}");
        assert_eq!(provider.create("new", KeyKind::P256).unwrap_err().kind(), ErrorKind::Denied);
        assert_eq!(provider.list().unwrap_err().kind(), ErrorKind::Denied);
    }
    assert_eq!(provider.describe("k").unwrap().kind, KeyKind::Wrapping);
    assert_eq!(vault.status().logins, 1);
}

#[test]
fn a_login_is_renewed_and_made_anew_while_nobody_asks() {
    let Some(bao) = transit() else { return };
    let options = ["token_policies=edgeward", "token_ttl=2s", "token_max_ttl=5s"];
    let vault = bao.connect(bao.approle("short", &options));
    until("the token is renewed", || vault.status().renewals >= 1);
    assert_eq!(vault.status().logins, 1);
    until("its last end nears, and another is fetched", || vault.status().logins >= 2);
    assert_eq!(vault.status().failing, None);
    vault.transit("transit").unwrap().create("after", KeyKind::Wrapping).unwrap();
}

#[test]
fn a_revoked_token_is_replaced_by_the_next_call() {
    let Some(bao) = transit() else { return };
    let login = role(&bao);
    let vault = bao.connect(login.clone());
    let provider = vault.transit("transit").unwrap();
    provider.create("k", KeyKind::Wrapping).unwrap();
    let wrapped = provider.wrap("k", b"data key", b"").unwrap();
    let revoke = || bao.run(&["lease", "revoke", "-prefix", "-sync", "auth/approle/login"]);
    revoke();
    // A login is at most a second's, so that refusals make no storm of them.
    until("it logs in again", || provider.unwrap("k", &wrapped, b"").is_ok_and(|key| **key == *b"data key"));
    assert_eq!(vault.status().logins, 2);
    // A secret that was replaced in its file is the one that is used.
    let LoginSettings::Approle { secret_id: Some(SecretSource::File(file)), .. } = &login else { panic!("{login:?}") };
    let old = std::fs::read_to_string(file).unwrap();
    let new = bao.run(&["write", "-f", "-field=secret_id", "auth/approle/role/edge/secret-id"]);
    std::fs::write(file, new).unwrap();
    let destroy = format!("secret_id={}", old.trim());
    bao.run(&["write", "auth/approle/role/edge/secret-id/destroy", &destroy]);
    revoke();
    until("it logs in with the new secret", || provider.unwrap("k", &wrapped, b"").is_ok());
    assert_eq!(vault.status().logins, 3);
    // And where it is refused, the caller is told.
    std::fs::write(file, &old).unwrap();
    revoke();
    until("the login is refused", || {
        provider.unwrap("k", &wrapped, b"").is_err_and(|error| error.kind() == ErrorKind::Unverified)
    });
    let (_, why) = vault.status().failing.unwrap();
    assert!(why.contains("the login is refused") && !why.contains(old.trim()), "{why}");
}

/// A token of a platform, and the public key that it verifies by in PEM.
fn platform_token(claims: &Value) -> (String, String) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let public = pem("PUBLIC KEY", &key.subject_public_key_info());
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key.serialize_der()).unwrap();
    let header = json!({ "alg": "ES256", "typ": "JWT", "kid": "1" });
    let message = format!("{}.{}", BASE64URL.encode(header.to_string()), BASE64URL.encode(claims.to_string()));
    let signature = key.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
    (format!("{message}.{}", BASE64URL.encode(signature)), public)
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", base64::prelude::BASE64_STANDARD.encode(der))
}

fn seconds_from_now(seconds: u64) -> u64 {
    let time = SystemTime::now() + Duration::from_secs(seconds);
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn works(vault: &Vault) {
    let provider = vault.transit("transit").unwrap();
    provider.create("k", KeyKind::Wrapping).unwrap();
    let wrapped = provider.wrap("k", b"data key", b"").unwrap();
    assert_eq!(**provider.unwrap("k", &wrapped, b"").unwrap(), *b"data key");
}

#[test]
fn a_token_of_an_openid_provider_logs_in() {
    let Some(bao) = transit() else { return };
    let claims = json!({ "iss": "https://ci.example", "sub": "build", "aud": "vault", "exp": seconds_from_now(600),
        "iat": seconds_from_now(0) });
    let (token, public) = platform_token(&claims);
    bao.run(&["auth", "enable", "-path=ci/jwt", "jwt"]);
    bao.run(&["write", "auth/ci/jwt/config", &format!("jwt_validation_pubkeys={public}")]);
    let role = ["role_type=jwt", "bound_audiences=vault", "user_claim=sub", "token_policies=edgeward"];
    bao.run(&[&["write", "auth/ci/jwt/role/edge"][..], &role].concat());
    let login = |token: &str| LoginSettings::Jwt {
        mount: "ci/jwt".into(),
        role: "edge".into(),
        jwt_file: bao.secret("jwt", token),
    };
    works(&bao.connect(login(&format!("{token}\n"))));
    for bad in [platform_token(&claims).0, format!("{token}x"), "none".into()] {
        let error = Vault::connect(&bao.settings(login(&bad))).err().unwrap();
        assert!(error.kind() == ErrorKind::Unverified && !error.to_string().contains(&bad), "{error}");
    }
    for (bad, expected) in [("", "0 bytes"), ("two tokens", "one token"), (&"a".repeat(70_000), "at most")] {
        let error = Vault::connect(&bao.settings(login(bad))).err().unwrap();
        assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains(expected), "{error}");
    }
}

/// The server asks a cluster who a service account's token is of. No cluster runs here: its answer to that one question is a test's.
#[test]
fn a_pods_service_account_logs_in() {
    let Some(bao) = transit() else { return };
    let claims = json!({ "iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:ward:edge",
        "exp": seconds_from_now(600), "iat": seconds_from_now(0), "nbf": seconds_from_now(0), "kubernetes.io": { "namespace": "ward",
        "serviceaccount": { "name": "edge", "uid": "u-1" } } });
    let (token, _) = platform_token(&claims);
    let asked = token.clone();
    let cluster = answering(move |request| {
        let review = json!({ "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "status": {
            "authenticated": request.starts_with("POST /apis/authentication.k8s.io/v1/tokenreviews")
                && request.contains(&asked),
            "user": { "username": "system:serviceaccount:ward:edge", "uid": "u-1",
                "groups": ["system:serviceaccounts", "system:serviceaccounts:ward"] } } });
        format!("HTTP/1.1 201 Created\r\ncontent-type: application/json\r\n\r\n{review}").into_bytes()
    });
    bao.run(&["auth", "enable", "kubernetes"]);
    let host = format!("kubernetes_host={cluster}");
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = format!("kubernetes_ca_cert={}", ca.self_signed(&KeyPair::generate().unwrap()).unwrap().pem());
    bao.run(&["write", "auth/kubernetes/config", &host, "disable_local_ca_jwt=true", &ca]);
    let role = ["bound_service_account_names=edge", "bound_service_account_namespaces=ward", "token_policies=edgeward"];
    bao.run(&[&["write", "auth/kubernetes/role/edge"][..], &role].concat());
    let login = |role: &str, token: &str| {
        let read = format!("method = \"kubernetes\"\nrole = \"{role}\"\njwt_file = {:?}", bao.secret("sa", token));
        toml::from_str::<LoginSettings>(&read).unwrap()
    };
    works(&bao.connect(login("edge", &token)));
    let other = platform_token(&claims).0;
    for (role, token) in [("none", &token), ("edge", &other)] {
        let error = Vault::connect(&bao.settings(login(role, token))).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unverified, "{error}");
    }
}

#[test]
fn a_namespace_and_roots_of_ones_own() {
    let Some(bao) = Bao::start_tls() else { return };
    bao.run(&["namespace", "create", "plant"]);
    bao.run(&["secrets", "enable", "-namespace=plant", "transit"]);
    let (roots, token) = (bao.file("vault-ca.pem"), bao.secret("token", "root"));
    let settings = |namespace: Option<&str>, roots: Option<PathBuf>| VaultSettings {
        namespace: namespace.map(str::to_owned),
        roots,
        ..bao.settings(LoginSettings::Token { token: SecretSource::File(token.clone()) })
    };
    works(&Vault::connect(&settings(Some("plant"), Some(roots.clone()))).unwrap());
    let error = Vault::connect(&settings(None, None)).err().unwrap();
    assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains("certificate"), "{error}");
    let elsewhere = Vault::connect(&settings(None, Some(roots))).unwrap().transit("transit").unwrap();
    assert_eq!(elsewhere.create("k", KeyKind::P256).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_servers_certificate_comes_from_pki_and_its_key_from_here() {
    let Some(bao) = Bao::start() else { return };
    bao.run(&["secrets", "enable", "pki"]);
    let root = bao.run(&["write", "-field=certificate", "pki/root/generate/internal", "common_name=root", "ttl=24h"]);
    bao.run(&["secrets", "enable", "-path=edge/pki", "pki"]);
    let request = bao.run(&["write", "-field=csr", "edge/pki/intermediate/generate/internal", "common_name=edge"]);
    let request = format!("csr={request}");
    let signed = bao.run(&["write", "-field=certificate", "pki/root/sign-intermediate", &request, "ttl=12h"]);
    let signed = format!("certificate={signed}\n{root}");
    bao.run(&["write", "edge/pki/intermediate/set-signed", &signed]);
    let role = [
        "allowed_domains=edge.example",
        "allow_subdomains=true",
        "allow_localhost=true",
        "max_ttl=1h",
        "allowed_uri_sans=spiffe://plant.example/*",
        "key_type=ec",
        "key_bits=256",
    ];
    bao.run(&[&["write", "edge/pki/roles/server"][..], &role].concat());
    bao.policy("certified", "path \"edge/pki/sign/server\" { capabilities = [\"update\"] }");
    let vault = bao.connect(bao.approle("server", &["token_policies=certified"]));
    let settings = PkiSettings {
        mount: "edge/pki".into(),
        role: "server".into(),
        dns: vec!["a.edge.example".into(), "localhost".into()],
        addresses: vec!["127.0.0.1".parse().unwrap()],
        spiffe_id: Some("spiffe://plant.example/server".into()),
    };
    let mut source = VaultPki::new(vault.clone(), settings.clone()).unwrap();
    let now = SystemTime::now();
    let keys = source.renew(now).unwrap().unwrap();
    assert_eq!(
        (keys.names, keys.chain.len()),
        (vec!["a.edge.example".into(), "localhost".into(), "127.0.0.1".into()], 2)
    );
    let root = CertificateDer::from_pem_slice(root.as_bytes()).unwrap();
    let anchors = [webpki::anchor_from_trusted_cert(&root).unwrap()];
    let leaf = webpki::EndEntityCert::try_from(&keys.chain[0]).unwrap();
    let time = rustls_pki_types::UnixTime::now();
    let usage = webpki::KeyUsage::server_auth();
    leaf.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, &keys.chain[1..], time, usage, None, None).unwrap();
    // The key is the certificate's.
    let pair = KeyPair::try_from(&keys.key).unwrap();
    assert!(keys.chain[0].windows(65).any(|part| part == pair.der_bytes()));
    // Renewed when two thirds of an hour are over.
    assert!(source.renew(now + Duration::from_secs(2300)).unwrap().is_none());
    let later = source.renew(now + Duration::from_secs(2500)).unwrap().unwrap();
    assert_ne!(later.chain[0], keys.chain[0]);

    let mut foreign =
        VaultPki::new(vault.clone(), PkiSettings { dns: vec!["bank.example".into()], ..settings.clone() }).unwrap();
    let error = foreign.renew(now).err().unwrap();
    assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("bank.example"), "{error}");
    let mut unasked = VaultPki::new(vault.clone(), PkiSettings { role: "other".into(), ..settings.clone() }).unwrap();
    assert_eq!(unasked.renew(now).err().unwrap().kind(), ErrorKind::Denied);
    for bad in ["", "../../sys", "a//b", "a?b", "a b", "/"] {
        assert!(VaultPki::new(vault.clone(), PkiSettings { role: bad.into(), ..settings.clone() }).is_err(), "{bad}");
        assert_eq!(vault.transit(bad).err().unwrap().kind(), ErrorKind::Invalid, "{bad}");
    }
}

#[test]
fn a_sealed_server_is_unavailable() {
    let Some(bao) = transit() else { return };
    let provider = bao.connect(role(&bao)).transit("transit").unwrap();
    provider.create("k", KeyKind::Wrapping).unwrap();
    bao.run(&["operator", "seal"]);
    let error = provider.wrap("k", b"k", b"").unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains("sealed"), "{error}");
}

/// Callers have runtimes of their own, and the provider is dropped in them.
#[tokio::test]
async fn it_is_called_from_a_runtime_too() {
    let Some(bao) = transit() else { return };
    works(&bao.connect(role(&bao)));
}

#[test]
fn settings_that_cannot_be_right_are_refused() {
    let refused = |address: &str, login: LoginSettings| {
        let settings = VaultSettings { address: address.into(), namespace: None, roots: None, login };
        let error = Vault::connect(&settings).err().unwrap();
        (error.kind(), error.to_string())
    };
    let jwt = |mount: &str| LoginSettings::Jwt { mount: mount.into(), role: "r".into(), jwt_file: "/nowhere".into() };
    let rows = [
        (refused("http://vault.example", root()), ErrorKind::Invalid, "on loopback only"),
        (refused("https://u:p@vault.example", root()), ErrorKind::Invalid, "user or password"),
        (refused("https://vault.example/v1", root()), ErrorKind::Invalid, "without a path"),
        (refused("vault", root()), ErrorKind::Invalid, "vault"),
        (refused("http://127.0.0.1:9", root()), ErrorKind::Unavailable, "EDGEWARD_TEST_NO_TOKEN"),
        (refused("http://127.0.0.1:9", jwt("a/../b")), ErrorKind::Invalid, "no path of an engine"),
        (refused("http://127.0.0.1:9", jwt("jwt")), ErrorKind::Unavailable, "/nowhere"),
    ];
    for ((kind, text), expected, part) in rows {
        assert!(kind == expected && text.contains(part), "{kind:?}: {text}");
    }
    let read = "address = \"https://vault.example:8200\"\n[login]\nmethod = \"approle\"\nrole_id = \"r\"\n\
                secret_id = { file = \"secret-id\" }\n";
    assert!(toml::from_str::<VaultSettings>(read).is_ok());
    assert!(toml::from_str::<VaultSettings>(&read.replace("address", "adress")).is_err());
    assert!(toml::from_str::<VaultSettings>(&read.replace("approle", "password")).is_err());
}

/// Whoever answers in the server's place cannot do more than be of no use.
#[test]
fn strange_answers_are_errors() {
    let http = |status: &str, body: &str| format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let huge = http("200 OK", &format!("{{\"auth\":\"{}\"}}", "a".repeat(5 << 20)));
    let rows = [
        (String::new(), ErrorKind::Unavailable),
        ("SSH-2.0-x\r\n".to_owned(), ErrorKind::Unavailable),
        (http("200 OK", ""), ErrorKind::Unavailable),
        (http("200 OK", "<html>"), ErrorKind::Unavailable),
        (http("200 OK", "{\"auth\":null}"), ErrorKind::Unavailable),
        (
            http("200 OK", "{\"auth\":{\"client_token\":\"\",\"lease_duration\":1,\"renewable\":true}}"),
            ErrorKind::Unavailable,
        ),
        (http("200 OK", "{\"auth\":{\"client_token\":\"t\",\"lease_duration\":-1}}"), ErrorKind::Unavailable),
        (http("200 OK", &"[".repeat(100_000)), ErrorKind::Unavailable),
        (huge, ErrorKind::Unavailable),
        (http("302 Found\r\nlocation: http://127.0.0.1:9/", ""), ErrorKind::Unavailable),
        (http("403 Forbidden", "{\"errors\":[\"\\u001b[31mred\"]}"), ErrorKind::Unverified),
        (http("500 Oops", "{\"errors\":7}"), ErrorKind::Unavailable),
    ];
    for (answer, expected) in rows {
        let shown: String = answer.chars().take(120).collect();
        let address = answering(move |_| answer.clone().into_bytes());
        let login = LoginSettings::Approle { mount: "approle".into(), role_id: "r".into(), secret_id: None };
        let settings = VaultSettings { address, namespace: None, roots: None, login };
        let error = Vault::connect(&settings).err().unwrap();
        assert!(error.kind() == expected && !error.to_string().contains('\u{1b}'), "{shown}: {error}");
    }
    // A login without an end, and then the same for each question.
    let address = answering(|request| {
        let body = if request.contains("/login") {
            "{\"auth\":{\"client_token\":\"t\",\"lease_duration\":0,\"renewable\":false}}"
        } else {
            "{\"data\":{\"type\":\"aes256-gcm96\",\"keys\":{\"1\":1},\"ciphertext\":\"vault:v1\",\"plaintext\":\"?\"}}"
        };
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    });
    let login = LoginSettings::Approle { mount: "approle".into(), role_id: "r".into(), secret_id: None };
    let vault = Vault::connect(&VaultSettings { address, namespace: None, roots: None, login }).unwrap();
    let provider = vault.transit("transit").unwrap();
    assert_eq!(provider.wrap("k", b"k", b"").unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(provider.unwrap("k", b"\0\0\0\x01abc", b"").unwrap_err().kind(), ErrorKind::Unavailable);
}

//! Pre-signed requests of AWS against moto, whose front checks signatures by botocore.
//!
//! `EDGEWARD_TEST_MOTO` names a Python with `moto[server]` and `boto3`.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Stdio,
    time::{Duration, SystemTime},
};

use aws_lc_rs::{digest, hmac};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL};
use edgeward_trust::{
    ErrorKind, Method, Principal, Strength, TrustError,
    identity::{
        Connection, Credential, IdentityProvider,
        aws::{Aws, AwsSettings},
    },
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use super::{
    contract::{self, Case, Maker, Shown},
    oidc::{http, seconds},
    part::part,
};

const SECRET: &str = "a secret of tests";
const SERVER: &str = "edge.example";
const ACCOUNT: &str = "123456789012";

fn script(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parts").join(name)
}

async fn sts(python: &Path) -> (String, Child) {
    let mut command = Command::new(python);
    command.arg(script("aws.py")).arg(SECRET).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut process = command.kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    (lines.next_line().await.unwrap().expect("moto ended before it listened"), process)
}

fn aws(endpoint: &str) -> Aws {
    let accounts = BTreeMap::from([(ACCOUNT.to_owned(), "plant".to_owned())]);
    Aws::new(AwsSettings { endpoints: vec![endpoint.to_owned()], ..AwsSettings::new(SERVER, accounts, &[]) }, http())
        .unwrap()
}

/// A request to sign, good as it stands.
#[derive(Clone)]
struct Request {
    endpoint: String,
    secret: &'static str,
    server: &'static str,
    at: SystemTime,
    query: Vec<(&'static str, String)>,
}

impl Request {
    fn new(endpoint: &str, at: SystemTime) -> Self {
        let query = [
            ("Action", "GetCallerIdentity"),
            ("Version", "2011-06-15"),
            ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
            ("X-Amz-Expires", "300"),
            ("X-Amz-SignedHeaders", "host;x-edgeward-server"),
        ];
        let query = query.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Self { endpoint: endpoint.to_owned(), secret: SECRET, server: SERVER, at, query }
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.query.retain(|(n, _)| *n != name);
        self.query.push((name, value.to_owned()));
        self
    }

    /// Signature Version 4 in the query.
    fn url(&self) -> String {
        let date = humantime::format_rfc3339_seconds(self.at).to_string().replace(['-', ':'], "");
        let scope = format!("{}/eu-central-1/sts/aws4_request", &date[..8]);
        let mut query = self.query.clone();
        let mut add = |name, value: String| {
            if query.iter().all(|(n, _)| *n != name) {
                query.push((name, value));
            }
        };
        add("X-Amz-Credential", format!("AKIATEST/{scope}"));
        add("X-Amz-Date", date.clone());
        query.sort();
        let pairs: Vec<_> = query.iter().map(|(name, value)| format!("{name}={}", percent(value))).collect();
        let host = self.endpoint.trim_start_matches("http://");
        let canonical = format!(
            "GET\n/\n{}\nhost:{host}\nx-edgeward-server:{}\n\nhost;x-edgeward-server\n{}",
            pairs.join("&"),
            self.server,
            hex(&sha256(b""))
        );
        let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex(&sha256(canonical.as_bytes())));
        let mut key = format!("AWS4{}", self.secret).into_bytes();
        for part in scope.split('/').chain([text.as_str()]) {
            key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), part.as_bytes()).as_ref().to_vec();
        }
        format!("{}/?{}&X-Amz-Signature={}", self.endpoint, pairs.join("&"), hex(&key))
    }

    fn token(&self) -> String {
        token(&self.url())
    }
}

fn token(url: &str) -> String {
    format!("edgeward-aws-v1.{}", BASE64URL.encode(url))
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, bytes).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn percent(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

struct Requests {
    endpoint: String,
    now: SystemTime,
}

impl Maker for Requests {
    fn make(&self, case: Case) -> Option<Shown> {
        let good = |ahead: u64| Request::new(&self.endpoint, self.now + Duration::from_secs(ahead));
        let mut at = self.now;
        let token = match case {
            Case::Valid => good(0).token(),
            Case::Replay => good(1).token(),
            Case::Expired => {
                at = self.now + Duration::from_secs(301);
                good(0).token()
            }
            Case::NotYetValid => good(600).token(),
            Case::InsideSkew => good(50).token(),
            Case::OutsideSkew => good(70).token(),
            Case::WrongAuthority => Request { secret: "another", ..good(0) }.token(),
            Case::WrongAudience => Request { server: "bank.example", ..good(0) }.token(),
            Case::Tampered => token(&good(0).url().replace("AKIATEST", "AKIAROOT")),
            Case::AlgorithmNone => good(0).with("X-Amz-Algorithm", "none").token(),
            Case::Huge => good(0).with("X-Amz-Security-Token", &"x".repeat(100_000)).token(),
            _ => return None,
        };
        Some(Shown { token: Some(token), subject: true, at: Some(at), twice: case == Case::Replay, ..Shown::default() })
    }

    fn absent(&self) -> &[Case] {
        // A secret key is AWS's and the caller's alone, and who shows a request first is taken for its maker.
        &[Case::HmacWithPublicKey, Case::OtherFamily, Case::UnknownKey, Case::Stolen, Case::CriticalExtension]
    }
}

async fn verify(aws: &Aws, token: &str, now: SystemTime) -> Result<Principal, TrustError> {
    aws.verify(Credential::Subject { token, shown: None }, Connection::default(), now).resolve().await
}

#[tokio::test]
async fn the_contract_holds_for_aws() {
    let Some(python) = part("EDGEWARD_TEST_MOTO", "a Python with moto and boto3") else { return };
    let (endpoint, _process) = sts(&python).await;
    let now = SystemTime::now();
    contract::holds(&aws(&endpoint), &Requests { endpoint, now }, now).await;
}

#[tokio::test]
async fn a_request_signed_by_the_client_of_aws_is_taken() {
    let Some(python) = part("EDGEWARD_TEST_MOTO", "a Python with moto and boto3") else { return };
    let (endpoint, _process) = sts(&python).await;
    for session in [None, Some("a session token/+=")] {
        let mut command = Command::new(&python);
        command.arg(script("presign.py")).args([&endpoint, "eu-central-1", SERVER]);
        command.env("AWS_ACCESS_KEY_ID", "AKIATEST").env("AWS_SECRET_ACCESS_KEY", SECRET);
        command.envs(session.map(|token| ("AWS_SESSION_TOKEN", token)));
        let token = String::from_utf8(command.output().await.unwrap().stdout).unwrap();
        let principal = verify(&aws(&endpoint), token.trim(), SystemTime::now()).await.unwrap();
        assert_eq!(principal.id, format!("arn:aws:sts::{ACCOUNT}:user/moto"));
        assert_eq!((principal.method, principal.strength), (Method::AwsIam, Strength::Bearer));
        assert_eq!(principal.tenant.as_deref(), Some("plant"));
        assert!(seconds(principal.expires_at) <= seconds(SystemTime::now()) + 300);
    }
}

#[tokio::test]
async fn an_account_that_is_not_listed_is_refused() {
    let Some(python) = part("EDGEWARD_TEST_MOTO", "a Python with moto and boto3") else { return };
    let (endpoint, _process) = sts(&python).await;
    let accounts = BTreeMap::from([("999999999999".to_owned(), "bank".to_owned())]);
    let settings = AwsSettings { endpoints: vec![endpoint.clone()], ..AwsSettings::new(SERVER, accounts, &[]) };
    let (aws, now) = (Aws::new(settings, http()).unwrap(), SystemTime::now());
    let refused = verify(&aws, &Request::new(&endpoint, now).token(), now).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unverified);
}

#[tokio::test]
async fn only_the_one_request_is_sent() {
    // Nothing listens there: what gets past the reading of the request ends as unavailable.
    let (endpoint, now) = ("http://127.0.0.1:9", SystemTime::now());
    let aws = aws(endpoint);
    let good = || Request::new(endpoint, now);
    assert_eq!(verify(&aws, &good().token(), now).await.unwrap_err().kind(), ErrorKind::Unavailable);
    let url = good().url();
    let rows = [
        ("another action", good().with("Action", "AssumeRole").token()),
        ("another version", good().with("Version", "2010-05-08").token()),
        ("a further parameter", good().with("RoleArn", "x").token()),
        ("an empty parameter", token(&format!("{url}&="))),
        ("a parameter twice", token(&format!("{url}&Action=GetCallerIdentity"))),
        ("a parameter in another case", token(&url.replace("Action", "action"))),
        ("the server is not signed", good().with("X-Amz-SignedHeaders", "host").token()),
        ("more is signed", good().with("X-Amz-SignedHeaders", "host;x-a;x-edgeward-server").token()),
        ("too long", good().with("X-Amz-Expires", "901").token()),
        ("no number", good().with("X-Amz-Expires", "-1").token()),
        ("no date", good().with("X-Amz-Date", "today").token()),
        ("a date that is none", good().with("X-Amz-Date", "20261341T000000Z").token()),
        ("a date with letters", good().with("X-Amz-Date", "2026é123T00000Z").token()),
        ("another day", good().with("X-Amz-Credential", "A/20200101/eu-central-1/sts/aws4_request").token()),
        ("another service", good().with("X-Amz-Credential", "A/20200101/eu-central-1/s3/aws4_request").token()),
        ("no signature", token(url.split("&X-Amz-Signature").next().unwrap())),
        ("a short signature", token(&url[..url.len() - 1])),
        ("another host", token(&url.replace("127.0.0.1:9", "169.254.169.254"))),
        ("another port", token(&url.replace(":9/", ":10/"))),
        ("another scheme", token(&url.replace("http:", "https:"))),
        ("a user", token(&url.replace("http://", "http://a@"))),
        ("a path", token(&url.replace("/?", "/latest/meta-data?"))),
        ("a fragment", token(&format!("{url}#x"))),
        ("a backslash", token(&url.replace("http://", "http:\\\\"))),
        ("a tab", token(&url.replace("Action", "Act\tion"))),
        ("no address", token("")),
        ("not base64", "edgeward-aws-v1.%%%".to_owned()),
        ("another prefix", good().token().replace("-v1.", "-v2.")),
    ];
    let mut sent = Vec::new();
    for (what, token) in rows {
        match verify(&aws, &token, now).await {
            Err(error) if error.kind() == ErrorKind::Unverified => {}
            other => sent.push(format!("{what}: {other:?}")),
        }
    }
    assert!(sent.is_empty(), "{}", sent.join("\n"));
    // It is no credential for a call.
    let token = good().token();
    let call = aws.verify(Credential::Bearer(&token), Connection::default(), now).resolve().await.unwrap_err();
    assert_eq!(call.kind(), ErrorKind::Unverified);
}

#[test]
fn an_installation_names_its_server_and_its_accounts() {
    let accounts = || BTreeMap::from([(ACCOUNT.to_owned(), "plant".to_owned())]);
    let rows = [
        AwsSettings::new("", accounts(), &[]),
        AwsSettings::new(SERVER, BTreeMap::new(), &[]),
        AwsSettings { endpoints: vec!["http://sts.amazonaws.com".into()], ..AwsSettings::new(SERVER, accounts(), &[]) },
    ];
    for settings in rows {
        assert_eq!(Aws::new(settings, http()).err().map(|e| e.kind()), Some(ErrorKind::Invalid));
    }
    let settings = AwsSettings::new(SERVER, accounts(), &["eu-central-1"]);
    assert_eq!(settings.endpoints, ["https://sts.amazonaws.com", "https://sts.eu-central-1.amazonaws.com"]);
}

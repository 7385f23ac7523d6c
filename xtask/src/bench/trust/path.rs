//! The whole way of a verified call against that of one that nobody asks about, on connections that stay.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use crate::{
    bench::{
        Effort, Row,
        client::{Connection, Target, Until, binary_request, closed_loop, json_request, post},
        figure, median,
        peers::{Edgeward, Running},
    },
    steps,
};

const SMALL: &str = "identity16";
const IMAGE: &str = "mobilenetv2";
const IMAGE_SHAPE: [usize; 4] = [1, 3, 224, 224];
const POLICIES: usize = 1000;
/// Connections that saturate the server.
const CONNECTIONS: usize = 4;

/// A folder of trust with a caller, `ward`, and many policies that are about others.
pub struct Trust {
    /// Made by `trust init`.
    pub folder: PathBuf,
    /// How `ward` speaks to the server.
    pub client: Arc<rustls::ClientConfig>,
}

impl Trust {
    /// Makes it.
    pub fn make(edgeward: &Edgeward) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("trust").tempdir_in(&edgeward.work)?.keep();
        let inner = folder.join("t");
        let trust = |arguments: &[&str]| steps::output(Command::new(&edgeward.binary).arg("trust").args(arguments));
        let shown = inner.display().to_string();
        trust(&["init", &shown, "--model", SMALL, "--model", IMAGE])?;
        let out = folder.join("ward").display().to_string();
        trust(&["issue", &shown, "ward", "--out", &out])?;
        fs::write(inner.join("policies/many.cedar"), policies()?)?;
        fs::write(inner.join("policies/many.entities.toml"), entities()?)?;
        let client = Arc::new(client(&inner.join("roots.pem"), &folder.join("ward"))?);
        Ok(Self { folder: inner, client })
    }

    /// Where `ward` finds the server.
    pub fn target(&self, server: &Running) -> Target {
        Target { address: server.http, tls: Some(self.client.clone()) }
    }
}

/// How the administrator speaks to the server.
pub fn admin(trust: &Trust) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    Ok(Arc::new(client(&trust.folder.join("roots.pem"), &trust.folder.join("admin"))?))
}

/// Revokes a principal.
pub fn revoke(address: SocketAddr, admin: &Arc<rustls::ClientConfig>, principal: &str) -> anyhow::Result<()> {
    let mut connection = Connection::open(Target { address, tls: Some(admin.clone()) })?;
    let body = serde_json::json!({ "principal": principal }).to_string();
    let answer =
        connection.ask(&post("/v2/trust/revocations", "content-type: application/json\r\n", body.as_bytes()))?;
    match answer.status {
        200 => Ok(()),
        status => bail!("not revoked: {status} {}", String::from_utf8_lossy(answer.body)),
    }
}

/// One policy for the caller, with a quota, and others of the same form.
fn policies() -> anyhow::Result<String> {
    let mut text = "@rate(\"1000000/s\") @concurrent(\"1000\")\n\
         permit (principal == Workload::\"spiffe://edgeward.local/ward\", action in Action::\"use\", resource) \
         when { principal.strength >= 2 && context.score >= 20 };\n"
        .to_owned();
    for number in 0..POLICIES - 3 {
        writeln!(
            text,
            "permit (principal in Group::\"g{}\", action in Action::\"use\", resource in Model::\"m{}\") when {{ principal.strength >= 2 && context.score >= 60 }};",
            number % 50,
            number % 100,
        )?;
    }
    Ok(text)
}

fn entities() -> anyhow::Result<String> {
    let mut text = String::new();
    (0..50).try_for_each(|number| writeln!(text, "[Group.g{number}]"))?;
    (0..100).try_for_each(|number| writeln!(text, "[Model.m{number}]\nany_version = true"))?;
    Ok(text)
}

fn client(roots: &Path, identity: &Path) -> anyhow::Result<rustls::ClientConfig> {
    let mut store = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(roots)? {
        store.add(root?)?;
    }
    let chain = CertificateDer::pem_file_iter(identity.with_extension("pem"))?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(identity.with_extension("key"))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(store).with_client_auth_cert(chain, key)?)
}

/// A session of the caller, bound to its certificate.
fn session(target: &Target) -> anyhow::Result<String> {
    let mut connection = Connection::open(target.clone())?;
    let thumbprint = thumbprint(target)?;
    let form = format!(
        "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange\
         &subject_token_type=urn%3Aedgeward%3Aparams%3Atoken-type%3Aclient-certificate&subject_token={thumbprint}"
    );
    let request = post("/v2/trust/token", "content-type: application/x-www-form-urlencoded\r\n", form.as_bytes());
    let answer = connection.ask(&request)?;
    let body = String::from_utf8_lossy(answer.body).into_owned();
    if answer.status != 200 {
        bail!("no session: {} {body}", answer.status);
    }
    let body: serde_json::Value = serde_json::from_str(&body)?;
    Ok(body["access_token"].as_str().context("no token")?.to_owned())
}

fn thumbprint(target: &Target) -> anyhow::Result<String> {
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
    use sha2::Digest as _;
    let config = target.tls.as_ref().context("no TLS")?;
    let key = config.client_auth_cert_resolver.resolve(&[], &[rustls::SignatureScheme::ECDSA_NISTP256_SHA256]);
    let key = key.context("no certificate")?;
    Ok(BASE64_URL_SAFE_NO_PAD.encode(sha2::Sha256::digest(key.end_entity_cert()?)))
}

/// The request with a header more.
fn with_token(request: &[u8], token: &str) -> Vec<u8> {
    let line = request.windows(2).position(|window| window == b"\r\n");
    let at = line.map_or(0, |at| at + 2);
    let (head, rest) = request.split_at(at);
    [head, format!("authorization: Bearer {token}\r\n").as_bytes(), rest].concat()
}

/// Both servers in turns: latency of a small request, and throughput of an image model.
pub fn run(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let trust = Trust::make(edgeward)?;
    let models = tempfile::Builder::new().prefix("models").tempdir_in(&edgeward.work)?.keep();
    for model in [SMALL, IMAGE] {
        fs::copy(edgeward.model(model), models.join(format!("{model}.onnx")))?;
    }
    let engine = ["--engine", edgeward.fast_engine(), "--threads", "1"];
    let plain = edgeward.serve(&models, &engine)?;
    let folder = trust.folder.display().to_string();
    let (mut command, http, grpc) = edgeward.command_as(&["--trust", &folder], &models, &engine)?;
    let verified = Running::start_verified(&mut command, http, grpc, &trust.client)?;
    let target = trust.target(&verified);
    let token = session(&target)?;

    let values: Vec<f32> = (1..=16).map(|i| i as f32 * 0.123_457).collect();
    let image: Vec<f32> = (0..IMAGE_SHAPE.iter().product::<usize>()).map(|i| (i as f32 * 0.618_034).fract()).collect();
    let small = json_request(SMALL, "INPUT0", &[1, 16], &values);
    let large = binary_request(IMAGE, "image", &IMAGE_SHAPE, &image);
    let (small_token, large_token) = (with_token(&small, &token), with_token(&large, &token));
    let turn = Until::Elapsed(Duration::from_millis(effort.seconds * 500));
    let mut times: [Vec<f64>; 8] = Default::default();
    for _ in 0..effort.rounds * 3 {
        let (a, b) = (
            closed_loop(plain.http, &small, 1, turn).whole()?,
            closed_loop(target.clone(), &small_token, 1, turn).whole()?,
        );
        let began = plain.cpu_seconds()?;
        let c = closed_loop(plain.http, &large, CONNECTIONS, turn).whole()?;
        let plain_cpu_ms = (plain.cpu_seconds()? - began) * 1e3 / c.answered as f64;
        let began = verified.cpu_seconds()?;
        let d = closed_loop(target.clone(), &large_token, CONNECTIONS, turn).whole()?;
        let cpu_ms = (verified.cpu_seconds()? - began) * 1e3 / d.answered as f64;
        let taken = [a.p50_ms, b.p50_ms, a.p99_ms, b.p99_ms, c.per_second, d.per_second, plain_cpu_ms, cpu_ms];
        times.iter_mut().zip(taken).for_each(|(times, time)| times.push(time));
    }
    let [plain_p50, p50, plain_p99, p99, plain_rate, rate, plain_cpu, cpu] = times.map(|mut times| median(&mut times));
    let both = |a: f64, b: f64, unit: &str| format!("{} and {} {unit}", figure(a), figure(b));
    Ok(vec![
        Row::at_most(
            "path",
            "a small request, 1 connection: p50 above that without questions",
            p50 - plain_p50,
            "ms",
            0.15,
        )
        .against(both(p50, plain_p50, "ms")),
        Row::at_most("path", "the same: p99", p99 - plain_p99, "ms", 1.0).against(both(p99, plain_p99, "ms")),
        Row::at_least(
            "path",
            "MobileNetV2, saturated: throughput of that without questions",
            100.0 * rate / plain_rate,
            "%",
            97.0,
        )
        .against(both(rate, plain_rate, "/s")),
        Row::information(
            "path",
            "the same: the server's own computing of that without questions",
            100.0 * cpu / plain_cpu,
            "%",
        )
        .against(format!("{} a request; the client's TLS computes on the same cores", both(cpu, plain_cpu, "ms"))),
    ])
}

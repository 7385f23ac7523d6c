//! Drills with tokens: stolen, forged, made for others, and used again.

use std::time::SystemTime;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL};
use edgeward_trust::{
    identity::jose::Algorithm,
    session::{LocalSigner, TokenSigner},
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    Stage,
    network::LIVE,
    outcome::{Evidence, Verdict},
};
use crate::{
    failure::Failure,
    trust::failure,
    wire::{Call, Reply, Shown},
};

const TOKEN: &str = "/v2/trust/token";
const TYPE: &str = "edgeward-session+jwt";
/// A host that is nobody's (RFC 2606).
const OTHER: &str = "other.invalid";

/// A key that makes proofs (RFC 9449).
pub struct ProofKey(LocalSigner);

/// What a proof is for.
struct Proof<'a> {
    method: &'a str,
    url: &'a str,
    token: Option<&'a str>,
    /// Seconds from now when it says that it was made.
    offset_s: i64,
}

impl ProofKey {
    fn new() -> Result<Self, Failure> {
        LocalSigner::generate(Algorithm::EdDsa).map(Self).map_err(failure)
    }

    async fn prove(&self, proof: &Proof<'_>) -> Result<String, Failure> {
        let header = json!({ "typ": "dpop+jwt", "alg": "EdDSA", "jwk": self.0.public_jwk() });
        self.sign(&header, &self.claims(proof)?).await
    }

    fn claims(&self, proof: &Proof<'_>) -> Result<Value, Failure> {
        let id = edgeward_trust::keys::random_bytes::<16>().map_err(failure)?;
        let mut claims = json!({
            "jti": BASE64URL.encode(id),
            "htm": proof.method,
            "htu": proof.url,
            "iat": now_s() + proof.offset_s,
        });
        if let Some(token) = proof.token {
            claims["ath"] = json!(BASE64URL.encode(Sha256::digest(token)));
        }
        Ok(claims)
    }

    async fn sign(&self, header: &Value, claims: &Value) -> Result<String, Failure> {
        let message = message(header, claims);
        let signature = self.0.sign(message.as_bytes()).await.map_err(failure)?;
        Ok(format!("{message}.{}", BASE64URL.encode(signature)))
    }
}

fn now_s() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64)
}

fn message(header: &Value, claims: &Value) -> String {
    format!("{}.{}", BASE64URL.encode(header.to_string()), BASE64URL.encode(claims.to_string()))
}

/// A session of the insider; why there is none, where the server makes none.
pub async fn session(stage: &Stage<'_>, key: Option<&ProofKey>) -> Result<Result<String, String>, Failure> {
    let insider = &stage.cast.insider;
    let mut call = Call::post(TOKEN, form(&insider.thumbprint(), CERTIFICATE, &[]))
        .with("content-type", "application/x-www-form-urlencoded");
    if let Some(key) = key {
        let url = stage.http.url(TOKEN);
        call = call.with("dpop", key.prove(&Proof { method: "POST", url: &url, token: None, offset_s: 0 }).await?);
    }
    let reply = stage.cast.dialer.ask(&stage.http, Some(&insider.shown), call).await;
    let token = reply.json().get("access_token").and_then(Value::as_str).map(str::to_owned);
    Ok(token.ok_or_else(|| format!("the server makes no session: {reply}")))
}

const CERTIFICATE: &str = "urn:edgeward:params:token-type:client-certificate";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

fn form(token: &str, kind: &str, more: &[(&str, &str)]) -> String {
    let escape = |text: &str| text.replace('%', "%25").replace('&', "%26").replace('+', "%2B").replace('=', "%3D");
    let grant = ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange");
    let pairs = [grant, ("subject_token", token), ("subject_token_type", kind)];
    let pairs: Vec<String> =
        pairs.iter().chain(more).map(|(name, value)| format!("{name}={}", escape(value))).collect();
    pairs.join("&")
}

/// A request with a token, over a connection with a certificate or without.
async fn present(stage: &Stage<'_>, shown: Option<&Shown>, scheme: &str, token: &str, proof: Option<String>) -> Reply {
    let mut call = Call::get(LIVE).with("authorization", format!("{scheme} {token}"));
    if let Some(proof) = proof {
        call = call.with("dpop", proof);
    }
    stage.cast.dialer.ask(&stage.http, shown, call).await
}

fn judged(what: &str, reply: &Reply) -> Evidence {
    Evidence::attempt(what, reply.to_string(), reply.recognised())
}

/// What stands for a session where the server makes none: nobody should believe it.
fn made_up(stage: &Stage<'_>) -> String {
    let claims = forged_claims(stage, None);
    format!(
        "{}.{}",
        message(&json!({ "alg": "EdDSA", "typ": TYPE, "kid": "none" }), &claims),
        BASE64URL.encode([7; 64])
    )
}

/// A session of the insider and a certificate of its, used by others.
pub async fn stolen(stage: &Stage<'_>) -> Result<Verdict, Failure> {
    let (cast, key) = (&stage.cast, ProofKey::new()?);
    let (bound, proven) = (session(stage, None).await?, session(stage, Some(&key)).await?);
    let broken = bound.as_ref().err().or(proven.as_ref().err()).cloned();
    let (bound, proven) = (bound.unwrap_or_else(|_| made_up(stage)), proven.unwrap_or_else(|_| made_up(stage)));
    let url = stage.http.url(LIVE);
    let proof = |token| Proof { method: "GET", url: &url, token: Some(token), offset_s: 0 };
    let thief = ProofKey::new()?;
    let stranger = Some(&cast.stranger.shown);
    let keyless = cast.insider.shown.with_key_of(&cast.stranger.shown);
    let evidence = vec![
        judged(
            "the session, over a connection without a certificate",
            &present(stage, None, "Bearer", &bound, None).await,
        ),
        judged(
            "the session, over another caller's connection",
            &present(stage, stranger, "Bearer", &bound, None).await,
        ),
        judged(
            "the session that is bound to a key, without a proof",
            &present(stage, None, "Bearer", &proven, None).await,
        ),
        judged("the same, called DPoP", &present(stage, None, "DPoP", &proven, None).await),
        judged(
            "the same, with the thief's own proof",
            &present(stage, None, "DPoP", &proven, Some(thief.prove(&proof(&proven)).await?)).await,
        ),
        judged("the same, over another caller's connection", &present(stage, stranger, "Bearer", &proven, None).await),
        judged(
            "the insider's certificate with the thief's key",
            &cast.dialer.ask(&stage.http, Some(&keyless), Call::get(LIVE)).await,
        ),
    ];
    let rightful = [
        present(stage, Some(&cast.insider.shown), "Bearer", &bound, None).await,
        present(stage, None, "DPoP", &proven, Some(key.prove(&proof(&proven)).await?)).await,
    ];
    let refused = rightful.iter().find(|reply| !reply.recognised());
    let broken = broken.or(refused.map(|reply| format!("its owner is not recognised by it either: {reply}")));
    Ok(Verdict::of(evidence, "of no use without the key that they are bound to", "worked for a thief")
        .unless_broken(broken))
}

/// What an attacker would like a token to say: the administrator, bound to the attacker's own certificate.
fn forged_claims(stage: &Stage<'_>, session: Option<&str>) -> Value {
    let taken = session.and_then(|session| session.split('.').nth(1)).and_then(|part| BASE64URL.decode(part).ok());
    let mut claims: Value = taken.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_else(|| {
        let own = format!("edgeward:{}", stage.folder.domain);
        json!({ "iss": own, "aud": own, "jti": "drill", "method": "spiffe", "strength": "key_bound" })
    });
    claims["sub"] = json!(format!("spiffe://{}/admin", stage.folder.domain));
    claims["cnf"] = json!({ "x5t#S256": stage.cast.stranger.thumbprint() });
    claims["iat"] = json!(now_s());
    claims["exp"] = json!(now_s() + 600);
    claims
}

/// HS256 of a message (RFC 7515 section 3.2).
fn hs256(key: &[u8], message: &str) -> String {
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key);
    BASE64URL.encode(aws_lc_rs::hmac::sign(&key, message.as_bytes()))
}

/// Tokens that claim another algorithm than their key's, or none.
pub async fn algorithms(stage: &Stage<'_>) -> Result<Verdict, Failure> {
    let session = session(stage, None).await?;
    let claims = forged_claims(stage, session.as_deref().ok());
    let jwk = public_key(stage).await;
    let mut evidence = Vec::new();
    for (what, token) in forgeries(&claims, &jwk, session.as_deref().ok()).await? {
        let reply = present(stage, Some(&stage.cast.stranger.shown), "Bearer", &token, None).await;
        evidence.push(judged(what, &reply));
    }
    evidence.extend(unsigned_proofs(stage).await?);
    let broken = session.err();
    Ok(Verdict::of(evidence, "every forgery is refused", "a forgery was believed").unless_broken(broken))
}

/// The key that verifies sessions: everyone who may read it could try to sign with it.
async fn public_key(stage: &Stage<'_>) -> Value {
    let reply = stage.cast.dialer.ask(&stage.http, Some(&stage.cast.admin.shown), Call::get("/v2/trust/keys")).await;
    let key = reply.json().pointer("/keys/0").cloned();
    key.unwrap_or_else(|| json!({ "kty": "OKP", "crv": "Ed25519", "x": BASE64URL.encode([9; 32]), "kid": "none" }))
}

async fn forgeries(claims: &Value, jwk: &Value, session: Option<&str>) -> Result<Vec<(&'static str, String)>, Failure> {
    let kid = jwk.get("kid").cloned().unwrap_or_default();
    let header = |alg: &str| json!({ "alg": alg, "typ": TYPE, "kid": kid });
    let x = jwk.get("x").and_then(Value::as_str).unwrap_or_default();
    let point = BASE64URL.decode(x).unwrap_or_default();
    let unsigned = |alg: &str| message(&header(alg), claims);
    let hmac = |key: &[u8]| format!("{}.{}", unsigned("HS256"), hs256(key, &unsigned("HS256")));
    let own = ProofKey::new()?;
    let mut embedded = header("EdDSA");
    embedded["jwk"] = own.0.public_jwk().clone();
    let mut critical = header("EdDSA");
    critical["crit"] = json!(["b64"]);
    critical["b64"] = json!(false);
    let elsewhere = json!({ "alg": "HS256", "typ": TYPE, "kid": "../../../../dev/null" });
    let elsewhere = message(&elsewhere, claims);
    let mut forged = vec![
        ("`alg` none, without a signature", format!("{}.", unsigned("none"))),
        ("`alg` None", format!("{}.", unsigned("None"))),
        ("`alg` nOnE with a signature", format!("{}.AA", unsigned("nOnE"))),
        ("`alg` left empty", format!("{}.", unsigned(""))),
        ("HS256 with the public key's point as the secret", hmac(&point)),
        ("HS256 with the public key's text as the secret", hmac(x.as_bytes())),
        ("HS256 with the public JWK as the secret", hmac(jwk.to_string().as_bytes())),
        ("HS256 with an empty secret", hmac(b"")),
        ("HS256 with a key ID that is a path", format!("{elsewhere}.{}", hs256(b"", &elsewhere))),
        ("signed by the attacker, whose key the header brings along", own.sign(&embedded, claims).await?),
        ("signed by the attacker, with the server's key ID", own.sign(&header("EdDSA"), claims).await?),
        ("a critical extension that nobody knows", own.sign(&critical, claims).await?),
        (
            "ES256 with a signature of zeros (CVE-2022-21449)",
            format!("{}.{}", unsigned("ES256"), BASE64URL.encode([0; 64])),
        ),
        ("EdDSA with a signature of zeros", format!("{}.{}", unsigned("EdDSA"), BASE64URL.encode([0; 64]))),
    ];
    if let Some((head, rest)) = session.and_then(|session| session.split_once('.'))
        && let Some((_, signature)) = rest.split_once('.')
    {
        forged.push((
            "true header and signature around other claims",
            format!("{head}.{}.{signature}", BASE64URL.encode(claims.to_string())),
        ));
        forged.push((
            "a true session, its signature cut off",
            format!("{head}.{}", rest.split('.').next().unwrap_or_default()),
        ));
    }
    Ok(forged)
}

/// Proofs for a true session that nobody signed.
async fn unsigned_proofs(stage: &Stage<'_>) -> Result<Vec<Evidence>, Failure> {
    let key = ProofKey::new()?;
    let token = session(stage, Some(&key)).await?.unwrap_or_else(|_| made_up(stage));
    let url = stage.http.url(LIVE);
    let claims = key.claims(&Proof { method: "GET", url: &url, token: Some(&token), offset_s: 0 })?;
    let header = |alg: &str| json!({ "typ": "dpop+jwt", "alg": alg, "jwk": key.0.public_jwk() });
    let none = format!("{}.", message(&header("none"), &claims));
    let hmac = message(&header("HS256"), &claims);
    let hmac = format!("{hmac}.{}", hs256(key.0.public_jwk().to_string().as_bytes(), &hmac));
    Ok(vec![
        judged("a proof with `alg` none", &present(stage, None, "DPoP", &token, Some(none)).await),
        judged("a proof with HS256 and its own public key", &present(stage, None, "DPoP", &token, Some(hmac)).await),
    ])
}

/// Tokens and proofs that were made for another server.
pub async fn audience(stage: &Stage<'_>) -> Result<Verdict, Failure> {
    let (cast, key) = (&stage.cast, ProofKey::new()?);
    let session = session(stage, Some(&key)).await?;
    let broken = session.as_ref().err().cloned();
    let token = session.unwrap_or_else(|_| made_up(stage));
    let (url, other) = (stage.http.url(LIVE), format!("https://{OTHER}{LIVE}"));
    let mut evidence = Vec::new();

    let body = form(&cast.insider.thumbprint(), CERTIFICATE, &[("audience", "https://other.invalid")]);
    let wanted = Call::post(TOKEN, body).with("content-type", "application/x-www-form-urlencoded");
    let reply = cast.dialer.ask(&stage.http, Some(&cast.insider.shown), wanted).await;
    evidence.push(Evidence::attempt(
        "a session for another audience is asked for",
        reply.to_string(),
        reply.succeeded(),
    ));

    let proof = key.prove(&Proof { method: "GET", url: &other, token: Some(&token), offset_s: 0 }).await?;
    evidence.push(judged("a proof for another host", &present(stage, None, "DPoP", &token, Some(proof)).await));
    let proof = key.prove(&Proof { method: "GET", url: &other, token: Some(&token), offset_s: 0 }).await?;
    let elsewhere =
        Call::get(LIVE).with("host", OTHER).with("authorization", format!("DPoP {token}")).with("dpop", proof);
    let reply = cast.dialer.ask(&stage.http, None, elsewhere).await;
    evidence.push(judged("the same, passed on by that host with its own name", &reply));

    let elsewhere = sister_session(stage, &token).await?;
    let shown = Some(&cast.stranger.shown);
    evidence.push(judged(
        "a session of another server, for another audience",
        &present(stage, shown, "Bearer", &elsewhere.other_audience, None).await,
    ));
    evidence.push(judged(
        "a session of another server that calls itself the same",
        &present(stage, shown, "Bearer", &elsewhere.same_names, None).await,
    ));
    let proof = key.prove(&Proof { method: "GET", url: &url, token: Some(&token), offset_s: 0 }).await?;
    evidence.push(judged("a proof as if it were a session", &present(stage, shown, "Bearer", &proof, None).await));
    let swap = Call::post(TOKEN, form(&token, JWT, &[])).with("content-type", "application/x-www-form-urlencoded");
    let reply = cast.dialer.ask(&stage.http, shown, swap).await;
    evidence.push(Evidence::attempt(
        "a stolen session exchanged for one of the thief's",
        reply.to_string(),
        reply.succeeded(),
    ));
    Ok(Verdict::of(evidence, "what was made for others is refused", "was taken although it was made for others")
        .unless_broken(broken))
}

struct Elsewhere {
    other_audience: String,
    same_names: String,
}

/// Sessions as another installation of this software signs them, with a key of its own.
async fn sister_session(stage: &Stage<'_>, token: &str) -> Result<Elsewhere, Failure> {
    let sister = ProofKey(LocalSigner::generate(Algorithm::EdDsa).map_err(failure)?);
    let header = json!({ "alg": "EdDSA", "typ": TYPE, "kid": sister.0.public_jwk().get("kid") });
    let mut claims = forged_claims(stage, Some(token));
    let same_names = sister.sign(&header, &claims).await?;
    claims["aud"] = json!("edgeward:other.invalid");
    Ok(Elsewhere { same_names, other_audience: sister.sign(&header, &claims).await? })
}

/// Proofs that are used again, late, early or for another request.
pub async fn replay(stage: &Stage<'_>) -> Result<Verdict, Failure> {
    let key = ProofKey::new()?;
    let session = session(stage, Some(&key)).await?;
    let broken = session.as_ref().err().cloned();
    let token = session.unwrap_or_else(|_| made_up(stage));
    let (url, elsewhere) = (stage.http.url(LIVE), stage.http.url("/v2"));
    let proof = |method, url, offset_s| Proof { method, url, token: Some(&token), offset_s };
    let once = key.prove(&proof("GET", &url, 0)).await?;
    let first = present(stage, None, "DPoP", &token, Some(once.clone())).await;
    let mut evidence = vec![Evidence::new("a proof, for the first time", first.to_string())];
    evidence.push(judged("the same proof again", &present(stage, None, "DPoP", &token, Some(once.clone())).await));
    evidence.push(judged(
        "the same proof again, from another caller's connection",
        &present(stage, Some(&stage.cast.stranger.shown), "DPoP", &token, Some(once)).await,
    ));
    for (what, method, url, offset_s) in [
        ("a proof of ten minutes ago", "GET", &url, -600),
        ("a proof of in ten minutes", "GET", &url, 600),
        ("a proof for another method", "POST", &url, 0),
        ("a proof for another path", "GET", &elsewhere, 0),
    ] {
        let proof = key.prove(&proof(method, url, offset_s)).await?;
        evidence.push(judged(what, &present(stage, None, "DPoP", &token, Some(proof)).await));
    }
    let other = Proof { method: "GET", url: &url, token: Some("another token"), offset_s: 0 };
    evidence.push(judged(
        "a proof for another token",
        &present(stage, None, "DPoP", &token, Some(key.prove(&other).await?)).await,
    ));
    evidence.push(exchanged_twice(stage, &key).await?);
    let broken = broken
        .or_else(|| (!first.recognised()).then(|| format!("a proof is of no use the first time either: {first}")));
    Ok(Verdict::of(evidence, "each proof counts once, for one request", "was taken again").unless_broken(broken))
}

async fn exchanged_twice(stage: &Stage<'_>, key: &ProofKey) -> Result<Evidence, Failure> {
    let (cast, url) = (&stage.cast, stage.http.url(TOKEN));
    let proof = key.prove(&Proof { method: "POST", url: &url, token: None, offset_s: 0 }).await?;
    let call = || {
        Call::post(TOKEN, form(&cast.insider.thumbprint(), CERTIFICATE, &[]))
            .with("content-type", "application/x-www-form-urlencoded")
            .with("dpop", proof.clone())
    };
    let first = cast.dialer.ask(&stage.http, Some(&cast.insider.shown), call()).await;
    let second = cast.dialer.ask(&stage.http, Some(&cast.insider.shown), call()).await;
    Ok(Evidence::attempt(
        "an exchange with a proof that was used",
        format!("{first}; then {second}"),
        second.succeeded(),
    ))
}

//! Drills at the door: no TLS, certificates that are no good, and paths that lead elsewhere.

use std::time::{Duration, SystemTime};

use super::{
    Stage,
    cast::{Foreign, forged},
    outcome::{Evidence, Verdict},
};
use crate::{
    failure::Failure,
    wire::{Call, Listener, Reply, Shown, raw},
};

/// Anyone who is verified may ask it, by the first policies.
pub const LIVE: &str = "/v2/health/live";

/// The begin of HTTP/2 without TLS, with an empty frame of settings.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

/// Tells an answer from a refusal, by its first bytes.
type IsAnswer = fn(&[u8]) -> bool;

/// Speaks to each listener without TLS, and with a TLS that is too old.
pub async fn plaintext(stage: &Stage<'_>) -> Result<Verdict, Failure> {
    let mut evidence = Vec::new();
    for (name, listener) in stage.listeners() {
        let probes: [(&str, Vec<u8>, IsAnswer); 3] = [
            ("HTTP/1.1", format!("GET {LIVE} HTTP/1.1\r\nhost: {}\r\n\r\n", listener.authority()).into(), is_http1),
            ("HTTP/2", HTTP2.to_vec(), is_http2_settings),
            ("TLS 1.2", hello_of_tls_1_2(), is_server_hello),
        ];
        for (protocol, bytes, is_answer) in probes {
            let (found, through) = match raw(listener, &bytes).await {
                Ok(answer) if answer.is_empty() => ("closed".to_owned(), false),
                Ok(answer) if is_answer(&answer) => (format!("answered with {} bytes", answer.len()), true),
                Ok(answer) => (refusal(&answer), false),
                Err(error) => (format!("closed: {error}"), false),
            };
            evidence.push(Evidence::attempt(
                format!("{protocol} to {name} ({})", listener.authority()),
                found,
                through,
            ));
        }
    }
    Ok(Verdict::of(evidence, "nothing is said without TLS 1.3", "answered, for everyone on the way to read and change"))
}

fn is_http1(answer: &[u8]) -> bool {
    answer.starts_with(b"HTTP/")
}

/// A server's first frame of HTTP/2 is its settings: type 4 on stream 0.
fn is_http2_settings(answer: &[u8]) -> bool {
    answer.get(3) == Some(&4) && answer.get(5..9) == Some(&[0; 4])
}

/// A handshake record with a ServerHello (RFC 8446 section 4).
fn is_server_hello(answer: &[u8]) -> bool {
    answer.first() == Some(&22) && answer.get(5) == Some(&2)
}

fn refusal(answer: &[u8]) -> String {
    match answer {
        // RFC 8446 section 6: content type 21, version, length, level, description.
        [21, _, _, _, _, _, description, ..] => format!("refused with TLS alert {description}"),
        _ => format!("{} bytes that are no answer", answer.len()),
    }
}

/// A ClientHello as a client of TLS 1.2 sends it (RFC 5246 section 7.4.1.2), with suites that servers of that time have.
fn hello_of_tls_1_2() -> Vec<u8> {
    let suites: [u8; 8] = [0xc0, 0x2b, 0xc0, 0x2f, 0xc0, 0x2c, 0xc0, 0x30];
    let extensions: [&[u8]; 3] = [
        &[0, 10, 0, 6, 0, 4, 0, 23, 0, 24],                   // supported_groups: P-256, P-384
        &[0, 11, 0, 2, 1, 0],                                 // ec_point_formats: uncompressed
        &[0, 13, 0, 12, 0, 10, 4, 3, 5, 3, 8, 4, 4, 1, 5, 1], // signature_algorithms
    ];
    let extensions = extensions.concat();
    let mut body = vec![3, 3];
    body.extend([0x42; 32]);
    body.push(0);
    body.extend([0, suites.len() as u8]);
    body.extend(suites);
    body.extend([1, 0]);
    body.extend([0, extensions.len() as u8]);
    body.extend(extensions);
    let mut record = vec![22, 3, 1, 0, body.len() as u8 + 4, 1, 0, 0, body.len() as u8];
    record.extend(body);
    record
}

/// Certificates of nobody's authority, in the administrator's name.
pub async fn foreign(stage: &Stage<'_>) -> Result<Verdict, Failure> {
    let domain = &stage.folder.domain;
    let mut false_twin = Foreign::new(domain)?;
    let mut other = Foreign::new("other.invalid")?;
    let admin_id = format!("spiffe://{domain}/admin");
    let twin = false_twin.issue("admin")?.shown;
    let cast = &stage.cast;
    let shown: [(&str, Option<Shown>); 6] = [
        ("no certificate", None),
        ("the administrator's name by another authority of the same trust domain", Some(twin.clone())),
        ("the same, with the true intermediate behind it", Some(twin.with_chain_of(&cast.admin.shown))),
        ("the administrator's name, signed by itself", Some(forged(&admin_id, None)?)),
        (
            "the administrator's name, signed by the insider's own certificate",
            Some(forged(&admin_id, Some(&cast.insider))?),
        ),
        ("an administrator of the trust domain `other.invalid`", Some(other.issue("admin")?.shown)),
    ];
    let mut evidence = Vec::new();
    for (what, shown) in shown {
        let reply = cast.dialer.ask(&stage.http, shown.as_ref(), Call::get(LIVE)).await;
        evidence.push(Evidence::attempt(what, reply.to_string(), reply.recognised()));
    }
    let rightful = cast.dialer.ask(&stage.http, Some(&cast.admin.shown), Call::get(LIVE)).await;
    let broken =
        (!rightful.recognised()).then(|| format!("the true administrator is not recognised either: {rightful}"));
    Ok(Verdict::of(evidence, "nobody is recognised by them", "was taken for somebody").unless_broken(broken))
}

/// A certificate that ends while its connection is open.
pub async fn expired(stage: &Stage<'_>) -> Result<Verdict, Failure> {
    let short = stage.folder.issue("drill/short", Duration::from_secs(2))?;
    let dialer = &stage.cast.dialer;
    let mut open = match dialer.connect(&stage.http, Some(&short.shown)).await {
        Ok(open) => open,
        Err(error) => return Ok(Verdict::not_applicable(format!("no connection: {error}"))),
    };
    let before = open.ask(Call::get(LIVE)).await;
    while SystemTime::now() <= short.not_after {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // What was decided in its last second may still be on its way.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let evidence = vec![
        Evidence::new("while it is valid", before.to_string()),
        judged("after its end, over the connection that was open", &open.ask(Call::get(LIVE)).await),
        judged(
            "after its end, over a new connection",
            &dialer.ask(&stage.http, Some(&short.shown), Call::get(LIVE)).await,
        ),
    ];
    let broken = (!before.succeeded()).then(|| format!("the certificate was of no use while it was valid: {before}"));
    Ok(Verdict::of(evidence, "of no use after its end", "answered after its end").unless_broken(broken))
}

fn judged(what: &str, reply: &Reply) -> Evidence {
    Evidence::attempt(what, reply.to_string(), reply.succeeded())
}

/// Paths that look like one thing and lead to another, by a caller who may not use the model.
pub async fn traversal(stage: &Stage<'_>) -> Result<Verdict, Failure> {
    let model = stage.model_name();
    let mut evidence = Vec::new();
    for path in disguised(model) {
        let reply = stage.cast.dialer.ask(&stage.http, Some(&stage.cast.stranger.shown), Call::get(&path)).await;
        evidence.push(Evidence::attempt(format!("GET {path}"), reply.to_string(), tells(&reply, model)));
    }
    // Files that are no models, by the one who may load everything.
    for name in [
        "..%2f..%2f..%2fetc%2fpasswd",
        "%2fetc%2fpasswd",
        "..",
        "%2e%2e",
        "..%5c..%5cetc",
        "a%00b",
        "audit%2f..%2f..%2fkeys",
    ] {
        let path = format!("/v2/repository/models/{name}/load");
        let reply = stage.cast.dialer.ask(&stage.http, Some(&stage.cast.admin.shown), Call::post(&path, "")).await;
        evidence.push(Evidence::attempt(
            format!("POST {path}, as the administrator"),
            reply.to_string(),
            reply.succeeded(),
        ));
    }
    Ok(Verdict::of(evidence, "no path leads past the decision", "led to what its caller may not reach"))
}

/// True for an answer that says something of the model.
fn tells(reply: &Reply, model: &str) -> bool {
    let body = String::from_utf8_lossy(reply.body());
    reply.succeeded()
        && (body.contains("\"inputs\"") || body.contains("\"platform\"") || (!model.is_empty() && body.contains(model)))
}

fn disguised(model: &str) -> Vec<String> {
    [
        "/v2/health/live/../../models/M",
        "/v2/health/live/%2e%2e/%2e%2e/models/M",
        "/v2/health/live/..%2f..%2fmodels%2fM",
        "/v2/models/nothing/../M",
        "/v2/models/nothing%2f..%2fM",
        "/v2/models/./M",
        "/v2/models//M",
        "//v2/models/M",
        "/v2/models/M/",
        "/v2/models/M/versions/..",
        "/v2/models/M%00",
        "/v2/models/M%2f",
        "/v2/models/M;v=1",
        "/v2/models/M%20",
        "/v2%2fmodels%2fM",
        "/V2/models/M",
        "/v2/models/M?x=/v2/health/live",
        "/v2/models/M#/v2/health/live",
    ]
    .map(|path| path.replace('M', model))
    .into()
}

impl Stage<'_> {
    /// Each listener by its name.
    pub fn listeners(&self) -> Vec<(&'static str, &Listener)> {
        [("REST", Some(&self.http)), ("gRPC", self.grpc.as_ref()), ("metrics", self.metrics.as_ref())]
            .into_iter()
            .filter_map(|(name, listener)| Some((name, listener?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hello_is_as_long_as_it_says() {
        let hello = hello_of_tls_1_2();
        assert_eq!(usize::from(hello[4]), hello.len() - 5);
        assert_eq!(usize::from(hello[8]), hello.len() - 9);
    }

    #[test]
    fn answers_are_told_from_refusals() {
        assert!(is_http1(b"HTTP/1.1 400 Bad Request") && !is_http1(b"\x15\x03\x03"));
        assert!(
            is_http2_settings(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00")
                && !is_http2_settings(b"\x15\x03\x03\x00\x02\x02\x46")
        );
        assert!(is_server_hello(b"\x16\x03\x03\x00\x40\x02") && !is_server_hello(b"\x15\x03\x03\x00\x02\x02\x46"));
        assert_eq!(refusal(b"\x15\x03\x03\x00\x02\x02\x46"), "refused with TLS alert 70");
    }
}

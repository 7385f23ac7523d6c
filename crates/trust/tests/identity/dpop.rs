//! Proofs of possession, with the published examples of RFC 7638, RFC 8037 and RFC 9449.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL};
use edgeward_trust::{
    ErrorKind, Thumbprint,
    identity::{
        dpop::{Dpop, DpopSettings, Nonces, Target},
        jose::PublicKey,
        replay::ReplayCache,
    },
};
use serde_json::{Value, json};

use super::{
    keys::{Key, digest},
    oidc::seconds,
};

const URL: &str = "https://edge.example/v2/models/m/infer";

pub fn thumbprint(key: &Key) -> String {
    PublicKey::from_jwk(&key.public()).unwrap().thumbprint().to_base64url()
}

fn parts(key: &Key, method: &str, url: &str, token: Option<&str>, at: SystemTime) -> (Value, Value) {
    let header = json!({ "typ": "dpop+jwt", "alg": key.alg(), "jwk": key.public() });
    let jti = BASE64URL.encode(std::array::from_fn::<u8, 16, _>(|_| random_byte()));
    let mut claims = json!({ "jti": jti, "htm": method, "htu": url, "iat": seconds(at) });
    if let Some(token) = token {
        claims["ath"] = json!(digest(token));
    }
    (header, claims)
}

fn random_byte() -> u8 {
    let mut byte = [0];
    aws_lc_rs::rand::fill(&mut byte).unwrap();
    byte[0]
}

/// A proof as a client makes it.
pub fn proof(key: &Key, method: &str, url: &str, token: Option<&str>, at: SystemTime) -> String {
    let (header, claims) = parts(key, method, url, token, at);
    key.token(&header, &claims)
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

const fn target(token: Option<&str>) -> Target<'_> {
    Target { method: "POST", url: URL, token }
}

#[test]
fn thumbprints_are_those_of_the_standards() {
    let rows = [
        // RFC 7638 section 3.1
        (
            json!({ "kty": "RSA", "e": "AQAB", "alg": "RS256", "kid": "2011-04-29",
                "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw" }),
            "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
        ),
        // RFC 8037 appendix A.3
        (
            json!({ "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" }),
            "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
        ),
        // RFC 9449 section 6.1
        (
            json!({ "kty": "EC", "crv": "P-256", "x": "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs",
                "y": "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA" }),
            "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I",
        ),
    ];
    for (jwk, expected) in rows {
        assert_eq!(PublicKey::from_jwk(&jwk).unwrap().thumbprint().to_base64url(), expected);
    }
}

#[test]
fn the_examples_of_rfc_9449_hold() {
    // Section 4.1: without a token; section 7.1: with one.
    let first = "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2VuIiwiaWF0IjoxNTYyMjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg";
    let second = "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90ZWN0ZWRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9.2oW9RP35yRqzhrtNP86L-Ey71EOptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA";
    let dpop = Dpop::new(DpopSettings::default());
    let target = Target { method: "POST", url: "https://server.example.com/token", token: None };
    let proof = dpop.check(first, &target, at(1_562_262_620)).unwrap();
    assert_eq!(proof.key, Thumbprint::from_base64url("0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I").unwrap());
    let token = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU";
    let target = Target { method: "GET", url: "https://resource.example.org/protectedresource", token: Some(token) };
    dpop.check(second, &target, at(1_562_262_620)).unwrap();
    let other = Target { token: Some("another"), ..target };
    assert_eq!(dpop.check(second, &other, at(1_562_262_620)).unwrap_err().kind(), ErrorKind::Unverified);
}

#[test]
fn a_proof_is_for_one_request() {
    let (dpop, key, now) = (Dpop::new(DpopSettings::default()), Key::p256(), SystemTime::now());
    let check = |proof: &str, target: &Target<'_>| dpop.check(proof, target, now).map(|_| ()).map_err(|e| e.kind());
    let good = proof(&key, "POST", URL, Some("t"), now);
    assert_eq!(check(&good, &target(Some("t"))), Ok(()));
    assert_eq!(
        check(&good, &Target { url: "https://EDGE.example:443/v2/models/m/infer?a=b#c", ..target(Some("t")) }),
        Ok(())
    );
    let others = [
        Target { method: "GET", ..target(Some("t")) },
        Target { method: "post", ..target(Some("t")) },
        Target { url: "https://edge.example/v2/models/n/infer", ..target(Some("t")) },
        Target { url: "http://edge.example/v2/models/m/infer", ..target(Some("t")) },
        Target { url: "https://edge.example:444/v2/models/m/infer", ..target(Some("t")) },
        Target { url: "https://bank.example/v2/models/m/infer", ..target(Some("t")) },
        Target { url: "", ..target(Some("t")) },
        target(Some("u")),
    ];
    for other in &others {
        assert_eq!(check(&good, other), Err(ErrorKind::Unverified), "{other:?}");
    }
    assert_eq!(check(&proof(&key, "POST", URL, None, now), &target(Some("t"))), Err(ErrorKind::Unverified));
}

#[test]
fn what_is_no_proof_is_refused() {
    let (dpop, key, now) = (Dpop::new(DpopSettings::default()), Key::p256(), SystemTime::now());
    let private = {
        let mut jwk = key.public();
        jwk["d"] = json!("AAAA");
        jwk
    };
    type Change<'a> = &'a dyn Fn(&mut Value, &mut Value);
    let rows: &[(&str, Change<'_>)] = &[
        ("typ JWT", &|h, _| h["typ"] = json!("JWT")),
        ("no typ", &|h, _| drop(h.as_object_mut().unwrap().remove("typ"))),
        ("no jwk", &|h, _| drop(h.as_object_mut().unwrap().remove("jwk"))),
        ("jwk as text", &|h, _| h["jwk"] = json!("x")),
        ("private jwk", &|h, _| h["jwk"] = private.clone()),
        ("secret jwk", &|h, _| h["jwk"] = json!({ "kty": "oct", "k": "AAAA" })),
        ("another's jwk", &|h, _| h["jwk"] = Key::p256().public()),
        ("jwk off the curve", &|h, _| h["jwk"]["x"] = json!(BASE64URL.encode([7; 32]))),
        ("jwk with a short x", &|h, _| h["jwk"]["x"] = json!(BASE64URL.encode([7; 31]))),
        ("alg HS256", &|h, _| h["alg"] = json!("HS256")),
        ("alg none", &|h, _| h["alg"] = json!("none")),
        ("alg of another family", &|h, _| h["alg"] = json!("EdDSA")),
        ("crit", &|h, _| h["crit"] = json!(["exp"])),
        ("no jti", &|_, c| drop(c.as_object_mut().unwrap().remove("jti"))),
        ("empty jti", &|_, c| c["jti"] = json!("")),
        ("no htm", &|_, c| drop(c.as_object_mut().unwrap().remove("htm"))),
        ("no htu", &|_, c| drop(c.as_object_mut().unwrap().remove("htu"))),
        ("no iat", &|_, c| drop(c.as_object_mut().unwrap().remove("iat"))),
        ("iat as text", &|_, c| c["iat"] = json!("now")),
    ];
    let mut taken = Vec::new();
    for (what, change) in rows {
        let (mut header, mut claims) = parts(&key, "POST", URL, None, now);
        change(&mut header, &mut claims);
        match dpop.check(&key.token(&header, &claims), &target(None), now) {
            Err(error) if error.kind() == ErrorKind::Unverified => {}
            other => taken.push(format!("{what}: {other:?}")),
        }
    }
    assert!(taken.is_empty(), "{}", taken.join("\n"));
}

#[test]
fn a_proof_has_its_time() {
    let (dpop, key, now) = (Dpop::new(DpopSettings::default()), Key::ed(), at(2_000_000_000));
    let proof = proof(&key, "POST", URL, None, now);
    let check = |seconds: u64| dpop.check(&proof, &target(None), at(seconds)).map(|_| ()).map_err(|e| e.kind());
    assert_eq!(check(2_000_000_000 - 5), Ok(()));
    assert_eq!(check(2_000_000_000 - 6), Err(ErrorKind::Expired));
    assert_eq!(check(2_000_000_000 + 65), Ok(()));
    assert_eq!(check(2_000_000_000 + 66), Err(ErrorKind::Expired));
}

#[test]
fn a_proof_counts_once_also_for_two_at_the_same_time() {
    let dpop = Arc::new(Dpop::new(DpopSettings::default()));
    let now = SystemTime::now();
    let proof = proof(&Key::p256(), "POST", URL, None, now);
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let (dpop, proof) = (Arc::clone(&dpop), proof.clone());
            std::thread::spawn(move || {
                let proof = dpop.check(&proof, &target(None), now).unwrap();
                dpop.spend(&proof, now).is_ok()
            })
        })
        .collect();
    assert_eq!(threads.into_iter().map(|t| t.join().unwrap()).filter(|taken| *taken).count(), 1);
}

#[test]
fn the_memory_of_proofs_is_bounded_and_never_forgets_early() {
    let cache = ReplayCache::new(640);
    let (start, end) = (at(1000), at(1060));
    let mut taken = 0;
    for id in 0..10_000_u32 {
        match cache.take(b"one client", &id.to_be_bytes(), end, start) {
            Ok(()) => taken += 1,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable),
        }
    }
    assert_eq!((taken, cache.len()), (10, 10));
    assert_eq!(
        cache.take(b"one client", &0_u32.to_be_bytes(), end, at(1060)).unwrap_err().kind(),
        ErrorKind::Unverified
    );
    // Another client has its own share; past their end all are forgotten.
    cache.take(b"another client", b"1", end, start).unwrap();
    cache.take(b"one client", &0_u32.to_be_bytes(), at(1120), at(1061)).unwrap();
    assert_eq!(cache.len(), 2);
}

#[test]
fn nonces_are_good_for_two_windows() {
    let nonces = Nonces::new(&[7; 32], Duration::from_secs(60)).unwrap();
    let (dpop, key) = (Dpop::new(DpopSettings::default()).with_nonces(nonces), Key::p256());
    let check = |nonce: Option<String>, now: u64| {
        let (header, mut claims) = parts(&key, "POST", URL, None, at(now));
        if let Some(nonce) = nonce {
            claims["nonce"] = json!(nonce);
        }
        dpop.check(&key.token(&header, &claims), &target(None), at(now)).map(|_| ()).map_err(|e| e.kind())
    };
    let nonce = dpop.nonce(at(6000));
    assert_eq!(check(nonce.clone(), 6000), Ok(()));
    assert_eq!(check(nonce.clone(), 6119), Ok(()));
    assert_eq!(check(nonce.clone(), 6120), Err(ErrorKind::Unverified));
    assert_eq!(check(nonce, 5999), Err(ErrorKind::Unverified));
    for bad in [None, Some(String::new()), Some("AAAA".to_owned()), Some("\u{0}".to_owned())] {
        assert_eq!(check(bad, 6000), Err(ErrorKind::Unverified));
    }
    assert!(Nonces::new(&[7; 32], Duration::ZERO).is_err());
}

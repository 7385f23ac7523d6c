//! What a stranger sends to be recognised: a token with a proof, and the form of an exchange. Nobody may be recognised by it.

#![no_main]

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime},
};

use edgeward_trust::{
    identity::{
        Connection, Credential, IdentityProvider as _,
        aws::{Aws, AwsSettings},
        dpop::{Dpop, DpopSettings, Target},
        jose::Algorithm,
        Http, HttpSettings, Verification,
    },
    session::{ExchangeRequest, LocalSigner, SessionSettings, Sessions},
};
use libfuzzer_sys::fuzz_target;

static DPOP: LazyLock<Arc<Dpop>> = LazyLock::new(|| Arc::new(Dpop::new(DpopSettings::default())));
static SESSIONS: LazyLock<Sessions> = LazyLock::new(|| {
    let signer = Arc::new(LocalSigner::generate(Algorithm::EdDsa).expect("a key"));
    Sessions::new(SessionSettings::new("issuer", "audience"), signer, DPOP.clone()).expect("sessions")
});
static AWS: LazyLock<Aws> = LazyLock::new(|| {
    let accounts = [("123456789012".to_owned(), "tenant".to_owned())].into();
    let http = Http::new(&HttpSettings::default()).expect("a client");
    Aws::new(AwsSettings::new("server", accounts, &["eu-central-1"]), http).expect("settings")
});

fuzz_target!(|data: &[u8]| {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_764_000_000);
    let _ = ExchangeRequest::parse(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (token, proof) = text.split_once('\n').unwrap_or((text, ""));
    let connection = Connection { certificates: &[], method: "POST", url: "https://server/v2/models/m/infer" };
    for credential in [Credential::Bearer(token), Credential::Dpop { token, proof }] {
        if SESSIONS.claims(&credential)
            && let Verification::Done(done) = SESSIONS.verify(credential, connection, now)
        {
            assert!(done.is_err(), "a stranger was recognised");
        }
        // What it would ask AWS is not asked here.
        if AWS.claims(&credential) {
            let _ = AWS.verify(credential, connection, now);
        }
    }
    let target = Target { method: "POST", url: "https://server/", token: Some(token) };
    let _ = DPOP.check(proof, &target, now);
});

//! A client certificate of a stranger, and a bundle of roots: PEM, DER or SPIFFE's JSON.

#![no_main]

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use edgeward_trust::{
    identity::{
        Connection, Credential, IdentityProvider as _, Verification,
        spiffe::{Spiffe, SpiffeId, TrustBundles},
    },
    tls::ServerKeys,
};
use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;

static SPIFFE: LazyLock<Spiffe> = LazyLock::new(|| Spiffe::new(TrustBundles::new(), Default::default()));

fuzz_target!(|data: &[u8]| {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_764_000_000);
    let chain = [CertificateDer::from(data)];
    let connection = Connection { certificates: &chain, method: "GET", url: "" };
    if let Verification::Done(done) = SPIFFE.verify(Credential::Certificate, connection, now) {
        assert!(done.is_err(), "no domain is trusted");
    }
    let bundles = TrustBundles::new();
    let _ = bundles.set("domain.example", data);
    let _ = ServerKeys::from_pem(data, data);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = SpiffeId::parse(text);
    }
});

//! What every key provider must do.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm};
use edgeward_trust::{
    ErrorKind,
    keys::{DATA_KEY_BYTES_MAX, KeyKind, KeyProvider},
};

/// All kinds that sign.
pub const SIGNS: &[KeyKind] = &[KeyKind::P256, KeyKind::Ed25519];

/// The contract. `provider` has no keys whose names begin with `contract-`; it makes the kinds `signs` to sign with, and refuses others.
pub fn contract(provider: &dyn KeyProvider, signs: &[KeyKind]) {
    names_and_versions(provider);
    wrapping(provider);
    for (kind, algorithm) in [
        (KeyKind::P256, &ECDSA_P256_SHA256_ASN1 as &dyn VerificationAlgorithm),
        (KeyKind::Ed25519, &ED25519 as &dyn VerificationAlgorithm),
    ] {
        if signs.contains(&kind) {
            signing(provider, kind, algorithm);
        } else {
            let error = provider.create("contract-refused", kind).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{}: {error}", provider.name());
        }
    }
}

fn names_and_versions(provider: &dyn KeyProvider) {
    let name = provider.name();
    let id = "contract-names";
    let kind = |result: Result<edgeward_trust::keys::KeyInfo, edgeward_trust::TrustError>| result.unwrap_err().kind();
    assert_eq!(kind(provider.describe(id)), ErrorKind::NotFound, "{name}");
    assert_eq!(kind(provider.rotate(id)), ErrorKind::NotFound, "{name}");
    for none in [
        "",
        "../contract-names",
        "contract-names/../x",
        "contract-names?x",
        "contract names",
        "*",
        "\0",
        &"a".repeat(5000),
    ] {
        assert_eq!(kind(provider.describe(none)), ErrorKind::NotFound, "{name}: {none:.20}");
        assert_eq!(provider.sign(none, b"").unwrap_err().kind(), ErrorKind::NotFound, "{name}: {none:.20}");
    }
    for bad in ["", "-a", "A", "a b", "a/b", "../a", "é", &"a".repeat(65)] {
        assert_eq!(kind(provider.create(bad, KeyKind::Wrapping)), ErrorKind::Invalid, "{name}: {bad}");
    }
    let made = provider.create(id, KeyKind::Wrapping).unwrap();
    assert_eq!((made.id.as_str(), made.kind, made.versions.len()), (id, KeyKind::Wrapping, 1), "{name}");
    assert_eq!(made.versions[0].public_key, None, "{name}");
    assert_eq!(kind(provider.create(id, KeyKind::Wrapping)), ErrorKind::Invalid, "{name}: made twice");
    let rotated = provider.rotate(id).unwrap();
    assert_eq!(rotated.versions.iter().map(|version| version.number).collect::<Vec<_>>(), [1, 2], "{name}");
    assert_eq!(provider.describe(id).unwrap(), rotated, "{name}");
    assert!(provider.list().unwrap().contains(&rotated), "{name}");
}

fn wrapping(provider: &dyn KeyProvider) {
    let name = provider.name();
    provider.create("contract-wrap", KeyKind::Wrapping).unwrap();
    provider.create("contract-other", KeyKind::Wrapping).unwrap();
    for size in [1, 32, DATA_KEY_BYTES_MAX] {
        let data_key = vec![size as u8; size];
        let wrapped = provider.wrap("contract-wrap", &data_key, b"release 7").unwrap();
        assert_eq!(*provider.unwrap("contract-wrap", &wrapped, b"release 7").unwrap(), data_key, "{name}");
    }
    let wrapped = provider.wrap("contract-wrap", b"data key", b"release 7").unwrap();
    assert_ne!(wrapped, provider.wrap("contract-wrap", b"data key", b"release 7").unwrap(), "{name}: twice the same");
    provider.rotate("contract-wrap").unwrap();
    let newer = provider.wrap("contract-wrap", b"data key", b"release 7").unwrap();
    for wrapped in [&wrapped, &newer] {
        assert_eq!(**provider.unwrap("contract-wrap", wrapped, b"release 7").unwrap(), *b"data key", "{name}");
        let refused = |id: &str, wrapped: &[u8], context: &[u8], why: &str| {
            let error = provider.unwrap(id, wrapped, context).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Tampered, "{name}: {why}: {error}");
        };
        refused("contract-wrap", wrapped, b"release 8", "another context");
        refused("contract-wrap", wrapped, b"", "no context");
        refused("contract-other", wrapped, b"release 7", "another key");
        refused("contract-wrap", &wrapped[..wrapped.len() - 1], b"release 7", "cut");
        refused("contract-wrap", b"", b"release 7", "nothing");
        for at in 0..wrapped.len() {
            let mut changed = wrapped.clone();
            changed[at] ^= 0x10;
            refused("contract-wrap", &changed, b"release 7", "changed");
        }
    }
    for size in [0, DATA_KEY_BYTES_MAX + 1] {
        let error = provider.wrap("contract-wrap", &vec![0; size], b"").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{name}: {error}");
    }
    assert_eq!(provider.sign("contract-wrap", b"").unwrap_err().kind(), ErrorKind::Invalid, "{name}");
    assert_eq!(provider.wrap("contract-none", b"k", b"").unwrap_err().kind(), ErrorKind::NotFound, "{name}");
}

fn signing(provider: &dyn KeyProvider, kind: KeyKind, algorithm: &'static dyn VerificationAlgorithm) {
    let (name, id) = (provider.name(), format!("contract-{}", format!("{kind:?}").to_lowercase()));
    let made = provider.create(&id, kind).unwrap();
    let public = |info: &edgeward_trust::keys::KeyInfo| info.versions.last().unwrap().public_key.clone().unwrap();
    let first = public(&made);
    let verifies = |public: &[u8], message: &[u8], signature: &[u8]| {
        UnparsedPublicKey::new(algorithm, public).verify(message, signature).is_ok()
    };
    for message in [&b""[..], b"message", &[0xa5; 100_000]] {
        let signature = provider.sign(&id, message).unwrap();
        assert!(verifies(&first, message, &signature), "{name}: {kind}");
        assert!(!verifies(&first, b"another", &signature), "{name}: {kind}");
    }
    let second = public(&provider.rotate(&id).unwrap());
    assert_ne!(first, second, "{name}: {kind}");
    let signature = provider.sign(&id, b"message").unwrap();
    assert!(verifies(&second, b"message", &signature) && !verifies(&first, b"message", &signature), "{name}: {kind}");
    assert_eq!(provider.wrap(&id, b"k", b"").unwrap_err().kind(), ErrorKind::Invalid, "{name}: {kind}");
    assert_eq!(provider.unwrap(&id, b"k", b"").unwrap_err().kind(), ErrorKind::Invalid, "{name}: {kind}");
    assert_eq!(provider.sign("contract-none", b"").unwrap_err().kind(), ErrorKind::NotFound, "{name}");
}

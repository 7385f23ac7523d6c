//! What every key provider must do, and what the sealed file does beside.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm};
use edgeward_trust::{
    ErrorKind,
    keys::{DATA_KEY_BYTES_MAX, KeyKind, KeyProvider, SealedFile, Unlock},
};

/// The contract. `provider` has no keys whose names begin with `contract-`.
fn contract(provider: &dyn KeyProvider) {
    names_and_versions(provider);
    wrapping(provider);
    for (kind, algorithm) in [
        (KeyKind::P256, &ECDSA_P256_SHA256_ASN1 as &dyn VerificationAlgorithm),
        (KeyKind::Ed25519, &ED25519 as &dyn VerificationAlgorithm),
    ] {
        signing(provider, kind, algorithm);
    }
}

fn names_and_versions(provider: &dyn KeyProvider) {
    let name = provider.name();
    let id = "contract-names";
    let kind = |result: Result<edgeward_trust::keys::KeyInfo, edgeward_trust::TrustError>| result.unwrap_err().kind();
    assert_eq!(kind(provider.describe(id)), ErrorKind::NotFound, "{name}");
    assert_eq!(kind(provider.rotate(id)), ErrorKind::NotFound, "{name}");
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

fn words(text: &str) -> Unlock {
    Unlock::Passphrase(text.as_bytes().to_vec().into())
}

fn private_file(folder: &Path, bytes: &[u8]) -> PathBuf {
    let path = folder.join("secret");
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

#[test]
fn the_sealed_file_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    contract(&SealedFile::create(&path, &Unlock::KeyFile(vec![1; 32].into())).unwrap());
    // What was made is there when it is opened again, and unwraps what was wrapped before.
    let provider = SealedFile::open(&path, &Unlock::KeyFile(vec![1; 32].into())).unwrap();
    let wrapped = provider.wrap("contract-wrap", b"data key", b"c").unwrap();
    let again = SealedFile::open(&path, &Unlock::KeyFile(vec![1; 32].into())).unwrap();
    assert_eq!(again.list().unwrap(), provider.list().unwrap());
    assert_eq!(**again.unwrap("contract-wrap", &wrapped, b"c").unwrap(), *b"data key");
}

#[test]
fn a_passphrase_opens_the_sealed_file_and_another_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    let made = SealedFile::create(&path, &words("correct horse battery staple")).unwrap();
    made.create("a", KeyKind::P256).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let opened = SealedFile::open(&path, &words("correct horse battery staple")).unwrap();
    assert_eq!(opened.list().unwrap(), made.list().unwrap());
    let error = |unlock: &Unlock| SealedFile::open(&path, unlock).err().unwrap();
    assert_eq!(error(&words("wrong")).kind(), ErrorKind::Unverified);
    assert!(error(&Unlock::KeyFile(vec![0; 32].into())).to_string().contains("a passphrase opens it"));
    assert!(SealedFile::create(&path, &words("x")).err().unwrap().to_string().contains("exists already"));
    assert!(SealedFile::create(&folder.path().join("b"), &words("")).err().unwrap().to_string().contains("empty"));
}

#[test]
fn a_changed_truncated_or_readable_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let unlock = Unlock::from_key_file(&private_file(folder.path(), &[9; 40])).unwrap();
    let path = folder.path().join("keys");
    SealedFile::create(&path, &unlock).unwrap().create("a", KeyKind::Ed25519).unwrap();
    let bytes = fs::read(&path).unwrap();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        fs::write(&path, changed).unwrap();
        assert!(SealedFile::open(&path, &unlock).is_err(), "byte {at}");
    }
    for length in 0..bytes.len() {
        fs::write(&path, &bytes[..length]).unwrap();
        assert!(SealedFile::open(&path, &unlock).is_err(), "{length} bytes");
    }
    let line = bytes.split(|&byte| byte == b'\n').next().unwrap();
    let greedy = String::from_utf8(line.to_vec()).unwrap().replace(
        "{\"name\":\"hkdf_sha256\"}",
        "{\"name\":\"argon2id\",\"memory_kib\":4000000000,\"passes\":4000000000,\"lanes\":1}",
    );
    fs::write(&path, greedy + "\nrest").unwrap();
    assert!(SealedFile::open(&path, &words("x")).err().unwrap().to_string().contains("more work"));
    fs::write(&path, &bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let error = SealedFile::open(&path, &unlock).err().unwrap();
    assert!(error.to_string().contains("others may read it (mode 640)"), "{error}");
    let error = Unlock::from_key_file(&private_file(folder.path(), b"short")).err().unwrap();
    assert!(error.to_string().contains("at least 32"), "{error}");
}

/// A key that could not be saved is not used either.
#[test]
fn a_key_that_cannot_be_saved_is_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("inner/keys");
    fs::create_dir(folder.path().join("inner")).unwrap();
    let provider = SealedFile::create(&path, &Unlock::KeyFile(vec![1; 32].into())).unwrap();
    provider.create("a", KeyKind::Wrapping).unwrap();
    fs::remove_dir_all(folder.path().join("inner")).unwrap();
    assert_eq!(provider.create("b", KeyKind::Wrapping).unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(provider.rotate("a").unwrap_err().kind(), ErrorKind::Unavailable);
    let keys = provider.list().unwrap();
    assert_eq!(keys.iter().map(|key| (key.id.as_str(), key.versions.len())).collect::<Vec<_>>(), [("a", 1)]);
}

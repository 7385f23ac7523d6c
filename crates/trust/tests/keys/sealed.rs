//! What the sealed file does beside the contract.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use edgeward_trust::{
    ErrorKind,
    keys::{KeyKind, KeyProvider as _, SealedFile, Unlock},
};

use super::contract::{SIGNS, contract};

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
    contract(&SealedFile::create(&path, &Unlock::KeyFile(vec![1; 32].into())).unwrap(), SIGNS);
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

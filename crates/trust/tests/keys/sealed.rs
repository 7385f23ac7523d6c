//! What the sealed file does beside the contract.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    thread,
};

use edgeward_trust::{
    ErrorKind,
    keys::{KeyKind, KeyProvider as _, SealedFile, Unlock, create_private, read_private},
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

/// Processes open the file by themselves: what each of them has made is there for all, and opens what it has wrapped.
#[test]
fn many_that_change_the_file_at_once_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    let unlock = || Unlock::KeyFile(vec![1; 32].into());
    let keys = [("seal", KeyKind::Wrapping), ("release", KeyKind::P256)];
    let wrapped: Vec<Vec<u8>> = thread::scope(|scope| {
        let works: Vec<_> = (0..8)
            .map(|number| {
                let (path, unlock, keys) = (&path, unlock(), &keys);
                scope.spawn(move || {
                    let provider = SealedFile::open_or_create(path, &unlock, keys).unwrap();
                    provider.rotate("seal").unwrap();
                    provider.create(&format!("own-{number}"), KeyKind::Wrapping).unwrap();
                    provider.wrap("seal", b"data key", b"c").unwrap()
                })
            })
            .collect();
        works.into_iter().map(|work| work.join().unwrap()).collect()
    });
    let provider = SealedFile::open(&path, &unlock()).unwrap();
    assert_eq!(provider.list().unwrap().len(), 2 + 8);
    assert_eq!(provider.describe("seal").unwrap().versions.len(), 1 + 8);
    for wrapped in wrapped {
        assert_eq!(**provider.unwrap("seal", &wrapped, b"c").unwrap(), *b"data key");
    }
}

/// Who has a file open does not write its old keys over those of another that was put in its place.
#[test]
fn a_file_that_was_made_anew_is_not_changed_by_who_has_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    let old = SealedFile::create(&path, &Unlock::KeyFile(vec![1; 32].into())).unwrap();
    old.create("a", KeyKind::Wrapping).unwrap();
    fs::remove_file(&path).unwrap();
    let new = SealedFile::create(&path, &Unlock::KeyFile(vec![2; 32].into())).unwrap();
    new.create("b", KeyKind::Wrapping).unwrap();
    let error = old.rotate("a").unwrap_err();
    assert!(error.to_string().contains("another file was put in its place"), "{error}");
    let kept = SealedFile::open(&path, &Unlock::KeyFile(vec![2; 32].into())).unwrap();
    assert_eq!(kept.list().unwrap(), new.list().unwrap());
}

#[test]
fn a_private_file_is_made_once_and_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("unlock.key");
    let made: Vec<bool> = thread::scope(|scope| {
        let works: Vec<_> = (0..8u8)
            .map(|n| {
                scope.spawn({
                    let path = &path;
                    move || create_private(path, &[n; 32]).unwrap()
                })
            })
            .collect();
        works.into_iter().map(|work| work.join().unwrap()).collect()
    });
    assert_eq!(made.iter().filter(|made| **made).count(), 1);
    let winner = made.iter().position(|made| *made).unwrap() as u8;
    assert_eq!(**read_private(&path).unwrap(), [winner; 32]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_passphrase_is_read_from_a_file_of_ones_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = private_file(folder.path(), b" two words \r\n");
    let Unlock::Passphrase(words) = Unlock::from_passphrase_file(&path).unwrap() else { panic!("no passphrase") };
    assert_eq!(**words, *b" two words ");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let error = Unlock::from_passphrase_file(&path).err().unwrap();
    assert!(
        error.kind() == ErrorKind::Invalid && error.to_string().contains("others may read it (mode 644)"),
        "{error}"
    );
}

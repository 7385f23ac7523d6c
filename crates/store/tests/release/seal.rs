//! Sealed releases: only ciphertext on the disk, and nothing changed, moved or cut off opens.

use std::fs;

use edgeward_store::{ErrorKind, OpenOptions, Opened, StoreError, open, rekey, seal};
use edgeward_trust::keys::{KeyProvider, SealedFile, Unlock};

use crate::support::{Home, files, model, model_of, refused};

const WEIGHTS: usize = 700_000;

fn open_with(home: &Home, folder: &str, keys: Option<&dyn KeyProvider>) -> Result<Opened, StoreError> {
    let trust = home.trust();
    open(&home.path(folder), &OpenOptions { trust: &trust, keys, floor: None })
}

fn sealed() -> Home {
    let home = Home::new();
    // Weights that would be seen in what is stored.
    home.pack("r", 1, &model_of((0..WEIGHTS).map(|n| n as f32).collect()));
    seal(&home.path("r"), &home.path("s"), home.keys.as_ref(), "seal").unwrap();
    home.sign("s");
    home
}

#[test]
fn a_sealed_release_opens_with_its_keys_and_hides_its_weights() {
    let home = sealed();
    home.sign("r");
    let opened = open_with(&home, "s", Some(home.keys.as_ref())).unwrap();
    let plain = open_with(&home, "r", None).unwrap();
    for name in ["a", "b"] {
        assert_eq!(opened.load(name).unwrap().model, plain.load(name).unwrap().model, "{name}");
    }
    refused(open_with(&home, "s", None), ErrorKind::Unverified, "is sealed; expected the keys");
    let marks: Vec<u8> = (1000..1008).flat_map(|n| (n as f32).to_le_bytes()).collect();
    let holds = |folder: &str| {
        let all = files(&home.path(folder));
        all.iter().any(|(_, bytes)| bytes.windows(marks.len()).any(|part| part == marks))
    };
    assert!(holds("r") && !holds("s"));
    // Nothing else was written.
    assert!(
        fs::read_dir(home.folder.path()).unwrap().all(|e| !e.unwrap().file_name().to_string_lossy().starts_with('.'))
    );
    refused(seal(&home.path("s"), &home.path("t"), home.keys.as_ref(), "seal"), ErrorKind::Invalid, "sealed already");
    // Sealed twice it is never the same bytes.
    let twice = seal(&home.path("r"), &home.path("u"), home.keys.as_ref(), "seal").unwrap();
    assert_ne!(twice.id(), opened.id());
    assert_eq!(twice.manifest().unsealed(), opened.manifest().unsealed());
}

/// The seal alone finds every change, also where the attacker signs (or nobody asks who signed).
#[test]
fn what_was_changed_moved_or_cut_off_does_not_open() {
    let home = sealed();
    let path = home.path("s/variants/b/model.onnx");
    let whole = fs::read(&path).unwrap();
    let chunk = (1 << 20) + 16;
    assert!(whole.len() > 40 + 2 * chunk, "three chunks");
    // With the attacker's signature: the manifest and the digests are made to fit.
    let forge = |bytes: &[u8], expected: &str| {
        forge_signed(&home, "variants/b/model.onnx", bytes);
        let opened = open_with(&home, "s", Some(home.keys.as_ref())).unwrap();
        refused(opened.load("b"), ErrorKind::Tampered, expected);
        assert!(opened.load("a").is_ok());
    };
    for at in [0, 7, 8, 39, 40, 41, 40 + chunk - 1, 40 + chunk, whole.len() - 17, whole.len() - 1] {
        let mut changed = whole.clone();
        changed[at] ^= 0x80;
        forge(&changed, "does not open");
    }
    // Chunks in another order.
    let (head, rest) = whole.split_at(40);
    let (first, rest) = rest.split_at(chunk);
    let (second, last) = rest.split_at(chunk);
    forge(&[head, second, first, last].concat(), "chunk 0 was changed, moved");
    forge(&[head, first, first, last].concat(), "chunk 1 was changed, moved");
    // The end cut off, a chunk left out, or something more.
    forge(&[head, first, second].concat(), "sealed bytes");
    forge(&[head, first, last].concat(), "sealed bytes");
    forge(&[head, first, second, last, &[0; 16]].concat(), "sealed bytes");
    forge(b"", "sealed bytes");
    forge_signed(&home, "variants/b/model.onnx", &whole);
    open_with(&home, "s", Some(home.keys.as_ref())).unwrap().load("b").unwrap();
}

/// Writes a file and makes manifest and signature fit.
fn forge_signed(home: &Home, path: &str, bytes: &[u8]) {
    use edgeward_store::{Manifest, digest::Digest, manifest::Stored};
    fs::write(home.path("s").join(path), bytes).unwrap();
    let manifest = fs::read(home.path("s/edgeward.json")).unwrap();
    let mut manifest = Manifest::parse(&manifest).unwrap();
    let stored = Stored { size: bytes.len() as u64, sha256: Digest::of(bytes) };
    manifest.files.get_mut(path).unwrap().sealed = Some(stored);
    fs::write(home.path("s/edgeward.json"), manifest.to_bytes().unwrap()).unwrap();
    home.sign("s");
}

#[test]
fn files_cannot_stand_in_for_each_other() {
    let home = Home::new();
    let one = model(1000, 1);
    let source = home.path("m.onnx");
    one.write(&source).unwrap();
    home.pack_files("r", 1, &[("a", &source), ("b", &source)]).unwrap();
    seal(&home.path("r"), &home.path("s"), home.keys.as_ref(), "seal").unwrap();
    let (a, b) = ("variants/a/model.onnx", "variants/b/model.onnx");
    let other = fs::read(home.path("s").join(b)).unwrap();
    forge_signed(&home, a, &other);
    let opened = open_with(&home, "s", Some(home.keys.as_ref())).unwrap();
    refused(opened.load("a"), ErrorKind::Tampered, "chunk 0");
    assert!(opened.load("b").is_ok());
    // Nor for those of another release, with its data key beside it.
    home.pack_files("r2", 2, &[("a", &source), ("b", &source)]).unwrap();
    seal(&home.path("r2"), &home.path("s2"), home.keys.as_ref(), "seal").unwrap();
    fs::copy(home.path("s2/key.json"), home.path("s/key.json")).unwrap();
    refused(open_with(&home, "s", Some(home.keys.as_ref())), ErrorKind::Tampered, "does not unwrap this");
}

#[test]
fn a_release_is_rekeyed_without_touching_its_files() {
    let home = sealed();
    let before = files(&home.path("s"));
    let keys = home.keys.as_ref();
    rekey(&home.path("s"), keys, keys, "other").unwrap();
    let changed: Vec<String> = files(&home.path("s"))
        .into_iter()
        .zip(before)
        .filter(|(after, before)| after != before)
        .map(|((name, _), _)| name)
        .collect();
    assert_eq!(changed, ["key.json"]);
    // The signature holds, and it opens.
    open_with(&home, "s", Some(keys)).unwrap().load("a").unwrap();
    // To a provider that knows nothing of the first.
    let other = SealedFile::create(&home.path("keys-2"), &Unlock::KeyFile(vec![8; 32].into())).unwrap();
    other.create("seal", edgeward_trust::keys::KeyKind::Wrapping).unwrap();
    rekey(&home.path("s"), keys, &other, "seal").unwrap();
    open_with(&home, "s", Some(&other)).unwrap().load("a").unwrap();
    refused(open_with(&home, "s", Some(keys)), ErrorKind::Tampered, "does not unwrap this");
    refused(rekey(&home.path("s"), keys, keys, "seal"), ErrorKind::Tampered, "does not unwrap this");
    refused(rekey(&home.path("r"), keys, keys, "seal"), ErrorKind::Invalid, "is not sealed");
    for broken in ["", "{}", "{\"format\":\"edgeward-key-1\",\"provider\":\"file\",\"key\":\"../x\",\"wrapped\":\"\"}"]
    {
        fs::write(home.path("s/key.json"), broken).unwrap();
        refused(open_with(&home, "s", Some(keys)), ErrorKind::Invalid, "key");
    }
    fs::remove_file(home.path("s/key.json")).unwrap();
    refused(open_with(&home, "s", Some(keys)), ErrorKind::NotFound, "`key.json` is missing");
}

/// Sizes around the borders of chunks.
#[test]
fn every_size_is_sealed_and_opened() {
    let home = Home::new();
    for (sequence, weights) in [1, 2, 262_100, 262_144, 262_145, 524_288].into_iter().enumerate() {
        let name = format!("r{sequence}");
        home.pack(&name, sequence as u64 + 1, &model(weights, 1));
        let out = format!("s{sequence}");
        seal(&home.path(&name), &home.path(&out), home.keys.as_ref(), "seal").unwrap();
        home.sign(&name);
        home.sign(&out);
        let (plain, opened) =
            (open_with(&home, &name, None).unwrap(), open_with(&home, &out, Some(home.keys.as_ref())).unwrap());
        assert_eq!(opened.load("a").unwrap().model, plain.load("a").unwrap().model, "{weights}");
    }
}

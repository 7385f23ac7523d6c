//! Keys in one file, sealed with AES-256-GCM under a passphrase (Argon2id) or a key file (HKDF-SHA256).
//!
//! The file is one line of JSON that says how to derive the key, and after it the nonce and the sealed keys. The line is authenticated
//! with them, so that nobody can lower the cost of guessing. Whoever has the file and the passphrase has the keys; they are in this
//! process's memory while it is open.
//!
//! Several processes may use one file: who changes it holds `FILE.lock`, reads what the others have made, and adds to that.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, SystemTime},
};

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    hkdf, rand,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    error::{ErrorKind, TrustError},
    file::{lock, read_private, write_private},
    keys::{
        KeyInfo, KeyKind, KeyProvider, KeyVersion, Secret, aad, check_data_key, check_key_name, exists_already,
        not_found, not_unwrapped, wrong_kind,
    },
};

const FORMAT: &str = "edgeward-keys-1";
/// Memory and passes of Argon2id: the second choice that RFC 9106 section 4 recommends (64 MiB, 3 passes, 4 lanes).
const ARGON2: (u32, u32, u32) = (64 << 10, 3, 4);
/// The most that a file may ask for, so that opening a stranger's file ends.
const ARGON2_MAX: (u32, u32, u32) = (1 << 20, 16, 16);

/// What opens the file.
pub enum Unlock {
    /// Something that a person remembers.
    Passphrase(Secret),
    /// At least 32 random bytes.
    KeyFile(Secret),
}

impl Unlock {
    /// Reads a file with a passphrase, which only its owner may read. Line ends behind it do not count.
    ///
    /// # Errors
    /// `Invalid` where others may read it, `Unavailable` where it cannot be read.
    pub fn from_passphrase_file(path: &Path) -> Result<Self, TrustError> {
        let mut words = read_private(path)?;
        let length = words.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n')).map_or(0, |last| last + 1);
        words.truncate(length);
        Ok(Self::Passphrase(words))
    }

    /// Reads a key file, which only its owner may read.
    ///
    /// # Errors
    /// `Invalid` where others may read it or it has fewer than 32 bytes, `Unavailable` where it cannot be read.
    pub fn from_key_file(path: &Path) -> Result<Self, TrustError> {
        let bytes = read_private(path)?;
        if bytes.len() < 32 {
            return Err(invalid(path, &format!("{} bytes; expected at least 32 random ones", bytes.len())));
        }
        Ok(Self::KeyFile(bytes))
    }
}

/// The first line of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    format: String,
    kdf: Kdf,
    salt: String,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
enum Kdf {
    Argon2id { memory_kib: u32, passes: u32, lanes: u32 },
    HkdfSha256,
}

/// A key as it is sealed.
#[derive(Serialize, Deserialize)]
struct StoredKey {
    kind: KeyKind,
    versions: Vec<StoredVersion>,
}

#[derive(Serialize, Deserialize)]
struct StoredVersion {
    created_at_s: u64,
    /// Base64 of PKCS#8 or of an AES key.
    material: Zeroizing<String>,
}

struct Key {
    kind: KeyKind,
    versions: Vec<Material>,
}

struct Material {
    created_at: SystemTime,
    bytes: Secret,
    ready: Ready,
}

/// A key that is ready to be used.
enum Ready {
    Wrapping(Box<RandomizedNonceKey>),
    P256(Box<EcdsaKeyPair>),
    Ed25519(Box<Ed25519KeyPair>),
}

/// Keys in a sealed file.
pub struct SealedFile {
    path: PathBuf,
    /// The first line.
    head: Vec<u8>,
    seal: RandomizedNonceKey,
    keys: RwLock<BTreeMap<String, Key>>,
}

impl SealedFile {
    /// Makes an empty file.
    ///
    /// # Errors
    /// `Invalid` where it exists or the passphrase is empty, `Unavailable` where it cannot be written.
    pub fn create(path: &Path, unlock: &Unlock) -> Result<Self, TrustError> {
        let _lock = lock(path).map_err(|error| unavailable(path, &error))?;
        if path.symlink_metadata().is_ok() {
            return Err(invalid(path, "exists already; open it, or take another path"));
        }
        Self::make(path, unlock, &[])
    }

    /// Opens a file; where there is none, makes it with these keys, all or none. Of several processes that do so at once one makes it, and
    /// the others open that.
    ///
    /// # Errors
    /// Those of [`SealedFile::create`] and [`SealedFile::open`].
    pub fn open_or_create(path: &Path, unlock: &Unlock, keys: &[(&str, KeyKind)]) -> Result<Self, TrustError> {
        if !path.exists() {
            let _lock = lock(path).map_err(|error| unavailable(path, &error))?;
            if !path.exists() {
                return Self::make(path, unlock, keys);
            }
        }
        Self::open(path, unlock)
    }

    /// For who holds the lock.
    fn make(path: &Path, unlock: &Unlock, keys: &[(&str, KeyKind)]) -> Result<Self, TrustError> {
        let kdf = match unlock {
            Unlock::Passphrase(words) if words.is_empty() => return Err(invalid(path, "the passphrase is empty")),
            Unlock::Passphrase(_) => Kdf::Argon2id { memory_kib: ARGON2.0, passes: ARGON2.1, lanes: ARGON2.2 },
            Unlock::KeyFile(_) => Kdf::HkdfSha256,
        };
        let salt = random_bytes::<32>()?;
        let seal = derive(&kdf, &salt, unlock).map_err(|why| invalid(path, &why))?;
        let head = Head { format: FORMAT.to_owned(), kdf, salt: BASE64_STANDARD.encode(salt) };
        let head = serde_json::to_vec(&head).map_err(|error| invalid(path, &error.to_string()))?;
        let mut made = BTreeMap::new();
        keys.iter().try_for_each(|(id, kind)| add(&mut made, id, *kind))?;
        let file = Self { path: path.to_owned(), head, seal, keys: RwLock::default() };
        file.save(&made)?;
        Ok(Self { keys: RwLock::new(made), ..file })
    }

    /// Opens a file.
    ///
    /// # Errors
    /// `Unverified` where the passphrase or key file is another's or the file was changed; `Invalid` where it is no such file or others may
    /// read it.
    pub fn open(path: &Path, unlock: &Unlock) -> Result<Self, TrustError> {
        let bytes = read_private(path)?;
        let (line, sealed) = split(path, &bytes)?;
        let head: Head = serde_json::from_slice(line).map_err(|error| invalid(path, &error.to_string()))?;
        if head.format != FORMAT {
            return Err(invalid(path, &format!("format `{}`; expected `{FORMAT}`", head.format)));
        }
        let salt = BASE64_STANDARD.decode(&head.salt).map_err(|_| invalid(path, "its salt is not base64"))?;
        let seal = derive(&head.kdf, &salt, unlock).map_err(|why| invalid(path, &why))?;
        let keys = load(path, &seal, line, sealed)?;
        Ok(Self { path: path.to_owned(), head: line.to_vec(), seal, keys: RwLock::new(keys) })
    }

    /// The keys as they are in the file now.
    fn stored(&self) -> Result<BTreeMap<String, Key>, TrustError> {
        let bytes = read_private(&self.path)?;
        let (line, sealed) = split(&self.path, &bytes)?;
        if line != self.head {
            return Err(invalid(&self.path, "another file was put in its place since it was opened; open it again"));
        }
        load(&self.path, &self.seal, line, sealed)
    }

    fn save(&self, keys: &BTreeMap<String, Key>) -> Result<(), TrustError> {
        let stored: BTreeMap<&String, StoredKey> = keys.iter().map(|(id, key)| (id, key.store())).collect();
        let mut sealed: Secret =
            serde_json::to_vec(&stored).map_err(|error| invalid(&self.path, &error.to_string()))?.into();
        let nonce =
            self.seal.seal_in_place_append_tag(Aad::from(&self.head), &mut *sealed).map_err(|_| failed("seal"))?;
        let parts = [self.head.as_slice(), b"\n", nonce.as_ref(), &sealed];
        write_private(&self.path, &parts.concat()).map_err(|error| unavailable(&self.path, &error))
    }

    /// Changes the keys in the file and here together, or neither. What others have made meanwhile is kept.
    fn change(
        &self,
        id: &str,
        change: impl FnOnce(&mut BTreeMap<String, Key>) -> Result<(), TrustError>,
    ) -> Result<KeyInfo, TrustError> {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let _lock = lock(&self.path).map_err(|error| unavailable(&self.path, &error))?;
        let mut changed = self.stored()?;
        change(&mut changed)?;
        self.save(&changed)?;
        *keys = changed;
        keys.get(id).map(|key| key.info(id)).ok_or_else(|| not_found(id))
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<String, Key>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeyProvider for SealedFile {
    fn name(&self) -> &'static str {
        "file"
    }

    fn create(&self, id: &str, kind: KeyKind) -> Result<KeyInfo, TrustError> {
        self.change(id, |keys| add(keys, id, kind))
    }

    fn list(&self) -> Result<Vec<KeyInfo>, TrustError> {
        Ok(self.read().iter().map(|(id, key)| key.info(id)).collect())
    }

    fn describe(&self, id: &str) -> Result<KeyInfo, TrustError> {
        self.read().get(id).map(|key| key.info(id)).ok_or_else(|| not_found(id))
    }

    fn rotate(&self, id: &str) -> Result<KeyInfo, TrustError> {
        self.change(id, |keys| {
            let key = keys.get_mut(id).ok_or_else(|| not_found(id))?;
            key.versions.push(Material::generate(key.kind)?);
            Ok(())
        })
    }

    fn wrap(&self, id: &str, data_key: &[u8], context: &[u8]) -> Result<Vec<u8>, TrustError> {
        check_data_key(data_key)?;
        let keys = self.read();
        let key = keys.get(id).ok_or_else(|| not_found(id))?;
        let Some(Material { ready: Ready::Wrapping(seal), .. }) = key.versions.last() else {
            return Err(wrong_kind(id, key.kind, "a wrapping key"));
        };
        let version = key.versions.len() as u32;
        let mut bytes = data_key.to_vec();
        let aad = aad(id, version, context);
        let nonce = seal.seal_in_place_append_tag(Aad::from(aad), &mut bytes).map_err(|_| failed("wrap"))?;
        Ok([version.to_be_bytes().as_slice(), nonce.as_ref(), &bytes].concat())
    }

    fn unwrap(&self, id: &str, wrapped: &[u8], context: &[u8]) -> Result<Secret, TrustError> {
        let keys = self.read();
        let key = keys.get(id).ok_or_else(|| not_found(id))?;
        if key.kind != KeyKind::Wrapping {
            return Err(wrong_kind(id, key.kind, "a wrapping key"));
        }
        let opened = wrapped.split_first_chunk().and_then(|(version, sealed)| {
            let version = u32::from_be_bytes(*version);
            let material = key.versions.get((version as usize).checked_sub(1)?)?;
            let Ready::Wrapping(seal) = &material.ready else { return None };
            open_sealed(seal, &aad(id, version, context), sealed)
        });
        opened.ok_or_else(|| not_unwrapped(id))
    }

    fn sign(&self, id: &str, message: &[u8]) -> Result<Vec<u8>, TrustError> {
        let keys = self.read();
        let key = keys.get(id).ok_or_else(|| not_found(id))?;
        match key.versions.last().map(|version| &version.ready) {
            Some(Ready::Ed25519(pair)) => Ok(pair.sign(message).as_ref().to_vec()),
            Some(Ready::P256(pair)) => pair
                .sign(&SystemRandom::new(), message)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(|_| failed("sign")),
            _ => Err(wrong_kind(id, key.kind, "a key that signs")),
        }
    }
}

impl Key {
    fn info(&self, id: &str) -> KeyInfo {
        let version = |(material, number): (&Material, u32)| KeyVersion {
            number,
            created_at: Some(material.created_at),
            public_key: material.public_key(),
        };
        KeyInfo { id: id.to_owned(), kind: self.kind, versions: self.versions.iter().zip(1..).map(version).collect() }
    }

    fn store(&self) -> StoredKey {
        let version = |material: &Material| StoredVersion {
            created_at_s: material.created_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
            material: BASE64_STANDARD.encode(&*material.bytes).into(),
        };
        StoredKey { kind: self.kind, versions: self.versions.iter().map(version).collect() }
    }
}

impl StoredKey {
    fn load(self) -> Result<Key, TrustError> {
        let version = |stored: StoredVersion| {
            let bytes = BASE64_STANDARD.decode(&*stored.material).map_err(|_| failed("read"))?;
            let created_at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(stored.created_at_s));
            Material::new(self.kind, created_at.unwrap_or(SystemTime::UNIX_EPOCH), bytes.into())
        };
        Ok(Key { kind: self.kind, versions: self.versions.into_iter().map(version).collect::<Result<_, _>>()? })
    }
}

impl Material {
    fn generate(kind: KeyKind) -> Result<Self, TrustError> {
        let random_source = SystemRandom::new();
        let bytes: Secret = match kind {
            KeyKind::Wrapping => random_bytes::<32>()?.to_vec().into(),
            KeyKind::P256 => EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random_source)
                .map_err(|_| failed("make"))?
                .as_ref()
                .to_vec()
                .into(),
            KeyKind::Ed25519 => {
                Ed25519KeyPair::generate_pkcs8(&random_source).map_err(|_| failed("make"))?.as_ref().to_vec().into()
            }
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self::new(kind, SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs()), bytes)
    }

    fn new(kind: KeyKind, created_at: SystemTime, bytes: Secret) -> Result<Self, TrustError> {
        let rejected = |_| failed("read");
        let ready = match kind {
            KeyKind::Wrapping => {
                Ready::Wrapping(Box::new(RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(|_| failed("read"))?))
            }
            KeyKind::P256 => Ready::P256(Box::new(
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &bytes).map_err(rejected)?,
            )),
            KeyKind::Ed25519 => Ready::Ed25519(Box::new(Ed25519KeyPair::from_pkcs8(&bytes).map_err(rejected)?)),
        };
        Ok(Self { created_at, bytes, ready })
    }

    fn public_key(&self) -> Option<Vec<u8>> {
        match &self.ready {
            Ready::Wrapping(_) => None,
            Ready::P256(pair) => Some(pair.public_key().as_ref().to_vec()),
            Ready::Ed25519(pair) => Some(pair.public_key().as_ref().to_vec()),
        }
    }
}

/// Makes a key beside others.
fn add(keys: &mut BTreeMap<String, Key>, id: &str, kind: KeyKind) -> Result<(), TrustError> {
    check_key_name(id)?;
    if keys.contains_key(id) {
        return Err(exists_already(id));
    }
    keys.insert(id.to_owned(), Key { kind, versions: vec![Material::generate(kind)?] });
    Ok(())
}

/// The first line, and the sealed keys.
fn split<'b>(path: &Path, bytes: &'b [u8]) -> Result<(&'b [u8], &'b [u8]), TrustError> {
    let line_end = bytes.iter().position(|&byte| byte == b'\n').ok_or_else(|| invalid(path, "no file of keys"))?;
    let (line, rest) = bytes.split_at(line_end);
    Ok((line, rest.get(1..).unwrap_or_default()))
}

fn load(
    path: &Path,
    seal: &RandomizedNonceKey,
    line: &[u8],
    sealed: &[u8],
) -> Result<BTreeMap<String, Key>, TrustError> {
    let opened = open_sealed(seal, line, sealed).ok_or_else(|| {
        let text = format!("`{}` does not open: wrong passphrase or key file, or the file was changed", path.display());
        TrustError::new(ErrorKind::Unverified, text)
    })?;
    let stored: BTreeMap<String, StoredKey> =
        serde_json::from_slice(&opened).map_err(|error| invalid(path, &error.to_string()))?;
    stored.into_iter().map(|(id, key)| Ok((id, key.load()?))).collect()
}

/// Opens `nonce || ciphertext || tag`.
fn open_sealed(seal: &RandomizedNonceKey, aad: &[u8], sealed: &[u8]) -> Option<Secret> {
    let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>()?;
    let mut bytes: Secret = rest.to_vec().into();
    let length = seal.open_in_place(Nonce::from(nonce), Aad::from(aad), &mut bytes).ok()?.len();
    bytes.truncate(length);
    Some(bytes)
}

fn derive(kdf: &Kdf, salt: &[u8], unlock: &Unlock) -> Result<RandomizedNonceKey, String> {
    let mut key = Zeroizing::new([0; 32]);
    match (kdf, unlock) {
        (Kdf::Argon2id { memory_kib, passes, lanes }, Unlock::Passphrase(words)) => {
            if *memory_kib > ARGON2_MAX.0 || *passes > ARGON2_MAX.1 || *lanes > ARGON2_MAX.2 {
                return Err("it asks for more work than is ever done".to_owned());
            }
            let params = Params::new(*memory_kib, *passes, *lanes, Some(32)).map_err(|error| error.to_string())?;
            let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
            argon2.hash_password_into(words, salt, &mut *key).map_err(|error| error.to_string())?;
        }
        (Kdf::HkdfSha256, Unlock::KeyFile(bytes)) => {
            let pseudorandom = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(bytes);
            let info = [FORMAT.as_bytes()];
            let output = pseudorandom.expand(&info, hkdf::HKDF_SHA256);
            output.and_then(|output| output.fill(&mut *key)).map_err(|_| "its key cannot be derived".to_owned())?;
        }
        (Kdf::Argon2id { .. }, Unlock::KeyFile(_)) => return Err("a passphrase opens it, not a key file".to_owned()),
        (Kdf::HkdfSha256, Unlock::Passphrase(_)) => return Err("a key file opens it, not a passphrase".to_owned()),
    }
    RandomizedNonceKey::new(&AES_256_GCM, &*key).map_err(|_| "its key cannot be used".to_owned())
}

/// Bytes that nobody can guess.
///
/// # Errors
/// `Unavailable` where the operating system has none.
pub fn random_bytes<const N: usize>() -> Result<[u8; N], TrustError> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes)
        .map_err(|_| TrustError::new(ErrorKind::Unavailable, "the operating system gives no random bytes"))?;
    Ok(bytes)
}

fn invalid(path: &Path, why: &str) -> TrustError {
    TrustError::new(ErrorKind::Invalid, format!("`{}`: {why}", path.display()))
}

fn unavailable(path: &Path, error: &io::Error) -> TrustError {
    TrustError::new(ErrorKind::Unavailable, format!("`{}`: {error}", path.display()))
}

fn failed(what: &str) -> TrustError {
    TrustError::new(ErrorKind::Unavailable, format!("the cryptographic library could not {what} a key"))
}

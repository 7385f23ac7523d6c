//! Keys of a Transit engine.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use parking_lot::RwLock;
use serde_json::{Value, json};

use super::{
    Vault,
    client::{Answer, Call, Client},
};
use crate::{
    ErrorKind, TrustError,
    keys::{
        KeyInfo, KeyKind, KeyProvider, KeyVersion, Secret, check_data_key, check_key_name, exists_already, is_key_name,
        not_found, not_unwrapped, public_bits, wrong_kind,
    },
};

/// Most keys that are listed: each is asked for by itself.
const KEYS_MAX: usize = 10_000;

/// Keys of a Transit engine, by the names that the server has for them. Those of other types are left alone, and so are derived ones.
pub struct Transit {
    vault: Vault,
    keys: Arc<Keys>,
}

struct Keys {
    client: Arc<Client>,
    mount: String,
    /// A key's kind never changes.
    kinds: RwLock<BTreeMap<String, KeyKind>>,
}

impl Transit {
    pub(super) fn new(vault: Vault, mount: String) -> Self {
        let keys = Keys { client: vault.client.clone(), mount, kinds: RwLock::default() };
        Self { vault, keys: Arc::new(keys) }
    }

    fn run<T: Send + 'static, F: Future<Output = Result<T, TrustError>> + Send + 'static>(
        &self,
        work: impl FnOnce(Arc<Keys>) -> F,
    ) -> Result<T, TrustError> {
        self.vault.remote.run(work(self.keys.clone()))
    }
}

impl KeyProvider for Transit {
    fn name(&self) -> &'static str {
        "vault"
    }

    fn create(&self, id: &str, kind: KeyKind) -> Result<KeyInfo, TrustError> {
        check_key_name(id)?;
        let id = id.to_owned();
        self.run(|keys| async move { keys.create(&id, kind).await })
    }

    fn list(&self) -> Result<Vec<KeyInfo>, TrustError> {
        self.run(|keys| async move { keys.list().await })
    }

    fn describe(&self, id: &str) -> Result<KeyInfo, TrustError> {
        let id = id.to_owned();
        self.run(|keys| async move { keys.describe(&id).await })
    }

    fn rotate(&self, id: &str) -> Result<KeyInfo, TrustError> {
        let id = id.to_owned();
        self.run(|keys| async move {
            // The server would answer for a key that is not there in words of its own.
            keys.describe(&id).await?;
            keys.client.ask(&Call::post(format!("{}/rotate", keys.path("keys", &id)), json!({}))).await?;
            keys.describe(&id).await
        })
    }

    fn wrap(&self, id: &str, data_key: &[u8], context: &[u8]) -> Result<Vec<u8>, TrustError> {
        check_data_key(data_key)?;
        let body = json!({
            "plaintext": BASE64_STANDARD.encode(data_key),
            "associated_data": BASE64_STANDARD.encode(context),
        });
        let id = id.to_owned();
        self.run(|keys| async move {
            keys.expect(&id, "a wrapping key", |kind| kind == KeyKind::Wrapping).await?;
            let answer = keys.client.call(&Call::post(keys.path("encrypt", &id), body)).await?;
            let said = answer.json()?;
            let (version, sealed) = versioned(&answer, &said, "ciphertext")?;
            Ok([version.to_be_bytes().as_slice(), &sealed].concat())
        })
    }

    fn unwrap(&self, id: &str, wrapped: &[u8], context: &[u8]) -> Result<Secret, TrustError> {
        let sealed = wrapped.split_first_chunk().map(|(version, sealed)| {
            format!("vault:v{}:{}", u32::from_be_bytes(*version), BASE64_STANDARD.encode(sealed))
        });
        let (id, context) = (id.to_owned(), BASE64_STANDARD.encode(context));
        self.run(|keys| async move {
            keys.expect(&id, "a wrapping key", |kind| kind == KeyKind::Wrapping).await?;
            let sealed = sealed.ok_or_else(|| not_unwrapped(&id))?;
            let body = json!({ "ciphertext": sealed, "associated_data": context });
            let answer = keys.client.call(&Call::post(keys.path("decrypt", &id), body)).await?;
            if answer.is_refused_input() {
                let text = format!("{}{}", not_unwrapped(&id), answer.words());
                return Err(TrustError::new(ErrorKind::Tampered, text));
            }
            let said = answer.json()?;
            let plaintext = said.pointer("/data/plaintext").and_then(Value::as_str);
            let plaintext = plaintext.and_then(|text| BASE64_STANDARD.decode(text).ok());
            plaintext.map(Into::into).ok_or_else(|| answer.unreadable("no `plaintext` in it"))
        })
    }

    fn sign(&self, id: &str, message: &[u8]) -> Result<Vec<u8>, TrustError> {
        let (id, message) = (id.to_owned(), message.to_vec());
        self.run(|keys| async move {
            let kind = keys.expect(&id, "a key that signs", |kind| kind != KeyKind::Wrapping).await?;
            let body = match kind {
                // The server need not see what is signed.
                KeyKind::P256 => json!({
                    "input": BASE64_STANDARD.encode(digest(&SHA256, &message)),
                    "prehashed": true,
                    "hash_algorithm": "sha2-256",
                    "marshaling_algorithm": "asn1",
                }),
                _ => json!({ "input": BASE64_STANDARD.encode(&message) }),
            };
            let answer = keys.client.call(&Call::post(keys.path("sign", &id), body)).await?;
            let said = answer.json()?;
            versioned(&answer, &said, "signature").map(|(_, signature)| signature)
        })
    }
}

impl Keys {
    fn path(&self, operation: &str, id: &str) -> String {
        format!("{}/{operation}/{id}", self.mount)
    }

    async fn create(&self, id: &str, kind: KeyKind) -> Result<KeyInfo, TrustError> {
        if self.look_up(id).await?.is_some() {
            return Err(exists_already(id));
        }
        let kind_name = match kind {
            KeyKind::Wrapping => "aes256-gcm96",
            KeyKind::P256 => "ecdsa-p256",
            KeyKind::Ed25519 => "ed25519",
        };
        let body = json!({ "type": kind_name, "exportable": false, "allow_plaintext_backup": false, "derived": false });
        self.client.ask(&Call::post(self.path("keys", id), body)).await?;
        let made = self.describe(id).await?;
        // To the server a second creation is none. Where two come at once, with two kinds, one of them is told so.
        if made.kind != kind { Err(exists_already(id)) } else { Ok(made) }
    }

    async fn list(&self) -> Result<Vec<KeyInfo>, TrustError> {
        let answer = self.client.call(&Call::get(format!("{}/keys?list=true", self.mount))).await?;
        if answer.is_not_found() {
            return Ok(Vec::new());
        }
        let said = answer.json()?;
        let names = said.pointer("/data/keys").and_then(Value::as_array);
        let names = names.ok_or_else(|| answer.unreadable("no `keys` in it"))?;
        if names.len() > KEYS_MAX {
            return Err(answer.unreadable(&format!("{} keys; at most {KEYS_MAX} are listed", names.len())));
        }
        let mut keys = Vec::new();
        for name in names.iter().filter_map(Value::as_str).filter(|name| is_key_name(name)) {
            if let Some(Ok(info)) = self.look_up(name).await? {
                keys.push(info);
            }
        }
        keys.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(keys)
    }

    async fn describe(&self, id: &str) -> Result<KeyInfo, TrustError> {
        self.look_up(id).await?.ok_or_else(|| not_found(id))?
    }

    /// A key; within, why it is none of ours.
    async fn look_up(&self, id: &str) -> Result<Option<Result<KeyInfo, TrustError>>, TrustError> {
        if !is_key_name(id) {
            return Ok(None);
        }
        let answer = self.client.call(&Call::get(self.path("keys", id))).await?;
        if answer.is_not_found() {
            self.kinds.write().remove(id);
            return Ok(None);
        }
        let said = answer.json()?;
        let data = said.get("data").ok_or_else(|| answer.unreadable("no `data` in it"))?;
        let info = info(id, data);
        if let Ok(info) = &info {
            self.kinds.write().insert(id.to_owned(), info.kind);
        }
        Ok(Some(info))
    }

    /// Whether a key is there and of a kind. Needed ahead of `encrypt`, by which the server makes keys that are not there.
    async fn expect(&self, id: &str, wanted: &str, fits: impl Fn(KeyKind) -> bool) -> Result<KeyKind, TrustError> {
        let known = self.kinds.read().get(id).copied();
        let kind = match known {
            Some(kind) => kind,
            None => self.describe(id).await?.kind,
        };
        if fits(kind) { Ok(kind) } else { Err(wrong_kind(id, kind, wanted)) }
    }
}

/// What the server tells of a key.
fn info(id: &str, data: &Value) -> Result<KeyInfo, TrustError> {
    let kind = match data.get("type").and_then(Value::as_str).unwrap_or_default() {
        "aes256-gcm96" => KeyKind::Wrapping,
        "ecdsa-p256" => KeyKind::P256,
        "ed25519" => KeyKind::Ed25519,
        other => return Err(unusable(id, &format!("of type `{}`", other.escape_debug()))),
    };
    if data.get("derived").and_then(Value::as_bool) == Some(true) {
        return Err(unusable(id, "a derived one"));
    }
    let mut versions = Vec::new();
    for (number, said) in data.get("keys").and_then(Value::as_object).into_iter().flatten() {
        let number = number.parse().map_err(|_| unusable(id, &format!("of version `{}`", number.escape_debug())))?;
        versions.push(KeyVersion { number, created_at: created_at(said), public_key: public_key(kind, said) });
    }
    if versions.is_empty() {
        return Err(unusable(id, "without a version"));
    }
    versions.sort_by_key(|version| version.number);
    Ok(KeyInfo { id: id.to_owned(), kind, versions })
}

fn unusable(id: &str, why: &str) -> TrustError {
    let text = format!("key `{id}` of the server is {why}; expected `aes256-gcm96`, `ecdsa-p256` or `ed25519`");
    TrustError::new(ErrorKind::Invalid, text)
}

/// Seconds since 1970, or a date.
fn created_at(said: &Value) -> Option<SystemTime> {
    if let Some(seconds) = said.as_u64() {
        return SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    }
    humantime::parse_rfc3339(said.get("creation_time")?.as_str()?).ok()
}

/// PEM of P-256, bare base64 of Ed25519.
fn public_key(kind: KeyKind, said: &Value) -> Option<Vec<u8>> {
    let text = said.get("public_key")?.as_str()?;
    match kind {
        KeyKind::Wrapping => None,
        KeyKind::P256 => {
            let (_, pem) = x509_parser::pem::parse_x509_pem(text.as_bytes()).ok()?;
            public_bits(&pem.contents).filter(|point| point.len() == 65)
        }
        KeyKind::Ed25519 => BASE64_STANDARD.decode(text).ok().filter(|key| key.len() == 32),
    }
}

/// Reads `vault:vN:BASE64` of a field.
fn versioned(answer: &Answer, said: &Value, field: &str) -> Result<(u32, Vec<u8>), TrustError> {
    let text = said.get("data").and_then(|data| data.get(field)).and_then(Value::as_str);
    let parts = text.and_then(|text| text.strip_prefix("vault:v")?.split_once(':'));
    let read = parts.and_then(|(version, bytes)| Some((version.parse().ok()?, BASE64_STANDARD.decode(bytes).ok()?)));
    read.ok_or_else(|| answer.unreadable(&format!("no `{field}` of the form `vault:vN:…` in it")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_other_kinds_are_refused_and_strange_answers_do_no_harm() {
        let read = |data: &Value| info("k", data);
        assert_eq!(read(&json!({ "type": "aes256-gcm96", "keys": { "3": 7, "2": 5 } })).unwrap().versions[1].number, 3);
        let bad = [
            json!(null),
            json!([]),
            json!({ "type": 7 }),
            json!({ "type": "rsa-2048", "keys": { "1": 1 } }),
            json!({ "type": "aes256-gcm96" }),
            json!({ "type": "aes256-gcm96", "keys": [1] }),
            json!({ "type": "aes256-gcm96", "keys": {} }),
            json!({ "type": "aes256-gcm96", "keys": { "x": 1 } }),
            json!({ "type": "aes256-gcm96", "keys": { "-1": 1 } }),
            json!({ "type": "aes256-gcm96", "derived": true, "keys": { "1": 1 } }),
        ];
        for data in bad {
            assert_eq!(read(&data).unwrap_err().kind(), ErrorKind::Invalid, "{data}");
        }
        let odd =
            json!({ "type": "ecdsa-p256", "keys": { "1": { "public_key": "-----BEGIN", "creation_time": "now" } } });
        let version = &read(&odd).unwrap().versions[0];
        assert_eq!((version.created_at, &version.public_key), (None, &None));
        let far = json!({ "type": "aes256-gcm96", "keys": { "1": u64::MAX } });
        assert_eq!(read(&far).unwrap().versions[0].created_at, None);
    }
}

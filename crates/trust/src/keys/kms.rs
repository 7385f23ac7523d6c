//! Keys in AWS KMS.
//!
//! A key's name is the beginning of its aliases, and each version is a key of its own: `alias/edgeward/NAME/v1`, `…/v2`. KMS turns its
//! symmetric keys over by itself too, unseen, and cannot turn over those that sign. A wrapped data key is `version || ciphertext`. Its
//! context goes along as a digest in the encryption context, which AWS writes to its log.

mod client;
mod credentials;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};

use self::client::{Client, Refusal};
pub use self::credentials::CredentialSettings;
use super::{
    KeyInfo, KeyKind, KeyProvider, KeyVersion, Secret, check_data_key, check_key_name, exists_already, is_key_name,
    not_found, not_unwrapped, public_bits, wrong_kind,
};
use crate::{ErrorKind, TrustError, remote::Remote};

/// For so long a key that another process turned over is known by its old version here. KMS bears few questions a second.
const KNOWN_FOR: Duration = Duration::from_secs(300);
const ALIASES_MAX: usize = 10_000;
const PAGE: u32 = 100;
/// A key that nobody can find is deleted after so long, the least that KMS allows.
const PENDING_DAYS: u32 = 7;

/// Which KMS, and who this is to it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KmsSettings {
    /// `eu-central-1`.
    pub region: String,
    /// Another address than the region's, e.g. that of a private endpoint.
    pub endpoint: Option<String>,
    /// What the aliases of all keys begin with, after `alias/`.
    #[serde(default = "prefix")]
    pub prefix: String,
    /// Where the credentials come from.
    #[serde(default)]
    pub credentials: CredentialSettings,
}

fn prefix() -> String {
    "edgeward/".to_owned()
}

/// Keys in AWS KMS.
pub struct Kms {
    remote: Remote,
    keys: Arc<Keys>,
}

struct Keys {
    client: Client,
    prefix: String,
    known: Mutex<BTreeMap<String, (Instant, KeyInfo)>>,
}

/// A version as its alias tells it.
struct Alias {
    number: u32,
    created_at: Option<SystemTime>,
}

impl Kms {
    /// Reads the settings and the credentials. KMS itself is asked with the first call.
    ///
    /// # Errors
    /// `Invalid` where a setting is, `Unavailable` where there are no credentials.
    pub fn connect(settings: &KmsSettings) -> Result<Self, TrustError> {
        let taken = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '-');
        if settings.prefix.len() > 128 || !settings.prefix.chars().all(taken) || settings.prefix.starts_with("aws/") {
            let text = format!("prefix `{}`: expected letters, digits, `/`, `_`, `-`", settings.prefix.escape_debug());
            return Err(TrustError::new(ErrorKind::Invalid, text));
        }
        let client = Client::new(settings)?;
        let keys = Keys { client, prefix: settings.prefix.clone(), known: Mutex::default() };
        let (keys, remote) = (Arc::new(keys), Remote::start("kms")?);
        let first = keys.clone();
        remote.run(async move { first.client.credentials().await.map(drop) })?;
        Ok(Self { remote, keys })
    }

    fn run<T: Send + 'static, F: Future<Output = Result<T, TrustError>> + Send + 'static>(
        &self,
        work: impl FnOnce(Arc<Keys>) -> F,
    ) -> Result<T, TrustError> {
        self.remote.run(work(self.keys.clone()))
    }
}

impl KeyProvider for Kms {
    fn name(&self) -> &'static str {
        "aws-kms"
    }

    fn create(&self, id: &str, kind: KeyKind) -> Result<KeyInfo, TrustError> {
        check_key_name(id)?;
        if kind == KeyKind::Ed25519 {
            let text = "AWS KMS takes messages of at most 4,096 bytes for Ed25519; expected a P-256 key";
            return Err(TrustError::new(ErrorKind::Invalid, text));
        }
        let id = id.to_owned();
        self.run(|keys| async move {
            if !keys.aliases(Some(&id)).await?.is_empty() {
                return Err(exists_already(&id));
            }
            keys.make(&id, kind, 1).await?;
            keys.describe_anew(&id).await
        })
    }

    fn list(&self) -> Result<Vec<KeyInfo>, TrustError> {
        self.run(|keys| async move {
            let mut found = Vec::new();
            for (id, aliases) in keys.aliases(None).await? {
                found.extend(keys.info(&id, aliases).await?);
            }
            Ok(found)
        })
    }

    fn describe(&self, id: &str) -> Result<KeyInfo, TrustError> {
        let id = id.to_owned();
        self.run(|keys| async move { keys.describe_anew(&id).await })
    }

    fn rotate(&self, id: &str) -> Result<KeyInfo, TrustError> {
        let id = id.to_owned();
        self.run(|keys| async move {
            let info = keys.describe_anew(&id).await?;
            keys.make(&id, info.kind, newest(&info) + 1).await?;
            keys.describe_anew(&id).await
        })
    }

    fn wrap(&self, id: &str, data_key: &[u8], context: &[u8]) -> Result<Vec<u8>, TrustError> {
        check_data_key(data_key)?;
        let (plaintext, context) = (BASE64_STANDARD.encode(data_key), encryption_context(id, context));
        let id = id.to_owned();
        self.run(|keys| async move {
            let number = keys.expect(&id, "a wrapping key", |kind| kind == KeyKind::Wrapping).await?;
            let alias = keys.alias(&id, number);
            let body = json!({ "KeyId": alias, "Plaintext": plaintext, "EncryptionContext": context });
            let said = keys.client.ask("Encrypt", &body).await?;
            Ok([number.to_be_bytes().as_slice(), &keys.client.bytes(&said, "CiphertextBlob")?].concat())
        })
    }

    fn unwrap(&self, id: &str, wrapped: &[u8], context: &[u8]) -> Result<Secret, TrustError> {
        let parts = wrapped.split_first_chunk().map(|(number, sealed)| {
            (u32::from_be_bytes(*number), BASE64_STANDARD.encode(sealed), encryption_context(id, context))
        });
        let id = id.to_owned();
        self.run(|keys| async move {
            keys.expect(&id, "a wrapping key", |kind| kind == KeyKind::Wrapping).await?;
            let (number, sealed, context) = parts.ok_or_else(|| not_unwrapped(&id))?;
            let alias = keys.alias(&id, number);
            let body = json!({ "KeyId": alias, "CiphertextBlob": sealed, "EncryptionContext": context });
            match keys.client.call("Decrypt", &body).await? {
                Ok(said) => keys.client.bytes(&said, "Plaintext").map(Into::into),
                Err(refusal) if does_not_unwrap(&refusal) => Err(not_unwrapped(&id)),
                Err(refusal) => Err(refusal.into()),
            }
        })
    }

    fn sign(&self, id: &str, message: &[u8]) -> Result<Vec<u8>, TrustError> {
        // KMS need not see what is signed, and takes no more than 4,096 bytes.
        let (hash, id) = (BASE64_STANDARD.encode(digest(&SHA256, message)), id.to_owned());
        self.run(|keys| async move {
            let number = keys.expect(&id, "a key that signs", |kind| kind == KeyKind::P256).await?;
            let body = json!({
                "KeyId": keys.alias(&id, number),
                "Message": hash,
                "MessageType": "DIGEST",
                "SigningAlgorithm": "ECDSA_SHA_256",
            });
            let said = keys.client.ask("Sign", &body).await?;
            keys.client.bytes(&said, "Signature")
        })
    }
}

impl Keys {
    /// Aliases have no dots, and names no slashes.
    fn alias(&self, id: &str, number: u32) -> String {
        format!("alias/{}{}/v{number}", self.prefix, id.replace('.', "/"))
    }

    /// Name and number of a version, where an alias is one.
    fn read_alias(&self, alias: &str) -> Option<(String, u32)> {
        let (id, number) = alias.strip_prefix("alias/")?.strip_prefix(self.prefix.as_str())?.rsplit_once("/v")?;
        let (id, number) = (id.replace('/', "."), number.parse().ok()?);
        (is_key_name(&id) && self.alias(&id, number) == alias && number > 0).then_some((id, number))
    }

    /// The versions of all keys, or of one.
    async fn aliases(&self, of: Option<&str>) -> Result<BTreeMap<String, Vec<Alias>>, TrustError> {
        let (mut found, mut seen, mut marker) = (BTreeMap::<String, Vec<Alias>>::new(), 0, None::<String>);
        loop {
            let mut body = json!({ "Limit": PAGE });
            if let Some(marker) = &marker {
                body["Marker"] = json!(marker);
            }
            let said = self.client.ask("ListAliases", &body).await?;
            let page = said.get("Aliases").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            for alias in page {
                let named = alias.get("AliasName").and_then(Value::as_str).and_then(|name| self.read_alias(name));
                let Some((id, number)) = named.filter(|(id, _)| of.is_none_or(|of| of == id)) else { continue };
                let created_at = alias.get("CreationDate").and_then(Value::as_f64).and_then(seconds);
                found.entry(id).or_default().push(Alias { number, created_at });
            }
            seen += page.len();
            marker = said.get("NextMarker").and_then(Value::as_str).map(str::to_owned);
            if marker.is_none() {
                return Ok(found);
            }
            if seen > ALIASES_MAX || page.is_empty() {
                return Err(self.client.unreadable(&format!("more than {ALIASES_MAX} aliases")));
            }
        }
    }

    async fn describe_anew(&self, id: &str) -> Result<KeyInfo, TrustError> {
        let aliases = if is_key_name(id) { self.aliases(Some(id)).await?.remove(id) } else { None };
        let info = match aliases {
            Some(aliases) => self.info(id, aliases).await?,
            None => None,
        };
        let mut known = self.known.lock();
        let Some(info) = info else {
            known.remove(id);
            return Err(not_found(id));
        };
        known.insert(id.to_owned(), (Instant::now(), info.clone()));
        Ok(info)
    }

    /// A key by its aliases; none where it is of another kind than ours.
    async fn info(&self, id: &str, mut aliases: Vec<Alias>) -> Result<Option<KeyInfo>, TrustError> {
        aliases.sort_by_key(|alias| alias.number);
        let mut info: Option<KeyInfo> = None;
        for alias in aliases {
            let key = json!({ "KeyId": self.alias(id, alias.number) });
            let said = self.client.ask("DescribeKey", &key).await?;
            let spec = said.pointer("/KeyMetadata/KeySpec").and_then(Value::as_str).unwrap_or_default();
            let usage = said.pointer("/KeyMetadata/KeyUsage").and_then(Value::as_str).unwrap_or_default();
            let kind = match (spec, usage) {
                // For this one it goes without saying.
                ("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT" | "") => KeyKind::Wrapping,
                ("ECC_NIST_P256", "SIGN_VERIFY") => KeyKind::P256,
                _ => continue,
            };
            let mut public_key = None;
            if kind == KeyKind::P256 {
                let said = self.client.ask("GetPublicKey", &key).await?;
                public_key = public_bits(&self.client.bytes(&said, "PublicKey")?);
            }
            let version = KeyVersion { number: alias.number, created_at: alias.created_at, public_key };
            let info = info.get_or_insert_with(|| KeyInfo { id: id.to_owned(), kind, versions: Vec::new() });
            if info.kind == kind {
                info.versions.push(version);
            }
        }
        Ok(info)
    }

    /// The number of a key's newest version, where the key is of a kind.
    async fn expect(&self, id: &str, wanted: &str, fits: impl Fn(KeyKind) -> bool) -> Result<u32, TrustError> {
        let known = self.known.lock().get(id).filter(|(at, _)| at.elapsed() < KNOWN_FOR).map(|(_, info)| info.clone());
        let info = match known {
            Some(info) => info,
            None => self.describe_anew(id).await?,
        };
        if fits(info.kind) { Ok(newest(&info)) } else { Err(wrong_kind(id, info.kind, wanted)) }
    }

    async fn make(&self, id: &str, kind: KeyKind, number: u32) -> Result<(), TrustError> {
        let (spec, usage) = match kind {
            KeyKind::Wrapping => ("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT"),
            KeyKind::P256 | KeyKind::Ed25519 => ("ECC_NIST_P256", "SIGN_VERIFY"),
        };
        let alias = self.alias(id, number);
        let body = json!({ "KeySpec": spec, "KeyUsage": usage, "Description": format!("Edgeward: {alias}") });
        let said = self.client.ask("CreateKey", &body).await?;
        let key = said.pointer("/KeyMetadata/KeyId").and_then(Value::as_str);
        let key = key.ok_or_else(|| self.client.unreadable("no `KeyId` in it"))?;
        let named = self.client.call("CreateAlias", &json!({ "AliasName": alias, "TargetKeyId": key })).await?;
        let Err(refusal) = named else { return Ok(()) };
        // Another was faster, or this may make keys but not name them: a key without a name would cost and serve nobody.
        let discarded = json!({ "KeyId": key, "PendingWindowInDays": PENDING_DAYS });
        if let Err(error) = self.client.ask("ScheduleKeyDeletion", &discarded).await {
            tracing::warn!(key, "a key of AWS KMS could not be named `{alias}` and is to be deleted by hand: {error}");
        }
        if refusal.code == "AlreadyExistsException" { Err(exists_already(id)) } else { Err(refusal.into()) }
    }
}

fn newest(info: &KeyInfo) -> u32 {
    info.versions.last().map_or(0, |version| version.number)
}

/// The context as a digest: it stands in AWS's log, and may be long.
fn encryption_context(id: &str, context: &[u8]) -> Value {
    json!({ "edgeward:key": id, "edgeward:context-sha256": BASE64_STANDARD.encode(digest(&SHA256, context)) })
}

/// Whether KMS says that the ciphertext, not the caller, is the trouble.
fn does_not_unwrap(refusal: &Refusal) -> bool {
    match refusal.code.as_str() {
        // Of a version that there is not, as of one whose number was changed.
        "InvalidCiphertextException" | "IncorrectKeyException" | "NotFoundException" => true,
        "AccessDeniedException" => refusal.message.starts_with("The ciphertext refers to"),
        "ValidationException" => refusal.message.contains("iphertextBlob"),
        _ => false,
    }
}

/// A time of AWS's JSON: seconds since 1970, with a fraction.
fn seconds(since_1970: f64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(since_1970).ok()?)
}

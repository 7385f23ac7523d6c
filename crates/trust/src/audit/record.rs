//! What is written down of a decision or an admin act: one JSON object, which never holds tensors or tokens, only their digests.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::{ErrorKind, TrustError};

/// The longest entry that a bundle of tlog-tiles can hold, less the sequence number that the log adds.
const BODY_BYTES_MAX: usize = u16::MAX as usize - 32;

/// One decision or act. Long texts and lists are cut; a cut text ends with the SHA-256 of the whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When it was decided.
    #[serde(with = "rfc3339")]
    pub time: SystemTime,
    /// What kind of event it is.
    pub kind: Kind,
    /// Who asked: the id of the principal.
    pub principal: String,
    /// What was asked for, in the policy's words: `infer`, `load`, `policy.replace`.
    pub action: String,
    /// On what, in the policy's words.
    pub resource: String,
    /// What was decided.
    pub decision: Verdict,
    /// The policies that decided; none where nothing permitted it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
    /// Version of the set of policies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_version: Option<String>,
    /// Trust score, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// SHA-256 of what the record does not hold, by name: `request`, `token`, `certificate`, `release`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub digests: BTreeMap<String, Sha256Digest>,
    /// What else the decision saw, so that another policy can be tried on it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub context: BTreeMap<String, String>,
    /// Why, for the operator.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// What kind of event a record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A request was let through or not.
    Decision,
    /// Something was changed: a policy, a key, a certificate, a model.
    Admin,
    /// A session began or ended.
    Session,
    /// The log tells of itself: refused or cut records.
    Log,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Let through, or done.
    Allow,
    /// Refused.
    Deny,
    /// Neither could be decided: counts as refused.
    Error,
}

/// SHA-256 of something that must not be written down itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sha256Digest([u8; 32]);

impl Sha256Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl From<[u8; 32]> for Sha256Digest {
    fn from(digest: [u8; 32]) -> Self {
        Self(digest)
    }
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Sha256Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let byte = |n: usize| text.get(2 * n..2 * n + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let mut digest = [0; 32];
        for (n, place) in digest.iter_mut().enumerate() {
            *place = byte(n).filter(|_| text.len() == 64).ok_or_else(|| {
                serde::de::Error::custom(format!("`{text}` is no SHA-256; expected 64 hexadecimal digits"))
            })?;
        }
        Ok(Self(digest))
    }
}

/// A record in its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Place in the log, from 0.
    pub seq: u64,
    /// What was recorded.
    #[serde(flatten)]
    pub record: Record,
}

impl Entry {
    /// Reads an entry of the log.
    pub fn decode(entry: &[u8]) -> Result<Self, TrustError> {
        serde_json::from_slice(entry)
            .map_err(|error| TrustError::new(ErrorKind::Invalid, format!("an entry is no audit record: {error}")))
    }

    /// The place that an entry says it is in, whatever else it holds.
    pub fn seq_of(entry: &[u8]) -> Option<u64> {
        let digits = entry.strip_prefix(b"{\"seq\":")?;
        let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
        std::str::from_utf8(digits.get(..end)?).ok()?.parse().ok()
    }
}

/// Longest text in bytes, and most items of a list.
#[derive(Clone, Copy)]
struct Limits(usize, usize);

impl Record {
    /// The record as JSON, for [`place`] to complete.
    pub fn encode(&self) -> Result<Vec<u8>, TrustError> {
        let limits = Limits(1024, 32);
        let mut body = if self.fits(limits) { self.to_json()? } else { self.cut(limits).to_json()? };
        if body.len() > BODY_BYTES_MAX {
            // Only escapes can blow texts up that far.
            body = self.cut(Limits(96, 8)).to_json()?;
        }
        Ok(body)
    }

    fn to_json(&self) -> Result<Vec<u8>, TrustError> {
        serde_json::to_vec(self).map_err(|error| {
            TrustError::new(ErrorKind::Invalid, format!("a record cannot be written as JSON: {error}"))
        })
    }

    fn fits(&self, Limits(bytes, items): Limits) -> bool {
        let texts =
            [&self.principal, &self.action, &self.resource, &self.reason].into_iter().chain(&self.policy_version);
        let context = self.context.iter().flat_map(|(name, value)| [name, value]);
        texts.chain(&self.policies).chain(context).chain(self.digests.keys()).all(|text| text.len() <= bytes)
            && [self.policies.len(), self.context.len(), self.digests.len()].into_iter().all(|count| count <= items)
    }

    fn cut(&self, Limits(bytes, items): Limits) -> Self {
        let text = |text: &String| cut_text(text, bytes);
        Self {
            time: self.time,
            kind: self.kind,
            principal: text(&self.principal),
            action: text(&self.action),
            resource: text(&self.resource),
            decision: self.decision,
            policies: self.policies.iter().take(items).map(text).collect(),
            policy_version: self.policy_version.as_ref().map(text),
            score: self.score,
            digests: self.digests.iter().take(items).map(|(name, digest)| (text(name), *digest)).collect(),
            context: self.context.iter().take(items).map(|(name, value)| (text(name), text(value))).collect(),
            reason: text(&self.reason),
        }
    }
}

/// Appends `body`, as [`Record::encode`] made it, with its place in the log.
pub fn place(seq: u64, body: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("{{\"seq\":{seq},").as_bytes());
    out.extend_from_slice(body.strip_prefix(b"{").unwrap_or(body));
}

fn cut_text(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let mut cut = text[..text.floor_char_boundary(bytes)].to_owned();
    let _ = write!(cut, "… sha256:{}", Sha256Digest::of(text.as_bytes()));
    cut
}

mod rfc3339 {
    use std::time::SystemTime;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_micros(*time))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map_err(|error| serde::de::Error::custom(format!("`{text}`: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn record() -> Record {
        Record {
            time: SystemTime::UNIX_EPOCH + Duration::from_micros(1_764_000_000_123_456),
            kind: Kind::Decision,
            principal: "spiffe://hospital.example/ward".to_owned(),
            action: "infer".to_owned(),
            resource: "Model::\"pneumonia/3\"".to_owned(),
            decision: Verdict::Deny,
            policies: vec!["segment-7".to_owned()],
            policy_version: Some("12".to_owned()),
            score: Some(0.25),
            digests: [("request".to_owned(), Sha256Digest::of(b"secret"))].into(),
            context: [("network".to_owned(), "10.0.0.7".to_owned())].into(),
            reason: "score below 0.5".to_owned(),
        }
    }

    fn round_trip(record: &Record, seq: u64) -> Entry {
        let mut entry = Vec::new();
        place(seq, &record.encode().unwrap(), &mut entry);
        assert!(entry.len() <= usize::from(u16::MAX), "{}", entry.len());
        assert_eq!(Entry::seq_of(&entry), Some(seq));
        Entry::decode(&entry).unwrap()
    }

    #[test]
    fn a_record_is_read_as_written() {
        assert_eq!(round_trip(&record(), 17), Entry { seq: 17, record: record() });
    }

    /// The encoding is part of the log's format: what was hashed once must be written the same again.
    #[test]
    fn the_encoding_is_stable() {
        let text = String::from_utf8(record().encode().unwrap()).unwrap();
        let digest = Sha256Digest::of(b"secret");
        let expected = format!(
            r#"{{"time":"2025-11-24T16:00:00.123456Z","kind":"decision","principal":"spiffe://hospital.example/ward","action":"infer","resource":"Model::\"pneumonia/3\"","decision":"deny","policies":["segment-7"],"policy_version":"12","score":0.25,"digests":{{"request":"{digest}"}},"context":{{"network":"10.0.0.7"}},"reason":"score below 0.5"}}"#
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn long_and_hostile_texts_are_cut_to_what_an_entry_holds() {
        let huge = "é\u{0}\"".repeat(100_000);
        let many = || (0..1000).map(|n| (format!("{n}{huge}"), huge.clone()));
        let mut record = Record { principal: huge.clone(), reason: huge.clone(), resource: huge.clone(), ..record() };
        record.policies = vec![huge.clone(); 1000];
        record.context = many().take(40).collect();
        let entry = round_trip(&record, u64::MAX);
        assert!(entry.record.principal.starts_with("é\u{0}"));
        assert!(entry.record.principal.ends_with(&Sha256Digest::of(huge.as_bytes()).to_string()));
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let entries: [&[u8]; 5] = [b"", b"{}", b"{\"seq\":", b"\xff", b"{\"seq\":1,\"time\":\"yesterday\"}"];
        for entry in entries {
            assert!(Entry::decode(entry).is_err(), "{entry:?}");
        }
        assert_eq!(Entry::seq_of(b"{\"seq\":99999999999999999999999,"), None);
    }
}

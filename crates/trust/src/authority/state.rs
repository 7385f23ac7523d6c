//! What an authority has made and revoked, as it is kept in its folder.

use std::{collections::BTreeMap, fs, io, path::Path, time::SystemTime};

use serde::{Deserialize, Serialize};

use super::STATE;
use crate::error::{ErrorKind, TrustError};

const STATE_BYTES_MAX: u64 = 256 << 20;

/// Everything but the private keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Of the SPIFFE ids: `hospital.example`.
    pub trust_domain: String,
    /// Oldest first.
    pub roots: Authorities,
    /// Oldest first.
    pub intermediates: Authorities,
    /// Leaves that are valid, or were until a short time ago.
    pub leaves: Vec<LeafRecord>,
    /// By serial number.
    pub revoked: BTreeMap<String, Revocation>,
    /// Grows with every change of `revoked`.
    pub revocation_version: u64,
    /// When the revocation lists were signed last.
    #[serde(with = "optional_time")]
    pub crl_signed_at: Option<SystemTime>,
    /// The newest intermediate that then had one.
    pub crl_issuer: Option<String>,
}

/// Certificates of one level, oldest first.
pub type Authorities = Vec<CaCertificate>;

/// A root or an intermediate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaCertificate {
    /// In hexadecimal.
    pub serial: String,
    /// Its private key with the provider.
    pub key: String,
    /// Begin of its validity.
    #[serde(with = "time")]
    pub not_before: SystemTime,
    /// End of its validity.
    #[serde(with = "time")]
    pub not_after: SystemTime,
    /// The certificate.
    pub pem: String,
}

impl CaCertificate {
    /// Whether it is valid at `now`.
    pub fn is_valid(&self, now: SystemTime) -> bool {
        (self.not_before..self.not_after).contains(&now)
    }
}

/// A leaf that was issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafRecord {
    /// In hexadecimal.
    pub serial: String,
    /// Path of its SPIFFE id.
    pub name: String,
    /// What it may do.
    pub kind: LeafKind,
    /// Serial number of the intermediate.
    pub issuer: String,
    /// Begin of its validity.
    #[serde(with = "time")]
    pub not_before: SystemTime,
    /// End of its validity.
    #[serde(with = "time")]
    pub not_after: SystemTime,
}

/// What a leaf may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeafKind {
    /// Call servers.
    Client,
    /// Answer, and call others.
    Server,
}

/// Why and when a certificate was revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// When.
    #[serde(with = "time")]
    pub at: SystemTime,
    /// Why, for the operator.
    pub reason: String,
}

impl State {
    /// Reads the state of an authority's folder.
    ///
    /// # Errors
    /// `NotFound` where there is none, `Invalid` where it cannot be read.
    pub fn read(folder: &Path) -> Result<Self, TrustError> {
        let path = folder.join(STATE);
        let error = |kind, why: String| TrustError::new(kind, format!("`{}`: {why}", path.display()));
        let length = match fs::metadata(&path) {
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
                return Err(error(ErrorKind::NotFound, "no authority; `edgeward trust init` makes one".to_owned()));
            }
            other => other.map_err(|failed| error(ErrorKind::Unavailable, failed.to_string()))?.len(),
        };
        if length > STATE_BYTES_MAX {
            return Err(error(ErrorKind::Invalid, format!("{length} bytes; expected at most {STATE_BYTES_MAX}")));
        }
        let text = fs::read_to_string(&path).map_err(|failed| error(ErrorKind::Unavailable, failed.to_string()))?;
        serde_json::from_str(&text).map_err(|failed| error(ErrorKind::Invalid, failed.to_string()))
    }

    pub(super) fn to_json(&self) -> Result<String, TrustError> {
        serde_json::to_string_pretty(self).map_err(|error| TrustError::new(ErrorKind::Invalid, error.to_string()))
    }
}

mod time {
    use std::time::SystemTime;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_seconds(*time))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map_err(|error| serde::de::Error::custom(format!("`{text}`: {error}")))
    }
}

mod optional_time {
    use std::time::SystemTime;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => super::time::serialize(time, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SystemTime>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| humantime::parse_rfc3339(&text).map_err(serde::de::Error::custom)).transpose()
    }
}

//! The only request that is sent for a caller: `GetCallerIdentity`, signed in its address (Signature Version 4), and nothing beside.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL};
use reqwest::Url;

use super::{AwsSettings, SERVER_HEADER, TOKEN_PREFIX};
use crate::{
    TrustError,
    identity::{
        http::origin,
        jose::{TOKEN_BYTES_MAX, expired, unverified},
    },
};

const PARAMETERS: &[&str] = &[
    "Action",
    "Version",
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
    "X-Amz-Security-Token",
];

/// A request that may be sent.
#[derive(Debug)]
pub(super) struct Presigned {
    pub url: Url,
    pub signature: Vec<u8>,
    pub expires_at: SystemTime,
}

impl Presigned {
    pub(super) fn parse(
        token: &str,
        endpoints: &[Url],
        settings: &AwsSettings,
        now: SystemTime,
    ) -> Result<Self, TrustError> {
        let url = address(token)?;
        if !endpoints.iter().any(|endpoint| endpoint.origin() == url.origin()) {
            return Err(unverified(format!(
                "pre-signed request is to `{}`, which is no endpoint of AWS here",
                origin(&url)
            )));
        }
        let parameters = parameters(&url)?;
        let value = |name: &str| {
            let value = parameters.get(name).map(String::as_str);
            value.ok_or_else(|| unverified(format!("pre-signed request has no `{name}`")))
        };
        let exactly = |name: &str, expected: &str| match value(name)? {
            found if found == expected => Ok(()),
            found => Err(unverified(format!(
                "`{name}` of pre-signed request is `{}`, expected `{expected}`",
                found.escape_debug()
            ))),
        };
        exactly("Action", "GetCallerIdentity")?;
        exactly("Version", "2011-06-15")?;
        exactly("X-Amz-Algorithm", "AWS4-HMAC-SHA256")?;
        exactly("X-Amz-SignedHeaders", &format!("host;{SERVER_HEADER}"))?;
        let date = value("X-Amz-Date")?;
        check_scope(value("X-Amz-Credential")?, date)?;
        let expires_at = check_times(date, value("X-Amz-Expires")?, settings, now)?;
        let signature = hex(value("X-Amz-Signature")?);
        let signature =
            signature.ok_or_else(|| unverified("`X-Amz-Signature` of pre-signed request is no SHA-256 in hex"))?;
        Ok(Self { url, signature, expires_at })
    }
}

fn address(token: &str) -> Result<Url, TrustError> {
    let encoded = token.strip_prefix(TOKEN_PREFIX).filter(|_| token.len() <= TOKEN_BYTES_MAX);
    let encoded =
        encoded.ok_or_else(|| unverified(format!("expected `{TOKEN_PREFIX}` and at most {TOKEN_BYTES_MAX} bytes")))?;
    let bytes = BASE64URL.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let text = bytes.ok_or_else(|| unverified("pre-signed request is not base64url of an address"))?;
    let url = Url::parse(&text).map_err(|e| unverified(format!("pre-signed request is no address: {e}")))?;
    let plain = url.path() == "/" && url.fragment().is_none() && url.username().is_empty() && url.password().is_none();
    // A lenient reading of it (tabs, backslashes) would be another request than the one that was signed.
    if !plain || url.as_str() != text {
        return Err(unverified("pre-signed request has a path, fragment or user; expected `https://HOST/?QUERY`"));
    }
    Ok(url)
}

/// Each parameter once, and none that is not needed.
fn parameters(url: &Url) -> Result<BTreeMap<String, String>, TrustError> {
    let mut found = BTreeMap::new();
    for (name, value) in url.query_pairs() {
        if !PARAMETERS.contains(&&*name) {
            return Err(unverified(format!("pre-signed request has the parameter `{}`", name.escape_debug())));
        }
        if found.insert(name.clone().into_owned(), value.into_owned()).is_some() {
            return Err(unverified(format!("pre-signed request has `{name}` twice")));
        }
    }
    Ok(found)
}

/// `KEY_ID/DATE/REGION/sts/aws4_request`.
fn check_scope(credential: &str, date: &str) -> Result<(), TrustError> {
    let parts: Vec<_> = credential.split('/').collect();
    match parts.as_slice() {
        [key, day, region, "sts", "aws4_request"]
            if !key.is_empty() && !region.is_empty() && date.get(..8) == Some(day) =>
        {
            Ok(())
        }
        _ => {
            Err(unverified("`X-Amz-Credential` of pre-signed request: expected `KEY_ID/DATE/REGION/sts/aws4_request`"))
        }
    }
}

fn check_times(date: &str, seconds: &str, settings: &AwsSettings, now: SystemTime) -> Result<SystemTime, TrustError> {
    let made_at =
        basic_date(date).ok_or_else(|| unverified("`X-Amz-Date` of pre-signed request is not `YYYYMMDDTHHMMSSZ`"))?;
    let validity = seconds.parse().ok().map(Duration::from_secs).filter(|v| *v <= settings.validity_max);
    let validity = validity.ok_or_else(|| {
        unverified(format!(
            "`X-Amz-Expires` of pre-signed request: expected at most {}",
            settings.validity_max.as_secs()
        ))
    })?;
    let expires_at = made_at + validity;
    if expires_at <= now {
        return Err(expired(format!("pre-signed request of `{date}` has expired")));
    }
    if made_at > now + settings.clock_skew {
        return Err(expired(format!("pre-signed request is of `{date}`, which is not yet")));
    }
    Ok(expires_at)
}

/// ISO 8601 in its basic form, UTC.
fn basic_date(text: &str) -> Option<SystemTime> {
    if text.len() != 16 || !text.is_ascii() {
        return None;
    }
    let part = |range: std::ops::Range<usize>| text.get(range);
    let extended = format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0..4)?,
        part(4..6)?,
        part(6..8)?,
        part(9..11)?,
        part(11..13)?,
        part(13..15)?
    );
    (part(8..9)? == "T" && part(15..16)? == "Z").then(|| humantime::parse_rfc3339(&extended).ok()).flatten()
}

fn hex(text: &str) -> Option<Vec<u8>> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return None;
    }
    (0..32).map(|i| u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()).collect()
}

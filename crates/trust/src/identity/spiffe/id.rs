//! SPIFFE IDs: `spiffe://TRUST_DOMAIN/PATH`.

use std::fmt;

use crate::{TrustError, identity::jose::unverified};

const ID_BYTES_MAX: usize = 2048;
const DOMAIN_BYTES_MAX: usize = 255;

/// A name of a workload, in the one spelling that the standard allows.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: String,
    /// Where the path begins.
    path_at: usize,
}

impl SpiffeId {
    /// Reads an ID strictly: no percent signs, ports, queries, empty or dotted segments (SPIFFE-ID section 2).
    ///
    /// # Errors
    /// `Unverified`, naming what is wrong.
    pub fn parse(text: &str) -> Result<Self, TrustError> {
        if text.len() > ID_BYTES_MAX {
            return Err(unverified(format!("SPIFFE ID of {} bytes: at most {ID_BYTES_MAX}", text.len())));
        }
        let wrong =
            |expected: &str| Err(unverified(format!("SPIFFE ID `{}`: expected {expected}", text.escape_debug())));
        let Some(rest) = text.strip_prefix("spiffe://") else { return wrong("`spiffe://` at its start") };
        let (domain, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        if !is_trust_domain(domain) {
            return wrong("a trust domain of `a-z`, `0-9`, `.`, `-` and `_`");
        }
        let plain = |segment: &str| {
            let chars = segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
            chars && !matches!(segment, "" | "." | "..")
        };
        if !path.is_empty() && !path.split('/').skip(1).all(plain) {
            return wrong("a path of plain segments: no empty one, `.`, `..` or `%`");
        }
        Ok(Self { path_at: text.len() - path.len(), text: text.to_owned() })
    }

    /// The domain whose roots vouch for it.
    pub fn trust_domain(&self) -> &str {
        self.text.get("spiffe://".len()..self.path_at).unwrap_or_default()
    }

    /// The path with its first slash, or nothing for the domain itself.
    pub fn path(&self) -> &str {
        self.text.get(self.path_at..).unwrap_or_default()
    }
}

/// True for the name of a trust domain.
pub(super) fn is_trust_domain(name: &str) -> bool {
    let chars = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_'));
    chars && !name.is_empty() && name.len() <= DOMAIN_BYTES_MAX
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

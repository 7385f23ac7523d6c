//! Where a PIN, password or token comes from: a file or the environment, never a command line, which others can read.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::Secret;
use crate::{ErrorKind, TrustError, file::read_private};

/// Longest secret, in bytes.
const SECRET_BYTES_MAX: usize = 64 << 10;
/// Longest token of a platform, in bytes.
const JWT_BYTES_MAX: u64 = 64 << 10;

/// Where a secret is kept: `{ file = "pin.txt" }` or `{ env = "HSM_PIN" }`. It is read when it is needed, so that a new one is taken
/// without a restart.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretSource {
    /// A file that its owner alone may read. Line ends behind the secret do not count.
    File(PathBuf),
    /// A variable of the environment.
    Env(String),
}

impl SecretSource {
    /// Reads it.
    ///
    /// # Errors
    /// `Invalid` where it is empty, too long, or others may read the file; `Unavailable` where it is not there.
    pub fn read(&self) -> Result<Secret, TrustError> {
        let secret = match self {
            Self::File(path) => {
                let mut bytes = read_private(path)?;
                let length = bytes.trim_ascii_end().len();
                bytes.truncate(length);
                bytes
            }
            Self::Env(name) => {
                let value = std::env::var_os(name).ok_or_else(|| {
                    TrustError::new(ErrorKind::Unavailable, format!("environment variable `{name}` is not set"))
                })?;
                value.into_encoded_bytes().into()
            }
        };
        if (1..=SECRET_BYTES_MAX).contains(&secret.len()) {
            return Ok(secret);
        }
        let text = format!("{self}: a secret of {} bytes; expected 1 to {SECRET_BYTES_MAX}", secret.len());
        Err(TrustError::new(ErrorKind::Invalid, text))
    }

    /// Lets a file's path be changed.
    pub(crate) fn place(&mut self, place: impl FnOnce(&mut PathBuf)) {
        if let Self::File(path) = self {
            place(path);
        }
    }

    /// Reads it as text.
    ///
    /// # Errors
    /// Those of [`SecretSource::read`], and `Invalid` where it is not printable ASCII.
    pub(crate) fn read_text(&self) -> Result<Zeroizing<String>, TrustError> {
        let secret = self.read()?;
        let text = std::str::from_utf8(&secret).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic()));
        let text = text.ok_or_else(|| {
            TrustError::new(ErrorKind::Invalid, format!("{self}: expected printable ASCII without spaces"))
        })?;
        Ok(text.to_owned().into())
    }
}

impl std::fmt::Display for SecretSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "`{}`", path.display()),
            Self::Env(name) => write!(f, "environment variable `{name}`"),
        }
    }
}

/// Reads a token that the platform keeps in a file, often readable by all processes of its container.
pub(crate) fn platform_token(path: &Path) -> Result<Zeroizing<String>, TrustError> {
    let failed = |kind, why: String| TrustError::new(kind, format!("`{}`: {why}", path.display()));
    let mut text = Zeroizing::new(String::new());
    let file = File::open(path).map_err(|error| failed(ErrorKind::Unavailable, error.to_string()))?;
    let read = file.take(JWT_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|error| failed(ErrorKind::Invalid, error.to_string()))?;
    let token = text.trim();
    if token.is_empty() || token.len() as u64 > JWT_BYTES_MAX || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let why = format!("{} bytes; expected one token of at most {JWT_BYTES_MAX}", text.len());
        return Err(failed(ErrorKind::Invalid, why));
    }
    Ok(token.to_owned().into())
}

//! The files that make a policy, and their digest.

use std::{fs, path::Path};

use sha2::{Digest as _, Sha256};

use crate::{ErrorKind, TrustError};

/// Most files of a folder.
const FILES_MAX: usize = 10_000;
/// Most bytes of all files together.
const BYTES_MAX: u64 = 256 << 20;

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Its name, as errors show it.
    pub name: String,
    /// Its content.
    pub text: String,
}

/// What a policy is made of: `*.cedar` and the entity files beside them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// Policies, in the order of their names.
    pub policies: Vec<SourceFile>,
    /// Entities (`entities.toml`, `*.entities.toml`), in the order of their names.
    pub entities: Vec<SourceFile>,
}

impl Sources {
    /// Reads a folder: `*.cedar`, `entities.toml` and `*.entities.toml`. `tests.toml` and `*.tests.toml` are left to `trust policy test`.
    ///
    /// # Errors
    /// A folder without policies, a file that cannot be read or is no text, a `.toml` of another name (it would be without effect).
    pub fn read(folder: &Path) -> Result<Self, TrustError> {
        let shown = folder.display();
        let unreadable =
            |error: std::io::Error| invalid(format!("cannot read the folder of policies `{shown}`: {error}"));
        let mut sources = Self::default();
        let mut bytes = 0;
        for (count, entry) in fs::read_dir(folder).map_err(unreadable)?.enumerate() {
            if count == FILES_MAX {
                return Err(invalid(format!(
                    "folder `{shown}` has more than {FILES_MAX} files; put policies together"
                )));
            }
            let entry = entry.map_err(unreadable)?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            let Some(list) = sources.list_of(&name)? else { continue };
            list.push(read_file(&entry.path(), name, &mut bytes)?);
        }
        if sources.policies.is_empty() {
            let message =
                format!("folder `{shown}` has no policies; expected `.cedar` files, else everything is denied");
            return Err(invalid(message));
        }
        sources.policies.sort_by(|a, b| a.name.cmp(&b.name));
        sources.entities.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(sources)
    }

    fn list_of(&mut self, name: &str) -> Result<Option<&mut Vec<SourceFile>>, TrustError> {
        let is = |what: &str| name == what || name.ends_with(&format!(".{what}"));
        if name.starts_with('.') {
            // Kubernetes mounts `..data` and editors leave their own.
            return Ok(None);
        }
        if name.ends_with(".cedar") {
            return Ok(Some(&mut self.policies));
        }
        if is("entities.toml") {
            return Ok(Some(&mut self.entities));
        }
        if is("tests.toml") || !(name.ends_with(".toml") || name.ends_with(".cedarschema")) {
            return Ok(None);
        }
        let expected = "expected `entities.toml`, `NAME.entities.toml`, `tests.toml` or `NAME.tests.toml`";
        Err(invalid(format!("file `{name}` among the policies would be without effect; {expected}")))
    }

    /// SHA-256 over names and contents of all files, in hexadecimal.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for list in [&self.policies, &self.entities] {
            hash.update((list.len() as u64).to_be_bytes());
            for part in list.iter().flat_map(|file| [&file.name, &file.text]) {
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(part);
            }
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Reads a file that must be text, within what is left of [`BYTES_MAX`].
fn read_file(path: &Path, name: String, bytes: &mut u64) -> Result<SourceFile, TrustError> {
    use std::io::Read as _;
    let left = BYTES_MAX.saturating_sub(*bytes);
    let mut content = Vec::new();
    // A pipe of that name would block for ever.
    let regular = fs::metadata(path).is_ok_and(|meta| meta.is_file());
    let file = if regular { fs::File::open(path) } else { Err(std::io::Error::other("it is no file")) };
    file.and_then(|file| file.take(left + 1).read_to_end(&mut content))
        .map_err(|error| invalid(format!("cannot read `{name}`: {error}")))?;
    *bytes += content.len() as u64;
    if content.len() as u64 > left {
        return Err(invalid(format!("policies and entities have more than {BYTES_MAX} bytes at `{name}`")));
    }
    let text = String::from_utf8(content).map_err(|error| {
        let line =
            error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|&&byte| byte == b'\n').count() + 1;
        invalid(format!("{name}:{line}: the file is no UTF-8 text"))
    })?;
    Ok(SourceFile { name, text })
}

pub(super) fn invalid(message: String) -> TrustError {
    TrustError::new(ErrorKind::Invalid, message)
}

/// Line and column of an offset in a text, both from 1.
pub(super) fn line_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.as_bytes().get(..offset.min(text.len())).unwrap_or_default();
    let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |place| place + 1);
    (line, String::from_utf8_lossy(before.get(start..).unwrap_or_default()).chars().count() + 1)
}

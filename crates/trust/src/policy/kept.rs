//! Policies of an administrator's call, kept in a file: they outlive the server, until the folder of policies says something else.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{SourceFile, Sources};
use crate::{
    ErrorKind, TrustError,
    file::{read_if_there, replace},
};

/// The file within an authority's folder.
pub const POLICIES_KEPT: &str = "policies-by-call.json";
const FILE_BYTES_MAX: u64 = 80 << 20;
const MEND: &str = "mend it, or delete it to have the folder's policies in force";

/// The file.
#[derive(Clone, Debug)]
pub struct KeptPolicies {
    path: PathBuf,
}

/// A set that a call put in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptSet {
    /// The set.
    pub sources: Sources,
    /// Digest of the folder that it took the place of: a folder of another digest was changed later, and its policies are newer.
    pub instead_of: String,
}

/// Which of the two sets is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    /// The set.
    pub sources: Sources,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where policies come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The folder; no call has put others in force.
    Folder,
    /// The folder, which was changed after the call whose policies are kept.
    ChangedFolder,
    /// A call.
    Call,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    instead_of: String,
    policies: BTreeMap<String, String>,
    #[serde(default)]
    entities: BTreeMap<String, String>,
}

impl KeptPolicies {
    /// The file at a path, which need not be there.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is kept; none where there is no file.
    ///
    /// # Errors
    /// `Invalid` where it cannot be understood, `Unavailable` where it cannot be read; either says what to do.
    pub fn read(&self) -> Result<Option<KeptSet>, TrustError> {
        let text = read_if_there(&self.path, FILE_BYTES_MAX).map_err(|error| self.unread(&error))?;
        let Some(text) = text else { return Ok(None) };
        let written: Written = serde_json::from_slice(&text).map_err(|error| self.invalid(&error.to_string()))?;
        if written.policies.is_empty() {
            return Err(self.invalid("it has no policies"));
        }
        let files =
            |files: BTreeMap<String, String>| files.into_iter().map(|(name, text)| SourceFile { name, text }).collect();
        let sources = Sources { policies: files(written.policies), entities: files(written.entities) };
        Ok(Some(KeptSet { sources, instead_of: written.instead_of }))
    }

    /// Keeps a set in place of the one before; on the disk when this returns.
    ///
    /// # Errors
    /// `Unavailable` where the file cannot be written.
    pub fn keep(&self, set: &KeptSet) -> Result<(), TrustError> {
        let files = |files: &[SourceFile]| files.iter().map(|file| (file.name.clone(), file.text.clone())).collect();
        let written = Written {
            instead_of: set.instead_of.clone(),
            policies: files(&set.sources.policies),
            entities: files(&set.sources.entities),
        };
        let text = serde_json::to_vec_pretty(&written).map_err(|error| self.invalid(&error.to_string()))?;
        if text.len() as u64 > FILE_BYTES_MAX {
            let error = io::Error::other(format!("{} bytes; at most {FILE_BYTES_MAX} are kept", text.len()));
            return Err(self.unavailable(&error));
        }
        replace(&self.path, &text, true).map_err(|error| self.unavailable(&error))
    }

    /// Keeps nothing any more; true where there was something.
    ///
    /// # Errors
    /// `Unavailable` where the file cannot be removed.
    pub fn forget(&self) -> Result<bool, TrustError> {
        match fs::remove_file(&self.path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.unavailable(&error)),
        }
    }

    /// The newer of the folder's policies and those that are kept.
    ///
    /// # Errors
    /// Those of [`Sources::read`] and [`KeptPolicies::read`].
    pub fn in_force(&self, folder: &Path) -> Result<InForce, TrustError> {
        let (of_folder, kept) = (Sources::read(folder)?, self.read()?);
        Ok(match kept {
            Some(kept) if kept.instead_of == of_folder.digest() => {
                InForce { sources: kept.sources, origin: Origin::Call }
            }
            Some(_) => InForce { sources: of_folder, origin: Origin::ChangedFolder },
            None => InForce { sources: of_folder, origin: Origin::Folder },
        })
    }

    fn unread(&self, error: &io::Error) -> TrustError {
        match error.kind() {
            io::ErrorKind::FileTooLarge => self.invalid(&error.to_string()),
            _ => self.unavailable(error),
        }
    }

    fn invalid(&self, why: &str) -> TrustError {
        TrustError::new(ErrorKind::Invalid, format!("policies of a call, `{}`: {why}; {MEND}", self.path.display()))
    }

    fn unavailable(&self, error: &io::Error) -> TrustError {
        TrustError::new(ErrorKind::Unavailable, format!("policies of a call, `{}`: {error}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> Sources {
        let file = |name: &str, text: &str| vec![SourceFile { name: name.to_owned(), text: text.to_owned() }];
        Sources { policies: file("a.cedar", text), entities: file("entities.toml", "[Model.\"ü\"]\n") }
    }

    #[test]
    fn the_newer_of_both_is_in_force() {
        let files = tempfile::tempdir().unwrap();
        let (folder, kept) = (files.path().join("policies"), KeptPolicies::at(files.path().join(POLICIES_KEPT)));
        fs::create_dir(&folder).unwrap();
        let write = |text: &str| fs::write(folder.join("b.cedar"), text).unwrap();
        let origin = || kept.in_force(&folder).unwrap().origin;
        write("first");
        assert_eq!(origin(), Origin::Folder);
        let instead_of = Sources::read(&folder).unwrap().digest();
        kept.keep(&KeptSet { sources: set("permit \"\u{1}\";\n"), instead_of }).unwrap();
        let expected = InForce { sources: set("permit \"\u{1}\";\n"), origin: Origin::Call };
        assert_eq!(kept.in_force(&folder).unwrap(), expected);
        write("first");
        assert_eq!(origin(), Origin::Call);
        write("second");
        assert_eq!(origin(), Origin::ChangedFolder);
        assert!(kept.forget().unwrap() && !kept.forget().unwrap());
        assert_eq!(origin(), Origin::Folder);
    }

    #[test]
    fn a_damaged_file_says_how_to_mend_it() {
        let files = tempfile::tempdir().unwrap();
        let kept = KeptPolicies::at(files.path().join(POLICIES_KEPT));
        for text in ["", "{", "{\"instead_of\":\"a\",\"policies\":{}}", "{\"policies\":{\"a\":\"\"}}", "[1]"] {
            fs::write(kept.path(), text).unwrap();
            let error = kept.read().unwrap_err();
            let told = error.to_string();
            let mend = told.contains(POLICIES_KEPT) && told.contains(MEND);
            assert!(error.kind() == ErrorKind::Invalid && mend, "{text}: {told}");
        }
    }
}

//! Files that a load call brings along, in place of those in the repository.
//!
//! They are laid out as a repository would hold them, in a private folder that goes away once the model is loaded, so
//! that they are read under the same rules.

use std::{fs, path::Path};

use crate::core::{LoadOverrides, ServeError, ServeErrorKind, repository::is_name};

/// Files of one load at most.
const FILES_MAX: usize = 1000;

/// The folder of the files given.
pub(super) struct Files(tempfile::TempDir);

impl Files {
    /// Lays out what `overrides` holds; none where it holds no file.
    pub fn of(model: &str, overrides: &LoadOverrides) -> Result<Option<Self>, ServeError> {
        let refuse =
            |text: String| ServeError::new(ServeErrorKind::InvalidArgument, format!("model `{model}`: {text}"));
        if overrides.files.is_empty() {
            return Ok(None);
        }
        if overrides.config_json.is_none() {
            return Err(refuse("`file:` parameters need a `config` parameter beside them".to_owned()));
        }
        if overrides.files.len() > FILES_MAX {
            return Err(refuse(format!("{} files, the limit is {FILES_MAX}", overrides.files.len())));
        }
        let failed = |e: std::io::Error| {
            ServeError::new(ServeErrorKind::Internal, format!("model `{model}`: cannot keep the files given: {e}"))
        };
        let folder = tempfile::tempdir().map_err(failed)?;
        for (key, content) in &overrides.files {
            let path = key.strip_prefix("file:").unwrap_or(key);
            let parts: Vec<&str> = path.split('/').collect();
            let version = parts.first().and_then(|version| version.parse::<u64>().ok()).is_some_and(|v| v > 0);
            if !version || parts.len() < 2 || parts.len() > 8 || !parts.iter().all(|part| is_name(part)) {
                return Err(refuse(format!("`{key}`, expected `file:VERSION/NAME` beneath the model's folder")));
            }
            let target = folder.path().join(path);
            fs::create_dir_all(target.parent().unwrap_or(folder.path())).map_err(failed)?;
            fs::write(&target, content).map_err(failed)?;
        }
        Ok(Some(Self(folder)))
    }

    pub fn folder(&self) -> &Path {
        self.0.path()
    }
}

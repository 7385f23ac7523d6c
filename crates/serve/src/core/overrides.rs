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
        check(model, overrides)?;
        if overrides.files.is_empty() {
            return Ok(None);
        }
        let failed = |e: std::io::Error| {
            ServeError::new(ServeErrorKind::Internal, format!("model `{model}`: cannot keep the files given: {e}"))
        };
        let folder = tempfile::tempdir().map_err(failed)?;
        for (key, content) in &overrides.files {
            let target = folder.path().join(key.strip_prefix("file:").unwrap_or(key));
            fs::create_dir_all(target.parent().unwrap_or(folder.path())).map_err(failed)?;
            fs::write(&target, content).map_err(failed)?;
        }
        Ok(Some(Self(folder)))
    }

    pub fn folder(&self) -> &Path {
        self.0.path()
    }
}

impl LoadOverrides {
    /// An error where the files have more than `bytes_max` bytes together.
    pub(crate) fn within(&self, bytes_max: usize) -> Result<(), ServeError> {
        let bytes: usize = self.files.iter().map(|(_, content)| content.len()).sum();
        if bytes <= bytes_max {
            return Ok(());
        }
        let text = format!(
            "the `file:` parameters have {bytes} bytes, the limit is {bytes_max} (`load_bytes_max` in `[serve]`); put larger files into the repository"
        );
        Err(ServeError::new(ServeErrorKind::InvalidArgument, text))
    }
}

/// An error where a load may not bring this along: names outside the model's folder, or files without a configuration.
pub(super) fn check(model: &str, overrides: &LoadOverrides) -> Result<(), ServeError> {
    let refuse =
        |text: String| Err(ServeError::new(ServeErrorKind::InvalidArgument, format!("model `{model}`: {text}")));
    let files = &overrides.files;
    if !is_name(model) {
        return refuse("expected a name of one path segment".to_owned());
    }
    if !files.is_empty() && overrides.config_json.is_none() {
        return refuse("`file:` parameters need a `config` parameter beside them".to_owned());
    }
    if files.len() > FILES_MAX {
        return refuse(format!("{} files, the limit is {FILES_MAX}", files.len()));
    }
    for (key, _) in files {
        let parts: Vec<&str> = key.strip_prefix("file:").unwrap_or(key).split('/').collect();
        let version = parts.first().and_then(|version| version.parse::<u64>().ok()).is_some_and(|v| v > 0);
        if !version || !(2..=8).contains(&parts.len()) || !parts.iter().all(|part| is_name(part)) {
            return refuse(format!("`{key}`, expected `file:VERSION/NAME` beneath the model's folder"));
        }
    }
    Ok(())
}

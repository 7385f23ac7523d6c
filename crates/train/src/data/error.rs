//! What is wrong with a data set, and where.

use std::{
    io,
    path::{Path, PathBuf},
};

/// The stable class of a [`DataError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataErrorKind {
    /// A file cannot be read or written.
    Io,
    /// A file is not what its name says.
    Malformed,
    /// One row of a file is wrong.
    Row,
    /// The file is larger than this machine is asked to hold.
    Limit,
    /// The data does not fit the model, or what was asked of it.
    Fit,
}

/// A defect of a data set; the text names the file and, where there is one, the line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file cannot be read or written.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file is not what its name says.
    #[error("`{}`: {reason}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// One row is wrong.
    #[error("`{}` line {line}: {reason}", path.display())]
    Row {
        /// Which file.
        path: PathBuf,
        /// Line, or row of a file without lines, from 1.
        line: u64,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// A file is too large.
    #[error("`{}` holds more than {limit} bytes, the most that is read", path.display())]
    Limit {
        /// Which file.
        path: PathBuf,
        /// The most bytes.
        limit: u64,
    },
    /// The data does not fit.
    #[error("{0}")]
    Fit(String),
}

impl DataError {
    /// The stable class.
    pub fn kind(&self) -> DataErrorKind {
        match self {
            Self::Io { .. } => DataErrorKind::Io,
            Self::Malformed { .. } => DataErrorKind::Malformed,
            Self::Row { .. } => DataErrorKind::Row,
            Self::Limit { .. } => DataErrorKind::Limit,
            Self::Fit(_) => DataErrorKind::Fit,
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn malformed(path: &Path, reason: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), reason: reason.into() }
    }

    pub(crate) fn row(path: &Path, line: u64, reason: impl Into<String>) -> Self {
        Self::Row { path: path.to_owned(), line, reason: reason.into() }
    }

    pub(crate) fn fit(reason: impl Into<String>) -> Self {
        Self::Fit(reason.into())
    }
}

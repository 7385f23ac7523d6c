//! Releases in object storage: a folder, S3, Azure Blob Storage or Google Cloud Storage, all through `object_store`.
//!
//! Files are cut where their content says (FastCDC), so that releases share what did not change. A push sends the chunks that no release
//! of the name has, joined into packs that are named by their digest: what an interrupted push has sent is found again. A pull reads only
//! the ranges that it lacks. Nothing that comes back is believed before its digest was compared.
//!
//! ```text
//! PREFIX/packs/DIGEST                      chunks, one after the other
//! PREFIX/releases/NAME/SEQUENCE/index.json where the chunks of each file lie; written last
//! PREFIX/releases/NAME/SEQUENCE/FILE       the manifest, and the files about the release
//! ```

mod check;
mod chunk;
mod index;
mod open;
mod pull;
mod push;

use std::{path::Path as LocalPath, sync::Arc};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::{
    Error, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, local::LocalFileSystem, parse_url_opts,
    path::Path,
};
use url::Url;

use crate::{
    digest::Digest,
    error::{ErrorKind, StoreError, invalid, io_error},
};

pub use check::Check;
use index::Index;
pub use pull::{PullOptions, PullReport, Selection};
pub use push::PushReport;

/// Releases that are listed at most.
const LISTED_MAX: usize = 10_000;

/// A place for releases.
#[derive(Clone, Debug)]
pub struct Remote {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

/// A release in a [`Remote`].
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Listed {
    /// Of the model.
    pub name: String,
    /// Of the release.
    pub sequence: u64,
}

impl Remote {
    /// Opens a folder, or an address `s3://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`, `gs://BUCKET/PREFIX`. Options are those of the environment
    /// (`AWS_…`, `AZURE_…`, `GOOGLE_…`), by their names.
    ///
    /// # Errors
    /// `Invalid` where the address or an option is wrong.
    pub fn open(place: &str, options: impl IntoIterator<Item = (String, String)>) -> Result<Self, StoreError> {
        if !place.contains("://") {
            return Self::folder(LocalPath::new(place));
        }
        let wrong = |error: &dyn std::fmt::Display| invalid(format!("`{place}`: {error}"));
        let url = Url::parse(place).map_err(|error| wrong(&error))?;
        if url.scheme() == "file" {
            return Self::folder(&url.to_file_path().map_err(|()| wrong(&"expected the path of a folder"))?);
        }
        let options = options.into_iter().map(|(key, value)| (key.to_ascii_lowercase(), value));
        let known = options.filter(|(key, _)| ["aws_", "azure_", "google_"].iter().any(|begin| key.starts_with(begin)));
        let (store, prefix) = parse_url_opts(&url, known).map_err(|error| wrong(&error))?;
        Ok(Self::new(Arc::from(store), prefix))
    }

    fn folder(path: &LocalPath) -> Result<Self, StoreError> {
        std::fs::create_dir_all(path).map_err(|error| io_error(path, &error))?;
        let store = LocalFileSystem::new_with_prefix(path).map_err(|error| failed(&error))?;
        Ok(Self::new(Arc::new(store), Path::default()))
    }

    /// Releases beneath a prefix of a store.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: Path) -> Self {
        Self { store, prefix }
    }

    /// The releases that are there, by name, oldest first. What they hold is not looked at.
    ///
    /// # Errors
    /// `Unavailable` where the store does not answer.
    pub async fn list(&self, name: Option<&str>) -> Result<Vec<Listed>, StoreError> {
        let root = self.prefix.clone().join("releases");
        let from = name.map_or(root.clone(), |name| root.clone().join(name));
        let mut objects = self.store.list(Some(&from));
        let mut found = Vec::new();
        while let Some(object) = objects.try_next().await.map_err(|error| failed(&error))? {
            let Some(parts) = object.location.prefix_match(&root) else { continue };
            let parts: Vec<_> = parts.collect();
            if let [name, sequence, file] = parts.as_slice()
                && file.as_ref() == index::FILE
                && let Ok(sequence) = sequence.as_ref().parse()
            {
                found.push(Listed { name: name.as_ref().to_owned(), sequence });
            }
            if found.len() > LISTED_MAX {
                return Err(invalid(format!("more than {LISTED_MAX} releases are there")));
            }
        }
        found.sort_by(|a, b| (&a.name, a.sequence).cmp(&(&b.name, b.sequence)));
        Ok(found)
    }

    fn release(&self, name: &str, sequence: u64, file: &str) -> Path {
        // Twenty digits, so that they sort as numbers.
        self.prefix.clone().join("releases").join(name).join(format!("{sequence:020}")).join(file)
    }

    fn pack(&self, digest: Digest) -> Path {
        self.prefix.clone().join("packs").join(digest.to_string())
    }

    /// A small object; none where there is none.
    async fn small(&self, path: &Path, bytes_max: u64) -> Result<Option<Bytes>, StoreError> {
        let result = match self.store.get(path).await {
            Err(Error::NotFound { .. }) => return Ok(None),
            other => other.map_err(|error| failed(&error))?,
        };
        if result.meta.size > bytes_max {
            return Err(invalid(format!("`{path}` has {} bytes; expected at most {bytes_max}", result.meta.size)));
        }
        result.bytes().await.map(Some).map_err(|error| failed(&error))
    }

    async fn index(&self, name: &str, sequence: u64) -> Result<Option<Index>, StoreError> {
        let path = self.release(name, sequence, index::FILE);
        let bytes = self.small(&path, index::BYTES_MAX).await?;
        bytes.map(|bytes| Index::parse(&bytes).map_err(|error| error.at(format!("`{path}`")))).transpose()
    }

    /// Writes an object that must not be there.
    async fn create(&self, path: &Path, bytes: Vec<u8>) -> Result<(), StoreError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.store.put_opts(path, PutPayload::from(bytes), options).await {
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Err(StoreError::new(
                ErrorKind::Exists,
                format!("`{path}` was written by somebody else meanwhile; push again"),
            )),
            other => other.map(drop).map_err(|error| failed(&error)),
        }
    }
}

fn failed(error: &Error) -> StoreError {
    let kind = if matches!(error, Error::NotFound { .. }) { ErrorKind::NotFound } else { ErrorKind::Unavailable };
    StoreError::new(kind, error.to_string())
}

//! Opens a release that is in object storage, by way of a folder that keeps what was fetched.

use std::{fs, path::Path, path::PathBuf};

use super::{PullOptions, Remote, Selection, pull::Partial};
use crate::{
    error::{ErrorKind, StoreError, io_error},
    files::Release,
    name::check_name,
    open::{OpenOptions, Opened, open},
};

impl Remote {
    /// Opens a release as [`open`](crate::open()) does. Its files are kept in `cache`, sealed where they are; what a newer release shares with
    /// them is not fetched again. What is about it (signature, wrapped key) is fetched each time.
    ///
    /// # Errors
    /// Those of [`Remote::pull`] and [`open`](crate::open()).
    pub async fn open_release(
        &self,
        selection: &Selection,
        cache: &Path,
        options: &OpenOptions<'_>,
    ) -> Result<Opened, StoreError> {
        let chosen = self.choose(selection).await?;
        check_name("release", &chosen.name)?;
        let index = self.index(&chosen.name, chosen.sequence).await?;
        let index = index.ok_or_else(|| StoreError::new(ErrorKind::NotFound, "the release's index is gone"))?;
        fs::create_dir_all(cache).map_err(|error| io_error(cache, &error))?;
        let folder = cache.join(format!("{}-{}", chosen.name, index.id));
        if Release::open(&folder).is_ok_and(|kept| kept.id() == index.id) {
            self.beside(&chosen, &Partial::of(&folder)?).await?;
        } else {
            let have = earlier(cache, &chosen.name)?;
            let selection = Selection { name: Some(chosen.name), sequence: Some(chosen.sequence) };
            self.pull(&folder, &PullOptions { selection, trust: Some(options.trust), have: &have }).await?;
        }
        open(&folder, options)
    }
}

/// Releases of a name that were kept.
fn earlier(cache: &Path, name: &str) -> Result<Vec<PathBuf>, StoreError> {
    let kept = crate::list(cache)?.into_iter();
    Ok(kept
        .filter(|(_, release)| release.as_ref().is_ok_and(|release| release.manifest().name == name))
        .map(|kept| kept.0)
        .collect())
}

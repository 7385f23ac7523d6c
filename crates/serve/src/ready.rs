//! The ready file: there only while the server is ready for the first time and on, and then whole.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    core::Server,
    run::{Addresses, RunError},
};

/// Between two looks at a server that is not ready yet.
const PAUSE: Duration = Duration::from_millis(50);

/// A path that can be written and where nothing lies that an earlier server left. What this one writes goes with it.
#[derive(Debug)]
pub(crate) struct ReadyFile {
    path: PathBuf,
    text: Option<Vec<u8>>,
}

impl ReadyFile {
    /// Takes what lies there away, and tries that a file can be written.
    pub(crate) fn claim(path: PathBuf) -> Result<Self, RunError> {
        let this = Self { path, text: None };
        let staged = this.staged();
        let tried = remove(&this.path).and_then(|()| fs::write(&staged, "")).and_then(|()| remove(&staged));
        match tried {
            Ok(()) => Ok(this),
            Err(source) => Err(this.error(source)),
        }
    }

    /// Waits until every model that should serve does, then writes the file.
    pub(crate) async fn write_when_ready(&mut self, server: &Server, addresses: &Addresses) -> Result<(), RunError> {
        if !server.ready() {
            let path = self.path.display();
            tracing::warn!(%path, "not ready: the ready file is written once every model that should serve does");
        }
        while !server.ready() {
            tokio::time::sleep(PAUSE).await;
        }
        let written = serde_json::to_vec(addresses).map_err(io::Error::from).and_then(|text| {
            let staged = self.staged();
            fs::write(&staged, &text).and_then(|()| fs::rename(&staged, &self.path)).inspect_err(|_| {
                let _ = remove(&staged);
            })?;
            self.text = Some(text);
            Ok(())
        });
        written.map_err(|source| self.error(source))
    }

    fn staged(&self) -> PathBuf {
        self.path.with_extension(format!("partial-{}", std::process::id()))
    }

    fn error(&self, source: io::Error) -> RunError {
        RunError::ReadyFile { path: self.path.clone(), source }
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        // Another server may have written its own there since.
        let own = |text: &Vec<u8>| fs::read(&self.path).is_ok_and(|found| found == *text);
        if self.text.as_ref().is_some_and(own)
            && let Err(error) = remove(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "the ready file stays");
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

//! Files of work that may be interrupted at any time.

use std::{fs, path::Path};

use anyhow::Context as _;

/// Writes a file whole or not at all, in place of an older one. Nothing is flushed: what a crash of the machine loses is done again.
pub fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let part = path.with_added_extension("part");
    let written = fs::write(&part, bytes).and_then(|()| fs::rename(&part, path));
    written.with_context(|| format!("cannot write `{}`", path.display()))
}

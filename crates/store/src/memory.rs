//! Memory for models: huge pages where there are, and for what was sealed neither swapped, nor in core dumps, and wiped afterwards.

use bytes::Bytes;
use memmap2::{Advice, MmapMut};
use zeroize::Zeroize as _;

use crate::error::{ErrorKind, StoreError};

/// A piece of memory of its own pages.
pub(crate) struct Memory {
    /// None where it is empty: nothing cannot be mapped.
    map: Option<MmapMut>,
    secret: bool,
    locked: bool,
}

/// Whether memory holds what others must not see.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Secrecy {
    Plain,
    Secret,
}

impl Memory {
    /// Zeroes. Where it cannot be locked against swapping it is not, and says so.
    pub(crate) fn new(size: u64, secrecy: Secrecy) -> Result<Self, StoreError> {
        let secret = secrecy == Secrecy::Secret;
        if size == 0 {
            return Ok(Self { map: None, secret, locked: true });
        }
        let failed =
            |why: String| StoreError::new(ErrorKind::Unavailable, format!("no memory for {size} bytes: {why}"));
        let length = usize::try_from(size).map_err(|error| failed(error.to_string()))?;
        let map = MmapMut::map_anon(length).map_err(|error| failed(error.to_string()))?;
        // A hint; a kernel without huge pages does without.
        let _ = map.advise(Advice::HugePage);
        let locked = secret && map.advise(Advice::DontDump).is_ok() && map.lock().is_ok();
        Ok(Self { map: Some(map), secret, locked })
    }

    /// Whether it stays out of swap and core dumps.
    pub(crate) fn is_locked(&self) -> bool {
        self.locked
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.map.as_deref_mut().unwrap_or_default()
    }

    /// Shares it; the last who drops it wipes it.
    pub(crate) fn share(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Memory {
    fn as_ref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.secret {
            self.bytes_mut().zeroize();
        }
    }
}

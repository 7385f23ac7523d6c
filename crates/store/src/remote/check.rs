//! Whether what is there is whole: a release that is pushed shares no pack that is missing, cut off or changed.

use std::collections::{BTreeMap, HashMap, HashSet};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{Error, ObjectStoreExt as _};

use super::{
    Remote,
    chunk::Chunk,
    failed,
    index::{PACK_BYTES, Place},
};
use crate::{digest::Digest, error::StoreError};

/// Packs that are looked at at the same time.
const PACKS_MAX: usize = 4;

/// What a push asks of the packs that are there already and that the release shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Whether each is there and long enough.
    Sizes,
    /// Whether each is byte for byte what it was: all of them are read.
    Digests,
}

/// What a pack is wanted for.
#[derive(Default)]
struct Use {
    chunks: Vec<(Chunk, u64)>,
    end: u64,
}

/// Packs that are missing or broken, and chunks that are not where an index says.
#[derive(Default)]
pub(super) struct Broken {
    pub(super) packs: HashSet<Digest>,
    chunks: HashSet<Digest>,
}

impl Broken {
    /// Forgets the places of what is broken.
    pub(super) fn forget(&self, places: &mut HashMap<Digest, Place>) {
        places.retain(|chunk, place| !self.packs.contains(&place.pack) && !self.chunks.contains(chunk));
    }
}

impl Remote {
    /// What is broken of all that a release would share.
    pub(super) async fn broken(
        &self,
        files: &BTreeMap<String, Vec<Chunk>>,
        places: &HashMap<Digest, Place>,
        check: Check,
    ) -> Result<Broken, StoreError> {
        let mut uses: HashMap<Digest, Use> = HashMap::new();
        for chunk in files.values().flatten() {
            let Some(place) = places.get(&chunk.sha256) else { continue };
            let used = uses.entry(place.pack).or_default();
            used.end = used.end.max(place.offset + chunk.size);
            used.chunks.push((*chunk, place.offset));
        }
        let looked = stream::iter(uses).map(|(pack, used)| async move {
            let broken = self.look(pack, &used, check).await?;
            broken.iter().for_each(|why| tracing::warn!("`{}` {why}", self.pack(pack)));
            Ok::<_, StoreError>((pack, used, broken))
        });
        let looked: Vec<_> = looked.buffer_unordered(PACKS_MAX).try_collect().await?;
        let mut broken = Broken::default();
        for (pack, used, found) in looked {
            match found {
                Some(Fault::Elsewhere) => broken.chunks.extend(used.chunks.iter().map(|(chunk, _)| chunk.sha256)),
                Some(_) => drop(broken.packs.insert(pack)),
                None => {}
            }
        }
        Ok(broken)
    }

    async fn look(&self, pack: Digest, used: &Use, check: Check) -> Result<Option<Fault>, StoreError> {
        let size = match self.store.head(&self.pack(pack)).await {
            Ok(meta) => meta.size,
            Err(Error::NotFound { .. }) => return Ok(Some(Fault::Missing)),
            Err(error) => return Err(failed(&error)),
        };
        if size < used.end || size > PACK_BYTES {
            return Ok(Some(Fault::Size(size)));
        }
        if check == Check::Sizes {
            return Ok(None);
        }
        let Some(bytes) = self.small(&self.pack(pack), PACK_BYTES).await? else { return Ok(Some(Fault::Missing)) };
        if Digest::of(&bytes) != pack {
            return Ok(Some(Fault::Changed));
        }
        let at = |offset: u64, chunk: &Chunk| bytes.get(offset as usize..(offset + chunk.size) as usize);
        let whole = |(chunk, offset): &(Chunk, u64)| at(*offset, chunk).map(Digest::of) == Some(chunk.sha256);
        Ok((!used.chunks.iter().all(whole)).then_some(Fault::Elsewhere))
    }

    /// Whether a pack of this digest and size is there, for a push that would send it.
    pub(super) async fn has(&self, pack: Digest, size: u64, check: Check) -> Result<bool, StoreError> {
        let found = self.look(pack, &Use { chunks: Vec::new(), end: size }, check).await?;
        Ok(found.is_none())
    }
}

/// What is wrong with a pack.
enum Fault {
    Missing,
    Size(u64),
    Changed,
    /// The pack is whole, and an index says other places of its chunks.
    Elsewhere,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => f.write_str("is missing"),
            Self::Size(size) => write!(f, "has {size} bytes, which is not what it was"),
            Self::Changed => f.write_str("was changed"),
            Self::Elsewhere => f.write_str("does not hold what an index says"),
        }
    }
}

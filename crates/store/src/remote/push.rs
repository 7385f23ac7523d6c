//! Sends a release: the chunks that are not there yet, then its index.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    os::unix::fs::FileExt as _,
    path::Path as LocalPath,
};

use object_store::{ObjectStoreExt as _, PutPayload, WriteMultipart};

use super::{
    Check, Index, Remote,
    check::Broken,
    chunk::{Chunk, cut_checked},
    failed,
    index::{self, PACK_BYTES, Place},
};
use crate::{
    digest::Digest,
    error::{ErrorKind, StoreError, io_error, tampered},
    files::Release,
    manifest::{BESIDE, MANIFEST, MANIFEST_BYTES_MAX, Manifest},
};

/// Bytes of one part of an upload in parts; S3 takes no smaller ones than 5 MiB.
const PART_BYTES: usize = 8 << 20;
/// Parts on their way at the same time.
const PARTS_MAX: usize = 4;
/// Releases of the name, the newest, whose chunks are not sent again.
const EARLIER_MAX: usize = 16;

/// What a push has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PushReport {
    /// Of the release's files.
    pub total_bytes: u64,
    /// Sent by this push.
    pub sent_bytes: u64,
    /// Sent by an earlier push that was interrupted.
    pub resumed_bytes: u64,
    /// There already with other releases, or twice in this one.
    pub shared_bytes: u64,
    /// Packs that were there and are missing or broken. What this release has in them was sent again.
    pub broken_packs: usize,
}

/// Chunks that go into one pack, with the file and offset where each is read.
#[derive(Default)]
struct Pack<'r> {
    size: u64,
    chunks: Vec<(Chunk, &'r str, u64)>,
}

/// What is there under a release's name and sequence before it is sent.
enum There {
    Nothing,
    Index(Index),
    /// One that cannot be read, beside the release's manifest.
    BrokenIndex,
}

/// What a push knows of the packs that are there.
struct Known<'b> {
    broken: &'b Broken,
    check: Check,
}

impl Remote {
    /// Sends a release. Twice the same is no error: what is about it (its signature, its wrapped key) is replaced then, and what is broken
    /// there is mended, as far as `check` finds it.
    ///
    /// # Errors
    /// `Exists` where another release has its name and sequence; `Tampered` where a file is not what is listed; `Unavailable` where the store
    /// does not answer: push again, what was sent is found.
    pub async fn push(&self, folder: &LocalPath, check: Check) -> Result<PushReport, StoreError> {
        let release = Release::open(folder)?;
        release.check_nothing_else()?;
        let manifest = release.manifest();
        let there = self.there(&release).await?;
        let mut files = BTreeMap::new();
        for (path, entry) in &manifest.files {
            files.insert(path.clone(), cut_checked(release.file(path)?, path, entry.stored())?);
        }
        let mut places = self.known(&manifest.name).await?;
        // The release's own index stays as it is, where all of it is whole.
        if let There::Index(own) = &there {
            places.extend(own.places().map(|(chunk, place)| (chunk.sha256, place)));
        }
        let broken = self.broken(&files, &places, check).await?;
        broken.forget(&mut places);
        let broken_packs = broken.packs.len();
        let mut report = PushReport { total_bytes: manifest.size(), broken_packs, ..PushReport::default() };
        for pack in missing(&files, &places) {
            self.send(&release, &pack, &Known { broken: &broken, check }, &mut places, &mut report).await?;
        }
        report.shared_bytes = report.total_bytes - report.sent_bytes - report.resumed_bytes;
        let index = Index::of(release.id(), &files, |chunk| places.get(&chunk.sha256).copied())?;
        self.publish(&release, &index, &there).await?;
        Ok(report)
    }

    /// What is there under the release's name and sequence; an error where that is another one.
    async fn there(&self, release: &Release) -> Result<There, StoreError> {
        let Manifest { name, sequence, .. } = release.manifest();
        let other = |what: String| {
            let text = format!("release {sequence} of `{name}` is there already {what}; pack with a higher sequence");
            Err(StoreError::new(ErrorKind::Exists, text))
        };
        match self.index(name, *sequence).await {
            Ok(None) => Ok(There::Nothing),
            Ok(Some(there)) if there.id != release.id() => other(format!("with another content, {}", there.id)),
            Ok(Some(there)) => Ok(There::Index(there)),
            Err(error) if error.kind() == ErrorKind::Invalid => {
                let manifest = self.small(&self.release(name, *sequence, MANIFEST), MANIFEST_BYTES_MAX).await?;
                if manifest.map(|bytes| Digest::of(&bytes)) != Some(release.id()) {
                    return other(format!("with another manifest and a broken index ({error})"));
                }
                tracing::warn!("{error}; it is written anew");
                Ok(There::BrokenIndex)
            }
            Err(error) => Err(error),
        }
    }

    /// Chunks of the name's newest releases. What they say is not believed by who pulls.
    async fn known(&self, name: &str) -> Result<HashMap<Digest, Place>, StoreError> {
        let mut places = HashMap::new();
        let releases = self.list(Some(name)).await?;
        for listed in releases.iter().rev().filter(|listed| listed.name == name).take(EARLIER_MAX) {
            match self.index(name, listed.sequence).await {
                Ok(index) => {
                    let earlier = index.as_ref().into_iter().flat_map(Index::places);
                    places.extend(earlier.map(|(chunk, place)| (chunk.sha256, place)));
                }
                // A broken index shares nothing; it is no reason not to push.
                Err(error) if error.kind() == ErrorKind::Invalid => tracing::warn!("{error}"),
                Err(error) => return Err(error),
            }
        }
        Ok(places)
    }

    async fn send(
        &self,
        release: &Release,
        pack: &Pack<'_>,
        known: &Known<'_>,
        places: &mut HashMap<Digest, Place>,
        report: &mut PushReport,
    ) -> Result<(), StoreError> {
        let bytes = read(release, pack)?;
        let digest = Digest::of(&bytes);
        let path = self.pack(digest);
        let there = !known.broken.packs.contains(&digest) && self.has(digest, pack.size, known.check).await?;
        if there {
            report.resumed_bytes += pack.size;
        } else {
            self.upload(&path, bytes).await?;
            report.sent_bytes += pack.size;
        }
        let mut offset = 0;
        for (chunk, ..) in &pack.chunks {
            places.insert(chunk.sha256, Place { pack: digest, offset });
            offset += chunk.size;
        }
        Ok(())
    }

    /// In one go, or in parts.
    async fn upload(&self, path: &object_store::path::Path, bytes: Vec<u8>) -> Result<(), StoreError> {
        if bytes.len() <= PART_BYTES {
            return self.store.put(path, PutPayload::from(bytes)).await.map(drop).map_err(|error| failed(&error));
        }
        let upload = self.store.put_multipart(path).await.map_err(|error| failed(&error))?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        for part in bytes.chunks(PART_BYTES) {
            if let Err(error) = upload.wait_for_capacity(PARTS_MAX - 1).await {
                // The parts that came through are paid for until they are given up; that this fails as well says nothing new.
                let _ = upload.abort().await;
                return Err(failed(&error));
            }
            upload.write(part);
        }
        upload.finish().await.map(drop).map_err(|error| failed(&error))
    }

    /// Writes what is about the release, and its index last: a release is there when its index is.
    async fn publish(&self, release: &Release, index: &Index, there: &There) -> Result<(), StoreError> {
        let manifest = release.manifest();
        let at = |file: &str| self.release(&manifest.name, manifest.sequence, file);
        for name in BESIDE {
            match release.beside(name)? {
                Some(bytes) => {
                    self.store.put(&at(name), PutPayload::from(bytes)).await.map_err(|error| failed(&error))?;
                }
                None if name == MANIFEST => return Err(tampered(format!("`{MANIFEST}` is gone"))),
                None => {}
            }
        }
        let (at, bytes) = (at(index::FILE), index.to_bytes()?);
        match there {
            There::Nothing => self.create(&at, bytes).await,
            There::Index(there) if there == index => Ok(()),
            There::Index(_) | There::BrokenIndex => {
                self.store.put(&at, PutPayload::from(bytes)).await.map(drop).map_err(|error| failed(&error))
            }
        }
    }
}

/// Chunks without a place, each once, in packs. The same release makes the same packs again.
fn missing<'r>(files: &'r BTreeMap<String, Vec<Chunk>>, places: &HashMap<Digest, Place>) -> Vec<Pack<'r>> {
    let (mut packs, mut pack, mut seen) = (Vec::new(), Pack::default(), HashSet::new());
    for (path, chunks) in files {
        let mut offset = 0;
        for chunk in chunks {
            if !places.contains_key(&chunk.sha256) && seen.insert(chunk.sha256) {
                if pack.size + chunk.size > PACK_BYTES {
                    packs.push(std::mem::take(&mut pack));
                }
                pack.chunks.push((*chunk, path, offset));
                pack.size += chunk.size;
            }
            offset += chunk.size;
        }
    }
    if pack.size > 0 {
        packs.push(pack);
    }
    packs
}

fn read(release: &Release, pack: &Pack<'_>) -> Result<Vec<u8>, StoreError> {
    let mut bytes = vec![0; pack.size as usize];
    let mut rest = bytes.as_mut_slice();
    for (chunk, path, offset) in &pack.chunks {
        let Some((to, after)) = rest.split_at_mut_checked(chunk.size as usize) else { break };
        let file = release.file(path)?;
        file.read_exact_at(to, *offset).map_err(|error| io_error(LocalPath::new(path), &error))?;
        if Digest::of(to) != chunk.sha256 {
            return Err(tampered(format!("`{path}` changed while it was sent")));
        }
        rest = after;
    }
    Ok(bytes)
}

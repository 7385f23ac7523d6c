//! Fetches a release: the chunks that are not in this folder's earlier attempt, nor in releases that are here already.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    fs::{self, File},
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    path::{Path, PathBuf},
};

use edgeward_graph::beneath;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{Error, ObjectStoreExt as _};

use super::{
    Listed, Remote,
    chunk::{Chunk, cut},
    failed,
    index::{Index, PACK_BYTES, Place},
};
use crate::{
    digest::Digest,
    error::{ErrorKind, StoreError, invalid, io_error, tampered},
    files::{PARTIAL, Release},
    manifest::{BESIDE, MANIFEST, MANIFEST_BYTES_MAX, Manifest},
    signing::{self, TrustRoots},
    staged::replace,
};

/// Ranges on their way at the same time.
const RANGES_MAX: usize = 4;
/// Ranges of a pack that are so near are fetched as one.
const GAP_BYTES: u64 = 64 << 10;

/// Which release is fetched.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Of the model; the only one where none.
    pub name: Option<String>,
    /// The newest where none.
    pub sequence: Option<u64>,
}

/// How a release is fetched.
#[derive(Clone, Debug, Default)]
pub struct PullOptions<'a> {
    /// Which.
    pub selection: Selection,
    /// Whose signatures are taken; where none, the release is not verified and must be before it is used.
    pub trust: Option<&'a TrustRoots>,
    /// Releases that are here: what they share is not fetched.
    pub have: &'a [PathBuf],
}

/// What a pull has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PullReport {
    /// Of the release's files.
    pub total_bytes: u64,
    /// Fetched by this pull, the bytes between chunks that are near each other included.
    pub fetched_bytes: u64,
    /// Fetched by an earlier pull that was interrupted.
    pub resumed_bytes: u64,
    /// Taken from releases that are here, or twice in this one.
    pub shared_bytes: u64,
}

/// A chunk and the places in files where it belongs.
struct Wanted {
    chunk: Chunk,
    place: Place,
    targets: Vec<(String, u64)>,
}

/// Chunks of one pack, fetched as one range.
struct Range {
    pack: Digest,
    begin: u64,
    end: u64,
    wanted: Vec<Wanted>,
}

/// The folder that is being filled; it stays where a pull is interrupted. All is written beneath it without following links: who else may
/// write there gets nothing outside overwritten.
pub(super) struct Partial {
    folder: PathBuf,
    root: OwnedFd,
    files: BTreeMap<String, File>,
}

impl Remote {
    /// Fetches a release into a new folder. An interrupted pull leaves `FOLDER.partial` and goes on from there.
    ///
    /// # Errors
    /// `NotFound` where there is none, `Exists` where the folder does, `Tampered` where what came is not what is listed or signed, `Unverified`
    /// where nobody trusted signed it, `Unavailable` where the store does not answer.
    pub async fn pull(&self, out: &Path, options: &PullOptions<'_>) -> Result<(Release, PullReport), StoreError> {
        if out.symlink_metadata().is_ok() {
            return Err(StoreError::new(ErrorKind::Exists, format!("`{}` exists already", out.display())));
        }
        let chosen = self.choose(&options.selection).await?;
        let index = self.index(&chosen.name, chosen.sequence).await?;
        let index = index.ok_or_else(|| StoreError::new(ErrorKind::NotFound, "the release's index is gone"))?;
        let manifest = self.manifest(&chosen, &index).await?;
        let partial = Partial::open(out, &manifest)?;
        self.beside(&chosen, &partial).await?;
        // Who signed it is known from the small files, before the large ones travel.
        if let Some(trust) = options.trust {
            signing::verify(&Release::open(&partial.folder)?, trust)?;
        }
        let mut report = PullReport { total_bytes: manifest.size(), ..PullReport::default() };
        let mut wanted = wanted(&index, &manifest)?;
        partial.resume(&mut wanted, &mut report)?;
        for folder in options.have {
            partial.share(folder, &mut wanted)?;
        }
        let ranges: Vec<Range> = ranges(wanted);
        report.fetched_bytes = ranges.iter().map(|range| range.end - range.begin).sum();
        let fetched =
            stream::iter(&ranges).map(Ok).try_for_each_concurrent(RANGES_MAX, |range| self.fetch(range, &partial));
        fetched.await?;
        report.shared_bytes = report.total_bytes.saturating_sub(report.fetched_bytes + report.resumed_bytes);
        Ok((partial.keep(out)?, report))
    }

    pub(super) async fn choose(&self, selection: &Selection) -> Result<Listed, StoreError> {
        let mut found = self.list(selection.name.as_deref()).await?;
        found.retain(|listed| selection.name.as_ref().is_none_or(|name| *name == listed.name));
        if let Some(first) = found.first()
            && let Some(other) = found.iter().find(|listed| listed.name != first.name)
        {
            return Err(invalid(format!("there are releases of `{}` and `{}`; name one", first.name, other.name)));
        }
        found.retain(|listed| selection.sequence.is_none_or(|sequence| sequence == listed.sequence));
        found.pop().ok_or_else(|| {
            let name = selection.name.as_ref().map(|name| format!(" of `{name}`")).unwrap_or_default();
            StoreError::new(ErrorKind::NotFound, format!("no such release{name} is there"))
        })
    }

    async fn manifest(&self, chosen: &Listed, index: &Index) -> Result<Manifest, StoreError> {
        let path = self.release(&chosen.name, chosen.sequence, MANIFEST);
        let bytes = self.small(&path, MANIFEST_BYTES_MAX).await?;
        let bytes = bytes.ok_or_else(|| StoreError::new(ErrorKind::NotFound, format!("`{path}` is gone")))?;
        let manifest = Manifest::parse(&bytes).map_err(|error| error.at(format!("`{path}`")))?;
        if Digest::of(&bytes) != index.id || manifest.name != chosen.name || manifest.sequence != chosen.sequence {
            return Err(tampered(format!("`{path}` is the manifest of another release than its index")));
        }
        Ok(manifest)
    }

    pub(super) async fn beside(&self, chosen: &Listed, partial: &Partial) -> Result<(), StoreError> {
        for name in BESIDE.iter().filter(|name| **name != MANIFEST) {
            let path = self.release(&chosen.name, chosen.sequence, name);
            if let Some(bytes) = self.small(&path, MANIFEST_BYTES_MAX).await? {
                partial.write_small(name, &bytes)?;
            }
        }
        Ok(())
    }

    async fn fetch(&self, range: &Range, partial: &Partial) -> Result<(), StoreError> {
        let path = self.pack(range.pack);
        let mend = "who has the release mends it: `edgeward release push RELEASE PLACE --check`";
        let bytes = match self.store.get_range(&path, range.begin..range.end).await {
            Err(Error::NotFound { .. }) => {
                return Err(StoreError::new(ErrorKind::NotFound, format!("`{path}` is missing; {mend}")));
            }
            other => other.map_err(|error| failed(&error))?,
        };
        for wanted in &range.wanted {
            let begin = (wanted.place.offset - range.begin) as usize;
            let chunk = bytes.get(begin..begin + wanted.chunk.size as usize).unwrap_or_default();
            if Digest::of(chunk) != wanted.chunk.sha256 {
                return Err(tampered(format!("`{path}` does not hold chunk {}; {mend}", wanted.chunk.sha256)));
            }
            partial.write(wanted, chunk)?;
        }
        Ok(())
    }
}

/// Every chunk once, with all places where it belongs.
fn wanted(index: &Index, manifest: &Manifest) -> Result<HashMap<Digest, Wanted>, StoreError> {
    let mut wanted: HashMap<Digest, Wanted> = HashMap::new();
    for path in manifest.files.keys() {
        let mut offset = 0;
        for (chunk, place) in index.file(path, manifest)? {
            let entry = wanted.entry(chunk.sha256).or_insert_with(|| Wanted { chunk, place, targets: Vec::new() });
            if entry.chunk.size != chunk.size {
                return Err(tampered(format!("chunk {} has two sizes", chunk.sha256)));
            }
            entry.targets.push((path.clone(), offset));
            offset += chunk.size;
        }
    }
    Ok(wanted)
}

/// Joins chunks that are near each other in a pack.
fn ranges(wanted: HashMap<Digest, Wanted>) -> Vec<Range> {
    let mut wanted: Vec<Wanted> = wanted.into_values().collect();
    wanted.sort_by_key(|wanted| wanted.place);
    let mut ranges: Vec<Range> = Vec::new();
    for wanted in wanted {
        let (Place { pack, offset }, size) = (wanted.place, wanted.chunk.size);
        let near = ranges.last_mut().filter(|range| {
            range.pack == pack && offset <= range.end + GAP_BYTES && offset + size - range.begin <= PACK_BYTES
        });
        match near {
            Some(range) => {
                range.end = range.end.max(offset + size);
                range.wanted.push(wanted);
            }
            None => ranges.push(Range { pack, begin: offset, end: offset + size, wanted: vec![wanted] }),
        }
    }
    ranges
}

impl Partial {
    /// A folder that is whole.
    pub(super) fn of(folder: &Path) -> Result<Self, StoreError> {
        let root = beneath::folder(folder).map_err(|error| io_error(folder, &error))?;
        Ok(Self { folder: folder.to_owned(), root, files: BTreeMap::new() })
    }

    /// Takes up what an earlier pull of the same release has left. Where that is another release, or anything in it is not as a pull leaves
    /// it, begins anew.
    fn open(out: &Path, manifest: &Manifest) -> Result<Self, StoreError> {
        let mut name = OsString::from(out.file_name().unwrap_or_default());
        name.push(PARTIAL);
        let folder = out.with_file_name(name);
        let left = folder.symlink_metadata().ok();
        match left {
            Some(left) if left.is_dir() => match Self::take_up(&folder, manifest) {
                Ok(partial) => return Ok(partial),
                Err(error) => {
                    tracing::debug!("`{}` is begun anew: {error}", folder.display());
                    fs::remove_dir_all(&folder).map_err(|error| io_error(&folder, &error))?;
                }
            },
            Some(_) => fs::remove_file(&folder).map_err(|error| io_error(&folder, &error))?,
            None => {}
        }
        out.parent().map_or(Ok(()), fs::create_dir_all).map_err(|error| io_error(out, &error))?;
        fs::create_dir(&folder).map_err(|error| io_error(&folder, &error))?;
        let mut partial = Self::of(&folder)?;
        partial.write_small(MANIFEST, &manifest.to_bytes()?)?;
        partial.open_files(manifest)?;
        Ok(partial)
    }

    fn take_up(folder: &Path, manifest: &Manifest) -> Result<Self, StoreError> {
        let earlier = Release::open(folder)?;
        if earlier.manifest() != manifest {
            return Err(StoreError::new(ErrorKind::Exists, "it is of another release"));
        }
        earlier.check_nothing_else()?;
        let mut partial = Self::of(folder)?;
        partial.open_files(manifest)?;
        Ok(partial)
    }

    fn open_files(&mut self, manifest: &Manifest) -> Result<(), StoreError> {
        for (path, entry) in &manifest.files {
            let make = || {
                let file = beneath::create(&self.root, path)?;
                file.set_len(entry.stored().size)?;
                Ok(file)
            };
            let file = make().map_err(|error| io_error(&self.folder.join(path), &error))?;
            self.files.insert(path.clone(), file);
        }
        Ok(())
    }

    fn write_small(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        replace(&self.root, name, bytes).map_err(|error| io_error(&self.folder.join(name), &error))
    }

    /// Takes chunks off the list that are at their place already.
    fn resume(&self, wanted: &mut HashMap<Digest, Wanted>, report: &mut PullReport) -> Result<(), StoreError> {
        let mut buffer = Vec::new();
        let mut there = |wanted: &Wanted| {
            wanted.targets.iter().all(|(path, offset)| {
                buffer.resize(wanted.chunk.size as usize, 0);
                let read = self.files.get(path).is_some_and(|file| file.read_exact_at(&mut buffer, *offset).is_ok());
                // Most that is not there is zeroes, which need no hash to be told.
                read && buffer.iter().any(|&byte| byte != 0) && Digest::of(&buffer) == wanted.chunk.sha256
            })
        };
        wanted.retain(|_, wanted| {
            let there = there(wanted);
            report.resumed_bytes += if there { wanted.chunk.size * wanted.targets.len() as u64 } else { 0 };
            !there
        });
        Ok(())
    }

    /// Takes chunks from a release that is here.
    fn share(&self, folder: &Path, wanted: &mut HashMap<Digest, Wanted>) -> Result<(), StoreError> {
        let release = Release::open(folder)?;
        for path in release.manifest().files.keys() {
            let mut found = Vec::new();
            cut(release.file(path)?, Path::new(path), |chunk, offset| {
                found.extend(wanted.remove(&chunk.sha256).map(|wanted| (wanted, offset)));
            })?;
            let source = release.file(path)?;
            for (taken, offset) in found {
                let mut bytes = vec![0; taken.chunk.size as usize];
                let read = source.read_exact_at(&mut bytes, offset);
                if read.is_ok() && Digest::of(&bytes) == taken.chunk.sha256 {
                    self.write(&taken, &bytes)?;
                } else {
                    wanted.insert(taken.chunk.sha256, taken);
                }
            }
        }
        Ok(())
    }

    fn write(&self, wanted: &Wanted, bytes: &[u8]) -> Result<(), StoreError> {
        for (path, offset) in &wanted.targets {
            let file = self.files.get(path).ok_or_else(|| invalid(format!("`{path}` is not of the release")))?;
            file.write_all_at(bytes, *offset).map_err(|error| io_error(Path::new(path), &error))?;
        }
        Ok(())
    }

    /// Compares every file and puts the folder in its place.
    fn keep(self, out: &Path) -> Result<Release, StoreError> {
        for (path, file) in &self.files {
            file.sync_all().map_err(|error| io_error(Path::new(path), &error))?;
        }
        Release::open(&self.folder)?.check_files()?;
        fs::rename(&self.folder, out).map_err(|error| io_error(out, &error))?;
        Release::open(out)
    }
}

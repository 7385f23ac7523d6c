//! What can be loaded by which name: models of the repositories, and releases in them and in object storage.
//!
//! Nothing that a release says of itself is believed here: its name leads to it, and `release` asks who signed it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use edgeward_store::{Release, manifest::MANIFEST, remote::Listed};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::core::{
    ReleasePlace, ServeError, ServeErrorKind, ServerConfig,
    repository::{self, Contents},
    snapshot::Snapshot,
};

/// How long a place may take to tell what it holds.
const LIST_TIME_MAX: Duration = Duration::from_secs(20);

/// How far a look goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// This machine; of other places what they last said.
    Here,
    /// Object storage as well. It takes its time, and must run on a blocking thread of a Tokio runtime.
    Everywhere,
}

/// Where a release is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// A folder of this machine.
    Folder(PathBuf),
    /// One of the places, by its number.
    Place(usize),
}

/// A release as it calls itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    /// The version that it would be served as; 0 where its manifest cannot be read.
    pub sequence: u64,
    pub at: At,
}

/// What a name leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A model's folder or file.
    Files(PathBuf),
    Release(Offer),
}

/// All that can be loaded.
#[derive(Default)]
pub(super) struct Catalogue {
    repositories: Vec<PathBuf>,
    places: Vec<ReleasePlace>,
    /// Models that are no release are refused.
    only: bool,
    known: Mutex<Known>,
}

/// What the last look has found.
#[derive(Default)]
struct Known {
    folders: HashMap<PathBuf, Told>,
    places: Vec<PlaceSays>,
    offers: BTreeMap<String, Vec<Offer>>,
}

/// What a place said when it last answered, and whether it did so at the last look.
#[derive(Clone, Default)]
struct PlaceSays {
    releases: Vec<Listed>,
    answers: bool,
}

/// What a release's folder calls itself.
struct Told {
    stamp: Option<Stamp>,
    name: String,
    sequence: u64,
}

/// Equal stamps are taken for an equal manifest: number, size and time of its file.
type Stamp = (u64, u64, i64, i64);

impl Catalogue {
    pub fn new(config: &ServerConfig) -> Self {
        Self {
            repositories: config.repositories.clone(),
            places: config.releases.places.clone(),
            only: config.releases.only,
            known: Mutex::default(),
        }
    }

    /// Looks again, and gives the names of all models.
    pub fn look(&self, reach: Reach) -> Result<BTreeSet<String>, ServeError> {
        let listed = match reach {
            Reach::Here => None,
            Reach::Everywhere => Some(self.list()?),
        };
        // Held while the folders are read: of two looks the later one must not be overwritten by the earlier.
        let mut known = self.known.lock();
        let Contents { mut names, releases } = repository::contents(&self.repositories)?;
        if let Some(listed) = listed {
            known.places = listed;
        }
        let (mut folders, mut offers) = (HashMap::new(), BTreeMap::<String, Vec<Offer>>::new());
        for path in releases {
            let told = told(&path, known.folders.remove(&path));
            let offer = Offer { sequence: told.sequence, at: At::Folder(path.clone()) };
            offers.entry(told.name.clone()).or_default().push(offer);
            folders.insert(path, told);
        }
        for (place, says) in known.places.iter().enumerate() {
            // Oldest first: the last of a name stays.
            let newest: BTreeMap<&str, u64> = says.releases.iter().map(|l| (l.name.as_str(), l.sequence)).collect();
            for (name, sequence) in newest.into_iter().filter(|(name, _)| repository::is_name(name)) {
                offers.entry(name.to_owned()).or_default().push(Offer { sequence, at: At::Place(place) });
            }
        }
        names.extend(offers.keys().cloned());
        (known.folders, known.offers) = (folders, offers);
        Ok(names)
    }

    /// Looks again where a release may have come under a name that somebody asks for. Where that fails, what is known counts.
    pub fn refresh(&self, name: &str) {
        let plain = repository::find(&self.repositories, name).is_ok_and(|found| found.is_some());
        if (!plain || self.is_release(name))
            && let Err(error) = self.look(Reach::Everywhere)
        {
            tracing::warn!(model = name, %error, "cannot look for new releases");
        }
    }

    /// What a name led to at the last look. Of the releases of a name the newest counts, whether it opens or not: who can spoil it
    /// must not bring back an older one.
    pub fn find(&self, name: &str) -> Result<Option<Found>, ServeError> {
        let plain = repository::find(&self.repositories, name)?;
        let offers = self.known.lock().offers.get(name).cloned().unwrap_or_default();
        match (plain, self.newest(name, offers)?) {
            (None, None) => Ok(None),
            (None, Some(offer)) => Ok(Some(Found::Release(offer))),
            (Some(path), None) if self.only => Err(invalid(format!(
                "model `{name}` in `{}` is no release, and this server takes releases only; pack and sign it: `edgeward release`",
                path.display()
            ))),
            (Some(path), None) => Ok(Some(Found::Files(path))),
            (Some(path), Some(offer)) => Err(twice(name, &path.display().to_string(), &self.shown(&offer.at))),
        }
    }

    fn newest(&self, name: &str, mut offers: Vec<Offer>) -> Result<Option<Offer>, ServeError> {
        offers.sort_by_key(|offer| offer.sequence);
        let Some(newest) = offers.pop() else { return Ok(None) };
        let rival = offers.iter().rev().take_while(|other| other.sequence == newest.sequence);
        // One place may be named in two ways.
        match rival.into_iter().find(|other| !is_same(&other.at, &newest.at)) {
            Some(other) => Err(twice(name, &self.shown(&other.at), &self.shown(&newest.at))),
            None => Ok(Some(newest)),
        }
    }

    /// An error where files that a load brings along may not take a model's place.
    pub fn takes_files(&self, name: &str) -> Result<(), ServeError> {
        if self.only || self.is_release(name) {
            let why = if self.only { "this server takes releases only" } else { "it is a release" };
            return Err(invalid(format!(
                "model `{name}`: {why}, and nobody has signed the `file:` parameters; leave them out"
            )));
        }
        Ok(())
    }

    pub fn is_release(&self, name: &str) -> bool {
        self.known.lock().offers.contains_key(name)
    }

    /// The files as they lie there; what was found `before` spares reading those that have not changed.
    pub fn snapshot(&self, found: &Found, before: Option<&Snapshot>) -> Snapshot {
        match found {
            Found::Files(path) => Snapshot::after(path, before),
            Found::Release(Offer { sequence, at: At::Folder(path) }) => Snapshot::of_release(path, *sequence),
            Found::Release(Offer { sequence, at }) => Snapshot::of_place(&self.shown(at), *sequence),
        }
    }

    /// Where a release is, as messages name it.
    pub fn shown(&self, at: &At) -> String {
        match at {
            At::Folder(path) => path.display().to_string(),
            At::Place(place) => self.place(*place).map(|place| place.address.clone()).unwrap_or_default(),
        }
    }

    pub fn place(&self, place: usize) -> Option<&ReleasePlace> {
        self.places.get(place)
    }

    /// Whether a place answered at the last look.
    pub fn answers(&self, place: usize) -> bool {
        self.known.lock().places.get(place).is_some_and(|says| says.answers)
    }

    /// Asks all places. One that does not answer is taken to hold what it held before, or what was kept of it.
    fn list(&self) -> Result<Vec<PlaceSays>, ServeError> {
        let before = self.known.lock().places.clone();
        let one = |(at, place): (usize, &ReleasePlace)| {
            let listed = Handle::try_current().map_err(|error| error.to_string()).and_then(|runtime| {
                let list =
                    runtime.block_on(async { tokio::time::timeout(LIST_TIME_MAX, place.remote.list(None)).await });
                let late = |_| format!("no answer within {} s", LIST_TIME_MAX.as_secs());
                list.map_err(late)?.map_err(|error| error.to_string())
            });
            match listed {
                Ok(releases) => Ok(PlaceSays { releases, answers: true }),
                Err(reason) => place_is_away(place, &reason, before.get(at)),
            }
        };
        self.places.iter().enumerate().map(one).collect()
    }
}

fn place_is_away(place: &ReleasePlace, reason: &str, before: Option<&PlaceSays>) -> Result<PlaceSays, ServeError> {
    let address = &place.address;
    let releases = match before {
        Some(says) => says.releases.clone(),
        None => place.kept(),
    };
    if before.is_none() && releases.is_empty() {
        let text = format!("the releases of `{address}` cannot be listed: {reason}");
        return Err(ServeError::new(ServeErrorKind::Unavailable, text));
    }
    tracing::warn!(place = address, reason, "does not say what it holds; what is known of it serves on");
    Ok(PlaceSays { releases, answers: false })
}

/// The name that a release's folder claims. Where its manifest cannot be read (any more), the name that it claimed before, or else its
/// folder's: its load then says why.
fn told(path: &Path, before: Option<Told>) -> Told {
    let found = fs::symlink_metadata(path.join(MANIFEST)).ok();
    let stamp = found.map(|found| (found.ino(), found.len(), found.mtime(), found.mtime_nsec()));
    if let Some(before) = before.as_ref().filter(|before| stamp.is_some() && before.stamp == stamp) {
        return Told { stamp, name: before.name.clone(), sequence: before.sequence };
    }
    match (Release::open(path), before) {
        (Ok(release), _) => {
            let manifest = release.manifest();
            Told { stamp, name: manifest.name.clone(), sequence: manifest.sequence }
        }
        (Err(_), Some(before)) => Told { stamp, ..before },
        (Err(_), None) => Told { stamp, name: folder_name(path), sequence: 0 },
    }
}

fn folder_name(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = whole.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if repository::is_name(&name) { name } else { "release".to_owned() }
}

fn is_same(a: &At, b: &At) -> bool {
    match (a, b) {
        (At::Folder(a), At::Folder(b)) => repository::same(a, b),
        (a, b) => a == b,
    }
}

fn twice(name: &str, first: &str, second: &str) -> ServeError {
    invalid(format!("model `{name}` is there twice, in `{first}` and in `{second}`; rename or remove one"))
}

fn invalid(text: String) -> ServeError {
    ServeError::new(ServeErrorKind::InvalidArgument, text)
}

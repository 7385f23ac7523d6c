//! What a server is told of releases: whose, from where, and which.

use std::{fmt, sync::Arc};

use edgeward_store::{ErrorKind, Floor, StoreError, signing::TrustRoots};
use edgeward_trust::keys::KeyProvider;

use super::ReleasePlace;

/// How releases are found and opened.
#[derive(Clone, Default)]
pub struct ReleaseConfig {
    /// Whose signatures are taken.
    pub signers: Signers,
    /// Unwraps the data keys of sealed releases.
    pub keys: Option<Arc<dyn KeyProvider>>,
    /// Remembers the newest release of each name; without it an older one is taken as well.
    pub floor: Option<Floor>,
    /// Where releases lie beside the repositories.
    pub places: Vec<ReleasePlace>,
    /// Which of a release's variants is best.
    pub goal: ReleaseGoal,
    /// Refuse models that are no release.
    pub only: bool,
}

/// What a variant is to be best at, by the figures in its manifest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReleaseGoal {
    /// Least `p50_ms`, `latency_ms_p50` or `latency_ms`.
    #[default]
    Latency,
    /// Most `per_second` or `throughput_per_s`.
    Throughput,
}

/// Says whose signatures are taken. It is asked at each load, so that a signer who is named no longer is believed no longer.
#[derive(Clone, Default)]
pub struct Signers(Option<Arc<AskSigners>>);

type AskSigners = dyn Fn() -> Result<TrustRoots, String> + Send + Sync;

impl Signers {
    /// Asks `signers` at each load of a release.
    pub fn new(signers: impl Fn() -> Result<TrustRoots, String> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(signers)))
    }

    pub(super) fn ask(&self) -> Result<TrustRoots, StoreError> {
        let asked = self.0.as_ref().map_or_else(|| Ok(TrustRoots::default()), |ask| ask());
        asked.map_err(|why| StoreError::new(ErrorKind::Unverified, why))
    }
}

impl fmt::Debug for Signers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Signers").field(&self.0.is_some()).finish()
    }
}

impl fmt::Debug for ReleaseConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReleaseConfig")
            .field("signers", &self.signers)
            .field("keys", &self.keys.as_ref().map(|keys| keys.name()))
            .field("floor", &self.floor)
            .field("places", &self.places)
            .field("goal", &self.goal)
            .field("only", &self.only)
            .finish()
    }
}

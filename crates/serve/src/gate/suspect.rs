//! What detectors saw of each caller at each model. It begins anew with each start, and what has to make room for others is forgotten.

use std::{sync::Arc, time::Duration};

use edgeward_graph::{DataType, Tensor};
use edgeward_trust::{
    Principal,
    detect::{Detector, DetectorSettings, Sketch, Sketcher, Usual, Watch},
};
use parking_lot::Mutex;
use quick_cache::sync::Cache;

use crate::core::InferRequest;

/// Pairs of caller and model; each takes about 100 bytes, and 2 kB where inputs are compared.
const PAIRS_MAX: usize = 16_384;
const MODELS_MAX: usize = 4096;

/// The memory of the detectors.
pub(super) struct Suspects {
    settings: DetectorSettings,
    callers: Cache<u128, Arc<Mutex<Watch>>>,
    models: Cache<String, Arc<Mutex<Usual>>>,
    hashes: [std::hash::RandomState; 2],
    sketcher: Sketcher,
}

/// One caller at one model.
#[derive(Clone)]
pub(super) struct Suspect {
    watch: Arc<Mutex<Watch>>,
    usual: Arc<Mutex<Usual>>,
}

impl Suspects {
    pub(super) fn new(settings: DetectorSettings) -> Self {
        use std::hash::BuildHasher as _;
        let hashes: [std::hash::RandomState; 2] = Default::default();
        let sketcher = Sketcher::new(hashes[0].hash_one("seed"));
        Self { settings, callers: Cache::new(PAIRS_MAX), models: Cache::new(MODELS_MAX), hashes, sketcher }
    }

    /// What is suspected of a caller at a model.
    pub(super) fn suspicions(&self, principal: &Principal, model: &str) -> [(Detector, f32); 3] {
        let known = self.callers.get(&self.key(principal, model));
        known.map_or(Detector::ALL.map(|detector| (detector, 0.0)), |watch| watch.lock().suspicions(&self.settings))
    }

    /// The caller at the model, to be told of its requests.
    pub(super) fn suspect(&self, principal: &Principal, model: &str) -> Suspect {
        fn made<T: Default>() -> Result<Arc<T>, std::convert::Infallible> {
            Ok(Arc::default())
        }
        let watch = self.callers.get_or_insert_with(&self.key(principal, model), made);
        let usual = self.models.get_or_insert_with(model, made);
        let (Ok(watch), Ok(usual)) = (watch, usual);
        Suspect { watch, usual }
    }

    /// Has the detectors look at a request's inputs, where they are asked to.
    pub(super) fn asked(&self, suspect: &Suspect, request: &InferRequest) {
        if let Some(sketch) = self.settings.probing.then(|| self.sketch(request)).flatten() {
            suspect.watch.lock().asked(sketch);
        }
    }

    /// Of the first input of numbers, whole: a batch that asks around a point is as near itself as its rows are.
    fn sketch(&self, request: &InferRequest) -> Option<Sketch> {
        let (_, tensor) = request.inputs.iter().find(|(_, tensor)| tensor.dtype() != DataType::String)?;
        let length = tensor.len();
        macro_rules! sketch {
            ($type:ty) => {
                self.sketcher.sketch(tensor.values::<$type>().ok()?.iter().map(|&value| value as f32), length)
            };
        }
        Some(match tensor.dtype() {
            DataType::Float32 => sketch!(f32),
            DataType::Float64 => sketch!(f64),
            DataType::Int64 => sketch!(i64),
            DataType::Int32 => sketch!(i32),
            DataType::UInt8 => sketch!(u8),
            _ => self.sketcher.sketch(bytes(tensor), tensor.byte_len()),
        })
    }

    fn key(&self, principal: &Principal, model: &str) -> u128 {
        use std::hash::BuildHasher as _;
        let asked = (&principal.id, model);
        let [a, b] = &self.hashes;
        u128::from(a.hash_one(asked)) << 64 | u128::from(b.hash_one(asked))
    }
}

fn bytes(tensor: &Tensor) -> impl Iterator<Item = f32> {
    tensor.raw().into_iter().flatten().map(|&byte| f32::from(byte))
}

impl Suspect {
    /// A request was read, or could not be.
    pub(super) fn read(&self, well_formed: bool) {
        self.watch.lock().read(well_formed);
    }

    /// A request of so many bytes took so long.
    pub(super) fn computed(&self, time: Duration, bytes: usize) {
        // What the cache answered computed nothing.
        if !time.is_zero() {
            self.watch.lock().computed(time.as_secs_f32(), bytes, &mut self.usual.lock());
        }
    }
}

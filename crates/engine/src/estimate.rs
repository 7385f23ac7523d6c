//! What a run will need, before an engine begins it that cannot be refused memory.
//!
//! Rten asks Rust's allocator, which ends the process where there is none, and memory that is granted but not there has the system
//! end it. So the sizes of all results are inferred from the inputs, and a run that needs more than there is becomes an error
//! that names the node. Sizes that contents say are computed first, by a part of the model that has only what they need.
//!
//! Not bounded: what follows from products of matrices, convolutions or loops (a length that a network predicts), sizes that inference
//! does not know, and several runs at once, each of which fits alone.

use std::{
    collections::{BTreeSet, HashSet, hash_map::RandomState},
    hash::BuildHasher as _,
    sync::{Mutex, PoisonError},
};

use edgeward_graph::{
    DataType, Dimension, Given, GivenValues, Inferred, Model, OpenSize, Tensor, footprint, infer_run, open_sizes,
    quickly_told,
};

use crate::{EngineError, ErrorKind, RunOptions, Session, Source, TensorInfo, machine, rten};

/// Sizes that follow from sizes that follow from contents, and so on: steps at most.
const STAGES_MAX: usize = 8;
/// Shapes of inputs that are remembered as harmless.
const PASSED_MAX: usize = 4096;

/// What is known of a model's sizes at load.
pub(crate) struct Estimate {
    engine: &'static str,
    skeleton: Model,
    /// False where shapes say all sizes.
    contents_matter: bool,
    stages: Vec<Stage>,
    element_bytes: fn(DataType) -> u64,
    /// Hashes of shapes that fit; not used where contents matter.
    passed: Mutex<HashSet<u64>>,
    hasher: RandomState,
    bytes_max: u64,
}

/// Contents that say sizes, and what computes them.
struct Stage {
    sizes: Vec<OpenSize>,
    session: Box<dyn Session>,
}

impl Estimate {
    /// Finds the sizes that contents say.
    pub fn new(engine: &'static str, model: &Model, element_bytes: fn(DataType) -> u64) -> Self {
        let skeleton = model.skeleton();
        let found = open(model, &skeleton);
        let contents_matter = found.as_ref().is_none_or(|(open, _)| !open.is_empty());
        let stages = found.map(|(open, inferred)| stages(model, open, &inferred)).unwrap_or_default();
        let (passed, hasher) = (Mutex::default(), RandomState::new());
        let bytes_max = machine::bytes_max() as u64;
        Self { engine, skeleton, contents_matter, stages, element_bytes, passed, hasher, bytes_max }
    }

    /// An error where the run needs more memory than there is; `given` in the order of `declared`.
    pub fn check(&self, declared: &[TensorInfo], given: &[&Tensor]) -> Result<(), EngineError> {
        if !self.contents_matter {
            return self.check_shapes(declared, given);
        }
        let inputs: Vec<(&str, &Tensor)> =
            declared.iter().zip(given).map(|(info, tensor)| (info.name.as_str(), *tensor)).collect();
        let mut computed: Vec<(String, Tensor)> = Vec::new();
        for stage in self.stages.iter().map(Some).chain([None]) {
            let told = computed.iter().map(|(name, tensor)| (name.as_str(), tensor));
            let known = inputs.iter().copied().chain(told).map(|(name, tensor)| (name, Given::Tensor(tensor)));
            let Some(inferred) = self.fits(&known.collect())? else { return Ok(()) };
            let Some(stage) = stage else { break };
            if stage.sizes.iter().all(|size| inferred.of(&size.output).fixed().is_some()) {
                continue;
            }
            // What fails here fails in the run as well, with the engine's own words.
            let Ok(values) = stage.session.run(&inputs, RunOptions::default()) else { return Ok(()) };
            computed.extend(stage.session.outputs().iter().map(|info| info.name.clone()).zip(values));
        }
        Ok(())
    }

    /// As [`Self::check`], where shapes say all sizes: what fits once fits again.
    fn check_shapes(&self, declared: &[TensorInfo], given: &[&Tensor]) -> Result<(), EngineError> {
        let shapes: Vec<&[usize]> = given.iter().map(|tensor| tensor.shape()).collect();
        let hash = self.hasher.hash_one(&shapes);
        let passed = || self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        if passed().contains(&hash) {
            return Ok(());
        }
        let known = declared.iter().zip(given).map(|(info, tensor)| (info.name.as_str(), Given::Tensor(tensor)));
        self.fits(&known.collect())?;
        let mut passed = passed();
        if passed.len() >= PASSED_MAX {
            passed.clear();
        }
        passed.insert(hash);
        Ok(())
    }

    /// The sizes as far as they are known; none where inference finds a contradiction, which is the engine's to report.
    fn fits(&self, known: &GivenValues<'_>) -> Result<Option<Inferred>, EngineError> {
        let Ok(inferred) = infer_run(&self.skeleton, known) else { return Ok(None) };
        let needed = footprint(&self.skeleton, &inferred, self.element_bytes);
        if needed.bytes <= self.bytes_max {
            return Ok(Some(inferred));
        }
        let (place, needed, there) = (needed.place, shown(needed.bytes), shown(self.bytes_max));
        let text =
            format!("with these inputs the run needs {needed} of memory, most of it for {place}; there are {there}");
        Err(EngineError::new(self.engine, ErrorKind::InvalidInput, text))
    }
}

/// Sizes to try for dimensions that the model leaves open: some models take no small ones.
const TRIED_SIZES: [usize; 3] = [1, 64, 512];

/// The nodes whose sizes contents say; none where inference fails for all sizes tried. Which nodes these are is the same for all sizes.
fn open(model: &Model, skeleton: &Model) -> Option<(Vec<OpenSize>, Inferred)> {
    TRIED_SIZES.iter().find_map(|&tried| {
        let size = |dim| if let Dimension::Fixed(size) = dim { size } else { tried };
        let sized = model.inputs().into_iter().filter_map(|port| {
            let shape: Vec<usize> = port.shape?.into_iter().map(size).collect();
            Some((port.name, shape))
        });
        let sized: Vec<(String, Vec<usize>)> = sized.collect();
        let known = sized.iter().map(|(name, shape)| (name.as_str(), Given::Shape(shape))).collect();
        let inferred = infer_run(skeleton, &known).ok()?;
        Some((open_sizes(skeleton, &inferred), inferred))
    })
}

/// The parts of the model that compute sizes, each from values whose sizes those before it tell.
fn stages(model: &Model, mut open: Vec<OpenSize>, inferred: &Inferred) -> Vec<Stage> {
    let inputs: HashSet<String> = model.inputs().into_iter().map(|port| port.name).collect();
    let mut stages = Vec::new();
    for _ in 0..STAGES_MAX {
        let (ready, later) = quickly_told(model, open);
        if ready.is_empty() {
            break;
        }
        // Contents of inputs are known without a run.
        let computed = ready.iter().flat_map(|size| size.told_by.clone()).filter(|name| !inputs.contains(name));
        let values: BTreeSet<String> = computed.collect();
        if !values.is_empty() {
            let Some(session) = session(model, &values.into_iter().collect::<Vec<_>>(), inferred) else { break };
            stages.push(Stage { sizes: ready, session });
        }
        open = later;
    }
    stages
}

fn session(model: &Model, values: &[String], inferred: &Inferred) -> Option<Box<dyn Session>> {
    let mut part = model.part(values, inferred)?;
    part.inline_external().ok()?;
    rten::unguarded(&Source::Bytes(part.to_bytes().ok()?.into())).ok()
}

fn shown(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

//! Checkpoints: one safetensors file with the state, the best state, and where the run is; written whole or not at all.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use edgeward_graph::{DataType, Tensor};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Progress, Run, is_kept};
use crate::{TrainError, data::Sampling, schedule::Schedule};

/// Key of what the file holds beside its tensors.
const KEY: &str = "edgeward";
const VERSION: u32 = 1;

/// A checkpoint that was read.
pub struct Checkpoint {
    path: PathBuf,
    bytes: Bytes,
    saved: Saved,
}

/// What the file says of its run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Saved {
    version: u32,
    identity: Identity,
    progress: Progress,
}

/// What must be the same for a run to go on as if it had not stopped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Identity {
    /// SHA-256 of the training step and the weights that it begins with.
    step: String,
    examples: usize,
    batch: usize,
    sampling: String,
    data_seed: u64,
    seed: u64,
    epochs: u64,
    accumulate: u64,
    schedule: String,
    metric: String,
}

impl Identity {
    fn of(run: &Run<'_>) -> Result<Self, TrainError> {
        let mut hash = Sha256::new();
        hash.update(run.step.graph.to_bytes()?);
        for state in &run.step.state {
            hash.update(state.input.as_bytes());
            hash.update(state.initial.raw().map_or(&[][..], |raw| raw));
        }
        let plan = run.data.plan();
        let settings = &run.settings;
        Ok(Self {
            step: hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
            examples: run.data.fit().dataset().len(),
            batch: plan.batch,
            sampling: sampling(plan.sampling).to_owned(),
            data_seed: plan.seed,
            seed: settings.seed,
            epochs: settings.epochs,
            accumulate: settings.accumulate,
            schedule: shown(&settings.schedule),
            metric: settings.metric.name().to_owned(),
        })
    }

    /// What differs first, in words.
    fn difference(&self, other: &Self) -> Option<String> {
        let pairs = [
            ("batch", self.batch.to_string(), other.batch.to_string()),
            ("seed", self.seed.to_string(), other.seed.to_string()),
            ("seed of the data", self.data_seed.to_string(), other.data_seed.to_string()),
            ("epochs", self.epochs.to_string(), other.epochs.to_string()),
            ("examples", self.examples.to_string(), other.examples.to_string()),
            ("sampling", self.sampling.clone(), other.sampling.clone()),
            ("accumulated batches", self.accumulate.to_string(), other.accumulate.to_string()),
            ("schedule", self.schedule.clone(), other.schedule.clone()),
            ("metric", self.metric.clone(), other.metric.clone()),
            ("model, loss or optimiser", self.step.clone(), other.step.clone()),
        ];
        let (name, was, is) = pairs.into_iter().find(|(_, was, is)| was != is)?;
        Some(match name {
            "model, loss or optimiser" => format!("another {name}"),
            _ => format!("{name} `{was}`, and now it is `{is}`"),
        })
    }
}

fn sampling(sampling: Sampling) -> &'static str {
    match sampling {
        Sampling::Sequential => "sequential",
        Sampling::Shuffled => "shuffled",
        Sampling::Balanced => "balanced",
        Sampling::Poisson => "poisson",
    }
}

fn shown(schedule: &Schedule) -> String {
    let Schedule { shape, rate, warmup_steps, steps } = schedule;
    format!("{shape:?} of {rate} over {steps} steps, warm-up {warmup_steps}")
}

/// State, best state and progress.
type Resumed = (Vec<Tensor>, Option<Vec<Tensor>>, Progress);

impl Checkpoint {
    /// Reads a file. Errors: one that is missing, cut off, or no checkpoint.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let shown = path.display();
        let bytes = fs::read(path)
            .map_err(|error| TrainError::invalid(format!("cannot read checkpoint `{shown}`: {error}")))?;
        let broken = |reason: String| TrainError::invalid(format!("`{shown}` is no checkpoint: {reason}"));
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| broken(error.to_string()))?;
        SafeTensors::deserialize(&bytes).map_err(|error| broken(error.to_string()))?;
        let text = metadata.metadata().as_ref().and_then(|metadata| metadata.get(KEY));
        let text = text.ok_or_else(|| broken("it does not say what run it is of".to_owned()))?;
        let saved: Saved = serde_json::from_str(text).map_err(|error| broken(error.to_string()))?;
        if saved.version != VERSION {
            return Err(broken(format!("version `{}`, this program writes `{VERSION}`", saved.version)));
        }
        Ok(Self { path: path.to_owned(), bytes: bytes.into(), saved })
    }

    /// Where the run was.
    pub fn progress(&self) -> &Progress {
        &self.saved.progress
    }

    /// The state, where this is a checkpoint of that run.
    pub(super) fn of_run(self, run: &Run<'_>) -> Result<Resumed, TrainError> {
        let shown = self.path.display().to_string();
        if let Some(difference) = self.saved.identity.difference(&Identity::of(run)?) {
            return Err(TrainError::invalid(format!("checkpoint `{shown}` is of a run with {difference}")));
        }
        let broken = |reason: String| TrainError::run(format!("checkpoint `{shown}`: {reason}"));
        let tensors = SafeTensors::deserialize(&self.bytes).map_err(|error| broken(error.to_string()))?;
        let read = |prefix: &str, name: &str, like: &Tensor| {
            let view = tensors.tensor(&format!("{prefix}/{name}")).map_err(|error| broken(error.to_string()))?;
            if dtype(like.dtype()) != Some(view.dtype()) || view.shape() != like.shape() {
                return Err(broken(format!("`{name}` has the shape {:?}, expected {:?}", view.shape(), like.shape())));
            }
            // Copied, so that the tensor is aligned and the file's bytes are not kept.
            let bytes = Bytes::copy_from_slice(view.data());
            Tensor::from_raw(like.dtype(), like.shape(), bytes).map_err(|error| broken(error.to_string()))
        };
        let state = run.step.state.iter().map(|state| read("state", &state.input, &state.initial));
        let state = state.collect::<Result<Vec<_>, _>>()?;
        let best = self.saved.progress.best.map(|_| {
            let of = |(state, now): (&crate::State, &Tensor)| match is_kept(&state.role) {
                true => read("best", &state.input, &state.initial),
                false => Ok(now.clone()),
            };
            run.step.state.iter().zip(&state).map(of).collect::<Result<Vec<_>, _>>()
        });
        Ok((state, best.transpose()?, self.saved.progress))
    }
}

fn dtype(dtype: DataType) -> Option<Dtype> {
    Some(match dtype {
        DataType::Float32 => Dtype::F32,
        DataType::Float64 => Dtype::F64,
        DataType::Float16 => Dtype::F16,
        DataType::BFloat16 => Dtype::BF16,
        DataType::Int64 => Dtype::I64,
        DataType::Int32 => Dtype::I32,
        DataType::Int8 => Dtype::I8,
        DataType::UInt8 => Dtype::U8,
        DataType::Bool => Dtype::BOOL,
        _ => return None,
    })
}

/// Writes beside the place first, then renames: a crash leaves the old checkpoint or the new one.
pub(super) fn save(
    path: &Path,
    run: &Run<'_>,
    state: &[Tensor],
    best: Option<&[Tensor]>,
    progress: &Progress,
) -> Result<(), TrainError> {
    let mut views = Vec::new();
    for (prefix, tensors) in [("state", Some(state)), ("best", best)] {
        for (entry, tensor) in run.step.state.iter().zip(tensors.unwrap_or_default()) {
            if prefix == "best" && !is_kept(&entry.role) {
                continue;
            }
            let refuse =
                || TrainError::run(format!("state `{}` is {}, which no checkpoint holds", entry.input, tensor.dtype()));
            let raw = tensor.raw().map_or(&[][..], |raw| raw);
            let view = TensorView::new(dtype(tensor.dtype()).ok_or_else(refuse)?, tensor.shape().to_vec(), raw);
            views
                .push((format!("{prefix}/{}", entry.input), view.map_err(|error| TrainError::run(error.to_string()))?));
        }
    }
    let saved = Saved { version: VERSION, identity: Identity::of(run)?, progress: progress.clone() };
    let text = serde_json::to_string(&saved).map_err(|error| TrainError::run(error.to_string()))?;
    let metadata = HashMap::from([(KEY.to_owned(), text)]);
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(|error| TrainError::run(error.to_string()))?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let staged = path.with_file_name(name);
    let written = File::create(&staged).and_then(|mut file| {
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&staged, path)
    });
    written.map_err(|error| {
        // Half a file is of no use; that it may be gone already is no error.
        let _ = fs::remove_file(&staged);
        TrainError::run(format!("cannot write checkpoint `{}`: {error}", path.display()))
    })
}

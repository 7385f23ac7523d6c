//! The part of a tune's file that `serve` takes up.

use std::{num::NonZeroUsize, path::Path};

use serde::Deserialize;

use crate::{engines, failure::Failure};

/// A tune's file has a few kilobytes; anything much larger is none.
const MAX_BYTES: u64 = 1 << 20;

/// The best for a goal.
#[derive(Debug, PartialEq, Deserialize)]
pub struct Best {
    /// Engine.
    pub engine: String,
    /// Threads within one run.
    pub threads: NonZeroUsize,
    /// Items in one run.
    pub batch: NonZeroUsize,
    /// Runs side by side.
    pub instances: NonZeroUsize,
    /// Median time of a run.
    #[serde(default)]
    pub p50_ms: Option<f64>,
    /// 99th percentile.
    #[serde(default)]
    pub p99_ms: Option<f64>,
    /// Items per second.
    #[serde(default)]
    pub per_second: Option<f64>,
}

/// What a server is to be best at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Goal {
    /// One request at a time, answered soonest
    #[default]
    Latency,
    /// Most requests per second
    Throughput,
}

/// What `tune` found for this model file; none where there is no result beside it.
pub fn beside(model: &Path, goal: Goal) -> Result<Option<Best>, Failure> {
    #[derive(Deserialize)]
    struct File {
        model_sha256: String,
        latency: Best,
        throughput: Best,
    }
    let named = [engines::beside(model, "tune.json"), model.with_file_name("tune.json")];
    let Some((path, metadata)) = named.into_iter().find_map(|path| std::fs::metadata(&path).ok().map(|m| (path, m)))
    else {
        return Ok(None);
    };
    let wrong = |why: String| Failure::input(format!("`{}` is no result of `edgeward tune`: {why}", path.display()));
    if metadata.len() > MAX_BYTES {
        return Err(wrong(format!("it has {} bytes, at most {MAX_BYTES} are read", metadata.len())));
    }
    let bytes = std::fs::read(&path).map_err(|error| wrong(error.to_string()))?;
    let file: File = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    if file.model_sha256 != super::hash(model)? {
        tracing::warn!(file = %path.display(), "was measured on another version of the model and is not used");
        return Ok(None);
    }
    Ok(Some(match goal {
        Goal::Latency => file.latency,
        Goal::Throughput => file.throughput,
    }))
}

//! What is told of a compression: every variant against its original, in numbers (`report.json`) and as a page.

use serde::{Deserialize, Serialize};

use crate::{
    choose::{Figures, Goal, Limits},
    compare::Agreement,
    interval::Interval,
};

pub use crate::page::page;

/// Everything that was found out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The original's file name.
    pub model: String,
    /// SHA-256 of the original's file.
    pub model_sha256: String,
    /// Where it was measured.
    pub machine: Machine,
    /// What was judged on.
    pub data: Data,
    /// Metric, e.g. `accuracy`.
    pub metric: String,
    /// What the chosen variant shall be best at.
    pub goal: Goal,
    /// What was allowed.
    pub limits: Limits,
    /// The original.
    pub original: Variant,
    /// Everything that was tried, in the order of trying.
    pub variants: Vec<Variant>,
    /// Name of the chosen variant; none where nothing is better.
    pub chosen: Option<String>,
    /// Layers by what they lose alone, the worst first; empty where it was not asked.
    pub sensitivity: Vec<crate::Sensitivity>,
    /// How times were taken.
    pub timing: Turns,
    /// Most memory; none where nobody looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// What took how long, in order.
    pub phases: Vec<Phase>,
    /// Seconds that all of it took.
    pub seconds: f64,
}

/// How times of variants were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Turns {
    /// All in turns: a drift of the machine hits all alike.
    Taken,
    /// One variant after the other, since two of them do not fit in memory: a drift of the machine is in the figures.
    OneByOne,
}

/// The most memory of the process that was resident at once, mapped files included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// While weights were quantised; none where the system does not tell.
    pub quantising_bytes_max: Option<u64>,
    /// All the time, with the model loaded by each engine.
    pub bytes_max: u64,
}

/// A part of the work.
#[derive(Clone, Debug, Serialize)]
pub struct Phase {
    /// What was done, e.g. `observing ranges`.
    pub what: String,
    /// How long.
    pub seconds: f64,
}

/// Where it was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Processor, as the system names it.
    pub processor: String,
    /// Cores that were used.
    pub cores: usize,
    /// Whether it multiplies bytes without saturating (VNNI).
    pub vnni: bool,
}

/// What variants were judged on.
#[derive(Clone, Debug, Serialize)]
pub struct Data {
    /// Where it comes from.
    pub kind: DataKind,
    /// Examples that variants were judged on.
    pub examples: usize,
    /// Examples that ranges were observed on, at most; where they settled earlier for a variant, its recipe tells after how many.
    pub calibrated: usize,
}

/// Where data comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DataKind {
    /// Examples with what the model shall say of them.
    Labelled,
    /// Photos with the boxes that a detector shall find in them.
    Annotated,
    /// Inputs alone: variants are held against what the original says.
    Given,
    /// Made-up inputs: variants are held against what the original says of numbers that mean nothing.
    Synthesised,
}

impl DataKind {
    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            Self::Labelled => "labelled examples",
            Self::Annotated => "photos with annotated boxes",
            Self::Given => "given inputs without labels: agreement with the original, not accuracy",
            Self::Synthesised => {
                "made-up inputs: agreement with the original on numbers that mean nothing, not accuracy"
            }
        }
    }
}

/// A graph and its figures.
#[derive(Clone, Debug, Serialize)]
pub struct Variant {
    /// Name of its file, without the ending.
    pub name: String,
    /// How it was made, in words.
    pub recipe: String,
    /// Engine that runs it best.
    pub engine: Option<String>,
    /// Figures on that engine; none where no engine runs it.
    pub figures: Option<Figures>,
    /// On every engine.
    pub engines: Vec<OnEngine>,
    /// The metric, on the engine that runs it best.
    pub metric: Option<f64>,
    /// Its 95 % interval.
    pub interval: Option<Interval>,
    /// With the original.
    pub agreement: Option<Agreement>,
    /// Layer by layer.
    pub layers: Vec<LayerFigures>,
    /// Whether no other variant is at least as good in everything and better in something.
    pub pareto: bool,
    /// Why it may not be emitted; none where it may.
    pub refused: Option<String>,
    /// File in the folder; none where it was not written.
    pub file: Option<String>,
}

/// How an engine runs a variant.
#[derive(Clone, Debug, Serialize)]
pub struct OnEngine {
    /// Engine.
    pub engine: String,
    /// Median time of one request.
    pub p50_ms: Option<f64>,
    /// Items per second.
    pub per_second: Option<f64>,
    /// Processor time of one request, of all cores together.
    pub core_ms: Option<f64>,
    /// Why it does not run there.
    pub refused: Option<String>,
}

/// One layer of a variant.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LayerFigures {
    /// Its node.
    pub name: String,
    /// Operator.
    pub op: String,
    /// Bytes of its weights in the original.
    pub bytes_before: u64,
    /// Bytes of its weights in this variant.
    pub bytes: u64,
    /// Signal-to-noise ratio of its result in decibels; none where it was not measured or nothing differs.
    pub snr_db: Option<f64>,
}

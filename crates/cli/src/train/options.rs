//! What `train` can be told: flags, and by the same names `[train]` in `edgeward.toml`.

use std::path::PathBuf;

use clap::ValueEnum;
use serde::Deserialize;

/// Options of data and learning; what a flag leaves open is the file's, then the default.
#[derive(clap::Args, Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct TrainOptions {
    /// `[train.data]` in the file.
    #[command(flatten)]
    pub data: DataOptions,
    /// Loss [default: cross-entropy]
    #[arg(long, value_name = "NAME")]
    pub loss: Option<LossName>,
    /// Share of the target that goes to all classes alike
    #[arg(long, value_name = "PART")]
    pub smoothing: Option<f32>,
    /// Weight of each class in the loss: `balanced`, or numbers between commas
    #[arg(long, value_name = "W,…")]
    pub class_weights: Option<String>,
    /// Optimiser [default: adamw]
    #[arg(long, value_name = "NAME")]
    pub optimiser: Option<OptimiserName>,
    /// Momentum of sgd [default: 0.9]
    #[arg(long, value_name = "PART")]
    pub momentum: Option<f32>,
    /// Weight decay [default: 0.01 for adamw and lamb, else 0]
    #[arg(long, value_name = "PART")]
    pub weight_decay: Option<f32>,
    /// Highest learning rate [default: 0.001, sgd 0.05]
    #[arg(long)]
    pub rate: Option<f64>,
    /// How the rate changes [default: cosine]
    #[arg(long, value_name = "NAME")]
    pub schedule: Option<ScheduleName>,
    /// Steps over which the rate first rises [default: 0]
    #[arg(long, value_name = "STEPS")]
    pub warmup: Option<u64>,
    /// Times through the data [default: 10]
    #[arg(long)]
    pub epochs: Option<u64>,
    /// Examples of one step [default: 64]
    #[arg(long)]
    pub batch: Option<usize>,
    /// Batches whose gradients are averaged for one update [default: 1]
    #[arg(long, value_name = "BATCHES")]
    pub accumulate: Option<u32>,
    /// Longest norm of all gradients together
    #[arg(long, value_name = "NORM")]
    pub clip: Option<f32>,
    /// Weights that stay as they are, e.g. `layer1.*` (repeat)
    #[arg(long, value_name = "PATTERN")]
    pub freeze: Option<Vec<String>>,
    /// Decay of an average of the weights, which is what is written then, e.g. 0.999
    #[arg(long, value_name = "DECAY")]
    pub ema: Option<f32>,
    /// For privacy: longest norm of one example's gradient; draws batches as its accounting asks
    #[arg(long, value_name = "NORM")]
    pub clip_each: Option<f32>,
    /// For privacy: noise, as a multiple of `--clip-each` [default: 1]
    #[arg(long, value_name = "MULTIPLE")]
    pub noise: Option<f32>,
    /// How examples are drawn [default: shuffled]
    #[arg(long, value_name = "HOW")]
    pub sampling: Option<SamplingName>,
    /// Mirror half of the pictures
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub flip: Option<bool>,
    /// Pad pictures by so many pixels and cut them back
    #[arg(long, value_name = "PIXELS")]
    pub crop: Option<usize>,
    /// Change brightness, contrast and saturation by up to this part
    #[arg(long, value_name = "PART")]
    pub colour: Option<f32>,
    /// Part of the tokens that are made unknown
    #[arg(long, value_name = "PART")]
    pub token_drop: Option<f32>,
    /// Figure that says which epoch is the best [default: accuracy, mse for quantities]
    #[arg(long, value_name = "NAME")]
    pub metric: Option<String>,
    /// End after so many epochs without a better one
    #[arg(long, value_name = "EPOCHS")]
    pub patience: Option<u64>,
    /// The same seed gives the same model on one engine and number of threads [default: 0]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Checkpoint, kept at the end [default: OUTPUT.checkpoint, removed at the end]
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// Batches between two checkpoints, beside that of each epoch
    #[arg(long, value_name = "BATCHES")]
    pub checkpoint_batches: Option<u64>,
    /// Folder for TensorBoard's event files
    #[arg(long, value_name = "DIR")]
    pub tensorboard: Option<PathBuf>,
    /// Price of this machine, for the cost of each step
    #[arg(long, value_name = "USD")]
    pub price_usd_per_hour: Option<f64>,
}

/// What data there is and how it is read; `evaluate` takes the same.
#[derive(clap::Args, Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct DataOptions {
    /// `.npz`, `.npy`, `.csv`, `.tsv`, `.parquet`, `.arrow`, an IDX file or a folder of pictures
    #[arg(long, value_name = "PATH")]
    #[serde(rename = "path")]
    pub data: Option<PathBuf>,
    /// Data to judge by [default: the file's own part, else a part of the data]
    #[arg(long, value_name = "PATH")]
    pub val: Option<PathBuf>,
    /// Part of the data to judge by; 0 for none [default: 0.1 where the data has no such part]
    #[arg(long, value_name = "PART")]
    pub val_fraction: Option<f64>,
    /// File of the targets of an `.npy` or IDX file
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// Column or array to learn [default: `label` or the like, else the last]
    #[arg(long, value_name = "NAME")]
    pub target: Option<String>,
    /// Column that is text though it looks like numbers (repeat)
    #[arg(long, value_name = "NAME")]
    pub text: Option<Vec<String>>,
    /// Whether the first line names the columns [default: seen from the file]
    #[arg(long, value_name = "BOOL")]
    pub header: Option<bool>,
    /// Tokenizer for texts [default: one is trained]
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Pieces of a tokenizer that is trained [default: as many as the model takes]
    #[arg(long, value_name = "PIECES")]
    pub vocabulary: Option<usize>,
    /// Tokens of a text, where the model leaves it open
    #[arg(long, value_name = "N")]
    pub tokens: Option<usize>,
    /// Mean of each channel, taken off
    #[arg(long, value_delimiter = ',', value_name = "M,…")]
    pub mean: Option<Vec<f32>>,
    /// Standard deviation of each channel, divided by
    #[arg(long, value_delimiter = ',', value_name = "S,…")]
    pub std: Option<Vec<f32>>,
}

macro_rules! or {
    ($own:expr, $file:expr; $($field:ident)*) => { Self { $($field: $own.$field.clone().or_else(|| $file.$field.clone()),)* } };
    ($own:expr, $file:expr; $($field:ident)*; $($rest:tt)*) => {
        Self { $($field: $own.$field.clone().or_else(|| $file.$field.clone()),)* $($rest)* }
    };
}

impl TrainOptions {
    /// These, and where they say nothing the file's.
    pub fn or(&self, file: &Self) -> Self {
        or!(self, file; loss smoothing class_weights optimiser momentum weight_decay rate schedule warmup epochs batch
            accumulate clip freeze ema clip_each noise sampling flip crop colour token_drop metric patience seed checkpoint
            checkpoint_batches tensorboard price_usd_per_hour; data: self.data.or(&file.data))
    }
}

impl DataOptions {
    /// These, and where they say nothing the file's. What the file says of parts is said of its own data.
    pub fn or(&self, file: &Self) -> Self {
        let other = Self { val: None, val_fraction: None, ..file.clone() };
        let file = if self.data.is_some() { &other } else { file };
        or!(self, file; data val val_fraction labels target text header tokenizer vocabulary tokens mean std)
    }
}

/// A loss by name.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LossName {
    /// One of several classes
    CrossEntropy,
    /// One of two classes, or several truths, by logits
    BinaryCrossEntropy,
    /// Squared error
    Mse,
    /// Absolute error
    L1,
    /// Squared near, absolute far
    Huber,
    /// Divergence from logits, at temperature 1
    Kl,
    /// Angle
    Cosine,
}

/// An optimiser by name.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum OptimiserName {
    /// Gradient descent with momentum
    Sgd,
    /// The same, looking ahead
    Nesterov,
    /// Adam
    Adam,
    /// Adam with decay apart
    Adamw,
    /// AdamW scaled for each weight
    Lamb,
}

/// A schedule by name.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleName {
    /// The same throughout
    Constant,
    /// Down along a cosine
    Cosine,
    /// Up, then down far below
    OneCycle,
    /// Down along a line
    Linear,
}

/// How examples are drawn, by name.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum SamplingName {
    /// Each once in an epoch
    Shuffled,
    /// Every class as often
    Balanced,
    /// In the order of the file
    Sequential,
    /// Each in each batch by chance
    Poisson,
}

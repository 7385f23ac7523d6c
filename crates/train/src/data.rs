//! Examples to learn from: what a data set is, and the rooms that read one, split it, order it and hand it out.
//!
//! Everything that is random here is a function of a seed, an epoch and a row, so that a run can go on from its middle
//! without any generator's state. What a model makes of the batches is left to the loop.

mod augment;
mod columns;
mod convert;
mod error;
mod fit;
mod folder;
mod idx;
mod loader;
mod npy;
mod open;
mod order;
mod record;
mod subset;
mod table;
mod text;

use std::sync::Arc;

use edgeward_graph::{DataType, Tensor};

pub(crate) use convert::to_f64;
pub(crate) use order::generator;

pub use augment::Augment;
pub use columns::Columns;
pub use error::{DataError, DataErrorKind};
pub use fit::{Batch, Fit, Wanted};
pub use folder::ImageFolder;
pub use loader::{Batches, Loader};
pub use open::{Format, OpenOptions, Splits, open};
pub use order::{Plan, Sampling, class_weights};
pub use subset::{Subset, split_fraction};
pub use text::{ATTENTION_MASK, INPUT_IDS, Tokenisation, tokenise};

/// What a field of an example is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Goes into the model.
    Input,
    /// Is what the model shall say.
    Target,
}

/// One field of every example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name in the file, without the part that names a split.
    pub name: String,
    /// Element type; strings are texts that have not been through a tokenizer.
    pub dtype: DataType,
    /// Shape of one example, without the batch.
    pub shape: Vec<usize>,
    /// Whether it is an input or a target.
    pub role: Role,
}

/// Examples that can be fetched by number.
pub trait Dataset: Send + Sync {
    /// Number of examples.
    fn len(&self) -> usize;

    /// True where there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The fields of an example.
    fn fields(&self) -> &[Field];

    /// The fields of these examples, each `[rows, …]`, in the order of [`Dataset::fields`]. Errors: a row that is not
    /// there, or a file behind one that cannot be read.
    fn batch(&self, rows: &[usize]) -> Result<Vec<Tensor>, DataError>;

    /// The class of every example, where the target is one.
    fn labels(&self) -> Option<&[u32]> {
        None
    }

    /// Names of the classes in the order of their numbers, where the data names them.
    fn classes(&self) -> Option<&[String]> {
        None
    }

    /// The data set's view of a picture that a model wants as `[height, width]`; none where nothing can be resized.
    fn resized(&self, _height: usize, _width: usize) -> Option<Arc<dyn Dataset>> {
        None
    }
}

//! From a path to data sets: which format a file has, and which of its parts are for training and for validation.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use edgeward_graph::Tensor;

use super::{
    Columns, DataError, Dataset, ImageFolder, Role, idx, npy, record,
    table::{self, Separator, Table, TableOptions},
};

/// How a data set is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Several NumPy arrays.
    Npz,
    /// One NumPy array; the targets are in another file.
    Npy,
    /// MNIST's format; the targets are in another file.
    Idx,
    /// Cells between commas.
    Csv,
    /// Cells between tabs.
    Tsv,
    /// Parquet.
    Parquet,
    /// Arrow IPC.
    Arrow,
    /// A folder for each class.
    Folder,
}

impl Format {
    /// By the name of a file; `.gz` at its end says nothing.
    pub fn of(path: &Path) -> Option<Self> {
        if path.is_dir() {
            return Some(Self::Folder);
        }
        let name = record::plain_name(path);
        let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
        Some(match ending {
            "npz" => Self::Npz,
            "npy" => Self::Npy,
            "csv" => Self::Csv,
            "tsv" => Self::Tsv,
            "parquet" => Self::Parquet,
            "arrow" | "feather" | "ipc" => Self::Arrow,
            "idx" => Self::Idx,
            _ if ["-ubyte", "-idx1-ubyte", "-idx3-ubyte"].iter().any(|end| name.ends_with(end)) => Self::Idx,
            _ => return None,
        })
    }
}

/// What is said of a file beside its path.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Column, or array of an `.npz`, to learn; found by its name where none.
    pub target: Option<String>,
    /// File of the targets of an `.npy` or IDX file; beside it by MNIST's names where none.
    pub labels: Option<PathBuf>,
    /// Columns that are text though they look like numbers.
    pub texts: Vec<String>,
    /// Whether the first line of a text file names its columns; seen from it where none.
    pub header: Option<bool>,
    /// Names of the classes, as the training data has them.
    pub classes: Option<Vec<String>>,
}

/// The parts of a file.
#[derive(Clone, Default)]
pub struct Splits {
    /// To learn from; all there is, where the file has no parts.
    pub train: Option<Arc<dyn Dataset>>,
    /// To judge by while learning.
    pub val: Option<Arc<dyn Dataset>>,
    /// To judge by at the end.
    pub test: Option<Arc<dyn Dataset>>,
}

impl Splits {
    fn whole(dataset: impl Dataset + 'static) -> Self {
        Self { train: Some(Arc::new(dataset)), ..Self::default() }
    }

    fn set(&mut self, part: Part, dataset: impl Dataset + 'static) {
        let slot = match part {
            Part::Train => &mut self.train,
            Part::Val => &mut self.val,
            Part::Test => &mut self.test,
        };
        *slot = Some(Arc::new(dataset));
    }
}

/// Opens a file or folder. Errors name the file and, where it has lines, the line.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Splits, DataError> {
    if !path.exists() {
        return Err(DataError::malformed(path, "does not exist"));
    }
    let Some(format) = Format::of(path) else {
        let known = "`.npz`, `.npy`, `.csv`, `.tsv`, `.parquet`, `.arrow`, an IDX file or a folder of pictures";
        return Err(DataError::malformed(path, format!("is of no known kind; expected {known}")));
    };
    match format {
        Format::Npz => named_arrays(path, options),
        Format::Npy => pair(path, options, npy::read),
        Format::Idx => pair(path, options, idx::read),
        Format::Csv => rows(table::read_text(path, Separator::Comma, &for_table(options))?, options),
        Format::Tsv => rows(table::read_text(path, Separator::Tab, &for_table(options))?, options),
        Format::Parquet => rows(table::read_parquet(path)?, options),
        Format::Arrow => rows(table::read_arrow(path)?, options),
        Format::Folder => folder(path, options),
    }
}

fn for_table(options: &OpenOptions) -> TableOptions {
    TableOptions {
        target: options.target.clone(),
        texts: options.texts.clone(),
        header: options.header,
        classes: options.classes.clone(),
    }
}

fn rows(table: Table, options: &OpenOptions) -> Result<Splits, DataError> {
    Ok(Splits::whole(table.into_columns(&for_table(options))?))
}

/// A part of a data set, as names have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Train,
    Val,
    Test,
}

impl Part {
    fn named(word: &str) -> Option<Self> {
        Some(match word {
            "train" | "training" => Self::Train,
            "val" | "valid" | "validation" | "dev" => Self::Val,
            "test" => Self::Test,
            _ => return None,
        })
    }
}

/// `train_images` and `x_test` name a part and a field; any other name is a field of all there is.
fn part_and_field(name: &str) -> (Option<Part>, &str) {
    let front = name.split_once('_').and_then(|(word, rest)| Some((Part::named(word)?, rest)));
    let back = || name.rsplit_once('_').and_then(|(rest, word)| Some((Part::named(word)?, rest)));
    match front.or_else(back) {
        Some((part, field)) => (Some(part), field),
        None => (None, name),
    }
}

fn role(field: &str, target: Option<&str>) -> Role {
    let known = ["label", "labels", "target", "targets", "y", "class", "classes"];
    let is_target = target.map_or_else(|| known.contains(&field.to_ascii_lowercase().as_str()), |name| name == field);
    if is_target { Role::Target } else { Role::Input }
}

type Arrays = Vec<(String, Role, Tensor)>;

fn named_arrays(path: &Path, options: &OpenOptions) -> Result<Splits, DataError> {
    let arrays = npy::read_all(path)?;
    let names: Vec<String> = arrays.iter().map(|(name, _)| format!("`{name}`")).collect();
    let mut parts: BTreeMap<Part, Arrays> = BTreeMap::new();
    let split = arrays.iter().any(|(name, _)| part_and_field(name).0.is_some());
    for (name, tensor) in arrays {
        let (part, field) = part_and_field(&name);
        let part = match part {
            Some(part) => part,
            None if split => continue,
            None => Part::Train,
        };
        let role = role(field, options.target.as_deref());
        parts.entry(part).or_default().push((field.to_owned(), role, tensor));
    }
    let mut splits = Splits::default();
    for (part, arrays) in parts {
        let has = |role| arrays.iter().any(|(_, other, _)| *other == role);
        if !has(Role::Input) || !has(Role::Target) {
            let lacks = if has(Role::Input) { "targets" } else { "inputs" };
            let expected = "expected names such as `train_images` and `train_labels`, or `x` and `y`";
            return Err(DataError::malformed(path, format!("has no {lacks} among {}; {expected}", names.join(", "))));
        }
        let columns = Columns::new(arrays).map_err(|error| DataError::malformed(path, error.to_string()))?;
        splits.set(part, columns);
    }
    Ok(splits)
}

/// Inputs in one file, targets in another.
fn pair(path: &Path, options: &OpenOptions, read: fn(&Path) -> Result<Tensor, DataError>) -> Result<Splits, DataError> {
    let labels = options.labels.clone().or_else(|| beside(path));
    let labels = labels.ok_or_else(|| {
        DataError::malformed(path, "holds inputs alone; say where the targets are with `--labels FILE`")
    })?;
    let targets = match Format::of(&labels) {
        Some(Format::Npy) => npy::read(&labels)?,
        _ => idx::read(&labels)?,
    };
    let arrays = vec![("images".to_owned(), Role::Input, read(path)?), ("labels".to_owned(), Role::Target, targets)];
    let columns = Columns::new(arrays).map_err(|error| DataError::malformed(path, error.to_string()))?;
    Ok(Splits::whole(columns))
}

/// `…-labels-idx1-ubyte` for `…-images-idx3-ubyte`.
fn beside(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let other = name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1");
    let other = path.with_file_name(&other);
    (other != path && other.is_file()).then_some(other)
}

/// A folder with one folder for each class, or with such folders as `train` and `val`.
fn folder(path: &Path, options: &OpenOptions) -> Result<Splits, DataError> {
    let mut parts: BTreeMap<Part, PathBuf> = BTreeMap::new();
    for entry in std::fs::read_dir(path).map_err(DataError::io("read", path))? {
        let entry = entry.map_err(DataError::io("read", path))?.path();
        let name = entry.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        if let Some(part) = Part::named(&name).filter(|_| entry.is_dir()) {
            parts.insert(part, entry);
        }
    }
    if !parts.contains_key(&Part::Train) {
        return Ok(Splits::whole(ImageFolder::open(path, options.classes.as_deref())?));
    }
    let mut splits = Splits::default();
    let mut classes = options.classes.clone();
    for (part, place) in parts {
        let pictures = ImageFolder::open(&place, classes.as_deref())?;
        classes = classes.or_else(|| pictures.classes().map(<[String]>::to_vec));
        splits.set(part, pictures);
    }
    Ok(splits)
}

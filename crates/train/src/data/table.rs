//! Tables, by row or by column in the file: columns of numbers become one `features` field, columns of text stay text,
//! columns of lists are fields of their own, and one column is the target.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use edgeward_graph::Tensor;

use super::{Columns, DataError, Role};

mod arrow;
mod csv;

pub(crate) use arrow::{read_arrow, read_parquet};
pub(crate) use csv::{Separator, read_text};

/// Name of the field that holds all columns of numbers.
pub(crate) const FEATURES: &str = "features";
/// Names that a target goes by, where none is given.
const TARGETS: [&str; 7] = ["label", "labels", "target", "targets", "class", "y", "category"];

/// A column in memory.
pub(crate) enum Column {
    Numbers(Vec<f64>),
    Texts(Vec<String>),
    /// Lists of one length, one after the other.
    Lists {
        width: usize,
        values: Vec<f32>,
    },
}

/// A file's rows by column.
pub(crate) struct Table {
    pub(crate) path: PathBuf,
    pub(crate) names: Vec<String>,
    pub(crate) columns: Vec<Column>,
    /// Line of each row; empty where rows are counted from 1.
    pub(crate) lines: Vec<u64>,
}

/// What a reader is told of a table.
#[derive(Clone, Debug, Default)]
pub(crate) struct TableOptions {
    /// Column to learn; found by its name, else the last.
    pub(crate) target: Option<String>,
    /// Columns that are text though they look like numbers.
    pub(crate) texts: Vec<String>,
    /// Whether the first line names the columns; seen from the file where none.
    pub(crate) header: Option<bool>,
    /// Names of classes that are known from the training data.
    pub(crate) classes: Option<Vec<String>>,
}

impl Table {
    fn line(&self, row: usize) -> u64 {
        self.lines.get(row).copied().unwrap_or(row as u64 + 1)
    }

    fn target(&self, options: &TableOptions) -> Result<usize, DataError> {
        let find = |name: &str| self.names.iter().position(|column| column == name);
        if let Some(name) = &options.target {
            return find(name).ok_or_else(|| self.no_column(name));
        }
        let lower: Vec<String> = self.names.iter().map(|name| name.to_ascii_lowercase()).collect();
        let known = TARGETS.iter().find_map(|target| lower.iter().position(|name| name == target));
        let last = self.names.len().checked_sub(1);
        known.or(last).ok_or_else(|| DataError::malformed(&self.path, "has no columns"))
    }

    fn no_column(&self, name: &str) -> DataError {
        let reason = format!("has no column `{name}`; it has `{}`", self.names.join("`, `"));
        DataError::malformed(&self.path, reason)
    }

    /// The table as a data set.
    pub(crate) fn into_columns(mut self, options: &TableOptions) -> Result<Columns, DataError> {
        let target = self.target(options)?;
        let target_name = self.names.remove(target);
        let taken = self.columns.remove(target);
        let (labels, classes) = self.labels(taken, options)?;
        let rows = labels.shape().first().copied().unwrap_or(0);
        let mut out = Vec::new();
        let (mut features, mut width) = (vec![Vec::new(); rows], 0);
        let fit = |error: edgeward_graph::TensorError| DataError::fit(error.to_string());
        for (name, column) in std::mem::take(&mut self.names).into_iter().zip(std::mem::take(&mut self.columns)) {
            match column {
                Column::Numbers(values) => {
                    width += 1;
                    features.iter_mut().zip(values).for_each(|(row, value)| row.push(value as f32));
                }
                Column::Texts(values) => {
                    let values: Vec<Bytes> = values.into_iter().map(Bytes::from).collect();
                    out.push((name, Role::Input, Tensor::from_strings([rows], values).map_err(fit)?));
                }
                Column::Lists { width, values } => {
                    out.push((name, Role::Input, Tensor::from_vec([rows, width], values).map_err(fit)?));
                }
            }
        }
        if width > 0 {
            let tensor = Tensor::from_vec([rows, width], features.concat()).map_err(fit)?;
            out.insert(0, (FEATURES.to_owned(), Role::Input, tensor));
        }
        if out.is_empty() {
            return Err(DataError::malformed(&self.path, format!("has no column beside its target `{target_name}`")));
        }
        out.push((target_name, Role::Target, labels));
        let columns = Columns::new(out)?;
        Ok(match classes {
            Some(classes) => columns.with_classes(classes),
            None => columns,
        })
    }

    /// The target: numbers as they are, words as numbers of classes.
    fn labels(&self, column: Column, options: &TableOptions) -> Result<(Tensor, Option<Vec<String>>), DataError> {
        let fit = |error: edgeward_graph::TensorError| DataError::fit(error.to_string());
        let texts = match column {
            Column::Texts(texts) => texts,
            Column::Lists { width, values } => {
                let rows = values.len() / width.max(1);
                return Ok((Tensor::from_vec([rows, width], values).map_err(fit)?, None));
            }
            // Names of classes that are numbers are not names.
            Column::Numbers(values) => {
                return match values.iter().all(|value| value.fract() == 0.0 && value.abs() < 1e15) {
                    true => {
                        let whole: Vec<i64> = values.iter().map(|&value| value as i64).collect();
                        Ok((Tensor::from_vec([whole.len()], whole).map_err(fit)?, None))
                    }
                    false => Ok((Tensor::from_vec([values.len()], values).map_err(fit)?, None)),
                };
            }
        };
        let classes = options.classes.clone().unwrap_or_else(|| {
            let distinct: std::collections::BTreeSet<&String> = texts.iter().collect();
            distinct.into_iter().cloned().collect()
        });
        let number = |(row, text): (usize, &String)| {
            let found = classes.iter().position(|class| class == text);
            let reason = || format!("`{text}` is none of the classes `{}`", classes.join("`, `"));
            found.map(|found| found as i64).ok_or_else(|| DataError::row(&self.path, self.line(row), reason()))
        };
        let numbers: Result<Vec<i64>, DataError> = texts.iter().enumerate().map(number).collect();
        Ok((Tensor::from_vec([texts.len()], numbers?).map_err(fit)?, Some(classes)))
    }
}

/// A file that holds nothing to learn from.
fn no_rows(path: &Path) -> DataError {
    DataError::malformed(path, "holds no rows")
}

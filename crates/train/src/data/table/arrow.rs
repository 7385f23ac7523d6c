//! Tables by column: Parquet and Arrow IPC (files and streams).

use std::{fs::File, io::BufReader, path::Path};

use arrow_array::{Array, ArrayRef, RecordBatch, cast::AsArray as _, types::Float64Type};
use arrow_cast::cast;
use arrow_schema::{ArrowError, DataType as ArrowType};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{Column, Table, no_rows};
use crate::data::DataError;

/// Reads a Parquet file.
pub(crate) fn read_parquet(path: &Path) -> Result<Table, DataError> {
    let file = File::open(path).map_err(DataError::io("open", path))?;
    let broken =
        |error: parquet::errors::ParquetError| DataError::malformed(path, format!("is no Parquet file: {error}"));
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|builder| builder.build()).map_err(broken)?;
    table(path, reader)
}

/// Reads an Arrow file; one that is no file is tried as a stream.
pub(crate) fn read_arrow(path: &Path) -> Result<Table, DataError> {
    let open = || File::open(path).map(BufReader::new).map_err(DataError::io("open", path));
    if let Ok(reader) = arrow_ipc::reader::FileReader::try_new(open()?, None) {
        return table(path, reader);
    }
    let broken = |error: ArrowError| DataError::malformed(path, format!("is no Arrow file or stream: {error}"));
    table(path, arrow_ipc::reader::StreamReader::try_new(open()?, None).map_err(broken)?)
}

fn table(path: &Path, batches: impl Iterator<Item = Result<RecordBatch, ArrowError>>) -> Result<Table, DataError> {
    let mut names = Vec::new();
    let mut columns: Vec<Column> = Vec::new();
    let mut rows = 0;
    for batch in batches {
        let batch = batch.map_err(|error| DataError::malformed(path, format!("cannot be read: {error}")))?;
        let first = columns.is_empty();
        for (index, (field, array)) in batch.schema().fields().iter().zip(batch.columns()).enumerate() {
            let column = Reader { path, name: field.name(), rows }.column(array)?;
            if first {
                names.push(field.name().clone());
                columns.push(column);
            } else if !columns.get_mut(index).is_some_and(|whole| append(whole, column)) {
                let reason = format!("column `{}` changes its type or width", field.name());
                return Err(DataError::row(path, rows as u64 + 1, reason));
            }
        }
        rows += batch.num_rows();
    }
    if rows == 0 {
        return Err(no_rows(path));
    }
    Ok(Table { path: path.to_owned(), names, columns, lines: Vec::new() })
}

/// False where the two are not of one kind.
fn append(whole: &mut Column, part: Column) -> bool {
    match (whole, part) {
        (Column::Numbers(whole), Column::Numbers(part)) => whole.extend(part),
        (Column::Texts(whole), Column::Texts(part)) => whole.extend(part),
        (Column::Lists { width, values }, Column::Lists { width: other, values: part }) if *width == other => {
            values.extend(part);
        }
        _ => return false,
    }
    true
}

/// Reads one column of one batch.
struct Reader<'a> {
    path: &'a Path,
    name: &'a str,
    /// Rows of the batches before.
    rows: usize,
}

impl Reader<'_> {
    fn refuse(&self, row: usize, what: &str) -> DataError {
        DataError::row(self.path, (self.rows + row) as u64 + 1, format!("column `{}` {what}", self.name))
    }

    fn column(&self, array: &ArrayRef) -> Result<Column, DataError> {
        if let Some(row) = (0..array.len()).find(|&row| array.is_null(row)) {
            return Err(self.refuse(row, "holds nothing, expected a value"));
        }
        match array.data_type() {
            ArrowType::Utf8 | ArrowType::LargeUtf8 | ArrowType::Utf8View | ArrowType::Dictionary(..) => {
                let texts = self.cast(array, &ArrowType::LargeUtf8)?;
                let texts = texts.as_string_opt::<i64>().ok_or_else(|| self.refuse(0, "holds no text"))?;
                Ok(Column::Texts(texts.iter().flatten().map(str::to_owned).collect()))
            }
            ArrowType::List(_) | ArrowType::LargeList(_) | ArrowType::FixedSizeList(..) => self.lists(array),
            _ => Ok(Column::Numbers(self.numbers(array)?)),
        }
    }

    fn cast(&self, array: &ArrayRef, to: &ArrowType) -> Result<ArrayRef, DataError> {
        let held = array.data_type();
        cast(array, to)
            .map_err(|_| self.refuse(0, &format!("holds {held}, expected numbers, text or lists of numbers")))
    }

    fn numbers(&self, array: &ArrayRef) -> Result<Vec<f64>, DataError> {
        let cast = self.cast(array, &ArrowType::Float64)?;
        let values = cast.as_primitive_opt::<Float64Type>().ok_or_else(|| self.refuse(0, "holds no numbers"))?;
        let number = |(row, value): (usize, Option<f64>)| {
            value.filter(|value| value.is_finite()).ok_or_else(|| self.refuse(row, "holds no finite number"))
        };
        values.iter().enumerate().map(number).collect()
    }

    fn lists(&self, array: &ArrayRef) -> Result<Column, DataError> {
        let (mut width, mut values) = (None, Vec::new());
        let element = match array.data_type() {
            ArrowType::List(item) | ArrowType::LargeList(item) | ArrowType::FixedSizeList(item, _) => item.clone(),
            _ => return Err(self.refuse(0, "holds no lists")),
        };
        let lists = self.cast(array, &ArrowType::LargeList(element))?;
        let lists = lists.as_list_opt::<i64>().ok_or_else(|| self.refuse(0, "holds no lists"))?;
        for (row, list) in lists.iter().enumerate() {
            let list = list.ok_or_else(|| self.refuse(row, "holds nothing, expected a list"))?;
            let numbers = self.numbers(&list).map_err(|_| self.refuse(row, "holds a list of no finite numbers"))?;
            if *width.get_or_insert(numbers.len()) != numbers.len() {
                let had = width.unwrap_or_default();
                return Err(self.refuse(row, &format!("holds a list of {}, the first has {had}", numbers.len())));
            }
            values.extend(numbers.into_iter().map(|value| value as f32));
        }
        Ok(Column::Lists { width: width.unwrap_or(0), values })
    }
}

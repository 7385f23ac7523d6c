//! Tables as text: CSV, and TSV as data sets have it, where a quotation mark is a character like any other.

use std::path::Path;

use super::{Column, Table, TableOptions, no_rows};
use crate::data::{DataError, record};

/// Rows that are looked at to tell numbers from text.
const LOOKED_AT: usize = 100;

/// What stands between two cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Separator {
    Comma,
    Tab,
}

type Rows = Vec<(u64, Vec<String>)>;

/// Reads a file of text.
pub(crate) fn read_text(path: &Path, separator: Separator, options: &TableOptions) -> Result<Table, DataError> {
    let mut rows = rows(path, separator)?;
    let first = rows.first().ok_or_else(|| no_rows(path))?;
    let width = first.1.len();
    let has_header = options.header.unwrap_or_else(|| !first.1.iter().any(|cell| is_number(cell)));
    let names = if has_header {
        rows.remove(0).1.into_iter().map(|name| name.trim().to_owned()).collect()
    } else {
        (1..=width).map(|column| format!("column{column}")).collect::<Vec<_>>()
    };
    if rows.is_empty() {
        return Err(no_rows(path));
    }
    if let Some(unknown) = options.texts.iter().find(|text| !names.contains(text)) {
        let reason = format!("has no column `{unknown}`; it has `{}`", names.join("`, `"));
        return Err(DataError::malformed(path, reason));
    }
    let lines = rows.iter().map(|(line, _)| *line).collect();
    let columns = names.iter().enumerate().map(|(index, name)| {
        let text = options.texts.contains(name);
        column(path, &rows, index, name, text)
    });
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    Ok(Table { path: path.to_owned(), names, columns, lines })
}

fn is_number(cell: &str) -> bool {
    cell.trim().parse::<f64>().is_ok_and(f64::is_finite)
}

/// Every row with its line; all have as many cells as the first.
fn rows(path: &Path, separator: Separator) -> Result<Rows, DataError> {
    let mut builder = csv::ReaderBuilder::new();
    builder.has_headers(false).flexible(true);
    match separator {
        Separator::Comma => builder.delimiter(b','),
        Separator::Tab => builder.delimiter(b'\t').quoting(false),
    };
    let limited = std::io::Read::take(record::reader(path)?, record::BYTES_MAX);
    let mut reader = builder.from_reader(limited);
    let mut record = csv::StringRecord::new();
    let mut rows = Rows::new();
    loop {
        let before = reader.position().line();
        match reader.read_record(&mut record) {
            Ok(false) => return Ok(rows),
            Ok(true) => {}
            Err(error) => {
                let line = error.position().map_or(before, csv::Position::line);
                return Err(match error.into_kind() {
                    csv::ErrorKind::Io(source) => DataError::io("read", path)(source),
                    csv::ErrorKind::Utf8 { .. } => DataError::row(path, line, "is no UTF-8 text"),
                    other => DataError::row(path, line, format!("cannot be read: {other:?}")),
                });
            }
        }
        let line = record.position().map_or(before, csv::Position::line);
        let width = rows.first().map_or(record.len(), |(_, first)| first.len());
        if record.len() != width {
            let reason = format!("has {} cells, the first line has {width}", record.len());
            return Err(DataError::row(path, line, reason));
        }
        rows.push((line, record.iter().map(str::to_owned).collect()));
    }
}

/// Numbers where most of the first cells are: then one that is none is a mistake of its row.
fn column(path: &Path, rows: &Rows, index: usize, name: &str, text: bool) -> Result<Column, DataError> {
    let cell = |row: &'_ (u64, Vec<String>)| row.1.get(index).cloned().unwrap_or_default();
    let looked_at = rows.len().min(LOOKED_AT);
    let numbers = rows.iter().take(LOOKED_AT).filter(|row| is_number(&cell(row))).count();
    if text || numbers * 2 <= looked_at {
        return Ok(Column::Texts(rows.iter().map(cell).collect()));
    }
    let number = |row: &(u64, Vec<String>)| {
        let cell = cell(row);
        let value = cell.trim().parse::<f64>().ok().filter(|value| value.is_finite());
        value.ok_or_else(|| DataError::row(path, row.0, format!("column `{name}` holds `{cell}`, expected a number")))
    };
    Ok(Column::Numbers(rows.iter().map(number).collect::<Result<_, _>>()?))
}

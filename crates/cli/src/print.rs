//! What commands print: JSON for programs, tables for people.

use std::{
    borrow::Cow,
    io::{self, IsTerminal as _, Write as _},
};

use anyhow::Context as _;
use comfy_table::{Cell, CellAlignment, ColumnConstraint, ContentArrangement, LineStyle, Table, presets};
use serde::Serialize;

use crate::failure::Failure;

/// Prints `value` as JSON, indented on a terminal and on one line elsewhere.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text =
        if io::stdout().is_terminal() { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    line(&text?)
}

/// Prints a line or more; a reader that has gone away (`| head`) is no error.
pub fn line(text: &str) -> Result<(), Failure> {
    match writeln!(io::stdout().lock(), "{}", harmless(text)) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other.context("cannot write to standard output")?),
    }
}

/// Prints to standard error, where it can.
pub fn to_stderr(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", harmless(text));
}

/// [`to_stderr`] with a format, as `eprintln` has one; that ends the program where standard error is gone.
macro_rules! note {
    ($($argument:tt)*) => { $crate::print::to_stderr(&format!($($argument)*)) };
}
pub(crate) use note;

/// `text` with what would steer a terminal, or turn the order of what follows, written as JSON writes it. Names come from files.
pub fn harmless(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c != '\n' && steers(c))
}

fn steers(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escaped(text: &str, which: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&which) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| if which(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    Cow::Owned(text.chars().map(shown).collect())
}

/// Columns where no terminal says how many it has.
const COLUMNS: u16 = 100;
/// Longer cells are cut; `--json` has all.
const CELL_CHARS_MAX: usize = 400;
/// Columns with nothing longer, names and figures, are not broken: the table is wider instead.
const WHOLE_CHARS_MAX: u16 = 32;

/// Prints a table with `header`, as wide as the terminal or `COLUMNS` where its texts can be broken; every column but the first `text_columns` is
/// aligned to the right.
pub fn table(header: &[&str], rows: Vec<Vec<String>>, text_columns: usize) -> Result<(), Failure> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    let told = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).filter(|columns| *columns > 0);
    let unknown = || (!io::stdout().is_terminal()).then_some(COLUMNS);
    if let Some(columns) = told.or_else(unknown) {
        table.set_width(columns);
    }
    table.set_header(header.iter().map(|name| Cell::new(name).add_attribute(comfy_table::Attribute::Bold)));
    table.add_rows(rows.iter().map(|row| row.iter().map(|text| cell(text)).collect::<Vec<_>>()));
    let widths = table.column_max_content_widths();
    for (column, _) in table.column_iter_mut().zip(&widths).filter(|(_, width)| **width <= WHOLE_CHARS_MAX) {
        column.set_constraint(ColumnConstraint::ContentWidth);
    }
    if widths.iter().all(|width| *width <= WHOLE_CHARS_MAX) {
        // No row takes two lines.
        table.load_style(presets::UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    }
    for column in table.column_iter_mut().skip(text_columns) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    match writeln!(io::stdout().lock(), "{table}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other.context("cannot write to standard output")?),
    }
}

fn cell(text: &str) -> String {
    let text = escaped(text, steers);
    match text.char_indices().nth(CELL_CHARS_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.into_owned(),
    }
}

/// Milliseconds with three significant digits or so: `0.012 ms`, `3.45 ms`, `120 ms`.
pub fn ms(value: f64) -> String {
    match value {
        v if v < 1.0 => format!("{v:.3} ms"),
        v if v < 100.0 => format!("{v:.2} ms"),
        v => format!("{v:.0} ms"),
    }
}

/// `1,234.5`: thousands apart, a decimal only for small values.
pub fn rate(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { thousands(value.round() as u64) }
}

/// `1,234,567`.
pub fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `3.7 MB`, powers of ten.
pub fn bytes(value: u64) -> String {
    scaled(value as f64, &["B", "kB", "MB", "GB", "TB"])
}

/// `4.1 G`, powers of ten.
pub fn count(value: u64) -> String {
    scaled(value as f64, &["", "k", "M", "G", "T", "P"])
}

fn scaled(mut value: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let text = if unit == 0 { format!("{value:.0} {}", units[unit]) } else { format!("{value:.1} {}", units[unit]) };
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(harmless("two\nlines, ü"), "two\nlines, ü");
        assert_eq!(harmless("\u{1b}]0;title\u{7}\r\u{9b}2J\u{202e}"), r"\u001b]0;title\u0007\u000d\u009b2J\u202e");
        assert_eq!(cell("a\nb\t"), r"a\u000ab\u0009");
        assert_eq!(cell(&"x".repeat(1_000_000)).chars().count(), CELL_CHARS_MAX + 1);
    }

    #[test]
    fn numbers_read_well() {
        let cases = [
            (thousands(0), "0"),
            (thousands(999), "999"),
            (thousands(1234567), "1,234,567"),
            (bytes(999), "999 B"),
            (bytes(3_660_092), "3.7 MB"),
            (bytes(999_999), "1.0 MB"),
            (count(25_500_000), "25.5 M"),
            (count(7), "7"),
            (ms(0.0123), "0.012 ms"),
            (ms(12.345), "12.35 ms"),
            (rate(12.34), "12.3"),
            (rate(4321.5), "4,322"),
        ];
        for (got, expected) in cases {
            assert_eq!(got, expected);
        }
    }
}

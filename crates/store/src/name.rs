//! Names that are safe in every folder, object store and registry.

use crate::error::{StoreError, invalid};

/// Longest path within a release, in bytes.
const PATH_BYTES_MAX: usize = 400;
const DEPTH_MAX: usize = 8;

/// Whether a release or variant may be named so: 1 to 100 of `a-z`, `0-9`, `-`, `_` and `.`, beginning with a letter or digit.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), StoreError> {
    let first = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let rest = |c: char| first(c) || matches!(c, '-' | '_' | '.');
    if (1..=100).contains(&name.len()) && name.starts_with(first) && name.chars().all(rest) {
        return Ok(());
    }
    let shown = name.escape_debug();
    Err(invalid(format!(
        "`{shown}` cannot name a {what}; expected 1 to 100 of a-z, 0-9, `-`, `_` and `.`, beginning with a letter or digit"
    )))
}

/// Whether a file of a release may lie there: relative, without `.` and `..`, of letters, digits and `._-+=@,`.
pub(crate) fn check_path(path: &str) -> Result<(), StoreError> {
    let taken = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '=' | '@' | ',');
    let segment = |segment: &str| !segment.is_empty() && !segment.starts_with(['.', '-']) && segment.chars().all(taken);
    if path.len() <= PATH_BYTES_MAX && path.split('/').count() <= DEPTH_MAX && path.split('/').all(segment) {
        return Ok(());
    }
    Err(invalid(format!(
        "`{}` cannot be a file of a release; expected a relative path of letters, digits and `._-+=@,` whose parts begin with neither `.` nor `-`",
        path.escape_debug()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside_and_are_plain() {
        for good in ["a", "variants/fp32/model.onnx", "a/b/c/d/e/f/g/h", "W+=@,_-.1"] {
            assert!(check_path(good).is_ok(), "{good}");
        }
        let long = "a".repeat(PATH_BYTES_MAX + 1);
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            "..",
            "a/../b",
            ".",
            "a/./b",
            ".git/x",
            "-rf",
            "a\\b",
            "a\0b",
            "a b",
            "é",
            "a:b",
            &long,
            "a/b/c/d/e/f/g/h/i",
        ] {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
    }
}

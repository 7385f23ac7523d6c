//! Whether a part of others is on this machine.

use std::path::PathBuf;

/// The path that a variable names, or none where the test is to be skipped. `EDGEWARD_ALL_PARTS` makes its absence a failure.
pub fn part(variable: &str, what: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable).map(Into::into);
    if found.is_none() {
        assert!(std::env::var_os("EDGEWARD_ALL_PARTS").is_none(), "{what} is missing: set {variable}");
        println!("skipped: {variable} is not set, it names {what}");
    }
    found
}

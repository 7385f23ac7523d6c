//! What rustc and clippy do not check: every module says what it is for, no file names a machine, examples are tests.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::bail;

/// Fails with every file that breaks a rule.
pub fn check(root: &Path) -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for file in sources(root)? {
        let text = fs::read_to_string(&file)?;
        let shown = file.strip_prefix(root).unwrap_or(&file).display();
        wrong.extend(broken(&text).into_iter().map(|rule| format!("`{shown}`: {rule}")));
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(())
}

fn broken(text: &str) -> Vec<&'static str> {
    let mut rules = Vec::new();
    let first = text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!"));
    if !first.is_some_and(|line| line.starts_with("//!")) {
        rules.push("opens without `//!`: say what the module is for and what it leaves to others");
    }
    // Put together so that this file does not break its own rule.
    if ["/work", "/root", "/home"].iter().any(|folder| text.contains(&format!("\"{folder}/"))) {
        rules.push("names a folder of one machine");
    }
    if has_example(text) {
        rules.push("has an example in a comment, which no check runs: make it a test, or say ```text");
    }
    rules
}

/// Whether a comment of the documentation holds code that `cargo test --doc` would run. Built for that alone, the workspace takes minutes.
fn has_example(text: &str) -> bool {
    let comments = text.lines().filter_map(|line| line.trim().strip_prefix("///").or(line.trim().strip_prefix("//!")));
    let fences = comments.filter_map(|comment| comment.trim().strip_prefix("```"));
    fences.step_by(2).any(|language| matches!(language, "" | "rust"))
}

/// Rust files of the crates and of this one, without generated and fuzz code.
fn sources(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![root.join("xtask/src")];
    for entry in fs::read_dir(root.join("crates"))? {
        let path = entry?.path();
        folders.extend(["src", "tests", "examples", "benches"].map(|inner| path.join(inner)));
    }
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_must_open_with_its_purpose() {
        assert!(broken("//! Reads.\n").is_empty());
        assert!(broken("#![expect(dead_code)]\n//! Reads.\n").is_empty());
        assert_eq!(broken("use std::fs;\n//! Late.\n").len(), 1);
        assert_eq!(broken("").len(), 1);
    }

    #[test]
    fn examples_are_tests() {
        let with =
            |language: &str| broken(&format!("//! Reads.\n/// ```{language}\n/// a\n/// ```\nfn a() {{}}")).len();
        assert_eq!((with(""), with("rust"), with("text")), (1, 1, 0));
    }

    #[test]
    fn a_machine_is_not_named() {
        assert_eq!(broken(&format!("//! Reads.\nconst X: &str = \"{}/x\";", "/home")).len(), 1);
    }
}

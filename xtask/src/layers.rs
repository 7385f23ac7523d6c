//! Imports between the workspace's crates point only downwards.

use std::{collections::BTreeSet, path::Path, process::Command};

use anyhow::{Context as _, bail};

use crate::steps;

/// The rooms from the top to the bottom: a crate may import only from those that stand after it.
const ORDER: &[&str] = &[
    "edgeward",
    "edgeward-console",
    "edgeward-operator",
    "edgeward-edge",
    "edgeward-federate",
    "edgeward-serve",
    "edgeward-store",
    "edgeward-trust",
    "edgeward-scale",
    "edgeward-place",
    "edgeward-observe",
    "edgeward-compress",
    "edgeward-train",
    "edgeward-engine",
    "edgeward-graph",
];

/// Reads `cargo metadata` and fails with every import that points upwards.
pub fn check(root: &Path) -> anyhow::Result<()> {
    let text = steps::output(Command::new("cargo").current_dir(root).args([
        "metadata",
        "--format-version=1",
        "--no-deps",
        "--offline",
    ]))?;
    let wrong = violations(&arrows(&text)?);
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(())
}

/// Every (importer, imported) pair of workspace crates, development dependencies included.
fn arrows(metadata: &str) -> anyhow::Result<BTreeSet<(String, String)>> {
    #[derive(serde::Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(serde::Deserialize)]
    struct Package {
        name: String,
        dependencies: Vec<Dependency>,
    }
    #[derive(serde::Deserialize)]
    struct Dependency {
        name: String,
        path: Option<String>,
    }
    let metadata: Metadata = serde_json::from_str(metadata).context("`cargo metadata` printed something else")?;
    let pairs = metadata.packages.into_iter().flat_map(|package| {
        let inside = package.dependencies.into_iter().filter(|d| d.path.is_some());
        inside.map(move |d| (package.name.clone(), d.name)).collect::<Vec<_>>()
    });
    Ok(pairs.collect())
}

fn violations(arrows: &BTreeSet<(String, String)>) -> Vec<String> {
    let level = |name: &str| ORDER.iter().position(|room| *room == name);
    let mut wrong = Vec::new();
    for (from, to) in arrows.iter().filter(|(from, _)| from != "xtask") {
        match (level(from), level(to)) {
            (Some(upper), Some(lower)) if upper < lower => {}
            (Some(_), Some(_)) => wrong.push(format!("`{from}` imports `{to}`: an import may only point downwards")),
            _ => wrong.push(format!("`{from}` imports `{to}`: one of them has no place in xtask/src/layers.rs")),
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(from: &str, to: &str) -> usize {
        violations(&BTreeSet::from([(from.to_owned(), to.to_owned())])).len()
    }

    #[test]
    fn only_downward_imports_pass() {
        assert_eq!(check("edgeward", "edgeward-serve"), 0);
        assert_eq!(check("edgeward-serve", "edgeward-graph"), 0);
        assert_eq!(check("edgeward-graph", "edgeward-engine"), 1);
        assert_eq!(check("edgeward-serve", "edgeward-serve"), 1);
        assert_eq!(check("edgeward-common", "edgeward-graph"), 1);
    }

    #[test]
    fn arrows_are_read_from_metadata() {
        let text = r#"{"packages":[{"name":"edgeward-engine","dependencies":[
            {"name":"edgeward-graph","path":"/x"},{"name":"bytes","path":null}]}]}"#;
        let found = arrows(text).unwrap();
        assert_eq!(found, BTreeSet::from([("edgeward-engine".to_owned(), "edgeward-graph".to_owned())]));
    }
}

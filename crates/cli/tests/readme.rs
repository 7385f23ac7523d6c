//! What README.md and docs/command-line.md show is run as it stands there.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use edgeward_graph::DataType;
use serde_json::Value;

#[path = "support/document.rs"]
mod document;
mod support;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap()
}

/// What keeps a command short in a test, without changing what it does.
fn shortened(words: &[&str]) -> &'static [&'static str] {
    match words.first() {
        Some(&"bench") => &["--seconds", "0.01"],
        Some(&"tune") => &["--slice-seconds", "0.001"],
        Some(&"demo") => &["--exit", "--offline", "--requests", "20"],
        Some(&"serve") => &support::FREE_PORTS,
        _ => &[],
    }
}

/// The reader's folder: `model.onnx`, `flowers.csv`, and a server once `serve` was typed.
struct Reader {
    folder: tempfile::TempDir,
    server: Option<Child>,
}

impl Reader {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        support::identity(DataType::Float32).write(folder.path().join("model.onnx")).unwrap();
        let rows = (0..90).map(|i| format!("{}.5,{},1,0.25,kind{}\n", i % 3, 2 * (i % 3), i % 3));
        let flowers = std::iter::once("a,b,c,d,kind\n".to_owned()).chain(rows).collect::<String>();
        fs::write(folder.path().join("flowers.csv"), flowers).unwrap();
        Self { folder, server: None }
    }

    fn edgeward(&mut self, words: &[&str]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgeward"));
        command.args(words).args(shortened(words)).current_dir(self.folder.path()).stdin(Stdio::null());
        if words.first() == Some(&"serve") {
            self.end();
            let ready = self.folder.path().join("ready.json");
            let _ = fs::remove_file(&ready);
            if !words.contains(&"--ready-file") {
                command.arg("--ready-file").arg(ready);
            }
            self.server = Some(command.stderr(Stdio::null()).spawn().unwrap());
            return;
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!output.stdout.is_empty(), "{words:?} prints nothing");
    }

    /// The address in the file that `--ready-file` names.
    fn address(&mut self) -> String {
        let server = self.server.as_mut().expect("`curl` stands after `edgeward serve`");
        let ready = self.folder.path().join("ready.json");
        while !ready.exists() {
            assert!(server.try_wait().unwrap().is_none(), "the server ended before it was ready");
            std::thread::yield_now();
        }
        let addresses: Value = serde_json::from_slice(&fs::read(ready).unwrap()).unwrap();
        addresses["http"].as_str().unwrap().to_owned()
    }

    fn curl(&mut self, line: &str) {
        let line = line.replace("localhost:8000", &self.address());
        let output = Command::new("sh").args(["-c", &line]).current_dir(self.folder.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{line}: {error}: {text}"));
        if line.contains("https://") && !line.contains("--cert ") {
            assert_eq!(answer["error"], "not authenticated", "{line}");
        } else {
            assert_eq!(answer["name"], "model", "{line}: {answer}");
        }
    }

    fn end(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.end();
    }
}

#[test]
fn the_readme_is_true() {
    let mut reader = Reader::new();
    let mut ran = Vec::new();
    for line in document::commands(&read("README.md")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["edgeward", arguments @ ..] => reader.edgeward(arguments),
            ["cargo", "run", "--release", "--", arguments @ ..] => reader.edgeward(arguments),
            // This very test runs within it.
            ["cargo", "xtask", "test"] => {}
            ["curl", ..] => reader.curl(&line),
            _ => panic!("README.md shows `{line}`, which this test does not know how to run"),
        }
        ran.push(line);
    }
    for part in ["-- demo", "xtask test", "edgeward tune", "edgeward serve", "curl", "edgeward train"] {
        assert!(ran.iter().any(|line| line.contains(part)), "README.md does not show `{part}`: {ran:?}");
    }
}

#[test]
fn the_configuration_that_is_shown_is_taken() {
    for path in ["docs/command-line.md", "docs/zero-trust.md"] {
        let document = read(path);
        let blocks = document::blocks(&document);
        let shown: Vec<_> = blocks.iter().filter(|block| block.language.starts_with("toml")).collect();
        assert_eq!(shown.len(), 1, "{path}");
        let mut reader = Reader::new();
        fs::write(reader.folder.path().join("edgeward.toml"), &shown[0].text).unwrap();
        reader.edgeward(&["inspect", "model.onnx", "--no-engines"]);
    }
}

/// Every command of the binary is described, and nothing is that the binary lacks.
#[test]
fn the_commands_that_are_described_are_those_there_are() {
    let help = Command::new(env!("CARGO_BIN_EXE_edgeward")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let listed = help.split_once("Commands:").unwrap().1.split_once("Options:").unwrap().0;
    let there: Vec<&str> =
        listed.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").collect();
    let document = read("docs/command-line.md");
    let described: Vec<&str> =
        document.lines().filter_map(|line| line.strip_prefix("**`")?.split(['`', ' ']).next()).collect();
    let sorted = |mut names: Vec<&str>| {
        names.sort_unstable();
        names.join(" ")
    };
    assert_eq!(sorted(described), sorted(there));
}

//! Models as others see them after this crate read and wrote them: `onnx.checker` passes and ONNX Runtime gives the same
//! bits, over the node tests of the `onnx` package and real models; plainly, with external data, and folded. And both
//! check alike: where not, `outside/differences.txt` says why.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::LazyLock,
};

use edgeward_graph::{FoldLimits, Limits, Model, OPSETS, check, fold_constants};
use serde::Deserialize;
use tempfile::TempDir;

#[derive(Deserialize)]
struct Report {
    compared: Vec<String>,
    differ: Vec<String>,
    unable: BTreeMap<String, String>,
}

/// A script run by Python with `onnx` and `onnxruntime`; none where the test environment is not set up.
fn python(script: &str) -> Option<Command> {
    let Some(python) = env::var_os("EDGEWARD_TEST_PYTHON") else {
        println!("skipped: EDGEWARD_TEST_PYTHON is not set (`cargo xtask test` sets it)");
        return None;
    };
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/outside").join(script));
    Some(command)
}

/// Folded, these do not load: they give `Range` lists where ONNX wants scalars, in an `If` whose condition ONNX Runtime
/// does not know to be constant until `Size` is folded. Only then does it look.
const BROKEN: [&str; 2] = ["test_affine_grid_2d_align_corners_expanded.onnx", "test_affine_grid_2d_expanded.onnx"];

/// The node tests as files, written once; none without Python.
fn node_tests() -> Option<Vec<PathBuf>> {
    static FOLDER: LazyLock<Option<TempDir>> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        assert!(python("outside.py")?.arg("models").arg(folder.path()).status().unwrap().success());
        Some(folder)
    });
    let files = onnx_files(FOLDER.as_ref()?.path());
    assert!(files.len() > 1500, "{} node tests", files.len());
    Some(files)
}

fn onnx_files(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<PathBuf> = files.filter(|p| p.extension().is_some_and(|e| e == "onnx")).collect();
    files.sort();
    files
}

/// Models of the data folder, and those that `tests/models` made where that was done.
fn real_models() -> Vec<PathBuf> {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/models");
    let data = env::var_os("EDGEWARD_DATA").map(|data| Path::new(&data).join("onnx"));
    data.into_iter().chain([made]).filter(|folder| folder.is_dir()).flat_map(|folder| onnx_files(&folder)).collect()
}

/// Rewrites each model by `rewrite`; none may differ from its original.
fn compare(files: &[PathBuf], rewrite: impl Fn(Model, &Path)) -> Option<Report> {
    let report = outcome(files, rewrite)?;
    assert!(report.differ.is_empty(), "{} differ:\n{}", report.differ.len(), report.differ.join("\n"));
    println!("{} compared, {} cannot run in ONNX Runtime", report.compared.len(), report.unable.len());
    Some(report)
}

/// Rewrites each model by `rewrite` and compares it with its original from the outside.
fn outcome(files: &[PathBuf], rewrite: impl Fn(Model, &Path)) -> Option<Report> {
    let folder = tempfile::tempdir().unwrap();
    let mut pairs = String::new();
    for file in files {
        let model = Model::read(file, &Limits::default()).unwrap();
        if !OPSETS.contains(&model.opset()) {
            continue;
        }
        let written = folder.path().join(file.file_name().unwrap());
        rewrite(model, &written);
        pairs.push_str(&format!("{}\t{}\n", file.display(), written.display()));
    }
    let report = folder.path().join("report.json");
    let mut child = python("outside.py")?.arg("compare").arg(&report).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(pairs.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    Some(serde_json::from_slice(&fs::read(report).unwrap()).unwrap())
}

fn folded(mut model: Model, path: &Path) {
    fold_constants(&mut model, &FoldLimits::default());
    model.write(path).unwrap();
}

#[test]
fn node_tests_survive_a_round_trip() {
    let Some(files) = node_tests() else { return };
    let report = compare(&files, |model, path| model.write(path).unwrap()).unwrap();
    assert!(report.compared.len() > 1000, "{} compared", report.compared.len());
}

#[test]
fn node_tests_survive_folding() {
    let Some(files) = node_tests() else { return };
    let (broken, files): (Vec<_>, Vec<_>) = files.into_iter().partition(|f| BROKEN.iter().any(|b| f.ends_with(b)));
    let report = outcome(&broken, folded).unwrap();
    let reason = |text: &String| text.contains("Input to 'Range' op should be scalars");
    assert!(report.differ.len() == BROKEN.len() && report.differ.iter().all(reason), "{:?}", report.differ);
    let report = compare(&files, folded).unwrap();
    assert!(report.compared.len() > 1000, "{} compared", report.compared.len());
}

#[test]
fn real_models_survive_both() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut script) = python("broken.py") else { return };
    assert!(script.arg(folder.path()).status().unwrap().success());
    let mut files = real_models();
    // A function, a branch and a sparse tensor.
    files.push(folder.path().join("sound.onnx"));
    let ways: [fn(Model, &Path); 3] =
        [|model, path| model.write(path).unwrap(), |model, path| model.write_external(path, 256).unwrap(), folded];
    for way in ways {
        let Some(report) = compare(&files, way) else { return };
        assert!(report.unable.is_empty(), "{:?}", report.unable);
    }
}

#[test]
fn sound_models_are_not_refused() {
    let Some(files) = node_tests() else { return };
    let mut refused = Vec::new();
    for file in files.into_iter().chain(real_models()) {
        let model = Model::read(&file, &Limits::default()).unwrap();
        if OPSETS.contains(&model.opset()) {
            refused.extend(check(&model).err().map(|errors| format!("{}: {errors:?}", file.display())));
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

/// What this crate says of a file; none where it finds nothing.
fn refusal(file: &Path) -> Option<String> {
    let model = match Model::read(file, &Limits::default()) {
        Ok(model) => model,
        Err(error) => return Some(error.to_string()),
    };
    let errors =
        check(&model).err().map(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "));
    errors.or_else(|| Some(model.check_external().err()?.to_string()))
}

#[test]
fn each_broken_rule_is_refused_by_both() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut script) = python("broken.py") else { return };
    assert!(script.arg(folder.path()).status().unwrap().success());
    let verdicts = fs::read(folder.path().join("verdicts.json")).unwrap();
    let verdicts: BTreeMap<String, Option<String>> = serde_json::from_slice(&verdicts).unwrap();
    assert!(verdicts.len() > 70 && verdicts["sound"].is_none(), "{verdicts:?}");
    let list = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/outside/differences.txt")).unwrap();
    let listed = |name: &str| list.lines().any(|line| line.split(':').next() == Some(name));
    let mut wrong = Vec::new();
    for (name, theirs) in &verdicts {
        let ours = refusal(&folder.path().join(format!("{name}.onnx")));
        if (ours.is_some() != theirs.is_some()) != listed(name) {
            wrong.push(format!("{name}: here {ours:?}, onnx {theirs:?}, listed as a difference: {}", listed(name)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

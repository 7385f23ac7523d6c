//! Shape inference against that of the `onnx` package, over its node tests and real models.
//!
//! Where onnx knows a type or a size, so must we. What we do not know yet is in `infer/unknown.txt`, which may only
//! shrink (`EDGEWARD_BLESS=1` writes it anew after a change that is meant); another answer than onnx's is never right.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use edgeward_graph::{
    Dimension, Inferred, Limits, Model, Tensor, annotate, cost, infer,
    proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto},
    tensor_proto,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    file: PathBuf,
    values: BTreeMap<String, (i32, Option<Vec<Option<usize>>>)>,
}

/// Python with `onnx`; none where the test environment is not set up.
fn python() -> Option<PathBuf> {
    let python = env::var_os("EDGEWARD_TEST_PYTHON").map(PathBuf::from);
    if python.is_none() {
        println!("skipped: EDGEWARD_TEST_PYTHON is not set (`cargo xtask test` sets it)");
    }
    python
}

fn real_models() -> Vec<PathBuf> {
    let Some(data) = env::var_os("EDGEWARD_DATA") else { return Vec::new() };
    let files = fs::read_dir(Path::new(&data).join("onnx")).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<PathBuf> = files.filter(|p| p.extension().is_some_and(|e| e == "onnx")).collect();
    files.sort();
    files
}

/// How one value differs: not known here, or known as something else.
fn compare(name: &str, expected: &(i32, Option<Vec<Option<usize>>>), ours: &Inferred) -> (bool, Option<String>) {
    let value = ours.of(name);
    let mut unknown = false;
    match value.dtype {
        Some(dtype) if expected.0 != 0 && dtype.to_onnx() != expected.0 => {
            return (false, Some(format!("`{name}` is type {}, onnx says {}", dtype.to_onnx(), expected.0)));
        }
        None => unknown |= expected.0 != 0,
        _ => {}
    }
    let Some(sizes) = &expected.1 else { return (unknown, None) };
    let Some(dims) = &value.shape else { return (true, None) };
    let differ = |text: &str| (false, Some(format!("`{name}` is {dims:?}, onnx says {sizes:?}{text}")));
    if dims.len() != sizes.len() {
        return differ(", another rank");
    }
    for (dim, size) in dims.iter().zip(sizes) {
        match (dim, size) {
            (Dimension::Fixed(ours), Some(theirs)) if ours != theirs => return differ(""),
            (Dimension::Symbol(_) | Dimension::Unknown, Some(_)) => unknown = true,
            _ => {}
        }
    }
    (unknown, None)
}

#[test]
fn knows_what_onnx_knows() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/infer/expected.py");
    assert!(Command::new(python).arg(script).arg(folder.path()).args(real_models()).status().unwrap().success());
    let all: Vec<Expected> = serde_json::from_slice(&fs::read(folder.path().join("expected.json")).unwrap()).unwrap();
    assert!(all.len() > 1000, "{} models", all.len());
    let (mut unknown, mut wrong) = (BTreeSet::new(), Vec::new());
    for one in &all {
        let case = one.file.file_name().unwrap().to_string_lossy().into_owned();
        let model = Model::read(&one.file, &Limits::default()).unwrap();
        let inferred = match infer(&model, &BTreeMap::new()) {
            Ok(inferred) => inferred,
            Err(e) => {
                wrong.push(format!("{case}: {e}"));
                continue;
            }
        };
        for (name, expected) in &one.values {
            let (missing, differs) = compare(name, expected, &inferred);
            wrong.extend(differs.map(|text| format!("{case}: {text}")));
            if missing {
                unknown.insert(case.clone());
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/infer/unknown.txt");
    if env::var_os("EDGEWARD_BLESS").is_some() {
        fs::write(&list, unknown.iter().map(|case| format!("{case}\n")).collect::<String>()).unwrap();
    }
    let text = fs::read_to_string(&list).unwrap();
    let listed: BTreeSet<String> = text.lines().map(str::to_owned).collect();
    let new: Vec<_> = unknown.difference(&listed).collect();
    // Without the real models their lines are not looked at.
    let looked_at = |case: &&String| case.starts_with("test_") || !real_models().is_empty();
    let gone: Vec<_> = listed.difference(&unknown).filter(looked_at).collect();
    assert!(new.is_empty() && gone.is_empty(), "newly unknown: {new:?}; known now, take it off the list: {gone:?}");
}

#[test]
fn symbols_take_sizes_and_costs_follow() {
    let Some(file) = real_models().into_iter().find(|p| p.ends_with("yolox_nano_416.onnx")) else {
        return println!("skipped: no data folder (EDGEWARD_DATA)");
    };
    let mut model = Model::read(&file, &Limits::default()).unwrap();
    let inferred = infer(&model, &BTreeMap::new()).unwrap();
    let cost = cost(&model, &inferred);
    assert_eq!(cost.unknown, None);
    // YOLOX publishes 1.08 GFLOPs, two per multiply-add.
    assert!((0.5e9..0.6e9).contains(&(cost.total as f64)), "{cost:?}");
    annotate(&mut model).unwrap();
    assert!(model.graph().value_info.len() > 100);
}

/// Contents are followed for one dimension: a row of a matrix is not one of its elements.
#[test]
fn a_row_of_a_matrix_is_not_taken_for_an_element() {
    let node = |op: &str, inputs: &[&str], output: &str| NodeProto {
        op_type: Some(op.to_owned()),
        input: inputs.iter().map(|&name| name.to_owned()).collect(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    };
    let ints = |name: &str, shape: &[usize], values: &[i64]| {
        tensor_proto(name, &Tensor::from_vec(shape, values.to_vec()).unwrap())
    };
    let graph = GraphProto {
        name: Some("g".to_owned()),
        initializer: vec![ints("four", &[4], &[2, 3, 4, 5]), ints("square", &[2], &[2, 2]), ints("one", &[], &[1])],
        node: vec![
            node("Reshape", &["four", "square"], "matrix"),
            node("Gather", &["matrix", "one"], "row"),
            node("ConstantOfShape", &["row"], "y"),
        ],
        ..GraphProto::default()
    };
    let opset_import = vec![OperatorSetIdProto { version: Some(17), ..OperatorSetIdProto::default() }];
    let proto = ModelProto { ir_version: Some(8), opset_import, graph: Some(graph), ..ModelProto::default() };
    let inferred = infer(&Model::from_proto(proto), &BTreeMap::new()).unwrap();
    assert_eq!(inferred.of("row").fixed(), Some(vec![2]));
    assert_eq!(inferred.of("y").shape.map(|dims| dims.len()), Some(2), "two numbers make a shape of rank 2");
}

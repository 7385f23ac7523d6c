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
    proto::{
        AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto,
        TypeProto, ValueInfoProto, attribute_proto::AttributeType, tensor_shape_proto, type_proto,
    },
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

/// Contents are followed in any rank: a row of a matrix is not one of its elements.
#[test]
fn a_row_of_a_matrix_is_not_taken_for_an_element() {
    let node = |op: &str, inputs: &[&str], output: &str| node(op, inputs, &[output], vec![]);
    let ints = |name: &str, shape: &[usize], values: &[i64]| {
        tensor_proto(name, &Tensor::from_vec(shape, values.to_vec()).unwrap())
    };
    let graph = GraphProto {
        initializer: vec![ints("four", &[4], &[2, 3, 4, 5]), ints("square", &[2], &[2, 2]), ints("one", &[], &[1])],
        node: vec![
            node("Reshape", &["four", "square"], "matrix"),
            node("Gather", &["matrix", "one"], "row"),
            node("ConstantOfShape", &["row"], "y"),
        ],
        ..GraphProto::default()
    };
    let inferred = inferred(&model(vec![], graph));
    assert_eq!(inferred.of("row").fixed(), Some(vec![2]));
    assert_eq!(inferred.of("y").shape.map(|dims| dims.len()), Some(2), "two numbers make a shape of rank 2");
}

fn node(op: &str, inputs: &[&str], outputs: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
    let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let (input, output) = (owned(inputs), owned(outputs));
    NodeProto { op_type: Some(op.to_owned()), input, output, attribute, ..NodeProto::default() }
}

fn floats(name: &str, sizes: &[i64]) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension::Value};
    let dim = |&size: &i64| Dimension { value: Some(Value::DimValue(size)), denotation: None };
    let shape = Some(TensorShapeProto { dim: sizes.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: Some(1), shape };
    let kind = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: None };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(kind), ..ValueInfoProto::default() }
}

fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version) }
}

fn function(name: &str, inputs: &[&str], outputs: &[&str], node: Vec<NodeProto>) -> FunctionProto {
    FunctionProto {
        name: Some(name.to_owned()),
        domain: Some("local".to_owned()),
        input: inputs.iter().map(|&name| name.to_owned()).collect(),
        output: outputs.iter().map(|&name| name.to_owned()).collect(),
        opset_import: vec![opset("", 17), opset("local", 1)],
        node,
        ..FunctionProto::default()
    }
}

fn call(name: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto { domain: Some("local".to_owned()), ..node(name, inputs, &[output], attribute) }
}

fn model(functions: Vec<FunctionProto>, graph: GraphProto) -> Model {
    let opset_import = vec![opset("", 17), opset("local", 1)];
    let graph = Some(GraphProto { name: Some("g".to_owned()), ..graph });
    Model::from_proto(ModelProto { ir_version: Some(8), opset_import, functions, graph, ..ModelProto::default() })
}

fn inferred(model: &Model) -> Inferred {
    infer(model, &BTreeMap::new()).unwrap()
}

#[test]
fn functions_are_gone_through_with_the_attributes_of_their_calls() {
    let refers = AttributeProto {
        name: Some("axis".to_owned()),
        ref_attr_name: Some("along".to_owned()),
        r#type: Some(AttributeType::Int as i32),
        ..AttributeProto::default()
    };
    let mut join = function("Join", &["a", "b"], &["c"], vec![node("Concat", &["a", "b"], &["c"], vec![refers])]);
    join.attribute_proto.push(AttributeProto::of_int("along", 0));
    let graph = GraphProto {
        input: vec![floats("x", &[2, 3])],
        node: vec![
            call("Join", &["x", "x"], "wide", vec![AttributeProto::of_int("along", 1)]),
            call("Join", &["x", "x"], "tall", vec![]),
        ],
        output: vec![floats("wide", &[]), floats("tall", &[])],
        ..GraphProto::default()
    };
    let mut model = model(vec![join], graph);
    let found = inferred(&model);
    assert_eq!(found.of("wide").fixed(), Some(vec![2, 6]));
    assert_eq!(found.of("tall").fixed(), Some(vec![4, 3]));
    // So they are within a branch.
    let branch = model.proto().functions[0].clone();
    let then = GraphProto {
        name: Some("then".to_owned()),
        node: branch.node.clone(),
        output: vec![ValueInfoProto { name: Some("c".to_owned()), ..ValueInfoProto::default() }],
        ..GraphProto::default()
    };
    let graph = |name: &str| AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::Graph as i32),
        g: Some(then.clone()),
        ..AttributeProto::default()
    };
    let choose = node("If", &["a"], &["d"], vec![graph("then_branch"), graph("else_branch")]);
    model.proto_mut().functions[0] =
        FunctionProto { node: vec![choose], output: vec!["d".to_owned()], ..branch.clone() };
    assert_eq!(inferred(&model).of("wide").fixed(), Some(vec![2, 6]));
    model.proto_mut().functions[0] = branch;
    // A contradiction within is told with the function's name.
    model.graph_mut().input.push(floats("z", &[2, 3, 4]));
    model.graph_mut().node[1].input[1] = "z".to_owned();
    let error = infer(&model, &BTreeMap::new()).unwrap_err().to_string();
    assert!(error.contains("(Concat) of function `Join`"), "{error}");
}

#[test]
fn functions_that_multiply_end() {
    // Each calls the next one twice: 2^40 nodes.
    let twice = |i: usize| {
        let inner = format!("F{}", i + 1);
        let nodes = vec![call(&inner, &["a"], "b", vec![]), call(&inner, &["b"], "c", vec![])];
        function(&format!("F{i}"), &["a"], &["c"], nodes)
    };
    let mut functions: Vec<_> = (0..40).map(twice).collect();
    functions.push(function("Self", &["a"], &["b"], vec![call("Self", &["a"], "b", vec![])]));
    let graph = GraphProto {
        input: vec![floats("x", &[2])],
        node: vec![
            call("F0", &["x"], "y", vec![]),
            call("F26", &["x"], "z", vec![]),
            call("Self", &["x"], "w", vec![]),
        ],
        ..GraphProto::default()
    };
    let found = inferred(&model(functions, graph));
    assert_eq!([found.of("y").shape, found.of("w").shape], [None, None]);
}

#[test]
fn a_loop_keeps_the_shapes_that_its_turns_keep() {
    let body = GraphProto {
        name: Some("body".to_owned()),
        input: ["turn", "go", "kept", "grown"]
            .map(|name| ValueInfoProto { name: Some(name.to_owned()), ..ValueInfoProto::default() })
            .to_vec(),
        node: vec![
            node("Identity", &["go"], &["on"], vec![]),
            node("Relu", &["kept"], &["kept_on"], vec![]),
            node("Concat", &["grown", "grown"], &["grown_on"], vec![AttributeProto::of_int("axis", 0)]),
            node("Neg", &["kept"], &["each"], vec![]),
        ],
        output: ["on", "kept_on", "grown_on", "each"]
            .map(|name| ValueInfoProto { name: Some(name.to_owned()), ..ValueInfoProto::default() })
            .to_vec(),
        ..GraphProto::default()
    };
    let attribute = AttributeProto {
        name: Some("body".to_owned()),
        r#type: Some(AttributeType::Graph as i32),
        g: Some(body),
        ..AttributeProto::default()
    };
    let graph = GraphProto {
        input: vec![floats("x", &[2, 3])],
        node: vec![node("Loop", &["", "", "x", "x"], &["same", "more", "all"], vec![attribute])],
        ..GraphProto::default()
    };
    let found = inferred(&model(vec![], graph));
    assert_eq!(found.of("same").fixed(), Some(vec![2, 3]));
    assert_eq!(found.of("more").shape, Some(vec![Dimension::Unknown, Dimension::Fixed(3)]));
    assert_eq!(found.of("all").shape, Some(vec![Dimension::Unknown, Dimension::Fixed(2), Dimension::Fixed(3)]));
}

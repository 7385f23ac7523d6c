//! What folding makes of small graphs, and what it leaves.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path};

use edgeward_graph::{
    DataType, FoldLimits, Folded, Limits, Model, Tensor, check, fold_constants,
    proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto, TypeProto,
        ValueInfoProto, attribute_proto::AttributeType, tensor_shape_proto, type_proto,
    },
    tensor_proto,
};

fn node(op: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: Some(op.to_owned()),
        input: inputs.iter().map(|&name| name.to_owned()).collect(),
        output: vec![output.to_owned()],
        attribute,
        ..NodeProto::default()
    }
}

fn value(name: &str, dtype: DataType, sizes: &[i64]) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension::Value};
    let dim = |&size: &i64| Dimension { value: (size >= 0).then_some(Value::DimValue(size)), denotation: None };
    let shape = Some(TensorShapeProto { dim: sizes.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: Some(dtype.to_onnx()), shape };
    let kind = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: None };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(kind), ..ValueInfoProto::default() }
}

fn model(graph: GraphProto) -> Model {
    let opset_import = vec![OperatorSetIdProto { version: Some(17), ..OperatorSetIdProto::default() }];
    let graph = GraphProto { name: Some("g".to_owned()), ..graph };
    Model::from_proto(ModelProto { ir_version: Some(8), opset_import, graph: Some(graph), ..ModelProto::default() })
}

fn fold(model: &mut Model) -> Folded {
    fold_constants(model, &FoldLimits::default())
}

fn ints(values: &[i64]) -> Tensor {
    Tensor::from_vec([values.len()], values.to_vec()).unwrap()
}

/// Folds one node over `inputs`; none where it is left.
fn folded(op: &str, attribute: Vec<AttributeProto>, inputs: &[Tensor]) -> Option<Tensor> {
    let names: Vec<String> = (0..inputs.len()).map(|i| format!("i{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let graph = GraphProto {
        initializer: names.iter().zip(inputs).map(|(name, tensor)| tensor_proto(name, tensor)).collect(),
        node: vec![node(op, &names, "made", attribute), node("Mul", &["x", "made"], "y", vec![])],
        input: vec![value("x", DataType::Float32, &[])],
        output: vec![value("y", DataType::Float32, &[])],
        ..GraphProto::default()
    };
    let mut model = model(graph);
    fold(&mut model);
    let graph = model.graph();
    let made = graph.initializer.iter().find(|t| t.name() == "made").map(|t| model.tensor(t).unwrap());
    assert_eq!(graph.node.len(), if made.is_some() { 1 } else { 2 });
    made
}

#[test]
fn operators_compute_what_onnx_says() {
    let int = AttributeProto::of_int;
    let floats = |values: &[f32]| Tensor::from_vec([values.len()], values.to_vec()).unwrap();
    let matrix = Tensor::from_vec([2, 3], vec![1i64, 2, 3, 4, 5, 6]).unwrap();
    let bools = |values: &[bool]| Tensor::from_bools([values.len()], values.to_vec()).unwrap();
    let table: Vec<(&str, Vec<AttributeProto>, Vec<Tensor>, Tensor)> = vec![
        ("Add", vec![], vec![ints(&[1, 2]), ints(&[3])], ints(&[4, 5])),
        ("Div", vec![], vec![ints(&[7, -7]), ints(&[2])], ints(&[3, -3])),
        ("Mod", vec![], vec![ints(&[7, -7]), ints(&[3])], ints(&[1, 2])),
        ("Mod", vec![int("fmod", 1)], vec![ints(&[7, -7]), ints(&[3])], ints(&[1, -1])),
        ("Max", vec![], vec![ints(&[1, 5]), ints(&[3]), ints(&[4])], ints(&[4, 5])),
        ("Div", vec![], vec![floats(&[1.]), floats(&[3.])], floats(&[1. / 3.])),
        ("Less", vec![], vec![floats(&[1., f32::NAN]), floats(&[2.])], bools(&[true, false])),
        ("Where", vec![], vec![bools(&[true, false]), ints(&[1, 2]), ints(&[9])], ints(&[1, 9])),
        ("Cast", vec![int("to", 7)], vec![floats(&[1.9, -1.9])], ints(&[1, -1])),
        ("Cast", vec![int("to", 3)], vec![ints(&[300, -1])], Tensor::from_vec([2], vec![44i8, -1]).unwrap()),
        ("Round", vec![], vec![floats(&[0.5, 1.5, -2.5])], floats(&[0., 2., -2.])),
        ("Transpose", vec![], vec![matrix.clone()], Tensor::from_vec([3, 2], vec![1i64, 4, 2, 5, 3, 6]).unwrap()),
        (
            "Gather",
            vec![int("axis", 1)],
            vec![matrix.clone(), Tensor::from_vec([], vec![-1i64]).unwrap()],
            ints(&[3, 6]),
        ),
        ("Concat", vec![int("axis", 0)], vec![ints(&[1]), ints(&[2, 3])], ints(&[1, 2, 3])),
        ("Slice", vec![], vec![ints(&[0, 1, 2, 3]), ints(&[-1]), ints(&[-9]), ints(&[0]), ints(&[-2])], ints(&[3, 1])),
        ("Tile", vec![], vec![ints(&[1, 2]), ints(&[2])], ints(&[1, 2, 1, 2])),
        ("Expand", vec![], vec![ints(&[7]), ints(&[3])], ints(&[7, 7, 7])),
        ("ConstantOfShape", vec![], vec![ints(&[2])], floats(&[0., 0.])),
        ("ReduceSum", vec![int("keepdims", 0)], vec![matrix.clone(), ints(&[0])], ints(&[5, 7, 9])),
        ("ReduceProd", vec![int("keepdims", 0)], vec![matrix], Tensor::from_vec([], vec![720i64]).unwrap()),
    ];
    let wrong: Vec<_> = table
        .into_iter()
        .filter_map(|(op, attribute, inputs, expected)| {
            let got = folded(op, attribute, &inputs);
            (got.as_ref() != Some(&expected)).then(|| format!("{op}{inputs:?}: {got:?}, expected {expected:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_engines_may_differ_on_is_left() {
    let int = AttributeProto::of_int;
    let one = |value: f32| Tensor::from_vec([], vec![value]).unwrap();
    let table: [(&str, Vec<AttributeProto>, Vec<Tensor>); 9] = [
        ("Div", vec![], vec![ints(&[1]), ints(&[0])]),
        ("Add", vec![], vec![ints(&[i64::MAX]), ints(&[1])]),
        ("Div", vec![], vec![one(0.), one(0.)]),
        ("Exp", vec![], vec![one(1.)]),
        ("Pow", vec![], vec![one(2.), one(0.5)]),
        ("Cast", vec![int("to", 7)], vec![one(1e20)]),
        ("Cast", vec![int("to", 7)], vec![one(f32::NAN)]),
        ("Gather", vec![], vec![ints(&[1]), ints(&[1])]),
        ("ReduceSum", vec![], vec![Tensor::from_vec([2], vec![1f32, 2.]).unwrap()]),
    ];
    for (op, attribute, inputs) in table {
        assert_eq!(folded(op, attribute, &inputs), None, "{op}{inputs:?}");
    }
}

/// `y` is `x` reshaped to a shape that is computed from `x`'s own.
fn shape_chain(sizes: &[i64]) -> GraphProto {
    GraphProto {
        input: vec![value("x", DataType::Float32, sizes)],
        initializer: vec![tensor_proto("two", &ints(&[2])), tensor_proto("rest", &ints(&[-1]))],
        node: vec![
            node("Shape", &["x"], "all", vec![AttributeProto::of_int("end", 1)]),
            node("Mul", &["all", "two"], "double", vec![]),
            node("Concat", &["double", "rest"], "to", vec![AttributeProto::of_int("axis", 0)]),
            node("Reshape", &["x", "to"], "y", vec![]),
        ],
        output: vec![value("y", DataType::Float32, &[-1, -1])],
        ..GraphProto::default()
    }
}

#[test]
fn a_shape_is_constant_where_no_run_changes_it() {
    let mut fixed = model(shape_chain(&[3, 8]));
    assert_eq!(fold(&mut fixed), Folded { nodes: 3, dropped: 0 });
    assert_eq!(fixed.graph().node.len(), 1);
    assert_eq!(fixed.graph().initializer.iter().map(|t| t.name()).collect::<Vec<_>>(), ["to"]);
    check(&fixed).unwrap();
    let mut open = model(shape_chain(&[-1, 8]));
    assert_eq!(fold(&mut open), Folded::default());
    // What is declared of values within is no proof.
    let mut told = shape_chain(&[-1, 8]);
    told.node.insert(0, node("NonZero", &["x"], "found", vec![]));
    told.node[1].input[0] = "found".to_owned();
    told.value_info.push(value("found", DataType::Int64, &[2, 5]));
    told.node[1].attribute.clear();
    assert_eq!(fold(&mut model(told)).nodes, 0);
}

#[test]
fn a_default_of_an_input_is_no_constant_and_stays() {
    let mut graph = shape_chain(&[3, 8]);
    graph.input.push(value("two", DataType::Int64, &[1]));
    graph.input.push(value("unused", DataType::Int64, &[1]));
    graph.initializer.push(tensor_proto("unused", &ints(&[5])));
    let mut model = model(graph);
    assert_eq!(fold(&mut model).nodes, 1, "only the shape itself");
    assert_eq!(model.inputs().len(), 1);
    check(&model).unwrap();
}

#[test]
fn results_of_old_files_and_outputs_stay_nodes() {
    let mut graph = shape_chain(&[3, 8]);
    graph.output.push(value("double", DataType::Int64, &[1]));
    let mut new = model(graph.clone());
    fold(&mut new);
    let ops = |model: &Model| model.graph().node.iter().map(|n| n.op_type().to_owned()).collect::<Vec<_>>();
    assert_eq!(ops(&new), ["Constant", "Reshape"]);
    // Initialisers of these are inputs' defaults, so constants are nodes.
    graph.initializer.clear();
    let constant =
        |name: &str, value: i64| node("Constant", &[], name, vec![AttributeProto::of_ints("value_ints", [value])]);
    graph.node.splice(0..0, [constant("two", 2), constant("rest", -1)]);
    let mut old = model(graph);
    old.proto_mut().ir_version = Some(3);
    fold(&mut old);
    assert_eq!(ops(&old), ["Constant", "Constant", "Reshape"]);
    assert!(old.graph().initializer.is_empty());
}

#[test]
fn subgraphs_are_folded_and_their_names_are_their_own() {
    let graph_attribute = |name: &str, graph: GraphProto| AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::Graph as i32),
        g: Some(graph),
        ..AttributeProto::default()
    };
    // Both branches call their sum `s`; one adds what is around, the other an unknown value.
    let branch = |other: &str| GraphProto {
        name: Some("branch".to_owned()),
        node: vec![node("Add", &["two", other], "s", vec![]), node("Neg", &["s"], "n", vec![])],
        output: vec![value("n", DataType::Int64, &[1])],
        ..GraphProto::default()
    };
    let graphs = vec![graph_attribute("then_branch", branch("two")), graph_attribute("else_branch", branch("x"))];
    let graph = GraphProto {
        input: vec![value("x", DataType::Int64, &[1]), value("c", DataType::Bool, &[])],
        initializer: vec![tensor_proto("two", &ints(&[2]))],
        node: vec![node("If", &["c"], "y", graphs)],
        output: vec![value("y", DataType::Int64, &[1])],
        ..GraphProto::default()
    };
    let mut model = model(graph);
    assert_eq!(fold(&mut model), Folded { nodes: 2, dropped: 0 });
    let branch = |i: usize| model.graph().node[0].attribute[i].g.as_ref().unwrap().node.len();
    assert_eq!((branch(0), branch(1)), (1, 2));
    check(&model).unwrap();
}

#[test]
fn bounds_hold_and_hostile_sizes_are_left() {
    let big = |count: i64| GraphProto {
        initializer: vec![tensor_proto("count", &ints(&[count])), tensor_proto("none", &ints(&[i64::MAX / 32, 0]))],
        node: vec![node("ConstantOfShape", &["count"], "a", vec![]), node("Add", &["a", "x"], "y", vec![])],
        input: vec![value("x", DataType::Float32, &[1])],
        output: vec![value("y", DataType::Float32, &[-1])],
        ..GraphProto::default()
    };
    let mut graph = big(1000);
    let limits = FoldLimits { value_bytes: 3999, ..FoldLimits::default() };
    assert_eq!(fold_constants(&mut model(graph.clone()), &limits).nodes, 0);
    assert_eq!(fold(&mut model(graph.clone())).nodes, 1);
    let limits = FoldLimits { total_bytes: 3999, ..FoldLimits::default() };
    assert_eq!(fold_constants(&mut model(graph.clone()), &limits).nodes, 0);
    assert_eq!(fold(&mut model(big(i64::MAX))).nodes, 0);
    // Empty, whatever the other size; nothing may be made for it.
    graph.node[0].input[0] = "none".to_owned();
    let more = ["Transpose", "Neg", "Identity"].map(|op| node(op, &["a"], op, vec![]));
    graph.node.extend(more);
    graph.node.push(node("Concat", &["a", "Neg"], "both", vec![AttributeProto::of_int("axis", 1)]));
    graph.output.push(value("both", DataType::Float32, &[-1, -1]));
    let mut model = model(graph);
    assert!(fold(&mut model).nodes >= 5);
}

/// Found by the fuzz target: the result became the default of the input, which callers then need not give.
#[test]
fn a_result_with_the_name_of_an_input_is_left() {
    let mut graph = shape_chain(&[3, 8]);
    graph.node.insert(0, node("Add", &["two", "two"], "x", vec![]));
    let mut model = model(graph);
    let inputs = model.inputs();
    fold(&mut model);
    assert_eq!(model.inputs(), inputs);
    assert!(check(&model).is_err());
}

#[test]
fn external_tensors_are_folded_where_they_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    model(shape_chain(&[3, 8])).write_external(&path, 1).unwrap();
    let folds = |path: &Path| fold(&mut Model::read(path, &Limits::default()).unwrap()).nodes;
    assert_eq!(folds(&path), 3);
    fs::remove_file(folder.path().join("m.onnx.data")).unwrap();
    assert_eq!(folds(&path), 1, "the shape itself is known without a tensor");
}

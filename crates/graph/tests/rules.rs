//! What `check` finds, and what the rewriting helpers keep true.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use edgeward_graph::{
    ErrorKind, Limits, Links, Model, Tensor, check,
    proto::{
        AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TypeProto,
        ValueInfoProto, attribute_proto::AttributeType, type_proto,
    },
    tensor_proto,
};

fn node(op: &str, name: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let owned = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
    NodeProto {
        op_type: Some(op.to_owned()),
        name: Some(name.to_owned()),
        input: owned(inputs),
        output: owned(outputs),
        ..NodeProto::default()
    }
}

fn value(name: &str) -> ValueInfoProto {
    let tensor = type_proto::Tensor { elem_type: Some(1), shape: None };
    let kind = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: None };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(kind), ..ValueInfoProto::default() }
}

fn graph(inputs: &[&str], outputs: &[&str], nodes: Vec<NodeProto>) -> GraphProto {
    GraphProto {
        name: Some("g".to_owned()),
        input: inputs.iter().map(|n| value(n)).collect(),
        output: outputs.iter().map(|n| value(n)).collect(),
        node: nodes,
        ..GraphProto::default()
    }
}

fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version) }
}

fn model(graph: GraphProto) -> ModelProto {
    ModelProto { ir_version: Some(8), opset_import: vec![opset("", 17)], graph: Some(graph), ..ModelProto::default() }
}

fn with_graph(mut node: NodeProto, attribute: &str, graph: GraphProto) -> NodeProto {
    node.attribute.push(AttributeProto {
        name: Some(attribute.to_owned()),
        r#type: Some(AttributeType::Graph as i32),
        g: Some(graph),
        ..AttributeProto::default()
    });
    node
}

fn relu_chain() -> GraphProto {
    let nodes = vec![node("Relu", "a", &["x"], &["h"]), node("Abs", "b", &["h"], &["y"])];
    graph(&["x"], &["y"], nodes)
}

#[test]
fn sound_models_pass() {
    check(&Model::from_proto(model(relu_chain()))).unwrap();
    // As converters of scikit-learn write it.
    let mut again = model(relu_chain());
    again.opset_import.push(opset("ai.onnx", 17));
    check(&Model::from_proto(again)).unwrap();
    // A subgraph sees what is around it.
    let branch = graph(&[], &["z"], vec![node("Neg", "", &["h"], &["z"])]);
    let other = graph(&[], &["z2"], vec![node("Abs", "", &["h"], &["z2"])]);
    let choose = with_graph(with_graph(node("If", "if", &["c"], &["y"]), "then_branch", branch), "else_branch", other);
    let main = graph(&["x", "c"], &["y"], vec![node("Relu", "a", &["x"], &["h"]), choose]);
    check(&Model::from_proto(model(main))).unwrap();
}

#[test]
fn each_broken_rule_is_named() {
    type Case = (&'static str, fn(&mut ModelProto), &'static str);
    let table: [Case; 19] = [
        ("ir version", |m| m.ir_version = None, "ir_version"),
        ("ir version far", |m| m.ir_version = Some(99), "99"),
        ("no opset", |m| m.opset_import.clear(), "imports no operator set"),
        ("old opset", |m| m.opset_import[0].version = Some(6), "operator set 6"),
        ("new opset", |m| m.opset_import[0].version = Some(24), "operator set 24"),
        ("opset in two versions", |m| m.opset_import.push(opset("ai.onnx", 16)), "`ai.onnx` in two versions"),
        ("no graph", |m| m.graph = None, "no graph"),
        ("no name", |m| g(m).name = None, "has no name"),
        ("undefined", |m| g(m).node[0].input[0] = "q".to_owned(), "node `a` (Relu): input `q`"),
        ("order", |m| g(m).node.swap(0, 1), "node `b` (Abs): input `h`"),
        ("twice", |m| g(m).node[1].output[0] = "h".to_owned(), "node `b` (Abs): `h` is defined twice"),
        ("no output", |m| g(m).output[0].name = Some("q".to_owned()), "output `q`"),
        ("no operator", |m| g(m).node[0].op_type = None, "node `a` ()"),
        ("domain", |m| g(m).node[0].domain = Some("my.ops".to_owned()), "`my.ops` is not imported"),
        ("initialiser", |m| g(m).initializer.push(short()), "tensor `w`"),
        ("initialiser twice", |m| g(m).initializer = vec![whole(), whole()], "initialiser `w`"),
        ("attribute type", |m| g(m).node[0].attribute.push(mistyped()), "node `a` (Relu): attribute `k`"),
        ("reference", |m| g(m).node[0].attribute.push(reference()), "outside a function"),
        ("recursion", |m| m.functions = vec![calls("f", "g"), calls("g", "f")], "calls itself"),
    ];
    let mut failed = Vec::new();
    for (case, damage, part) in table {
        let mut proto = model(relu_chain());
        damage(&mut proto);
        let errors = check(&Model::from_proto(proto)).err().unwrap_or_default();
        if !errors.iter().any(|e| e.to_string().contains(part)) {
            failed.push(format!("{case}: expected `{part}` in {errors:?}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

fn g(model: &mut ModelProto) -> &mut GraphProto {
    model.graph.as_mut().unwrap()
}

fn whole() -> TensorProto {
    tensor_proto("w", &Tensor::from_vec([2], vec![1f32, 2.]).unwrap())
}

fn short() -> TensorProto {
    TensorProto { dims: vec![3], ..whole() }
}

fn mistyped() -> AttributeProto {
    AttributeProto { r#type: Some(AttributeType::Float as i32), ..AttributeProto::of_int("k", 1) }
}

fn reference() -> AttributeProto {
    AttributeProto { ref_attr_name: Some("k".to_owned()), ..AttributeProto::of_int("k", 1) }
}

fn calls(name: &str, callee: &str) -> FunctionProto {
    FunctionProto {
        name: Some(name.to_owned()),
        domain: Some("local".to_owned()),
        input: vec!["x".to_owned()],
        output: vec!["y".to_owned()],
        opset_import: vec![opset("local", 1)],
        node: vec![NodeProto { domain: Some("local".to_owned()), ..node(callee, "", &["x"], &["y"]) }],
        ..FunctionProto::default()
    }
}

#[test]
fn unsupported_versions_are_their_own_kind() {
    let mut proto = model(relu_chain());
    proto.opset_import[0].version = Some(24);
    let kinds: Vec<_> = check(&Model::from_proto(proto)).unwrap_err().iter().map(|e| e.kind()).collect();
    assert_eq!(kinds, [ErrorKind::Unsupported]);
}

#[test]
fn sorting_is_stable_and_sees_subgraphs() {
    let branch = || graph(&[], &["z"], vec![node("Neg", "", &["late"], &["z"])]);
    let user = with_graph(node("If", "user", &["c"], &["y"]), "then_branch", branch());
    let nodes = vec![
        node("Abs", "free", &["x"], &["unused"]),
        user,
        node("Abs", "second", &["early"], &["late"]),
        node("Relu", "first", &["x"], &["early"]),
    ];
    let mut g = graph(&["x", "c"], &["y"], nodes);
    g.sort_nodes().unwrap();
    let names: Vec<_> = g.node.iter().map(|n| n.name().to_owned()).collect();
    assert_eq!(names, ["free", "first", "second", "user"]);
    g.node[1].input[0] = "y".to_owned();
    let error = g.sort_nodes().unwrap_err().to_string();
    assert!(error.contains("cycle") && error.contains('`'), "{error}");
}

#[test]
fn removing_rewires_both_ways() {
    // In the middle: users take the input instead.
    let mut g = relu_chain();
    g.remove_node(0).unwrap();
    assert_eq!((g.node[0].name(), g.node[0].input[0].as_str()), ("b", "x"));
    // At the end: the graph's output keeps its name.
    let mut g = relu_chain();
    g.remove_node(1).unwrap();
    assert_eq!((g.node[0].output[0].as_str(), g.output[0].name()), ("y", "y"));
    // The last one: input and output would be one value.
    let error = g.remove_node(0).unwrap_err().to_string();
    assert!(error.contains("node `a` (Relu)"), "{error}");
    assert!(g.remove_node(9).is_err());
}

#[test]
fn inserting_replacing_and_dropping() {
    let mut g = relu_chain();
    assert_eq!(g.insert_node(node("Neg", "c", &["h"], &["n"])), 1);
    assert_eq!(Links::of(&g).consumers("h"), [1, 2]);
    assert_eq!(Links::of(&g).producer("y"), Some(2));
    let pair = vec![node("Exp", "d", &["h"], &["e"]), node("Log", "l", &["e"], &["y"])];
    assert_eq!(g.replace_node(2, pair).unwrap().name(), "b");
    assert!(g.replace_node(9, vec![]).is_none());
    g.initializer.push(whole());
    assert_eq!(g.drop_dead_nodes(), 1);
    assert_eq!(g.node.iter().map(|n| n.name()).collect::<Vec<_>>(), ["a", "d", "l"]);
    assert!(g.initializer.is_empty());
    assert_eq!(g.fresh_name("h"), "h_1");
    check(&Model::from_proto(model(g))).unwrap();
}

#[test]
fn renaming_stops_where_a_subgraph_means_another_value() {
    let branch = graph(&["h"], &["z"], vec![node("Neg", "", &["h"], &["z"])]);
    let taking = graph(&[], &["z2"], vec![node("Neg", "", &["h"], &["z2"])]);
    let nodes = vec![
        node("Relu", "a", &["x"], &["h"]),
        with_graph(with_graph(node("If", "if", &["h"], &["y"]), "own", branch), "outer", taking),
    ];
    let mut g = graph(&["x"], &["y"], nodes);
    g.rename_value("h", "k");
    let inner = |i: usize| g.node[1].attribute[i].g.as_ref().unwrap().node[0].input[0].as_str();
    assert_eq!((inner(0), inner(1), g.node[1].input[0].as_str()), ("h", "k", "k"));
}

#[test]
fn a_cut_file_names_the_node_or_tensor() {
    let mut proto = model(relu_chain());
    g(&mut proto).initializer.push(tensor_proto("weights", &Tensor::from_vec([64], vec![1f32; 64]).unwrap()));
    let bytes = Bytes::from(Model::from_proto(proto).to_bytes().unwrap());
    // Damage within: a length inside the tensor claims more than the tensor holds.
    let at = bytes.windows(7).position(|w| w == b"weights").unwrap();
    let mut broken = bytes.to_vec();
    assert_eq!(broken[at + 7], 0x4a, "raw_data follows the name");
    broken[at + 9] = 0x7f;
    let error = Model::from_bytes(broken.into(), &Limits::default()).unwrap_err().to_string();
    assert!(error.contains("initializer 0") && error.contains("weights"), "{error}");
    let at = bytes.windows(4).position(|w| w == b"Relu").unwrap();
    let mut broken = bytes.to_vec();
    broken[at] = 0xff;
    let error = Model::from_bytes(broken.into(), &Limits::default()).unwrap_err().to_string();
    assert!(error.contains("node 0") && error.contains("UTF-8"), "{error}");
}

#[test]
fn many_small_messages_meet_the_memory_limit_before_they_are_decoded() {
    // Two bytes of file for a node that takes hundreds in memory.
    let nodes: Vec<u8> = [0x0a, 0x00].repeat(100_000);
    let mut bytes = vec![0x3a];
    let mut length = nodes.len();
    while length >= 0x80 {
        bytes.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend(nodes);
    let limits = Limits { structure_bytes: 1 << 20, ..Limits::default() };
    let error = Model::from_bytes(bytes.clone().into(), &limits).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    let limits = Limits { nodes: 99_999, ..Limits::default() };
    let error = Model::from_bytes(bytes.into(), &limits).unwrap_err();
    assert!(error.to_string().contains("nodes"), "{error}");
}

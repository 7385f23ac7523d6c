//! Requests whose results would not fit into any memory, through the binary: each is an error, and the server answers on.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use edgeward_graph::{
    DataType, Model, Tensor,
    proto::{
        AttributeProto, GraphProto, NodeProto, TensorShapeProto, TypeProto, ValueInfoProto,
        tensor_shape_proto::{Dimension, dimension},
        type_proto,
    },
    tensor_proto,
};
use serde_json::{Value, json};
use support::{Server, model};

mod support;

fn port(name: &str, dtype: DataType, dims: &[&str]) -> ValueInfoProto {
    let dim = |text: &&str| Dimension {
        value: Some(
            text.parse().map_or_else(|_| dimension::Value::DimParam((*text).to_owned()), dimension::Value::DimValue),
        ),
        ..Dimension::default()
    };
    let shape = Some(TensorShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: Some(dtype.to_onnx()), shape };
    let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() });
    ValueInfoProto { name: Some(name.to_owned()), r#type, ..ValueInfoProto::default() }
}

fn node(op: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        name: Some(format!("the {op}")),
        op_type: Some(op.to_owned()),
        input: inputs.iter().map(|&i| i.to_owned()).collect(),
        output: vec![output.to_owned()],
        attribute,
        ..NodeProto::default()
    }
}

/// A model whose answer is the sum of the value `large`, made by `nodes`, and of a constant `one` to use in them.
fn summed(input: Vec<ValueInfoProto>, mut nodes: Vec<NodeProto>) -> Model {
    nodes.push(node("ReduceSum", &["large"], "sum", vec![AttributeProto::of_int("keepdims", 0)]));
    let one = Tensor::from_vec([1, 1], vec![1f32]).unwrap();
    let (zero, step) =
        (Tensor::from_vec([0usize; 0], vec![0f32]).unwrap(), Tensor::from_vec([0usize; 0], vec![1f32]).unwrap());
    let used = |name: &str| nodes.iter().any(|node| node.input.iter().any(|input| input == name));
    let constants = [("one", one), ("zero", zero), ("step", step)];
    let initializer = constants.iter().filter(|(name, _)| used(name)).map(|(name, t)| tensor_proto(name, t)).collect();
    let output = vec![port("sum", DataType::Float32, &[])];
    model(GraphProto { name: Some("g".to_owned()), node: nodes, initializer, input, output, ..GraphProto::default() })
}

struct Case {
    name: &'static str,
    model: Model,
    datatype: &'static str,
    /// Shape and numbers of a request that is fine, and of one that asks for too much.
    fine: (Vec<usize>, Value),
    large: (Vec<usize>, Value),
    /// Which node the error names.
    node: &'static str,
}

fn cases() -> Vec<Case> {
    let shape = || vec![port("s", DataType::Int64, &["2"])];
    let list = |numbers: [u64; 2]| (vec![2], json!(numbers));
    let of_shape = |name, nodes, node| Case {
        name,
        model: summed(shape(), nodes),
        datatype: "INT64",
        fine: list([3, 4]),
        large: list([2_000_000, 1_000_000]),
        node,
    };
    let float = || vec![port("f", DataType::Float32, &[])];
    let scalar = |number: f64| (vec![], json!([number]));
    let cast = |to: DataType| vec![AttributeProto::of_int("to", to.to_onnx().into())];
    vec![
        of_shape("filled", vec![node("ConstantOfShape", &["s"], "large", vec![])], "the ConstantOfShape"),
        of_shape("expanded", vec![node("Expand", &["one", "s"], "large", vec![])], "the Expand"),
        of_shape("tiled", vec![node("Tile", &["one", "s"], "large", vec![])], "the Tile"),
        Case {
            name: "range",
            model: summed(float(), vec![node("Range", &["zero", "f", "step"], "large", vec![])]),
            datatype: "FP32",
            fine: scalar(5.0),
            large: scalar(1e12),
            node: "the Range",
        },
        // The size is computed from a float that inference does not follow.
        Case {
            name: "computed",
            model: summed(
                vec![port("f", DataType::Float32, &["2"])],
                vec![
                    node("Exp", &["f"], "exp", vec![]),
                    node("Cast", &["exp"], "s", cast(DataType::Int64)),
                    node("ConstantOfShape", &["s"], "large", vec![]),
                ],
            ),
            datatype: "FP32",
            fine: (vec![2], json!([1.0, 1.0])),
            large: (vec![2], json!([14.0, 14.0])),
            node: "the ConstantOfShape",
        },
        // One after the other: the second size is told by the first result.
        Case {
            name: "chained",
            model: summed(
                vec![port("f", DataType::Float32, &["1"])],
                vec![
                    node("Exp", &["f"], "exp", vec![]),
                    node("Cast", &["exp"], "s", cast(DataType::Int64)),
                    node("ConstantOfShape", &["s"], "row", vec![]),
                    node("Shape", &["row"], "width", vec![]),
                    node("Concat", &["width", "width"], "square", vec![AttributeProto::of_int("axis", 0)]),
                    node("Expand", &["one", "square"], "large", vec![]),
                ],
            ),
            datatype: "FP32",
            fine: (vec![1], json!([1.0])),
            large: (vec![1], json!([14.0])),
            node: "the Expand",
        },
        // No contents at all: a product of a column and a row.
        Case {
            name: "product",
            model: summed(
                vec![port("f", DataType::Float32, &["n", "1"])],
                vec![node("Transpose", &["f"], "row", vec![]), node("MatMul", &["f", "row"], "large", vec![])],
            ),
            datatype: "FP32",
            fine: (vec![3, 1], json!([1.0, 1.0, 1.0])),
            large: (vec![400_000, 1], json!(vec![1.0; 400_000])),
            node: "the MatMul",
        },
    ]
}

fn what_does_not_fit_is_refused(engine: &str) {
    let folder = tempfile::tempdir().unwrap();
    let cases = cases();
    for case in &cases {
        let version = folder.path().join(case.name).join("1");
        fs::create_dir_all(&version).unwrap();
        case.model.write(version.join("model.onnx")).unwrap();
    }
    let server = Server::start(&[folder.path()], &["--engine", engine, "--threads", "1"]);
    let mut wrong = Vec::new();
    for case in &cases {
        let name = case.model.graph().input[0].name().to_owned();
        let ask = |(shape, data): &(Vec<usize>, Value)| {
            let input = json!({ "name": name, "shape": shape, "datatype": case.datatype, "data": data });
            let body = json!({ "inputs": [input] }).to_string();
            server.ask("POST", &format!("/v2/models/{}/infer", case.name), "", body.as_bytes())
        };
        // Twice, since what fits is remembered.
        for (expected, request) in [(200, &case.fine), (400, &case.large), (200, &case.fine), (400, &case.large)] {
            let (status, answer) = ask(request);
            if status != expected
                || (expected == 400) && !(answer.contains(case.node) && answer.contains("GB of memory"))
            {
                wrong.push(format!("{}: {status} {answer}", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{engine}:\n{}", wrong.join("\n"));
}

#[test]
fn rten_refuses_what_does_not_fit() {
    what_does_not_fit_is_refused("rten");
}

#[test]
fn openvino_refuses_what_does_not_fit() {
    if std::env::var_os("EDGEWARD_ALL_ENGINES").is_some() {
        what_does_not_fit_is_refused("openvino");
    }
}

//! The demo's model and request: a small convolutional net that has not learnt yet, and a seven.

use edgeward_graph::{
    DataType, Model, Tensor, TensorError,
    proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
        TypeProto, ValueInfoProto,
        attribute_proto::AttributeType,
        tensor_shape_proto::{Dimension, dimension},
        type_proto,
    },
    tensor_proto,
};

use super::digits::{Chance, SIDE, plain};

/// Two convolutions with pooling and a dense layer: `image` `[n, 1, 28, 28]` to `scores` `[n, 10]`.
pub fn digits() -> Model {
    let conv = |name: &str, input: &str, output: &str, weight: &str, bias: &str| {
        let attributes = vec![ints("kernel_shape", &[3, 3]), ints("pads", &[1, 1, 1, 1])];
        node(name, "Conv", &[input, weight, bias], output, attributes)
    };
    let pool = |name: &str, input: &str, output: &str| {
        node(name, "MaxPool", &[input], output, vec![ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])])
    };
    let nodes = vec![
        conv("conv1", "image", "c1", "w1", "b1"),
        node("relu1", "Relu", &["c1"], "r1", Vec::new()),
        pool("pool1", "r1", "p1"),
        conv("conv2", "p1", "c2", "w2", "b2"),
        node("relu2", "Relu", &["c2"], "r2", Vec::new()),
        pool("pool2", "r2", "p2"),
        node("flatten", "Flatten", &["p2"], "f", Vec::new()),
        node("dense", "Gemm", &["f", "w3", "b3"], "logits", Vec::new()),
        node("softmax", "Softmax", &["logits"], "scores", Vec::new()),
    ];
    let mut chance = Chance(7);
    let initializer = [
        ("w1", vec![16, 1, 3, 3]),
        ("b1", vec![16]),
        ("w2", vec![32, 16, 3, 3]),
        ("b2", vec![32]),
        ("w3", vec![32 * 7 * 7, 10]),
        ("b3", vec![10]),
    ];
    let initializer = initializer.into_iter().map(|(name, shape)| weights(name, shape, &mut chance)).collect();
    let graph = GraphProto {
        name: Some("digits".to_owned()),
        node: nodes,
        initializer,
        input: vec![value("image", &[1, SIDE as i64, SIDE as i64])],
        output: vec![value("scores", &[10])],
        ..GraphProto::default()
    };
    let opset = OperatorSetIdProto { version: Some(17), ..OperatorSetIdProto::default() };
    Model::from_proto(ModelProto {
        ir_version: Some(8),
        producer_name: Some("edgeward".to_owned()),
        opset_import: vec![opset],
        graph: Some(graph),
        ..ModelProto::default()
    })
}

fn node(name: &str, op: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        name: Some(name.to_owned()),
        op_type: Some(op.to_owned()),
        input: inputs.iter().map(|i| (*i).to_owned()).collect(),
        output: vec![output.to_owned()],
        attribute,
        ..NodeProto::default()
    }
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    let r#type = Some(AttributeType::Ints as i32);
    AttributeProto { name: Some(name.to_owned()), r#type, ints: values.to_vec(), ..AttributeProto::default() }
}

fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
    let sizes = dims.iter().map(|&d| dimension::Value::DimValue(d));
    let dim = std::iter::once(dimension::Value::DimParam("n".to_owned())).chain(sizes);
    let dim = dim.map(|value| Dimension { value: Some(value), ..Dimension::default() }).collect();
    let elem_type = Some(DataType::Float32.to_onnx());
    let tensor = type_proto::Tensor { elem_type, shape: Some(TensorShapeProto { dim }) };
    let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() });
    ValueInfoProto { name: Some(name.to_owned()), r#type, ..ValueInfoProto::default() }
}

/// Small weights; the same seed gives the same.
fn weights(name: &str, shape: Vec<usize>, chance: &mut Chance) -> TensorProto {
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| chance.unit() * 0.2 - 0.1).collect();
    // The count is the product of the shape, so this cannot fail; an empty tensor would show at load.
    Tensor::from_vec(shape, values).map_or_else(|_| TensorProto::default(), |t| tensor_proto(name, &t))
}

/// A seven, `[1, 1, 28, 28]`.
pub fn image() -> Result<Tensor, TensorError> {
    plain(7)
}

fn body(data: &str) -> String {
    format!(r#"{{"inputs":[{{"name":"image","shape":[1,1,{SIDE},{SIDE}],"datatype":"FP32","data":{data}}}]}}"#)
}

/// The request as bytes on the wire.
pub fn request(image: &Tensor) -> Vec<u8> {
    let values: Vec<String> = image.values::<f32>().map(|v| v.iter().map(f32::to_string).collect()).unwrap_or_default();
    let body = body(&format!("[{}]", values.join(",")));
    let length = body.len();
    format!("POST /v2/models/digits/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// A body short enough for a command line: the shell repeats the zeros.
pub fn curl_body() -> String {
    body(&format!("['$(printf '0,%.0s' $(seq {}))'0]", SIDE * SIDE - 1))
}

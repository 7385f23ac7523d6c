//! Models that tell too much, made in code, and data to attack them with.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use edgeward_graph::{
    DataType, Model, Tensor,
    proto::{AttributeProto, GraphProto, NodeProto, attribute_proto::AttributeType},
    tensor_proto,
};

use crate::support;

fn node(op: &str, inputs: &[&str], output: &str, attributes: &[(&str, &[i64])]) -> NodeProto {
    let attribute = |&(name, ints): &(&str, &[i64])| AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::Ints as i32),
        ints: ints.to_vec(),
        ..AttributeProto::default()
    };
    NodeProto {
        op_type: Some(op.to_owned()),
        input: inputs.iter().map(|&input| input.to_owned()).collect(),
        output: vec![output.to_owned()],
        attribute: attributes.iter().map(attribute).collect(),
        ..NodeProto::default()
    }
}

fn matrix(name: &str, shape: [usize; 2], values: Vec<f32>) -> edgeward_graph::proto::TensorProto {
    tensor_proto(name, &Tensor::from_vec(shape, values).unwrap())
}

fn write(folder: &Path, name: &str, nodes: Vec<NodeProto>, weights: Vec<edgeward_graph::proto::TensorProto>) {
    let graph = GraphProto {
        name: Some(name.to_owned()),
        node: nodes,
        initializer: weights,
        input: vec![support::port("INPUT0", DataType::Float32)],
        output: vec![edgeward_graph::proto::ValueInfoProto {
            name: Some("OUTPUT0".to_owned()),
            r#type: support::shapeless(DataType::Float32),
            ..Default::default()
        }],
        ..GraphProto::default()
    };
    let version = folder.join(name).join("1");
    fs::create_dir_all(&version).unwrap();
    let model: Model = support::model(graph);
    model.write(version.join("model.onnx")).unwrap();
}

/// Numbers between 0 and 1 that are the same every time.
pub fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..count).map(|_| next()).collect()
}

/// Rows of length one.
pub fn directions(seed: u64, rows: usize) -> Vec<Vec<f32>> {
    let rows: Vec<Vec<f32>> = random(seed, rows * 16).chunks(16).map(<[f32]>::to_vec).collect();
    let unit = |row: Vec<f32>| {
        let row: Vec<f32> = row.iter().map(|value| value - 0.5).collect();
        let length = row.iter().map(|value| value * value).sum::<f32>().sqrt();
        row.iter().map(|value| value / length).collect()
    };
    rows.into_iter().map(unit).collect()
}

/// A model that has learnt its members by heart: the same class for all, and it is surer of a row the more that is like one of them.
pub fn memoriser(folder: &Path, members: &[Vec<f32>]) {
    let count = members.len();
    let columns = (0..16).flat_map(|at| members.iter().map(move |member| member[at])).collect();
    write(
        folder,
        "memoriser",
        vec![
            node("MatMul", &["INPUT0", "members"], "likeness", &[]),
            node("ReduceMax", &["likeness"], "most", &[("axes", &[1])]),
            node("MatMul", &["most", "weights"], "weighed", &[]),
            node("Add", &["weighed", "bias"], "logits", &[]),
            node("Softmax", &["logits"], "OUTPUT0", &[]),
        ],
        vec![
            matrix("members", [16, count], columns),
            matrix("weights", [1, 2], vec![0.0, 4.0]),
            matrix("bias", [1, 2], vec![0.0, 3.0]),
        ],
    );
}

/// The face that a model was trained on.
pub const FACE: [f32; 16] = [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0];

/// A linear classifier whose weights are its face: it is that, or its negative.
pub fn template(folder: &Path) {
    let columns = FACE.iter().flat_map(|value| [4.0 * (value - 0.5), -4.0 * (value - 0.5)]).collect();
    write(
        folder,
        "template",
        vec![node("MatMul", &["INPUT0", "face"], "logits", &[]), node("Softmax", &["logits"], "OUTPUT0", &[])],
        vec![matrix("face", [16, 2], columns)],
    );
}

/// A model that takes far longer for many rows than for one.
pub fn costly(folder: &Path) {
    let side = 2048;
    write(
        folder,
        "costly",
        vec![
            node("MatMul", &["INPUT0", "wide"], "spread", &[]),
            node("MatMul", &["spread", "square"], "turned", &[]),
            node("MatMul", &["turned", "narrow"], "OUTPUT0", &[]),
        ],
        vec![
            matrix("wide", [16, side], vec![1e-3; 16 * side]),
            matrix("square", [side, side], vec![1e-3; side * side]),
            matrix("narrow", [side, 2], vec![1e-3; side * 2]),
        ],
    );
}

/// A file of rows, as `--data` takes it.
pub fn rows(path: PathBuf, input: &str, rows: &[Vec<f32>]) -> PathBuf {
    fs::write(&path, serde_json::json!({ input: rows }).to_string()).unwrap();
    path
}

/// The classifier of digits with a repository around it, and digits as it was trained on them; none without the data folder.
pub fn digits(folder: &Path, count: usize) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let data = std::env::var_os("EDGEWARD_DATA").map_or(beside, PathBuf::from);
    let model = data.join("onnx/mnist_rten.onnx");
    if !model.exists() {
        println!("skipped: no data folder (EDGEWARD_DATA)");
        return None;
    }
    let version = folder.join("digits/1");
    fs::create_dir_all(&version).unwrap();
    fs::copy(model, version.join("model.onnx")).unwrap();
    let images = gunzip(&fs::read(data.join("mnist/t10k-images-idx3-ubyte.gz")).unwrap());
    // What its training took off and divided by.
    let value = |&byte: &u8| (f32::from(byte) / 255.0 - 0.1307) / 0.3081;
    let images: Vec<Vec<f32>> =
        images[16..].chunks(784).take(count).map(|image| image.iter().map(value).collect()).collect();
    Some(rows(folder.with_extension("digits.json"), "input", &images))
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new("gzip").args(["-dc"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(bytes));
        child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
    });
    child.wait().unwrap();
    output
}

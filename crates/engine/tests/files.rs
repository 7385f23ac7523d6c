//! Models as files: with weights beside them, the same as their bytes, and gone from memory when unloaded.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, num::NonZeroUsize, path::Path};

use edgeward_engine::{Engine, Registry, RegistryConfig, RunOptions, SessionOptions, Source};
use edgeward_graph::{
    DataType, Model, Tensor,
    proto::{
        GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto,
        TypeProto, ValueInfoProto,
        tensor_shape_proto::{Dimension, dimension},
        type_proto,
    },
    tensor_proto,
};

/// Weights of 32 MiB.
const SIDE: usize = 2896;

fn engines() -> Vec<std::sync::Arc<dyn Engine>> {
    let registry = Registry::new(RegistryConfig::default());
    let found = registry.available();
    let all = std::env::var_os("EDGEWARD_ALL_ENGINES").is_some();
    assert!(!all || found.len() == registry.names().len(), "an engine is not installed");
    found
}

fn port(name: &str) -> ValueInfoProto {
    let dim =
        [1, SIDE].map(|n| Dimension { value: Some(dimension::Value::DimValue(n as i64)), ..Dimension::default() });
    let shape = Some(TensorShapeProto { dim: dim.to_vec() });
    let tensor = type_proto::Tensor { elem_type: Some(DataType::Float32.to_onnx()), shape };
    let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() });
    ValueInfoProto { name: Some(name.to_owned()), r#type, ..ValueInfoProto::default() }
}

/// `y = x · w`, where each row of `w` is its own number.
fn model(weights: TensorProto) -> Model {
    let node = NodeProto {
        op_type: Some("MatMul".to_owned()),
        input: vec!["x".to_owned(), "w".to_owned()],
        output: vec!["y".to_owned()],
        ..NodeProto::default()
    };
    let (input, output) = (vec![port("x")], vec![port("y")]);
    let (name, initializer) = (Some("g".to_owned()), vec![weights]);
    let graph = GraphProto { name, node: vec![node], initializer, input, output, ..GraphProto::default() };
    let opset_import = vec![OperatorSetIdProto { version: Some(17), ..OperatorSetIdProto::default() }];
    Model::from_proto(ModelProto { ir_version: Some(8), opset_import, graph: Some(graph), ..ModelProto::default() })
}

fn weights() -> Tensor {
    let values = (0..SIDE).flat_map(|row| std::iter::repeat_n((row % 7) as f32, SIDE)).collect();
    Tensor::from_vec([SIDE, SIDE], values).unwrap()
}

fn run(engine: &dyn Engine, source: &Source) -> Tensor {
    let options = SessionOptions { threads: NonZeroUsize::new(1), ..SessionOptions::default() };
    let session = engine.load(source, &options).unwrap();
    let x = Tensor::from_vec([1, SIDE], vec![1.0f32; SIDE]).unwrap();
    session.run(&[("x", &x)], RunOptions::default()).unwrap().remove(0)
}

/// The same model with its weights in a file beside it.
fn write_with_weights_beside(folder: &Path, weights: &Tensor) -> std::path::PathBuf {
    fs::write(folder.join("w.bin"), weights.raw().unwrap()).unwrap();
    let length = weights.raw().unwrap().len().to_string();
    let entry =
        |key: &str, value: &str| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value.to_owned()) };
    let outside = TensorProto {
        raw_data: None,
        data_location: Some(1),
        external_data: vec![entry("location", "w.bin"), entry("offset", "0"), entry("length", &length)],
        ..tensor_proto("w", weights)
    };
    let path = folder.join("m.onnx");
    model(outside).write(&path).unwrap();
    path
}

#[test]
fn bytes_files_and_weights_beside_them_answer_alike() {
    let folder = tempfile::tempdir().unwrap();
    let weights = weights();
    let beside = write_with_weights_beside(folder.path(), &weights);
    assert!(fs::metadata(&beside).unwrap().len() < 1 << 20, "the weights are not in the file");
    let whole = folder.path().join("whole.onnx");
    model(tensor_proto("w", &weights)).write(&whole).unwrap();
    let sum: f32 = (0..SIDE).map(|row| (row % 7) as f32).sum();
    for engine in engines() {
        let name = engine.name();
        let expected = run(&*engine, &Source::Bytes(fs::read(&whole).unwrap().into()));
        let close = |v: &f32| (v / sum - 1.0).abs() < 1e-4;
        assert!(expected.values::<f32>().unwrap().iter().all(close), "{name}");
        for file in [&whole, &beside] {
            assert!(run(&*engine, &Source::File(file.clone())) == expected, "{name} {}", file.display());
        }
        fs::rename(folder.path().join("w.bin"), folder.path().join("away.bin")).unwrap();
        let error = engine.load(&Source::File(beside.clone()), &SessionOptions::default()).err().unwrap();
        assert!(error.to_string().contains("w.bin"), "{name}: {error}");
        fs::rename(folder.path().join("away.bin"), folder.path().join("w.bin")).unwrap();
    }
}

fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

/// Run in a process of its own: other tests take memory as well.
#[test]
fn memory_goes_back_on_unload() {
    const KEY: &str = "EDGEWARD_TEST_UNLOAD";
    if std::env::var_os(KEY).is_none() {
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "memory_goes_back_on_unload", "--nocapture"]).env(KEY, "1");
        // Glibc keeps the more for itself the more was freed, unless told where to stop.
        let status = again.env("MALLOC_MMAP_THRESHOLD_", (128 << 10).to_string()).status();
        return assert!(status.unwrap().success());
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let size = {
        let weights = weights();
        model(tensor_proto("w", &weights)).write(&path).unwrap();
        weights.raw().unwrap().len() as u64
    };
    for engine in engines() {
        let mut after = Vec::new();
        for _ in 0..20 {
            run(&*engine, &Source::File(path.clone()));
            after.push(resident());
        }
        println!("{}: {:?} MB", engine.name(), after.iter().map(|bytes| bytes / 1_000_000).collect::<Vec<_>>());
        let (early, late) = (after[4], after[19]);
        assert!(late < early + size / 4, "{}: {early} bytes after 5 loads, {late} after 20", engine.name());
    }
}

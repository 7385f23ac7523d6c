//! Files made to harm: each is an error, none a panic, and nothing outside the model's folder is read.

use std::{collections::BTreeMap, fs, os::unix::fs::symlink, path::Path};

use bytes::Bytes;
use edgeward_graph::{
    DataType, ErrorKind, FoldLimits, Limits, Model, Tensor, check, fold_constants, infer,
    proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto,
        attribute_proto::AttributeType, tensor_proto::DataLocation,
    },
    stats, tensor_proto,
};

fn model(initializer: Vec<TensorProto>) -> Model {
    let graph = GraphProto { name: Some("g".to_owned()), initializer, ..GraphProto::default() };
    Model::from_proto(ModelProto { ir_version: Some(8), graph: Some(graph), ..ModelProto::default() })
}

/// A tensor `w` of two floats whose bytes are elsewhere.
fn external(entries: &[(&str, &str)]) -> TensorProto {
    let entry = |(key, value): &(&str, &str)| StringStringEntryProto {
        key: Some((*key).to_owned()),
        value: Some((*value).to_owned()),
    };
    TensorProto {
        name: Some("w".to_owned()),
        dims: vec![2],
        data_type: Some(DataType::Float32.to_onnx()),
        external_data: entries.iter().map(entry).collect(),
        data_location: Some(DataLocation::External as i32),
        ..TensorProto::default()
    }
}

fn read_one(folder: &Path, tensor: TensorProto) -> Result<Tensor, edgeward_graph::GraphError> {
    let path = folder.join("m.onnx");
    model(vec![tensor]).write(&path)?;
    let model = Model::read(&path, &Limits::default())?;
    model.check_external()?;
    model.tensor(&model.graph().initializer[0])
}

#[test]
fn external_data_stays_beneath_the_folder() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("models");
    fs::create_dir_all(folder.join("sub")).unwrap();
    fs::write(outer.path().join("secret"), [1u8; 8]).unwrap();
    fs::write(folder.join("sub/good"), [0u8; 16]).unwrap();
    symlink(outer.path().join("secret"), folder.join("link")).unwrap();
    symlink(outer.path(), folder.join("up")).unwrap();
    fs::hard_link(outer.path().join("secret"), folder.join("hard")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, folder.join("pipe"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let secret = outer.path().join("secret");
    let secret = secret.to_str().unwrap();
    let table: [(&str, &[(&str, &str)], &str); 15] = [
        ("parent", &[("location", "../secret")], "relative"),
        ("parent within", &[("location", "sub/../../secret")], "relative"),
        ("absolute", &[("location", secret)], "relative"),
        ("symbolic link", &[("location", "link")], "link"),
        ("folder link", &[("location", "up/secret")], "link"),
        ("hard link", &[("location", "hard")], "hard links"),
        ("pipe", &[("location", "pipe")], "regular"),
        ("folder", &[("location", "sub")], "regular"),
        ("missing", &[("location", "nothing")], "nothing"),
        ("no location", &[("offset", "0")], "location"),
        ("zero byte", &[("location", "a\0b")], "relative"),
        ("too far", &[("location", "sub/good"), ("offset", "12"), ("length", "8")], "beyond"),
        ("overflow", &[("location", "sub/good"), ("offset", "18446744073709551615"), ("length", "8")], "beyond"),
        ("negative", &[("location", "sub/good"), ("offset", "-8")], "-8"),
        ("wrong length", &[("location", "sub/good"), ("length", "12")], "12"),
    ];
    for (case, entries, part) in table {
        let error = read_one(&folder, external(entries)).expect_err(case);
        assert!(error.to_string().contains(part) && error.to_string().contains("`w`"), "{case}: {error}");
    }
    let good = read_one(&folder, external(&[("location", "sub/good"), ("offset", "8"), ("length", "8")])).unwrap();
    assert_eq!(good, Tensor::from_vec([2], vec![0f32; 2]).unwrap());
    let bytes = model(vec![external(&[("location", "sub/good")])]).to_bytes().unwrap();
    let model = Model::from_bytes(Bytes::from(bytes), &Limits::default()).unwrap();
    assert_eq!(model.check_external().unwrap_err().kind(), ErrorKind::External);
}

#[test]
fn external_data_survives_a_round_trip() {
    let folder = tempfile::tempdir().unwrap();
    let big = Tensor::from_vec([300], (0..300).map(|i| i as f32).collect()).unwrap();
    let small = Tensor::from_vec([2], vec![7i64, -7]).unwrap();
    let path = folder.path().join("m.onnx");
    model(vec![tensor_proto("big", &big), tensor_proto("small", &small)]).write_external(&path, 1024).unwrap();
    let mut read = Model::read(&path, &Limits::default()).unwrap();
    assert_eq!(read.external_locations().unwrap(), ["m.onnx.data"]);
    for _ in 0..2 {
        let values: Vec<Tensor> = read.graph().initializer.iter().map(|t| read.tensor(t).unwrap()).collect();
        assert_eq!(values, [big.clone(), small.clone()]);
        // What was let go comes from the file again.
        read.release_external();
        assert_eq!(values, [big.clone(), small.clone()]);
        let apart = read.whole_len();
        read.inline_external().unwrap();
        assert!(read.external_locations().unwrap().is_empty());
        let within = read.to_bytes().unwrap().len() as u64;
        assert!(within <= apart && apart < within + 200, "{apart} {within}");
    }
}

/// Everything that a reader does with bytes from outside.
fn use_all(bytes: Bytes) {
    if let Ok(model) = Model::from_bytes(bytes, &Limits::default()) {
        let _ = (model.inputs(), model.outputs(), stats(&model), model.opset());
        for tensor in &model.graph().initializer {
            let _ = model.tensor(tensor);
        }
        let _ = infer(&model, &BTreeMap::new());
        let mut folded = model.clone();
        fold_constants(&mut folded, &FoldLimits { value_bytes: 1 << 16, total_bytes: 1 << 20 });
        assert!(check(&model).is_err() || check(&folded).is_ok(), "folding breaks a sound model");
        let _ = folded.to_bytes();
    }
}

#[test]
fn damage_is_survived() {
    let weights = Tensor::from_vec([2, 3], vec![0.5f32; 6]).unwrap();
    let mut source = model(vec![tensor_proto("w", &weights)]);
    source.graph_mut().node.push(NodeProto { op_type: Some("Relu".to_owned()), ..NodeProto::default() });
    let whole = Bytes::from(source.to_bytes().unwrap());
    for length in 0..whole.len() {
        use_all(whole.slice(..length));
    }
    damage(&whole, 20_000);
    // One small model for each feature of the format.
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/model");
    for seed in fs::read_dir(seeds).unwrap() {
        damage(&fs::read(seed.unwrap().path()).unwrap(), 500);
    }
}

/// Uses `whole` with up to four bits turned, again and again.
fn damage(whole: &[u8], times: usize) {
    let mut state = 42u64;
    for _ in 0..times {
        let mut bytes = whole.to_vec();
        for _ in 0..1 + state % 4 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let bit = (state >> 20) as usize % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        use_all(Bytes::from(bytes));
    }
}

#[test]
fn sizes_that_lie_are_named() {
    let mut short = tensor_proto("w", &Tensor::from_vec([2], vec![1f32, 2.]).unwrap());
    short.dims = vec![3];
    let mut negative = short.clone();
    negative.dims = vec![-1];
    let mut unknown = short.clone();
    unknown.data_type = Some(99);
    for (tensor, part) in [(short, "12 bytes"), (negative, "negative"), (unknown, "99")] {
        let error = model(vec![]).tensor(&tensor).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("`w`"), "{error}");
    }
    let mut huge = tensor_proto("w", &Tensor::from_vec([1], vec![1f32]).unwrap());
    huge.dims = vec![i64::MAX, i64::MAX];
    let bytes = model(vec![huge]).to_bytes().unwrap();
    let error = Model::from_bytes(bytes.into(), &Limits::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
}

#[test]
fn limits_hold() {
    let mut inner = GraphProto::default();
    for _ in 0..40 {
        let attribute = AttributeProto {
            name: Some("body".to_owned()),
            r#type: Some(AttributeType::Graph as i32),
            g: Some(inner),
            ..AttributeProto::default()
        };
        let node = NodeProto { op_type: Some("Loop".to_owned()), attribute: vec![attribute], ..NodeProto::default() };
        inner = GraphProto { node: vec![node], ..GraphProto::default() };
    }
    let deep = ModelProto { graph: Some(inner), ..ModelProto::default() };
    let bytes = Model::from_proto(deep).to_bytes().unwrap();
    // Protobuf's own bound on nesting or ours, whichever is met first.
    assert!(Model::from_bytes(bytes.into(), &Limits::default()).is_err());
    let graph = GraphProto { node: vec![NodeProto::default(); 11], ..GraphProto::default() };
    let bytes = Model::from_proto(ModelProto { graph: Some(graph), ..ModelProto::default() }).to_bytes().unwrap();
    let error = Model::from_bytes(bytes.into(), &Limits { nodes: 10, ..Limits::default() }).unwrap_err();
    assert!(error.to_string().contains("11") && error.to_string().contains("10"), "{error}");
}

#[test]
fn every_type_round_trips() {
    for &dtype in DataType::ALL {
        let tensor = match dtype {
            DataType::String => Tensor::from_strings([3], vec![Bytes::from_static(b"x"); 3]).unwrap(),
            _ => {
                let raw = (0..dtype.byte_len(3)).map(|i| i as u8).collect::<Vec<_>>();
                Tensor::from_raw(dtype, [3], raw.into()).unwrap()
            }
        };
        let read = model(vec![]).tensor(&tensor_proto("t", &tensor)).unwrap();
        assert_eq!(read, tensor, "{dtype}");
    }
}

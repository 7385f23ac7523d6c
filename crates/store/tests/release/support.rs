//! Models, keys and releases for the tests.

use std::{
    fs,
    path::{Path, PathBuf},
};

use edgeward_graph::{
    DataType, Model, Tensor,
    proto::{
        GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto, TypeProto, ValueInfoProto,
        tensor_shape_proto::{Dimension, dimension},
        type_proto,
    },
    tensor_proto,
};
use edgeward_store::{
    ErrorKind, PackSpec, Release, StoreError, VariantSpec, pack,
    signing::{self, Signer, SigningKey, TrustRoots},
};
use edgeward_trust::keys::{KeyKind, KeyProvider as _, SealedFile, Unlock};
use std::sync::Arc;

/// Adds `weights` numbers to its input; they do not compress and differ by `seed`.
pub fn model(weights: usize, seed: u32) -> Model {
    model_of(numbers(weights, seed))
}

/// So many numbers that do not compress.
pub fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32
    };
    (0..count).map(|_| next()).collect()
}

pub fn model_of(values: Vec<f32>) -> Model {
    let port = |name: &str| {
        let dim = Dimension { value: Some(dimension::Value::DimValue(values.len() as i64)), ..Dimension::default() };
        let shape = Some(TensorShapeProto { dim: vec![dim] });
        let tensor = type_proto::Tensor { elem_type: Some(DataType::Float32.to_onnx()), shape };
        let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() });
        ValueInfoProto { name: Some(name.to_owned()), r#type, ..ValueInfoProto::default() }
    };
    let node = NodeProto {
        op_type: Some("Add".to_owned()),
        input: vec!["x".to_owned(), "w".to_owned()],
        output: vec!["y".to_owned()],
        ..NodeProto::default()
    };
    let graph = GraphProto {
        name: Some("add".to_owned()),
        node: vec![node],
        input: vec![port("x")],
        output: vec![port("y")],
        initializer: vec![tensor_proto("w", &Tensor::from_vec([values.len()], values).unwrap())],
        ..GraphProto::default()
    };
    let opset = OperatorSetIdProto { version: Some(17), ..OperatorSetIdProto::default() };
    let proto =
        ModelProto { ir_version: Some(8), opset_import: vec![opset], graph: Some(graph), ..ModelProto::default() };
    Model::from_proto(proto)
}

/// A folder with keys in it.
pub struct Home {
    pub folder: tempfile::TempDir,
    pub keys: Arc<SealedFile>,
}

impl Home {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keys = SealedFile::create(&folder.path().join("keys"), &Unlock::KeyFile(vec![7; 32].into())).unwrap();
        for (name, kind) in [("release", KeyKind::P256), ("seal", KeyKind::Wrapping), ("other", KeyKind::Wrapping)] {
            keys.create(name, kind).unwrap();
        }
        Self { folder, keys: Arc::new(keys) }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn signer(&self) -> Signer {
        Signer::with_key(SigningKey::Provider(self.keys.clone(), "release".to_owned())).unwrap()
    }

    pub fn trust(&self) -> TrustRoots {
        TrustRoots::default().with_key(self.signer().public_key().clone())
    }

    /// A release of one variant, `a`, with its weights outside, and one, `b`, with them inside.
    pub fn pack(&self, out: &str, sequence: u64, model: &Model) -> Release {
        let source = self.path(&format!("{out}-source"));
        fs::create_dir(&source).unwrap();
        model.write_external(source.join("a.onnx"), 1).unwrap();
        model.write(source.join("b.onnx")).unwrap();
        self.pack_files(out, sequence, &[("a", &source.join("a.onnx")), ("b", &source.join("b.onnx"))]).unwrap()
    }

    pub fn pack_files(&self, out: &str, sequence: u64, files: &[(&str, &Path)]) -> Result<Release, StoreError> {
        let variant = |&(name, model): &(&str, &Path)| VariantSpec {
            name: name.to_owned(),
            model: model.to_owned(),
            engine: None,
            threads: None,
            precision: None,
            figures: Default::default(),
        };
        let spec = PackSpec {
            name: "chest".to_owned(),
            version: format!("1.{sequence}"),
            sequence,
            variants: files.iter().map(variant).collect(),
            report: None,
        };
        pack(&spec, &self.path(out))
    }

    pub fn sign(&self, folder: &str) {
        signing::sign(&self.path(folder), &self.signer()).unwrap();
    }
}

/// Every file beneath a folder with its bytes.
pub fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(inner) = folders.pop() {
        for entry in fs::read_dir(inner).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

#[track_caller]
pub fn refused<T>(result: Result<T, StoreError>, kind: ErrorKind, expected: &str) {
    let error = result.err().unwrap();
    assert!(error.kind() == kind && error.to_string().contains(expected), "{:?}: {error}", error.kind());
}

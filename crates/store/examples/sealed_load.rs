//! Loads a sealed release and the same one unsealed, in turns, from the file to a model that an engine runs; prints the ratio of the times and
//! the memory that each takes.
//!
//! `cargo run --release -p edgeward-store --example sealed_load -- [MEGABYTES] [ROUNDS]`

use std::{
    error::Error,
    fs,
    num::NonZeroUsize,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use edgeward_engine::{Registry, RegistryConfig, SessionOptions, Source};
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
    OpenOptions, PackSpec, VariantSpec, open, pack, seal,
    signing::{self, Signer, SigningKey, TrustRoots},
};
use edgeward_trust::keys::{KeyKind, KeyProvider, SealedFile, Unlock};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const SIDE: usize = 1024;
/// What each child process does, by its first word.
const CHILD: &str = "child";

fn main() -> Outcome {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let [CHILD, folder, release, engine] = words.as_slice() {
        return child(Path::new(folder), release, engine);
    }
    let megabytes: usize = words.first().map_or(Ok(100), |text| text.parse())?;
    let rounds: usize = words.get(1).map_or(Ok(15), |text| text.parse())?;
    let folder = tempfile::tempdir()?;
    prepare(folder.path(), megabytes)?;
    println!("a model of {megabytes} MB, {rounds} rounds in turns, median; one process for each load");
    println!("{:<12} {:>10} {:>10} {:>7} {:>12} {:>12}", "", "plain ms", "sealed ms", "ratio", "plain MB", "sealed MB");
    for engine in ["none", "rten", "onnxruntime", "openvino"] {
        let mut loads = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            for (release, loads) in ["plain", "sealed"].into_iter().zip(&mut loads) {
                loads.extend(load_in_child(folder.path(), release, engine)?);
            }
        }
        let [plain, sealed] = loads;
        let (Some(plain), Some(sealed)) = (median(plain), median(sealed)) else {
            println!("{engine:<12} is not installed");
            continue;
        };
        let ratio = sealed.0 / plain.0;
        println!("{engine:<12} {:>10.1} {:>10.1} {ratio:>7.3} {:>12.0} {:>12.0}", plain.0, sealed.0, plain.1, sealed.1);
    }
    println!("`none` reads, compares and decrypts, and runs nothing; memory is the most that the process had");
    Ok(())
}

/// Milliseconds and megabytes, each the median of its own.
fn median(loads: Vec<(f64, f64)>) -> Option<(f64, f64)> {
    let middle = |pick: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = loads.iter().map(pick).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    Some((middle(|load| load.0)?, middle(|load| load.1)?))
}

/// None where the engine is not there.
fn load_in_child(folder: &Path, release: &str, engine: &str) -> Outcome<Option<(f64, f64)>> {
    let output = Command::new(std::env::current_exe()?).arg(CHILD).arg(folder).args([release, engine]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut numbers = text.split_whitespace().map(str::parse);
    match (output.status.success(), numbers.next(), numbers.next()) {
        (true, Some(milliseconds), Some(megabytes)) => Ok(Some((milliseconds?, megabytes?))),
        (true, ..) => Ok(None),
        (false, ..) => Err(String::from_utf8_lossy(&output.stderr).into()),
    }
}

fn keys(folder: &Path) -> Outcome<Arc<SealedFile>> {
    let (path, unlock) = (folder.join("keys"), Unlock::KeyFile(vec![7; 32].into()));
    if path.exists() {
        return Ok(Arc::new(SealedFile::open(&path, &unlock)?));
    }
    let keys = SealedFile::create(&path, &unlock)?;
    keys.create("release", KeyKind::P256)?;
    keys.create("seal", KeyKind::Wrapping)?;
    Ok(Arc::new(keys))
}

fn child(folder: &Path, release: &str, engine: &str) -> Outcome {
    let keys = keys(folder)?;
    let registry = Registry::new(RegistryConfig::default());
    // The library is opened before the clock starts: it has nothing to do with the seal.
    let engine = if engine == "none" { None } else { Some(registry.get(engine)) };
    if let Some(Err(_)) = engine {
        return Ok(());
    }
    let engine = engine.transpose()?;
    let began = Instant::now();
    let signer = Signer::with_key(SigningKey::Provider(keys.clone(), "release".to_owned()))?;
    let trust = TrustRoots::default().with_key(signer.public_key().clone());
    let opened = open(&folder.join(release), &OpenOptions { trust: &trust, keys: Some(keys.as_ref()), floor: None })?;
    let loaded = opened.load("m")?;
    let options = SessionOptions { threads: NonZeroUsize::new(1), ..SessionOptions::default() };
    let session = engine.map(|engine| engine.load(&Source::Bytes(loaded.model.clone()), &options)).transpose()?;
    let took: Duration = began.elapsed();
    let peak_kb: f64 = fs::read_to_string("/proc/self/status")?
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap_or_default();
    println!("{} {}", took.as_secs_f64() * 1e3, peak_kb / 1e3);
    drop((session, loaded));
    Ok(())
}

/// Packs, signs and seals a chain of matrix products.
fn prepare(folder: &Path, megabytes: usize) -> Outcome {
    let layers = (megabytes * 1_000_000 / (SIDE * SIDE * 4)).max(1);
    model(layers)?.write(folder.join("m.onnx"))?;
    let variant = VariantSpec {
        name: "m".to_owned(),
        model: folder.join("m.onnx"),
        engine: None,
        threads: None,
        precision: None,
        figures: Default::default(),
    };
    let (name, version) = ("model".to_owned(), "1".to_owned());
    pack(&PackSpec { name, version, sequence: 1, variants: vec![variant], report: None }, &folder.join("plain"))?;
    let keys = keys(folder)?;
    seal(&folder.join("plain"), &folder.join("sealed"), keys.as_ref(), "seal")?;
    let signer = Signer::with_key(SigningKey::Provider(keys, "release".to_owned()))?;
    for release in ["plain", "sealed"] {
        signing::sign(&folder.join(release), &signer)?;
    }
    Ok(())
}

fn model(layers: usize) -> Outcome<Model> {
    let port = |name: &str| {
        let dim = [1, SIDE as i64]
            .map(|size| Dimension { value: Some(dimension::Value::DimValue(size)), ..Dimension::default() });
        let shape = Some(TensorShapeProto { dim: dim.to_vec() });
        let tensor = type_proto::Tensor { elem_type: Some(DataType::Float32.to_onnx()), shape };
        let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() });
        ValueInfoProto { name: Some(name.to_owned()), r#type, ..ValueInfoProto::default() }
    };
    let (mut nodes, mut weights) = (Vec::new(), Vec::new());
    let mut state = 1u32;
    for layer in 0..layers {
        let values: Vec<f32> = (0..SIDE * SIDE)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 24) as f32 - 0.5
            })
            .collect();
        weights.push(tensor_proto(&format!("w{layer}"), &Tensor::from_vec([SIDE, SIDE], values)?));
        nodes.push(NodeProto {
            op_type: Some("MatMul".to_owned()),
            input: vec![format!("x{layer}"), format!("w{layer}")],
            output: vec![format!("x{}", layer + 1)],
            ..NodeProto::default()
        });
    }
    let graph = GraphProto {
        name: Some("chain".to_owned()),
        node: nodes,
        input: vec![port("x0")],
        output: vec![port(&format!("x{layers}"))],
        initializer: weights,
        ..GraphProto::default()
    };
    let opset_import = vec![OperatorSetIdProto { version: Some(17), ..OperatorSetIdProto::default() }];
    Ok(Model::from_proto(ModelProto { ir_version: Some(8), opset_import, graph: Some(graph), ..ModelProto::default() }))
}

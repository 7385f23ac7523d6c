//! What somebody does to a copy of the models who can write to the disk that they lie on.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use edgeward_graph::{DataType, Limits, Model, Tensor, tensor_proto};
use edgeward_store::{
    PackSpec, Release, VariantSpec,
    signing::{self, Signer, SigningKey},
};

use super::files::files_of;
use crate::{
    demo::model::digits,
    failure::{Failure, OrInput as _},
};

/// Changes a copy, and says how; none where it is of no use on these files.
type Swap = fn(&Path) -> Result<Option<String>, Failure>;

/// All that is tried, each on a copy of its own.
pub const SWAPS: [Swap; 3] = [change_files, put_plain_model, put_own_release];

/// Changes the weights of one model: of a release every file, else the graph that can be read, else whatever the largest file holds.
fn change_files(copy: &Path) -> Result<Option<String>, Failure> {
    match first_release(copy)? {
        Some((folder, release)) => change_release(copy, &folder, &release).map(Some),
        None => change_model(copy).map(Some),
    }
}

fn change_release(copy: &Path, folder: &Path, release: &Release) -> Result<String, Failure> {
    for path in release.manifest().files.keys() {
        let path = folder.join(path);
        if !turn_file(&path)? {
            flip_middle(&path)?;
        }
    }
    Ok(format!("every file of {} changed, its signature kept", shown(folder, copy)))
}

fn change_model(copy: &Path) -> Result<String, Failure> {
    let mut largest: Option<(u64, PathBuf)> = None;
    for path in files_of(copy)? {
        if turn_file(&path)? {
            return Ok(format!("{} with the signs of its weights turned", shown(&path, copy)));
        }
        let size = fs::metadata(&path)?.len();
        if largest.as_ref().is_none_or(|(most, _)| size > *most) {
            largest = Some((size, path));
        }
    }
    let (_, path) = largest.ok_or_else(|| Failure::input("`--models` names no files"))?;
    flip_middle(&path)?;
    Ok(format!("{} with a bit of its middle changed", shown(&path, copy)))
}

/// Puts a model that nobody signed in the place of a release.
fn put_plain_model(copy: &Path) -> Result<Option<String>, Failure> {
    let Some((folder, release)) = first_release(copy)? else { return Ok(None) };
    let name = &release.manifest().name;
    fs::remove_dir_all(&folder)?;
    fs::create_dir_all(copy)?;
    digits().write(copy.join(format!("{name}.onnx"))).or_input()?;
    Ok(Some(format!("{name}.onnx, which nobody signed, in the place of the release")))
}

/// Puts a newer release of the same name in its place, signed with a key of one's own.
fn put_own_release(copy: &Path) -> Result<Option<String>, Failure> {
    let Some((folder, release)) = first_release(copy)? else { return Ok(None) };
    let manifest = release.manifest().clone();
    fs::remove_dir_all(&folder)?;
    let files = tempfile::tempdir()?;
    let model = files.path().join("model.onnx");
    digits().write(&model).or_input()?;
    let variant = VariantSpec {
        name: "own".to_owned(),
        model,
        engine: None,
        threads: None,
        precision: None,
        figures: BTreeMap::new(),
    };
    let sequence = manifest.sequence.saturating_add(1);
    let (name, version) = (manifest.name, manifest.version);
    let spec = PackSpec { name: name.clone(), version, sequence, variants: vec![variant], report: None };
    edgeward_store::pack(&spec, &folder)?;
    let key = rcgen::KeyPair::generate().context("no key could be made")?;
    let signer = Signer::with_key(SigningKey::from_pem(key.serialize_pem().as_bytes())?)?;
    signing::sign(&folder, &signer)?;
    Ok(Some(format!("release {sequence} of {name}, signed with a key of the attacker's own")))
}

fn first_release(copy: &Path) -> Result<Option<(PathBuf, Release)>, Failure> {
    let found = edgeward_store::list(copy)?;
    Ok(found.into_iter().find_map(|(path, release)| Some((path, release.ok()?))))
}

fn shown(path: &Path, copy: &Path) -> String {
    match path.strip_prefix(copy) {
        Ok(inner) if !inner.as_os_str().is_empty() => inner.display().to_string(),
        _ => "the release".to_owned(),
    }
}

/// Changes one bit; of an empty file nothing.
fn flip_middle(path: &Path) -> Result<(), Failure> {
    let mut bytes = fs::read(path)?;
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 1;
    }
    Ok(fs::write(path, bytes)?)
}

/// Turns the signs of the weights of a graph in a file; false where it holds none that can be read.
fn turn_file(path: &Path) -> Result<bool, Failure> {
    let Ok(mut model) = Model::read(path, &Limits::default()) else { return Ok(false) };
    if !turn_weights(&mut model) {
        return Ok(false);
    }
    let beside = path.with_extension("changed");
    model.write(&beside).or_input()?;
    fs::rename(&beside, path)?;
    Ok(true)
}

/// Turns the signs of the largest tensor of floats; false where there is none.
fn turn_weights(model: &mut Model) -> bool {
    let floats = |model: &Model| {
        let tensors = model.graph().initializer.iter().enumerate();
        let read = tensors.filter_map(|(at, proto)| Some((at, proto.name.clone()?, model.tensor(proto).ok()?)));
        read.filter(|(_, _, tensor)| tensor.dtype() == DataType::Float32)
            .max_by_key(|(_, _, tensor)| tensor.shape().iter().product::<usize>())
    };
    let Some((at, name, tensor)) = floats(model) else { return false };
    let Ok(values) = tensor.values::<f32>() else { return false };
    let turned: Vec<f32> = values.iter().map(|value| -value).collect();
    let Ok(turned) = Tensor::from_vec(tensor.shape().to_vec(), turned) else { return false };
    match model.graph_mut().initializer.get_mut(at) {
        Some(place) => *place = tensor_proto(&name, &turned),
        None => return false,
    }
    true
}

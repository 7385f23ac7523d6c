//! Makes a release of model files.

use std::{
    collections::{BTreeMap, HashMap},
    io::Read as _,
    num::NonZeroU32,
    path::{Path, PathBuf},
};

use edgeward_graph::{DataType, Limits, Model, beneath};
use serde::Deserialize;

use crate::{
    digest::Hashing,
    error::{StoreError, invalid, io_error},
    files::Release,
    manifest::{FORMAT, FileEntry, MANIFEST, Manifest, Variant},
    name::{check_name, check_path},
    staged::Staged,
};

const REPORT: &str = "report.json";
const REPORT_BYTES_MAX: u64 = 16 << 20;

/// What a release is to be made of.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackSpec {
    /// Of the model.
    pub name: String,
    /// For people.
    pub version: String,
    /// Grows with every release of the name.
    pub sequence: u64,
    /// The graphs.
    #[serde(rename = "variant")]
    pub variants: Vec<VariantSpec>,
    /// A JSON file of what was measured.
    #[serde(default)]
    pub report: Option<PathBuf>,
}

/// A graph, with how it is best run.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VariantSpec {
    /// `fp32`, `int8-edge`.
    pub name: String,
    /// The ONNX file; its external data is found beneath its folder.
    pub model: PathBuf,
    /// Engine, where one was chosen.
    #[serde(default)]
    pub engine: Option<String>,
    /// Threads within one run.
    #[serde(default)]
    pub threads: Option<NonZeroU32>,
    /// The element type of most of its weights, where not given.
    #[serde(default)]
    pub precision: Option<String>,
    /// What was measured, by name with its unit last.
    #[serde(default)]
    pub figures: BTreeMap<String, f64>,
}

/// Packs model files into a new folder. Equal files and words give an equal release.
///
/// # Errors
/// `Exists` where the folder does, `Invalid` where a file is no ONNX model, its external data is not to be had, or a name is not taken.
pub fn pack(spec: &PackSpec, folder: &Path) -> Result<Release, StoreError> {
    let staged = Staged::beside(folder)?;
    let mut manifest = Manifest {
        format: FORMAT.to_owned(),
        name: spec.name.clone(),
        version: spec.version.clone(),
        sequence: spec.sequence,
        variants: Vec::new(),
        report: None,
        files: BTreeMap::new(),
    };
    for variant in &spec.variants {
        let packed = pack_variant(variant, &staged, &mut manifest.files);
        manifest.variants.push(packed.map_err(|error| error.at(format!("variant `{}`", variant.name)))?);
    }
    if let Some(report) = &spec.report {
        check_report(report)?;
        let (source, name) = split(report);
        manifest.files.insert(REPORT.to_owned(), take(source, &name, REPORT, &staged)?);
        manifest.report = Some(REPORT.to_owned());
    }
    manifest.check()?;
    let bytes = manifest.to_bytes()?;
    staged.write(MANIFEST, &bytes)?;
    // Read back as everybody else will: what cannot be opened is not made.
    Manifest::parse(&bytes)?;
    staged.keep()?;
    Release::open(folder)
}

fn pack_variant(
    spec: &VariantSpec,
    staged: &Staged,
    files: &mut BTreeMap<String, FileEntry>,
) -> Result<Variant, StoreError> {
    check_name("variant", &spec.name)?;
    let model = Model::read(&spec.model, &Limits::default())?;
    model.check_external()?;
    let folder = format!("variants/{}", spec.name);
    let (source, name) = split(&spec.model);
    let graph = format!("{folder}/model.onnx");
    files.insert(graph.clone(), take(source, &name, &graph, staged)?);
    let mut data = Vec::new();
    for location in model.external_locations()? {
        check_path(&location).map_err(|error| error.at("external data"))?;
        let path = format!("{folder}/{location}");
        files.insert(path.clone(), take(source, &location, &path, staged)?);
        data.push(path);
    }
    Ok(Variant {
        name: spec.name.clone(),
        graph,
        data,
        engine: spec.engine.clone(),
        threads: spec.threads,
        precision: spec.precision.clone().unwrap_or_else(|| precision(&model)),
        figures: spec.figures.clone(),
    })
}

/// The folder of a file and its name in it.
fn split(path: &Path) -> (&Path, String) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    (path.parent().unwrap_or(Path::new("")), name)
}

/// Copies a file from beneath a folder into the release: a regular one, no link, with one name.
fn take(folder: &Path, location: &str, path: &str, staged: &Staged) -> Result<FileEntry, StoreError> {
    let failed = |error: std::io::Error| io_error(&folder.join(location), &error);
    let mut source = beneath::folder(folder).and_then(|root| beneath::open(&root, location)).map_err(failed)?;
    let mut target = Hashing::new(staged.create(path)?);
    std::io::copy(&mut source, &mut target).map_err(failed)?;
    let (_, sha256, size) = target.finish();
    Ok(FileEntry { size, sha256, sealed: None })
}

fn check_report(path: &Path) -> Result<(), StoreError> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(REPORT_BYTES_MAX + 1).read_to_end(&mut bytes));
    let read = read.map_err(|error| io_error(path, &error))?;
    if read as u64 > REPORT_BYTES_MAX {
        return Err(invalid(format!("report `{}`: expected at most {REPORT_BYTES_MAX} bytes", path.display())));
    }
    let parsed = serde_json::from_slice::<serde::de::IgnoredAny>(&bytes);
    parsed.map(drop).map_err(|error| invalid(format!("report `{}`: expected JSON: {error}", path.display())))
}

/// The element type that most bytes of the weights have.
fn precision(model: &Model) -> String {
    let mut bytes: HashMap<DataType, usize> = HashMap::new();
    for tensor in &model.graph().initializer {
        let Some(dtype) = DataType::from_onnx(tensor.data_type.unwrap_or(0)) else { continue };
        let count = tensor.dims.iter().fold(1usize, |n, &d| n.saturating_mul(usize::try_from(d).unwrap_or(0)));
        *bytes.entry(dtype).or_default() += dtype.byte_len(count);
    }
    let most = bytes.into_iter().max_by_key(|&(dtype, bytes)| (bytes, dtype.to_onnx()));
    most.map_or("none".to_owned(), |(dtype, _)| dtype.name().to_lowercase())
}

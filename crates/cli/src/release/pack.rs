//! `edgeward release pack`.

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    path::{Path, PathBuf},
};

use edgeward_store::{PackSpec, Release, VariantSpec};
use serde_json::json;

use super::failure;
use crate::{
    Context,
    failure::{Failure, Outcome},
    print,
    tune::result::{self, Goal},
};

/// What `edgeward compress` leaves in its folder.
const REPORT: &str = "report.json";

/// Options of `release pack`.
#[derive(clap::Args)]
pub struct PackArgs {
    /// ONNX files, each a variant named after its file; what `edgeward tune` found beside them is taken along. Folders that
    /// `edgeward compress` wrote: all their variants with their figures, and the report
    #[arg(required_unless_present = "spec", conflicts_with = "spec")]
    models: Vec<PathBuf>,
    /// New folder of the release
    #[arg(long, short, value_name = "FOLDER")]
    out: PathBuf,
    /// Name of the model [default: that of the first file]
    #[arg(long, conflicts_with = "spec")]
    name: Option<String>,
    /// Version, for people
    #[arg(long = "version", default_value = "1", conflicts_with = "spec")]
    release_version: String,
    /// Number that grows with every release of the name: an older one is refused where a newer was seen
    #[arg(long, default_value_t = 1, conflicts_with = "spec")]
    sequence: u64,
    /// JSON file of what was measured
    #[arg(long, value_name = "FILE", conflicts_with = "spec")]
    report: Option<PathBuf>,
    /// TOML file that says all of this, and engine, threads, precision and figures of each variant
    #[arg(long, value_name = "FILE")]
    spec: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &PackArgs, context: &Context) -> Outcome {
    let spec = match &args.spec {
        Some(path) => read_spec(path)?,
        None => spec_of(args)?,
    };
    let release = edgeward_store::pack(&spec, &args.out).map_err(failure)?;
    tell(&release, context)
}

fn tell(release: &Release, context: &Context) -> Outcome {
    let manifest = release.manifest();
    if context.json {
        return print::json(&json!({ "id": release.id(), "folder": release.folder(), "manifest": manifest }));
    }
    print::line(&format!(
        "{}: {} {}, sequence {}, {} in {} files",
        release.folder().display(),
        manifest.name,
        manifest.version,
        manifest.sequence,
        print::bytes(manifest.size()),
        manifest.files.len()
    ))?;
    print::line(&format!("id {}; sign it next: `edgeward release sign {}`", release.id(), release.folder().display()))
}

/// A spec's paths are relative to its own folder.
fn read_spec(path: &Path) -> Result<PackSpec, Failure> {
    let wrong = |error: String| Failure::input(format!("`{}`: {error}", path.display()));
    let text = String::from_utf8(super::keys::read(path)?).map_err(|error| wrong(error.to_string()))?;
    let mut spec: PackSpec = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    for path in spec.variants.iter_mut().map(|variant| &mut variant.model).chain(&mut spec.report) {
        *path = folder.join(&path);
    }
    Ok(spec)
}

fn spec_of(args: &PackArgs) -> Result<PackSpec, Failure> {
    let (mut variants, mut first, mut report) = (Vec::new(), None, args.report.clone());
    for path in &args.models {
        let name = if path.is_dir() {
            let compressed = Compressed::open(path)?;
            variants.extend(compressed.variants()?);
            report.get_or_insert_with(|| path.join(REPORT));
            name_of(Path::new(&compressed.model))
        } else {
            variants.push(variant(path)?);
            name_of(path)
        };
        first.get_or_insert(name);
    }
    Ok(PackSpec {
        name: args.name.clone().or(first).unwrap_or_default(),
        version: args.release_version.clone(),
        sequence: args.sequence,
        variants,
        report,
    })
}

/// As variants and releases may be named.
fn name_of(model: &Path) -> String {
    let stem = model.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    stem.replace(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')), "-")
}

/// What `edgeward compress` tells of a folder.
#[derive(serde::Deserialize)]
struct Compressed {
    #[serde(skip)]
    folder: PathBuf,
    model: String,
    machine: Cores,
    chosen: String,
    variants: Vec<Written>,
}

#[derive(serde::Deserialize)]
struct Cores {
    cores: u32,
}

/// A variant of it; those without a file were not good enough.
#[derive(serde::Deserialize)]
struct Written {
    name: String,
    file: Option<PathBuf>,
    engine: Option<String>,
    metric: Option<f64>,
    figures: Option<BTreeMap<String, f64>>,
}

impl Compressed {
    fn open(folder: &Path) -> Result<Self, Failure> {
        let path = folder.join(REPORT);
        let wrong = |error: String| {
            let (folder, mend) = (folder.display(), "name ONNX files, or a folder that `edgeward compress` wrote");
            Failure::input(format!("`{folder}` is no folder of a compression ({error}); {mend}"))
        };
        let text = std::fs::read(&path).map_err(|error| wrong(format!("`{}`: {error}", path.display())))?;
        let report: Self = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        Ok(Self { folder: folder.to_owned(), ..report })
    }

    /// The chosen one first: where a server has nothing else to go by, it takes the first.
    fn variants(&self) -> Result<Vec<VariantSpec>, Failure> {
        let mut written: Vec<(&Written, &PathBuf)> =
            self.variants.iter().filter_map(|variant| Some((variant, variant.file.as_ref()?))).collect();
        written.sort_by_key(|(variant, _)| variant.name != self.chosen);
        written.into_iter().map(|(variant, file)| self.variant(variant, file)).collect()
    }

    fn variant(&self, variant: &Written, file: &Path) -> Result<VariantSpec, Failure> {
        // A report is a file like any other: it names files of its folder alone.
        if file.file_name() != Some(file.as_os_str()) {
            let (folder, file) = (self.folder.display(), file.display());
            return Err(Failure::input(format!("`{folder}/{REPORT}` names `{file}`, which is no file beside it")));
        }
        let mut figures = variant.figures.clone().unwrap_or_default();
        figures.extend(variant.metric.map(|metric| ("metric".to_owned(), metric)));
        Ok(VariantSpec {
            name: variant.name.clone(),
            model: self.folder.join(file),
            engine: variant.engine.clone(),
            threads: NonZeroU32::new(self.machine.cores),
            precision: None,
            figures,
        })
    }
}

/// A variant named after its file, as it was tuned.
fn variant(model: &Path) -> Result<VariantSpec, Failure> {
    let best = result::beside(model, Goal::Latency)?;
    let figures = best.as_ref().map(|best| {
        let named = [("p50_ms", best.p50_ms), ("p99_ms", best.p99_ms), ("per_second", best.per_second)];
        named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    });
    Ok(VariantSpec {
        name: name_of(model),
        model: model.to_owned(),
        engine: best.as_ref().map(|best| best.engine.clone()),
        threads: best.as_ref().and_then(|best| NonZeroU32::try_from(best.threads).ok()),
        precision: None,
        figures: figures.unwrap_or_else(BTreeMap::new),
    })
}

//! Which models a folder offers: Triton's layout, plain `.onnx` files, or one file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use crate::{
    core::{ServeError, ServeErrorKind, config},
    proto::ModelConfig,
};

/// Models of one repository at most; more is a mistake or an attack.
const MODELS_MAX: usize = 100_000;
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// A model as its files describe it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Configuration of the file, or none.
    pub config: ModelConfig,
    /// Files of the versions that the policy asks for.
    pub versions: BTreeMap<u64, PathBuf>,
}

/// Names of all models of the repositories.
pub fn names(repositories: &[PathBuf]) -> Result<BTreeSet<String>, ServeError> {
    let mut found = BTreeSet::new();
    for repository in repositories {
        if let Some(name) = onnx_name(repository) {
            found.insert(name);
            continue;
        }
        if repository.is_file() {
            let shown = repository.display();
            return Err(invalid(format!(
                "`{shown}` is no ONNX file, expected `.onnx` or a folder of models; how a model of another kind comes in: docs/models.md"
            )));
        }
        let entries =
            fs::read_dir(repository).map_err(|e| invalid(format!("cannot read `{}`: {e}", repository.display())))?;
        for entry in entries.flatten() {
            let path = entry.path();
            // The kind comes with the entry; only links cost a look of their own.
            let folder = entry.file_type().is_ok_and(|kind| kind.is_dir() || kind.is_symlink() && path.is_dir());
            let name = if folder { entry.file_name().to_str().map(str::to_owned) } else { onnx_name(&path) };
            found.extend(name.filter(|n| is_name(n)));
            if found.len() > MODELS_MAX {
                return Err(invalid(format!("`{}` holds more than {MODELS_MAX} models", repository.display())));
            }
        }
    }
    Ok(found)
}

/// The folder or file of a model; the first repository that has the name wins, and in it the folder.
pub fn find(repositories: &[PathBuf], name: &str) -> Option<PathBuf> {
    let in_one = |repository: &PathBuf| {
        if repository.is_file() {
            return (onnx_name(repository).as_deref() == Some(name)).then(|| repository.clone());
        }
        let (folder, file) = (repository.join(name), repository.join(format!("{name}.onnx")));
        if folder.is_dir() { Some(folder) } else { file.is_file().then_some(file) }
    };
    if is_name(name) { repositories.iter().find_map(in_one) } else { None }
}

fn onnx_name(path: &Path) -> Option<String> {
    let is_onnx = path.extension().is_some_and(|e| e == "onnx") && path.is_file();
    is_onnx.then(|| path.file_stem().map(|s| s.to_string_lossy().into_owned())).flatten()
}

/// True for what may name a model: one visible path segment.
pub fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('.')
        && !name.contains(['/', '\\'])
        && !name.chars().any(char::is_control)
}

/// Reads a model's configuration, or takes the one given as JSON.
pub fn configuration(name: &str, path: &Path, config_json: Option<&str>) -> Result<ModelConfig, ServeError> {
    let config = match config_json {
        Some(json) => config::parse_json(json).map_err(|e| invalid(format!("model `{name}`: config: {e}")))?,
        None if path.is_file() => ModelConfig::default(),
        None => read_config(&path.join("config.pbtxt"))
            .map_err(|e| invalid(format!("model `{name}`: config.pbtxt: {e}")))?,
    };
    if !config.name.is_empty() && config.name != name {
        return Err(invalid(format!("model `{name}`: its configuration names it `{}`", config.name)));
    }
    Ok(config)
}

/// Finds the versions of a model that its configuration asks for.
pub fn read(name: &str, path: &Path, config_json: Option<&str>) -> Result<Entry, ServeError> {
    let config = configuration(name, path, config_json)?;
    if path.is_file() {
        return Ok(Entry { config, versions: BTreeMap::from([(1, path.to_owned())]) });
    }
    let file = match config.default_model_filename.as_str() {
        "" => "model.onnx",
        file if is_name(file) => file,
        file => {
            return Err(invalid(format!("model `{name}`: `default_model_filename` is `{file}`, expected a file name")));
        }
    };
    let ensemble = config::ensembling(&config).is_some();
    let entries = fs::read_dir(path).map_err(|e| invalid(format!("model `{name}`: {e}")))?;
    let numbers = entries.flatten().take(MODELS_MAX).filter_map(|e| number(e.file_name().to_str()?));
    // A folder that is still to be filled is no version yet.
    let numbers = numbers.filter(|v| ensemble || path.join(v.to_string()).join(file).is_file());
    let wanted = config::wanted(&config, numbers.collect());
    let mut versions: BTreeMap<u64, PathBuf> =
        wanted.into_iter().map(|v| (v, path.join(v.to_string()).join(file))).collect();
    if ensemble && versions.is_empty() {
        // It has no files of its own, and its version folder may have been left out.
        versions.insert(1, path.to_owned());
    }
    if versions.is_empty() {
        return Err(invalid(format!("model `{name}`: no version of it holds `{file}` (expected `{name}/1/{file}`)")));
    }
    Ok(Entry { config, versions })
}

/// The number of a version folder's name.
fn number(name: &str) -> Option<u64> {
    name.parse().ok().filter(|v| *v > 0 && name.starts_with(|c: char| c.is_ascii_digit() && c != '0'))
}

/// Reads a file that a configuration names. `shown` is how messages call it. A link is not followed, so that nothing
/// outside of the model's folder is read.
pub fn read_named(path: &Path, shown: &str, bytes_max: u64) -> Result<Vec<u8>, String> {
    let unread = |e: std::io::Error| format!("cannot read {shown}: {e}");
    let found = fs::symlink_metadata(path).map_err(unread)?;
    if !found.is_file() || found.len() > bytes_max {
        return Err(format!("{shown} is not a regular file of at most {bytes_max} bytes"));
    }
    fs::read(path).map_err(unread)
}

fn read_config(path: &Path) -> Result<ModelConfig, String> {
    match fs::metadata(path) {
        Err(_) => return Ok(ModelConfig::default()),
        Ok(m) if m.len() > CONFIG_BYTES_MAX => {
            return Err(format!("is {} bytes, the limit is {CONFIG_BYTES_MAX}", m.len()));
        }
        Ok(_) => {}
    }
    config::parse(&fs::read_to_string(path).map_err(|e| e.to_string())?)
}

fn invalid(text: String) -> ServeError {
    ServeError::new(ServeErrorKind::InvalidArgument, text)
}

//! Which models a folder offers: Triton's layout, plain `.onnx` files, or one file.

use std::{
    collections::BTreeMap,
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

/// Names of all models of the repositories; the first repository that has a name wins.
pub fn names(repositories: &[PathBuf]) -> Result<BTreeMap<String, PathBuf>, ServeError> {
    let mut found = BTreeMap::new();
    for repository in repositories {
        if let Some(name) = onnx_name(repository) {
            found.entry(name).or_insert_with(|| repository.clone());
            continue;
        }
        let entries =
            fs::read_dir(repository).map_err(|e| invalid(format!("cannot read `{}`: {e}", repository.display())))?;
        for entry in entries.flatten() {
            let path = entry.path();
            let name = if path.is_dir() {
                path.file_name().map(|n| n.to_string_lossy().into_owned())
            } else {
                onnx_name(&path)
            };
            if let Some(name) = name.filter(|n| is_name(n)) {
                found.entry(name).or_insert(path);
            }
            if found.len() > MODELS_MAX {
                return Err(invalid(format!("`{}` holds more than {MODELS_MAX} models", repository.display())));
            }
        }
    }
    Ok(found)
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

/// Reads a model's configuration and finds its versions.
pub fn read(name: &str, path: &Path, config_json: Option<&str>) -> Result<Entry, ServeError> {
    let given =
        config_json.map(config::parse_json).transpose().map_err(|e| invalid(format!("model `{name}`: config: {e}")))?;
    if path.is_file() {
        let config = given.unwrap_or_default();
        return Ok(Entry { config, versions: BTreeMap::from([(1, path.to_owned())]) });
    }
    let config = match given {
        Some(config) => config,
        None => read_config(&path.join("config.pbtxt"))
            .map_err(|e| invalid(format!("model `{name}`: config.pbtxt: {e}")))?,
    };
    if !config.name.is_empty() && config.name != name {
        return Err(invalid(format!("model `{name}`: config.pbtxt names it `{}`", config.name)));
    }
    let file = match config.default_model_filename.as_str() {
        "" => "model.onnx",
        file if is_name(file) => file,
        file => {
            return Err(invalid(format!("model `{name}`: `default_model_filename` is `{file}`, expected a file name")));
        }
    };
    let entries = fs::read_dir(path).map_err(|e| invalid(format!("model `{name}`: {e}")))?;
    let versions = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u64>().ok().filter(|v| *v > 0));
    let versions = config::wanted(&config, versions.take(MODELS_MAX).collect());
    let files = versions.into_iter().map(|v| (v, path.join(v.to_string()).join(file))).filter(|(_, f)| f.is_file());
    let mut versions: BTreeMap<u64, PathBuf> = files.collect();
    if config.platform == "ensemble" {
        // It has no files of its own, and its version folder may have been left out.
        versions = BTreeMap::from([(1, path.to_owned())]);
    }
    if versions.is_empty() {
        return Err(invalid(format!("model `{name}`: no version of it holds `{file}` (expected `{name}/1/{file}`)")));
    }
    Ok(Entry { config, versions })
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

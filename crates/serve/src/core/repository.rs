//! Which models a folder offers: Triton's layout, plain `.onnx` files, or one file. Releases are told apart and left to `catalogue`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use edgeward_store::manifest::MANIFEST;

use crate::{
    core::{ServeError, ServeErrorKind, config},
    proto::ModelConfig,
};

/// Models of one repository at most; more is a mistake or an attack.
const MODELS_MAX: usize = 100_000;
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// How the folder of a release ends that is still being fetched.
const PARTIAL: &str = ".partial";

/// A model as its files describe it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Configuration of the file, or none.
    pub config: ModelConfig,
    /// Files of the versions that the policy asks for.
    pub versions: BTreeMap<u64, PathBuf>,
}

/// What lies in the repositories.
#[derive(Debug, Default)]
pub struct Contents {
    /// Names of models.
    pub names: BTreeSet<String>,
    /// Folders of releases.
    pub releases: Vec<PathBuf>,
}

/// Looks at all repositories.
pub fn contents(repositories: &[PathBuf]) -> Result<Contents, ServeError> {
    let mut found = Contents::default();
    for repository in repositories {
        if let Some(name) = onnx_name(repository) {
            found.names.insert(name);
            continue;
        }
        if is_release(repository) {
            found.releases.push(repository.clone());
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
            let Some(name) = name.filter(|n| is_name(n)) else { continue };
            // What a pull has not finished is no release yet.
            if folder && is_release(&path) {
                found.releases.extend((!name.ends_with(PARTIAL)).then_some(path));
            } else {
                found.names.insert(name);
            }
            if found.names.len() + found.releases.len() > MODELS_MAX {
                return Err(invalid(format!("`{}` holds more than {MODELS_MAX} models", repository.display())));
            }
        }
    }
    Ok(found)
}

/// Whether a folder says that it is a release; what lies in the manifest's place is looked at when it is opened.
pub fn is_release(folder: &Path) -> bool {
    folder.join(MANIFEST).symlink_metadata().is_ok()
}

/// The folder or file of a model that is no release. A name that two of the repositories have, or one of them as folder and as file, is refused.
pub fn find(repositories: &[PathBuf], name: &str) -> Result<Option<PathBuf>, ServeError> {
    if !is_name(name) {
        return Ok(None);
    }
    let mut found: Vec<PathBuf> = Vec::new();
    for path in repositories.iter().flat_map(|repository| places(repository, name)) {
        // One place may be named in two ways.
        if found.iter().all(|other| !same(other, &path)) {
            found.push(path);
        }
    }
    if let [first, second, ..] = found.as_slice() {
        let (first, second) = (first.display(), second.display());
        let text = format!("model `{name}` is there twice, in `{first}` and in `{second}`; rename or remove one");
        return Err(invalid(text));
    }
    Ok(found.pop())
}

/// Where one repository has a model of that name.
fn places(repository: &Path, name: &str) -> Vec<PathBuf> {
    if repository.is_file() {
        let own = onnx_name(repository).as_deref() == Some(name);
        return own.then(|| repository.to_owned()).into_iter().collect();
    }
    if is_release(repository) {
        return Vec::new();
    }
    let (folder, file) = (repository.join(name), repository.join(format!("{name}.onnx")));
    let folder = (folder.is_dir() && !is_release(&folder)).then_some(folder);
    let file = file.is_file().then_some(file);
    folder.into_iter().chain(file).collect()
}

/// Whether two paths lead to one place.
pub fn same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
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
    let folders: Vec<u64> =
        entries.flatten().take(MODELS_MAX).filter_map(|e| number(e.file_name().to_str()?)).collect();
    // A folder that is still to be filled is no version yet.
    let filled = |v: &u64| ensemble || path.join(v.to_string()).join(file).is_file();
    let numbers: Vec<u64> = folders.into_iter().filter(filled).collect();
    let wanted = config::wanted(&config, numbers.clone());
    let mut versions: BTreeMap<u64, PathBuf> =
        wanted.into_iter().map(|v| (v, path.join(v.to_string()).join(file))).collect();
    let missing: Vec<i64> = config::named(&config).into_iter().filter(|v| !is_one_of(&numbers, *v)).collect();
    if ensemble && versions.is_empty() {
        // It has no files of its own, and its version folder may have been left out.
        versions.insert(1, path.to_owned());
    }
    match (versions.is_empty(), missing.as_slice()) {
        (true, []) => Err(invalid(format!("model `{name}`: {}", no_version(name, path, file)))),
        (true, missing) => {
            let there =
                if numbers.is_empty() { no_version(name, path, file) } else { format!("there are {numbers:?}") };
            Err(invalid(format!("model `{name}`: `version_policy` asks for the versions {missing:?}; {there}")))
        }
        (false, []) => Ok(Entry { config, versions }),
        (false, missing) => {
            tracing::warn!(model = name, ?missing, "versions that `version_policy` asks for are not there");
            Ok(Entry { config, versions })
        }
    }
}

fn is_one_of(numbers: &[u64], version: i64) -> bool {
    u64::try_from(version).is_ok_and(|version| numbers.contains(&version))
}

/// What lies in a model's folder in the place of a version.
fn no_version(name: &str, path: &Path, file: &str) -> String {
    let listed = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten().take(MODELS_MAX);
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        paths
    };
    let shown = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_onnx = |path: &&PathBuf| path.extension().is_some_and(|e| e == "onnx");
    let expected = format!("no version of it holds `{file}` (expected `{name}/1/{file}`)");
    for entry in listed(path) {
        let own = shown(&entry);
        let found = if is_onnx(&&entry) { Some(entry.clone()) } else { listed(&entry).iter().find(is_onnx).cloned() };
        let Some(found) = found.map(|found| shown(&found)) else { continue };
        if number(&own).is_some() {
            return format!("{expected}; `{own}` holds `{found}`: rename it, or set `default_model_filename` to it");
        }
        if entry.is_dir() {
            return format!("{expected}; the folder `{own}` is no version, which is a number of 1 or more");
        }
        return format!("{expected}; `{own}` lies beside the versions");
    }
    expected
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

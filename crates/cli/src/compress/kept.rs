//! What an interrupted compression keeps: candidates that took training, in a folder beside the result, until it is done.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use anyhow::Context as _;
use edgeward_compress::report::LayerFigures;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::candidates::Candidate;
use crate::{
    engines,
    failure::{Failure, Outcome},
    whole,
};

/// What a folder was begun for.
const KEY: &str = "command.json";
/// Held while somebody works in it.
const LOCK: &str = "lock";

/// Files of candidates, and what is known of those that are ready.
pub struct Kept {
    folder: PathBuf,
    model_sha256: String,
    /// Held for as long as this lives.
    _lock: File,
}

/// A candidate, without its file's place.
#[derive(Serialize, Deserialize)]
struct Noted {
    name: String,
    recipe: String,
    layers: Vec<LayerFigures>,
}

impl Kept {
    /// The folder for a result. What an interrupted run of the same command on the same files left in it is taken up; anything else
    /// is begun anew. `files` are those that the command does not name. An error where another compression works there.
    pub fn open(output: &Path, model_sha256: String, files: &[PathBuf]) -> Result<Self, Failure> {
        let folder = Self::folder_of(output);
        let shown = folder.display().to_string();
        if !is_ours(&folder) {
            let text = format!(
                "`{shown}`, where an interrupted run would be kept, holds something else; move it, or name another result with `-o`"
            );
            return Err(Failure::input(text));
        }
        fs::create_dir_all(&folder).with_context(|| format!("cannot write `{shown}`"))?;
        let lock = File::options().create(true).append(true).open(folder.join(LOCK));
        let lock = lock.with_context(|| format!("cannot write in `{shown}`"))?;
        if lock.try_lock().is_err() {
            let text = format!("another compression works in `{shown}`; wait for it, or name another folder with `-o`");
            return Err(Failure::input(text));
        }
        let words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
        let key = key(&model_sha256, &words, files, &folder);
        let kept = Self { folder, model_sha256, _lock: lock };
        if fs::read_to_string(kept.folder.join(KEY)).ok().as_ref() != Some(&key) {
            kept.clear().with_context(|| format!("cannot empty `{shown}`"))?;
            whole::write(&kept.path(KEY), key.as_bytes())?;
        }
        kept.sweep().with_context(|| format!("cannot tidy `{shown}`"))?;
        Ok(kept)
    }

    /// The folder for a result.
    pub fn folder_of(output: &Path) -> PathBuf {
        let mut name = output.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        output.with_file_name(name)
    }

    /// Where the file of this name is, or goes.
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Digest of the model that is compressed.
    pub fn model_sha256(&self) -> &str {
        &self.model_sha256
    }

    /// Candidates that were noted under this name.
    pub fn candidates(&self, group: &str) -> Option<Vec<Candidate>> {
        let candidate = |noted: Noted| {
            let path = self.path(&format!("{}.onnx", noted.name));
            let whole = engines::read_model(&path).is_ok_and(|model| model.check_external().is_ok());
            whole.then_some(Candidate { name: noted.name, recipe: noted.recipe, path, layers: noted.layers })
        };
        self.noted::<Vec<Noted>>(group)?.into_iter().map(candidate).collect()
    }

    /// Notes candidates whose files are written.
    pub fn note_candidates(&self, group: &str, made: &[Candidate]) -> Outcome {
        let noted = |made: &Candidate| Noted {
            name: made.name.clone(),
            recipe: made.recipe.clone(),
            layers: made.layers.clone(),
        };
        self.note(group, &made.iter().map(noted).collect::<Vec<_>>())
    }

    /// What was noted under this name.
    pub fn noted<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&fs::read(self.path(&format!("{name}.json"))).ok()?).ok()
    }

    /// Notes something, for a run that goes on.
    pub fn note(&self, name: &str, what: &impl Serialize) -> Outcome {
        whole::write(&self.path(&format!("{name}.json")), &serde_json::to_vec(what).map_err(anyhow::Error::from)?)?;
        Ok(())
    }

    /// It is done; nothing here has a further use.
    pub fn remove(self) {
        // Nothing is lost where it stays: it is what it was made for, and no more.
        let _ = fs::remove_dir_all(&self.folder);
    }

    /// Removes what a process that was ended had begun to write: model files bear such names until they are whole.
    fn sweep(&self) -> std::io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") && entry.file_type()?.is_file() {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// The lock stays.
    fn clear(&self) -> std::io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false if entry.file_name() == LOCK => {}
                false => fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    }
}

/// True for a folder that such a run began, or one without anything in it, or none. What a link leads to is somebody else's.
fn is_ours(folder: &Path) -> bool {
    let Ok(about) = fs::symlink_metadata(folder) else { return true };
    let alone = || {
        fs::read_dir(folder).is_ok_and(|entries| entries.filter_map(Result::ok).all(|entry| entry.file_name() == LOCK))
    };
    about.is_dir() && (folder.join(KEY).is_file() || alone())
}

/// The command, and the state of every file and folder that it names: what another command, model or data made does not go on.
fn key(model_sha256: &str, words: &[String], files: &[PathBuf], own: &Path) -> String {
    let mut states = Vec::new();
    // An option may have its value behind `=`.
    let values = words.iter().filter_map(|word| word.split_once('=')).map(|(_, value)| Path::new(value));
    for path in words.iter().map(Path::new).chain(values).chain(files.iter().map(PathBuf::as_path)) {
        note_state(path, own, &mut states);
    }
    serde_json::json!({ "version": env!("CARGO_PKG_VERSION"), "model": model_sha256, "words": words, "files": states })
        .to_string()
}

/// Size and age of a file, or of all files in a folder but `own`; nothing where there is none.
fn note_state(path: &Path, own: &Path, states: &mut Vec<(String, u64, String)>) {
    let Ok(about) = fs::metadata(path) else { return };
    if !about.is_dir() {
        let age = about.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        states.push((path.to_string_lossy().into_owned(), about.len(), age.as_nanos().to_string()));
        return;
    }
    if fs::canonicalize(path).ok() == fs::canonicalize(own).ok() {
        return;
    }
    let entries = fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    // What a link leads to is looked at where it is a file; a folder could lead back.
    let within =
        entries.filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_symlink()) || entry.path().is_file());
    let mut within: Vec<PathBuf> = within.map(|entry| entry.path()).collect();
    within.sort();
    within.iter().for_each(|path| note_state(path, own, states));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_of_a_folder_changes_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let (data, own) = (folder.path().join("data"), folder.path().join("out.partial"));
        fs::create_dir_all(data.join("train/cats")).unwrap();
        fs::create_dir_all(&own).unwrap();
        fs::write(data.join("train/cats/1.png"), "one").unwrap();
        let words = [format!("--data={}", data.display())];
        let now = |files: &[&Path]| {
            let files: Vec<PathBuf> = files.iter().map(|path| path.to_path_buf()).collect();
            key("model", &words, &files, &own)
        };
        let before = now(&[folder.path()]);
        assert_eq!(before, now(&[folder.path()]));
        fs::write(own.join("net.onnx"), "what is kept itself does not count").unwrap();
        assert_eq!(before, now(&[folder.path()]));
        assert_eq!(before, now(&[folder.path(), &folder.path().join("missing")]));
        fs::write(data.join("train/cats/1.png"), "other").unwrap();
        assert_ne!(before, now(&[folder.path()]));
        // The same where only the command names it.
        let named = now(&[]);
        fs::write(data.join("train/cats/1.png"), "a third").unwrap();
        assert_ne!(named, now(&[]));
    }
}

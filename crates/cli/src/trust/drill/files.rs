//! Drills on copies of the models' files: what can be read in them, and whether a changed copy is served.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use edgeward_graph::{Limits, Model};
use edgeward_store::{Release, manifest::MANIFEST};

use super::{
    Stage,
    outcome::{Evidence, Verdict},
    second::serves,
    tamper,
};
use crate::failure::{Failure, OrInput as _};

/// More is not copied.
const COPY_BYTES_MAX: u64 = 2 << 30;

/// What whoever copies the models' disk can read.
pub fn at_rest(stage: &Stage<'_>) -> Result<Verdict, Failure> {
    let Some(models) = &stage.models else {
        return Ok(Verdict::not_applicable("it needs the files that the server loads: --models PATH"));
    };
    let mut evidence = Vec::new();
    for path in files_of(models)? {
        let name = path.strip_prefix(models).unwrap_or(&path).display().to_string();
        evidence.push(readable(&path, name)?);
    }
    if evidence.is_empty() {
        return Ok(Verdict::not_applicable(format!("`{}` holds no files", models.display())));
    }
    if let Some(keys) = stage.opening.keys_beneath(models) {
        evidence.push(Evidence::attempt(keys, "the keys lie with what they open", true));
    }
    let served = serves(models, &stage.opening)?;
    evidence.push(Evidence::new("the files as they lie there", told(&served)));
    let broken = served
        .is_empty()
        .then(|| "these files are not served here: that nobody can read them is no defence".to_owned());
    let verdict = Verdict::of(
        evidence,
        "no file holds a graph that can be read without the key",
        "lies open: a copied disk is a copied model",
    );
    Ok(verdict.unless_broken(broken))
}

/// What a file tells whoever reads it.
fn readable(path: &Path, name: String) -> Result<Evidence, Failure> {
    let size = fs::metadata(path)?.len();
    Ok(match Model::read(path, &Limits::default()) {
        Ok(model) if !model.graph().node.is_empty() => {
            let (nodes, tensors) = (model.graph().node.len(), model.graph().initializer.len());
            Evidence::attempt(name, format!("an ONNX graph of {nodes} nodes and {tensors} tensors, in the clear"), true)
        }
        _ if is_plain_data(path) => {
            Evidence::attempt(name, format!("{size} bytes of a release that is not sealed"), true)
        }
        _ => Evidence::new(name, format!("{size} bytes, no graph; {:.2} bits of entropy in a byte", entropy(path)?)),
    })
}

/// Whether a release lists the file and it is not sealed: weights beside their graph.
fn is_plain_data(path: &Path) -> bool {
    let release = path.ancestors().skip(1).find(|folder| folder.join(MANIFEST).exists());
    let Some((folder, Ok(release))) = release.map(|folder| (folder, Release::open(folder))) else { return false };
    let path = path.strip_prefix(folder).ok().and_then(Path::to_str);
    let manifest = release.manifest();
    let listed = path.and_then(|path| manifest.files.get(path).filter(|_| manifest.report.as_deref() != Some(path)));
    listed.is_some_and(|entry| entry.sealed.is_none())
}

/// Bits of entropy in a byte of a file's first MiB (Shannon 1948): ciphertext has nearly 8.
fn entropy(path: &Path) -> Result<f64, Failure> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(1 << 20).read_to_end(&mut bytes)?;
    let mut counts = [0usize; 256];
    bytes.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
    let share = |count: usize| count as f64 / bytes.len().max(1) as f64;
    Ok(counts.iter().filter(|count| **count > 0).map(|&count| -share(count) * share(count).log2()).sum())
}

/// Serves a copy of the models, then copies that were changed.
pub fn swapped(stage: &Stage<'_>) -> Result<Verdict, Failure> {
    let Some(models) = &stage.models else {
        return Ok(Verdict::not_applicable("it needs the files that the server loads: --models PATH"));
    };
    let folder = tempfile::tempdir()?;
    let copy = |name: &str| -> Result<PathBuf, Failure> {
        let copy = folder.path().join(name);
        match models.is_dir() {
            true => copy_folder(models, &copy, &mut 0)?,
            false => {
                fs::create_dir_all(&copy)?;
                fs::copy(models, copy.join(models.file_name().unwrap_or_default()))?;
            }
        }
        Ok(copy)
    };
    let before = serves(&copy("true")?, &stage.opening)?;
    let broken =
        before.is_empty().then(|| "the true copy is not served here either: what holds it is not told".to_owned());
    let mut evidence = vec![Evidence::new("a true copy of the files", told(&before))];
    for (at, swap) in tamper::SWAPS.iter().enumerate() {
        let changed = copy(&format!("changed-{at}"))?;
        let Some(what) = swap(&changed)? else { continue };
        let after = serves(&changed, &stage.opening)?;
        // Of several models, those that were not changed are served all the same.
        evidence.push(Evidence::attempt(what, told(&after), !after.is_empty() && after.len() >= before.len()));
    }
    let verdict =
        Verdict::of(evidence, "what was changed is not served", "is served although it is not what was put there");
    Ok(verdict.unless_broken(broken))
}

fn told(models: &[String]) -> String {
    if models.is_empty() { "no model is ready".to_owned() } else { format!("serves {}", models.join(", ")) }
}

/// Copies a folder's files; links are left out.
pub fn copy_folder(from: &Path, to: &Path, bytes: &mut u64) -> Result<(), Failure> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("`{}`", from.display())).or_input()? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_folder(&entry.path(), &to, bytes)?;
        } else if kind.is_file() {
            *bytes += entry.metadata()?.len();
            if *bytes > COPY_BYTES_MAX {
                let text =
                    format!("`{}` holds more than {COPY_BYTES_MAX} bytes; the drill works on a copy", from.display());
                return Err(Failure::input(text));
            }
            // A file that a running server has just replaced is not missed.
            match fs::copy(entry.path(), &to) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                copied => drop(copied?),
            }
        }
    }
    Ok(())
}

/// Every file beneath a path, the path itself where it is one.
pub fn files_of(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let meta = fs::metadata(path).map_err(|error| Failure::input(format!("`{}`: {error}", path.display())))?;
    if meta.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { files.extend(files_of(&entry.path())?) } else { files.push(entry.path()) }
    }
    Ok(files)
}

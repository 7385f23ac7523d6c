//! Drills on copies of the models' files: what can be read in them, and whether a changed copy is served.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use edgeward_graph::{DataType, Limits, Model, Tensor, tensor_proto};

use super::{
    Stage,
    outcome::{Evidence, Verdict},
};
use crate::failure::{Failure, OrInput as _};

/// More is not copied.
const COPY_BYTES_MAX: u64 = 2 << 30;
/// A server that has not begun to serve a copy after so long does not.
const START_TIME_MAX: Duration = Duration::from_secs(60);

/// What whoever copies the models' disk can read.
pub fn at_rest(stage: &Stage<'_>) -> Result<Verdict, Failure> {
    let Some(models) = &stage.models else {
        return Ok(Verdict::not_applicable("it needs the files that the server loads: --models PATH"));
    };
    let mut evidence = Vec::new();
    for path in files_of(models)? {
        let name = path.strip_prefix(models).unwrap_or(&path).display().to_string();
        let size = fs::metadata(&path)?.len();
        match Model::read(&path, &Limits::default()) {
            Ok(model) if !model.graph().node.is_empty() => {
                let (nodes, tensors) = (model.graph().node.len(), model.graph().initializer.len());
                evidence.push(Evidence::attempt(
                    name,
                    format!("an ONNX graph of {nodes} nodes and {tensors} tensors, in the clear"),
                    true,
                ));
            }
            _ => evidence.push(Evidence::new(
                name,
                format!("{size} bytes, no graph; {:.2} bits of entropy in a byte", entropy(&path)?),
            )),
        }
    }
    if evidence.is_empty() {
        return Ok(Verdict::not_applicable(format!("`{}` holds no files", models.display())));
    }
    Ok(Verdict::of(
        evidence,
        "no file holds a graph that can be read without the key",
        "lies open: a copied disk is a copied model",
    ))
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

/// Serves a copy of the models, then a copy that was changed.
pub fn swapped(stage: &Stage<'_>) -> Result<Verdict, Failure> {
    let Some(models) = &stage.models else {
        return Ok(Verdict::not_applicable("it needs the files that the server loads: --models PATH"));
    };
    let folder = tempfile::tempdir()?;
    let copies = [folder.path().join("true"), folder.path().join("changed")];
    for copy in &copies {
        match models.is_dir() {
            true => copy_folder(models, copy, &mut 0)?,
            false => {
                fs::create_dir_all(copy)?;
                fs::copy(models, copy.join(models.file_name().unwrap_or_default()))?;
            }
        }
    }
    let [true_copy, changed] = &copies;
    let what = tamper(changed)?;
    let (before, after) = (serves(true_copy)?, serves(changed)?);
    let broken =
        before.is_empty().then(|| "the true copy is not served here either: what holds it is not told".to_owned());
    let evidence = vec![
        Evidence::new("a true copy of the files", told(&before)),
        // Of several models, those that were not changed are served all the same.
        Evidence::attempt(what, told(&after), !after.is_empty() && after.len() >= before.len()),
    ];
    let verdict =
        Verdict::of(evidence, "what was changed is not served", "is served although it is not what was put there");
    Ok(verdict.unless_broken(broken))
}

fn told(models: &[String]) -> String {
    if models.is_empty() { "no model is ready".to_owned() } else { format!("serves {}", models.join(", ")) }
}

/// Changes weights: of a graph that can be read, else of whatever the largest file holds.
fn tamper(copy: &Path) -> Result<String, Failure> {
    let mut largest: Option<(u64, PathBuf)> = None;
    for path in files_of(copy)? {
        if let Ok(mut model) = Model::read(&path, &Limits::default())
            && turn_weights(&mut model)
        {
            let bytes = path.with_extension("changed");
            model.write(&bytes).or_input()?;
            fs::rename(&bytes, &path)?;
            return Ok(format!(
                "{} with the signs of its weights turned",
                path.strip_prefix(copy).unwrap_or(&path).display()
            ));
        }
        let size = fs::metadata(&path)?.len();
        if largest.as_ref().is_none_or(|(most, _)| size > *most) {
            largest = Some((size, path));
        }
    }
    let (size, path) = largest.ok_or_else(|| Failure::input("`--models` names no files"))?;
    let mut bytes = fs::read(&path)?;
    if let Some(byte) = bytes.get_mut(size as usize / 2) {
        *byte ^= 1;
    }
    fs::write(&path, bytes)?;
    Ok(format!("{} with a bit of its middle changed", path.strip_prefix(copy).unwrap_or(&path).display()))
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

/// The models that a server of this very program has ready when it is given a folder; none where it refuses to start.
fn serves(folder: &Path) -> Result<Vec<String>, Failure> {
    let files = tempfile::tempdir()?;
    let ready = files.path().join("ready.json");
    let free = "127.0.0.1:0";
    let mut child = Command::new(std::env::current_exe()?)
        .arg("serve")
        .arg(folder)
        .args(["--insecure", "--http", free, "--grpc", free, "--metrics", free, "--json", "--ready-file"])
        .arg(&ready)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let started = Instant::now();
    while !ready.exists() && child.try_wait()?.is_none() && started.elapsed() < START_TIME_MAX {
        std::thread::sleep(Duration::from_millis(20));
    }
    let models = fs::read(&ready).ok().and_then(|text| index(&text));
    child.kill()?;
    child.wait()?;
    Ok(models.unwrap_or_default())
}

/// Asks a server without TLS for its models.
fn index(ready: &[u8]) -> Option<Vec<String>> {
    use std::io::{Read as _, Write as _};
    let ready: serde_json::Value = serde_json::from_slice(ready).ok()?;
    let address = ready.get("http")?.as_str()?;
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(START_TIME_MAX)).ok()?;
    let body = "{\"ready\":true}";
    let head = format!(
        "POST /v2/repository/index HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let models: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
    Some(models.as_array()?.iter().filter_map(|model| Some(model.get("name")?.as_str()?.to_owned())).collect())
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
fn files_of(path: &Path) -> Result<Vec<PathBuf>, Failure> {
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

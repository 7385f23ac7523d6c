//! Drills on copied disks: the audit log, the models' files, and what is made of a copy that was changed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use edgeward_graph::{DataType, Limits, Model, Tensor, tensor_proto};
use edgeward_trust::{
    audit::{
        note::NoteKey,
        tile::take_entry,
        verify::{Report, Verification, verify},
        witness::Witness,
    },
    keys::{KeyKind, KeyProvider as _, SealedFile, Unlock},
};

use super::{
    Stage,
    outcome::{Evidence, Verdict},
};
use crate::{
    failure::{Failure, OrInput as _},
    trust::failure,
};

/// More is not copied.
const COPY_BYTES_MAX: u64 = 2 << 30;
/// A server that has not begun to serve a copy after so long does not.
const START_TIME_MAX: Duration = Duration::from_secs(60);

/// Changes copies of the log, and has each verified.
pub fn log(stage: &Stage<'_>) -> Result<Verdict, Failure> {
    let (audit, key) = (&stage.folder.audit, stage.folder.path.join("audit.vkey"));
    if !audit.join("checkpoint").exists() {
        return Ok(Verdict::not_applicable(format!("`{}` holds no published log", audit.display())));
    }
    let key = fs::read_to_string(&key).map_err(|error| Failure::input(format!("`{}`: {error}", key.display())))?;
    let key = NoteKey::parse(&key).map_err(failure)?;
    let files = tempfile::tempdir()?;
    let (as_it_is, report) = copied(audit, files.path(), &key)?;
    let sound = format!(
        "{} records, {} signed checkpoints, {} findings",
        report.records,
        report.checkpoints,
        report.findings.len()
    );
    let mut evidence = vec![Evidence::attempt("the log as it is", told(&report, sound), !report.findings.is_empty())];
    if !report.findings.is_empty() {
        return Ok(Verdict::of(evidence, "", "the log is not what was signed"));
    }
    let witness = witness(files.path())?;
    let now_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let cosigned = witness.cosign(&as_it_is, &key, now_s).map_err(failure)?;
    let witnessed = [(cosigned, witness.key().clone())];
    for (at, (what, attack)) in ATTACKS.iter().enumerate() {
        let copy = files.path().join(format!("attack-{at}"));
        copy_folder(&as_it_is, &copy, &mut 0)?;
        if let Err(why) = attack(&copy) {
            evidence.push(Evidence::new(*what, format!("not tried: {why:#}")));
            continue;
        }
        let (found, through) = match verify(&Verification { folder: &copy, key: &key, witnessed: &witnessed }) {
            Ok(report) => (told(&report, "nothing was noticed".to_owned()), report.findings.is_empty()),
            Err(error) => (error.to_string(), false),
        };
        evidence.push(Evidence::attempt(*what, found, through));
    }
    Ok(Verdict::of(evidence, "each change is found, and the records are named", "was not noticed"))
}

/// The first finding, or what else there is to say.
fn told(report: &Report, otherwise: String) -> String {
    report.findings.first().map_or(otherwise, |finding| finding.text.clone())
}

/// A copy of a log that may be written meanwhile: what is named first is copied first, so that nothing is missing behind it.
fn copied(audit: &Path, files: &Path, key: &NoteKey) -> Result<(PathBuf, Report), Failure> {
    let mut last = None;
    for attempt in 0..3 {
        let copy = files.join(format!("copy-{attempt}"));
        fs::create_dir_all(&copy)?;
        let mut bytes = 0;
        for part in ["checkpoints", "checkpoint", "journal", "tile"] {
            let (from, to) = (audit.join(part), copy.join(part));
            if from.is_dir() {
                copy_folder(&from, &to, &mut bytes)?;
            } else if from.exists() {
                fs::copy(from, to)?;
            }
        }
        let report = verify(&Verification { folder: &copy, key, witnessed: &[] }).map_err(failure)?;
        if report.findings.is_empty() {
            return Ok((copy, report));
        }
        last = Some((copy, report));
    }
    last.ok_or_else(|| Failure::Work(anyhow::anyhow!("the log was not copied")))
}

/// A second party that remembers the log, for as long as the drill.
fn witness(files: &Path) -> Result<Witness, Failure> {
    let unlock = Unlock::Passphrase(b"of no worth".to_vec().into());
    let keys = SealedFile::create(&files.join("witness.keys"), &unlock).map_err(failure)?;
    keys.create("witness", KeyKind::Ed25519).map_err(failure)?;
    Witness::new("drill.invalid/witness", Arc::new(keys), "witness", &files.join("memory")).map_err(failure)
}

type Attack = fn(&Path) -> anyhow::Result<()>;

/// What somebody does who can write the files, and has not the key.
const ATTACKS: [(&str, Attack); 7] = [
    ("a denial is turned into a permission", |log| {
        edit(log, |entries| {
            let entry = entries.iter_mut().find(|entry| entry.windows(6).any(|bytes| bytes == b"\"deny\""));
            let entry = entry.context("no record is a denial")?;
            *entry = String::from_utf8_lossy(entry).replacen("\"deny\"", "\"allow\"", 1).into_bytes();
            Ok(())
        })
    }),
    ("a bit of a record is changed", |log| {
        edit(log, |entries| {
            let byte = entries.first_mut().and_then(|entry| entry.last_mut()).context("no record")?;
            *byte ^= 1;
            Ok(())
        })
    }),
    ("a record is taken out", |log| {
        edit(log, |entries| (entries.len() > 1).then(|| drop(entries.remove(0))).context("there is one record only"))
    }),
    ("two records are exchanged", |log| {
        edit(log, |entries| (entries.len() > 1).then(|| entries.swap(0, 1)).context("there is one record only"))
    }),
    ("the last records are taken away", |log| Ok(fs::remove_file(last_bundle(log)?)?)),
    ("the checkpoint says one record less", |log| {
        let path = log.join("checkpoint");
        let note = fs::read_to_string(&path)?;
        let size: u64 = note.lines().nth(1).and_then(|line| line.parse().ok()).context("no size")?;
        Ok(fs::write(path, note.replacen(&format!("\n{size}\n"), &format!("\n{}\n", size.saturating_sub(1)), 1))?)
    }),
    ("the log is set back to an earlier checkpoint, with its history", |log| {
        let history = fs::read_to_string(log.join("checkpoints"))?;
        let now = fs::read_to_string(log.join("checkpoint"))?;
        let earlier =
            history.lines().filter_map(|line| serde_json::from_str::<String>(line).ok()).find(|note| *note != now);
        fs::write(log.join("checkpoint"), earlier.context("there is one checkpoint only")?)?;
        fs::write(log.join("checkpoints"), "")?;
        Ok(fs::remove_dir_all(log.join("journal"))?)
    }),
];

/// The files of published records, the last first.
fn bundles(log: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let checkpoint = fs::read_to_string(log.join("checkpoint"))?;
    let size: u64 = checkpoint.lines().nth(1).and_then(|line| line.parse().ok()).context("no size")?;
    let (mut found, mut folders) = (Vec::new(), vec![log.join("tile/entries")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)?.flatten() {
            if entry.file_type()?.is_dir() { folders.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    // Of a tile that is not full, earlier parts may lie beside the one that counts.
    let in_part = |path: &Path| path.parent().is_some_and(|folder| folder.extension().is_some_and(|end| end == "p"));
    let counts = |path: &PathBuf| !in_part(path) || path.ends_with((size % 256).to_string());
    found.retain(counts);
    found.sort();
    found.reverse();
    Ok(found)
}

fn last_bundle(log: &Path) -> anyhow::Result<PathBuf> {
    bundles(log)?.into_iter().next().context("the log has no published records")
}

/// Changes the last records with which that can be done.
fn edit(log: &Path, change: impl Fn(&mut Vec<Vec<u8>>) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut failed = None;
    for path in bundles(log)? {
        let bytes = fs::read(&path)?;
        let (mut rest, mut entries) = (bytes.as_slice(), Vec::new());
        while let Some((entry, after)) = take_entry(rest) {
            entries.push(entry.to_vec());
            rest = after;
        }
        match change(&mut entries) {
            Err(why) => failed = Some(why),
            Ok(()) => {
                let length = |entry: &[u8]| u16::try_from(entry.len()).unwrap_or(u16::MAX).to_be_bytes();
                let changed =
                    entries.iter().flat_map(|entry| [&length(entry)[..], entry].concat()).collect::<Vec<u8>>();
                return Ok(fs::write(path, changed)?);
            }
        }
    }
    Err(failed.unwrap_or_else(|| anyhow::anyhow!("the log has no published records")))
}

/// Copies a folder's files; links are left out.
fn copy_folder(from: &Path, to: &Path, bytes: &mut u64) -> Result<(), Failure> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("`{}`", from.display())).or_input()? {
        let (entry, to) = {
            let entry = entry?;
            let to = to.join(entry.file_name());
            (entry, to)
        };
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
    let served = |copy: &Path| {
        serves(copy).map(|models| {
            if models.is_empty() { "no model is ready".to_owned() } else { format!("serves {}", models.join(", ")) }
        })
    };
    let (before, after) = (served(true_copy)?, serves(changed)?);
    let broken = before
        .starts_with("no")
        .then(|| "the true copy is not served here either: what holds it is not told".to_owned());
    let found = if after.is_empty() { "no model is ready".to_owned() } else { format!("serves {}", after.join(", ")) };
    let evidence =
        vec![Evidence::new("a true copy of the files", before), Evidence::attempt(what, found, !after.is_empty())];
    Ok(Verdict::of(evidence, "what was changed is not served", "is served although it is not what was put there")
        .unless_broken(broken))
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

//! The drill on copies of the audit log: somebody who can write its files, and has not the key that signs it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use edgeward_trust::audit::{
    note::NoteKey,
    tile::{Content, Tiles, WIDTH, take_entry, tile_path},
    verify::{Report, Verification, verify},
};

use super::{
    Stage,
    files::copy_folder,
    outcome::{Evidence, Verdict},
};
use crate::{failure::Failure, trust::failure};

/// Changes copies of the log, and has each verified.
pub fn play(stage: &Stage<'_>) -> Result<Verdict, Failure> {
    let (audit, key) = (&stage.folder.audit, stage.folder.path.join("audit.vkey"));
    if !audit.join("checkpoint").exists() {
        return Ok(Verdict::not_applicable(format!("`{}` holds no published log", audit.display())));
    }
    let key = fs::read_to_string(&key).map_err(|error| Failure::input(format!("`{}`: {error}", key.display())))?;
    let key = NoteKey::parse(&key).map_err(failure)?;
    let files = tempfile::tempdir()?;
    let (as_it_is, report) = copied(audit, files.path(), &key, &stage.witnessed)?;
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
    for (at, (what, attack)) in ATTACKS.iter().enumerate() {
        let copy = files.path().join(format!("attack-{at}"));
        copy_folder(&as_it_is, &copy, &mut 0)?;
        if let Err(why) = attack(&copy) {
            // Of a log with one checkpoint the next is set back just so.
            let found = if *what == SET_BACK { UNDETECTABLE.to_owned() } else { format!("not tried: {why:#}") };
            evidence.push(Evidence::new(*what, found));
            continue;
        }
        let (found, through) = match verify(&Verification { folder: &copy, key: &key, witnessed: &stage.witnessed }) {
            Ok(report) => (told(&report, "nothing was noticed".to_owned()), report.findings.is_empty()),
            Err(error) => (error.to_string(), false),
        };
        evidence.push(match *what {
            // What signs nothing new cannot be told from a log that ended then: that takes a second party.
            SET_BACK if through => Evidence::new(*what, UNDETECTABLE),
            _ => Evidence::attempt(*what, found, through),
        });
    }
    let set_back = evidence.iter().any(|line| line.found == UNDETECTABLE);
    let verdict = Verdict::of(evidence, "each change is found, and the records are named", "was not noticed");
    Ok(verdict.unless_broken(set_back.then(|| format!("each change is found; a log that is set back {UNDETECTABLE}"))))
}

/// The first finding, or what else there is to say.
fn told(report: &Report, otherwise: String) -> String {
    report.findings.first().map_or(otherwise, |finding| finding.text.clone())
}

/// A copy of a log that may be written meanwhile: what is named first is copied first, so that nothing is missing behind it.
fn copied(
    audit: &Path,
    files: &Path,
    key: &NoteKey,
    witnessed: &[(String, NoteKey)],
) -> Result<(PathBuf, Report), Failure> {
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
        end_at_checkpoint(&copy)?;
        let report = verify(&Verification { folder: &copy, key, witnessed }).map_err(failure)?;
        if report.findings.is_empty() {
            return Ok((copy, report));
        }
        last = Some((copy, report));
    }
    last.ok_or_else(|| Failure::Work(anyhow::anyhow!("the log was not copied")))
}

/// The change that an installation without a witness cannot find.
const SET_BACK: &str = "the log is set back to an earlier checkpoint, with its history";
const UNDETECTABLE: &str = "is not detectable here: no witness has seen this log as it was since; `edgeward trust audit witness` has it cosigned, and what it cosigned is named by `--witness KEY --cosigned FILE`";

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
    (SET_BACK, |log| {
        let history = fs::read_to_string(log.join("checkpoints"))?;
        let now = fs::read_to_string(log.join("checkpoint"))?;
        let earlier =
            history.lines().filter_map(|line| serde_json::from_str::<String>(line).ok()).find(|note| *note != now);
        fs::write(log.join("checkpoint"), earlier.context("there is one checkpoint only")?)?;
        fs::write(log.join("checkpoints"), "")?;
        Ok(fs::remove_dir_all(log.join("journal"))?)
    }),
];

/// The files of the records that the checkpoint covers, the last first. A log that goes on has more behind them.
fn bundles(log: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let checkpoint = fs::read_to_string(log.join("checkpoint"))?;
    let size: u64 = checkpoint.lines().nth(1).and_then(|line| line.parse().ok()).context("no size")?;
    let tiles = Tiles::new(log, size);
    let path = |index| log.join(tile_path(Content::Entries, index, tiles.width(0, index)));
    Ok((0..size.div_ceil(WIDTH)).rev().map(path).collect())
}

/// A tile that was filled after the checkpoint holds records that it does not cover: the copy has those that it does, so that each change
/// concerns one of them.
fn end_at_checkpoint(log: &Path) -> Result<(), Failure> {
    let Some(part) = bundles(log).ok().and_then(|bundles| bundles.into_iter().next()) else { return Ok(()) };
    let (Some(folder), Some(width)) = (part.parent(), part.file_name().and_then(|name| name.to_str()?.parse().ok()))
    else {
        return Ok(());
    };
    let full = folder.with_extension("");
    if folder.extension().is_none() || !full.is_file() {
        return Ok(());
    }
    let entries = entries(&fs::read(&full)?);
    fs::create_dir_all(folder)?;
    fs::write(&part, bundle(entries.get(..width).unwrap_or(&entries)))?;
    Ok(fs::remove_file(full)?)
}

/// The entries of a file.
fn entries(bytes: &[u8]) -> Vec<Vec<u8>> {
    let (mut rest, mut entries) = (bytes, Vec::new());
    while let Some((entry, after)) = take_entry(rest) {
        entries.push(entry.to_vec());
        rest = after;
    }
    entries
}

/// A file of entries.
fn bundle(entries: &[Vec<u8>]) -> Vec<u8> {
    let length = |entry: &[u8]| u16::try_from(entry.len()).unwrap_or(u16::MAX).to_be_bytes();
    entries.iter().flat_map(|entry| [&length(entry)[..], entry].concat()).collect()
}

fn last_bundle(log: &Path) -> anyhow::Result<PathBuf> {
    bundles(log)?.into_iter().next().context("the log has no published records")
}

/// Changes the last records with which that can be done.
fn edit(log: &Path, change: impl Fn(&mut Vec<Vec<u8>>) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut failed = None;
    for path in bundles(log)? {
        let mut entries = entries(&fs::read(&path)?);
        match change(&mut entries) {
            Err(why) => failed = Some(why),
            Ok(()) => return Ok(fs::write(path, bundle(&entries))?),
        }
    }
    Err(failed.unwrap_or_else(|| anyhow::anyhow!("the log has no published records")))
}

//! The folder of a compression, and what is printed of it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use edgeward_compress::{
    choose::Figures,
    report::{DataKind, Report, Turns, Variant, page},
};

use super::{judge::Verdict, timing::Timed};
use crate::{
    Context,
    failure::{Failure, Outcome},
    print,
};

/// File that tells a folder of ours.
const REPORT: &str = "report.json";
const PAGE: &str = "report.html";
const CHOSEN: &str = "model.onnx";
const TOKENIZER: &str = "model.tokenizer.json";

/// Fills in what a verdict says of a variant on the engine that `timed` names. `bytes` are the file's, and in transfer.
pub fn judged(variant: &mut Variant, timed: &Timed, verdict: &Verdict, (bytes, transfer_bytes): (u64, u64), drop: f64) {
    let (Some(p50_ms), Some(per_second), Some(core_ms)) = (timed.p50_ms, timed.per_second, timed.core_ms) else {
        return;
    };
    variant.engine = Some(timed.engine.clone());
    variant.figures = Some(Figures { p50_ms, per_second, core_ms, bytes, transfer_bytes, drop });
    variant.metric = Some(verdict.metric);
    variant.interval = verdict.interval;
    variant.agreement = Some(verdict.agreement);
}

/// Known before minutes of work, not after: a folder that holds anything but what was written here before, or the model itself, is not
/// replaced.
pub fn check_folder(folder: &Path, model: &Path) -> Outcome {
    let refuse = |what: String| {
        Err(Failure::input(format!("result `{}` {what}; name another folder with `-o FOLDER`", folder.display())))
    };
    if folder.file_name().is_none() {
        return refuse("is no name of a folder".to_owned());
    }
    let Ok(about) = fs::symlink_metadata(folder) else { return Ok(()) };
    if !about.is_dir() {
        return refuse(if about.is_symlink() { "is a link" } else { "is a file" }.to_owned());
    }
    let real = |path: &Path| fs::canonicalize(path).ok();
    if real(model).is_some_and(|model| real(folder).is_some_and(|folder| model.starts_with(folder))) {
        return refuse("holds the model that is compressed".to_owned());
    }
    let own = own_files(folder);
    let foreign = |entry: &fs::DirEntry| {
        let file = entry.file_type().is_ok_and(|kind| kind.is_file());
        !(file && own.iter().any(|name| entry.file_name() == name.as_str()))
    };
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read `{}`", folder.display()))?;
    match entries.filter_map(Result::ok).find(foreign) {
        Some(entry) => refuse(format!("holds something else, `{}`", entry.file_name().to_string_lossy())),
        None => Ok(()),
    }
}

/// Files that a folder's report says were written with it.
fn own_files(folder: &Path) -> Vec<String> {
    #[derive(serde::Deserialize)]
    struct Written {
        variants: Vec<File>,
    }
    #[derive(serde::Deserialize)]
    struct File {
        file: Option<String>,
    }
    let report = fs::read(folder.join(REPORT)).ok();
    let Some(report) = report.and_then(|text| serde_json::from_slice::<Written>(&text).ok()) else { return Vec::new() };
    let mut own = [REPORT, PAGE, CHOSEN, TOKENIZER].map(str::to_owned).to_vec();
    for file in report.variants.into_iter().filter_map(|variant| variant.file) {
        own.push(format!("{file}.data"));
        own.push(file);
    }
    own
}

/// Writes variants that nothing beats, the chosen one as `model.onnx`, and both reports; then the folder takes its place
/// at once.
pub fn write(report: &Report, staged: &Path, model: &Path, folder: &Path) -> Outcome {
    let made =
        tempfile::tempdir_in(parent(folder)).with_context(|| format!("cannot write beside `{}`", folder.display()))?;
    for variant in &report.variants {
        let Some(file) = &variant.file else { continue };
        fs::copy(staged.join(file), made.path().join(file))?;
        // Copies of the graph refer to the same data, which is too large to have twice.
        let data = format!("{file}.data");
        if staged.join(&data).is_file() {
            fs::rename(staged.join(&data), made.path().join(&data))?;
        }
        if report.chosen.as_ref() == Some(&variant.name) {
            fs::copy(staged.join(file), made.path().join(CHOSEN))?;
        }
    }
    let tokenizer = model.with_extension("tokenizer.json");
    if tokenizer.is_file() {
        fs::copy(tokenizer, made.path().join(TOKENIZER))?;
    }
    fs::write(made.path().join(REPORT), serde_json::to_vec_pretty(report)?)?;
    fs::write(made.path().join(PAGE), page(report))?;
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot replace `{}`", folder.display()))?;
    }
    let made = made.keep();
    fs::rename(&made, folder).with_context(|| format!("cannot write `{}`", folder.display()))?;
    Ok(())
}

/// The folder that a folder is in.
pub fn parent(folder: &Path) -> PathBuf {
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Prints the report; where nothing is better that is a failure, which says why.
pub fn show(report: &Report, folder: &Path, context: &Context) -> Outcome {
    let chosen = report.chosen.as_ref().and_then(|name| report.variants.iter().find(|variant| variant.name == *name));
    if context.json {
        print::json(report)?;
    } else {
        table(report)?;
        if report.data.kind != DataKind::Labelled {
            print::line(&format!("judged on {}", report.data.kind.text()))?;
        }
        if report.timing == Turns::OneByOne {
            print::line("timed one after the other: what the machine did beside it is in the figures")?;
        }
        if let Some(memory) = report.memory {
            let quantising =
                memory.quantising_bytes_max.map(|bytes| format!(", while quantising {}", print::bytes(bytes)));
            print::line(&format!("most memory {}{}", print::bytes(memory.bytes_max), quantising.unwrap_or_default()))?;
        }
        for variant in report.variants.iter().filter(|variant| variant.refused.is_some()) {
            print::line(&format!("{}: {}", variant.name, variant.refused.as_deref().unwrap_or_default()))?;
        }
    }
    let Some(chosen) = chosen else {
        let text = "nothing was written: no variant is better than the original within the limits";
        return Err(Failure::told(text));
    };
    if !context.json {
        let (folder, engine) = (folder.display(), chosen.engine.as_deref().unwrap_or_default());
        print::line(&format!(
            "`{}` on {engine} is `{folder}/model.onnx`; all of it in `{folder}/report.html`",
            chosen.name
        ))?;
    }
    Ok(())
}

fn table(report: &Report) -> Outcome {
    let header =
        ["variant", "engine", "p50", "items/s", "cores", "file", "transfer", report.metric.as_str(), "top-1", "cosine"];
    // The metric may be the last column itself.
    let columns = if report.metric == "cosine" { header.len() - 1 } else { header.len() };
    let row = |variant: &Variant| {
        let none = || "–".to_owned();
        let figures = variant.figures;
        let of = |text: fn(Figures) -> String| figures.map_or_else(none, text);
        let mark = if report.chosen.as_ref() == Some(&variant.name) { " *" } else { "" };
        let row = vec![
            format!("{}{mark}", variant.name),
            variant.engine.clone().unwrap_or_else(none),
            of(|figures| print::ms(figures.p50_ms)),
            of(|figures| print::rate(figures.per_second)),
            of(|figures| print::ms(figures.core_ms)),
            of(|figures| print::bytes(figures.bytes)),
            of(|figures| print::bytes(figures.transfer_bytes)),
            variant.metric.map_or_else(none, |metric| format!("{metric:.4}")),
            variant.agreement.and_then(|a| a.top1).map_or_else(none, |top1| format!("{top1:.4}")),
            variant.agreement.map_or_else(none, |a| format!("{:.4}", a.cosine)),
        ];
        row.into_iter().take(columns).collect()
    };
    let rows = std::iter::once(&report.original).chain(&report.variants).map(row).collect();
    print::table(header.get(..columns).unwrap_or_default(), rows, 2)
}
